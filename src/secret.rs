//! Secrets, and making text fit for a log.

use std::ffi::OsStr;
use std::fmt;

/// What is shown in place of a secret.
pub const HIDDEN: &str = "[hidden]";

/// The longest key and signature, in bytes: web servers reject longer header lines.
const MAX_KEY: usize = 8000;

/// A key, a signature or a client secret. Only [`Secret::expose`] shows it.
pub struct Secret(String);

impl Secret {
    /// Hides a text, valid or not.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// Accepts an API key or another bearer token, with whitespace around it. An error does not
    /// show it.
    pub fn key(text: &[u8]) -> Result<Secret, String> {
        let key = trim(text);
        let is_invalid = |byte: &u8| !byte.is_ascii_graphic() || b"\"'".contains(byte);
        let found = match key.iter().position(is_invalid) {
            Some(at) => {
                // Counted from the first byte of the variable or file.
                let number = text.trim_ascii_end().len() - key.len() + at + 1;
                format!(" (byte {number} is 0x{:02X})", key[at])
            }
            None if key.is_empty() || key.len() > MAX_KEY => String::new(),
            None => return Ok(Secret::new(String::from_utf8_lossy(key))),
        };
        Err(format!(
            "is not a valid API key: \
             expected 1 to 8,000 printable ASCII characters without spaces or quotes{found}"
        ))
    }

    /// Accepts a client secret: 1 to 1,024 printable ASCII characters without spaces. A gateway that
    /// masks secrets leaves only asterisks.
    pub fn client_secret(text: &str) -> Option<Secret> {
        if text.trim_matches('*').is_empty()
            || text.len() > 1024
            || !text.bytes().all(|b| b.is_ascii_graphic())
        {
            return None;
        }
        Some(Secret::new(text))
    }

    /// Accepts a signature: a JWT in its compact form (RFC 7519, section 3).
    pub fn signature(text: &str) -> Option<Secret> {
        let mut parts = text.split('.');
        let is_valid = parts.all(|part| !part.is_empty() && part.chars().all(is_base64url));
        if !is_valid || text.matches('.').count() != 2 || text.len() > MAX_KEY {
            return None;
        }
        Some(Secret::new(text))
    }

    /// Returns the text, for a request or a delivery.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns true for an API key, and false for another bearer token.
    pub fn is_api_key(&self) -> bool {
        self.0.starts_with("sk-")
    }

    /// Returns true if the text contains 8 characters of the secret in a row, or all of a shorter
    /// one, in any case.
    fn is_in(&self, text: &str) -> bool {
        let secret = self.0.to_ascii_lowercase();
        let text = text.to_ascii_lowercase();
        let length = secret.len().clamp(1, 8);
        let mut parts = secret.as_bytes().windows(length);
        parts.any(|part| text.contains(&*String::from_utf8_lossy(part)))
    }
}

