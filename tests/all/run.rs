//! Runs the program. A failed assertion shows the command, the status and all output.
#![allow(dead_code, clippy::unwrap_used)]

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, Once};
use std::time::Duration;
use std::{fmt, fs, ptr, thread};

use crate::mock::certificates::Certificates;
use crate::mock::*;
use crate::words::NOT_DELIVERED;

/// Returns a command for the program, with an empty environment.
pub fn program() -> Command {
    command(env!("CARGO_BIN_EXE_docspace-rotate"))
}

/// Returns a command for any program, with an empty environment and no signal ignored.
pub fn command(path: impl AsRef<OsStr>) -> Command {
    static DEFAULT_SIGNALS: Once = Once::new();
    // Once for this process, since children inherit it. A hook for each child would make std fork,
    // and a fork of this process takes longer than the runs of most tests.
    DEFAULT_SIGNALS.call_once(|| {
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
            // SAFETY: SIG_DFL is a valid disposition.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    });
    let mut command = Command::new(path);
    command.env_clear().stdin(Stdio::null());
    command
}

/// Returns a command that rotates the secret of the recorded client at this portal.
pub fn rotate(portal: &MockPortal) -> Command {
    let mut command = program();
    set_portal(&mut command, portal);
    command.arg(CLIENT);
    command
}

/// Sets the variables that a run at this portal needs.
pub fn set_portal(command: &mut Command, portal: &MockPortal) {
    command
        .env("DOCSPACE_BASE_URL", portal.url())
        .env("DOCSPACE_API_KEY", KEY);
}

pub struct Run {
    command: String,
    /// None if a signal ended the run.
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

pub fn run(command: &mut Command) -> Run {
    let child = start(command);
    finish(command, child)
}

/// Starts a command, with its output in pipes.
pub fn start(command: &mut Command) -> Child {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Starts a command with this stdout, and waits until it delivers the secret.
pub fn start_delivery(command: &mut Command, stdout: impl Into<Stdio>) -> Child {
    command.stdout(stdout).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // The command would keep a pipe open.
    command.stdout(Stdio::null());
    read_until(&mut child, "Client secret has been regenerated.\n");
    child
}

/// Sends a signal to a run that is not yet waited for.
pub fn send(child: &Child, signal: i32) {
    kill(child.id() as i32, signal);
}

/// Sends a signal to a process, or to a process group by its negative id.
pub fn kill(id: i32, signal: i32) {
    // SAFETY: a plain system call.
    assert_eq!(unsafe { libc::kill(id, signal) }, 0);
}

/// Waits until the kernel's description of a process contains this text.
pub fn wait_for_status(id: i32, text: &str) {
    let status = format!("/proc/{id}/status");
    let contains = || fs::read_to_string(&status).unwrap().contains(text);
    assert!(wait_until(contains), "{text}");
}

/// Waits for the end of a run, and checks that its stderr has no secret, no control character and one error line.
pub fn finish(command: &Command, child: Child) -> Run {
    // A run that hangs is killed, so that its test fails and shows the command.
    let (ended, watched) = mpsc::channel::<()>();
    let id = child.id() as i32;
    thread::spawn(move || {
        if watched.recv_timeout(Duration::from_secs(60)) == Err(RecvTimeoutError::Timeout) {
            // SAFETY: a plain system call; the child is not yet waited for.
            unsafe { libc::kill(id, libc::SIGKILL) };
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(ended);
    let run = Run::of(command, &output);
    for secret in [KEY, BEARER, SIGNATURE, SECRET] {
        assert!(!run.stderr.contains(secret), "a secret on stderr\n{run}");
    }
    let text = run.stderr.replace('\n', "");
    let has_control = text.contains(char::is_control);
    assert!(!has_control, "a control character on stderr\n{run}");
    let is_error = |line: &&str| line.starts_with("docspace-rotate: ");
    let errors = run.stderr.lines().filter(is_error).count();
    let expected = usize::from(run.status != Some(0));
    assert_eq!(errors, expected, "one error line if it failed\n{run}");
    run
}

/// Reads stderr up to and with this text.
pub fn read_until(child: &mut Child, text: &str) {
    let stderr = child.stderr.as_mut().unwrap();
    let mut log = String::new();
    while !log.contains(text) {
        let mut byte = [0];
        if stderr.read_exact(&mut byte).is_err() {
            panic!("it ended without {text:?}: {log}");
        }
        log.push(byte[0].into());
    }
}

/// Names the case of a test, which prints the name if it fails before this is dropped.
#[must_use]
pub struct Named(pub &'static str);

impl Drop for Named {
    #[allow(clippy::print_stderr)] // The test runner shows it with the failure.
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the case that failed: {}", self.0);
        }
    }
}

/// Runs a test for each case, on several threads because most of the time is waiting.
pub fn for_each<T: Send>(cases: Vec<T>, test: impl Fn(T) + Sync) {
    let cases = Mutex::new(cases.into_iter());
    let next = || cases.lock().unwrap().next();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some(case) = next() {
                    test(case);
                }
            });
        }
    });
}

impl Run {
    pub fn of(command: &Command, output: &Output) -> Run {
        Run {
            command: format!("{command:?}"),
            status: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: hide_port(&String::from_utf8(output.stderr.clone()).expect("the log is UTF-8")),
        }
    }

    /// Checks the status, stdout, and each line of stderr; an expected line that ends in `…` is a prefix.
    #[track_caller]
    pub fn assert_run(&self, status: i32, stdout: &str, stderr: &[&str]) -> &Run {
        assert_eq!(self.status, Some(status), "\n{self}");
        assert_eq!(self.stdout, stdout, "\n{self}");
        let count = self.stderr.lines().count();
        assert_eq!(count, stderr.len(), "{stderr:#?}\n{self}");
        for (line, expected) in self.stderr.lines().zip(stderr) {
            let is_same = match expected.strip_suffix('…') {
                Some(prefix) => line.starts_with(prefix),
                None => line == *expected,
            };
            assert!(is_same, "expected: {expected}\n{self}");
        }
        self
    }

    /// Checks the status, stdout, and that stderr has only an error line with this cause and state.
    #[track_caller]
    pub fn assert_error(&self, status: i32, stdout: &str, cause: &str, state: &str) -> &Run {
        let line = format!("docspace-rotate: {cause}; {state}");
        self.assert_run(status, stdout, &[&line])
    }

    /// Checks the status, that stdout is empty, and that the error line contains these words.
    #[track_caller]
    pub fn fails_with(&self, status: i32, words: &str) -> &Run {
        assert_eq!(self.status, Some(status), "\n{self}");
        assert_eq!(self.stdout, "", "\n{self}");
        let has_words = self.error().contains(words);
        assert!(has_words, "expected in the error: {words}\n{self}");
        self
    }

    /// Returns the last line of stderr, which is the error if the run failed.
    pub fn error(&self) -> &str {
        self.stderr.lines().last().unwrap_or_default()
    }
}

/// Writes PORT for the port of a mock in a line about a reply, because it differs from run to run.
fn hide_port(log: &str) -> String {
    let mut lines = String::new();
    for line in log.lines() {
        let is_about_reply = line.contains(" answered [") || line.contains(" rejects ");
        match line.split_once("127.0.0.1:") {
            Some((before, after)) if is_about_reply => {
                let rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
                lines += &format!("{before}127.0.0.1:PORT{rest}\n");
            }
            _ => lines += &format!("{line}\n"),
        }
    }
    lines
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\nstatus: {:?}", self.command, self.status)?;
        writeln!(f, "--- stdout\n{}", self.stdout)?;
        write!(f, "--- stderr\n{}\n---", self.stderr)
    }
}

