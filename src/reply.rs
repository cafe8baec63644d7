//! A reply, and what is in it. Pure.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::value::RawValue;

use crate::secret::Secret;

/// A reply to a request.
#[derive(Debug, Default)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The `Content-Type` header.
    pub content_type: Option<String>,
    /// The `Location` header.
    pub location: Option<String>,
    /// The `Retry-After` header.
    pub retry_after: Option<String>,
    /// The `X-RateLimit-Reset` header, in any spelling.
    pub rate_limit_reset: Option<String>,
    /// The body, or what came of it.
    pub body: Vec<u8>,
    /// How the body ends.
    pub end: End,
}

/// How a body ends.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum End {
    /// As it should.
    #[default]
    Whole,
    /// Beyond what is read.
    TooLong,
    /// Too early; why.
    Cut(String),
}

/// No reply. Each says why, in words fit for a log.
#[derive(Debug)]
pub enum Failure {
    /// The TLS handshake failed for good: no byte of the request was taken, and none would be a
    /// moment later.
    Refused(String),
    /// The proxy refuses for good: no byte of the request has left.
    RefusedByProxy(String),
    /// No byte of the request has left.
    NotSent(String),
    /// The request may have arrived.
    NoReply(String),
}

/// What came of a request.
pub type Outcome = Result<Reply, Failure>;

/// A client's new secret.
pub struct NewSecret {
    /// The bare secret.
    pub secret: Secret,
    /// The object that holds it, as one line of JSON.
    pub object: Secret,
}

/// The secret in a reply to the PATCH, and its object: what is in `response`, else the whole body.
///
/// # Errors
///
/// What the body is or holds instead.
pub fn new_secret(body: &[u8]) -> Result<NewSecret, &'static str> {
    let body: &RawValue = serde_json::from_slice(body).map_err(|_| "a body that is not JSON")?;
    let outer = object(body).ok_or("no client_secret")?;
    let (json, inner) = match outer.get("response").and_then(|inner| Some((*inner, object(inner)?))) {
        Some(inner) => inner,
        None => (body, outer),
    };
    let secret = inner.get("client_secret").ok_or("no client_secret")?;
    let secret: Option<String> = serde_json::from_str(secret.get()).ok();
    let secret = secret.as_deref().and_then(Secret::client_secret);
    let secret = secret.ok_or("an unusable client_secret")?;
    Ok(NewSecret { secret, object: Secret::new(one_line(json.get())) })
}

/// The members of an object, as they are written: numbers keep their digits.
fn object(json: &RawValue) -> Option<BTreeMap<String, &RawValue>> {
    serde_json::from_str(json.get()).ok()
}

/// JSON on one line, as it was but for white space between its parts and for the characters that a
/// terminal may act on. These stand in strings only, where their escapes mean the same (RFC 8259,
/// section 7).
fn one_line(json: &str) -> String {
    let mut line = String::new();
    let (mut in_string, mut escaped) = (false, false);
    for c in json.chars() {
        match c {
            ' ' | '\t' | '\r' | '\n' if !in_string => {}
            ' '..='~' => line.push(c),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    line += &format!("\\u{unit:04x}");
                }
            }
        }
        in_string ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
    }
    line
}

/// Whether a 2xx to the DELETE is a portal's: it says nothing, or has the envelope of the portal's
/// API around a success. Anything else comes from what answers at this address instead, or is an
/// error in spite of its status.
pub fn is_plain_success(body: &[u8]) -> bool {
    if body.trim_ascii().is_empty() {
        return true;
    }
    let Ok(Value::Object(object)) = serde_json::from_slice(body) else {
        return false;
    };
    object.iter().all(|(name, value)| match name.as_str() {
        "statusCode" => matches!(value.as_u64(), Some(200..=299)),
        "status" => value.as_u64().is_some_and(|status| status < 300),
        "response" => value.get("error").is_none(),
        "count" | "links" => true,
        _ => false,
    })
}

