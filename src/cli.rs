//! The command line.

use std::ffi::OsString;
use std::time::Duration;

use lexopt::Error::{UnexpectedOption, UnexpectedValue};
use lexopt::prelude::*;

use crate::error::{Error, State};
use crate::output::Destination;
use crate::secret::{may_contain_key, show};

/// What `--help` prints.
pub const HELP: &str = "\
docspace-rotate: rotate the client secret of an ONLYOFFICE DocSpace OAuth app
The old secret stops working as soon as the portal has made the new one.

Usage: docspace-rotate [OPTIONS] [CLIENT_ID] [-- COMMAND [ARG]...]

  CLIENT_ID              the OAuth client's id        [env: DOCSPACE_CLIENT_ID]
  COMMAND [ARG]...       deliver the secret to COMMAND, on its stdin
  -u, --url URL          the portal's address         [env: DOCSPACE_BASE_URL]
  -o, --output FILE      write the secret to FILE (- is stdout, the default)
  -n, --no-newline       don't write a trailing newline
      --json             write the portal's JSON object, not the bare secret
      --only STEP        run only this step: regenerate or revoke
      --verify           at the end, check that the portal accepts the secret
      --check            check everything that a run needs, and change nothing
      --cacert FILE      trust only the CAs in FILE (PEM)  [env: SSL_CERT_FILE]
      --allow-http       allow plain http:// to a host other than this machine
      --timeout SECONDS  time limit for the run (default 120, at most 240); work
                         in progress gets 10 s more
  -q, --quiet            print only errors
  -h, --help             print this help
  -V, --version          print the version

Environment:
  DOCSPACE_API_KEY         the API key, or another bearer token (never a flag)
  DOCSPACE_API_KEY_FILE    a file that contains it
  DOCSPACE_CLIENT_ID_FILE  a file that contains the client's id
  HTTPS_PROXY, ALL_PROXY, NO_PROXY   as curl reads them

Exit status: the state of the client, and what to do
  0  all requested steps are done
  2  invalid usage, setting, key file, output or command; nothing was sent
  3  refused; nothing changed: check the address, CA, proxy, key and client id
  4  unreachable or busy until the timeout; nothing changed: run again later
  5  new secret delivered, consent not revoked: run again with --only revoke
  6  new secret not delivered: fix the output or the command, then run again
  7  unknown: treat the old secret as revoked and run again in a few minutes
  8  new secret delivered, but --verify failed: check that the client can sign
     in with it, and if it cannot, run again
  129, 130, 131, 143  ended by SIGHUP, SIGINT, SIGQUIT or SIGTERM: the
                      message says what to do
Running again is safe (after 7, in a few minutes): it replaces any other secret.
";

/// What the command line asks for: a text, or a run.
pub enum Action {
    Print(&'static str),
    Rotate(Arguments),
}

/// A value, and the argument or variable that it comes from.
pub struct Setting {
    pub name: &'static str,
    pub value: OsString,
}

/// Which steps a run takes (`--only`).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    #[default]
    All,
    Regenerate,
    Revoke,
}

/// The arguments. Values are checked by `settings.rs`.
#[derive(Default)]
pub struct Arguments {
    pub timeout: Duration,
    pub client: Option<Setting>,
    pub url: Option<Setting>,
    pub destination: Destination,
    pub no_newline: bool,
    pub json: bool,
    pub mode: Mode,
    pub verify: bool,
    pub check: bool,
    pub cacert: Option<Setting>,
    pub allow_http: bool,
    pub quiet: bool,
}

