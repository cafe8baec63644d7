//! `cargo run --example try`: the program against a mock portal on loopback, as a user sees it.
#![allow(clippy::print_stdout)]

#[path = "../tests/mock/mod.rs"]
mod mock;

use docspace_rotate::cli::{self, Action};
use docspace_rotate::error::{Error, log};
use docspace_rotate::{rotate, settings, signal};
use mock::{CLIENT, KEY, MockPortal, Request, json, recorded};

fn main() {
    let portal = MockPortal::answering(None, answer);
    println!("A mock portal listens on {}.\n", portal.url());
    show(&portal, KEY, &["--check", CLIENT], 0);
    show(&portal, KEY, &["--verify", CLIENT], 0);
    // A command gets the secret on its stdin: this one counts its bytes.
    show(&portal, KEY, &[CLIENT, "--", "wc", "-c"], 0);
    show(&portal, "sk-a-key-that-is-not-valid", &[CLIENT], 3);
}

/// Answers like a real portal with one valid key.
fn answer(request: &Request) -> Vec<u8> {
    let bearer = format!("Bearer {KEY}");
    let has_key = request.header("authorization") == Some(&bearer);
    let name = match request.name().as_str() {
        "GET token" if has_key => "token-200",
        "GET token" => "token-401",
        "HEAD client" => "get-200",
        "PATCH regenerate" => "patch-200",
        "DELETE revoke" => "delete-200",
        "POST introspect" => "introspect-200",
        "GET @self" => return json(r#"{"response":{"expiresAt":"2027-06-15T10:30:00.0000000Z"}}"#),
        _ => "get-404",
    };
    recorded(name)
}

/// Runs the program's own code, as `main` does, with this key and these arguments.
fn show(portal: &MockPortal, key: &str, args: &[&str], expected: u8) {
    let url = portal.url();
    println!("$ export DOCSPACE_BASE_URL={url} DOCSPACE_API_KEY={key}");
    println!("$ docspace-rotate {}", args.join(" "));
    let status = match run(portal, key, args) {
        Ok(()) => 0,
        Err(error) => {
            log(&format!("docspace-rotate: {error}"));
            error.state as u8
        }
    };
    println!("$ echo $?\n{status}\n");
    assert_eq!(status, expected);
}

fn run(portal: &MockPortal, key: &str, args: &[&str]) -> Result<(), Error> {
    let Action::Rotate(arguments) = cli::parse(args.iter().map(Into::into).collect())? else {
        return Ok(());
    };
    signal::start(arguments.timeout);
    let options = settings::read(arguments, |name| match name {
        "DOCSPACE_BASE_URL" => Some(portal.url().into()),
        "DOCSPACE_API_KEY" => Some(key.into()),
        _ => None,
    })?;
    rotate::run(&options)
}
