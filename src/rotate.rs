//! The job: the steps in order, and what each reply leads to.
//!
//! ```text
//! open the output -> [sign in] -> HEAD client -> PATCH regenerate -> hand over -> DELETE revoke -> [verify]
//!                                     `--check` stops here
//! ```

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::call::{Call, Verdict, describe, judge, summarize, without_signature};
use crate::cli::{Options, Source, Steps, client_id};
use crate::error::{Error, State, io_message};
use crate::output::{Destination, Failed, Output, is_fifo, log};
use crate::portal::Portal;
use crate::reply::{Failure, Outcome, Reply, is_json, new_secret, signature, takes_secret};
use crate::retry;
use crate::secret::{MAX_KEY, Secret};
use crate::signal;

/// A signature lives five minutes; one older than this is fetched anew.
const SIGNATURE_MAX_AGE: Duration = Duration::from_secs(4 * 60);

/// How long the hand-over may take at least, whatever the time left.
const HAND_OVER_GRACE: Duration = Duration::from_secs(30);

/// How long the revoke, and then the verification, may take at least.
const LAST_STEP_GRACE: Duration = Duration::from_secs(10);

/// Does what the options ask for.
///
/// # Errors
///
/// The state in which the client is left, and why.
pub fn run(options: &Options) -> Result<(), Error> {
    let deadline = Instant::now() + options.timeout;
    signal::install();
    signal::set_timer(options.timeout);
    let result = Job::new(options, deadline).and_then(|mut job| job.run());
    signal::settle();
    result
}

struct Job<'a> {
    options: &'a Options,
    /// When the time is up: no wait passes it.
    deadline: Instant,
    portal: Portal<'a>,
    /// The reply with which the portal gave no signature.
    no_sign_in: Option<Reply>,
    /// The state in which the client is left if the run fails now, with no PATCH under way.
    state: State,
}

/// The steps.
impl<'a> Job<'a> {
    fn run(&mut self) -> Result<(), Error> {
        match self.options.steps {
            Steps::Revoke => return self.revoke(),
            Steps::Check => {
                self.try_output()?;
                return self.look();
            }
            Steps::All | Steps::Regenerate => {}
        }
        let mut output = self.open_output()?;
        self.look()?;
        let text = self.regenerate()?;
        self.hand_over(&mut output, &text)?;
        if self.options.steps == Steps::All {
            self.revoke()?;
        }
        if self.options.verify {
            self.verify()?;
        }
        Ok(())
    }

