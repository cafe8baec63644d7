//! Arguments and environment, read into [`Options`]. Pure: both are parameters.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lexopt::prelude::*;

use crate::address::{Proxy, Url, is_loopback};
use crate::error::Error;
use crate::output::Destination;
use crate::secret::{Secret, redact};

/// What `--help` prints.
pub const HELP: &str = "\
docspace-rotate: give an ONLYOFFICE DocSpace OAuth client a new secret

Regenerates the client's secret, hands it over to COMMAND, in a file or on
stdout, and revokes the caller's consent to the client.

Usage: docspace-rotate [OPTIONS] [CLIENT_ID] [-- COMMAND [ARG]...]

  CLIENT_ID              OAuth client's id            [env: DOCSPACE_CLIENT_ID]
  COMMAND [ARG]...       give the secret to COMMAND on its stdin
  -u, --url URL          the portal's address         [env: DOCSPACE_BASE_URL]
  -o, --output FILE      write the secret to FILE instead of stdout
  -n, --no-newline       write no newline after the secret
      --json             write the portal's JSON object, not the bare secret
      --only STEP        perform only this step: regenerate, revoke
      --verify           finally, check that the portal accepts the new secret
      --check            stop before anything changes: check that a run would
                         find everything it needs
      --cacert FILE      trust the CA certificates in FILE (PEM) only
                                                      [env: SSL_CERT_FILE]
      --allow-http       let the key travel unencrypted to another host
      --timeout SECONDS  overall time limit; default 120
  -q, --quiet            print only errors on stderr
  -h, --help             show this help
  -V, --version          show the version

Environment:
  DOCSPACE_API_KEY         the API key, or any other bearer token (never a flag)
  DOCSPACE_API_KEY_FILE    a file that holds it
  DOCSPACE_CLIENT_ID_FILE  a file that holds the client's id
  HTTPS_PROXY, ALL_PROXY, NO_PROXY   as curl reads them

Exit status: the state that the client is in
  0  all steps asked for are done
  2  invalid usage, setting, key file, output or command; nothing was sent
  3  refused, or the TLS handshake failed for good; nothing changed
  4  not reached, or busy, until the timeout; nothing changed
  5  new secret handed over, consent not revoked: run again with --only revoke
  6  new secret made, but it could not be handed over: fix the output or the
     command, run again
  7  unknown: the change may have happened; treat the old secret as revoked and
     run again in a few minutes
  8  --verify only: handed over, but the portal rejects the new secret,
     or could not be asked: run again, one run at a time
It is always safe to run it again: a new secret replaces whatever there was.
Ended by SIGHUP, SIGINT or SIGTERM: 129, 130 or 143, with a line that says how
far it got.
";

/// What the command line asks for.
#[derive(Debug)]
pub enum Action {
    /// Print [`HELP`].
    Help,
    /// Print the version.
    Version,
    /// Do the job.
    Rotate(Box<Options>),
}

/// All settings of one run.
#[derive(Debug)]
pub struct Options {
    /// The client's id: see [`client_id`].
    pub client: Source<String>,
    /// The portal's address.
    pub url: Url,
    /// The proxy on the way there, if any.
    pub proxy: Option<Proxy>,
    /// The API key, or any other bearer token.
    pub key: Source<Secret>,
    /// What to do.
    pub steps: Steps,
    /// At the end, see that the portal takes the new secret.
    pub verify: bool,
    /// Where the secret goes.
    pub destination: Destination,
    /// Write a newline after the secret, where it does not go to a command.
    pub newline: bool,
    /// Write the portal's JSON object instead of the bare secret.
    pub json: bool,
    /// The file with the only CA certificates to trust, and the argument or variable that named it.
    pub cacert: Option<(PathBuf, &'static str)>,
    /// How long the run may take in all.
    pub timeout: Duration,
    /// Nothing but errors on stderr.
    pub quiet: bool,
}

/// A setting, or where it is.
#[derive(Debug)]
pub enum Source<T> {
    /// As an argument or a variable gave it.
    Given(T),
    /// In the file that its `_FILE` variable names.
    InFile(PathBuf),
}

impl<T> Source<T> {
    /// The file that it is in, if any.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Source::Given(_) => None,
            Source::InFile(path) => Some(path),
        }
    }
}

