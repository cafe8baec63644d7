//! The command line and the environment, read into [`Options`].

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::prelude::*;

use crate::address::{Proxy, Url, is_loopback};
use crate::error::{Error, io_message};
use crate::output::{self, Destination};
use crate::portal;
use crate::rotate::{Mode, Options};
use crate::secret::{MAX_KEY, Secret, escape, has_token};
use crate::signal::{self, Step};

const VERSION: &str = concat!("docspace-rotate ", env!("CARGO_PKG_VERSION"), "\n");

pub const HELP: &str = "\
docspace-rotate: rotate the client secret of an ONLYOFFICE DocSpace OAuth app
The old secret stops working as soon as the portal has made the new one.

Usage: docspace-rotate [OPTIONS] [CLIENT_ID] [-- COMMAND [ARG]...]

  CLIENT_ID              the OAuth client's id        [env: DOCSPACE_CLIENT_ID]
  COMMAND [ARG]...       deliver the secret to COMMAND, on its stdin
  -u, --url URL          the portal's address         [env: DOCSPACE_BASE_URL]
  -o, --output FILE      write the secret to FILE instead of stdout (- is stdout)
  -n, --no-newline       write no newline after the secret
      --json             write the portal's JSON object instead of the bare secret
      --only STEP        run only this step: regenerate or revoke
      --verify           finally, check that the portal accepts the new secret
      --check            check everything that a run needs, and change nothing
      --cacert FILE      trust only the CAs in FILE (PEM)  [env: SSL_CERT_FILE]
      --allow-http       allow plain http:// to a host other than this machine
      --timeout SECONDS  time limit for the run (default 120); what has begun by
                         then gets 10 s more
  -q, --quiet            print only errors
  -h, --help             print this help
  -V, --version          print the version

Environment:
  DOCSPACE_API_KEY         the API key, or any other bearer token (never a flag)
  DOCSPACE_API_KEY_FILE    a file that contains it
  DOCSPACE_CLIENT_ID_FILE  a file that contains the client's id
  HTTPS_PROXY, ALL_PROXY, NO_PROXY   as curl reads them

Exit status: the state of the client, and what to do
  0  all requested steps are done
  2  invalid usage, setting, key file, output or command; nothing was sent
  3  refused; nothing changed: check the address, CA, proxy, key and client id
  4  not reached, or busy, until the timeout; nothing changed: run again later
  5  new secret delivered, consent not revoked: run again with --only revoke
  6  new secret not delivered: fix the output or the command, then run again
  7  unknown: treat the old secret as revoked and run again in a few minutes
  8  new secret delivered, but --verify failed: do as the message says
  129, 130, 143  ended by SIGHUP, SIGINT or SIGTERM: do as the message says
Running again is always safe: a new secret replaces any other.
";

#[derive(Debug)]
pub enum Action {
    Print(&'static str),
    Rotate(Box<Arguments>),
}

#[derive(Debug, Default)]
pub struct Arguments {
    pub timeout: Duration,
    client: Option<OsString>,
    url: Option<OsString>,
    output: Option<PathBuf>,
    command: Option<Vec<OsString>>,
    no_newline: bool,
    json: bool,
    only: Option<Mode>,
    verify: bool,
    check: bool,
    cacert: Option<PathBuf>,
    allow_http: bool,
    quiet: bool,
}

/// Parses the command line, without the program's name. An error never shows a value: it could be the key.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Action, Error> {
    let mut given = Arguments {
        timeout: Duration::from_secs(120),
        ..Arguments::default()
    };
    let mut parser = lexopt::Parser::from_args(args);
    loop {
        if let Some(mut rest) = parser.try_raw_args()
            && rest.next_if(|arg| arg == "--").is_some()
        {
            given.command = Some(rest.collect());
        }
        let Some(arg) = parser.next().map_err(argument_error)? else {
            break;
        };
        match arg {
            Short('h') | Long("help") => return Ok(Action::Print(HELP)),
            Short('V') | Long("version") => return Ok(Action::Print(VERSION)),
            Short('u') | Long("url") => given.url = Some(value(&mut parser, "--url")?),
            Short('o') | Long("output") => {
                given.output = Some(value(&mut parser, "--output")?.into())
            }
            Short('n') | Long("no-newline") => given.no_newline = true,
            Long("json") => given.json = true,
            Long("only") => {
                given.only = match value(&mut parser, "--only")?.to_str() {
                    Some("regenerate") => Some(Mode::Regenerate),
                    Some("revoke") => Some(Mode::Revoke),
                    _ => return Err(Error::usage("--only: STEP must be regenerate or revoke")),
                };
            }
            Long("verify") => given.verify = true,
            Long("check") => given.check = true,
            Long("cacert") => given.cacert = Some(value(&mut parser, "--cacert")?.into()),
            Long("allow-http") => given.allow_http = true,
            Long("timeout") => given.timeout = seconds(&value(&mut parser, "--timeout")?)?,
            Short('q') | Long("quiet") => given.quiet = true,
            Value(id) if given.client.is_none() => given.client = Some(id),
            Value(_) => return Err(Error::usage("CLIENT_ID: more than one argument is given")),
            other => return Err(argument_error(other.unexpected())),
        }
    }
    let revoke = given.only == Some(Mode::Revoke);
    let (to_file, to_command) = (given.output.is_some(), given.command.is_some());
    let name = given.command.as_ref().and_then(|words| words.first());
    let mistakes = [
        (
            given.check && (given.only.is_some() || given.verify),
            "--check cannot be combined with --only or --verify",
        ),
        (
            revoke && given.verify,
            "--only revoke: there is no new secret to --verify",
        ),
        (
            revoke && (to_file || to_command),
            "--only revoke: there is no new secret to deliver",
        ),
        (
            to_file && to_command,
            "--output cannot be combined with COMMAND",
        ),
        (
            to_command && name.is_none_or(|name| name.is_empty()),
            "COMMAND is missing after --",
        ),
    ];
    let mistake = mistakes.into_iter().find(|(applies, _)| *applies);
    mistake.map_or_else(
        || Ok(Action::Rotate(Box::new(given))),
        |(_, why)| Err(Error::usage(why)),
    )
}

