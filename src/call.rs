//! The calls that there are, and what each outcome of one means. Pure.

use std::time::Duration;

use crate::reply::{End, Failure, Outcome, Reply, error_texts, is_plain_success, target};
use crate::secret::{Secret, shorten};

/// A call of a run. All paths are below the portal's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Turns the key into a signature: the sign-in.
    Token,
    /// Sees that the client is there, without its body: that holds the live secret.
    Look,
    /// Gives the client a new secret.
    Regenerate,
    /// Revokes the caller's consent to the client.
    Revoke,
    /// Asks whether the new secret is live (RFC 7662).
    Introspect,
}

impl Call {
    /// The name in the log, as in the vendor's sample.
    pub fn name(self) -> &'static str {
        match self {
            Call::Token => "[GET token]",
            Call::Look => "[HEAD client]",
            Call::Regenerate => "[PATCH regenerate]",
            Call::Revoke => "[DELETE revoke]",
            Call::Introspect => "[POST introspect]",
        }
    }

    /// The method.
    pub fn method(self) -> &'static str {
        match self {
            Call::Token => "GET",
            Call::Look => "HEAD",
            Call::Regenerate => "PATCH",
            Call::Revoke => "DELETE",
            Call::Introspect => "POST",
        }
    }

    /// The path for this client.
    pub fn path(self, client: &str) -> String {
        match self {
            Call::Token => "/api/2.0/security/oauth2/token".to_owned(),
            Call::Look => format!("/api/2.0/clients/{client}"),
            Call::Regenerate => format!("/api/2.0/clients/{client}/regenerate"),
            Call::Revoke => format!("/api/2.0/clients/{client}/revoke"),
            Call::Introspect => "/oauth2/introspect".to_owned(),
        }
    }

    /// Whether it is one of the calls on a client, which want a signature.
    pub fn is_signed(self) -> bool {
        matches!(self, Call::Look | Call::Regenerate | Call::Revoke)
    }

    /// How long one attempt may take. Nothing is gained by giving up a PATCH: it is not sent again.
    pub fn timeout(self) -> Option<Duration> {
        match self {
            Call::Regenerate => None,
            Call::Token | Call::Look | Call::Revoke | Call::Introspect => Some(Duration::from_secs(30)),
        }
    }
}

/// The form of the introspection. Its token is any text: what tells is whether the portal takes
/// the client's secret.
pub fn introspection(client: &str, secret: &Secret) -> String {
    let secret = form_value(secret.expose());
    format!("client_id={client}&client_secret={secret}&token=docspace-rotate")
}

/// Text for a form (application/x-www-form-urlencoded), in which all but letters, digits, `-`, `.`
/// and `_` is escaped.
fn form_value(text: &str) -> String {
    let mut value = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => value.push(byte.into()),
            byte => value += &format!("%{byte:02X}"),
        }
    }
    value
}

/// What follows from the outcome of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is a reply to go on with.
    Done,
    /// Sign in, then the same again.
    SignIn,
    /// It did nothing, or may be done twice: the same again, while there is time.
    Retry,
    /// The portal or the proxy refuses.
    Refused,
    /// The portal may have done it, and does not say.
    Unknown,
}

/// Judges an outcome. An unanswered PATCH may still happen minutes later and would revoke the secret
/// that a second one brought: it is repeated only where the last one surely did nothing.
pub fn judge(call: Call, outcome: &Outcome, may_sign_in: bool) -> Verdict {
    let unanswered = match call {
        Call::Regenerate => Verdict::Unknown,
        Call::Token | Call::Look | Call::Revoke | Call::Introspect => Verdict::Retry,
    };
    let reply = match outcome {
        Err(Failure::Refused(_) | Failure::RefusedByProxy(_)) => return Verdict::Refused,
        Err(Failure::NotSent(_)) => return Verdict::Retry,
        Err(Failure::NoReply(_)) => return unanswered,
        Ok(reply) => reply,
    };
    match (call, reply.status, &reply.end) {
        (_, 401 | 403 | 429, _) if may_sign_in && call.is_signed() => Verdict::SignIn,
        (_, 429, _) => Verdict::Retry,
        (Call::Regenerate, 200, End::Whole) => Verdict::Done,
        (Call::Regenerate, 200..=299 | 408, _) => Verdict::Unknown,
        (Call::Regenerate, 300..=499, _) => Verdict::Refused,
        (_, 408 | 425, _) | (_, 200..=299, End::Cut(_)) => Verdict::Retry,
        // Whether the portal has a sign-in or a client, and what it says of a secret, is for the
        // caller to read.
        (Call::Token | Call::Look, 200..=499 | 501, _) => Verdict::Done,
        (Call::Introspect, 200 | 401, _) => Verdict::Done,
        (Call::Revoke, 200..=299, End::Whole) if is_plain_success(&reply.body) => Verdict::Done,
        (_, 200..=499, _) => Verdict::Refused,
        _ => unanswered,
    }
}

/// What a sign-in reply without a signature means.
pub fn without_signature(status: u16) -> Result<(), &'static str> {
    match status {
        401 => Err(": the key is wrong or no longer valid"),
        403 => Err(": the key lacks global rights to read and write"),
        300..=399 => Err(""),
        // This portal has no such thing as a sign-in.
        _ => Ok(()),
    }
}

