//! A stand-in for a portal, on loopback: it says what a script has it say, byte by byte.
#![allow(dead_code, clippy::unwrap_used)] // Each test file uses a part; a broken stand-in may panic.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{WantsServerCert, WebPkiClientVerifier};
use rustls::{
    ConfigBuilder, RootCertStore, ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion,
};

/// The client of the recorded replies.
pub const CLIENT: &str = "27d1f5ac-11da-4592-828d-1bd6e6212e9d";
/// The secret in `patch-200`.
pub const SECRET: &str = "LQn1uOTJsTqgOLJO1oB2ztSqw5IoxNuP8zQa";
/// The signature in `token-200`.
pub const SIGNATURE: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJ0ZXN0IiwiZXhwIjoxNzk1NDEzNDY2fQ.c2lnbmF0dXJlLW9mLWEtdGVzdA";
/// An API key.
pub const KEY: &str = "sk-4f1d9c0b7a6e5d3c2b1a0f9e8d7c6b5a";
/// A bearer token that is no API key.
pub const BEARER: &str = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJiZWFyZXIifQ.b2Ytc29tZS1vdGhlci1raW5k";

/// What the program logs of a whole run with an API key.
pub const LOG: [&str; 6] = [
    "[GET token] Status: 200",
    "[HEAD client] Status: 200",
    "[PATCH regenerate] Status: 200",
    "Client secret has been regenerated.",
    "[DELETE revoke] Status: 200",
    "Client consent revoked for client 27d1f5ac-11da-4592-828d-1bd6e6212e9d.",
];

/// What the program prints for `patch-200`.
pub fn line() -> String {
    format!("{SECRET}\n")
}

/// The static binary beside this one, where it is built and no older than its source.
pub fn static_binary(ordinary: &str) -> Option<PathBuf> {
    let target = Path::new(ordinary).ancestors().nth(2)?;
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let binary = target.join(triple).join("release/docspace-rotate");
    let built = binary.metadata().and_then(|file| file.modified()).ok()?;
    let source = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap();
    let changed = source.map(|file| file.unwrap().metadata().unwrap().modified().unwrap());
    (Some(built) >= changed.max()).then_some(binary)
}

