//! Delivery of the secret: to stdout, to a file or to a command.

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering::SeqCst;

use crate::error::{Error, State, io_message, wait_writable};
use crate::secret::{NewSecret, escape, shorten};
use crate::signal::{self, COMMAND, Step};

/// The free space that a file must have before anything is sent, in bytes.
const ROOM: u64 = 4096;

#[derive(Debug)]
pub struct Settings {
    pub destination: Destination,
    pub newline: bool,
    pub json: bool,
    pub env: [(&'static str, String); 2],
}

#[derive(Debug, PartialEq, Eq)]
pub enum Destination {
    Stdout,
    File(PathBuf),
    Command(OsString, Vec<OsString>),
}

impl Destination {
    pub fn name(&self) -> String {
        match self {
            Destination::Stdout => "stdout".to_owned(),
            Destination::File(path) => format!("--output {}", shorten(escape(path.as_os_str()))),
            Destination::Command(name, _) => format!("the command {}", shorten(escape(name))),
        }
    }
}

pub struct Output<'a> {
    settings: &'a Settings,
    target: Target,
}

enum Target {
    Stdout(File),
    /// A bind mount, a FIFO or a device keeps its identity.
    Existing(File, PathBuf),
    /// It is created when there is a secret, so that no run leaves an empty or partial file.
    New(PathBuf),
    /// The read end stays open here: no write fails with EPIPE, and unread bytes can be counted.
    Command(Box<Command>, PipeReader, PipeWriter),
}

impl<'a> Output<'a> {
    /// Opens the output, and leaves the contents of a file alone. A FIFO waits for its reader.
    pub fn open(settings: &'a Settings) -> Result<Output<'a>, Error> {
        signal::set_step(Step::Output);
        let (verb, target) = match &settings.destination {
            Destination::Stdout => ("write to", stdout()),
            Destination::File(path) => ("write to", open_file(path)),
            Destination::Command(name, args) => ("run", prepare_command(name, args, &settings.env)),
        };
        let name = settings.destination.name();
        let error = |error| Error::usage(format!("cannot {verb} {name}: {}", io_message(&error)));
        target
            .map(|target| Output { settings, target })
            .map_err(error)
    }

    /// Checks that the output can be opened. A FIFO is left alone: its reader would get an end of file.
    pub fn check(settings: &Settings) -> Result<(), Error> {
        let is_fifo = |path| fs::metadata(path).is_ok_and(|file| file.file_type().is_fifo());
        match &settings.destination {
            Destination::File(path) if is_fifo(path) => Ok(()),
            _ => Output::open(settings).map(drop),
        }
    }

    pub fn deliver(self, new: &NewSecret) -> Result<(), Error> {
        signal::set_step(Step::Deliver);
        let Settings {
            destination,
            newline,
            json,
            ..
        } = self.settings;
        let mut bytes = if *json { &new.object } else { &new.secret }
            .expose()
            .as_bytes()
            .to_vec();
        if *newline && !matches!(destination, Destination::Command(..)) {
            bytes.push(b'\n');
        }
        let delivered = match self.target {
            Target::Command(command, reader, writer) => run(*command, &reader, writer, &bytes),
            Target::Stdout(file) => write(&file, &bytes),
            Target::Existing(file, path) => overwrite(file, &path, &bytes),
            Target::New(path) => create(&path, &bytes),
        };
        let what = format!("the new secret was not delivered to {}", destination.name());
        let error = |error| {
            Error::new(
                State::NotDelivered,
                format!("{what}: {}", io_message(&error)),
            )
        };
        delivered
            .map(|()| signal::set_step(Step::Delivered))
            .map_err(error)
    }
}

/// Opens stdout if it can be written. `io::stdout()` silently ignores a closed stdout.
fn stdout() -> io::Result<Target> {
    let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    // SAFETY: the descriptor is open.
    let access = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) } & libc::O_ACCMODE;
    // Rust replaces a closed stdout with /dev/null, open for reading, too.
    let is_closed = access == libc::O_RDWR && is_at(&file, Path::new("/dev/null"));
    if is_closed || access == libc::O_RDONLY {
        return Err(io::Error::other("it is closed, or open for reading only"));
    }
    reserve(&file, file.metadata()?.len())?;
    Ok(Target::Stdout(file))
}

fn open_file(path: &Path) -> io::Result<Target> {
    // A name of stdout, such as /dev/stdout, is stdout: opened again, it would be written from the start.
    if io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .is_ok_and(|stdout| is_at(&File::from(stdout), path))
    {
        return stdout();
    }
    match OpenOptions::new().write(true).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound && !path.is_symlink() => {
            let (mut file, temporary) = create_beside(path)?;
            fs::remove_file(temporary)?;
            ignore_unless_full(
                file.write_all(&[0; ROOM as usize])
                    .and_then(|()| file.sync_all()),
            )?;
            Ok(Target::New(path.to_owned()))
        }
        opened => opened
            .and_then(|file| reserve(&file, 0).map(|()| Target::Existing(file, path.to_owned()))),
    }
}

/// Makes sure that a regular file has room. That changes its modification time, so only if it is necessary.
fn reserve(file: &File, start: u64) -> io::Result<()> {
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.blocks() * 512 >= start + ROOM {
        return Ok(());
    }
    // SAFETY: the descriptor is open.
    match unsafe {
        libc::fallocate(
            file.as_raw_fd(),
            libc::FALLOC_FL_KEEP_SIZE,
            start as i64,
            ROOM as i64,
        )
    } {
        0 => Ok(()),
        _ => ignore_unless_full(Err(io::Error::last_os_error())),
    }
}

