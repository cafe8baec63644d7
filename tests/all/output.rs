//! Where the secret goes: files, FIFOs, devices and pipes, and what is left when they fail.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use crate::portal::{
    Act, CLIENT, Certificates, SECRET, Stand, Step, good_run, held, http, json, line, looked, on, reply,
    signed_in,
};
use crate::run::{self, Folder, finish, program, rotate, run, start};

fn regenerate_alone() -> Stand {
    Stand::script(looked([on("PATCH regenerate", reply("patch-200"))]))
}

fn to(stand: &Stand, file: &Path) -> Command {
    let mut command = rotate(stand);
    command.arg("-q").arg("--output").arg(file);
    command
}

#[test]
fn a_file_gets_the_secret_and_stdout_nothing() {
    let folder = Folder::new();
    let new = folder.path("new");
    let longer = folder.file("longer", "older and longer than any secret\n".repeat(3));
    let empty = folder.file("empty", "");
    for file in [&new, &longer, &empty] {
        let stand = Stand::script(good_run());
        run(&mut to(&stand, file)).is(0, "", &[]);
        assert_eq!(fs::read_to_string(file).unwrap(), line());
    }
    assert_eq!(fs::metadata(&new).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_file_is_written_in_place() {
    let folder = Folder::new();
    let file = folder.file("file", "old\n");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let before = fs::metadata(&file).unwrap();
    let link = folder.path("link");
    symlink(&file, &link).unwrap();
    let stand = Stand::script(good_run());
    run(&mut to(&stand, &link)).is(0, "", &[]);
    let after = fs::metadata(&file).unwrap();
    assert_eq!((after.ino(), after.mode()), (before.ino(), before.mode()));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(&file).unwrap(), line());
}

#[test]
fn without_a_secret_a_new_file_goes_and_an_old_one_stays_as_it_was() {
    let folder = Folder::new();
    let old = folder.file("old", "old content\n");
    let scripts: [fn() -> Vec<Step>; 4] = [
        || vec![on("GET token", reply("token-401"))],
        || looked([on("PATCH regenerate", reply("patch-404-unknown"))]),
        || looked([on("PATCH regenerate", reply("patch-500"))]),
        || looked([on("PATCH regenerate", http("200 ", "", "{}"))]),
    ];
    for script in scripts {
        for file in [&folder.path("new"), &old] {
            let stand = Stand::script(script());
            let failed = run(&mut to(&stand, file));
            assert!(matches!(failed.status, Some(3 | 7)), "{failed}");
        }
        assert_eq!(folder.names(), ["old"]);
        assert_eq!(fs::read_to_string(&old).unwrap(), "old content\n");
    }
}

#[test]
fn a_bad_output_is_2_and_nothing_is_sent() {
    let folder = Folder::new();
    let missing = folder.path("missing/file");
    let (slash, dot) = (folder.path("missing/"), folder.path("missing/."));
    let dangling = folder.path("dangling");
    symlink(folder.path("nowhere/file"), &dangling).unwrap();
    let escape = Path::new("missing/\u{1b}[2J");
    for (file, why) in [
        (escape, "No such file or directory"),
        (folder.as_ref(), "Is a directory"),
        (&missing, "No such file or directory"),
        (&slash, "it is a directory"),
        (&dot, "it is a directory"),
        (&dangling, "it is a dangling symbolic link"),
        (Path::new("/proc/version"), "Permission denied"),
    ] {
        // Root may open anything that a file system lets be opened.
        if why == "Permission denied" && OpenOptions::new().write(true).open(file).is_ok() {
            run::skipped("a file without permission", "this user may open it");
            continue;
        }
        let stand = Stand::script(vec![]);
        let refused = run(&mut to(&stand, file));
        let error = format!(
            "docspace-rotate: can't write to --output {}: {why}; nothing was sent; see --help",
            file.display().to_string().escape_debug()
        );
        refused.is(2, "", &[&error]);
        assert_eq!(stand.connections(), 0);
    }
}

#[test]
fn a_full_disk_is_6_and_nothing_is_revoked() {
    let error = |to: &str| {
        format!(
            "docspace-rotate: the new secret could not be written to {to}: No space left on device; \
            the client has a new secret that may not have been handed over; fix the output or the command, then run again"
        )
    };
    let stand = regenerate_alone();
    run(&mut to(&stand, Path::new("/dev/full"))).is(6, "", &[&error("--output /dev/full")]);

    let stand = regenerate_alone();
    let mut command = rotate(&stand);
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let child = command.arg("-q").stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    finish(&command, child).is(6, "", &[&error("stdout")]);
}

#[test]
fn a_closed_pipe_is_6_and_nothing_is_revoked() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    drop(reader);
    // Until no child of another test holds its end any more, which it does from fork to exec.
    while writer.write(b"x").is_ok() {
        thread::sleep(Duration::from_millis(1));
    }
    let stand = regenerate_alone();
    let mut command = rotate(&stand);
    let child = command.arg("-q").stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    finish(&command, child).is(
        6,
        "",
        &["docspace-rotate: the new secret could not be written to stdout: Broken pipe; \
            the client has a new secret that may not have been handed over; fix the output or the command, then run again"],
    );
}

