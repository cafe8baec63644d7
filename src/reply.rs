//! A reply, and what it means for each call. Pure.

use std::time::Duration;

use serde_json::Value;

use crate::call::Call;
use crate::failure::Failure;
use crate::secret::{NewSecret, Secret};

/// The longest body of a reply, in bytes.
pub const MAX_BODY: usize = 64 * 1024;

/// A reply to a request. A header that is missing is empty.
#[derive(Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub content_type: String,
    pub location: String,
    pub retry_after: String,
    /// As much of it as came.
    pub body: String,
    pub truncated: bool,
}

/// Why a call is not done, with the reason where the reply proves one.
#[derive(Debug, PartialEq, Eq)]
pub enum NotDone {
    /// The portal did nothing, so any call may be sent again.
    Busy(Option<String>),
    /// The portal may have done it or not, so only an idempotent call may be sent again.
    Unclear(Option<String>),
    /// The same call would be refused again.
    Refused(Option<String>),
}

use NotDone::{Busy, Refused, Unclear};

fn because<T>(kind: fn(Option<String>) -> NotDone, reason: &str) -> Result<T, NotDone> {
    Err(kind(Some(reason.to_owned())))
}

/// Reads the result of a call: first what it means for any call, then what `read` makes of it.
pub fn evaluate<T>(
    call: Call,
    result: &Result<Reply, Failure>,
    read: impl FnOnce(&Reply) -> Result<T, NotDone>,
) -> Result<T, NotDone> {
    let reply = match result {
        Ok(reply) => reply,
        Err(failure) => return Err(without_reply(call, failure)),
    };
    match reply.status {
        429 => Err(Busy(None)),
        425 if call.is_idempotent() => Err(Unclear(None)),
        100..200 => because(Unclear, "not a final reply"),
        ..100 | 408 | 500 | 502.. => Err(Unclear(None)),
        _ => read(reply),
    }
}

fn without_reply(call: Call, failure: &Failure) -> NotDone {
    let reason = Some(failure.why.clone());
    let is_final_tls = failure.is_tls && (!failure.sent || call.is_preparation());
    if failure.proxy_refused || is_final_tls {
        Refused(reason)
    } else if failure.sent {
        Unclear(reason)
    } else {
        Busy(reason)
    }
}

impl Reply {
    fn json(&self) -> Result<Value, serde_json::Error> {
        serde_json::from_str(&self.body)
    }

    fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    fn text(&self) -> &str {
        self.body
            .trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}')
    }

    /// Returns true if the end of the JSON is missing. JSON says itself whether it is complete, so
    /// it does not matter how the body ended.
    fn has_incomplete_json(&self) -> bool {
        if self.body.len() >= MAX_BODY {
            return false;
        }
        match self.json() {
            Ok(_) => false,
            Err(error) => self.truncated || (error.is_eof() && !self.text().is_empty()),
        }
    }
}

pub enum SignIn {
    Signature(Secret),
    /// The server has no such sign-in. It answered with this status.
    Unsupported(u16),
}

/// Reads a reply to the sign-in: `{"response": "<jwt>"}`.
pub fn sign_in(reply: &Reply) -> Result<SignIn, NotDone> {
    match reply.status {
        401 => because(Refused, "the key is wrong or has expired"),
        200 if reply.has_incomplete_json() => because(Unclear, "truncated JSON"),
        200 => Ok(match signature(reply) {
            Some(signature) => SignIn::Signature(signature),
            None => SignIn::Unsupported(200),
        }),
        status => Ok(SignIn::Unsupported(status)),
    }
}

fn signature(reply: &Reply) -> Option<Secret> {
    let json = reply.json().ok()?;
    Secret::signature(json.get("response")?.as_str()?)
}

/// Reads a reply to the HEAD of a run that only waits: all but another web site will do.
pub fn ready(reply: &Reply) -> Result<(), NotDone> {
    if reply.is_success() && reply.content_type.starts_with("text/html") {
        return because(Refused, "a web page");
    }
    Ok(())
}

/// Reads a reply to the HEAD of `--check`, which has to say that the client is there.
pub fn client_exists(reply: &Reply, is_signed: bool) -> Result<(), NotDone> {
    if reply.is_success() {
        return ready(reply);
    }
    match reply.status {
        403 if is_signed => because(Refused, "the role of the key's user does not allow it"),
        404 => because(
            Refused,
            "no client with this id, or the key's user may not manage it",
        ),
        405 | 501 => because(Refused, "the client cannot be checked, but a run may work"),
        _ => Err(Refused(None)),
    }
}

/// Reads a reply to the PATCH. A success without a secret may have made one, which is lost.
pub fn regenerated(reply: &Reply) -> Result<NewSecret, NotDone> {
    match reply.status {
        200..300 => new_secret(reply),
        501 => Err(Unclear(None)),
        _ => Err(Refused(None)),
    }
}

