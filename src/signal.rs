//! What ends a run early: SIGHUP, SIGINT, SIGQUIT, SIGTERM, and the time limit (SIGALRM).
//!
//! One handler serves them all. It reads `RUN`, which is locked only while signals are blocked. The
//! program has one thread, so the handler never finds it locked, or half changed.

use std::ffi::c_int;
use std::io::{Cursor, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use std::{mem, ptr};

use crate::error::{State, stderr_accepts};

const HANDLED_SIGNALS: [c_int; 5] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGALRM,
];

struct Run {
    /// The end of `--timeout`. No retry begins after it.
    deadline: Option<Instant>,
    state: State,
    /// What the run is doing, for its last line: `during [GET token] at portal.example`.
    activity: String,
    /// The first signal that was deferred.
    deferred: Option<c_int>,
    /// What the time limit ends: the command's process id, or the negative id of its group.
    command: Option<libc::pid_t>,
}

const NO_RUN: Run = Run {
    deadline: None,
    state: State::Unchanged,
    activity: String::new(),
    deferred: None,
    command: None,
};

static RUN: Mutex<Run> = Mutex::new(NO_RUN);

impl Run {
    fn time_left(&self) -> Duration {
        let now = Instant::now();
        self.deadline.unwrap_or(now).saturating_duration_since(now)
    }

    /// Sets the timer to the end of `--timeout`, but gives the PATCH, the delivery and each later call
    /// at least 10 s.
    fn grant_time(&self) {
        let at_least = match self.state {
            State::Unchanged => Duration::ZERO,
            // The 5 s after a signal stay in force.
            State::Unknown if self.deferred.is_some() => return,
            _ => Duration::from_secs(10),
        };
        set_timer(self.time_left().max(at_least));
    }

    /// A cancelled run still delivers the secret that the portal is making.
    fn defers_signals(&self) -> bool {
        matches!(self.state, State::Unknown | State::NotDelivered)
    }

    /// Ends the command, writes the last line and exits. Formatting into a buffer on the stack neither
    /// allocates nor locks.
    fn end(&self, signal: c_int) -> ! {
        let (cause, status) = match self.deferred.unwrap_or(signal) {
            libc::SIGHUP => ("ended by SIGHUP", 129),
            libc::SIGINT => ("ended by SIGINT", 130),
            libc::SIGQUIT => ("ended by SIGQUIT", 131),
            libc::SIGTERM => ("ended by SIGTERM", 143),
            _ => ("timed out", self.state as c_int),
        };
        let mut running = "";
        if let Some(command) = self.command {
            running = ", and the command may still be running";
            // SAFETY: plain system calls. A stopped command would not notice SIGTERM alone.
            unsafe {
                libc::kill(command, libc::SIGTERM);
                libc::kill(command, libc::SIGCONT);
            }
        }
        // A writable pipe accepts that many bytes without blocking (PIPE_BUF in pipe(7)).
        let mut line = Cursor::new([0; 4096]);
        let _ = writeln!(
            line,
            "docspace-rotate: {cause} {}{running}; {}",
            self.activity,
            self.state.words()
        );
        let length = line.position() as usize;
        // SAFETY: the line has these bytes, and all calls are async-signal-safe.
        unsafe {
            if stderr_accepts(0) {
                libc::write(libc::STDERR_FILENO, line.get_ref().as_ptr().cast(), length);
            }
            libc::_exit(status)
        }
    }
}

/// Begins a run: installs the handler and sets the timer.
pub fn start(timeout: Duration) {
    change(|run| {
        *run = Run {
            deadline: Some(Instant::now() + timeout),
            activity: "before anything was sent".to_owned(),
            ..NO_RUN
        };
    });
    install();
    set_timer(timeout);
}

/// From here on, neither a signal nor the time limit ends the run.
pub fn finish() {
    for signal in HANDLED_SIGNALS {
        // SAFETY: SIG_IGN is a valid disposition.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Returns what is left of `--timeout`.
pub fn time_left() -> Duration {
    change(|run| run.time_left())
}

/// Says what the run is doing, for the line that a signal or the time limit would write.
pub fn set_activity(what: &str) {
    change(|run| run.activity = what.to_owned());
}

/// Returns the state that the client is in.
pub fn state() -> State {
    change(|run| run.state)
}

/// Enters a state. This is the only way to change it. A deferred signal ends the run here if the new
/// state does not defer signals. A run that returns first keeps its own status.
pub fn enter(state: State) {
    change(|run| {
        run.state = state;
        run.grant_time();
        if let Some(signal) = run.deferred
            && !run.defers_signals()
        {
            run.end(signal);
        }
    });
}

/// Grants one more attempt its time, in the same state.
pub fn grant_time() {
    change(|run| run.grant_time());
}

/// Says which process the time limit ends, if any.
pub fn set_command(command: Option<libc::pid_t>) {
    change(|run| run.command = command);
}

/// Reads or changes the run with signals blocked. One that comes meanwhile is handled afterwards.
fn change<T>(action: impl FnOnce(&mut Run) -> T) -> T {
    // SAFETY: sigfillset initialises the set, and sigprocmask the mask.
    unsafe {
        let mut all = mem::zeroed();
        let mut mask = mem::zeroed();
        libc::sigfillset(&mut all);
        libc::sigprocmask(libc::SIG_BLOCK, &all, &mut mask);
        // Unlocked again before signals are unblocked.
        let result = action(&mut RUN.lock().expect("never poisoned"));
        libc::sigprocmask(libc::SIG_SETMASK, &mask, ptr::null_mut());
        result
    }
}

/// Installs the handler. A signal that the caller ignores (nohup) stays ignored.
fn install() {
    // SAFETY: the handler has the form that sigaction(2) requires, and the structure is valid.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handle as extern "C" fn(c_int) as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        // One signal at a time: of two that are pending, the second would otherwise count.
        libc::sigfillset(&mut action.sa_mask);
        for signal in HANDLED_SIGNALS {
            // Ignoring a signal discards a pending one, such as an alarm that was set before exec.
            let was_ignored = libc::signal(signal, libc::SIG_IGN) == libc::SIG_IGN;
            if signal == libc::SIGALRM || !was_ignored {
                libc::sigaction(signal, &action, ptr::null_mut());
            }
        }
        // A write beyond the file size limit then fails and does not kill.
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        // With SIGCHLD ignored, no child can be waited for.
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        libc::sigprocmask(libc::SIG_UNBLOCK, &action.sa_mask, ptr::null_mut());
    }
}

/// Decides what a signal does. Makes only system calls; the lock is always free here.
extern "C" fn handle(signal: c_int) {
    let mut run = RUN.lock().expect("never poisoned");
    if signal == libc::SIGALRM || !run.defers_signals() {
        run.end(signal);
    }
    // The first signal counts, later ones change nothing: many runners send INT, then TERM.
    if run.deferred.is_none() {
        run.deferred = Some(signal);
        if run.state == State::Unknown {
            // Docker kills 10 s after its SIGTERM.
            set_timer(Duration::from_secs(5));
        }
    }
}

fn set_timer(after: Duration) {
    // Zero would disarm it.
    let after = after.max(Duration::from_micros(1));
    // SAFETY: zero is a valid value for numbers, and the structure outlives the call.
    unsafe {
        let mut timer: libc::itimerval = mem::zeroed();
        timer.it_value.tv_sec = after.as_secs() as _;
        timer.it_value.tv_usec = after.subsec_micros() as _;
        libc::setitimer(libc::ITIMER_REAL, &timer, ptr::null_mut());
    }
}
