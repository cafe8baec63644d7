//! `-- COMMAND`: the secret goes to a command on its stdin, and is handed over when it has been read.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use crate::portal::{
    Act, CLIENT, KEY, LOG, SECRET, SIGNATURE, Stand, Step, good_run, held, http, json, look, looked, on,
    reply, signed_in,
};
use crate::run::{Folder, Run, finish, program, rotate, run, send, start};

const LOST: &str = "; the client has a new secret that may not have been handed over; fix the output or the command, then run again";

fn regenerate_alone() -> Stand {
    Stand::script(looked([on("PATCH regenerate", reply("patch-200"))]))
}

/// The program with a PATH, quiet, and a shell script for a command.
fn to_shell(stand: &Stand, args: &[&str], script: &str) -> Command {
    let mut command = rotate(stand);
    command.env("PATH", "/usr/bin:/bin").arg("-q").args(args).args(["--", "sh", "-c", script]);
    command
}

#[test]
fn it_gets_the_bytes_of_the_secret_and_nothing_else() {
    let folder = Folder::new();
    let file = folder.path("stored");
    let object = format!(r#"{{"client_secret":"{SECRET}"}}"#);
    for (args, wanted) in [(&[][..], SECRET), (&["--json"], object.as_str()), (&["-n"], SECRET)] {
        let stand = Stand::script(good_run());
        let script =
            format!("[ -p /dev/stdin ] && cat /dev/stdin > {}; echo out; echo err >&2", file.display());
        run(&mut to_shell(&stand, args, &script)).is(0, "out\n", &["err"]);
        assert_eq!(fs::read_to_string(&file).unwrap(), wanted);
    }
    // What the log says is as ever, and a closed stdout is of no concern.
    let stand = Stand::script(good_run());
    let mut command = rotate(&stand);
    command.env("PATH", "/usr/bin:/bin").args(["--", "sh", "-c", "exec cat >/dev/null"]);
    run(&mut command).is(0, "", &LOG);
}

#[test]
fn the_steps_are_as_without_it() {
    let proof = || on("POST introspect", reply("introspect-200"));
    let cat = "exec cat > /dev/null";
    let stand = Stand::script(good_run().into_iter().chain([proof()]).collect());
    run(&mut to_shell(&stand, &["--verify"], cat)).is(0, "", &[]);
    run(&mut to_shell(&regenerate_alone(), &["--only", "regenerate"], cat)).is(0, "", &[]);
    let stand = Stand::script(looked([on("PATCH regenerate", reply("patch-200")), proof()]));
    run(&mut to_shell(&stand, &["--only", "regenerate", "--verify"], cat)).is(0, "", &[]);
    // --check looks it up and does not start it.
    let stand = Stand::script(signed_in([look()]));
    run(&mut to_shell(&stand, &["--check"], "echo started")).is(0, "", &[]);
}

#[test]
fn one_that_is_not_there_is_2_and_nothing_is_sent() {
    let folder = Folder::new();
    let plain = folder.file("plain", "#!/bin/sh\n");
    let (plain, here) = (plain.to_str().unwrap(), folder.as_ref().to_str().unwrap());
    let missing = format!("{here}/missing");
    let path = format!("{here}:/usr/bin:/bin");
    let none = "there is no such program on PATH";
    for (words, path, error) in [
        (
            &["docspace-rotate-none"][..],
            path.as_str(),
            format!("can't run the command docspace-rotate-none: {none}"),
        ),
        (&["plain"], &path, format!("can't run the command plain: {none}")),
        (&["cat"], "", format!("can't run the command cat: {none}")),
        (&["cat"], here, format!("can't run the command cat: {none}")),
        (&[&missing], &path, format!("can't run the command {missing}: No such file or directory")),
        (&[plain], &path, format!("can't run the command {plain}: it is not executable")),
        (&[here], &path, format!("can't run the command {here}: it is a directory")),
        (&["\u{1b}[2J"], &path, format!(r"can't run the command \u{{1b}}[2J: {none}")),
        (&[KEY, "sk-in-an-argument"], &path, format!("can't run the command [hidden]: {none}")),
        (&["", "x"], &path, "COMMAND: its name is empty".to_owned()),
        (&[], &path, "COMMAND is missing after --".to_owned()),
    ] {
        for check in [None, Some("--check")] {
            let stand = Stand::script(vec![]);
            let mut command = rotate(&stand);
            let refused = run(command.env("PATH", path).args(check).arg("--").args(words));
            refused.is(2, "", &[&format!("docspace-rotate: {error}; nothing was sent; see --help")]);
            assert_eq!(stand.connections(), 0);
        }
    }
    for (args, error) in [
        (&["-o", "file"][..], "--output: can't be combined with COMMAND"),
        (&["--only", "revoke"], "COMMAND: with --only revoke there is no new secret to hand over"),
    ] {
        let stand = Stand::script(vec![]);
        let refused = run(rotate(&stand).args(args).args(["--", "cat"]));
        refused.is(2, "", &[&format!("docspace-rotate: {error}; nothing was sent; see --help")]);
    }
}

/// Nothing that happens to lie in the current directory gets the secret.
#[test]
fn without_a_path_nothing_is_found() {
    let folder = Folder::new();
    symlink("/bin/cat", folder.path("store")).unwrap();
    let error =
        "docspace-rotate: can't run the command store: there is no such program on PATH; nothing was …";
    for path in [None, Some("")] {
        let stand = Stand::script(vec![]);
        let mut command = rotate(&stand);
        command.envs(path.map(|path| ("PATH", path))).current_dir(folder.as_ref());
        run(command.args(["--", "store"])).is(2, "", &[error]);
    }
}

/// A folder, a file that is not executable and a dangling link of its name are passed over.
#[test]
fn the_first_program_of_the_name_on_path_is_started_by_that_name() {
    let folders = [Folder::new(), Folder::new(), Folder::new(), Folder::new()];
    fs::create_dir(folders[0].path("store")).unwrap();
    folders[1].file("store", "#!/bin/sh\nexit 9\n");
    symlink("nowhere", folders[2].path("store")).unwrap();
    symlink("/bin/sh", folders[3].path("store")).unwrap();
    let path: Vec<&str> = folders.iter().map(|folder| folder.as_ref().to_str().unwrap()).collect();
    let stand = Stand::script(good_run());
    let mut command = rotate(&stand);
    command.env("PATH", format!("{}:/usr/bin:/bin", path.join(":"))).arg("-q");
    command.args([
        "--",
        "store",
        "-c",
        "cat > /dev/null; tr '\\0' ' ' < /proc/$$/cmdline; echo \"$1\"",
        "0",
        "-x  --",
    ]);
    let script = "cat > /dev/null; tr '\\0' ' ' < /proc/$$/cmdline; echo \"$1\"";
    run(&mut command).is(0, &format!("store -c {script} 0 -x  -- -x  --\n"), &[]);
    // An empty entry is the current directory.
    let stand = Stand::script(good_run());
    let mut command = rotate(&stand);
    command.env("PATH", ":/nowhere").current_dir(folders[3].as_ref()).arg("-q");
    run(command.args(["--", "store", "-c", "exec /bin/cat > /dev/null"])).is(0, "", &[]);
}

#[test]
fn its_environment_is_the_programs_with_the_client_and_without_the_key() {
    let folder = Folder::new();
    let key = folder.file("key", KEY);
    let stand = Stand::script(good_run());
    let mut command = program();
    command.env("PATH", "/usr/bin:/bin").env("DOCSPACE_API_KEY_FILE", key).env("DOCSPACE_CLIENT_ID", "other");
    command.env("DOCSPACE_CLIENT_ID_FILE", "").env("ANOTHER", "one").env("DOCSPACE_API_KEY", "");
    command.args(["-q", "--url", &format!("{}/", stand.url()), CLIENT]);
    let done = run(command.args(["--", "sh", "-c", "cat > /dev/null; exec env"]));
    assert_eq!(done.status, Some(0), "{done}");
    let mut names: Vec<&str> = done.stdout.lines().filter(|line| !line.starts_with("PWD=")).collect();
    names.retain(|line| !line.starts_with("_=") && !line.starts_with("SHLVL="));
    names.sort();
    let base = format!("DOCSPACE_BASE_URL={}", stand.url());
    let id = format!("DOCSPACE_CLIENT_ID={CLIENT}");
    assert_eq!(names, ["ANOTHER=one", &base, &id, "PATH=/usr/bin:/bin"]);
    for hidden in [KEY, SIGNATURE, SECRET] {
        assert!(!done.stdout.contains(hidden), "{done}");
    }
}

/// Has the command start with these signals ignored, and with these blocked.
fn inherit(command: &mut Command, ignored: &'static [i32], blocked: &'static [i32]) {
    // SAFETY: all of these may be called between fork and exec.
    unsafe {
        command.pre_exec(move || {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in blocked {
                libc::sigaddset(&mut set, *signal);
            }
            libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
                libc::signal(signal, libc::SIG_DFL);
            }
            for signal in ignored {
                libc::signal(*signal, libc::SIG_IGN);
            }
            Ok(())
        });
    }
}

