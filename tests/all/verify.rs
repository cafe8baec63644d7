//! `--verify`: whether the secret that was handed over is the live one.

use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use crate::portal::{Act, CLIENT, LOG, SECRET, Stand, Step, good_run, http, json, line, looked, on, reply};
use crate::run::{self, Run, rotate, run};

fn verified(acts: Vec<Act>) -> (Stand, Run) {
    let mut script = good_run();
    script.push(Step::Request("POST introspect", acts));
    let stand = Stand::script(script);
    let done = run(rotate(&stand).args(["--verify", "--timeout", "0.9"]));
    (stand, done)
}

#[test]
fn a_live_secret_is_0() {
    let (stand, done) = verified(vec![Act::Send(reply("introspect-200"))]);
    let log = [&LOG[..], &["[POST introspect] Status: 200", "The new secret is live."]].concat();
    done.is(0, &line(), &log);
    let asked = stand.requests().pop().unwrap();
    assert_eq!(asked.target, "/oauth2/introspect");
    assert_eq!(asked.body, format!("client_id={CLIENT}&client_secret={SECRET}&token=docspace-rotate"));
    assert_eq!(asked.header("content-type"), Some("application/x-www-form-urlencoded"));
    assert_eq!(asked.header("content-length"), Some(asked.body.len().to_string().as_str()));
    assert_eq!((asked.header("authorization"), asked.header("x-signature")), (None, None));
    assert_eq!(stand.connections(), 1);
}

