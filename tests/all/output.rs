//! Delivery to stdout and to FILE: what is written, and what is left when it fails.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::{ptr, thread};

use crate::mock::*;
use crate::namespaces::*;
use crate::run::*;

/// Returns a command that logs only errors and writes to a file, with more arguments.
fn to_file(portal: &MockPortal, file: &Path, args: &[&str]) -> Command {
    let mut command = rotate(portal);
    command.arg("-q").arg("--output").arg(file).args(args);
    command
}

/// Returns a command that logs only errors, in a shell in this folder that first does something else.
fn in_shell(portal: &MockPortal, folder: &Folder, first: &str, args: &str) -> Command {
    let mut command = command("/bin/sh");
    let script = format!(
        "{first} exec {} -q {CLIENT} {args}",
        env!("CARGO_BIN_EXE_docspace-rotate")
    );
    command.args(["-c", &script]).current_dir(folder.as_ref());
    command.envs(
        rotate(portal)
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    command
}

#[test]
fn writes_the_secret_or_the_object_to_stdout() {
    let (folder, line) = (Folder::new(), secret_line());
    let (object, appended) = (
        format!(r#"{{"client_secret":"{SECRET}"}}"#),
        format!("before\n{line}"),
    );
    for (args, stdout, file) in [
        ("", &*line, "before\n"),
        ("-n", SECRET, "before\n"),
        ("--json", &format!("{object}\n"), "before\n"),
        ("--json --no-newline", &object, "before\n"),
        ("-o -", &line, "before\n"),
        ("-o /dev/stdout", &line, "before\n"),
        ("-o /dev/null", "", "before\n"),
        ("> /dev/null", "", "before\n"),
        // The file is not opened again.
        ("-o /dev/stdout >> file", "", &appended),
        ("-o /dev/stdout 1<> file", "", &line),
    ] {
        let path = folder.file("file", "before\n");
        let portal = MockPortal::new(good_run());
        run(&mut in_shell(&portal, &folder, "", args)).assert_run(0, stdout, &[]);
        assert_eq!(fs::read_to_string(path).unwrap(), file, "{args}");
    }
}

#[test]
fn creates_a_new_file_and_overwrites_an_existing_one_in_place() {
    let folder = Folder::new();
    let (new, link) = (folder.path("new"), folder.path("link"));
    let longer = folder.file("longer", "older and longer than any secret\n".repeat(300));
    let empty = folder.file("empty", "");
    symlink(&longer, &link).unwrap();
    fs::set_permissions(&longer, fs::Permissions::from_mode(0o640)).unwrap();
    let before = fs::metadata(&longer).unwrap();
    for file in [&new, &link, &empty] {
        for (args, text) in [(&[][..], secret_line()), (&["-n"], SECRET.to_owned())] {
            let portal = MockPortal::new(good_run());
            run(&mut to_file(&portal, file, args)).assert_run(0, "", &[]);
            assert_eq!(fs::read_to_string(file).unwrap(), text);
        }
    }
    assert_eq!(fs::metadata(&new).unwrap().mode() & 0o777, 0o600);
    let after = fs::metadata(&longer).unwrap();
    assert_eq!((after.ino(), after.mode()), (before.ino(), before.mode()));
    assert!(link.is_symlink());
    assert_eq!(folder.names(), ["empty", "link", "longer", "new"]);
}

#[test]
fn touches_no_file_and_starts_no_command_without_a_secret() {
    let folder = Folder::new();
    let (new, text) = (folder.path("new"), "x".repeat(5000));
    let old = folder.file("old", &text);
    let changed = fs::metadata(&old).unwrap().modified().unwrap();
    let [to_new, to_old] = [&new, &old].map(|file| ["--output", file.to_str().unwrap()]);
    let to_command = ["--", "/bin/sh", "-c", "echo started"];
    for (request, reply, status) in [
        ("GET token", recorded("token-401"), 3),
        ("PATCH regenerate", recorded("patch-400-concurrent"), 3),
        ("PATCH regenerate", recorded("patch-404-unknown"), 3),
        ("PATCH regenerate", recorded("patch-500"), 7),
        ("PATCH regenerate", json("{}"), 7),
    ] {
        for args in [&to_new[..], &to_old, &to_command] {
            let last = expect(request, reply.clone());
            let portal = MockPortal::new(if request == "GET token" {
                vec![last]
            } else {
                ready([last])
            });
            run(rotate(&portal).args(args)).fails_with(status, "");
        }
    }
    assert_eq!(folder.names(), ["old"]);
    assert_eq!(fs::read_to_string(&old).unwrap(), text);
    assert_eq!(fs::metadata(&old).unwrap().modified().unwrap(), changed);
}

#[test]
fn a_file_that_appears_or_is_replaced_during_the_run() {
    let folder = Folder::new();
    let [file, taken, old] = ["file", "taken", "old"].map(|name| folder.path(name));
    let [to_file, to_taken, to_old] =
        [&file, &taken, &old].map(|file| format!("-o{}", file.display()));
    meanwhile(&[&to_file], Some(revoke()), || {
        assert!(folder.names().is_empty(), "{:?}", folder.names());
        fs::write(
            &file,
            "from another run, and longer than the secret of this one\n",
        )
        .unwrap();
    })
    .assert_run(0, "", &[]);
    assert_eq!(fs::read_to_string(&file).unwrap(), secret_line());
    let lost = meanwhile(&[&to_taken], None, || fs::create_dir(&taken).unwrap());
    assert_not_delivered(
        &lost,
        &format!("--output {}: Is a directory", taken.display()),
    );
    folder.file("old", "old\n");
    meanwhile(&[&to_old], None, || {
        fs::remove_file(&old).unwrap();
        folder.file("old", "another\n");
    })
    .fails_with(6, "the file was removed or replaced during the run; ");
    assert_eq!(fs::read_to_string(&old).unwrap(), "another\n");
    assert_eq!(folder.names(), ["file", "old", "taken"]);
}

#[test]
fn a_bad_output_is_refused() {
    let folder = Folder::new();
    symlink("nowhere/file", folder.path("dangling")).unwrap();
    fs::create_dir(folder.path("folder")).unwrap();
    let (closed, missing) = (
        "it is closed, or open for reading only",
        "No such file or directory",
    );
    for (first, args, name, why) in [
        ("", "-o folder", "--output folder", "Is a directory"),
        ("", "-o missing/file", "--output missing/file", missing),
        (
            "",
            "-o missing/",
            "--output missing/",
            "it names a directory",
        ),
        (
            "",
            "-o missing/.",
            "--output missing/.",
            "it names a directory",
        ),
        ("", "-o dangling", "--output dangling", missing),
        (
            "",
            "-o 'missing/\u{1b}[2J'",
            r"--output missing/\u{1b}[2J",
            missing,
        ),
        ("", ">&-", "stdout", closed),
        ("", "1< /dev/null", "stdout", closed),
        ("", "1< /etc/passwd", "stdout", closed),
        ("", "-o /dev/stdout >&-", "--output /dev/stdout", closed),
        ("", "-o /dev/fd/1 >&-", "--output /dev/fd/1", closed),
        // In units of 512 bytes.
        ("ulimit -f 0;", "-o new", "--output new", "File too large"),
        ("ulimit -f 1;", "-o new", "--output new", "File too large"),
        ("ulimit -f 7;", "-o new", "--output new", "File too large"),
    ] {
        let error = format!("cannot write to {name}: {why}");
        assert_refused(&error, |portal| in_shell(portal, &folder, first, args));
    }
    assert_eq!(folder.names(), ["dangling", "folder"]);
}

#[test]
fn a_full_disk_is_found_before_anything_is_sent() {
    if !in_namespaces("output::a_full_disk_is_found_before_anything_is_sent") {
        return;
    }
    let disk = Folder::new();
    let at = disk.as_ref().display();
    system(&format!("mount -t tmpfs -o size=64k none {at}"));
    let (large, _small) = (disk.file("large", [b'x'; 4096]), disk.file("small", ""));
    fs::write(disk.path("rest"), [b'x'; 1 << 16]).unwrap_err();

    for (args, name) in [
        ("-o small", "--output small"),
        ("-o small --check", "--output small"),
        ("-o new", "--output new"),
        ("-o new --check", "--output new"),
        ("> log", "stdout"),
        (">> large", "stdout"),
    ] {
        let error = format!("cannot write to {name}: No space left on device");
        assert_refused(&error, |portal| in_shell(portal, &disk, "", args));
    }
    assert_eq!(disk.names(), ["large", "log", "rest", "small"]);
    let portal = MockPortal::new(good_run());
    run(&mut to_file(&portal, &large, &[])).assert_run(0, "", &[]);
    assert_eq!(fs::read_to_string(&large).unwrap(), secret_line());
    system(&format!("umount {at}"));
}

#[test]
fn an_output_that_fails_during_the_delivery_is_6_and_nothing_is_revoked() {
    let folder = Folder::new();
    folder.fifo();
    let object = format!(
        r#"{{"client_secret":"{SECRET}","more":"{}"}}"#,
        "y".repeat(9000)
    );
    for (first, args, error) in [
        (
            "",
            "-o /dev/full",
            "--output /dev/full: No space left on device",
        ),
        ("", "> /dev/full", "stdout: No space left on device"),
        // Opened for reading and for writing, the FIFO then loses its only reader.
        ("exec 3<> fifo > fifo 3>&-;", "", "stdout: Broken pipe"),
        // The object exceeds the limit, although there is room for any bare secret.
        (
            "ulimit -f 8;",
            "--json -o new",
            "--output new: File too large",
        ),
    ] {
        let portal = MockPortal::new(ready([expect("PATCH regenerate", json(&object))]));
        assert_not_delivered(&run(&mut in_shell(&portal, &folder, first, args)), error);
    }
    assert_eq!(folder.names(), ["fifo"]);
}

#[test]
fn delivers_before_it_revokes() {
    let folder = Folder::new();
    let file = folder.path("file");
    let store = format!("exec cat > {}", file.display());
    for args in [
        &[][..],
        &["-o", file.to_str().unwrap()],
        &["--", "/bin/sh", "-c", &store],
    ] {
        let (answer, delete) = gated("DELETE revoke", recorded("delete-200"));
        let portal = MockPortal::new(ready([regenerate(), delete]));
        let mut command = rotate(&portal);
        command
            .env("PATH", "/usr/bin:/bin")
            .arg("-q")
            .args(args)
            .stderr(Stdio::piped());
        let child = command
            .stdout(File::create(&file).unwrap())
            .spawn()
            .unwrap();
        portal.wait_for(4);
        assert_eq!(
            fs::read_to_string(&file).unwrap().trim_end(),
            SECRET,
            "{args:?}"
        );
        drop(answer);
        finish(&command, child).assert_run(0, "", &[]);
    }
}

#[test]
fn a_fifo_waits_for_its_reader() {
    let folder = Folder::new();
    let fifo = folder.fifo();
    let portal = MockPortal::new(vec![]);
    let error = "docspace-rotate: timed out while opening the output; the client's secret is unchanged; run again later";
    run(&mut to_file(&portal, &fifo, &["--timeout", "0.2"])).assert_run(4, "", &[error]);
    assert_eq!(portal.connections(), 0);

    let portal = MockPortal::new(good_run());
    let mut command = to_file(&portal, &fifo, &[]);
    let child = start(&mut command);
    let path = fifo.clone();
    let reader = thread::spawn(move || fs::read_to_string(path).unwrap());
    finish(&command, child).assert_run(0, "", &[]);
    assert_eq!(reader.join().unwrap(), secret_line());
    assert!(fs::metadata(&fifo).unwrap().file_type().is_fifo());
}

/// A key that ends the run has to end the command, too.
#[test]
fn a_terminal_shows_the_secret_and_has_the_command_in_the_group_of_the_run() {
    let group = [
        "--",
        "/bin/sh",
        "-c",
        "/bin/cat > /dev/null; /usr/bin/cut -d ' ' -f 5 /proc/$$/stat",
    ];
    for args in [&[][..], &group] {
        let (mut master, mut slave) = (0, 0);
        let null = ptr::null_mut();
        // SAFETY: both numbers are valid, and the descriptors that they become have no other owner.
        let (master, slave) = unsafe {
            assert_eq!(
                libc::openpty(&mut master, &mut slave, null, ptr::null(), ptr::null()),
                0
            );
            (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave))
        };
        let portal = MockPortal::new(good_run());
        let mut command = rotate(&portal);
        command
            .arg("-q")
            .args(args)
            .stdout(slave)
            .stderr(Stdio::piped());
        let child = in_new_session(&mut command).spawn().unwrap();
        let id = child.id().to_string();
        finish(&command, child).assert_run(0, "", &[]);
        let mut line = String::new();
        BufReader::new(master).read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), if args.is_empty() { SECRET } else { &id });
    }
}

#[test]
fn a_closed_or_full_stderr_changes_nothing() {
    let (reader, closed) = io::pipe().unwrap();
    drop(reader);
    let (_reader, full) = full_pipe();
    for stderr in [closed, full] {
        let portal = MockPortal::new(good_run());
        let output = rotate(&portal).stderr(stderr).output().unwrap();
        assert_eq!(
            (output.status.code(), &*output.stdout),
            (Some(0), secret_line().as_bytes())
        );
    }
}

/// Another process that shares a pipe may make it non-blocking.
#[test]
fn a_full_pipe_is_waited_for_even_if_it_is_non_blocking() {
    for flags in [0, libc::O_NONBLOCK] {
        let (mut reader, writer) = full_pipe();
        // SAFETY: the descriptor is open.
        unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, flags) };
        let portal = MockPortal::new(good_run());
        let mut command = rotate(&portal);
        let mut child = command
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It keeps the other end of the pipe.
        drop(command);
        read_until(&mut child, "Client secret has been regenerated.\n");
        let mut text = vec![];
        reader.read_to_end(&mut text).unwrap();
        assert!(text.ends_with(secret_line().as_bytes()));
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}
