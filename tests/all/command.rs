//! `-- COMMAND`: it gets the secret on its stdin, and the secret is delivered if it read everything.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Child, Command, Stdio};

use crate::mock::*;
use crate::run::*;
use crate::words::*;

/// Returns a command that logs only errors and delivers to a shell script.
fn to_shell(portal: &MockPortal, args: &[&str], script: &str) -> Command {
    let mut command = rotate(portal);
    command
        .env("PATH", "/usr/bin:/bin")
        .arg("-q")
        .args(args)
        .args(["--", "sh", "-c", script]);
    command
}

fn run_in_shell(expected: Vec<Expect>, args: &[&str], script: &str) -> Run {
    let portal = MockPortal::new(expected);
    run(&mut to_shell(&portal, args, script))
}

#[test]
fn gets_the_secret_or_the_object_without_a_newline() {
    let object = format!("{{\"client_secret\":\"{SECRET}\"}}");
    let script = "echo err >&2; [ -p /dev/stdin ] && cat";
    for (args, text) in [(&[][..], SECRET), (&["--json"], &object), (&["-n"], SECRET)] {
        run_in_shell(good_run(), args, script).assert_run(0, text, &["err"]);
    }
    // It need not meet the end of the file.
    run_in_shell(good_run(), &[], "exec head -c 36").assert_run(0, SECRET, &[]);
}

#[test]
fn a_missing_command_is_refused() {
    let folder = Folder::new();
    let not_executable = folder.file("plain", "#!/bin/sh\n");
    let not_executable = not_executable.to_str().unwrap();
    symlink("/bin/cat", folder.path("store")).unwrap();
    let here = folder.as_ref().to_str().unwrap();
    let missing = format!("{here}/missing");
    let path = format!("{here}:/usr/bin:/bin");
    for name in [
        "docspace-rotate-none",
        "plain",
        &missing,
        not_executable,
        here,
    ] {
        assert_missing(name, |command| command.env("PATH", &path));
        assert_missing(name, |command| command.env("PATH", &path).arg("--check"));
    }
    assert_missing("cat", |command| command.env("PATH", here));
    // Without a PATH not even the current folder is searched.
    assert_missing("store", |command| command.current_dir(here));
    assert_missing("store", |command| command.current_dir(here).env("PATH", ""));
}

fn assert_missing(name: &str, prepare: impl FnOnce(&mut Command) -> &mut Command) {
    let error = format!("cannot deliver to the command {name}: not found, or not executable");
    assert_refused(&error, |portal| {
        let mut command = rotate(portal);
        prepare(&mut command).args(["--", name, "x"]);
        command
    });
}