/// Finds the new secret, in `response` or at the top.
fn new_secret(reply: &Reply) -> Result<NewSecret, NotDone> {
    let json = match reply.json() {
        Ok(json) => json,
        Err(error) if error.is_eof() => return because(Unclear, "truncated JSON"),
        Err(_) => return because(Unclear, "not JSON"),
    };
    let nested = json.get("response").and_then(secret_in);
    match nested.or_else(|| secret_in(&json)) {
        Some(new) => Ok(new),
        None => because(Unclear, "no valid client_secret"),
    }
}

fn secret_in(object: &Value) -> Option<NewSecret> {
    let secret = Secret::client_secret(object.get("client_secret")?.as_str()?)?;
    let object = Secret::new(object.to_string());
    Some(NewSecret { secret, object })
}

/// Reads a reply to the DELETE. Any success will do, but a login page is none.
pub fn revoked(reply: &Reply) -> Result<(), NotDone> {
    if !reply.is_success() {
        return Err(Refused(None));
    }
    if reply.text().starts_with('<') {
        return because(Refused, "a web page");
    }
    if reply.text().is_empty() && reply.truncated {
        return because(Unclear, "the body did not come");
    }
    Ok(())
}

/// Reads a reply to an introspection (RFC 7662): whether the new secret is live.
pub fn is_live(reply: &Reply) -> Result<bool, NotDone> {
    const NO_REPLY: &str = "not a reply to an introspection";
    let json = reply.json().unwrap_or_default();
    match reply.status {
        200 if json.get("active").is_some_and(Value::is_boolean) => Ok(true),
        401 if json
            .get("error")
            .is_some_and(|error| error == "invalid_client") =>
        {
            Ok(false)
        }
        200 if reply.has_incomplete_json() => because(Unclear, NO_REPLY),
        200 | 401 => because(Refused, NO_REPLY),
        _ => Err(Refused(None)),
    }
}

/// Finds the date on which the key expires, as `YYYY-MM-DD`.
pub fn expiry(reply: &Reply) -> Option<String> {
    if reply.status != 200 {
        return None;
    }
    let json = reply.json().ok()?;
    let date = json
        .get("response")?
        .get("expiresAt")?
        .as_str()?
        .get(..10)?;
    let is_date = date.bytes().enumerate().all(|(at, byte)| match at {
        4 | 7 => byte == b'-',
        _ => byte.is_ascii_digit(),
    });
    is_date.then(|| date.to_owned())
}

/// Returns what a refusal says, in the server's words. Never HTML.
pub fn server_words(reply: &Reply) -> Vec<String> {
    const FIELDS: [&str; 6] = [
        "title",
        "detail",
        "reason",
        "message",
        "error",
        "error_description",
    ];
    if reply.truncated {
        return vec![];
    }
    let Ok(json) = reply.json() else {
        let line = reply.body.trim();
        let is_line = line.lines().count() == 1 && !line.contains('<');
        let is_plain = reply.content_type.starts_with("text/plain");
        return if is_line && is_plain {
            vec![line.to_owned()]
        } else {
            vec![]
        };
    };
    let mut words = vec![];
    for field in FIELDS {
        // Some portals nest it: `{"error": {"message": "..."}}`.
        let Some(value) = json.get(field) else {
            continue;
        };
        let text = value
            .get("message")
            .unwrap_or(value)
            .as_str()
            .unwrap_or_default();
        if !text.is_empty() {
            words.push(text.to_owned());
        }
    }
    words
}

