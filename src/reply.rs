//! A reply, and what it means. Pure.

use std::time::Duration;

use serde_json::Value;

use crate::secret::{NewSecret, Secret};
use crate::signal::Step::{self, Introspect, Probe, Regenerate, Revoke, SignIn};

/// The longest body of a reply, in bytes.
pub const MAX_BODY: usize = 64 * 1024;

/// A reply to a request. A header that is missing is empty.
#[derive(Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub content_type: String,
    pub location: String,
    pub retry_after: String,
    pub rate_limit_reset: String,
    /// As much of it as came.
    pub body: String,
    pub truncated: bool,
}

#[derive(Debug)]
pub struct Failure {
    /// Whether a byte of the request may have left.
    pub sent: bool,
    /// Whether a retry would fail the same way: the TLS handshake failed, or the proxy refused.
    pub refused: bool,
    pub why: String,
}

pub type Outcome = Result<Reply, Failure>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Done,
    Retry,
    Refused,
    /// The portal may have made the change.
    Unknown,
}

/// Decides what follows. A PATCH is sent again only if the last one definitely did nothing: an unanswered one may
/// still take effect minutes later, and would replace the secret of the second.
pub fn classify(step: Step, outcome: &Outcome) -> Next {
    let transient = if step == Regenerate {
        Next::Unknown
    } else {
        Next::Retry
    };
    let reply = match outcome {
        Err(failure) if failure.refused => return Next::Refused,
        Err(failure) if !failure.sent => return Next::Retry,
        Err(_) => return transient,
        Ok(reply) => reply,
    };
    let json = serde_json::from_str::<Value>(&reply.body);
    let is_truncated =
        reply.body.len() < MAX_BODY && json.is_err_and(|e| reply.truncated || e.is_eof());
    let first_char = reply
        .body
        .chars()
        .find(|c| !c.is_whitespace() && *c != '\u{feff}');
    match (step, reply.status) {
        (_, 429) => Next::Retry,
        (_, ..200 | 408 | 500 | 502..) => transient,
        (Regenerate, 200..300) if new_secret(&reply.body).is_ok() => Next::Done,
        (Regenerate, 200..300 | 501) => Next::Unknown,
        (Regenerate, _) => Next::Refused,
        (_, 425) => Next::Retry,
        (SignIn, 401) => Next::Refused,
        (SignIn | Introspect, 200) if is_truncated && (first_char.is_some() || reply.truncated) => {
            Next::Retry
        }
        (Probe, 200..300) if reply.content_type.starts_with("text/html") => Next::Refused,
        (SignIn | Probe, _) => Next::Done,
        (Revoke, 200..300) if first_char == Some('<') => Next::Refused,
        (Revoke, 200..300) if first_char.is_none() && reply.truncated => Next::Retry,
        (Revoke, 200..300) | (Introspect, 200 | 401) => Next::Done,
        _ => Next::Refused,
    }
}

/// Finds the new secret in a reply to the PATCH: in `response`, or at the top. The error says what is there instead.
pub fn new_secret(body: &str) -> Result<NewSecret, &'static str> {
    let json: Value = serde_json::from_str(body).map_err(|error| {
        if error.is_eof() {
            "truncated JSON"
        } else {
            "no JSON"
        }
    })?;
    let mut objects = json.get("response").into_iter().chain([&json]);
    let found = objects.find_map(|object| {
        let secret = Secret::client_secret(object.get("client_secret")?.as_str()?)?;
        Some(NewSecret {
            secret,
            object: Secret::new(object.to_string()),
        })
    });
    found.ok_or("no usable client_secret")
}

/// Finds the signature in a reply to the sign-in: `{"response": "<jwt>"}`.
pub fn signature(reply: &Reply) -> Option<Secret> {
    let json: Value = serde_json::from_str(&reply.body).ok()?;
    Secret::signature(json.get("response")?.as_str()?).filter(|_| reply.status == 200)
}

/// Returns whether the new secret is live (RFC 7662), or None if this is not a reply to an introspection.
pub fn is_live(reply: &Reply) -> Option<bool> {
    let json: Value = serde_json::from_str(&reply.body).ok()?;
    match reply.status {
        200 => json.get("active")?.is_boolean().then_some(true),
        401 => (json.get("error")? == "invalid_client").then_some(false),
        _ => None,
    }
}

/// Finds the date on which the key expires, as `YYYY-MM-DD`.
pub fn expiry(reply: &Reply) -> Option<String> {
    let json: Value = serde_json::from_str(&reply.body).ok()?;
    let date = json
        .get("response")?
        .get("expiresAt")?
        .as_str()?
        .get(..10)?;
    let digits: String = date
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    (reply.status == 200 && digits == "0000-00-00").then(|| date.to_owned())
}