#[test]
fn a_closed_stderr_changes_nothing() {
    let stand = Stand::script(good_run());
    let mut command = rotate(&stand);
    let mut child = start(&mut command);
    drop(child.stderr.take());
    finish(&command, child).is(0, &line(), &[]);
}

#[test]
fn dev_stdout_is_an_output() {
    let stand = Stand::script(good_run());
    run(&mut to(&stand, Path::new("/dev/stdout"))).is(0, &line(), &[]);
}

#[test]
fn a_fifo_is_an_output_and_waits_for_its_reader() {
    let folder = Folder::new();
    let fifo = folder.fifo();
    let stand = Stand::script(good_run());
    let mut command = to(&stand, &fifo);
    let child = start(&mut command);
    thread::sleep(Duration::from_millis(50));
    assert_eq!(stand.connections(), 0, "nothing may be sent before the output is open");
    let mut text = String::new();
    fs::File::open(&fifo).unwrap().read_to_string(&mut text).unwrap();
    finish(&command, child).is(0, "", &[]);
    assert_eq!(text, line());
    assert!(fs::metadata(&fifo).unwrap().file_type().is_fifo());
}

#[test]
fn a_fifo_that_nobody_reads_is_4_when_the_time_is_up() {
    let folder = Folder::new();
    let fifo = folder.fifo();
    let stand = Stand::script(vec![]);
    // As short a time as can be asked for is no time without end.
    run(to(&stand, &fifo).args(["--timeout", "0.0000001"])).is(4, "", &["docspace-rotate: timed out …"]);
    let refused = run(to(&stand, &fifo).args(["--timeout", "0.2"]));
    let error = format!(
        "docspace-rotate: timed out while waiting for a reader of --output {}; the client's secret is unchanged; run again later",
        fifo.display()
    );
    refused.is(4, "", &[&error]);
    assert_eq!(stand.connections(), 0);
}

#[test]
fn the_secret_is_out_before_the_revoke_is_answered() {
    let hang = || {
        let (answer, step) = held("DELETE revoke", reply("delete-200"));
        let mut script = good_run();
        script[3] = step;
        (answer, Stand::script(script))
    };
    let (answer, stand) = hang();
    let mut command = rotate(&stand);
    let mut child = start(command.arg("-q"));
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    stdout.read_line(&mut text).unwrap();
    assert_eq!(text, line());
    stand.wait_for(4);
    assert!(child.try_wait().unwrap().is_none(), "the run ended before the revoke was answered");
    drop(answer);
    finish(&command, child).is(0, "", &[]);

    let folder = Folder::new();
    let file = folder.path("file");
    let (answer, stand) = hang();
    let mut command = to(&stand, &file);
    let child = start(&mut command);
    stand.wait_for(4);
    assert_eq!(fs::read_to_string(&file).unwrap(), line());
    drop(answer);
    finish(&command, child).is(0, "", &[]);
}