/// What an outcome was, in words, for an error. `host` is fit for a log, and `redact` makes a text so.
pub fn describe(
    call: Call,
    outcome: Result<&Reply, &Failure>,
    host: &str,
    redact: impl Fn(&str) -> String,
) -> String {
    let name = call.name();
    match outcome {
        Err(Failure::Refused(why) | Failure::RefusedByProxy(why)) => why.clone(),
        Err(Failure::NotSent(why)) => format!("{host} was not reached for {name}: {why}"),
        Err(Failure::NoReply(why)) => format!("{host} gave no usable answer to {name}: {why}"),
        Ok(Reply { status: status @ 300..=399, location: Some(location), .. }) => {
            let to = redact(&target(location));
            format!("{host} redirects {name} (status {status}) to {to}: give --url the portal's own address")
        }
        Ok(reply) => {
            let mut words = format!("{host} answered {name} with status {}", reply.status);
            let said: Vec<String> = error_texts(reply).iter().map(|text| redact(text)).collect();
            match &reply.end {
                _ if !said.is_empty() => words += &format!(" ({})", shorten(said.join(": "))),
                End::Whole if reply.status < 300 && call == Call::Look => {
                    words += " and a Content-Type that is not a portal's";
                }
                End::Whole if reply.status < 300 && call == Call::Revoke => {
                    words += " and a body that is not a portal's";
                }
                End::Whole => {}
                End::TooLong => words += " and more than 64 KiB",
                End::Cut(why) => words += &format!(", cut short: {why}"),
            }
            words
        }
    }
}

/// What an outcome was, in a line of the log.
pub fn summarize(call: Call, outcome: &Outcome) -> String {
    let name = call.name();
    match outcome {
        Err(Failure::Refused(why) | Failure::RefusedByProxy(why) | Failure::NotSent(why)) => {
            format!("{name} Not sent: {why}")
        }
        Err(Failure::NoReply(why)) => format!("{name} No answer: {why}"),
        Ok(Reply { status: status @ 200..=299, end: End::Cut(why), .. }) => {
            format!("{name} Status: {status}, cut short: {why}")
        }
        Ok(reply) => format!("{name} Status: {}", reply.status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: u16, cut: bool) -> Outcome {
        let end = if cut { End::Cut("cut".to_owned()) } else { End::Whole };
        Ok(Reply { status, end, ..Reply::default() })
    }

    #[test]
    fn what_follows_from_an_outcome() {
        use Call::{Introspect, Look, Regenerate, Revoke, Token};
        for call in [Token, Look, Regenerate, Revoke, Introspect] {
            let unanswered = if call == Regenerate { Verdict::Unknown } else { Verdict::Retry };
            for sign_in in [false, true] {
                let failed = |failure| judge(call, &Err(failure), sign_in);
                assert_eq!(failed(Failure::Refused(String::new())), Verdict::Refused);
                assert_eq!(failed(Failure::RefusedByProxy(String::new())), Verdict::Refused);
                assert_eq!(failed(Failure::NotSent(String::new())), Verdict::Retry);
                assert_eq!(failed(Failure::NoReply(String::new())), unanswered);
            }
            for status in [401, 403, 429] {
                let signs_in = judge(call, &outcome(status, false), true) == Verdict::SignIn;
                let wants_signature = matches!(call, Look | Regenerate | Revoke);
                assert_eq!(signs_in, wants_signature, "{call:?} {status}");
            }
            assert_eq!(judge(call, &outcome(429, true), false), Verdict::Retry);
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
            (Revoke, 200, true, Verdict::Retry),
            (Revoke, 204, false, Verdict::Done),
            (Revoke, 307, false, Verdict::Refused),
            (Revoke, 404, false, Verdict::Refused),
            (Revoke, 501, false, Verdict::Retry),
            (Token, 200, false, Verdict::Done),
            (Token, 200, true, Verdict::Retry),
            (Token, 302, false, Verdict::Done),
            (Token, 401, false, Verdict::Done),
            (Token, 404, true, Verdict::Done),
            (Token, 501, false, Verdict::Done),
            // What the status says is for the caller to read.
            (Look, 200, false, Verdict::Done),
            (Look, 404, false, Verdict::Done),
            (Look, 405, false, Verdict::Done),
            (Look, 501, false, Verdict::Done),
            (Look, 503, false, Verdict::Retry),
            (Regenerate, 408, false, Verdict::Unknown),
            (Regenerate, 425, false, Verdict::Refused),
            (Token, 408, false, Verdict::Retry),
            (Token, 425, false, Verdict::Retry),
            (Look, 408, false, Verdict::Retry),
            (Revoke, 425, false, Verdict::Retry),
            (Introspect, 408, false, Verdict::Retry),
            (Introspect, 200, false, Verdict::Done),
            (Introspect, 200, true, Verdict::Retry),
            (Introspect, 401, false, Verdict::Done),
            (Introspect, 403, false, Verdict::Refused),
            (Introspect, 404, false, Verdict::Refused),
        ] {
            assert_eq!(judge(call, &outcome(status, cut), false), wanted, "{call:?} {status} {cut}");
        }
    }

    #[test]
    fn only_a_patch_has_all_the_time() {
        for call in [Call::Token, Call::Look, Call::Revoke, Call::Introspect] {
            assert_eq!(call.timeout(), Some(Duration::from_secs(30)), "{call:?}");
        }
        assert_eq!(Call::Regenerate.timeout(), None);
    }

    #[test]
    fn the_secret_is_escaped_in_the_form() {
        let form = introspection("a-b", &Secret::new("a+b/c=&d%~"));
        let wanted = "client_id=a-b&client_secret=a%2Bb%2Fc%3D%26d%25%7E&token=docspace-rotate";
        assert_eq!(form, wanted);
    }

    #[test]
    fn a_sign_in_without_a_signature() {
        for status in [300, 302, 399, 401, 403] {
            assert!(without_signature(status).is_err(), "{status}");
        }
        for status in [200, 201, 400, 402, 404, 405, 501] {
            assert_eq!(without_signature(status), Ok(()), "{status}");
        }
    }
}
