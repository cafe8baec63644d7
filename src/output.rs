//! Delivery of the secret: to stdout, to a file or to a command.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind, Write};
use std::mem;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::command;
use crate::error::{Error, State, fail, io_message};
use crate::secret::{NewSecret, show};
use crate::settings::Options;
use crate::signal;

/// The free space that a file must have before anything is sent, in bytes.
const MIN_FREE_SPACE: u64 = 4096;

/// Where the secret is to go.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum Destination {
    #[default]
    Stdout,
    File(PathBuf),
    Command(OsString, Vec<OsString>),
}

impl Destination {
    fn name(&self) -> String {
        match self {
            Destination::Stdout => "stdout".to_owned(),
            Destination::File(path) => format!("--output {}", show(path.as_ref())),
            Destination::Command(name, _) => format!("the command {}", show(name)),
        }
    }
}

/// A destination that is ready for the secret.
pub enum Output<'a> {
    /// stdout, a FIFO or a device.
    Stream(File),
    /// It is overwritten in place, because it may be a bind mount.
    Existing(File, &'a Path),
    /// It is created when there is a secret, so that no run leaves an empty or partial file.
    New(&'a Path),
    Command(&'a OsStr, &'a [OsString]),
}

impl<'a> Output<'a> {
    /// Opens the output, and leaves the contents of a file alone. A FIFO waits for its reader.
    pub fn open(options: &'a Options) -> Result<Output<'a>, Error> {
        signal::set_activity("while opening the output");
        let output = match &options.args.destination {
            Destination::Stdout => open_stdout(),
            Destination::File(path) => open_file(path),
            Destination::Command(name, args) => {
                command::check(name).map(|()| Output::Command(name, args))
            }
        };
        output.or_else(|error| {
            Error::usage(format!(
                "cannot deliver to {}: {}",
                options.args.destination.name(),
                io_message(&error)
            ))
        })
    }

    /// Checks that the output can be opened. A FIFO is left alone: its reader would get an end of
    /// file.
    pub fn check(options: &Options) -> Result<(), Error> {
        if let Destination::File(path) = &options.args.destination
            && fs::metadata(path).is_ok_and(|file| file.file_type().is_fifo())
        {
            return Ok(());
        }
        Output::open(options)?;
        Ok(())
    }

    /// Delivers the secret, or with `--json` the object that contains it.
    pub fn deliver(self, options: &Options, new: &NewSecret) -> Result<(), Error> {
        signal::set_activity("during the delivery");
        let text = if options.args.json {
            &new.object
        } else {
            &new.secret
        };
        let text = text.expose();
        let end = if options.args.no_newline { "" } else { "\n" };
        let line = format!("{text}{end}").into_bytes();
        let delivered = match self {
            // Some file systems report an error only at the sync. A pipe cannot be synced.
            Output::Stream(mut file) => file
                .write_all(&line)
                .and_then(|()| file.sync_all().or_else(ignore_unsupported)),
            Output::Existing(file, path) => overwrite(file, path, &line),
            Output::New(path) => create(path, &line),
            Output::Command(name, args) => command::run(name, args, options, text.as_bytes()),
        };
        if let Err(error) = delivered {
            let what = format!(
                "the new secret was not delivered to {}: {}",
                options.args.destination.name(),
                io_message(&error)
            );
            return Err(Error::new(State::NotDelivered, what));
        }
        signal::set_activity("after the delivery");
        Ok(())
    }
}

/// Opens stdout if it can be written. `io::stdout` silently ignores a closed stdout.
fn open_stdout() -> io::Result<Output<'static>> {
    let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let fd = file.as_raw_fd();
    // Another process that shares a pipe may have made it non-blocking.
    // SAFETY: the descriptor is open.
    let flags = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        libc::fcntl(fd, libc::F_SETFL, flags & !libc::O_NONBLOCK);
        flags
    };
    let access = flags & libc::O_ACCMODE;
    if access == libc::O_RDONLY {
        return fail("it is open read-only");
    }
    // Rust replaces a closed stdout with /dev/null, open for reading, too.
    if access == libc::O_RDWR && is_same_file(&file, "/dev/null".as_ref()) {
        return fail("it is closed, or it is /dev/null opened read-write");
    }
    reserve_room(&file, file.metadata()?.len())?;
    Ok(Output::Stream(file))
}

