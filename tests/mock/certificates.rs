//! TLS certificates for the mocks, issued by a CA made for the test.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PKCS_ED25519,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{WantsServerCert, WebPkiClientVerifier};
use rustls::{ConfigBuilder, RootCertStore, ServerConfig, SupportedProtocolVersion};

/// A CA and the server configurations that use it.
pub struct Certificates {
    pub ca_pem: String,
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Certificates {
    /// Creates a CA with a unique name, because clients find CAs by name.
    pub fn new() -> Certificates {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        // The host name matters only if the CA's certificate is served as a server's.
        let mut params = params_for("127.0.0.1");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = format!("Mock CA {}", COUNT.fetch_add(1, Ordering::SeqCst));
        params.distinguished_name.push(DnType::CommonName, name);
        let ca = CertifiedIssuer::self_signed(params, new_key()).unwrap();
        Certificates {
            ca_pem: ca.pem(),
            ca,
        }
    }

    /// Configures a server with a valid certificate for this host.
    pub fn server(&self, name: &str) -> Arc<ServerConfig> {
        self.issue(anonymous_clients(), params_for(name))
    }

    /// Configures a server whose certificate expired in 2020.
    pub fn expired_server(&self, name: &str) -> Arc<ServerConfig> {
        let mut params = params_for(name);
        params.not_before = rcgen::date_time_ymd(2019, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        self.issue(anonymous_clients(), params)
    }

    /// Configures a server that requires a client certificate and speaks one version of TLS.
    pub fn requiring_client_certificate(
        &self,
        name: &str,
        version: &'static SupportedProtocolVersion,
    ) -> Arc<ServerConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder(roots.into()).build().unwrap();
        let builder = ServerConfig::builder_with_protocol_versions(&[version])
            .with_client_cert_verifier(verifier);
        self.issue(builder, params_for(name))
    }

    /// Configures a server that presents the CA's own certificate as the server's.
    pub fn ca_as_server(&self) -> Arc<ServerConfig> {
        let certificate = self.ca.der().clone();
        configure(anonymous_clients(), certificate, self.ca.key())
    }

    /// Issues a certificate and configures a server with it.
    fn issue(&self, builder: Builder, params: CertificateParams) -> Arc<ServerConfig> {
        let key = new_key();
        let certificate = params.signed_by(&key, &self.ca).unwrap();
        configure(builder, certificate.into(), &key)
    }
}

/// A configuration that lacks only the certificate.
type Builder = ConfigBuilder<ServerConfig, WantsServerCert>;

fn anonymous_clients() -> Builder {
    ServerConfig::builder().with_no_client_auth()
}

/// Generates a key whose signatures have a fixed length, so handshakes have one, too.
fn new_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ED25519).unwrap()
}

fn params_for(name: &str) -> CertificateParams {
    CertificateParams::new([name.to_owned()]).unwrap()
}

fn configure(
    builder: Builder,
    certificate: CertificateDer<'static>,
    key: &KeyPair,
) -> Arc<ServerConfig> {
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    Arc::new(builder.with_single_cert(vec![certificate], key).unwrap())
}
