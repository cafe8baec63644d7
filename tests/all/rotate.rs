//! The job through the real program: what is asked of the portal, in which order, and what is said of it.

use std::fs;
use std::process::Stdio;

use crate::portal::{
    Act, BEARER, CLIENT, KEY, LOG, Request, SECRET, SIGNATURE, Stand, Step, good_run, held, http, json, line,
    look, looked, on, reply, signed_in,
};
use crate::run::{self, rotate, run};

fn names(stand: &Stand) -> Vec<String> {
    stand.requests().iter().map(Request::name).collect()
}

#[test]
fn an_api_key_signs_in_looks_and_does_both_calls_on_one_connection() {
    let stand = Stand::script(good_run());
    run(&mut rotate(&stand)).is(0, &line(), &LOG);

    let requests = stand.requests();
    let targets: Vec<&str> = requests.iter().map(|r| r.target.as_str()).collect();
    let client = format!("/api/2.0/clients/{CLIENT}");
    let calls = [format!("{client}/regenerate"), format!("{client}/revoke")];
    assert_eq!(targets, ["/api/2.0/security/oauth2/token", &client, &calls[0], &calls[1]]);
    for request in &requests {
        assert_eq!(request.connection, 1);
        assert_eq!(request.header("authorization"), Some(format!("Bearer {KEY}").as_str()));
        let signature = (request.name() != "GET token").then_some(SIGNATURE);
        assert_eq!(request.header("x-signature"), signature);
        let agent = concat!("docspace-rotate/", env!("CARGO_PKG_VERSION"));
        assert_eq!(request.header("user-agent"), Some(agent));
        assert_eq!(request.header("accept"), Some("application/json"));
        assert_eq!(request.header("accept-encoding"), None);
        assert_eq!(request.header("host"), Some(stand.at.to_string().as_str()));
        let length = (request.method == "PATCH").then_some("0");
        assert_eq!(request.header("content-length"), length);
        assert_eq!(request.header("transfer-encoding"), None);
        assert_eq!(request.body, "");
    }
}

#[test]
fn another_bearer_looks_and_does_the_two_documented_calls_and_no_more() {
    let stand = Stand::script(vec![
        look(),
        on("PATCH regenerate", reply("patch-200")),
        on("DELETE revoke", reply("delete-200")),
    ]);
    run(rotate(&stand).env("DOCSPACE_API_KEY", BEARER)).is(0, &line(), &LOG[1..]);
    for request in stand.requests() {
        assert_eq!(request.header("authorization"), Some(format!("Bearer {BEARER}").as_str()));
        assert_eq!(request.header("x-signature"), None);
    }
    assert_eq!(stand.connections(), 1);
}

#[test]
fn another_bearer_signs_in_when_a_call_is_refused() {
    for refusal in [http("401 Unauthorized", "", ""), reply("patch-403-unsigned"), reply("patch-429")] {
        let status = String::from_utf8_lossy(&refusal[9..12]).into_owned();
        let mut steps = good_run();
        steps.insert(0, on("HEAD client", refusal.clone()));
        let stand = Stand::script(steps);
        let refused = format!("[HEAD client] Status: {status}, so signing in first");
        let log = [&[refused.as_str()][..], &LOG].concat();
        run(rotate(&stand).env("DOCSPACE_API_KEY", BEARER)).is(0, &line(), &log);
        let signed: Vec<bool> = stand.requests().iter().map(|r| r.header("x-signature").is_some()).collect();
        assert_eq!(signed, [false, false, true, true, true]);
        assert_eq!(stand.connections(), 1);

        // The look may be let through unsigned, and the PATCH not.
        let mut steps = good_run();
        steps.remove(1);
        steps.splice(0..0, [look(), on("PATCH regenerate", refusal)]);
        let stand = Stand::script(steps);
        let refused = format!("[PATCH regenerate] Status: {status}, so signing in first");
        let log = [LOG[1], &refused, LOG[0], LOG[2], LOG[3], LOG[4], LOG[5]];
        run(rotate(&stand).env("DOCSPACE_API_KEY", BEARER)).is(0, &line(), &log);
    }
}

#[test]
fn another_bearer_may_be_refused_only_at_the_revoke() {
    let stand = Stand::script(vec![
        look(),
        on("PATCH regenerate", reply("patch-200")),
        on("DELETE revoke", reply("delete-403-unsigned")),
        on("GET token", reply("token-200")),
        on("DELETE revoke", reply("delete-200")),
    ]);
    run(rotate(&stand).env("DOCSPACE_API_KEY", BEARER)).is(
        0,
        &line(),
        &[LOG[1], LOG[2], LOG[3], "[DELETE revoke] Status: 403, so signing in first", LOG[0], LOG[4], LOG[5]],
    );
}

