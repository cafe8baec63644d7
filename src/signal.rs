//! What the run is doing, and what ends it early: SIGHUP, SIGINT, SIGTERM, and SIGALRM from the timer.
//!
//! One handler serves them all. It knows two small numbers, the step and the state, writes one line, and exits.

use std::ffi::c_int;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering::SeqCst};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use std::{mem, ptr};

use crate::error::{State, wait_writable};

/// What has begun gets at least this long, whatever is left of `--timeout`.
pub const GRACE: Duration = Duration::from_secs(10);

/// The longest line of the handler, in bytes: a writable pipe accepts that many without blocking (PIPE_BUF in pipe(7)).
const MAX_LINE: usize = 4096;

const SIGNALS: [c_int; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGALRM];

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Start,
    KeyFile,
    IdFile,
    CaFile,
    Output,
    SignIn,
    Probe,
    Regenerate,
    Deliver,
    Delivered,
    Revoke,
    Introspect,
    Expiry,
}

/// The names of the steps. Those in brackets are calls, as the log names them.
const NAMES: [&str; 13] = [
    "before anything was sent",
    "while reading the file in DOCSPACE_API_KEY_FILE",
    "while reading the file in DOCSPACE_CLIENT_ID_FILE",
    "while reading the CA file",
    "while opening the output",
    "[GET token]",
    "[HEAD client]",
    "[PATCH regenerate]",
    "during the delivery",
    "after the delivery",
    "[DELETE revoke]",
    "[POST introspect]",
    "[GET key]",
];

impl Step {
    pub fn name(self) -> &'static str {
        NAMES[self as usize]
    }
}

static STEP: AtomicU8 = AtomicU8::new(Step::Start as u8);
static STATE: AtomicU8 = AtomicU8::new(State::Unreached as u8);
/// Whether a byte of this step's request may have left.
pub static SENT: AtomicBool = AtomicBool::new(false);
/// The first deferred signal, or 0.
static PENDING: AtomicI32 = AtomicI32::new(0);
/// What the timer ends: the command's process id, the negative id of its group, or 0.
pub static COMMAND: AtomicI32 = AtomicI32::new(0);
/// The portal's host, and the proxy on the way to it.
pub static PEER: OnceLock<String> = OnceLock::new();
static DEADLINE: Mutex<Option<Instant>> = Mutex::new(None);

/// Begins a run: installs the handler and sets the timer. A signal that the caller ignores stays ignored.
pub fn start(timeout: Duration) {
    *DEADLINE.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + timeout);
    set_step(Step::Start);
    STATE.store(State::Unreached as u8, SeqCst);
    // SAFETY: the handler has the form that sigaction(2) requires, and the structure is valid.
    unsafe {
        // With SIGCHLD ignored, no child can be waited for.
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handle as extern "C" fn(c_int) as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        // One handler at a time: two pending signals would otherwise nest, and the second would count.
        libc::sigfillset(&mut action.sa_mask);
        // With a handler for SIGXFSZ, a write beyond the file size limit fails and does not kill.
        for signal in SIGNALS.into_iter().chain([libc::SIGXFSZ]) {
            // Ignored first, an alarm that was set before exec is dropped.
            let ignored = libc::signal(signal, libc::SIG_IGN) == libc::SIG_IGN;
            if !ignored || signal == libc::SIGALRM {
                libc::sigaction(signal, &action, ptr::null_mut());
            }
        }
        libc::sigprocmask(libc::SIG_UNBLOCK, &action.sa_mask, ptr::null_mut());
    }
    set_timer(timeout);
}

