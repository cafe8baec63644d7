//! Why there is no reply, in plain words. ureq's own may quote the server, or name ureq's parts.

use std::io::ErrorKind;

use ureq::{Error, Timeout};

use crate::connection;
use crate::error::io_message;

#[derive(Debug)]
pub struct Failure {
    /// Whether a byte of the request may have left.
    pub sent: bool,
    /// Whether it is an error of TLS itself.
    pub is_tls: bool,
    /// Whether the proxy refused for good.
    pub proxy_refused: bool,
    pub why: String,
}

impl Failure {
    pub fn new(error: &Error, sent: bool) -> Failure {
        let proxy_refused = match proxy_status(error) {
            Some(408 | 429) => false,
            Some(status) => (300..500).contains(&status),
            None => false,
        };
        Failure {
            sent,
            is_tls: is_tls(error),
            proxy_refused,
            why: message(error),
        }
    }
}

/// Returns true for an error of TLS itself. rustls documents this kind of I/O error. An answer that
/// is not SOCKS has it, too.
fn is_tls(error: &Error) -> bool {
    match error {
        Error::Io(error) => error.kind() == ErrorKind::InvalidData,
        Error::Tls(_) | Error::Rustls(_) => true,
        _ => false,
    }
}

fn message(error: &Error) -> String {
    if is_tls(error) {
        return tls_message(error);
    }
    if let Some(status) = proxy_status(error) {
        return format!("the proxy refused with status {status}");
    }
    match error {
        Error::Io(error) if error.kind() == ErrorKind::UnexpectedEof => {
            "the connection was closed".to_owned()
        }
        Error::Io(error) => io_message(error),
        Error::Timeout(Timeout::Connect) => {
            format!("no connection within {} s", connection::TIMEOUT.as_secs())
        }
        Error::Timeout(_) => "timed out waiting for a reply".to_owned(),
        Error::Protocol(_) => "the reply is not HTTP".to_owned(),
        error => error.to_string(),
    }
}

fn tls_message(error: &Error) -> String {
    let text = error.to_string();
    // Parts of rustls's errors, and what they mean.
    let known = [
        (
            "UnknownIssuer",
            "the certificate is from an unknown CA (see --cacert)",
        ),
        ("expired", "the certificate has expired"),
        ("not valid for name", "the certificate is for another host"),
        ("CaUsedAsEndEntity", "the certificate is a CA certificate"),
        ("CertificateRequired", "a client certificate is required"),
        (
            "corrupt message",
            "the server does not speak TLS on this port",
        ),
    ];
    for (part, meaning) in known {
        if text.contains(part) {
            return format!("TLS failed: {meaning}");
        }
    }
    format!("TLS failed: {}", text.trim_start_matches("io: "))
}

/// Returns the status with which a proxy refused. ureq has it only in words: `proxy server
/// responded 407/407`.
fn proxy_status(error: &Error) -> Option<u16> {
    let Error::ConnectProxyFailed(why) = error else {
        return None;
    };
    let (_, status) = why.split_once("responded ")?;
    status.get(..3)?.parse().ok()
}
