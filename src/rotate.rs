//! The job: the steps in order, and what each answer means.
//!
//! ```text
//! open the output -> [sign in] -> PATCH regenerate -> hand the secret over -> DELETE revoke -> [verify]
//! ```

use std::thread;
use std::time::{Duration, Instant};

use crate::cli::{Key, Options, Steps};
use crate::error::{Error, State};
use crate::io::say;
use crate::output::{Output, is_fifo};
use crate::portal::{Ask, Content, End, Failure, Portal, Reply};
use crate::reply::{
    error_text, free_text, introspection, is_json, is_plain_success, new_secret, signature, takes_secret,
    target,
};
use crate::retry;
use crate::secret::Secret;
use crate::signal;

/// A signature lives five minutes; an older one than this is fetched anew.
const SIGNATURE_MAX_AGE: Duration = Duration::from_secs(4 * 60);

/// How long any other call than the PATCH may take. The PATCH may use all the time that is left.
const SAFE_CALL: Duration = Duration::from_secs(30);

/// How long there is for the hand-over once there is a secret, then for the revoke, and then for the
/// proof, even where the time is up.
const LAST_STEP: Duration = Duration::from_secs(10);

/// Does what the options ask for.
///
/// # Errors
///
/// The state in which the client is left, and why.
pub fn run(options: &Options) -> Result<(), Error> {
    signal::handle();
    let mut job = Job::new(options)?;
    match options.steps {
        Steps::Check => {
            job.test_output()?;
            job.check()
        }
        Steps::Revoke => job.revoke(),
        Steps::All | Steps::Regenerate => {
            let mut output = job.open_output()?;
            let line = job.regenerate()?;
            output.hand_over(&line, job.last_step())?;
            job.handed_over();
            if options.steps == Steps::All {
                job.revoke()?;
            }
            if options.verify {
                job.verify()?;
            }
            Ok(())
        }
    }
}

struct Job<'a> {
    options: &'a Options,
    /// When the run is to end: no wait passes it.
    deadline: Instant,
    portal: Portal,
    /// The reply with which the portal gave no signature.
    no_sign_in: Option<Reply>,
    /// Once the secret is handed over: when the step that is under way is to end.
    step_until: Option<Instant>,
}

