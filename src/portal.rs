//! The portal: one connection, and what goes over it. Nothing else in the program names ureq.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustls::RootCertStore;
use ureq::config::{AutoHeaderValue, Config};
use ureq::http::{HeaderValue, Request, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, DefaultConnector, Either, NextTimeout, Transport,
};
use ureq::{Agent, SendBody, Timeout};

use crate::address::{Protocol, Proxy, Url};
use crate::cli::Options;
use crate::error::{Error, io_words};
use crate::secret::{Secret, shown};

/// The longest body that is read, in bytes. A portal's answer has some hundred.
const LONGEST_BODY: u64 = 64 * 1024;

/// How long a connection, with the proxy's and TLS handshakes, may take.
const CONNECT: Duration = Duration::from_secs(10);

/// A portal and the key to it.
pub struct Portal {
    agent: Agent,
    url: Url,
    key: Secret,
    signature: Option<(Secret, Instant)>,
    secret: Option<Secret>,
    sent: Arc<AtomicBool>,
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The `Location` header.
    pub location: Option<String>,
    /// The body, or what came of it.
    pub body: Vec<u8>,
    /// Why the body is not whole.
    pub cut: Option<String>,
}

/// No answer. Each says why, in words fit for a log.
#[derive(Debug)]
pub enum Failure {
    /// The portal or the proxy is not what it should be, and will not be a moment later.
    Untrusted(String),
    /// No byte of the request has left.
    NotSent(String),
    /// The request may have arrived.
    NoReply(String),
}

impl Portal {
    /// Sets up the connection, and sends nothing yet.
    ///
    /// # Errors
    ///
    /// A CA file or a proxy that is not usable, named.
    pub fn new(options: &Options, key: Secret) -> Result<Portal, Error> {
        let proxy = options.proxy.as_ref().map(proxy).transpose()?;
        let tls = options.url.https
            || options
                .proxy
                .as_ref()
                .is_some_and(|proxy| proxy.protocol == Protocol::Https);
        let roots = match &options.cacert {
            Some((file, named)) if tls => {
                let roots = roots(file);
                roots.map_err(|why| {
                    let file = file.display().to_string();
                    Error::usage(format!("{named}: {} {why}", file.escape_debug()))
                })?
            }
            _ => RootCerts::WebPki,
        };
        let sent = Arc::new(AtomicBool::new(false));
        let watch = Watch {
            proxied: proxy.is_some(),
            sent: sent.clone(),
        };
        let config = Config::builder()
            .http_status_as_error(false)
            // A followed redirect would turn the PATCH into a GET, and carry the key elsewhere.
            .max_redirects(0)
            .proxy(proxy)
            // Portals answer 500 to a request without it.
            .user_agent(concat!("docspace-rotate/", env!("CARGO_PKG_VERSION")))
            .accept("*/*")
            // Else even the secret comes gzipped.
            .accept_encoding(AutoHeaderValue::None)
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .timeout_connect(Some(CONNECT))
            // One connection for the whole run, kept as long as nginx keeps it.
            .max_idle_connections(1)
            .max_idle_connections_per_host(1)
            .max_idle_age(Duration::from_secs(60))
            // The program's memory is mostly these. A key has up to 8,000 bytes.
            .max_response_header_size(16 * 1024)
            .input_buffer_size(20 * 1024)
            .output_buffer_size(10 * 1024)
            .build();
        let connector = DefaultConnector::new().chain(watch);
        let agent = Agent::with_parts(config, connector, OneLookup::default());
        let url = options.url.clone();
        Ok(Portal {
            agent,
            url,
            key,
            signature: None,
            secret: None,
            sent,
        })
    }

    /// The portal's host, as it stands in a log.
    pub fn host(&self) -> &str {
        &self.url.host
    }

    /// Whether the key is an API key: the portal itself tells them by this prefix.
    pub fn has_api_key(&self) -> bool {
        self.key.expose().starts_with("sk-")
    }

