//! The job: the steps in order, and what each answer means.
//!
//! ```text
//! open the output -> [sign in] -> PATCH regenerate -> hand the secret over -> DELETE revoke
//! ```

use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cli::{Key, Options, Steps};
use crate::error::{Error, State};
use crate::output::Output;
use crate::portal::{Failure, Portal, Reply};
use crate::secret::Secret;

/// A signature lives five minutes; an older one than this is fetched anew.
const SIGNATURE_LIFE: Duration = Duration::from_secs(4 * 60);

/// How long a GET or a DELETE may take. The PATCH may use all the time that is left.
const SAFE_CALL: Duration = Duration::from_secs(30);

/// How long the revoke may take once the secret is handed over, even where the time is up.
const LAST_CALL: Duration = Duration::from_secs(10);

/// Does what the options ask for.
///
/// # Errors
///
/// The state in which the client is left, and why.
pub fn run(options: &Options) -> Result<(), Error> {
    let deadline = Instant::now() + options.timeout;
    let key = match &options.key {
        Key::Given(key) => Secret::new(key.expose()),
        Key::InFile(path) => Secret::key_file(path).map_err(|why| {
            let path = path.display().to_string();
            Error::usage(format!(
                "DOCSPACE_API_KEY_FILE: {} {why}",
                path.escape_debug()
            ))
        })?,
    };
    if options.client == key.expose() {
        return Err(Error::usage(
            "CLIENT_ID is the key, which belongs in DOCSPACE_API_KEY alone",
        ));
    }
    let portal = Portal::new(options, key)?;
    let mut job = Job {
        portal,
        no_sign_in: None,
        handed_over: false,
        deadline,
        options,
    };

    if options.steps != Steps::Revoke {
        let mut output = Output::open(options.output.as_deref())?;
        let secret = job.regenerate()?;
        output.hand_over(&secret)?;
        job.handed_over = true;
    }
    if options.steps != Steps::Regenerate {
        job.revoke()?;
    }
    Ok(())
}

struct Job<'a> {
    portal: Portal,
    /// The reply with which the portal gave no signature.
    no_sign_in: Option<Reply>,
    handed_over: bool,
    deadline: Instant,
    options: &'a Options,
}

/// The calls that there are, named in the log as in the vendor's sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Token,
    Regenerate,
    Revoke,
}

impl Call {
    fn name(self) -> &'static str {
        match self {
            Call::Token => "GET token",
            Call::Regenerate => "PATCH regenerate",
            Call::Revoke => "DELETE revoke",
        }
    }

    fn method(self) -> &'static str {
        let name = self.name();
        name.split_once(' ').map_or(name, |(method, _)| method)
    }

    fn path(self, client: &str) -> String {
        match self {
            Call::Token => "/api/2.0/security/oauth2/token".to_owned(),
            Call::Regenerate => format!("/api/2.0/clients/{client}/regenerate"),
            Call::Revoke => format!("/api/2.0/clients/{client}/revoke"),
        }
    }
}

