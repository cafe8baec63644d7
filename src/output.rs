//! Where the secret goes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, State, io_words};
use crate::secret::Secret;

/// An output that is ready to take the secret.
pub enum Output {
    /// The process's own.
    Stdout,
    /// The file given with `--output`.
    File {
        /// Open for writing.
        file: File,
        /// Its name.
        path: PathBuf,
        /// Whether this run made it and has put no secret in it: then it goes when the run ends.
        unfilled: bool,
    },
}

impl Output {
    /// Opens the output before anything is sent, so that a bad one costs nothing. A new file gets
    /// mode 0600; one that is there keeps its content until there is a secret to write.
    ///
    /// # Errors
    ///
    /// [`State::Usage`], naming the file.
    pub fn open(path: Option<&Path>) -> Result<Output, Error> {
        let Some(path) = path else {
            return match stdout_is_closed() {
                true => Err(Error::usage(
                    "stdout is closed, so the secret would be lost: give --output",
                )),
                false => Ok(Output::Stdout),
            };
        };
        let opened = match OpenOptions::new().write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create(path).map(|file| (file, true))
            }
            opened => opened.map(|file| (file, false)),
        };
        match opened {
            Ok((file, unfilled)) => Ok(Output::File {
                file,
                path: path.to_owned(),
                unfilled,
            }),
            Err(error) => Err(Error::usage(format!(
                "--output: can't write to {}: {}",
                path.display().to_string().escape_debug(),
                io_words(&error)
            ))),
        }
    }

    /// Writes one line and sees it out of this process. A file is written over in place and cut to
    /// length, so a bind mount, a FIFO and a device do as well.
    ///
    /// # Errors
    ///
    /// [`State::SecretLost`], naming the output.
    pub fn hand_over(&mut self, line: &Secret) -> Result<(), Error> {
        let line = Secret::new(format!("{}\n", line.expose()));
        let written = match self {
            Output::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout
                    .write_all(line.expose().as_bytes())
                    .and_then(|()| stdout.flush())
            }
            Output::File { file, unfilled, .. } => {
                let written = fill(file, line.expose().as_bytes());
                *unfilled &= written.is_err();
                written
            }
        };
        written.map_err(|error| {
            let to = match self {
                Output::Stdout => "stdout".to_owned(),
                Output::File { path, .. } => path.display().to_string().escape_debug().to_string(),
            };
            let what = format!(
                "the new secret could not be written to {to}: {}",
                io_words(&error)
            );
            Error::new(State::SecretLost, what)
        })
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Output::File {
            path,
            unfilled: true,
            ..
        } = self
        {
            // Nothing is left to tell if this fails: the run's own error is on its way.
            let _ = fs::remove_file(path);
        }
    }
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn fill(file: &mut File, text: &[u8]) -> io::Result<()> {
    file.write_all(text)?;
    if file.metadata()?.is_file() {
        file.set_len(text.len() as u64)?;
        file.sync_all()?;
    }
    Ok(())
}

/// Whether stdout was closed when the process began. Rust then puts /dev/null in its place, open
/// for reading too, and every write succeeds; `> /dev/null` is open for writing only.
#[cfg(unix)]
fn stdout_is_closed() -> bool {
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;
    let Ok(mut stdout) = io::stdout().as_fd().try_clone_to_owned().map(File::from) else {
        return true;
    };
    let device = |metadata: io::Result<fs::Metadata>| metadata.ok().map(|m| (m.rdev(), m.ino()));
    device(stdout.metadata()) == device(fs::metadata("/dev/null")) && stdout.read(&mut [0]).is_ok()
}

#[cfg(not(unix))]
fn stdout_is_closed() -> bool {
    false
}
