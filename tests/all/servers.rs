//! Servers that differ from a real portal. It is enough if one answers the two documented calls.

use std::time::Duration;

use crate::mock::*;
use crate::run::*;

/// A reply, and what the server does after it.
#[derive(Clone)]
struct Case {
    name: &'static str,
    reply: Vec<u8>,
    end: fn() -> Action,
}

impl Default for Case {
    fn default() -> Self {
        Case {
            name: "",
            reply: vec![],
            end: || Action::Send(vec![]),
        }
    }
}

fn close() -> Action {
    Action::Close
}

/// Runs a test for each case, with and without TLS.
fn for_each_with_tls(cases: Vec<Case>, test: impl Fn(Case, bool) + Sync) {
    let mut all = vec![];
    for case in cases {
        all.push((case.clone(), false));
        all.push((case, true));
    }
    for_each(all, |(case, tls)| test(case, tls));
}

/// Checks that each of these replies makes a good run, and that the server gets each call once.
fn assert_accepted(position: usize, call: &'static str, cases: Vec<Case>) {
    for_each_with_tls(cases, |case, tls| {
        let name = case.name;
        let mut script = good_run();
        script[position] = expect_then(call, [Action::Send(case.reply), (case.end)()]);
        let (run, _portal) = run_at(tls, script, &[]);
        assert_eq!(run.status, Some(0), "{name}, TLS: {tls}\n{run}");
        assert_eq!(run.stdout, secret_line(), "{name}, TLS: {tls}\n{run}");
        assert_eq!(run.error(), GOOD_RUN_LOG[5], "{name}, TLS: {tls}\n{run}");
    });
}

#[test]
fn any_definite_answer_to_the_undocumented_calls_is_accepted() {
    let location = "Location: https://other.invalid/";
    let cases = vec![
        Case {
            name: "forbidden",
            reply: recorded("token-403"),
            ..Case::default()
        },
        Case {
            name: "a redirect",
            reply: response("302 ", location, ""),
            ..Case::default()
        },
        Case {
            name: "JSON without a signature",
            reply: json("{}"),
            ..Case::default()
        },
        Case {
            name: "a web page over 64 KiB without a content type",
            reply: response("200 OK", "", format!("<html>{}", "x".repeat(70_000))),
            ..Case::default()
        },
    ];
    for_each_with_tls(cases, |Case { name, reply, .. }, tls| {
        let script = vec![
            expect("GET token", reply.clone()),
            expect("HEAD client", reply),
            regenerate(),
            revoke(),
        ];
        let (run, portal) = run_at(tls, script, &[]);
        assert_eq!(run.status, Some(0), "{name}, TLS: {tls}\n{run}");
        assert_eq!(run.stdout, secret_line(), "{name}, TLS: {tls}\n{run}");
        let unsigned = "The portal issued no signature (status ";
        assert!(run.stderr.contains(unsigned), "{name}, TLS: {tls}\n{run}");
        let key = if tls { BEARER } else { KEY };
        let bearer = format!("Bearer {key}");
        for request in portal.requests() {
            assert_eq!(request.header("authorization"), Some(&*bearer));
            assert_eq!(request.header("x-signature"), None, "{name}");
        }
    });
}

