//! SIGHUP, SIGINT, SIGTERM and SIGALRM: which end the run at once, which are deferred, and what the line says.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::thread::sleep;
use std::time::{Duration, Instant};

use libc::{SIGALRM, SIGCONT, SIGHUP, SIGINT, SIGSTOP, SIGTERM};

use crate::mock::*;
use crate::run::*;
use crate::words::*;

/// Returns the line of a run that a signal or the timer has ended.
fn ended(cause: &str, step: &str, state: &str) -> String {
    let at = if step.starts_with('[') {
        " at 127.0.0.1"
    } else {
        ""
    };
    let when = if step == "the delivery" && state != NOT_DELIVERED {
        "after"
    } else {
        "during"
    };
    format!("docspace-rotate: {cause} {when} {step}{at}; {state}")
}

/// A request, and the parts of its reply that come before and after the signals. An empty second part is silence.
type Last<'a> = (&'static str, &'a [u8], &'a [u8]);

/// Sends signals during the last request.
fn signal_during(before: Vec<Expect>, last: Last, args: &[&str], signals: &[i32]) -> Run {
    let (request, early, late) = last;
    let (sent, gate) = channel();
    let late = if late.is_empty() {
        Action::Hang
    } else {
        Action::Send(late.to_vec())
    };
    let last = expect_then(
        request,
        [Action::Send(early.to_vec()), Action::WaitFor(gate), late],
    );
    let requests = before.len() + 1;
    let portal = MockPortal::new(before.into_iter().chain([last]).collect());
    let mut command = rotate(&portal);
    let child = start(command.env("PATH", "/usr/bin:/bin").arg("-q").args(args));
    portal.wait_for(requests);
    signals
        .iter()
        .for_each(|signal| send_and_wait(&child, *signal));
    drop(sent);
    finish(&command, child)
}

/// Sends a signal and waits until it is handled: of two pending signals the kernel chooses the order.
fn send_and_wait(child: &Child, signal: i32) {
    send(child, signal);
    wait_for_status(child, "ShdPnd:\t0000000000000000");
}

/// Waits until the kernel's description of a process contains this text.
fn wait_for_status(child: &Child, text: &str) {
    let status = format!("/proc/{}/status", child.id());
    assert!(
        wait_until(|| fs::read_to_string(&status).unwrap().contains(text)),
        "{text}"
    );
}

#[test]
fn a_signal_ends_the_run_and_names_the_step_and_the_state() {
    for (before, request, args, state, stdout) in [
        (vec![], "GET token", &[][..], UNCHANGED, ""),
        (vec![sign_in()], "HEAD client", &[], UNCHANGED, ""),
        (
            ready([regenerate()]),
            "DELETE revoke",
            &[],
            NOT_REVOKED,
            &secret_line(),
        ),
        (
            vec![sign_in()],
            "DELETE revoke",
            &["--only", "revoke"],
            UNCHANGED,
            "",
        ),
        (
            good_run(),
            "POST introspect",
            &["--verify"],
            NOT_VERIFIED,
            &secret_line(),
        ),
    ] {
        let run = signal_during(before, (request, b"", b""), args, &[SIGTERM]);
        run.assert_run(
            143,
            stdout,
            &[&ended("ended by SIGTERM", &format!("[{request}]"), state)],
        );
    }
}

#[test]
fn a_signal_before_anything_is_sent_names_the_file() {
    for (variable, file, what) in [
        (
            "DOCSPACE_API_KEY",
            "DOCSPACE_API_KEY_FILE",
            "the file in DOCSPACE_API_KEY_FILE",
        ),
        (
            "DOCSPACE_CLIENT_ID",
            "DOCSPACE_CLIENT_ID_FILE",
            "the file in DOCSPACE_CLIENT_ID_FILE",
        ),
        ("", "SSL_CERT_FILE", "the CA file"),
    ] {
        let folder = Folder::new();
        let fifo = folder.fifo();
        let mut command = program();
        command
            .env("DOCSPACE_API_KEY", KEY)
            .env("DOCSPACE_CLIENT_ID", CLIENT)
            .env_remove(variable);
        let child = start(
            command
                .env("DOCSPACE_BASE_URL", "http://[::1]:1")
                .env(file, &fifo),
        );
        // Opening it for writing waits until the program has opened it.
        let _writer = fs::OpenOptions::new().write(true).open(&fifo).unwrap();
        send(&child, SIGTERM);
        let error = format!("docspace-rotate: ended by SIGTERM while reading {what}; {UNCHANGED}");
        finish(&command, child).assert_run(143, "", &[&error]);
    }
}

