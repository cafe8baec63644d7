//! What ends a run early: SIGHUP, SIGINT, SIGTERM, and the timer of `--timeout`, whose signal is SIGALRM.
//!
//! All of them end the run in one handler, which never returns: it writes one line and exits. As
//! process 1 of a container the program gets no signal that it has no handler for.

use std::ffi::c_int;
use std::mem;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::error::State;

/// The longest line that is written, in bytes: a pipe that poll(2) calls writable takes so many without
/// blocking (PIPE_BUF in pipe(7), 4,096 on Linux).
const MAX_LINE: usize = 4096;

/// The signals that end the run early. The last is the timer's, and is never held.
const SIGNALS: [c_int; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGALRM];

/// The signals whose disposition this program, or Rust before its `main`, changes.
const CHANGED: [c_int; 7] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGALRM, libc::SIGXFSZ, libc::SIGPIPE, libc::SIGCHLD];

/// What the program was started with: the signal mask, and which of `CHANGED` were ignored.
struct Start {
    mask: libc::sigset_t,
    ignored: [bool; CHANGED.len()],
}

static START: OnceLock<Start> = OnceLock::new();

/// Run by the loader before `main`, because Rust ignores SIGPIPE before it calls that.
// SAFETY: the section is for pointers to functions of this form, and this one relies on nothing of Rust's runtime.
#[used]
#[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,__mod_init_func"))]
#[cfg_attr(not(target_vendor = "apple"), unsafe(link_section = ".init_array"))]
static BEFORE_MAIN: extern "C" fn() = {
    extern "C" fn before_main() {
        start();
    }
    before_main
};

fn start() -> &'static Start {
    START.get_or_init(|| Start {
        mask: change_mask(libc::SIG_BLOCK, &[]),
        ignored: CHANGED.map(|signal| disposition(signal).sa_sigaction == libc::SIG_IGN),
    })
}

/// Changes the signal mask, and returns the one before.
fn change_mask(how: c_int, signals: &[c_int]) -> libc::sigset_t {
    // SAFETY: both sets are this function's own, and valid.
    unsafe {
        let (mut set, mut last) = (mem::zeroed(), mem::zeroed());
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        libc::sigprocmask(how, &set, &mut last);
        last
    }
}

fn disposition(signal: c_int) -> libc::sigaction {
    // SAFETY: a null pointer changes nothing, and the structure is valid.
    unsafe {
        let mut action = mem::zeroed();
        libc::sigaction(signal, ptr::null(), &mut action);
        action
    }
}

/// What the run is doing. Read by the handler.
struct Note {
    what: String,
    /// The state if the run ends now: before and after the first byte of the request has left.
    states: [State; 2],
    sent: AtomicBool,
}

static NOTE: AtomicPtr<Note> = AtomicPtr::new(ptr::null_mut());

/// All notes that there were, each once. None is freed, as the handler may be reading it.
static NOTES: Mutex<Vec<&'static Note>> = Mutex::new(Vec::new());

/// Whether signals are held, and the last one that came meanwhile; else 0.
static HOLDING: AtomicBool = AtomicBool::new(false);
static HELD: AtomicI32 = AtomicI32::new(0);

/// The command that has the secret, while it runs; else 0.
static COMMAND: AtomicI32 = AtomicI32::new(0);

/// Notes what the run does from now on, and the state in which it leaves the client if it ends
/// meanwhile.
pub fn note(what: impl Into<String>, state: State) {
    note_request(what, state, state);
}

/// The same for a request: `once_sent` is the state after [`sent`].
pub fn note_request(what: impl Into<String>, state: State, once_sent: State) {
    let (what, states) = (what.into(), [state, once_sent]);
    let mut notes = NOTES.lock().unwrap_or_else(PoisonError::into_inner);
    let known = notes.iter().find(|note| note.what == what && note.states == states).copied();
    let note = known.unwrap_or_else(|| {
        let note: &Note = Box::leak(Box::new(Note { what, states, sent: AtomicBool::new(false) }));
        notes.push(note);
        note
    });
    note.sent.store(false, Ordering::SeqCst);
    NOTE.store(ptr::from_ref(note).cast_mut(), Ordering::SeqCst);
}

fn last_note() -> Option<&'static Note> {
    // SAFETY: null, or a note that is never freed.
    unsafe { NOTE.load(Ordering::SeqCst).as_ref() }
}

/// Notes that a byte of the request under way may have left.
pub fn sent() {
    if let Some(note) = last_note() {
        note.sent.store(true, Ordering::SeqCst);
    }
}

/// Whether a byte of the request under way may have left.
pub fn is_sent() -> bool {
    last_note().is_some_and(|note| note.sent.load(Ordering::SeqCst))
}