/// Returns the error of a full disk, of a quota or of a size limit. Not every file system can reserve room.
fn ignore_unless_full(result: io::Result<()>) -> io::Result<()> {
    let full = [
        ErrorKind::StorageFull,
        ErrorKind::QuotaExceeded,
        ErrorKind::FileTooLarge,
    ];
    result.or_else(|error| {
        if full.contains(&error.kind()) {
            Err(error)
        } else {
            Ok(())
        }
    })
}

fn overwrite(file: File, path: &Path, bytes: &[u8]) -> io::Result<()> {
    write(&file, bytes)?;
    if file.metadata()?.is_file() {
        file.set_len(bytes.len() as u64)?;
        file.sync_all()?;
        if !is_at(&file, path) {
            return Err(io::Error::other(
                "the file was removed or replaced during the run",
            ));
        }
    }
    Ok(())
}

/// Writes all bytes. Another process may have made a pipe non-blocking, and a deferred signal interrupts the wait.
fn write(mut file: &File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        wait_writable(file.as_raw_fd(), -1);
        match file.write(bytes) {
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            written => bytes = &bytes[written?..],
        }
    }
    Ok(())
}

/// Creates the file under another name, so that it appears with all of the secret in it.
fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (mut file, temporary) = create_beside(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written
        .and_then(|()| fs::rename(&temporary, path))
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
}

fn create_beside(path: &Path) -> io::Result<(File, PathBuf)> {
    // `file_name` drops a slash or a dot at the end.
    if !path
        .file_name()
        .is_some_and(|name| path.as_os_str().as_bytes().ends_with(name.as_bytes()))
    {
        return Err(io::Error::other("it names a directory"));
    }
    let random = RandomState::new().build_hasher().finish();
    let temporary = path.with_file_name(format!(".docspace-rotate-{random:016x}"));
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    Ok((file, temporary))
}

fn is_at(file: &File, path: &Path) -> bool {
    let identity = |file: fs::Metadata| (file.dev(), file.ino());
    file.metadata()
        .is_ok_and(|open| fs::metadata(path).is_ok_and(|there| identity(open) == identity(there)))
}

/// Checks that a command is executable. A name with a slash is a path; any other is searched on PATH.
fn prepare_command(name: &OsStr, args: &[OsString], env: &[(&str, String)]) -> io::Result<Target> {
    let path = env::var_os("PATH").filter(|path| !path.is_empty());
    let folders = path
        .iter()
        .flat_map(env::split_paths)
        .map(|folder| Path::new(".").join(folder));
    let has_slash = name.as_bytes().contains(&b'/');
    let folders: Vec<PathBuf> = if has_slash {
        vec![PathBuf::new()]
    } else {
        folders.collect()
    };
    let is_executable = |file: PathBuf| {
        let path = CString::new(file.as_os_str().as_bytes());
        // SAFETY: the string outlives the call.
        file.is_file()
            && path.is_ok_and(|path| unsafe { libc::access(path.as_ptr(), libc::X_OK) == 0 })
    };
    if !folders
        .into_iter()
        .any(|folder| is_executable(folder.join(name)))
    {
        return Err(io::Error::other("not found, or not executable"));
    }
    let mut command = Command::new(name);
    command
        .args(args)
        .envs(env.iter().map(|(name, value)| (name, value)));
    for variable in [
        "DOCSPACE_API_KEY",
        "DOCSPACE_API_KEY_FILE",
        "DOCSPACE_CLIENT_ID_FILE",
    ] {
        command.env_remove(variable);
    }
    let (reader, writer) = io::pipe()?;
    command.stdin(reader.try_clone()?);
    Ok(Target::Command(Box::new(command), reader, writer))
}

/// Runs a command with the bytes on its stdin. Returns when the command exits, even if it never read them.
fn run(
    mut command: Command,
    reader: &PipeReader,
    mut writer: PipeWriter,
    bytes: &[u8],
) -> io::Result<()> {
    // SAFETY: the descriptor is open.
    unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    // The pipe is filled before the command starts, so a kill never leaves it half a bare secret.
    let mut rest = bytes;
    while let Ok(written @ 1..) = writer.write(rest) {
        rest = &rest[written..];
    }
    // Without a terminal, a signal to the job's whole group would end the command.
    let own_group = File::open("/dev/tty").is_err();
    if own_group {
        command.process_group(0);
    }
    // SAFETY: it does nothing. With it std forks, and until exec the command has our handlers, which only defer.
    unsafe { command.pre_exec(|| Ok(())) };
    let mut child = command.spawn()?;
    let id = child.id() as libc::pid_t;
    COMMAND.store(if own_group { -id } else { id }, SeqCst);
    while !rest.is_empty() && child.try_wait()?.is_none() {
        match writer.write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(_) => drop(wait_writable(writer.as_raw_fd(), 20)),
        }
    }
    drop(writer);
    let status = child.wait()?;
    COMMAND.store(0, SeqCst);
    let mut unread: libc::c_int = -1;
    // SAFETY: the descriptor is open, and the number is valid.
    unsafe { libc::ioctl(reader.as_raw_fd(), libc::FIONREAD, &mut unread) };
    Err(io::Error::other(match (status.code(), status.signal()) {
        (Some(0), _) if unread == 0 && rest.is_empty() => return Ok(()),
        (Some(0), _) => "it exited without reading the whole secret".to_owned(),
        (Some(status), _) => format!("it exited with status {status}"),
        (None, signal) => format!("it was ended by signal {}", signal.unwrap_or_default()),
    }))
}
