//! Runs the real program, and says all of what it did where a test fails.
#![allow(dead_code, clippy::unwrap_used)]

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use crate::portal::{BEARER, CLIENT, Certificates, KEY, SECRET, SIGNATURE, Stand};

/// The program, with an empty environment.
pub fn program() -> Command {
    command(env!("CARGO_BIN_EXE_docspace-rotate"))
}

/// A command with an empty environment, and with no signal ignored whatever runs the tests.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
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

/// The program, set up for a stand-in, an API key and the client of the recorded replies.
pub fn rotate(stand: &Stand) -> Command {
    let mut command = program();
    command.env("DOCSPACE_BASE_URL", stand.url()).env("DOCSPACE_API_KEY", KEY).arg(CLIENT);
    command
}

/// A finished run.
pub struct Run {
    command: String,
    /// The exit status; none where a signal ended it.
    pub status: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it logged.
    pub stderr: String,
}

/// Runs it to its end.
pub fn run(command: &mut Command) -> Run {
    let child = start(command);
    finish(command, child)
}

/// Starts it, with its output in pipes.
pub fn start(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Sends it a signal.
pub fn send(child: &Child, signal: i32) {
    // SAFETY: a plain system call; the child is not yet waited for, so the id is its own.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

/// Waits for it to end. Whatever the test is about, the log must hold no secret and break no terminal.
pub fn finish(command: &Command, child: Child) -> Run {
    // A run that hangs is ended, so that its test fails and says what it was.
    let (over, watched) = mpsc::channel::<()>();
    let id = child.id();
    let watchdog = thread::spawn(move || {
        if watched.recv_timeout(Duration::from_secs(60)) == Err(RecvTimeoutError::Timeout) {
            // SAFETY: a plain system call, to a child that is not yet waited for.
            unsafe { libc::kill(id as i32, libc::SIGKILL) };
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(over);
    watchdog.join().unwrap();
    let run = Run::of(command, &output);
    for hidden in [KEY, BEARER, SIGNATURE, SECRET] {
        assert!(!run.stderr.contains(hidden), "a secret is on stderr\n{run}");
    }
    let harmless = |c: char| c == '\n' || !c.is_control();
    assert!(run.stderr.chars().all(harmless), "a control character is on stderr\n{run}");
    let errors = run.stderr.lines().filter(|line| line.starts_with("docspace-rotate: ")).count();
    assert_eq!(errors, usize::from(run.status != Some(0)), "one line for an error\n{run}");
    run
}

impl Run {
    /// What a command did that has ended.
    pub fn of(command: &Command, output: &Output) -> Run {
        Run {
            command: format!("{command:?}"),
            status: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8(output.stderr.clone()).expect("the log is UTF-8"),
        }
    }

    /// Checks the status, all of stdout, and all of stderr line by line. An expected line that
    /// ends in `…` is compared up to there.
    #[track_caller]
    pub fn is(&self, status: i32, stdout: &str, stderr: &[&str]) -> &Run {
        assert_eq!(self.status, Some(status), "\n{self}");
        assert_eq!(self.stdout, stdout, "\n{self}");
        let lines: Vec<&str> = self.stderr.lines().collect();
        let same = |(line, wanted): (&&str, &&str)| match wanted.strip_suffix('…') {
            Some(start) => line.starts_with(start),
            None => line == wanted,
        };
        let all = lines.len() == stderr.len() && lines.iter().zip(stderr).all(same);
        assert!(all, "expected on stderr: {stderr:#?}\n{self}");
        self
    }

    /// The error line.
    pub fn error(&self) -> &str {
        self.stderr.lines().last().unwrap_or_default()
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Run { command, status, stdout, stderr } = self;
        write!(f, "{command}\nstatus: {status:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}\n---")
    }
}

/// A pipe that takes nothing more, both ends of it.
pub fn full_pipe() -> (io::PipeReader, io::PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    let nonblocking = |on| {
        // SAFETY: the descriptor is open.
        unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, if on { libc::O_NONBLOCK } else { 0 }) };
    };
    nonblocking(true);
    while (&writer).write(&[b'x'; 4096]).is_ok() {}
    while (&writer).write(b"x").is_ok() {}
    nonblocking(false);
    (reader, writer)
}

/// The one child of a process, which is process 1 of a namespace of its own.
pub fn process_1(parent: &Child) -> i32 {
    let children = format!("/proc/{0}/task/{0}/children", parent.id());
    let inner = fs::read_to_string(children).unwrap().trim().to_owned();
    let status = fs::read_to_string(format!("/proc/{inner}/status")).unwrap();
    let one = |line: &str| line.starts_with("NSpid:") && line.ends_with("\t1");
    assert!(status.lines().any(one), "{status}");
    inner.parse().unwrap()
}

/// Says past the test runner, which swallows what a test prints, that something was not tested. The project's
/// workflows have all that the tests need, and say so.
pub fn skipped(what: &str, why: &str) {
    assert!(std::env::var_os("DOCSPACE_ROTATE_SKIP_NOTHING").is_none(), "{what}: {why}");
    let _ = io::stderr().write_all(format!("SKIPPED {what}: {why}\n").as_bytes());
}

/// An authority of its own, and the file that has the program trust it, in a folder that is to be kept.
pub fn authority() -> (Folder, Certificates, PathBuf) {
    let (folder, certificates) = (Folder::new(), Certificates::new());
    let ca = folder.file("ca.pem", &certificates.ca_pem);
    (folder, certificates, ca)
}

/// A folder for one test, removed with what is in it.
pub struct Folder(PathBuf);

impl Folder {
    /// A new, empty one.
    pub fn new() -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("docspace-rotate-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Folder(path)
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A new file in it.
    pub fn file(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// A new FIFO in it.
    pub fn fifo(&self) -> PathBuf {
        let path = self.path("fifo");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        path
    }

    /// The names in it, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
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