#[test]
fn it_inherits_the_signals_that_the_program_was_started_with_and_no_socket() {
    use libc::{SIGALRM, SIGCHLD, SIGHUP, SIGINT, SIGPIPE, SIGTERM, SIGUSR1, SIGXFSZ};
    let cases: [(&[i32], &[i32]); 5] = [
        (&[], &[]),
        (&[SIGPIPE, SIGHUP], &[SIGUSR1]),
        (&[SIGCHLD], &[SIGALRM, SIGTERM]),
        (&[SIGALRM, SIGXFSZ, SIGINT], &[SIGHUP, SIGINT]),
        (&[SIGHUP, SIGINT, SIGTERM], &[]),
    ];
    let script = "grep -E '^Sig(Blk|Ign)' /proc/self/status; cat >/dev/null; ls -l /proc/self/fd >&2";
    for (ignored, blocked) in cases {
        let mut plain = Command::new("sh");
        plain.args(["-c", script]).stdin(Stdio::null());
        inherit(&mut plain, ignored, blocked);
        let wanted = plain.output().unwrap();
        let stand = Stand::script(good_run());
        let mut command = to_shell(&stand, &[], script);
        inherit(&mut command, ignored, blocked);
        let done = run(&mut command);
        assert_eq!(
            (done.status, done.stdout.as_str()),
            (Some(0), &*String::from_utf8_lossy(&wanted.stdout)),
            "{done}"
        );
        // No file is open that would not be without the program.
        let files = |listed: &str| listed.lines().filter(|line| line.contains(" -> ")).count();
        assert_eq!(files(&done.stderr), files(&String::from_utf8_lossy(&wanted.stderr)), "{done}");
    }
}

