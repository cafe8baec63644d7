//! Networks and portals that fail: when a call is repeated, and the state that the client is left in.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Mutex;
use std::thread;

use crate::mock::*;
use crate::run::*;
use crate::words::*;

/// Time for a second attempt after 1 s, but not for a third after 2 s more.
const TWO_ATTEMPTS: [&str; 2] = ["--timeout", "2.9"];

/// The server's part of the handshake has the same length each time, so the statuses show where it ends.
#[test]
fn a_reset_during_the_handshake_is_tried_again_and_after_it_is_7() {
    let results = Mutex::new(vec![]);
    for_each((0..=640).step_by(32).collect(), |bytes| {
        let reset = Expect::Connection(vec![Action::ResetAfter(bytes)]);
        let script = ready([reset, expect_then("PATCH regenerate", [Action::Reset])]);
        let (run, portal) = run_at(true, script, &[]);
        run.fails_with(7, UNKNOWN);
        // The PATCH may be lost on its way.
        portal.allow_unfinished();
        assert!(portal.count("PATCH regenerate") < 2, "{run}");
        let retry = "127.0.0.1 could not be reached for [PATCH regenerate]: ";
        let is_tried_again = run.stderr.contains(retry);
        results.lock().unwrap().push((bytes, is_tried_again));
    });
    let mut results = results.into_inner().unwrap();
    results.sort();
    let end = results.partition_point(|(_, is_tried_again)| *is_tried_again);
    let (during, after) = results.split_at(end);
    assert!(during.len() > 3 && after.len() > 3, "{results:?}");
    let is_tried_again = |(_, is_tried_again): &(usize, bool)| *is_tried_again;
    assert!(!after.iter().any(is_tried_again), "{results:?}");
}

#[test]
fn a_connection_that_ends_after_the_handshake_is_7() {
    for end in [(|| Action::Reset) as fn() -> Action, || Action::Close] {
        let patch = || expect_then("PATCH regenerate", [end()]);
        for (tls, next) in [
            (true, Expect::Handshake(vec![end()])),
            (true, patch()),
            (false, patch()),
        ] {
            run_at(tls, ready([next]), &[]).0.fails_with(7, UNKNOWN);
        }
    }
}

#[test]
fn a_closed_port_and_an_unknown_name_are_4() {
    for url in [
        "http://127.0.0.1:1",
        "https://portal.invalid",
        "http://portal.invalid",
    ] {
        let mut command = program();
        command
            .env("DOCSPACE_API_KEY", KEY)
            .args([CLIENT, "--allow-http", "--url", url])
            .args(TWO_ATTEMPTS);
        run(&mut command)
            .fails_with(4, UNCHANGED)
            .fails_with(4, " could not be reached for [GET token]: ");
    }
}

#[test]
fn a_patch_without_a_finished_handshake_is_repeated() {
    let script = ready([
        Expect::Connection(vec![Action::Reset]),
        regenerate(),
        revoke(),
    ]);
    let (run, _portal) = run_at(true, script, &[]);
    let retry = "127.0.0.1 could not be reached for [PATCH regenerate]: …";
    run.assert_run(
        0,
        &secret_line(),
        &[&GOOD_RUN_LOG[..2], &[retry], &GOOD_RUN_LOG[2..]].concat(),
    );
    assert!(run.stderr.contains(", trying again in 1s\n"), "{run}");
}

