//! What is wrong with a server's certificate or its TLS, in plain words, and never in a library's.

use std::process::Command;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, GeneralSubtree, IsCa, KeyPair,
    NameConstraints, PKCS_ECDSA_P256_SHA256, PKCS_ED25519,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};

use crate::mock::*;
use crate::run::*;
use crate::words::*;

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn new_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ED25519).unwrap()
}

/// Creates a CA with this name, which may issue only for names below `permitted`.
fn new_ca(name: &str, permitted: Option<&str>) -> Issuer {
    new_ca_with_key(new_key(), name, permitted)
}

fn new_ca_with_key(key: KeyPair, name: &str, permitted: Option<&str>) -> Issuer {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(name) = permitted {
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName(name.to_owned())],
            excluded_subtrees: vec![],
        });
    }
    Issuer::self_signed(params, key).unwrap()
}

/// Issues a certificate for a server with these names, and configures the server.
fn server(
    ca: &Issuer,
    names: &[&str],
    change: impl FnOnce(&mut CertificateParams),
) -> Arc<ServerConfig> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    change(&mut params);
    let key = new_key();
    let certificate = params.signed_by(&key, ca).unwrap();
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    configure(vec![certificate.into()], key)
}

fn configure(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Arc<ServerConfig> {
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    // Unlike `with_single_cert`, this does not check the certificate.
    let resolver = SingleCertAndKey::from(CertifiedKey::new(chain, key));
    let builder = ServerConfig::builder().with_no_client_auth();
    Arc::new(builder.with_cert_resolver(Arc::new(resolver)))
}

/// A server, what the run trusts, and what its error says.
struct Case {
    name: &'static str,
    server: Arc<ServerConfig>,
    ca_file: Option<(&'static str, String)>,
    cause: &'static str,
}

/// Checks that the run is refused with this cause, in plain words, before a request is sent.
fn check(case: Case) {
    let _case = Named(case.name);
    let folder = Folder::new();
    let portal = MockPortal::tls(case.server, vec![]);
    let mut command = rotate(&portal);
    let url = format!("https://localhost:{}", portal.at.port());
    command.args(["--url", &url]);
    if let Some((source, pem)) = case.ca_file {
        let file = folder.file("ca.pem", pem);
        if source == "--cacert" {
            command.arg(source).arg(file);
        } else {
            command.env(source, file);
        }
    }
    let run = run(&mut command);
    run.fails_with(3, case.cause).fails_with(3, REFUSED);
    assert_plain(&run);
    assert_eq!(portal.requests().len(), 0);
}

/// Checks that there is no library's text in an error.
fn assert_plain(run: &Run) {
    let error = run.error();
    for jargon in [
        "Other(",
        "OtherError",
        "InvalidCertificate",
        "Context",
        "io:",
    ] {
        assert!(!error.contains(jargon), "{jargon}: {error}");
    }
    let mut numbers = error.split(|c: char| !c.is_ascii_digit());
    assert!(numbers.all(|number| number.len() < 6), "{error}");
}

#[test]
fn a_bad_certificate_is_named_in_plain_words() {
    let ca = new_ca("CA", None);
    let same_name = new_ca("CA", None);
    let p256 = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let other_key_type = new_ca_with_key(p256, "CA", None);
    let constrained = new_ca("constrained", Some("example.test"));
    let trusts = |source, ca: &Issuer| Some((source, ca.pem()));
    let by_argument = || trusts("--cacert", &ca);
    let no_change = |_: &mut CertificateParams| {};
    let not_yet = |params: &mut CertificateParams| {
        params.not_before = rcgen::date_time_ymd(3000, 1, 1);
        params.not_after = rcgen::date_time_ymd(3001, 1, 1);
    };
    let expired = |params: &mut CertificateParams| {
        params.not_before = rcgen::date_time_ymd(2019, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    };
    let cn_only = |params: &mut CertificateParams| {
        params
            .distinguished_name
            .push(DnType::CommonName, "localhost");
    };
    let is_ca = |params: &mut CertificateParams| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    };
    let no_name = "the subjectAltName of the server's certificate does not list this host";
    for case in [
        Case {
            name: "an unknown CA, without a CA file",
            server: server(&ca, &["localhost"], no_change),
            ca_file: None,
            cause: "no built-in CA issued the server's certificate, \
                    or the server does not send its intermediate certificate \
                    (private CA: see --cacert); ",
        },
        Case {
            name: "an unknown CA, with --cacert",
            server: server(&constrained, &["localhost"], no_change),
            ca_file: by_argument(),
            cause: "/ca.pem (from --cacert) issued the server's certificate, or the server does",
        },
        Case {
            name: "an unknown CA, with SSL_CERT_FILE",
            server: server(&constrained, &["localhost"], no_change),
            ca_file: trusts("SSL_CERT_FILE", &ca),
            cause: "/ca.pem (from SSL_CERT_FILE) issued the server's certificate, or ",
        },
        Case {
            name: "another CA of the same name",
            server: server(&same_name, &["localhost"], no_change),
            ca_file: by_argument(),
            cause: "no CA in ",
        },
        Case {
            name: "another CA of the same name, with a key of another type",
            server: server(&other_key_type, &["localhost"], no_change),
            ca_file: by_argument(),
            cause: "no CA in ",
        },
        Case {
            name: "another host",
            server: server(&ca, &["expired.test", "unknownissuer.test"], no_change),
            ca_file: by_argument(),
            cause: no_name,
        },
        Case {
            name: "a CN and no subjectAltName",
            server: server(&ca, &[], cn_only),
            ca_file: by_argument(),
            cause: "(the CN is ignored)",
        },
        Case {
            name: "not yet valid",
            server: server(&ca, &["localhost"], not_yet),
            ca_file: by_argument(),
            cause: "the server's certificate or its intermediate is not valid yet (check this machine's clock, too)",
        },
        Case {
            name: "expired",
            server: server(&ca, &["localhost"], expired),
            ca_file: by_argument(),
            cause: "the server's certificate or its intermediate has expired (check this machine's clock, too)",
        },
        Case {
            name: "CA:TRUE",
            server: server(&ca, &["localhost"], is_ca),
            ca_file: by_argument(),
            cause: "the server's certificate is a CA certificate: it must have CA:FALSE",
        },
        Case {
            name: "name constraints",
            server: server(&constrained, &["localhost"], no_change),
            ca_file: trusts("--cacert", &constrained),
            cause: "the name constraints of a CA forbid a name in the server's certificate",
        },
    ] {
        check(case);
    }
}

#[test]
fn a_missing_intermediate_is_named() {
    let root = new_ca("root", None);
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "intermediate");
    let intermediate = Issuer::signed_by(params, new_key(), &root).unwrap();
    check(Case {
        name: "without its intermediate",
        server: server(&intermediate, &["localhost"], |_| {}),
        ca_file: Some(("--cacert", root.pem())),
        cause: "or the server does not send its intermediate certificate",
    });
}

/// openssl makes version 1 where there are no extensions.
#[test]
fn a_certificate_of_version_1_is_named() {
    if Command::new("openssl").arg("version").output().is_err() {
        return skipped("a_certificate_of_version_1_is_named", "no openssl here");
    }
    let folder = Folder::new();
    let script = "exec 2> /dev/null
        openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj /CN=ca &&
        openssl req -newkey rsa:2048 -nodes -keyout key.pem -out csr.pem -subj /CN=localhost &&
        openssl x509 -req -in csr.pem -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem &&
        openssl x509 -in cert.pem -noout -text | grep 'Version: 1 '";
    let mut openssl = command("sh");
    let openssl = openssl.args(["-c", script]).current_dir(folder.as_ref());
    let made = openssl.env("PATH", "/usr/bin:/bin").output().unwrap();
    if !made.status.success() {
        return skipped(
            "a_certificate_of_version_1_is_named",
            "openssl makes no version 1",
        );
    }
    let read = |name: &str| folder.path(name);
    let certificate = CertificateDer::from_pem_file(read("cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(read("key.pem")).unwrap();
    check(Case {
        name: "version 1",
        server: configure(vec![certificate], key),
        ca_file: Some(("--cacert", std::fs::read_to_string(read("ca.pem")).unwrap())),
        cause: "the server's certificate is an old X.509 version: it must be version 3",
    });
}

/// An alert, and what it says (RFC 8446, section 6).
struct Alert {
    number: u8,
    status: i32,
    cause: &'static str,
}

#[test]
fn an_alert_is_named_in_plain_words() {
    for_each(
        vec![
            Alert {
                number: 40,
                status: 3,
                cause: "the server has no cipher, curve or key type in common with this program, \
                        or requires a client certificate; ",
            },
            Alert {
                number: 1,
                status: 3,
                cause: "the server ended the handshake (unknown alert); ",
            },
            Alert {
                number: 47,
                status: 3,
                cause: "the server ended the handshake (alert IllegalParameter); ",
            },
            Alert {
                number: 70,
                status: 3,
                cause: "no TLS version in common with this program (1.2 and 1.3 only); ",
            },
            // A load balancer sends it while it starts.
            Alert {
                number: 80,
                status: 4,
                cause: "the server has no certificate for this name, or is failing \
                        (alert InternalError), and the next attempt",
            },
            Alert {
                number: 112,
                status: 3,
                cause: "the server has no certificate for this name; ",
            },
        ],
        |alert| {
            let bytes = [0x15, 3, 3, 0, 2, 2, alert.number];
            let mut script = vec![];
            let attempts = if alert.status == 4 { 2 } else { 1 };
            for _ in 0..attempts {
                let actions = vec![Action::SendBelowTls(bytes.to_vec()), Action::Hang];
                script.push(Expect::Connection(actions));
            }
            let (run, _portal) = run_at(true, script, &["--timeout", "2.9"]);
            run.fails_with(alert.status, alert.cause);
            assert_plain(&run);
        },
    );
}

#[test]
fn internal_error_in_the_handshake_of_the_patch_is_tried_again() {
    let alert = vec![
        Action::SendBelowTls(b"\x15\x03\x03\x00\x02\x02\x50".to_vec()),
        Action::Hang,
    ];
    let script = ready([Expect::Connection(alert), regenerate(), revoke()]);
    let (run, _portal) = run_at(true, script, &[]);
    assert_eq!(run.status, Some(0), "{run}");
}

#[test]
fn a_required_client_certificate_is_named() {
    let (_folder, certificates, ca) = authority();
    for version in [&TLS12, &TLS13] {
        let server = certificates.requiring_client_certificate("127.0.0.1", version);
        let portal = MockPortal::tls(server, vec![]);
        let run = run(rotate(&portal).arg("--cacert").arg(&ca));
        run.fails_with(3, "the server requires a client certificate; ");
        assert_plain(&run);
    }
}

/// The certificate that the README makes for a portal of your own.
#[test]
fn the_certificate_of_the_readme_is_accepted() {
    if Command::new("openssl").arg("version").output().is_err() {
        return skipped(
            "the_certificate_of_the_readme_is_accepted",
            "no openssl here",
        );
    }
    let readme = crate::project::text("README.md");
    let start = readme.find("    openssl req -x509").unwrap();
    let (recipe, _) = readme[start..].split_once("\n\n").unwrap();
    let recipe = recipe.replace("docs.example.com", "localhost");
    let folder = Folder::new();
    let mut openssl = command("sh");
    let openssl = openssl.args(["-c", &recipe]).current_dir(folder.as_ref());
    let made = openssl.env("PATH", "/usr/bin:/bin").output().unwrap();
    assert!(made.status.success(), "{recipe}");
    let read = |name: &str| folder.path(name);
    let certificate = CertificateDer::from_pem_file(read("portal.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(read("portal.key")).unwrap();
    let portal = MockPortal::tls(configure(vec![certificate], key), good_run());
    let url = format!("https://localhost:{}", portal.at.port());
    let mut command = rotate(&portal);
    command
        .args(["--url", &url])
        .arg("--cacert")
        .arg(read("portal.pem"));
    run(&mut command).assert_run(0, &secret_line(), &GOOD_RUN_LOG);
}