/// The bytes of a recorded reply.
pub fn reply(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/portal/replies/{name}.http", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// A reply with a status line, one more header line, and a body.
pub fn http(status: &str, header: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let header = if header.is_empty() { String::new() } else { format!("{header}\r\n") };
    let mut reply =
        format!("HTTP/1.1 {status}\r\n{header}Content-Length: {}\r\n\r\n", body.len()).into_bytes();
    reply.extend_from_slice(body);
    reply
}

/// A 200 with a JSON body.
pub fn json(body: impl AsRef<[u8]>) -> Vec<u8> {
    http("200 ", "Content-Type: application/json", body)
}

/// A recorded reply after which the portal closes the connection, and says so.
pub fn closing(name: &str) -> Vec<u8> {
    let reply = String::from_utf8(reply(name)).unwrap().replace("Connection: keep-alive\r\n", "");
    reply.replacen("\r\n", "\r\nConnection: close\r\n", 1).into_bytes()
}

/// One thing that the stand-in does.
pub enum Act {
    /// Sends these bytes; to a HEAD no body.
    Send(Vec<u8>),
    /// Sends these pieces, each in a TLS record of its own, in one segment; then, if so, a close_notify.
    Together(Vec<Vec<u8>>, bool),
    /// Sends these bytes past TLS.
    Raw(Vec<u8>),
    /// Sends these bytes one at a time, with a pause after each.
    Drip(Vec<u8>, Duration),
    /// Waits so long.
    Sleep(Duration),
    /// Waits until the test drops or uses the other end.
    Wait(Receiver<()>),
    /// Resets the connection once it has sent so many bytes. For a connection that is accepted.
    Cap(usize),
    /// Ends the connection.
    Close,
    /// Ends the connection with a reset (RST).
    Reset,
    /// Says nothing until the client ends the connection.
    Hang,
}

/// One step of a script.
pub enum Step {
    /// A connection comes: this is done before a byte of it is read.
    Accepted(Vec<Act>),
    /// A connection's TLS handshake is done.
    Secured(Vec<Act>),
    /// A request comes, named as `PATCH regenerate`.
    Request(&'static str, Vec<Act>),
}

/// A request that is answered with these bytes.
pub fn on(request: &'static str, reply: impl Into<Vec<u8>>) -> Step {
    Step::Request(request, vec![Act::Send(reply.into())])
}

/// A request whose reply is held back until the sender is dropped.
pub fn held(request: &'static str, reply: impl Into<Vec<u8>>) -> (Sender<()>, Step) {
    let (release, gate) = channel();
    (release, Step::Request(request, vec![Act::Wait(gate), Act::Send(reply.into())]))
}

/// A script that begins with the sign-in.
pub fn signed_in(steps: impl IntoIterator<Item = Step>) -> Vec<Step> {
    [on("GET token", reply("token-200"))].into_iter().chain(steps).collect()
}

/// The look at the client.
pub fn look() -> Step {
    on("HEAD client", reply("get-200"))
}

/// A script that begins with the sign-in and the look.
pub fn looked(steps: impl IntoIterator<Item = Step>) -> Vec<Step> {
    signed_in([look()].into_iter().chain(steps))
}

/// A script that begins with a look after which the connection is closed: what follows comes on a new one.
pub fn anew(steps: impl IntoIterator<Item = Step>) -> Vec<Step> {
    let look = Step::Request("HEAD client", vec![Act::Send(closing("get-200")), Act::Close]);
    [look].into_iter().chain(steps).collect()
}

/// What a portal answers to a whole run with an API key.
pub fn good_run() -> Vec<Step> {
    looked([on("PATCH regenerate", reply("patch-200")), on("DELETE revoke", reply("delete-200"))])
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    /// Which connection it came on, from 1.
    pub connection: usize,
    /// `PATCH`
    pub method: String,
    /// The path and query.
    pub target: String,
    /// Names in small letters.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

impl Request {
    /// The one value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str());
        let value = values.next();
        assert!(values.next().is_none(), "{name} is there twice: {self:?}");
        value
    }

    /// The method and the last part of the path, as the log has them.
    pub fn name(&self) -> String {
        let last = self.target.rsplit('/').next().unwrap_or_default();
        let last = if self.target.ends_with(&format!("/clients/{last}")) { "client" } else { last };
        format!("{} {last}", self.method)
    }
}

/// What happens to the stand-in.
pub enum Event<'a> {
    /// A connection came.
    Accepted,
    /// Its TLS handshake is done.
    Secured,
    /// A request came.
    Request(&'a Request),
}

/// A running stand-in. Stops, and fails the test if its script was not played to the end, when dropped.
pub struct Stand {
    /// Where it listens.
    pub at: SocketAddr,
    tls: bool,
    requests: Arc<Mutex<Vec<Request>>>,
    connections: Arc<AtomicUsize>,
    bytes: Arc<AtomicUsize>,
    left: Arc<Mutex<Option<String>>>,
    enough: AtomicBool,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stand {
    /// A stand-in that plays a script.
    pub fn script(steps: Vec<Step>) -> Stand {
        Stand::script_over(None, steps)
    }

    /// A stand-in that plays a script over TLS.
    pub fn script_over(tls: Option<Arc<ServerConfig>>, steps: Vec<Step>) -> Stand {
        let mut steps = VecDeque::from(steps);
        let left = Arc::new(Mutex::new(None));
        let told = left.clone();
        let tell = move |steps: &VecDeque<Step>| {
            *told.lock().unwrap() = steps.front().map(|step| match step {
                Step::Accepted(_) => "a connection never came".to_owned(),
                Step::Secured(_) => "a TLS handshake was never done".to_owned(),
                Step::Request(name, _) => format!("{name} never came"),
            });
        };
        tell(&steps);
        let wrong = left.clone();
        let play = move |event: Event| {
            let fits = match (&event, steps.front()) {
                (Event::Accepted, Some(Step::Accepted(_))) => true,
                (Event::Secured, Some(Step::Secured(_))) => true,
                (Event::Request(request), Some(Step::Request(name, _))) => request.name() == *name,
                _ => false,
            };
            match (event, fits) {
                (_, true) => {
                    let step = steps.pop_front();
                    tell(&steps);
                    match step {
                        Some(Step::Accepted(acts) | Step::Secured(acts) | Step::Request(_, acts)) => acts,
                        None => vec![],
                    }
                }
                (Event::Request(request), false) => {
                    let what = format!("{} is not in the script here", request.name());
                    *wrong.lock().unwrap() = Some(what);
                    steps.clear();
                    vec![Act::Send(http("499 Not in the script", "", ""))]
                }
                _ => vec![],
            }
        };
        Stand::start(tls, left, play)
    }

    /// A stand-in that behaves like a real portal, for one key and any number of runs.
    pub fn real(tls: Option<Arc<ServerConfig>>) -> Stand {
        Stand::answering(tls, real_answer)
    }

    /// A stand-in that answers any number of requests.
    pub fn answering(
        tls: Option<Arc<ServerConfig>>,
        mut answer: impl FnMut(&Request) -> Vec<u8> + Send + 'static,
    ) -> Stand {
        Stand::start(tls, Arc::default(), move |event| match event {
            Event::Request(request) => vec![Act::Send(answer(request))],
            _ => vec![],
        })
    }

    fn start(
        tls: Option<Arc<ServerConfig>>,
        left: Arc<Mutex<Option<String>>>,
        play: impl FnMut(Event) -> Vec<Act> + Send + 'static,
    ) -> Stand {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut stand = Stand {
            at: listener.local_addr().unwrap(),
            tls: tls.is_some(),
            requests: Arc::default(),
            connections: Arc::default(),
            bytes: Arc::default(),
            left,
            enough: AtomicBool::new(false),
            stop: Arc::default(),
            thread: None,
        };
        let (requests, connections) = (stand.requests.clone(), stand.connections.clone());
        let (bytes, stop) = (stand.bytes.clone(), stand.stop.clone());
        stand.thread = Some(thread::spawn(move || {
            let play = Mutex::new(play);
            let (play, requests, stop) = (&play, &*requests, &*stop);
            thread::scope(|scope| {
                for stream in listener.incoming() {
                    let stream = stream.unwrap();
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let connection = connections.fetch_add(1, Ordering::SeqCst) + 1;
                    let (tls, bytes) = (tls.clone(), bytes.clone());
                    scope.spawn(move || {
                        let mut play = |event: Event| play.lock().unwrap()(event);
                        let wire = Wire::new(stream, bytes);
                        // What the client does to a connection is for the test to judge.
                        let _ = wire.and_then(|wire| serve(wire, connection, tls, requests, stop, &mut play));
                    });
                }
            });
        }));
        stand
    }

    /// Its address for `--url`.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.at)
    }

    /// The requests that came so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Leaves the rest of the script unplayed.
    pub fn need_no_more(&self) {
        self.enough.store(true, Ordering::SeqCst);
    }

    /// Waits until so many requests have come.
    pub fn wait_for(&self, requests: usize) {
        let came = wait_until(|| self.requests().len() >= requests);
        assert!(came, "of {requests} requests only these came: {:#?}", self.requests());
    }

    /// How many connections came so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// How many bytes went over them so far, both ways.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::SeqCst)
    }

    /// What is missing or was too much, by the script.
    pub fn complaint(&self) -> Option<String> {
        self.left.lock().unwrap().clone()
    }
}

/// Waits until something is so, and says whether it was within 20,000 looks, a millisecond apart.
pub fn wait_until(mut so: impl FnMut() -> bool) -> bool {
    (0..20_000).any(|_| {
        let now = so();
        if !now {
            thread::sleep(Duration::from_millis(1));
        }
        now
    })
}

impl Drop for Stand {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.at);
        let ended = self.thread.take().map(JoinHandle::join);
        if !thread::panicking() {
            assert!(matches!(ended, Some(Ok(()))), "the stand-in panicked");
        }
        if !thread::panicking() && !self.enough.load(Ordering::SeqCst) {
            assert_eq!(self.complaint(), None, "requests: {:#?}", self.requests());
        }
    }
}

