//! The same over TLS: what the program trusts, and what a failure of TLS means.

use std::path::Path;
use std::sync::Arc;

use rustls::HandshakeKind::{Full, Resumed};
use rustls::ServerConfig;
use rustls::version::{TLS12, TLS13};

use crate::mock::certificates::Certificates;
use crate::mock::*;
use crate::run::*;
use crate::words::*;

#[test]
fn a_named_ca_is_trusted_and_the_second_handshake_resumes_the_first() {
    let (folder, certificates, ca) = authority();
    let other = Certificates::new().ca_pem;
    let two = format!("# comment\n{other}{}", certificates.ca_pem);
    let two = folder.file("two.pem", two);
    let other = folder.file("other.pem", other);
    let cacert = format!("--cacert={}", two.display());
    // The argument overrides the variable, and a file may contain more than one certificate.
    for (args, variable) in [(vec![], ca), (vec![cacert], other)] {
        let portal = MockPortal::tls(certificates.server("127.0.0.1"), good_run());
        let mut command = rotate(&portal);
        command.args(args).env("SSL_CERT_FILE", variable);
        run(&mut command).assert_run(0, &secret_line(), &GOOD_RUN_LOG);
        assert_eq!(portal.handshakes(), [Full, Resumed]);
    }
}

/// A server whose certificate is not trusted, and why not.
struct Untrusted<'a> {
    name: &'static str,
    why: String,
    server: Arc<ServerConfig>,
    ca: Option<&'a Path>,
}

#[test]
fn a_damaged_ca_file_is_refused_before_anything_is_sent() {
    let folder = Folder::new();
    let pem = Certificates::new().ca_pem;
    let end = "-----END CERTIFICATE-----";
    for (name, contents) in [
        ("no END", pem.replacen(end, "", 1) + &pem),
        ("no END at all", pem.replacen(end, "", 1)),
        ("two on one line", format!("{}{pem}", pem.trim_end())),
        ("bad base64", pem.replacen("MI", "M!", 1) + &pem),
        (
            "a short BEGIN",
            pem.replacen("-----BEGIN", "----BEGIN", 1) + &pem,
        ),
        (
            "a long BEGIN",
            pem.replacen("BEGIN CERTIFICATE-----", "BEGIN CERTIFICATE----", 1) + &pem,
        ),
        (
            "a key alone",
            "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n".to_owned(),
        ),
        ("DER", "0\u{3}\u{2}\u{1}\0".to_owned()),
        ("empty", String::new()),
    ] {
        let file = folder.file("ca.pem", contents);
        let error = format!(
            "the CA file {} (from --cacert) contains no certificate in PEM format, \
             or a malformed one (check BEGIN, END and base64); nothing was sent; see --help",
            file.display()
        );
        let _case = Named(name);
        let portal = MockPortal::new(vec![]);
        let mut command = rotate(&portal);
        run(command.arg("--cacert").arg(&file)).fails_with(2, &error);
    }
}

#[test]
fn a_portal_that_is_not_trusted_gets_no_request() {
    let (folder, certificates, ca) = authority();
    let other = folder.file("other.pem", Certificates::new().ca_pem);
    let no_ca = format!(
        "no CA in {} (from --cacert) issued the server's certificate, \
         or the server does not send its intermediate certificate, \
         or a certificate has an RSA key of less than 2,048 or more than 8,192 bits",
        other.display()
    );
    for case in [
        Untrusted {
            name: "no CA file",
            why: "no built-in CA issued the server's certificate, or the server does not send its intermediate certificate (private CA: see --cacert)".to_owned(),
            server: certificates.server("127.0.0.1"),
            ca: None,
        },
        Untrusted {
            name: "another CA",
            why: no_ca,
            server: certificates.server("127.0.0.1"),
            ca: Some(&other),
        },
        Untrusted {
            name: "another host",
            why: "the subjectAltName of the server's certificate does not list this host (the CN is ignored)".to_owned(),
            server: certificates.server("other.example"),
            ca: Some(&ca),
        },
        Untrusted {
            name: "expired",
            why: "the server's certificate or its intermediate has expired (check this machine's clock, too)".to_owned(),
            server: certificates.expired_server("127.0.0.1"),
            ca: Some(&ca),
        },
        Untrusted {
            name: "a CA's certificate",
            why: "the server's certificate is a CA certificate: it must have CA:FALSE".to_owned(),
            server: certificates.ca_as_server(),
            ca: Some(&ca),
        },
    ] {
        let _case = Named(case.name);
        let portal = MockPortal::tls(case.server, vec![]);
        let mut command = rotate(&portal);
        if let Some(file) = case.ca {
            command.arg("--cacert").arg(file);
        }
        let start = "127.0.0.1 could not be reached for [GET token]: ";
        let error = format!("{start}{}; {REFUSED}", case.why);
        run(&mut command).fails_with(3, &error);
        assert_eq!((portal.connections(), portal.requests().len()), (1, 0));
    }
}

