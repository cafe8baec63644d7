//! SIGHUP, SIGINT, SIGQUIT, SIGTERM and SIGALRM: which end the run at once, which are deferred, and what the line says.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::mpsc::channel;
use std::thread::sleep;
use std::time::{Duration, Instant};

use libc::{SIGALRM, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGSTOP, SIGTERM};

use crate::mock::*;
use crate::run::*;
use crate::words::*;

/// Signals during the last request of a run, and how it then ends.
struct Case {
    name: &'static str,
    /// What comes before the request.
    before: Vec<Expect>,
    request: &'static str,
    reply: Vec<u8>,
    /// The number of bytes of the reply that come before the signals. Without a number nothing ever comes.
    received: Option<usize>,
    args: &'static [&'static str],
    signals: &'static [i32],
    status: i32,
    delivers: bool,
    cause: &'static str,
    state: &'static str,
}

impl Default for Case {
    /// SIGTERM while a portal is silent.
    fn default() -> Case {
        Case {
            name: "",
            before: ready([]),
            request: "PATCH regenerate",
            reply: vec![],
            received: None,
            args: &[],
            signals: &[SIGTERM],
            status: 143,
            delivers: false,
            cause: "",
            state: UNCHANGED,
        }
    }
}

impl Case {
    /// SIGTERM while the portal makes the new secret, which is then delivered.
    fn deferred() -> Case {
        Case {
            reply: recorded("patch-200"),
            received: Some(0),
            delivers: true,
            cause: "ended by SIGTERM after the delivery",
            state: NOT_REVOKED,
            ..Case::default()
        }
    }

    fn assert(&self, run: &Run) {
        let secret = secret_line();
        let stdout = if self.delivers { &*secret } else { "" };
        if self.status == 0 {
            run.assert_run(0, stdout, &[]);
        } else {
            run.assert_error(self.status, stdout, self.cause, self.state);
        }
    }
}

/// Sends a case's signals during its request.
fn run_with_signals(case: &mut Case) -> Run {
    let (sent, gate) = channel();
    let mut actions = vec![];
    match case.received {
        Some(received) => {
            let (early, late) = case.reply.split_at(received);
            actions.push(Action::Send(early.to_vec()));
            actions.push(Action::WaitFor(gate));
            actions.push(Action::Send(late.to_vec()));
        }
        None => actions.push(Action::Hang),
    }
    let mut script = std::mem::take(&mut case.before);
    script.push(expect_then(case.request, actions));
    let requests = script.len();
    let portal = MockPortal::new(script);
    let mut command = rotate(&portal);
    let child = start(command.arg("-q").args(case.args));
    portal.wait_for(requests);
    for signal in case.signals {
        send_and_wait(child.id() as i32, *signal);
    }
    drop(sent);
    finish(&command, child)
}

fn check(mut case: Case) {
    let _named = Named(case.name);
    let run = run_with_signals(&mut case);
    case.assert(&run);
}

/// Sends a signal and waits until it is handled: of two pending signals the kernel chooses the order.
fn send_and_wait(id: i32, signal: i32) {
    kill(id, signal);
    wait_for_status(id, "ShdPnd:\t0000000000000000");
}

#[test]
fn a_signal_ends_the_run_and_names_the_step_and_the_state() {
    let cases = vec![
        Case {
            name: "the sign-in",
            before: vec![],
            request: "GET token",
            cause: "ended by SIGTERM during [GET token] at 127.0.0.1",
            ..Case::default()
        },
        Case {
            name: "the wait for the portal",
            before: vec![sign_in()],
            request: "HEAD client",
            cause: "ended by SIGTERM during [HEAD client] at 127.0.0.1",
            ..Case::default()
        },
        Case {
            name: "the revocation",
            before: ready([regenerate()]),
            request: "DELETE revoke",
            delivers: true,
            cause: "ended by SIGTERM during [DELETE revoke] at 127.0.0.1",
            state: NOT_REVOKED,
            ..Case::default()
        },
        Case {
            name: "the revocation alone",
            before: vec![sign_in()],
            request: "DELETE revoke",
            args: &["--only", "revoke"],
            cause: "ended by SIGTERM during [DELETE revoke] at 127.0.0.1",
            ..Case::default()
        },
        Case {
            name: "the verification",
            before: good_run(),
            request: "POST introspect",
            args: &["--verify"],
            delivers: true,
            cause: "ended by SIGTERM during [POST introspect] at 127.0.0.1",
            state: NOT_VERIFIED,
            ..Case::default()
        },
    ];
    for_each(cases, check);
}

