//! The settings of a run, from the arguments and the environment.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;

use ureq::tls::{Certificate, PemItem, parse_pem};

use crate::address::{Proxy, Url, is_loopback};
use crate::cli::{Arguments, Setting};
use crate::error::{Error, io_message};
use crate::output::Destination;
use crate::secret::{Secret, may_contain_key, show, trim};
use crate::signal;

/// Everything that a run needs to know.
pub struct Options {
    pub args: Arguments,
    pub client: String,
    pub url: Url,
    pub proxy: Option<Proxy>,
    pub key: Secret,
    pub ca_file: Option<CaFile>,
}

/// The CA certificates that replace the built-in ones.
pub struct CaFile {
    /// Its path and its source, as in `ca.pem (from --cacert)`.
    pub name: String,
    pub certificates: Vec<Certificate<'static>>,
}

/// Returns the value of a variable. An empty one counts as unset.
pub type Env<'a> = &'a dyn Fn(&'static str) -> Option<Setting>;

/// Reads and checks all settings. An error names the one that is missing or not valid, and shows none
/// that may contain a secret.
pub fn read(
    mut args: Arguments,
    env: impl Fn(&'static str) -> Option<OsString>,
) -> Result<Options, Error> {
    let env = |name| {
        let value = env(name).filter(|value| !value.is_empty())?;
        Some(Setting { name, value })
    };
    let key = read_key(&env)?;
    let client = read_client(args.client.take(), &env, &key)?;
    let url = read_url(args.url.take().or_else(|| env("DOCSPACE_BASE_URL")), &key)?;
    let proxy = read_proxy(&url, &env, &key)?;
    if !url.https && !args.allow_http && !is_local(&url, proxy.as_ref()) {
        return Error::usage(format!(
            "{}: http:// would send the key unencrypted: use https://, or give --allow-http \
             (if the portal is on this machine, but the proxy is not: set NO_PROXY)",
            url.host
        ));
    }
    match &args.destination {
        Destination::Stdout => {}
        Destination::File(path) => check("--output", path.as_ref(), &key)?,
        Destination::Command(name, _) => check("COMMAND", name, &key)?,
    }
    let ca_file = read_ca_file(args.cacert.take().or_else(|| env("SSL_CERT_FILE")), &key)?;
    Ok(Options {
        args,
        client,
        url,
        proxy,
        ca_file,
        key,
    })
}

/// Returns true if what is sent stays on this machine.
fn is_local(url: &Url, proxy: Option<&Proxy>) -> bool {
    is_loopback(&url.host) && proxy.is_none_or(|proxy| is_loopback(proxy.host()))
}

/// Refuses a setting that contains the key, in any case, and so could show it in a message. Refuses
/// control characters: in a script with Windows line endings, a path ends in a carriage return, and
/// the secret would go into another file.
fn check(name: &str, value: &OsStr, key: &Secret) -> Result<(), Error> {
    let key = key.expose().to_ascii_lowercase();
    let value = value.to_string_lossy().to_ascii_lowercase();
    // A shorter one could be part of any setting by chance.
    if key.len() >= 16 && value.contains(&key) {
        return Error::usage(format!(
            "{name} contains the API key: put it only in DOCSPACE_API_KEY"
        ));
    }
    if value.contains(char::is_control) {
        return Error::usage(format!(
            "{name} contains a control character (Windows line endings?)"
        ));
    }
    Ok(())
}

fn read_key(env: Env) -> Result<Secret, Error> {
    let Setting { name, value } = value_or_file(
        env,
        "DOCSPACE_API_KEY",
        "DOCSPACE_API_KEY_FILE",
        "no API key: set",
    )?;
    Secret::key(value.as_encoded_bytes()).or_else(|why| Error::usage(format!("{name} {why}")))
}

fn read_client(argument: Option<Setting>, env: Env, key: &Secret) -> Result<String, Error> {
    let Setting { name, value } = match argument {
        Some(client) => client,
        None => value_or_file(
            env,
            "DOCSPACE_CLIENT_ID",
            "DOCSPACE_CLIENT_ID_FILE",
            "no client id: give CLIENT_ID, or set",
        )?,
    };
    let client =
        client_id(value.as_encoded_bytes()).or_else(|why| Error::usage(format!("{name} {why}")))?;
    check(name, client.as_ref(), key)?;
    Ok(client)
}

/// Returns the value of a variable, or the contents of the file that another one names.
fn value_or_file(
    env: Env,
    variable: &'static str,
    file_variable: &'static str,
    missing: &str,
) -> Result<Setting, Error> {
    match (env(variable), env(file_variable)) {
        (Some(setting), None) => Ok(setting),
        (None, Some(file)) => {
            let path = path_to_show(&file.value);
            let text = read_file(&file.value, &format!("{path} (from {file_variable})"))?;
            Ok(Setting {
                name: file_variable,
                value: OsString::from_vec(text),
            })
        }
        (Some(_), Some(_)) => Error::usage(format!(
            "{variable} and {file_variable} are both set: unset one of them"
        )),
        (None, None) => Error::usage(format!(
            "{missing} {variable}, or {file_variable} to the path of a file that contains it"
        )),
    }
}

/// Returns the path of a file, unless it could be the key: an API key has no slash.
fn path_to_show(path: &OsStr) -> String {
    let text = path.to_string_lossy();
    if may_contain_key(&text) || !text.contains('/') {
        return "the file".to_owned();
    }
    show(path)
}

/// Reads a file. One without an end (/dev/zero) is truncated at 32 MiB.
fn read_file(path: &OsStr, name: &str) -> Result<Vec<u8>, Error> {
    signal::set_activity(&format!("while reading {name}"));
    let mut text = vec![];
    let result = File::open(path).and_then(|file| file.take(32 << 20).read_to_end(&mut text));
    match result {
        Ok(_) => Ok(text),
        Err(error) => Error::usage(format!("cannot read {name}: {}", io_message(&error))),
    }
}

/// Accepts a client's id with whitespace around it: 1 to 128 characters that need no escaping in a
/// path or a log.
fn client_id(text: &[u8]) -> Result<String, &'static str> {
    let id = String::from_utf8_lossy(trim(text));
    if id.to_ascii_lowercase().starts_with("sk-") {
        return Err("contains an API key: put it only in DOCSPACE_API_KEY");
    }
    let is_valid = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
    if id.len() > 128 || !id.chars().all(is_valid) || matches!(&*id, "" | "." | "..") {
        return Err("is not a valid client id: expected 1 to 128 of A-Z a-z 0-9 - . _ ~");
    }
    Ok(id.into_owned())
}

fn read_url(setting: Option<Setting>, key: &Secret) -> Result<Url, Error> {
    let Some(Setting { name, value }) = setting else {
        return Error::usage("no portal address: give --url, or set DOCSPACE_BASE_URL");
    };
    let url = Url::parse(&value.to_string_lossy())
        .or_else(|why| Error::usage(format!("{name}: {why}")))?;
    check(name, url.text.as_ref(), key)?;
    Ok(url)
}

fn read_proxy(url: &Url, env: Env, key: &Secret) -> Result<Option<Proxy>, Error> {
    let Some(setting) = Proxy::choose(url, env) else {
        return Ok(None);
    };
    let proxy = Proxy::parse(&setting)?;
    check(setting.name, proxy.address.as_ref(), key)?;
    Ok(Some(proxy))
}

fn read_ca_file(setting: Option<Setting>, key: &Secret) -> Result<Option<CaFile>, Error> {
    let Some(Setting { name, value }) = setting else {
        return Ok(None);
    };
    check(name, &value, key)?;
    let name = format!("{} (from {name})", show(&value));
    let pem = read_file(&value, &format!("the CA file {name}"))?;
    let mut certificates = vec![];
    for item in parse_pem(trim(&pem)) {
        if let Ok(PemItem::Certificate(certificate)) = item {
            certificates.push(certificate);
        }
    }
    // Each has a BEGIN and an END. One that is damaged, or that begins on the line where another ends, is
    // not in the list.
    let markers = String::from_utf8_lossy(&pem)
        .matches(" CERTIFICATE-----")
        .count();
    if markers == 0 || markers != 2 * certificates.len() {
        return Error::usage(format!(
            "the CA file {name} contains no certificate in PEM format, or a malformed one \
             (check BEGIN, END and base64)"
        ));
    }
    Ok(Some(CaFile { name, certificates }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cli::{Action, Mode, parse};
    use crate::output::Destination;

    const ENV: &[(&str, &str)] = &[
        ("DOCSPACE_BASE_URL", "https://portal.example"),
        ("DOCSPACE_API_KEY", "sk-hush"),
    ];

    fn options_with(args: &[&str], more: &[(&str, &str)]) -> Result<Options, Error> {
        let env = [ENV, more].concat();
        let value = |name: &str| {
            env.iter()
                .rev()
                .find(|(n, _)| *n == name)
                .map(|(_, value)| value.into())
        };
        match parse(args.iter().map(OsString::from).collect())? {
            Action::Rotate(arguments) => read(arguments, value),
            Action::Print(text) => panic!("{text}"),
        }
    }

    fn options(args: &[&str], more: &[(&str, &str)]) -> Options {
        options_with(args, more).unwrap_or_else(|error| panic!("{args:?} {more:?}: {error}"))
    }

    #[test]
    fn defaults() {
        let found = options(&["client-1"], &[]);
        assert_eq!(found.args.mode, Mode::All);
        assert_eq!(found.client, "client-1");
        assert_eq!(found.url.text, "https://portal.example");
        assert_eq!(found.key.expose(), "sk-hush");
        assert_eq!(found.args.destination, Destination::Stdout);
        assert!(found.proxy.is_none() && found.ca_file.is_none());
        let args = found.args;
        assert!(!args.no_newline && !args.verify && !args.json && !args.quiet);
        let Ok(Action::Rotate(arguments)) = parse(vec!["id".into()]) else {
            panic!("no run")
        };
        assert_eq!(arguments.timeout, Duration::from_secs(120));
    }

    #[test]
    fn every_option() {
        let args = [
            "--json",
            "--only",
            "regenerate",
            "--verify",
            "-q",
            "-oout",
            "-n",
            "id",
        ];
        let found = options(&args, &[]);
        assert_eq!(found.args.mode, Mode::Regenerate);
        assert_eq!(found.args.destination, Destination::File("out".into()));
        let args = found.args;
        assert!(args.verify && args.json && args.no_newline && args.quiet);
        assert_eq!(
            options(&["x", "--only=revoke"], &[]).args.mode,
            Mode::Revoke
        );
        assert!(options(&["x", "--check", "-o", "f"], &[]).args.check);
        assert_eq!(
            options(&["x", "-o", "-"], &[]).args.destination,
            Destination::Stdout
        );
        let command = options(&["x", "--", "store", "-x", "--"], &[])
            .args
            .destination;
        assert_eq!(
            command,
            Destination::Command("store".into(), vec!["-x".into(), "--".into()])
        );
        for (seconds, millis) in [
            ("2", Some(2000)),
            ("2.5", Some(2500)),
            ("0.5", Some(500)),
            ("240", Some(240_000)),
            ("241", None),
            ("0", None),
        ] {
            let timeout = match parse(["x", "--timeout", seconds].map(OsString::from).into()) {
                Ok(Action::Rotate(arguments)) => Some(arguments.timeout),
                _ => None,
            };
            assert_eq!(timeout, millis.map(Duration::from_millis), "{seconds}");
        }
    }

    #[test]
    fn an_argument_overrides_its_variable() {
        let env = [("DOCSPACE_CLIENT_ID", "from-env")];
        assert_eq!(options(&[], &env).client, "from-env");
        // Even if the variable is not valid.
        let env = [
            ("DOCSPACE_CLIENT_ID", "/"),
            ("DOCSPACE_BASE_URL", "?"),
            ("SSL_CERT_FILE", "missing-variable.pem"),
        ];
        let args = [" arg\n", "-u", "https://arg.example"];
        let no_ca = [("SSL_CERT_FILE", "")];
        let found = options(&args, &[&env[..], &no_ca].concat());
        assert_eq!(found.client, "arg");
        assert_eq!(found.url.host, "arg.example");
        // The error names the CA file and its source.
        for (more, named) in [
            (&["--cacert=missing.pem"][..], "missing.pem (from --cacert)"),
            (&[], "missing-variable.pem (from SSL_CERT_FILE)"),
        ] {
            let error = options_with(&[&args, more].concat(), &env)
                .err()
                .expect(named);
            let error = error.to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn plain_http_needs_loopback_or_permission() {
        for (args, env, allowed) in [
            (&["-u", "http://127.0.0.1:1"][..], &[][..], true),
            (&["-u", "http://portal.example"], &[], false),
            (&["-u", "http://portal.example", "--allow-http"], &[], true),
            (
                &["-u", "http://localhost"],
                &[("http_proxy", "proxy.example:1")],
                false,
            ),
            (
                &["-u", "http://localhost"],
                &[("http_proxy", "localhost:1")],
                true,
            ),
            (
                &["-u", "http://localhost"],
                &[("http_proxy", "[::1]:1")],
                true,
            ),
        ] {
            let result = options_with(&[args, &["id"]].concat(), env);
            assert_eq!(result.is_ok(), allowed, "{args:?} {env:?}");
            if let Err(error) = result {
                // The host alone would not explain it.
                assert!(error.what.contains("set NO_PROXY"), "{error}");
            }
        }
    }

    #[test]
    fn a_key_in_the_wrong_place_is_named_and_hidden() {
        let key = "sk-0123456789abcdef";
        let (url, upper) = (format!("https://{key}.example"), key.to_uppercase());
        for (args, env, named) in [
            (&["-u", &url, "id"][..], ("", ""), "--url"),
            (&["id", "--output", key], ("", ""), "--output"),
            (&["id", "--output", &upper], ("", ""), "--output"),
            (&["id", "--", key], ("", ""), "COMMAND"),
            (&["id", "--cacert", key], ("", ""), "--cacert"),
            (&["id"], ("SSL_CERT_FILE", key), "SSL_CERT_FILE"),
            (&["id"], ("HTTPS_PROXY", key), "HTTPS_PROXY"),
            (
                &[],
                ("DOCSPACE_CLIENT_ID", &format!("x{key}")),
                "DOCSPACE_CLIENT_ID",
            ),
            (&["id"], ("DOCSPACE_CLIENT_ID_FILE", key), ""),
        ] {
            let error = options_with(args, &[("DOCSPACE_API_KEY", key), env])
                .map_err(|error| error.to_string());
            let Err(error) = error else {
                assert_eq!(named, "", "{args:?}");
                continue;
            };
            assert!(
                error.starts_with(named) && !error.to_lowercase().contains(key),
                "{error}"
            );
        }
        // A short one may be a part of anything.
        assert!(options_with(&["id", "-o", "out/key"], &[("DOCSPACE_API_KEY", "out/key")]).is_ok());
    }

    #[test]
    fn client_ids() {
        for good in [
            "27d1f5ac-11da-4592-828d-1bd6e6212e9d",
            "a",
            "A.b_c~d",
            "...",
            &"x".repeat(128),
        ] {
            assert_eq!(
                client_id(format!(" {good}\r\n").as_bytes()).as_deref(),
                Ok(good)
            );
        }
        for bad in [
            "",
            " ",
            ".",
            "..",
            "a b",
            "a/b",
            "a%2fb",
            "é",
            "sk-1",
            "SK-1",
            &"x".repeat(129),
        ] {
            assert!(client_id(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    /// Returns the error of a run with these settings.
    fn error_with(args: &[&str], env: &[(&str, &str)]) -> String {
        let error = options_with(args, env).err().expect("a bad setting");
        let line = error.to_string();
        let end = "; nothing was sent; see --help";
        line.strip_suffix(end)
            .unwrap_or_else(|| panic!("{line}"))
            .to_owned()
    }

    #[test]
    fn bad_keys() {
        let start = "DOCSPACE_API_KEY is not a valid API key: expected 1 to 8,000 printable ASCII \
                     characters without spaces or quotes";
        let too_long = "k".repeat(8001);
        for (name, key, rest) in [
            ("whitespace", " \n", ""),
            ("a byte order mark alone", "\u{feff}", ""),
            ("UTF-16", "s\0k\0", " (byte 2 is 0x00)"),
            ("two lines", "sk-hush\nsk-hush", " (byte 8 is 0x0A)"),
            ("quotes", "\"sk-hush\"", " (byte 1 is 0x22)"),
            (
                "a zero-width space",
                " sk-\u{200b}hush",
                " (byte 5 is 0xE2)",
            ),
            ("a mark counts", "\u{feff}sk hush", " (byte 6 is 0x20)"),
            ("too long", &too_long, ""),
        ] {
            let found = error_with(&["id"], &[("DOCSPACE_API_KEY", key)]);
            assert_eq!(found, format!("{start}{rest}"), "{name}");
        }
        let with_mark = options(&["id"], &[("DOCSPACE_API_KEY", "\u{feff} sk-hush\r\n")]);
        assert_eq!(with_mark.key.expose(), "sk-hush");
    }

    #[test]
    fn bad_key_files() {
        let both = "DOCSPACE_API_KEY and DOCSPACE_API_KEY_FILE are both set: unset one of them";
        assert_eq!(error_with(&["id"], &[("DOCSPACE_API_KEY_FILE", "x")]), both);
        for (name, path, shown) in [
            ("a path", "/missing/key", "/missing/key"),
            ("a specifier", "%d/key", "%d/key"),
            ("a name", "missing", "the file"),
            ("a key", "/x/SK-hush", "the file"),
            (
                "a possible secret",
                "/LQn1uOTJsTqgOLJO1oB2ztSqw5IoxNuP8zQa",
                "the file",
            ),
        ] {
            let env = [("DOCSPACE_API_KEY", ""), ("DOCSPACE_API_KEY_FILE", path)];
            let why = "No such file or directory";
            let expected = format!("cannot read {shown} (from DOCSPACE_API_KEY_FILE): {why}");
            assert_eq!(error_with(&["id"], &env), expected, "{name}");
        }
    }

    #[test]
    fn bad_addresses() {
        for (address, why) in [
            (
                "\"https://p.example\"",
                "the address contains quotes, '@', '?' or '#': give the portal's own address, \
                 without a user, query or fragment (the key goes in DOCSPACE_API_KEY)",
            ),
            (
                "https://pörtal.example",
                "the address is not ASCII: write the host as xn--... (Punycode), the path with %XX",
            ),
            ("https://p.example:x", "the host or the port is not valid"),
            (
                "https://p\u{1}.example",
                "write the address as https://host[:port][/path] (or http://...)",
            ),
            (
                "p.example",
                "write the address as https://host[:port][/path] (or http://...)",
            ),
        ] {
            let found = error_with(&["id", "-u", address], &[]);
            assert_eq!(found, format!("--url: {why}"), "{address}");
        }
    }

    #[test]
    fn bad_proxies() {
        let why = "HTTPS_PROXY is not a valid proxy: write [scheme://][user:password@]host[:port], \
                   with http, https, socks4 or socks5 as the scheme and special characters as %XX";
        for proxy in [
            "http://user:12345?hush@proxy:1",
            "http://user:12345#hush@proxy:1",
            "http://user:hush/12345@proxy:1",
            "http://wpad/wpad.dat",
            "proxy:3128/pac",
            "\"proxy:3128\"",
            "ftp://proxy",
            "proxy:",
        ] {
            assert_eq!(
                error_with(&["id"], &[("HTTPS_PROXY", proxy)]),
                why,
                "{proxy}"
            );
        }
        for proxy in ["proxy:3128", "proxy:3128/", "http://user:a%40b@proxy:3128"] {
            let found = options(&["id"], &[("HTTPS_PROXY", proxy)]).proxy;
            assert_eq!(found.expect(proxy).address, "proxy:3128");
        }
    }
}