/// The steps to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steps {
    /// Regenerate the secret, hand it over, revoke the consent.
    All,
    /// Only regenerate the secret and hand it over.
    Regenerate,
    /// Only revoke the consent.
    Revoke,
    /// Change nothing: see that a run would find everything it needs.
    Check,
}

/// Reads the command line, without the program's name, and the environment.
///
/// # Errors
///
/// The first mistake, in one line that names the argument or variable. No value is shown that
/// could be a key in the wrong place.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<Action, Error> {
    // An empty variable counts as unset.
    let env = |name: &'static str| env(name).filter(|value| !value.is_empty());
    let mut given = Arguments::default();
    let mut parser = lexopt::Parser::from_args(args);
    let key = env("DOCSPACE_API_KEY").unwrap_or_default();
    let key = Secret::new(key.to_string_lossy().trim());
    let error = |error| plain(error, &key);
    loop {
        if let Some(mut rest) = parser.try_raw_args()
            && rest.next_if(|arg| arg == "--").is_some()
        {
            given.command = Some(rest.collect());
        }
        let Some(arg) = parser.next().map_err(error)? else { break };
        match arg {
            Short('h') | Long("help") => return Ok(Action::Help),
            Short('V') | Long("version") => return Ok(Action::Version),
            Short('u') | Long("url") => given.url = Some(utf8("--url", value(&mut parser, "--url")?)?),
            Short('o') | Long("output") => given.output = Some(value(&mut parser, "--output")?.into()),
            Short('n') | Long("no-newline") => given.no_newline = true,
            Long("json") => given.json = true,
            Long("only") => {
                given.only = match value(&mut parser, "--only")?.to_str() {
                    Some("regenerate") => Some(Steps::Regenerate),
                    Some("revoke") => Some(Steps::Revoke),
                    _ => return Err(Error::usage("--only: STEP must be regenerate or revoke")),
                };
            }
            Long("verify") => given.verify = true,
            Long("check") => given.check = true,
            Long("cacert") => given.cacert = Some(value(&mut parser, "--cacert")?.into()),
            Long("allow-http") => given.allow_http = true,
            Long("timeout") => given.timeout = Some(seconds(&value(&mut parser, "--timeout")?)?),
            Short('q') | Long("quiet") => given.quiet = true,
            Value(_) if given.client.is_some() => {
                return Err(Error::usage("CLIENT_ID: more than one argument is given"));
            }
            Value(id) => given.client = Some(id),
            other => return Err(error(other.unexpected())),
        }
    }
    given.resolve(env).map(|options| Action::Rotate(Box::new(options)))
}

/// The arguments as they are given.
#[derive(Default)]
struct Arguments {
    client: Option<OsString>,
    url: Option<String>,
    output: Option<PathBuf>,
    command: Option<Vec<OsString>>,
    no_newline: bool,
    json: bool,
    only: Option<Steps>,
    verify: bool,
    check: bool,
    cacert: Option<PathBuf>,
    allow_http: bool,
    timeout: Option<Duration>,
    quiet: bool,
}

