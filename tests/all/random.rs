//! Runs put together at random from the faults of networks and portals, each checked against a
//! small model of the contract. A failure names its seed; `DOCSPACE_ROTATE_SEED=n` runs it alone.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::portal::{Act, BEARER, Certificates, KEY, SECRET, Stand, Step, closing, http, reply};
use crate::run::{self, Folder, finish, rotate, start};

const RUNS: u64 = 400;
/// In seconds. Waits are whole seconds, so what fits into it does by 0.9 s.
const LIMIT: f64 = 2.9;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Commands that take the secret into the file `$0`, and commands that do not.
const COMMANDS: [(&str, bool); 10] = [
    ("cat > $0", true),
    ("sleep 0.1; exec cat > $0", true),
    ("while head -c 7 | grep . ; do :; done | tr -d '\\n' > $0", true),
    ("exit 9", false),
    ("cat > /dev/null; exit 1", false),
    ("exec true", false),
    ("exec <&-; sleep 0.1", false),
    ("exec head -c 5 > /dev/null", false),
    ("kill -TERM $$", false),
    ("cat > /dev/null; kill -KILL $$", false),
];

/// What an answer is to the one who asked.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Answer {
    Good,
    /// A success without what was asked for.
    Empty,
    Status(u16),
    /// A 429 that ends in 10 ms.
    Busy,
    /// Cut, garbled, missing.
    None,
    /// Silence until the time is up.
    Silence,
    /// Silence until the test ends the run with SIGTERM.
    Signal,
}

/// How a run ends: the exit status.
type End = u16;

/// Writes the script while it walks the contract.
struct Walk {
    random: Random,
    tls: bool,
    api_key: bool,
    script: Vec<Step>,
    connected: bool,
    signed: bool,
    no_sign_in: Option<u16>,
    handed_over: bool,
    check: bool,
    /// Whether the output takes the secret.
    takes: bool,
    patches: usize,
    waited: u32,
}

impl Walk {
    /// Adds a request and its answer to the script, and, where there is no connection, what
    /// happens to one. None: the request was not sent.
    fn ask(&mut self, name: &'static str) -> Option<Answer> {
        if !self.connected && self.tls && self.random.below(8) == 0 {
            self.script.push(Step::Accepted(vec![Act::Reset]));
            return None;
        }
        self.connected = true;
        let (answer, acts) = self.answer(name);
        self.script.push(Step::Request(name, acts));
        Some(answer)
    }

