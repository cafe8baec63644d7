//! SIGHUP, SIGINT, SIGTERM and SIGALRM at every step: the status, the one line, and what is left behind.

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;

use crate::portal::{Act, SECRET, Stand, Step, good_run, held, http, looked, on, reply};
use crate::run::{self, Folder, finish, rotate, send, start};

/// Sends the signal when so many requests have come, and takes the answer to the last of them away.
fn end_at(request: usize, signal: i32, args: &[&str]) -> run::Run {
    let (answer, gate) = channel();
    let mut script = good_run();
    if args.contains(&"revoke") {
        script.drain(1..3);
    }
    script.truncate(request);
    if let Some(Step::Request(_, acts)) = script.last_mut() {
        acts.insert(0, Act::Wait(gate));
    }
    let stand = Stand::script(script);
    let mut command = rotate(&stand);
    let child = start(command.arg("-q").args(args));
    stand.wait_for(request);
    send(&child, signal);
    let done = finish(&command, child);
    drop(answer);
    done
}

#[test]
fn each_step_is_named_with_the_state_that_it_leaves() {
    let unchanged = "the client's secret is unchanged; run again later";
    for (request, args, what, stdout) in [
        (1, &[][..], format!("during [GET token] at 127.0.0.1; {unchanged}"), String::new()),
        (2, &[], format!("during [HEAD client] at 127.0.0.1; {unchanged}"), String::new()),
        (
            3,
            &[],
            "during [PATCH regenerate] at 127.0.0.1; the client may or may not have a new secret; treat the old secret as revoked and run again in a few minutes".to_owned(),
            String::new(),
        ),
        (
            4,
            &[],
            "during [DELETE revoke] at 127.0.0.1; the new secret is handed over, but the consent may still be in force; run again with --only revoke".to_owned(),
            format!("{SECRET}\n"),
        ),
        (2, &["--only", "revoke"], format!("during [DELETE revoke] at 127.0.0.1; {unchanged}"), String::new()),
    ] {
        for (signal, name, status) in
            [(libc::SIGHUP, "SIGHUP", 129), (libc::SIGINT, "SIGINT", 130), (libc::SIGTERM, "SIGTERM", 143)]
        {
            let done = end_at(request, signal, args);
            done.is(status, &stdout, &[&format!("docspace-rotate: ended by {name} {what}")]);
        }
    }
}

#[test]
fn a_signal_while_waiting_for_another_attempt_leaves_all_as_it_was() {
    let stand = Stand::script(looked([on("PATCH regenerate", http("429 ", "Retry-After: 60", ""))]));
    let mut command = rotate(&stand);
    let mut child = start(&mut command);
    read_until(&mut child, "trying again in 60 s\n");
    send(&child, libc::SIGTERM);
    let error = "docspace-rotate: ended by SIGTERM before another [PATCH regenerate] at 127.0.0.1; the client's secret is unchanged; run again later";
    finish(&command, child).is(143, "", &[error]);
}

/// Reads the log up to this text.
pub fn read_until(child: &mut Child, text: &str) {
    let mut log = String::new();
    let stderr = child.stderr.as_mut().unwrap();
    while !log.contains(text) {
        let mut byte = [0];
        stderr.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error}: {log}"));
        log.push(byte[0].into());
    }
}

#[test]
fn a_signal_while_waiting_to_revoke_says_that_the_secret_is_handed_over() {
    let mut script = good_run();
    script[3] = on("DELETE revoke", http("429 ", "Retry-After: 60", ""));
    let stand = Stand::script(script);
    let mut command = rotate(&stand);
    let mut child = start(&mut command);
    read_until(&mut child, "trying again in 60 s\n");
    send(&child, libc::SIGINT);
    let error = "docspace-rotate: ended by SIGINT before another [DELETE revoke] at 127.0.0.1; the new secret is handed over, but the consent may still be in force; run again with --only revoke";
    finish(&command, child).is(130, &format!("{SECRET}\n"), &[error]);
}

#[test]
fn a_signal_before_anything_is_sent_says_so() {
    let folder = Folder::new();
    let fifo = folder.fifo();
    let stand = Stand::script(vec![]);
    let mut command = rotate(&stand);
    command.env_remove("DOCSPACE_API_KEY").env("DOCSPACE_API_KEY_FILE", &fifo);
    let child = start(&mut command);
    // Opening it for writing waits until the program has opened it.
    let _writer = fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    send(&child, libc::SIGTERM);
    let error = "docspace-rotate: ended by SIGTERM while reading the file that DOCSPACE_API_KEY_FILE names; the client's secret is unchanged; run again later";
    finish(&command, child).is(143, "", &[error]);
}

/// To a stdout or a FIFO that is read late.
#[test]
fn a_signal_while_the_secret_is_written_waits_until_it_is() {
    let before = "before [DELETE revoke]; the new secret is handed over, but the consent may still be in force; run again with --only revoke";
    for (args, status, error) in [
        (&[][..], 143, Some(format!("docspace-rotate: ended by SIGTERM {before}"))),
        (&["--only", "regenerate"], 0, None),
    ] {
        let (mut reader, writer) = run::full_pipe();
        let stand = Stand::script(looked([on("PATCH regenerate", reply("patch-200"))]));
        let mut command = rotate(&stand);
        let mut child = command.args(args).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        drop(command);
        read_until(&mut child, "Client secret has been regenerated.\n");
        send(&child, libc::SIGTERM);
        let mut text = vec![];
        reader.read_to_end(&mut text).unwrap();
        assert!(text.ends_with(format!("{SECRET}\n").as_bytes()));
        let output = child.wait_with_output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), log.lines().last()), (Some(status), error.as_deref()));
    }
}