/// What today's portals answer: a signature for the key, and nothing without one.
fn real_answer(request: &Request) -> Vec<u8> {
    let signed = request.header("x-signature") == Some(SIGNATURE);
    let client = request.target.contains(CLIENT);
    match (request.name().as_str(), signed) {
        _ if request.header("user-agent").is_none() => reply("patch-500"),
        ("GET token", _) if request.header("authorization") == Some(&format!("Bearer {KEY}")) => {
            reply("token-200")
        }
        ("GET token", _) => reply("token-401"),
        ("POST introspect", _) if request.body.contains(SECRET) => reply("introspect-200"),
        ("POST introspect", _) => reply("introspect-401"),
        (_, false) => reply("patch-403-unsigned"),
        ("HEAD client", _) if client => reply("get-200"),
        ("PATCH regenerate", _) if client => reply("patch-200"),
        ("PATCH regenerate", _) => reply("patch-404-unknown"),
        ("DELETE revoke", _) => reply("delete-200"),
        _ => reply("get-404"),
    }
}

/// A connection, plain or over TLS.
pub trait Stream: Read + Write {
    /// Says that nothing more will come, and leaves the connection open below TLS.
    fn close_notify(&mut self) -> io::Result<()> {
        Ok(())
    }
}
impl Stream for TcpStream {}
impl Stream for Wire {}
impl<T: Read + Write> Stream for StreamOwned<ServerConnection, T> {
    fn close_notify(&mut self) -> io::Result<()> {
        self.conn.send_close_notify();
        self.flush()
    }
}

