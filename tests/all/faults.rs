//! What networks, gateways and hostile portals do, and the state that each leaves behind.

use std::sync::Mutex;
use std::time::Duration;

use crate::portal::{
    Act, BEARER, KEY, LOG, SECRET, SIGNATURE, Stand, Step, anew, good_run, held, http, json, line, look,
    looked, on, reply, signed_in,
};
use crate::run::{self, Run, rotate, run};

const UNCHANGED: &str = "; the client's secret is unchanged; run again later";
const UNKNOWN: &str = "; the client may or may not have a new secret; treat the old secret as revoked and run again in a few minutes";

/// Runs the cases on some threads, as most of their time is waiting.
fn for_each<T: Send>(cases: Vec<T>, test: impl Fn(T) + Sync) {
    let cases = Mutex::new(cases.into_iter());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let case = cases.lock().unwrap().next();
                    let Some(case) = case else { break };
                    test(case);
                }
            });
        }
    });
}

/// A run with an API key whose PATCH meets these acts.
fn patch_meets(acts: Vec<Act>, args: &[&str]) -> Run {
    let stand = Stand::script(looked([Step::Request("PATCH regenerate", acts)]));
    run(rotate(&stand).args(args))
}

#[track_caller]
fn is_state(run: &Run, status: i32, words: &str) {
    assert_eq!((run.status, run.stdout.as_str()), (Some(status), ""), "{run}");
    assert!(run.error().ends_with(words), "{run}");
}

mod sent_or_not {
    use super::*;

    /// The reset comes after some number of the bytes that a server sends in the handshake, up to the
    /// last; the flight is as long each time, as Ed25519 signatures are.
    #[test]
    fn a_reset_in_the_handshake_is_4_and_7_once_the_request_has_left() {
        let (_folder, certificates, ca) = run::authority();
        let server = certificates.server("127.0.0.1");
        let status = |bytes: usize| {
            let patch = Step::Request("PATCH regenerate", vec![Act::Reset]);
            let cut = anew([Step::Accepted(vec![Act::Cap(bytes)]), patch]);
            let stand = Stand::script_over(Some(server.clone()), cut);
            let command = &mut rotate(&stand);
            // No time for a second attempt.
            command.env("DOCSPACE_API_KEY", BEARER).args(["--timeout", "0.9"]).arg("--cacert").arg(&ca);
            let done = run(command);
            match done.status {
                Some(4) => is_state(&done, 4, UNCHANGED),
                _ => is_state(&done, 7, UNKNOWN),
            }
            // Whether the PATCH was read before the reset is the kernel's affair.
            stand.need_no_more();
            done.status.unwrap()
        };
        // A reset that has come before the request leaves is seen: then it has not been sent.
        let sends = |bytes: usize| (0..5).any(|_| status(bytes) == 7);
        let (mut inside, mut after) = (0, 8192);
        assert_eq!((status(inside), sends(after)), (4, true));
        while after - inside > 1 {
            let middle = (inside + after) / 2;
            match sends(middle) {
                false => inside = middle,
                true => after = middle,
            }
        }
        for_each((0..inside).step_by(37).chain([inside - 1, inside]).collect(), |bytes| {
            assert_eq!(status(bytes), 4, "{bytes} of {after} bytes");
        });
    }

