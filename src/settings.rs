//! The settings of a run, from the arguments and the environment.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use crate::address::{Proxy, Url, is_loopback};
use crate::cli::Arguments;
use crate::error::{Error, io_message};
use crate::output::{self, Destination};
use crate::portal;
use crate::rotate::{Mode, Options};
use crate::secret::{MAX_KEY, Secret, escape};
use crate::signal;

/// The environment. An empty variable counts as unset.
struct Env<'a>(&'a dyn Fn(&str) -> Option<OsString>);

impl Env<'_> {
    fn get(&self, name: &str) -> Option<OsString> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    /// Returns the value of a variable, or the contents of the file that another one names, and
    /// which of the two it is.
    fn get_or_read(
        &self,
        variable: &'static str,
        file_variable: &'static str,
    ) -> Result<Option<(&'static str, Vec<u8>)>, Error> {
        match (self.get(variable), self.get(file_variable)) {
            (None, None) => Ok(None),
            (Some(value), None) => Ok(Some((variable, value.into_encoded_bytes()))),
            (None, Some(path)) => match read_file(&path, file_variable) {
                Ok(text) => Ok(Some((file_variable, text))),
                // The path is not shown: it could be the key.
                Err(error) => Err(Error::usage(format!(
                    "{file_variable}: cannot read the file: {}",
                    io_message(&error)
                ))),
            },
            (Some(_), Some(_)) => Err(Error::usage(format!(
                "{variable} and {file_variable} are both set: unset one of them"
            ))),
        }
    }
}

fn read_file(path: &OsStr, file_variable: &str) -> io::Result<Vec<u8>> {
    signal::doing(format!("while reading the file in {file_variable}"));
    // The longest key and some white space. Anything longer (/dev/zero) is refused, not read to its
    // end.
    let mut file = File::open(path)?.take(MAX_KEY as u64 + 64);
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(text)
}

/// Reads and checks all settings.
pub fn read(
    arguments: Arguments,
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<Options, Error> {
    let env = Env(&env);
    let key = read_key(&env)?;
    let client = read_client(arguments.client, &env)?;
    let (url, url_name) = read_url(arguments.url, &env)?;
    let proxy = Proxy::choose(&url, |name| {
        Some(env.get(name)?.to_string_lossy().into_owned())
    })?;
    let is_local =
        is_loopback(&url.host) && proxy.as_ref().is_none_or(|proxy| is_loopback(proxy.host()));
    if !url.https && !is_local && !arguments.allow_http {
        return Err(Error::usage(format!(
            "{url_name}: http:// would send the key unencrypted: \
             use https://, or give --allow-http"
        )));
    }
    let output = output::Settings {
        destination: destination(arguments.output, arguments.command),
        newline: !arguments.no_newline,
        json: arguments.json,
        env: vec![
            ("DOCSPACE_CLIENT_ID", client.clone()),
            ("DOCSPACE_BASE_URL", url.text.clone()),
        ],
    };
    let cacert = arguments
        .cacert
        .or_else(|| env.get("SSL_CERT_FILE").map(PathBuf::from));
    let portal = portal::Settings {
        client,
        url,
        proxy,
        key,
        cacert,
        quiet: arguments.quiet,
    };
    refuse_key_elsewhere(&portal, &output)?;
    let mode = match arguments.only {
        Some(step) => step,
        None if arguments.check => Mode::Check,
        None => Mode::All,
    };
    Ok(Options {
        mode,
        verify: arguments.verify,
        portal,
        output,
    })
}

fn read_key(env: &Env) -> Result<Secret, Error> {
    let Some((name, text)) = env.get_or_read("DOCSPACE_API_KEY", "DOCSPACE_API_KEY_FILE")? else {
        return Err(Error::usage(
            "no API key: set DOCSPACE_API_KEY, \
             or DOCSPACE_API_KEY_FILE to the path of a file that contains it",
        ));
    };
    Secret::key(&text).map_err(|why| Error::usage(format!("{name} {why}")))
}

fn read_client(argument: Option<OsString>, env: &Env) -> Result<String, Error> {
    let found = match argument {
        Some(client) => Some(("CLIENT_ID", client.into_encoded_bytes())),
        None => env.get_or_read("DOCSPACE_CLIENT_ID", "DOCSPACE_CLIENT_ID_FILE")?,
    };
    let Some((name, text)) = found else {
        return Err(Error::usage(
            "no client id: give CLIENT_ID, or set DOCSPACE_CLIENT_ID, \
             or DOCSPACE_CLIENT_ID_FILE to the path of a file that contains it",
        ));
    };
    client_id(&text).map_err(|why| Error::usage(format!("{name} {why}")))
}

/// Accepts a client's id with white space around it: 1 to 128 characters that need no escaping in a
/// path or a log.
fn client_id(text: &[u8]) -> Result<String, &'static str> {
    let id = String::from_utf8_lossy(text.trim_ascii());
    if id.to_ascii_lowercase().starts_with("sk-") {
        return Err("contains an API key: put it only in DOCSPACE_API_KEY");
    }
    let is_valid = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
    let has_valid_length = (1..=128).contains(&id.len());
    if !has_valid_length || !id.chars().all(is_valid) || id == "." || id == ".." {
        return Err("is not a valid client id: expected 1 to 128 of A-Z a-z 0-9 - . _ ~");
    }
    Ok(id.into_owned())
}