    /// How long ago the portal was signed in to.
    pub fn signed_since(&self) -> Option<Duration> {
        self.signature.as_ref().map(|(_, at)| at.elapsed())
    }

    /// Has all later requests carry the signature, or none.
    pub fn sign(&mut self, signature: Option<Secret>) {
        self.signature = signature.map(|signature| (signature, Instant::now()));
    }

    /// Has [`Portal::shown`] hide the client's new secret too.
    pub fn hide(&mut self, secret: Secret) {
        self.secret = Some(secret);
    }

    /// Text from the portal, fit for a log: see [`shown`].
    pub fn shown(&self, text: &str) -> String {
        let signature = self.signature.as_ref().map(|(signature, _)| signature);
        shown(
            text,
            [&self.key].into_iter().chain(signature).chain(&self.secret),
        )
    }

    /// Sends one request and reads the answer, all within `limit`.
    ///
    /// # Errors
    ///
    /// No answer, or none that is HTTP: see [`Failure`].
    pub fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&str>,
        limit: Duration,
    ) -> Result<Reply, Failure> {
        self.sent.store(false, Ordering::Relaxed);
        self.exchange(method, path, body, limit).map_err(|error| {
            let words = self.shown(&words(&error));
            match is_untrusted(&error) {
                true => Failure::Untrusted(words),
                false if self.sent.load(Ordering::Relaxed) => Failure::NoReply(words),
                false => Failure::NotSent(words),
            }
        })
    }

    fn exchange(
        &self,
        method: &str,
        path: &str,
        body: Option<&str>,
        limit: Duration,
    ) -> Result<Reply, ureq::Error> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header(
                "authorization",
                header(&format!("Bearer {}", self.key.expose())),
            );
        if let Some((signature, _)) = &self.signature {
            request = request.header("x-signature", header(signature.expose()));
        }
        let body = match body {
            Some(body) => {
                request = request.header("content-length", body.len());
                SendBody::from_owned_reader(io::Cursor::new(body.to_owned()))
            }
            None => SendBody::none(),
        };
        let request = self.agent.configure_request(request.body(body)?);
        let mut response = self
            .agent
            .run(request.timeout_global(Some(limit)).build())?;

        let location = response.headers().get("location");
        let location = location.map(|to| String::from_utf8_lossy(to.as_bytes()).into_owned());
        let mut body = Vec::new();
        let read = response
            .body_mut()
            .as_reader()
            .take(LONGEST_BODY + 1)
            .read_to_end(&mut body);
        let cut = match read {
            Err(error) => Some(self.shown(&words(&error.into()))),
            Ok(_) if body.len() as u64 > LONGEST_BODY => {
                Some("the reply is longer than 64 KiB".to_owned())
            }
            Ok(_) => None,
        };
        Ok(Reply {
            status: response.status().as_u16(),
            location,
            body,
            cut,
        })
    }
}

fn header(text: &str) -> HeaderValue {
    let mut value = HeaderValue::from_str(text).expect("keys and signatures are printable ASCII");
    value.set_sensitive(true);
    value
}

/// The only CA certificates to trust.
fn roots(file: &Path) -> Result<RootCerts, String> {
    let pem = fs::read(file).map_err(|error| format!("can't be read: {}", io_words(&error)))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|_| "is no readable PEM file")? {
            certificates.push(certificate);
        }
    }
    // ureq drops the unusable ones silently.
    let der = certificates
        .iter()
        .map(|certificate| certificate.der().to_vec().into());
    match RootCertStore::empty().add_parsable_certificates(der) {
        (0, _) => Err("holds no usable CA certificate (PEM)".to_owned()),
        _ => Ok(RootCerts::new_with_certs(&certificates)),
    }
}

