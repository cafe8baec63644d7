//! Delivery to a command, on its stdin. It is done when the command has read everything and exited
//! with status 0.

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{self, Child, ExitStatus};

use crate::error::wait_writable;
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
    pub fn prepare(
        name: &OsStr,
        args: &[OsString],
        env: &[(&'static str, String)],
    ) -> io::Result<Command> {
        if !can_be_run(name) {
            return Err(io::Error::other("not found, or not executable"));
        }
        let (reader, writer) = io::pipe()?;
        let mut command = process::Command::new(name);
        command.args(args).stdin(reader.try_clone()?);
        for variable in HIDDEN_VARIABLES {
            command.env_remove(variable);
        }
        for (variable, value) in env {
            command.env(variable, value);
        }
        // SAFETY: the closure does nothing. With one, std forks, and until exec the child has our
        // handler, which only defers. Otherwise a signal to the group could end it before exec.
        unsafe { command.pre_exec(|| Ok(())) };
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
        result(status, has_read_all).map_err(io::Error::other)
    }

    fn start(&mut self) -> io::Result<Child> {
        // Without a terminal, a signal to the job's whole group would end the command, too.
        let has_own_group = File::open("/dev/tty").is_err();
        if has_own_group {
            self.command.process_group(0);
        }
        let child = self.command.spawn()?;
        let id = child.id() as libc::pid_t;
        signal::set_command(Some(if has_own_group { -id } else { id }));
        Ok(child)
    }
}

fn result(status: ExitStatus, has_read_all: bool) -> Result<(), String> {
    match status.code() {
        Some(0) if has_read_all => Ok(()),
        Some(0) => Err("it exited without reading the whole secret".to_owned()),
        Some(status) => Err(format!("it exited with status {status}")),
        None => Err(format!(
            "it was killed by signal {}",
            status.signal().unwrap_or_default()
        )),
    }
}

/// Returns true if there is such a program. A name with a slash is a path; any other is searched
/// on PATH.
fn can_be_run(name: &OsStr) -> bool {
    if name.as_bytes().contains(&b'/') {
        return is_executable(Path::new(name));
    }
    // An empty PATH names no folder, but an empty entry is the current folder.
    match env::var_os("PATH") {
        Some(path) if !path.is_empty() => env::split_paths(&path)
            .map(|folder| Path::new(".").join(folder).join(name))
            .any(|file: PathBuf| is_executable(&file)),
        _ => false,
    }
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
