//! One connection to the mock portal: reads the requests and performs the actions.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Result, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::thread;

use rustls::{HandshakeKind, ServerConnection};

use super::{Action, Request, Tls, reply_to, response};

type Answer = dyn FnMut(&Request) -> Vec<u8> + Send;

/// What the threads of a mock share. It follows a script, or computes its replies with `answer`.
#[derive(Default)]
pub struct State {
    pub script: VecDeque<(&'static str, Vec<Action>)>,
    /// The first request that is not in the script.
    pub unexpected: Option<String>,
    pub unfinished_is_fine: bool,
    pub answer: Option<Box<Answer>>,
    pub requests: Vec<Request>,
    pub handshakes: Vec<HandshakeKind>,
    pub connections: usize,
    pub bytes: usize,
    pub stop: bool,
}

impl State {
    /// Returns the actions of the script if it expects this event next.
    fn next(&mut self, event: &str) -> Option<Vec<Action>> {
        let (expected, _) = self.script.front()?;
        if *expected != event {
            return None;
        }
        let (_, actions) = self.script.pop_front()?;
        Some(actions)
    }

    fn answer(&mut self, request: Request) -> Vec<Action> {
        let name = request.name();
        let actions = if let Some(answer) = &mut self.answer {
            vec![reply_to(&name, answer(&request))]
        } else if let Some(actions) = self.next(&name) {
            actions
        } else {
            let problem = format!("{name} was not expected");
            self.unexpected.get_or_insert(problem);
            self.script.clear();
            vec![Action::Send(response("499 Unexpected", "", ""))]
        };
        self.requests.push(request);
        actions
    }
}

pub trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// A connection below TLS.
struct Wire<'a> {
    tcp: TcpStream,
    /// How many bytes can be sent before a reset.
    limit: usize,
    state: &'a Mutex<State>,
}

impl Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let read = self.tcp.read(buffer)?;
        self.state.lock().unwrap().bytes += read;
        Ok(read)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        if self.limit == 0 {
            return Err(reset(&self.tcp));
        }
        let length = self.limit.min(bytes.len());
        let sent = self.tcp.write(&bytes[..length])?;
        self.state.lock().unwrap().bytes += sent;
        self.limit -= sent;
        Ok(sent)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

/// An accepted connection, over TLS after the handshake.
struct Connection<'a> {
    wire: Wire<'a>,
    tls: Option<ServerConnection>,
}

/// Serves a connection to its end, which is always an error.
pub fn serve(tcp: TcpStream, number: usize, tls: Tls, state: &Mutex<State>) -> Result<()> {
    tcp.set_nodelay(true)?;
    let wire = Wire {
        tcp,
        limit: usize::MAX,
        state,
    };
    let mut connection = Connection { wire, tls: None };
    let actions_on = |event| state.lock().unwrap().next(event).unwrap_or_default();
    connection.perform(actions_on("a connection"))?;
    if let Some(config) = tls {
        let mut tls = ServerConnection::new(config).unwrap();
        if let Err(error) = tls.complete_io(&mut connection.wire) {
            // A close with unread bytes makes the kernel send a RST, which drops the alert.
            connection.wire.tcp.shutdown(Shutdown::Write)?;
            discard(&mut connection.wire)?;
            return Err(error);
        }
        let kind = tls.handshake_kind().unwrap();
        state.lock().unwrap().handshakes.push(kind);
        connection.tls = Some(tls);
        connection.perform(actions_on("a TLS handshake"))?;
    }
    loop {
        let request = read_request(&mut *connection.stream(), number)?;
        let actions = state.lock().unwrap().answer(request);
        connection.perform(actions)?;
    }
}

impl Connection<'_> {
    fn stream(&mut self) -> Box<dyn Stream + '_> {
        match &mut self.tls {
            Some(tls) => Box::new(rustls::Stream::new(tls, &mut self.wire)),
            None => Box::new(&mut self.wire),
        }
    }

    /// Performs the actions; an error ends the connection.
    fn perform(&mut self, actions: Vec<Action>) -> Result<()> {
        for action in actions {
            match action {
                Action::Send(bytes) => self.stream().write_all(&bytes)?,
                Action::SendBelowTls(bytes) => self.wire.write_all(&bytes)?,
                Action::Sleep(time) => thread::sleep(time),
                Action::WaitFor(gate) => drop(gate.recv()),
                Action::ResetAfter(bytes) => self.wire.limit = bytes,
                Action::Close => return Err(ErrorKind::ConnectionAborted.into()),
                Action::Reset => return Err(reset(&self.wire.tcp)),
                Action::Hang => discard(&mut *self.stream())?,
            }
            self.stream().flush()?;
        }
        Ok(())
    }
}

fn read_request(stream: &mut dyn Stream, connection: usize) -> Result<Request> {
    let head = read_until(stream, "\r\n\r\n")?;
    let mut words = head.split(' ');
    let mut request = Request {
        connection,
        method: words.next().unwrap().to_owned(),
        target: words.next().unwrap().to_owned(),
        head,
        body: String::new(),
    };
    if let Some(length) = request.header("content-length") {
        let body = read(stream, length.parse().unwrap())?;
        request.body = String::from_utf8(body).unwrap();
    }
    Ok(request)
}

/// Reads until the client closes the connection.
fn discard(stream: &mut dyn Stream) -> Result<()> {
    io::copy(stream, &mut io::sink())?;
    Ok(())
}

pub fn read(stream: &mut dyn Stream, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Reads text up to and including this end.
pub fn read_until(stream: &mut dyn Stream, end: &str) -> Result<String> {
    let mut text = vec![];
    while !text.ends_with(end.as_bytes()) {
        text.extend(read(stream, 1)?);
    }
    Ok(String::from_utf8(text).unwrap())
}

/// Makes the kernel send a RST when the socket is closed.
fn reset(tcp: &TcpStream) -> io::Error {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let option = (&raw const linger).cast();
    let size = size_of_val(&linger) as libc::socklen_t;
    // SAFETY: the socket is open, and the option is read within the call.
    let set = unsafe {
        libc::setsockopt(
            tcp.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            option,
            size,
        )
    };
    assert_eq!(set, 0);
    ErrorKind::ConnectionReset.into()
}
