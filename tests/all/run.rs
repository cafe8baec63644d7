//! Runs the program. A failed assertion shows the command, the status and all output.
#![allow(dead_code, clippy::unwrap_used)]

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use std::{fmt, fs, thread};

use crate::mock::certificates::Certificates;
use crate::mock::*;
use crate::words::NOT_DELIVERED;

/// Returns a command for the program, with an empty environment.
pub fn program() -> Command {
    command(env!("CARGO_BIN_EXE_docspace-rotate"))
}

/// Returns a command for any program, with an empty environment and no signal ignored.
pub fn command(path: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(path);
    command.env_clear().stdin(Stdio::null());
    // SAFETY: signal(2) may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
                libc::signal(signal, libc::SIG_DFL);
            }
            Ok(())
        });
    }
    command
}

/// Returns a command that rotates the secret of the recorded client at this portal.
pub fn rotate(portal: &MockPortal) -> Command {
    let mut command = program();
    command
        .env("DOCSPACE_BASE_URL", portal.url())
        .env("DOCSPACE_API_KEY", KEY)
        .arg(CLIENT);
    command
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

/// Sends a signal to a run that is not yet waited for.
pub fn send(child: &Child, signal: i32) {
    kill(child.id() as i32, signal);
}

/// Sends a signal to a process, or to a process group by its negative id.
pub fn kill(id: i32, signal: i32) {
    // SAFETY: a plain system call.
    assert_eq!(unsafe { libc::kill(id, signal) }, 0);
}

/// Waits for the end of a run, and checks that its stderr has no secret, no control character and one error line.
pub fn finish(command: &Command, child: Child) -> Run {
    // A hanging run is killed, so that its test fails and shows the command.
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
    let has_secret = [KEY, BEARER, SIGNATURE, SECRET]
        .iter()
        .any(|secret| run.stderr.contains(secret));
    assert!(!has_secret, "a secret on stderr\n{run}");
    let has_control = run.stderr.chars().any(|c| c != '\n' && c.is_control());
    assert!(!has_control, "a control character on stderr\n{run}");
    let errors = run
        .stderr
        .lines()
        .filter(|line| line.starts_with("docspace-rotate: "))
        .count();
    assert_eq!(
        errors,
        usize::from(run.status != Some(0)),
        "one error line exactly if it failed\n{run}"
    );
    run
}

/// Reads stderr up to and with this text.
pub fn read_until(child: &mut Child, text: &str) {
    let (mut log, stderr) = (String::new(), child.stderr.as_mut().unwrap());
    while !log.contains(text) {
        let mut byte = [0];
        stderr
            .read_exact(&mut byte)
            .unwrap_or_else(|error| panic!("{error}: {log}"));
        log.push(byte[0].into());
    }
}

/// Names the case of a test: a test that fails before this is dropped prints the name.
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
            scope.spawn(|| std::iter::from_fn(next).for_each(&test));
        }
    });
}

impl Run {
    pub fn of(command: &Command, output: &Output) -> Run {
        Run {
            command: format!("{command:?}"),
            status: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8(output.stderr.clone()).expect("the log is UTF-8"),
        }
    }

    /// Checks the status, stdout, and each line of stderr; an expected line that ends in `…` is a prefix.
    #[track_caller]
    pub fn assert_run(&self, status: i32, stdout: &str, stderr: &[&str]) -> &Run {
        assert_eq!(
            (self.status, &*self.stdout),
            (Some(status), stdout),
            "\n{self}"
        );
        let is_same = |(line, expected): (&str, &&str)| {
            expected
                .strip_suffix('…')
                .map_or(line == *expected, |prefix| line.starts_with(prefix))
        };
        let (lines, count) = (self.stderr.lines(), self.stderr.lines().count());
        assert!(
            count == stderr.len() && lines.zip(stderr).all(is_same),
            "expected: {stderr:#?}\n{self}"
        );
        self
    }

    /// Checks the status, that stdout is empty, and that the error line contains these words.
    #[track_caller]
    pub fn fails_with(&self, status: i32, words: &str) -> &Run {
        assert_eq!((self.status, &*self.stdout), (Some(status), ""), "\n{self}");
        assert!(
            self.error().contains(words),
            "expected in the error: {words}\n{self}"
        );
        self
    }

