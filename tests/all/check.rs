//! `--check`: checks everything that a run needs, and changes nothing.

use std::fs;
use std::time::{Duration, Instant};

use crate::mock::*;
use crate::run::*;
use crate::words::*;

/// Expects the request for the key's expiry.
fn expiry(date: &str) -> Expect {
    expect(
        "GET @self",
        json(format!(
            r#"{{"response":{{"id":"1","expiresAt":{date}}},"count":1}}"#
        )),
    )
}

/// Returns the line that ends a good check.
fn ready_line(portal: &MockPortal, how: &str) -> String {
    format!("Ready: {} knows client {CLIENT} ({how}).", portal.url())
}

#[test]
fn makes_only_safe_requests() {
    let portal = MockPortal::new(ready([expiry("\"2027-06-15T10:30:00.0000000Z\"")]));
    let line = ready_line(&portal, "API key, signed in");
    let log = [
        GOOD_RUN_LOG[0],
        GOOD_RUN_LOG[1],
        &line,
        "The API key expires on 2027-06-15.",
    ];
    run(rotate(&portal).arg("--check")).assert_run(0, "", &log);
    let requests = portal.requests();
    assert_eq!(portal.names(), ["GET token", "HEAD client", "GET @self"]);
    assert_eq!(requests[2].target, "/api/2.0/keys/@self");
    let bearer = format!("Bearer {KEY}");
    assert!(
        requests
            .iter()
            .all(|request| request.header("authorization") == Some(&bearer))
    );
    assert_eq!(requests[1].header("x-signature"), Some(SIGNATURE));
    assert_eq!(portal.connections(), 1);
    run_script(
        ready([expiry("\"2027-06-15T10:30:00Z\"")]),
        &["--check", "-q"],
    )
    .assert_run(0, "", &[]);
}

#[test]
fn says_how_the_portal_was_asked() {
    for (key, reply, how) in [
        (BEARER, recorded("token-200"), "bearer token, signed in"),
        (BEARER, response("404 ", "", ""), "bearer token, no sign-in"),
        (KEY, response("404 ", "", ""), "API key, no sign-in"),
    ] {
        let portal = MockPortal::new(vec![expect("GET token", reply), probe(), expiry("null")]);
        let done = run(rotate(&portal).arg("--check").env("DOCSPACE_API_KEY", key));
        assert_eq!(
            (done.status, done.error()),
            (Some(0), &*ready_line(&portal, how)),
            "{done}"
        );
    }
}

#[test]
fn an_unknown_expiry_is_ignored() {
    let cases: Vec<fn() -> Expect> = vec![
        || expiry("null"),
        || expect("GET @self", json(r#"{"response":{}}"#)),
        || expect("GET @self", json("garbage")),
        || {
            expect(
                "GET @self",
                response("404 ", "", r#"{"response":{"expiresAt":"2027-06-15"}}"#),
            )
        },
        || expect_then("GET @self", [Action::Close]),
        || expect_then("GET @self", [Action::Hang]),
        || {
            expect_then(
                "GET @self",
                [Action::Send(without_body(json("{}"))), Action::Hang],
            )
        },
    ];
    for_each(cases, |case| {
        let (portal, start) = (MockPortal::new(ready([case()])), Instant::now());
        // After 'Ready' neither the time limit nor the portal changes the status.
        let done = run(rotate(&portal).args(["--check", "--timeout", "3"]));
        done.assert_run(
            0,
            "",
            &[
                GOOD_RUN_LOG[0],
                GOOD_RUN_LOG[1],
                &ready_line(&portal, "API key, signed in"),
            ],
        );
        assert!(
            start.elapsed() < Duration::from_secs(7),
            "{:?}\n{done}",
            start.elapsed()
        );
    });
}

#[test]
fn a_refusal_is_3_and_an_outage_until_the_timeout_is_4() {
    let cannot = "the client cannot be checked, but a run may work";
    for (reply, said) in [
        (
            recorded("get-404"),
            "404: no client with this id, or the key's user may not manage it",
        ),
        (
            recorded("patch-403-denied"),
            "403: the role of the key's user does not allow it",
        ),
        (response("405 ", "", ""), &format!("405: {cannot}")),
        (response("501 ", "", ""), &format!("501: {cannot}")),
        (response("401 ", "", ""), "401"),
        (response("302 ", "", ""), "302"),
        (
            response("200 OK", "Content-Type: text/html", ""),
            "200: a web page",
        ),
    ] {
        let said = format!(
            "docspace-rotate: 127.0.0.1 answered [HEAD client] with status {said}; {REFUSED}"
        );
        let script = vec![sign_in(), expect("HEAD client", reply)];
        run_script(script, &["--check"]).fails_with(3, &said);
    }
    let unsigned = expect("HEAD client", recorded("patch-403-unsigned"));
    let script = vec![expect("GET token", recorded("token-403")), unsigned];
    let said = "with status 403, and [GET token] gave no signature (status 403: the key may lack the global scopes); ";
    run_script(script, &["--check"]).fails_with(3, said);
    let busy = expect("HEAD client", response("503 ", "Retry-After: 3600", ""));
    run_script(vec![sign_in(), busy], &["--check"]).fails_with(4, UNCHANGED);
}

#[test]
fn the_output_is_checked_and_left_alone() {
    let folder = Folder::new();
    let files = [
        folder.fifo(),
        folder.file("old", "old\n"),
        folder.path("new"),
    ];
    let [fifo, old, new] = files.each_ref().map(|path| path.to_str().unwrap());
    // Opening the FIFO would wait for a reader.
    for args in [
        &["-o", fifo][..],
        &["-o", old],
        &["-o", new],
        &["--", "/bin/touch", new],
    ] {
        let done = run_script(
            ready([expiry("null")]),
            &[&["--check", "--timeout", "5"], args].concat(),
        );
        assert_eq!(done.status, Some(0), "{done}");
    }
    assert_eq!(folder.names(), ["fifo", "old"]);
    assert_eq!(fs::read_to_string(old).unwrap(), "old\n");

    let portal = MockPortal::new(vec![]);
    run(rotate(&portal)
        .args(["--check", "-o"])
        .arg(folder.path("missing/file")))
    .fails_with(2, "--output");
    assert_eq!(portal.connections(), 0);
}
