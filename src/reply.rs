//! A reply, and what it means for each call. No I/O.

use std::time::Duration;

use serde_json::{Deserializer, Value};

use crate::call::Call;
use crate::call::NotDone::{self, Busy, Refused, Unclear};
use crate::cause::{WEB_PAGE, because, refusal_cause, sign_in_cause};
use crate::cli::Mode;
use crate::failure::Failure;
use crate::secret::{NewSecret, Secret};

/// The longest body of a reply, in bytes.
pub const MAX_BODY: usize = 64 * 1024;

/// A reply to a request. A missing header field is empty.
#[derive(Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub content_type: String,
    pub content_encoding: String,
    /// How the caller has to authenticate (`WWW-Authenticate`).
    pub challenge: String,
    /// Where it redirects to, and what to do about it.
    pub redirect: Option<String>,
    pub retry_after: String,
    /// As much of it as came.
    pub body: String,
    /// Why the end of the body is missing.
    pub truncated: Option<String>,
    /// What the server says, fit for the log, as in ` (Forbidden)`.
    pub words: String,
    /// Whether the run has a signature, and whether its key is an API key.
    pub has_signature: bool,
    pub has_api_key: bool,
}

/// Reads the result of a call: first what it means for any call, then what `read` makes of it.
pub fn evaluate<T>(
    call: Call,
    result: &Result<Reply, Failure>,
    read: impl FnOnce(&Reply) -> Result<T, NotDone>,
) -> Result<T, NotDone> {
    let reply = match result {
        Ok(reply) => reply,
        Err(failure)
            if failure.is_final && (!failure.may_have_been_sent || call.is_preparation()) =>
        {
            return Err(Refused(None));
        }
        Err(failure) if failure.may_have_been_sent => return Err(Unclear(None)),
        Err(_) => return Err(Busy),
    };
    match reply.status {
        429 => Err(Busy),
        // The portal did not process it (RFC 8470): to the PATCH, that is a refusal.
        425 if call.is_idempotent() => Err(Unclear(None)),
        ..200 => Err(Unclear(because("not a final reply"))),
        408 | 500 | 502.. => Err(Unclear(None)),
        _ => read(reply),
    }
}

impl Reply {
    /// Parses the body, which has to be one JSON value.
    pub fn json(&self) -> Result<Value, serde_json::Error> {
        serde_json::from_str(self.text())
    }

    /// Returns true for 2xx.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Returns the body without whitespace and byte order marks around it.
    pub fn text(&self) -> &str {
        trim(&self.body)
    }

    /// Says what the reply was, as in `status 403 (Forbidden): the portal is being restored`.
    pub fn answer(&self, cause: Option<&str>) -> String {
        let answer = format!("status {}{}", self.status, self.words);
        match cause {
            Some(cause) => format!("{answer}: {cause}"),
            None => answer,
        }
    }

    /// Returns true if the reply is complete and has no body.
    pub fn is_empty(&self) -> bool {
        self.text().is_empty() && self.truncated.is_none()
    }

    /// Returns true for an error in DocSpace's own format (RFC 9457).
    pub fn is_problem(&self) -> bool {
        self.content_type.starts_with("application/problem+json")
    }

    /// Returns true for a web page. The first character of the body decides, because some servers
    /// label JSON text/html. Without a body, the type decides.
    pub fn is_web_page(&self) -> bool {
        match self.text() {
            "" => self.content_type.starts_with("text/html"),
            text => text.starts_with('<'),
        }
    }

    /// Returns what the portal API wraps in `response`, with status 200. Otherwise null.
    fn response(&self) -> Value {
        let json = self.json().unwrap_or_default();
        match self.status {
            200 => json["response"].clone(),
            _ => Value::Null,
        }
    }

    /// Says why the end of the JSON is missing, if it is. JSON says itself whether it is complete, so
    /// it does not matter how the body ended.
    fn missing_end(&self) -> Option<String> {
        let error = self.json().err()?;
        match &self.truncated {
            Some(why) => Some(format!("the reply is incomplete: {why}")),
            None if error.is_eof() && !self.is_empty() => Some("truncated JSON".to_owned()),
            None => None,
        }
    }
}

