//! `--check`: everything that a run needs is seen to be right, and nothing is changed.

use std::fs;

use crate::portal::{
    Act, BEARER, CLIENT, LOG, Request, SIGNATURE, Stand, Step, good_run, http, line, on, reply, signed_in,
};
use crate::run::{self, Folder, rotate, run};

const CHECK: &[&str] = &["--check"];

fn ready(stand: &Stand, how: &str) -> String {
    format!("Ready: {} has client {CLIENT}, by {how}.", stand.url())
}

#[test]
fn an_api_key_signs_in_and_the_client_is_asked_for() {
    let stand = Stand::script(signed_in([on("HEAD client", reply("get-200"))]));
    let log =
        ["[GET token] Status: 200", "[HEAD client] Status: 200", &ready(&stand, "an API key with sign-in")];
    run(rotate(&stand).args(CHECK)).is(0, "", &log);
    let requests = stand.requests();
    assert_eq!(requests[1].target, format!("/api/2.0/clients/{CLIENT}"));
    assert_eq!(requests[1].header("x-signature"), Some(SIGNATURE));
    assert_eq!(stand.connections(), 1);

    let stand = Stand::script(signed_in([on("HEAD client", reply("get-200"))]));
    run(rotate(&stand).args(CHECK).arg("-q")).is(0, "", &[]);
}

#[test]
fn other_ways_in_are_named() {
    let stand = Stand::script(vec![on("HEAD client", reply("get-200"))]);
    let log = ["[HEAD client] Status: 200", &ready(&stand, "a bearer token without sign-in")];
    run(rotate(&stand).args(CHECK).env("DOCSPACE_API_KEY", BEARER)).is(0, "", &log);

    let mut script = signed_in([on("HEAD client", reply("get-200"))]);
    script.insert(0, on("HEAD client", reply("patch-403-unsigned")));
    let stand = Stand::script(script);
    let log = [
        "[HEAD client] Status: 403, so signing in first",
        "[GET token] Status: 200",
        "[HEAD client] Status: 200",
        &ready(&stand, "a bearer token with sign-in"),
    ];
    run(rotate(&stand).args(CHECK).env("DOCSPACE_API_KEY", BEARER)).is(0, "", &log);

    let stand =
        Stand::script(vec![on("GET token", http("404 ", "", "")), on("HEAD client", reply("get-200"))]);
    let done = run(rotate(&stand).args(CHECK));
    assert_eq!(done.status, Some(0), "{done}");
    assert_eq!(done.error(), ready(&stand, "an API key without sign-in"));
}

/// The rest of the body never comes, and is not waited for.
#[test]
fn a_body_in_spite_of_the_method_is_not_read() {
    let head = "HTTP/1.1 200 \r\nContent-Type: application/json\r\nContent-Length: 5000000\r\n\r\n{\"client_secret\":\"";
    let answer = vec![Act::Send(head.into()), Act::Hang];
    let stand = Stand::script(signed_in([Step::Request("HEAD client", answer)]));
    let done = run(rotate(&stand).args(CHECK));
    assert_eq!((done.status, done.stdout.as_str()), (Some(0), ""), "{done}");
}

#[test]
fn refusals_are_3() {
    let page = http("200 OK", "Content-Type: text/html", "<html>Welcome</html>");
    let unchanged = "; the client's secret is unchanged; check the address, CA, key and client id";
    for (answer, said) in [
        (
            reply("get-404"),
            "answered [HEAD client] with status 404: it has no client 27d1f5ac-11da-4592-828d-1bd6e6212e9d that the key's user may manage",
        ),
        (
            reply("patch-403-denied"),
            "answered [HEAD client] with status 403: the role of the key's user does not allow it",
        ),
        (
            http("302 ", "Location: https://new.invalid/x", ""),
            "redirects [HEAD client] (status 302) to https://new.invalid/x: give --url the portal's own address",
        ),
        (page, "answered [HEAD client] with status 200 and a Content-Type that is not a portal's"),
        (
            http("204 ", "", ""),
            "answered [HEAD client] with status 204 and a Content-Type that is not a portal's",
        ),
        (http("401 ", "", ""), "answered [HEAD client] with status 401"),
        (
            http("405 ", "", ""),
            "answered [HEAD client] with status 405: it can't be checked for the client beforehand",
        ),
        (
            http("501 ", "", ""),
            "answered [HEAD client] with status 501: it can't be checked for the client beforehand",
        ),
    ] {
        let goes_on = said.contains("beforehand");
        let stand = Stand::script(signed_in([on("HEAD client", answer.clone())]));
        let refused = run(rotate(&stand).args(CHECK));
        assert_eq!((refused.status, refused.stdout.as_str()), (Some(3), ""), "{refused}");
        assert_eq!(refused.error(), format!("docspace-rotate: 127.0.0.1 {said}{unchanged}"), "{refused}");
        // A run ends there too, but for a portal that can't be asked.
        let mut script = signed_in([on("HEAD client", answer)]);
        if goes_on {
            script.extend(good_run().drain(2..));
        }
        let stand = Stand::script(script);
        let done = run(&mut rotate(&stand));
        match goes_on {
            true => {
                let beforehand = "This portal can't be checked for the client beforehand: continuing.";
                let status = format!("[HEAD client] Status: {}", &said[35..38]);
                done.is(0, &line(), &[LOG[0], &status, beforehand, LOG[2], LOG[3], LOG[4], LOG[5]]);
            }
            false => assert_eq!((done.status, done.error()), (Some(3), refused.error()), "{done}"),
        }
    }
    let stand = Stand::script(vec![on("GET token", reply("token-401"))]);
    let refused = run(rotate(&stand).args(CHECK));
    assert_eq!(refused.status, Some(3), "{refused}");
}