fn proxy(proxy: &Proxy) -> Result<ureq::Proxy, Error> {
    let scheme = match proxy.protocol {
        Protocol::Http => "http",
        Protocol::Https => "https",
        // The forms in which the proxy looks the portal's name up.
        Protocol::Socks4 => "socks4a",
        Protocol::Socks5 => "socks5h",
    };
    let credentials = proxy
        .credentials
        .as_ref()
        .map(|text| format!("{}@", text.expose()));
    let url = format!("{scheme}://{}{proxy}", credentials.unwrap_or_default());
    let usable = ureq::Proxy::new(&url).ok().filter(|made| {
        let short = |text: Option<&str>| text.is_none_or(|text| text.len() <= 255);
        // RFC 1929 has one byte for the length.
        proxy.protocol != Protocol::Socks5 || (short(made.username()) && short(made.password()))
    });
    usable.ok_or_else(|| {
        let variable = proxy.variable;
        Error::usage(format!(
            "{variable}: no usable proxy: bad user or password (write special characters as %XX)"
        ))
    })
}

/// Whether it is of no use to try again: a certificate that is not trusted, or a proxy that answers 4xx.
fn is_untrusted(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Io(error) => {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
            matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
        }
        ureq::Error::Rustls(error) => matches!(error, rustls::Error::InvalidCertificate(_)),
        ureq::Error::ConnectProxyFailed(why) => why.contains("responded 4"),
        _ => false,
    }
}

/// An error of ureq's in words. Not its own `Display` where that repeats what a server sent.
fn words(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the connection was closed".to_owned()
        }
        ureq::Error::Io(error) => io_words(error),
        ureq::Error::Timeout(Timeout::Connect) => {
            format!("no connection within {} s", CONNECT.as_secs())
        }
        ureq::Error::Timeout(_) => "the time is up".to_owned(),
        ureq::Error::Protocol(_) => "the reply is not HTTP".to_owned(),
        ureq::Error::LargeResponseHeader(..) => "the reply's header is too long".to_owned(),
        ureq::Error::ConnectProxyFailed(why) => format!("the proxy failed: {why}"),
        other => other.to_string(),
    }
}

/// Looks the one host of the run up once, for all requests. ureq asks before each request, and with
/// a time limit set it would ask on a thread of its own: the system's resolver has its own limits.
#[derive(Debug, Default)]
struct OneLookup(OnceLock<ResolvedSocketAddrs>);

impl Resolver for OneLookup {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        if let Some(found) = self.0.get() {
            return Ok(found.clone());
        }
        // Without a limit ureq starts no thread.
        let found = DefaultResolver::default().resolve(uri, config, NextTimeout::default())?;
        Ok(self.0.get_or_init(|| found).clone())
    }
}

/// The last link of ureq's chain of connectors: has the connection to the portal note when bytes of
/// a request leave. It stands above TLS and the proxy, so that their handshakes don't count, and is
/// kept with the connection, so that a later request on it counts alike.
#[derive(Debug)]
struct Watch {
    proxied: bool,
    sent: Arc<AtomicBool>,
}

impl<In: Transport> Connector<In> for Watch {
    type Out = Either<In, Watched<In>>;

    fn connect(
        &self,
        details: &ConnectionDetails,
        connection: Option<In>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        // ureq runs the chain for the connection to a CONNECT proxy too, without a proxy set.
        let to_proxy = self.proxied && details.config.proxy().is_none();
        Ok(connection.map(|connection| match to_proxy {
            true => Either::A(connection),
            false => Either::B(Watched {
                connection,
                sent: self.sent.clone(),
            }),
        }))
    }
}

#[derive(Debug)]
struct Watched<T> {
    connection: T,
    sent: Arc<AtomicBool>,
}

impl<T: Transport> Transport for Watched<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.connection.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.sent.store(true, Ordering::Relaxed);
        self.connection.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.connection.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.connection.is_open()
    }

    fn is_tls(&self) -> bool {
        self.connection.is_tls()
    }
}
