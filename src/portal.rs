//! The portal: one connection, and what goes over it. Nothing else in the program names ureq.

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
    Buffers, ConnectionDetails, Connector, DefaultConnector, NextTimeout, Transport, time,
};
use ureq::{Agent, SendBody, Timeout};

use crate::address::{Protocol, Proxy, Url};
use crate::cli::Options;
use crate::error::{Error, io_words};
use crate::io::read_file;
use crate::secret::{Secret, hide, hide_words, shown};

/// The longest body that is read, in bytes. A portal's answer has some hundred.
const LONGEST_BODY: u64 = 64 * 1024;

/// How long a connection, with the proxy's and TLS handshakes, may take.
const CONNECT: Duration = Duration::from_secs(10);

/// The longest CA file that is read, in bytes. The usual bundle of all public CAs has 0.2 MiB.
const LONGEST_CA_FILE: u64 = 4 * 1024 * 1024;

/// A portal and the key to it.
pub struct Portal {
    agent: Agent,
    url: Url,
    client: String,
    proxy: Option<String>,
    key: Secret,
    signature: Option<(Secret, Instant)>,
    secret: Option<Secret>,
    wire: Arc<Wire>,
}

/// A question.
#[derive(Debug)]
pub struct Ask {
    /// Such as `GET`.
    pub method: &'static str,
    /// The path below the portal's address.
    pub path: String,
    /// What goes along.
    pub content: Content,
    /// Whether the body of a 200 stays unread: it holds what nobody asked for.
    pub status_only: bool,
}

/// What goes along with a question.
#[derive(Debug)]
pub enum Content {
    /// The key, and a signature where there is one.
    Key,
    /// The same, and an empty body.
    KeyAndEmptyBody,
    /// A form, and neither key nor signature.
    Form(Secret),
}

/// An answer.
#[derive(Debug, Default)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The `Content-Type` header.
    pub content_type: Option<String>,
    /// The `Location` header.
    pub location: Option<String>,
    /// The `Retry-After` header.
    pub retry_after: Option<String>,
    /// The `X-RateLimit-Reset` header, in any spelling.
    pub rate_limit_reset: Option<String>,
    /// The body, or what came of it.
    pub body: Vec<u8>,
    /// How the body ends.
    pub end: End,
}

/// How a body ends.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum End {
    /// As it should.
    #[default]
    Whole,
    /// Beyond what is read.
    TooLong,
    /// Too early; why.
    Cut(String),
}

/// No answer. Each says why, in words fit for a log.
#[derive(Debug)]
pub enum Failure {
    /// The portal is not to be trusted, or the proxy refuses: no byte of the request has left, and
    /// none would a moment later.
    Refused(String),
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
    pub fn new(options: &Options, key: Secret, deadline: Instant) -> Result<Portal, Error> {
        let proxy = options.proxy.as_ref().map(|to| proxy(to, &options.url)).transpose()?;
        let roots = match &options.cacert {
            None => RootCerts::WebPki,
            Some((file, named)) => roots(file, deadline).map_err(|why| {
                let file = file.display().to_string();
                Error::usage(format!("{named}: {} {why}", file.escape_debug()))
            })?,
        };
        let wire = Arc::new(Wire::default());
        let watch = Watch { proxied: proxy.is_some(), wire: wire.clone() };
        let config = Config::builder()
            .http_status_as_error(false)
            // A followed redirect would turn the PATCH into a GET, and carry the signature elsewhere.
            .max_redirects(0)
            // Chosen already, by other rules than ureq's.
            .proxy(proxy)
            // Portals answer 500 to a request without it.
            .user_agent(concat!("docspace-rotate/", env!("CARGO_PKG_VERSION")))
            // So it stays with whatever features ureq is built: even the secret would come gzipped.
            .accept_encoding(AutoHeaderValue::None)
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .timeout_connect(Some(CONNECT))
            // One connection for the whole run, even where the reader of the secret takes its time.
            .max_idle_age(Duration::from_secs(60))
            // ureq's own are 128 KiB each way. A key and a signature have up to 8,000 bytes each,
            // and are written line by line.
            .max_response_header_size(16 * 1024)
            .input_buffer_size(20 * 1024)
            .output_buffer_size(10 * 1024)
            .build();
        Ok(Portal {
            agent: Agent::with_parts(config, DefaultConnector::new().chain(watch), OneLookup::default()),
            url: options.url.clone(),
            client: options.client.clone(),
            proxy: options.proxy.as_ref().map(Proxy::to_string),
            key,
            signature: None,
            secret: None,
            wire,
        })
    }