    #[test]
    fn a_fault_after_the_handshake_is_7_on_a_new_and_on_a_kept_connection() {
        let (_folder, certificates, ca) = run::authority();
        let server = certificates.server("127.0.0.1");
        let kept = |act| looked([Step::Request("PATCH regenerate", vec![act])]);
        let cases = vec![
            (BEARER, 2, anew([Step::Request("PATCH regenerate", vec![Act::Reset])])),
            (KEY, 1, kept(Act::Reset)),
            (KEY, 1, kept(Act::Close)),
        ];
        for (key, connections, script) in cases {
            let stand = Stand::script_over(Some(server.clone()), script);
            let done = run(rotate(&stand).env("DOCSPACE_API_KEY", key).arg("--cacert").arg(&ca));
            is_state(&done, 7, UNKNOWN);
            assert_eq!(stand.connections(), connections);
        }
        // Between the handshake and the request, it depends on whether the end is seen before that leaves.
        for end in [Act::Reset, Act::Close] {
            let stand = Stand::script_over(Some(server.clone()), anew([Step::Secured(vec![end])]));
            let command = &mut rotate(&stand);
            let done = run(command
                .env("DOCSPACE_API_KEY", BEARER)
                .args(["--timeout", "0.9"])
                .arg("--cacert")
                .arg(&ca));
            match done.status {
                Some(4) => is_state(&done, 4, UNCHANGED),
                _ => is_state(&done, 7, UNKNOWN),
            }
            assert_eq!(stand.requests().len(), 1, "{done}");
        }
    }

    #[test]
    fn without_tls_a_connection_that_stands_may_have_carried_the_patch() {
        for (key, script) in [
            (BEARER, anew([Step::Request("PATCH regenerate", vec![Act::Reset])])),
            (BEARER, anew([Step::Request("PATCH regenerate", vec![Act::Close])])),
            (KEY, looked([Step::Request("PATCH regenerate", vec![Act::Reset])])),
        ] {
            let stand = Stand::script(script);
            is_state(&run(rotate(&stand).env("DOCSPACE_API_KEY", key)), 7, UNKNOWN);
        }
    }

    #[test]
    fn nobody_there_and_no_name_are_4() {
        let stand = Stand::script(vec![]);
        for url in ["http://127.0.0.1:1".to_owned(), "https://portal.invalid".to_owned()] {
            let done =
                run(rotate(&stand).env("DOCSPACE_API_KEY", BEARER).args(["--timeout", "0.9", "--url", &url]));
            is_state(&done, 4, UNCHANGED);
            assert!(done.error().contains("was not reached for [HEAD client]: "), "{done}");
        }
    }

    #[test]
    fn each_request_is_judged_by_its_own_bytes() {
        let (_folder, certificates, ca) = run::authority();
        let mut script = good_run();
        script.splice(1..2, anew([Step::Accepted(vec![Act::Reset])]));
        let stand = Stand::script_over(Some(certificates.server("127.0.0.1")), script);
        let done = run(rotate(&stand).arg("--cacert").arg(&ca));
        assert_eq!((done.status, done.stdout.as_str()), (Some(0), line().as_str()), "{done}");
        assert!(done.stderr.contains("[PATCH regenerate] Not sent: "), "{done}");
    }

    /// The portal is away when the run begins, and comes in time.
    #[test]
    fn a_portal_that_comes_back_is_reached() {
        let (_folder, certificates, ca) = run::authority();
        let mut script = good_run();
        script.remove(0);
        script.insert(0, Step::Accepted(vec![Act::Reset]));
        let stand = Stand::script_over(Some(certificates.server("127.0.0.1")), script);
        let done = run(rotate(&stand).env("DOCSPACE_API_KEY", BEARER).arg("--cacert").arg(&ca));
        done.is(0, &line(), &["[HEAD client] Not sent: …", LOG[1], LOG[2], LOG[3], LOG[4], LOG[5]]);
        assert!(done.stderr.lines().next().unwrap().ends_with(", trying again in 1 s"), "{done}");
    }
}

mod repeats {
    use super::*;

    /// A 429 whose limit ends in 20 ms, as the identity service has it.
    fn busy() -> Vec<u8> {
        http("429 ", "X-Ratelimit-Remaining: 0\r\nX-Ratelimit-Reset: 20717287", "")
    }