impl<'a> Job<'a> {
    fn new(options: &'a Options) -> Result<Job<'a>, Error> {
        let deadline = Instant::now() + options.timeout;
        let key = options.key.read(deadline)?;
        for (name, text) in [("CLIENT_ID", &options.client), ("the address", &options.url.host)] {
            if text.eq_ignore_ascii_case(key.expose()) {
                let what = format!("{name} is the key, which belongs in DOCSPACE_API_KEY alone");
                return Err(Error::usage(what));
            }
        }
        let portal = Portal::new(options, key, deadline)?;
        Ok(Job { options, deadline, portal, no_sign_in: None, step_until: None })
    }

    /// Sees that the output can be opened. A FIFO is left alone: its reader would take the end of this
    /// for the end of all.
    fn test_output(&self) -> Result<(), Error> {
        match &self.options.output {
            Some(path) if is_fifo(path).unwrap_or(false) => Ok(()),
            _ => self.open_output().map(drop),
        }
    }

    fn open_output(&self) -> Result<Output, Error> {
        let output = Output::open(self.options.output.as_deref(), self.deadline)?;
        match &self.options.key {
            Key::InFile(key) if output.is_at(key) => {
                Err(Error::usage("the output is the file that holds the key"))
            }
            _ => Ok(output),
        }
    }

    /// Gets the client a new secret; returns what is to be handed over.
    fn regenerate(&mut self) -> Result<Secret, Error> {
        let reply = self.call(Call::Regenerate)?;
        let (secret, object) = new_secret(&reply.body).map_err(|why| {
            let what = format!("{} and {why}", self.describe_reply(Call::Regenerate, &reply));
            Error::new(State::Unknown, what)
        })?;
        signal::note("while the new secret was being written", State::SecretLost);
        self.log("Client secret has been regenerated.");
        let line = if self.options.json { object } else { Secret::new(secret.expose()) };
        self.portal.keep(secret);
        Ok(line)
    }

    /// When the step that is due now must end at the latest.
    fn last_step(&self) -> Instant {
        self.deadline.max(Instant::now() + LAST_STEP)
    }

    fn handed_over(&mut self) {
        self.step_until = Some(self.last_step());
        signal::note("after the new secret was handed over", State::ConsentKept);
    }

    /// Takes the caller's consent back.
    fn revoke(&mut self) -> Result<(), Error> {
        let revoked = self.call(Call::Revoke);
        revoked.map_err(|error| match self.step_until {
            Some(_) => Error::new(State::ConsentKept, error.what),
            None => error,
        })?;
        self.log("Client consent revoked for client ID.");
        Ok(())
    }

    /// Proves that the new secret is the live one: two runs at once are both told 200, and the
    /// secret of the faster is dead.
    fn verify(&mut self) -> Result<(), Error> {
        self.step_until = Some(self.last_step());
        let unproved = |what: String| Error::new(State::Unproved, what);
        let reply = self.call(Call::Introspect);
        let reply =
            reply.map_err(|error| unproved(error.what + ", so the new secret could not be proved"))?;
        match takes_secret(&reply) {
            Some(true) => {
                self.log("The new secret is live.");
                Ok(())
            }
            Some(false) => Err(unproved(format!(
                "{} does not take the new secret: another run or a late PATCH overtook this one",
                self.portal.host()
            ))),
            None => Err(unproved(format!(
                "{}, which is no introspection, so the new secret could not be proved",
                self.describe_reply(Call::Introspect, &reply)
            ))),
        }
    }

    /// Sees that portal, key and client are right, and changes nothing.
    fn check(&mut self) -> Result<(), Error> {
        self.call(Call::Client)?;
        let key = if self.portal.has_api_key() { "an API key" } else { "a bearer token" };
        let way = match self.portal.signature_age() {
            Some(_) => "that signs in",
            None => "without a sign-in",
        };
        let (url, client) = (self.portal.url(), &self.options.client);
        self.log(&format!("Ready: {url} has client {client}, asked with {key} {way}."));
        Ok(())
    }

    /// Makes one call: signs in where the portal wants that, and makes the call again where that is
    /// safe and there is time.
    fn call(&mut self, call: Call) -> Result<Reply, Error> {
        let mut attempt = 0;
        loop {
            if call.is_signed() {
                self.sign_in_if_due()?;
            }
            let outcome = self.request(call);
            let mut verdict = judge(call, &outcome, self.may_sign_in());
            let refused = verdict == Verdict::SignIn;
            if refused {
                // Shown with what follows, so that nobody reads a good run's log as a failure.
                self.log_outcome(call, &outcome, ", so signing in first");
                if self.sign_in()? {
                    continue;
                }
                verdict = judge(call, &outcome, false);
            } else if verdict != Verdict::Again {
                self.log_outcome(call, &outcome, "");
            }
            let (state, outcome) = match (verdict, outcome) {
                (Verdict::Done, Ok(reply)) => return Ok(reply),
                (Verdict::Again, outcome) => {
                    self.wait(call, attempt, &outcome, refused)?;
                    attempt += 1;
                    continue;
                }
                (Verdict::Unknown, outcome) => (State::Unknown, outcome),
                (_, outcome) => (State::Refused, outcome),
            };
            return Err(Error::new(state, self.describe(call, &outcome)));
        }
    }

    /// Sends one request, within the limits for it.
    fn request(&self, call: Call) -> Result<Reply, Failure> {
        let state = match call {
            Call::Regenerate => State::Unknown,
            _ => self.state(call),
        };
        signal::note(&format!("during [{}]", call.name()), state);
        let until = self.step_until.unwrap_or(self.deadline);
        let limit = limit(call, until.saturating_duration_since(Instant::now()));
        let client = &self.options.client;
        let content = match call {
            // HTTP wants to be told that a PATCH's body is empty (RFC 9110, section 8.6).
            Call::Regenerate => Content::KeyAndEmptyBody,
            // It gets no key, whatever happens.
            Call::Introspect => Content::Form(match self.portal.new_secret() {
                Some(secret) => introspection(client, secret),
                None => Secret::new(""),
            }),
            Call::Token | Call::Client | Call::Revoke => Content::Key,
        };
        // A client's own reply holds its live secret, and perhaps a large logo.
        let status_only = call == Call::Client;
        let ask = Ask { method: call.method(), path: call.path(client), content, status_only };
        self.portal.send(&ask, limit)
    }

    /// Waits before the next attempt; ends the call where that would pass the limit. The outcome
    /// may have its line in the log already.
    fn wait(
        &self,
        call: Call,
        attempt: u32,
        outcome: &Result<Reply, Failure>,
        logged: bool,
    ) -> Result<(), Error> {
        let wait = retry::wait(attempt, outcome.as_ref().ok());
        let seconds = wait.as_secs_f64();
        if Instant::now() + wait >= self.deadline {
            if !logged {
                self.log_outcome(call, outcome, "");
            }
            let what = format!(
                "{}, and the wait of {seconds} s before the next attempt would pass the limit of {} s",
                self.describe(call, outcome),
                self.options.timeout.as_secs_f64()
            );
            return Err(Error::new(State::Unreached, what));
        }
        signal::note(&format!("before another [{}]", call.name()), self.state(call));
        match logged {
            true => self.log(&format!("[{}] Trying again in {seconds} s", call.name())),
            false => self.log_outcome(call, outcome, &format!(", trying again in {seconds} s")),
        }
        thread::sleep(wait);
        Ok(())
    }

    /// The state in which the run leaves the client if it ends now, while no PATCH is under way.
    fn state(&self, call: Call) -> State {
        match self.step_until {
            Some(_) if call == Call::Introspect => State::Unproved,
            Some(_) => State::ConsentKept,
            None => State::Unreached,
        }
    }

    fn sign_in_if_due(&mut self) -> Result<(), Error> {
        let age = self.portal.signature_age();
        let due = sign_in_due(age, self.portal.has_api_key(), self.no_sign_in.is_some());
        if !due || self.sign_in()? {
            return Ok(());
        }
        let Some(reply) = &self.no_sign_in else {
            return Ok(());
        };
        let why = match reply.status {
            401 => ": the key is wrong or no longer valid",
            403 => ": the key lacks global rights to read and write",
            300..=399 => "",
            _ => {
                self.log("This portal has no sign-in: going on with the key alone.");
                return Ok(());
            }
        };
        let what = self.describe_reply(Call::Token, reply) + why;
        Err(Error::new(State::Refused, what))
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
}

/// The calls that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Token,
    Client,
    Regenerate,
    Revoke,
    Introspect,
}

impl Call {
    /// The name in the log, as in the vendor's sample.
    fn name(self) -> &'static str {
        match self {
            Call::Token => "GET token",
            Call::Client => "GET client",
            Call::Regenerate => "PATCH regenerate",
            Call::Revoke => "DELETE revoke",
            Call::Introspect => "POST introspect",
        }
    }

