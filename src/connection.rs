//! The connection to the portal: ureq's own, with links of ours. No file but this one and portal.rs
//! names ureq.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use rustls::AlertDescription;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectProxyConnector, ConnectionDetails, Connector, NextTimeout, RustlsConnector,
    SocksConnector, TcpConnector, Transport,
};
use ureq::{Agent, ProxyProtocol};

use crate::signal;

/// In TLS 1.3 the portal says only after the handshake that it wants a client's certificate, and by
/// then a request is on its way.
pub const CLIENT_CERTIFICATE: &str = "it demands a client certificate";

/// Errors that are a connection's end.
const ENDS: [io::ErrorKind; 3] =
    [io::ErrorKind::ConnectionReset, io::ErrorKind::ConnectionAborted, io::ErrorKind::UnexpectedEof];

/// ureq with its own chain of connectors, and two links of ours in it.
pub fn agent(config: Config) -> Agent {
    let connector =
        ().chain(Number)
            .chain(SocksConnector::default())
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

/// Whether the portal demands a client's certificate.
pub fn demands_certificate(error: &ureq::Error) -> bool {
    rustls_error(error) == Some(&rustls::Error::AlertReceived(AlertDescription::CertificateRequired))
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
static PROBING: AtomicBool = AtomicBool::new(false);

/// The number of the connection's socket: ureq does not give it out.
static SOCKET: AtomicI32 = AtomicI32::new(-1);

/// The first link: notes the number that the next socket gets. On one thread that is the lowest that is
/// free (socket(2) in POSIX); what a look-up of a name opens, it closes again.
#[derive(Debug)]
struct Number;

impl Connector for Number {
    type Out = ();

    fn connect(&self, _: &ConnectionDetails, _: Option<()>) -> Result<Option<()>, ureq::Error> {
        // SAFETY: plain system calls, and the descriptor is this function's own.
        unsafe {
            let free = libc::dup(libc::STDERR_FILENO);
            libc::close(free);
            SOCKET.store(free, Ordering::Relaxed);
        }
        Ok(None)
    }
}

/// Whether the socket has bytes or a close to read.
fn is_readable() -> bool {
    let mut socket = libc::pollfd { fd: SOCKET.load(Ordering::Relaxed), events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure is passed, and it is valid.
    unsafe { libc::poll(&mut socket, 1, 0) == 1 }
}

/// The link below TLS. While the connection is probed, it says that nothing has come yet, where it would
/// otherwise wait for the socket.
#[derive(Debug)]
struct Floor;

impl<In: Transport> Connector<In> for Floor {
    type Out = Floored<In>;

    fn connect(
        &self,
        details: &ConnectionDetails,
        connection: Option<In>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        // The tunnel through a CONNECT proxy has a floor of its own, below TLS to the proxy.
        let connect =
            |proxy: &ureq::Proxy| matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https);
        let lowest = !details.config.proxy().is_some_and(connect);
        Ok(connection.map(|connection| Floored { connection, lowest }))
    }
}

#[derive(Debug)]
struct Floored<T> {
    connection: T,
    lowest: bool,
}

impl<T: Transport> Transport for Floored<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.connection.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.connection.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        match self.lowest && PROBING.load(Ordering::Relaxed) && !is_readable() {
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
        if to_portal && !watched.is_clean()? {
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
    /// Whether neither the socket nor the buffers of TLS and ureq hold a byte or a close. What is a byte
    /// shows only when it is read through TLS: a session ticket is none.
    ///
    /// # Errors
    ///
    /// What else waited there, such as an alert.
    fn is_clean(&mut self) -> Result<bool, ureq::Error> {
        PROBING.store(true, Ordering::Relaxed);
        let input = self.connection.await_input(NextTimeout::default());
        PROBING.store(false, Ordering::Relaxed);
        match input {
            Err(ureq::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                Ok(self.connection.buffers().input().is_empty())
            }
            input => input.map(|_| false),
        }
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
        match &input {
            Err(error) if !self.replied && demands_certificate(error) => {
                Err(ureq::Error::Tls(CLIENT_CERTIFICATE))
            }
            // To ureq a body without a length may end like this. To us it is cut short.
            Err(ureq::Error::Io(error)) if ENDS.contains(&error.kind()) => {
                Err(io::Error::other(error.to_string()).into())
            }
            _ => {
                self.replied |= matches!(input, Ok(true));
                input
            }
        }
    }

    /// Asked before each request on a kept connection.
    fn is_open(&mut self) -> bool {
        self.is_clean().unwrap_or(false)
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