#[test]
fn a_signal_ends_a_wait_for_another_attempt() {
    let busy = |request| expect(request, response("429 ", "Retry-After: 60", ""));
    for (script, step, state, stdout) in [
        (vec![busy("GET token")], "[GET token]", UNCHANGED, ""),
        (
            ready([busy("PATCH regenerate")]),
            "[PATCH regenerate]",
            UNCHANGED,
            "",
        ),
        (
            ready([regenerate(), busy("DELETE revoke")]),
            "[DELETE revoke]",
            NOT_REVOKED,
            &secret_line(),
        ),
    ] {
        let portal = MockPortal::new(script);
        let mut command = rotate(&portal);
        let mut child = start(&mut command);
        read_until(&mut child, "trying again in 60");
        read_until(&mut child, "\n");
        send(&child, SIGTERM);
        finish(&command, child).assert_run(143, stdout, &[&ended("ended by SIGTERM", step, state)]);
    }
}

/// Nothing of the PATCH has left before its handshake is finished.
#[test]
fn a_signal_during_the_handshake_for_the_patch_is_not_deferred() {
    let (_folder, certificates, ca) = authority();
    let hang = Expect::Connection(vec![Action::Hang]);
    let portal = MockPortal::tls(certificates.server("127.0.0.1"), ready([hang]));
    let mut command = rotate(&portal);
    let child = start(command.arg("-q").arg("--cacert").arg(ca));
    assert!(wait_until(|| portal.connections() == 2));
    send(&child, SIGTERM);
    finish(&command, child).assert_run(
        143,
        "",
        &[&ended("ended by SIGTERM", "[PATCH regenerate]", UNCHANGED)],
    );
}

#[test]
fn the_first_signal_during_the_patch_is_deferred_until_the_secret_is_delivered() {
    let reply = recorded("patch-200");
    for (signals, cause, status) in [
        (&[SIGHUP][..], "ended by SIGHUP", 129),
        (&[SIGINT, SIGTERM], "ended by SIGINT", 130),
        (&[SIGTERM, SIGINT, SIGHUP], "ended by SIGTERM", 143),
    ] {
        for received in [0, reply.len() - 30, reply.len() - 1] {
            let patch = ("PATCH regenerate", &reply[..received], &reply[received..]);
            let run = signal_during(ready([]), patch, &[], signals);
            run.assert_run(
                status,
                &secret_line(),
                &[&ended(cause, "the delivery", NOT_REVOKED)],
            );
            let mut args = vec!["--only", "regenerate"];
            // Nothing is left to do.
            signal_during(ready([]), patch, &args, signals).assert_run(0, &secret_line(), &[]);
            args.push("--verify");
            let run = signal_during(ready([]), patch, &args, signals);
            run.assert_run(
                status,
                &secret_line(),
                &[&ended(cause, "the delivery", NOT_VERIFIED)],
            );
        }
    }
}

/// SIGALRM is what the timer sends when the time is up. Otherwise, the pipe is read after the signal.
#[test]
fn a_signal_during_the_delivery_is_deferred_until_its_end() {
    for (args, signals, status, cause, state) in [
        (&[][..], &[SIGHUP][..], 129, "ended by SIGHUP", NOT_REVOKED),
        (&[], &[SIGINT, SIGTERM], 130, "ended by SIGINT", NOT_REVOKED),
        (&[], &[SIGTERM], 143, "ended by SIGTERM", NOT_REVOKED),
        (&["--only", "regenerate"], &[SIGTERM], 0, "", ""),
        (
            &[],
            &[SIGINT, SIGALRM],
            130,
            "ended by SIGINT",
            NOT_DELIVERED,
        ),
        (&[], &[SIGALRM], 6, "timed out", NOT_DELIVERED),
    ] {
        let (reader, writer) = full_pipe();
        let portal = MockPortal::new(ready([regenerate()]));
        let mut command = rotate(&portal);
        let mut child = command
            .args(args)
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The command would keep the pipe open.
        command.stdout(Stdio::null());
        read_until(&mut child, "Client secret has been regenerated.\n");
        // It sleeps in its write to the full pipe.
        wait_for_status(&child, "State:\tS");
        signals
            .iter()
            .for_each(|signal| send_and_wait(&child, *signal));
        let text = std::io::read_to_string(reader).unwrap();
        assert_eq!(text.ends_with(&secret_line()), !signals.contains(&SIGALRM));
        let error = ended(cause, "the delivery", state);
        finish(&command, child).assert_run(
            status,
            "",
            &[error.as_str()][..usize::from(status != 0)],
        );
    }
}