    #[test]
    fn a_busy_portal_is_asked_again_when_its_limit_ends() {
        let stand = Stand::script(vec![
            on("GET token", busy()),
            on("GET token", reply("token-200")),
            on("HEAD client", busy()),
            look(),
            on("PATCH regenerate", busy()),
            on("PATCH regenerate", http("429 ", "x-ratelimit-reset: 10000000", "")),
            on("PATCH regenerate", reply("patch-200")),
            on("DELETE revoke", busy()),
            on("DELETE revoke", reply("delete-200")),
        ]);
        run(&mut rotate(&stand)).is(
            0,
            &line(),
            &[
                "[GET token] Status: 429, trying again in 0.02 s",
                "[GET token] Status: 200",
                "[HEAD client] Status: 429, trying again in 0.02 s",
                LOG[1],
                "[PATCH regenerate] Status: 429, trying again in 0.02 s",
                "[PATCH regenerate] Status: 429, trying again in 0.02 s",
                "[PATCH regenerate] Status: 200",
                "Client secret has been regenerated.",
                "[DELETE revoke] Status: 429, trying again in 0.02 s",
                "[DELETE revoke] Status: 200",
                LOG[5],
            ],
        );
        assert_eq!(stand.connections(), 1);
    }

    #[test]
    fn a_portal_that_asks_for_next_to_nothing_is_not_hammered() {
        let stand = Stand::answering(None, |request| match request.name().as_str() {
            "GET token" => reply("token-200"),
            "HEAD client" => http("200 ", "Content-Type: application/json", ""),
            _ => http("429 ", "X-RateLimit-Reset: 1000000", ""),
        });
        let done = run(rotate(&stand).args(["--timeout", "1.5"]));
        // On a slow machine the time may be up just as the last request waits for its answer.
        match done.error().contains(": timed out during [PATCH regenerate]") {
            true => is_state(&done, 7, UNKNOWN),
            false => is_state(&done, 4, UNCHANGED),
        }
        // 10, 20, 40, 80, 160, 300 ms, and then 300 ms each.
        assert!(stand.requests().len() <= 12, "{} requests", stand.requests().len());
    }

    #[test]
    fn a_recorded_429_is_waited_for() {
        let stand = Stand::script(looked([
            on("PATCH regenerate", reply("patch-429")),
            on("PATCH regenerate", reply("patch-200")),
        ]));
        let done = run(rotate(&stand).args(["--only", "regenerate"]));
        assert_eq!(done.stdout, line(), "{done}");
        assert!(done.stderr.contains("[PATCH regenerate] Status: 429, trying again in 3.484 s\n"), "{done}");
    }

    #[test]
    fn a_wait_that_would_pass_the_limit_is_not_begun() {
        let hour = || http("429 ", "Retry-After: 3600", "");
        let stand = Stand::script(looked([on("PATCH regenerate", hour())]));
        let done = run(&mut rotate(&stand));
        is_state(&done, 4, UNCHANGED);
        let why = "answered [PATCH regenerate] with status 429, and the next attempt, in 3600 s, would exceed the time limit of 120 s";
        assert!(done.error().contains(why), "{done}");

        let stand =
            Stand::script(looked([on("PATCH regenerate", reply("patch-200")), on("DELETE revoke", hour())]));
        let done = run(&mut rotate(&stand));
        assert_eq!((done.status, done.stdout), (Some(5), line()));
    }

    #[test]
    fn reading_and_revoking_are_done_again_after_any_fault() {
        let faults: Vec<fn() -> Vec<Act>> = vec![
            || vec![Act::Send(reply("delete-503"))],
            || vec![Act::Send(reply("gateway-502"))],
            || vec![Act::Send(reply("gateway-504"))],
            || vec![Act::Send(reply("patch-500"))],
            || vec![Act::Send(http("408 ", "Connection: close", "")), Act::Close],
            || vec![Act::Send(http("425 ", "", ""))],
            || vec![Act::Close],
            || vec![Act::Reset],
            || vec![Act::Send(reply("patch-200")[..200].to_vec()), Act::Close],
            || vec![Act::Send(b"\0\x01garbage".to_vec()), Act::Close],
        ];
        for_each(faults, |fault| {
            let stand = Stand::script(vec![
                Step::Request("GET token", fault()),
                on("GET token", reply("token-200")),
                Step::Request("HEAD client", fault()),
                look(),
                on("PATCH regenerate", reply("patch-200")),
                Step::Request("DELETE revoke", fault()),
                on("DELETE revoke", reply("delete-200")),
            ]);
            let done = run(&mut rotate(&stand));
            assert_eq!((done.status, done.stdout.as_str()), (Some(0), line().as_str()), "{done}");
            assert_eq!(done.stderr.matches(", trying again in 1 s\n").count(), 3, "{done}");
        });
    }

