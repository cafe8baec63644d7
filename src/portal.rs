//! The portal: what goes to it, and what comes of that. No file but this one and connection.rs
//! names ureq.

use std::fs::File;
use std::io::{self, Read};
use std::mem;
use std::path::Path;
use std::time::{Duration, Instant};

use rustls::RootCertStore;
use ureq::config::{AutoHeaderValue, Config};
use ureq::http::{HeaderValue, Request};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, SendBody, Timeout};

use crate::address::{Protocol, Proxy, Url};
use crate::call::{Call, introspection};
use crate::cli::Options;
use crate::connection::{CLIENT_CERTIFICATE, agent, demands_certificate, rustls_error};
use crate::error::{Error, State, io_message};
use crate::reply::{End, Failure, Outcome, Reply};
use crate::secret::{Secret, redact};
use crate::signal;

/// The longest body that is read, in bytes. A portal's reply has a few hundred.
const MAX_BODY: u64 = 64 * 1024;

/// How long a connection, with the proxy's and TLS handshakes, may take.
const CONNECT: Duration = Duration::from_secs(10);

/// The longest CA file that is read, in bytes. The usual bundle of all public CAs has 0.2 MiB.
const MAX_CA_FILE: u64 = 4 * 1024 * 1024;

/// A portal, and the secrets that the run knows.
pub struct Portal<'a> {
    agent: Agent,
    options: &'a Options,
    /// The client's id, as it stands in a path.
    pub client: String,
    key: Secret,
    signature: Option<(Secret, Instant)>,
    /// Signatures that later ones replaced, and that may still be valid.
    replaced: Vec<Secret>,
    new_secret: Option<Secret>,
}

impl<'a> Portal<'a> {
    /// Sets up the connection, and sends nothing yet.
    ///
    /// # Errors
    ///
    /// A CA file or a proxy that is not usable, named.
    pub fn new(options: &'a Options, client: String, key: Secret) -> Result<Portal<'a>, Error> {
        let proxy = options.proxy.as_ref().map(|to| proxy(to, &options.url)).transpose()?;
        let roots = match &options.cacert {
            None => RootCerts::WebPki,
            Some((file, named)) => {
                let name = format!("{named} {}", redact(&file.to_string_lossy(), [&key]));
                signal::note(format!("while reading {name}"), State::Unreached);
                roots(file, &key).map_err(|why| Error::usage(format!("{name} {why}")))?
            }
        };
        let config = Config::builder()
            .http_status_as_error(false)
            // A followed redirect would turn the PATCH into a GET, and carry the signature elsewhere.
            .max_redirects(0)
            // Chosen already, by other rules than ureq's.
            .proxy(proxy)
            // Portals answer 500 to a request without it.
            .user_agent(concat!("docspace-rotate/", env!("CARGO_PKG_VERSION")))
            .accept("application/json")
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
            agent: agent(config),
            options,
            client,
            key,
            signature: None,
            replaced: vec![],
            new_secret: None,
        })
    }

    /// Whether the key is an API key: the portal itself tells them by this prefix.
    pub fn has_api_key(&self) -> bool {
        self.key.expose().starts_with("sk-")
    }

    /// How old the signature is, where there is one.
    pub fn signature_age(&self) -> Option<Duration> {
        self.signature.as_ref().map(|(_, at)| at.elapsed())
    }

    /// Sets or clears the signature that later requests carry.
    pub fn sign(&mut self, signature: Option<Secret>) {
        let signature = signature.map(|signature| (signature, Instant::now()));
        self.replaced.extend(mem::replace(&mut self.signature, signature).map(|(old, _)| old));
    }

    /// Keeps the client's new secret, to redact and to verify it.
    pub fn keep(&mut self, secret: Secret) {
        self.new_secret = Some(secret);
    }

    /// Makes a text from outside fit for a log: see [`redact`].
    pub fn redact(&self, text: &str) -> String {
        let signature = self.signature.as_ref().map(|(signature, _)| signature);
        redact(text, [&self.key].into_iter().chain(signature).chain(&self.replaced).chain(&self.new_secret))
    }

    /// The portal's host, fit for a log.
    pub fn host(&self) -> String {
        self.redact(&self.options.url.host)
    }

    /// The host, and the proxy on the way to it.
    pub fn peer(&self) -> String {
        match &self.options.proxy {
            Some(proxy) => format!("{} through the proxy {}", self.host(), self.redact(&proxy.to_string())),
            None => self.host(),
        }
    }

    /// Sends the request of a call and reads the reply. If the run ends meanwhile, `state` and
    /// `once_sent` are what it leaves: before and after the first byte has left.
    ///
    /// # Errors
    ///
    /// No reply, or none that is HTTP: see [`Failure`].
    pub fn send(&self, call: Call, state: State, once_sent: State) -> Outcome {
        signal::note_request(format!("during {} at {}", call.name(), self.peer()), state, once_sent);
        self.exchange(call).map_err(|error| {
            let (host, why) = (self.host(), self.message(&error));
            let demanded = matches!(error, ureq::Error::Tls(CLIENT_CERTIFICATE));
            if signal::is_sent() && !demanded {
                return Failure::NoReply(why);
            }
            let proxy = self.options.proxy.as_ref().map(|proxy| {
                format!("the proxy {} from {}", self.redact(&proxy.to_string()), proxy.variable)
            });
            let tls = demanded || rustls_error(&error).is_some();
            match proxy {
                Some(proxy) if is_denied(&error) => {
                    Failure::RefusedByProxy(format!("{proxy} refused to connect to {host}: {why}"))
                }
                Some(proxy) if tls => {
                    Failure::Refused(format!("the TLS handshake with {host} or {proxy} failed: {why}"))
                }
                None if tls => Failure::Refused(format!("the TLS handshake with {host} failed: {why}")),
                Some(proxy) => Failure::NotSent(format!("{why} (through {proxy})")),
                None => Failure::NotSent(why),
            }
        })
    }

    /// An error of ureq's in words. Not its own `Display` where that repeats what a server sent.
    fn message(&self, error: &ureq::Error) -> String {
        match error {
            error if demands_certificate(error) => CLIENT_CERTIFICATE.to_owned(),
            ureq::Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                "the connection was closed".to_owned()
            }
            ureq::Error::Io(error) => self.redact(&io_message(error)),
            ureq::Error::Timeout(Timeout::Connect) => format!("no connection within {} s", CONNECT.as_secs()),
            ureq::Error::Timeout(_) => "no reply in time".to_owned(),
            ureq::Error::Protocol(_) => "the reply is not HTTP".to_owned(),
            ureq::Error::LargeResponseHeader(..) => "the reply's header is too long".to_owned(),
            ureq::Error::ConnectProxyFailed(why) => match proxy_status(why) {
                Some(status) => format!("status {status}"),
                None => self.redact(why),
            },
            ureq::Error::Tls(why) => (*why).to_owned(),
            other => self.redact(&other.to_string()),
        }
    }

    fn exchange(&self, call: Call) -> Result<Reply, ureq::Error> {
        let url = format!("{}{}", self.options.url, call.path(&self.client));
        let mut request = Request::builder().method(call.method()).uri(url);
        // A PATCH with no body says so in a Content-Length of 0 (RFC 9110, section 8.6).
        let mut body = (call == Call::Regenerate).then(String::new);
        if let (Call::Introspect, Some(secret)) = (call, &self.new_secret) {
            // This request never carries the key.
            request = request.header("content-type", "application/x-www-form-urlencoded");
            body = Some(introspection(&self.client, secret));
        } else {
            request = request.header("authorization", header(&format!("Bearer {}", self.key.expose())));
            if let Some((signature, _)) = &self.signature {
                request = request.header("x-signature", header(signature.expose()));
            }
        }
        let body = match body {
            Some(body) => {
                request = request.header("content-length", body.len());
                SendBody::from_owned_reader(io::Cursor::new(body))
            }
            None => SendBody::none(),
        };
        let request = self.agent.configure_request(request.body(body)?);
        let mut response = self.agent.run(request.timeout_global(call.timeout()).build())?;

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
        let mut body = response.body_mut().as_reader().take(MAX_BODY + 1);
        match body.read_to_end(&mut reply.body) {
            Err(error) => reply.end = End::Cut(self.message(&error.into())),
            Ok(length) if length as u64 > MAX_BODY => reply.end = End::TooLong,
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
fn roots(file: &Path, key: &Secret) -> Result<RootCerts, String> {
    let mut pem = Vec::new();
    let read = File::open(file).and_then(|file| file.take(MAX_CA_FILE).read_to_end(&mut pem));
    read.map_err(|error| format!("can't be read: {}", redact(&io_message(&error), [key])))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|_| "is not a valid PEM file")? {
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
    let unusable = |why: &str| Error::usage(format!("{}: not a usable proxy: {why}", proxy.variable));
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
            return Err(unusable("SOCKS4 does not support IPv6"));
        }
        _ => {}
    }
    Ok(made)
}