/// Finds what a refusal says, in the server's words. Never HTML.
pub fn refusal(reply: &Reply) -> Vec<String> {
    let (json, text) = (
        serde_json::from_str::<Value>(&reply.body),
        reply.body.trim(),
    );
    let is_line = text.lines().count() == 1 && !text.contains('<');
    if reply.truncated {
        return vec![];
    }
    if json.is_err() && is_line && reply.content_type.starts_with("text/plain") {
        return vec![text.to_owned()];
    }
    let json = json.unwrap_or_default();
    let field = |name: &&str| {
        let value = json.get(*name)?;
        let text = value.get("message").unwrap_or(value).as_str()?;
        (!text.is_empty()).then(|| text.to_owned())
    };
    [
        "title",
        "detail",
        "reason",
        "message",
        "error",
        "error_description",
    ]
    .iter()
    .filter_map(field)
    .collect()
}

/// Returns the wait after an attempt, counted from 0: doubled from 1 s to 30 s, unless the reply asks for another.
pub fn wait(attempt: u32, outcome: &Outcome) -> Duration {
    let doubled = Duration::from_secs((1 << attempt.min(5)).min(30));
    // Don't flood a portal that keeps asking for almost no wait.
    outcome
        .as_ref()
        .ok()
        .and_then(requested_wait)
        .map_or(doubled, |wait| wait.max(doubled / 100))
}

/// The wait that is asked for: `Retry-After` in seconds (RFC 9110), or a 429's `X-RateLimit-Reset`, in nanoseconds (observed).
fn requested_wait(reply: &Reply) -> Option<Duration> {
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let reset = number(&reply.rate_limit_reset)
        .filter(|_| reply.status == 429)
        .map(|reset| match reset {
            // Up to 3,600 it is seconds (other services): as nanoseconds that would be no wait at all.
            0..=3600 => Duration::from_secs(reset),
            _ => Duration::from_millis(reset / 1_000_000),
        });
    let waits = [number(&reply.retry_after).map(Duration::from_secs), reset];
    let plausible = Duration::from_millis(1)..=Duration::from_secs(86400);
    waits
        .into_iter()
        .flatten()
        .find(|wait| plausible.contains(wait))
}

#[cfg(test)]
mod tests {
    use super::*;

    const JWT: &str = r#"{"response":"a.b.c"}"#;
    const SECRET: &str = r#"{"client_secret":"s"}"#;

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

    #[test]
    fn what_follows_from_a_missing_reply() {
        for step in [SignIn, Probe, Regenerate, Revoke, Introspect] {
            let unanswered = if step == Regenerate {
                Next::Unknown
            } else {
                Next::Retry
            };
            for (sent, refused, next) in [
                (false, false, Next::Retry),
                (false, true, Next::Refused),
                (true, true, Next::Refused),
                (true, false, unanswered),
            ] {
                assert_eq!(
                    classify(
                        step,
                        &Err(Failure {
                            sent,
                            refused,
                            why: String::new()
                        })
                    ),
                    next
                );
            }
        }
    }

    #[test]
    fn what_follows_from_a_status() {
        use Next::{Done, Refused, Retry, Unknown};
        // In the order of the calls. A good body for each, so that only the status counts.
        for (status, next) in [
            (101, [Retry, Retry, Unknown, Retry, Retry]),
            (200, [Done, Done, Done, Done, Done]),
            (202, [Done, Done, Done, Done, Refused]),
            (204, [Done, Done, Done, Done, Refused]),
            (302, [Done, Done, Refused, Refused, Refused]),
            (400, [Done, Done, Refused, Refused, Refused]),
            (401, [Refused, Done, Refused, Refused, Done]),
            (403, [Done, Done, Refused, Refused, Refused]),
            (404, [Done, Done, Refused, Refused, Refused]),
            (408, [Retry, Retry, Unknown, Retry, Retry]),
            (425, [Retry, Retry, Refused, Retry, Retry]),
            (429, [Retry, Retry, Retry, Retry, Retry]),
            (499, [Done, Done, Refused, Refused, Refused]),
            (500, [Retry, Retry, Unknown, Retry, Retry]),
            (501, [Done, Done, Unknown, Refused, Refused]),
            (503, [Retry, Retry, Unknown, Retry, Retry]),
            (999, [Retry, Retry, Unknown, Retry, Retry]),
        ] {
            let steps = [
                (SignIn, JWT),
                (Probe, ""),
                (Regenerate, SECRET),
                (Revoke, ""),
                (Introspect, "{}"),
            ];
            let found = steps.map(|(step, body)| classify(step, &Ok(reply(status, body))));
            assert_eq!(found, next, "{status}");
        }
    }