#[test]
fn one_that_fails_or_does_not_read_is_6_and_nothing_is_revoked() {
    for (script, how) in [
        ("exit 9", "ended with status 9"),
        ("cat > /dev/null; exit 1", "ended with status 1"),
        ("cat > /dev/null; kill -TERM $$", "was ended by signal 15"),
        ("kill -KILL $$", "was ended by signal 9"),
        ("exit 0", "ended with 0 but did not read the secret"),
        ("exec true", "ended with 0 but did not read the secret"),
        ("exec <&-; exit 0", "ended with 0 but did not read the secret"),
        ("exec head -c 5 > /dev/null", "ended with 0 but did not read the secret"),
        ("exec head -c 35 > /dev/null", "ended with 0 but did not read the secret"),
        ("sleep 0.2; exec true", "ended with 0 but did not read the secret"),
        ("{ sleep 0.3; cat; } <&0 > /dev/null & exit 0", "ended with 0 but did not read the secret"),
    ] {
        let stand = regenerate_alone();
        let lost = run(&mut to_shell(&stand, &["--verify"], script));
        lost.is(6, "", &[&format!("docspace-rotate: the command sh {how}{LOST}")]);
    }
    let stand = Stand::script(good_run());
    run(&mut to_shell(&stand, &[], "exec head -c 36 > /dev/null")).is(0, "", &[]);
}

