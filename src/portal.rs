//! Makes the calls: what is sent, when it is sent again, and what the log says about it.

use std::thread;
use std::time::Duration;

use crate::address::Proxy;
use crate::call::Call;
use crate::error::{Error, State, log};
use crate::failure::Failure;
use crate::http::Http;
use crate::reply::{self, NotDone, Reply, SignInReply};
use crate::secret::{HIDDEN, NewSecret, Secret, looks_like_secret, redact, shorten};
use crate::settings::Options;
use crate::signal;
use crate::words::server_words;

pub struct Portal<'a> {
    options: &'a Options,
    http: Http<'a>,
    signature: Option<Secret>,
    /// What a sign-in that issued no signature said, as in `status 403: Forbidden`.
    unsigned: Option<String>,
    new: Option<NewSecret>,
}

impl<'a> Portal<'a> {
    pub fn new(options: &'a Options) -> Portal<'a> {
        Portal {
            options,
            http: Http::new(options),
            signature: None,
            unsigned: None,
            new: None,
        }
    }

    /// Turns the key into a signature, which later calls carry beside the key. A server without
    /// such a sign-in gets the key alone.
    pub fn sign_in(&mut self) -> Result<(), Error> {
        let Options { key, mode, .. } = self.options;
        let read = |reply: &Reply| reply::sign_in(reply, key.is_api_key(), *mode);
        match self.call(Call::SignIn, read)? {
            SignInReply::Signature(signature) => self.signature = Some(signature),
            SignInReply::Unsigned {
                status,
                words,
                cause,
            } => {
                let mut why = vec![format!("status {status}")];
                why.extend(self.words(Call::SignIn, &words));
                why.extend(cause.map(|cause| self.redact_known(&cause)));
                let why = why.join(": ");
                self.log(&format!(
                    "The portal issued no signature ({why}): continuing with the key alone."
                ));
                self.unsigned = Some(why);
            }
        }
        Ok(())
    }

    /// Waits out an outage. Nearly any definite answer will do: if the id or the role is wrong, the
    /// PATCH says why.
    pub fn wait_until_ready(&self) -> Result<(), Error> {
        self.call(Call::Probe, reply::ready)?;
        Ok(())
    }

    /// Checks that the client exists, and says when the key expires.
    pub fn check(&self) -> Result<(), Error> {
        let read = |reply: &Reply| reply::client_exists(reply, self.has_signature());
        self.call(Call::Probe, read)?;
        // The rest is extra: nothing changes the status any more.
        signal::finish();
        let Options {
            client, url, key, ..
        } = self.options;
        let key = if key.is_api_key() {
            "API key"
        } else {
            "bearer token"
        };
        let signed_in = if self.has_signature() {
            "signed in"
        } else {
            "no sign-in"
        };
        self.log(&format!(
            "Ready: {} knows client {client} ({key}, {signed_in}).",
            url.text
        ));
        if let Ok(reply) = self.send(Call::Expiry)
            && let Some(date) = reply::expiry(&reply)
        {
            self.log(&format!("The API key expires on {date}."));
        }
        Ok(())
    }

    pub fn regenerate(&mut self) -> Result<&NewSecret, Error> {
        let read = |reply: &Reply| reply::regenerated(reply, self.has_signature());
        let new = self.call(Call::Regenerate, read)?;
        self.log("Client secret has been regenerated.");
        Ok(self.new.insert(new))
    }

    pub fn revoke(&self) -> Result<(), Error> {
        self.call(Call::Revoke, |reply| {
            reply::revoked(reply, self.has_signature())
        })?;
        self.log(&format!(
            "Client consent revoked for client {}.",
            self.options.client
        ));
        Ok(())
    }

    /// Checks that the new secret is live. Of two runs at once, only the later secret is.
    pub fn verify(&self) -> Result<(), Error> {
        // A portal may need some seconds to know the secret. It is asked 5 times in 10 s: its limit
        // is 10 times a minute (read in its source), and a second run has to fit.
        for seconds in [1, 2, 3, 4, 0] {
            if self.call(Call::Introspect, reply::is_live)? {
                self.log("The new secret is live.");
                return Ok(());
            }
            let wait = Duration::from_secs(seconds);
            if wait >= signal::time_left() {
                break;
            }
            thread::sleep(wait);
            signal::grant_time();
        }
        let what = format!(
            "{} rejects the new secret: another run or a late PATCH has replaced it, \
             or the app is disabled",
            &self.options.url.shown
        );
        Err(Error::new(State::NotVerified, what))
    }

    /// Makes a call, and repeats it while that is safe and there is time. Returns what `read` makes
    /// of the reply. docs/protocol.md has the whole rule: 'When a call is repeated'.
    fn call<T>(&self, call: Call, read: impl Fn(&Reply) -> Result<T, NotDone>) -> Result<T, Error> {
        let mut attempt = 0;
        loop {
            let result = self.send(call);
            let not_done = match reply::evaluate(call, &result, &read) {
                Ok(value) => {
                    self.log(&self.summarize(call, &result));
                    return Ok(value);
                }
                Err(not_done) => not_done,
            };
            if call == Call::Regenerate && matches!(not_done, NotDone::Busy(_)) {
                // It did nothing, so a deferred signal ends the run here.
                signal::enter(State::Unchanged);
            }
            let may_repeat = match not_done {
                NotDone::Busy(_) => true,
                NotDone::Unclear(_) => call.is_idempotent(),
                NotDone::Refused(_) => false,
            };
            let wait = reply::wait(attempt, &result);
            if !may_repeat || wait >= signal::time_left() {
                let mut error = self.error(call, &result, not_done);
                if may_repeat {
                    let note = format!("the next attempt in {wait:?} would exceed the time limit");
                    error.what += &format!(", and {note}");
                }
                return Err(error);
            }
            self.log_retry(call, attempt, &result, wait);
            thread::sleep(wait);
            attempt += 1;
            signal::grant_time();
        }
    }

    /// The line of the first retry shows the server's words.
    fn log_retry(&self, call: Call, attempt: u32, result: &Result<Reply, Failure>, wait: Duration) {
        let mut summary = self.summarize(call, result);
        if attempt == 0
            && let Ok(reply) = result
        {
            summary += &self.words_in_parentheses(call, reply);
        }
        self.log(&format!("{summary}, trying again in {wait:?}"));
    }

    /// Logs the status of a call that failed for good, and returns the error.
    fn error(&self, call: Call, result: &Result<Reply, Failure>, not_done: NotDone) -> Error {
        let state = match (signal::state(), &not_done) {
            // A refusal proves that the PATCH did nothing.
            (State::Unchanged | State::Unknown, NotDone::Refused(_)) => State::Refused,
            (state, _) => state,
        };
        let (NotDone::Busy(cause) | NotDone::Unclear(cause) | NotDone::Refused(cause)) = not_done;
        let what = match result {
            Ok(reply) => {
                self.log(&self.summarize(call, result));
                self.describe_reply(call, reply, cause.as_deref())
            }
            Err(failure) => self.describe_failure(call, failure),
        };
        Error::new(state, what)
    }

    fn send(&self, call: Call) -> Result<Reply, Failure> {
        signal::doing(format!("during {} at {}", call.name(), self.peer()));
        let Options { client, key, .. } = self.options;
        if let (Call::Introspect, Some(new)) = (call, &self.new) {
            // It authenticates with the new secret alone. The token can be any text.
            let form = vec![
                ("client_id", client.clone()),
                ("client_secret", new.secret.expose().to_owned()),
                ("token", "docspace-rotate".to_owned()),
            ];
            return self.http.send(call, vec![], form);
        }
        let mut headers = vec![("authorization", format!("Bearer {}", key.expose()))];
        if call.is_signed()
            && let Some(signature) = &self.signature
        {
            headers.push(("x-signature", signature.expose().to_owned()));
        }
        self.http.send(call, headers, vec![])
    }

    /// Returns the portal's host, and the proxy on the way to it.
    fn peer(&self) -> String {
        let host = &self.options.url.host;
        match &self.options.proxy {
            Some(Proxy {
                address, variable, ..
            }) => {
                format!("{host} through the proxy {address} from {variable}")
            }
            None => host.clone(),
        }
    }

    /// Says what the result of a call was, for the log.
    fn summarize(&self, call: Call, result: &Result<Reply, Failure>) -> String {
        match result {
            Ok(reply) => format!("{} Status: {}", call.name(), reply.status),
            Err(failure) => self.describe_failure(call, failure),
        }
    }

    fn describe_failure(&self, call: Call, failure: &Failure) -> String {
        let (peer, name) = (self.peer(), call.name());
        let why = self.redact_known(&failure.why);
        if failure.may_have_been_sent {
            return format!("{peer} gave no valid answer to {name}: {why}");
        }
        format!(
            "{peer}{} could not be reached for {name}: {why}",
            failure.tried
        )
    }

    fn describe_reply(&self, call: Call, reply: &Reply, cause: Option<&str>) -> String {
        let (peer, name) = (&self.options.url.shown, call.name());
        let words = self.words_in_parentheses(call, reply);
        let mut what = format!("{peer} answered {name} with status {}{words}", reply.status);
        if let Some(cause) = cause {
            what += &format!(": {}", self.redact_known(cause));
        }
        if reply.status >= 300
            && call.is_signed()
            && let Some(why) = &self.unsigned
            // Not if the same cause is already in the line.
            && !cause.is_some_and(|cause| why.ends_with(cause))
        {
            what += &format!(", and [GET token] issued no signature ({why})");
        }
        what
    }

    /// Returns a server's words, as in ` (Forbidden: Access denied)`.
    fn words_in_parentheses(&self, call: Call, reply: &Reply) -> String {
        match self.words(call, &server_words(reply)) {
            Some(words) => format!(" ({words})"),
            None => String::new(),
        }
    }

    fn words(&self, call: Call, texts: &[String]) -> Option<String> {
        if texts.is_empty() {
            return None;
        }
        let words: Vec<String> = texts.iter().map(|text| self.redact(call, text)).collect();
        Some(shorten(words.join(": ")))
    }

    /// Makes a server's text fit for the log.
    fn redact(&self, call: Call, text: &str) -> String {
        if call.returns_secret() && looks_like_secret(text, &self.options.client) {
            return HIDDEN.to_owned();
        }
        self.redact_known(text)
    }

    /// Does the same for a text that can contain only secrets that the run knows.
    fn redact_known(&self, text: &str) -> String {
        let mut secrets = vec![&self.options.key];
        secrets.extend(&self.signature);
        secrets.extend(self.new.iter().map(|new| &new.secret));
        redact(text, &secrets)
    }

    fn has_signature(&self) -> bool {
        self.signature.is_some()
    }

    fn log(&self, line: &str) {
        if !self.options.quiet {
            log(line);
        }
    }
}