#[test]
fn any_successful_reply_with_a_secret_is_accepted() {
    let good = format!(r#"{{"client_secret":"{SECRET}"}}"#);
    let without_length = |version: &str| format!("HTTP/{version} 200 OK\r\n\r\n{good}").into();
    let too_long = format!("HTTP/1.1 200\r\nContent-Length: 500\r\n\r\n{good}");
    let chunked = recorded("patch-200");
    let last_chunk = chunked.len() - "0\r\n\r\n".len();
    let interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 \r\n\r\n";
    let long_header = format!("X-Long: {}", "x".repeat(20 * 1024));
    let padding = " ".repeat(64 * 1024 - good.len());
    let cases = vec![
        Case {
            name: "silence instead of the last chunk",
            reply: chunked[..last_chunk].to_vec(),
            end: || Action::Hang,
        },
        Case {
            name: "silence after a body without a length",
            reply: without_length("1.1"),
            end: || Action::Hang,
        },
        Case {
            name: "a byte order mark after a blank line",
            reply: json(format!("\r\n\u{feff}{good}")),
            ..Case::default()
        },
        Case {
            name: "exactly 64 KiB",
            reply: json(format!("{good}{padding}")),
            ..Case::default()
        },
        Case {
            name: "another content type",
            reply: response("200 OK", "Content-Type: text/html; charset=utf-8", &good),
            ..Case::default()
        },
        Case {
            name: "another status and no content type",
            reply: response("201 Created", "", &good),
            ..Case::default()
        },
        Case {
            name: "a long header",
            reply: response("200 OK", &long_header, &good),
            ..Case::default()
        },
        Case {
            name: "interim responses",
            reply: [&interim[..], &chunked].concat(),
            ..Case::default()
        },
        Case {
            name: "HTTP/1.0",
            reply: without_length("1.0"),
            end: close,
        },
        Case {
            name: "a reset after a body without a length",
            reply: without_length("1.1"),
            end: || Action::Reset,
        },
        Case {
            name: "a close instead of the last chunk",
            reply: chunked[..last_chunk].to_vec(),
            end: close,
        },
        Case {
            name: "a close before the length is reached",
            reply: too_long.into(),
            end: close,
        },
        Case {
            name: "a close after the reply",
            reply: chunked.clone(),
            end: close,
        },
        Case {
            name: "an announced close",
            reply: response("200 OK", "Connection: close", &good),
            end: close,
        },
    ];
    assert_accepted(2, "PATCH regenerate", cases);
}

#[test]
fn any_success_but_a_web_page_means_revoked() {
    let truncated = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n";
    let cases = vec![
        Case {
            name: "no body",
            reply: "HTTP/1.1 204 \r\n\r\n".into(),
            ..Case::default()
        },
        Case {
            name: "text",
            reply: response("202 ", "Content-Type: text/html", "done"),
            ..Case::default()
        },
        Case {
            name: "HTTP/1.0",
            reply: "HTTP/1.0 200 OK\r\n\r\nOK".into(),
            end: close,
        },
        Case {
            name: "a close instead of the last chunk",
            reply: truncated.into(),
            end: close,
        },
    ];
    assert_accepted(3, "DELETE revoke", cases);
}

/// The PATCH gets a fresh connection, so whatever follows the reply to the HEAD does not matter.
#[test]
fn what_follows_the_reply_to_the_head_is_not_read_as_the_next_reply() {
    struct HeadCase {
        name: String,
        tls: bool,
        actions: Vec<Action>,
    }
    let reply = recorded("get-200");
    let head = without_body(reply.clone());
    let body = &reply[head.len()..];
    let mut cases = vec![];
    for tls in [false, true] {
        cases.push(HeadCase {
            name: format!("the body in the same write, TLS: {tls}"),
            tls,
            actions: vec![Action::Send(reply.clone())],
        });
        for micros in [0, 200, 1000, 5000] {
            let ends = [
                ("the body", Action::Send(body.to_vec())),
                ("a close", Action::Close),
                ("a reset", Action::Reset),
            ];
            for (end_name, end) in ends {
                let pause = Action::Sleep(Duration::from_micros(micros));
                cases.push(HeadCase {
                    name: format!("{end_name} after {micros} µs, TLS: {tls}"),
                    tls,
                    actions: vec![Action::Send(head.clone()), pause, end],
                });
            }
        }
    }
    for_each(cases, |HeadCase { name, tls, actions }| {
        let head = expect_then("HEAD client", actions);
        let script = vec![sign_in(), head, regenerate(), revoke()];
        let (run, portal) = run_at(tls, script, &[]);
        assert_eq!(run.status, Some(0), "{name}\n{run}");
        assert_eq!(run.stdout, secret_line(), "{name}\n{run}");
        let log = GOOD_RUN_LOG.join("\n") + "\n";
        assert_eq!(run.stderr, log, "{name}\n{run}");
        assert_eq!(portal.connections(), 2, "{name}\n{run}");
    });
}

/// A close that nothing announced may meet the next request, which is then repeated.
#[test]
fn a_close_after_the_reply_to_the_sign_in_loses_nothing() {
    let case = Case {
        name: "a close",
        reply: recorded("token-200"),
        end: close,
    };
    assert_accepted(0, "GET token", vec![case]);
}
