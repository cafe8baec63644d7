//! Reading and writing that end in time, whatever is at the other end of a pipe.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// What poll(2) promises at least: so much fits into a pipe that can be written to. In bytes.
const PIECE: usize = 512;

/// How long a line may wait for a full stderr, and is dropped then.
const LOG_PATIENCE: Duration = Duration::from_millis(200);

/// Reads a file, up to so many bytes. A FIFO or a pipe is waited for until the deadline.
///
/// # Errors
///
/// Those of opening and reading, and [`ErrorKind::TimedOut`].
pub fn read_file(path: &Path, limit: u64, deadline: Instant) -> io::Result<Vec<u8>> {
    // Without this flag, opening a FIFO that nobody writes would block.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let mut text = Vec::new();
    while (text.len() as u64) < limit {
        wait_for(file.as_raw_fd(), libc::POLLIN, deadline)?;
        match (&file).take(limit - text.len() as u64).read_to_end(&mut text) {
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(text)
}

/// Writes all of the text, waiting until the deadline for a full pipe to be read.
///
/// # Errors
///
/// Those of writing, and [`ErrorKind::TimedOut`].
pub fn write_all(mut file: &File, text: &[u8], deadline: Instant) -> io::Result<()> {
    for piece in text.chunks(PIECE) {
        wait_for(file.as_raw_fd(), libc::POLLOUT, deadline)?;
        file.write_all(piece)?;
    }
    Ok(())
}

/// Writes one line to stderr. It is dropped where nobody takes it: neither a closed nor a full
/// stderr must change what the run does.
pub fn say(line: &str) {
    if is_ready(libc::STDERR_FILENO, libc::POLLOUT, LOG_PATIENCE) {
        // In one piece, as a signal may come at any time.
        let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
    }
}

fn wait_for(fd: RawFd, events: i16, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    match is_ready(fd, events, left) {
        true => Ok(()),
        false => Err(io::Error::new(ErrorKind::TimedOut, "the time is up")),
    }
}

/// Whether the descriptor can be read from or written to without blocking, or has an error to tell,
/// within this time. Async-signal-safe.
pub fn is_ready(fd: RawFd, events: i16, patience: Duration) -> bool {
    let mut ask = libc::pollfd { fd, events, revents: 0 };
    let milliseconds = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one structure is passed, and it is valid.
    unsafe { libc::poll(&mut ask, 1, milliseconds) == 1 }
}