/// From here on, no signal ends the run.
pub fn ignore() {
    for signal in SIGNALS {
        // SAFETY: SIG_IGN is a valid disposition.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

pub fn time_left() -> Duration {
    let deadline = *DEADLINE.lock().unwrap_or_else(PoisonError::into_inner);
    deadline.map_or(Duration::ZERO, |deadline| {
        deadline.saturating_duration_since(Instant::now())
    })
}

pub fn set_step(step: Step) {
    STEP.store(step as u8, SeqCst);
}

/// Enters a state, with at least this much time left. A deferred signal ends the run if this state does not defer it.
pub fn enter(state: State, at_least: Duration) {
    // First enough time, so that no alarm in between reports the state before.
    set_timer(GRACE);
    STATE.store(state.status(), SeqCst);
    set_timer(time_left().max(at_least));
    if PENDING.load(SeqCst) != 0 && !defers_signals(state) {
        end(0);
    }
}

/// Records whether the connection for this step's request is ready, so that its first byte is about to leave.
pub fn set_sent(sent: bool) {
    SENT.store(sent, SeqCst);
    if sent && STEP.load(SeqCst) == Step::Regenerate as u8 {
        enter(State::Unknown, GRACE);
    }
}

/// Returns true if signals wait in this state: a cancelled job keeps the secret that the portal is making.
fn defers_signals(state: State) -> bool {
    matches!(state, State::Unknown | State::NotDelivered)
}

fn set_timer(after: Duration) {
    let after = after.max(Duration::from_micros(1)); // 0 would disarm it.
    let value = libc::timeval {
        tv_sec: after.as_secs() as _,
        tv_usec: after.subsec_micros() as _,
    };
    let timer = libc::itimerval {
        it_interval: libc::timeval {
            tv_sec: 0,
            tv_usec: 0,
        },
        it_value: value,
    };
    // SAFETY: the structure is valid and outlives the call.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, ptr::null_mut()) };
}

/// Calls only what is async-signal-safe (signal-safety(7)).
extern "C" fn handle(signal: c_int) {
    let (state, command) = (State::from_status(STATE.load(SeqCst)), COMMAND.load(SeqCst));
    match signal {
        libc::SIGXFSZ => {}
        libc::SIGALRM => {
            if command != 0 {
                // SAFETY: plain system calls. A stopped command would not notice SIGTERM alone.
                let _ = unsafe {
                    (
                        libc::kill(command, libc::SIGTERM),
                        libc::kill(command, libc::SIGCONT),
                    )
                };
            }
            end(signal);
        }
        _ if defers_signals(state) => {
            if PENDING.compare_exchange(0, signal, SeqCst, SeqCst).is_ok()
                && state == State::Unknown
            {
                // SAFETY: a plain system call. It replaces the timer: Docker kills after 10 s.
                unsafe { libc::alarm(5) };
            }
        }
        _ => end(signal),
    }
}

/// Writes the line and exits. Formatting into a buffer on the stack neither allocates nor locks.
fn end(signal: c_int) -> ! {
    ignore();
    let (state, pending) = (State::from_status(STATE.load(SeqCst)), PENDING.load(SeqCst));
    let (cause, status) = match if pending != 0 { pending } else { signal } {
        libc::SIGHUP => ("ended by SIGHUP", 129),
        libc::SIGINT => ("ended by SIGINT", 130),
        libc::SIGTERM => ("ended by SIGTERM", 143),
        _ => ("timed out", state.status().into()),
    };
    let step = NAMES[usize::from(STEP.load(SeqCst))];
    let (during, at, host) = match step.starts_with('[') {
        true => ("during ", " at ", PEER.get().map_or("", String::as_str)),
        false => ("", "", ""),
    };
    let running = if COMMAND.load(SeqCst) == 0 {
        ""
    } else {
        ", and the command may still be running"
    };
    // The byte after the text ends the line.
    let mut line = [b'\n'; MAX_LINE];
    let mut room = &mut line[..MAX_LINE - 1];
    let _ = write!(
        room,
        "docspace-rotate: {cause} {during}{step}{at}{host}{running}; {}",
        state.words()
    );
    let length = MAX_LINE - room.len();
    // SAFETY: the line has these bytes, and both calls are async-signal-safe.
    unsafe {
        if wait_writable(libc::STDERR_FILENO, 0) {
            libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), length);
        }
        libc::_exit(status);
    }
}
