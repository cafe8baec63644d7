//! What ends a run early: SIGHUP, SIGINT, SIGTERM, and the timer of `--timeout`, whose signal is SIGALRM.
//!
//! All of them end the run in one handler, which never returns: it writes one line and exits. As
//! process 1 of a container the program gets no signal that it has no handler for.

use std::ffi::c_int;
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::time::Duration;

use crate::error::State;
use crate::output::is_writable;

/// The longest line of the handler in bytes: what poll(2) calls writable takes that much at least.
const LINE: usize = 4096;

/// The signals that end the run early.
const SIGNALS: [c_int; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGALRM];

/// What the run is doing. Read by the handler.
struct Note {
    what: String,
    /// The state if the run ends now: before and after the first byte of the request has left.
    states: [State; 2],
    sent: AtomicBool,
}

static NOTE: AtomicPtr<Note> = AtomicPtr::new(ptr::null_mut());

/// Notes what the run does from now on, and the state in which it leaves the client if it ends
/// meanwhile: `state`, and `once_sent` after [`sent`].
pub fn note(what: impl Into<String>, state: State, once_sent: State) {
    let note = Note { what: what.into(), states: [state, once_sent], sent: AtomicBool::new(false) };
    let last = NOTE.swap(Box::into_raw(Box::new(note)), Ordering::SeqCst);
    if !last.is_null() {
        // SAFETY: it came from a box, and nobody reads it: the one thread is here, not in the
        // handler, which never returns.
        drop(unsafe { Box::from_raw(last) });
    }
}

/// Notes that a byte of the request under way may have left.
pub fn sent() {
    // SAFETY: a note is freed only when it is no longer in `NOTE`.
    if let Some(note) = unsafe { NOTE.load(Ordering::SeqCst).as_ref() } {
        note.sent.store(true, Ordering::SeqCst);
    }
}

/// Whether a byte of the request under way may have left.
pub fn is_sent() -> bool {
    // SAFETY: a note is freed only when it is no longer in `NOTE`.
    unsafe { NOTE.load(Ordering::SeqCst).as_ref() }.is_some_and(|note| note.sent.load(Ordering::SeqCst))
}

/// Sets the handler. A signal that the caller ignores stays ignored, but for the timer's.
pub fn install() {
    note("before anything was sent", State::Unreached, State::Unreached);
    // SAFETY: the structures are valid, and `end` has the form that sigaction(2) wants.
    unsafe {
        // A file that may not grow is then an error of the write, and not the end of the run.
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        for signal in SIGNALS {
            let mut action: libc::sigaction = mem::zeroed();
            libc::sigaction(signal, ptr::null(), &mut action);
            if action.sa_sigaction == libc::SIG_IGN && signal != libc::SIGALRM {
                continue;
            }
            let handler: extern "C" fn(c_int) = end;
            action.sa_sigaction = handler as libc::sighandler_t;
            action.sa_flags = 0;
            // One line, whatever comes second.
            libc::sigfillset(&mut action.sa_mask);
            if signal == libc::SIGALRM {
                // Drops an alarm that was set for the program before this one.
                libc::signal(signal, libc::SIG_IGN);
            }
            libc::sigaction(signal, &action, ptr::null_mut());
        }
        let mut alarm: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut alarm);
        libc::sigaddset(&mut alarm, libc::SIGALRM);
        libc::sigprocmask(libc::SIG_UNBLOCK, &alarm, ptr::null_mut());
    }
}

/// Has nothing end the run early any more: how it ends is settled, and only the log is left to write.
pub fn settle() {
    for signal in SIGNALS {
        // SAFETY: SIG_IGN is a handler that signal(2) knows.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Has the run end after so long, instead of when it was to end before.
pub fn set_timer(after: Duration) {
    // Rounded up, as 0 would switch the timer off.
    let microseconds = after.as_nanos().div_ceil(1000).max(1);
    // SAFETY: all zero is a valid structure, and it outlives the call.
    unsafe {
        let mut timer: libc::itimerval = mem::zeroed();
        timer.it_value.tv_sec = (microseconds / 1_000_000) as _;
        timer.it_value.tv_usec = (microseconds % 1_000_000) as _;
        libc::setitimer(libc::ITIMER_REAL, &timer, ptr::null_mut());
    }
}

/// Calls only what is async-signal-safe (signal-safety(7)): poll, write, _exit.
extern "C" fn end(signal: c_int) {
    // SAFETY: a note is freed only when it is no longer in `NOTE`.
    let note = unsafe { NOTE.load(Ordering::SeqCst).as_ref() };
    let (what, state) = match note {
        Some(note) => (note.what.as_str(), note.states[usize::from(note.sent.load(Ordering::SeqCst))]),
        None => ("", State::Unreached),
    };
    let (cause, status) = match signal {
        libc::SIGALRM => ("timed out ", c_int::from(state.status())),
        libc::SIGHUP => ("ended by SIGHUP ", 128 + signal),
        libc::SIGINT => ("ended by SIGINT ", 128 + signal),
        _ => ("ended by SIGTERM ", 128 + signal),
    };
    let (mut line, mut length) = ([b'\n'; LINE], 0);
    for text in ["docspace-rotate: ", cause, what, "; ", state.words(), "; ", state.next()] {
        for byte in text.bytes().take(LINE - 1 - length) {
            line[length] = byte;
            length += 1;
        }
    }
    // Where stderr is gone or full, nothing is left to be done about it.
    // SAFETY: the line has these bytes, and both calls are async-signal-safe.
    unsafe {
        if is_writable(libc::STDERR_FILENO, 0) {
            libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), length + 1);
        }
        libc::_exit(status);
    }
}