    /// The portal's address.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The portal's host, as it stands in a log.
    pub fn host(&self) -> &str {
        &self.url.host
    }

    /// Whether the key is an API key: the portal itself tells them by this prefix.
    pub fn has_api_key(&self) -> bool {
        self.key.expose().starts_with("sk-")
    }

    /// How old the signature is, where there is one.
    pub fn signature_age(&self) -> Option<Duration> {
        self.signature.as_ref().map(|(_, at)| at.elapsed())
    }

    /// Has all later requests carry the signature, or none.
    pub fn sign(&mut self, signature: Option<Secret>) {
        self.signature = signature.map(|signature| (signature, Instant::now()));
    }

    /// Keeps the client's new secret, to hide it too and to prove it.
    pub fn keep(&mut self, secret: Secret) {
        self.secret = Some(secret);
    }

    /// The client's new secret, where there is one.
    pub fn new_secret(&self) -> Option<&Secret> {
        self.secret.as_ref()
    }

    /// Text about the portal, fit for a log: see [`shown`].
    pub fn shown(&self, text: &str) -> String {
        shown(text, &self.secrets())
    }

    /// Text from the portal, in which any word may be a secret: see [`hide_words`].
    pub fn quoted(&self, text: &str) -> String {
        let secrets = self.secrets();
        let text = secrets.iter().fold(text.to_owned(), |text, secret| hide(&text, secret.expose()));
        shown(&hide_words(&text, &secrets, &self.client), &[])
    }

    fn secrets(&self) -> Vec<&Secret> {
        let signature = self.signature.as_ref().map(|(signature, _)| signature);
        [&self.key].into_iter().chain(signature).chain(&self.secret).collect()
    }

    /// Sends one request and reads the answer, all within `limit`.
    ///
    /// # Errors
    ///
    /// No answer, or none that is HTTP: see [`Failure`].
    pub fn send(&self, ask: &Ask, limit: Duration) -> Result<Reply, Failure> {
        self.wire.sent.store(false, Ordering::Relaxed);
        self.exchange(ask, limit).map_err(|error| {
            let (host, words) = (&self.url.host, self.shown(&words(&error)));
            if self.wire.sent.load(Ordering::Relaxed) {
                return Failure::NoReply(words);
            }
            let Some(proxy) = &self.proxy else {
                return match is_untrusted(&error) {
                    true => Failure::Refused(format!("{host} is not to be trusted: {words}")),
                    false => Failure::NotSent(words),
                };
            };
            match proxy_status(&error) {
                Some(status @ (300..=428 | 430..=499)) => Failure::Refused(format!(
                    "the proxy {proxy} refused the way to {host} with status {status}"
                )),
                _ if is_denied(&error) => {
                    Failure::Refused(format!("the proxy {proxy} refused the way to {host}: {words}"))
                }
                _ if is_untrusted(&error) => {
                    Failure::Refused(format!("{host} or the proxy {proxy} is not to be trusted: {words}"))
                }
                _ => Failure::NotSent(format!("{words} (through the proxy {proxy})")),
            }
        })
    }