/// Runs the program in a shell, which sets its stdout up.
fn in_shell(stand: &Stand, words: &str) -> Command {
    let plain = rotate(stand);
    let mut command = Command::new("/bin/sh");
    let script =
        format!("exec {} -q {} {words}", env!("CARGO_BIN_EXE_docspace-rotate"), crate::portal::CLIENT);
    command.env_clear().args(["-c", &script]);
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

const CLOSED: &str = "docspace-rotate: can't write to stdout: it is closed, so the secret would be lost; nothing was sent; see --help";

/// Rust replaces a closed stdout with /dev/null, and takes an error of one that can't be written
/// for a success.
#[test]
fn a_stdout_that_takes_nothing_is_2_and_nothing_is_sent() {
    for words in
        [">&-", "1< /dev/null", "1< /etc/passwd", "-o /dev/stdout >&-", "-o /dev/fd/1 >&-", "1<> /dev/null"]
    {
        let stand = Stand::script(vec![]);
        let output =
            words.strip_prefix("-o ").map(|words| format!("--output {}", words.split(' ').next().unwrap()));
        let mut error = CLOSED.replace("stdout", output.as_deref().unwrap_or("stdout"));
        if words.starts_with("1< ") {
            error = error.replace("it is closed, so the secret would be lost", "it is open for reading only");
        }
        run(&mut in_shell(&stand, words)).is(2, "", &[&error]);
        assert_eq!(stand.connections(), 0);
    }
}

#[test]
fn dev_null_opened_for_writing_is_an_output_like_any_other() {
    for words in ["> /dev/null", "-o /dev/null"] {
        let stand = Stand::script(good_run());
        run(&mut in_shell(&stand, words)).is(0, "", &[]);
    }
}

#[test]
fn dev_stdout_is_stdout_and_not_its_file_opened_anew() {
    let folder = Folder::new();
    let log = folder.file("log", "before\n");
    for redirection in [">>", "1<>"] {
        fs::write(&log, "before\n").unwrap();
        let stand = Stand::script(good_run());
        run(&mut in_shell(&stand, &format!("-o /dev/stdout {redirection} {}", log.display()))).is(0, "", &[]);
        let text = fs::read_to_string(&log).unwrap();
        let wanted = if redirection == ">>" { format!("before\n{}", line()) } else { line() };
        assert_eq!(text, wanted);
    }
}

/// Nothing is overwritten there.
#[test]
fn a_terminal_may_be_read_and_written() {
    let open = |path: &str| {
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path).unwrap()
    };
    let mut master = open("/dev/ptmx");
    let mut number = 0;
    // SAFETY: plain system calls on an open descriptor, and a number that is there to be written.
    unsafe {
        assert_eq!(libc::unlockpt(master.as_raw_fd()), 0);
        assert_eq!(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &mut number), 0);
    }
    let slave = open(&format!("/dev/pts/{number}"));
    let stand = Stand::script(good_run());
    let mut command = rotate(&stand);
    command.env_remove("DOCSPACE_API_KEY").env("DOCSPACE_API_KEY_FILE", "/dev/stdin");
    command.stdin(slave.try_clone().unwrap()).stdout(slave).stderr(Stdio::piped());
    write!(master, "{}\n\x04", crate::portal::KEY).unwrap();
    let child = command.spawn().unwrap();
    let done = finish(&command, child);
    assert_eq!(done.status, Some(0), "{done}");
    let mut text = [0; 4096];
    let length = master.read(&mut text).unwrap();
    let text = String::from_utf8_lossy(&text[..length]);
    assert!(text.ends_with(&format!("{SECRET}\r\n")), "{text:?}");
}