pub fn full_pipe() -> (io::PipeReader, io::PipeWriter) {
    let (reader, mut writer) = io::pipe().unwrap();
    set_flags(&writer, libc::O_NONBLOCK);
    while writer.write(b"x").is_ok() {}
    set_flags(&writer, 0);
    (reader, writer)
}

/// Sets the flags of an open file, such as O_NONBLOCK.
pub fn set_flags(file: &impl AsRawFd, flags: i32) {
    // SAFETY: the descriptor is open.
    let error = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) };
    assert_eq!(error, 0);
}

/// Opens a pseudo-terminal. What is written to the first end is typed, and what the second end gets is shown.
pub fn terminal() -> (File, OwnedFd) {
    let (mut keyboard, mut screen) = (0, 0);
    let null = ptr::null_mut();
    // SAFETY: both numbers are valid, and the descriptors that they become have no other owner.
    unsafe {
        let error = libc::openpty(&mut keyboard, &mut screen, null, ptr::null(), ptr::null());
        assert_eq!(error, 0);
        (File::from_raw_fd(keyboard), OwnedFd::from_raw_fd(screen))
    }
}

/// Returns the id of a process's only child, which is process 1 of its own namespace.
pub fn process_1(parent: &Child) -> i32 {
    let children = format!("/proc/{0}/task/{0}/children", parent.id());
    let id = fs::read_to_string(children).unwrap();
    let id = id.trim().parse().unwrap();
    wait_for_status(id, &format!("\nNSpid:\t{id}\t1\n"));
    id
}