    /// Returns the last line of stderr, which is the error if the run failed.
    pub fn error(&self) -> &str {
        self.stderr.lines().last().unwrap_or_default()
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Run {
            command,
            status,
            stdout,
            stderr,
        } = self;
        write!(
            f,
            "{command}\nstatus: {status:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}\n---"
        )
    }
}

pub fn full_pipe() -> (io::PipeReader, io::PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    // SAFETY: the descriptor is open.
    let set_flags = |flags: i32| unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, flags) };
    set_flags(libc::O_NONBLOCK);
    while (&writer).write(b"x").is_ok() {}
    set_flags(0);
    (reader, writer)
}

/// Returns the id of a process's only child, which is process 1 of its own namespace.
pub fn process_1(parent: &Child) -> i32 {
    let children = format!("/proc/{0}/task/{0}/children", parent.id());
    let inner = fs::read_to_string(children).unwrap().trim().to_owned();
    let status = fs::read_to_string(format!("/proc/{inner}/status")).unwrap();
    assert!(
        status
            .lines()
            .any(|line| line.starts_with("NSpid:") && line.ends_with("\t1")),
        "{status}"
    );
    inner.parse().unwrap()
}

/// Reports a test that can't run here, or fails if DOCSPACE_ROTATE_SKIP_NOTHING is set, as in the workflows.
pub fn skipped(what: &str, why: &str) {
    assert!(
        std::env::var_os("DOCSPACE_ROTATE_SKIP_NOTHING").is_none(),
        "{what}: {why}"
    );
    // Unlike `eprintln`, this is not captured by the test runner.
    let _ = io::stderr().write_all(format!("SKIPPED {what}: {why}\n").as_bytes());
}

/// Creates a CA and writes its certificate to a file, which lives as long as the folder.
pub fn authority() -> (Folder, Certificates, PathBuf) {
    let (folder, certificates) = (Folder::new(), Certificates::new());
    let ca = folder.file("ca.pem", &certificates.ca_pem);
    (folder, certificates, ca)
}

/// A temporary folder, which is removed with its contents when it is dropped.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "docspace-rotate-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::SeqCst)
        );
        let folder = Folder(std::env::temp_dir().join(name));
        fs::create_dir(&folder.0).unwrap();
        folder
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn file(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    pub fn fifo(&self) -> PathBuf {
        assert!(
            Command::new("mkfifo")
                .arg(self.path("fifo"))
                .status()
                .unwrap()
                .success()
        );
        self.path("fifo")
    }

    /// Returns the names of the files in the folder, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
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
    let requests = [
        "GET token",
        "HEAD client",
        "PATCH regenerate",
        "DELETE revoke",
    ];
    let before = requests.iter().position(|name| *name == request).unwrap();
    good_run()
        .into_iter()
        .take(before)
        .chain([expect(request, reply)])
        .collect()
}

/// Runs with an API key against a plain server, or with another bearer against one over TLS.
pub fn run_at(tls: bool, script: Vec<Expect>, args: &[&str]) -> (Run, MockPortal) {
    let (_folder, certificates, ca) = authority();
    let portal = MockPortal::start(tls.then(|| certificates.server("127.0.0.1")), script);
    let key = if tls { BEARER } else { KEY };
    (
        run(rotate(&portal)
            .env("DOCSPACE_API_KEY", key)
            .arg("--cacert")
            .arg(ca)
            .args(args)),
        portal,
    )
}

/// Runs a command with these arguments, and does something while it waits for the new secret.
pub fn meanwhile(args: &[&str], then: Option<Expect>, action: impl FnOnce()) -> Run {
    let (answer, patch) = gated("PATCH regenerate", recorded("patch-200"));
    let portal = MockPortal::new(ready([patch].into_iter().chain(then)));
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
    done.assert_run(
        2,
        "",
        &[&format!(
            "docspace-rotate: {error}; nothing was sent; see --help"
        )],
    );
    assert_eq!(portal.connections(), 0, "{done}");
}

/// Checks that a run ends with status 6 and this error.
#[track_caller]
pub fn assert_not_delivered(run: &Run, error: &str) {
    let error =
        format!("docspace-rotate: the new secret was not delivered to {error}; {NOT_DELIVERED}");
    run.assert_run(6, "", &[&error]);
}