/// Reads a reply to the sign-in, `{"response": "<jwt>"}`. The inner error says what came in its place.
/// A server that compresses would compress the new secret, too, so only `--only revoke` accepts it.
pub fn sign_in(reply: &Reply, mode: Mode) -> Result<Result<Secret, String>, NotDone> {
    let cause = sign_in_cause(reply);
    if reply.status == 401 {
        return Err(Refused(cause));
    }
    let compression = reply.compression();
    if mode != Mode::Revoke && compression.is_some() {
        return Err(Refused(cause.or(compression)));
    }
    // A body that is too large would be too large again.
    if reply.status == 200
        && reply.body.len() <= MAX_BODY
        && cause.is_none()
        && let Some(why) = reply.missing_end()
    {
        return Err(Unclear(Some(why)));
    }
    let response = reply.response();
    let signature = response.as_str().and_then(Secret::signature);
    Ok(signature.ok_or_else(|| reply.answer(cause.as_deref())))
}

/// Reads a reply to the HEAD that only waits. Accepts any, except a web page with 2xx, and one from a
/// server that would compress the secret.
pub fn ready(reply: &Reply) -> Result<(), NotDone> {
    let is_other_site = reply.is_success() && reply.is_web_page();
    if is_other_site || reply.compression().is_some() {
        return Err(Refused(reply.general_cause()));
    }
    Ok(())
}

/// Reads a reply to the HEAD of `--check`, which has to say that the client exists.
pub fn client_exists(reply: &Reply) -> Result<(), NotDone> {
    if reply.is_success() {
        return ready(reply);
    }
    match (refusal_cause(reply), reply.status) {
        (None, 405 | 501) => Err(Refused(because(
            "this server cannot check a client; a run may still work",
        ))),
        (cause, _) => Err(Refused(cause)),
    }
}

/// Reads a reply to the PATCH. A success without a secret may have made one, which is lost.
pub fn regenerated(reply: &Reply) -> Result<NewSecret, NotDone> {
    match (reply.status, find_secret(&reply.body)) {
        (200..300, Some(new)) => Ok(new),
        (200..300, None) => Err(Unclear(Some(what_came_instead(reply)))),
        // It may be the old secret or the new one.
        (_, Some(_)) => Err(Unclear(because(
            "the reply contains a client_secret all the same",
        ))),
        // 303 may end a request that was carried out (RFC 9110, section 15.4.4), and 501 is a failure
        // of the server, as any 5xx.
        (303 | 501, _) => Err(Unclear(reply.general_cause())),
        _ => Err(Refused(refusal_cause(reply))),
    }
}

fn what_came_instead(reply: &Reply) -> String {
    if reply.json().is_ok() {
        return "no valid client_secret in the reply".to_owned();
    }
    if reply.is_empty() {
        return "the reply has no body".to_owned();
    }
    match reply.general_cause() {
        // Type and encoding explain only a body that has come.
        Some(cause) if !reply.text().is_empty() => cause,
        _ => reply.missing_end().unwrap_or("not JSON".to_owned()),
    }
}

/// Removes whitespace and the byte order mark that some servers put before a body.
pub fn trim(body: &str) -> &str {
    body.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}')
}

/// Finds the new secret in the first JSON value of a body, in `response` or at the top. Ignores what
/// follows that value.
pub fn find_secret(body: &str) -> Option<NewSecret> {
    let mut values = Deserializer::from_str(trim(body)).into_iter();
    let json: Value = values.next()?.ok()?;
    secret_in(&json["response"]).or_else(|| secret_in(&json))
}

fn secret_in(object: &Value) -> Option<NewSecret> {
    let secret = Secret::client_secret(object["client_secret"].as_str()?)?;
    let object = Secret::new(object.to_string());
    Some(NewSecret { secret, object })
}

/// Reads a reply to the DELETE. Any success will do, except a login page.
pub fn revoked(reply: &Reply) -> Result<(), NotDone> {
    if !reply.is_success() {
        return Err(Refused(refusal_cause(reply)));
    }
    if reply.text().starts_with('<') {
        return Err(Refused(because(WEB_PAGE)));
    }
    Ok(())
}