/// Nothing listens on 127.0.0.9, where the portal is when the run begins.
#[test]
fn a_host_whose_address_fails_is_resolved_again() {
    let namespace = ["--user", "--map-root-user", "--mount"];
    if !command("unshare")
        .args(namespace)
        .arg("true")
        .output()
        .is_ok_and(|output| output.status.success())
    {
        return skipped(
            "a_host_whose_address_fails_is_resolved_again",
            "no namespaces here (unshare)",
        );
    }
    let (folder, portal) = (Folder::new(), MockPortal::new(good_run()));
    let mut lines = String::new();
    for last in 5..10 {
        lines += &format!("127.0.0.{last} portal.invalid\n");
    }
    let hosts = folder.file("hosts", &lines);
    let mut unshare = command("unshare");
    unshare
        .args(namespace)
        .args(["sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""])
        .arg(&hosts);
    unshare.args([
        program().get_program(),
        CLIENT.as_ref(),
        "--allow-http".as_ref(),
    ]);
    unshare.env("DOCSPACE_API_KEY", KEY);
    unshare.env(
        "DOCSPACE_BASE_URL",
        format!("http://portal.invalid:{}", portal.at.port()),
    );
    let mut child = start(&mut unshare);
    let tried = "portal.invalid (127.0.0.5, 127.0.0.6, 127.0.0.7, and 2 more) could not be reached";
    read_until(&mut child, tried);
    read_until(&mut child, "Connection refused, trying again in 1s\n");
    fs::write(hosts, "127.0.0.1 portal.invalid\n").unwrap();
    finish(&unshare, child).assert_run(0, &secret_line(), &GOOD_RUN_LOG);
}

#[test]
fn localhost_is_127_0_0_1_and_then_the_ipv6_loopback() {
    // Lower than any port that a mock gets, so that nothing listens on it at 127.0.0.1.
    let port = 20_000 + (std::process::id() % 10_000) as u16;
    let Ok(listener) = TcpListener::bind(("::1", port)) else {
        return skipped(
            "localhost_is_127_0_0_1_and_then_the_ipv6_loopback",
            "no IPv6 here",
        );
    };
    let server = thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        assert_ne!(client.read(&mut [0; 4096]).unwrap(), 0);
        client.write_all(&recorded("token-401")).unwrap();
    });
    let mut command = program();
    command
        .env("DOCSPACE_API_KEY", KEY)
        .env("DOCSPACE_BASE_URL", format!("http://localhost:{port}"));
    run(command.arg(CLIENT).args(TWO_ATTEMPTS))
        .fails_with(3, " answered [GET token] with status 401");
    server.join().unwrap();
}

/// The identity service says so without a wait that can be used: its `X-RateLimit-Reset` has
/// nanoseconds in it.
#[test]
fn a_busy_portal_is_asked_again() {
    let busy = |call| expect(call, recorded("patch-429"));
    let portal = MockPortal::new(vec![
        busy("GET token"),
        sign_in(),
        busy("HEAD client"),
        probe(),
        busy("PATCH regenerate"),
        busy("PATCH regenerate"),
        regenerate(),
        busy("DELETE revoke"),
        revoke(),
    ]);
    let log = [
        "[GET token] Status: 429, trying again in 1s",
        GOOD_RUN_LOG[0],
        "[HEAD client] Status: 429, trying again in 1s",
        GOOD_RUN_LOG[1],
        "[PATCH regenerate] Status: 429, trying again in 1s",
        "[PATCH regenerate] Status: 429, trying again in 2s",
        GOOD_RUN_LOG[2],
        GOOD_RUN_LOG[3],
        "[DELETE revoke] Status: 429, trying again in 1s",
        GOOD_RUN_LOG[4],
        GOOD_RUN_LOG[5],
    ];
    run(&mut rotate(&portal)).assert_run(0, &secret_line(), &log);
    assert_fresh_for_patch(&portal);
}

#[track_caller]
fn assert_fresh_for_patch(portal: &MockPortal) {
    let mut used = vec![];
    for request in portal.requests() {
        let is_fresh = !used.contains(&request.connection);
        assert!(
            is_fresh || request.method != "PATCH",
            "the PATCH is on a kept connection"
        );
        used.push(request.connection);
    }
}

/// A reply that asks for a wait beyond the time limit.
struct LongWait {
    name: &'static str,
    call: &'static str,
    reply: &'static str,
    seconds: u32,
    status: i32,
}