    fn exchange(&self, ask: &Ask, limit: Duration) -> Result<Reply, ureq::Error> {
        let mut request = Request::builder().method(ask.method).uri(format!("{}{}", self.url, ask.path));
        let body = match &ask.content {
            Content::Key => None,
            Content::KeyAndEmptyBody => Some(""),
            Content::Form(form) => Some(form.expose()),
        };
        if let Content::Form(_) = ask.content {
            request = request.header("content-type", "application/x-www-form-urlencoded");
        } else {
            request = request.header("authorization", header(&format!("Bearer {}", self.key.expose())));
            if let Some((signature, _)) = &self.signature {
                request = request.header("x-signature", header(signature.expose()));
            }
        }
        let body = match body {
            Some(body) => {
                request = request.header("content-length", body.len());
                SendBody::from_owned_reader(io::Cursor::new(body.to_owned()))
            }
            None => SendBody::none(),
        };
        let request = self.agent.configure_request(request.body(body)?);
        let mut response = self.agent.run(request.timeout_global(Some(limit)).build())?;

        let value = |name| {
            let value = response.headers().get(name)?;
            Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let mut reply = Reply {
            status: response.status().as_u16(),
            content_type: value("content-type"),
            location: value("location"),
            retry_after: value("retry-after"),
            rate_limit_reset: value("x-ratelimit-reset"),
            ..Reply::default()
        };
        if ask.status_only && reply.status == 200 {
            return Ok(reply);
        }
        let mut body = response.body_mut().as_reader().take(LONGEST_BODY + 1);
        match body.read_to_end(&mut reply.body) {
            Err(error) => reply.end = End::Cut(self.shown(&words(&error.into()))),
            Ok(length) if length as u64 > LONGEST_BODY => reply.end = End::TooLong,
            Ok(_) => {}
        }
        Ok(reply)
    }
}

fn header(text: &str) -> HeaderValue {
    let mut value = HeaderValue::from_str(text).expect("keys and signatures are printable ASCII");
    value.set_sensitive(true);
    value
}

/// The only CA certificates to trust.
fn roots(file: &Path, deadline: Instant) -> Result<RootCerts, String> {
    let pem = read_file(file, LONGEST_CA_FILE, deadline)
        .map_err(|error| format!("can't be read: {}", io_words(&error)))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|_| "is no readable PEM file")? {
            certificates.push(certificate);
        }
    }
    // ureq drops the unusable ones silently.
    let der = certificates.iter().map(|certificate| certificate.der().to_vec().into());
    match RootCertStore::empty().add_parsable_certificates(der) {
        (0, _) => Err("holds no usable CA certificate (PEM)".to_owned()),
        _ => Ok(RootCerts::new_with_certs(&certificates)),
    }
}

/// The proxy as ureq wants it, where it can be used for this address.
fn proxy(proxy: &Proxy, portal: &Url) -> Result<ureq::Proxy, Error> {
    let scheme = match proxy.protocol {
        Protocol::Http => "http",
        Protocol::Https => "https",
        // The forms in which the proxy looks the portal's name up: OneLookup relies on that.
        Protocol::Socks4 => "socks4a",
        Protocol::Socks5 => "socks5h",
    };
    let unusable = |why: &str| Error::usage(format!("{}: no usable proxy: {why}", proxy.variable));
    let credentials = proxy.credentials.as_ref().map(|text| format!("{}@", text.expose()));
    let url = format!("{scheme}://{}{proxy}", credentials.unwrap_or_default());
    let made = ureq::Proxy::new(&url);
    let made = made.map_err(|_| unusable("bad user or password (write special characters as %XX)"))?;
    match proxy.protocol {
        Protocol::Socks5 => {
            // RFC 1929 has one byte for the length of each, and neither may be empty.
            let fits = |text: Option<&str>| (1..=255).contains(&text.unwrap_or_default().len());
            if made.username().is_some() && !(fits(made.username()) && fits(made.password())) {
                return Err(unusable("SOCKS5 takes a user and a password of 1 to 255 bytes each"));
            }
        }
        Protocol::Socks4 if portal.host.contains(':') => {
            return Err(unusable("SOCKS4 knows no IPv6 address"));
        }
        _ => {}
    }
    Ok(made)
}

/// Whether a certificate is not to be trusted. The handshake's errors come inside an I/O error.
fn is_untrusted(error: &ureq::Error) -> bool {
    let ureq::Error::Io(error) = error else {
        return false;
    };
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}

