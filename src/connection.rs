//! The connection to the portal: ureq's own, with links of ours. No file but this one and portal.rs
//! names ureq.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::AlertDescription;
use ureq::Agent;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectProxyConnector, ConnectionDetails, Connector, NextTimeout, RustlsConnector,
    SocksConnector, TcpConnector, Transport,
};

use crate::signal;

/// In TLS 1.3 the portal says only after the handshake that it wants a client's certificate, and by
/// then a request is on its way.
pub const CLIENT_CERTIFICATE: &str = "it demands a client certificate";

/// ureq with its own chain of connectors, and two links of ours in it.
pub fn agent(config: Config) -> Agent {
    let connector =
        ().chain(SocksConnector::default())
            .chain(ConnectProxyConnector::default())
            .chain(TcpConnector::default())
            .chain(Floor)
            .chain(RustlsConnector::default())
            .chain(Watch { proxied: config.proxy().is_some() });
    Agent::with_parts(config, connector, OneLookup::default())
}

/// An error of rustls's own: in a handshake, that of a certificate, a version or an alert. It comes
/// inside an I/O error.
pub fn rustls_error(error: &ureq::Error) -> Option<&rustls::Error> {
    let ureq::Error::Io(error) = error else { return None };
    error.get_ref()?.downcast_ref()
}

/// Looks the one host of the run up once, for all requests: the portal's, or its proxy's, as each
/// kind of proxy that is used looks the portal's name up itself. ureq asks before each request, and
/// with a timeout set it would ask on a thread of its own: here the timer ends what takes too long.
#[derive(Debug, Default)]
struct OneLookup(OnceLock<ResolvedSocketAddrs>);

impl Resolver for OneLookup {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        if let Some(found) = self.0.get() {
            return Ok(found.clone());
        }
        // Without a timeout ureq starts no thread.
        let found = DefaultResolver::default().resolve(uri, config, NextTimeout::default())?;
        Ok(self.0.get_or_init(|| found).clone())
    }
}

/// Set while a connection is probed for buffered bytes: see [`Watched::is_clean`].
static ASKING: AtomicBool = AtomicBool::new(false);

/// The link below TLS. While the connection is asked what it holds, it says that nothing has come yet,
/// where it would otherwise wait for the socket.
#[derive(Debug)]
struct Floor;

impl<In: Transport> Connector<In> for Floor {
    type Out = Floored<In>;

    fn connect(
        &self,
        _: &ConnectionDetails,
        connection: Option<In>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        Ok(connection.map(|connection| Floored { connection }))
    }
}

#[derive(Debug)]
struct Floored<T> {
    connection: T,
}

impl<T: Transport> Transport for Floored<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.connection.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.connection.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        match ASKING.load(Ordering::Relaxed) {
            true => Err(io::Error::from(io::ErrorKind::WouldBlock).into()),
            false => self.connection.await_input(timeout),
        }
    }

    fn is_open(&mut self) -> bool {
        self.connection.is_open()
    }

    fn is_tls(&self) -> bool {
        self.connection.is_tls()
    }
}

/// The last link. It notes when bytes of a request leave: it stands above TLS and the proxy, so that
/// their handshakes don't count. And it sees that nothing waits on a connection before a request
/// leaves on it: what came earlier is no reply to it.
///
/// ureq runs the chain for the connection to a CONNECT proxy too, without a proxy set. What leaves
/// there does not count.
#[derive(Debug)]
struct Watch {
    proxied: bool,
}

impl<In: Transport> Connector<In> for Watch {
    type Out = Watched<In>;

    fn connect(
        &self,
        details: &ConnectionDetails,
        connection: Option<In>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        let to_portal = !self.proxied || details.config.proxy().is_some();
        let Some(connection) = connection else { return Ok(None) };
        let mut watched = Watched { connection, to_portal, replied: false };
        // Over TLS, the socket may hold the handshake's session tickets by now.
        if to_portal && !(watched.is_clean() && (watched.is_tls() || watched.connection.is_open())) {
            return Err(io::Error::other("bytes came before the request was sent").into());
        }
        Ok(Some(watched))
    }
}

#[derive(Debug)]
struct Watched<T> {
    connection: T,
    to_portal: bool,
    /// Whether a byte has come: from then on the handshake is over for the portal too.
    replied: bool,
}

impl<T: Transport> Watched<T> {
    /// Whether neither ureq's buffers nor those of TLS hold a byte or a close. What rustls has read
    /// and not handed out shows only when it is read.
    fn is_clean(&mut self) -> bool {
        ASKING.store(true, Ordering::Relaxed);
        let input = self.connection.await_input(NextTimeout::default());
        ASKING.store(false, Ordering::Relaxed);
        let nothing_yet = |error: &ureq::Error| matches!(error, ureq::Error::Io(error) if error.kind() == io::ErrorKind::WouldBlock);
        input.as_ref().is_err_and(nothing_yet) && self.connection.buffers().input().is_empty()
    }
}

impl<T: Transport> Transport for Watched<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.connection.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        if self.to_portal {
            signal::sent();
        }
        self.connection.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let input = self.connection.await_input(timeout);
        let demanded = rustls::Error::AlertReceived(AlertDescription::CertificateRequired);
        match &input {
            Err(error) if !self.replied && rustls_error(error) == Some(&demanded) => {
                Err(ureq::Error::Tls(CLIENT_CERTIFICATE))
            }
            _ => {
                self.replied |= matches!(input, Ok(true));
                input
            }
        }
    }

    /// Asked before each request on a kept connection.
    fn is_open(&mut self) -> bool {
        self.is_clean() && self.connection.is_open()
    }

    fn is_tls(&self) -> bool {
        self.connection.is_tls()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use ureq::unversioned::transport::LazyBuffers;

    use crate::error::State;

    #[test]
    fn a_host_is_looked_up_once_and_on_no_other_thread() {
        let lookup = OneLookup::default();
        // A timeout that is over: ureq's own resolver would fail at once.
        let timeout = NextTimeout { after: Duration::ZERO.into(), ..NextTimeout::default() };
        let look_up = |uri: &'static str| {
            let found = lookup.resolve(&Uri::from_static(uri), &Config::default(), timeout);
            found.expect("an address needs no lookup")[0]
        };
        let first = look_up("http://127.0.0.1:1");
        assert_eq!(look_up("http://127.0.0.1:2"), first);
    }

    #[derive(Debug)]
    struct Broken(LazyBuffers);

    impl Transport for Broken {
        fn buffers(&mut self) -> &mut dyn Buffers {
            &mut self.0
        }

        fn transmit_output(&mut self, _: usize, _: NextTimeout) -> Result<(), ureq::Error> {
            Err(io::Error::from(io::ErrorKind::ConnectionReset).into())
        }

        fn await_input(&mut self, _: NextTimeout) -> Result<bool, ureq::Error> {
            Ok(false)
        }

        fn is_open(&mut self) -> bool {
            true
        }
    }

    #[test]
    fn a_byte_counts_as_sent_before_it_leaves() {
        for to_portal in [true, false] {
            signal::note("", State::Unreached);
            let mut watched =
                Watched { connection: Broken(LazyBuffers::new(1, 1)), to_portal, replied: false };
            assert!(watched.transmit_output(1, NextTimeout::default()).is_err());
            assert_eq!(signal::is_sent(), to_portal);
        }
    }
}