#[test]
fn a_signed_call_that_is_refused_is_refused() {
    for key in [KEY, BEARER] {
        let mut steps = looked([on("PATCH regenerate", reply("patch-403-denied"))]);
        if key == BEARER {
            steps.insert(0, on("HEAD client", reply("patch-403-unsigned")));
        }
        let stand = Stand::script(steps);
        let refused = run(rotate(&stand).env("DOCSPACE_API_KEY", key));
        assert_eq!(refused.status, Some(3), "{refused}");
        assert_eq!(refused.stdout, "", "{refused}");
        let error = "docspace-rotate: 127.0.0.1 answered [PATCH regenerate] with status 403 (Forbidden: Access denied); \
            the client's secret is unchanged; check the address, CA, key and client id";
        assert_eq!(refused.error(), error);
    }
}

#[test]
fn a_refused_sign_in_ends_the_run() {
    let moved = http("302 Found", "Location: https://user@new.example/api?token=hush#x", "");
    for (answer, said) in [
        (reply("token-401"), "answered [GET token] with status 401: the key is wrong or no longer valid"),
        (
            reply("token-403"),
            "answered [GET token] with status 403: the key lacks global rights to read and write",
        ),
        (
            moved,
            "redirects [GET token] (status 302) to https://new.example/api: give --url the portal's own address",
        ),
    ] {
        let status = format!("[GET token] Status: {}", String::from_utf8_lossy(&answer[9..12]));
        let stand = Stand::script(vec![on("GET token", answer)]);
        let error = format!(
            "docspace-rotate: 127.0.0.1 {said}; the client's secret is unchanged; check the address, CA, key and client id"
        );
        run(&mut rotate(&stand)).is(3, "", &[&status, &error]);
    }
}

