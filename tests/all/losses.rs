//! Secrets that were lost or leaked once: each event, and the secret where it belongs.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::mock::*;
use crate::run::*;
use crate::words::*;

/// Returns the recorded reply to the PATCH in two parts: up to this byte, and the rest.
fn patch_in_two(at: usize) -> (Vec<u8>, Vec<u8>) {
    let mut reply = recorded("patch-200");
    let rest = reply.split_off(at);
    (reply, rest)
}

fn end_of_header() -> usize {
    without_body(recorded("patch-200")).len()
}

/// A reply to the PATCH, and how long the run may take to deliver it, in seconds.
struct Body {
    name: &'static str,
    actions: Vec<Action>,
    at_most: u64,
}

/// Sends the start at once, and then the rest every 100 ms for a minute.
fn drip(start: &[u8], rest: &[u8]) -> Vec<Action> {
    let mut actions = vec![Action::Send(start.to_vec())];
    for _ in 0..600 {
        actions.push(Action::Sleep(Duration::from_millis(100)));
        actions.push(Action::Send(rest.to_vec()));
    }
    actions
}

#[test]
fn a_body_of_the_patch_that_comes_late_or_never_ends_is_delivered() {
    let (header, body) = patch_in_two(end_of_header());
    let mut byte_by_byte = vec![Action::Send(header.clone())];
    for byte in &body {
        byte_by_byte.push(Action::Sleep(Duration::from_millis(
            8000 / body.len() as u64,
        )));
        byte_by_byte.push(Action::Send(vec![*byte]));
    }
    let json = format!(r#"{{"client_secret":"{SECRET}"}}"#);
    let too_long = format!("HTTP/1.1 200 \r\nContent-Length: 999\r\n\r\n{json}");
    let until_closed = format!("HTTP/1.1 200 \r\n\r\n{json}");
    let braces = "}".repeat(1 << 20);
    let many_objects = format!(
        r#"{{"x":[{}{{}}],"client_secret":"{SECRET}"}}"#,
        r#"{"a":1},"#.repeat(700)
    );
    let chunked = recorded("patch-200");
    let without_end = chunked[..chunked.len() - 2].to_vec();
    let mut no_chunk = recorded("patch-200");
    let last_chunk = no_chunk.len() - 5;
    no_chunk.splice(last_chunk.., *b"ZZ\r\n");
    let (without_last_chunk, _) = patch_in_two(recorded("patch-200").len() - 5);
    let cases = vec![
        Body {
            name: "6 s after the header",
            actions: vec![
                Action::Send(header),
                Action::Sleep(Duration::from_secs(6)),
                Action::Send(body),
            ],
            at_most: 40,
        },
        Body {
            name: "byte by byte for 8 s",
            actions: byte_by_byte,
            at_most: 40,
        },
        Body {
            name: "followed by a blank every 100 ms",
            actions: drip(too_long.as_bytes(), b" "),
            at_most: 30,
        },
        Body {
            name: "followed by a brace every 100 ms",
            actions: drip(until_closed.as_bytes(), b"}"),
            at_most: 30,
        },
        Body {
            name: "followed by a million braces",
            actions: vec![Action::Send((until_closed + &braces).into()), Action::Hang],
            at_most: 30,
        },
        Body {
            name: "followed by trailers without end",
            actions: drip(&without_end, b"X-A: b\r\n"),
            at_most: 30,
        },
        Body {
            name: "after hundreds of objects",
            actions: vec![Action::Send(response("200 ", "", many_objects))],
            at_most: 30,
        },
        Body {
            name: "without the last chunk",
            actions: vec![Action::Send(without_last_chunk), Action::Hang],
            at_most: 30,
        },
        Body {
            name: "with a line that is no chunk behind it",
            actions: vec![Action::Send(no_chunk)],
            at_most: 30,
        },
        Body {
            name: "shorter than its Content-Length",
            actions: vec![Action::Send(too_long.into()), Action::Hang],
            at_most: 30,
        },
    ];
    for_each(cases, |case| {
        let _case = Named(case.name);
        let script = ready([expect_then("PATCH regenerate", case.actions), revoke()]);
        let start = Instant::now();
        run_script(script, &[]).assert_run(0, &secret_line(), &GOOD_RUN_LOG);
        assert!(start.elapsed() < Duration::from_secs(case.at_most));
    });
}

#[test]
fn a_compressed_reply_to_the_patch_is_called_compressed() {
    let gzip = response("200 OK", "Content-Encoding: gzip", b"\x1f\x8b\x08\0\0");
    let script = ready([expect("PATCH regenerate", gzip)]);
    let words =
        "with status 200: the reply is compressed (gzip), although the request did not allow it";
    run_script(script, &[]).fails_with(7, words);
    // Some servers only say so.
    let json = format!(r#"{{"client_secret":"{SECRET}"}}"#);
    let plain = response("200 OK", "Content-Encoding: gzip", json);
    let script = ready([expect("PATCH regenerate", plain), revoke()]);
    run_script(script, &[]).assert_run(0, &secret_line(), &GOOD_RUN_LOG);
}

/// A compressed reply before the PATCH shows what would happen to the secret.
#[test]
fn a_server_that_compresses_gets_no_patch() {
    let compressed = |name| {
        let header = "Content-Encoding: br";
        expect(name, response("200 OK", header, "\x0b\x02"))
    };
    for args in [&[][..], &["--check"]] {
        let said = "with status 200: the reply is compressed (br)";
        let run = run_script(vec![compressed("GET token")], args);
        run.fails_with(3, &format!("[GET token] {said}"));
        let run = run_script(vec![sign_in(), compressed("HEAD client")], args);
        run.fails_with(3, &format!("[HEAD client] {said}"));
    }
    let script = vec![compressed("GET token"), revoke()];
    let run = run_script(script, &["--only", "revoke"]);
    assert_eq!(run.status, Some(0), "{run}");
}

/// As `timeout -k` and runners do.
#[test]
fn a_command_does_not_outlive_a_killed_run() {
    for has_terminal in [false, true] {
        let folder = Folder::new();
        let (store, started) = (folder.path("store"), folder.path("started"));
        let portal = MockPortal::new(ready([regenerate()]));
        let mut first = rotate(&portal);
        first
            .env("PATH", "/usr/bin:/bin")
            .arg("-q")
            .args(["--", "sh", "-c"]);
        first.arg("touch $0/started; while :; do sleep 0.05; [ ! -e $0/go ] || break; done; cat > $0/store");
        let (_master, slave) = terminal();
        if has_terminal {
            first.stdout(slave);
        } else {
            first.stdout(Stdio::null());
        }
        let mut child = in_new_session(first.arg(folder.as_ref())).spawn().unwrap();
        assert!(wait_until(|| started.exists()));
        child.kill().unwrap();
        child.wait().unwrap();

        // The next run stores its secret. Then the first command could go on.
        let newer = json(r#"{"client_secret":"newer"}"#);
        let patch = expect("PATCH regenerate", newer);
        let portal = MockPortal::new(ready([patch, revoke()]));
        let mut second = rotate(&portal);
        second.arg("-q").arg("-n").arg("--output").arg(&store);
        run(&mut second).assert_run(0, "", &[]);
        folder.file("go", "");
        thread::sleep(Duration::from_secs(1));
        let stored = fs::read_to_string(&store).unwrap();
        assert_eq!(stored, "newer", "with a terminal: {has_terminal}");
    }
}

/// Until it has been found on PATH, the command is still a copy of the run, with its signal handler.
/// A signal that the caller ignores ends it, too.
#[test]
fn a_run_that_is_killed_while_it_starts_its_command_ends_it() {
    let path = "/a:".repeat(40_000) + "/usr/bin:/bin";
    for (milliseconds, caller) in [
        (0, libc::SIG_DFL),
        (2, libc::SIG_DFL),
        (5, libc::SIG_DFL),
        (10, libc::SIG_DFL),
        (20, libc::SIG_DFL),
        (20, libc::SIG_IGN),
        (200, libc::SIG_IGN),
    ] {
        let portal = MockPortal::new(ready([regenerate()]));
        let mut command = rotate(&portal);
        // SAFETY: signal(2) may be called between fork and exec.
        unsafe {
            command.pre_exec(move || {
                libc::signal(libc::SIGTERM, caller);
                Ok(())
            });
        }
        command.env("PATH", &path).args(["--", "sleep", "60"]);
        let mut child = in_new_session(&mut command).spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let read_children = || fs::read_to_string(&children).unwrap();
        assert!(wait_until(|| !read_children().is_empty()));
        let copy = read_children().trim().parse().unwrap();
        thread::sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(wait_until(|| !is_running(copy)), "after {milliseconds} ms");
    }
}

/// There, the run is the parent of the command, but has no process id.
#[test]
fn a_command_in_a_new_pid_namespace_gets_the_secret() {
    let test = "losses::a_command_in_a_new_pid_namespace_gets_the_secret";
    let unshare = || {
        let mut unshare = command("unshare");
        unshare.args(["--user", "--map-root-user", "--pid"]);
        unshare
    };
    let probe = unshare().args(["--fork", "true"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        return skipped(test, "no namespaces here (unshare --user --pid)");
    }
    let portal = MockPortal::new(good_run());
    let mut command = unshare();
    set_portal(&mut command, &portal);
    command
        .env("PATH", "/usr/bin:/bin")
        .arg(env!("CARGO_BIN_EXE_docspace-rotate"))
        .args([CLIENT, "-q", "--", "/bin/cat"]);
    run(&mut command).assert_run(0, SECRET, &[]);
}

/// A refusal has 5 s for its body, so that its status is known before the time limit.
#[test]
fn a_refusal_whose_body_never_ends_is_3() {
    let header = b"HTTP/1.1 403 \r\nContent-Length: 999\r\n\r\n";
    let silent = vec![Action::Send(header.to_vec()), Action::Hang];
    let dripping = drip(header, b" ");
    for_each(vec![silent, dripping], |actions| {
        let run = run_script(ready([expect_then("PATCH regenerate", actions)]), &[]);
        run.fails_with(3, "answered [PATCH regenerate] with status 403; ");
    });
}

/// Returns true if a process runs. One that nobody waits for may remain as a zombie.
fn is_running(id: u32) -> bool {
    match fs::read_to_string(format!("/proc/{id}/stat")) {
        Ok(stat) => !stat.contains(") Z "),
        Err(_) => false,
    }
}

#[test]
fn a_file_without_a_name_left_is_refused() {
    // As a bind mount shows a file that was replaced on the host. `/proc` shows it here.
    let folder = Folder::new();
    let path = folder.file("file", "old");
    let (reply, patch) = gated("PATCH regenerate", recorded("patch-200"));
    let portal = MockPortal::new(ready([patch]));
    let mut command = rotate(&portal);
    let child = start(command.arg("-q").arg("--output").arg(&path));
    portal.wait_for(3);
    fs::remove_file(&path).unwrap();
    drop(reply);
    let words = "the file was removed or replaced, here or on the host that it is mounted from";
    finish(&command, child).fails_with(6, words);

    // A file that never had a name is a normal output under /proc and /dev.
    let file = folder.file("other", "");
    let open = File::options().read(true).write(true).open(&file).unwrap();
    fs::remove_file(&file).unwrap();
    let number = open.as_raw_fd();
    let portal = MockPortal::new(good_run());
    let mut command = rotate(&portal);
    // SAFETY: fcntl(2) may be called between fork and exec.
    unsafe {
        command.pre_exec(move || {
            libc::fcntl(number, libc::F_SETFD, 0);
            Ok(())
        });
    }
    let output = format!("/proc/self/fd/{number}");
    run(command.args(["-q", "--output", &output])).assert_run(0, "", &[]);
    let mut text = String::new();
    File::open(format!("/proc/self/fd/{number}"))
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, secret_line());
}

#[test]
fn a_mounted_file_that_was_replaced_on_the_host_is_refused() {
    let test = "losses::a_mounted_file_that_was_replaced_on_the_host_is_refused";
    if !crate::namespaces::in_namespaces(test) {
        return;
    }
    let folder = Folder::new();
    let (host, mounted) = (folder.file("host", "old"), folder.file("mounted", ""));
    let mount = format!("mount --bind {} {}", host.display(), mounted.display());
    crate::namespaces::system(&mount);
    // What `sed -i` does.
    fs::rename(folder.file("new", "old"), &host).unwrap();
    let why = "the file was removed or replaced, here or on the host that it is mounted from";
    let error = format!("cannot deliver to --output {}: {why}", mounted.display());
    assert_refused(&error, |portal| {
        let mut command = rotate(portal);
        command.arg("-q").arg("--output").arg(&mounted);
        command
    });
    crate::namespaces::system(&format!("umount {}", mounted.display()));
}

#[test]
fn a_portal_that_knows_the_new_secret_a_second_later_is_believed() {
    let mut script = good_run();
    script.push(expect("POST introspect", recorded("introspect-401")));
    script.push(introspect());
    let run = run_script(script, &["--verify"]);
    assert_eq!(run.status, Some(0), "{run}");
    assert_eq!(run.error(), "The new secret is live.", "{run}");
}

#[test]
fn a_quit_during_the_patch_is_deferred() {
    let (reply, patch) = gated("PATCH regenerate", recorded("patch-200"));
    let portal = MockPortal::new(ready([patch]));
    let folder = Folder::new();
    let mut command = rotate(&portal);
    let child = start(command.arg("-q").current_dir(folder.as_ref()));
    portal.wait_for(3);
    send(&child, libc::SIGQUIT);
    drop(reply);
    let error = format!("docspace-rotate: ended by SIGQUIT after the delivery; {NOT_REVOKED}");
    finish(&command, child).assert_run(131, &secret_line(), &[&error]);
    assert_eq!(folder.names(), [""; 0], "no core");
}

/// The header's time does not replace what is left after a signal.
#[test]
fn a_header_after_a_signal_does_not_extend_the_run() {
    let (header, _) = patch_in_two(end_of_header());
    let (arrive, gate) = std::sync::mpsc::channel::<()>();
    let actions = [Action::WaitFor(gate), Action::Send(header), Action::Hang];
    let portal = MockPortal::new(ready([expect_then("PATCH regenerate", actions)]));
    let mut command = rotate(&portal);
    let child = start(command.arg("-q"));
    portal.wait_for(3);
    send(&child, libc::SIGTERM);
    let since = Instant::now();
    thread::sleep(Duration::from_secs(2));
    drop(arrive);
    finish(&command, child).fails_with(143, "ended by SIGTERM during [PATCH regenerate]");
    assert!(
        since.elapsed() < Duration::from_secs(9),
        "{:?}",
        since.elapsed()
    );
}

#[test]
fn a_script_with_windows_line_ends_sends_nothing() {
    let folder = Folder::new();
    let script = |name: &str, text: &str| {
        let file = folder.file(name, text);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let windows = script("windows", "#!/bin/sh\r\ncat > /dev/null\r\n");
    let by_env = script("by-env", "#!/usr/bin/env sh\r\ncat > /dev/null\r\n");
    let option = script("option", "#!/bin/echo -n\r\n");
    let folder_name = script("folder", "#!/tmp\n");
    let missing = script("missing", "#!/nowhere/interpreter -x\n");
    let argument = "COMMAND: an argument ends in a carriage return (Windows line endings?)";
    for (args, error) in [
        (vec!["--", "cat\r"], argument.to_owned()),
        (vec!["--", "sh", "-c", "cat", "x\r"], argument.to_owned()),
        (vec!["--", "sh", "-c", "cat > x\r\n"], argument.to_owned()),
        (
            vec!["--", windows.as_str()],
            format!(
                r"cannot deliver to the command {windows}: its interpreter cannot be run: /bin/sh\r"
            ),
        ),
        (
            vec!["--", by_env.as_str()],
            format!(
                r"cannot deliver to the command {by_env}: its interpreter cannot be run: /usr/bin/env sh\r"
            ),
        ),
        (
            vec!["--", option.as_str()],
            format!(
                r"cannot deliver to the command {option}: its interpreter cannot be run: /bin/echo -n\r"
            ),
        ),
        (
            vec!["--", folder_name.as_str()],
            format!(
                "cannot deliver to the command {folder_name}: its interpreter cannot be run: /tmp"
            ),
        ),
        (
            vec!["--", missing.as_str()],
            format!(
                "cannot deliver to the command {missing}: its interpreter cannot be run: /nowhere/interpreter -x"
            ),
        ),
    ] {
        assert_refused(&error, |portal| {
            let mut command = rotate(portal);
            command.env("PATH", "/usr/bin:/bin").args(args);
            command
        });
    }
    // Only the command itself is looked at.
    for (args, stdout) in [
        (vec!["--", "sh", "-c", "cat\n"], SECRET.to_owned()),
        (
            vec!["--", "sh", "-c", "echo a\r\ncat"],
            format!("a\r\n{SECRET}"),
        ),
        (
            vec!["--", "sh", "-c", "cat > /dev/null; exec $0", &option],
            format!("-n\r {option}\n"),
        ),
    ] {
        let portal = MockPortal::new(good_run());
        let mut command = rotate(&portal);
        command.env("PATH", "/usr/bin:/bin").arg("-q").args(args);
        run(&mut command).assert_run(0, &stdout, &[]);
    }
}

/// The address of the mock comes second, but it is the only IPv4 one.
#[test]
fn ipv4_is_tried_before_a_black_hole() {
    let test = "losses::ipv4_is_tried_before_a_black_hole";
    if !crate::namespaces::in_namespaces(test) {
        return;
    }
    // What is sent to this device disappears.
    for words in [
        "ip tuntap add dev hole mode tun",
        "ip link set hole up",
        "ip -6 addr add 2001:db8::1/64 dev hole nodad",
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        let mut command = Command::new(words[0]);
        if !command
            .args(&words[1..])
            .status()
            .is_ok_and(|status| status.success())
        {
            return skipped(test, "no tun device or no IPv6 here");
        }
    }
    let folder = Folder::new();
    let hosts = "2001:db8::9 portal.invalid\n127.0.0.1 portal.invalid\n";
    let hosts = folder.file("hosts", hosts);
    let mount = format!("mount --bind {} /etc/hosts", hosts.display());
    crate::namespaces::system(&mount);
    let portal = MockPortal::new(good_run());
    let url = format!("http://portal.invalid:{}", portal.at.port());
    let mut command = rotate(&portal);
    let start = Instant::now();
    command.args(["--allow-http", "--timeout", "8", "--url", &url]);
    run(&mut command).assert_run(0, &secret_line(), &GOOD_RUN_LOG);
    assert!(
        start.elapsed() < Duration::from_secs(6),
        "{:?}",
        start.elapsed()
    );
    crate::namespaces::system("umount /etc/hosts");
}
