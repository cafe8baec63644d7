//! Where the output goes: the secret to stdout, a file or a command, a line of the log to stderr.

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File, Metadata, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, ErrorKind, PipeReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::signal::{self, is_writable};

/// How long a line of the log may wait for a full stderr, in milliseconds. Then it is dropped.
const LOG_TIMEOUT: i32 = 200;

/// Where the secret goes.
#[derive(Debug, PartialEq, Eq)]
pub enum Destination {
    /// To stdout.
    Stdout,
    /// To this file.
    File(PathBuf),
    /// To the stdin of a command: its name and its arguments.
    Command(Vec<OsString>),
}

/// An output that is ready to take the secret.
pub enum Output {
    /// Stdout.
    Stdout(File),
    /// A file that is there: a bind mount, a FIFO or a device keeps its identity.
    Existing(File, PathBuf),
    /// A file that is not there: it is made when there is a secret, so that nothing which ends the
    /// run leaves an empty or half a file.
    New(PathBuf),
    /// A command that was found, and the pipe to it.
    Command(Command, PipeReader, Option<File>),
}

/// Why a secret was not handed over.
pub enum Failed {
    /// A write failed, or the file is no longer at its path.
    Write(io::Error),
    /// The command could not be started.
    Start(io::Error),
    /// How the command ended.
    Ended(String),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Failed {
        Failed::Write(error)
    }
}

impl Output {
    /// Opens the output before anything is sent, so that a bad one costs nothing. What a file holds stays
    /// until there is a secret. Opening a FIFO blocks until it has a reader. A command is only looked up;
    /// its environment is the program's, with `env` and without the key.
    ///
    /// # Errors
    ///
    /// The output can't take the secret.
    pub fn open(destination: &Destination, env: &[(&str, String)]) -> io::Result<Output> {
        let path = match destination {
            Destination::Command(words) => {
                let [name, args @ ..] = words.as_slice() else { return Err(ErrorKind::NotFound.into()) };
                let mut command = Command::new(find(name)?);
                command.arg0(name).args(args).envs(env.iter().map(|(name, value)| (name, value)));
                for variable in ["DOCSPACE_API_KEY", "DOCSPACE_API_KEY_FILE", "DOCSPACE_CLIENT_ID_FILE"] {
                    command.env_remove(variable);
                }
                let (reader, writer) = io::pipe()?;
                // With this end open a write never fails, and what is left unread can be counted.
                let unread = reader.try_clone()?;
                command.stdin(reader);
                return Ok(Output::Command(command, unread, Some(OwnedFd::from(writer).into())));
            }
            // A name of stdout, such as /dev/stdout, is stdout: opened anew, it would be written from
            // its beginning.
            Destination::File(path) if !is_stdout(path) => path,
            Destination::File(_) | Destination::Stdout => return stdout().map(Output::Stdout),
        };
        if is_at(&File::from(io::stderr().as_fd().try_clone_to_owned()?), path) {
            return Err(io::Error::other("it is stderr, which gets the log"));
        }
        match OpenOptions::new().write(true).open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound && path.is_symlink() => {
                Err(io::Error::other("it is a dangling symbolic link"))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let (_, temporary) = create_beside(path)?;
                fs::remove_file(temporary)?;
                Ok(Output::New(path.to_owned()))
            }
            opened => Ok(Output::Existing(opened?, path.to_owned())),
        }
    }

    /// Hands the text over. A file that is there is written over and cut to length; a new one gets mode
    /// 0600, and its name when all of it is on the disk. A command must end with 0 and have read all.
    ///
    /// # Errors
    ///
    /// The text may not be where it belongs.
    pub fn hand_over(&mut self, text: &[u8]) -> Result<(), Failed> {
        match self {
            Output::Command(command, unread, writer) => run(command, unread, writer, text),
            Output::Stdout(file) => Ok(write_all(file, text)?),
            Output::Existing(file, path) => {
                write_all(file, text)?;
                if file.metadata()?.is_file() {
                    file.set_len(text.len() as u64)?;
                    file.sync_all()?;
                    if !is_at(file, path) {
                        let why = "the file was removed or replaced meanwhile";
                        return Err(io::Error::other(why).into());
                    }
                }
                Ok(())
            }
            Output::New(path) => {
                let (file, temporary) = create_beside(path)?;
                let written = write_all(&file, text).and_then(|()| file.sync_all());
                let named = written.and_then(|()| fs::rename(&temporary, path));
                if named.is_err() {
                    // Nothing is left to tell if this fails: the run's own error is on its way.
                    let _ = fs::remove_file(&temporary);
                }
                Ok(named?)
            }
        }
    }

    /// Whether the path leads to this output, where writing would overwrite what is there: to a terminal, say,
    /// it does not.
    pub fn is_at(&self, path: &Path) -> bool {
        match self {
            Output::Stdout(file) | Output::Existing(file, _) => {
                file.metadata().is_ok_and(|file| file.is_file()) && is_at(file, path)
            }
            Output::New(_) | Output::Command(..) => false,
        }
    }
}

/// The program that a name means: with a slash in it, that file; without, the first executable file of
/// that name on PATH.
fn find(name: &OsStr) -> io::Result<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return match fs::metadata(name)?.is_dir() {
            true => Err(io::Error::other("it is a directory")),
            false if is_executable(Path::new(name)) => Ok(name.into()),
            false => Err(io::Error::other("it is not executable")),
        };
    }
    let path = env::var_os("PATH").filter(|path| !path.is_empty());
    // An empty entry is the current directory. Without a slash the name would be looked up again.
    let mut files =
        path.iter().flat_map(env::split_paths).map(|folder| Path::new(".").join(folder).join(name));
    files.find(|file| is_executable(file)).ok_or_else(|| io::Error::other("there is no such program on PATH"))
}