/// More than some pipes hold.
fn long() -> (String, Stand) {
    let object = format!(r#"{{"client_secret":"{SECRET}","more":"{}"}}"#, "é".repeat(32 * 1024 - 100));
    let body = json(&object);
    // On one line, each é takes six bytes.
    let object = object.replace('é', "\\u00e9");
    let script = [on("PATCH regenerate", body), on("DELETE revoke", reply("delete-200"))];
    (object, Stand::script(looked(script)))
}

#[test]
fn a_long_object_is_read_late_slowly_or_never() {
    let folder = Folder::new();
    let file = folder.path("stored");
    for script in
        ["sleep 0.3; exec cat > $0", "while head -c 3000 | grep . ; do sleep 0.01; done > $0; cat >> $0"]
    {
        let (object, stand) = long();
        let mut command = to_shell(&stand, &["--json"], script);
        run(command.arg(&file)).is(0, "", &[]);
        assert_eq!(fs::read_to_string(&file).unwrap().replace('\n', ""), object);
    }
    for script in ["sleep 0.3", "exec head -c 65000 > /dev/null", "exec <&-; sleep 0.3"] {
        let (_, stand) = long();
        let lost = run(&mut to_shell(&stand, &["--json"], script));
        lost.is(
            6,
            "",
            &[&format!("docspace-rotate: the command sh ended with 0 but did not read the secret{LOST}")],
        );
        assert!(stand.requests().iter().all(|request| request.method != "DELETE"));
        stand.need_no_more();
    }
}

#[test]
fn one_that_cannot_be_started_after_all_is_6() {
    let folder = Folder::new();
    let store = folder.file("store", "#!/bin/sh\nexec cat > /dev/null\n");
    fs::set_permissions(&store, fs::Permissions::from_mode(0o755)).unwrap();
    let (answer, step) = held("PATCH regenerate", reply("patch-200"));
    let stand = Stand::script(looked([step]));
    let mut command = rotate(&stand);
    let child = start(command.arg("-q").arg("--").arg(&store));
    stand.wait_for(3);
    fs::remove_file(&store).unwrap();
    drop(answer);
    let error = format!(
        "docspace-rotate: the command {} could not be started: No such file or directory{LOST}",
        store.display()
    );
    finish(&command, child).is(6, "", &[&error]);
}

#[test]
fn it_is_ended_when_the_time_is_up_and_the_run_with_6() {
    let folder = Folder::new();
    let stand = regenerate_alone();
    let script = "trap 'echo ended > $0/end; exit' TERM; cat > $0/stored; sleep 40 > /dev/null 2>&1 & wait";
    let mut command = to_shell(&stand, &["--timeout", "1.5"], script);
    let lost = run(command.arg(folder.as_ref()).stderr(Stdio::piped()));
    let error = format!("docspace-rotate: timed out while waiting for the command sh{LOST}");
    lost.is(6, "", &[&error]);
    for _ in 0..1000 {
        if folder.path("end").exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(folder.names(), ["end", "stored"]);
}

/// A stopped one would not notice, and would hold its caller's stdout for ever.
#[test]
fn one_that_is_stopped_is_ended_too() {
    let stand = regenerate_alone();
    let mut command = to_shell(&stand, &["--timeout", "1.5"], "cat > /dev/null; kill -STOP $$; echo went on");
    // A stopped member may end a group whose leader's parent is gone: not that of the tests.
    let lost = run(command.process_group(0));
    lost.is(6, "", &[&format!("docspace-rotate: timed out while waiting for the command sh{LOST}")]);
}

/// A run whose command has said that it is started, and waits for the file `go`.
fn under_way(folder: &Folder, stand: &Stand, args: &[&str], script: &str) -> (Command, Child) {
    let wait = format!("touch $0/started; while [ ! -e $0/go ]; do sleep 0.01; done; {script}");
    let mut command = to_shell(stand, args, &wait);
    command.arg(folder.as_ref());
    let child = start(&mut command);
    while !folder.path("started").exists() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    (command, child)
}

#[test]
fn a_signal_is_held_until_the_secret_is_handed_over() {
    let (revoke, proof) = ("[DELETE revoke]", "[POST introspect]");
    let kept =
        "the new secret is handed over, but the consent may still be in force; run again with --only revoke";
    let unverified = "the new secret is handed over, but not verified; run again, one run at a time";
    let store = "cat > $0/stored";
    for (args, script, status, said) in [
        (&[][..], store, None, format!("before {revoke}; {kept}")),
        (&["--verify"], store, None, format!("before {revoke} and {proof}; {kept}")),
        (&["--only", "regenerate", "--verify"], store, None, format!("before {proof}; {unverified}")),
        (&["--only", "regenerate"], store, Some(0), String::new()),
        (
            &[],
            "exit 9",
            Some(6),
            format!("the command sh ended with status 9, and SIGNAL came meanwhile{LOST}"),
        ),
    ] {
        for (signal, name, number) in
            [(libc::SIGHUP, "SIGHUP", 129), (libc::SIGINT, "SIGINT", 130), (libc::SIGTERM, "SIGTERM", 143)]
        {
            let folder = Folder::new();
            let stand = regenerate_alone();
            let (command, child) = under_way(&folder, &stand, args, script);
            send(&child, signal);
            folder.file("go", "");
            let done = finish(&command, child);
            let line = match status {
                None => format!("docspace-rotate: ended by {name} {said}"),
                Some(_) => format!("docspace-rotate: {}", said.replace("SIGNAL", name)),
            };
            let line = [line.as_str()];
            done.is(status.unwrap_or(number), "", if status == Some(0) { &[] } else { &line });
            assert_eq!(folder.path("stored").exists(), status != Some(6));
        }
    }
}

/// A signal that the caller ignores or blocks ends nothing.
#[test]
fn a_signal_that_would_not_end_the_run_is_not_named() {
    for (ignored, blocked) in [(&[libc::SIGTERM][..], &[][..]), (&[], &[libc::SIGTERM])] {
        let folder = Folder::new();
        let stand = regenerate_alone();
        let wait = "touch $0/started; while [ ! -e $0/go ]; do sleep 0.01; done; exit 9";
        let mut command = to_shell(&stand, &[], wait);
        inherit(&mut command, ignored, blocked);
        let child = start(command.arg(folder.as_ref()));
        while !folder.path("started").exists() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        send(&child, libc::SIGTERM);
        folder.file("go", "");
        finish(&command, child).is(
            6,
            "",
            &[&format!("docspace-rotate: the command sh ended with status 9{LOST}")],
        );
    }
}

#[cfg(target_os = "linux")]
#[test]
fn the_program_stays_on_one_thread() {
    let folder = Folder::new();
    let stand = Stand::script(good_run());
    let (command, child) = under_way(&folder, &stand, &[], "exec cat > /dev/null");
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    folder.file("go", "");
    finish(&command, child).is(0, "", &[]);
    assert!(status.contains("\nThreads:\t1\n"), "{status}");
}

#[test]
fn no_newline_is_for_stdout_and_files() {
    let folder = Folder::new();
    let (new, old) = (folder.path("new"), folder.file("old", "old and longer than a secret would ever be\n"));
    let object = format!(r#"{{"client_secret":"{SECRET}"}}"#);
    let no_newline = |args: &[&str]| -> Run {
        let stand = Stand::script(good_run());
        run(rotate(&stand).args(["-q", "--no-newline"]).args(args))
    };
    no_newline(&[]).is(0, SECRET, &[]);
    no_newline(&["--json"]).is(0, &object, &[]);
    for file in [&new, &old] {
        no_newline(&["-o", file.to_str().unwrap()]).is(0, "", &[]);
        assert_eq!(fs::read_to_string(file).unwrap(), SECRET);
    }
}

/// Whatever the run meets before there is a secret, the store is not asked.
#[test]
fn a_run_that_fails_starts_nothing() {
    for (script, status) in [
        (vec![on("GET token", reply("token-401"))], 3),
        (looked([on("PATCH regenerate", reply("patch-404-unknown"))]), 3),
        (looked([on("PATCH regenerate", http("200 ", "", "{}"))]), 7),
        (looked([Step::Request("PATCH regenerate", vec![Act::Reset])]), 7),
    ] {
        let stand = Stand::script(script);
        let failed = run(&mut to_shell(&stand, &[], "echo started"));
        assert_eq!((failed.status, failed.stdout.as_str()), (Some(status), ""), "{failed}");
    }
}

/// Not through sh: dash clears the mask when it starts.
#[test]
fn it_inherits_the_signal_mask() {
    for blocked in [&[][..], &[libc::SIGHUP, libc::SIGUSR1], &[libc::SIGALRM, libc::SIGTERM]] {
        let stand = Stand::script(good_run());
        let mut command = rotate(&stand);
        command.env("PATH", "/usr/bin:/bin").args(["-q", "--", "cat", "/proc/self/status", "-"]);
        inherit(&mut command, &[], blocked);
        let done = run(&mut command);
        let mask = blocked.iter().fold(0u64, |mask, signal| mask | 1 << (signal - 1));
        assert!(done.stdout.contains(&format!("SigBlk:\t{mask:016x}\n")), "{done}");
        assert!(done.stdout.ends_with(SECRET), "{done}");
    }
}
