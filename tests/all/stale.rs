//! A reply is the answer to its request: what was there before the request left is not.

use std::time::Duration;

use crate::portal::{Act, BEARER, Stand, Step, good_run, http, json, line, on, reply};
use crate::proxies::{Proxy, Then};
use crate::run::{self, Run, rotate, run};

/// The replies to a whole run with `--verify`.
const RUN: [(&str, &str); 5] = [
    ("GET token", "token-200"),
    ("HEAD client", "get-200"),
    ("PATCH regenerate", "patch-200"),
    ("DELETE revoke", "delete-200"),
    ("POST introspect", "introspect-200"),
];

/// A recorded reply of so many bytes.
fn padded(name: &str, length: usize) -> Vec<u8> {
    let text = String::from_utf8(reply(name)).unwrap();
    let text =
        if name == "get-200" { text.split_inclusive("\r\n\r\n").next().unwrap().to_owned() } else { text };
    let room = length.saturating_sub(text.len() + "X-Pad: \r\n".len());
    text.replacen("\r\n", &format!("\r\nX-Pad: {}\r\n", "x".repeat(room)), 1).into_bytes()
}

/// A run in which the reply to one request brings something else along.
fn run_with(tls: bool, request: usize, act: impl FnOnce(&str) -> Act) -> (Stand, Run) {
    let (_folder, certificates, ca) = run::authority();
    let mut act = Some(act);
    let step = |(n, (name, recorded)): (usize, &(&'static str, &str))| match n == request {
        true => Step::Request(name, vec![act.take().unwrap()(recorded)]),
        false => on(name, reply(recorded)),
    };
    let script = RUN.iter().enumerate().map(step).collect();
    let stand = Stand::script_over(tls.then(|| certificates.server("127.0.0.1")), script);
    let done = run(rotate(&stand).args(["-q", "--verify"]).arg("--cacert").arg(ca));
    (stand, done)
}

/// The second reply is one that would be believed: a refusal, another secret, a success.
#[test]
fn a_second_reply_is_not_taken_for_the_next_answer() {
    let secret = json(r#"{"client_secret":"somebody-elses"}"#);
    let stale = [reply("patch-404-unknown"), secret, reply("delete-200"), http("429 ", "Retry-After: 1", "")];
    for tls in [true, false] {
        for request in 0..4 {
            for (n, length) in [0, 4030, 4040, 4050, 4062, 4074, 4080, 8170, 12_000].into_iter().enumerate() {
                let second = stale[(request + n) % stale.len()].clone();
                let (stand, done) = run_with(tls, request, |recorded| {
                    Act::Together(vec![padded(recorded, length), second], false)
                });
                done.is(0, &line(), &[]);
                // The request went out at once, on a new connection, and once.
                assert_eq!((stand.connections(), stand.requests().len()), (2, 5), "{tls} {request} {length}");
            }
        }
    }
}

#[test]
fn a_body_after_a_head_is_not_taken_for_the_next_answer() {
    for tls in [true, false] {
        let (stand, done) = run_with(tls, 1, |_| Act::Together(vec![reply("get-200")], false));
        done.is(0, &line(), &[]);
        assert_eq!(stand.connections(), 2);
    }
}

#[test]
fn a_close_that_came_with_the_last_reply_is_no_fault_of_the_next_request() {
    for request in 0..4 {
        for length in [0, 4040, 4074, 8170] {
            let (stand, done) =
                run_with(true, request, |recorded| Act::Together(vec![padded(recorded, length)], true));
            done.is(0, &line(), &[]);
            assert_eq!((stand.connections(), stand.requests().len()), (2, 5), "{request} {length}");
        }
    }
}

/// In a segment of its own, while the run waits.
#[test]
fn what_comes_in_the_wait_for_another_attempt_is_none_either() {
    for (tls, close) in [(true, true), (true, false), (false, true), (false, false)] {
        let (_folder, certificates, ca) = run::authority();
        let busy = Act::Send(http("429 ", "X-RateLimit-Reset: 1000000000", ""));
        let stale = if close { Act::Close } else { Act::Send(reply("patch-404-unknown")) };
        let mut script = good_run();
        script.insert(
            2,
            Step::Request("PATCH regenerate", vec![busy, Act::Sleep(Duration::from_millis(20)), stale]),
        );
        let stand = Stand::script_over(tls.then(|| certificates.server("127.0.0.1")), script);
        run(rotate(&stand).arg("-q").arg("--cacert").arg(ca)).is(0, &line(), &[]);
        assert_eq!(stand.connections(), 2);
    }
}

/// Nothing of the connection is the portal's word before the request has left.
#[test]
fn a_tunnel_that_brings_bytes_along_counts_as_one_that_never_stood() {
    for (scheme, answer) in [
        ("http", b"HTTP/1.1 200 Connection established\r\n\r\n".to_vec()),
        ("socks5", vec![5, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
        ("socks4", vec![0, 90, 0, 0, 0, 0, 0, 0]),
    ] {
        let stand = Stand::script(vec![]);
        let bytes = [answer, http("200 ", "Content-Type: application/json", "")].concat();
        let proxy = Proxy::start(stand.at, None, Then::Blurt(bytes));
        let mut command = rotate(&stand);
        command.env("http_proxy", format!("{scheme}://{}", proxy.at)).env("DOCSPACE_API_KEY", BEARER);
        let done =
            run(command.args(["-q", "--timeout", "0.9", "--allow-http", "--url", "http://portal.invalid"]));
        let error = "docspace-rotate: portal.invalid was not reached for [HEAD client]: bytes came before the request was sent (through the proxy …";
        done.is(4, "", &[error]);
        // The kernel may have taken the connection, but no request came.
        assert_eq!(stand.requests().len(), 0);
    }
}

/// The same for a connection that is kept behind a proxy.
#[test]
fn a_second_reply_through_a_tunnel_is_none_either() {
    for (scheme, over_tls) in [("http", false), ("https", true), ("socks5", false)] {
        for tls in [true, false] {
            for (request, (_, recorded)) in RUN.iter().enumerate().take(4) {
                for length in [0, 4062, 8170] {
                    let (_folder, certificates, ca) = run::authority();
                    let stale = vec![padded(recorded, length), reply("patch-404-unknown")];
                    let mut act = Some(Act::Together(stale, false));
                    let step = |(n, (name, recorded)): (usize, &(&'static str, &str))| match n == request {
                        true => Step::Request(name, vec![act.take().unwrap()]),
                        false => on(name, reply(recorded)),
                    };
                    let script = RUN.iter().enumerate().map(step).collect();
                    let server = tls.then(|| certificates.server("portal.invalid"));
                    let stand = Stand::script_over(server, script);
                    let server = over_tls.then(|| certificates.server("127.0.0.1"));
                    let proxy = Proxy::start(stand.at, server, Then::Through);
                    let (variable, url) = match tls {
                        true => ("https_proxy", "https://portal.invalid"),
                        false => ("http_proxy", "http://portal.invalid"),
                    };
                    let mut command = rotate(&stand);
                    command.env(variable, format!("{scheme}://{}", proxy.at)).arg("--cacert").arg(ca);
                    let done = run(command.args(["-q", "--verify", "--allow-http", "--url", url]));
                    done.is(0, &line(), &[]);
                    assert_eq!(stand.requests().len(), 5, "{scheme} {tls} {request} {length}");
                }
            }
        }
    }
}

#[test]
fn a_tunnel_within_tls_that_brings_bytes_along_counts_as_none() {
    for length in [0, 3900, 4000, 4040, 4074, 8100, 16_000, 19_000] {
        let (_folder, certificates, ca) = run::authority();
        let stand = Stand::script(vec![]);
        let pad = "x".repeat(length.min(8000));
        let established = format!("HTTP/1.1 200 Connection established\r\nX: {pad}\r\n\r\n").into_bytes();
        let stale = http("200 ", "Content-Type: application/json", "y".repeat(length));
        let blurt = Then::Blurt([established, stale].concat());
        let proxy = Proxy::start(stand.at, Some(certificates.server("127.0.0.1")), blurt);
        let mut command = rotate(&stand);
        command.env("http_proxy", format!("https://{}", proxy.at)).arg("--cacert").arg(ca);
        let args = ["-q", "--timeout", "0.9", "--allow-http", "--url", "http://portal.invalid"];
        let done = run(command.env("DOCSPACE_API_KEY", BEARER).args(args));
        assert!(done.error().contains("bytes came before the request was sent"), "{length} {done}");
    }
}
