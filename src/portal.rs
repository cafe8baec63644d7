//! Makes the calls, repeats them, and logs the results.

use std::thread;
use std::time::Duration;

use crate::call::{Call, NotDone};
use crate::error::{Error, State, log};
use crate::failure::Failure;
use crate::http::Http;
use crate::reply::{self, Reply};
use crate::secret::NewSecret;
use crate::settings::Options;
use crate::signal;

/// The portal, in the words of the job.
pub struct Portal<'a> {
    options: &'a Options,
    http: Http<'a>,
    /// What a sign-in that issued no signature said, as in `status 403 (Forbidden)`.
    why_unsigned: Option<String>,
}

impl<'a> Portal<'a> {
    /// Sends nothing yet.
    pub fn new(options: &'a Options) -> Portal<'a> {
        Portal {
            options,
            http: Http::new(options),
            why_unsigned: None,
        }
    }

    /// Turns the key into a signature, which later calls carry beside the key. A server without
    /// such a sign-in gets the key alone.
    pub fn sign_in(&mut self) -> Result<(), Error> {
        let mode = self.options.args.mode;
        match self.call(Call::SignIn, |reply| reply::sign_in(reply, mode))? {
            Ok(signature) => self.http.signature = Some(signature),
            Err(why) => {
                self.log(&format!(
                    "The portal issued no signature ({why}): continuing with the key alone."
                ));
                self.why_unsigned = Some(why);
            }
        }
        Ok(())
    }

    /// Waits out an outage. Nearly any definite answer will do: if the id or the role is wrong, the
    /// PATCH says why.
    pub fn wait_until_ready(&self) -> Result<(), Error> {
        self.call(Call::Probe, reply::ready)
    }

    /// Checks that the client exists, and says when the key expires.
    pub fn check(&self) -> Result<(), Error> {
        self.call(Call::Probe, reply::client_exists)?;
        let key = if self.options.key.is_api_key() {
            "API key"
        } else {
            "bearer token"
        };
        let signed_in = if self.http.signature.is_some() {
            "signed in"
        } else {
            "no sign-in"
        };
        self.log(&format!(
            "Ready: {} knows client {} ({key}, {signed_in}).",
            self.options.url.text, self.options.client
        ));
        // From here on, the status is 0, whatever a signal or the time limit does.
        signal::finish();
        if let Ok(reply) = self.http.send(Call::Expiry)
            && let Some(date) = reply::expiry(&reply)
        {
            self.log(&format!("The API key expires on {date}."));
        }
        Ok(())
    }

    /// Makes the portal create a new secret.
    pub fn regenerate(&mut self) -> Result<&NewSecret, Error> {
        let new = self.call(Call::Regenerate, reply::regenerated)?;
        self.log("Client secret has been regenerated.");
        Ok(self.http.new_secret.insert(new))
    }

    /// Revokes the consent of the key's user to the client.
    pub fn revoke(&self) -> Result<(), Error> {
        self.call(Call::Revoke, reply::revoked)?;
        self.log(&format!(
            "Client consent revoked for client {}.",
            self.options.client
        ));
        Ok(())
    }

    /// Checks that the new secret is live. After two runs at once, only the later secret is live.
    pub fn verify(&self) -> Result<(), Error> {
        // A portal may need some seconds to know the secret. It is asked 5 times in 10 s: its limit
        // is 10 times a minute (read in its source), and a second run has to fit.
        for seconds in 0..5 {
            let wait = Duration::from_secs(seconds);
            if wait > signal::time_left() {
                break;
            }
            thread::sleep(wait);
            signal::grant_time();
            if self.call(Call::Introspect, reply::is_live)? {
                self.log("The new secret is live.");
                return Ok(());
            }
        }
        Err(Error::new(
            State::NotVerified,
            format!(
                "{} rejects the new secret: another run or a late PATCH has replaced it, \
                 or the app is disabled, or the portal does not know it yet",
                self.options.url.shown
            ),
        ))
    }

    /// Makes a call, and repeats it while that is safe and there is time. Returns what `read` makes of
    /// the reply.
    fn call<T>(&self, call: Call, read: impl Fn(&Reply) -> Result<T, NotDone>) -> Result<T, Error> {
        let mut attempt = 0;
        loop {
            let result = self.http.send(call);
            let not_done = match reply::evaluate(call, &result, &read) {
                Ok(value) => {
                    self.log(&summarize(call, &result, false));
                    return Ok(value);
                }
                Err(not_done) => not_done,
            };
            if call == Call::Regenerate && not_done == NotDone::Busy {
                // It did nothing, so a deferred signal ends the run here.
                signal::enter(State::Unchanged);
            }
            let wait = reply::wait(attempt, &result);
            let may_repeat = not_done.may_repeat(call);
            if !may_repeat || wait >= signal::time_left() {
                let mut error = self.error(call, &result, &not_done);
                if may_repeat {
                    error.what +=
                        &format!(", and the next attempt in {wait:?} would exceed the time limit");
                }
                return Err(error);
            }
            // The line of the first retry shows the server's words.
            let summary = summarize(call, &result, attempt == 0);
            self.log(&format!("{summary}, trying again in {wait:?}"));
            thread::sleep(wait);
            signal::grant_time();
            attempt += 1;
        }
    }

    /// Logs the status of a call that failed for good, and returns the error.
    fn error(&self, call: Call, result: &Result<Reply, Failure>, not_done: &NotDone) -> Error {
        let state = match (signal::state(), not_done) {
            // A refusal before the PATCH, or of it, proves that the secret is unchanged.
            (State::Unchanged | State::Unknown, NotDone::Refused(_)) => State::Refused,
            (state, _) => state,
        };
        let summary = summarize(call, result, false);
        let Ok(reply) = result else {
            return Error::new(state, summary);
        };
        self.log(&summary);
        let mut what = format!(
            "{} answered {} with {}",
            self.options.url.shown,
            call.name(),
            reply.answer(not_done.cause())
        );
        if let Some(why) = &self.why_unsigned
            && call.is_signed()
        {
            what += &format!(", and [GET token] issued no signature ({why})");
        }
        Error::new(state, what)
    }

    fn log(&self, line: &str) {
        if !self.options.args.quiet {
            log(line);
        }
    }
}

/// Says what the result of a call was, for the log.
fn summarize(call: Call, result: &Result<Reply, Failure>, shows_words: bool) -> String {
    match result {
        Ok(reply) => {
            let words = if shows_words { &reply.words } else { "" };
            format!("{} Status: {}{words}", call.name(), reply.status)
        }
        Err(failure) => failure.what.clone(),
    }
}
