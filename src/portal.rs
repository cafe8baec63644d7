//! The calls to a portal: what is sent, how the result reads in the log, and when it is sent again.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::address::{Proxy, Url, redirect_target};
use crate::error::{Error, State, log};
use crate::http::Http;
use crate::reply::{self, Failure, Next, Outcome, Reply};
use crate::secret::{HIDDEN, NewSecret, Secret, has_token, redact, shorten};
use crate::signal::{self, GRACE, Step};

/// A signature lives five minutes. One that is older than this is renewed.
const SIGNATURE_MAX_AGE: Duration = Duration::from_secs(4 * 60);

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
    peer: String,
    /// Every signature and when it came. The last is in use; older ones may still be valid.
    signatures: Vec<(Secret, Instant)>,
    unsigned_status: Option<u16>,
    new: Option<NewSecret>,
}

impl<'a> Portal<'a> {
    pub fn new(settings: &'a Settings) -> Result<Portal<'a>, Error> {
        let Settings {
            url, proxy, cacert, ..
        } = settings;
        let through = |proxy: &Proxy| {
            format!(
                " through the proxy {} from {}",
                proxy.address, proxy.variable
            )
        };
        let peer = url.host.clone() + &proxy.as_ref().map(through).unwrap_or_default();
        signal::PEER.get_or_init(|| peer.clone());
        let proxy = proxy.as_ref().map(|proxy| proxy.inner.clone());
        let http = Http::new(url.text.clone(), proxy, cacert.as_deref());
        let http = http.map_err(|why| Error::usage(format!("the CA file {why}")))?;
        Ok(Portal {
            settings,
            http,
            peer,
            signatures: vec![],
            unsigned_status: None,
            new: None,
        })
    }

    /// Turns the key into a signature, which later calls carry beside the key.
    pub fn sign_in(&mut self) -> Result<(), Error> {
        let reply = self.call(Step::SignIn, State::Unreached)?;
        match reply::signature(&reply) {
            Some(signature) => self.signatures.push((signature, Instant::now())),
            None => {
                self.unsigned_status = Some(reply.status);
                self.log("The portal gave no signature: continuing with the key alone.");
            }
        }
        Ok(())
    }

    /// Waits out an outage. Any definite answer will do: if the id or the role is wrong, the PATCH says why.
    pub fn wait_until_ready(&mut self) -> Result<(), Error> {
        self.call(Step::Probe, State::Unreached).map(drop)
    }

    pub fn check(&mut self) -> Result<(), Error> {
        let reply = self.call(Step::Probe, State::Unreached)?;
        if reply.status >= 300 {
            return Err(Error::new(
                State::Refused,
                self.describe(Step::Probe, &Ok(reply)),
            ));
        }
        // From here on nothing changes the status.
        signal::ignore();
        let Settings {
            client, url, key, ..
        } = self.settings;
        let key = if key.expose().starts_with("sk-") {
            "an API key"
        } else {
            "a bearer token"
        };
        let way = if self.signatures.is_empty() {
            "without"
        } else {
            "with"
        };
        self.log(&format!(
            "Ready: {} has client {client}, by {key} {way} sign-in.",
            url.text
        ));
        if let Some(date) = self
            .send(Step::Expiry)
            .ok()
            .and_then(|reply| reply::expiry(&reply))
        {
            self.log(&format!("The API key expires on {date}."));
        }
        Ok(())
    }

    pub fn regenerate(&mut self) -> Result<&NewSecret, Error> {
        let reply = self.call(Step::Regenerate, State::Unreached)?;
        let new = reply::new_secret(&reply.body).map_err(|why| Error::new(State::Unknown, why))?;
        self.log("Client secret has been regenerated.");
        Ok(self.new.insert(new))
    }

    pub fn revoke(&mut self) -> Result<(), Error> {
        let before = if self.new.is_some() {
            State::NotRevoked
        } else {
            State::Unreached
        };
        self.call(Step::Revoke, before)?;
        self.log(&format!(
            "Client consent revoked for client {}.",
            self.settings.client
        ));
        Ok(())
    }

    /// Checks that the new secret is live. After two runs at once, that of the faster one is dead.
    pub fn verify(&mut self) -> Result<(), Error> {
        let reply = self.call(Step::Introspect, State::NotVerified)?;
        match reply::is_live(&reply) {
            Some(true) => {
                self.log("The new secret is live.");
                Ok(())
            }
            Some(false) => Err(Error {
                state: State::NotVerified,
                what: format!(
                    "{} rejects the new secret: another run or a late PATCH has replaced it",
                    self.peer
                ),
                words: "the new secret was delivered, but not verified; run again, one run at a time",
            }),
            None => Err(Error::new(
                State::NotVerified,
                self.describe(Step::Introspect, &Ok(reply)),
            )),
        }
    }

    /// Makes a call in this state, and repeats it if that is safe and there is time.
    fn call(&mut self, step: Step, before: State) -> Result<Reply, Error> {
        let mut attempt = 0;
        loop {
            if before != State::Unreached {
                signal::enter(before, GRACE);
            }
            self.renew_signature(step);
            let outcome = self.send(step);
            let next = reply::classify(step, &outcome);
            match (step, next) {
                // Nothing has changed: a deferred signal ends the run here.
                (Step::Regenerate, Next::Retry) => signal::enter(before, Duration::ZERO),
                (Step::Regenerate, Next::Done) => signal::enter(State::NotDelivered, GRACE),
                _ => {}
            }
            let wait = reply::wait(attempt, &outcome);
            if next == Next::Retry && wait < signal::time_left() {
                self.log(&format!(
                    "{}, trying again in {wait:?}",
                    self.summarize(step, &outcome)
                ));
                thread::sleep(wait);
                attempt += 1;
                continue;
            }
            if outcome.is_ok() {
                self.log(&self.summarize(step, &outcome));
            }
            let (state, late) = match next {
                Next::Unknown => (State::Unknown, String::new()),
                Next::Retry => (
                    before,
                    format!(", and the next attempt in {wait:?} would exceed the time limit"),
                ),
                _ if before == State::Unreached => (State::Refused, String::new()),
                _ => (before, String::new()),
            };
            return match outcome {
                Ok(reply) if next == Next::Done => Ok(reply),
                outcome => Err(Error::new(state, self.describe(step, &outcome) + &late)),
            };
        }
    }

    fn send(&self, step: Step) -> Outcome {
        let Settings { client, key, .. } = self.settings;
        let call = match step {
            Step::Probe => ("HEAD", format!("/api/2.0/clients/{client}")),
            Step::Regenerate => ("PATCH", format!("/api/2.0/clients/{client}/regenerate")),
            Step::Revoke => ("DELETE", format!("/api/2.0/clients/{client}/revoke")),
            Step::Introspect => ("POST", "/oauth2/introspect".to_owned()),
            Step::Expiry => ("GET", "/api/2.0/keys/@self".to_owned()),
            _ => ("GET", "/api/2.0/security/oauth2/token".to_owned()),
        };
        // An introspection authenticates with the new secret alone. Its token is any text.
        let new = self.new.as_ref().filter(|_| step == Step::Introspect);
        let (client, token) = (("client_id", client.as_str()), ("token", "docspace-rotate"));
        let form = new.map(|new| [client, ("client_secret", new.secret.expose()), token]);
        let bearer = form
            .is_none()
            .then(|| ("authorization", format!("Bearer {}", key.expose())));
        let signature = self.signatures.last().filter(|_| is_signed(step));
        let signature =
            signature.map(|(signature, _)| ("x-signature", signature.expose().to_owned()));
        self.http.send(step, call, [bearer, signature], form)
    }

    /// Renews an old signature. One attempt: if it fails, the call's own answer says why.
    fn renew_signature(&mut self, step: Step) {
        let is_old = self
            .signatures
            .last()
            .is_some_and(|(_, since)| since.elapsed() > SIGNATURE_MAX_AGE);
        if is_old && is_signed(step) {
            let outcome = self.send(Step::SignIn);
            self.log(&self.summarize(Step::SignIn, &outcome));
            let new = outcome.ok().and_then(|reply| reply::signature(&reply));
            self.signatures.extend(new.map(|new| (new, Instant::now())));
        }
    }

    fn summarize(&self, step: Step, outcome: &Outcome) -> String {
        match outcome {
            Ok(reply) => format!("{} Status: {}", step.name(), reply.status),
            Err(_) => self.describe(step, outcome),
        }
    }

    fn describe(&self, step: Step, outcome: &Outcome) -> String {
        let (peer, name) = (&self.peer, step.name());
        let clean = |text: &str| self.redact(step, text);
        let reply = match outcome {
            Ok(reply) => reply,
            Err(Failure { sent, why, .. }) => {
                let verb = if *sent {
                    "gave no usable answer to"
                } else {
                    "was not reached for"
                };
                return format!("{peer} {verb} {name}: {}", clean(why));
            }
        };
        let status = reply.status;
        let mut words = format!("{peer} answered {name} with status {status}");
        if (300..400).contains(&status) && !reply.location.is_empty() {
            let to = clean(&redirect_target(&reply.location));
            words += &format!(" and redirects to {to}: set --url to the portal's own address");
        }
        let said: Vec<String> = reply::refusal(reply)
            .iter()
            .map(|text| clean(text))
            .collect();
        if status >= 300 && !said.is_empty() {
            words += &format!(" ({})", shorten(said.join(": ")));
        }
        let why = match (step, status) {
            (Step::SignIn, 401) => "the key is wrong or has expired",
            (Step::Regenerate, ..300) => reply::new_secret(&reply.body).err().unwrap_or_default(),
            (Step::Probe | Step::Revoke, ..300) if !reply.truncated => "a web page",
            (Step::Probe, 403) if self.unsigned_status.is_none() => {
                "the role of the key's user does not allow it"
            }
            (Step::Probe, 404) => "there is no such client that the key's user may manage",
            (Step::Probe, 405 | 501) => "the client cannot be checked, but a run may work",
            (Step::Introspect, 200 | 401) => "not a reply to an introspection",
            _ => "",
        };
        if !why.is_empty() {
            words += &format!(": {why}");
        }
        if let Some(status) = self
            .unsigned_status
            .filter(|_| is_signed(step) && reply.status >= 300)
        {
            let why = if status == 403 {
                ": the key may lack the global scopes"
            } else {
                ""
            };
            words += &format!(", and [GET token] gave no signature (status {status}{why})");
        }
        words
    }

    /// Makes a text from outside fit for a log. A reply to the sign-in or the PATCH may contain an unknown secret.
    fn redact(&self, step: Step, text: &str) -> String {
        if matches!(step, Step::SignIn | Step::Regenerate) && has_token(text, &self.settings.client)
        {
            return HIDDEN.to_owned();
        }
        let signatures = self.signatures.iter().map(|(signature, _)| signature);
        let new = self.new.as_ref().map(|new| &new.secret);
        redact(text, signatures.chain(new).chain([&self.settings.key]))
    }

    fn log(&self, line: &str) {
        if !self.settings.quiet {
            log(line);
        }
    }
}

fn is_signed(step: Step) -> bool {
    matches!(step, Step::Probe | Step::Regenerate | Step::Revoke)
}