#[test]
fn faults_are_waited_out_and_4_in_the_end() {
    let faults: [fn() -> Act; 4] = [
        || Act::Close,
        || Act::Reset,
        || Act::Send(reply("gateway-502")),
        || Act::Send(b"garbage\r\n\r\n".to_vec()),
    ];
    for fault in faults {
        let stand = Stand::script(signed_in([Step::Request("HEAD client", vec![fault(), Act::Close])]));
        let missed = run(rotate(&stand).args(CHECK).args(["--timeout", "0.9"]));
        assert_eq!((missed.status, missed.stdout.as_str()), (Some(4), ""), "{missed}");
    }
    let stand = Stand::script(signed_in([
        on("HEAD client", http("429 ", "X-RateLimit-Reset: 20000000", "")),
        Step::Request("HEAD client", vec![Act::Close]),
        on("HEAD client", reply("get-200")),
    ]));
    let done = run(rotate(&stand).args(CHECK));
    assert_eq!(done.status, Some(0), "{done}");
    assert!(done.stderr.contains("[HEAD client] Status: 429, trying again in 0.02 s\n"), "{done}");
    assert!(done.stderr.contains("[HEAD client] No answer: "), "{done}");
}

#[test]
fn the_output_is_tested_and_left_as_it_was() {
    let folder = Folder::new();
    let old = folder.file("old", "old\n");
    for file in [&old, &folder.path("new")] {
        let stand = Stand::script(signed_in([on("HEAD client", reply("get-200"))]));
        let done = run(rotate(&stand).args(CHECK).arg("--output").arg(file));
        assert_eq!(done.status, Some(0), "{done}");
    }
    assert_eq!(folder.names(), ["old"]);
    assert_eq!(fs::read_to_string(&old).unwrap(), "old\n");
    let stand = Stand::script(vec![]);
    let bad = folder.path("missing/file");
    let refused = run(rotate(&stand).args(CHECK).arg("--output").arg(bad));
    assert_eq!(refused.status, Some(2), "{refused}");
    assert_eq!(stand.connections(), 0);
}

#[test]
fn the_key_file_is_no_output() {
    let folder = Folder::new();
    let key = folder.file("key", crate::portal::KEY);
    let stand = Stand::script(vec![]);
    let mut command = rotate(&stand);
    command.env_remove("DOCSPACE_API_KEY").env("DOCSPACE_API_KEY_FILE", &key);
    let refused = run(command.args(CHECK).arg("--output").arg(&key));
    assert_eq!(refused.status, Some(2), "{refused}");
    assert_eq!(stand.connections(), 0);
}

#[test]
fn a_signal_removes_nothing_that_came_to_the_output_later() {
    let folder = Folder::new();
    let file = folder.path("file");
    let stand = Stand::script(signed_in([Step::Request("HEAD client", vec![Act::Hang])]));
    let mut command = rotate(&stand);
    let child = run::start(command.args(CHECK).arg("-q").arg("--output").arg(&file));
    stand.wait_for(2);
    fs::write(&file, "").unwrap();
    run::send(&child, libc::SIGTERM);
    let done = run::finish(&command, child);
    assert_eq!(done.status, Some(143), "{done}");
    assert!(file.exists());
}

#[test]
fn a_fifo_is_left_alone() {
    let folder = Folder::new();
    let fifo = folder.fifo();
    let stand = Stand::script(signed_in([on("HEAD client", reply("get-200"))]));
    // Nobody reads it: opened, it would be waited for.
    let done = run(rotate(&stand).args(CHECK).args(["--timeout", "5"]).arg("--output").arg(fifo));
    assert_eq!(done.status, Some(0), "{done}");
}

#[test]
fn only_safe_requests_are_made() {
    let stand = Stand::real(None);
    run(rotate(&stand).args(CHECK).arg("-q")).is(0, "", &[]);
    let names: Vec<String> = stand.requests().iter().map(Request::name).collect();
    assert_eq!(names, ["GET token", "HEAD client"]);
}