impl Arguments {
    pub fn options(self, env: impl Fn(&str) -> Option<OsString>) -> Result<Options, Error> {
        // An empty variable counts as unset.
        let env = |name: &'static str| env(name).filter(|value| !value.is_empty());
        let bad = |named: &str, why: &str| Error::usage(format!("{named} {why}"));
        let names = [
            "the key is missing: set",
            "DOCSPACE_API_KEY",
            "DOCSPACE_API_KEY_FILE",
        ];
        let (named, key) = setting(env, names, Step::KeyFile)?;
        let key = Secret::key(&key).map_err(|why| bad(named, why))?;
        let names = [
            "give CLIENT_ID, or set",
            "DOCSPACE_CLIENT_ID",
            "DOCSPACE_CLIENT_ID_FILE",
        ];
        let (named, client) = match self.client {
            Some(client) => ("CLIENT_ID", client.into_encoded_bytes()),
            None => setting(env, names, Step::IdFile)?,
        };
        let client = client_id(&client).map_err(|why| bad(named, why))?;
        let from_env = || Some(("DOCSPACE_BASE_URL:", env("DOCSPACE_BASE_URL")?));
        let url = self.url.map(|url| ("--url:", url)).or_else(from_env);
        let why = "is missing: give it with --url or in DOCSPACE_BASE_URL";
        let (named, url) = url.ok_or_else(|| bad("the portal's address", why))?;
        let url = Url::parse(&url.to_string_lossy()).map_err(|why| bad(named, why))?;
        let proxy = Proxy::choose(&url, |name| Some(env(name)?.to_string_lossy().into_owned()))?;
        let hosts = [
            Some(url.host.as_str()),
            proxy.as_ref().map(|proxy| proxy.inner.host()),
        ];
        let is_local = hosts.into_iter().flatten().all(is_loopback);
        if !url.https && !is_local && !self.allow_http {
            let why = "http:// would send the key unencrypted: use https://, or give --allow-http";
            return Err(bad(named, why));
        }
        let destination = match (self.command.map(VecDeque::from), self.output) {
            (Some(mut words), _) => {
                Destination::Command(words.pop_front().unwrap_or_default(), words.into())
            }
            (None, Some(file)) if file.as_os_str() != "-" => Destination::File(file),
            _ => Destination::Stdout,
        };
        let cacert = self
            .cacert
            .or_else(|| env("SSL_CERT_FILE").map(PathBuf::from));
        let env = [
            ("DOCSPACE_CLIENT_ID", client.clone()),
            ("DOCSPACE_BASE_URL", url.text.clone()),
        ];
        let options = Options {
            mode: if self.check {
                Mode::Check
            } else {
                self.only.unwrap_or(Mode::All)
            },
            verify: self.verify,
            portal: portal::Settings {
                client,
                url,
                proxy,
                key,
                cacert,
                quiet: self.quiet,
            },
            output: output::Settings {
                destination,
                newline: !self.no_newline,
                json: self.json,
                env,
            },
        };
        let why = "contains the API key: put it only in DOCSPACE_API_KEY";
        find_key(&options).map_or(Ok(options), |named| Err(bad(named, why)))
    }
}

