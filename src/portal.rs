//! The calls to a portal: what is sent, when it is sent again, and how the result reads in the log.

use std::path::PathBuf;
use std::thread;

use crate::address::{Proxy, Url, redirect_target};
use crate::call::Call;
use crate::error::{Error, State, log};
use crate::failure::Failure;
use crate::http::{Http, Request};
use crate::reply::{self, NotDone, Reply, SignIn};
use crate::secret::{HIDDEN, NewSecret, Secret, looks_like_secret, redact, shorten};
use crate::signal;

#[derive(Debug)]
pub struct Settings {
    pub client: String,
    pub url: Url,
    pub proxy: Option<Proxy>,
    pub key: Secret,
    pub cacert: Option<PathBuf>,
    pub quiet: bool,
}

pub struct Portal<'a> {
    settings: &'a Settings,
    http: Http,
    signature: Option<Secret>,
    /// The status of a sign-in that gave no signature.
    unsigned_status: Option<u16>,
    new: Option<NewSecret>,
}

impl<'a> Portal<'a> {
    pub fn new(settings: &'a Settings) -> Result<Portal<'a>, Error> {
        let Settings {
            url, proxy, cacert, ..
        } = settings;
        let http = Http::new(url, proxy.as_ref(), cacert.as_deref());
        let http = http.map_err(Error::usage)?;
        Ok(Portal {
            settings,
            http,
            signature: None,
            unsigned_status: None,
            new: None,
        })
    }

    /// Turns the key into a signature, which later calls carry beside the key. A server without
    /// such a sign-in gets the key alone.
    pub fn sign_in(&mut self) -> Result<(), Error> {
        match self.call(Call::SignIn, reply::sign_in)? {
            SignIn::Signature(signature) => self.signature = Some(signature),
            SignIn::Unsupported(status) => {
                self.unsigned_status = Some(status);
                self.log("The portal gave no signature: continuing with the key alone.");
            }
        }
        Ok(())
    }

    /// Waits out an outage. Any definite answer will do: if the id or the role is wrong, the PATCH
    /// says why.
    pub fn wait_until_ready(&mut self) -> Result<(), Error> {
        self.call(Call::Probe, reply::ready)?;
        Ok(())
    }

    /// Checks that the client is there, and says when the key expires.
    pub fn check(&mut self) -> Result<(), Error> {
        let is_signed = self.unsigned_status.is_none();
        let read = |reply: &Reply| reply::client_exists(reply, is_signed);
        self.call(Call::Probe, read)?;
        // The rest is extra: nothing changes the status any more.
        signal::finish();
        let Settings {
            client, url, key, ..
        } = self.settings;
        let key = if key.is_api_key() {
            "API key"
        } else {
            "bearer token"
        };
        let signed_in = if is_signed { "signed in" } else { "no sign-in" };
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
        let new = self.call(Call::Regenerate, reply::regenerated)?;
        self.log("Client secret has been regenerated.");
        Ok(self.new.insert(new))
    }

    pub fn revoke(&mut self) -> Result<(), Error> {
        self.call(Call::Revoke, reply::revoked)?;
        self.log(&format!(
            "Client consent revoked for client {}.",
            self.settings.client
        ));
        Ok(())
    }

    /// Checks that the new secret is live. After two runs at once, that of the faster one is dead.
    pub fn verify(&mut self) -> Result<(), Error> {
        if !self.call(Call::Introspect, reply::is_live)? {
            let what = format!(
                "{} rejects the new secret: another run or a late PATCH has replaced it",
                self.peer()
            );
            return Err(Error::new(State::NotVerified, what));
        }
        self.log("The new secret is live.");
        Ok(())
    }

    /// Makes a call, and repeats it while that is safe and there is time. Returns what `read` makes
    /// of the reply.
    fn call<T>(
        &mut self,
        call: Call,
        read: impl Fn(&Reply) -> Result<T, NotDone>,
    ) -> Result<T, Error> {
        let mut attempt = 0;
        loop {
            let result = self.send(call);
            match reply::evaluate(call, &result, &read) {
                Ok(value) => {
                    self.log(&self.summarize(call, &result));
                    return Ok(value);
                }
                Err(not_done) => self.wait_or_fail(call, attempt, &result, not_done)?,
            }
            attempt += 1;
            signal::grant_time();
        }
    }

    /// Waits before the next attempt. If there is none, the error says why.
    fn wait_or_fail(
        &self,
        call: Call,
        attempt: u32,
        result: &Result<Reply, Failure>,
        not_done: NotDone,
    ) -> Result<(), Error> {
        if let NotDone::Busy(_) = not_done
            && signal::state() == State::Unknown
        {
            // The PATCH did nothing, so a deferred signal ends the run here.
            signal::enter(State::Unreached);
        }
        let may_repeat = match not_done {
            NotDone::Busy(_) => true,
            NotDone::Unclear(_) => call.is_idempotent(),
            NotDone::Refused(_) => false,
        };
        let wait = reply::wait(attempt, result.as_ref().ok());
        if may_repeat && wait < signal::time_left() {
            let summary = self.summarize(call, result);
            self.log(&format!("{summary}, trying again in {wait:?}"));
            thread::sleep(wait);
            return Ok(());
        }
        if result.is_ok() {
            self.log(&self.summarize(call, result));
        }
        let (NotDone::Busy(reason) | NotDone::Unclear(reason) | NotDone::Refused(reason)) =
            &not_done;
        let mut what = self.describe(call, result, reason.as_deref());
        if may_repeat {
            what += &format!(", and the next attempt in {wait:?} would exceed the time limit");
        }
        Err(Error::new(self.final_state(&not_done), what))
    }

    /// Returns the state after a call that failed for good.
    fn final_state(&self, not_done: &NotDone) -> State {
        match (signal::state(), not_done) {
            // Without a new secret, a refusal proves that the PATCH did nothing.
            (State::Unreached | State::Unknown, NotDone::Refused(_)) => State::Refused,
            (state, _) => state,
        }
    }

    /// Makes one attempt.
    fn send(&self, call: Call) -> Result<Reply, Failure> {
        signal::doing(format!("during {} at {}", call.name(), self.peer()));
        let Settings { client, key, .. } = self.settings;
        let mut request = Request {
            call,
            path: call.path(client),
            headers: vec![],
            form: None,
        };
        if let (Call::Introspect, Some(new)) = (call, &self.new) {
            // It authenticates with the new secret alone. The token can be any text.
            request.form = Some(vec![
                ("client_id", client.clone()),
                ("client_secret", new.secret.expose().to_owned()),
                ("token", "docspace-rotate".to_owned()),
            ]);
            return self.http.send(&request);
        }
        let bearer = format!("Bearer {}", key.expose());
        request.headers.push(("authorization", bearer));
        if call.is_signed()
            && let Some(signature) = &self.signature
        {
            let signature = signature.expose().to_owned();
            request.headers.push(("x-signature", signature));
        }
        self.http.send(&request)
    }

    /// Returns the portal's host, and the proxy on the way to it.
    fn peer(&self) -> String {
        let host = &self.settings.url.host;
        match &self.settings.proxy {
            Some(Proxy {
                address, variable, ..
            }) => {
                format!("{host} through the proxy {address} from {variable}")
            }
            None => host.clone(),
        }
    }

    fn summarize(&self, call: Call, result: &Result<Reply, Failure>) -> String {
        match result {
            Ok(reply) => format!("{} Status: {}", call.name(), reply.status),
            Err(failure) => self.describe(call, result, Some(&failure.why)),
        }
    }

    /// Says what the result of a call was, in one sentence that contains no secret.
    fn describe(
        &self,
        call: Call,
        result: &Result<Reply, Failure>,
        reason: Option<&str>,
    ) -> String {
        let (peer, name) = (self.peer(), call.name());
        let mut what = match result {
            Ok(reply) => format!("{peer} answered {name} with status {}", reply.status),
            Err(failure) if failure.sent => format!("{peer} gave no valid answer to {name}"),
            Err(_) => format!("{peer} could not be reached for {name}"),
        };
        if let Ok(reply) = result
            && reply.status >= 300
        {
            what += &self.server_words(call, reply);
        }
        if let Some(reason) = reason {
            what += &format!(": {}", self.redact(call, reason));
        }
        if let Ok(reply) = result
            && reply.status >= 300
            && call.is_signed()
            && let Some(status) = self.unsigned_status
        {
            let why = match status {
                403 => ": the key may lack the global scopes",
                _ => "",
            };
            what += &format!(", and [GET token] gave no signature (status {status}{why})");
        }
        what
    }

    /// Returns what a refusal says, where it redirects to and in the server's words.
    fn server_words(&self, call: Call, reply: &Reply) -> String {
        let mut said = String::new();
        if (300..400).contains(&reply.status) && !reply.location.is_empty() {
            let target = self.redact(call, &redirect_target(&reply.location));
            said += &format!(" and redirects to {target}: set --url to the portal's own address");
        }
        let words = reply::server_words(reply);
        let words: Vec<_> = words.iter().map(|text| self.redact(call, text)).collect();
        if !words.is_empty() {
            said += &format!(" ({})", shorten(words.join(": ")));
        }
        said
    }

    /// Makes a text from outside fit for a log.
    fn redact(&self, call: Call, text: &str) -> String {
        if call.returns_secret() && looks_like_secret(text, &self.settings.client) {
            return HIDDEN.to_owned();
        }
        let mut secrets = vec![&self.settings.key];
        secrets.extend(&self.signature);
        secrets.extend(self.new.iter().map(|new| &new.secret));
        redact(text, &secrets)
    }

    fn log(&self, line: &str) {
        if !self.settings.quiet {
            log(line);
        }
    }
}
