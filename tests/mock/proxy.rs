//! A mock proxy on loopback that speaks CONNECT and SOCKS, and connects to one portal whatever host is requested.

use std::io::{self, ErrorKind};
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
}

type Seen = Mutex<Vec<String>>;

/// A running proxy, which serves until the test process ends.
pub struct MockProxy {
    pub at: SocketAddr,
    requests: Arc<Seen>,
}

impl MockProxy {
    /// Starts a proxy in front of a portal; with `tls`, clients reach it over TLS.
    pub fn start(portal: SocketAddr, tls: Tls, behavior: Behavior) -> MockProxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = listener.local_addr().unwrap();
        let requests = Arc::<Seen>::default();
        let seen = requests.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                // The client may end the connection at any point; the test decides whether that is right.
                let _ = serve(client.unwrap(), portal, tls.clone(), &behavior, &seen);
            }
        });
        MockProxy { at, requests }
    }

    /// Returns the requests so far: the header of a CONNECT; user, password and host of SOCKS.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(
    tcp: TcpStream,
    portal: SocketAddr,
    tls: Tls,
    behavior: &Behavior,
    seen: &Seen,
) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let mut client: Box<dyn Stream> = match tls {
        Some(tls) => Box::new(StreamOwned::new(
            ServerConnection::new(tls).unwrap(),
            tcp.try_clone()?,
        )),
        None => Box::new(tcp.try_clone()?),
    };
    let client = &mut *client;
    let (request, answer): (_, &[u8]) = match read(client, 1)?[0] {
        5 => (socks5(client)?, &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
        4 => {
            read(client, 7)?;
            let request = read_until(client, "\0")? + &read_until(client, "\0")?;
            (request.replace('\0', ""), &[0, 90, 0, 0, 0, 0, 0, 0])
        }
        first => {
            let request = char::from(first).to_string() + &read_until(client, "\r\n\r\n")?;
            (request, b"HTTP/1.1 200 Connection established\r\n\r\n")
        }
    };
    seen.lock().unwrap().push(request);
    if let Behavior::Answer(bytes, pause) = behavior {
        return bytes.iter().try_for_each(|byte| {
            thread::sleep(*pause);
            client.write_all(&[*byte]).and_then(|()| client.flush())
        });
    }
    client.write_all(answer)?;
    let portal = &mut TcpStream::connect(portal)?;
    portal.set_nodelay(true)?;
    // A TLS stream can't be split into two, so one thread polls both directions.
    tcp.set_read_timeout(Some(Duration::from_millis(1)))?;
    portal.set_read_timeout(Some(Duration::from_millis(1)))?;
    while copy(client, portal)? && copy(portal, client)? {}
    Ok(())
}

/// Copies what has arrived, and returns false at the end.
fn copy(from: &mut dyn Stream, to: &mut dyn Stream) -> io::Result<bool> {
    let mut buffer = [0; 16 * 1024];
    let length = match from.read(&mut buffer) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
        read => read?,
    };
    to.write_all(&buffer[..length])?;
    to.flush()?;
    Ok(length > 0)
}

/// Reads a SOCKS 5 request (RFC 1928), and a user and a password if the client offers them (RFC 1929).
fn socks5(client: &mut dyn Stream) -> io::Result<String> {
    let mut request = String::new();
    let has_password = read_counted(client)?.contains('\u{2}');
    client.write_all(&[5, if has_password { 2 } else { 0 }])?;
    if has_password {
        read(client, 1)?;
        request = format!("{} {} ", read_counted(client)?, read_counted(client)?);
        client.write_all(&[1, 0])?;
    }
    request += &match read(client, 4)?[3] {
        3 => read_counted(client)?,
        kind => format!("an address of type {kind}"),
    };
    read(client, 2)?;
    Ok(request)
}

/// Reads text preceded by its length.
fn read_counted(client: &mut dyn Stream) -> io::Result<String> {
    let length = read(client, 1)?[0];
    Ok(String::from_utf8(read(client, length.into())?).unwrap())
}