impl Job<'_> {
    /// Gets the client a new secret; returns what is to be handed over.
    fn regenerate(&mut self) -> Result<Secret, Error> {
        let reply = self.call(Call::Regenerate)?;
        let (secret, object) = new_secret(&reply.body).map_err(|why| {
            Error::new(
                State::Unknown,
                format!("{} and {why}", self.answered(Call::Regenerate, &reply)),
            )
        })?;
        self.log("Client secret has been regenerated.");
        self.portal.hide(Secret::new(secret.expose()));
        Ok(if self.options.json { object } else { secret })
    }

    /// Takes the caller's consent back.
    fn revoke(&mut self) -> Result<(), Error> {
        let revoked = self.call(Call::Revoke);
        revoked.map_err(|error| match self.handed_over {
            true => Error::new(State::ConsentKept, error.what),
            false => error,
        })?;
        self.log("Client consent revoked for client ID.");
        Ok(())
    }

    /// Makes one call, signing in where the portal wants that: before an API key's first call, as
    /// no portal takes one on these calls; with any other bearer only when the call is refused.
    fn call(&mut self, call: Call) -> Result<Reply, Error> {
        if call != Call::Token {
            self.sign_in_beforehand()?;
        }
        loop {
            let may_sign_in = call != Call::Token
                && self.portal.signed_since().is_none()
                && self.no_sign_in.is_none();
            let outcome = self.send(call);
            let mut next = next(call, &outcome, may_sign_in);
            self.log_outcome(call, &outcome, next);
            if let (Next::SignIn, Ok(reply)) = (next, &outcome) {
                if self.sign_in()? {
                    continue;
                }
                next = if reply.status == 429 {
                    Next::Again
                } else {
                    Next::Refused
                };
            }
            let (state, outcome) = match (next, outcome) {
                (Next::Take, Ok(reply)) => return Ok(reply),
                (Next::Again, outcome) => (State::Unreached, outcome),
                (Next::Unknown, outcome) => (State::Unknown, outcome),
                (_, outcome) => (State::Refused, outcome),
            };
            return Err(Error::new(state, self.words(call, &outcome)));
        }
    }

    fn send(&self, call: Call) -> Result<Reply, Failure> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let limit = match call {
            Call::Regenerate => left,
            _ if self.handed_over => left.min(SAFE_CALL).max(LAST_CALL),
            _ => left.min(SAFE_CALL),
        };
        let path = call.path(&self.options.client);
        // HTTP wants to be told that a PATCH's body is empty (RFC 9110, section 8.6).
        let body = (call == Call::Regenerate).then_some("");
        self.portal.send(call.method(), &path, body, limit)
    }

    fn sign_in_beforehand(&mut self) -> Result<(), Error> {
        let due = match self.portal.signed_since() {
            Some(age) => age > SIGNATURE_LIFE,
            None => self.portal.has_api_key() && self.no_sign_in.is_none(),
        };
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
        Err(Error::new(
            State::Refused,
            self.answered(Call::Token, reply) + why,
        ))
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

    /// What an outcome was, naming the host.
    fn words(&self, call: Call, outcome: &Result<Reply, Failure>) -> String {
        let (host, name) = (self.portal.host(), call.name());
        match outcome {
            Err(Failure::Untrusted(why)) => format!("{host} is not to be trusted: {why}"),
            Err(Failure::NotSent(why)) => format!("{host} was not reached for [{name}]: {why}"),
            Err(Failure::NoReply(why)) => format!("{host} gave no answer to [{name}]: {why}"),
            Ok(reply) => {
                let mut words = self.answered(call, reply);
                if let Some(reply) = &self.no_sign_in {
                    words += &format!(", and [GET token] with status {}", reply.status);
                }
                words
            }
        }
    }

    /// What an answer was, with what the portal says in it.
    fn answered(&self, call: Call, reply: &Reply) -> String {
        let (host, name, status) = (self.portal.host(), call.name(), reply.status);
        if let (300..=399, Some(location)) = (status, &reply.location) {
            let to = self.portal.shown(&target(location));
            return format!(
                "{host} redirects [{name}] (status {status}) to {to}: give --url the portal's own address"
            );
        }
        let mut words = format!("{host} answered [{name}] with status {status}");
        // Only an error's text is shown: a success may hold the secret.
        if let Some(text) = error_text(&reply.body).filter(|_| status >= 300) {
            words += &format!(" ({})", self.portal.shown(&text));
        }
        if let Some(cut) = &reply.cut {
            words += &format!(", cut short: {cut}");
        }
        words
    }

    /// One line for a call. What leads to a sign-in is shown with what follows, so that nobody
    /// reads a good run's log as a failure.
    fn log_outcome(&self, call: Call, outcome: &Result<Reply, Failure>, next: Next) {
        let name = call.name();
        match (outcome, next) {
            (Ok(reply), Next::SignIn) => self.log(&format!(
                "[{name}] Status: {}, so signing in first",
                reply.status
            )),
            (Ok(reply), _) => self.log(&format!("[{name}] Status: {}", reply.status)),
            (Err(_), _) => {}
        }
    }

    fn log(&self, line: &str) {
        if !self.options.quiet {
            // A closed stderr must not end the run.
            let _ = writeln!(io::stderr(), "{line}");
        }
    }
}

/// What follows from the outcome of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// It is an answer to go on with.
    Take,
    /// Sign in, then the same again.
    SignIn,
    /// It did nothing, or may be done twice: the same again.
    Again,
    /// The portal or the proxy says no.
    Refused,
    /// The portal may have done it, and does not say.
    Unknown,
}