    fn method(self) -> &'static str {
        match self {
            Call::Token | Call::Client => "GET",
            Call::Regenerate => "PATCH",
            Call::Revoke => "DELETE",
            Call::Introspect => "POST",
        }
    }

    fn path(self, client: &str) -> String {
        match self {
            Call::Token => "/api/2.0/security/oauth2/token".to_owned(),
            Call::Client => format!("/api/2.0/clients/{client}"),
            Call::Regenerate => format!("/api/2.0/clients/{client}/regenerate"),
            Call::Revoke => format!("/api/2.0/clients/{client}/revoke"),
            Call::Introspect => "/oauth2/introspect".to_owned(),
        }
    }

    /// Whether it is one of the calls on a client, which want a signature.
    fn is_signed(self) -> bool {
        matches!(self, Call::Client | Call::Regenerate | Call::Revoke)
    }
}

/// What the outcome of a request means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It is an answer to go on with.
    Done,
    /// Sign in, then the same again.
    SignIn,
    /// It did nothing, or may be done twice: the same again, while there is time.
    Again,
    /// The portal or the proxy says no.
    Refused,
    /// The portal may have done it, and does not say.
    Unknown,
}

/// Judges an outcome. An unanswered PATCH may still happen minutes later and would kill the secret
/// that a second one brought: it is repeated only where the last one surely did nothing.
fn judge(call: Call, outcome: &Result<Reply, Failure>, may_sign_in: bool) -> Verdict {
    let unanswered = match call {
        Call::Regenerate => Verdict::Unknown,
        Call::Token | Call::Client | Call::Revoke | Call::Introspect => Verdict::Again,
    };
    let reply = match outcome {
        Err(Failure::Refused(_)) => return Verdict::Refused,
        Err(Failure::NotSent(_)) => return Verdict::Again,
        Err(Failure::NoReply(_)) => return unanswered,
        Ok(reply) => reply,
    };
    match (call, reply.status, &reply.end) {
        (_, 401 | 403 | 429, _) if may_sign_in && call.is_signed() => Verdict::SignIn,
        (_, 429, _) => Verdict::Again,
        (Call::Regenerate, 200, End::Whole) => Verdict::Done,
        (Call::Regenerate, 200..=299, _) => Verdict::Unknown,
        (_, 200..=299, End::Cut(_)) => Verdict::Again,
        // Whether the portal has a sign-in, and what it says of a secret, is for the caller to read.
        (Call::Token, 200..=499 | 501, _) => Verdict::Done,
        (Call::Introspect, 200 | 401, _) => Verdict::Done,
        (Call::Client, 200, _) if is_json(reply) => Verdict::Done,
        (Call::Revoke, 200..=299, End::Whole) if is_plain_success(&reply.body) => Verdict::Done,
        (_, 200..=499, _) => Verdict::Refused,
        _ => unanswered,
    }
}

