//! Delivery to stdout and to FILE: what is written, and what is left when it fails.

use std::fs::{self, Metadata};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use crate::mock::*;
use crate::namespaces::*;
use crate::run::*;
use crate::words::*;

/// Returns a command that logs only errors and writes to a file.
fn to_file(portal: &MockPortal, file: &Path) -> Command {
    let mut command = rotate(portal);
    command.arg("-q").arg("--output").arg(file);
    command
}

/// Returns a shell in this folder, for a script in which `rotate` is a run that logs only errors.
fn in_shell(portal: &MockPortal, folder: &Folder, script: &str) -> Command {
    let mut command = command("/bin/sh");
    let program = env!("CARGO_BIN_EXE_docspace-rotate");
    let rotate = format!("rotate() {{ exec {program} -q {CLIENT} \"$@\"; }}");
    set_portal(&mut command, portal);
    command
        .current_dir(folder.as_ref())
        .arg("-c")
        .arg(format!("{rotate}; {script}"));
    command
}

fn run_in_shell(expected: Vec<Expect>, folder: &Folder, script: &str) -> Run {
    let portal = MockPortal::new(expected);
    run(&mut in_shell(&portal, folder, script))
}

fn metadata(file: &Path) -> Metadata {
    fs::metadata(file).unwrap()
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap()
}

#[test]
fn writes_the_secret_or_the_object_to_stdout() {
    let folder = Folder::new();
    let line = secret_line();
    let object = format!("{{\"client_secret\":\"{SECRET}\"}}");
    for (script, stdout) in [
        ("rotate", &*line),
        ("rotate -n", SECRET),
        ("rotate --json", &format!("{object}\n")),
        ("rotate --json --no-newline", &object),
        ("rotate -o -", &line),
        ("rotate -o /dev/stdout", &line),
        ("rotate -o /dev/null", ""),
        ("rotate > /dev/null", ""),
    ] {
        run_in_shell(good_run(), &folder, script).assert_run(0, stdout, &[]);
    }
    assert!(folder.names().is_empty());
}

#[test]
fn a_file_that_is_stdout_is_not_opened_again() {
    let folder = Folder::new();
    let line = secret_line();
    for (script, text) in [
        ("rotate -o /dev/stdout >> file", format!("before\n{line}")),
        ("rotate -o /dev/stdout 1<> file", line.clone()),
    ] {
        let file = folder.file("file", "before\n");
        run_in_shell(good_run(), &folder, script).assert_run(0, "", &[]);
        assert_eq!(read(&file), text, "{script}");
    }
}

#[test]
fn creates_a_new_file_and_overwrites_an_existing_one_in_place() {
    let folder = Folder::new();
    let new = folder.path("new");
    let link = folder.path("link");
    let longer = folder.file("longer", "older and longer than any secret\n".repeat(300));
    let empty = folder.file("empty", "");
    symlink(&longer, &link).unwrap();
    fs::set_permissions(&longer, fs::Permissions::from_mode(0o640)).unwrap();
    let before = metadata(&longer);
    for file in [&new, &link, &empty] {
        let name = file.to_str().unwrap();
        run_script(good_run(), &["-q", "-o", name]).assert_run(0, "", &[]);
        assert_eq!(read(file), secret_line());
        run_script(good_run(), &["-q", "-n", "-o", name]).assert_run(0, "", &[]);
        assert_eq!(read(file), SECRET);
    }
    assert_eq!(metadata(&new).mode() & 0o777, 0o600);
    let after = metadata(&longer);
    assert_eq!(after.ino(), before.ino());
    assert_eq!(after.mode(), before.mode());
    assert!(link.is_symlink());
    assert_eq!(folder.names(), ["empty", "link", "longer", "new"]);
}

#[test]
fn touches_no_file_and_starts_no_command_without_a_secret() {
    let folder = Folder::new();
    let text = "x".repeat(5000);
    let old = folder.file("old", &text);
    let changed = || metadata(&old).modified().unwrap();
    let before = changed();
    for (request, reply, status) in [
        ("GET token", recorded("token-401"), 3),
        ("PATCH regenerate", recorded("patch-404-unknown"), 3),
        ("PATCH regenerate", recorded("patch-500"), 7),
        ("PATCH regenerate", json("{}"), 7),
    ] {
        for script in [
            "rotate -o new",
            "rotate -o old",
            "rotate -- /bin/sh -c 'echo started'",
        ] {
            let expected = good_run_until(request, reply.clone());
            run_in_shell(expected, &folder, script).fails_with(status, "");
        }
    }
    assert_eq!(folder.names(), ["old"]);
    assert_eq!(read(&old), text);
    assert_eq!(changed(), before);
}