/// Reads a reply to an introspection (RFC 7662): whether the new secret is live. 200 means that it
/// was accepted; `active` is about the token, which is made up. A 401 does not prove that it is dead: it
/// also comes from a cache (read in DocSpace's source).
pub fn is_live(reply: &Reply) -> Result<bool, NotDone> {
    let json = reply.json().unwrap_or_default();
    match (reply.status, reply.general_cause(), reply.missing_end()) {
        (200, ..) if json["active"].is_boolean() => Ok(true),
        (401, ..) if json["error"] == "invalid_client" => Ok(false),
        (_, Some(cause), _) => Err(Refused(Some(cause))),
        (200 | 401, _, Some(why)) => Err(Unclear(Some(why))),
        _ => Err(Refused(because("not an introspection response"))),
    }
}

/// Finds the date on which the key expires, as `YYYY-MM-DD`.
pub fn expiry(reply: &Reply) -> Option<String> {
    let response = reply.response();
    let date = response["expiresAt"].as_str()?.get(..10)?;
    if date.replace(|c: char| c.is_ascii_digit(), "0") != "0000-00-00" {
        return None;
    }
    Some(date.to_owned())
}

/// Returns the wait after an attempt, counted from 0: doubled from 1 s to 10 s, or longer if the
/// reply asks for it with `Retry-After` in seconds.
pub fn wait(attempt: u32, result: &Result<Reply, Failure>) -> Duration {
    let doubled = (1 << attempt.min(4)).min(10);
    let requested = match result {
        Ok(reply) => reply.retry_after.parse().unwrap_or(0),
        Err(_) => 0,
    };
    Duration::from_secs(requested.max(doubled))
}

#[cfg(test)]
mod tests {
    use super::*;

    const JWT: &str = r#"{"response":"a.b.c"}"#;
    const SECRET: &str = r#"{"client_secret":"s"}"#;
    const LIVE: &str = r#"{"active":true}"#;

    fn reply(status: u16, body: &str) -> Reply {
        Reply {
            status,
            body: body.to_owned(),
            ..Reply::default()
        }
    }

    fn truncated(status: u16, body: &str) -> Reply {
        Reply {
            truncated: Some("the connection was closed".to_owned()),
            ..reply(status, body)
        }
    }