#[test]
fn what_a_run_reads_is_not_overwritten() {
    let folder = Folder::new();
    let key = folder.file("key", crate::portal::KEY);
    let (link, hard_link) = (folder.path("link"), folder.path("hard-link"));
    symlink(&key, &link).unwrap();
    fs::hard_link(&key, &hard_link).unwrap();
    let error = |output: &str| {
        format!("docspace-rotate: {output} is a file that this run reads; nothing was sent; see --help")
    };
    let stand = Stand::script(vec![]);
    for output in [&key, &link, &hard_link] {
        let mut command = to(&stand, output);
        command.env_remove("DOCSPACE_API_KEY").env("DOCSPACE_API_KEY_FILE", &key);
        run(&mut command).is(2, "", &[&error(&format!("--output {}", output.display()))]);
    }
    let mut command = in_shell(&stand, &format!("1<> {}", key.display()));
    command.env_remove("DOCSPACE_API_KEY").env("DOCSPACE_API_KEY_FILE", &key);
    run(&mut command).is(2, "", &[&error("stdout")]);
    assert_eq!(fs::read_to_string(&key).unwrap(), crate::portal::KEY);

    let (id, ca) = (folder.file("id", CLIENT), folder.file("ca", Certificates::new().ca_pem));
    for output in [&id, &ca] {
        let mut command = program();
        command.args(["-u", &stand.url(), "-o"]).arg(output).env("DOCSPACE_API_KEY", crate::portal::KEY);
        command.env("DOCSPACE_CLIENT_ID_FILE", &id).env("SSL_CERT_FILE", &ca);
        run(&mut command).is(2, "", &[&error(&format!("--output {}", output.display()))]);
    }
}

/// Lets no file of the program grow beyond so many bytes.
fn limit_files(command: &mut Command, bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: setrlimit(2) may be called between fork and exec.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}

#[test]
fn half_a_secret_is_6_and_a_new_file_goes() {
    let folder = Folder::new();
    for bytes in [0, 10, SECRET.len() as u64] {
        let stand = regenerate_alone();
        let mut command = to(&stand, &folder.path("new"));
        limit_files(&mut command, bytes);
        let lost = run(&mut command);
        assert_eq!(lost.status, Some(6), "{lost}");
        assert!(
            lost.error().contains("/new: File too large; the client has a new secret that may not"),
            "{lost}"
        );
        assert!(folder.names().is_empty(), "{:?}", folder.names());
    }
}

#[test]
fn an_old_file_keeps_its_content_where_nothing_can_be_written() {
    let folder = Folder::new();
    let old = folder.file("old", "old\n");
    let stand = regenerate_alone();
    let mut command = to(&stand, &old);
    limit_files(&mut command, 0);
    let lost = run(&mut command);
    assert_eq!(lost.status, Some(6), "{lost}");
    assert_eq!(fs::read_to_string(&old).unwrap(), "old\n");
}

#[test]
fn a_file_that_took_the_place_of_a_new_one_stays() {
    let folder = Folder::new();
    let file = folder.path("file");
    let other = folder.file("other", "");
    let (answer, gate) = channel();
    let refused = vec![Act::Wait(gate), Act::Send(reply("patch-404-unknown"))];
    let stand = Stand::script(looked([Step::Request("PATCH regenerate", refused)]));
    let mut command = to(&stand, &file);
    let child = start(&mut command);
    stand.wait_for(3);
    fs::rename(&other, &file).unwrap();
    drop(answer);
    let lost = finish(&command, child);
    assert_eq!(lost.status, Some(3), "{lost}");
    assert!(file.exists());
}

#[test]
fn a_stderr_that_nobody_reads_costs_nothing() {
    let (_reader, writer) = run::full_pipe();
    let stand = Stand::script(good_run());
    let mut command = rotate(&stand);
    let child = command.stdout(Stdio::piped()).stderr(writer).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stdout), line());
}