    #[test]
    fn waits_double() {
        let bad = || on("GET token", reply("gateway-502"));
        let mut script = good_run();
        script.splice(0..0, [bad(), bad()]);
        let stand = Stand::script(script);
        let done = run(&mut rotate(&stand));
        assert_eq!(done.status, Some(0), "{done}");
        let first =
            "[GET token] Status: 502, trying again in 1 s\n[GET token] Status: 502, trying again in 2 s\n";
        assert!(done.stderr.starts_with(first), "{done}");
    }

    #[test]
    fn a_cut_signature_is_fetched_again() {
        let whole = reply("token-200");
        let stand = Stand::script(vec![
            Step::Request("GET token", vec![Act::Send(whole[..whole.len() - 5].to_vec()), Act::Close]),
            on("GET token", whole),
            on("DELETE revoke", reply("delete-200")),
        ]);
        let done = run(rotate(&stand).args(["--only", "revoke"]));
        assert_eq!(done.status, Some(0), "{done}");
        assert!(done.stderr.starts_with("[GET token] Status: 200, cut short: "), "{done}");
    }

    #[test]
    fn a_patch_is_sent_once_after_anything_else() {
        for act in [
            Act::Send(reply("patch-500")),
            Act::Send(reply("gateway-502")),
            Act::Send(reply("gateway-504")),
            Act::Send(http("503 ", "Retry-After: 1", "")),
            Act::Send(http("599 ", "", "")),
            Act::Send(http("408 ", "", "")),
            Act::Close,
            Act::Reset,
        ] {
            let done = patch_meets(vec![act], &[]);
            is_state(&done, 7, UNKNOWN);
        }
    }

    #[test]
    fn a_429_without_a_sign_in_to_be_had_is_an_ordinary_one() {
        let stand = Stand::script(vec![
            look(),
            on("PATCH regenerate", busy()),
            on("GET token", http("404 ", "", "")),
            on("PATCH regenerate", busy()),
            on("PATCH regenerate", reply("patch-200")),
            on("DELETE revoke", reply("delete-200")),
        ]);
        let log = [
            LOG[1],
            "[PATCH regenerate] Status: 429, so signing in first",
            "[GET token] Status: 404",
            "[PATCH regenerate] Status: 429, trying again in 0.02 s",
            "[PATCH regenerate] Status: 429, trying again in 0.02 s",
            "[PATCH regenerate] Status: 200",
            "Client secret has been regenerated.",
            "[DELETE revoke] Status: 200",
            LOG[5],
        ];
        run(rotate(&stand).env("DOCSPACE_API_KEY", BEARER)).is(0, &line(), &log);
    }

    #[test]
    fn only_revoke_and_a_portal_that_stays_away_is_4() {
        let stand = Stand::script(signed_in([on("DELETE revoke", reply("delete-503"))]));
        let done = run(rotate(&stand).args(["--only", "revoke", "--timeout", "0.9"]));
        is_state(&done, 4, UNCHANGED);
    }
}

mod time {
    use super::*;

    #[test]
    fn silence_is_7_for_a_patch_and_4_for_a_sign_in() {
        let done = patch_meets(vec![Act::Hang], &["--timeout", "1.5"]);
        is_state(&done, 7, UNKNOWN);
        assert!(done.error().contains(": timed out during [PATCH regenerate] at 127.0.0.1; "), "{done}");

        let stand = Stand::script(vec![Step::Request("GET token", vec![Act::Hang])]);
        is_state(&run(rotate(&stand).args(["--timeout", "1.5"])), 4, UNCHANGED);
    }

