//! The connection of a request: where it goes, and whether a byte of the request may have left.
//!
//! ureq makes the connections. It asks for addresses through [`Resolver`], and the markers at both
//! ends of its chain of connectors tell when a connection is made and when it is ready.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{ConnectionDetails, Connector, NextTimeout, Transport};

use crate::address::{Proxy, Url};
use crate::call::Call;
use crate::error::State;
use crate::signal;

/// The time limit to connect.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// ureq has room for no more addresses.
const MAX_ADDRESSES: usize = 16;

#[derive(Debug, Clone)]
pub struct Connection(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    /// What is connected to: the proxy, or the portal.
    host: String,
    port: u16,
    is_proxied: bool,
    /// All addresses of the host, or none if it is not resolved yet.
    addresses: Vec<SocketAddr>,
    /// Whether a byte of the request may have left.
    is_ready: bool,
    /// Whether the request can be sent again.
    is_idempotent: bool,
}

impl Connection {
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
            is_ready: false,
            is_idempotent: true,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prepares for a request. Resolves the host, if its addresses are not known.
    pub fn prepare(&self, call: Call) -> io::Result<()> {
        let mut inner = self.lock();
        inner.is_ready = false;
        if inner.addresses.is_empty() {
            inner.addresses = resolve(&inner.host, inner.port)?;
        }
        inner.is_idempotent = call.is_idempotent();
        // ureq does not say that it reuses a connection, which is ready. The PATCH never gets one.
        inner.is_ready = inner.is_idempotent;
        Ok(())
    }

    /// Returns true if a byte of the request may have left.
    pub fn is_ready(&self) -> bool {
        self.lock().is_ready
    }

    /// The host may have moved.
    pub fn forget_addresses(&self) {
        self.lock().addresses.clear();
    }

    /// Returns the marker for the beginning of ureq's chain.
    pub fn begin(&self) -> Marker {
        Marker {
            connection: self.clone(),
            is_ready: false,
        }
    }

    /// Returns the marker for its end. What TLS and the proxy send before does not count.
    pub fn ready(&self) -> Marker {
        Marker {
            connection: self.clone(),
            is_ready: true,
        }
    }
}

fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    // An image without /etc/hosts would ask DNS for it, and send the key to the answer.
    if host == "localhost" {
        return Ok(vec![
            (Ipv4Addr::LOCALHOST, port).into(),
            (Ipv6Addr::LOCALHOST, port).into(),
        ]);
    }
    Ok((host, port).to_socket_addrs()?.collect())
}

/// ureq asks before each request. The answer is known by then, so ureq needs no thread for it.
impl Resolver for Connection {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let mut addresses = self.empty();
        for address in self.lock().addresses.iter().take(MAX_ADDRESSES) {
            addresses.push(*address);
        }
        Ok(addresses)
    }
}

#[derive(Debug)]
pub struct Marker {
    connection: Connection,
    is_ready: bool,
}

impl<In: Transport> Connector<In> for Marker {
    type Out = In;

    fn connect(&self, details: &ConnectionDetails, inner: Option<In>) -> Result<Option<In>, Error> {
        let mut connection = self.connection.lock();
        // For a CONNECT proxy ureq runs the chain twice. The run without a proxy in the
        // configuration connects to the proxy itself.
        if connection.is_proxied && details.config.proxy().is_none() {
            return Ok(inner);
        }
        connection.is_ready = self.is_ready;
        if self.is_ready && !connection.is_idempotent {
            signal::enter(State::Unknown);
        }
        Ok(inner)
    }
}