    fn answer(&mut self, name: &str) -> (Answer, Vec<Act>) {
        let name_of_good = match name {
            "GET token" => "token-200",
            "HEAD client" => "get-200",
            "PATCH regenerate" => "patch-200",
            _ => "delete-200",
        };
        let mut good = reply(name_of_good);
        if name == "HEAD client" {
            good.truncate(good.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4);
        }
        let random = &mut self.random;
        if random.below(40) == 0 {
            return (Answer::Signal, vec![Act::Hang]);
        }
        let kind = random.below(40);
        if kind >= 36 || (12..20).contains(&kind) {
            self.connected = false;
        }
        let random = &mut self.random;
        match kind {
            0..=3 => {
                let status = random.pick(&[300, 301, 307, 400, 401, 403, 404, 405, 408, 409, 410, 425, 499]);
                let body =
                    random.pick(&["", "<p>no</p>", r#"{"title":"No","detail":"\u001b[2J"}"#, "\u{9b}31m\0"]);
                (Answer::Status(status), vec![Act::Send(http(&format!("{status} "), "Location: /x?y", body))])
            }
            4..=5 => (Answer::Status(403), vec![Act::Send(reply("patch-403-unsigned"))]),
            6..=8 => (Answer::Busy, vec![Act::Send(http("429 ", "X-RateLimit-Reset: 10000000", ""))]),
            9..=11 => {
                let status = random.pick(&[500, 501, 502, 503, 504, 599]);
                (Answer::Status(status), vec![Act::Send(http(&format!("{status} "), "Retry-After: x", KEY))])
            }
            12..=15 => {
                // At the very end of a chunked reply nothing of the secret is missing.
                let cut = random.below(good.len() - 2);
                let end = if random.below(2) == 0 { Act::Close } else { Act::Reset };
                (Answer::None, vec![Act::Send(good[..cut].to_vec()), end])
            }
            16 => (Answer::None, vec![Act::Close]),
            17 => (Answer::None, vec![Act::Reset]),
            18..=19 => (Answer::None, vec![Act::Send(b"\0\xff\x1b[2J no HTTP\r\n\r\n".to_vec()), Act::Close]),
            20..=22 if name != "DELETE revoke" => {
                let body = random.pick(&[
                    "",
                    "<html>",
                    "{}",
                    "[",
                    r#"{"response":{}}"#,
                    r#"{"client_secret":"a b","response":"x"}"#,
                ]);
                (Answer::Empty, vec![Act::Send(http("200 ", "", body))])
            }
            39 if random.below(3) == 0 => (Answer::Silence, vec![Act::Hang]),
            36..=39 => (Answer::Good, vec![Act::Send(closing(name_of_good)), Act::Close]),
            _ => (Answer::Good, vec![Act::Send(good)]),
        }
    }

    /// Waits the doubled wait, if it fits.
    fn wait(&mut self, attempt: u32) -> Result<(), End> {
        let wait = 1 << attempt;
        if f64::from(self.waited + wait) > LIMIT {
            return Err(4);
        }
        self.waited += wait;
        Ok(())
    }

    /// Whether there is a signature now.
    fn sign_in(&mut self) -> Result<bool, End> {
        for attempt in 0.. {
            match self.ask("GET token") {
                Some(Answer::Good) => self.signed = true,
                Some(Answer::Empty) => self.no_sign_in = Some(200),
                Some(Answer::Status(408 | 425)) => {
                    self.wait(attempt)?;
                    continue;
                }
                Some(Answer::Status(status @ (300..=499 | 501))) => self.no_sign_in = Some(status),
                Some(Answer::Busy) => continue,
                Some(Answer::Silence) => return Err(4),
                Some(Answer::Signal) => return Err(143),
                Some(Answer::Status(_) | Answer::None) | None => {
                    self.wait(attempt)?;
                    continue;
                }
            }
            break;
        }
        Ok(self.signed)
    }

    fn call(&mut self, name: &'static str) -> Result<(), End> {
        let mut attempt = 0;
        loop {
            if self.api_key
                && !self.signed
                && self.no_sign_in.is_none()
                && !self.sign_in()?
                && let Some(401 | 403 | 300..=399) = self.no_sign_in
            {
                return Err(3);
            }
            let answer = self.ask(name);
            let (patch, look) = (name == "PATCH regenerate", name == "HEAD client");
            self.patches += usize::from(patch && answer.is_some());
            let refused = matches!(answer, Some(Answer::Busy | Answer::Status(401 | 403)));
            if refused && !self.signed && self.no_sign_in.is_none() && self.sign_in()? {
                continue;
            }
            match answer {
                Some(Answer::Good) => return Ok(()),
                Some(Answer::Status(405 | 501)) if look && !self.check => return Ok(()),
                Some(Answer::Status(405 | 501) | Answer::Empty) if look => return Err(3),
                Some(Answer::Status(408)) if patch => return Err(7),
                Some(Answer::Status(408 | 425)) if !patch => self.wait(attempt)?,
                Some(Answer::Status(300..=499)) => return Err(3),
                Some(Answer::Busy) => {}
                None => self.wait(attempt)?,
                Some(Answer::Signal) => return Err(143),
                Some(_) if patch => return Err(7),
                Some(Answer::Silence) => return Err(4),
                Some(_) => self.wait(attempt)?,
            }
            attempt += 1;
        }
    }

    /// The whole run; its exit status.
    fn rotate(&mut self, only: Option<&str>) -> End {
        if only != Some("revoke") {
            if let Err(end) = self.call("HEAD client") {
                return end;
            }
            if self.check {
                return 0;
            }
            if let Err(end) = self.call("PATCH regenerate") {
                return end;
            }
            if !self.takes {
                return 6;
            }
            self.handed_over = true;
        }
        if only != Some("regenerate")
            && let Err(end) = self.call("DELETE revoke")
        {
            return if self.handed_over && end != 143 { 5 } else { end };
        }
        0
    }
}

/// Runs what the seed makes, and says whether the machine kept up: one that stalls for most of a second runs
/// into the time limit where the contract does not.
fn check(seed: u64, tls: &Tls) -> bool {
    let mut random = Random(seed);
    let over_tls = random.below(3) == 0;
    let mut walk = Walk {
        tls: over_tls,
        api_key: random.below(2) == 0,
        script: vec![],
        connected: false,
        signed: false,
        no_sign_in: None,
        handed_over: false,
        check: false,
        takes: true,
        patches: 0,
        waited: 0,
        random,
    };
    let only = walk.random.pick(&[None, None, None, Some("regenerate"), Some("revoke")]);
    walk.check = only.is_none() && walk.random.below(6) == 0;
    let json = walk.random.below(4) == 0;
    let folder = Folder::new();
    let secret = only != Some("revoke");
    // A command and whether the secret is handed over with it.
    let store = (secret && walk.random.below(3) == 0).then(|| walk.random.pick(&COMMANDS));
    let file = (secret && (store.is_some() || walk.random.below(3) == 0)).then(|| folder.path("file"));
    let old = file.as_ref().filter(|_| store.is_none() && walk.random.below(2) == 0);
    walk.takes = store.is_none_or(|(_, takes)| takes);
    if let Some(file) = old {
        fs::write(file, "old, and longer than any new secret would be\n").unwrap();
    }
    let status = walk.rotate(only);
    let (patches, handed_over) = (walk.patches, walk.handed_over);
    let requests = walk.script.iter().filter(|step| matches!(step, Step::Request(..))).count();
    let script = std::mem::take(&mut walk.script);
    let stand = Stand::script_over(over_tls.then(|| tls.server.clone()), script);
    let mut command = rotate(&stand);
    command.env("DOCSPACE_API_KEY", if walk.api_key { KEY } else { BEARER });
    command.args(["--timeout", &LIMIT.to_string()]).arg("--cacert").arg(&tls.ca);
    command.args(only.iter().flat_map(|step| ["--only", step]));
    command.args(json.then_some("--json")).args(walk.check.then_some("--check"));
    match (&store, &file) {
        (Some((script, _)), Some(file)) => {
            command.env("PATH", "/usr/bin:/bin").args(["--", "sh", "-c", script]).arg(file);
        }
        (None, Some(file)) => drop(command.arg("--output").arg(file)),
        (_, None) => {}
    }
    let mut child = start(&mut command);
    let mut runs = || child.try_wait().unwrap().is_none();
    while status == 143 && stand.requests().len() < requests && runs() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    if status == 143 && runs() {
        run::send(&child, libc::SIGTERM);
    }
    let done = finish(&command, child);
    let late = ["timed out", "would exceed the time limit"].iter().any(|words| done.error().contains(words));
    if late && (done.status != Some(status.into()) || stand.complaint().is_some()) {
        stand.need_no_more();
        return false;
    }
    let wanted = match (handed_over, json) {
        (false, _) => String::new(),
        (true, false) => SECRET.to_owned(),
        (true, true) => format!("{{\"client_secret\":\"{SECRET}\"}}"),
    };
    let newline = if handed_over && store.is_none() { "\n" } else { "" };
    let wanted = wanted + newline;
    assert_eq!(done.status, Some(status.into()), "{done}");
    match (&file, handed_over) {
        (None, _) => assert_eq!(done.stdout, wanted, "{done}"),
        (Some(file), true) => assert_eq!(fs::read_to_string(file).unwrap(), wanted, "{done}"),
        (Some(file), false) => {
            let kept = old.map(|_| "old, and longer than any new secret would be\n".to_owned());
            assert_eq!(fs::read_to_string(file).ok(), kept, "{done}");
        }
    }
    assert!(folder.names().len() <= usize::from(file.is_some()), "{:?}", folder.names());
    assert!(
        handed_over == (matches!(status, 0 | 5) && only != Some("revoke") && !walk.check) || status == 143,
        "the model"
    );
    assert_eq!(stand.complaint(), None, "{done}");
    let sent = stand.requests().iter().filter(|request| request.method == "PATCH").count();
    assert_eq!(sent, patches, "{done}");
    true
}

struct Tls {
    server: std::sync::Arc<rustls::ServerConfig>,
    ca: std::path::PathBuf,
}

#[test]
fn any_run_ends_as_the_contract_says() {
    let folder = Folder::new();
    let certificates = Certificates::new();
    let tls =
        Tls { server: certificates.server("127.0.0.1"), ca: folder.file("ca.pem", &certificates.ca_pem) };
    let seeds = match std::env::var("DOCSPACE_ROTATE_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("DOCSPACE_ROTATE_SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..RUNS,
    };
    let (next, failed) = (AtomicU64::new(seeds.start), Mutex::new(vec![]));
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if !seeds.contains(&seed) {
                        break;
                    }
                    // A run that is late for another reason than a stall is late again.
                    let passes = || check(seed, &tls) || check(seed, &tls);
                    if !catch_unwind(AssertUnwindSafe(passes)).unwrap_or(false) {
                        failed.lock().unwrap().push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "DOCSPACE_ROTATE_SEED={failed:?}");
}