    #[test]
    fn silence_within_an_answer_is_7() {
        let whole = reply("patch-200");
        for n in [1, 100, whole.len() - 60, whole.len() - 3] {
            let done = patch_meets(vec![Act::Send(whole[..n].to_vec()), Act::Hang], &["--timeout", "1.5"]);
            is_state(&done, 7, UNKNOWN);
        }
    }

    #[test]
    fn a_slow_answer_counts_while_there_is_time() {
        let drip = |pause| vec![Act::Drip(reply("patch-200"), Duration::from_millis(pause))];
        is_state(&patch_meets(drip(40), &["--timeout", "1.5"]), 7, UNKNOWN);
        let stand = Stand::script(vec![
            Step::Request("GET token", vec![Act::Drip(reply("token-200"), Duration::ZERO)]),
            look(),
            Step::Request("PATCH regenerate", drip(1)),
            Step::Request("DELETE revoke", vec![Act::Drip(reply("delete-200"), Duration::ZERO)]),
        ]);
        run(rotate(&stand).arg("-q")).is(0, &line(), &[]);
    }

    #[test]
    fn the_revoke_has_its_attempt_where_the_time_is_up() {
        let late = || vec![Act::Sleep(Duration::from_millis(1700)), Act::Send(reply("delete-200"))];
        let mut script = good_run();
        script[3] = Step::Request("DELETE revoke", late());
        let stand = Stand::script(script);
        run(rotate(&stand).args(["-q", "--timeout", "1.5"])).is(0, &line(), &[]);

        // Alone, it has the time that it was given.
        let stand = Stand::script(signed_in([Step::Request("DELETE revoke", late())]));
        let done = run(rotate(&stand).args(["--only", "revoke", "--timeout", "1.5"]));
        is_state(&done, 4, UNCHANGED);
    }

    #[test]
    fn the_revoke_has_one_attempt_where_the_time_is_up() {
        let mut script = good_run();
        script[3] = Step::Request("DELETE revoke", vec![Act::Hang]);
        let stand = Stand::script(script);
        let done = run(rotate(&stand).args(["--timeout", "1.5"]));
        assert_eq!((done.status, done.stdout.as_str()), (Some(5), line().as_str()), "{done}");
        assert!(done.error().contains(": timed out during [DELETE revoke] at 127.0.0.1; "), "{done}");
    }

    /// The sign-in that the revoke turns out to need is within its 10 s too.
    #[test]
    fn the_revoke_with_its_sign_in_has_ten_seconds_in_all() {
        let late = |bytes| vec![Act::Sleep(Duration::from_secs(6)), Act::Send(bytes)];
        let stand = Stand::script(vec![
            look(),
            on("PATCH regenerate", reply("patch-200")),
            Step::Request("DELETE revoke", late(reply("delete-403-unsigned"))),
            Step::Request("GET token", late(reply("token-200"))),
        ]);
        let done = run(rotate(&stand).env("DOCSPACE_API_KEY", BEARER).args(["--timeout", "1.5"]));
        assert_eq!((done.status, done.stdout.as_str()), (Some(5), line().as_str()), "{done}");
        assert!(done.error().contains(": timed out during [GET token] at 127.0.0.1; "), "{done}");
    }
}

mod replies {
    use super::*;

    #[test]
    fn a_patch_reply_cut_at_any_byte_is_7() {
        let whole = reply("patch-200");
        // From here on the last chunk has come, and nothing of the secret is missing.
        let last_chunk = whole.len() - 2;
        for_each((0..=whole.len()).collect(), |n: usize| {
            let done =
                patch_meets(vec![Act::Send(whole[..n].to_vec()), Act::Close], &["--only", "regenerate"]);
            if n < last_chunk || (n < whole.len() && done.status == Some(7)) {
                is_state(&done, 7, UNKNOWN);
            } else {
                assert_eq!((done.status, done.stdout.as_str()), (Some(0), line().as_str()), "{n}: {done}");
            }
        });
    }