/// An unanswered PATCH may still happen minutes later and would kill the secret that a second one
/// brought: it is repeated only where the last one surely did nothing.
fn next(call: Call, outcome: &Result<Reply, Failure>, may_sign_in: bool) -> Next {
    let unanswered = match call {
        Call::Regenerate => Next::Unknown,
        Call::Token | Call::Revoke => Next::Again,
    };
    let reply = match outcome {
        Err(Failure::Untrusted(_)) => return Next::Refused,
        Err(Failure::NotSent(_)) => return Next::Again,
        Err(Failure::NoReply(_)) => return unanswered,
        Ok(reply) => reply,
    };
    match (call, reply.status) {
        (_, 401 | 403 | 429) if may_sign_in => Next::SignIn,
        (_, 429) => Next::Again,
        (Call::Regenerate, 200) if reply.cut.is_none() => Next::Take,
        (Call::Regenerate, 300..=499) => Next::Refused,
        (Call::Regenerate, _) => Next::Unknown,
        (Call::Token, 200) if reply.cut.is_some() => Next::Again,
        // Whether the portal has a sign-in at all is for the caller to read.
        (Call::Token, 200..=499 | 501) => Next::Take,
        (Call::Revoke, 200..=299) => Next::Take,
        (Call::Revoke, 300..=499) => Next::Refused,
        (Call::Token | Call::Revoke, _) => Next::Again,
    }
}

/// The secret in a reply to the PATCH, and the object that holds it as one line of JSON: what is in
/// `response`, else the whole body.
fn new_secret(body: &[u8]) -> Result<(Secret, Secret), &'static str> {
    let mut body: Value = serde_json::from_slice(body).map_err(|_| "no JSON")?;
    let object = match body.get_mut("response") {
        Some(inner @ Value::Object(_)) => inner.take(),
        _ => body,
    };
    let secret = object.get("client_secret").ok_or("no client_secret")?;
    let secret = secret.as_str().and_then(Secret::client_secret);
    let secret = secret.ok_or("a client_secret that is no usable secret")?;
    Ok((secret, Secret::new(ascii(&object.to_string()))))
}

/// JSON without the characters that a terminal may obey. They stand in strings only, where their
/// escapes mean the same (RFC 8259, section 7).
fn ascii(json: &str) -> String {
    let mut text = String::new();
    for c in json.chars() {
        if (' '..='~').contains(&c) {
            text.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                text += &format!("\\u{unit:04x}");
            }
        }
    }
    text
}

/// The signature in a reply to the sign-in: `{"response": "<jwt>"}`.
fn signature(reply: &Reply) -> Option<Secret> {
    let body: Value = serde_json::from_slice(&reply.body).ok()?;
    let signature = body.get("response")?.as_str()?;
    Secret::signature(signature).filter(|_| reply.status == 200)
}

/// What an error reply says: `title` and `detail`, or `reason`; else the start of a body that is not
/// JSON. No other part of an object: it might hold a secret.
fn error_text(body: &[u8]) -> Option<String> {
    if let Ok(Value::Object(problem)) = serde_json::from_slice(body) {
        let said = ["title", "detail", "reason"]
            .iter()
            .filter_map(|name| problem.get(*name)?.as_str());
        let said: Vec<&str> = said.collect();
        return (!said.is_empty()).then(|| said.join(": "));
    }
    let text = String::from_utf8_lossy(body);
    let text = text.trim();
    let harmless = !text.starts_with(['{', '[', '"']) && !text.contains("client_secret");
    (harmless && !text.is_empty()).then(|| text.to_owned())
}