/// Reports a test that can't run here, or fails if DOCSPACE_ROTATE_SKIP_NOTHING is set, as in the workflows.
pub fn skipped(what: &str, why: &str) {
    let is_allowed = std::env::var_os("DOCSPACE_ROTATE_SKIP_NOTHING").is_none();
    assert!(is_allowed, "{what}: {why}");
    let line = format!("SKIPPED {what}: {why}\n");
    // Unlike `eprintln`, this is not captured by the test runner.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Creates a CA and writes its certificate to a file, which lives as long as the folder.
pub fn authority() -> (Folder, Certificates, PathBuf) {
    let folder = Folder::new();
    let certificates = Certificates::new();
    let ca = folder.file("ca.pem", &certificates.ca_pem);
    (folder, certificates, ca)
}

/// A temporary folder, which is removed with its contents when it is dropped.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::SeqCst);
        let name = format!("docspace-rotate-{}-{count}", std::process::id());
        let folder = Folder(std::env::temp_dir().join(name));
        fs::create_dir(&folder.0).unwrap();
        folder
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn file(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let file = self.path(name);
        fs::write(&file, text).unwrap();
        file
    }

    pub fn fifo(&self) -> PathBuf {
        let fifo = self.path("fifo");
        let status = Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(status.success());
        fifo
    }

    /// Returns the names of the files in the folder, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names = vec![];
        for entry in fs::read_dir(&self.0).unwrap() {
            names.push(entry.unwrap().file_name().into_string().unwrap());
        }
        names.sort();
        names
    }
}

impl AsRef<Path> for Folder {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs to the end against a portal with this script.
pub fn run_script(script: Vec<Expect>, args: &[&str]) -> Run {
    let portal = MockPortal::new(script);
    run(rotate(&portal).args(args))
}

/// Expects a good run up to this request, which gets another reply.
pub fn good_run_until(request: &'static str, reply: Vec<u8>) -> Vec<Expect> {
    let mut script = good_run();
    let position = match request {
        "GET token" => 0,
        "HEAD client" => 1,
        "PATCH regenerate" => 2,
        "DELETE revoke" => 3,
        _ => panic!("{request}"),
    };
    script.truncate(position);
    script.push(expect(request, reply));
    script
}

/// Runs with an API key against a plain server, or with another bearer against one over TLS.
pub fn run_at(tls: bool, script: Vec<Expect>, args: &[&str]) -> (Run, MockPortal) {
    let (_folder, certificates, ca) = authority();
    let (server, key) = if tls {
        (Some(certificates.server("127.0.0.1")), BEARER)
    } else {
        (None, KEY)
    };
    let portal = MockPortal::start(server, script);
    let mut command = rotate(&portal);
    command.env("DOCSPACE_API_KEY", key);
    command.arg("--cacert").arg(ca).args(args);
    (run(&mut command), portal)
}

/// Runs a command with these arguments, and does something while it waits for the new secret.
pub fn meanwhile(args: &[&str], action: impl FnOnce()) -> Run {
    let (answer, patch) = gated("PATCH regenerate", recorded("patch-200"));
    let portal = MockPortal::new(ready([patch]));
    let mut command = rotate(&portal);
    let child = start(command.arg("-q").args(args));
    portal.wait_for(3);
    action();
    drop(answer);
    finish(&command, child)
}

/// Lets a command start a session of its own, whose terminal is stdout, if that is one.
pub fn in_new_session(command: &mut Command) -> &mut Command {
    // SAFETY: setsid(2) and ioctl(2) may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            libc::ioctl(1, libc::TIOCSCTTY, 0);
            Ok(())
        })
    }
}

/// Checks that a command ends with status 2 and this error before it opens a connection to its portal.
#[track_caller]
pub fn assert_refused(error: &str, command: impl FnOnce(&MockPortal) -> Command) {
    let portal = MockPortal::new(vec![]);
    let done = run(&mut command(&portal));
    done.assert_error(2, "", error, "nothing was sent; see --help");
    assert_eq!(portal.connections(), 0, "{done}");
}

/// Checks that a run ends with status 6 and this error.
#[track_caller]
pub fn assert_not_delivered(run: &Run, error: &str) {
    let cause = format!("the new secret was not delivered to {error}");
    run.assert_error(6, "", &cause, NOT_DELIVERED);
}