    fn new(options: &'a Options, deadline: Instant) -> Result<Job<'a>, Error> {
        let key = match &options.key {
            Source::Given(key) => Secret::new(key.expose()),
            Source::InFile(path) => read_setting("DOCSPACE_API_KEY_FILE", path, Secret::key)?,
        };
        let client = match &options.client {
            Source::Given(id) => id.clone(),
            Source::InFile(path) => read_setting("DOCSPACE_CLIENT_ID_FILE", path, client_id)?,
        };
        let proxy = options.proxy.as_ref().map(|proxy| (proxy.variable, &proxy.host));
        for (name, text) in
            [("CLIENT_ID", &client), ("the address", &options.url.host)].into_iter().chain(proxy)
        {
            if text.eq_ignore_ascii_case(key.expose()) {
                let what = format!("{name} is the API key: put it only in DOCSPACE_API_KEY");
                return Err(Error::usage(what));
            }
        }
        let portal = Portal::new(options, client, key)?;
        Ok(Job { options, deadline, portal, no_sign_in: None, state: State::Unreached })
    }

    /// Sees that the output can be opened. A FIFO is left alone: opened and closed, it would give its
    /// reader an end of file.
    fn try_output(&self) -> Result<(), Error> {
        match &self.options.destination {
            Destination::File(path) if is_fifo(path) => Ok(()),
            _ => self.open_output().map(drop),
        }
    }

    fn open_output(&self) -> Result<Output, Error> {
        let name = self.output_name();
        let (waits, cant) = match &self.options.destination {
            Destination::File(path) if is_fifo(path) => ("while waiting for a reader of", "write to"),
            Destination::Command(_) => ("while looking up", "run"),
            Destination::File(_) | Destination::Stdout => ("while opening", "write to"),
        };
        self.note(&format!("{waits} {name}"));
        // A store for many clients wants the name.
        let env = [
            ("DOCSPACE_CLIENT_ID", self.portal.client.clone()),
            ("DOCSPACE_BASE_URL", self.options.url.to_string()),
        ];
        let output = Output::open(&self.options.destination, &env).map_err(|error| {
            Error::usage(format!("can't {cant} {name}: {}", self.portal.redact(&io_message(&error))))
        })?;
        let cacert = self.options.cacert.as_ref().map(|(path, _)| path.as_path());
        let read = [self.options.key.file(), self.options.client.file(), cacert];
        if read.into_iter().flatten().any(|path| output.is_at(path)) {
            return Err(Error::usage(format!("{name} is a file that this run reads")));
        }
        Ok(output)
    }

    fn output_name(&self) -> String {
        let redact = |text: &OsStr| self.portal.redact(&text.to_string_lossy());
        match &self.options.destination {
            Destination::Stdout => "stdout".to_owned(),
            Destination::File(path) => format!("--output {}", redact(path.as_os_str())),
            Destination::Command(words) => {
                format!("the command {}", words.first().map(|name| redact(name)).unwrap_or_default())
            }
        }
    }

    /// Looks before it leaps: sees that portal, key and client are right, and changes nothing.
    fn look(&mut self) -> Result<(), Error> {
        let reply = self.call(Call::Look)?;
        let client = self.portal.redact(&self.portal.client);
        let (check, signed) = (self.options.steps == Steps::Check, self.portal.signature_age().is_some());
        let why = match reply.status {
            200 if is_json(&reply) => {
                if !check {
                    return Ok(());
                }
                let url = self.portal.redact(&self.options.url.to_string());
                let key = if self.portal.has_api_key() { "an API key" } else { "a bearer token" };
                let way = if signed { "with sign-in" } else { "without sign-in" };
                self.log(&format!("Ready: {url} has client {client}, by {key} {way}."));
                return Ok(());
            }
            405 | 501 if !check => {
                self.log("This portal can't be checked for the client beforehand: continuing.");
                return Ok(());
            }
            405 | 501 => ": it can't be checked for the client beforehand".to_owned(),
            404 => format!(": it has no client {client} that the key's user may manage"),
            403 if signed => ": the role of the key's user does not allow it".to_owned(),
            _ => String::new(),
        };
        Err(Error::new(State::Refused, self.describe_both(Call::Look, &Ok(reply)) + &why))
    }

    /// Gets the client a new secret; returns the text that is to be handed over.
    fn regenerate(&mut self) -> Result<Secret, Error> {
        let reply = self.call(Call::Regenerate)?;
        let new = new_secret(&reply.body).map_err(|why| {
            let what = format!("{} and {why}", self.describe(Call::Regenerate, Ok(&reply)));
            Error::new(State::Unknown, what)
        })?;
        let text = if self.options.json { &new.object } else { &new.secret };
        let (waits, newline) = match self.options.destination {
            // Stores keep every byte.
            Destination::Command(_) => ("while waiting for", ""),
            _ if self.options.newline => ("while writing the new secret to", "\n"),
            _ => ("while writing the new secret to", ""),
        };
        let text = Secret::new(format!("{}{newline}", text.expose()));
        self.portal.keep(new.secret);
        self.note(&format!("{waits} {}", self.output_name()));
        self.log("Client secret has been regenerated.");
        Ok(text)
    }

    /// Hands the secret over. Signals are held until then: a cancelled job does not lose it.
    fn hand_over(&mut self, output: &mut Output, text: &Secret) -> Result<(), Error> {
        output.hand_over(text.expose().as_bytes()).map_err(|failed| {
            let name = self.output_name();
            let redact = |error| self.portal.redact(&io_message(&error));
            let what = match failed {
                Failed::Write(error) => {
                    format!("the new secret could not be written to {name}: {}", redact(error))
                }
                Failed::Start(error) => format!("{name} could not be started: {}", redact(error)),
                Failed::Ended(how) => format!("{name} {how}"),
            };
            let signal = signal::held().map(|signal| format!(", and {signal} came meanwhile"));
            Error::new(self.state, what + &signal.unwrap_or_default())
        })?;
        let (state, left) = match (self.options.steps, self.options.verify) {
            (Steps::All, true) => (State::NotRevoked, "[DELETE revoke] and [POST introspect]"),
            (Steps::All, false) => (State::NotRevoked, "[DELETE revoke]"),
            (_, true) => (State::NotVerified, "[POST introspect]"),
            (_, false) => return Ok(()),
        };
        self.begin(state, LAST_STEP_GRACE);
        self.note(&format!("before {left}"));
        signal::release();
        Ok(())
    }

    /// Revokes the caller's consent.
    fn revoke(&mut self) -> Result<(), Error> {
        self.call(Call::Revoke)?;
        let client = self.portal.redact(&self.portal.client);
        self.log(&format!("Client consent revoked for client {client}."));
        Ok(())
    }

    /// Sees that the new secret is the live one: two runs at once both get 200, and the secret of the
    /// faster one is revoked.
    fn verify(&mut self) -> Result<(), Error> {
        let reply = self.call(Call::Introspect)?;
        let what = match takes_secret(&reply) {
            Some(true) => {
                self.log("The new secret is live.");
                return Ok(());
            }
            Some(false) => format!(
                "{} rejects the new secret: another run or a late PATCH replaced it",
                self.portal.host()
            ),
            None => {
                format!(
                    "{}, which is not a reply to an introspection",
                    self.describe(Call::Introspect, Ok(&reply))
                )
            }
        };
        Err(Error::new(self.state, what))
    }
}

/// How a call is made.
impl Job<'_> {
    /// Makes one call: signs in where the portal wants that, and makes the call again where that is
    /// safe and there is time.
    fn call(&mut self, call: Call) -> Result<Reply, Error> {
        let mut attempt = 0;
        loop {
            if call.is_signed() {
                self.sign_in_if_due()?;
            }
            let once_sent = if call == Call::Regenerate { State::Unknown } else { self.state };
            let outcome = self.portal.send(call, self.state, once_sent);
            let mut verdict = judge(call, &outcome, self.may_sign_in());
            self.settle(call, verdict);
            if verdict == Verdict::SignIn {
                // Shown with what follows, so that nobody reads a good run's log as a failure.
                self.log(&format!("{}, so signing in first", summarize(call, &outcome)));
                if self.sign_in()? {
                    continue;
                }
                verdict = judge(call, &outcome, false);
            } else if verdict != Verdict::Retry && outcome.is_ok() {
                // Without a reply, the line is in the error.
                self.log(&summarize(call, &outcome));
            }
            let (state, outcome) = match (verdict, outcome) {
                (Verdict::Done, Ok(reply)) => return Ok(reply),
                (Verdict::Retry, outcome) => {
                    self.wait(call, attempt, &outcome)?;
                    attempt += 1;
                    continue;
                }
                (Verdict::Unknown, outcome) => (State::Unknown, outcome),
                (Verdict::Refused | Verdict::SignIn | Verdict::Done, outcome) => {
                    (self.state.refused(), outcome)
                }
            };
            let mut error = Error::new(state, self.describe_both(call, &outcome));
            if let (State::Refused, Err(Failure::RefusedByProxy(_))) = (state, &outcome) {
                error.next = "check the proxy and its user and password";
            }
            return Err(error);
        }
    }

