//! The same over TLS: whom the program trusts, and what it costs.

use crate::portal::{Certificates, Stand, good_run, line};
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
            error.starts_with("docspace-rotate: 127.0.0.1 is not to be trusted: invalid peer certificate: "),
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
