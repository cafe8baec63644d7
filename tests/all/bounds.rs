//! The time limits, each to its end. These tests take the longest, and their name makes them start first.

use std::io::{PipeReader, Read};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::mock::*;
use crate::run::*;
use crate::words::*;

fn silent(request: &'static str) -> Expect {
    expect_then(request, [Action::Hang])
}

#[test]
fn a_connection_has_10_s_and_an_attempt_at_anything_but_the_patch_30_s() {
    let no_connection = Expect::Connection(vec![Action::Hang]);
    let slow = vec![
        (
            0,
            no_connection,
            "could not be reached for [GET token]: no connection within 10 s",
        ),
        (
            1,
            silent("HEAD client"),
            "gave no valid answer to [HEAD client]: timed out waiting for a reply",
        ),
    ];
    for_each(slow, |(position, expected, why)| {
        let (mut script, mut log) = (good_run(), GOOD_RUN_LOG.to_vec());
        script.insert(position, expected);
        let retry = format!("127.0.0.1 {why}, trying again in 1s");
        log.insert(position, &retry);
        run_at(true, script, &[])
            .0
            .assert_run(0, &secret_line(), &log);
    });
}

#[test]
fn what_has_begun_when_the_time_is_up_gets_10_s() {
    let late = |call, seconds, reply| {
        expect_then(
            call,
            [
                Action::Sleep(Duration::from_secs(seconds)),
                Action::Send(reply),
            ],
        )
    };
    let script = vec![
        sign_in(),
        late("HEAD client", 1, without_body(recorded("get-200"))),
        late("PATCH regenerate", 5, recorded("patch-200")),
        late("DELETE revoke", 3, recorded("delete-200")),
    ];
    run_script(script, &["--timeout", "2"]).assert_run(0, &secret_line(), &GOOD_RUN_LOG);
}

/// The state is known again, although no time is left.
#[test]
fn a_busy_portal_that_says_so_after_the_time_limit_is_4() {
    let busy = [
        Action::Sleep(Duration::from_millis(2500)),
        Action::Send(recorded("patch-429")),
    ];
    let run = run_script(
        ready([expect_then("PATCH regenerate", busy)]),
        &["--timeout", "2"],
    );
    run.fails_with(4, UNCHANGED);
}

#[test]
fn silence_ends_the_run_in_the_state_of_its_step() {
    let cases = vec![
        (0, "GET token", &[][..], 1, 4, UNCHANGED),
        (2, "PATCH regenerate", &[], 10, 7, UNKNOWN),
        (3, "DELETE revoke", &[], 10, 5, NOT_REVOKED),
        // Alone, it has changed nothing yet.
        (1, "DELETE revoke", &["--only=revoke"], 1, 4, UNCHANGED),
    ];
    for_each(cases, |(position, call, only, seconds, status, words)| {
        let script = good_run()
            .into_iter()
            .take(position)
            .chain([silent(call)])
            .collect();
        let start = Instant::now();
        let run = run_script(script, &[&["-q", "--timeout", "1.5"], only].concat());
        let stdout = if status == 5 {
            secret_line()
        } else {
            String::new()
        };
        let error = format!("docspace-rotate: timed out during [{call}] at 127.0.0.1; {words}");
        run.assert_run(status, &stdout, &[&error]);
        let took = start.elapsed().as_secs();
        assert!(
            (seconds..seconds + 4).contains(&took),
            "{took} s, not {seconds} s\n{run}"
        );
    });
}

/// The time limit ends the wait for the rest, but does not lose what came.
#[test]
fn a_secret_that_came_late_in_a_body_without_end_is_delivered() {
    let reply = String::from_utf8(json(format!(r#"{{"client_secret":"{SECRET}"}}"#))).unwrap();
    let without_end = reply.replace("Content-Length: ", "Content-Length: 9");
    let late = [
        Action::Sleep(Duration::from_secs(6)),
        Action::Send(without_end.into()),
        Action::Hang,
    ];
    let run = run_script(
        ready([expect_then("PATCH regenerate", late), revoke()]),
        &["--timeout", "3"],
    );
    run.assert_run(0, &secret_line(), &GOOD_RUN_LOG);
}

#[test]
fn a_body_has_5_s_after_its_header() {
    let reply = recorded("patch-200");
    let half = Action::Send(reply[..reply.len() - 30].to_vec());
    let script = ready([expect_then("PATCH regenerate", [half, Action::Hang])]);
    run_script(script, &[]).fails_with(
        7,
        "[PATCH regenerate] with status 200: truncated JSON; the client may ",
    );
}

/// Starts a run whose stdout is a full pipe, and waits until it delivers.
fn start_blocked(portal: &MockPortal) -> (PipeReader, Command, Child) {
    let (reader, writer) = full_pipe();
    let mut command = rotate(portal);
    command.args(["--timeout", "1.5"]).stderr(Stdio::piped());
    let mut child = command.stdout(writer).spawn().unwrap();
    command.stdout(Stdio::null());
    read_until(&mut child, "Client secret has been regenerated.\n");
    (reader, command, child)
}

#[test]
fn a_delivery_that_nothing_reads_ends_after_10_s() {
    for_each(
        vec![(6, "timed out"), (143, "ended by SIGTERM")],
        |(status, cause)| {
            let portal = MockPortal::new(ready([regenerate()]));
            let (_reader, command, child) = start_blocked(&portal);
            if status == 143 {
                send(&child, libc::SIGTERM);
            }
            let state = "the client has a new secret that may not have been delivered; fix the output or the command, then run again";
            let error = format!("docspace-rotate: {cause} during the delivery; {state}");
            finish(&command, child).assert_run(status, "", &[&error]);
        },
    );
}

/// After a second without use a connection is not used again.
#[test]
fn a_late_delivery_succeeds_and_the_revocation_gets_a_new_connection() {
    let portal = MockPortal::new(good_run());
    let (mut reader, command, child) = start_blocked(&portal);
    thread::sleep(Duration::from_secs(4));
    let mut text = vec![];
    reader.read_to_end(&mut text).unwrap();
    assert!(text.ends_with(secret_line().as_bytes()));
    finish(&command, child).assert_run(0, "", &GOOD_RUN_LOG[4..]);
    assert_eq!(portal.connections(), 3);
}
