//! From process to exit status: nothing else.

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;

use docspace_rotate::cli::{self, Action, HELP};
use docspace_rotate::error::{Error, io_message};
use docspace_rotate::output::log;
use docspace_rotate::rotate;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(&format!("docspace-rotate: {error}"));
            ExitCode::from(error.state.status())
        }
    }
}

fn run() -> Result<(), Error> {
    match cli::parse(env::args_os().skip(1), |name| env::var_os(name))? {
        Action::Help => print(HELP),
        Action::Version => print(concat!("docspace-rotate ", env!("CARGO_PKG_VERSION"), "\n")),
        Action::Rotate(options) => rotate::run(&options),
    }
}

fn print(text: &str) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // A pager that is closed early is no error.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::usage(format!("can't write to stdout: {}", io_message(&error))))
        }
        _ => Ok(()),
    }
}