impl Default for LongWait {
    fn default() -> LongWait {
        LongWait {
            name: "",
            call: "HEAD client",
            reply: "429",
            seconds: 3600,
            status: 4,
        }
    }
}

#[test]
fn a_wait_that_exceeds_the_time_limit_does_not_begin() {
    for case in [
        LongWait {
            name: "an outage",
            call: "GET token",
            reply: "503",
            seconds: 120,
            ..LongWait::default()
        },
        LongWait {
            name: "the HEAD",
            ..LongWait::default()
        },
        LongWait {
            name: "the PATCH",
            call: "PATCH regenerate",
            ..LongWait::default()
        },
        LongWait {
            name: "the DELETE",
            call: "DELETE revoke",
            status: 5,
            ..LongWait::default()
        },
        LongWait {
            name: "no final reply",
            reply: "101: not a final reply",
            ..LongWait::default()
        },
    ] {
        let _case = Named(case.name);
        let (call, seconds) = (case.call, case.seconds);
        let status = format!("{} ", &case.reply[..3]);
        // Whitespace around a value does not count (RFC 9110, section 5.5).
        let reply = response(&status, &format!("Retry-After: \t{seconds} "), "");
        let run = run_script(good_run_until(call, reply), &["--timeout", "3"]);
        assert_eq!(run.status, Some(case.status), "{run}");
        let note = format!("and the next attempt in {seconds}s would exceed the time limit; ");
        let words = format!("[{call}] with status {}, {note}", case.reply);
        assert!(run.error().contains(&words), "{run}");
    }
}

#[test]
fn transient_faults_are_waited_out() {
    let close: fn() -> Action = || Action::Close;
    let statuses = [
        "408 ", "425 ", "429 ", "500 ", "502 ", "503 ", "504 ", "599 ",
    ];
    let mut faults = Vec::from(statuses.map(|status| (response(status, "", ""), close)));
    let truncated = recorded("delete-200")[..200].to_vec();
    let (bad, worse) = (recorded("gateway-502"), recorded("gateway-504"));
    faults.extend(
        [bad, worse, truncated, b"\0\x01garbage".to_vec(), vec![]].map(|bytes| (bytes, close)),
    );
    faults.push((vec![], || Action::Reset));
    for_each(faults, |(bytes, end)| {
        let fails = |call| expect_then(call, [Action::Send(bytes.clone()), end()]);
        let [token, head, delete] = ["GET token", "HEAD client", "DELETE revoke"].map(fails);
        let run = run_script(
            vec![
                token,
                sign_in(),
                head,
                probe(),
                regenerate(),
                delete,
                revoke(),
            ],
            &[],
        );
        assert_eq!(
            (run.status, &*run.stdout),
            (Some(0), &*secret_line()),
            "{run}"
        );
        assert_eq!(
            run.stderr.matches(", trying again in 1s\n").count(),
            3,
            "{run}"
        );
    });
}

/// A reply that is a reply only from this length on.
struct Cut {
    /// The position of the call in a good run.
    position: usize,
    call: &'static str,
    reply: Vec<u8>,
    enough: usize,
    /// The status if less has come.
    status: i32,
}

#[test]
fn a_reply_truncated_at_any_byte_is_no_reply() {
    let cut = |position, call, name, status| {
        let reply = recorded(name);
        let enough = reply.len();
        Cut {
            position,
            call,
            reply,
            enough,
            status,
        }
    };
    let token = cut(0, "GET token", "token-200", 4);
    let mut patch = cut(2, "PATCH regenerate", "patch-200", 7);
    // JSON says itself whether it is complete.
    patch.enough -= "\r\n0\r\n\r\n".len();
    let delete = cut(3, "DELETE revoke", "delete-200", 5);
    for cut in [token, patch, delete] {
        let mut lengths: Vec<usize> = (0..cut.enough).step_by(17).collect();
        lengths.extend(cut.enough - 5..=cut.enough);
        for_each(lengths, |length| check_cut(&cut, length));
    }
}

