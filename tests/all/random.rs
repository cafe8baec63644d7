//! Random runs against random faults of networks and portals, each checked against a small model of the contract.
//! `DOCSPACE_ROTATE_RUNS=n` sets how many there are. A failure names its seed; `DOCSPACE_ROTATE_SEED=n` repeats it.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::{env, fs, thread};

/// The time limit in seconds. Waits are whole seconds, so one that fits has 0.9 s to spare.
const LIMIT: f64 = 2.9;

/// A command that stores its stdin in the file `$0`.
#[derive(Clone, Copy)]
struct Store {
    script: &'static str,
    delivers: bool,
    /// The status for the signal that it sends to the run.
    status: Option<u8>,
}

const STORES: [Store; 5] = [
    Store {
        script: "cat > $0",
        delivers: true,
        status: None,
    },
    Store {
        script: "while head -c 7 | grep . ; do :; done | tr -d '\\n' > $0",
        delivers: true,
        status: None,
    },
    Store {
        script: "kill -INT $PPID; cat > $0; kill -TERM $PPID",
        delivers: true,
        status: Some(130),
    },
    Store {
        script: "kill -HUP $PPID; exit 9",
        delivers: false,
        status: Some(129),
    },
    Store {
        script: "exec head -c 5 > /dev/null",
        delivers: false,
        status: None,
    },
];

/// What comes in answer to a request.
#[derive(Clone, Copy, PartialEq)]
enum Answer {
    Good,
    Created,
    Unusable,
    TruncatedJson,
    WebPage,
    SecretInRefusal,
    Status(u16),
    Busy,
    /// Garbled, incomplete, or missing.
    Nothing,
    NotSent,
}
use Answer::*;

use crate::mock::*;
use crate::run::*;

/// Returns whether an answer is the last one, or the exit status if it ends the run.
fn is_last(name: &str, answer: Answer, refused: u8) -> Result<bool, u8> {
    match (name, answer) {
        (_, Good) | ("PATCH regenerate", Created) => Ok(true),
        (_, Busy | NotSent) => Ok(false),
        ("PATCH regenerate", Status(303)) => Err(7),
        ("PATCH regenerate", Status(..408 | 409..500)) => Err(refused),
        ("PATCH regenerate", _) => Err(7),
        (_, Nothing | Status(408 | 425 | 500 | 502..)) => Ok(false),
        ("GET token", Status(401)) | ("HEAD client", WebPage) => Err(refused),
        ("GET token" | "POST introspect", TruncatedJson) => Ok(false),
        ("GET token" | "HEAD client", _) => Ok(true),
        ("DELETE revoke", Created | Unusable | TruncatedJson) => Ok(true),
        _ => Err(refused),
    }
}

/// SplitMix64.
#[derive(Default)]
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Writes the mock's script while it walks through the contract. An error is the exit status.
#[derive(Default)]
struct Walk {
    random: Random,
    tls: bool,
    only: Option<&'static str>,
    check: bool,
    verify: bool,
    store: Option<Store>,
    script: Vec<Expect>,
    requests: usize,
    connected: bool,
    signed: bool,
    delivered: bool,
    waited: u32,
    /// When so many requests have come, the test sends this signal. Then it drops the sender, and the reply comes.
    sending: Option<(usize, i32, Sender<()>)>,
    /// The status for the signal that the run has deferred.
    deferred: Option<u8>,
}

impl Walk {
    /// Adds a request and its answer to the script, or a connection that fails.
    fn ask(&mut self, name: &'static str) -> Result<Answer, u8> {
        let (is_patch, is_expiry) = (name == "PATCH regenerate", name == "GET @self");
        self.connected &= !is_patch;
        // Without TLS, a PATCH may or may not have left before the reset arrives.
        if !self.connected && (self.tls || !is_patch) && self.random.one_in(12) {
            self.script.push(Expect::Connection(vec![Action::Reset]));
            return Ok(NotSent);
        }
        self.connected = true;
        self.requests += 1;
        let (answer, mut actions) = self.answer(name);
        let mut end = Ok(answer);
        if self.sending.is_none() && self.deferred.is_none() && self.random.one_in(20) {
            let signal = self
                .random
                .pick(&[libc::SIGHUP, libc::SIGINT, libc::SIGTERM]);
            let (reply, gate) = channel();
            self.sending = Some((self.requests, signal, reply));
            actions.insert(0, Action::WaitFor(gate));
            match name {
                "PATCH regenerate" => self.deferred = Some(128 + signal as u8),
                "GET @self" => {}
                _ => end = Err(128 + signal as u8),
            }
        } else if !is_patch && !is_expiry && !self.delivered && self.random.one_in(60) {
            end = Err(4);
        }
        let silence = vec![Action::Hang];
        self.script.push(Expect::Request(
            name,
            if end.is_ok() { actions } else { silence },
        ));
        end
    }

