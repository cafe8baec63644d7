//! `-- COMMAND`: it gets the secret on its stdin, and the secret is delivered if it read everything.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command};

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

#[test]
fn gets_the_secret_or_the_object_without_a_newline() {
    let folder = Folder::new();
    let file = folder.path("stored");
    let object = format!(r#"{{"client_secret":"{SECRET}"}}"#);
    for (args, stored) in [(&[][..], SECRET), (&["--json"], &object), (&["-n"], SECRET)] {
        let portal = MockPortal::new(good_run());
        let script = "[ -p /dev/stdin ] && cat > $0; echo out; echo err >&2";
        run(to_shell(&portal, args, script).arg(&file)).assert_run(0, "out\n", &["err"]);
        assert_eq!(fs::read_to_string(&file).unwrap(), stored);
    }
    let portal = MockPortal::new(good_run());
    run(rotate(&portal).args(["--", "/bin/cat", "-", "/dev/null"])).assert_run(
        0,
        SECRET,
        &GOOD_RUN_LOG,
    );
}

#[test]
fn a_missing_command_is_refused() {
    let folder = Folder::new();
    let plain = folder.file("plain", "#!/bin/sh\n");
    symlink("/bin/cat", folder.path("store")).unwrap();
    let (plain, here) = (plain.to_str().unwrap(), folder.as_ref().to_str().unwrap());
    let missing = format!("{here}/missing");
    let usual = format!("{here}:/usr/bin:/bin");
    // The current folder has the program `store`.
    for (name, path) in [
        ("docspace-rotate-none", Some(&*usual)),
        ("plain", Some(&usual)),
        ("cat", Some(here)),
        ("store", Some("")),
        ("store", None),
        (&missing, Some(&usual)),
        (plain, Some(&usual)),
        (here, Some(&usual)),
    ] {
        for check in [None, Some("--check")] {
            let error = format!("cannot run the command {name}: not found, or not executable");
            assert_refused(&error, |portal| {
                let mut command = rotate(portal);
                command
                    .envs(path.map(|path| ("PATH", path)))
                    .current_dir(here);
                command.args(check).args(["--", name, "x"]);
                command
            });
        }
    }
}

#[test]
fn the_first_program_on_path_is_started_with_its_arguments_as_given() {
    let folders = [(); 4].map(|()| Folder::new());
    fs::create_dir(folders[0].path("store")).unwrap();
    folders[1].file("store", "#!/bin/sh\nexit 9\n");
    symlink("nowhere", folders[2].path("store")).unwrap();
    symlink("/bin/sh", folders[3].path("store")).unwrap();
    let [a, b, c, d] = folders
        .each_ref()
        .map(|folder| folder.as_ref().to_str().unwrap());
    // An empty entry is the current folder.
    for path in [
        &format!("{a}:{b}:{c}:{d}"),
        ":/nowhere",
        "/nowhere::/nowhere",
        "/nowhere:",
    ] {
        let portal = MockPortal::new(good_run());
        let mut command = rotate(&portal);
        command.env("PATH", path).current_dir(d).arg("-q");
        command.args([
            "--",
            "store",
            "-c",
            r#"/bin/cat > /dev/null; echo "$0" "$1""#,
            "-o  --",
            "",
        ]);
        run(&mut command).assert_run(0, "-o  -- \n", &[]);
    }
}

#[test]
fn its_environment_has_the_client_and_the_portal_and_no_secret() {
    let folder = Folder::new();
    let (file, id) = (folder.file("key", KEY), folder.file("id", CLIENT));
    let keys = [
        ("DOCSPACE_API_KEY", Path::new(KEY)),
        ("DOCSPACE_API_KEY_FILE", &file),
    ];
    let ids = [
        ("DOCSPACE_CLIENT_ID", Path::new(CLIENT)),
        ("DOCSPACE_CLIENT_ID_FILE", &id),
    ];
    for (key, id) in keys.into_iter().zip(ids) {
        let portal = MockPortal::new(good_run());
        let url = format!("DOCSPACE_BASE_URL={}", portal.url());
        let mut command = program();
        command
            .envs([key, id])
            .env("PATH", "/usr/bin:/bin")
            .env("ANOTHER", "one");
        command
            .env("DOCSPACE_BASE_URL", "https://other.invalid")
            .arg("-q")
            .arg("-u")
            .arg(portal.url() + "/");
        command.args([
            "--",
            "sh",
            "-c",
            "cat > /dev/null; tr '\\0' '\\n' < /proc/$$/environ",
        ]);
        let done = run(&mut command);
        let mut variables: Vec<&str> = done.stdout.lines().collect();
        variables.sort();
        let id = format!("DOCSPACE_CLIENT_ID={CLIENT}");
        assert_eq!(
            variables,
            ["ANOTHER=one", &url, &id, "PATH=/usr/bin:/bin"],
            "{done}"
        );
    }
}

#[test]
fn one_that_fails_or_does_not_read_everything_is_6_and_nothing_is_revoked() {
    // An object that exceeds the pipe. Written again, each number takes ten bytes more.
    let long = |number: &str| {
        let more = format!("{number},").repeat(15_000);
        format!(r#"{{"client_secret":"{SECRET}","more":[{more}0]}}"#)
    };
    let (body, object) = (json(long("1e9")), &*long("1000000000.0"));
    let unread = Err("it exited without reading the whole secret");
    for_each(
        vec![
            ("--verify", "exit 9", Err("it exited with status 9")),
            (
                "--verify",
                "cat > /dev/null; exit 1",
                Err("it exited with status 1"),
            ),
            (
                "--verify",
                "cat > /dev/null; kill -TERM $$",
                Err("it was killed by signal 15"),
            ),
            (
                "--verify",
                "kill -KILL $$",
                Err("it was killed by signal 9"),
            ),
            ("--verify", "exit 0", unread),
            ("--verify", "exec <&-; exit 0", unread),
            ("--verify", "exec head -c 35 > /dev/null", unread),
            (
                "--verify",
                "{ sleep 0.3; cat; } <&0 > /dev/null 2>&1 & exit 0",
                unread,
            ),
            ("--json", "sleep 0.2", unread),
            ("--json", "exec head -c 190000 > /dev/null", unread),
            ("--json", "sleep 0.2; exec cat", Ok(object)),
            ("--json", "head -c 70000; sleep 0.1; exec cat", Ok(object)),
            ("--quiet", "exec head -c 36", Ok(SECRET)),
        ],
        |(arg, script, expected)| {
            let patch = expect("PATCH regenerate", body.clone());
            let portal = MockPortal::new(ready(
                [patch].into_iter().chain(expected.is_ok().then(revoke)),
            ));
            let done = run(&mut to_shell(&portal, &[arg], script));
            match expected {
                // Not shown if it differs, because of its length.
                Ok(stdout) => assert!(done.status == Some(0) && done.stdout == stdout, "{script}"),
                Err(why) => assert_not_delivered(&done, &format!("the command sh: {why}")),
            }
        },
    );
}

#[test]
fn one_that_disappears_before_it_is_started_is_6() {
    let folder = Folder::new();
    let store = folder.file("store", "#!/bin/sh\nexec cat > /dev/null\n");
    fs::set_permissions(&store, fs::Permissions::from_mode(0o755)).unwrap();
    let lost = meanwhile(&["--", store.to_str().unwrap()], None, || {
        fs::remove_file(&store).unwrap()
    });
    assert_not_delivered(
        &lost,
        &format!("the command {}: No such file or directory", store.display()),
    );
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
    let revocable = "the new secret was delivered, but the consent may still be in force; run again with --only revoke";
    let unverified = "the new secret was delivered, but not verified; check that the client can sign in with it, and if it cannot, run again";
    let ended = |state| {
        Some(format!(
            "docspace-rotate: ended by SIGTERM after the delivery; {state}"
        ))
    };
    let failed = format!(
        "docspace-rotate: the new secret was not delivered to the command sh: it exited with status 9; {NOT_DELIVERED}"
    );
    let (store, only) = ("cat > $0/stored", "--only=regenerate");
    for_each(
        vec![
            (&[][..], store, 143, ended(revocable)),
            (&["--verify"], store, 143, ended(revocable)),
            (&[only, "--verify"], store, 143, ended(unverified)),
            (&[only], store, 0, None),
            (&[], "cat > $0/stored; exit 9", 6, Some(failed)),
        ],
        |(args, script, status, error)| {
            let folder = Folder::new();
            let portal = MockPortal::new(ready([regenerate()]));
            let mut command = to_shell(&portal, args, &format!("{WAIT} {script}"));
            let child = start_without_terminal(&mut command, &folder);
            let process = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
            assert!(process.contains("\nThreads:\t1\n"), "{process}");
            // SAFETY: a plain system call; the child leads its group, and is not yet waited for.
            assert_eq!(
                unsafe { libc::kill(-(child.id() as i32), libc::SIGTERM) },
                0
            );
            folder.file("go", "");
            finish(&command, child).assert_run(status, "", error.as_deref().as_slice());
            assert_eq!(fs::read_to_string(folder.path("stored")).unwrap(), SECRET);
        },
    );
}

#[test]
fn a_kill_leaves_it_with_the_whole_secret() {
    let folder = Folder::new();
    let portal = MockPortal::new(ready([regenerate()]));
    let script = format!("{WAIT} cat > $0/part; mv $0/part $0/stored");
    let mut child = start_without_terminal(&mut to_shell(&portal, &[], &script), &folder);
    child.kill().unwrap();
    child.wait().unwrap();
    folder.file("go", "");
    assert!(wait_until(|| folder.path("stored").exists()));
    assert_eq!(fs::read_to_string(folder.path("stored")).unwrap(), SECRET);
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
    let id = fs::read_to_string(folder.path("started"))
        .unwrap()
        .trim()
        .to_owned();
    // SAFETY: a plain system call, to the command, which is not yet waited for.
    assert_eq!(unsafe { libc::kill(id.parse().unwrap(), libc::SIGSTOP) }, 0);
    let stat = format!("/proc/{id}/stat");
    assert!(wait_until(|| fs::read_to_string(&stat)
        .unwrap()
        .contains(") T ")));
    // The timer's signal, without the wait for it.
    send(&child, libc::SIGALRM);
    finish(&command, child).assert_run(6, "", &["docspace-rotate: timed out during the delivery, and the command may still be running; the client has …"]);
    assert!(wait_until(
        || folder.path("parent").exists() && folder.path("child").exists()
    ));
}