/// Whether the reply calls its body JSON. A page that answers at any address is HTML.
pub fn is_json(reply: &Reply) -> bool {
    let kind = reply.content_type.as_deref().unwrap_or_default().to_ascii_lowercase();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind == "application/json" || kind.ends_with("+json")
}

/// What an introspection says of the secret with which it was asked: true where it is live, false
/// where it is revoked, nothing where this is not a reply to an introspection.
pub fn takes_secret(reply: &Reply) -> Option<bool> {
    let body: Value = serde_json::from_slice(&reply.body).ok()?;
    match reply.status {
        200 => body.get("active")?.is_boolean().then_some(true),
        401 => (body.get("error")? == "invalid_client").then_some(false),
        _ => None,
    }
}

/// The signature in a reply to the sign-in: `{"response": "<jwt>"}`.
pub fn signature(reply: &Reply) -> Option<Secret> {
    let body: Value = serde_json::from_slice(&reply.body).ok()?;
    let signature = body.get("response")?.as_str()?;
    Secret::signature(signature).filter(|_| reply.status == 200)
}

/// What a 4xx says in JSON: `title` and `detail`, or `reason`. No other part of it, and nothing of
/// a body that is cut or of another kind: they might hold a secret.
pub fn error_texts(reply: &Reply) -> Vec<String> {
    let problem = match (reply.status, &reply.end) {
        (400..=499, End::Whole) => serde_json::from_slice(&reply.body).unwrap_or_default(),
        _ => Value::Null,
    };
    let text = |name: &&str| Some(problem.get(*name)?.as_str()?.to_owned());
    ["title", "detail", "reason"].iter().filter_map(text).collect()
}

