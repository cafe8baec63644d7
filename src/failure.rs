//! Why there is no reply, in plain words. ureq's own may quote the server, or name ureq's parts.

use std::io::ErrorKind;

use ureq::{Error, Timeout};

use crate::error::io_message;
use crate::settings::CaFile;

/// A call without a reply.
pub struct Failure {
    pub may_have_been_sent: bool,
    /// Whether a retry would fail in the same way: the proxy refused, or it is a TLS error.
    pub is_final: bool,
    pub what: String,
}

/// rustls documents this kind of I/O error. ureq's SOCKS connector uses it, too.
const TLS_ERROR: ErrorKind = ErrorKind::InvalidData;

/// Returns true if a retry would fail in the same way.
pub fn is_final(error: &Error) -> bool {
    match error {
        // Not for the alert InternalError: a load balancer sends it while it starts.
        Error::Io(error) => {
            error.kind() == TLS_ERROR && !error.to_string().ends_with("alert: InternalError")
        }
        Error::Tls(_) => true,
        // The status is only in words: `proxy server responded 407/407`.
        Error::ConnectProxyFailed(text) => {
            let is_busy = text.ends_with("/408") || text.ends_with("/429");
            !is_busy && (text.contains("/3") || text.contains("/4"))
        }
        _ => false,
    }
}

/// Says in plain words what went wrong.
pub fn message(error: &Error, ca_file: Option<&CaFile>) -> String {
    let why = match error {
        Error::Io(error) => match error.kind() {
            TLS_ERROR => return tls_message(&error.to_string(), ca_file),
            ErrorKind::UnexpectedEof => "the connection was closed",
            _ => return io_message(error),
        },
        Error::BodyStalled => "the connection was closed",
        Error::Timeout(Timeout::Connect) => "no connection within 10 s",
        Error::Timeout(_) => "timed out waiting for a reply",
        // ureq uses it only for the name of the host.
        Error::Tls(_) => "the host is not a valid name for TLS",
        // HTTP/2 cannot be told from garbage.
        Error::Protocol(_) => "the reply is not HTTP/1.1, or cannot be parsed",
        Error::ConnectProxyFailed(text) => match text.rsplit_once('/') {
            Some((_, status)) => return format!("the proxy answered CONNECT with status {status}"),
            None => "the proxy gave no valid answer to CONNECT",
        },
        error => return error.to_string(),
    };
    why.to_owned()
}

/// How rustls's texts begin, and what they mean. The later parts of a text may quote the server.
const TLS_WORDS: [(&str, &str); 16] = [
    (
        "invalid peer certificate: certificate expired",
        "the server's certificate or its intermediate has expired (check this machine's clock, too)",
    ),
    (
        "invalid peer certificate: certificate not valid yet",
        "the server's certificate or its intermediate is not valid yet (check this machine's clock, too)",
    ),
    (
        "invalid peer certificate: certificate not valid for name",
        "the subjectAltName of the server's certificate does not list this host (the CN is ignored)",
    ),
    (
        "invalid peer certificate: Other(OtherError(CaUsedAsEndEntity",
        "the server's certificate is a CA certificate: it must have CA:FALSE",
    ),
    (
        "invalid peer certificate: Other(OtherError(UnsupportedCertVersion",
        "the server's certificate is an old X.509 version: it must be version 3",
    ),
    (
        "invalid peer certificate: Other(OtherError(NameConstraintViolation",
        "the name constraints of a CA forbid a name in the server's certificate",
    ),
    (
        "invalid peer certificate",
        "the server's certificate is not valid, or of a type that this program does not support",
    ),
    (
        "received fatal alert: HandshakeFailure",
        "the server has no cipher, curve or key type in common with this program, \
         or requires a client certificate",
    ),
    (
        "received fatal alert: ProtocolVersion",
        "the server has no TLS version in common with this program (1.2 and 1.3 only)",
    ),
    (
        "peer is incompatible",
        "the server has no TLS version in common with this program (1.2 and 1.3 only)",
    ),
    (
        "received fatal alert: UnrecognisedName",
        "the server has no certificate for this name",
    ),
    (
        "received fatal alert: CertificateRequired",
        "the server requires a client certificate",
    ),
    (
        "received corrupt message of type InvalidContentType",
        "the server (or an https:// proxy) does not speak TLS on this port, or sent a malformed record",
    ),
    (
        "received fatal alert: InternalError",
        "the server has no certificate for this name, or is failing (alert InternalError)",
    ),
    (
        "received fatal alert: AlertDescription",
        "the server ended the handshake (unknown alert)",
    ),
    // The texts of ureq's SOCKS connector.
    ("invalid re", "the proxy does not speak SOCKS"),
];