fn check_cut(cut: &Cut, length: usize) {
    let part = || {
        let part = cut.reply[..length].to_vec();
        expect_then(cut.call, [Action::Send(part), Action::Close])
    };
    let mut script = good_run();
    script[cut.position] = part();
    if length == cut.enough {
        // The next call may meet the close, and is then repeated.
        let run = run_script(script, &[]);
        assert_eq!(run.status, Some(0), "{length} bytes\n{run}");
        assert_eq!(run.stdout, secret_line(), "{run}");
        return;
    }
    script.truncate(cut.position + 1);
    if cut.call != "PATCH regenerate" {
        script.push(part());
    }
    let run = run_script(script, &TWO_ATTEMPTS);
    assert_eq!(run.status, Some(cut.status), "{length} bytes\n{run}");
    let is_delivered = cut.status == 5;
    let stdout = if is_delivered {
        secret_line()
    } else {
        String::new()
    };
    assert_eq!(run.stdout, stdout, "{run}");
}

#[test]
fn a_patch_is_sent_once_after_any_answer_without_a_usable_secret() {
    let mib = vec![b'x'; 1024 * 1024];
    let good = format!(r#"{{"client_secret":"{SECRET}"}}"#);
    let cases: Vec<Vec<u8>> = vec![
        response("503 ", "Retry-After: 1", ""),
        response("408 ", "", ""),
        response("501 ", "", ""),
        b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
        good.clone().into_bytes(),
        response("101 Switching Protocols", "Upgrade: x", ""),
        b"HTTP/1.1 204 \r\n\r\n".to_vec(),
        [
            &b"HTTP/1.1 200 \r\n"[..],
            &b"X-Header: and another\r\n".repeat(10_000),
        ]
        .concat(),
        [&b"HTTP/1.1 200 \r\nX: "[..], &mib].concat(),
        response("200 ", "", mib.repeat(10)),
        json(format!("{}{good}", " ".repeat(64 * 1024))),
        json(b"{\"client_secret\":\"\xff\xfe\"}"),
        response("200 ", "Content-Type: text/html", "<html>\x1b[2J</html>"),
        json(r#"{"client_secret":""}"#),
        json(r#"{"client_secret":"\u001b]0;title\u0007"}"#),
    ];
    for_each(cases, |bytes| {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(100)]).into_owned();
        let patch = expect_then("PATCH regenerate", [Action::Send(bytes), Action::Close]);
        let run = run_script(ready([patch]), &[]);
        assert_eq!(run.status, Some(7), "{shown:?}\n{run}");
        run.fails_with(7, UNKNOWN);
    });
}

#[test]
fn an_answer_that_breaks_http_says_so() {
    for header in [
        "X-A : b",
        "X-A: b\r\n c",
        "Content-Length: 1\r\nContent-Length: 2",
        &"X: y\r\n".repeat(200),
    ] {
        let bytes = response("200 ", header, "");
        let patch = expect_then("PATCH regenerate", [Action::Send(bytes), Action::Close]);
        let why = "the reply is not HTTP/1.1, or cannot be parsed";
        let error = format!("gave no valid answer to [PATCH regenerate]: {why}; ");
        run_script(ready([patch]), &[]).fails_with(7, &error);
    }
}

#[test]
fn a_definite_answer_to_the_patch_is_3() {
    let statuses = [
        300, 301, 304, 307, 400, 401, 403, 404, 405, 409, 410, 422, 425, 451, 499,
    ];
    for_each(statuses.into(), |status: u16| {
        let patch = expect(
            "PATCH regenerate",
            response(&format!("{status} "), "", "no"),
        );
        run_script(ready([patch]), &[]).fails_with(3, REFUSED);
    });
}
