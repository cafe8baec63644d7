//! The connection of a request: where it goes, and whether a byte of the request may have left.
//!
//! ureq makes the connections. It asks for addresses through [`Resolver`], and the last link of its
//! chain of connectors puts a [`Watched`] around each connection.

use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

use crate::address::{Proxy, Url};
use crate::call::Call;
use crate::error::State;
use crate::signal;

/// What is known of the connection of the current request. Clones share it.
#[derive(Debug, Clone)]
pub struct Connection(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    /// The peer: the proxy or the portal.
    host: String,
    port: u16,
    is_proxied: bool,
    /// All addresses of the host, or none if it has to be resolved.
    addresses: Vec<SocketAddr>,
    call: Call,
    /// Whether a byte of the request may have left.
    sent: bool,
    /// When to stop waiting for the reply.
    deadline: Option<Instant>,
}

impl Connection {
    /// Resolves nothing yet.
    pub fn new(url: &Url, proxy: Option<&Proxy>) -> Connection {
        let (host, port) = match proxy {
            Some(proxy) => (proxy.host(), proxy.inner.port()),
            None => (url.host.as_str(), url.port),
        };
        Connection(Arc::new(Mutex::new(Inner {
            host: host.to_owned(),
            port,
            is_proxied: proxy.is_some(),
            addresses: vec![],
            call: Call::SignIn,
            sent: false,
            deadline: None,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("never poisoned")
    }

    /// Prepares for a request. Resolves the host, if its addresses are not known.
    pub fn prepare(&self, call: Call) -> io::Result<()> {
        let mut inner = self.lock();
        inner.call = call;
        inner.sent = false;
        inner.deadline = match call {
            Call::Expiry => Some(Instant::now() + Duration::from_secs(5)),
            _ => None,
        };
        if inner.addresses.is_empty() {
            inner.addresses = resolve(&inner.host, inner.port)?;
        }
        Ok(())
    }

    /// Waits no longer than this for the rest of the reply. An earlier limit stays in force.
    pub fn limit_wait(&self, to: Duration) {
        self.lock().deadline.get_or_insert(Instant::now() + to);
    }

    /// Returns the addresses that were tried in vain, as in ` (127.0.0.9)`, and forgets them: the
    /// host may have moved. Returns none if a byte of the request may have left.
    pub fn take_addresses(&self) -> Option<String> {
        let mut inner = self.lock();
        if inner.sent {
            return None;
        }
        let addresses = mem::take(&mut inner.addresses);
        let mut shown = vec![];
        for address in addresses.iter().take(3) {
            shown.push(address.ip().to_string());
        }
        if shown.is_empty() || shown == [inner.host.as_str()] {
            return Some(String::new());
        }
        let more = addresses.len() - shown.len();
        if more > 0 {
            shown.push(format!("and {more} more"));
        }
        Some(format!(" ({})", shown.join(", ")))
    }
}

fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    // An image without /etc/hosts would ask DNS for it, and send the key to whatever address it returns.
    if host == "localhost" {
        return Ok(vec![
            (Ipv4Addr::LOCALHOST, port).into(),
            (Ipv6Addr::LOCALHOST, port).into(),
        ]);
    }
    // A black-holed IPv6 address is common in containers and CI runners, and uses up the time to
    // connect. Where there is no IPv4, it fails at once. So IPv4 comes first.
    let mut addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    Ok(addresses)
}

/// ureq asks before each request. The answer is known by then, so ureq needs no thread for it.
impl Resolver for Connection {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let mut addresses = self.empty();
        // It has room for 16.
        for address in self.lock().addresses.iter().take(16) {
            addresses.push(*address);
        }
        Ok(addresses)
    }
}

impl<In: Transport> Connector<In> for Connection {
    type Out = Watched<In>;

    fn connect(
        &self,
        details: &ConnectionDetails,
        inner: Option<In>,
    ) -> Result<Option<Watched<In>>, Error> {
        // For a CONNECT proxy, ureq builds the chain twice. The one without a proxy in its
        // configuration carries only the CONNECT.
        let is_to_proxy = self.lock().is_proxied && details.config.proxy().is_none();
        Ok(inner.map(|inner| Watched {
            inner,
            connection: self.clone(),
            is_to_proxy,
        }))
    }
}

/// Wraps a connection that is ready for requests. The bytes of a TLS handshake pass below it, and do
/// not count.
#[derive(Debug)]
pub struct Watched<T> {
    inner: T,
    connection: Connection,
    is_to_proxy: bool,
}

impl<T: Transport> Transport for Watched<T> {
    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if !self.is_to_proxy {
            let mut connection = self.connection.lock();
            if connection.call == Call::Regenerate {
                signal::enter(State::Unknown);
            }
            connection.sent = true;
        }
        self.inner.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, mut timeout: NextTimeout) -> Result<bool, Error> {
        if let Some(deadline) = self.connection.lock().deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            timeout.after = timeout.after.min(left.into());
        }
        self.inner.await_input(timeout)
    }

    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}
