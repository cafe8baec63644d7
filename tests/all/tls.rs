//! The same over TLS: whom the program trusts, and what it costs.

use rustls::version::{TLS12, TLS13};

use crate::portal::{Act, BEARER, Certificates, KEY, Stand, Step, anew, good_run, http, line, look, looked};
use crate::run::{self, Folder, rotate, run};

#[test]
fn a_named_ca_is_trusted_on_one_connection() {
    let folder = Folder::new();
    let certificates = Certificates::new();
    let other = folder.file("other.pem", Certificates::new().ca_pem);
    let ca = folder.file("ca.pem", &certificates.ca_pem);
    let stand = Stand::script_over(Some(certificates.server("127.0.0.1")), good_run());
    run(rotate(&stand).arg("-q").arg("--cacert").arg(&ca)).is(0, &line(), &[]);
    assert_eq!(stand.connections(), 1);

    let stand = Stand::script_over(Some(certificates.server("127.0.0.1")), good_run());
    run(rotate(&stand).arg("-q").env("SSL_CERT_FILE", &ca)).is(0, &line(), &[]);

    // The argument beats the variable, and a file may hold more than one certificate.
    let both =
        folder.file("both.pem", format!("# comment\n{}{}", Certificates::new().ca_pem, certificates.ca_pem));
    let stand = Stand::script_over(Some(certificates.server("127.0.0.1")), good_run());
    run(rotate(&stand).arg("-q").env("SSL_CERT_FILE", other).arg("--cacert").arg(both)).is(0, &line(), &[]);
}

#[test]
fn whom_it_does_not_trust_gets_nothing() {
    let (folder, certificates, ca) = run::authority();
    let other = folder.file("other.pem", Certificates::new().ca_pem);
    let (good, wrong, old) = (
        certificates.server("127.0.0.1"),
        certificates.server("other.example"),
        certificates.expired_server("127.0.0.1"),
    );
    for (server, trusted, why) in [
        (&good, None, "UnknownIssuer"),
        (&good, Some(&other), "UnknownIssuer"),
        (&wrong, Some(&ca), "not valid for name \"127.0.0.1\""),
        (&old, Some(&ca), "expired"),
    ] {
        let stand = Stand::script_over(Some(server.clone()), vec![]);
        let mut command = rotate(&stand);
        if let Some(file) = trusted {
            command.arg("--cacert").arg(file);
        }
        let refused = run(&mut command);
        assert_eq!((refused.status, refused.stdout.as_str()), (Some(3), ""), "{refused}");
        let error = refused.error();
        assert!(
            error.starts_with(
                "docspace-rotate: the TLS handshake with 127.0.0.1 failed: invalid peer certificate: "
            ),
            "{refused}"
        );
        assert!(error.contains(why), "{refused}");
        assert!(
            error.ends_with("; the client's secret is unchanged; check the address, CA, key and client id"),
            "{refused}"
        );
        assert_eq!(stand.connections(), 1);
        assert_eq!(stand.requests().len(), 0);
    }
}

/// Whatever the handshake fails of, a moment later it would fail of the same.
#[test]
fn a_handshake_that_fails_for_good_is_3_at_once() {
    let refused = "docspace-rotate: the TLS handshake with 127.0.0.1 failed: ";
    let unchanged = "; the client's secret is unchanged; check the address, CA, key and client id";
    for key in [KEY, BEARER] {
        // handshake_failure and protocol_version (RFC 8446, section 6), and no TLS at all.
        for (bytes, why) in [
            (b"\x15\x03\x03\x00\x02\x02\x28".to_vec(), "received fatal alert: HandshakeFailure"),
            (b"\x15\x03\x03\x00\x02\x02\x46".to_vec(), "received fatal alert: ProtocolVersion"),
            (http("400 ", "", "no TLS"), "received corrupt message of type InvalidContentType"),
        ] {
            let stand = Stand::script(vec![Step::Accepted(vec![Act::Send(bytes)])]);
            let url = stand.url().replace("http://", "https://");
            let done = run(rotate(&stand).env("DOCSPACE_API_KEY", key).args(["-q", "--url", &url]));
            done.is(3, "", &[&format!("{refused}{why}{unchanged}")]);
            assert_eq!(stand.connections(), 1);
        }
        // In TLS 1.3 the portal says it when a request is on its way.
        let (_folder, certificates, ca) = run::authority();
        for (version, why) in
            [(&TLS12, "it demands a client certificate"), (&TLS13, "it demands a client certificate")]
        {
            let server = certificates.demanding_server("127.0.0.1", version);
            let stand = Stand::script_over(Some(server), vec![]);
            let done = run(rotate(&stand).env("DOCSPACE_API_KEY", key).arg("-q").arg("--cacert").arg(&ca));
            done.is(3, "", &[&format!("{refused}{why}{unchanged}")]);
            assert_eq!((stand.connections(), stand.requests().len()), (1, 0));
        }
    }
}

/// Once the portal has said a word, an error of TLS is a fault like any other.
#[test]
fn a_fault_of_tls_later_is_7_for_a_patch_and_tried_again_for_the_rest() {
    let garbage =
        || vec![Act::Raw(b"\x17\x03\x03\x00\x20no record of this connection....".to_vec()), Act::Close];
    let (_folder, certificates, ca) = run::authority();
    for key in [KEY, BEARER] {
        for kept in [true, false] {
            let patch = [Step::Request("PATCH regenerate", garbage())];
            let script = match (kept, key == KEY) {
                (true, true) => looked(patch),
                (true, false) => [look()].into_iter().chain(patch).collect(),
                (false, _) => anew(patch),
            };
            if !kept && key == KEY {
                continue;
            }
            let stand = Stand::script_over(Some(certificates.server("127.0.0.1")), script);
            let done = run(rotate(&stand).env("DOCSPACE_API_KEY", key).arg("-q").arg("--cacert").arg(&ca));
            done.is(7, "", &["docspace-rotate: 127.0.0.1 gave no usable answer to [PATCH regenerate]: cannot decrypt peer's message; …"]);
        }
    }
    let mut script = good_run();
    script.insert(1, Step::Request("HEAD client", garbage()));
    script.insert(4, Step::Request("DELETE revoke", garbage()));
    let stand = Stand::script_over(Some(certificates.server("127.0.0.1")), script);
    run(rotate(&stand).arg("-q").arg("--cacert").arg(&ca)).is(0, &line(), &[]);
}
