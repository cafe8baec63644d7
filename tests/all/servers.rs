//! Servers that differ from a real portal: one that answers the two documented calls gets its client rotated.

use std::time::Duration;

use crate::mock::*;
use crate::run::*;

/// What the server does after a reply.
type End = fn() -> Action;
const OPEN: End = || Action::Send(vec![]);
const CLOSE: End = || Action::Close;
const HANG: End = || Action::Hang;

/// Checks that each of these replies makes a good run, and that the server gets each call once.
fn accepts(position: usize, call: &'static str, replies: Vec<(Vec<u8>, End)>) {
    let both = |reply: (Vec<u8>, End)| [(false, reply.clone()), (true, reply)];
    for_each(
        replies.into_iter().flat_map(both).collect(),
        |(tls, (bytes, end))| {
            let mut script = good_run();
            script[position] = expect_then(call, [Action::Send(bytes.clone()), end()]);
            let (run, _portal) = run_at(tls, script, &[]);
            let reply = String::from_utf8_lossy(&bytes);
            let result = (run.status, &*run.stdout, run.error());
            assert_eq!(
                result,
                (Some(0), &*secret_line(), GOOD_RUN_LOG[5]),
                "{call}: {reply:?}\n{run}"
            );
        },
    );
}

#[test]
fn any_definite_answer_to_the_undocumented_calls_is_fine() {
    let (page, location) = (
        "Content-Type: text/html",
        "Location: https://other.invalid/",
    );
    let plain = [
        "404 Not Found",
        "400 ",
        "403 ",
        "405 ",
        "204 ",
        "406 ",
        "410 ",
        "418 ",
        "501 ",
        "200 OK",
    ];
    let bodies = [
        "{}",
        r#"{"response":null}"#,
        r#"{"response":"no.jwt"}"#,
        r#"{"response":{"x":1}}"#,
    ];
    let mut answers = vec![
        recorded("token-403"),
        response(
            "201 Created",
            "",
            format!(r#"{{"response":"{SIGNATURE}"}}"#),
        ),
        response("200 OK", "Content-Type: text/plain", "hello"),
        response("200 OK", "", "{}"),
        response("200 OK", page, "<html>Welcome</html>"),
        response("404 Not Found", page, "<html>not here</html>"),
        response("200 OK", "", format!("<html>{}", "x".repeat(70_000))),
    ];
    answers.extend(plain.map(|status| response(status, "", "")));
    answers.extend(["301 ", "302 ", "308 "].map(|status| response(status, location, "")));
    answers.extend(bodies.map(json));
    let cases = answers
        .into_iter()
        .flat_map(|answer| [(false, answer.clone()), (true, answer)])
        .collect();
    for_each(cases, |(tls, answer)| {
        let is_page = answer.ends_with(b"<html>Welcome</html>");
        let head = if is_page {
            probe()
        } else {
            expect("HEAD client", answer.clone())
        };
        let script = vec![
            expect("GET token", answer.clone()),
            head,
            regenerate(),
            revoke(),
        ];
        let (run, portal) = run_at(tls, script, &[]);
        let status = String::from_utf8_lossy(&answer[9..12]);
        let [token, head] =
            ["GET token", "HEAD client"].map(|call| format!("[{call}] Status: {status}"));
        let unsigned = "The portal gave no signature: continuing with the key alone.";
        run.assert_run(
            0,
            &secret_line(),
            &[
                &token,
                unsigned,
                &head,
                GOOD_RUN_LOG[2],
                GOOD_RUN_LOG[3],
                GOOD_RUN_LOG[4],
                GOOD_RUN_LOG[5],
            ],
        );
        let bearer = format!("Bearer {}", if tls { BEARER } else { KEY });
        for request in portal.requests() {
            assert_eq!(request.header("authorization"), Some(&*bearer));
            assert_eq!(request.header("x-signature"), None);
        }
    });
}

#[test]
fn any_successful_reply_with_a_secret_is_accepted() {
    let good = format!(r#"{{"client_secret":"{SECRET}"}}"#);
    let pretty = format!("{{\n  \"client_id\": \"x\",\n  \"client_secret\": \"{SECRET}\"\n}}\n");
    let (chunked, interim) = (
        recorded("patch-200"),
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 \r\n\r\n",
    );
    let no_length = |version: &str| format!("HTTP/{version} 200 OK\r\n\r\n{good}").into_bytes();
    let no_last_chunk = chunked[..chunked.len() - "0\r\n\r\n".len()].to_vec();
    let typed = |kind: &str| response("200 OK", &format!("Content-Type: {kind}"), &good);
    let replies: Vec<(Vec<u8>, End)> = vec![
        // These take 5 s, so they start first.
        (no_last_chunk.clone(), HANG),
        (no_length("1.1"), HANG),
        (json(&good), OPEN),
        (json(&pretty), OPEN),
        (
            json(format!(r#"{{"response":{good},"count":1,"status":0}}"#)),
            OPEN,
        ),
        (
            json(format!(r#"{{"response":{{}},"client_secret":"{SECRET}"}}"#)),
            OPEN,
        ),
        (json(format!("\u{feff}{good}")), OPEN),
        (json(format!("\n\t {good} \r\n")), OPEN),
        (
            json(format!("{good}{}", " ".repeat(64 * 1024 - good.len()))),
            OPEN,
        ),
        (response("200 OK", "", &good), OPEN),
        (typed("text/plain"), OPEN),
        (typed("text/html; charset=utf-8"), OPEN),
        (typed("application/octet-stream"), OPEN),
        (response("201 Created", "", &good), OPEN),
        (response("202 Accepted", "", &good), OPEN),
        (
            response(
                "200 OK",
                &format!("X-Long: {}", "x".repeat(20 * 1024)),
                &good,
            ),
            OPEN,
        ),
        ([interim.as_bytes(), &chunked].concat(), OPEN),
        (no_length("1.1"), CLOSE),
        (no_length("1.0"), CLOSE),
        (no_length("1.1"), || Action::Reset),
        (no_last_chunk, CLOSE),
        (chunked, CLOSE),
        (response("200 OK", "Connection: close", &good), CLOSE),
        (
            format!("HTTP/1.1 200\r\nContent-Length: 500\r\n\r\n{good}").into_bytes(),
            CLOSE,
        ),
    ];
    accepts(2, "PATCH regenerate", replies);
}

#[test]
fn any_success_but_a_web_page_means_revoked() {
    let mut replies: Vec<(Vec<u8>, End)> = vec![
        (b"HTTP/1.1 204 \r\n\r\n".to_vec(), OPEN),
        (response("202 Accepted", "", ""), OPEN),
        (
            response("200 OK", "Content-Type: text/plain", "revoked"),
            OPEN,
        ),
        (response("200 OK", "Content-Type: text/html", ""), OPEN),
        (response("202 ", "Content-Type: text/html", "done"), OPEN),
        (json(r#"{"response":{"a":[1]}}"#), OPEN),
        (json(r#"{"error":"<none>"}"#), OPEN),
        (b"HTTP/1.0 200 OK\r\n\r\nOK".to_vec(), CLOSE),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n".to_vec(),
            CLOSE,
        ),
    ];
    let shapes = ["{}", "[]", "null", "true", "0", "\"done\"", "", "{\"a\":"];
    replies.extend(shapes.map(|body| (json(body), OPEN)));
    accepts(3, "DELETE revoke", replies);
}

/// The PATCH gets a fresh connection, so whatever follows the reply to the HEAD does not matter.
#[test]
fn what_follows_the_reply_to_the_head_is_not_taken_for_the_next_reply() {
    let reply = recorded("get-200");
    let head = without_body(reply.clone());
    let pauses = [0, 200, 1000, 5000].map(Duration::from_micros);
    for tls in [false, true] {
        let late = |pause, last| vec![Action::Send(head.clone()), Action::Sleep(pause), last];
        let mut cases = vec![vec![Action::Send(reply.clone())]];
        cases.extend(pauses.map(|pause| late(pause, Action::Send(reply[head.len()..].to_vec()))));
        cases.extend(pauses.map(|pause| late(pause, Action::Close)));
        cases.push(late(Duration::ZERO, Action::Reset));
        for_each(cases, |actions| {
            let script = vec![
                sign_in(),
                expect_then("HEAD client", actions),
                regenerate(),
                revoke(),
            ];
            let (run, portal) = run_at(tls, script, &[]);
            run.assert_run(0, &secret_line(), &GOOD_RUN_LOG);
            assert_eq!(portal.connections(), 2, "{run}");
        });
    }
}

/// A close that nothing announced may meet the next request, which is then repeated.
#[test]
fn a_close_after_the_reply_to_the_sign_in_loses_nothing() {
    accepts(0, "GET token", vec![(recorded("token-200"), CLOSE)]);
}