impl Arguments {
    /// Adds what the environment says, and sees that all of it is usable and goes together.
    fn resolve(self, env: impl Fn(&'static str) -> Option<OsString>) -> Result<Options, Error> {
        let text = |name: &'static str| env(name).map(|value| utf8(name, value)).transpose();
        let given = |argument: &'static str, given: Option<String>, variable| match given {
            Some(value) => Ok(Some((argument, value))),
            None => Ok(text(variable)?.map(|value| (variable, value))),
        };

        let source = |variable: &'static str, file: &'static str| match (env(variable), env(file)) {
            (Some(_), Some(_)) => {
                Err(Error::usage(format!("{variable} and {file} are both set: unset one of them")))
            }
            (Some(value), None) => Ok(Some(Source::Given((variable, value)))),
            (None, Some(path)) => Ok(Some(Source::InFile(path.into()))),
            (None, None) => Ok(None),
        };

        let revoke = self.only == Some(Steps::Revoke);
        let command = self.command.as_ref();
        let name = command.and_then(|words| words.first());
        let contradictions = [
            (self.check && self.only.is_some(), "--check: it can't be combined with --only"),
            (self.check && self.verify, "--check: there is no new secret to --verify"),
            (revoke && self.verify, "--verify: with --only revoke there is no new secret to verify"),
            (revoke && self.output.is_some(), "--output: with --only revoke there is no new secret to write"),
            (
                revoke && self.command.is_some(),
                "COMMAND: with --only revoke there is no new secret to hand over",
            ),
            (self.output.is_some() && self.command.is_some(), "--output: can't be combined with COMMAND"),
            (command.is_some_and(|words| words.is_empty()), "COMMAND is missing after --"),
            (name.is_some_and(|name| name.is_empty()), "COMMAND: its name is empty"),
        ];
        if let Some((_, why)) = contradictions.into_iter().find(|(given, _)| *given) {
            return Err(Error::usage(why));
        }
        for (option, file) in [("--output", &self.output), ("--cacert", &self.cacert)] {
            if file.as_ref().is_some_and(|file| file.as_os_str().is_empty()) {
                return Err(Error::usage(format!("{option}: the file's name is empty")));
            }
        }

        let client = match self.client {
            Some(client) => Source::Given(("CLIENT_ID", client)),
            None => source("DOCSPACE_CLIENT_ID", "DOCSPACE_CLIENT_ID_FILE")?.ok_or_else(|| {
                Error::usage(
                    "CLIENT_ID is missing: give it as the argument or in DOCSPACE_CLIENT_ID, or name a file that holds it in DOCSPACE_CLIENT_ID_FILE",
                )
            })?,
        };
        let client = match client {
            Source::Given((named, id)) => client_id(id.as_encoded_bytes())
                .map(Source::Given)
                .map_err(|why| Error::usage(format!("{named} {why}")))?,
            Source::InFile(path) => Source::InFile(path),
        };

        let (named, url) = given("--url", self.url, "DOCSPACE_BASE_URL")?.ok_or_else(|| {
            Error::usage("the portal's address is missing: give it with --url or in DOCSPACE_BASE_URL")
        })?;
        let url = Url::parse(&url).map_err(|why| Error::usage(format!("{named}: {why}")))?;
        let proxy = Proxy::choose(&url, text)?;
        if !url.https && !self.allow_http {
            let unencrypted = |what| Error::usage(format!("{what}: use https://, or give --allow-http"));
            if !is_loopback(&url.host) {
                return Err(unencrypted(format!("{named}: http:// would send the key unencrypted")));
            }
            if let Some(Proxy { variable, .. }) = proxy.as_ref().filter(|proxy| !is_loopback(&proxy.host)) {
                let what = "an http:// address would send the key unencrypted to this proxy";
                return Err(unencrypted(format!("{variable}: {what}")));
            }
        }

        let key = source("DOCSPACE_API_KEY", "DOCSPACE_API_KEY_FILE")?.ok_or_else(|| {
            Error::usage(
                "the key is missing: put it in DOCSPACE_API_KEY, or name a file that holds it in DOCSPACE_API_KEY_FILE",
            )
        })?;
        let key = match key {
            Source::Given((named, key)) => Secret::key(key.as_encoded_bytes())
                .map(Source::Given)
                .map_err(|why| Error::usage(format!("{named} {why}")))?,
            Source::InFile(path) => Source::InFile(path),
        };
        let cacert = self.cacert.map(|file| (file, "--cacert"));
        Ok(Options {
            client,
            url,
            proxy,
            key,
            steps: if self.check { Steps::Check } else { self.only.unwrap_or(Steps::All) },
            verify: self.verify,
            destination: match (self.command, self.output) {
                (Some(command), _) => Destination::Command(command),
                (None, Some(file)) => Destination::File(file),
                (None, None) => Destination::Stdout,
            },
            newline: !self.no_newline,
            json: self.json,
            cacert: cacert.or_else(|| Some((env("SSL_CERT_FILE")?.into(), "SSL_CERT_FILE"))),
            timeout: self.timeout.unwrap_or(Duration::from_secs(120)),
            quiet: self.quiet,
        })
    }
}