/// Returns the wait after an attempt, counted from 0: doubled from 1 s to 10 s, or longer if the
/// reply asks for it with `Retry-After` in seconds.
pub fn wait(attempt: u32, reply: Option<&Reply>) -> Duration {
    let doubled = match attempt {
        0..=3 => 1 << attempt,
        _ => 10,
    };
    let requested = reply
        .and_then(|reply| reply.retry_after.trim().parse().ok())
        .unwrap_or(0);
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
            truncated: true,
            ..reply(status, body)
        }
    }

    /// What a result means, without the value and the words.
    fn kind<T>(result: Result<T, NotDone>) -> &'static str {
        match result {
            Ok(_) => "done",
            Err(Busy(_)) => "busy",
            Err(Unclear(_)) => "unclear",
            Err(Refused(_)) => "refused",
        }
    }

    fn kind_of(call: Call, result: Result<Reply, Failure>) -> &'static str {
        match call {
            Call::SignIn => kind(evaluate(call, &result, sign_in)),
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
            for (sent, is_tls, proxy_refused, expected) in [
                (false, false, false, "busy"),
                (true, false, false, "unclear"),
                (false, true, false, "refused"),
                (true, true, false, late_tls),
                (false, false, true, "refused"),
            ] {
                let failure = Failure {
                    sent,
                    is_tls,
                    proxy_refused,
                    why: String::new(),
                };
                assert_eq!(kind_of(call, Err(failure)), expected, "{call:?}");
            }
        }
    }

    #[test]
    fn what_a_status_means() {
        use Call::*;
        let [d, b, u, r] = ["done", "busy", "unclear", "refused"];
        // In the order of the calls. A good body for each, so that only the status counts.
        for (status, expected) in [
            (101, [u, u, u, u, u]),
            (200, [d, d, d, d, d]),
            (202, [d, d, d, d, r]),
            (204, [d, d, d, d, r]),
            (302, [d, d, r, r, r]),
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
            let good = [
                (SignIn, JWT),
                (Probe, ""),
                (Regenerate, SECRET),
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
            (SignIn, truncated(200, &"[".repeat(MAX_BODY)), "done"),
            (SignIn, reply(200, "<html>"), "done"),
            (Regenerate, reply(200, "{}"), "unclear"),
            (Regenerate, reply(200, r#"{"client_secret":"s""#), "unclear"),
            (Regenerate, truncated(200, SECRET), "done"),
            (Regenerate, truncated(404, "{"), "refused"),
            (Revoke, reply(200, r#"{"error":"no"}"#), "done"),
            (Revoke, reply(200, " \n\u{feff}<html>"), "refused"),
            (Revoke, truncated(200, "{"), "done"),
            (Revoke, truncated(200, ""), "unclear"),
            (Introspect, truncated(200, "{"), "unclear"),
            (Introspect, reply(200, "<html>"), "refused"),
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
    fn what_a_check_says_of_a_refusal() {
        for (status, is_signed, words) in [
            (
                403,
                true,
                Some("the role of the key's user does not allow it"),
            ),
            (403, false, None),
            (
                404,
                true,
                Some("no client with this id, or the key's user may not manage it"),
            ),
            (
                405,
                true,
                Some("the client cannot be checked, but a run may work"),
            ),
            (302, true, None),
        ] {
            assert_eq!(
                client_exists(&reply(status, ""), is_signed),
                Err(Refused(words.map(str::to_owned)))
            );
        }
    }

    #[test]
    fn secrets_in_replies() {
        let read = |body: &str| match new_secret(&reply(200, body)) {
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
        for (body, why) in [
            ("", "truncated JSON"),
            (r#"{"client_secret":"s""#, "truncated JSON"),
            (r#"{"client_secret":"s"} x"#, "not JSON"),
            ("<html>", "not JSON"),
            (&nested, "not JSON"),
            ("[]", "no valid client_secret"),
            (r#"{"client_secret":null}"#, "no valid client_secret"),
            (r#"{"client_secret":["s"]}"#, "no valid client_secret"),
            (r#"{"client_secret":"\u001b[2J"}"#, "no valid client_secret"),
        ] {
            assert_eq!(read(body), Err(why.to_owned()));
        }
    }

    #[test]
    fn signatures_in_replies() {
        for (status, body, expected) in [
            (200, JWT, Ok("a.b.c")),
            (201, JWT, Err(201)),
            (200, r#"{"response":{}}"#, Err(200)),
            (200, r#"{"response":"x"}"#, Err(200)),
            (200, "", Err(200)),
        ] {
            let found = match sign_in(&reply(status, body)) {
                Ok(SignIn::Signature(signature)) => Ok(signature.expose().to_owned()),
                Ok(SignIn::Unsupported(status)) => Err(status),
                Err(not_done) => panic!("{status} {body}: {not_done:?}"),
            };
            assert_eq!(found, expected.map(str::to_owned));
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
        ] {
            assert_eq!(expiry(&reply(200, &body(other))), None, "{other}");
        }
        assert_eq!(expiry(&reply(404, &body(r#""2027-06-15""#))), None);
    }

    #[test]
    fn what_a_refusal_says() {
        let html = "<p>no</p>";
        for (content_type, body, said) in [
            (
                "",
                r#"{"title":"Not Found","detail":"no such client","status":404}"#,
                &["Not Found", "no such client"][..],
            ),
            ("", r#"{"reason":"because","x":"hush"}"#, &["because"]),
            (
                "",
                r#"{"error":"invalid","error_description":"why"}"#,
                &["invalid", "why"],
            ),
            (
                "",
                r#"{"error":{"message":"denied","x":"hush"},"message":"m"}"#,
                &["m", "denied"],
            ),
            ("", r#"{"title":7,"errors":[]}"#, &[]),
            ("text/plain", "no such client\n", &["no such client"]),
            ("text/plain", "two\nlines", &[]),
            ("text/plain", html, &[]),
            ("text/html", html, &[]),
            ("", "no content type", &[]),
        ] {
            let told = Reply {
                content_type: content_type.to_owned(),
                ..reply(404, body)
            };
            assert_eq!(server_words(&told), said, "{body}");
            let cut = Reply {
                content_type: content_type.to_owned(),
                ..truncated(404, body)
            };
            assert!(server_words(&cut).is_empty(), "{body}");
        }
    }

    #[test]
    fn waits_double_from_one_second_to_ten() {
        let seconds = [0, 1, 2, 3, 4, 5, u32::MAX].map(|attempt| wait(attempt, None).as_secs());
        assert_eq!(seconds, [1, 2, 4, 8, 10, 10, 10]);
    }

    #[test]
    fn a_longer_retry_after_replaces_the_wait() {
        let too_large = "9".repeat(30);
        for (retry_after, seconds) in [
            ("7", 7),
            (" 7 ", 7),
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
            assert_eq!(wait(1, Some(&reply)).as_secs(), seconds, "{retry_after}");
        }
    }
}
