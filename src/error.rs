//! The one error of the program: what happened, and the state in which it leaves the client.

use std::fmt;
use std::io;

/// The state in which a failed run leaves the client. Its number is the exit status: a contract
/// with the jobs that read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Invalid usage, setting, key file, output or command; nothing was sent.
    Usage = 2,
    /// Refused, or not to be trusted; nothing changed.
    Refused = 3,
    /// Not reached, or busy, until the time ran out; nothing changed.
    Unreached = 4,
    /// The new secret is handed over; the consent is not revoked.
    NotRevoked = 5,
    /// The client has a new secret that could not be handed over.
    NotHandedOver = 6,
    /// The PATCH may have arrived, and no clear answer came.
    Unknown = 7,
    /// The new secret is handed over; the portal does not take it, or could not be asked.
    NotVerified = 8,
}

impl State {
    /// The exit status.
    pub fn status(self) -> u8 {
        self as u8
    }

    /// The state in which a refusal leaves the client, where an end for another reason leaves this one.
    pub fn refused(self) -> State {
        match self {
            State::Unreached => State::Refused,
            state => state,
        }
    }

    /// The state in words.
    pub fn words(self) -> &'static str {
        match self {
            State::Usage => "nothing was sent",
            State::Refused | State::Unreached => "the client's secret is unchanged",
            State::NotRevoked => "the new secret is handed over, but the consent may still be in force",
            State::NotHandedOver => "the client has a new secret that may not have been handed over",
            State::Unknown => "the client may or may not have a new secret",
            State::NotVerified => "the new secret is handed over, but not verified",
        }
    }

    /// What to do next.
    pub fn next(self) -> &'static str {
        match self {
            State::Usage => "see --help",
            State::Refused => "check the address, CA, key and client id",
            State::Unreached => "run again later",
            State::NotRevoked => "run again with --only revoke",
            State::NotHandedOver => "fix the output or the command, then run again",
            State::Unknown => "treat the old secret as revoked and run again in a few minutes",
            State::NotVerified => "run again, one run at a time",
        }
    }
}

/// What ended the run. Its `Display` is the whole line for the person on call, without the program's name.
#[derive(Debug)]
pub struct Error {
    /// The state in which the client is now.
    pub state: State,
    /// What happened, naming the argument, variable, host or file. Holds no secret.
    pub what: String,
    /// What to do next.
    pub next: &'static str,
}

impl Error {
    /// An error that leaves the client in `state`.
    pub fn new(state: State, what: impl Into<String>) -> Error {
        Error { state, what: what.into(), next: state.next() }
    }

    /// A mistake found before anything was sent.
    pub fn usage(what: impl Into<String>) -> Error {
        Error::new(State::Usage, what)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}; {}", self.what, self.state.words(), self.next)
    }
}

/// An I/O error in the system's words, without the number that Rust adds.
pub fn io_message(error: &io::Error) -> String {
    let words = error.to_string();
    match words.find(" (os error ") {
        Some(end) => words[..end].to_owned(),
        None => words,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_has_its_number_and_says_what_to_do() {
        for (state, status, next) in [
            (State::Usage, 2, "see --help"),
            (State::Refused, 3, "check the address"),
            (State::Unreached, 4, "run again later"),
            (State::NotRevoked, 5, "--only revoke"),
            (State::NotHandedOver, 6, "fix the output or the command"),
            (State::Unknown, 7, "run again in a few minutes"),
            (State::NotVerified, 8, "one run at a time"),
        ] {
            let refused = if state == State::Unreached { State::Refused } else { state };
            assert_eq!(state.refused(), refused);
            let line = Error::new(state, "it broke").to_string();
            assert_eq!(state.status(), status, "{state:?}");
            assert!(line.starts_with("it broke; "), "{line}");
            assert!(line.contains(next), "{line}");
            assert!(!line.contains('\n'), "{line}");
        }
    }
}