/// Whether a regular file may be executed by this user.
fn is_executable(file: &Path) -> bool {
    let Ok(path) = CString::new(file.as_os_str().as_bytes()) else { return false };
    // SAFETY: the string outlives the call.
    file.is_file() && unsafe { libc::access(path.as_ptr(), libc::X_OK) == 0 }
}

/// Runs a command with the text on its stdin. Whatever the pipe holds, and whether the command reads it or
/// not, this ends when the command does.
fn run(
    command: &mut Command,
    unread: &PipeReader,
    writer: &mut Option<File>,
    text: &[u8],
) -> Result<(), Failed> {
    let Some(mut writer) = writer.take() else { return Err(io::Error::from(ErrorKind::BrokenPipe).into()) };
    // SAFETY: the descriptor is open; what runs between fork and exec is async-signal-safe.
    unsafe {
        libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK);
        // With SIGCHLD ignored, a child can't be waited for.
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        command.pre_exec(|| {
            signal::restore();
            Ok(())
        });
    }
    // What fits is in the pipe before the command is there: whatever ends this program, a secret is not
    // taken for an empty one.
    let mut rest = text;
    while let Ok(written @ 1..) = writer.write(rest) {
        rest = &rest[written..];
    }
    let mut child = command.spawn().map_err(Failed::Start)?;
    signal::set_command(child.id() as libc::pid_t);
    let rest = write_while(&writer, rest, || Ok(child.try_wait()?.is_none()))?;
    drop(writer);
    let status = child.wait()?;
    signal::set_command(0);
    let mut left: libc::c_int = 0;
    // SAFETY: the descriptor is open, and the number is valid.
    if unsafe { libc::ioctl(unread.as_raw_fd(), libc::FIONREAD, &mut left) } == -1 {
        return Err(io::Error::last_os_error().into());
    }
    match (status.code(), status.signal()) {
        (Some(0), _) if left == 0 && rest.is_empty() => Ok(()),
        (Some(0), _) => Err(Failed::Ended("ended with 0 but did not read the secret".to_owned())),
        (Some(status), _) => Err(Failed::Ended(format!("ended with status {status}"))),
        (None, signal) => Err(Failed::Ended(format!("was ended by signal {}", signal.unwrap_or_default()))),
    }
}

/// Creates a file of a random name in the same folder, so that it can be renamed to the path.
fn create_beside(path: &Path) -> io::Result<(File, PathBuf)> {
    let name = path.file_name().filter(|name| path.as_os_str().as_bytes().ends_with(name.as_bytes()));
    if name.is_none() {
        return Err(io::Error::other("it is a directory"));
    }
    // Seeded from the system's random numbers, and different on each call.
    let random = RandomState::new().build_hasher().finish();
    let temporary = path.with_file_name(format!(".docspace-rotate-{random:016x}"));
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    Ok((file, temporary))
}

/// Writes all of the text.
fn write_all(file: &File, text: &[u8]) -> io::Result<()> {
    write_while(file, text, || Ok(true)).map(drop)
}

/// Writes the text while somebody wants it, and returns what is left. A pipe may be non-blocking, be it
/// because another process that shares it made it so: it is waited for all the same.
fn write_while<'a>(
    mut file: &File,
    mut text: &'a [u8],
    mut wanted: impl FnMut() -> io::Result<bool>,
) -> io::Result<&'a [u8]> {
    while !text.is_empty() && wanted()? {
        match file.write(text) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => text = &text[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                is_writable(file.as_raw_fd(), 20);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(text)
}

/// Whether the path leads to a FIFO.
pub fn is_fifo(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.file_type().is_fifo())
}

/// Stdout, where it can be written to. Not through [`io::Stdout`], to which an error of a closed
/// one is a success.
///
/// Where it was closed when the process began, Rust has put /dev/null in its place, open for
/// reading too, and the secret would be lost; `> /dev/null`, which somebody wants, is open for
/// writing only.
fn stdout() -> io::Result<File> {
    let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    // SAFETY: the descriptor is open.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    match flags & libc::O_ACCMODE {
        libc::O_WRONLY => Ok(file),
        libc::O_RDWR if !is_at(&file, Path::new("/dev/null")) => Ok(file),
        libc::O_RDONLY => Err(io::Error::other("it is open for reading only")),
        _ => Err(io::Error::other("it is closed, so the secret would be lost")),
    }
}

fn is_stdout(path: &Path) -> bool {
    let stdout = io::stdout().as_fd().try_clone_to_owned().map(File::from);
    stdout.is_ok_and(|stdout| is_at(&stdout, path))
}

/// Whether the path leads to this open file.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |file: Metadata| (file.dev(), file.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(there)) => identity(open) == identity(there),
        _ => false,
    }
}

/// Writes one line to stderr. It is dropped where nobody takes it: neither a closed nor a full
/// stderr must change what the run does.
pub fn log(line: &str) {
    if is_writable(libc::STDERR_FILENO, LOG_TIMEOUT) {
        // In one piece, as a signal may come at any time.
        let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_runs_at_once_have_a_name_each() {
        let folder = std::env::temp_dir();
        let [one, two] = [0; 2].map(|_| create_beside(&folder.join("secret")).expect("a new file").1);
        assert_ne!(one, two);
        for file in [one, two] {
            assert_eq!(file.parent(), Some(folder.as_path()));
            fs::remove_file(file).expect("it is there");
        }
    }
}