/// Parses the command line, without the program's name. An error never shows a value: it could be
/// the key.
pub fn parse(mut words: Vec<OsString>) -> Result<Action, Error> {
    let mut args = Arguments {
        timeout: Duration::from_secs(120),
        ..Arguments::default()
    };
    // lexopt would take what follows `--` for positional arguments.
    let dashes = words.iter().position(|word| word == "--");
    let command = dashes.map(|at| words.split_off(at));
    let mut output = None;
    let mut parser = lexopt::Parser::from_args(words);
    while let Some(arg) = parser.next()? {
        match arg {
            Short('h') | Long("help") => return Ok(Action::Print(HELP)),
            Short('V') | Long("version") => {
                return Ok(Action::Print(concat!(
                    "docspace-rotate ",
                    env!("CARGO_PKG_VERSION"),
                    "\n"
                )));
            }
            Short('u') | Long("url") => args.url = Some(value(&mut parser, "--url")?),
            Short('o') | Long("output") => output = Some(value(&mut parser, "--output")?.value),
            Short('n') | Long("no-newline") => args.no_newline = true,
            Long("json") => args.json = true,
            Long("only") => args.mode = step(value(&mut parser, "--only")?)?,
            Long("verify") => args.verify = true,
            Long("check") => args.check = true,
            Long("cacert") => args.cacert = Some(value(&mut parser, "--cacert")?),
            Long("allow-http") => args.allow_http = true,
            Long("timeout") => args.timeout = seconds(value(&mut parser, "--timeout")?)?,
            Short('q') | Long("quiet") => args.quiet = true,
            Value(value) if args.client.is_none() => {
                args.client = Some(Setting {
                    name: "CLIENT_ID",
                    value,
                });
            }
            other => return Err(other.unexpected().into()),
        }
    }
    if args.check && (args.mode != Mode::All || args.verify) {
        return Error::usage("--check cannot be combined with --only or --verify");
    }
    if args.mode == Mode::Revoke && (args.verify || output.is_some() || command.is_some()) {
        return Error::usage("--only revoke: there is no new secret to deliver or --verify");
    }
    args.destination = match (output, command) {
        (Some(_), Some(_)) => return Error::usage("--output cannot be combined with COMMAND"),
        (None, Some(words)) => command_after_dashes(words)?,
        (Some(path), None) if path != "-" => Destination::File(path.into()),
        _ => Destination::Stdout,
    };
    Ok(Action::Rotate(args))
}

fn command_after_dashes(words: Vec<OsString>) -> Result<Destination, Error> {
    for word in &words {
        // A newline after the carriage return does not change the mistake.
        let text = word.to_string_lossy();
        if text.trim_end_matches('\n').ends_with('\r') {
            return Error::usage(
                "COMMAND: an argument ends in a carriage return (Windows line endings?)",
            );
        }
    }
    match words.as_slice() {
        [_, name, args @ ..] if !name.is_empty() => {
            Ok(Destination::Command(name.clone(), args.to_vec()))
        }
        _ => Error::usage("COMMAND is missing after --"),
    }
}

fn value(parser: &mut lexopt::Parser, name: &'static str) -> Result<Setting, Error> {
    match parser.value() {
        Ok(value) if !value.is_empty() => Ok(Setting { name, value }),
        _ => Error::usage(format!("{name}: a value is required")),
    }
}

impl From<lexopt::Error> for Error {
    fn from(error: lexopt::Error) -> Error {
        let what = match error {
            UnexpectedOption(option) if may_contain_key(&option) => {
                "[hidden]: unknown option".to_owned()
            }
            UnexpectedOption(option) => format!("{}: unknown option", show(option.as_ref())),
            UnexpectedValue { option, .. } => format!("{option}: takes no value"),
            // Only UnexpectedArgument is left.
            _ => "unexpected argument after CLIENT_ID: write -- before COMMAND".to_owned(),
        };
        Error::new(State::Usage, what)
    }
}

fn step(only: Setting) -> Result<Mode, Error> {
    match only.value.to_str() {
        Some("regenerate") => Ok(Mode::Regenerate),
        Some("revoke") => Ok(Mode::Revoke),
        _ => Error::usage("--only: STEP must be regenerate or revoke"),
    }
}

fn seconds(timeout: Setting) -> Result<Duration, Error> {
    // A JSON number, because that parser is in the binary anyway: `f64::from_str` would add 36 KB.
    let text = timeout.value.to_string_lossy();
    let number: serde_json::Value = text.parse().unwrap_or_default();
    let seconds = number.as_f64().unwrap_or_default();
    // A signature lives five minutes (read in DocSpace's source), and is never renewed.
    if seconds > 0.0 && seconds <= 240.0 && !text.contains(char::is_whitespace) {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Error::usage("--timeout: expected seconds, more than 0 and at most 240")
}
