//! Why a portal refuses: what its reply proves, and what it says.
//!
//! A server in front of a portal may refuse with the same status, so a status alone proves nothing.
//! The facts were observed on real portals, or read in the source of DocSpace 3.7.2.

use serde_json::Value;

use crate::reply::Reply;

/// The cause if HTML came, whatever the status.
pub const WEB_PAGE: &str = "a web page, not an API reply";

impl Reply {
    /// Says that the reply is compressed (RFC 9110, section 8.4.1), if it is.
    pub fn compression(&self) -> Option<String> {
        let encoding = ["gzip", "deflate", "compress", "br", "zstd"]
            .into_iter()
            .find(|name| self.content_encoding.contains(name))?;
        Some(format!(
            "the reply is compressed ({encoding}), although the request did not allow it"
        ))
    }

    /// Returns the cause that does not depend on the call.
    pub fn general_cause(&self) -> Option<String> {
        if (300..400).contains(&self.status) && self.redirect.is_some() {
            return self.redirect.clone();
        }
        // JSON is neither compressed nor a page, whatever its label.
        if self.json().is_ok() {
            return None;
        }
        match self.compression() {
            None if self.is_web_page() => because(WEB_PAGE),
            compression => compression,
        }
    }
}

/// Returns a cause with fixed words.
pub fn because(cause: &str) -> Option<String> {
    Some(cause.to_owned())
}

/// Says why the sign-in issued no signature.
pub fn sign_in_cause(reply: &Reply) -> Option<String> {
    if let Some(cause) = reply.general_cause() {
        return Some(cause);
    }
    // Portals send no challenge, or one for a bearer token (RFC 9110, section 11.6.1). One that mentions
    // another scheme, even in a realm, proves nothing.
    let challenge = &reply.challenge;
    let is_ambiguous = challenge.contains("basic")
        || challenge.contains("negotiate")
        || challenge.contains("ntlm");
    let cause = match reply.status {
        401 if !challenge.is_empty() && !challenge.starts_with("bearer") => {
            "something in front of the portal asks for a password or other credentials"
        }
        402 if reply.is_problem() => "the portal's subscription or licence has lapsed",
        403 if reply.is_problem() => "the portal is being restored, moved or encrypted",
        // Other applications in ASP.NET send the same for a path that they do not know.
        404 if reply.is_problem() => {
            "the portal is suspended or being removed, or no portal is at this address"
        }
        401 | 403 | 404 if is_ambiguous || !reply.is_empty() => return None,
        401 if reply.has_api_key => {
            "the key is wrong, deactivated or expired, or its user is disabled, \
             or something in front of the portal refuses, or removes the key"
        }
        401 => {
            "the key is wrong, deactivated or expired, or its user is disabled, \
             or something in front of the portal refuses, or removes the key \
             (it does not begin with sk-, so it is not an API key)"
        }
        403 if reply.has_api_key => {
            "usually means that the key's rights are restricted (it needs read access to \
             everything), or something in front of the portal refuses"
        }
        403 => "OAuth and personal access tokens cannot sign in, use an API key",
        404 => "no DocSpace API at this address, or DocSpace is older than 3.1",
        _ => return None,
    };
    because(cause)
}

/// Says why a call other than the sign-in was refused.
pub fn refusal_cause(reply: &Reply) -> Option<String> {
    if let Some(cause) = reply.general_cause() {
        return Some(cause);
    }
    // Portals before 3.7.1 send only `reason`: four quotes in all. Other servers send other fields, too.
    let has_only_reason =
        reply.text().starts_with("{\"reason\":\"") && reply.text().split("\"").count() == 5;
    let cause = match reply.status {
        403 if reply.has_signature && reply.is_problem() => {
            "the key's user is a guest, or Developer Tools are limited to administrators"
        }
        // The identity service sends the status alone: no body, type or challenge.
        403 if reply.has_signature
            && reply.is_empty()
            && reply.content_type.is_empty()
            && reply.challenge.is_empty() =>
        {
            "the identity service does not accept the portal's signature, or is failing, \
             or something in front of the portal refuses, or removes x-signature"
        }
        404 if reply.is_problem() || has_only_reason => {
            "no client with this id, or the key's user may not manage it"
        }
        // In reply to a HEAD, an old portal's `reason` is missing.
        404 if reply.is_empty() && reply.content_type.contains("json") => {
            "no client with this id that the key's user may manage, or no such path"
        }
        _ => return None,
    };
    because(cause)
}

