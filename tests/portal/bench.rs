//! `cargo bench`: the program beside curl, Node and Python, in turn in one run, against one TLS
//! stand-in on loopback; at no delay, and behind a relay that adds 50 ms to each round trip.
//!
//! curl, Node and Python do the two documented calls with a bearer token, and the program looks first.
//! The whole job with an API key is four requests of the program's, and three of a curl script's.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

#[path = "mod.rs"]
mod portal;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use portal::{BEARER, CLIENT, Certificates, KEY, Request, Stand, reply, static_binary};

const ROUND_TRIP: Duration = Duration::from_millis(50);

/// The whole job as a user would write it with curl: one call for the signature, then the two.
const SCRIPT: &str = r#"
signature=$(curl -sS --cacert "$CA" -H "Authorization: Bearer $KEY" "$URL/api/2.0/security/oauth2/token" |
  sed 's/.*"response":"\([^"]*\)".*/\1/')
curl -sS --cacert "$CA" -X PATCH -H "x-signature: $signature" "$CLIENT/regenerate" \
  --next -sS --cacert "$CA" -X DELETE -H "x-signature: $signature" "$CLIENT/revoke"
"#;

const NODE: &str = r"
const [url, key] = [process.env.URL, process.env.KEY];
const headers = { Authorization: `Bearer ${key}` };
const patch = await fetch(`${url}/regenerate`, { method: 'PATCH', headers });
console.log((await patch.json()).client_secret);
await (await fetch(`${url}/revoke`, { method: 'DELETE', headers })).text();
process.exit(0); // Idle connections would hold it up.
";

const PYTHON: &str = r"
import os, requests
url, headers = os.environ['URL'], {'Authorization': 'Bearer ' + os.environ['KEY']}
print(requests.patch(url + '/regenerate', headers=headers).json()['client_secret'])
requests.delete(url + '/revoke', headers=headers)
";

/// One program in one setting, and what it took in each run.
struct Entry {
    name: &'static str,
    command: Command,
    wall: Vec<f64>,
    cpu: Vec<f64>,
    peak: Vec<f64>,
    connections: usize,
    bytes: usize,
}

/// What the stand-in sees of the program that runs: its peak memory at its last request.
#[derive(Default)]
struct Watch {
    process: AtomicU32,
    peak_kib: AtomicU64,
}