    /// Waits before the next attempt; ends the call where that would pass the deadline.
    fn wait(&self, call: Call, attempt: u32, outcome: &Outcome) -> Result<(), Error> {
        let wait = retry::wait(attempt, outcome.as_ref().ok());
        let seconds = wait.as_millis() as f64 / 1e3;
        if Instant::now() + wait >= self.deadline {
            if outcome.is_ok() {
                self.log(&summarize(call, outcome));
            }
            let (what, limit) = (self.describe_both(call, outcome), self.options.timeout.as_secs_f64());
            let why = format!("the next attempt, in {seconds} s, would exceed the time limit of {limit} s");
            return Err(Error::new(self.state, format!("{what}, and {why}")));
        }
        self.note(&format!("before another {} at {}", call.name(), self.portal.peer()));
        self.log(&format!("{}, trying again in {seconds} s", summarize(call, outcome)));
        thread::sleep(wait);
        Ok(())
    }

    fn sign_in_if_due(&mut self) -> Result<(), Error> {
        let age = self.portal.signature_age();
        let due = sign_in_due(age, self.portal.has_api_key(), self.no_sign_in.is_some());
        if !due || self.sign_in()? {
            return Ok(());
        }
        let Some(reply) = &self.no_sign_in else { return Ok(()) };
        without_signature(reply.status)
            .map_err(|why| Error::new(self.state.refused(), self.describe(Call::Token, Ok(reply)) + why))?;
        self.log("This portal has no sign-in: continuing with the key alone.");
        Ok(())
    }

