//! A small proxy on loopback: CONNECT and SOCKS, all of it to one stand-in, whatever the name asked for.
#![allow(dead_code, clippy::unwrap_used)]

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::portal::Stream;

/// What the proxy does once it has been asked.
#[derive(Clone)]
pub enum Then {
    /// Lets the connection through.
    Through,
    /// Lets the connection through, with these bytes instead of its own.
    Blurt(Vec<u8>),
    /// Answers with these bytes, one at a time with a pause, and ends the connection.
    Answer(Vec<u8>, Duration),
}

/// A running proxy.
pub struct Proxy {
    /// Where it listens.
    pub at: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// A proxy on the way to a stand-in, spoken to over TLS or not.
    pub fn start(portal: SocketAddr, tls: Option<Arc<ServerConfig>>, then: Then) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = listener.local_addr().unwrap();
        let (asked, stop) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicBool>::default());
        let (told, stopped) = (asked.clone(), stop.clone());
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                // What the client does to a connection is for the test to judge.
                let _ = serve(stream.unwrap(), portal, tls.clone(), &then, &told, &stopped);
            }
        });
        Proxy { at, asked, stop, thread: Some(thread) }
    }

    /// What it was asked, connection by connection.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.at);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    client: TcpStream,
    portal: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    then: &Then,
    asked: &Mutex<Vec<String>>,
    stop: &AtomicBool,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    let socket = client.try_clone()?;
    let mut client: Box<dyn Stream> = match tls {
        Some(config) => {
            Box::new(StreamOwned::new(ServerConnection::new(config).map_err(io::Error::other)?, client))
        }
        None => Box::new(client),
    };
    let mut first = [0];
    client.read_exact(&mut first)?;
    let (question, answer) = match first[0] {
        5 => socks5(&mut *client)?,
        4 => socks4(&mut *client)?,
        first => connect(&mut *client, first)?,
    };
    asked.lock().unwrap().push(question);
    match then {
        Then::Answer(bytes, pause) => {
            for byte in bytes {
                client.write_all(&[*byte])?;
                client.flush()?;
                thread::sleep(*pause);
            }
            Ok(())
        }
        Then::Through | Then::Blurt(_) => {
            client.write_all(if let Then::Blurt(bytes) = then { bytes } else { &answer })?;
            client.flush()?;
            relay(client, &socket, TcpStream::connect(portal)?, stop)
        }
    }
}

fn connect(client: &mut dyn Stream, first: u8) -> io::Result<(String, Vec<u8>)> {
    let mut head = vec![first];
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok((String::from_utf8(head).unwrap(), b"HTTP/1.1 200 Connection established\r\n\r\n".to_vec()))
}

/// RFC 1928, and RFC 1929 where the client offers a user and a password.
fn socks5(client: &mut dyn Stream) -> io::Result<(String, Vec<u8>)> {
    let methods = counted(client)?;
    let mut question = String::new();
    if methods.contains(&2) {
        client.write_all(&[5, 2])?;
        client.flush()?;
        client.read_exact(&mut [0])?;
        for _ in 0..2 {
            question += &String::from_utf8(counted(client)?).unwrap();
            question.push(' ');
        }
        client.write_all(&[1, 0])?;
    } else {
        client.write_all(&[5, 0])?;
    }
    client.flush()?;
    let mut head = [0; 4];
    client.read_exact(&mut head)?;
    question += &match head[3] {
        3 => String::from_utf8(counted(client)?).unwrap(),
        kind => format!("an address of kind {kind}"),
    };
    client.read_exact(&mut [0; 2])?;
    Ok((question, vec![5, 0, 0, 1, 0, 0, 0, 0, 0, 0]))
}

/// SOCKS 4a: the name stands behind an address that is none.
fn socks4(client: &mut dyn Stream) -> io::Result<(String, Vec<u8>)> {
    client.read_exact(&mut [0; 7])?;
    let user = until_zero(client)?;
    let name = until_zero(client)?;
    Ok((format!("{user}{name}"), vec![0, 90, 0, 0, 0, 0, 0, 0]))
}

fn counted(client: &mut dyn Stream) -> io::Result<Vec<u8>> {
    let mut length = [0];
    client.read_exact(&mut length)?;
    let mut bytes = vec![0; length[0].into()];
    client.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn until_zero(client: &mut dyn Stream) -> io::Result<String> {
    let mut text = vec![];
    loop {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        match byte[0] {
            0 => return Ok(String::from_utf8(text).unwrap()),
            byte => text.push(byte),
        }
    }
}

/// Carries bytes both ways until one side ends. Looks at each in turn, as a TLS stream is no two.
fn relay(
    mut client: Box<dyn Stream>,
    socket: &TcpStream,
    mut portal: TcpStream,
    stop: &AtomicBool,
) -> io::Result<()> {
    portal.set_nodelay(true)?;
    for socket in [socket, &portal] {
        socket.set_read_timeout(Some(Duration::from_millis(1)))?;
    }
    let mut buffer = [0; 16 * 1024];
    while !stop.load(Ordering::SeqCst) {
        for from_client in [true, false] {
            let (from, to): (&mut dyn Stream, &mut dyn Stream) = match from_client {
                true => (&mut *client, &mut portal),
                false => (&mut portal, &mut *client),
            };
            match from.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    to.write_all(&buffer[..n])?;
                    to.flush()?;
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}