#[test]
fn it_goes_below_the_address_and_after_the_hand_over_alone_too() {
    let stand = Stand::script(looked([
        on("PATCH regenerate", json(r#"{"client_secret":"a+b&c=d"}"#)),
        on("POST introspect", reply("introspect-200")),
    ]));
    let url = format!("{}/docs", stand.url());
    run(rotate(&stand).args(["-q", "--verify", "--only", "regenerate", "--url", &url])).is(
        0,
        "a+b&c=d\n",
        &[],
    );
    let asked = stand.requests().pop().unwrap();
    assert_eq!(asked.target, "/docs/oauth2/introspect");
    assert!(asked.body.contains("&client_secret=a%2Bb%26c%3Dd&"), "{asked:?}");
}

#[test]
fn a_dead_secret_is_8() {
    let (_stand, done) = verified(vec![Act::Send(reply("introspect-401"))]);
    let error = "docspace-rotate: 127.0.0.1 rejects the new secret: another run or a late PATCH replaced it; \
        the new secret is handed over, but not verified; run again, one run at a time";
    let log = [&LOG[..], &["[POST introspect] Status: 401", error]].concat();
    done.is(8, &line(), &log);
}

#[test]
fn what_could_not_be_asked_is_8() {
    let html = |status: &str| http(status, "Content-Type: text/html", "<html>x</html>");
    for (acts, said) in [
        (vec![Act::Send(html("404 Not Found"))], "answered [POST introspect] with status 404; "),
        (
            vec![Act::Send(html("200 OK"))],
            "answered [POST introspect] with status 200, which is not a reply to an introspection; ",
        ),
        (
            vec![Act::Send(html("401 Unauthorized"))],
            "with status 401, which is not a reply to an introspection; ",
        ),
        (vec![Act::Send(json("{}"))], "with status 200, which is not a reply to an introspection; "),
        (
            vec![Act::Send(json("x".repeat(70_000)))],
            "with status 200 and more than 64 KiB, which is not a reply to an introspection; ",
        ),
        (
            vec![Act::Send(http("302 ", "Location: /login", ""))],
            "redirects [POST introspect] (status 302) to /login",
        ),
        (vec![Act::Send(reply("delete-503"))], "with status 503, and the next attempt, in 1 s, would exceed"),
        (vec![Act::Close], "gave no usable answer to [POST introspect]: "),
        (vec![Act::Reset], "gave no usable answer to [POST introspect]: "),
        (vec![Act::Send(http("400 ", "", format!("{SECRET} is bad")))], "with status 400; "),
    ] {
        let (_stand, done) = verified(acts);
        assert_eq!((done.status, done.stdout.as_str()), (Some(8), line().as_str()), "{done}");
        assert!(done.error().contains(said), "{said}\n{done}");
        let end = "; the new secret is handed over, but not verified; run again, one run at a time";
        assert!(done.error().ends_with(end), "{done}");
    }
}

#[test]
fn faults_are_waited_out() {
    let mut script = good_run();
    script.extend([
        Step::Request("POST introspect", vec![Act::Close]),
        on("POST introspect", http("429 ", "X-RateLimit-Reset: 20000000", "")),
        on("POST introspect", reply("introspect-200")),
    ]);
    let stand = Stand::script(script);
    let done = run(rotate(&stand).arg("--verify"));
    assert_eq!((done.status, done.stdout.as_str()), (Some(0), line().as_str()), "{done}");
}

#[test]
fn after_a_failed_revoke_it_is_not_asked() {
    let mut script = good_run();
    script[3] = on("DELETE revoke", reply("delete-403-unsigned"));
    let stand = Stand::script(script);
    let done = run(rotate(&stand).arg("--verify"));
    assert_eq!((done.status, done.stdout.as_str()), (Some(5), line().as_str()), "{done}");
}

#[test]
fn a_signal_while_it_is_asked_names_it() {
    let mut script = good_run();
    script.push(Step::Request("POST introspect", vec![Act::Hang]));
    let stand = Stand::script(script);
    let mut command = rotate(&stand);
    let child = run::start(command.args(["-q", "--verify"]));
    stand.wait_for(5);
    run::send(&child, libc::SIGTERM);
    let done = run::finish(&command, child);
    let error = "docspace-rotate: ended by SIGTERM during [POST introspect] at 127.0.0.1; the new secret is handed over, but not verified; …";
    done.is(143, &line(), &[error]);
}

/// The race that it is for: both runs are told 200, and the secret of the faster is dead.
#[test]
fn of_two_runs_at_once_the_faster_is_told() {
    let mut patches = 0;
    let stand = Stand::answering(None, move |request| match request.name().as_str() {
        "GET token" => reply("token-200"),
        "HEAD client" => reply("get-200"),
        "PATCH regenerate" => {
            patches += 1;
            json(format!(r#"{{"client_secret":"secret-{patches}"}}"#))
        }
        "DELETE revoke" => reply("delete-200"),
        _ if request.body.contains(&format!("client_secret=secret-{patches}&")) => reply("introspect-200"),
        _ => reply("introspect-401"),
    });
    // The first has its secret, and can't hand it over before the second is done.
    let (mut reader, writer) = run::full_pipe();
    let mut faster = rotate(&stand);
    let child = faster.args(["-q", "--verify"]).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    stand.wait_for(3);
    run(rotate(&stand).args(["-q", "--verify"])).is(0, "secret-2\n", &[]);
    drop(faster);
    let mut text = Vec::new();
    while !text.ends_with(b"secret-1\n") {
        let mut piece = [0; 4096];
        let length = reader.read(&mut piece).unwrap();
        text.extend_from_slice(&piece[..length]);
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(8));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("rejects the new secret: another run or a late PATCH"), "{error}");
}

#[test]
fn the_proof_has_its_attempt_where_the_time_is_up() {
    let late = |bytes| vec![Act::Sleep(Duration::from_secs(6)), Act::Send(bytes)];
    let mut script = good_run();
    script[3] = Step::Request("DELETE revoke", late(reply("delete-200")));
    script.push(Step::Request("POST introspect", late(reply("introspect-200"))));
    let stand = Stand::script(script);
    run(rotate(&stand).args(["-q", "--verify", "--timeout", "1"])).is(0, &line(), &[]);
}
