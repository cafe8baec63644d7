//! Delivery to a command, on its stdin. It is done when the command has read everything and exited
//! with status 0.

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command};

use crate::error::fail;
use crate::secret::show;
use crate::settings::Options;
use crate::signal;

/// Checks that a command is executable, and so is the interpreter of a script (execve(2)). Starts
/// nothing.
pub fn check(name: &OsStr) -> io::Result<()> {
    let program = find_program(name)?;
    let mut line = String::new();
    if let Ok(file) = File::open(program) {
        let _ = BufReader::new(file).read_line(&mut line);
    }
    let Some(line) = line.strip_prefix("#!") else {
        return Ok(());
    };
    let line = line.trim_end_matches('\n');
    let interpreter = line.split_whitespace().next().unwrap_or_default();
    // With Windows line endings, its name or argument ends in a carriage return.
    if is_executable(interpreter.as_ref()) && !line.ends_with('\r') {
        return Ok(());
    }
    fail(&format!(
        "its interpreter cannot be run: {}",
        show(line.as_ref())
    ))
}

/// Runs a command with these bytes on its stdin. Returns when it exits, even if it never read them.
pub fn run(name: &OsStr, args: &[OsString], options: &Options, bytes: &[u8]) -> io::Result<()> {
    // Our own end of its stdin shows what the command has left unread.
    let (reader, mut writer) = io::pipe()?;
    // All is in the pipe before the start, so a kill never leaves the command with a part of it. An
    // object is less than four times as long as the reply (64 KiB): `1e9` becomes `1000000000.0`.
    // SAFETY: the descriptor is open.
    unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, 256 * 1024) };
    writer.write_all(bytes)?;
    drop(writer);

    let mut command = Command::new(name);
    command
        .args(args)
        .stdin(reader.try_clone()?)
        .env("DOCSPACE_CLIENT_ID", &options.client)
        .env("DOCSPACE_BASE_URL", &options.url.text)
        .env_remove("DOCSPACE_API_KEY")
        .env_remove("DOCSPACE_API_KEY_FILE")
        .env_remove("DOCSPACE_CLIENT_ID_FILE");
    let status = start(&mut command)?.wait()?;
    signal::set_command(None);
    let mut unread = 0;
    // SAFETY: the descriptor is open, and the number is valid.
    unsafe { libc::ioctl(reader.as_raw_fd(), libc::FIONREAD, &mut unread) };
    let why = match (status.code(), status.signal()) {
        (Some(0), _) if unread == 0 => return Ok(()),
        (Some(0), _) => "it exited without reading the whole secret".to_owned(),
        (Some(status), _) => format!("it exited with status {status}"),
        (None, signal) => format!("it was killed by signal {}", signal.unwrap_or_default()),
    };
    fail(&why)
}

fn start(command: &mut Command) -> io::Result<Child> {
    let parent = process::id();
    // A hook makes std fork instead of calling posix_spawn. The child then still has our handler,
    // which only defers. With posix_spawn, a signal to the group could kill it.
    // SAFETY: the hook makes only plain system calls.
    unsafe { command.pre_exec(move || end_with_parent(parent)) };
    // Without a terminal, a signal to the job's whole group would end the command, too.
    let has_own_group = File::open("/dev/tty").is_err();
    if has_own_group {
        command.process_group(0);
    }
    let child = match command.spawn() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return fail("it was removed, or a loader or interpreter that it needs is missing");
        }
        child => child?,
    };
    let id = child.id() as libc::pid_t;
    signal::set_command(Some(if has_own_group { -id } else { id }));
    Ok(child)
}

/// Asks the kernel to end this process when its parent is killed. A command that goes on could store its
/// secret after the next run has stored a newer one.
fn end_with_parent(parent: u32) -> io::Result<()> {
    // SAFETY: plain system calls.
    unsafe {
        // Our handler would defer the signal, and a caller may have it ignored.
        libc::signal(libc::SIGTERM, libc::SIG_DFL);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
        // Another process is the parent if ours has already died. It is 0 if the parent is outside of
        // this PID namespace.
        if ![parent, 0].contains(&(libc::getppid() as u32)) {
            libc::_exit(1);
        }
    }
    Ok(())
}

/// Finds a program. A name with a slash is a path; any other is searched on PATH.
fn find_program(name: &OsStr) -> io::Result<PathBuf> {
    let mut path = env::var_os("PATH").unwrap_or_default();
    if name.as_encoded_bytes().contains(&b'/') {
        path = ".".into();
    }
    for dir in env::split_paths(&path) {
        let file = dir.join(name);
        // An empty PATH names no directory, but an empty entry is the current directory.
        if !path.is_empty() && is_executable(&file) {
            return Ok(file);
        }
    }
    fail("not found, or not executable")
}

fn is_executable(file: &Path) -> bool {
    let path = CString::new(file.as_os_str().as_encoded_bytes()).unwrap_or_default();
    // SAFETY: the string outlives the call.
    file.is_file() && unsafe { libc::access(path.as_ptr(), libc::X_OK) } == 0
}
