//! Tests that run again in namespaces of their own, as root of nothing but these.

use std::env;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

use crate::run::skipped;

const INSIDE: &str = "DOCSPACE_ROTATE_IN_NAMESPACE";

/// Returns a command that runs a program in new namespaces.
fn unshare(program: &Path) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "--mount", "--net"])
        .arg(program)
        .env(INSIDE, "1");
    command
}

/// Runs a test again in namespaces, where this returns true and the test goes on.
pub fn in_namespaces(test: &str) -> bool {
    if env::var_os(INSIDE).is_some() {
        // The loopback device of a new namespace is down.
        system("ip link set lo up");
        return true;
    }
    let mut ip = unshare(Path::new("ip"));
    let output = ip.args(["link", "set", "lo", "up"]).output();
    if !output.is_ok_and(|output| output.status.success()) {
        let why = "no namespaces here (unshare --user --mount --net), or no ip(8)";
        skipped(test, why);
        return false;
    }
    let mut again = unshare(&env::current_exe().unwrap());
    again.args(["--exact", test, "--nocapture"]);
    let output = again.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    for line in text.lines() {
        if line.starts_with("SKIPPED") {
            let line = format!("{line}\n");
            // Unlike `eprintln`, this is not captured by the test runner.
            let _ = io::stderr().write_all(line.as_bytes());
        }
    }
    let has_passed = output.status.success() && text.contains("1 passed");
    assert!(has_passed, "in namespaces:\n{text}");
    false
}

/// Runs a command of the system, as in mount(8).
pub fn system(words: &str) {
    let mut list = words.split(' ');
    let mut command = Command::new(list.next().unwrap());
    let status = command.args(list).status().unwrap();
    assert!(status.success(), "{words}");
}