#[test]
fn a_file_that_another_run_has_filled_stays() {
    let folder = Folder::new();
    let file = folder.path("file");
    let stand = Stand::script(looked([Step::Request("PATCH regenerate", vec![Act::Hang])]));
    let mut command = rotate(&stand);
    let child = start(command.arg("-q").arg("--output").arg(&file));
    stand.wait_for(3);
    fs::write(&file, "another run's\n").unwrap();
    send(&child, libc::SIGTERM);
    let done = finish(&command, child);
    assert_eq!(done.status, Some(143), "{done}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "another run's\n");
}

#[test]
fn a_new_file_goes_and_one_with_the_secret_stays() {
    let folder = Folder::new();
    let file = folder.path("file");
    let name = file.to_str().unwrap();
    let done = end_at(3, libc::SIGTERM, &["--output", name]);
    assert_eq!(done.status, Some(143), "{done}");
    assert!(folder.names().is_empty(), "{:?}", folder.names());
    let done = end_at(4, libc::SIGTERM, &["--output", name]);
    assert_eq!(done.status, Some(143), "{done}");
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{SECRET}\n"));
    // What was there before the run is never removed.
    fs::write(&file, "old\n").unwrap();
    let done = end_at(3, libc::SIGTERM, &["--output", name]);
    assert_eq!(done.status, Some(143), "{done}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "old\n");
}

#[test]
fn a_signal_that_the_caller_ignores_stays_ignored() {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
        let (answer, step) = held("PATCH regenerate", reply("patch-200"));
        let mut script = good_run();
        script[2] = step;
        let stand = Stand::script(script);
        let mut command = rotate(&stand);
        // SAFETY: signal(2) may be called between fork and exec.
        unsafe {
            command.pre_exec(move || {
                libc::signal(signal, libc::SIG_IGN);
                Ok(())
            });
        }
        let child = start(command.arg("-q"));
        stand.wait_for(3);
        send(&child, signal);
        drop(answer);
        finish(&command, child).is(0, &format!("{SECRET}\n"), &[]);
    }
}

/// An alarm that was set for the program before this one, and its signal blocked or ignored.
#[test]
fn an_inherited_alarm_does_no_harm() {
    for (blocked, ignored, pending) in
        [(true, false, false), (false, true, false), (true, true, false), (true, false, true)]
    {
        let inherit = |command: &mut Command| {
            // SAFETY: all of these may be called between fork and exec.
            unsafe {
                command.pre_exec(move || {
                    let mut alarm = std::mem::zeroed();
                    libc::sigemptyset(&mut alarm);
                    libc::sigaddset(&mut alarm, libc::SIGALRM);
                    if blocked {
                        libc::sigprocmask(libc::SIG_BLOCK, &alarm, std::ptr::null_mut());
                    }
                    if ignored {
                        libc::signal(libc::SIGALRM, libc::SIG_IGN);
                    }
                    if pending {
                        libc::raise(libc::SIGALRM);
                    }
                    Ok(())
                });
            }
        };
        let stand = Stand::script(good_run());
        let mut command = rotate(&stand);
        inherit(&mut command);
        run::run(command.arg("-q")).is(0, &format!("{SECRET}\n"), &[]);

        let stand = Stand::script(looked([Step::Request("PATCH regenerate", vec![Act::Hang])]));
        let mut command = rotate(&stand);
        inherit(&mut command);
        let done = run::run(command.args(["-q", "--timeout", "1.5"]));
        done.is(
            7,
            "",
            &["docspace-rotate: timed out during [PATCH regenerate] at 127.0.0.1; the client may or …"],
        );
    }
}

#[test]
fn a_full_stderr_holds_no_signal_up() {
    for (signal, status) in [(libc::SIGTERM, 143), (libc::SIGALRM, 7)] {
        let (_reader, writer) = run::full_pipe();
        let stand = Stand::script(looked([Step::Request("PATCH regenerate", vec![Act::Hang])]));
        let mut child = rotate(&stand).stdout(Stdio::null()).stderr(writer).spawn().unwrap();
        stand.wait_for(3);
        send(&child, signal);
        assert_eq!(child.wait().unwrap().code(), Some(status));
    }
}

/// In a namespace of its own the program is process 1, which gets no signal without a handler.
#[test]
fn as_process_1_it_ends_all_the_same() {
    let namespace = ["--user", "--map-root-user", "--pid", "--fork", "--kill-child"];
    if !Command::new("unshare").args(namespace).arg("true").output().is_ok_and(|o| o.status.success()) {
        run::skipped("as_process_1_it_ends_all_the_same", "no namespaces here (unshare --user --pid)");
        return;
    }
    let mut script = good_run();
    script.truncate(3);
    script[2] = Step::Request("PATCH regenerate", vec![Act::Hang]);
    let stand = Stand::script(script);
    let plain = rotate(&stand);
    let mut command = Command::new("unshare");
    command.env_clear().args(namespace).arg(plain.get_program()).args(plain.get_args());
    for (name, value) in plain.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    let child = start(command.arg("-q"));
    stand.wait_for(3);
    let inner = run::process_1(&child);
    // SAFETY: a plain system call, to the one child of the child.
    assert_eq!(unsafe { libc::kill(inner, libc::SIGTERM) }, 0);
    let done = finish(&command, child);
    assert_eq!(done.status, Some(143), "{done}");
    assert!(
        done.error()
            .starts_with("docspace-rotate: ended by SIGTERM during [PATCH regenerate] at 127.0.0.1; "),
        "{done}"
    );
}