/// Returns the portal's address, and the name of the setting that it comes from.
fn read_url(argument: Option<OsString>, env: &Env) -> Result<(Url, &'static str), Error> {
    let (name, text) = if let Some(url) = argument {
        ("--url", url)
    } else if let Some(url) = env.get("DOCSPACE_BASE_URL") {
        ("DOCSPACE_BASE_URL", url)
    } else {
        return Err(Error::usage(
            "no address of the portal: give --url, or set DOCSPACE_BASE_URL",
        ));
    };
    match Url::parse(&text.to_string_lossy()) {
        Ok(url) => Ok((url, name)),
        Err(why) => Err(Error::usage(format!("{name}: {why}"))),
    }
}

fn destination(output: Option<PathBuf>, command: Option<Vec<OsString>>) -> Destination {
    if let Some(words) = command {
        let mut words = words.into_iter();
        let name = words.next().unwrap_or_default();
        return Destination::Command(name, words.collect());
    }
    match output {
        Some(file) if file.as_os_str() != "-" => Destination::File(file),
        _ => Destination::Stdout,
    }
}

/// Refuses a setting that contains the key, and so could show it in a message. Case does not
/// matter.
fn refuse_key_elsewhere(portal: &portal::Settings, output: &output::Settings) -> Result<(), Error> {
    let key = portal.key.expose().to_ascii_lowercase();
    // A shorter one could be part of any setting by chance.
    if key.len() < 16 {
        return Ok(());
    }
    let proxy = portal.proxy.as_ref().map(|proxy| proxy.address.clone());
    let ca_file = portal.cacert.as_ref().map(|file| escape(file.as_os_str()));
    for (name, text) in [
        ("CLIENT_ID", portal.client.clone()),
        ("--url", portal.url.text.clone()),
        ("the proxy's address", proxy.unwrap_or_default()),
        ("--output or COMMAND", output.destination.name()),
        ("--cacert", ca_file.unwrap_or_default()),
    ] {
        if text.to_ascii_lowercase().contains(&key) {
            return Err(Error::usage(format!(
                "{name} contains the API key: put it only in DOCSPACE_API_KEY"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cli::{Action, parse};

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
        match parse(args.iter().map(OsString::from))? {
            Action::Rotate(arguments) => read(*arguments, value),
            Action::Print(text) => panic!("{text}"),
        }
    }

    fn options(args: &[&str], more: &[(&str, &str)]) -> Options {
        options_with(args, more).unwrap_or_else(|error| panic!("{args:?} {more:?}: {error}"))
    }

    #[test]
    fn defaults() {
        let Options {
            mode,
            verify,
            portal,
            output,
        } = options(&["client-1"], &[]);
        assert_eq!((mode, verify), (Mode::All, false));
        assert_eq!(
            (portal.client.as_str(), portal.url.text.as_str()),
            ("client-1", "https://portal.example")
        );
        assert_eq!(portal.key.expose(), "sk-hush");
        assert!(portal.proxy.is_none() && portal.cacert.is_none() && !portal.quiet);
        assert!(output.destination == Destination::Stdout && output.newline && !output.json);
        let Ok(Action::Rotate(arguments)) = parse(["id".into()]) else {
            panic!("no run")
        };
        assert_eq!(arguments.timeout, Duration::from_secs(120));
        assert!(!format!("{:?}", options(&["client-1"], &[])).contains("hush"));
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
            "--cacert=ca.pem",
            "id",
        ];
        let Options {
            mode,
            verify,
            portal,
            output,
        } = options(&args, &[]);
        assert_eq!((mode, verify), (Mode::Regenerate, true));
        assert_eq!(output.destination, Destination::File("out".into()));
        assert!(
            output.json
                && !output.newline
                && portal.quiet
                && portal.cacert == Some("ca.pem".into())
        );
        assert_eq!(options(&["x", "--only=revoke"], &[]).mode, Mode::Revoke);
        assert_eq!(options(&["x", "--check", "-o", "f"], &[]).mode, Mode::Check);
        assert_eq!(
            options(&["x", "-o", "-"], &[]).output.destination,
            Destination::Stdout
        );
        let command = options(&["x", "--", "store", "-x", "--"], &[])
            .output
            .destination;
        assert_eq!(
            command,
            Destination::Command("store".into(), vec!["-x".into(), "--".into()])
        );
        for (seconds, millis) in [
            ("2.5", Some(2500)),
            ("240", Some(240_000)),
            ("241", None),
            ("0", None),
        ] {
            let timeout = match parse(["x", "--timeout", seconds].map(OsString::from)) {
                Ok(Action::Rotate(arguments)) => Some(arguments.timeout),
                _ => None,
            };
            assert_eq!(timeout, millis.map(Duration::from_millis), "{seconds}");
        }
    }

    #[test]
    fn an_argument_overrides_its_variable() {
        let env = [
            ("DOCSPACE_CLIENT_ID", "from-env"),
            ("SSL_CERT_FILE", "env.pem"),
        ];
        let portal = options(&[], &env).portal;
        assert_eq!(
            (portal.client.as_str(), portal.cacert),
            ("from-env", Some("env.pem".into()))
        );
        // Even if the variable is unusable.
        let env = [
            ("DOCSPACE_CLIENT_ID", "/"),
            ("DOCSPACE_BASE_URL", "?"),
            ("SSL_CERT_FILE", "env.pem"),
        ];
        let portal = options(
            &[" arg\n", "-u", "https://arg.example", "--cacert=arg.pem"],
            &env,
        )
        .portal;
        assert_eq!(
            (portal.client.as_str(), portal.url.host.as_str()),
            ("arg", "arg.example")
        );
        assert_eq!(portal.cacert, Some("arg.pem".into()));
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
            assert_eq!(
                options_with(&[args, &["id"]].concat(), env).is_ok(),
                allowed,
                "{args:?} {env:?}"
            );
        }
    }

    #[test]
    fn a_key_in_the_wrong_place_is_named_and_hidden() {
        let key = "sk-0123456789abcdef";
        let (url, upper) = (format!("https://{key}.example"), key.to_uppercase());
        for (args, env, named) in [
            (&["-u", &url, "id"][..], ("", ""), "--url"),
            (&["id", "--output", key], ("", ""), "--output or COMMAND"),
            (&["id", "--output", &upper], ("", ""), "--output or COMMAND"),
            (&["id", "--", key], ("", ""), "--output or COMMAND"),
            (&["id", "--cacert", key], ("", ""), "--cacert"),
            (&["id"], ("SSL_CERT_FILE", key), "--cacert"),
            (&["id"], ("HTTPS_PROXY", key), "the proxy's address"),
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
}