#[test]
fn a_signal_during_a_patch_that_fails() {
    let busy = response("429 ", "Retry-After: 60", "");
    let truncated = response("200 ", "", r#"{"client_secret":"#);
    for (late, args, status, what) in [
        // The client's secret is unchanged: the run ends before the wait.
        (
            busy,
            &[][..],
            143,
            &*ended("ended by SIGTERM", "[PATCH regenerate]", UNCHANGED),
        ),
        // The run ends by itself, and keeps its status.
        (
            recorded("patch-404-unknown"),
            &[],
            3,
            "answered [PATCH regenerate] with status 404",
        ),
        (
            recorded("patch-500"),
            &[],
            7,
            "answered [PATCH regenerate] with status 500",
        ),
        (
            truncated,
            &[],
            7,
            "answered [PATCH regenerate] with status 200",
        ),
        (
            recorded("patch-200"),
            &["--", "sh", "-c", "exit 9"],
            6,
            "it exited with status 9",
        ),
    ] {
        let run = signal_during(
            ready([]),
            ("PATCH regenerate", b"", &late),
            args,
            &[SIGTERM],
        );
        run.fails_with(status, what);
    }
}

/// The handlers do not nest, so the signal that the kernel delivers first counts: the one with the lower number.
#[test]
fn of_two_pending_signals_the_first_that_is_handled_counts() {
    let (gate, patch) = gated("PATCH regenerate", recorded("patch-200"));
    let portal = MockPortal::new(ready([patch]));
    let mut command = rotate(&portal);
    let child = start(command.arg("-q"));
    portal.wait_for(3);
    send(&child, SIGSTOP);
    wait_for_status(&child, "State:\tT");
    for signal in [SIGTERM, SIGINT, SIGCONT] {
        send(&child, signal);
    }
    drop(gate);
    finish(&command, child).assert_run(
        130,
        &secret_line(),
        &[&ended("ended by SIGINT", "the delivery", NOT_REVOKED)],
    );
}

/// Docker kills after 10 s. Neither the time limit nor more signals make a difference.
#[test]
fn a_patch_gets_five_seconds_after_a_signal() {
    for_each(
        vec![("1", 1), ("60", 1), ("60", 5)],
        |(timeout, signals)| {
            let portal = MockPortal::new(ready([expect_then("PATCH regenerate", [Action::Hang])]));
            let mut command = rotate(&portal);
            let child = start(command.args(["-q", "--timeout", timeout]));
            portal.wait_for(3);
            let since = Instant::now();
            for second in 0..signals {
                sleep(Duration::from_secs(second).saturating_sub(since.elapsed()));
                send(&child, SIGTERM);
            }
            finish(&command, child).assert_run(
                143,
                "",
                &[&ended("ended by SIGTERM", "[PATCH regenerate]", UNKNOWN)],
            );
            let took = since.elapsed().as_secs_f64();
            assert!((4.9..5.5).contains(&took), "{took} s");
        },
    );
}

#[test]
fn a_reply_after_four_seconds_is_delivered_even_by_a_command_that_takes_three() {
    let folder = Folder::new();
    let file = folder.path("file");
    let (reply, patch) = gated("PATCH regenerate", recorded("patch-200"));
    let portal = MockPortal::new(ready([patch]));
    let mut command = rotate(&portal);
    command
        .env("PATH", "/usr/bin:/bin")
        .args(["-q", "--timeout", "2"]);
    command.args(["--", "sh", "-c", "sleep 3; cat > $0"]);
    let child = start(command.arg(&file));
    portal.wait_for(3);
    send(&child, SIGTERM);
    sleep(Duration::from_secs(4));
    drop(reply);
    finish(&command, child).assert_run(
        143,
        "",
        &[&ended("ended by SIGTERM", "the delivery", NOT_REVOKED)],
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), SECRET);
}