/// Each line of the log waits for it for 0.2 s. Here the time is up during such a wait.
#[test]
fn a_stderr_that_nobody_reads_changes_no_status() {
    let late = |request, milliseconds, bytes| {
        Step::Request(request, vec![Act::Sleep(Duration::from_millis(milliseconds)), Act::Send(bytes)])
    };
    type Case<'a> =
        (&'a [&'a str], fn(&dyn Fn(&'static str, u64, Vec<u8>) -> Step) -> Vec<Step>, i32, &'a str);
    let secret = line();
    let cases: [Case; 4] = [
        (
            &["--only", "regenerate"],
            |late| looked([late("PATCH regenerate", 500, reply("patch-200"))]),
            0,
            &secret,
        ),
        (&[], |late| looked([late("PATCH regenerate", 500, reply("patch-404-unknown"))]), 3, ""),
        (&["--check"], |late| signed_in([late("HEAD client", 700, reply("get-200"))]), 0, ""),
        (&["--timeout", "0.1", "-o", "missing/file"], |_| vec![], 2, ""),
    ];
    for (args, script, status, stdout) in cases {
        let attempt = || {
            let (_reader, writer) = run::full_pipe();
            let stand = Stand::script(script(&late));
            let mut command = rotate(&stand);
            command.args(["--timeout", "1"]).args(args).stdout(Stdio::piped()).stderr(writer);
            let output = command.spawn().unwrap().wait_with_output().unwrap();
            stand.need_no_more();
            output.status.code() == Some(status) && output.stdout == stdout.as_bytes()
        };
        // On a busy machine the reply itself may come too late.
        assert!((0..8).any(|_| attempt()), "{args:?}");
    }
}

#[test]
fn stderr_is_no_output() {
    let folder = Folder::new();
    let log = folder.path("log");
    for path in [log.as_path(), Path::new("/dev/stderr")] {
        let stand = Stand::script(vec![]);
        let words = format!("-o {} 2> {}", path.display(), log.display());
        let status = in_shell(&stand, &words).status().unwrap();
        let error = fs::read_to_string(&log).unwrap();
        assert_eq!(status.code(), Some(2), "{error}");
        assert!(error.contains(": it is stderr, which gets the log; nothing was sent; "), "{error}");
    }
}

/// Two runs at once, which the portal lets one of through.
#[test]
fn a_losing_run_takes_nothing_from_the_winning_one() {
    let folder = Folder::new();
    let file = folder.path("file");
    let (answer, gate) = channel();
    let refused = Act::Send(reply("patch-400-concurrent"));
    let loser = Stand::script(looked([Step::Request("PATCH regenerate", vec![Act::Wait(gate), refused])]));
    let mut losing = to(&loser, &file);
    let child = start(&mut losing);
    loser.wait_for(3);
    let winner = Stand::script(good_run());
    run(&mut to(&winner, &file)).is(0, "", &[]);
    drop(answer);
    let lost = finish(&losing, child);
    assert_eq!(lost.status, Some(3), "{lost}");
    assert_eq!(fs::read_to_string(&file).unwrap(), line());
}

/// Holds the reply to the PATCH back until `meanwhile` has been done.
fn meanwhile(file: &Path, meanwhile: impl FnOnce()) -> run::Run {
    let (answer, step) = held("PATCH regenerate", reply("patch-200"));
    let script = [step, on("DELETE revoke", reply("delete-200"))];
    let stand = Stand::script(looked(script));
    let mut command = to(&stand, file);
    let child = start(&mut command);
    stand.wait_for(3);
    meanwhile();
    drop(answer);
    let done = finish(&command, child);
    if done.status != Some(0) {
        stand.need_no_more();
    }
    done
}

#[test]
fn an_open_file_that_is_gone_when_it_is_written_is_6() {
    let folder = Folder::new();
    for replace in [false, true] {
        let file = folder.file("file", "old\n");
        let lost = meanwhile(&file, || {
            fs::remove_file(&file).unwrap();
            if replace {
                fs::write(&file, "somebody else's\n").unwrap();
            }
        });
        assert_eq!(lost.status, Some(6), "{lost}");
        assert!(lost.error().contains("/file: the file was removed or replaced meanwhile; "), "{lost}");
        assert_eq!(file.exists(), replace);
    }
}

#[test]
fn a_new_file_is_there_with_the_secret_or_not_at_all() {
    let folder = Folder::new();
    let file = folder.path("file");
    // Nothing is there during the PATCH, and a file that appears meanwhile holds an older secret.
    meanwhile(&file, || {
        assert!(folder.names().is_empty(), "{:?}", folder.names());
        fs::write(&file, "another run's, and longer than this one's secret\n").unwrap();
    })
    .is(0, "", &[]);
    assert_eq!((fs::read_to_string(&file).unwrap(), folder.names()), (line(), vec!["file".to_owned()]));
    // What can't be given its name is removed again.
    let taken = folder.path("taken");
    let lost = meanwhile(&taken, || fs::create_dir(&taken).unwrap());
    assert_eq!(lost.status, Some(6), "{lost}");
    assert!(lost.error().contains("/taken: Is a directory; the client has a new secret"), "{lost}");
    assert_eq!(folder.names(), ["file", "taken"]);
}

#[test]
fn nothing_that_ends_the_run_leaves_a_file() {
    let folder = Folder::new();
    for signal in [libc::SIGKILL, libc::SIGHUP, libc::SIGTERM] {
        let stand = Stand::script(looked([Step::Request("PATCH regenerate", vec![Act::Hang])]));
        let mut child = start(&mut to(&stand, &folder.path("file")));
        stand.wait_for(3);
        run::send(&child, signal);
        assert!(!child.wait().unwrap().success());
        assert!(folder.names().is_empty(), "{signal}: {:?}", folder.names());
    }
}

/// The failing run opened the output first.
#[test]
fn a_failing_run_costs_another_one_nothing() {
    let folder = Folder::new();
    let file = folder.path("file");
    let (answer, gate) = channel();
    let refused = vec![Act::Wait(gate), Act::Send(reply("patch-400-concurrent"))];
    let loser = Stand::script(looked([Step::Request("PATCH regenerate", refused)]));
    let mut losing = to(&loser, &file);
    let child = start(&mut losing);
    loser.wait_for(3);
    meanwhile(&file, || {
        drop(answer);
        let lost = finish(&losing, child);
        assert_eq!(lost.status, Some(3), "{lost}");
    })
    .is(0, "", &[]);
    assert_eq!(fs::read_to_string(&file).unwrap(), line());
}

/// Another process of the job made the pipe that both write to non-blocking, and fills it.
#[test]
fn a_non_blocking_stdout_is_waited_for() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    // SAFETY: the descriptor is open.
    unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    let object = format!(r#"{{"client_secret":"{SECRET}","more":"{}"}}"#, "y".repeat(60_000));
    let stand = Stand::script(looked([on("PATCH regenerate", json(&object))]));
    let (over, noise) = (AtomicBool::new(false), writer.try_clone().unwrap());
    let mut command = rotate(&stand);
    command.args(["-q", "--json", "--only", "regenerate"]).stdout(writer).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    drop(command);
    let over = &over;
    let text = thread::scope(|scope| {
        scope.spawn(move || {
            let mut noise = noise;
            while !over.load(Ordering::SeqCst) {
                let _ = noise.write(&[b'~'; 4096]);
            }
        });
        let read = scope.spawn(move || {
            let mut text = vec![];
            reader.read_to_end(&mut text).unwrap();
            text.retain(|byte| *byte != b'~');
            String::from_utf8(text).unwrap()
        });
        let output = child.wait_with_output().unwrap();
        over.store(true, Ordering::SeqCst);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        read.join().unwrap()
    });
    assert_eq!(text, object + "\n");
}
