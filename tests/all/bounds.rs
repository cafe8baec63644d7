//! What a step may take at most, each to the end: these tests come first, as they take the longest.

use std::io::Read;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use crate::portal::{Act, LOG, Stand, Step, good_run, line, looked, on, reply};
use crate::run::{self, finish, rotate, run, send};

#[test]
fn a_stdout_that_nobody_reads_is_6_in_the_end() {
    let (_reader, writer) = run::full_pipe();
    let stand = Stand::script(looked([on("PATCH regenerate", reply("patch-200"))]));
    let mut command = rotate(&stand);
    let child =
        command.args(["-q", "--timeout", "1.5"]).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    let lost = finish(&command, child);
    lost.is(6, "", &["docspace-rotate: timed out while writing the new secret to stdout; the client has a new secret that …"]);
}

/// The hand-over has its 30 s, and the connection is kept for that long.
#[test]
fn a_stdout_that_is_read_late_gets_the_secret() {
    let (mut reader, writer) = run::full_pipe();
    let stand = Stand::script(good_run());
    let mut command = rotate(&stand);
    command.args(["-q", "--timeout", "1.5"]).stdout(writer).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    drop(command);
    stand.wait_for(3);
    thread::sleep(Duration::from_secs(17));
    let mut text = vec![];
    reader.read_to_end(&mut text).unwrap();
    assert!(text.ends_with(line().as_bytes()));
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(stand.connections(), 1);
}

#[test]
fn an_attempt_at_a_safe_call_has_thirty_seconds() {
    let mut script = good_run();
    script.insert(1, Step::Request("HEAD client", vec![Act::Hang]));
    let stand = Stand::script(script);
    let retry = "[HEAD client] No answer: no reply in time, trying again in 1 s";
    run(&mut rotate(&stand)).is(0, &line(), &[LOG[0], retry, LOG[1], LOG[2], LOG[3], LOG[4], LOG[5]]);
}

#[test]
fn an_attempt_at_a_connection_has_ten_seconds() {
    let (_folder, certificates, ca) = run::authority();
    let mut script = good_run();
    script.insert(0, Step::Accepted(vec![Act::Hang]));
    let stand = Stand::script_over(Some(certificates.server("127.0.0.1")), script);
    let retry = "[GET token] Not sent: no connection within 10 s, trying again in 1 s";
    let log = [retry, LOG[0], LOG[1], LOG[2], LOG[3], LOG[4], LOG[5]];
    run(rotate(&stand).arg("--cacert").arg(ca)).is(0, &line(), &log);
}

/// What nobody reads is lost in the end: a signal is held, and the timer is not.
#[test]
fn a_signal_that_is_held_is_named_when_the_time_is_up() {
    let (_reader, writer) = run::full_pipe();
    let stand = Stand::script(looked([on("PATCH regenerate", reply("patch-200"))]));
    let mut command = rotate(&stand);
    command.args(["--timeout", "1.5"]);
    let mut child = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    crate::signals::read_until(&mut child, "Client secret has been regenerated.\n");
    send(&child, libc::SIGTERM);
    let error = "docspace-rotate: timed out after SIGTERM while writing the new secret to stdout; the client has a new secret that may not have been handed over; fix the output or the command, then run again";
    finish(&command, child).is(6, "", &[error]);
}