#[test]
fn no_signal_changes_the_status_of_a_check_that_is_ready() {
    for signal in [SIGTERM, SIGALRM] {
        let last: Last = ("GET @self", b"", &response("404 ", "", ""));
        signal_during(ready([]), last, &["--check"], &[signal]).assert_run(0, "", &[]);
    }
}

/// Lets a command inherit what its caller has done about a signal, and a pending one.
fn inherit(command: &mut Command, signal: i32, disposition: usize, mask: i32, pending: i32) {
    // SAFETY: all of these may be called between fork and exec.
    unsafe {
        command.pre_exec(move || {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, signal);
            libc::signal(signal, disposition);
            libc::sigprocmask(mask, &set, std::ptr::null_mut());
            libc::raise(pending);
            Ok(())
        });
    }
}

#[test]
fn a_signal_that_the_caller_ignores_stays_ignored() {
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        let (reply, head) = gated("HEAD client", recorded("get-200"));
        let portal = MockPortal::new(vec![sign_in(), head, regenerate(), revoke()]);
        let mut command = rotate(&portal);
        inherit(&mut command, signal, libc::SIG_IGN, libc::SIG_UNBLOCK, 0);
        let child = start(&mut command);
        portal.wait_for(2);
        send(&child, signal);
        drop(reply);
        finish(&command, child).assert_run(0, &secret_line(), &GOOD_RUN_LOG);
    }
}

#[test]
fn an_inherited_alarm_does_no_harm() {
    for (disposition, mask, pending) in [
        (libc::SIG_DFL, libc::SIG_BLOCK, 0),
        (libc::SIG_IGN, libc::SIG_UNBLOCK, 0),
        (libc::SIG_DFL, libc::SIG_BLOCK, SIGALRM),
    ] {
        let portal = MockPortal::new(vec![sign_in(), expect_then("HEAD client", [Action::Hang])]);
        let mut command = rotate(&portal);
        inherit(&mut command, SIGALRM, disposition, mask, pending);
        let run = run(command.args(["-q", "--timeout", "1.5"]));
        run.assert_run(4, "", &[&ended("timed out", "[HEAD client]", UNCHANGED)]);
    }
}

#[test]
fn a_full_stderr_delays_no_signal() {
    for (signal, status) in [(SIGTERM, 143), (SIGALRM, 4)] {
        let (_reader, writer) = full_pipe();
        let portal = MockPortal::new(vec![sign_in(), expect_then("HEAD client", [Action::Hang])]);
        let mut child = rotate(&portal)
            .stdout(Stdio::null())
            .stderr(writer)
            .spawn()
            .unwrap();
        portal.wait_for(2);
        send(&child, signal);
        assert_eq!(child.wait().unwrap().code(), Some(status));
    }
}

/// In a namespace of its own the program is process 1, which gets no signal that it has no handler for.
#[test]
fn process_1_gets_signals() {
    let namespace = [
        "--user",
        "--map-root-user",
        "--pid",
        "--fork",
        "--kill-child",
    ];
    if !Command::new("unshare")
        .args(namespace)
        .arg("true")
        .output()
        .is_ok_and(|o| o.status.success())
    {
        return skipped(
            "process_1_gets_signals",
            "no namespaces here (unshare --user --pid)",
        );
    }
    let (reply, patch) = gated("PATCH regenerate", recorded("patch-200"));
    let portal = MockPortal::new(ready([patch]));
    let plain = rotate(&portal);
    let mut command = command("unshare");
    command
        .args(namespace)
        .arg(plain.get_program())
        .args(plain.get_args())
        .arg("-q");
    command.envs(
        plain
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    let child = start(&mut command);
    portal.wait_for(3);
    // SAFETY: a plain system call, to the one child of the child.
    assert_eq!(unsafe { libc::kill(process_1(&child), SIGTERM) }, 0);
    drop(reply);
    finish(&command, child).assert_run(
        143,
        &secret_line(),
        &[&ended("ended by SIGTERM", "the delivery", NOT_REVOKED)],
    );
}
