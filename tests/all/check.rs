//! `--check`: checks everything that a run needs, and changes nothing.

use std::fs;
use std::time::{Duration, Instant};

use crate::mock::*;
use crate::rotate::Case;
use crate::run::*;
use crate::words::*;

/// Expects the request for the key's expiry.
fn expiry(date: &str) -> Expect {
    let reply = json(format!(
        r#"{{"response":{{"id":"1","expiresAt":{date}}},"count":1}}"#
    ));
    expect("GET @self", reply)
}

/// Returns the line that ends a good check.
fn ready_line(portal: &MockPortal, how: &str) -> String {
    let url = portal.url();
    format!("Ready: {url} knows client {CLIENT} ({how}).")
}

#[test]
fn makes_only_safe_requests() {
    let portal = MockPortal::new(ready([expiry("\"2027-06-15T10:30:00.0000000Z\"")]));
    let line = ready_line(&portal, "API key, signed in");
    let expires = "The API key expires on 2027-06-15.";
    let log = [GOOD_RUN_LOG[0], GOOD_RUN_LOG[1], &line, expires];
    run(rotate(&portal).arg("--check")).assert_run(0, "", &log);
    assert_eq!(portal.names(), ["GET token", "HEAD client", "GET @self"]);
    assert_eq!(portal.connections(), 1);
    let requests = portal.requests();
    let bearer = format!("Bearer {KEY}");
    for request in &requests {
        assert_eq!(request.header("authorization"), Some(&*bearer));
    }
    assert_eq!(requests[1].header("x-signature"), Some(SIGNATURE));
    assert_eq!(requests[2].target, "/api/2.0/keys/@self");
}

#[test]
fn quiet_says_nothing_about_a_good_check() {
    let script = ready([expiry("\"2027-06-15T10:30:00Z\"")]);
    run_script(script, &["--check", "-q"]).assert_run(0, "", &[]);
}

/// Checks how the key and the sign-in are named.
fn assert_named(how: &str, key: &str, sign_in: Vec<u8>) {
    let script = vec![expect("GET token", sign_in), probe(), expiry("null")];
    let portal = MockPortal::new(script);
    let run = run(rotate(&portal).arg("--check").env("DOCSPACE_API_KEY", key));
    assert_eq!(run.status, Some(0), "{run}");
    assert_eq!(run.error(), ready_line(&portal, how), "{run}");
}

#[test]
fn names_the_kind_of_key_and_whether_it_was_signed_in() {
    assert_named("bearer token, signed in", BEARER, recorded("token-200"));
    assert_named("API key, no sign-in", KEY, response("404 ", "", ""));
}

#[test]
fn an_unknown_expiry_is_ignored() {
    struct Expiry {
        name: &'static str,
        actions: Vec<Action>,
    }
    let header = || Action::Send(without_body(json("{}")));
    let cases = vec![
        Expiry {
            name: "not JSON",
            actions: vec![Action::Send(json("garbage"))],
        },
        Expiry {
            name: "no reply",
            actions: vec![Action::Close],
        },
        Expiry {
            name: "silence",
            actions: vec![Action::Hang],
        },
        Expiry {
            name: "no body",
            actions: vec![header(), Action::Hang],
        },
        Expiry {
            name: "a late header, and no body",
            actions: vec![
                Action::Sleep(Duration::from_millis(4500)),
                header(),
                Action::Hang,
            ],
        },
    ];
    for_each(cases, |Expiry { name, actions }| {
        let portal = MockPortal::new(ready([expect_then("GET @self", actions)]));
        let start = Instant::now();
        // After 'Ready' neither the time limit nor the portal changes the status.
        let run = run(rotate(&portal).args(["--check", "--timeout", "3"]));
        let elapsed = start.elapsed();
        assert_eq!(run.status, Some(0), "{name}\n{run}");
        let line = ready_line(&portal, "API key, signed in");
        assert_eq!(run.error(), line, "{name}\n{run}");
        // It waits for 5 s in total. Each of a header and a body would have them alone.
        assert!(elapsed < Duration::from_secs(8), "{name}: {elapsed:?}");
    });
}

#[test]
fn a_refusal_is_3() {
    for case in [
        Case {
            name: "no such client",
            reply: recorded("get-404"),
            said: "404: no client with this id, or the key's user may not manage it",
            ..Case::default()
        },
        Case {
            name: "the role",
            reply: recorded("patch-403-denied"),
            said: "403: the key's user is a guest, or Developer Tools are limited to administrators",
            ..Case::default()
        },
        Case {
            name: "a portal without this request",
            reply: response("405 ", "", ""),
            said: "405: this server cannot check a client; a run may still work",
            ..Case::default()
        },
        Case {
            name: "another status",
            reply: response("302 ", "", ""),
            said: "302",
            ..Case::default()
        },
    ] {
        let (request, args) = ("HEAD client", &["--check"]);
        Case {
            request,
            args,
            ..case
        }
        .check();
    }
}

#[test]
fn a_refusal_without_a_signature_is_3_and_names_both_answers() {
    let sign_in = expect("GET token", recorded("token-403"));
    let head = expect("HEAD client", recorded("patch-403-unsigned"));
    let error = "with status 403, and [GET token] issued no signature (status 403: usually means that the key's rights are restricted";
    run_script(vec![sign_in, head], &["--check"]).fails_with(3, error);
}

#[test]
fn an_outage_until_the_timeout_is_4() {
    let busy = response("503 ", "Retry-After: 3600", "");
    let script = vec![sign_in(), expect("HEAD client", busy)];
    run_script(script, &["--check"]).fails_with(4, UNCHANGED);
}

/// Checks that these arguments pass the check.
fn assert_ready(args: &[&str]) {
    let args = [&["--check", "--timeout", "5"], args].concat();
    let run = run_script(ready([expiry("null")]), &args);
    assert_eq!(run.status, Some(0), "{run}");
}

#[test]
fn the_output_is_checked_and_left_alone() {
    let folder = Folder::new();
    let paths = [
        folder.fifo(),
        folder.file("old", "old\n"),
        folder.path("new"),
    ];
    let [fifo, old, new] = paths.each_ref().map(|path| path.to_str().unwrap());
    // Opening the FIFO would wait for a reader.
    assert_ready(&["-o", fifo]);
    assert_ready(&["-o", old]);
    assert_ready(&["-o", new]);
    assert_ready(&["--", "/bin/touch", new]);
    assert_eq!(folder.names(), ["fifo", "old"]);
    assert_eq!(fs::read_to_string(old).unwrap(), "old\n");
}

#[test]
fn a_missing_folder_is_2() {
    let folder = Folder::new();
    let path = folder.path("missing/file");
    let portal = MockPortal::new(vec![]);
    let mut command = rotate(&portal);
    command.args(["--check", "-o"]).arg(path);
    run(&mut command).fails_with(2, "--output");
    assert_eq!(portal.connections(), 0);
}
