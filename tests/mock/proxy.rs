//! A mock proxy on loopback that speaks CONNECT and SOCKS, and connects to one portal whatever host is requested.

use std::io::{ErrorKind, Result};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustls::{ServerConnection, StreamOwned};

use super::Tls;
use super::connection::{Stream, read, read_until};

/// What the proxy does with a request.
pub enum Behavior {
    Forward,
    /// Sends these bytes one at a time with a pause before each, and closes the connection.
    Answer(Vec<u8>, Duration),
    /// Forwards the first connection, and answers the others like that.
    ForwardOnce(Vec<u8>, Duration),
}

/// A running proxy, which serves until the test process ends.
pub struct MockProxy {
    pub at: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl MockProxy {
    /// Starts a proxy in front of a portal; with `tls`, clients reach it over TLS.
    pub fn start(portal: SocketAddr, tls: Tls, behavior: Behavior) -> MockProxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = listener.local_addr().unwrap();
        let requests = Arc::default();
        let server = Server {
            portal,
            tls,
            behavior,
            requests: Arc::clone(&requests),
        };
        thread::spawn(move || {
            for client in listener.incoming() {
                // The client may end the connection at any point; the test decides whether that is right.
                let _ = server.serve(client.unwrap());
            }
        });
        MockProxy { at, requests }
    }

    /// Returns the requests so far: the header of a CONNECT; user, password and host of SOCKS.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// What the thread of a proxy needs.
struct Server {
    portal: SocketAddr,
    tls: Tls,
    behavior: Behavior,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn serve(&self, tcp: TcpStream) -> Result<()> {
        tcp.set_nodelay(true)?;
        let client = &mut *self.accept(tcp.try_clone()?);
        let first = read(client, 1)?[0];
        let request = match first {
            4 => read_socks4(client)?,
            5 => read_socks5(client)?,
            _ => char::from(first).to_string() + &read_until(client, "\r\n\r\n")?,
        };
        let mut requests = self.requests.lock().unwrap();
        requests.push(request);
        let is_first = requests.len() == 1;
        drop(requests);
        match &self.behavior {
            Behavior::Answer(bytes, pause) => return send_slowly(client, bytes, *pause),
            Behavior::ForwardOnce(bytes, pause) if !is_first => {
                return send_slowly(client, bytes, *pause);
            }
            _ => {}
        }
        let granted: &[u8] = match first {
            4 => &[0, 90, 0, 0, 0, 0, 0, 0],
            5 => &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0],
            _ => b"HTTP/1.1 200 Connection established\r\n\r\n",
        };
        client.write_all(granted)?;

        let portal = &mut TcpStream::connect(self.portal)?;
        portal.set_nodelay(true)?;
        // A TLS stream can't be split into two, so one thread polls both directions.
        let pause = Some(Duration::from_millis(1));
        tcp.set_read_timeout(pause)?;
        portal.set_read_timeout(pause)?;
        while copy(client, portal)? && copy(portal, client)? {}
        Ok(())
    }

    fn accept(&self, tcp: TcpStream) -> Box<dyn Stream> {
        let Some(config) = self.tls.clone() else {
            return Box::new(tcp);
        };
        let tls = ServerConnection::new(config).unwrap();
        Box::new(StreamOwned::new(tls, tcp))
    }
}

fn send_slowly(client: &mut dyn Stream, bytes: &[u8], pause: Duration) -> Result<()> {
    for byte in bytes {
        thread::sleep(pause);
        client.write_all(&[*byte])?;
        client.flush()?;
    }
    Ok(())
}

/// Copies what has arrived, and returns false at the end.
fn copy(from: &mut dyn Stream, to: &mut dyn Stream) -> Result<bool> {
    let mut buffer = [0; 16 * 1024];
    let length = match from.read(&mut buffer) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
        read => read?,
    };
    to.write_all(&buffer[..length])?;
    to.flush()?;
    Ok(length > 0)
}

/// Reads the rest of a SOCKS 4a request: a port, an address, a user and a host.
fn read_socks4(client: &mut dyn Stream) -> Result<String> {
    read(client, 7)?;
    let user = read_until(client, "\0")?;
    let host = read_until(client, "\0")?;
    Ok(format!("{user}{host}").replace('\0', ""))
}

/// Reads a SOCKS 5 request (RFC 1928), and a user and a password if the client offers them (RFC 1929).
fn read_socks5(client: &mut dyn Stream) -> Result<String> {
    let mut request = String::new();
    let has_password = read_counted(client)?.contains('\u{2}');
    if has_password {
        client.write_all(&[5, 2])?;
        read(client, 1)?;
        let user = read_counted(client)?;
        let password = read_counted(client)?;
        request = format!("{user} {password} ");
        client.write_all(&[1, 0])?;
    } else {
        client.write_all(&[5, 0])?;
    }
    let kind = read(client, 4)?[3];
    if kind == 3 {
        request += &read_counted(client)?;
    } else {
        request += &format!("an address of type {kind}");
    }
    read(client, 2)?;
    Ok(request)
}

/// Reads text preceded by its length.
fn read_counted(client: &mut dyn Stream) -> Result<String> {
    let length = read(client, 1)?[0];
    let text = read(client, length.into())?;
    Ok(String::from_utf8(text).unwrap())
}
