//! Where the output goes: the secret to stdout or a file, a line of the log to stderr.

use std::fs::{self, File, Metadata, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::signal::is_writable;

/// How long a line of the log may wait for a full stderr, in milliseconds. Then it is dropped.
const LOG_TIMEOUT: i32 = 200;

/// An output that is ready to take the secret.
pub enum Output {
    /// Stdout.
    Stdout(File),
    /// A file that is there: a bind mount, a FIFO or a device keeps its identity.
    Existing(File, PathBuf),
    /// A file that is not there: it is made when there is a secret, so that nothing which ends the
    /// run leaves an empty or half a file.
    New(PathBuf),
}

impl Output {
    /// Opens the output before anything is sent, so that a bad one costs nothing: stdout where there is
    /// no path. What a file holds stays until there is a secret. Opening a FIFO blocks until it has a reader.
    ///
    /// # Errors
    ///
    /// The output can't take the secret.
    pub fn open(path: Option<&Path>) -> io::Result<Output> {
        // A name of stdout, such as /dev/stdout, is stdout: opened anew, it would be written from
        // its beginning.
        let Some(path) = path.filter(|path| !is_stdout(path)) else {
            return stdout().map(Output::Stdout);
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

    /// Writes the text. A file that is there is written over and cut to length; a new one gets mode
    /// 0600, and its name when all of it is on the disk.
    ///
    /// # Errors
    ///
    /// Some of the text may not have been written, or it is in a file that nobody finds.
    pub fn write(&self, text: &[u8]) -> io::Result<()> {
        match self {
            Output::Stdout(file) => write_all(file, text),
            Output::Existing(file, path) => {
                write_all(file, text)?;
                if file.metadata()?.is_file() {
                    file.set_len(text.len() as u64)?;
                    file.sync_all()?;
                    if !is_at(file, path) {
                        return Err(io::Error::other("the file was removed or replaced meanwhile"));
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
                named
            }
        }
    }

    /// Whether the path leads to this output.
    pub fn is_at(&self, path: &Path) -> bool {
        match self {
            Output::Stdout(file) | Output::Existing(file, _) => is_at(file, path),
            Output::New(_) => false,
        }
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

/// Writes all of the text. A pipe may be non-blocking because another process that shares it made
/// it so: it is waited for all the same.
fn write_all(mut file: &File, mut text: &[u8]) -> io::Result<()> {
    while !text.is_empty() {
        match file.write(text) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => text = &text[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                is_writable(file.as_raw_fd(), -1);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
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