/// A connection that may be cut after so many bytes.
struct Wire {
    tcp: TcpStream,
    left: Rc<Cell<Option<usize>>>,
    /// What is to leave in one piece.
    held: Rc<RefCell<Option<Vec<u8>>>>,
    bytes: Arc<AtomicUsize>,
}

impl Wire {
    fn new(tcp: TcpStream, bytes: Arc<AtomicUsize>) -> io::Result<Wire> {
        tcp.set_nodelay(true)?;
        // Short, so that a stand-in that is dropped stops soon; reads go on where they were.
        tcp.set_read_timeout(Some(Duration::from_millis(20)))?;
        Ok(Wire { tcp, left: Rc::default(), held: Rc::default(), bytes })
    }

    fn again(&self) -> io::Result<Wire> {
        let tcp = self.tcp.try_clone()?;
        Ok(Wire { tcp, left: self.left.clone(), held: self.held.clone(), bytes: self.bytes.clone() })
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.tcp.read(buffer)?;
        self.bytes.fetch_add(read, Ordering::SeqCst);
        Ok(read)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(held) = &mut *self.held.borrow_mut() {
            held.extend_from_slice(bytes);
            return Ok(bytes.len());
        }
        let left = self.left.get().unwrap_or(usize::MAX);
        if left == 0 {
            reset_on_close(&self.tcp)?;
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let sent = self.tcp.write(&bytes[..left.min(bytes.len())])?;
        self.bytes.fetch_add(sent, Ordering::SeqCst);
        self.left.set(self.left.get().map(|left| left - sent));
        Ok(sent)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Serves one connection to its end.
fn serve(
    wire: Wire,
    connection: usize,
    tls: Option<Arc<ServerConfig>>,
    requests: &Mutex<Vec<Request>>,
    stop: &AtomicBool,
    play: &mut impl FnMut(Event) -> Vec<Act>,
) -> io::Result<()> {
    let mut stream: Box<dyn Stream> = Box::new(wire.again()?);
    let perform = |stream: &mut dyn Stream, acts: Vec<Act>| -> io::Result<bool> {
        for act in acts {
            match act {
                Act::Send(bytes) => stream.write_all(&bytes)?,
                Act::Together(pieces, close_notify) => {
                    wire.held.replace(Some(vec![]));
                    for piece in pieces {
                        stream.write_all(&piece)?;
                        stream.flush()?;
                    }
                    if close_notify {
                        stream.close_notify()?;
                    }
                    let together = wire.held.take().unwrap();
                    (&wire.tcp).write_all(&together)?;
                }
                Act::Raw(bytes) => (&wire.tcp).write_all(&bytes)?,
                Act::Drip(bytes, pause) => {
                    for byte in bytes {
                        stream.write_all(&[byte])?;
                        stream.flush()?;
                        thread::sleep(pause);
                    }
                }
                Act::Sleep(time) => thread::sleep(time),
                Act::Wait(gate) => {
                    while gate.recv_timeout(Duration::from_millis(20)) == Err(RecvTimeoutError::Timeout) {
                        if stop.load(Ordering::SeqCst) {
                            return Ok(false);
                        }
                    }
                }
                Act::Cap(bytes) => wire.left.set(Some(bytes)),
                Act::Close => return Ok(false),
                Act::Reset => {
                    reset_on_close(&wire.tcp)?;
                    return Ok(false);
                }
                Act::Hang => while !matches!(read(stream, &mut [0; 4096], stop), Ok(0) | Err(_)) {},
            }
            stream.flush()?;
        }
        Ok(true)
    };
    if !perform(&mut *stream, play(Event::Accepted))? {
        return Ok(());
    }
    if let Some(config) = tls {
        let mut session = ServerConnection::new(config).map_err(io::Error::other)?;
        let mut wire = wire.again()?;
        while session.is_handshaking() {
            match session.complete_io(&mut wire) {
                Err(error) if is_timeout(&error) && !stop.load(Ordering::SeqCst) => {}
                Err(_) => {
                    // Closed with bytes unread, the connection would be reset, and the alert lost.
                    wire.tcp.shutdown(Shutdown::Write)?;
                    while !matches!(read(&mut wire, &mut [0; 4096], stop), Ok(0) | Err(_)) {}
                    return Ok(());
                }
                Ok(_) => {}
            }
        }
        stream = Box::new(StreamOwned::new(session, wire));
        if !perform(&mut *stream, play(Event::Secured))? {
            return Ok(());
        }
    }
    let mut text = Vec::new();
    while let Some(request) = read_request(&mut *stream, connection, &mut text, stop)? {
        // Who waits for the request finds its step played.
        let mut acts = play(Event::Request(&request));
        if request.method == "HEAD" {
            // As any server does.
            for act in &mut acts {
                if let Act::Send(bytes) = act {
                    let head = bytes.windows(4).position(|end| end == b"\r\n\r\n");
                    bytes.truncate(head.map_or(bytes.len(), |head| head + 4));
                }
            }
        }
        requests.lock().unwrap().push(request);
        if !perform(&mut *stream, acts)? {
            break;
        }
    }
    Ok(())
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn read(stream: &mut dyn Stream, buffer: &mut [u8], stop: &AtomicBool) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if is_timeout(&error) && !stop.load(Ordering::SeqCst) => {}
            done => return done,
        }
    }
}

/// Reads one request; none where the client has ended the connection.
fn read_request(
    stream: &mut dyn Stream,
    connection: usize,
    text: &mut Vec<u8>,
    stop: &AtomicBool,
) -> io::Result<Option<Request>> {
    let mut buffer = [0; 4096];
    loop {
        if let Some((request, end)) = parse_request(text, connection) {
            text.drain(..end);
            return Ok(Some(request));
        }
        match read(stream, &mut buffer, stop)? {
            0 => return Ok(None),
            n => text.extend_from_slice(&buffer[..n]),
        }
    }
}

fn parse_request(text: &[u8], connection: usize) -> Option<(Request, usize)> {
    let head_end = text.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let head = String::from_utf8(text[..head_end].to_vec()).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let mut request = Request { connection, method, target, headers, body: String::new() };
    let length = request.header("content-length").map_or(0, |n| n.parse().unwrap());
    let body = text.get(head_end..head_end + length)?;
    request.body = String::from_utf8(body.to_vec()).unwrap();
    Some((request, head_end + length))
}

/// Has the kernel send a RST when the socket is closed.
fn reset_on_close(stream: &TcpStream) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let size = std::mem::size_of::<libc::linger>() as libc::socklen_t;
    // SAFETY: the socket is open, and the option is read within the call.
    let done = unsafe {
        let option = (&raw const linger).cast();
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, option, size)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Certificates for the stand-in, by an authority of their own.
pub struct Certificates {
    /// The authority's certificate.
    pub ca_pem: String,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Certificates {
    /// A new authority.
    pub fn new() -> Certificates {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // A name of its own: two authorities of one name are told apart by their signatures only.
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("Stand-in CA {}", COUNT.fetch_add(1, Ordering::SeqCst));
        params.distinguished_name.push(DnType::CommonName, name);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Certificates { ca_pem: authority.pem(), authority }
    }

    /// TLS for a server of this name, with a certificate that is good today.
    pub fn server(&self, name: &str) -> Arc<ServerConfig> {
        self.server_with(CertificateParams::new([name.to_owned()]).unwrap())
    }

    /// The same with a certificate that ended in 2020.
    pub fn expired_server(&self, name: &str) -> Arc<ServerConfig> {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2019, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        self.server_with(params)
    }

    /// A server that demands a certificate of its client, in one version of TLS.
    pub fn demanding_server(
        &self,
        name: &str,
        version: &'static SupportedProtocolVersion,
    ) -> Arc<ServerConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider()).build().unwrap();
        let builder = ServerConfig::builder_with_provider(provider());
        let builder = builder.with_protocol_versions(&[version]).unwrap().with_client_cert_verifier(verifier);
        self.certified(builder, CertificateParams::new([name.to_owned()]).unwrap())
    }

    fn server_with(&self, params: CertificateParams) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(provider());
        self.certified(builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth(), params)
    }

    fn certified(
        &self,
        builder: ConfigBuilder<ServerConfig, WantsServerCert>,
        params: CertificateParams,
    ) -> Arc<ServerConfig> {
        // Its signatures are of one length, and so is every handshake.
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let certificate: CertificateDer = params.signed_by(&key, &self.authority).unwrap().into();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Arc::new(builder.with_single_cert(vec![certificate], key).unwrap())
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
