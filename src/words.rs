//! What a server says about a refusal, in its own words.

use serde_json::Value;

use crate::reply::Reply;

/// Where JSON has texts that are shown, as JSON pointers: it is one text, or an object with these (RFC
/// 9457, RFC 6749, and what portals were seen to send).
const PLACES: [&str; 7] = [
    "",
    "/title",
    "/detail",
    "/reason",
    "/error",
    "/error_description",
    "/errors/0",
];

/// Returns what a refusal says, or the title of a web page. It may contain secrets.
pub fn server_words(reply: &Reply) -> Vec<String> {
    let text = reply.text();
    let mut words = vec![];
    let shows_secret = text.contains("\"client_secret\"");
    let is_plain = reply.content_type.starts_with("text/plain") && reply.compression().is_none();
    if text.starts_with('<') {
        words.extend(title(text));
    } else if reply.is_success() || reply.truncated.is_some() || shows_secret {
        return words;
    } else if let Ok(json) = reply.json() {
        for place in PLACES {
            words.extend(json.pointer(place).and_then(text_in));
        }
    } else if is_plain && text.lines().count() == 1 {
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

    fn reply(body: &str) -> Reply {
        Reply {
            status: 404,
            body: body.to_owned(),
            ..Reply::default()
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
                ..reply(body)
            };
            assert_eq!(server_words(&told), said, "{body}");
            let cut = Reply {
                truncated: Some(String::new()),
                content_type: content_type.to_owned(),
                ..reply(body)
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
