//! Where the secret goes.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, State, io_words};
use crate::io::write_all;
use crate::secret::Secret;
use crate::signal;

/// An output that is ready to take the secret.
pub struct Output {
    file: File,
    /// The file given with `--output`; none for stdout.
    path: Option<PathBuf>,
    /// Whether this run made the file: if it is empty when the run ends, it goes.
    made: bool,
}

impl Output {
    /// Opens the output before anything is sent, so that a bad one costs nothing. A new file gets
    /// mode 0600; one that is there keeps its content until there is a secret to write. A FIFO
    /// is waited for, until the deadline, to have a reader.
    ///
    /// # Errors
    ///
    /// [`State::Usage`], naming the file.
    pub fn open(path: Option<&Path>, deadline: Instant) -> Result<Output, Error> {
        // A name of stdout, such as /dev/stdout, is stdout: opened anew, it would be written from
        // its beginning.
        let Some(path) = path.filter(|path| !is_stdout(path)) else {
            let file = stdout().ok_or_else(|| {
                Error::usage("stdout is closed, so the secret would be lost: give --output")
            })?;
            return Ok(Output { file, path: None, made: false });
        };
        let opened = match open_existing(path, deadline) {
            Err(error) if error.kind() == ErrorKind::NotFound => create(path).map(|file| (file, true)),
            opened => opened.map(|file| (file, false)),
        };
        match opened {
            Ok((file, made)) => {
                signal::unfilled(made.then_some(path));
                Ok(Output { file, path: Some(path.to_owned()), made })
            }
            Err(error) => {
                let why = match error.kind() {
                    ErrorKind::AlreadyExists => "it is a link to nothing".to_owned(),
                    _ => io_words(&error),
                };
                Err(Error::usage(format!("--output: can't write to {}: {why}", shown(path))))
            }
        }
    }

    /// Writes one line and sees it out of this process, waiting until the deadline for a full pipe.
    /// A file is written over in place and cut to length, so a bind mount, a FIFO and a device do as well.
    ///
    /// # Errors
    ///
    /// [`State::SecretLost`], naming the output.
    pub fn hand_over(&mut self, line: &Secret, deadline: Instant) -> Result<(), Error> {
        let line = Secret::new(format!("{}\n", line.expose()));
        let written = self.write(line.expose().as_bytes(), deadline);
        if written.is_err() && self.made {
            // No half of a secret stays behind: empty, the file goes.
            let _ = self.file.set_len(0);
        }
        written.map_err(|error| {
            let to = self.path.as_deref().map_or("stdout".to_owned(), shown);
            let what = format!("the new secret could not be written to {to}: {}", io_words(&error));
            Error::new(State::SecretLost, what)
        })
    }

    /// Whether the path leads to this output.
    pub fn is_at(&self, path: &Path) -> bool {
        is_at(&self.file, path)
    }

    fn write(&mut self, text: &[u8], deadline: Instant) -> io::Result<()> {
        // A signal removes an empty file only.
        write_all(&self.file, text, deadline)?;
        let Some(path) = &self.path else {
            return Ok(());
        };
        if self.file.metadata()?.is_file() {
            self.file.set_len(text.len() as u64)?;
            self.file.sync_all()?;
            // Another run may have removed what it took for its own.
            if !is_at(&self.file, path) {
                return Err(io::Error::new(
                    ErrorKind::NotFound,
                    "the file was removed or replaced meanwhile",
                ));
            }
        }
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // Another run may have put its secret there.
        let empty = self.file.metadata().is_ok_and(|file| file.len() == 0);
        if let Some(path) = self.path.as_ref().filter(|path| self.made && empty && is_at(&self.file, path)) {
            // Nothing is left to tell if this fails: the run's own error is on its way.
            let _ = fs::remove_file(path);
        }
        // What stands there from now on is another's.
        signal::unfilled(None);
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Opens a file that is there. A FIFO without a reader would block for ever, so it is tried again
/// until the deadline.
fn open_existing(path: &Path, deadline: Instant) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true);
    if !is_fifo(path)? {
        return options.open(path);
    }
    loop {
        match options.custom_flags(libc::O_NONBLOCK).open(path) {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
                if Instant::now() >= deadline {
                    return Err(io::Error::new(ErrorKind::TimedOut, "nobody reads this FIFO"));
                }
                thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(error),
            Ok(file) => {
                // SAFETY: the descriptor is open. From here on a full FIFO is waited for.
                return match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, 0) } {
                    -1 => Err(io::Error::last_os_error()),
                    _ => Ok(file),
                };
            }
        }
    }
}

/// Whether the path leads to a FIFO.
pub fn is_fifo(path: &Path) -> io::Result<bool> {
    Ok(fs::metadata(path)?.file_type().is_fifo())
}

/// Stdout, where it can be written to. Not through [`io::Stdout`], to which an error of a closed
/// one is a success.
///
/// Where it was closed when the process began, Rust has put /dev/null in its place, open for
/// reading too, and the secret would be lost; `> /dev/null`, which somebody wants, is open for
/// writing only.
fn stdout() -> Option<File> {
    let file = File::from(io::stdout().as_fd().try_clone_to_owned().ok()?);
    // SAFETY: the descriptor is open.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    let null = fs::metadata("/dev/null").ok().map(|null| identity(&null));
    let is_null = file.metadata().ok().map(|file| identity(&file)) == null;
    match flags & libc::O_ACCMODE {
        libc::O_WRONLY => Some(file),
        libc::O_RDWR if !is_null => Some(file),
        _ => None,
    }
}

fn is_stdout(path: &Path) -> bool {
    let stdout = io::stdout().as_fd().try_clone_to_owned().map(File::from);
    stdout.is_ok_and(|stdout| is_at(&stdout, path))
}

/// Whether the path leads to this open file.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(there)) => identity(&open) == identity(&there),
        _ => false,
    }
}

/// What tells a file from all others.
fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

fn shown(path: &Path) -> String {
    path.display().to_string().escape_debug().to_string()
}
