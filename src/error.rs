//! The error that ends a run, the state that it leaves the client in, and the log on stderr.

use std::fmt;
use std::io::{self, Write};

/// The five states of the client, and two ends of a run that are never entered: `Usage` and `Refused`.
/// The number is the exit status, which scripts rely on. The current state is in `signal.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Usage = 2,
    Refused = 3,
    Unchanged = 4,
    NotRevoked = 5,
    NotDelivered = 6,
    Unknown = 7,
    NotVerified = 8,
}

impl State {
    /// Returns the state and what to do next. People grep for these words.
    pub fn words(self) -> &'static str {
        match self {
            State::Usage => "nothing was sent; see --help",
            State::Refused => {
                "the client's secret is unchanged; \
                 check the address, CA, proxy, key and client id"
            }
            State::Unchanged => "the client's secret is unchanged; run again later",
            State::NotRevoked => {
                "the new secret was delivered, but the consent may still be in force; \
                 run again with --only revoke"
            }
            State::NotDelivered => {
                "the client has a new secret that may not have been delivered; \
                 fix the output or the command, then run again"
            }
            State::Unknown => {
                "the client may or may not have a new secret; \
                 treat the old secret as revoked and run again in a few minutes"
            }
            State::NotVerified => {
                "the new secret was delivered, but not verified; \
                 check that the client can sign in with it, and if it cannot, run again"
            }
        }
    }
}

/// What ended the run. It is displayed as the whole line for the person on call, without the
/// program's name.
#[derive(Debug)]
pub struct Error {
    pub state: State,
    /// What happened, naming the argument, variable, host or file. Contains no secret.
    pub what: String,
}

impl Error {
    /// Returns an error that leaves the client in this state.
    pub fn new(state: State, what: impl Into<String>) -> Error {
        Error {
            state,
            what: what.into(),
        }
    }

    /// Returns an error from before anything is sent.
    pub fn usage<T>(what: impl Into<String>) -> Result<T, Error> {
        Err(Error::new(State::Usage, what))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.state.words())
    }
}

/// Returns an I/O error with words of our own.
pub fn fail<T>(why: &str) -> io::Result<T> {
    Err(io::Error::other(why))
}

/// Returns an I/O error in the system's words, without the number that Rust adds.
pub fn io_message(error: &io::Error) -> String {
    let mut text = error.to_string();
    if let Some(end) = text.find(" (os error ") {
        text.truncate(end);
    }
    text
}

/// Writes one line to stderr. A stderr that is closed, or full for 200 ms, loses the line, and the
/// run goes on.
pub fn log(line: &str) {
    if stderr_accepts(200) {
        // In one piece: a signal may come at any time.
        let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
    }
}

/// Waits up to this many milliseconds until a write to stderr would not block. Async-signal-safe.
pub fn stderr_accepts(milliseconds: i32) -> bool {
    let mut poll = libc::pollfd {
        fd: libc::STDERR_FILENO,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one structure is passed, and it is valid.
    unsafe { libc::poll(&mut poll, 1, milliseconds) == 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_has_its_status_and_says_what_to_do() {
        for (state, status, next) in [
            (State::Usage, 2, "see --help"),
            (State::Refused, 3, "check the address"),
            (State::Unchanged, 4, "run again later"),
            (State::NotRevoked, 5, "--only revoke"),
            (State::NotDelivered, 6, "fix the output or the command"),
            (State::Unknown, 7, "run again in a few minutes"),
            (State::NotVerified, 8, "if it cannot, run again"),
        ] {
            assert_eq!(state as u8, status);
            let line = Error::new(state, "it broke").to_string();
            assert!(
                line.starts_with("it broke; ") && line.contains(next),
                "{line}"
            );
            assert!(!line.contains('\n'), "{line}");
        }
    }
}