#[test]
fn the_first_program_on_path_is_started_with_its_arguments_as_given() {
    let folder = Folder::new();
    fs::create_dir_all(folder.path("a/store")).unwrap();
    for name in ["b", "c", "d"] {
        fs::create_dir(folder.path(name)).unwrap();
    }
    folder.file("b/store", "#!/bin/sh\nexit 9\n");
    symlink("nowhere", folder.path("c/store")).unwrap();
    symlink("/bin/sh", folder.path("d/store")).unwrap();
    let here = folder.as_ref().display();
    // An empty entry is the current folder.
    for path in [
        &format!("{here}/a:{here}/b:{here}/c:{here}/d"),
        ":/nowhere",
        "/nowhere::/nowhere",
        "/nowhere:",
    ] {
        let portal = MockPortal::new(good_run());
        let mut command = rotate(&portal);
        command
            .env("PATH", path)
            .current_dir(folder.path("d"))
            .args(["-q", "--", "store", "-c"])
            .arg(r#"/bin/cat > /dev/null; echo "$0" "$1""#)
            .args(["-o  --", ""]);
        run(&mut command).assert_run(0, "-o  -- \n", &[]);
    }
}

#[test]
fn its_environment_has_the_client_and_the_portal_and_no_secret() {
    let folder = Folder::new();
    let key = folder.file("key", KEY);
    let id = folder.file("id", CLIENT);
    let variables = [("DOCSPACE_API_KEY", KEY), ("DOCSPACE_CLIENT_ID", CLIENT)];
    let files = [
        ("DOCSPACE_API_KEY_FILE", key.to_str().unwrap()),
        ("DOCSPACE_CLIENT_ID_FILE", id.to_str().unwrap()),
    ];
    for settings in [variables, files] {
        let portal = MockPortal::new(good_run());
        let mut command = program();
        command
            .envs(settings)
            .env("DOCSPACE_BASE_URL", "https://other.invalid")
            .env("PATH", "/usr/bin:/bin")
            .env("ANOTHER", "one")
            .args(["-q", "-u", &format!("{}/", portal.url())])
            .args(["--", "sh", "-c"])
            .arg("cat > /dev/null; tr '\\0' '\\n' < /proc/$$/environ | sort");
        let url = portal.url();
        let expected = format!(
            "ANOTHER=one\nDOCSPACE_BASE_URL={url}\nDOCSPACE_CLIENT_ID={CLIENT}\nPATH=/usr/bin:/bin\n"
        );
        run(&mut command).assert_run(0, &expected, &[]);
    }
}

const UNREAD: &str = "it exited without reading the whole secret";

#[test]
fn one_that_fails_is_6_and_nothing_is_revoked_or_verified() {
    let cases = vec![
        ("exit 9", "it exited with status 9"),
        ("cat > /dev/null; exit 1", "it exited with status 1"),
        (
            "cat > /dev/null; kill -TERM $$",
            "it was killed by signal 15",
        ),
        ("kill -KILL $$", "it was killed by signal 9"),
        ("exit 0", UNREAD),
        ("exec <&-; exit 0", UNREAD),
        ("exec head -c 35 > /dev/null", UNREAD),
        ("{ sleep 3; cat; } <&0 > /dev/null 2>&1 & exit 0", UNREAD),
    ];
    for_each(cases, |(script, why)| {
        let done = run_in_shell(ready([regenerate()]), &["--verify"], script);
        assert_not_delivered(&done, &format!("the command sh: {why}"));
    });
}

#[test]
fn an_object_that_exceeds_the_pipe_is_delivered_if_it_is_read_entirely() {
    // Written again, each number takes ten bytes more.
    let object = |number: &str| {
        let numbers = format!("{number},").repeat(15_000);
        format!(r#"{{"client_secret":"{SECRET}","more":[{numbers}0]}}"#)
    };
    let patch = || expect("PATCH regenerate", json(object("1e9")));
    for script in ["sleep 0.2", "exec head -c 190000 > /dev/null"] {
        let done = run_in_shell(ready([patch()]), &["--json"], script);
        assert_not_delivered(&done, &format!("the command sh: {UNREAD}"));
    }
    let object = object("1000000000.0");
    for script in ["sleep 0.2; exec cat", "head -c 70000; sleep 0.1; exec cat"] {
        let done = run_in_shell(ready([patch(), revoke()]), &["--json"], script);
        // Not shown if it differs, because of its length.
        assert!(done.status == Some(0) && done.stdout == object, "{script}");
    }
}

#[test]
fn one_that_disappears_before_it_is_started_is_6() {
    let folder = Folder::new();
    let store = folder.file("store", "#!/bin/sh\nexec cat > /dev/null\n");
    fs::set_permissions(&store, fs::Permissions::from_mode(0o755)).unwrap();
    let name = store.to_str().unwrap();
    let lost = meanwhile(&["--", name], || fs::remove_file(&store).unwrap());
    let why = "it was removed, or a loader or interpreter that it needs is missing";
    let error = format!("the command {name}: {why}");
    assert_not_delivered(&lost, &error);
}

/// What a script does first: it creates a file for `start_without_terminal`, and waits for the file `go`.
const WAIT: &str = "touch $0/started; until [ -e $0/go ]; do sleep 0.01; done;";

/// Starts a run without a controlling terminal. Returns when its command, a script, has created the file `started`.
fn start_without_terminal(command: &mut Command, folder: &Folder) -> Child {
    let child = start(in_new_session(command).arg(folder.as_ref()));
    assert!(wait_until(|| folder.path("started").exists()));
    child
}

/// As a runner does that cancels a job.
#[test]
fn a_signal_to_the_whole_group_ends_the_run_after_the_delivery() {
    for status in [0, 9] {
        let folder = Folder::new();
        let portal = MockPortal::new(ready([regenerate()]));
        let script = format!("{WAIT} cat > $0/stored; exit {status}");
        let mut command = to_shell(&portal, &[], &script);
        let child = start_without_terminal(&mut command, &folder);
        let id = child.id() as i32;
        wait_for_status(id, "\nThreads:\t1\n");
        kill(-id, libc::SIGTERM);
        folder.file("go", "");
        let run = finish(&command, child);
        if status == 0 {
            let cause = "ended by SIGTERM after the delivery";
            run.assert_error(143, "", cause, NOT_REVOKED);
        } else {
            assert_not_delivered(&run, "the command sh: it exited with status 9");
        }
        let stored = fs::read_to_string(folder.path("stored"));
        assert_eq!(stored.unwrap(), SECRET);
    }
}

#[test]
fn ctrl_c_reaches_it_and_the_run_that_fails_keeps_its_status() {
    let folder = Folder::new();
    let portal = MockPortal::new(ready([regenerate()]));
    let (mut keyboard, screen) = terminal();
    let mut command = to_shell(&portal, &[], "touch $0/started; exec sleep 30");
    in_new_session(&mut command)
        .arg(folder.as_ref())
        .stdout(screen)
        .stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    assert!(wait_until(|| folder.path("started").exists()));
    // What the key sends.
    keyboard.write_all(b"\x03").unwrap();
    let error = "the command sh: it was killed by signal 2";
    assert_not_delivered(&finish(&command, child), error);
}

/// It gets SIGTERM then, but it may ignore that.
#[test]
fn a_kill_leaves_it_with_the_whole_secret() {
    let folder = Folder::new();
    let portal = MockPortal::new(ready([regenerate()]));
    let script = format!("trap '' TERM; {WAIT} cat > $0/part; mv $0/part $0/stored");
    let mut child = start_without_terminal(&mut to_shell(&portal, &[], &script), &folder);
    child.kill().unwrap();
    child.wait().unwrap();
    folder.file("go", "");
    let stored = folder.path("stored");
    assert!(wait_until(|| stored.exists()));
    assert_eq!(fs::read_to_string(stored).unwrap(), SECRET);
}

#[test]
fn when_the_time_is_up_its_group_is_ended_even_if_it_is_stopped() {
    let folder = Folder::new();
    let portal = MockPortal::new(ready([regenerate()]));
    let script = "exec > /dev/null 2>&1
        trap 'touch $0/parent; exit' TERM
        (trap 'touch $0/child; exit' TERM; touch $0/ready; while :; do sleep 0.01; done) &
        until [ -e $0/ready ]; do sleep 0.01; done
        cat; echo $$ > $0/pid; mv $0/pid $0/started; while :; do sleep 0.01; done";
    let mut command = to_shell(&portal, &[], script);
    let child = start_without_terminal(&mut command, &folder);
    let id = fs::read_to_string(folder.path("started")).unwrap();
    let id = id.trim().parse().unwrap();
    kill(id, libc::SIGSTOP);
    wait_for_status(id, "State:\tT");
    // The timer's signal, without the wait for it.
    send(&child, libc::SIGALRM);
    let cause = "timed out during the delivery, and the command may still be running";
    finish(&command, child).assert_error(6, "", cause, NOT_DELIVERED);
    for name in ["parent", "child"] {
        assert!(wait_until(|| folder.path(name).exists()), "{name}");
    }
}