#[test]
fn a_portal_without_sign_in_gets_the_key_alone() {
    for answer in [
        http("404 Not Found", "", ""),
        http("405 Method Not Allowed", "", ""),
        http("501 Not Implemented", "", ""),
        http("200 OK", "Content-Type: text/html", "<html>Welcome</html>"),
        http("200 OK", "", ""),
        http("201 Created", "", format!(r#"{{"response":"{SIGNATURE}"}}"#)),
        json(r#"{"response":"no-jwt"}"#),
        json(r#"{"response":{"x":1}}"#),
    ] {
        let status = format!("[GET token] Status: {}", String::from_utf8_lossy(&answer[9..12]));
        let stand = Stand::script(vec![
            on("GET token", answer),
            look(),
            on("PATCH regenerate", reply("patch-200")),
            on("DELETE revoke", reply("delete-200")),
        ]);
        let alone = "This portal has no sign-in: continuing with the key alone.";
        run(&mut rotate(&stand)).is(0, &line(), &[&status, alone, LOG[1], LOG[2], LOG[3], LOG[4], LOG[5]]);
        assert!(stand.requests().iter().all(|r| r.header("x-signature").is_none()));
    }
}

#[test]
fn no_call_signs_in_twice_and_both_answers_are_named() {
    let error = "docspace-rotate: 127.0.0.1 answered [HEAD client] with status 403, and [GET token] with status 404; \
        the client's secret is unchanged; check the address, CA, key and client id";
    for (name, before) in [("HEAD client", vec![]), ("PATCH regenerate", vec![look()])] {
        let error = error.replace("HEAD client", name);
        let unsigned = || on(name, reply("patch-403-unsigned"));
        let mut script = vec![on("GET token", http("404 Not Found", "", ""))];
        script.extend(before);
        script.push(unsigned());
        let stand = Stand::script(script);
        let refused = run(&mut rotate(&stand));
        assert_eq!((refused.status, refused.error()), (Some(3), error.as_str()), "{refused}");

        let mut script = vec![unsigned(), on("GET token", reply("token-401"))];
        if name == "PATCH regenerate" {
            script.insert(0, look());
        }
        let stand = Stand::script(script);
        let refused = run(rotate(&stand).env("DOCSPACE_API_KEY", BEARER));
        let error = error.replace("404", "401");
        assert_eq!((refused.status, refused.error()), (Some(3), error.as_str()), "{refused}");
    }
}

#[test]
fn a_refused_regenerate_revokes_nothing() {
    for (answer, said) in [
        (
            reply("patch-404-unknown"),
            "404 (Not Found: Client with id 00000000-0000-4000-8000-00000000dead for tenant 1 was not found)",
        ),
        (
            reply("patch-404-malformed"),
            "404 (Not Found: Client with id your-client-id was not found. Invalid client id format)",
        ),
        (
            reply("patch-400-concurrent"),
            "400 (Bad Request: Could not regenerate secret for client 27d1f5ac-11da-4592-828d-1bd6e6212e9d due to concurrent access)",
        ),
        (reply("patch-403-unsigned"), "403"),
        (
            http("400 ", "", r#"{"reason":"older servers say this","client_secret":"hush"}"#),
            "400 (older servers say this)",
        ),
        (http("410 Gone", "", "<p>\u{1b}[31mgone\u{7}\r\n</p>"), "410"),
        (http("410 Gone", "", r#"{"title":"\u001b[31mgone\u0007\r\n."}"#), r"410 (\u{1b}[31mgone\u{7}\r\n.)"),
        (http("400 ", "", format!("you sent {KEY} and {SIGNATURE}")), "400"),
        (
            http("400 ", "", format!(r#"{{"title":"Bad","detail":"you sent {SIGNATURE}"}}"#)),
            "400 (Bad: [hidden])",
        ),
        (http("400 ", "", format!(r#"{{"title":"you sent {KEY}"}}"#)), "400 ([hidden])"),
        (http("400 ", "", r#"{"client_secret":"hush"#), "400"),
    ] {
        let stand = Stand::script(looked([on("PATCH regenerate", answer)]));
        let mut command = rotate(&stand);
        let refused = run(&mut command);
        let status = format!("[PATCH regenerate] Status: {}", &said[..3]);
        let error = format!(
            "docspace-rotate: 127.0.0.1 answered [PATCH regenerate] with status {said}; the client's secret is unchanged; check the address, CA, key and client id"
        );
        refused.is(3, "", &[LOG[0], LOG[1], &status, &error]);
        assert!(!refused.stderr.contains("hush"), "{refused}");
    }
}

#[test]
fn a_redirect_is_not_followed_and_its_target_is_named() {
    let other = Stand::script(vec![]);
    let location = format!("Location: {}/api/2.0/x?key=hush", other.url());
    let stand = Stand::script(looked([on("PATCH regenerate", http("307 Moved", &location, "moved"))]));
    let refused = run(&mut rotate(&stand));
    let error = format!(
        "docspace-rotate: 127.0.0.1 redirects [PATCH regenerate] (status 307) to {}/api/2.0/x: give --url the portal's own address; \
        the client's secret is unchanged; check the address, CA, key and client id",
        other.url()
    );
    refused.is(3, "", &[LOG[0], LOG[1], "[PATCH regenerate] Status: 307", &error]);
    assert_eq!(other.connections(), 0);
}

#[test]
fn a_refused_revoke_is_5_and_the_secret_is_handed_over() {
    let stand = Stand::script(looked([
        on("PATCH regenerate", reply("patch-200")),
        on("DELETE revoke", reply("delete-403-unsigned")),
    ]));
    run(&mut rotate(&stand)).is(5, &line(), &[
        LOG[0], LOG[1], LOG[2], LOG[3],
        "[DELETE revoke] Status: 403",
        "docspace-rotate: 127.0.0.1 answered [DELETE revoke] with status 403; the new secret is handed over, \
            but the consent may still be in force; run again with --only revoke",
    ]);
}

#[test]
fn a_short_secret_echoed_by_a_refused_revoke_is_not_shown() {
    let stand = Stand::script(looked([
        on("PATCH regenerate", json(r#"{"client_secret":"pass-one"}"#)),
        on("DELETE revoke", http("400 ", "", r#"{"title":"it is Pass-One"}"#)),
    ]));
    let kept = run(&mut rotate(&stand));
    assert_eq!(kept.status, Some(5), "{kept}");
    assert!(kept.error().contains(" ([hidden]); "), "{kept}");
}

#[test]
fn a_secret_echoed_by_a_refused_revoke_is_not_shown() {
    let stand = Stand::script(looked([
        on("PATCH regenerate", reply("patch-200")),
        on("DELETE revoke", http("400 ", "", format!(r#"{{"detail":"the secret is {SECRET}"}}"#))),
    ]));
    let kept = run(&mut rotate(&stand));
    assert_eq!(kept.status, Some(5), "{kept}");
    assert!(kept.error().contains(" ([hidden]); "), "{kept}");
}

#[test]
fn an_answer_without_a_secret_is_7_and_nothing_is_revoked() {
    let wide = format!(r#"{{"client_secret":"{}"}}"#, "s".repeat(1025));
    for (answer, why) in [
        (json("<html>"), "and a body that is not JSON"),
        (json(r#"{"client_secret":"LQn1uOTJsTqgOLJO1oB2ztSqw5IoxNuP8zQa""#), "and a body that is not JSON"),
        (json("{}"), "and no client_secret"),
        (json(r#"{"client_secret":""}"#), "and an unusable client_secret"),
        (json(r#"{"client_secret":"two\nlines"}"#), "and an unusable client_secret"),
        (json(r#"{"client_secret":7}"#), "and an unusable client_secret"),
        (json(wide), "and an unusable client_secret"),
    ] {
        let stand = Stand::script(looked([on("PATCH regenerate", answer)]));
        let error = format!(
            "docspace-rotate: 127.0.0.1 answered [PATCH regenerate] with status 200 {why}; the client may or may not \
            have a new secret; treat the old secret as revoked and run again in a few minutes"
        );
        run(&mut rotate(&stand)).is(7, "", &[LOG[0], LOG[1], LOG[2], &error]);
    }
    for (answer, status) in
        [(reply("patch-500"), "500"), (reply("gateway-502"), "502"), (http("204 ", "", ""), "204")]
    {
        let stand = Stand::script(looked([on("PATCH regenerate", answer)]));
        let unknown = run(&mut rotate(&stand));
        assert_eq!((unknown.status, unknown.stdout.as_str()), (Some(7), ""), "{unknown}");
        assert!(unknown.error().contains(&format!("with status {status}")), "{unknown}");
    }
}

#[test]
fn a_portal_that_is_not_there_is_4() {
    let stand = Stand::script(vec![]);
    let missed = run(rotate(&stand).args(["--timeout", "0.2", "--url", "http://127.0.0.1:1"]));
    missed.is(4, "", &["docspace-rotate: 127.0.0.1 was not reached for [GET token]: Connection refused, and the next attempt, in 1 s, would exceed the time limit of 0.2 s; the client's secret is unchanged; run again later"]);
}

#[cfg(target_os = "linux")]
#[test]
fn the_program_stays_on_one_thread() {
    let (waiting, step) = held("PATCH regenerate", reply("patch-200"));
    let mut steps = good_run();
    steps[2] = step;
    let stand = Stand::script(steps);
    let command = &mut rotate(&stand);
    // A name, so that there is a look-up, and a limit, which could start a thread for it.
    command.args(["--timeout", "60", "--url", &format!("http://localhost:{}", stand.at.port())]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    stand.wait_for(3);
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    drop(waiting);
    run::finish(command, child).is(0, &line(), &LOG);
    assert!(status.contains("\nThreads:\t1\n"), "{status}");
}

#[test]
fn the_base_path_stands_before_every_path() {
    let stand = Stand::script(good_run());
    run(rotate(&stand).args(["-q", "--url", &format!("{}/docs/", stand.url())])).is(0, &line(), &[]);
    assert!(stand.requests().iter().all(|r| r.target.starts_with("/docs/api/2.0/")));
}

#[test]
fn only_regenerate() {
    let stand = Stand::script(looked([on("PATCH regenerate", reply("patch-200"))]));
    run(rotate(&stand).args(["--only", "regenerate"])).is(0, &line(), &LOG[..4]);
}

#[test]
fn only_revoke() {
    let stand = Stand::script(signed_in([on("DELETE revoke", reply("delete-200"))]));
    run(rotate(&stand).args(["--only", "revoke"])).is(0, "", &[LOG[0], LOG[4], LOG[5]]);
    assert_eq!(names(&stand), ["GET token", "DELETE revoke"]);

    let stand = Stand::script(signed_in([on("DELETE revoke", reply("delete-403-unsigned"))]));
    let refused = run(rotate(&stand).args(["--only", "revoke"]));
    assert_eq!((refused.status, refused.stdout.as_str()), (Some(3), ""), "{refused}");
}

#[test]
fn quiet_leaves_errors_alone_on_stderr() {
    let stand = Stand::script(good_run());
    run(rotate(&stand).arg("--quiet")).is(0, &line(), &[]);
    let stand = Stand::script(vec![on("GET token", reply("token-401"))]);
    run(rotate(&stand).arg("-q")).is(
        3,
        "",
        &["docspace-rotate: 127.0.0.1 answered [GET token] with status 401: …"],
    );
}

#[test]
fn a_wrapped_reply_gives_the_same_secret() {
    let wrapped = format!(r#"{{"response":{{"client_secret":"{SECRET}"}},"count":1,"status":0}}"#);
    let kind = "Content-Type: application/json; charset=utf-8";
    for answer in [json(&wrapped), http("200 OK", kind, format!(" {wrapped}\r\n"))] {
        let stand =
            Stand::script(looked([on("PATCH regenerate", answer), on("DELETE revoke", reply("delete-200"))]));
        run(rotate(&stand).arg("-q")).is(0, &line(), &[]);
    }
}

#[test]
fn json_is_the_object_on_one_line_without_a_character_that_a_terminal_obeys() {
    let wrapped = format!(
        "{{\"response\":\n{{\"client_secret\":\n\"{SECRET}\",\"note\":\"\u{9b}31m \u{1f600} é \\u001b\"}},\"count\":1}}"
    );
    for (answer, object) in [
        (reply("patch-200"), format!(r#"{{"client_secret":"{SECRET}"}}"#)),
        (
            json(wrapped),
            format!(r#"{{"client_secret":"{SECRET}","note":"\u009b31m \ud83d\ude00 \u00e9 \u001b"}}"#),
        ),
    ] {
        let stand =
            Stand::script(looked([on("PATCH regenerate", answer), on("DELETE revoke", reply("delete-200"))]));
        run(rotate(&stand).arg("--json")).is(0, &format!("{object}\n"), &LOG);
    }
}

#[test]
fn a_new_secret_in_an_error_is_not_shown() {
    let quoted = r#"{"title":"E","detail":"not published: {\"client_secret\":\"LQn1uOTJsTqgOLJO1oB2ztSqw5IoxNuP8zQa\"}"}"#;
    for (status, body) in [
        ("500", format!("Response(clientId={CLIENT}, clientSecret={SECRET})")),
        ("502", format!("<html>secret: {}</html>", &SECRET[..12])),
        ("500", quoted.to_owned()),
    ] {
        let stand = Stand::script(looked([on("PATCH regenerate", http(status, "", body))]));
        let unknown = run(&mut rotate(&stand));
        assert_eq!(unknown.status, Some(7), "{unknown}");
        assert!(unknown.error().contains(&format!("with status {status}; ")), "{unknown}");
    }
}

#[test]
fn half_a_key_in_half_a_reply_is_not_shown() {
    let half = &KEY[..KEY.len() - 1];
    let cut = format!("HTTP/1.1 401 \r\nContent-Length: 1000\r\n\r\nbad key {half}");
    let long = http("401 ", "", format!("{}{KEY}", " ".repeat(64 * 1024 - 20)));
    for answer in [cut.into_bytes(), long] {
        let stand = Stand::script(vec![Step::Request("GET token", vec![Act::Send(answer), Act::Close])]);
        let refused = run(&mut rotate(&stand));
        assert_eq!(refused.status, Some(3), "{refused}");
        assert!(!refused.stderr.contains(&KEY[..12]), "{refused}");
    }
}

#[test]
fn a_page_that_answers_the_revoke_is_no_success() {
    for page in ["<html>login</html>", r#"{"error":{"message":"denied"},"statusCode":403}"#] {
        let stand = Stand::script(signed_in([on("DELETE revoke", http("200 OK", "", page))]));
        let refused = run(rotate(&stand).args(["--only", "revoke"]));
        let error = "docspace-rotate: 127.0.0.1 answered [DELETE revoke] with status 200 and a body that is not a portal's; …";
        refused.is(3, "", &[LOG[0], LOG[4], error]);
        let mut script = good_run();
        script[3] = on("DELETE revoke", http("200 OK", "", page));
        let stand = Stand::script(script);
        run(&mut rotate(&stand)).is(5, &line(), &[LOG[0], LOG[1], LOG[2], LOG[3], LOG[4], error]);
    }
}

#[test]
fn the_longest_key_and_signature_are_sent() {
    let key = format!("sk-{}", "k".repeat(7997));
    let signature = format!("a.b.{}", "c".repeat(7996));
    let mut script = good_run();
    script[0] = on("GET token", json(format!(r#"{{"response":"{signature}"}}"#)));
    let stand = Stand::script(script);
    run(rotate(&stand).env("DOCSPACE_API_KEY", &key)).is(0, &line(), &LOG);
    let last = stand.requests().pop().unwrap();
    assert_eq!(last.header("authorization"), Some(format!("Bearer {key}").as_str()));
    assert_eq!(last.header("x-signature"), Some(signature.as_str()));
}

#[test]
fn half_a_key_in_a_whole_reply_is_not_shown() {
    let detail = format!(r#"{{"detail":"bad key {}"}}"#, &KEY[..12]);
    let stand = Stand::script(looked([on("PATCH regenerate", http("403 ", "", detail))]));
    let refused = run(&mut rotate(&stand));
    assert!(refused.error().contains("with status 403 ([hidden]); "), "{refused}");
}