#[test]
fn a_signal_before_anything_is_sent_names_the_file() {
    let folder = Folder::new();
    let fifo = folder.fifo();
    // The folder's name could be a secret.
    for (variable, file) in [
        ("DOCSPACE_API_KEY_FILE", "the file"),
        ("DOCSPACE_CLIENT_ID_FILE", "the file"),
        ("SSL_CERT_FILE", &format!("the CA file {}", fifo.display())),
    ] {
        let mut command = program();
        command
            .env("DOCSPACE_BASE_URL", "http://[::1]:1")
            .env("DOCSPACE_API_KEY", KEY)
            .env("DOCSPACE_CLIENT_ID", CLIENT)
            .env_remove(variable.trim_end_matches("_FILE"))
            .env(variable, &fifo);
        let child = start(&mut command);
        // Opening it for writing waits until the program has opened it.
        let _writer = fs::OpenOptions::new().write(true).open(&fifo).unwrap();
        send(&child, SIGTERM);
        let cause = format!("ended by SIGTERM while reading {file} (from {variable})");
        finish(&command, child).assert_error(143, "", &cause, UNCHANGED);
    }
}

/// The client is unchanged after status 429, so the signal is not deferred.
#[test]
fn a_signal_ends_a_wait_for_another_attempt() {
    let cases = vec![
        Case {
            name: "to regenerate the secret",
            cause: "ended by SIGTERM during [PATCH regenerate] at 127.0.0.1",
            ..Case::default()
        },
        Case {
            name: "to revoke the consent",
            before: ready([regenerate()]),
            request: "DELETE revoke",
            delivers: true,
            cause: "ended by SIGTERM during [DELETE revoke] at 127.0.0.1",
            state: NOT_REVOKED,
            ..Case::default()
        },
    ];
    for_each(cases, |mut case| {
        let _named = Named(case.name);
        let mut script = std::mem::take(&mut case.before);
        script.push(expect(case.request, busy()));
        let portal = MockPortal::new(script);
        let mut command = rotate(&portal);
        let mut child = start(&mut command);
        read_until(&mut child, "trying again in 60");
        read_until(&mut child, "\n");
        send(&child, SIGTERM);
        case.assert(&finish(&command, child));
    });
}

fn busy() -> Vec<u8> {
    response("429 ", "Retry-After: 60", "")
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
    let cause = "ended by SIGTERM during [PATCH regenerate] at 127.0.0.1";
    finish(&command, child).assert_error(143, "", cause, UNCHANGED);
}

#[test]
fn the_first_signal_during_the_patch_is_deferred_until_the_secret_is_delivered() {
    let length = recorded("patch-200").len();
    let cases = vec![
        Case {
            name: "before the reply",
            ..Case::deferred()
        },
        Case {
            name: "during the reply",
            received: Some(length - 30),
            ..Case::deferred()
        },
        Case {
            name: "before the last byte of the reply",
            received: Some(length - 1),
            ..Case::deferred()
        },
        Case {
            name: "SIGHUP",
            signals: &[SIGHUP],
            status: 129,
            cause: "ended by SIGHUP after the delivery",
            ..Case::deferred()
        },
        Case {
            name: "the first of two counts",
            signals: &[SIGINT, SIGTERM],
            status: 130,
            cause: "ended by SIGINT after the delivery",
            ..Case::deferred()
        },
        Case {
            name: "the consent is left to revoke, and the secret to verify",
            args: &["--verify"],
            ..Case::deferred()
        },
        Case {
            name: "the secret is left to verify",
            args: &["--only", "regenerate", "--verify"],
            state: NOT_VERIFIED,
            ..Case::deferred()
        },
        Case {
            name: "nothing is left to do",
            args: &["--only", "regenerate"],
            status: 0,
            ..Case::deferred()
        },
    ];
    for_each(cases, check);
}

