//! Delivery to a command, on its stdin. It is done when the command has read everything and exited
//! with status 0.

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{self, Child};

use crate::error::wait_writable;
use crate::secret::show;
use crate::settings::Options;
use crate::signal;

/// The command does not see these.
const HIDDEN_VARIABLES: [&str; 3] = [
    "DOCSPACE_API_KEY",
    "DOCSPACE_API_KEY_FILE",
    "DOCSPACE_CLIENT_ID_FILE",
];

pub struct Command {
    command: process::Command,
    /// Our own end of its stdin. While it is open, no write fails with EPIPE, and what the command
    /// has left unread can be counted.
    reader: PipeReader,
    writer: PipeWriter,
}

impl Command {
    /// Checks that the command is executable, and starts nothing.
    pub fn prepare(name: &OsStr, args: &[OsString], options: &Options) -> io::Result<Command> {
        let Some(program) = find_program(name) else {
            return Err(io::Error::other("not found, or not executable"));
        };
        if let Some(interpreter) = missing_interpreter(&program) {
            let interpreter = show(interpreter.as_ref());
            let why = format!("its interpreter cannot be run: {interpreter}");
            return Err(io::Error::other(why));
        }
        let (reader, writer) = io::pipe()?;
        let mut command = process::Command::new(name);
        command.args(args).stdin(reader.try_clone()?);
        for variable in HIDDEN_VARIABLES {
            command.env_remove(variable);
        }
        command.env("DOCSPACE_CLIENT_ID", &options.client);
        command.env("DOCSPACE_BASE_URL", &options.url.text);
        let parent = process::id();
        // A hook makes std fork instead of calling posix_spawn. The child then still has our handler,
        // which only defers. With posix_spawn, a signal to the group could kill it.
        // SAFETY: the hook makes only plain system calls.
        unsafe { command.pre_exec(move || end_with_parent(parent)) };
        Ok(Command {
            command,
            reader,
            writer,
        })
    }

    /// Runs the command with these bytes on its stdin. Returns when it exits, even if it never
    /// read them.
    pub fn run(mut self, bytes: &[u8]) -> io::Result<()> {
        set_nonblocking(&self.writer);
        // What fits into the pipe is written first, so a kill never leaves the command with half a
        // bare secret.
        let mut rest = bytes;
        while let Ok(written @ 1..) = self.writer.write(rest) {
            rest = &rest[written..];
        }

        let mut child = self.start()?;
        while !rest.is_empty() && child.try_wait()?.is_none() {
            match self.writer.write(rest) {
                Ok(written) => rest = &rest[written..],
                // The pipe is full. The command may exit before it reads on.
                Err(_) => {
                    wait_writable(self.writer.as_raw_fd(), 20);
                }
            }
        }
        drop(self.writer);
        let status = child.wait()?;
        signal::set_command(None);

        let has_read_all = rest.is_empty() && unread_bytes(&self.reader) == 0;
        let why = match status.code() {
            Some(0) if has_read_all => return Ok(()),
            Some(0) => "it exited without reading the whole secret".to_owned(),
            Some(status) => format!("it exited with status {status}"),
            None => format!(
                "it was killed by signal {}",
                status.signal().unwrap_or_default()
            ),
        };
        Err(io::Error::other(why))
    }

    fn start(&mut self) -> io::Result<Child> {
        // Without a terminal, a signal to the job's whole group would end the command, too.
        let has_own_group = File::open("/dev/tty").is_err();
        if has_own_group {
            self.command.process_group(0);
        }
        let child = match self.command.spawn() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(io::Error::other(
                    "it was removed, or a loader or interpreter that it needs is missing",
                ));
            }
            child => child?,
        };
        let id = child.id() as libc::pid_t;
        signal::set_command(Some(if has_own_group { -id } else { id }));
        Ok(child)
    }
}

/// Asks the kernel to end this process when its parent is killed. A command that goes on could store its
/// secret after the next run has stored a newer one.
fn end_with_parent(parent: u32) -> io::Result<()> {
    // SAFETY: plain system calls.
    unsafe {
        // Our handler would defer the signal, and a caller may have it ignored.
        libc::signal(libc::SIGTERM, libc::SIG_DFL);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
        // Another process is the parent if ours has already died. None is in a new PID namespace.
        if ![parent, 0].contains(&(libc::getppid() as u32)) {
            libc::_exit(1);
        }
    }
    Ok(())
}

/// Finds a program. A name with a slash is a path; any other is searched on PATH.
fn find_program(name: &OsStr) -> Option<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(name)).filter(|file| is_executable(file));
    }
    // An empty PATH names no directory, but an empty entry is the current directory.
    let path = env::var_os("PATH").filter(|path| !path.is_empty())?;
    let mut files = env::split_paths(&path).map(|dir| Path::new(".").join(dir).join(name));
    files.find(|file| is_executable(file))
}

/// Returns the first line of a script, without `#!`, if its interpreter cannot be run (execve(2)). In
/// a script with Windows line endings, its name ends in a carriage return, or the name that `env`
/// looks up does.
fn missing_interpreter(program: &Path) -> Option<String> {
    let mut start = vec![];
    let file = File::open(program).ok()?;
    file.take(256).read_to_end(&mut start).ok()?;
    let text = String::from_utf8_lossy(&start);
    let line = text.strip_prefix("#!")?.split('\n').next()?;
    let name = line.split([' ', '\t']).find(|word| !word.is_empty())?;
    let looks_up_nothing = name.ends_with("/env") && line.ends_with('\r');
    if is_executable(Path::new(name)) && !looks_up_nothing {
        return None;
    }
    Some(line.to_owned())
}

fn is_executable(file: &Path) -> bool {
    let Ok(path) = CString::new(file.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: the string outlives the call.
    file.is_file() && unsafe { libc::access(path.as_ptr(), libc::X_OK) } == 0
}

fn set_nonblocking(writer: &PipeWriter) {
    // SAFETY: the descriptor is open.
    unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
}

fn unread_bytes(reader: &PipeReader) -> libc::c_int {
    let mut unread = -1;
    // SAFETY: the descriptor is open, and the number is valid.
    unsafe { libc::ioctl(reader.as_raw_fd(), libc::FIONREAD, &mut unread) };
    unread
}
