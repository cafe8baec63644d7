//! The same over TLS: what the program trusts, and what a failure of TLS means.

use rustls::HandshakeKind::{Full, Resumed};
use rustls::version::{TLS12, TLS13};

use crate::mock::certificates::Certificates;
use crate::mock::*;
use crate::run::*;
use crate::words::*;

#[test]
fn a_named_ca_is_trusted_and_the_second_handshake_resumes_the_first() {
    let (folder, certificates, ca) = authority();
    let other = folder.file("other.pem", Certificates::new().ca_pem);
    let two = format!(
        "# comment\n{}{}",
        Certificates::new().ca_pem,
        certificates.ca_pem
    );
    let both = folder.file("both.pem", two);
    // The argument overrides the variable, and a file may contain more than one certificate.
    for (argument, variable) in [
        (Some(&ca), None),
        (None, Some(&ca)),
        (Some(&both), Some(&other)),
    ] {
        let portal = MockPortal::tls(certificates.server("127.0.0.1"), good_run());
        let mut command = rotate(&portal);
        command.args(argument.map(|file| format!("--cacert={}", file.display())));
        command.envs(variable.map(|file| ("SSL_CERT_FILE", file)));
        run(&mut command).assert_run(0, &secret_line(), &GOOD_RUN_LOG);
        assert_eq!(portal.handshakes(), [Full, Resumed]);
    }
}

#[test]
fn a_portal_that_is_not_trusted_gets_no_request() {
    let (folder, certificates, ca) = authority();
    let other = folder.file("other.pem", Certificates::new().ca_pem);
    let good = certificates.server("127.0.0.1");
    for (server, trusted, why) in [
        (
            good.clone(),
            None,
            "the certificate is from an unknown CA (see --cacert)",
        ),
        (
            good,
            Some(&other),
            "the certificate is from an unknown CA (see --cacert)",
        ),
        (
            certificates.server("other.example"),
            Some(&ca),
            "the certificate is for another host",
        ),
        (
            certificates.expired_server("127.0.0.1"),
            Some(&ca),
            "the certificate has expired",
        ),
        (
            certificates.ca_as_server(),
            Some(&ca),
            "the certificate is a CA certificate",
        ),
    ] {
        let portal = MockPortal::tls(server, vec![]);
        let refused =
            run(rotate(&portal).args(trusted.map(|file| format!("--cacert={}", file.display()))));
        let start = "127.0.0.1 could not be reached for [GET token]: TLS failed: ";
        refused.fails_with(3, &format!("{start}{why}; {REFUSED}"));
        assert_eq!((portal.connections(), portal.requests().len()), (1, 0));
    }
}

/// A moment later it would fail again.
#[test]
fn a_handshake_that_fails_with_an_error_of_tls_is_3_at_once() {
    // handshake_failure and protocol_version (RFC 8446, section 6), and no TLS.
    let failures = [
        (
            b"\x15\x03\x03\x00\x02\x02\x28".to_vec(),
            "received fatal alert: HandshakeFailure",
        ),
        (
            b"\x15\x03\x03\x00\x02\x02\x46".to_vec(),
            "received fatal alert: ProtocolVersion",
        ),
        (
            response("400 ", "", "no TLS"),
            "the server does not speak TLS on this port",
        ),
    ];
    for (bytes, why) in failures {
        let fail = || Expect::Connection(vec![Action::SendBelowTls(bytes.clone()), Action::Hang]);
        for (call, script) in [
            ("GET token", vec![fail()]),
            ("PATCH regenerate", ready([fail()])),
        ] {
            let error = format!(
                "127.0.0.1 could not be reached for [{call}]: TLS failed: {why}; {REFUSED}"
            );
            let (run, _portal) = run_at(true, script, &["-q"]);
            run.assert_run(3, "", &[&format!("docspace-rotate: {error}")]);
        }
    }
    let (_folder, certificates, ca) = authority();
    // With TLS 1.3 the portal says so only when a request is on its way.
    for (version, verb) in [
        (&TLS12, "could not be reached for"),
        (&TLS13, "gave no valid answer to"),
    ] {
        let server = certificates.requiring_client_certificate("127.0.0.1", version);
        let portal = MockPortal::tls(server, vec![]);
        let run = run(rotate(&portal).arg("--cacert").arg(&ca));
        let why = "TLS failed: a client certificate is required";
        run.fails_with(
            3,
            &format!("127.0.0.1 {verb} [GET token]: {why}; {REFUSED}"),
        );
        assert_eq!((portal.connections(), portal.requests().len()), (1, 0));
    }
}

#[test]
fn an_error_of_tls_instead_of_a_reply_depends_on_the_call() {
    let run = |script| run_at(true, script, &["-q", "--verify"]).0;
    let no_record = b"\x17\x03\x03\x00\x20no record of this connection....";
    let fails = |call| {
        expect_then(
            call,
            [Action::SendBelowTls(no_record.to_vec()), Action::Close],
        )
    };
    for (status, script, call) in [
        (3, vec![fails("GET token")], "GET token"),
        (3, vec![sign_in(), fails("HEAD client")], "HEAD client"),
        (7, ready([fails("PATCH regenerate")]), "PATCH regenerate"),
    ] {
        let why = "TLS failed: cannot decrypt peer's message; ";
        run(script).fails_with(
            status,
            &format!("127.0.0.1 gave no valid answer to [{call}]: {why}"),
        );
    }
    let script = [
        sign_in(),
        probe(),
        regenerate(),
        fails("DELETE revoke"),
        revoke(),
    ];
    run(script
        .into_iter()
        .chain([fails("POST introspect"), introspect()])
        .collect())
    .assert_run(0, &secret_line(), &[]);
}
