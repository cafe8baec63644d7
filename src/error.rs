//! The error that ends a run, the state that it leaves the client in, and the log on stderr.

use std::fmt;
use std::io::{self, Write};
use std::os::fd::RawFd;

/// The state that a run leaves the client in if it ends now. The number is the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Usage = 2,
    Refused = 3,
    Unreached = 4,
    NotRevoked = 5,
    NotDelivered = 6,
    Unknown = 7,
    NotVerified = 8,
}
use State::{NotDelivered, NotRevoked, NotVerified, Refused, Unknown, Unreached, Usage};

impl State {
    const ALL: [State; 7] = [
        Usage,
        Refused,
        Unreached,
        NotRevoked,
        NotDelivered,
        Unknown,
        NotVerified,
    ];
    pub fn status(self) -> u8 {
        self as u8
    }

    pub fn from_status(status: u8) -> State {
        State::ALL
            .into_iter()
            .find(|state| state.status() == status)
            .unwrap_or(Unknown)
    }

    /// Returns the state in words, which people grep for, and what to do next.
    pub fn words(self) -> &'static str {
        match self {
            Usage => "nothing was sent; see --help",
            Refused => {
                "the client's secret is unchanged; check the address, CA, proxy, key and client id"
            }
            Unreached => "the client's secret is unchanged; run again later",
            NotRevoked => {
                "the new secret was delivered, but the consent may still be in force; run again with --only revoke"
            }
            NotDelivered => {
                "the client has a new secret that may not have been delivered; fix the output or the command, then run again"
            }
            Unknown => {
                "the client may or may not have a new secret; treat the old secret as revoked and run again in a few minutes"
            }
            NotVerified => {
                "the new secret was delivered, but not verified; check that the client can sign in with it"
            }
        }
    }
}

/// What ended the run. It is displayed as the whole line for the person on call, without the program's name.
#[derive(Debug)]
pub struct Error {
    pub state: State,
    /// What happened, naming the argument, variable, host or file. Contains no secret.
    pub what: String,
    pub words: &'static str,
}

impl Error {
    pub fn new(state: State, what: impl Into<String>) -> Error {
        Error {
            state,
            what: what.into(),
            words: state.words(),
        }
    }

    pub fn usage(what: impl Into<String>) -> Error {
        Error::new(Usage, what)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.words)
    }
}

/// Returns an I/O error in the system's words, without the number that Rust adds.
pub fn io_message(error: &io::Error) -> String {
    let words = error.to_string();
    words
        .split(" (os error ")
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// Writes one line to stderr. It is dropped if stderr is closed, or full for 200 ms: neither changes what the run does.
pub fn log(line: &str) {
    if wait_writable(libc::STDERR_FILENO, 200) {
        // In one piece: a signal may come at any time.
        let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
    }
}

/// Waits this many milliseconds, or forever if negative, until bytes or an error are possible. Async-signal-safe.
pub fn wait_writable(fd: RawFd, milliseconds: i32) -> bool {
    let mut fd = libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one structure is passed, and it is valid.
    unsafe { libc::poll(&mut fd, 1, milliseconds) == 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_has_its_status_and_says_what_to_do() {
        for (status, next) in [
            (2, "see --help"),
            (3, "check the address"),
            (4, "run again later"),
            (5, "--only revoke"),
            (6, "fix the output or the command"),
            (7, "run again in a few minutes"),
            (8, "check that the client can sign in"),
        ] {
            let state = State::from_status(status);
            assert_eq!(state.status(), status);
            let line = Error::new(state, "it broke").to_string();
            assert!(
                line.starts_with("it broke; ") && line.contains(next) && !line.contains('\n'),
                "{line}"
            );
        }
    }
}
