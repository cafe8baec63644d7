//! Text that must not be shown, and the text of others made fit to be shown.

use std::fmt;
use std::path::Path;
use std::time::Instant;

use crate::error::io_words;
use crate::io::read_file;

/// What stands in place of a secret.
const HIDDEN: &str = "[hidden]";

/// The longest piece of a server's text that is shown, in characters.
const SHOWN: usize = 200;

/// The longest key in bytes: web servers take no header line over 8 KiB.
const LONGEST_KEY: usize = 8000;

/// A key, a signature or a client secret. It is shown by nothing but [`Secret::expose`].
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
        if key.len() > LONGEST_KEY {
            return Err("holds more than 8,000 characters, which no portal takes for a key");
        }
        // A quote is left over from a file of variables, and would hide what kind of key it is.
        let quoted = key.contains(&b'"') || key.contains(&b'\'');
        printable(key).filter(|_| !quoted).map(Secret).ok_or(
            "holds no usable key: a key is one word of printable ASCII characters, without spaces or quotes",
        )
    }

    /// Reads a key from a file that holds nothing else, as [`Secret::key`] takes it.
    ///
    /// # Errors
    ///
    /// Says why the file gives no key, without showing it.
    pub fn key_file(path: &Path, deadline: Instant) -> Result<Secret, String> {
        // Some more than a key may have, for white space: an endless file is refused, not read.
        match read_file(path, LONGEST_KEY as u64 + 64, deadline) {
            Ok(text) => Secret::key(&text).map_err(str::to_owned),
            Err(error) => Err(format!("can't be read: {}", io_words(&error))),
        }
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
            && text.len() <= LONGEST_KEY
            && parts[..2].iter().all(|part| !part.is_empty())
            && parts.iter().all(|part| part.bytes().all(base64url));
        jwt.then(|| Secret::new(text))
    }

    /// The text itself. For a header, a request's body and the output, and to find it in what must not
    /// hold it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

fn printable(text: &[u8]) -> Option<String> {
    let fine = text.iter().all(|b| b.is_ascii_graphic());
    fine.then(|| String::from_utf8_lossy(text).into_owned())
}

/// The text without a secret, wherever it stands.
pub fn hide(text: &str, secret: &str) -> String {
    match secret.trim() {
        "" => text.to_owned(),
        secret => text.replace(secret, HIDDEN),
    }
}

/// The text without any word that may be a secret or a part of one: a portal's error may hold one
/// that was never seen before. `known` is shown nevertheless.
pub fn hide_words(text: &str, secrets: &[&Secret], known: &str) -> String {
    let in_word = |c: char| c.is_ascii_alphanumeric() || "-_+=".contains(c);
    let mut shown = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(in_word) {
        let (between, after) = rest.split_at(start);
        let (word, after) = after.split_at(after.find(|c| !in_word(c)).unwrap_or(after.len()));
        // A name may stand before it: `client-secret=...`.
        let value = word.rsplit('=').find(|part| !part.is_empty()).unwrap_or(word);
        let part = value.len() >= 8 && secrets.iter().any(|secret| secret.expose().contains(value));
        let hidden = value != known && (part || looks_secret(value));
        shown += between;
        shown += &if hidden { word.replace(value, HIDDEN) } else { word.to_owned() };
        rest = after;
    }
    shown + rest
}

fn looks_secret(word: &str) -> bool {
    let has = |kind: fn(&u8) -> bool| word.bytes().any(|b| kind(&b));
    let mixed = has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase);
    word.len() >= 16 && (mixed || has(u8::is_ascii_digit))
}

/// Makes text that came from outside fit for a log: without the secrets, on one line, without what
/// a terminal would obey, at most 200 characters.
pub fn shown(text: &str, secrets: &[&Secret]) -> String {
    let mut text = text.to_owned();
    for secret in secrets {
        text = hide(&text, secret.expose());
    }
    let mut line = String::new();
    for c in text.trim().chars() {
        match c {
            '"' | '\'' | '\\' => line.push(c),
            c => line.extend(c.escape_debug()),
        }
    }
    match line.char_indices().nth(SHOWN) {
        Some(_) => line.chars().take(SHOWN - 1).chain(['…']).collect(),
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
        let secrets = [Secret::new("sk-1"), Secret::new("a.b.c")];
        let show = |text: &str| shown(text, &[&secrets[0], &secrets[1]]);
        assert_eq!(show("  plain 'text' \"here\" \\ "), "plain 'text' \"here\" \\");
        assert_eq!(show("key sk-1 and sk-1, a.b.c"), "key [hidden] and [hidden], [hidden]");
        assert_eq!(show("two\r\nlines\u{1b}[31m\u{9b}\u{202e}"), r"two\r\nlines\u{1b}[31m\u{9b}\u{202e}");
        assert_eq!(show(&"x".repeat(200)), "x".repeat(200));
        assert_eq!(show(&"x".repeat(201)), "x".repeat(199) + "…");
        assert_eq!(show(&"\u{1}".repeat(300)).chars().count(), 200);
        // The key is blanked before the text is cut, so no first half of it is left over.
        let near_the_end = "x".repeat(197) + "sk-1";
        assert_eq!(show(&near_the_end), "x".repeat(197) + "[h…");
    }

    #[test]
    fn words_that_may_be_secrets_are_hidden() {
        let known = "27d1f5ac-11da-4592-828d-1bd6e6212e9d";
        let key = Secret::new("sk-0123456789abcdef");
        let hide = |text: &str| hide_words(text, &[&key], known);
        for hidden in [
            "LQn1uOTJsTqgOLJO1oB2ztSqw5IoxNuP8zQa",
            "LQn1uOTJsTqgOLJO1oB2+ztSqw5IoxNuP8zQa",
            "Ab3dEf6hIj9lMn2pQr5tU8x",
            "4f1d9c0b7a6e5d3c",
            "abcdefghijklmnoP",
            "sk-01234",
            "56789abcdef",
        ] {
            assert_eq!(hide(&format!("a-secret={hidden}, {known}!")), format!("a-secret=[hidden], {known}!"));
            assert_eq!(hide(&format!("\"{hidden}\"")), "\"[hidden]\"");
        }
        for said in
            ["short-1", "a-long-word-of-small-letters", "/api/2.0/clients/x/regenerate", "слово = =x= ", ""]
        {
            assert_eq!(hide(said), said);
        }
    }
}
