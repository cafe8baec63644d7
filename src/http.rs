//! One request over ureq: TLS, the proxy, name resolution, and whether a byte of the request has left.

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ureq::config::{AutoHeaderValue, Config};
use ureq::http::{self, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    ConnectProxyConnector, ConnectionDetails, Connector, NextTimeout, RustlsConnector,
    SocksConnector, TcpConnector, Transport,
};
use ureq::{Agent, Error, Timeout};

use crate::error::{State, io_message};
use crate::reply::{Failure, MAX_BODY, Outcome, Reply};
use crate::secret::{escape, shorten};
use crate::signal::{self, Step};

/// The longest header of a reply, in bytes.
const MAX_HEADER: usize = 32 * 1024;

/// Time limits: to connect, for one attempt at anything but the PATCH, and for a body after its header.
const CONNECT: Duration = Duration::from_secs(10);
const ATTEMPT: Duration = Duration::from_secs(30);
const BODY: Duration = Duration::from_secs(5);

type Call<'a> = (&'a str, String);
type Headers = [Option<(&'static str, String)>; 2];
type Form<'a> = Option<[(&'static str, &'a str); 3]>;

pub struct Http {
    agent: Agent,
    url: String,
    addresses: Addresses,
}

impl Http {
    /// Sets up ureq, and sends nothing. The error says why the CA file is not usable.
    pub fn new(
        url: String,
        proxy: Option<ureq::Proxy>,
        cacert: Option<&Path>,
    ) -> Result<Http, String> {
        let roots = cacert.map(roots).transpose()?.unwrap_or(RootCerts::WebPki);
        let proxied = proxy.is_some();
        let config = Config::builder()
            .http_status_as_error(false)
            // A followed redirect would turn the PATCH into a GET, and take the signature elsewhere.
            .max_redirects(0)
            .proxy(proxy)
            // Portals answer 500 to a request without it.
            .user_agent(concat!("docspace-rotate/", env!("CARGO_PKG_VERSION")))
            .accept("application/json")
            .accept_encoding(AutoHeaderValue::None)
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .timeout_connect(Some(CONNECT))
            .timeout_global(Some(ATTEMPT))
            .timeout_recv_body(Some(BODY))
            // The portal may already be closing a connection that was idle for longer.
            .max_idle_age(Duration::from_secs(1))
            .max_response_header_size(MAX_HEADER)
            // ureq's default buffers have 128 KiB each, and zeroing them is slower than a handshake.
            .input_buffer_size(MAX_HEADER + 1024)
            .output_buffer_size(10 * 1024)
            .build();
        let connector = SentMarker {
            sent: false,
            proxied,
        }
        .chain(SocksConnector::default())
        .chain(ConnectProxyConnector::default())
        .chain(TcpConnector::default())
        .chain(RustlsConnector::default())
        .chain(SentMarker {
            sent: true,
            proxied,
        });
        let addresses = Addresses::default();
        let agent = Agent::with_parts(config, connector, CachedResolver(addresses.clone()));
        Ok(Http {
            agent,
            url,
            addresses,
        })
    }

    pub fn send(&self, step: Step, call: Call, headers: Headers, form: Form) -> Outcome {
        signal::set_step(step);
        // A kept connection is ready to send. The PATCH never gets one.
        signal::set_sent(step != Step::Regenerate);
        self.exchange(step, call, headers, form).map_err(|error| {
            let (sent, why) = (signal::SENT.load(SeqCst), message(&error));
            if !sent {
                // The host may have moved.
                *self
                    .addresses
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = None;
            }
            // TLS 1.3 reports a missing client certificate only in answer to the first request.
            let is_handshake = !sent || matches!(step, Step::SignIn | Step::Probe);
            let denied = matches!(
                proxy_status(&error),
                Some(300..=407 | 409..=428 | 430..=499)
            );
            Failure {
                sent,
                refused: denied || (is_handshake && is_tls(&error)),
                why,
            }
        })
    }

    fn exchange(
        &self,
        step: Step,
        call: Call,
        headers: Headers,
        form: Form,
    ) -> Result<Reply, Error> {
        let url = self.url.clone() + &call.1;
        let mut builder = http::Request::builder().method(call.0).uri(&url);
        for (name, value) in headers.into_iter().flatten() {
            builder = builder.header(name, value);
        }
        // ureq caches the TLS session to resume only from requests without settings of their own.
        let mut response = match (step, form) {
            // It can't be repeated: no time limit, and a fresh connection, because a kept one may already be closing.
            // An empty body sends Content-Length: 0 (RFC 9110, section 8.6).
            (Step::Regenerate, _) => {
                let ready = self
                    .agent
                    .configure_request(builder.body("")?)
                    .timeout_global(None);
                self.agent.run(ready.max_idle_age(Duration::ZERO).build())?
            }
            (Step::Expiry, _) => {
                let ready = self
                    .agent
                    .configure_request(builder.body(())?)
                    .timeout_global(Some(BODY));
                self.agent.run(ready.build())?
            }
            (_, Some(form)) => self.agent.post(url).send_form(form)?,
            (_, None) => self.agent.run(builder.body(())?)?,
        };
        if step == Step::Regenerate {
            // The secret is on its way.
            signal::enter(State::Unknown, BODY + Duration::from_secs(1));
        }
        let mut body = Vec::new();
        let read = response
            .body_mut()
            .as_reader()
            .take(MAX_BODY as u64)
            .read_to_end(&mut body);
        let headers = response.headers();
        let header = |name| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
        };
        Ok(Reply {
            status: response.status().as_u16(),
            content_type: header("content-type").to_ascii_lowercase(),
            location: header("location").to_owned(),
            retry_after: header("retry-after").to_owned(),
            rate_limit_reset: header("x-ratelimit-reset").to_owned(),
            truncated: read.is_err() || body.len() == MAX_BODY,
            body: String::from_utf8_lossy(&body)
                .trim_start_matches('\u{feff}')
                .to_owned(),
        })
    }
}

fn roots(file: &Path) -> Result<RootCerts, String> {
    signal::set_step(Step::CaFile);
    let name = shorten(escape(file.as_os_str()));
    let pem =
        fs::read(file).map_err(|error| format!("{name} cannot be read: {}", io_message(&error)))?;
    let certificate = |item| {
        if let Ok(PemItem::Certificate(it)) = item {
            Some(it)
        } else {
            None
        }
    };
    let certificates: Vec<_> = parse_pem(&pem).filter_map(certificate).collect();
    certificates
        .first()
        .ok_or_else(|| format!("{name} contains no certificate (PEM)"))?;
    Ok(RootCerts::new_with_certs(&certificates))
}

/// Returns true for an error of TLS itself: rustls documents this kind. An answer that is not SOCKS has it, too.
fn is_tls(error: &Error) -> bool {
    match error {
        Error::Io(error) => error.kind() == ErrorKind::InvalidData,
        error => matches!(error, Error::Tls(_) | Error::Rustls(_)),
    }
}

/// Parts of rustls's errors, and what they mean.
const TLS_WORDS: [(&str, &str); 6] = [
    (
        "UnknownIssuer",
        "the certificate is from an unknown CA (see --cacert)",
    ),
    ("expired", "the certificate has expired"),
    ("not valid for name", "the certificate is for another host"),
    ("CaUsedAsEndEntity", "the certificate is a CA certificate"),
    ("CertificateRequired", "a client certificate is required"),
    ("corrupt message", "the answer is not TLS"),
];

/// Returns an error of ureq's in plain words. Its own may quote the server, or name ureq's parts.
fn message(error: &Error) -> String {
    match error {
        Error::Io(error) if error.kind() == ErrorKind::UnexpectedEof => {
            "the connection was closed".into()
        }
        error if is_tls(error) => {
            let text = error.to_string();
            let known = TLS_WORDS.iter().find(|(part, _)| text.contains(part));
            format!(
                "TLS failed: {}",
                known.map_or(text.trim_start_matches("io: "), |(_, words)| words)
            )
        }
        Error::Io(error) => io_message(error),
        Error::Timeout(Timeout::Connect) => format!("no connection within {} s", CONNECT.as_secs()),
        Error::Timeout(_) => "no reply in time".into(),
        Error::Protocol(_) => "the reply is not HTTP".into(),
        error => match proxy_status(error) {
            Some(status) => format!("the proxy refused with status {status}"),
            None => error.to_string(),
        },
    }
}

/// Returns the status with which a proxy refused. ureq has it in words: `proxy server responded 407/407`.
fn proxy_status(error: &Error) -> Option<u16> {
    let Error::ConnectProxyFailed(why) = error else {
        return None;
    };
    why.split_once("responded ")?.1.get(..3)?.parse().ok()
}

type Addresses = Arc<Mutex<Option<ResolvedSocketAddrs>>>;

/// Resolves the host once and reuses the addresses, until a connection fails. The timer ends what takes too long.
#[derive(Debug)]
struct CachedResolver(Addresses);

impl Resolver for CachedResolver {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(addresses) = &*cached {
            return Ok(addresses.clone());
        }
        // A host is resolved only when there is no connection, so nothing has been sent.
        signal::set_sent(false);
        let mut addresses = self.empty();
        match localhost(uri) {
            Some(both) => both.into_iter().for_each(|address| addresses.push(address)),
            // Without a timeout ureq starts no thread.
            None => {
                addresses =
                    DefaultResolver::default().resolve(uri, config, NextTimeout::default())?
            }
        }
        Ok(cached.insert(addresses).clone())
    }
}

/// Returns the addresses of `localhost`. An image without /etc/hosts would ask DNS, and send the key to its answer.
fn localhost(uri: &Uri) -> Option<[SocketAddr; 2]> {
    let host = DefaultResolver::host_and_port(uri.scheme()?, uri.authority()?)?;
    let port: u16 = host.strip_prefix("localhost:")?.parse().ok()?;
    Some([
        (Ipv4Addr::LOCALHOST, port).into(),
        (Ipv6Addr::LOCALHOST, port).into(),
    ])
}

/// Wraps ureq's connectors, first and last. What TLS and the proxy send in between does not count.
#[derive(Debug)]
struct SentMarker {
    sent: bool,
    proxied: bool,
}

impl<In: Transport> Connector<In> for SentMarker {
    type Out = In;

    fn connect(&self, details: &ConnectionDetails, inner: Option<In>) -> Result<Option<In>, Error> {
        // ureq runs the chain for the connection to a CONNECT proxy, too, without a proxy in the configuration.
        if !self.proxied || details.config.proxy().is_some() {
            signal::set_sent(self.sent);
        }
        Ok(inner)
    }
}