/// SIGALRM is what the timer sends when the time is up. Otherwise, the pipe is read after the signals.
#[test]
fn a_signal_during_the_delivery_is_deferred_until_its_end() {
    let cases = vec![
        Case {
            name: "the first of two counts",
            signals: &[SIGINT, SIGTERM],
            status: 130,
            cause: "ended by SIGINT after the delivery",
            ..Case::deferred()
        },
        Case {
            name: "nothing is left to do",
            args: &["--only", "regenerate"],
            status: 0,
            ..Case::deferred()
        },
        Case {
            name: "the time is up",
            signals: &[SIGALRM],
            status: 6,
            delivers: false,
            cause: "timed out during the delivery",
            state: NOT_DELIVERED,
            ..Case::default()
        },
        Case {
            name: "the time is up after a signal",
            signals: &[SIGINT, SIGALRM],
            status: 130,
            cause: "ended by SIGINT during the delivery",
            state: NOT_DELIVERED,
            ..Case::default()
        },
    ];
    for_each(cases, |mut case| {
        let _named = Named(case.name);
        let (reader, writer) = full_pipe();
        let portal = MockPortal::new(ready([regenerate()]));
        let mut command = rotate(&portal);
        let child = start_delivery(command.args(case.args), writer);
        let id = child.id() as i32;
        // It sleeps until there is room in the pipe.
        wait_for_status(id, "State:\tS");
        for signal in case.signals {
            send_and_wait(id, *signal);
        }
        let text = std::io::read_to_string(reader).unwrap();
        assert_eq!(text.ends_with(&secret_line()), case.delivers);
        // The secret is in the other pipe.
        case.delivers = false;
        case.assert(&finish(&command, child));
    });
}

#[test]
fn a_signal_during_a_patch_that_fails() {
    let failing = |reply| Case {
        reply,
        received: Some(0),
        ..Case::default()
    };
    // The client is unchanged, so the run ends before the wait.
    let cause = "ended by SIGTERM during [PATCH regenerate] at 127.0.0.1";
    run_with_signals(&mut failing(busy())).assert_error(143, "", cause, UNCHANGED);
    // A run that ends by itself keeps its status.
    let refused = run_with_signals(&mut failing(recorded("patch-404-unknown")));
    refused.fails_with(3, "answered [PATCH regenerate] with status 404");
    let unknown = run_with_signals(&mut failing(recorded("patch-500")));
    unknown.fails_with(7, "answered [PATCH regenerate] with status 500");
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
    wait_for_status(child.id() as i32, "State:\tT");
    for signal in [SIGTERM, SIGINT, SIGCONT] {
        send(&child, signal);
    }
    drop(gate);
    let cause = "ended by SIGINT after the delivery";
    finish(&command, child).assert_error(130, &secret_line(), cause, NOT_REVOKED);
}

/// Docker kills after 10 s. Neither the time limit nor more signals make a difference.
#[test]
fn a_patch_gets_five_seconds_after_a_signal() {
    for_each(vec!["3", "60"], |timeout| {
        let portal = MockPortal::new(ready([expect_then("PATCH regenerate", [Action::Hang])]));
        let mut command = rotate(&portal);
        let child = start(command.args(["-q", "--timeout", timeout]));
        portal.wait_for(3);
        let since = Instant::now();
        for _ in 0..4 {
            send(&child, SIGTERM);
            sleep(Duration::from_secs(1));
        }
        let run = finish(&command, child);
        let took = since.elapsed().as_secs();
        let cause = "ended by SIGTERM during [PATCH regenerate] at 127.0.0.1";
        run.assert_error(143, "", cause, UNKNOWN);
        // It would be 8 s after the last signal, and 10 s without one.
        assert!((5..8).contains(&took), "{took} s\n{run}");
    });
}

#[test]
fn a_reply_after_three_seconds_is_delivered_even_by_a_command_that_takes_three() {
    let folder = Folder::new();
    let file = folder.path("file");
    let (reply, patch) = gated("PATCH regenerate", recorded("patch-200"));
    let portal = MockPortal::new(ready([patch]));
    let mut command = rotate(&portal);
    command
        .env("PATH", "/usr/bin:/bin")
        .args(["-q", "--timeout", "3"])
        .args(["--", "sh", "-c", "sleep 3; cat > $0"])
        .arg(&file);
    let child = start(&mut command);
    portal.wait_for(3);
    send(&child, SIGTERM);
    sleep(Duration::from_secs(3));
    drop(reply);
    let cause = "ended by SIGTERM after the delivery";
    finish(&command, child).assert_error(143, "", cause, NOT_REVOKED);
    assert_eq!(fs::read_to_string(&file).unwrap(), SECRET);
}

