//! A mock of a portal on loopback: it answers as a script says, byte by byte.
#![allow(dead_code, clippy::unwrap_used)] // Each user needs only a part of it, and a mock may panic.

pub mod certificates;
mod connection;
pub mod proxy;
mod replies;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use connection::{State, serve};
pub use replies::*;
use rustls::{HandshakeKind, ServerConfig};

pub enum Action {
    /// Sends these bytes, even a body in reply to a HEAD.
    Send(Vec<u8>),
    /// Sends these bytes without encrypting them.
    SendBelowTls(Vec<u8>),
    Sleep(Duration),
    /// Waits until the test drops or uses the sender.
    WaitFor(Receiver<()>),
    /// Resets the connection once it has sent this many bytes; for an accepted connection.
    ResetAfter(usize),
    Close,
    Reset,
    /// Stays silent until the client closes the connection.
    Hang,
}

/// One event that the script expects, and what the mock then does.
pub enum Expect {
    /// A connection, before anything is read from it.
    Connection(Vec<Action>),
    Handshake(Vec<Action>),
    /// A request, named as in `PATCH regenerate`.
    Request(&'static str, Vec<Action>),
}

#[derive(Debug, Clone)]
pub struct Request {
    /// The number of its connection, from 1.
    pub connection: usize,
    pub method: String,
    pub target: String,
    /// The header fields, with names in lower case.
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Request {
    /// Returns the value of a header field, which may occur only once.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self
            .headers
            .iter()
            .filter(|(field, _)| field == name)
            .map(|(_, value)| &**value);
        let value = values.next();
        assert!(values.next().is_none(), "{name} occurs twice: {self:?}");
        value
    }

    /// Returns the method and the last part of the path, as in the program's log.
    pub fn name(&self) -> String {
        let last = self.target.rsplit('/').next().unwrap_or_default();
        let last = if self.target.ends_with(&format!("/clients/{last}")) {
            "client"
        } else {
            last
        };
        format!("{} {last}", self.method)
    }
}

/// The configuration of a mock that is reached over TLS.
pub type Tls = Option<Arc<ServerConfig>>;

/// A running mock, which stops when it is dropped, and then fails the test if the script was not followed.
pub struct MockPortal {
    pub at: SocketAddr,
    scheme: &'static str,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

impl MockPortal {
    pub fn new(script: Vec<Expect>) -> MockPortal {
        MockPortal::start(None, script)
    }

    pub fn tls(server: Arc<ServerConfig>, script: Vec<Expect>) -> MockPortal {
        MockPortal::start(Some(server), script)
    }

    /// Starts a mock that follows a script, with or without TLS.
    pub fn start(tls: Tls, script: Vec<Expect>) -> MockPortal {
        let script = script.into_iter().map(|expected| match expected {
            Expect::Connection(actions) => ("a connection", actions),
            Expect::Handshake(actions) => ("a TLS handshake", actions),
            Expect::Request(name, actions) => (name, actions),
        });
        MockPortal::listen(
            tls,
            State {
                script: script.collect(),
                ..State::default()
            },
        )
    }

    /// Starts a mock that computes its replies to any number of requests.
    pub fn answering(
        tls: Tls,
        answer: impl FnMut(&Request) -> Vec<u8> + Send + 'static,
    ) -> MockPortal {
        MockPortal::listen(
            tls,
            State {
                answer: Some(Box::new(answer)),
                ..State::default()
            },
        )
    }

    /// Listens on a free port, with a thread for each connection.
    fn listen(tls: Tls, state: State) -> MockPortal {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = listener.local_addr().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        let serve_all = move || {
            thread::scope(|scope| {
                for (stream, number) in listener.incoming().zip(1..) {
                    let (stream, tls, shared) = (stream.unwrap(), tls.clone(), &*shared);
                    if shared.lock().unwrap().stop {
                        break;
                    }
                    shared.lock().unwrap().connections = number;
                    // The client may end the connection at any point; the test decides whether that is right.
                    scope.spawn(move || serve(stream, number, tls, shared));
                }
            });
        };
        MockPortal {
            at,
            scheme,
            state,
            thread: Some(thread::spawn(serve_all)),
        }
    }

    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.at)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state.lock().unwrap().requests.clone()
    }

    pub fn names(&self) -> Vec<String> {
        self.requests().iter().map(Request::name).collect()
    }

    pub fn count(&self, name: &str) -> usize {
        self.names().iter().filter(|other| *other == name).count()
    }

    pub fn connections(&self) -> usize {
        self.state.lock().unwrap().connections
    }

    pub fn bytes(&self) -> usize {
        self.state.lock().unwrap().bytes
    }

    pub fn handshakes(&self) -> Vec<HandshakeKind> {
        self.state.lock().unwrap().handshakes.clone()
    }

    pub fn wait_for(&self, requests: usize) {
        let arrived = wait_until(|| self.requests().len() >= requests);
        assert!(
            arrived,
            "of {requests} requests only these arrived: {:#?}",
            self.requests()
        );
    }

    /// Accepts that the rest of the script is not followed.
    pub fn allow_unfinished(&self) {
        self.state.lock().unwrap().unfinished_is_fine = true;
    }

    /// Describes the first unexpected request, or what the script still expects.
    pub fn problem(&self) -> Option<String> {
        let state = self.state.lock().unwrap();
        let missing = state
            .script
            .front()
            .map(|(event, _)| format!("{event} never came"));
        state.unexpected.clone().or(missing)
    }
}

impl Drop for MockPortal {
    fn drop(&mut self) {
        if thread::panicking() {
            return;
        }
        self.state.lock().unwrap().stop = true;
        let _ = TcpStream::connect(self.at);
        self.thread
            .take()
            .unwrap()
            .join()
            .expect("the mock does not panic");
        if !self.state.lock().unwrap().unfinished_is_fine {
            assert_eq!(self.problem(), None, "requests: {:#?}", self.requests());
        }
    }
}

/// Waits up to about 20 s until a condition is true, and returns whether it is.
pub fn wait_until(mut condition: impl FnMut() -> bool) -> bool {
    (0..20_000).any(|_| {
        thread::sleep(Duration::from_millis(1));
        condition()
    })
}

/// Returns the static binary in the same target folder, if it is built and as new as its source.
pub fn static_binary(ordinary: &str) -> Option<PathBuf> {
    let target = Path::new(ordinary).ancestors().nth(2)?;
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let binary = target.join(triple).join("release/docspace-rotate");
    let built = binary.metadata().and_then(|file| file.modified()).ok()?;
    let source = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap();
    let changed = source.map(|file| file.unwrap().metadata().unwrap().modified().unwrap());
    (Some(built) >= changed.max()).then_some(binary)
}
