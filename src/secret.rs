//! Text that no log may show, and text from outside made fit for a log.

use std::collections::HashSet;
use std::fmt;

/// What stands in place of a text that holds a secret.
const REDACTED: &str = "[hidden]";

/// The longest text from outside that is shown, in characters.
const MAX_SHOWN: usize = 200;

/// The longest key in bytes: web servers take no header line over 8 KiB.
pub const MAX_KEY: usize = 8000;

/// So many bytes of a secret in a row give it away.
const MIN_REVEALING: usize = 8;

/// A key, a signature or a client secret. Nothing shows it but [`Secret::expose`].
#[derive(PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes any text as it is.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// Takes an API key or another bearer token as a variable or a file gives it, without the white
    /// space around it.
    ///
    /// # Errors
    ///
    /// Says why the text can't stand in a header, without showing it.
    pub fn key(text: &[u8]) -> Result<Secret, &'static str> {
        let key = text.trim_ascii();
        if key.is_empty() {
            return Err("holds no key");
        }
        if key.len() > MAX_KEY {
            return Err("holds more than 8,000 characters, which no portal takes for a key");
        }
        // A quote is left over from a file of variables, and would hide what kind of key it is.
        let quoted = key.contains(&b'"') || key.contains(&b'\'');
        printable(key).filter(|_| !quoted).map(Secret).ok_or(
            "holds no usable key: a key is one word of printable ASCII characters, without spaces or quotes",
        )
    }

    /// Takes a client secret: 1 to 1,024 printable ASCII characters without spaces, so that it
    /// breaks no line, no file and no terminal. Anything else is none.
    pub fn client_secret(text: &str) -> Option<Secret> {
        let usable = (1..=1024).contains(&text.len());
        usable.then(|| printable(text.as_bytes()))?.map(Secret)
    }

    /// Takes a signature: a JWT in its compact form (RFC 7519, section 3), up to 8,000 characters.
    pub fn signature(text: &str) -> Option<Secret> {
        let base64url = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let parts: Vec<&str> = text.split('.').collect();
        let jwt = parts.len() == 3
            && text.len() <= MAX_KEY
            && parts[..2].iter().all(|part| !part.is_empty())
            && parts.iter().all(|part| part.bytes().all(base64url));
        jwt.then(|| Secret::new(text))
    }

    /// The text itself. For a header, a request's body and the output, and to find it in what must not
    /// hold it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether a text gives the secret away: it holds 8 bytes of it in a row, or all of a shorter
    /// one, in any case of letters.
    fn is_in(&self, text: &str) -> bool {
        let (secret, text) = (self.0.to_ascii_lowercase(), text.to_ascii_lowercase());
        let length = secret.len().min(MIN_REVEALING);
        if length == 0 {
            return false;
        }
        let parts: HashSet<&[u8]> = secret.as_bytes().windows(length).collect();
        text.as_bytes().windows(length).any(|part| parts.contains(part))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

fn printable(text: &[u8]) -> Option<String> {
    let fine = text.iter().all(|b| b.is_ascii_graphic());
    fine.then(|| String::from_utf8_lossy(text).into_owned())
}

/// Makes a text from outside fit for a log: on one line, without what a terminal would act on, at
/// most 200 characters; and hidden as a whole where it gives a secret away.
pub fn redact<'a>(text: &str, secrets: impl IntoIterator<Item = &'a Secret>) -> String {
    let mut line = String::new();
    for c in text.trim().chars() {
        match c {
            '"' | '\'' | '\\' => line.push(c),
            c => line.extend(c.escape_debug()),
        }
    }
    match secrets.into_iter().any(|secret| secret.is_in(text) || secret.is_in(&line)) {
        true => REDACTED.to_owned(),
        false => shorten(line),
    }
}

/// The first 200 characters of a line.
pub fn shorten(line: String) -> String {
    match line.char_indices().nth(MAX_SHOWN) {
        Some(_) => line.chars().take(MAX_SHOWN - 1).chain(['…']).collect(),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_hides() {
        let secret = Secret::new("sk-do-not-show");
        assert_eq!(format!("{secret:?} {:?}", Some(&secret)), "[hidden] Some([hidden])");
    }

    #[test]
    fn keys() {
        let key = |text: &[u8]| Secret::key(text).map(|key| key.expose().to_owned());
        assert_eq!(key(b"sk-1\r\n").as_deref(), Ok("sk-1"));
        assert_eq!(key(b" \tsk-1  ").as_deref(), Ok("sk-1"));
        assert_eq!(key(&[b'k'; 8000]).map(|key| key.len()), Ok(8000));
        assert_eq!(key(b" \n"), Err("holds no key"));
        for bad in [
            &b"sk 1"[..],
            b"sk\n1",
            "ключ".as_bytes(),
            b"\xff",
            b"a\0b",
            b"\"sk-1\"",
            b"'sk-1'",
            &[b'k'; 8001],
        ] {
            assert!(key(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn client_secrets() {
        for good in ["x", "LQn1uOTJsTqgOLJO1oB2ztSqw5IoxNuP8zQa", "!~\"\\", &"s".repeat(1024)] {
            assert!(Secret::client_secret(good).is_some(), "{good}");
        }
        for bad in ["", " ", "a b", "a\n", "a\u{1b}[2J", "a\0", "é", &"s".repeat(1025)] {
            assert!(Secret::client_secret(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn signatures() {
        for good in ["a.b.c", "eyJh.e30.c2ln-_", "a.b."] {
            assert!(Secret::signature(good).is_some(), "{good}");
        }
        for bad in ["", "a", "a.b", "a.b.c.d", ".b.c", "a..c", "a.b.c d", "a.b.é", "a.b.c="] {
            assert!(Secret::signature(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn outside_text_becomes_harmless() {
        let clean = |text: &str| redact(text, []);
        assert_eq!(clean("  plain 'text' \"here\" \\ "), "plain 'text' \"here\" \\");
        assert_eq!(clean("two\r\nlines\u{1b}[31m\u{9b}\u{202e}"), r"two\r\nlines\u{1b}[31m\u{9b}\u{202e}");
        assert_eq!(shorten("x".repeat(200)), "x".repeat(200));
        assert_eq!(shorten("é".repeat(201)), "é".repeat(199) + "…");
    }

    #[test]
    fn a_text_that_gives_a_secret_away_is_hidden_whole() {
        let key = Secret::new("sk-0123456789ABCdef");
        let short = Secret::new("hush");
        for text in [
            "the key is sk-0123456789ABCdef.",
            "sk-01234",
            "89abcDEF",
            "a 56789AbC b",
            "SK-0123456789ABCDEF",
            "it is HusH!",
        ] {
            assert_eq!(redact(text, [&key, &short]), "[hidden]", "{text}");
        }
        // Only the escaped text holds it.
        assert_eq!(redact("x\u{1}y", [&Secret::new(r"x\u{1}y")]), "[hidden]");
        for text in ["sk-0123", "9abcdef", "sk-0123 456789a", "hus h", ""] {
            assert_eq!(redact(text, [&key, &short, &Secret::new("")]), text);
        }
    }
}