/// The value of an option.
fn value(parser: &mut lexopt::Parser, option: &str) -> Result<OsString, Error> {
    parser.value().map_err(|_| Error::usage(format!("{option}: a value is required")))
}

fn utf8(name: &str, text: OsString) -> Result<String, Error> {
    text.into_string().map_err(|_| Error::usage(format!("{name}: the text is not UTF-8")))
}

/// What lexopt found, without the values that its own words show.
fn plain(error: lexopt::Error, key: &Secret) -> Error {
    Error::usage(match error {
        lexopt::Error::UnexpectedOption(option) => format!("{}: unknown option", redact(&option, [key])),
        lexopt::Error::UnexpectedValue { option, .. } => format!("{option}: takes no value"),
        _ => "an argument can't be read".to_owned(),
    })
}

/// A number of seconds, whole or decimal, above 0 and up to a day.
fn seconds(text: &OsStr) -> Result<Duration, Error> {
    let number = text.to_str().filter(|text| text.bytes().all(|b| b.is_ascii_digit() || b == b'.'));
    let duration = number.and_then(|text| Duration::try_from_secs_f64(text.parse().ok()?).ok());
    duration
        .filter(|d| !d.is_zero() && *d <= Duration::from_secs(86400))
        .ok_or_else(|| Error::usage("--timeout: give a number of seconds above 0 and up to 86400"))
}