/// Sets the handler. A signal that the caller ignores stays ignored, but for the timer's.
pub fn install() {
    start();
    note("before anything was sent", State::Unreached);
    // SAFETY: the structures are valid, and `end` has the form that sigaction(2) wants.
    unsafe {
        // A file that may not grow is then an error of the write, and not the end of the run.
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        for signal in SIGNALS {
            let mut action = disposition(signal);
            if action.sa_sigaction == libc::SIG_IGN && signal != libc::SIGALRM {
                continue;
            }
            let handler: extern "C" fn(c_int) = end;
            action.sa_sigaction = handler as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART;
            // One line, whatever comes second.
            libc::sigfillset(&mut action.sa_mask);
            if signal == libc::SIGALRM {
                // Drops an alarm that was set for the program before this one.
                libc::signal(signal, libc::SIG_IGN);
            }
            libc::sigaction(signal, &action, ptr::null_mut());
        }
    }
    change_mask(libc::SIG_UNBLOCK, &[libc::SIGALRM]);
}

/// Holds SIGHUP, SIGINT and SIGTERM until [`release`]: a secret that is made is handed over.
pub fn hold() {
    HOLDING.store(true, Ordering::SeqCst);
}

/// The name of a signal that is held.
pub fn held() -> Option<&'static str> {
    Some(HELD.load(Ordering::SeqCst)).filter(|signal| *signal != 0).map(name)
}

fn name(signal: c_int) -> &'static str {
    match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        _ => "SIGTERM",
    }
}

/// Delivers a signal that was held: it ends the run as the last note says.
pub fn release() {
    HOLDING.store(false, Ordering::SeqCst);
    match HELD.load(Ordering::SeqCst) {
        0 => {}
        // SAFETY: a plain system call.
        signal => drop(unsafe { libc::raise(signal) }),
    }
}

/// Gives a child the signal mask and the ignored signals that this program was started with.
/// Async-signal-safe, for between fork and exec.
pub fn restore() {
    let start = start();
    for (signal, ignored) in CHANGED.into_iter().zip(start.ignored) {
        // SAFETY: SIG_IGN and SIG_DFL are valid dispositions.
        unsafe { libc::signal(signal, if ignored { libc::SIG_IGN } else { libc::SIG_DFL }) };
    }
    // SAFETY: the set is valid.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &start.mask, ptr::null_mut()) };
}

/// Has the timer send SIGTERM to this process, too; 0 is none.
pub fn set_command(process: i32) {
    COMMAND.store(process, Ordering::SeqCst);
}

/// From now on nothing ends the run early: how it ends is settled, and only the log is left to write.
pub fn settle() {
    for signal in SIGNALS {
        // SAFETY: SIG_IGN is a valid disposition.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Rearms the timer: the run ends after `after`.
pub fn set_timer(after: Duration) {
    let interval = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let timer = libc::itimerval { it_interval: interval, it_value: timeval(after) };
    // SAFETY: the structure is valid and outlives the call.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, ptr::null_mut()) };
}

/// A time in seconds and microseconds, rounded up: 0 would disarm the timer.
fn timeval(time: Duration) -> libc::timeval {
    let microseconds = time.as_nanos().div_ceil(1000).max(1);
    libc::timeval { tv_sec: (microseconds / 1_000_000) as _, tv_usec: (microseconds % 1_000_000) as _ }
}

/// Whether the descriptor takes bytes, or has an error to tell, within so many milliseconds; -1
/// waits for ever. Async-signal-safe.
pub fn is_writable(fd: RawFd, milliseconds: i32) -> bool {
    let mut fd = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one structure is passed, and it is valid.
    unsafe { libc::poll(&mut fd, 1, milliseconds) == 1 }
}

/// Calls only what is async-signal-safe (signal-safety(7)): kill, poll, write, _exit.
extern "C" fn end(signal: c_int) {
    if signal != libc::SIGALRM && HOLDING.load(Ordering::SeqCst) {
        return HELD.store(signal, Ordering::SeqCst);
    }
    let command = COMMAND.load(Ordering::SeqCst);
    if signal == libc::SIGALRM && command != 0 {
        // SAFETY: plain system calls. One that is stopped would not notice.
        unsafe {
            libc::kill(command, libc::SIGTERM);
            libc::kill(command, libc::SIGCONT);
        }
    }
    let (what, state) = match last_note() {
        Some(note) => (note.what.as_str(), note.states[usize::from(note.sent.load(Ordering::SeqCst))]),
        None => ("", State::Unreached),
    };
    let (cause, by, status) = match signal {
        libc::SIGALRM => match held() {
            Some(signal) => ("timed out after ", signal, c_int::from(state.status())),
            None => ("timed out", "", c_int::from(state.status())),
        },
        _ => ("ended by ", name(signal), 128 + signal),
    };
    let (mut line, mut length) = ([b'\n'; MAX_LINE], 0);
    for text in ["docspace-rotate: ", cause, by, " ", what, "; ", state.words(), "; ", state.next()] {
        for byte in text.bytes().take(MAX_LINE - 1 - length) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timers_time_is_rounded_up() {
        for (time, seconds, microseconds) in [
            (Duration::ZERO, 0, 1),
            (Duration::from_nanos(1), 0, 1),
            (Duration::from_nanos(1001), 0, 2),
            (Duration::from_millis(1500), 1, 500_000),
            (Duration::from_nanos(999_999_001), 1, 0),
            (Duration::from_secs(86400), 86400, 0),
        ] {
            let value = timeval(time);
            assert_eq!((value.tv_sec, value.tv_usec), (seconds, microseconds), "{time:?}");
        }
    }
}