/// Returns what a refusal says, or the title of a web page. The texts may contain secrets.
pub fn server_words(reply: &Reply) -> Vec<String> {
    let text = reply.text();
    let mut words = vec![];
    if text.starts_with('<') {
        words.extend(title(text));
    } else if reply.is_success() || reply.truncated.is_some() || text.contains("client_secret") {
        return words;
    } else if let Ok(json) = reply.json() {
        // JSON pointers to the texts (RFC 9457, RFC 6749, and what portals were seen to send). An empty one
        // is the whole document: a string, or an object with a `message`.
        for place in [
            "",
            "/title",
            "/detail",
            "/reason",
            "/error",
            "/error_description",
            "/errors/0",
        ] {
            words.extend(json.pointer(place).and_then(text_in));
        }
    } else if reply.content_type.starts_with("text/plain")
        && reply.compression().is_none()
        && text.lines().count() == 1
    {
        words.push(text.to_owned());
    }
    words.retain(|text| !text.trim().is_empty());
    words
}

/// Returns a text, or the one in its `message`: `{"error": {"message": "..."}}`.
fn text_in(value: &Value) -> Option<String> {
    let text = value.get("message").unwrap_or(value).as_str()?;
    Some(text.to_owned())
}

/// Returns the first title of a web page, on one line. Entities stay as they are.
fn title(page: &str) -> Option<String> {
    let lower = page.to_ascii_lowercase();
    let start = lower.find("<title")?;
    let end = lower.find("</title>")?;
    let (_, title) = page.get(start..end)?.split_once('>')?;
    let words: Vec<&str> = title.split_whitespace().collect();
    Some(words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROBLEM: &str = "application/problem+json";
    const PAGE: &str = "<!DOCTYPE html><title>Log in</title>";

    fn reply(status: u16, content_type: &str, body: &str) -> Reply {
        Reply {
            status,
            content_type: content_type.to_owned(),
            body: body.to_owned(),
            ..Reply::default()
        }
    }

    struct Case {
        name: &'static str,
        reply: Reply,
        is_api_key: bool,
        cause: Option<&'static str>,
    }

    #[test]
    fn causes_of_a_sign_in_without_a_signature() {
        let case = |name, reply, cause| Case {
            name,
            reply,
            is_api_key: true,
            cause,
        };
        let bearer = |case| Case {
            is_api_key: false,
            ..case
        };
        let challenged = Reply {
            challenge: "basic realm=\"x\"".to_owned(),
            ..reply(401, "", "")
        };
        for case in [
            case(
                "a wrong key",
                reply(401, "", ""),
                Some("the key is wrong, "),
            ),
            bearer(case(
                "a wrong bearer",
                reply(401, "", ""),
                Some("(it does not begin with sk-, so it is not an API key)"),
            )),
            case(
                "a password",
                challenged,
                Some("in front of the portal asks for a password"),
            ),
            case("401 with words", reply(401, "", "{}"), None),
            case(
                "401 with a page",
                reply(401, "text/html", PAGE),
                Some(WEB_PAGE),
            ),
            case(
                "unpaid",
                reply(402, PROBLEM, "{}"),
                Some("subscription or licence"),
            ),
            case(
                "restricted rights",
                reply(403, "", ""),
                Some("rights are restricted"),
            ),
            bearer(case(
                "an OAuth token",
                reply(403, "", ""),
                Some("use an API key"),
            )),
            case(
                "in restore",
                reply(403, PROBLEM, "{}"),
                Some("restored, moved or encrypted"),
            ),
            case(
                "an address restriction",
                reply(403, "application/json", "\"no\""),
                None,
            ),
            case(
                "403 with a page",
                reply(403, "text/html", PAGE),
                Some(WEB_PAGE),
            ),
            case(
                "suspended",
                reply(404, PROBLEM, "{}"),
                Some("suspended or being removed"),
            ),
            case("no API", reply(404, "", ""), Some("older than 3.1")),
            case("404 with a page", reply(404, "", PAGE), Some(WEB_PAGE)),
            case("404 with words", reply(404, "text/plain", "no"), None),
            case("another status", reply(418, "", ""), None),
        ] {
            let reply = Reply {
                has_api_key: case.is_api_key,
                ..case.reply
            };
            let found = sign_in_cause(&reply);
            assert_cause(case.name, found, case.cause);
        }
    }

    #[track_caller]
    fn assert_cause(name: &str, found: Option<String>, expected: Option<&str>) {
        match (found, expected) {
            (None, None) => {}
            (Some(found), Some(expected)) => assert!(found.contains(expected), "{name}: {found}"),
            (found, expected) => panic!("{name}: {found:?}, not {expected:?}"),
        }
    }

    #[test]
    fn causes_of_a_refusal() {
        for (name, reply, signed, unsigned) in [
            (
                "a guest",
                reply(403, PROBLEM, "{}"),
                Some("is a guest, or Developer Tools"),
                None,
            ),
            (
                "a signature that is not accepted",
                reply(403, "", ""),
                Some("does not accept the portal's signature, or is failing"),
                None,
            ),
            (
                "403 of something else",
                reply(403, "text/plain", ""),
                None,
                None,
            ),
            ("403 with words", reply(403, "text/plain", "no"), None, None),
            (
                "403 with a page",
                reply(403, "text/html", PAGE),
                Some(WEB_PAGE),
                Some(WEB_PAGE),
            ),
            (
                "no client",
                reply(404, PROBLEM, "{}"),
                Some("no client with this id"),
                Some("no client with this id"),
            ),
            (
                "no client, before 3.7.1",
                reply(404, "application/json", r#"{"reason":"x"}"#),
                Some("no client with this id"),
                Some("no client with this id"),
            ),
            ("404 of something else", reply(404, "", ""), None, None),
            ("401", reply(401, "", ""), None, None),
        ] {
            assert_cause(name, refusal_cause(&reply), unsigned);
            let reply = Reply {
                has_signature: true,
                ..reply
            };
            assert_cause(name, refusal_cause(&reply), signed);
        }
    }

    #[test]
    fn the_first_general_cause_counts() {
        let compressed = Reply {
            content_encoding: "gzip".to_owned(),
            ..reply(302, "text/html", PAGE)
        };
        assert_cause(
            "compressed",
            compressed.general_cause(),
            Some("compressed (gzip)"),
        );
        let redirected = Reply {
            redirect: Some("it redirects".to_owned()),
            ..compressed
        };
        assert_cause(
            "redirected",
            redirected.general_cause(),
            Some("it redirects"),
        );
        for (encoding, expected) in [
            ("gzip", true),
            ("x-gzip", true),
            ("deflate", true),
            ("compress", true),
            ("br", true),
            ("zstd", true),
            ("identity", false),
            ("utf-8", false),
            ("", false),
        ] {
            let reply = Reply {
                content_encoding: encoding.to_owned(),
                ..reply(200, "", "")
            };
            assert_eq!(reply.compression().is_some(), expected, "{encoding}");
        }
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
            ("", r#"{"reason":"not hush","client_secret":"hush"}"#, &[]),
            ("", r#""{\"client_secret\":\"hush\"}""#, &[]),
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
            (
                "",
                r#"{"errors":[{"message":"first"},{"message":"second"}]}"#,
                &["first"],
            ),
            ("", r#""one text""#, &["one text"]),
            ("text/plain", "no such client\n", &["no such client"]),
            ("text/plain", "two\nlines", &[]),
            ("text/plain", html, &[]),
            ("text/html", html, &[]),
            ("", "no content type", &[]),
        ] {
            let told = Reply {
                content_type: content_type.to_owned(),
                ..reply(404, "", body)
            };
            assert_eq!(server_words(&told), said, "{body}");
            let cut = Reply {
                truncated: Some(String::new()),
                content_type: content_type.to_owned(),
                ..reply(404, "", body)
            };
            assert!(server_words(&cut).is_empty(), "{body}");
        }
    }

    #[test]
    fn titles_of_web_pages() {
        for (page, expected) in [
            (
                "<html><TITLE>\n Just a\n moment... </TITLE>",
                Some("Just a moment..."),
            ),
            (
                "<title lang=en>a &amp; b</title><title>c</title>",
                Some("a &amp; b"),
            ),
            ("<title>cut", None),
            ("<title> </title>", Some("")),
            ("<p>no title</p>", None),
        ] {
            assert_eq!(title(page).as_deref(), expected, "{page}");
        }
    }
}