fn tls_message(text: &str, ca_file: Option<&CaFile>) -> String {
    // BadSignature: another CA has the same name, or an RSA key is too short or too long. The third:
    // that CA's key is of another type.
    if text.starts_with("invalid peer certificate: UnknownIssuer")
        || text.starts_with("invalid peer certificate: BadSignature")
        || text.starts_with("invalid peer certificate: UnsupportedSignatureAlgorithmForPublicKey")
    {
        return match ca_file {
            Some(file) => format!(
                "no CA in {} issued the server's certificate, \
                 or the server does not send its intermediate certificate, \
                 or a certificate has an RSA key of less than 2,048 or more than 8,192 bits",
                file.name
            ),
            None => "no built-in CA issued the server's certificate, \
                     or the server does not send its intermediate certificate \
                     (private CA: see --cacert)"
                .to_owned(),
        };
    }
    for (start, meaning) in TLS_WORDS {
        if text.starts_with(start) {
            return meaning.to_owned();
        }
    }
    match text.strip_prefix("received fatal alert: ") {
        Some(alert) => format!("the server ended the handshake (alert {alert})"),
        None => "TLS failed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The texts are rustls's own. Those of the certificates are in the end-to-end tests, too.
    #[test]
    fn tls_in_plain_words() {
        let host = "invalid peer certificate: certificate not valid for name \"x\"; certificate \
                    is only valid for DnsName(\"expired.test\") or DnsName(\"UnknownIssuer\")";
        for (text, expected) in [
            ("invalid peer certificate: UnknownIssuer", "no built-in CA"),
            ("invalid peer certificate: BadSignature", "no built-in CA"),
            (
                "invalid peer certificate: UnsupportedSignatureAlgorithmForPublicKeyContext { x }",
                "no built-in CA",
            ),
            (host, "does not list this host"),
            (
                "invalid peer certificate: BadEncoding",
                "certificate is not valid",
            ),
            (
                "received fatal alert: HandshakeFailure",
                "or requires a client certificate",
            ),
            ("received fatal alert: ProtocolVersion", "1.2 and 1.3 only"),
            (
                "peer is incompatible: ServerDoesNotSupportTls12Or13",
                "1.2 and 1.3 only",
            ),
            (
                "received fatal alert: UnrecognisedName",
                "no certificate for this name",
            ),
            (
                "received fatal alert: InternalError",
                "or is failing (alert InternalError)",
            ),
            (
                "received fatal alert: IllegalParameter",
                "(alert IllegalParameter)",
            ),
            (
                "received fatal alert: AlertDescription(0x1)",
                "(unknown alert)",
            ),
            (
                "received corrupt message of type InvalidContentType",
                "does not speak TLS",
            ),
            (
                "received corrupt message of type MissingData(\"x\")",
                "TLS failed",
            ),
            ("invalid response version", "does not speak SOCKS"),
            ("cannot decrypt peer's message", "TLS failed"),
        ] {
            let found = tls_message(text, None);
            assert!(found.contains(expected), "{text}: {found}");
        }
        let file = CaFile {
            name: "the server.pem (from x)".to_owned(),
            certificates: vec![],
        };
        let text = "invalid peer certificate: UnknownIssuer";
        let found = tls_message(text, Some(&file));
        let expected = "no CA in the server.pem (from x) issued the server's ";
        assert!(found.starts_with(expected), "{found}");
    }
}