fn main() {
    let folder = std::env::temp_dir().join(format!("docspace-rotate-bench-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    let ca = folder.join("ca.pem");
    let certificates = Certificates::new();
    fs::write(&ca, &certificates.ca_pem).unwrap();
    let watch = Arc::new(Watch::default());
    let seen = watch.clone();
    let stand = Stand::answering(Some(certificates.server("127.0.0.1")), move |r| answer(r, &seen));

    println!("{}", versions());
    measure("no delay", 40, &stand, stand.at, &ca, &watch);
    let relay = delayed(stand.at);
    measure("50 ms round trip", 10, &stand, relay, &ca, &watch);
    fs::remove_dir_all(folder).unwrap();
}

/// The documented answers, to any key.
fn answer(request: &Request, watch: &Watch) -> Vec<u8> {
    match request.name().as_str() {
        "GET token" => reply("token-200"),
        "HEAD client" => reply("get-200"),
        "PATCH regenerate" => reply("patch-200"),
        _ => {
            let process = watch.process.load(Ordering::SeqCst);
            let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let peak = peak.map_or(0, |peak| peak.trim().trim_end_matches(" kB").parse().unwrap());
            watch.peak_kib.store(peak, Ordering::SeqCst);
            reply("delete-200")
        }
    }
}

fn measure(title: &str, runs: usize, stand: &Stand, at: SocketAddr, ca: &Path, watch: &Watch) {
    let mut entries = entries(&format!("https://{at}"), ca);
    // The first round is not counted: it fills the caches of the system.
    for round in 0..=runs {
        // Whoever runs after the largest program finds the coldest caches: let it not be always the same.
        entries.reverse();
        for entry in &mut entries {
            let (connections, bytes) = (stand.connections(), stand.bytes());
            let (wall, cpu) = timed(&mut entry.command, watch);
            entry.connections = stand.connections() - connections;
            entry.bytes = stand.bytes() - bytes;
            if round > 0 {
                entry.wall.push(wall);
                entry.cpu.push(cpu);
                entry.peak.push(watch.peak_kib.load(Ordering::SeqCst) as f64 / 1024.0);
            }
        }
    }
    if runs.is_multiple_of(2) {
        entries.reverse();
    }
    println!("\n{title}, medians of {runs} runs; the ratios are to curl's\n");
    println!("| | wall ms | ratio | CPU ms | ratio | peak MiB | connections | bytes |");
    println!("|---|---|---|---|---|---|---|---|");
    let curl = entries.iter_mut().find(|entry| entry.name == "curl");
    let curl = curl.map(|curl| (median(&mut curl.wall), median(&mut curl.cpu)));
    for entry in &mut entries {
        let (wall, cpu, peak) = (median(&mut entry.wall), median(&mut entry.cpu), median(&mut entry.peak));
        let ratio = |mine: f64, curls: Option<f64>| {
            curls.map_or("-".to_owned(), |curls| format!("{:.2}", mine / curls))
        };
        println!(
            "| {} | {wall:.1} | {} | {cpu:.1} | {} | {peak:.1} | {} | {} |",
            entry.name,
            ratio(wall, curl.map(|(wall, _)| wall)),
            ratio(cpu, curl.map(|(_, cpu)| cpu)),
            entry.connections,
            entry.bytes
        );
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The programs that there are on this machine.
fn entries(url: &str, ca: &Path) -> Vec<Entry> {
    let client = format!("{url}/api/2.0/clients/{CLIENT}");
    let entry = |name, mut command: Command| {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Entry { name, command, wall: vec![], cpu: vec![], peak: vec![], connections: 0, bytes: 0 }
    };
    let program = |binary: &Path, key| {
        let mut command = Command::new(binary);
        command.env_clear().args(["-q", CLIENT]).arg("--cacert").arg(ca);
        command.env("DOCSPACE_BASE_URL", url).env("DOCSPACE_API_KEY", key);
        command
    };
    let binary = Path::new(env!("CARGO_BIN_EXE_docspace-rotate"));
    let mut entries = vec![
        entry("docspace-rotate", program(binary, BEARER)),
        entry("docspace-rotate, API key", program(binary, KEY)),
    ];
    if let Some(binary) = static_binary(env!("CARGO_BIN_EXE_docspace-rotate")) {
        entries.push(entry("docspace-rotate, static", program(&binary, BEARER)));
    } else {
        println!("docspace-rotate, static: not built, or older than its source, see README.md");
    }
    if installed("curl", &["--version"]) {
        let mut command = Command::new("curl");
        let authorization = format!("Authorization: Bearer {BEARER}");
        for (last, method, path) in [(false, "PATCH", "regenerate"), (true, "DELETE", "revoke")] {
            command.args(["-sS", "-X", method, "-H", &authorization, "--cacert"]).arg(ca);
            command.arg(format!("{client}/{path}"));
            command.args((!last).then_some("--next"));
        }
        entries.push(entry("curl", command));
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT]).env("URL", url).env("CLIENT", &client).env("KEY", KEY).env("CA", ca);
        entries.push(entry("curl script, API key", command));
    }
    if installed("node", &["--version"]) {
        let mut command = Command::new("node");
        command.args(["--input-type=module", "-e", NODE]).env("NODE_EXTRA_CA_CERTS", ca);
        command.env("URL", &client).env("KEY", BEARER);
        entries.push(entry("Node, fetch", command));
    }
    if installed("python3", &["-c", "import requests"]) {
        // The interpreter itself: python3 may be a script that looks for it.
        let mut command = Command::new(said("python3", &["-c", "import sys; print(sys.executable)"]));
        command.args(["-c", PYTHON]).env("REQUESTS_CA_BUNDLE", ca);
        command.env("URL", &client).env("KEY", BEARER);
        entries.push(entry("Python, requests", command));
    }
    entries
}

fn installed(program: &str, args: &[&str]) -> bool {
    let there = Command::new(program).args(args).output().is_ok_and(|output| output.status.success());
    if !there {
        println!("{program} {}: not installed", args.join(" "));
    }
    there
}

fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}

fn versions() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    let cores = thread::available_parallelism().map_or(0, usize::from);
    [
        format!("{cores} cores, {}", model.unwrap_or(": unknown").trim_start_matches(['\t', ' ', ':'])),
        said(env!("CARGO_BIN_EXE_docspace-rotate"), &["--version"]),
        said("curl", &["--version"]),
        format!("node {}", said("node", &["--version"])),
        said("python3", &["-c", "import sys, requests; print('Python', sys.version.split()[0] + ', requests', requests.__version__)"]),
    ]
    .join("\n")
}

/// Runs the command; wall and CPU time in milliseconds.
#[expect(clippy::zombie_processes, reason = "wait4 waits, and tells what was used")]
fn timed(command: &mut Command, watch: &Watch) -> (f64, f64) {
    watch.peak_kib.store(0, Ordering::SeqCst);
    let begin = Instant::now();
    let child = command.spawn().unwrap();
    watch.process.store(child.id(), Ordering::SeqCst);
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: the child is this function's own, and both pointers are valid.
    let (waited, usage) = unsafe {
        let waited = libc::wait4(child.id() as i32, &mut status, 0, usage.as_mut_ptr());
        (waited, usage.assume_init())
    };
    let wall = begin.elapsed().as_secs_f64() * 1000.0;
    assert!(waited == child.id() as i32 && status == 0, "{command:?} failed: {status}");
    assert_ne!(watch.peak_kib.load(Ordering::SeqCst), 0, "{command:?} never revoked");
    let cpu = [usage.ru_utime, usage.ru_stime].map(|t| t.tv_sec as f64 * 1e3 + t.tv_usec as f64 / 1e3);
    (wall, cpu.iter().sum())
}

/// A relay to this address that makes each round trip, that of the connection too, take so long.
fn delayed(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    thread::spawn(move || {
        for near in listener.incoming() {
            let near = near.unwrap();
            thread::spawn(move || {
                thread::sleep(ROUND_TRIP);
                let far = TcpStream::connect(to).unwrap();
                for socket in [&near, &far] {
                    socket.set_nodelay(true).unwrap();
                }
                one_way(near.try_clone().unwrap(), far.try_clone().unwrap());
                one_way(far, near);
            });
        }
    });
    at
}

/// Carries bytes one way, each piece half a round trip late.
fn one_way(mut from: TcpStream, mut to: TcpStream) {
    let (pieces, late) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            let _ = pieces.send((Instant::now() + ROUND_TRIP / 2, buffer[..n].to_vec()));
        }
    });
    thread::spawn(move || {
        for (due, piece) in late {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&piece).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}