    #[test]
    fn what_follows_from_a_body() {
        for (step, reply, next) in [
            // JSON says itself whether it is complete.
            (SignIn, reply(200, r#"{"response":"a.b"#), Next::Retry),
            (SignIn, truncated(200, "some text"), Next::Retry),
            (SignIn, truncated(200, ""), Next::Retry),
            (SignIn, truncated(200, JWT), Next::Done),
            (SignIn, truncated(404, "{"), Next::Done),
            (SignIn, reply(200, ""), Next::Done),
            (SignIn, truncated(200, &"[".repeat(MAX_BODY)), Next::Done),
            (SignIn, reply(200, "<html>"), Next::Done),
            (Regenerate, reply(200, "{}"), Next::Unknown),
            (
                Regenerate,
                reply(200, r#"{"client_secret":"s""#),
                Next::Unknown,
            ),
            (Regenerate, truncated(200, SECRET), Next::Done),
            (Regenerate, truncated(404, "{"), Next::Refused),
            (Revoke, reply(200, r#"{"error":"no"}"#), Next::Done),
            (Revoke, reply(200, " \n\u{feff}<html>"), Next::Refused),
            (Revoke, truncated(200, "{"), Next::Done),
            (Revoke, truncated(200, ""), Next::Retry),
            (Introspect, truncated(200, "{"), Next::Retry),
            (Introspect, reply(200, "<html>"), Next::Done),
        ] {
            assert_eq!(classify(step, &Ok(reply)), next);
        }
        for (content_type, next) in [
            ("text/html", Next::Refused),
            ("text/html; charset=x", Next::Refused),
            ("text/plain", Next::Done),
        ] {
            let reply = Reply {
                content_type: content_type.to_owned(),
                ..reply(200, "")
            };
            assert_eq!(classify(Probe, &Ok(reply)), next, "{content_type}");
        }
    }

    #[test]
    fn secrets_in_replies() {
        let read = |body: &str| {
            let NewSecret { secret, object } = new_secret(body)?;
            Ok((secret.expose().to_owned(), object.expose().to_owned()))
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
            (r#"{"client_secret":"s"} x"#, "no JSON"),
            ("<html>", "no JSON"),
            (&nested, "no JSON"),
            ("[]", "no usable client_secret"),
            (r#"{"client_secret":null}"#, "no usable client_secret"),
            (r#"{"client_secret":["s"]}"#, "no usable client_secret"),
            (
                r#"{"client_secret":"\u001b[2J"}"#,
                "no usable client_secret",
            ),
        ] {
            assert_eq!(read(body), Err(why));
        }
    }

    #[test]
    fn signatures_in_replies() {
        assert_eq!(
            signature(&reply(200, JWT))
                .map(|jwt| jwt.expose().to_owned())
                .as_deref(),
            Some("a.b.c")
        );
        for (status, body) in [
            (201, JWT),
            (200, r#"{"response":{}}"#),
            (200, r#"{"response":"x"}"#),
            (200, ""),
        ] {
            assert!(signature(&reply(status, body)).is_none(), "{status} {body}");
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
            assert_eq!(is_live(&reply(status, body)), live, "{status} {body}");
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
            assert_eq!(refusal(&told), said, "{body}");
            let cut = Reply {
                content_type: content_type.to_owned(),
                ..truncated(404, body)
            };
            assert!(refusal(&cut).is_empty(), "{body}");
        }
    }

    #[test]
    fn waits_double_from_one_second_to_thirty() {
        let failure = || {
            Err(Failure {
                sent: false,
                refused: false,
                why: String::new(),
            })
        };
        let seconds: Vec<u64> = (0..8)
            .map(|attempt| wait(attempt, &failure()).as_secs())
            .collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(wait(u32::MAX, &failure()), Duration::from_secs(30));
        assert_eq!(wait(2, &Ok(reply(503, ""))), Duration::from_secs(4));
    }

    #[test]
    fn a_plausible_request_replaces_the_wait() {
        let huge = "9".repeat(30);
        for (status, retry_after, reset, millis) in [
            (429, "7", "", 7_000),
            (503, " 7 ", "", 7_000),
            (503, "86400", "", 86_400_000),
            (429, "", "3600", 3_600_000),
            (429, "7", "3445000000", 7_000),
            (429, "", "3445000000", 3_445),
            (429, "", "30000000", 30),
            // No less than a hundredth of the doubled wait.
            (429, "", "10000000", 20),
            (429, "", "60", 60_000),
            (429, "Wed, 21 Oct 2026 07:28:00 GMT", "1000000", 20),
            (429, "86401", "2000000000", 2_000),
            // Not plausible, so the doubled wait.
            (503, "", "3445000000", 2_000),
            (429, "0", "0", 2_000),
            (429, "-1", "-1", 2_000),
            (429, "soon", "1.5", 2_000),
            (429, &huge, &huge, 2_000),
            (429, "", "999999", 2_000),
            (429, "", "86401000000000", 2_000),
        ] {
            let (retry_after, rate_limit_reset) = (retry_after.to_owned(), reset.to_owned());
            let reply = Reply {
                status,
                retry_after,
                rate_limit_reset,
                ..Reply::default()
            };
            assert_eq!(
                wait(1, &Ok(reply)),
                Duration::from_millis(millis),
                "{status} {reset}"
            );
        }
    }
}
