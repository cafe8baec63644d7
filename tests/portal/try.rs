//! `cargo run --example try`: the program against a stand-in portal on loopback, as a user sees it.
#![allow(clippy::print_stdout)]

#[path = "mod.rs"]
mod portal;

use docspace_rotate::cli::{self, Action};
use docspace_rotate::output::log;
use docspace_rotate::rotate;
use portal::{CLIENT, KEY, Stand};

fn main() {
    let stand = Stand::real(None);
    println!("A stand-in for a portal listens on {}.\n", stand.url());
    show(&stand, KEY, &["--check", CLIENT], 0);
    show(&stand, KEY, &["--verify", CLIENT], 0);
    let args = ["--json", "--only", "regenerate", "--quiet", CLIENT];
    show(&stand, KEY, &args, 0);
    show(&stand, "sk-a-key-that-is-not-valid", &[CLIENT], 3);
}

/// Runs the program's own code, as `main` does, with an environment made for it.
fn show(stand: &Stand, key: &str, args: &[&str], wanted: u8) {
    println!("$ export DOCSPACE_BASE_URL={} DOCSPACE_API_KEY={key}", stand.url());
    println!("$ docspace-rotate {}", args.join(" "));
    let env = |name: &str| match name {
        "DOCSPACE_BASE_URL" => Some(stand.url().into()),
        "DOCSPACE_API_KEY" => Some(key.into()),
        _ => None,
    };
    let run = match cli::parse(args.iter().map(Into::into), env) {
        Ok(Action::Rotate(options)) => rotate::run(&options),
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    };
    let status = run.map_or_else(
        |error| {
            log(&format!("docspace-rotate: {error}"));
            error.state.status()
        },
        |()| 0,
    );
    println!("$ echo $?\n{status}\n");
    assert_eq!(status, wanted);
}