    /// Whether a refusal is a reason to sign in: a bearer other than an API key goes alone, as
    /// documented, until a portal refuses it.
    fn may_sign_in(&self) -> bool {
        self.portal.signature_age().is_none() && self.no_sign_in.is_none()
    }

    /// Turns the key into a signature, which later requests carry. False where the portal gives none.
    fn sign_in(&mut self) -> Result<bool, Error> {
        let reply = self.call(Call::Token)?;
        let signature = signature(&reply);
        let signed = signature.is_some();
        self.portal.sign(signature);
        self.no_sign_in = (!signed).then_some(reply);
        Ok(signed)
    }

    /// Updates the state that a signal or the timer reports, before a line of the log may wait for stderr.
    fn settle(&mut self, call: Call, verdict: Verdict) {
        match (verdict, call) {
            (Verdict::Refused | Verdict::Unknown, _) => signal::settle(),
            (Verdict::Done, Call::Regenerate) => {
                signal::hold();
                self.begin(State::NotHandedOver, HAND_OVER_GRACE);
            }
            (Verdict::Done, Call::Revoke) if self.options.verify => {
                self.begin(State::NotVerified, LAST_STEP_GRACE);
            }
            (Verdict::Done, Call::Revoke | Call::Introspect) => signal::settle(),
            (Verdict::Done, Call::Look) if self.options.steps == Steps::Check => signal::settle(),
            _ => {}
        }
        self.note(&format!("after {} at {}", call.name(), self.portal.peer()));
    }

    /// Begins the part of the run in which a failure leaves this state. It has some time even where
    /// the time is up.
    fn begin(&mut self, state: State, grace: Duration) {
        self.state = state;
        signal::set_timer(self.deadline.saturating_duration_since(Instant::now()).max(grace));
    }

    fn describe(&self, call: Call, outcome: Result<&Reply, &Failure>) -> String {
        describe(call, outcome, &self.portal.host(), |text| self.portal.redact(text))
    }

    /// The same, with the reply to the sign-in where that gave no signature.
    fn describe_both(&self, call: Call, outcome: &Outcome) -> String {
        let words = self.describe(call, outcome.as_ref());
        match &self.no_sign_in {
            Some(reply) if outcome.is_ok() => {
                format!("{words}, and {} with status {}", Call::Token.name(), reply.status)
            }
            _ => words,
        }
    }

    fn note(&self, what: &str) {
        signal::note(what, self.state);
    }

    fn log(&self, line: &str) {
        if !self.options.quiet {
            log(line);
        }
    }
}

/// Reads a file that holds a setting and nothing else. Its name is not shown: it is the key where
/// somebody took one variable for the other.
fn read_setting<T>(
    variable: &str,
    path: &Path,
    usable: impl Fn(&[u8]) -> Result<T, &'static str>,
) -> Result<T, Error> {
    signal::note(format!("while reading the file that {variable} names"), State::Unreached);
    let mut text = Vec::new();
    // Some more than a key may have, for white space: an endless file is refused, not read.
    let read = File::open(path).and_then(|file| file.take(MAX_KEY as u64 + 64).read_to_end(&mut text));
    let usable = match read {
        Ok(_) => usable(&text).map_err(str::to_owned),
        Err(error) => Err(format!("can't be read: {}", io_message(&error))),
    };
    usable.map_err(|why| Error::usage(format!("{variable}: the file that it names {why}")))
}

/// Whether to sign in before a call: for an API key, which no portal takes on these calls, unless
/// the portal gives no signature; and when the signature is about to end.
fn sign_in_due(signature_age: Option<Duration>, api_key: bool, no_sign_in: bool) -> bool {
    match signature_age {
        Some(age) => age > SIGNATURE_MAX_AGE,
        None => api_key && !no_sign_in,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_to_sign_in() {
        let age = |seconds| Some(Duration::from_secs(seconds));
        for (signature_age, api_key, no_sign_in, due) in [
            (None, true, false, true),
            (None, true, true, false),
            (None, false, false, false),
            (age(240), true, false, false),
            (age(241), true, false, true),
            (age(241), false, false, true),
        ] {
            let found = sign_in_due(signature_age, api_key, no_sign_in);
            assert_eq!(found, due, "{signature_age:?} {api_key} {no_sign_in}");
        }
    }
}