/// Whether a proxy refuses for good: by its status; or the login, all our methods, or by its rules, which
/// ureq has in words only. An error of the system's own, such as a firewall's, is none of the proxy's.
fn is_denied(error: &ureq::Error) -> bool {
    let words = ["no acceptable auth methods", "unknown auth method", "connection not allowed by ruleset"];
    match error {
        ureq::Error::ConnectProxyFailed(why) => {
            matches!(proxy_status(why), Some(300..=407 | 409..=428 | 430..=499))
        }
        ureq::Error::Io(error) if error.raw_os_error().is_none() => {
            error.kind() == io::ErrorKind::PermissionDenied || words.contains(&error.to_string().as_str())
        }
        _ => false,
    }
}

/// The status with which a proxy answered a CONNECT: ureq has it in words only, as
/// `proxy server responded 407/407`.
fn proxy_status(why: &str) -> Option<u16> {
    let (_, status) = why.split_once("responded ")?;
    status.get(..3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{self, Action};

    #[test]
    fn a_replaced_signature_stays_a_secret() {
        let env = |name: &str| match name {
            "DOCSPACE_BASE_URL" => Some("https://portal.example".into()),
            "DOCSPACE_API_KEY" => Some("sk-hush".into()),
            _ => None,
        };
        let Ok(Action::Rotate(options)) = cli::parse(["id".into()], env) else { panic!("usable") };
        let mut portal = Portal::new(&options, "id".to_owned(), Secret::new("sk-hush")).expect("usable");
        for signature in [Some("first-signature"), Some("second-signature"), None] {
            portal.sign(signature.map(Secret::new));
        }
        portal.keep(Secret::new("new-secret"));
        for hidden in ["it is first-si", "SECOND-S", "a sk-hush b", "new-secret"] {
            assert_eq!(portal.redact(hidden), "[hidden]", "{hidden}");
        }
        assert_eq!(portal.redact("signature"), "[hidden]");
        assert_eq!(portal.redact("sign"), "sign");
    }

    #[test]
    fn a_proxys_status() {
        assert_eq!(proxy_status("proxy server responded 407/407"), Some(407));
        assert_eq!(proxy_status("proxy server responded 302/302"), Some(302));
        assert_eq!(proxy_status("proxy server did not respond"), None);
    }
}
