//! One request over ureq: its settings, the request, and the reply.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use ureq::config::{AutoHeaderValue, Config};
use ureq::http::{self, Response};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::transport::{
    ConnectProxyConnector, Connector, RustlsConnector, SocksConnector, TcpConnector,
};
use ureq::{Agent, Body, Error};

use crate::address::{Proxy, Url};
use crate::call::Call;
use crate::connection::{self, Connection};
use crate::error::io_message;
use crate::failure::Failure;
use crate::reply::{MAX_BODY, Reply};
use crate::secret::{escape, shorten};
use crate::signal;

/// The longest header of a reply, in bytes.
const MAX_HEADER: usize = 32 * 1024;

/// Time limits: for one attempt at anything but the PATCH, for one at a call that the run can do
/// without, and for a body after its header.
const ATTEMPT: Duration = Duration::from_secs(30);
const OPTIONAL_ATTEMPT: Duration = Duration::from_secs(5);
const BODY: Duration = Duration::from_secs(5);

pub struct Request {
    pub call: Call,
    pub path: String,
    pub headers: Vec<(&'static str, String)>,
    /// The fields of the form that it carries.
    pub form: Option<Vec<(&'static str, String)>>,
}

pub struct Http {
    agent: Agent,
    url: String,
    connection: Connection,
}

impl Http {
    /// Sets up ureq, and sends nothing. The error says why the CA file is not usable.
    pub fn new(url: &Url, proxy: Option<&Proxy>, ca_file: Option<&Path>) -> Result<Http, String> {
        let roots = match ca_file {
            Some(file) => read_ca_file(file)?,
            None => RootCerts::WebPki,
        };
        let config = Config::builder()
            .http_status_as_error(false)
            // A followed redirect would turn the PATCH into a GET, and take the signature elsewhere.
            .max_redirects(0)
            .proxy(proxy.map(|proxy| proxy.inner.clone()))
            // Portals answer 500 to a request without it.
            .user_agent(concat!("docspace-rotate/", env!("CARGO_PKG_VERSION")))
            .accept("application/json")
            .accept_encoding(AutoHeaderValue::None)
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .timeout_connect(Some(connection::TIMEOUT))
            .timeout_global(Some(ATTEMPT))
            .timeout_recv_body(Some(BODY))
            // The portal may already be closing a connection that was idle for longer.
            .max_idle_age(Duration::from_secs(1))
            .max_response_header_size(MAX_HEADER)
            // ureq's default buffers have 128 KiB each, and zeroing them is slower than a handshake.
            .input_buffer_size(MAX_HEADER + 1024)
            .output_buffer_size(10 * 1024)
            .build();
        let connection = Connection::new(url, proxy);
        let connector = connection
            .begin()
            .chain(SocksConnector::default())
            .chain(ConnectProxyConnector::default())
            .chain(TcpConnector::default())
            .chain(RustlsConnector::default())
            .chain(connection.ready());
        let agent = Agent::with_parts(config, connector, connection.clone());
        Ok(Http {
            agent,
            url: url.text.clone(),
            connection,
        })
    }

    pub fn send(&self, request: &Request) -> Result<Reply, Failure> {
        self.exchange(request).map_err(|error| {
            let sent = self.connection.is_ready();
            if !sent {
                self.connection.forget_addresses();
            }
            Failure::new(&error, sent)
        })
    }

    fn exchange(&self, request: &Request) -> Result<Reply, Error> {
        self.connection.prepare(request.call)?;
        let mut response = self.run(request)?;
        if !request.call.is_idempotent() {
            // The secret is on its way.
            signal::grant_time();
        }
        let mut body = Vec::new();
        let mut reader = response.body_mut().as_reader().take(MAX_BODY as u64);
        let read = reader.read_to_end(&mut body);
        let body_text = String::from_utf8_lossy(&body);
        let header = |name| match response.headers().get(name) {
            Some(value) => value.to_str().unwrap_or_default(),
            None => "",
        };
        Ok(Reply {
            status: response.status().as_u16(),
            content_type: header("content-type").to_ascii_lowercase(),
            location: header("location").to_owned(),
            retry_after: header("retry-after").to_owned(),
            truncated: read.is_err() || body.len() == MAX_BODY,
            body: body_text.trim_start_matches('\u{feff}').to_owned(),
        })
    }

    /// Sends a request and returns the reply with its body still to come.
    fn run(&self, request: &Request) -> Result<Response<Body>, Error> {
        let call = request.call;
        let url = format!("{}{}", self.url, request.path);
        if let Some(form) = &request.form {
            let fields = form.iter().map(|(name, value)| (*name, value));
            return self.agent.post(url).send_form(fields);
        }
        let mut builder = http::Request::builder().method(call.method()).uri(url);
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        if !call.is_idempotent() {
            return self.run_once(builder.body("")?);
        }
        if call.is_optional() {
            let request = self.agent.configure_request(builder.body(())?);
            let request = request.timeout_global(Some(OPTIONAL_ATTEMPT));
            return self.agent.run(request.build());
        }
        // No settings of its own: ureq resumes the TLS sessions of such requests only.
        self.agent.run(builder.body(())?)
    }

    /// Sends a request that cannot be repeated. It gets a fresh connection, because a kept one may
    /// already be closing, and no time limit, because giving up early gains nothing. Its empty body
    /// sends `Content-Length: 0` (RFC 9110, section 8.6).
    fn run_once(&self, request: http::Request<&str>) -> Result<Response<Body>, Error> {
        let request = self.agent.configure_request(request);
        let request = request.max_idle_age(Duration::ZERO).timeout_global(None);
        self.agent.run(request.build())
    }
}

fn read_ca_file(file: &Path) -> Result<RootCerts, String> {
    signal::doing("while reading the CA file");
    let name = shorten(escape(file.as_os_str()));
    let pem = match fs::read(file) {
        Ok(pem) => pem,
        Err(error) => {
            return Err(format!(
                "cannot read the CA file {name}: {}",
                io_message(&error)
            ));
        }
    };
    let mut certificates = vec![];
    for item in parse_pem(&pem) {
        if let Ok(PemItem::Certificate(certificate)) = item {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(format!("the CA file {name} contains no certificate (PEM)"));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}