#[test]
fn no_signal_changes_the_status_of_a_check_that_is_ready() {
    let mut case = Case {
        request: "GET @self",
        reply: response("404 ", "", ""),
        received: Some(0),
        args: &["--check"],
        signals: &[SIGTERM, SIGALRM],
        ..Case::default()
    };
    run_with_signals(&mut case).assert_run(0, "", &[]);
}

#[test]
fn a_signal_that_the_caller_ignores_stays_ignored() {
    let signals = [SIGHUP, SIGINT, SIGQUIT, SIGTERM];
    let (reply, head) = gated("HEAD client", recorded("get-200"));
    let portal = MockPortal::new(vec![sign_in(), head, regenerate(), revoke()]);
    let mut command = rotate(&portal);
    // SAFETY: signal(2) may be called between fork and exec.
    unsafe {
        command.pre_exec(move || {
            for signal in signals {
                libc::signal(signal, libc::SIG_IGN);
            }
            Ok(())
        });
    }
    let child = start(&mut command);
    portal.wait_for(2);
    for signal in signals {
        send(&child, signal);
    }
    drop(reply);
    finish(&command, child).assert_run(0, &secret_line(), &GOOD_RUN_LOG);
}

fn ignore_alarm() {
    // SAFETY: SIG_IGN is a valid disposition.
    unsafe { libc::signal(SIGALRM, libc::SIG_IGN) };
}

fn leave_alarm_blocked_and_pending() {
    // SAFETY: the set is valid.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, SIGALRM);
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        libc::raise(SIGALRM);
    }
}

#[test]
fn an_inherited_alarm_does_no_harm() {
    let callers: [(&str, fn()); 2] = [
        ("ignored", ignore_alarm),
        ("blocked and pending", leave_alarm_blocked_and_pending),
    ];
    for_each(callers.into(), |(name, caller)| {
        let _named = Named(name);
        let portal = MockPortal::new(vec![sign_in(), expect_then("HEAD client", [Action::Hang])]);
        let mut command = rotate(&portal);
        let prepare = move || {
            caller();
            Ok(())
        };
        // SAFETY: what it calls may be called between fork and exec.
        unsafe { command.pre_exec(prepare) };
        let run = run(command.args(["-q", "--timeout", "3"]));
        let cause = "timed out during [HEAD client] at 127.0.0.1";
        run.assert_error(4, "", cause, UNCHANGED);
    });
}

#[test]
fn a_full_stderr_delays_no_signal() {
    for (signal, status) in [(SIGTERM, 143), (SIGALRM, 4)] {
        let (_reader, writer) = full_pipe();
        let portal = MockPortal::new(vec![sign_in(), expect_then("HEAD client", [Action::Hang])]);
        let mut command = rotate(&portal);
        let mut child = command.stderr(writer).spawn().unwrap();
        portal.wait_for(2);
        send(&child, signal);
        assert_eq!(child.wait().unwrap().code(), Some(status));
    }
}

/// In a namespace of its own the program is process 1, which gets no signal that it has no handler for.
#[test]
fn process_1_gets_signals() {
    let mut command = command("unshare");
    command.args(["--user", "--map-root-user", "--pid"]);
    command.args(["--fork", "--kill-child"]);
    let mut possible = Command::new("unshare");
    possible.args(command.get_args()).arg("true");
    if !possible.output().is_ok_and(|o| o.status.success()) {
        let why = "no namespaces here (unshare --user --pid)";
        return skipped("process_1_gets_signals", why);
    }
    let (reply, patch) = gated("PATCH regenerate", recorded("patch-200"));
    let portal = MockPortal::new(ready([patch]));
    set_portal(&mut command, &portal);
    command.arg(program().get_program()).args(["-q", CLIENT]);
    let child = start(&mut command);
    portal.wait_for(3);
    kill(process_1(&child), SIGTERM);
    drop(reply);
    let cause = "ended by SIGTERM after the delivery";
    finish(&command, child).assert_error(143, &secret_line(), cause, NOT_REVOKED);
}