/// How long one request may take, of the time that is left.
fn limit(call: Call, left: Duration) -> Duration {
    match call {
        Call::Regenerate => left,
        Call::Token | Call::Client | Call::Revoke | Call::Introspect => left.min(SAFE_CALL),
    }
}

/// Whether to sign in before a call: for an API key, which no portal takes on these calls, unless
/// the portal gives no signature; and when the signature is about to end.
fn sign_in_due(signature_age: Option<Duration>, api_key: bool, no_sign_in: bool) -> bool {
    match signature_age {
        Some(age) => age > SIGNATURE_MAX_AGE,
        None => api_key && !no_sign_in,
    }
}

/// What is said of it all.
impl Job<'_> {
    /// What an outcome was, naming the host.
    fn describe(&self, call: Call, outcome: &Result<Reply, Failure>) -> String {
        let (host, name) = (self.portal.host(), call.name());
        match outcome {
            Err(Failure::Refused(why)) => why.clone(),
            Err(Failure::NotSent(why)) => format!("{host} was not reached for [{name}]: {why}"),
            Err(Failure::NoReply(why)) => format!("{host} gave no answer to [{name}]: {why}"),
            Ok(reply) => {
                let mut words = self.describe_reply(call, reply);
                if let Some(reply) = &self.no_sign_in {
                    words += &format!(", and [GET token] with status {}", reply.status);
                }
                words
            }
        }
    }

    /// What an answer was, with what the portal says in it.
    fn describe_reply(&self, call: Call, reply: &Reply) -> String {
        let (host, name, status) = (self.portal.host(), call.name(), reply.status);
        if let (300..=399, Some(location)) = (status, &reply.location) {
            let (origin, path) = target(location);
            let to = self.portal.shown(&origin) + &self.portal.quoted(path);
            return format!(
                "{host} redirects [{name}] (status {status}) to {to}: give --url the portal's own address"
            );
        }
        let mut words = format!("{host} answered [{name}] with status {status}");
        match &reply.end {
            // Only an error's text is shown, and a whole one: else it may hold the secret, or half a key.
            // An introspection's may hold it as a form has it.
            End::Whole if status >= 300 && call != Call::Introspect => {
                // What fails after the change was made may hold the secret in any form.
                let unknown = call == Call::Regenerate && status >= 500;
                let text = error_text(&reply.body);
                if let Some(text) = text.or_else(|| free_text(&reply.body).filter(|_| !unknown)) {
                    words += &format!(" ({})", self.portal.quoted(&text));
                }
            }
            End::Whole if matches!(call, Call::Revoke | Call::Client) => {
                words += " and a page that no portal sends";
            }
            End::Whole => {}
            End::TooLong => words += " and more than 64 KiB",
            End::Cut(why) => words += &format!(", cut short: {why}"),
        }
        words
    }

    /// One line for a request, with what follows from it. One that ends the run without an answer
    /// has its line in the error.
    fn log_outcome(&self, call: Call, outcome: &Result<Reply, Failure>, follows: &str) {
        let was = match outcome {
            Err(_) if follows.is_empty() => return,
            Err(Failure::Refused(why) | Failure::NotSent(why)) => format!("Not sent: {why}"),
            Err(Failure::NoReply(why)) => format!("No answer: {why}"),
            Ok(Reply { status: status @ 200..=299, end: End::Cut(why), .. }) => {
                format!("Status: {status}, cut short: {why}")
            }
            Ok(reply) => format!("Status: {}", reply.status),
        };
        self.log(&format!("[{}] {was}{follows}", call.name()));
    }

    fn log(&self, line: &str) {
        if !self.options.quiet {
            say(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: u16, cut: bool) -> Result<Reply, Failure> {
        let end = if cut { End::Cut("cut".to_owned()) } else { End::Whole };
        Ok(Reply { status, end, ..Reply::default() })
    }

    #[test]
    fn what_follows_from_an_outcome() {
        use Call::{Client, Introspect, Regenerate, Revoke, Token};
        for call in [Token, Client, Regenerate, Revoke, Introspect] {
            let unanswered = if call == Regenerate { Verdict::Unknown } else { Verdict::Again };
            for sign_in in [false, true] {
                let failed = |failure| judge(call, &Err(failure), sign_in);
                assert_eq!(failed(Failure::Refused(String::new())), Verdict::Refused);
                assert_eq!(failed(Failure::NotSent(String::new())), Verdict::Again);
                assert_eq!(failed(Failure::NoReply(String::new())), unanswered);
            }
            for status in [401, 403, 429] {
                let signs_in = judge(call, &outcome(status, false), true) == Verdict::SignIn;
                let wants_signature = matches!(call, Client | Regenerate | Revoke);
                assert_eq!(signs_in, wants_signature, "{call:?} {status}");
            }
            assert_eq!(judge(call, &outcome(429, true), false), Verdict::Again);
            for status in [101, 500, 502, 503, 504, 599, 999] {
                assert_eq!(judge(call, &outcome(status, false), true), unanswered, "{call:?} {status}");
            }
        }
        let too_long =
            |call| judge(call, &Ok(Reply { status: 200, end: End::TooLong, ..Reply::default() }), false);
        assert_eq!(too_long(Regenerate), Verdict::Unknown);
        assert_eq!(too_long(Revoke), Verdict::Refused);
        assert_eq!(too_long(Token), Verdict::Done);
        for (call, status, cut, wanted) in [
            (Regenerate, 200, false, Verdict::Done),
            (Regenerate, 200, true, Verdict::Unknown),
            (Regenerate, 201, false, Verdict::Unknown),
            (Regenerate, 204, false, Verdict::Unknown),
            (Regenerate, 501, false, Verdict::Unknown),
            (Regenerate, 301, false, Verdict::Refused),
            (Regenerate, 400, true, Verdict::Refused),
            (Regenerate, 403, false, Verdict::Refused),
            (Revoke, 200, false, Verdict::Done),
            (Revoke, 200, true, Verdict::Again),
            (Revoke, 204, false, Verdict::Done),
            (Revoke, 307, false, Verdict::Refused),
            (Revoke, 404, false, Verdict::Refused),
            (Revoke, 501, false, Verdict::Again),
            (Token, 200, false, Verdict::Done),
            (Token, 200, true, Verdict::Again),
            (Token, 302, false, Verdict::Done),
            (Token, 401, false, Verdict::Done),
            (Token, 404, true, Verdict::Done),
            (Token, 501, false, Verdict::Done),
            // Not called JSON.
            (Client, 200, false, Verdict::Refused),
            (Client, 404, false, Verdict::Refused),
            (Client, 503, false, Verdict::Again),
            (Introspect, 200, false, Verdict::Done),
            (Introspect, 200, true, Verdict::Again),
            (Introspect, 401, false, Verdict::Done),
            (Introspect, 403, false, Verdict::Refused),
            (Introspect, 404, false, Verdict::Refused),
        ] {
            assert_eq!(judge(call, &outcome(status, cut), false), wanted, "{call:?} {status} {cut}");
        }
    }

    #[test]
    fn limits_of_a_request() {
        for (call, left, wanted) in [
            (Call::Regenerate, 120, 120),
            (Call::Regenerate, 3, 3),
            (Call::Token, 120, 30),
            (Call::Revoke, 120, 30),
            (Call::Revoke, 3, 3),
            (Call::Revoke, 0, 0),
            (Call::Client, 120, 30),
            (Call::Introspect, 120, 30),
        ] {
            let limit = limit(call, Duration::from_secs(left));
            assert_eq!(limit, Duration::from_secs(wanted), "{call:?} {left}");
        }
    }

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