/// A redirect's scheme, host and path: the rest may hold what is not for a log.
fn target(location: &str) -> String {
    let address = location.split(['?', '#']).next().unwrap_or_default();
    match address.split_once("//") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = authority.rsplit('@').next().unwrap_or_default();
            format!("{scheme}//{host}{path}")
        }
        None => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: u16, cut: bool) -> Result<Reply, Failure> {
        let cut = cut.then(|| "cut".to_owned());
        Ok(Reply {
            status,
            location: None,
            body: vec![],
            cut,
        })
    }

    #[test]
    fn what_follows_from_an_outcome() {
        use Call::{Regenerate, Revoke, Token};
        for call in [Token, Regenerate, Revoke] {
            let unanswered = if call == Regenerate {
                Next::Unknown
            } else {
                Next::Again
            };
            for sign_in in [false, true] {
                let failed = |failure| next(call, &Err(failure), sign_in);
                assert_eq!(failed(Failure::Untrusted(String::new())), Next::Refused);
                assert_eq!(failed(Failure::NotSent(String::new())), Next::Again);
                assert_eq!(failed(Failure::NoReply(String::new())), unanswered);
            }
            for status in [401, 403, 429] {
                assert_eq!(next(call, &outcome(status, false), true), Next::SignIn);
            }
            assert_eq!(next(call, &outcome(429, true), false), Next::Again);
            for status in [101, 500, 502, 503, 504, 599, 999] {
                assert_eq!(
                    next(call, &outcome(status, false), true),
                    unanswered,
                    "{call:?} {status}"
                );
            }
        }
        for (call, status, cut, wanted) in [
            (Regenerate, 200, false, Next::Take),
            (Regenerate, 200, true, Next::Unknown),
            (Regenerate, 201, false, Next::Unknown),
            (Regenerate, 204, false, Next::Unknown),
            (Regenerate, 501, false, Next::Unknown),
            (Regenerate, 301, false, Next::Refused),
            (Regenerate, 400, true, Next::Refused),
            (Regenerate, 403, false, Next::Refused),
            (Revoke, 200, false, Next::Take),
            (Revoke, 200, true, Next::Take),
            (Revoke, 204, false, Next::Take),
            (Revoke, 307, false, Next::Refused),
            (Revoke, 404, false, Next::Refused),
            (Revoke, 501, false, Next::Again),
            (Token, 200, false, Next::Take),
            (Token, 200, true, Next::Again),
            (Token, 302, false, Next::Take),
            (Token, 401, false, Next::Take),
            (Token, 404, true, Next::Take),
            (Token, 501, false, Next::Take),
        ] {
            assert_eq!(
                next(call, &outcome(status, cut), false),
                wanted,
                "{call:?} {status} {cut}"
            );
        }
    }

    #[test]
    fn secrets_in_replies() {
        let read = |body: &str| {
            let (secret, object) = new_secret(body.as_bytes())?;
            Ok((secret.expose().to_owned(), object.expose().to_owned()))
        };
        let found = |secret: &str, object: &str| Ok((secret.to_owned(), object.to_owned()));
        assert_eq!(
            read(r#"{"client_secret": "s"}"#),
            found("s", r#"{"client_secret":"s"}"#)
        );
        assert_eq!(
            read(r#"{"response": {"client_secret": "s"}, "count": 1}"#),
            found("s", r#"{"client_secret":"s"}"#)
        );
        assert_eq!(
            read(r#"{"response": "x", "client_secret": "s"}"#).map(|(secret, _)| secret),
            Ok("s".to_owned())
        );
        let nested = "[".repeat(60_000);
        for (body, why) in [
            ("", "no JSON"),
            ("{\"client_secret\":\"s\"} x", "no JSON"),
            (nested.as_str(), "no JSON"),
            ("[]", "no client_secret"),
            ("\"client_secret\"", "no client_secret"),
            (
                r#"{"response":{"x":1},"client_secret":"s"}"#,
                "no client_secret",
            ),
            (
                r#"{"client_secret":null}"#,
                "a client_secret that is no usable secret",
            ),
            (
                r#"{"client_secret":["s"]}"#,
                "a client_secret that is no usable secret",
            ),
            (
                r#"{"client_secret":"\u001b[2J"}"#,
                "a client_secret that is no usable secret",
            ),
        ] {
            assert_eq!(read(body), Err(why));
        }
    }

    #[test]
    fn error_texts() {
        for (body, text) in [
            (
                r#"{"title":"Not Found","detail":"no such client","status":404}"#,
                Some("Not Found: no such client"),
            ),
            (r#"{"reason":"because"}"#, Some("because")),
            (r#"{"title":7,"errors":[]}"#, None),
            (r#"{"client_secret":"hush","x":1}"#, None),
            (r#"{"client_secret":"hush"#, None),
            (r#"x = {"client_secret":"hush"}"#, None),
            ("<h1>Bad Gateway</h1>\n", Some("<h1>Bad Gateway</h1>")),
            (" \r\n", None),
            ("", None),
        ] {
            assert_eq!(error_text(body.as_bytes()).as_deref(), text, "{body}");
        }
        assert_eq!(error_text(b"\xff\xfe").as_deref(), Some("\u{fffd}\u{fffd}"));
    }

    #[test]
    fn redirect_targets() {
        for (location, shown) in [
            (
                "https://new.example/api?key=hush#x",
                "https://new.example/api",
            ),
            ("https://user:hush@new.example", "https://new.example"),
            ("//new.example/x", "//new.example/x"),
            ("/login?hush", "/login"),
            ("", ""),
        ] {
            assert_eq!(target(location), shown);
        }
    }
}
