//! The job: which requests are sent, in which order, and what is said of the replies.

use std::fs;

use crate::mock::*;
use crate::run::*;
use crate::words::*;

const JSON: &str = "Content-Type: application/json";
const TEXT: &str = "Content-Type: text/plain; charset=utf-8";
const PAGE: &str = "Content-Type: text/html";

/// Expects a good run in which this request gets another reply.
fn good_run_with(request: &'static str, reply: Vec<u8>) -> Vec<Expect> {
    let mut script = good_run_until(request, reply);
    script.extend(good_run().into_iter().skip(script.len()));
    script
}

/// Returns the log line of a request that got this reply.
fn status_line(request: &str, reply: &[u8]) -> String {
    format!(
        "[{request}] Status: {}",
        String::from_utf8_lossy(&reply[9..12])
    )
}

/// Returns the error line for an answer.
fn error(said: &str, state: &str) -> String {
    format!("docspace-rotate: 127.0.0.1 {said}; {state}")
}

#[test]
fn makes_four_requests_on_two_connections_and_below_the_path_of_the_url() {
    for (key, path) in [(KEY, ""), (BEARER, "/docs")] {
        let portal = MockPortal::new(good_run());
        let url = format!("{}{path}/", portal.url());
        run(rotate(&portal)
            .env("DOCSPACE_API_KEY", key)
            .args(["--url", &url]))
        .assert_run(0, &secret_line(), &GOOD_RUN_LOG);
        let client = format!("clients/{CLIENT}");
        let (patch, delete) = (format!("{client}/regenerate"), format!("{client}/revoke"));
        let calls = [
            (1, "security/oauth2/token"),
            (1, &client),
            (2, &patch),
            (2, &delete),
        ];
        let requests = portal.requests();
        let found = requests
            .iter()
            .map(|request| (request.connection, request.target.clone()));
        assert_eq!(
            found.collect::<Vec<_>>(),
            calls.map(|(n, call)| (n, format!("{path}/api/2.0/{call}")))
        );
        for request in &requests {
            for (name, value) in [
                ("authorization", Some(&*format!("Bearer {key}"))),
                (
                    "x-signature",
                    (request.name() != "GET token").then_some(SIGNATURE),
                ),
                (
                    "user-agent",
                    Some(concat!("docspace-rotate/", env!("CARGO_PKG_VERSION"))),
                ),
                ("accept", Some("application/json")),
                ("accept-encoding", None),
                ("host", Some(&portal.at.to_string())),
                ("content-length", (request.method == "PATCH").then_some("0")),
                ("transfer-encoding", None),
            ] {
                assert_eq!(request.header(name), value, "{name}: {request:?}");
            }
            assert_eq!(request.body, "");
        }
    }
}

#[test]
fn runs_on_one_thread() {
    let (gate, patch) = gated("PATCH regenerate", recorded("patch-200"));
    let portal = MockPortal::new(ready([patch, revoke()]));
    let mut command = rotate(&portal);
    let child = start(command.args(["--url", &format!("http://localhost:{}", portal.at.port())]));
    portal.wait_for(3);
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    drop(gate);
    finish(&command, child).assert_run(0, &secret_line(), &GOOD_RUN_LOG);
    assert!(status.contains("\nThreads:\t1\n"), "{status}");
}

#[test]
fn only_runs_one_step() {
    run_script(ready([regenerate()]), &["--only", "regenerate"]).assert_run(
        0,
        &secret_line(),
        &GOOD_RUN_LOG[..4],
    );
    run_script(vec![sign_in(), revoke()], &["--only", "revoke"]).assert_run(
        0,
        "",
        &[GOOD_RUN_LOG[0], GOOD_RUN_LOG[4], GOOD_RUN_LOG[5]],
    );
}