    #[test]
    fn a_sign_in_reply_cut_at_any_byte_is_4() {
        let whole = reply("token-200");
        for_each((0..whole.len()).collect(), |n: usize| {
            let cut = vec![Act::Send(whole[..n].to_vec()), Act::Close];
            let stand = Stand::script(vec![Step::Request("GET token", cut)]);
            is_state(&run(rotate(&stand).args(["--timeout", "0.9"])), 4, UNCHANGED);
        });
    }

    #[test]
    fn a_revoke_reply_cut_at_any_byte_is_5() {
        let whole = reply("delete-200");
        for_each((0..whole.len()).collect(), |n: usize| {
            let mut script = good_run();
            script[3] = Step::Request("DELETE revoke", vec![Act::Send(whole[..n].to_vec()), Act::Close]);
            let stand = Stand::script(script);
            let done = run(rotate(&stand).args(["--timeout", "0.9"]));
            assert_eq!((done.status, done.stdout.as_str()), (Some(5), line().as_str()), "{n}: {done}");
        });
    }

    /// A body without a length may end like this, or be cut.
    #[test]
    fn a_reply_without_a_length_that_ends_in_a_reset_is_cut() {
        let head = b"HTTP/1.1 200 \r\nContent-Type: application/json\r\n\r\n";
        let cut = |body: &str| {
            vec![
                Act::Send([head, body.as_bytes()].concat()),
                Act::Sleep(Duration::from_millis(50)),
                Act::Reset,
            ]
        };
        let mut script = good_run();
        script.insert(0, Step::Request("GET token", cut("{\"response\":")));
        script.insert(4, Step::Request("DELETE revoke", cut("")));
        let stand = Stand::script(script);
        let done = run(&mut rotate(&stand));
        assert_eq!((done.status, done.stdout.as_str()), (Some(0), line().as_str()), "{done}");
        for cut in ["[GET token] Status: 200, cut short: ", "[DELETE revoke] Status: 200, cut short: "] {
            assert!(done.stderr.contains(cut), "{done}");
        }
        let good = format!(r#"{{"client_secret":"{SECRET}"}}"#);
        is_state(&patch_meets(cut(&good), &[]), 7, UNKNOWN);
    }

    fn chunked(chunk: &[u8], times: usize) -> Vec<u8> {
        let mut reply = b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for _ in 0..times {
            reply.extend(format!("{:x}\r\n", chunk.len()).bytes());
            reply.extend(chunk);
            reply.extend(b"\r\n");
        }
        reply.extend(b"0\r\n\r\n");
        reply
    }

    #[test]
    fn answers_that_are_none_are_7() {
        let mib = vec![b'x'; 1024 * 1024];
        let good = format!(r#"{{"client_secret":"{SECRET}"}}"#);
        let padded = format!("{good}{}", " ".repeat(64 * 1024));
        let endless = [&b"HTTP/1.1 200 \r\n"[..], &b"X-Header: and another\r\n".repeat(100_000)].concat();
        let raw = |head: &str, body: &str| format!("HTTP/1.1 200 \r\n{head}\r\n\r\n{body}").into_bytes();
        let cases: Vec<Vec<u8>> = vec![
            b"\0\x01\x02\x03 garbage".to_vec(),
            b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
            b"HTTP/2 200 \r\nContent-Length: 0\r\n\r\n".to_vec(),
            b"HTTP/1.1 0 \r\n\r\n".to_vec(),
            b"HTTP/1.1 1000 \r\n\r\n".to_vec(),
            b"HTTP/1.1 -200 \r\n\r\n".to_vec(),
            good.clone().into_bytes(),
            endless,
            [&b"HTTP/1.1 200 \r\nX: "[..], &[b'x'; 17 * 1024], b"\r\n\r\n"].concat(),
            [&b"HTTP/1.1 200 "[..], &mib].concat(),
            [&b"HTTP/1.1 200 \r\nX: "[..], &mib].concat(),
            http("200 ", "", mib.repeat(10)),
            http("200 ", "", &padded),
            chunked(&mib, 10),
            chunked(b"[", 60_000),
            raw("Transfer-Encoding: chunked", &format!("zz\r\n{good}\r\n0\r\n\r\n")),
            raw("Transfer-Encoding: chunked", &format!("fffffffffffffffff\r\n{good}\r\n0\r\n\r\n")),
            raw("Content-Length: 500", &good),
            raw("Content-Length: -1", &good),
            raw("Content-Length: 9\r\nContent-Length: 10", &good),
            raw("X: \0", &good),
            raw("Content-Encoding: gzip\r\nContent-Length: 4", "\x1f\x08\x08\x00"),
            http("200 ", "", "[".repeat(60_000)),
            http("200 ", "", r#"{"a":"#.repeat(12_000)),
            http("200 ", "", b"{\"client_secret\":\"\xff\xfe\"}"),
            http("200 ", "", b"\xff\xfe"),
            http("200 ", "Content-Type: text/html", "<html>\x1b[2J</html>"),
            http("200 ", "", ""),
            json(r#"{"client_secret":null}"#),
            json(r#"{"client_secret":["LQn1uOTJsTqgOLJO1oB2ztSqw5IoxNuP8zQa"]}"#),
            json(r#"{"client_secret":"\u001b]0;title\u0007"}"#),
            json(r#"{"client_secret":"LQn1\u0000"}"#),
            json(r#"{"response":null}"#),
            http("101 Switching Protocols", "Upgrade: x", ""),
            http("201 Created", "", &good),
            http("202 Accepted", "", &good),
            http("206 Partial", "", &good),
            b"HTTP/1.1 204 \r\n\r\n".to_vec(),
            b"HTTP/1.1 205 \r\nContent-Length: 0\r\n\r\n".to_vec(),
            http("500 ", "", mib.repeat(10)),
            http("999 ", "", &good),
        ];
        for_each(cases, |bytes| {
            let done = patch_meets(vec![Act::Send(bytes), Act::Close], &[]);
            is_state(&done, 7, UNKNOWN);
        });
    }

    #[test]
    fn unusual_answers_that_are_good_are_taken() {
        let good = format!(r#"{{"client_secret":"{SECRET}"}}"#);
        let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n";
        let cases: Vec<Vec<u8>> = vec![
            [interim.as_bytes(), &reply("patch-200")].concat(),
            format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{good}").into_bytes(),
            format!("HTTP/1.0 200 OK\r\n\r\n{good}").into_bytes(),
            format!("HTTP/1.1 200\r\nContent-Length: {}\r\n\r\n{good}", good.len()).into_bytes(),
            chunked(good.as_bytes(), 1),
            json(format!("\n\t {good} \r\n")),
            json(format!("{good}{}", " ".repeat(64 * 1024 - good.len()))),
            json(format!(r#"{{"client_secret":"{SECRET}","extra":{}}}"#, "[".repeat(100) + &"]".repeat(100))),
        ];
        for_each(cases, |bytes| {
            let done = patch_meets(vec![Act::Send(bytes), Act::Close], &["--only", "regenerate", "-q"]);
            done.is(0, &line(), &[]);
        });
    }

    #[test]
    fn every_3xx_and_4xx_but_408_and_429_is_3() {
        let statuses = (300..500).filter(|status| *status != 408 && *status != 429).collect();
        for_each(statuses, |status: u16| {
            let stand = Stand::script(looked([on(
                "PATCH regenerate",
                http(&format!("{status} "), "Location: /elsewhere", "no"),
            )]));
            let done = run(&mut rotate(&stand));
            is_state(
                &done,
                3,
                "; the client's secret is unchanged; check the address, CA, key and client id",
            );
        });
    }

    #[test]
    fn what_a_refusal_says_is_shown_short_and_harmless() {
        let long = "Forbidden. ".repeat(500);
        let problem = |text: &str| http("403 ", "Content-Type: application/problem+json", text);
        let cases: Vec<(Vec<u8>, String)> = vec![
            (problem(&format!(r#"{{"title":"No","detail":"{long}"}}"#)), format!(" (No: {}…)", &long[..195])),
            (problem(r#"{"reason":"older servers"}"#), " (older servers)".to_owned()),
            (problem(r#"{"title":"a\tb\u001b]0;x\u0007"}"#), r" (a\tb\u{1b}]0;x\u{7})".to_owned()),
            (problem("{\"title\":\"\u{9b}2J\u{202e}z\"}"), r" (\u{9b}2J\u{202e}z)".to_owned()),
            (problem(r#"{"title":"\u001b[2J\u0000"}"#), r" (\u{1b}[2J\0)".to_owned()),
            (problem(&format!(r#"{{"title":"{KEY} {SIGNATURE}"}}"#)), " ([hidden])".to_owned()),
            (problem(&format!(r#"{{"title":"No","detail":"it is {KEY}"}}"#)), " (No: [hidden])".to_owned()),
            (problem(&format!(r#"{{"title":"{}{KEY}"}}"#, "x".repeat(196))), " ([hidden])".to_owned()),
            (problem(&format!(r#"{{"title":"{}"}}"#, KEY.to_uppercase())), " ([hidden])".to_owned()),
            (problem("[".repeat(60_000).as_str()), String::new()),
            // Neither HTML nor any other text, nothing that is cut.
            (http("403 ", "", &long), String::new()),
            (http("403 ", "", "a\tb\u{1b}]0;x\u{7}\u{9b}2J\u{202e}z"), String::new()),
            (http("403 ", "", b"\x80\xff binary \0"), String::new()),
            (http("403 ", "", format!("{KEY} {SIGNATURE}")), String::new()),
            (http("403 ", "", ""), String::new()),
            (http("403 ", "", "x".repeat(10 * 1024 * 1024)), " and more than 64 KiB".to_owned()),
            (
                b"HTTP/1.1 403 \r\nContent-Length: 100\r\n\r\n{\"title\":\"half\"}".to_vec(),
                ", cut short: the connection was closed".to_owned(),
            ),
        ];
        for_each(cases, |(bytes, said)| {
            let done = patch_meets(vec![Act::Send(bytes), Act::Close], &[]);
            let error = format!(
                "docspace-rotate: 127.0.0.1 answered [PATCH regenerate] with status 403{said}; \
                the client's secret is unchanged; check the address, CA, key and client id"
            );
            assert_eq!((done.status, done.error()), (Some(3), error.as_str()), "{done}");
        });
    }

    #[test]
    fn a_redirect_that_echoes_the_key_hides_it() {
        let location = format!("Location: https://evil.invalid/{KEY}/x\u{9b}2J");
        let done = patch_meets(vec![Act::Send(http("302 ", &location, ""))], &[]);
        assert_eq!(done.status, Some(3), "{done}");
        assert!(done.error().contains("to [hidden]: give --url"), "{done}");
    }

    /// The most that the program ever held, in KiB.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_huge_reply_takes_no_memory() {
        let (waiting, step) = held("PATCH regenerate", reply("patch-200"));
        let stand = Stand::script(vec![
            on("GET token", http("200 ", "", "x".repeat(10 * 1024 * 1024))),
            look(),
            step,
        ]);
        let command = &mut rotate(&stand);
        command.args(["--only", "regenerate"]);
        let child = run::start(command);
        stand.wait_for(3);
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        drop(waiting);
        let done = run::finish(command, child);
        assert_eq!(done.status, Some(0), "{done}");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let peak: u32 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(peak < 12 * 1024, "{peak} KiB");
    }
}