/// Checks that a server that sends these bytes instead of its part of the handshake is not tried again.
#[track_caller]
fn fails_at_once(bytes: &[u8], why: &str) {
    let fail = || {
        let send = Action::SendBelowTls(bytes.to_vec());
        Expect::Connection(vec![send, Action::Hang])
    };
    for (call, script) in [
        ("GET token", vec![fail()]),
        ("PATCH regenerate", ready([fail()])),
    ] {
        let error = format!("could not be reached for [{call}]: {why}; {REFUSED}");
        let (run, _portal) = run_at(true, script, &["-q"]);
        run.assert_run(3, "", &[&format!("docspace-rotate: 127.0.0.1 {error}")]);
    }
}

#[test]
fn a_handshake_that_fails_with_an_error_of_tls_is_3_at_once() {
    // handshake_failure and protocol_version (RFC 8446, section 6).
    fails_at_once(
        b"\x15\x03\x03\x00\x02\x02\x28",
        "the server has no cipher, curve or key type in common with this program, \
         or requires a client certificate",
    );
    fails_at_once(
        b"\x15\x03\x03\x00\x02\x02\x46",
        "the server has no TLS version in common with this program (1.2 and 1.3 only)",
    );
    let reply = response("400 ", "", "no TLS");
    fails_at_once(
        &reply,
        "the server (or an https:// proxy) does not speak TLS on this port, or sent a malformed record",
    );
}

#[test]
fn a_portal_that_requires_a_client_certificate_is_3() {
    let (_folder, certificates, ca) = authority();
    // With TLS 1.3 the portal says so only when a request is on its way.
    for (version, verb) in [
        (&TLS12, "could not be reached for"),
        (&TLS13, "gave no valid answer to"),
    ] {
        let _case = Named(verb);
        let server = certificates.requiring_client_certificate("127.0.0.1", version);
        let portal = MockPortal::tls(server, vec![]);
        let run = run(rotate(&portal).arg("--cacert").arg(&ca));
        let why = "the server requires a client certificate";
        let error = format!("127.0.0.1 {verb} [GET token]: {why}; {REFUSED}");
        run.fails_with(3, &error);
        assert_eq!((portal.connections(), portal.requests().len()), (1, 0));
    }
}

/// Expects a request, and replies with what is no record of the connection.
fn lose_tls(request: &'static str) -> Expect {
    let no_record = b"\x17\x03\x03\x00\x20no record of this connection....";
    let send = Action::SendBelowTls(no_record.to_vec());
    expect_then(request, [send, Action::Close])
}

#[test]
fn an_error_of_tls_instead_of_a_reply_is_3_or_for_the_patch_7() {
    let requests = ["GET token", "HEAD client", "PATCH regenerate"];
    for (before, call) in requests.into_iter().enumerate() {
        let _case = Named(call);
        let mut script = good_run();
        script.truncate(before);
        script.push(lose_tls(call));
        let (run, _portal) = run_at(true, script, &["-q"]);
        let status = if call == "PATCH regenerate" { 7 } else { 3 };
        let why = "TLS failed; ";
        let error = format!("127.0.0.1 gave no valid answer to [{call}]: {why}");
        run.fails_with(status, &error);
    }
}

#[test]
fn an_error_of_tls_instead_of_a_reply_after_the_delivery_is_tried_again() {
    let mut script = ready([regenerate(), lose_tls("DELETE revoke"), revoke()]);
    script.extend([lose_tls("POST introspect"), introspect()]);
    let (run, _portal) = run_at(true, script, &["-q", "--verify"]);
    run.assert_run(0, &secret_line(), &[]);
}