/// The target of a redirect: scheme, host and path. Query, fragment and escapes are dropped: they may
/// hold secrets.
pub fn target(location: &str) -> String {
    let address = location.split(['?', '#', '%', '\\']).next().unwrap_or_default();
    match address.split_once("//") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = authority.rsplit('@').next().unwrap_or_default();
            format!("{scheme}//{host}{path}")
        }
        None if address.starts_with('/') => address.to_owned(),
        None => "another address".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_replies() {
        let read = |body: &str| {
            let NewSecret { secret, object } = new_secret(body.as_bytes())?;
            Ok((secret.expose().to_owned(), object.expose().to_owned()))
        };
        let found = |secret: &str, object: &str| Ok((secret.to_owned(), object.to_owned()));
        assert_eq!(read(r#"{"client_secret": "s"}"#), found("s", r#"{"client_secret":"s"}"#));
        assert_eq!(
            read(r#"{"response": {"client_secret": "s"}, "count": 1}"#),
            found("s", r#"{"client_secret":"s"}"#)
        );
        assert_eq!(
            read(r#"{"response": "x", "client_secret": "s"}"#).map(|(secret, _)| secret),
            Ok("s".to_owned())
        );
        let kept =
            r#"{"z":1.10,"a":12345678901234567890123,"b":1e400,"c":"\ud800 \" \\","client_secret":"s"}"#;
        assert_eq!(read(kept), found("s", kept));
        assert_eq!(
            read("{\r\n\t\"a b\" : \"\u{9b}é\u{1f600} \" ,\n\"client_secret\":\"s\" }"),
            found("s", r#"{"a b":"\u009b\u00e9\ud83d\ude00 ","client_secret":"s"}"#)
        );
        let nested = "[".repeat(60_000);
        for (body, why) in [
            ("", "a body that is not JSON"),
            ("{\"client_secret\":\"s\"} x", "a body that is not JSON"),
            (nested.as_str(), "a body that is not JSON"),
            ("[]", "no client_secret"),
            ("\"client_secret\"", "no client_secret"),
            (r#"{"response":{"x":1},"client_secret":"s"}"#, "no client_secret"),
            (r#"{"client_secret":null}"#, "an unusable client_secret"),
            (r#"{"client_secret":["s"]}"#, "an unusable client_secret"),
            (r#"{"client_secret":"\u001b[2J"}"#, "an unusable client_secret"),
        ] {
            assert_eq!(read(body), Err(why));
        }
    }

    #[test]
    fn successes_of_a_revoke() {
        for (body, plain) in [
            ("", true),
            (" \r\n", true),
            ("{}", true),
            (r#"{"response":true,"count":1,"links":[],"status":0,"statusCode":200}"#, true),
            (r#"{"error":{"message":"denied"},"statusCode":403}"#, false),
            (r#"{"statusCode":403}"#, false),
            (r#"{"statusCode":"500"}"#, false),
            (r#"{"title":"Access Denied","status":403}"#, false),
            (r#"{"status":403}"#, false),
            (r#"{"errors":[]}"#, false),
            (r#"{"reason":"denied"}"#, false),
            (r#"{"success":false}"#, false),
            (r#"{"response":{"error":"x"},"statusCode":200}"#, false),
            ("<html>login</html>", false),
            ("null", false),
        ] {
            assert_eq!(is_plain_success(body.as_bytes()), plain, "{body}");
        }
    }

    #[test]
    fn kinds_of_content() {
        for (kind, json) in [
            (Some("application/json"), true),
            (Some("application/json;charset=UTF-8"), true),
            (Some("Application/JSON ; x"), true),
            (Some("application/problem+json"), true),
            (Some("text/html; x=json"), false),
            (Some("application/jsonp"), false),
            (Some("text/html"), false),
            (None, false),
        ] {
            let content_type = kind.map(str::to_owned);
            assert_eq!(is_json(&Reply { content_type, ..Reply::default() }), json, "{kind:?}");
        }
    }

    #[test]
    fn introspections() {
        for (status, body, takes) in [
            (200, r#"{"active":false}"#, Some(true)),
            (200, r#"{"active":true,"scope":"x"}"#, Some(true)),
            (200, r#"{"active":"false"}"#, None),
            (200, "{}", None),
            (200, "<html>", None),
            (401, r#"{"error":"invalid_client"}"#, Some(false)),
            (401, r#"{"error":"invalid_token"}"#, None),
            (401, "", None),
            (404, r#"{"active":false}"#, None),
        ] {
            let reply = Reply { status, body: body.into(), ..Reply::default() };
            assert_eq!(takes_secret(&reply), takes, "{status} {body}");
        }
    }

    #[test]
    fn what_a_refusal_says() {
        for (body, said) in [
            (
                r#"{"title":"Not Found","detail":"no such client","status":404}"#,
                &["Not Found", "no such client"][..],
            ),
            (r#"{"reason":"because","x":"hush"}"#, &["because"]),
            (r#"{"title":7,"errors":[]}"#, &[]),
            (r#"{"client_secret":"hush","x":1}"#, &[]),
            (r#"{"title":"hush"#, &[]),
            (r#"["hush"]"#, &[]),
            (r#""hush""#, &[]),
            ("<h1>Bad Gateway</h1>", &[]),
            ("", &[]),
        ] {
            let texts =
                |status, end| error_texts(&Reply { status, end, body: body.into(), ..Reply::default() });
            assert_eq!(texts(400, End::Whole), said, "{body}");
            assert_eq!(texts(499, End::Whole), said, "{body}");
            for (status, end) in
                [(200, End::Whole), (302, End::Whole), (500, End::Whole), (404, End::TooLong)]
            {
                assert!(texts(status, end).is_empty(), "{status} {body}");
            }
            assert!(texts(404, End::Cut(String::new())).is_empty(), "{body}");
        }
    }

    #[test]
    fn redirect_targets() {
        for (location, shown) in [
            ("https://new.example/api?key=hush#x", "https://new.example/api"),
            ("https://user:hush@new.example", "https://new.example"),
            ("//new.example/x", "//new.example/x"),
            ("/login?hush", "/login"),
            ("https://new.example/Bearer%20hush", "https://new.example/Bearer"),
            ("https:\\\\user:hush@new.example/x", "another address"),
            ("https:/user:hush@new.example/x", "another address"),
            ("", "another address"),
        ] {
            assert_eq!(target(location), shown);
        }
    }
}
