//! One request over ureq: its settings, the request, and the reply.

use std::io::Read;
use std::time::Duration;

use ureq::config::Config;
use ureq::http::{self, Response};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::unversioned::transport::{Connector, DefaultConnector};
use ureq::{Agent, Body, Error};

use crate::call::Call;
use crate::cause::server_words;
use crate::connection::Connection;
use crate::error::State;
use crate::failure::{self, Failure};
use crate::reply::{self, MAX_BODY, Reply};
use crate::secret::{HIDDEN, NewSecret, Secret, looks_like_secret, redact, shorten};
use crate::settings::Options;
use crate::signal;

/// The longest header of a reply, in bytes.
const MAX_HEADER: usize = 32 * 1024;

/// Sends requests. It knows all secrets of the run, so texts from outside are made fit for the log here.
pub struct Http<'a> {
    options: &'a Options,
    /// The portal's host, and the proxy on the way to it, for messages.
    peer: String,
    agent: Agent,
    connection: Connection,
    pub signature: Option<Secret>,
    pub new_secret: Option<NewSecret>,
}

impl Http<'_> {
    /// Sets up ureq, and sends nothing.
    pub fn new(options: &Options) -> Http<'_> {
        let config = Config::builder()
            .http_status_as_error(false)
            // A followed redirect would turn the PATCH into a GET, and take the signature elsewhere.
            .max_redirects(0)
            .proxy(options.proxy.as_ref().map(|proxy| proxy.inner.clone()))
            // Portals answer 500 to a request without it.
            .user_agent(concat!("docspace-rotate/", env!("CARGO_PKG_VERSION")))
            .accept("application/json")
            // Without it, a server may compress.
            .accept_encoding("identity")
            .tls_config(TlsConfig::builder().root_certs(roots(options)).build())
            .timeout_connect(Some(Duration::from_secs(10)))
            // For one attempt at anything but the PATCH.
            .timeout_global(Some(Duration::from_secs(30)))
            // The portal may already be closing a connection that was idle for longer.
            .max_idle_age(Duration::from_secs(1))
            .max_response_header_size(MAX_HEADER)
            // ureq's default buffers have 128 KiB each, and zeroing them is slower than a handshake.
            .input_buffer_size(MAX_HEADER + 1024)
            .output_buffer_size(10 * 1024)
            .build();
        let connection = Connection::new(&options.url, options.proxy.as_ref());
        let connector = DefaultConnector::default().chain(connection.clone());
        let agent = Agent::with_parts(config, connector, connection.clone());
        Http {
            options,
            peer: peer(options),
            agent,
            connection,
            signature: None,
            new_secret: None,
        }
    }

    /// Makes one attempt at a call.
    pub fn send(&self, call: Call) -> Result<Reply, Failure> {
        let name = call.name();
        let peer = &self.peer;
        signal::set_activity(&format!("during {name} at {peer}"));
        self.exchange(call).map_err(|error| {
            let tried = self.connection.take_addresses();
            let ca_file = self.options.ca_file.as_ref();
            let why = self.redact(&failure::message(&error, ca_file));
            let what = match &tried {
                Some(tried) => format!("{peer}{tried} could not be reached for {name}: {why}"),
                None => format!("{peer} gave no valid answer to {name}: {why}"),
            };
            Failure {
                may_have_been_sent: tried.is_none(),
                is_final: failure::is_final(&error),
                what,
            }
        })
    }

    fn exchange(&self, call: Call) -> Result<Reply, Error> {
        self.connection.prepare(call)?;
        let response = self.request(call)?;
        // The body gets its time, too: it may bring the secret.
        signal::grant_time();
        let (parts, body) = response.into_parts();
        let brings_secret = call == Call::Regenerate && parts.status.is_success();
        let (body, truncated) = self.read_body(body, brings_secret);
        // Several lines of one field are one list (RFC 9110, section 5.3). A repeated line counts once.
        let header = |name| {
            let mut lines = vec![];
            for line in parts.headers.get_all(name) {
                lines.push(text(line.as_bytes()));
            }
            lines.dedup();
            lines.join(", ")
        };
        let options = self.options;
        let mut reply = Reply {
            status: parts.status.as_u16(),
            content_type: header("content-type").to_ascii_lowercase(),
            content_encoding: header("content-encoding").to_ascii_lowercase(),
            challenge: header("www-authenticate").to_ascii_lowercase(),
            redirect: options
                .url
                .redirect(&header("location"), &options.client)
                .map(|target| self.redact(&target)),
            retry_after: header("retry-after"),
            body,
            truncated,
            has_signature: self.signature.is_some(),
            has_api_key: options.key.is_api_key(),
            ..Reply::default()
        };
        reply.words = self.words(call, &reply);
        Ok(reply)
    }

    /// Returns what a reply says, as in ` (Forbidden: Access denied)`.
    fn words(&self, call: Call, reply: &Reply) -> String {
        let mut words = server_words(reply);
        for text in &mut words {
            if call.returns_secret() && looks_like_secret(text, &self.options.client) {
                *text = HIDDEN.to_owned();
            }
            *text = self.redact(text);
        }
        if words.is_empty() {
            return String::new();
        }
        format!(" ({})", shorten(words.join(": ")))
    }

    /// Makes a text from outside fit for the log, if the run knows all secrets that can be in it.
    fn redact(&self, text: &str) -> String {
        let mut secrets = vec![&self.options.key];
        secrets.extend(&self.signature);
        secrets.extend(self.new_secret.iter().map(|new| &new.secret));
        redact(text, &secrets)
    }

    /// Sends a request, and returns the reply with its body still to come.
    fn request(&self, call: Call) -> Result<Response<Body>, Error> {
        let options = self.options;
        let url = format!("{}{}", options.url.text, call.path(&options.client));
        if let (Call::Introspect, Some(new)) = (call, &self.new_secret) {
            // The new secret alone authenticates this request. The token can be any text.
            return self.agent.post(url).send_form([
                ("client_id", options.client.as_str()),
                ("client_secret", new.secret.expose()),
                ("token", "docspace-rotate"),
            ]);
        }
        let bearer = format!("Bearer {}", options.key.expose());
        let mut request = http::Request::builder()
            .method(call.method())
            .uri(url)
            .header("authorization", bearer);
        if let Some(signature) = &self.signature
            && call.is_signed()
        {
            request = request.header("x-signature", signature.expose());
        }
        if call == Call::Regenerate {
            // Once sent, it is repeated only after a 429. So it gets a fresh connection, because a kept
            // one may already be closing, and no time limit, because giving up gains nothing. The empty
            // body sends `Content-Length: 0` (RFC 9110, section 8.6).
            let request = self.agent.configure_request(request.body("")?);
            let request = request.max_idle_age(Duration::ZERO).timeout_global(None);
            return self.agent.run(request.build());
        }
        // No settings of its own: ureq keeps TLS sessions only for such requests, and the PATCH
        // resumes one.
        self.agent.run(request.body(())?)
    }

    /// Reads the body as far as it comes. Returns it, and why its end is missing.
    fn read_body(&self, mut body: Body, mut brings_secret: bool) -> (String, Option<String>) {
        if !brings_secret {
            // No other body is worth more time.
            self.connection.limit_wait(Duration::from_secs(5));
        }
        let mut reader = body.as_reader().take(MAX_BODY as u64 + 1);
        let mut bytes = vec![];
        let mut byte = [0];
        let truncated = loop {
            // One by one, because ureq drops what it has read when it meets something malformed.
            match reader.read(&mut byte) {
                Ok(0) if bytes.len() > MAX_BODY => break Some("it is too large".to_owned()),
                Ok(0) => break None,
                Ok(_) => bytes.extend(byte),
                Err(error) => break Some(failure::message(&error.into(), None)),
            }
            // Only a brace can complete the object with the secret.
            if brings_secret && byte == *b"}" && reply::find_secret(&text(&bytes)).is_some() {
                // From here on, signals and the time limit leave time for the delivery.
                signal::enter(State::NotDelivered);
                // Some servers never send the end. If it comes soon, the connection can be used again.
                self.connection.limit_wait(Duration::from_millis(200));
                brings_secret = false;
            }
        };
        (text(&bytes), truncated)
    }
}

fn peer(options: &Options) -> String {
    let host = &options.url.host;
    let Some(proxy) = &options.proxy else {
        return host.clone();
    };
    format!(
        "{host} through the proxy {} from {}",
        proxy.address, proxy.variable
    )
}

fn roots(options: &Options) -> RootCerts {
    match &options.ca_file {
        Some(file) => RootCerts::new_with_certs(&file.certificates),
        None => RootCerts::WebPki,
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
