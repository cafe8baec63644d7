//! From process to exit status.

use std::env;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use docspace_rotate::cli::{self, Action};
use docspace_rotate::error::{Error, io_message, log};
use docspace_rotate::{rotate, signal};

fn main() -> ExitCode {
    let Err(error) = run() else {
        return ExitCode::SUCCESS;
    };
    log(&format!("docspace-rotate: {error}"));
    ExitCode::from(error.state.status())
}

fn run() -> Result<(), Error> {
    match cli::parse(env::args_os().skip(1))? {
        Action::Print(text) => io::stdout()
            .write_all(text.as_bytes())
            .or_else(|error| match error.kind() {
                // A pager that closes early is not an error.
                ErrorKind::BrokenPipe => Ok(()),
                _ => Err(Error::usage(format!(
                    "cannot write to stdout: {}",
                    io_message(&error)
                ))),
            }),
        Action::Rotate(arguments) => {
            // A key file may block, so the timer comes first.
            signal::start(arguments.timeout);
            let options = arguments.options(|name| env::var_os(name));
            let result = options.and_then(|options| rotate::run(&options));
            signal::ignore();
            result
        }
    }
}