#[test]
fn a_file_that_appears_during_the_run_is_replaced() {
    let folder = Folder::new();
    let file = folder.path("file");
    let args = ["--only=regenerate", "-o", file.to_str().unwrap()];
    let run = meanwhile(&args, || {
        assert!(folder.names().is_empty(), "{:?}", folder.names());
        folder.file("file", "from another run, and longer than any secret\n");
    });
    run.assert_run(0, "", &[]);
    assert_eq!(read(&file), secret_line());
    assert_eq!(folder.names(), ["file"]);
}

#[test]
fn a_file_that_is_replaced_during_the_run_is_6() {
    let folder = Folder::new();
    let file = folder.file("file", "old\n");
    let name = format!("--output {}", file.display());
    let run = meanwhile(&["-o", file.to_str().unwrap()], || {
        fs::remove_file(&file).unwrap();
        folder.file("file", "another\n");
    });
    let why = "the file was removed or replaced, here or on the host that it is mounted from";
    assert_not_delivered(&run, &format!("{name}: {why}"));
    assert_eq!(read(&file), "another\n");
    assert_eq!(folder.names(), ["file"]);
}

#[test]
fn a_directory_that_appears_during_the_run_is_6() {
    let folder = Folder::new();
    let taken = folder.path("taken");
    let args = ["-o", taken.to_str().unwrap()];
    let run = meanwhile(&args, || fs::create_dir(&taken).unwrap());
    let name = taken.display();
    assert_not_delivered(&run, &format!("--output {name}: Is a directory"));
    assert_eq!(folder.names(), ["taken"]);
}

#[test]
fn a_bad_file_is_refused() {
    let folder = Folder::new();
    symlink("nowhere/file", folder.path("dangling")).unwrap();
    fs::create_dir(folder.path("folder")).unwrap();
    let missing = "No such file or directory";
    for (file, why) in [
        ("folder", "Is a directory"),
        ("missing/file", missing),
        ("missing/", "it names a directory"),
        ("missing/.", "it names a directory"),
        ("dangling", missing),
    ] {
        let error = format!("cannot deliver to --output {file}: {why}");
        assert_refused(&error, |portal| {
            let mut command = to_file(portal, Path::new(file));
            command.current_dir(folder.as_ref());
            command
        });
    }
    assert_eq!(folder.names(), ["dangling", "folder"]);
}

/// A block on the disk does not show it: the file has one, but may not grow.
#[test]
fn a_file_size_limit_is_found_before_anything_is_sent() {
    let folder = Folder::new();
    folder.file("small", "old");
    folder.file("large", [b'x'; 8192]);
    // In units of 512 bytes.
    for (script, name) in [
        ("ulimit -f 0; rotate -o new", "--output new"),
        ("ulimit -f 1; rotate -o new", "--output new"),
        ("ulimit -f 7; rotate -o new", "--output new"),
        ("ulimit -f 0; rotate -o small", "--output small"),
        ("ulimit -f 7; rotate -o small", "--output small"),
        ("ulimit -f 7; rotate -o large --check", "--output large"),
        ("ulimit -f 0; rotate > log", "stdout"),
        ("ulimit -f 23; rotate >> large", "stdout"),
    ] {
        let error = format!("cannot deliver to {name}: File too large");
        assert_refused(&error, |portal| in_shell(portal, &folder, script));
    }
    assert_eq!(folder.names(), ["large", "log", "small"]);
}

#[test]
fn a_file_size_limit_that_leaves_room_is_fine() {
    let folder = Folder::new();
    let small = folder.file("small", "old");
    let large = folder.file("large", [b'x'; 8192]);
    run_in_shell(good_run(), &folder, "ulimit -f 8; rotate -o small").assert_run(0, "", &[]);
    assert_eq!(read(&small), secret_line());
    run_in_shell(good_run(), &folder, "ulimit -f 24; rotate >> large").assert_run(0, "", &[]);
    assert_eq!(metadata(&large).len(), 8192 + 37);
}

#[test]
fn a_stdout_that_cannot_be_written_is_refused() {
    let folder = Folder::new();
    let closed = "it is closed, or it is /dev/null opened read-write";
    let read_only = "it is open read-only";
    for (script, name, why) in [
        ("rotate >&-", "stdout", closed),
        ("rotate 1< /dev/null", "stdout", read_only),
        ("rotate 1< /etc/passwd", "stdout", read_only),
        ("rotate -o /dev/stdout >&-", "--output /dev/stdout", closed),
        ("rotate -o /dev/fd/1 >&-", "--output /dev/fd/1", closed),
        ("rotate 1<> /dev/null", "stdout", closed),
    ] {
        let error = format!("cannot deliver to {name}: {why}");
        assert_refused(&error, |portal| in_shell(portal, &folder, script));
    }
}