/// Returns the setting that contains the key, and so could show it in a message. Case does not matter.
fn find_key(options: &Options) -> Option<&'static str> {
    let portal::Settings {
        client,
        url,
        proxy,
        key,
        cacert,
        ..
    } = &options.portal;
    let key = key.expose().to_ascii_lowercase();
    let settings = [
        ("CLIENT_ID", client.clone()),
        ("--url", url.text.clone()),
        (
            "the proxy's address",
            proxy
                .as_ref()
                .map(|proxy| proxy.address.clone())
                .unwrap_or_default(),
        ),
        ("--output or COMMAND", options.output.destination.name()),
        (
            "--cacert",
            cacert
                .as_ref()
                .map(|file| escape(file.as_os_str()))
                .unwrap_or_default(),
        ),
    ];
    // A shorter key could be part of any setting by chance.
    let contains =
        |(_, text): &(_, String)| key.len() >= 16 && text.to_ascii_lowercase().contains(&key);
    settings.into_iter().find(contains).map(|(named, _)| named)
}

/// Returns a setting, from its variable or the file that another one names. The path is not shown: it could be the key.
fn setting(
    env: impl Fn(&'static str) -> Option<OsString>,
    [missing, variable, file]: [&'static str; 3],
    step: Step,
) -> Result<(&'static str, Vec<u8>), Error> {
    let path = match (env(variable), env(file)) {
        (Some(value), None) => return Ok((variable, value.into_encoded_bytes())),
        (None, Some(path)) => Ok(path),
        (Some(_), Some(_)) => Err(format!(
            "{variable} and {file} are both set: unset one of them"
        )),
        (None, None) => Err(format!(
            "{missing} {variable}, or {file} to the name of its file"
        )),
    }
    .map_err(Error::usage)?;
    signal::set_step(step);
    let mut text = Vec::new();
    // The longest key and some white space. Anything longer (/dev/zero) is refused, not read to its end.
    let read =
        File::open(path).and_then(|file| file.take(MAX_KEY as u64 + 64).read_to_end(&mut text));
    let error = |error| {
        Error::usage(format!(
            "{file}: cannot read the file: {}",
            io_message(&error)
        ))
    };
    read.map(|_| (file, text)).map_err(error)
}

fn value(parser: &mut lexopt::Parser, option: &str) -> Result<OsString, Error> {
    let value = parser.value().ok().filter(|value| !value.is_empty());
    value.ok_or_else(|| Error::usage(format!("{option}: a value is required")))
}

fn argument_error(error: lexopt::Error) -> Error {
    let is_key = |option: &str| {
        has_token(option, "")
            || option
                .trim_start_matches('-')
                .to_ascii_lowercase()
                .starts_with("sk-")
    };
    Error::usage(match error {
        lexopt::Error::UnexpectedOption(option) if is_key(&option) => {
            "[hidden]: unknown option".to_owned()
        }
        lexopt::Error::UnexpectedOption(option) => {
            format!("{}: unknown option", escape(option.as_ref()))
        }
        lexopt::Error::UnexpectedValue { option, .. } => format!("{option}: takes no value"),
        _ => "invalid argument".to_owned(),
    })
}

fn seconds(text: &OsStr) -> Result<Duration, Error> {
    let text = text.to_str().unwrap_or_default();
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    // The part has nine digits, so this is in nanoseconds. With floating point the binary would be 36 KB bigger.
    let duration = format!("{whole}{part:0<9.9}")
        .parse()
        .ok()
        .map(Duration::from_nanos);
    let limits = Duration::from_nanos(1)..=Duration::from_secs(86400);
    let usable = duration.filter(|d| limits.contains(d) && !text.contains('+') && part.len() < 10);
    usable
        .ok_or_else(|| Error::usage("--timeout: give a number of seconds above 0 and up to 86400"))
}

/// Accepts a client's id with white space around it: 1 to 128 characters that need no escaping in a path or a log.
fn client_id(text: &[u8]) -> Result<String, &'static str> {
    let id = text.trim_ascii();
    if id
        .get(..3)
        .is_some_and(|start| start.eq_ignore_ascii_case(b"sk-"))
    {
        return Err("contains an API key: put it only in DOCSPACE_API_KEY");
    }
    let usable = |b: &u8| b.is_ascii_alphanumeric() || b"-._~".contains(b);
    let is_id = (1..=128).contains(&id.len()) && id.iter().all(usable) && id != b"." && id != b"..";
    let why = "contains no client id: that is 1 to 128 of A-Z a-z 0-9 - . _ ~";
    is_id
        .then(|| String::from_utf8_lossy(id).into_owned())
        .ok_or(why)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            Action::Rotate(arguments) => arguments.options(value),
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
            ("86400", Some(86_400_000)),
            ("86401", None),
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