/// Takes a client's id as an argument, a variable or a file gives it, without the white space around
/// it: 1 to 128 characters that need no escaping in a path or a log.
///
/// # Errors
///
/// Says why the text is no id, without showing it: it may be the key.
pub fn client_id(text: &[u8]) -> Result<String, &'static str> {
    let id = text.trim_ascii();
    if id.get(..3).is_some_and(|start| start.eq_ignore_ascii_case(b"sk-")) {
        return Err("holds an API key: put it only in DOCSPACE_API_KEY");
    }
    let usable = |b: &u8| b.is_ascii_alphanumeric() || b"-._~".contains(b);
    let dots = id == b"." || id == b"..";
    match (1..=128).contains(&id.len()) && id.iter().all(usable) && !dots {
        true => Ok(String::from_utf8_lossy(id).into_owned()),
        false => Err("holds no client id: that is 1 to 128 of A-Z a-z 0-9 - . _ ~"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENV: &[(&str, &str)] =
        &[("DOCSPACE_BASE_URL", "https://portal.example"), ("DOCSPACE_API_KEY", "sk-hush")];

    fn parse_with(args: &[&str], env: &[(&str, &str)]) -> Result<Action, Error> {
        let value = |name: &str| env.iter().rev().find(|(n, _)| *n == name).map(|(_, v)| v.into());
        parse(args.iter().map(OsString::from), value)
    }

    fn id(options: &Options) -> &str {
        match &options.client {
            Source::Given(id) => id,
            Source::InFile(path) => panic!("{path:?}"),
        }
    }

    fn options(args: &[&str], more: &[(&str, &str)]) -> Box<Options> {
        match parse_with(args, &[ENV, more].concat()) {
            Ok(Action::Rotate(options)) => options,
            other => panic!("{args:?} {more:?}: {other:?}"),
        }
    }

    #[test]
    fn defaults() {
        let o = options(&["client-1"], &[]);
        assert_eq!(id(&o), "client-1");
        assert_eq!(o.url.to_string(), "https://portal.example");
        assert!(matches!(&o.key, Source::Given(key) if key.expose() == "sk-hush"));
        assert_eq!(o.steps, Steps::All);
        assert_eq!(o.timeout, Duration::from_secs(120));
        assert!(
            o.destination == Destination::Stdout
                && o.newline
                && o.cacert.is_none()
                && o.proxy.is_none()
                && !o.json
                && !o.quiet
        );
        assert!(!format!("{o:?}").contains("hush"));
    }

    #[test]
    fn an_argument_beats_its_variable() {
        let env = [("DOCSPACE_CLIENT_ID", "from-env"), ("SSL_CERT_FILE", "env.pem")];
        assert_eq!(id(&options(&[], &env)), "from-env");
        assert_eq!(options(&[], &env).cacert, Some((PathBuf::from("env.pem"), "SSL_CERT_FILE")));
        let o = options(&["arg", "-u", "https://arg.example", "--cacert=arg.pem"], &env);
        assert_eq!(id(&o), "arg");
        assert_eq!(o.url.host, "arg.example");
        assert_eq!(o.cacert, Some((PathBuf::from("arg.pem"), "--cacert")));
        // Even where the variable is no good, or its file.
        let both = [("DOCSPACE_CLIENT_ID", "/"), ("DOCSPACE_CLIENT_ID_FILE", "missing")];
        assert_eq!(id(&options(&[" arg\n"], &both)), "arg");
        let o = options(
            &["arg", "--url=https://arg.example"],
            &[("DOCSPACE_BASE_URL", "?"), ("DOCSPACE_CLIENT_ID", "/")],
        );
        assert_eq!(o.url.host, "arg.example");
    }

    #[test]
    fn every_option() {
        let o =
            options(&["--json", "--only", "regenerate", "-q", "-oout", "--timeout", "2.5", "-n", "id"], &[]);
        assert!(o.json && o.quiet);
        assert_eq!(o.steps, Steps::Regenerate);
        assert_eq!(o.destination, Destination::File(PathBuf::from("out")));
        assert!(!o.newline);
        assert_eq!(o.timeout, Duration::from_millis(2500));
        assert_eq!(id(&o), "id");
        assert_eq!(options(&["x", "--only=revoke"], &[]).steps, Steps::Revoke);
        assert_eq!(options(&["x", "--check", "-o", "f"], &[]).steps, Steps::Check);
        assert!(options(&["x", "--verify", "--only=regenerate"], &[]).verify);
        assert!(!options(&["x", "--allow-http", "--url", "http://portal.example"], &[]).url.https);
        assert!(!options(&["x", "--url", "http://127.0.0.1:1"], &[]).url.https);
        let key = options(&["x"], &[("DOCSPACE_API_KEY", ""), ("DOCSPACE_API_KEY_FILE", "/run/key")]).key;
        assert!(matches!(key, Source::InFile(path) if path.as_os_str() == "/run/key"));
    }

    #[test]
    fn everything_after_two_dashes_is_the_commands_own() {
        let words = |words: &[&str]| Destination::Command(words.iter().map(OsString::from).collect());
        let o = options(&["id", "--verify", "--", "gh", "--json", "", "a b", "--", "-h"], &[]);
        assert_eq!((id(&o), o.verify, o.json), ("id", true, false));
        assert_eq!(o.destination, words(&["gh", "--json", "", "a b", "--", "-h"]));
        let o = options(&["--", "id"], &[("DOCSPACE_CLIENT_ID", "from-env")]);
        assert_eq!((id(&o), &o.destination), ("from-env", &words(&["id"])));
        // The value of an option may be two dashes.
        let o = options(&["id", "-o", "--", "--check"], &[]);
        assert_eq!((&o.destination, o.steps), (&Destination::File("--".into()), Steps::Check));
    }

    #[test]
    fn help_and_version_need_nothing_else() {
        for args in [&["-h"][..], &["--help"], &["x", "-h"], &["-qh"]] {
            let command = parse_with(args, &[]);
            assert!(matches!(command, Ok(Action::Help)), "{args:?}: {command:?}");
        }
        assert!(matches!(parse_with(&["-V"], &[]), Ok(Action::Version)));
        assert!(matches!(parse_with(&["--version"], &[]), Ok(Action::Version)));
    }

    #[test]
    fn help_tells_every_status_and_variable() {
        assert!(HELP.contains("\n  8  "));
        for word in ["\n  0  ", "\n  2  ", "\n  3  ", "\n  4  ", "\n  5  ", "\n  6  ", "\n  7  "] {
            assert!(HELP.contains(word), "{word:?}");
        }
        for word in
            ["DOCSPACE_CLIENT_ID", "DOCSPACE_BASE_URL", "DOCSPACE_API_KEY_FILE", "SSL_CERT_FILE", "NO_PROXY"]
        {
            assert!(HELP.contains(word), "{word}");
        }
        assert!(HELP.lines().all(|line| line.len() <= 80), "a line is too long for a terminal");
    }

    #[test]
    fn mistakes() {
        let http = [("DOCSPACE_BASE_URL", "http://127.0.0.1.invalid")];
        let long = "x".repeat(129);
        for (args, more, line) in [
            (
                &[][..],
                &[][..],
                "CLIENT_ID is missing: give it as the argument or in DOCSPACE_CLIENT_ID, or name a file that holds it in DOCSPACE_CLIENT_ID_FILE",
            ),
            (
                &[],
                &[("DOCSPACE_CLIENT_ID", "a/b")],
                "DOCSPACE_CLIENT_ID holds no client id: that is 1 to 128 of A-Z a-z 0-9 - . _ ~",
            ),
            (&[""], &[], "CLIENT_ID holds no client id: that is 1 to 128 of A-Z a-z 0-9 - . _ ~"),
            (&[".."], &[], "CLIENT_ID holds no client id: that is 1 to 128 of A-Z a-z 0-9 - . _ ~"),
            (&["a b"], &[], "CLIENT_ID holds no client id: that is 1 to 128 of A-Z a-z 0-9 - . _ ~"),
            (&[&long], &[], "CLIENT_ID holds no client id: that is 1 to 128 of A-Z a-z 0-9 - . _ ~"),
            (&["a", "b"], &[], "CLIENT_ID: more than one argument is given"),
            (
                &["x"],
                &[("DOCSPACE_BASE_URL", "")],
                "the portal's address is missing: give it with --url or in DOCSPACE_BASE_URL",
            ),
            (
                &["x"],
                &[("DOCSPACE_BASE_URL", "portal.example")],
                "DOCSPACE_BASE_URL: the address has no scheme: write https:// before it",
            ),
            (&["x", "--url", ""], &[], "--url: the address has no scheme: write https:// before it"),
            (
                &["x"],
                &http,
                "DOCSPACE_BASE_URL: http:// would send the key unencrypted: use https://, or give --allow-http",
            ),
            (&["x", "--url"], &[], "--url: a value is required"),
            (
                &[],
                &[("DOCSPACE_CLIENT_ID", "x"), ("DOCSPACE_CLIENT_ID_FILE", "f")],
                "DOCSPACE_CLIENT_ID and DOCSPACE_CLIENT_ID_FILE are both set: unset one of them",
            ),
            (&["sk-hush"], &[], "CLIENT_ID holds an API key: put it only in DOCSPACE_API_KEY"),
            (&["x", "--only", "both"], &[], "--only: STEP must be regenerate or revoke"),
            (
                &["x", "--only", "revoke", "-o", "f"],
                &[],
                "--output: with --only revoke there is no new secret to write",
            ),
            (&["x", "--check", "--only", "revoke"], &[], "--check: it can't be combined with --only"),
            (&["x", "--check", "--verify"], &[], "--check: there is no new secret to --verify"),
            (
                &["x", "--verify", "--only", "revoke"],
                &[],
                "--verify: with --only revoke there is no new secret to verify",
            ),
            (&["x", "--"], &[], "COMMAND is missing after --"),
            (&["x", "--", "", "y"], &[], "COMMAND: its name is empty"),
            (&["x", "-o", "f", "--", "y"], &[], "--output: can't be combined with COMMAND"),
            (
                &["x", "--only", "revoke", "--", "y"],
                &[],
                "COMMAND: with --only revoke there is no new secret to hand over",
            ),
            (&["x", "--output="], &[], "--output: the file's name is empty"),
            (&["x", "--timeout", "0"], &[], "--timeout: give a number of seconds above 0 and up to 86400"),
            (&["x", "--timeout", "-1"], &[], "--timeout: give a number of seconds above 0 and up to 86400"),
            (&["x", "--timeout", "inf"], &[], "--timeout: give a number of seconds above 0 and up to 86400"),
            (&["x", "--timeout", "1e3"], &[], "--timeout: give a number of seconds above 0 and up to 86400"),
            (
                &["x", "--timeout", "86401"],
                &[],
                "--timeout: give a number of seconds above 0 and up to 86400",
            ),
            (&["x", "--json=sk-hush"], &[], "--json: takes no value"),
            (&["x", "--key=sk-hush"], &[], "--key: unknown option"),
            (&["x", "-k"], &[], "-k: unknown option"),
            (
                &["x"],
                &[("DOCSPACE_API_KEY", "")],
                "the key is missing: put it in DOCSPACE_API_KEY, or name a file that holds it in DOCSPACE_API_KEY_FILE",
            ),
            (&["x"], &[("DOCSPACE_API_KEY", " ")], "DOCSPACE_API_KEY holds no key"),
            (
                &["x"],
                &[("DOCSPACE_API_KEY", "sk hush")],
                "DOCSPACE_API_KEY holds no usable key: a key is one word of printable ASCII characters, without spaces or quotes",
            ),
            (
                &["x"],
                &[("DOCSPACE_API_KEY_FILE", "f")],
                "DOCSPACE_API_KEY and DOCSPACE_API_KEY_FILE are both set: unset one of them",
            ),
            (
                &["x"],
                &[("HTTPS_PROXY", "gopher://hush")],
                "HTTPS_PROXY: not a usable proxy: the scheme must be one of http:// https:// socks4:// socks5://",
            ),
            (
                &["x", "--url", "http://localhost"],
                &[("http_proxy", "http://p.example:1")],
                "http_proxy: an http:// address would send the key unencrypted to this proxy: use https://, or give --allow-http",
            ),
        ] {
            let error = parse_with(args, &[ENV, more].concat()).expect_err(line);
            assert_eq!(
                error.to_string(),
                format!("{line}; nothing was sent; see --help"),
                "{args:?} {more:?}"
            );
            assert!(!error.to_string().contains("hush"));
        }
    }

    #[test]
    fn text_that_is_not_utf8() {
        use std::os::unix::ffi::OsStringExt;
        let bad = || OsString::from_vec(vec![b'h', 0xff]);
        let env = |bad_one: &'static str| {
            move |name: &str| match name {
                name if name == bad_one => Some(bad()),
                "DOCSPACE_BASE_URL" => Some("https://portal.example".into()),
                "DOCSPACE_API_KEY" => Some("sk-hush".into()),
                _ => None,
            }
        };
        for name in ["DOCSPACE_CLIENT_ID", "DOCSPACE_BASE_URL", "DOCSPACE_API_KEY", "HTTPS_PROXY", "NO_PROXY"]
        {
            let args = (name != "DOCSPACE_CLIENT_ID").then(|| OsString::from("x"));
            let error = parse(args, env(name)).expect_err(name);
            assert!(error.to_string().starts_with(name), "{error}");
        }
        for option in ["--url", "--only", "--timeout"] {
            let error = parse(["x".into(), option.into(), bad()], env("")).expect_err(option);
            assert!(error.to_string().starts_with(option), "{error}");
        }
        assert!(parse([bad()], env("")).is_err());
        // A path need not be UTF-8.
        assert!(parse(["x".into(), "-o".into(), bad(), "--cacert".into(), bad()], env("")).is_ok());
    }
}