/// What the portal has made: the secret alone, and the JSON object that contains it.
pub struct NewSecret {
    pub secret: Secret,
    pub object: Secret,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

fn is_base64url(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

/// Removes a byte order mark, which Windows editors write, and whitespace around a text.
pub fn trim(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xEF\xBB\xBF")
        .unwrap_or(text)
        .trim_ascii()
}

/// Escapes what a terminal would act on, and backslashes, so that the text stays on one line.
fn escape(text: &OsStr) -> String {
    let escaped = text.to_string_lossy().escape_debug().to_string();
    // Quotes do no harm.
    escaped.replace("\\'", "'").replace("\\\"", "\"")
}

/// Makes a text from outside fit for a log: escaped, and hidden entirely if it contains one of the
/// secrets.
pub fn redact(text: &str, secrets: &[&Secret]) -> String {
    if secrets.iter().any(|secret| secret.is_in(text)) {
        return HIDDEN.to_owned();
    }
    escape(text.trim().as_ref())
}

/// Makes a name or an argument fit for a line: escaped, and at most 200 characters.
pub fn show(name: &OsStr) -> String {
    shorten(escape(name))
}

/// Truncates a line to 200 characters, with an ellipsis.
pub fn shorten(mut line: String) -> String {
    if let Some((end, _)) = line.char_indices().nth(199) {
        line.truncate(end);
        line.push('…');
    }
    line
}

/// Returns true if the text may contain an unknown secret: 20 letters, digits, `-` and `_` in a
/// row, other than `known`, whose case does not matter.
pub fn looks_like_secret(text: &str, known: &str) -> bool {
    let mut words = text.split(|c| !is_base64url(c));
    words.any(|word| word.len() >= 20 && !word.eq_ignore_ascii_case(known))
}

/// Returns true if the text may contain a key that is not known yet.
pub fn may_contain_key(text: &str) -> bool {
    text.to_ascii_lowercase().contains("sk-") || looks_like_secret(text, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_hides_the_secret() {
        let secret = Secret::new("sk-do-not-show");
        assert_eq!(
            format!("{secret:?} {:?}", Some(&secret)),
            "[hidden] Some([hidden])"
        );
    }

    #[test]
    fn keys() {
        let key = |text: &[u8]| Secret::key(text).map(|key| key.expose().to_owned());
        assert_eq!(key(b"sk-1\r\n").as_deref(), Ok("sk-1"));
        assert_eq!(key(b" \tsk-1  ").as_deref(), Ok("sk-1"));
        assert_eq!(key(&[b'k'; 8000]).map(|key| key.len()), Ok(8000));
        let too_long = [b'k'; 8001];
        for bad in [
            &b"sk 1"[..],
            b" \n",
            b"sk\n1",
            "ключ".as_bytes(),
            b"\xff",
            b"a\0b",
            b"\"sk-1\"",
            b"'sk-1'",
            &too_long,
        ] {
            assert!(key(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn client_secrets() {
        for good in [
            "x",
            "LQn1uOTJsTqgOLJO1oB2ztSqw5IoxNuP8zQa",
            "!~\"\\",
            "*x*",
            &"s".repeat(1024),
        ] {
            assert!(Secret::client_secret(good).is_some(), "{good}");
        }
        for bad in [
            "",
            " ",
            "************************************",
            "a b",
            "a\n",
            "a\u{1b}[2J",
            "a\0",
            "é",
            &"s".repeat(1025),
        ] {
            assert!(Secret::client_secret(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn signatures() {
        for good in ["a.b.c", "eyJh.e30.c2ln-_"] {
            assert!(Secret::signature(good).is_some(), "{good}");
        }
        let too_long = format!("a.b.{}", "c".repeat(7997));
        for bad in [
            "", "a", "a.b", "a.b.", "a.b.c.d", ".b.c", "a..c", "a.b.c d", "a.b.é", "a.b.c=",
            &too_long,
        ] {
            assert!(Secret::signature(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn text_from_outside_becomes_harmless() {
        let clean = |text: &str| shorten(redact(text, &[]));
        assert_eq!(
            clean("  plain 'text' \"here\" \\n "),
            r#"plain 'text' "here" \\n"#
        );
        assert_eq!(
            clean("two\r\nlines\u{1b}[31m\u{9b}\u{202e}"),
            r"two\r\nlines\u{1b}[31m\u{9b}\u{202e}"
        );
        assert_eq!(clean(&"x".repeat(199)), "x".repeat(199));
        assert_eq!(clean(&"é".repeat(200)), "é".repeat(199) + "…");
    }

    #[test]
    fn a_text_with_a_known_secret_is_hidden_entirely() {
        let (key, short) = (Secret::new("sk-0123456789ABCdef"), Secret::new("hush"));
        for text in [
            "the key is sk-0123456789ABCdef.",
            "sk-01234",
            "89abcDEF",
            "a 56789AbC b",
            "it is HusH!",
        ] {
            assert_eq!(redact(text, &[&key, &short]), "[hidden]", "{text}");
        }
        for text in ["sk-0123", "9abcdef", "sk-0123 456789a", "hus h", ""] {
            assert_eq!(redact(text, &[&key, &short, &Secret::new("")]), text);
        }
    }

    #[test]
    fn a_possible_secret_is_found() {
        let token = "a1-_".repeat(5);
        assert!(looks_like_secret(&format!("secret={token}."), ""));
        assert!(looks_like_secret(&format!("{token} {token}x"), &token));
        for text in [&token, &token.to_uppercase(), &token[1..], "Access denied"] {
            assert!(!looks_like_secret(text, &token), "{text}");
        }
    }
}
