//! Tests that run again in namespaces of their own, as root of nothing but these.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use crate::run::skipped;

const INSIDE: &str = "DOCSPACE_ROTATE_IN_NAMESPACE";

/// A new network namespace has a loopback device that is down.
const LOOPBACK_UP: [&str; 5] = ["ip", "link", "set", "lo", "up"];

const UNSHARE: [&str; 4] = ["--user", "--map-root-user", "--mount", "--net"];

/// Runs a test again in namespaces, in which this returns true and the test goes on.
pub fn in_namespaces(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        system(&LOOPBACK_UP.join(" "));
        return true;
    }
    let unshare = |program: &Path, args: &[&str]| {
        Command::new("unshare")
            .args(UNSHARE)
            .arg(program)
            .args(args)
            .env(INSIDE, "1")
            .output()
    };
    if !unshare(Path::new("ip"), &LOOPBACK_UP[1..]).is_ok_and(|output| output.status.success()) {
        skipped(
            test,
            "no namespaces here (unshare --user --mount --net), or no ip(8)",
        );
        return false;
    }
    let output = unshare(
        &std::env::current_exe().unwrap(),
        &["--exact", test, "--nocapture"],
    )
    .unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "in namespaces:\n{text}"
    );
    false
}

/// Runs a command of the system, as in mount(8).
pub fn system(words: &str) {
    let words: Vec<&str> = words.split(' ').collect();
    assert!(
        Command::new(words[0])
            .args(&words[1..])
            .status()
            .unwrap()
            .success(),
        "{words:?}"
    );
}