fn open_file(path: &Path) -> io::Result<Output<'_>> {
    // A name of stdout, such as /dev/stdout, is stdout: opened again, it would be written from the
    // start.
    let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    if is_same_file(&stdout, path) {
        return open_stdout();
    }
    match File::options().write(true).open(path) {
        Ok(file) if file.metadata()?.is_file() => {
            fail_if_replaced(&file, path)?;
            reserve_room(&file, 0)?;
            Ok(Output::Existing(file, path))
        }
        Ok(file) => Ok(Output::Stream(file)),
        Err(error) if error.kind() == ErrorKind::NotFound && !path.is_symlink() => {
            try_create(path)?;
            Ok(Output::New(path))
        }
        Err(error) => Err(error),
    }
}

/// Checks that a file can be created and has room, by creating another one beside it.
fn try_create(path: &Path) -> io::Result<()> {
    let (mut file, temp_path) = create_temp_in_same_dir(path)?;
    fs::remove_file(temp_path)?;
    let zeros = [0; MIN_FREE_SPACE as usize];
    file.write_all(&zeros).or_else(ignore_unsupported)?;
    file.sync_all().or_else(ignore_unsupported)
}

/// Makes sure that a regular file has room. That changes its modification time, so only if it is
/// necessary.
fn reserve_room(file: &File, start: u64) -> io::Result<()> {
    let metadata = file.metadata()?;
    let end = start + MIN_FREE_SPACE;
    if !metadata.is_file() {
        return Ok(());
    }
    // fallocate does not check this limit.
    if end > size_limit() {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    }
    if metadata.blocks() * 512 >= end {
        return Ok(());
    }
    // SAFETY: the descriptor is open.
    let result = unsafe {
        libc::fallocate(
            file.as_raw_fd(),
            libc::FALLOC_FL_KEEP_SIZE,
            start as libc::off_t,
            MIN_FREE_SPACE as libc::off_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => ignore_unsupported(io::Error::last_os_error()),
    }
}

/// Returns the largest size that this process may give a file, in bytes (getrlimit(2)).
fn size_limit() -> u64 {
    // SAFETY: zero is a valid value for numbers, and the structure outlives the call.
    unsafe {
        let mut limit: libc::rlimit = mem::zeroed();
        libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit);
        limit.rlim_cur
    }
}

/// Ignores an error that only says that a file system or a sandbox does not support the operation.
fn ignore_unsupported(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::EPERM) => Ok(()),
        _ => Err(error),
    }
}

/// Overwrites a file in place: from the start, then truncated to its new length.
fn overwrite(mut file: File, path: &Path, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    file.set_len(bytes.len() as u64)?;
    file.sync_all()?;
    fail_if_replaced(&file, path)
}

/// Fails if the file has no name left: it was removed, or a bind-mounted file was replaced on the host.
/// A file under /dev or /proc may never have had a name. Inode numbers are not compared: on some
/// network file systems they change.
fn fail_if_replaced(file: &File, path: &Path) -> io::Result<()> {
    let needs_no_name = path.starts_with("/dev") || path.starts_with("/proc");
    if needs_no_name || file.metadata()?.nlink() > 0 {
        return Ok(());
    }
    fail("the file was removed or replaced, here or on the host that it is mounted from")
}

/// Creates the file under another name, so that it appears with all of the secret in it.
fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (mut file, temp_path) = create_temp_in_same_dir(path)?;
    let result = file
        .write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&temp_path, path));
    if result.is_err() {
        let _ = fs::remove_file(&temp_path);
    }
    result
}

/// Creates a file with a random name in the directory of `path`.
fn create_temp_in_same_dir(path: &Path) -> io::Result<(File, PathBuf)> {
    // `with_file_name` ignores a slash or a dot at the end.
    let name = path.to_string_lossy();
    if name.ends_with("/") || name.ends_with("/.") {
        return fail("it names a directory");
    }
    let random = RandomState::new().hash_one(());
    let temp_path = path.with_file_name(format!(".docspace-rotate-{random:016x}"));
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temp_path)?;
    Ok((file, temp_path))
}

/// Returns true if the open file is the one that this path names.
fn is_same_file(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (file.metadata(), fs::metadata(path)) else {
        return false;
    };
    open.dev() == named.dev() && open.ino() == named.ino()
}