    /// Draws the answer to a request.
    fn answer(&mut self, name: &str) -> (Answer, Vec<Action>) {
        let good = recorded(match name {
            "GET token" => "token-200",
            "HEAD client" => "get-200",
            "PATCH regenerate" => "patch-200",
            "DELETE revoke" => "delete-200",
            _ => "introspect-200",
        });
        let good = String::from_utf8(if name == "HEAD client" {
            without_body(good)
        } else {
            good
        })
        .unwrap();
        let text =
            |status, header, body: &str| String::from_utf8(response(status, header, body)).unwrap();
        let page = r#"<!DOCTYPE html><p>{"client_secret":"x"}"#;
        let random = &mut self.random;
        let kind = random.below(50);
        self.connected = kind > 8;
        let (answer, reply) = match kind {
            0..=2 => {
                // Only the end of a body matters: JSON says itself whether it is complete.
                let end = good.rfind('}').map_or(good.len(), |at| at + 1);
                let header = good.find("\r\n\r\n").unwrap();
                let lengths = [random.below(header), header + 4, end - 1, end];
                let length = random.pick(&lengths).min(good.len() - 1);
                (
                    if length < end { Nothing } else { Good },
                    good[..length].to_owned(),
                )
            }
            3..=4 => (
                Nothing,
                random
                    .pick(&["", "\0\u{9b}\x1b[2J no HTTP\r\n\r\n"])
                    .to_owned(),
            ),
            5..=8 => (Good, good.replacen("keep-alive", "close", 1)),
            9..=12 => {
                let status = random.pick(&[
                    300, 301, 303, 307, 400, 401, 403, 404, 405, 408, 409, 410, 425, 499,
                ]);
                let body = random.pick(&[
                    "",
                    page,
                    r#"{"title":"No","detail":"\u001b[2J"}"#,
                    "\u{9b}31m\0",
                ]);
                (
                    Status(status),
                    text(&format!("{status} "), "Location: /x?y", body),
                )
            }
            13..=15 => (Busy, text("429 ", "", "")),
            16..=18 => {
                let status = random.pick(&[500, 501, 502, 503, 504, 599]);
                (
                    Status(status),
                    text(&format!("{status} "), "Retry-After: x", KEY),
                )
            }
            19 => (Created, good.replacen("200", "201", 1)),
            20 => (
                Unusable,
                text(
                    "200 ",
                    "",
                    random.pick(&["", "{}", r#"{"client_secret":"a b"}"#]),
                ),
            ),
            21 => (TruncatedJson, text("200 ", "", "[")),
            22 => (
                WebPage,
                text("200 ", "Content-Type: text/html; charset=utf-8", page),
            ),
            23 => (SecretInRefusal, good.replacen("200", "400", 1)),
            _ => (Good, good),
        };
        let end = if kind == 0 {
            Action::Reset
        } else {
            Action::Close
        };
        (
            answer,
            [Action::Send(reply.into())]
                .into_iter()
                .chain((kind <= 8).then_some(end))
                .collect(),
        )
    }

    /// Makes a call and repeats it as the contract says.
    fn call(&mut self, name: &'static str) -> Result<Answer, u8> {
        let [refused, unreached] = match (name, self.delivered) {
            ("POST introspect", _) => [8, 8],
            (_, true) => [5, 5],
            (_, false) => [3, 4],
        };
        for attempt in 0.. {
            let answer = self.ask(name)?;
            if is_last(name, answer, refused)? {
                return Ok(answer);
            }
            self.deferred.map_or(Ok(()), Err)?;
            self.waited += 1 << attempt;
            // A connection that was idle for a second is not used again.
            self.connected = false;
            if f64::from(self.waited) > LIMIT {
                break;
            }
        }
        Err(unreached)
    }

    /// Walks through a run.
    fn rotate(&mut self) -> Result<(), u8> {
        self.signed = self.call("GET token")? == Good;
        if self.only == Some("revoke") {
            return self.call("DELETE revoke").map(drop);
        }
        let head = self.call("HEAD client")?;
        if self.check {
            matches!(head, Good | Created | Unusable | TruncatedJson)
                .then_some(())
                .ok_or(3)?;
            return self.ask("GET @self").map(drop);
        }
        self.call("PATCH regenerate")?;
        self.delivered = true;
        if let Some(store) = self.store {
            self.deferred = self.deferred.or(store.status);
            self.delivered = store.delivers;
        }
        if !self.delivered {
            return Err(6);
        }
        if self.only.is_none() {
            self.deferred.map_or(Ok(()), Err)?;
            self.call("DELETE revoke")?;
        }
        if self.verify {
            self.deferred.map_or(Ok(()), Err)?;
            self.call("POST introspect")?;
        }
        Ok(())
    }
}

/// The settings of a run that do not change its requests.
struct Setup {
    key: &'static str,
    json: bool,
    folder: Folder,
    /// Where the secret is stored, if that is not stdout.
    file: Option<PathBuf>,
    /// What the file contains before the run.
    old: Option<String>,
}

/// Draws a run: what it does, and what it meets.
fn draw_walk(seed: u64) -> Walk {
    let mut random = Random(seed);
    let only = random.pick(&[None, None, None, Some("regenerate"), Some("revoke")]);
    let has_secret = only != Some("revoke");
    let check = only.is_none() && random.one_in(6);
    let verify = has_secret && !check && random.one_in(3);
    let has_store = has_secret && random.one_in(3);
    let store = has_store.then(|| random.pick(&STORES));
    let tls = random.one_in(3);
    Walk {
        random,
        tls,
        only,
        check,
        verify,
        store,
        ..Walk::default()
    }
}

fn draw_setup(walk: &mut Walk) -> Setup {
    let has_secret = walk.only != Some("revoke");
    let random = &mut walk.random;
    let json = random.one_in(4);
    let key = random.pick(&[KEY, BEARER]);
    let folder = Folder::new();
    let has_file = has_secret && (walk.store.is_some() || random.one_in(3));
    let file = has_file.then(|| folder.path("file"));
    let mut old = None;
    if let Some(file) = &file
        && walk.store.is_none()
        && random.one_in(2)
    {
        let text = "old, and longer than any new secret would be\n";
        fs::write(file, text).unwrap();
        old = Some(text.to_owned());
    }
    Setup {
        key,
        json,
        folder,
        file,
        old,
    }
}

/// Returns the command of a run.
fn command_for(walk: &Walk, setup: &Setup, portal: &MockPortal, ca: &Path) -> Command {
    let mut command = rotate(portal);
    command
        .env("DOCSPACE_API_KEY", setup.key)
        .env("PATH", "/usr/bin:/bin");
    command
        .args(["--timeout", &LIMIT.to_string()])
        .arg("--cacert")
        .arg(ca);
    if let Some(step) = walk.only {
        command.args(["--only", step]);
    }
    command.args(setup.json.then_some("--json"));
    command.args(walk.check.then_some("--check"));
    command.args(walk.verify.then_some("--verify"));
    if let Some(store) = walk.store {
        command
            .args(["--", "sh", "-c", store.script])
            .args(&setup.file);
    } else if let Some(file) = &setup.file {
        command.arg("--output").arg(file);
    }
    command
}

/// Runs what the seed makes and returns the exit status. Returns none if the machine stalled: then the run meets its
/// time limit where the contract does not.
fn check(seed: u64, server: &Arc<rustls::ServerConfig>, ca: &Path) -> Option<u8> {
    let mut walk = draw_walk(seed);
    let status = walk.rotate().err().unwrap_or(0);
    let setup = draw_setup(&mut walk);
    let tls = walk.tls.then(|| server.clone());
    let portal = MockPortal::start(tls, walk.script.drain(..).collect());
    let mut program = command_for(&walk, &setup, &portal, ca);
    let mut child = start(&mut program);
    if let Some((requests, signal, reply)) = walk.sending.take() {
        let mut has_ended = || child.try_wait().unwrap().is_some();
        wait_until(|| portal.requests().len() >= requests || has_ended());
        if !has_ended() {
            send(&child, signal);
        }
        drop(reply);
    }
    let run = finish(&program, child);
    let error = run.error();
    let is_late = error.contains("timed out") || error.contains("would exceed the time limit");
    let has_status = run.status == Some(status.into());
    if is_late && (!has_status || portal.problem().is_some()) {
        portal.allow_unfinished();
        return None;
    }
    assert!(has_status, "not {status}\n{run}");
    assert_eq!(portal.problem(), None, "{run}");
    assert_state(status, walk.delivered, &run);
    assert_delivery(&walk, &setup, &run);
    assert_signed_and_fresh(&walk, &portal);
    Some(status)
}

fn assert_state(status: u8, delivered: bool, run: &Run) {
    let words = match (status, delivered) {
        (0, _) => "",
        (6, _) => "; the client has a new secret that may not have been delivered; ",
        (7, _) => "; the client may or may not have a new secret; ",
        (_, true) => "; the new secret was delivered, but ",
        (_, false) => "; the client's secret is unchanged; ",
    };
    assert!(run.error().contains(words), "{run}");
}

/// Checks what stdout and the file contain, and that nothing else is left.
fn assert_delivery(walk: &Walk, setup: &Setup, run: &Run) {
    let mut secret = SECRET.to_owned();
    if setup.json {
        secret = format!("{{\"client_secret\":\"{SECRET}\"}}");
    }
    if walk.store.is_none() {
        secret.push('\n');
    }
    let delivered = walk.delivered.then_some(secret);
    match &setup.file {
        Some(file) => {
            let stored = fs::read_to_string(file).ok();
            let expected = delivered.or(setup.old.clone());
            assert_eq!(stored, expected, "{run}");
            assert_eq!(run.stdout, "", "{run}");
        }
        None => assert_eq!(run.stdout, delivered.unwrap_or_default(), "{run}"),
    }
    let names = setup.folder.names();
    assert!(names.iter().all(|name| name == "file"), "{names:?}");
}

/// Checks the signature of each request, and that no PATCH follows another request on a connection.
fn assert_signed_and_fresh(walk: &Walk, portal: &MockPortal) {
    let mut connections = vec![];
    for request in portal.requests() {
        let is_signed = walk.signed && request.target.contains("/clients/");
        let signature = request.header("x-signature");
        assert_eq!(signature.is_some(), is_signed, "{request:?}");
        let is_fresh = !connections.contains(&request.connection);
        assert!(is_fresh || request.method != "PATCH", "{request:?}");
        connections.push(request.connection);
    }
}

#[test]
#[allow(clippy::print_stdout)] // It is visible with --nocapture.
fn random_runs_end_as_the_contract_says() {
    let (_folder, certificates, ca) = authority();
    let server = certificates.server("127.0.0.1");
    let number = |name| {
        env::var(name)
            .ok()
            .map(|number| number.parse::<u64>().expect("a number"))
    };
    let seeds = match number("DOCSPACE_ROTATE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("DOCSPACE_ROTATE_RUNS").unwrap_or(300),
    };
    let (next, counts, failed) = (
        AtomicU64::new(seeds.start),
        Mutex::default(),
        Mutex::new(vec![]),
    );
    let work = || {
        while let Some(seed) =
            Some(next.fetch_add(1, Ordering::SeqCst)).filter(|seed| seeds.contains(seed))
        {
            // A run that is late for another reason than a stall is late again.
            let twice = || check(seed, &server, &ca).or_else(|| check(seed, &server, &ca));
            match catch_unwind(AssertUnwindSafe(twice)).ok().flatten() {
                Some(status) => {
                    *BTreeMap::entry(&mut counts.lock().unwrap(), status).or_insert(0) += 1
                }
                None => failed.lock().unwrap().push(seed),
            }
        }
    };
    thread::scope(|scope| (0..16).for_each(|_| drop(scope.spawn(work))));
    println!("runs by exit status: {:?}", counts.into_inner().unwrap());
    assert_eq!(
        failed.into_inner().unwrap(),
        [0; 0],
        "each is a DOCSPACE_ROTATE_SEED"
    );
}