#[test]
fn json_is_the_object_on_one_line() {
    let object = format!(r#"{{"client_secret":"{SECRET}","note":"é \" \u001b"}}"#);
    let spread = object.replace(",\"", " ,\r\n\t\"");
    let other = format!(r#"{{"client_secret":"{SECRET}","response":{{"client_secret":""}}}}"#);
    for (reply, expected) in [
        (
            recorded("patch-200"),
            &format!(r#"{{"client_secret":"{SECRET}"}}"#),
        ),
        (
            json(format!("\u{feff}{{\"count\":1,\n\"response\":{spread}}}\n")),
            &object,
        ),
        (json(&other), &other),
    ] {
        let script = good_run_with("PATCH regenerate", reply);
        run_script(script, &["--json"]).assert_run(0, &format!("{expected}\n"), &GOOD_RUN_LOG);
    }
}

#[test]
fn the_longest_key_and_signature_are_sent() {
    let (key, signature) = (
        format!("sk-{}", "k".repeat(7997)),
        format!("a.b.{}", "c".repeat(7996)),
    );
    let reply = json(format!(r#"{{"response":"{signature}"}}"#));
    let portal = MockPortal::new(good_run_with("GET token", reply));
    run(rotate(&portal).env("DOCSPACE_API_KEY", &key)).assert_run(0, &secret_line(), &GOOD_RUN_LOG);
    let last = portal.requests().pop().unwrap();
    assert_eq!(
        last.header("authorization"),
        Some(&*format!("Bearer {key}"))
    );
    assert_eq!(last.header("x-signature"), Some(&*signature));
}

#[test]
fn a_wrong_key_ends_the_run() {
    let told = response(
        "401 ",
        JSON,
        r#"{"error":{"message":"The key was deactivated"},"title":""}"#,
    );
    for (key, reply, said) in [
        (KEY, recorded("token-401"), ""),
        (BEARER, recorded("token-401"), ""),
        (KEY, told, " (The key was deactivated)"),
    ] {
        let portal = MockPortal::new(good_run_until("GET token", reply));
        let said =
            format!("answered [GET token] with status 401{said}: the key is wrong or has expired");
        let log = ["[GET token] Status: 401", &error(&said, REFUSED)];
        run(rotate(&portal).env("DOCSPACE_API_KEY", key)).assert_run(3, "", &log);
    }
}

#[test]
fn a_refusal_without_a_sign_in_names_both_answers() {
    for (reply, named) in [
        (
            recorded("token-403"),
            "403: the key may lack the global scopes",
        ),
        (response("404 Not Found", "", ""), "404"),
    ] {
        let states = [
            ("PATCH regenerate", 3, REFUSED),
            ("DELETE revoke", 5, NOT_REVOKED),
        ];
        for (request, status, state) in states {
            let mut script = good_run_until(request, recorded("patch-403-unsigned"));
            script[0] = expect("GET token", reply.clone());
            let refused = run_script(script, &[]);
            let both = format!("403, and [GET token] gave no signature (status {named})");
            let said = format!("answered [{request}] with status {both}");
            assert_eq!(
                (refused.status, refused.error()),
                (Some(status), &*error(&said, state)),
                "{refused}"
            );
        }
    }
}

#[test]
fn any_definite_answer_to_head_but_a_web_page_ends_the_wait() {
    // Others are in `any_definite_answer_to_the_undocumented_calls_is_fine`.
    for reply in [
        response("401 Unauthorized", "", ""),
        recorded("patch-403-denied"),
    ] {
        let status = status_line("HEAD client", &reply);
        let log = [&[GOOD_RUN_LOG[0], &status], &GOOD_RUN_LOG[2..]].concat();
        run_script(good_run_with("HEAD client", reply), &[]).assert_run(0, &secret_line(), &log);
    }
    for header in [PAGE, "content-type: Text/HTML; charset=utf-8"] {
        let error = error(
            "answered [HEAD client] with status 200: a web page",
            REFUSED,
        );
        let script = good_run_until("HEAD client", response("200 OK", header, ""));
        run_script(script, &[]).assert_run(3, "", &[GOOD_RUN_LOG[0], GOOD_RUN_LOG[1], &error]);
    }
}

/// A PATCH without a definite answer is 7, even if the answer has words.
#[test]
fn a_refusal_is_shown_in_the_servers_words() {
    let incomplete = response("400 ", JSON, "{\"title\":\"hush\"}\n")
        .split_last()
        .unwrap()
        .1
        .to_vec();
    let no_client = " (Not Found: Client with id 00000000-0000-4000-8000-00000000dead for tenant 1 was not found)";
    let key_end = format!(r#"{{"title":"ends in {}"}}"#, KEY[27..].to_uppercase());
    let late_key = format!(r#"{{"title":"{}{KEY}"}}"#, "x ".repeat(98));
    let too_long = format!("{{\"title\":\"hush\"}}{}", " ".repeat(64 * 1024));
    let fields = r#"{"error_description":"D","error":"E","message":"M","reason":"R","client_secret":"hush"}"#;
    let long = format!(
        r#"{{"title":"{}","detail":"{}"}}"#,
        "é ".repeat(60),
        "é ".repeat(60)
    );
    let shortened = format!(" ({}é: {}…)", "é ".repeat(59), "é ".repeat(39));
    for (reply, said) in [
        (recorded("patch-403-denied"), " (Forbidden: Access denied)"),
        (recorded("patch-403-unsigned"), ""),
        (recorded("patch-404-unknown"), no_client),
        (
            recorded("patch-500"),
            " (Internal Server Error: Something went wrong)",
        ),
        (recorded("gateway-502"), ""),
        (response("400 ", JSON, fields), " (R: M: E: D)"),
        (
            response(
                "503 ",
                PAGE,
                "\u{feff}{\"error\":{\"code\":7,\"message\":\"nested\"}}",
            ),
            " (nested)",
        ),
        (
            response(
                "400 ",
                JSON,
                r#"{"title":7,"detail":["hush"],"error":{"code":7},"x":"hush"}"#,
            ),
            "",
        ),
        (response("400 ", JSON, r#"{"title":"hush""#), ""),
        (
            response("409 ", TEXT, " gone  for good\r\n"),
            " (gone  for good)",
        ),
        (response("500 ", TEXT, "out of order"), " (out of order)"),
        (response("409 ", TEXT, r#"{"client_secret":"hush"}"#), ""),
        (response("409 ", TEXT, r#""hush""#), ""),
        (
            response("410 ", JSON, r#"{"title":"\u001b[31mgone\u0007\r\n."}"#),
            r" (\u{1b}[31mgone\u{7}\r\n.)",
        ),
        (response("410 ", JSON, long), &*shortened),
        (response("403 ", JSON, key_end), " ([hidden])"),
        (response("403 ", JSON, late_key), " ([hidden])"),
        (response("409 ", JSON, too_long), ""),
        (incomplete, ""),
    ] {
        let log = status_line("PATCH regenerate", &reply);
        let (status, state) = if log.contains(": 5") {
            (7, UNKNOWN)
        } else {
            (3, REFUSED)
        };
        let actions = [Action::Send(reply), Action::Close];
        let said = format!(
            "answered [PATCH regenerate] with status {}{said}",
            &log[log.len() - 3..]
        );
        let script = ready([expect_then("PATCH regenerate", actions)]);
        run_script(script, &[]).assert_run(
            status,
            "",
            &[GOOD_RUN_LOG[0], GOOD_RUN_LOG[1], &log, &error(&said, state)],
        );
    }
}

/// Replies to the sign-in and the PATCH may contain a secret that the run does not know.
#[test]
fn a_refusal_that_may_contain_a_secret_is_hidden() {
    let (client, token) = ("a1".repeat(16), "b2".repeat(16));
    let no_time = ", and the next attempt in 3600s would exceed the time limit; ";
    let text = |text: &str| response("503 ", &format!("{TEXT}\r\nRetry-After: 3600"), text);
    let redirect = response("307 ", &format!("Location: /{token}"), "");
    let fields = format!(
        r#"{{"title":"Bad","detail":"it is {}."}}"#,
        SECRET.to_lowercase()
    );
    let hidden = &format!("503 ([hidden]){no_time}");
    for (request, reply, status, said) in [
        ("GET token", text(&token), 4, hidden),
        (
            "GET token",
            text("restarting"),
            4,
            &format!("503 (restarting){no_time}"),
        ),
        (
            "PATCH regenerate",
            text(&format!("secret={token}")),
            7,
            &"503 ([hidden]); ".to_owned(),
        ),
        (
            "PATCH regenerate",
            text(&token[1..]),
            7,
            &format!("503 ({}); ", &token[1..]),
        ),
        (
            "PATCH regenerate",
            text(&format!("no {client}")),
            7,
            &format!("503 (no {client}); "),
        ),
        (
            "PATCH regenerate",
            redirect,
            3,
            &"307 and redirects to [hidden]: ".to_owned(),
        ),
        (
            "DELETE revoke",
            text(&token),
            5,
            &format!("503 ({token}){no_time}"),
        ),
        ("DELETE revoke", text(&KEY[5..13]), 5, hidden),
        (
            "DELETE revoke",
            text(&SIGNATURE[30..40].to_uppercase()),
            5,
            hidden,
        ),
        ("DELETE revoke", text(&SECRET[28..]), 5, hidden),
        (
            "DELETE revoke",
            response("404 ", JSON, fields),
            5,
            &"404 (Bad: [hidden]); ".to_owned(),
        ),
    ] {
        let portal = MockPortal::new(good_run_until(request, reply));
        let refused =
            run(program()
                .env("DOCSPACE_API_KEY", KEY)
                .args([&*client, "--url", &portal.url()]));
        assert_eq!(refused.status, Some(status), "{refused}");
        assert!(refused.error().contains(said), "{said}\n{refused}");
    }
}

#[test]
fn a_redirect_is_not_followed_and_its_target_is_named() {
    let other = MockPortal::new(vec![]);
    for (location, target) in [
        (
            format!("{}/api/2.0/x/?key=hush#hush", other.url()),
            format!("{}/api/2.0/x/", other.url()),
        ),
        (
            "https://user:hush@new.invalid/x".to_owned(),
            "https://new.invalid/x".to_owned(),
        ),
        ("/login?hush".to_owned(), "/login".to_owned()),
        (
            format!("https://new.invalid/{KEY}/x"),
            "[hidden]".to_owned(),
        ),
    ] {
        let reply = response("307 Moved", &format!("Location: {location}"), "moved");
        let target = format!("{target}: set --url to the portal's own address");
        let said = format!("answered [PATCH regenerate] with status 307 and redirects to {target}");
        let log = [
            GOOD_RUN_LOG[0],
            GOOD_RUN_LOG[1],
            "[PATCH regenerate] Status: 307",
            &error(&said, REFUSED),
        ];
        run_script(good_run_until("PATCH regenerate", reply), &[]).assert_run(3, "", &log);
    }
    assert_eq!(other.connections(), 0);
}

#[test]
fn a_revoke_that_is_refused_or_answered_with_a_web_page_is_5_and_ends_the_run() {
    for (reply, said) in [
        (recorded("delete-403-unsigned"), "403"),
        (response("501 ", "", ""), "501"),
        (response("302 ", "", ""), "302"),
        (
            response("200 OK", "", "\u{feff} \r\n<html>login</html>"),
            "200: a web page",
        ),
        (response("202 ", JSON, " \r\n<html>"), "202: a web page"),
        (
            response("200 OK", PAGE, "<!DOCTYPE html>"),
            "200: a web page",
        ),
    ] {
        let status = status_line("DELETE revoke", &reply);
        let said = format!("answered [DELETE revoke] with status {said}");
        let not_revoked = error(&said, NOT_REVOKED);
        let log = [&GOOD_RUN_LOG[..4], &[&status, &not_revoked]].concat();
        run_script(
            good_run_until("DELETE revoke", reply.clone()),
            &["--verify"],
        )
        .assert_run(5, &secret_line(), &log);
        let (script, args) = (
            vec![sign_in(), expect("DELETE revoke", reply)],
            ["--only", "revoke"],
        );
        run_script(script, &args).assert_run(
            3,
            "",
            &[GOOD_RUN_LOG[0], &status, &error(&said, REFUSED)],
        );
    }
}