#[test]
fn a_full_disk_is_found_before_anything_is_sent() {
    if !in_namespaces("output::a_full_disk_is_found_before_anything_is_sent") {
        return;
    }
    let disk = Folder::new();
    let at = disk.as_ref().display();
    system(&format!("mount -t tmpfs -o size=64k none {at}"));
    let large = disk.file("large", [b'x'; 4096]);
    disk.file("small", "");
    fs::write(disk.path("rest"), [b'x'; 1 << 16]).unwrap_err();

    for (script, name) in [
        ("rotate -o small", "--output small"),
        ("rotate -o small --check", "--output small"),
        ("rotate -o new", "--output new"),
        ("rotate -o new --check", "--output new"),
        ("rotate > log", "stdout"),
        ("rotate >> large", "stdout"),
    ] {
        let error = format!("cannot deliver to {name}: No space left on device");
        assert_refused(&error, |portal| in_shell(portal, &disk, script));
    }
    assert_eq!(disk.names(), ["large", "log", "rest", "small"]);
    run_in_shell(good_run(), &disk, "rotate -o large").assert_run(0, "", &[]);
    assert_eq!(read(&large), secret_line());
    system(&format!("umount {at}"));
}

#[test]
fn an_output_that_fails_during_the_delivery_is_6_and_nothing_is_revoked() {
    let folder = Folder::new();
    folder.fifo();
    let more = "y".repeat(9000);
    let object = format!("{{\"client_secret\":\"{SECRET}\",\"more\":\"{more}\"}}");
    for (script, error) in [
        (
            "rotate -o /dev/full",
            "--output /dev/full: No space left on device",
        ),
        ("rotate > /dev/full", "stdout: No space left on device"),
        // Opened for reading and for writing, the FIFO then loses its only reader.
        ("exec 3<> fifo > fifo 3>&-; rotate", "stdout: Broken pipe"),
        // The object exceeds the limit, although there is room for any bare secret.
        (
            "ulimit -f 8; rotate --json -o new",
            "--output new: File too large",
        ),
    ] {
        let expected = ready([expect("PATCH regenerate", json(&object))]);
        assert_not_delivered(&run_in_shell(expected, &folder, script), error);
    }
    assert_eq!(folder.names(), ["fifo"]);
}

#[test]
fn delivers_before_it_revokes() {
    let folder = Folder::new();
    for script in [
        "rotate > file",
        "rotate -o file",
        "rotate -- /bin/sh -c 'exec /bin/cat > file'",
    ] {
        let file = folder.file("file", "");
        let (answer, delete) = gated("DELETE revoke", recorded("delete-200"));
        let portal = MockPortal::new(ready([regenerate(), delete]));
        let mut command = in_shell(&portal, &folder, script);
        let child = start(&mut command);
        portal.wait_for(4);
        assert_eq!(read(&file).trim_end(), SECRET, "{script}");
        drop(answer);
        finish(&command, child).assert_run(0, "", &[]);
    }
}

#[test]
fn the_timeout_covers_a_fifo_without_a_reader() {
    let folder = Folder::new();
    let portal = MockPortal::new(vec![]);
    let run = run(to_file(&portal, &folder.fifo()).args(["--timeout", "2"]));
    let cause = "timed out while opening the output";
    run.assert_error(4, "", cause, UNCHANGED);
    assert_eq!(portal.connections(), 0);
}

#[test]
fn a_fifo_waits_for_its_reader() {
    let folder = Folder::new();
    let fifo = folder.fifo();
    let portal = MockPortal::new(good_run());
    let mut command = to_file(&portal, &fifo);
    let child = start(&mut command);
    let path = fifo.clone();
    let reader = thread::spawn(move || read(&path));
    finish(&command, child).assert_run(0, "", &[]);
    assert_eq!(reader.join().unwrap(), secret_line());
    assert!(metadata(&fifo).file_type().is_fifo());
}

#[test]
fn a_terminal_shows_the_secret() {
    let (keyboard, screen) = terminal();
    let portal = MockPortal::new(good_run());
    let mut command = rotate(&portal);
    command.arg("-q").stdout(screen).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    finish(&command, child).assert_run(0, "", &[]);
    let mut line = String::new();
    BufReader::new(keyboard).read_line(&mut line).unwrap();
    assert_eq!(line.trim_end(), SECRET);
}

#[test]
fn a_closed_or_full_stderr_changes_nothing() {
    let (reader, closed) = io::pipe().unwrap();
    drop(reader);
    let (_reader, full) = full_pipe();
    for stderr in [closed, full] {
        let portal = MockPortal::new(good_run());
        let output = rotate(&portal).stderr(stderr).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(output.stdout, secret_line().as_bytes());
    }
}

/// Another process that shares a pipe may make it non-blocking.
#[test]
fn a_full_pipe_is_waited_for_even_if_it_is_non_blocking() {
    let (reader, writer) = full_pipe();
    set_flags(&writer, libc::O_NONBLOCK);
    let portal = MockPortal::new(good_run());
    let mut command = rotate(&portal);
    let child = start_delivery(&mut command, writer);
    let text = io::read_to_string(reader).unwrap();
    assert!(text.ends_with(&secret_line()));
    finish(&command, child).assert_run(0, "", &GOOD_RUN_LOG[4..]);
}
