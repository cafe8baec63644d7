//! `--verify`: checks that the portal accepts the new secret.

use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use crate::mock::*;
use crate::run::*;

/// Expects a good run, and reacts to the introspection like this.
fn asked(action: Action) -> Vec<Expect> {
    good_run()
        .into_iter()
        .chain([expect_then("POST introspect", [action])])
        .collect()
}

#[test]
fn a_live_secret_is_0() {
    let portal = MockPortal::new(asked(Action::Send(recorded("introspect-200"))));
    let log = [
        &GOOD_RUN_LOG[..],
        &["[POST introspect] Status: 200", "The new secret is live."],
    ]
    .concat();
    run(rotate(&portal).arg("--verify")).assert_run(0, &secret_line(), &log);
    let request = portal.requests().pop().unwrap();
    assert_eq!(
        (request.connection, &*request.target),
        (2, "/oauth2/introspect")
    );
    assert_eq!(
        request.body,
        format!("client_id={CLIENT}&client_secret={SECRET}&token=docspace-rotate")
    );
    assert_eq!(
        request.header("content-type"),
        Some("application/x-www-form-urlencoded")
    );
    assert_eq!(
        (
            request.header("authorization"),
            request.header("x-signature")
        ),
        (None, None)
    );
}

#[test]
fn is_retried_and_works_below_a_path_and_without_the_revoke() {
    let patch = expect("PATCH regenerate", json(r#"{"client_secret":"a+b&c=d"}"#));
    let busy = recorded("patch-429");
    let faults = [
        expect_then("POST introspect", [Action::Close]),
        expect("POST introspect", busy),
    ];
    let portal = MockPortal::new(ready(
        [patch].into_iter().chain(faults).chain([introspect()]),
    ));
    let url = format!("{}/docs", portal.url());
    let args = ["-q", "--verify", "--only", "regenerate", "--url", &url];
    run(rotate(&portal).args(args)).assert_run(0, "a+b&c=d\n", &[]);
    let request = portal.requests().pop().unwrap();
    assert_eq!(request.target, "/docs/oauth2/introspect");
    assert!(
        request.body.contains("&client_secret=a%2Bb%26c%3Dd&"),
        "{request:?}"
    );
}

#[test]
fn a_dead_secret_is_8_after_10_s_and_says_what_to_do() {
    let error = "docspace-rotate: 127.0.0.1:PORT rejects the new secret: another run or a late PATCH has replaced it, or the app is disabled, or the portal does not know it yet; \
        the new secret was delivered, but not verified; check that the client can sign in with it, and if it cannot, run again";
    let log = [
        &GOOD_RUN_LOG[..],
        &["[POST introspect] Status: 401"; 5],
        &[error],
    ]
    .concat();
    let mut script = good_run();
    for _ in 0..5 {
        script.push(expect("POST introspect", recorded("introspect-401")));
    }
    run_script(script, &["--verify"]).assert_run(8, &secret_line(), &log);
}

#[test]
fn a_portal_that_cannot_be_asked_is_8_and_says_to_check() {
    let page = |status: &str| {
        Action::Send(response(
            status,
            "Content-Type: text/html",
            "<html>x</html>",
        ))
    };
    let text = |text: &str| Action::Send(response("400 ", "Content-Type: text/plain", text));
    let no_reply = "200: not an introspection response; ";
    let busy = |status, body| Action::Send(response(status, "Retry-After: 3600", body));
    let no_time = ", and the next attempt in 3600s would exceed the time limit; ";
    let moved = response("302 ", "Location: /login", "");
    for (action, said) in [
        (
            page("404 Not Found"),
            "answered [POST introspect] with status 404",
        ),
        (page("200 OK"), "200: a web page, not an API reply"),
        (
            page("401 Unauthorized"),
            "401: a web page, not an API reply",
        ),
        (Action::Send(json("{}")), no_reply),
        (
            busy("200 OK", "{\"active\""),
            &format!("200: truncated JSON{no_time}"),
        ),
        (
            busy("401 ", "{\"error\""),
            &format!("401: truncated JSON{no_time}"),
        ),
        (busy("503 ", ""), &format!("with status 503{no_time}")),
        (
            Action::Send(moved),
            "answered [POST introspect] with status 302: it redirects to /login",
        ),
        (
            text("closed for today"),
            "with status 400 (closed for today)",
        ),
        (
            text(&format!("{SECRET} is bad")),
            "with status 400 ([hidden])",
        ),
    ] {
        let done = run_script(asked(action), &["--verify"]);
        assert_eq!(
            (done.status, &done.stdout),
            (Some(8), &secret_line()),
            "{done}"
        );
        assert!(done.error().contains(said), "{said}\n{done}");
        let state = "; the new secret was delivered, but not verified; check that the client can sign in with it, and if it cannot, run again";
        assert!(done.error().ends_with(state), "{done}");
    }
}

/// Each reply comes after the time limit.
#[test]
fn has_time_after_a_slow_revoke() {
    let late = |reply| {
        [
            Action::Sleep(Duration::from_millis(2600)),
            Action::Send(recorded(reply)),
        ]
    };
    let delete = expect_then("DELETE revoke", late("delete-200"));
    let script = ready([
        regenerate(),
        delete,
        expect_then("POST introspect", late("introspect-200")),
    ]);
    run_script(script, &["--quiet", "--verify", "--timeout", "2.5"]).assert_run(
        0,
        &secret_line(),
        &[],
    );
}

/// Both runs get status 200, and the secret of the first is dead.
#[test]
fn of_two_runs_at_once_the_first_is_told() {
    let mut patches = 0;
    let portal = MockPortal::answering(None, move |request| match request.name().as_str() {
        "GET token" => recorded("token-200"),
        "HEAD client" => recorded("get-200"),
        "PATCH regenerate" => {
            patches += 1;
            json(format!(r#"{{"client_secret":"secret-{patches}"}}"#))
        }
        "DELETE revoke" => recorded("delete-200"),
        _ if request
            .body
            .contains(&format!("client_secret=secret-{patches}&")) =>
        {
            recorded("introspect-200")
        }
        _ => recorded("introspect-401"),
    });
    // The first run cannot deliver its secret before the second is done.
    let (mut reader, writer) = full_pipe();
    let mut first = rotate(&portal);
    let child = first
        .args(["-q", "--verify"])
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    portal.wait_for(3);
    run(rotate(&portal).args(["-q", "--verify"])).assert_run(0, "secret-2\n", &[]);
    drop(first);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert!(text.ends_with("xsecret-1\n"));
    finish(&rotate(&portal), child).assert_run(
        8,
        "",
        &["docspace-rotate: 127.0.0.1:PORT rejects the new secret: …"],
    );
}
