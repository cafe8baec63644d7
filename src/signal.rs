//! What SIGINT and SIGTERM do: say which step was under way, and end the run.
//!
//! As process 1 of a container the program gets neither unless it has a handler. The handler calls
//! nothing that is not async-signal-safe (signal-safety(7)): stat, unlink, poll, write, _exit.

use std::ffi::{CString, c_char, c_int};
use std::mem::{self, MaybeUninit};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Error, State};
use crate::io::is_ready;

/// What the line says after the signal's name.
static NOTE: AtomicPtr<String> = AtomicPtr::new(ptr::null_mut());

/// The notes that there were, each once: never freed, as a signal may come at any time.
static NOTES: Mutex<Vec<&'static String>> = Mutex::new(Vec::new());

/// The name of a file that goes if the run ends now.
static UNFILLED: AtomicPtr<c_char> = AtomicPtr::new(ptr::null_mut());

/// Notes what is under way, and the state in which the client is left if the run ends now.
pub fn note(what: &str, state: State) {
    let note = Error::new(state, what).to_string();
    let mut notes = NOTES.lock().unwrap_or_else(PoisonError::into_inner);
    let known = notes.iter().find(|known| **known == &note).copied();
    let note = known.unwrap_or_else(|| {
        let note: &String = Box::leak(Box::new(note));
        notes.push(note);
        note
    });
    NOTE.store(ptr::from_ref(note).cast_mut(), Ordering::SeqCst);
}

/// Has a signal remove this file, or none.
pub fn unfilled(file: Option<&Path>) {
    let name = file.and_then(|file| CString::new(file.as_os_str().as_bytes()).ok());
    // Never freed, likewise.
    UNFILLED.store(name.map_or(ptr::null_mut(), CString::into_raw), Ordering::SeqCst);
}

/// Sets the handler. A signal that the caller has ignored stays ignored.
pub fn handle() {
    note("before anything was sent", State::Unreached);
    // SAFETY: SIG_IGN is a handler that signal(2) knows. A file that may not grow is then an error
    // of the write, and not the end of the run.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the structures are valid, `end` is async-signal-safe and has the form that
        // sigaction(2) wants.
        unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            libc::sigaction(signal, ptr::null(), &mut action);
            if action.sa_sigaction == libc::SIG_IGN {
                continue;
            }
            let handler: extern "C" fn(c_int) = end;
            action.sa_sigaction = handler as libc::sighandler_t;
            action.sa_flags = 0;
            // One line, whichever comes second.
            libc::sigfillset(&mut action.sa_mask);
            libc::sigaction(signal, &action, ptr::null_mut());
        }
    }
}

extern "C" fn end(signal: c_int) {
    let name = if signal == libc::SIGINT { "SIGINT " } else { "SIGTERM " };
    // SAFETY: what the pointers point to is never freed, and the calls are async-signal-safe.
    unsafe {
        let file = UNFILLED.load(Ordering::SeqCst);
        let mut status = MaybeUninit::<libc::stat>::zeroed();
        // Another run may have put its secret there.
        if !file.is_null() && libc::stat(file, status.as_mut_ptr()) == 0 && status.assume_init().st_size == 0
        {
            libc::unlink(file);
        }
        let note = NOTE.load(Ordering::SeqCst).as_ref().map_or("", |note| note);
        let (mut line, mut length) = ([0; 512], 0);
        for text in ["docspace-rotate: ended by ", name, note, "\n"] {
            for byte in text.bytes().take(line.len() - length) {
                line[length] = byte;
                length += 1;
            }
        }
        // Where stderr is gone or full, nothing is left to be done about it.
        if is_ready(libc::STDERR_FILENO, libc::POLLOUT, Duration::ZERO) {
            libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), length);
        }
        libc::_exit(128 + signal);
    }
}
