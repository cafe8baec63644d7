//! The time limits, each to its end. These tests take the longest, and their name makes them start first.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crate::mock::*;
use crate::run::*;
use crate::words::*;

fn silent(request: &'static str) -> Expect {
    expect_then(request, [Action::Hang])
}

fn late(request: &'static str, seconds: u64, reply: &str) -> Expect {
    let pause = Action::Sleep(Duration::from_secs(seconds));
    expect_then(request, [pause, Action::Send(recorded(reply))])
}

#[test]
fn a_connection_has_10_s_and_an_attempt_at_anything_but_the_patch_30_s() {
    let no_connection = Expect::Connection(vec![Action::Hang]);
    let cases = vec![
        (
            0,
            no_connection,
            "127.0.0.1 could not be reached for [GET token]: no connection within 10 s, trying again in 1s",
        ),
        (
            1,
            silent("HEAD client"),
            "127.0.0.1 gave no valid answer to [HEAD client]: timed out waiting for a reply, trying again in 1s",
        ),
    ];
    for_each(cases, |(position, slow, retry)| {
        let mut script = good_run();
        script.insert(position, slow);
        let mut log = GOOD_RUN_LOG.to_vec();
        log.insert(position, retry);
        let (run, _portal) = run_at(true, script, &[]);
        run.assert_run(0, &secret_line(), &log);
    });
}

#[test]
fn what_has_begun_when_the_time_is_up_gets_10_s() {
    let script = ready([
        late("PATCH regenerate", 5, "patch-200"),
        late("DELETE revoke", 3, "delete-200"),
    ]);
    run_script(script, &["--timeout", "3"]).assert_run(0, &secret_line(), &GOOD_RUN_LOG);
}

/// The state is known again, although no time is left.
#[test]
fn a_busy_portal_that_says_so_after_the_time_limit_is_4() {
    let script = ready([late("PATCH regenerate", 4, "patch-429")]);
    run_script(script, &["--timeout", "3"]).fails_with(4, UNCHANGED);
}

/// A portal that never answers the request after these.
struct Silence {
    name: &'static str,
    before: Vec<Expect>,
    request: &'static str,
    /// How long the run takes at least.
    seconds: u64,
    status: i32,
    stdout: String,
    state: &'static str,
}

#[test]
fn silence_ends_the_run_in_the_state_of_its_step() {
    let cases = vec![
        Silence {
            name: "the sign-in",
            before: vec![],
            request: "GET token",
            seconds: 3,
            status: 4,
            stdout: String::new(),
            state: UNCHANGED,
        },
        Silence {
            name: "the regeneration",
            before: ready([]),
            request: "PATCH regenerate",
            seconds: 10,
            status: 7,
            stdout: String::new(),
            state: UNKNOWN,
        },
        Silence {
            name: "the revocation",
            before: ready([regenerate()]),
            request: "DELETE revoke",
            seconds: 10,
            status: 5,
            stdout: secret_line(),
            state: NOT_REVOKED,
        },
    ];
    for_each(cases, |case| {
        let _named = Named(case.name);
        let mut script = case.before;
        script.push(silent(case.request));
        let start = Instant::now();
        let run = run_script(script, &["-q", "--timeout", "3"]);
        let took = start.elapsed().as_secs();
        let cause = format!("timed out during [{}] at 127.0.0.1", case.request);
        run.assert_error(case.status, &case.stdout, &cause, case.state);
        // A busy machine may take longer.
        let expected = case.seconds..case.seconds + 20;
        assert!(expected.contains(&took), "{took} s\n{run}");
    });
}

/// The time limit ends the wait for the rest, but does not lose what came.
#[test]
fn a_secret_that_came_late_in_a_body_without_end_is_delivered() {
    let body = format!(r#"{{"client_secret":"{SECRET}"}}"#);
    let reply = format!("HTTP/1.1 200 \r\nContent-Length: 1000\r\n\r\n{body}");
    let late = [
        Action::Sleep(Duration::from_secs(6)),
        Action::Send(reply.into()),
        Action::Hang,
    ];
    let script = ready([expect_then("PATCH regenerate", late), revoke()]);
    run_script(script, &["--timeout", "3"]).assert_run(0, &secret_line(), &GOOD_RUN_LOG);
}

#[test]
fn a_body_that_does_not_come_is_ended_by_the_timer() {
    let reply = recorded("patch-200");
    let half = Action::Send(reply[..reply.len() - 30].to_vec());
    let script = ready([expect_then("PATCH regenerate", [half, Action::Hang])]);
    let error = "timed out during [PATCH regenerate] at 127.0.0.1; the client may ";
    let start = Instant::now();
    run_script(script, &["--timeout", "3"]).fails_with(7, error);
    assert!(start.elapsed() >= Duration::from_secs(10));
}

/// However long the reply with the secret was.
#[test]
fn a_delivery_that_nothing_reads_ends_after_10_s() {
    let long = format!(
        r#"{{"a":"{}","client_secret":"{SECRET}"}}"#,
        "x".repeat(6000)
    );
    let cases = vec![(6, "timed out"), (143, "ended by SIGTERM")];
    for_each(cases, |(status, cause)| {
        let (_reader, writer) = full_pipe();
        let patch = expect("PATCH regenerate", response("200 ", "", &long));
        let portal = MockPortal::new(ready([patch]));
        let mut command = rotate(&portal);
        let start = Instant::now();
        let child = start_delivery(command.args(["--timeout", "3"]), writer);
        if status == 143 {
            send(&child, libc::SIGTERM);
        }
        let run = finish(&command, child);
        let took = start.elapsed().as_secs();
        let cause = format!("{cause} during the delivery");
        run.assert_error(status, "", &cause, NOT_DELIVERED);
        assert!((10..15).contains(&took), "{took} s\n{run}");
    });
}

/// After a second without use a connection is not used again.
#[test]
fn a_late_delivery_succeeds_and_the_revocation_gets_a_new_connection() {
    let (reader, writer) = full_pipe();
    let portal = MockPortal::new(good_run());
    let mut command = rotate(&portal);
    let child = start_delivery(command.args(["--timeout", "3"]), writer);
    thread::sleep(Duration::from_secs(5));
    let text = io::read_to_string(reader).unwrap();
    assert!(text.ends_with(&secret_line()));
    finish(&command, child).assert_run(0, "", &GOOD_RUN_LOG[4..]);
    assert_eq!(portal.connections(), 3);
}