/// Whether a SOCKS proxy takes neither user nor password.
fn is_denied(error: &ureq::Error) -> bool {
    matches!(error, ureq::Error::Io(error) if error.kind() == io::ErrorKind::PermissionDenied)
}

/// The status with which a proxy answered a CONNECT: ureq has it in words only, as
/// `proxy server responded 407/407`.
fn proxy_status(error: &ureq::Error) -> Option<u16> {
    let ureq::Error::ConnectProxyFailed(why) = error else {
        return None;
    };
    let (_, status) = why.split_once("responded ")?;
    status.get(..3)?.parse().ok()
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
        ureq::Error::ConnectProxyFailed(why) => why.clone(),
        other => other.to_string(),
    }
}

/// Looks the one host of the run up once, for all requests: the portal's, or its proxy's, as each
/// kind of proxy that is used looks the portal's name up itself. ureq asks before each request, and
/// with a time limit set it would ask on a thread of its own: the system's resolver has its own limits.
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

/// What is known of the connection.
#[derive(Debug, Default)]
struct Wire {
    /// Whether a byte of the last request may have left.
    sent: AtomicBool,
    /// Whether a connection through a proxy is being made.
    connecting: AtomicBool,
}

/// The last link of ureq's chain of connectors: has the connection to the portal note when bytes of
/// a request leave. It stands above TLS and the proxy, so that their handshakes don't count, and is
/// kept with the connection, so that a later request on it counts alike.
///
/// ureq runs the chain for the connection to a CONNECT proxy too, without a proxy set. That one is
/// held to its limit: ureq allows all of it to each piece of the proxy's answer anew.
#[derive(Debug)]
struct Watch {
    proxied: bool,
    wire: Arc<Wire>,
}

impl<In: Transport> Connector<In> for Watch {
    type Out = Watched<In>;

    fn connect(
        &self,
        details: &ConnectionDetails,
        connection: Option<In>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        let to_proxy = self.proxied && details.config.proxy().is_none();
        self.wire.connecting.store(to_proxy, Ordering::Relaxed);
        let begun = match details.now {
            time::Instant::Exact(begun) => begun,
            _ => Instant::now(),
        };
        let until = to_proxy.then(|| begun + CONNECT.min(*details.timeout.after));
        Ok(connection.map(|connection| Watched { connection, until, wire: self.wire.clone() }))
    }
}

#[derive(Debug)]
struct Watched<T> {
    connection: T,
    /// For a connection to a proxy: when that to the portal must stand.
    until: Option<Instant>,
    wire: Arc<Wire>,
}

impl<T: Transport> Transport for Watched<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.connection.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        if self.until.is_none() {
            self.wire.sent.store(true, Ordering::Relaxed);
        }
        self.connection.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, mut timeout: NextTimeout) -> Result<bool, ureq::Error> {
        if let Some(until) = self.until.filter(|_| self.wire.connecting.load(Ordering::Relaxed)) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ureq::Error::Timeout(timeout.reason));
            }
            timeout.after = timeout.after.min(left.into());
        }
        self.connection.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.connection.is_open()
    }

    fn is_tls(&self) -> bool {
        self.connection.is_tls()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_looked_up_once_and_on_no_other_thread() {
        let lookup = OneLookup::default();
        // A limit that is over: ureq's own resolver would fail at once.
        let limit = NextTimeout { after: Duration::ZERO.into(), ..NextTimeout::default() };
        let ask = |uri: &'static str| {
            let found = lookup.resolve(&Uri::from_static(uri), &Config::default(), limit);
            found.expect("an address needs no look-up")[0]
        };
        let first = ask("http://127.0.0.1:1");
        assert_eq!(ask("http://127.0.0.1:2"), first);
    }

    #[test]
    fn a_proxys_status() {
        let failed = |why: &str| proxy_status(&ureq::Error::ConnectProxyFailed(why.to_owned()));
        assert_eq!(failed("proxy server responded 407/407"), Some(407));
        assert_eq!(failed("proxy server responded 302/302"), Some(302));
        assert_eq!(failed("proxy server did not respond"), None);
        assert_eq!(proxy_status(&ureq::Error::HostNotFound), None);
    }
}
