//! A mock portal on loopback, which sends the bytes that a script or the test chooses.
#![allow(dead_code, clippy::unwrap_used)] // Each user needs only a part of it, and a mock may panic.

pub mod certificates;
mod connection;
pub mod proxy;
mod replies;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

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
    /// Resets the connection after it has sent this many bytes; for an accepted connection.
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
    /// The request line and the header.
    head: String,
    pub body: String,
}

impl Request {
    /// Returns the value of a header field, which may occur only once.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = vec![];
        for line in self.head.lines() {
            if let Some((field, value)) = line.split_once(": ")
                && field.eq_ignore_ascii_case(name)
            {
                values.push(value);
            }
        }
        assert!(values.len() < 2, "{name} occurs twice: {self:?}");
        values.pop()
    }

    /// Returns the method and the last part of the path, as in the program's log.
    pub fn name(&self) -> String {
        let (path, last) = self.target.rsplit_once('/').unwrap();
        let is_client = path.ends_with("/clients");
        let last = if is_client { "client" } else { last };
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
        let mut state = State::default();
        for expected in script {
            state.script.push_back(match expected {
                Expect::Connection(actions) => ("a connection", actions),
                Expect::Handshake(actions) => ("a TLS handshake", actions),
                Expect::Request(name, actions) => (name, actions),
            });
        }
        MockPortal::listen(tls, state)
    }

    /// Starts a mock that computes its replies to any number of requests.
    pub fn answering(
        tls: Tls,
        answer: impl FnMut(&Request) -> Vec<u8> + Send + 'static,
    ) -> MockPortal {
        let state = State {
            answer: Some(Box::new(answer)),
            ..State::default()
        };
        MockPortal::listen(tls, state)
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
                for (number, tcp) in (1..).zip(listener.incoming()) {
                    let mut state = shared.lock().unwrap();
                    if state.stop {
                        break;
                    }
                    state.connections = number;
                    let (shared, tls) = (&shared, tls.clone());
                    // The client may end the connection at any point; the test decides whether that is right.
                    scope.spawn(move || serve(tcp.unwrap(), number, tls, shared));
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

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.at)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state().requests.clone()
    }

    pub fn names(&self) -> Vec<String> {
        self.requests().iter().map(Request::name).collect()
    }

    pub fn count(&self, name: &str) -> usize {
        self.names().iter().filter(|it| *it == name).count()
    }

    pub fn connections(&self) -> usize {
        self.state().connections
    }

    pub fn bytes(&self) -> usize {
        self.state().bytes
    }

    pub fn handshakes(&self) -> Vec<HandshakeKind> {
        self.state().handshakes.clone()
    }

    pub fn wait_for(&self, requests: usize) {
        wait_until(|| self.requests().len() >= requests);
        let arrived = self.requests();
        assert!(
            arrived.len() >= requests,
            "expected {requests} requests: {arrived:#?}"
        );
    }

    /// Accepts that the rest of the script is not followed.
    pub fn allow_unfinished(&self) {
        self.state().unfinished_is_fine = true;
    }

    /// Describes the first unexpected request, or what the script still expects.
    pub fn problem(&self) -> Option<String> {
        let state = self.state();
        if state.unexpected.is_some() {
            return state.unexpected.clone();
        }
        let (event, _) = state.script.front()?;
        Some(format!("{event} never came"))
    }
}

impl Drop for MockPortal {
    fn drop(&mut self) {
        if thread::panicking() {
            return;
        }
        self.state().stop = true;
        let _ = TcpStream::connect(self.at);
        let thread = self.thread.take().unwrap();
        thread.join().expect("the mock does not panic");
        if !self.state().unfinished_is_fine {
            assert_eq!(self.problem(), None, "requests: {:#?}", self.requests());
        }
    }
}

/// Waits up to about 20 s until a condition is true, and returns whether it is.
pub fn wait_until(mut condition: impl FnMut() -> bool) -> bool {
    for _ in 0..20_000 {
        if condition() {
            return true;
        }
        thread::sleep(Duration::from_millis(1));
    }
    false
}

/// Returns the static binary in the same target folder, if it is built and as new as its source.
pub fn static_binary(ordinary: &str) -> Option<PathBuf> {
    let target = Path::new(ordinary).ancestors().nth(2)?;
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let binary = target.join(triple).join("release/docspace-rotate");
    let built = modified(&binary)?;
    for source in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap() {
        if modified(&source.unwrap().path())? > built {
            return None;
        }
    }
    Some(binary)
}

fn modified(file: &Path) -> Option<SystemTime> {
    file.metadata().ok()?.modified().ok()
}