    /// What a result means, without the value and the words.
    fn kind<T>(result: Result<T, NotDone>) -> &'static str {
        match result {
            Ok(_) => "done",
            Err(Busy) => "busy",
            Err(Unclear(_)) => "unclear",
            Err(Refused(_)) => "refused",
        }
    }

    fn kind_of(call: Call, result: Result<Reply, Failure>) -> &'static str {
        match call {
            Call::SignIn => kind(evaluate(call, &result, |reply| sign_in(reply, Mode::All))),
            Call::Probe => kind(evaluate(call, &result, ready)),
            Call::Regenerate => kind(evaluate(call, &result, regenerated)),
            Call::Revoke => kind(evaluate(call, &result, revoked)),
            Call::Introspect => kind(evaluate(call, &result, is_live)),
            Call::Expiry => unreachable!("its reply is optional"),
        }
    }

    #[test]
    fn what_a_missing_reply_means() {
        use Call::*;
        for call in [SignIn, Probe, Regenerate, Revoke, Introspect] {
            let late_tls = if call.is_preparation() {
                "refused"
            } else {
                "unclear"
            };
            for (may_have_been_sent, is_final, expected) in [
                (false, false, "busy"),
                (true, false, "unclear"),
                (false, true, "refused"),
                (true, true, late_tls),
            ] {
                let failure = Failure {
                    may_have_been_sent,
                    is_final,
                    what: String::new(),
                };
                assert_eq!(kind_of(call, Err(failure)), expected, "{call:?}");
            }
        }
    }

    #[test]
    fn what_a_status_means() {
        use Call::*;
        let [d, b, u, r] = ["done", "busy", "unclear", "refused"];
        // In the order of the calls. A good body for each success, so that only the status counts.
        for (status, expected) in [
            (101, [u, u, u, u, u]),
            (200, [d, d, d, d, d]),
            (202, [d, d, d, d, r]),
            (204, [d, d, d, d, r]),
            (302, [d, d, r, r, r]),
            (303, [d, d, u, r, r]),
            (400, [d, d, r, r, r]),
            (401, [r, d, r, r, r]),
            (403, [d, d, r, r, r]),
            (404, [d, d, r, r, r]),
            (408, [u, u, u, u, u]),
            (425, [u, u, r, u, u]),
            (429, [b, b, b, b, b]),
            (499, [d, d, r, r, r]),
            (500, [u, u, u, u, u]),
            (501, [d, d, u, r, r]),
            (503, [u, u, u, u, u]),
            (999, [u, u, u, u, u]),
        ] {
            let with_secret = if status < 300 { SECRET } else { "" };
            let good = [
                (SignIn, JWT),
                (Probe, ""),
                (Regenerate, with_secret),
                (Revoke, ""),
                (Introspect, LIVE),
            ];
            let found = good.map(|(call, body)| kind_of(call, Ok(reply(status, body))));
            assert_eq!(found, expected, "{status}");
        }
    }

    #[test]
    fn what_a_body_means() {
        use Call::*;
        for (call, reply, expected) in [
            // JSON says itself whether it is complete.
            (SignIn, reply(200, r#"{"response":"a.b"#), "unclear"),
            (SignIn, truncated(200, "some text"), "unclear"),
            (SignIn, truncated(200, ""), "unclear"),
            (SignIn, truncated(200, JWT), "done"),
            (SignIn, truncated(404, "{"), "done"),
            (SignIn, reply(200, ""), "done"),
            (SignIn, truncated(200, &"[".repeat(MAX_BODY + 1)), "done"),
            (SignIn, reply(200, "<html>"), "done"),
            (Regenerate, reply(200, "{}"), "unclear"),
            (Regenerate, reply(200, r#"{"client_secret":"s""#), "unclear"),
            (Regenerate, truncated(200, SECRET), "done"),
            (Regenerate, truncated(404, "{"), "refused"),
            (Regenerate, reply(400, "{}"), "refused"),
            // A secret is not denied.
            (Regenerate, reply(302, SECRET), "unclear"),
            (Regenerate, reply(400, SECRET), "unclear"),
            (Regenerate, reply(404, SECRET), "unclear"),
            (Revoke, reply(200, r#"{"error":"no"}"#), "done"),
            (Revoke, reply(200, " \n\u{feff}<html>"), "refused"),
            (Revoke, truncated(200, "{"), "done"),
            (Revoke, truncated(200, ""), "done"),
            (Introspect, truncated(200, "{"), "unclear"),
            (Introspect, reply(200, "<html>"), "refused"),
            (Introspect, truncated(401, "<html>"), "refused"),
            (Introspect, truncated(401, "{"), "unclear"),
        ] {
            assert_eq!(kind_of(call, Ok(reply)), expected);
        }
    }

    #[test]
    fn a_web_page_is_no_answer_to_the_head() {
        for (content_type, expected) in [
            ("text/html", "refused"),
            ("text/html; charset=x", "refused"),
            ("text/plain", "done"),
        ] {
            let page = Reply {
                content_type: content_type.to_owned(),
                ..reply(200, "")
            };
            assert_eq!(kind_of(Call::Probe, Ok(page)), expected, "{content_type}");
        }
    }

    #[test]
    fn secrets_in_replies() {
        let read = |body: &str| match regenerated(&reply(200, body)) {
            Ok(NewSecret { secret, object }) => {
                Ok((secret.expose().to_owned(), object.expose().to_owned()))
            }
            Err(Unclear(Some(reason))) => Err(reason),
            Err(other) => panic!("{other:?}"),
        };
        for (body, secret, object) in [
            (r#"{"client_secret": "s"}"#, "s", r#"{"client_secret":"s"}"#),
            (
                r#"{"response": {"client_secret": "s"}, "count": 1}"#,
                "s",
                r#"{"client_secret":"s"}"#,
            ),
            (
                "{\"response\":\n{\"client_secret\":\"s\"},\"client_secret\":\"t\"}",
                "s",
                r#"{"client_secret":"s"}"#,
            ),
            (
                r#"{"response": null, "client_secret": "s"}"#,
                "s",
                r#"{"client_secret":"s","response":null}"#,
            ),
            (
                r#"{"response": {"x": 1}, "client_secret": "s"}"#,
                "s",
                r#"{"client_secret":"s","response":{"x":1}}"#,
            ),
        ] {
            assert_eq!(
                read(body),
                Ok((secret.to_owned(), object.to_owned())),
                "{body}"
            );
        }
        let nested = "[".repeat(60_000);
        let no_secret = "no valid client_secret in the reply";
        for (body, why) in [
            ("", "the reply has no body"),
            (r#"{"client_secret":"s""#, "truncated JSON"),
            ("x", "not JSON"),
            ("<html>", WEB_PAGE),
            (&nested, "not JSON"),
            ("[]", no_secret),
            (r#"{"client_secret":null}"#, no_secret),
            (r#"{"client_secret":["s"]}"#, no_secret),
            (r#"{"client_secret":"\u001b[2J"}"#, no_secret),
        ] {
            assert_eq!(read(body), Err(why.to_owned()));
        }
    }

    #[test]
    fn signatures_in_replies() {
        for (status, body, expected) in [
            (200, JWT, Some("a.b.c")),
            (201, JWT, None),
            (200, r#"{"response":{}}"#, None),
            (200, r#"{"response":"x"}"#, None),
            (200, "", None),
        ] {
            let found = sign_in(&reply(status, body), Mode::All).expect(body).ok();
            let found = found.as_ref().map(Secret::expose);
            assert_eq!(found, expected, "{status} {body}");
        }
    }

    #[test]
    fn introspections() {
        for (status, body, live) in [
            (200, r#"{"active":false}"#, Some(true)),
            (200, r#"{"active":true,"scope":"x"}"#, Some(true)),
            (200, r#"{"active":"false"}"#, None),
            (401, r#"{"error":"invalid_client"}"#, Some(false)),
            (401, r#"{"error":"invalid_token"}"#, None),
            (404, r#"{"active":false}"#, None),
            (200, "<html>", None),
        ] {
            assert_eq!(is_live(&reply(status, body)).ok(), live, "{status} {body}");
        }
    }

    #[test]
    fn dates_of_expiry() {
        let body = |date: &str| format!(r#"{{"response":{{"expiresAt":{date}}}}}"#);
        let date = expiry(&reply(200, &body(r#""2027-06-15T10:30:00.0000000Z""#)));
        assert_eq!(date.as_deref(), Some("2027-06-15"));
        for other in [
            "null",
            "7",
            r#""""#,
            r#""soon""#,
            r#""15.06.2027""#,
            r#""2027-06-1x""#,
            r#""0000-00""#,
            r#""1812345678000""#,
            r#""----------""#,
        ] {
            assert_eq!(expiry(&reply(200, &body(other))), None, "{other}");
        }
        assert_eq!(expiry(&reply(404, &body(r#""2027-06-15""#))), None);
    }

    #[test]
    fn waits_double_from_one_second_to_ten() {
        let seconds = [0, 1, 2, 3, 4, 5, u32::MAX]
            .map(|attempt| wait(attempt, &Ok(reply(503, ""))).as_secs());
        assert_eq!(seconds, [1, 2, 4, 8, 10, 10, 10]);
    }

    #[test]
    fn a_longer_retry_after_replaces_the_wait() {
        let too_large = "9".repeat(30);
        for (retry_after, seconds) in [
            ("7", 7),
            ("86400", 86_400),
            ("2", 2),
            // Shorter than the doubled wait, or not a number of seconds.
            ("1", 2),
            ("0", 2),
            ("-1", 2),
            ("1.5", 2),
            ("Wed, 21 Oct 2026 07:28:00 GMT", 2),
            (&too_large, 2),
            ("", 2),
        ] {
            let reply = Reply {
                retry_after: retry_after.to_owned(),
                ..reply(429, "")
            };
            assert_eq!(wait(1, &Ok(reply)).as_secs(), seconds, "{retry_after}");
        }
    }
}
