//! `cargo bench`: the program beside bare rustls, curl, Node and Python, in turn, against one TLS mock on loopback.
//!
//! The program does the whole job with an API key, in four requests on two connections. Bare rustls is this benchmark
//! as a child process, which makes the same requests with the least code. A curl script does the job in three requests.
//! The others make the two documented calls with a bearer token. curl is required, Node and Python requests are not.
//! The static binary is measured if it is built. `BESIDE=FILE cargo bench` measures another docspace-rotate, too.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

#[path = "../tests/mock/mod.rs"]
mod mock;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use mock::certificates::Certificates;
use mock::{BEARER, CLIENT, KEY, MockPortal, Request, recorded, static_binary};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned};

const PROGRAM: &str = env!("CARGO_BIN_EXE_docspace-rotate");
const LINKED: &str = if cfg!(target_feature = "crt-static") {
    "static"
} else {
    "dynamic"
};
const ROUND_TRIP: Duration = Duration::from_millis(50);

/// Traces a command that has its own hosts file and no name server. The arguments are hosts file, trace file and command.
const TRACE: &str = r#"
mount --bind "$0" /etc/hosts && mount --bind /dev/null /etc/resolv.conf &&
  exec strace -f -qq -e trace=openat,connect -o "$@"
"#;

/// The whole job as a user would write it with curl: the sign-in, then the two documented calls.
const SCRIPT: &str = r#"
token=$(curl -sS -H "Authorization: Bearer $DOCSPACE_API_KEY" "$DOCSPACE_BASE_URL/api/2.0/security/oauth2/token")
signature=$(printf %s "$token" | sed 's/.*"response":"\([^"]*\)".*/\1/')
exec curl -sS -X PATCH -H "x-signature: $signature" "$CLIENT/regenerate" \
  --next -sS -X DELETE -H "x-signature: $signature" "$CLIENT/revoke"
"#;

const NODE: &str = r"
const headers = { Authorization: `Bearer ${process.env.BEARER}` };
const call = (method, step) => fetch(`${process.env.CLIENT}/${step}`, { method, headers });
console.log((await (await call('PATCH', 'regenerate')).json()).client_secret);
await (await call('DELETE', 'revoke')).text();
process.exit(0); // Idle connections would keep it running.
";

const PYTHON: &str = r"
import os, requests
client, headers = os.environ['CLIENT'], {'Authorization': 'Bearer ' + os.environ['BEARER']}
print(requests.patch(client + '/regenerate', headers=headers).json()['client_secret'])
requests.delete(client + '/revoke', headers=headers)
";

/// The process that is measured, and its peak KiB and threads at the last request.
static PROCESS: AtomicU32 = AtomicU32::new(0);
static SEEN: Mutex<[f64; 2]> = Mutex::new([0.0; 2]);

/// One program, and the figures of its runs.
struct Entry {
    name: String,
    command: Command,
    runs: Vec<[f64; 9]>,
}

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "--bare") {
        return bare(&args[1], &args[2]);
    }
    let folder = format!(
        "{}/docspace-rotate-bench-{}",
        env::temp_dir().display(),
        process::id()
    );
    fs::create_dir(&folder).unwrap();
    let (certificates, ca) = (Certificates::new(), format!("{folder}/ca.pem"));
    fs::write(&ca, &certificates.ca_pem).unwrap();
    let portal = MockPortal::answering(Some(certificates.server("127.0.0.1")), answer);
    for program in [PROGRAM, "curl", "node", "python3"] {
        println!(
            "{program}: {}",
            said(&[program, "--version"]).unwrap_or("not installed".to_owned())
        );
    }
    let lookups = lookups(&certificates, &folder, &ca);
    print_costs(
        &measure(41, entries(&portal.url(), &ca, &[]), &portal),
        &lookups,
    );
    let url = format!("https://{}", relay(portal.at));
    print_round_trips(&measure(11, entries(&url, &ca, &[]), &portal));
    fs::remove_dir_all(folder).unwrap();
}

/// Returns the documented reply, to any key. At the last request, reads about the process.
fn answer(request: &Request) -> Vec<u8> {
    let name = request.name();
    if name == "DELETE revoke" {
        let file = format!("/proc/{}/status", PROCESS.load(Ordering::SeqCst));
        let status = fs::read_to_string(file).unwrap_or_default();
        *SEEN.lock().unwrap() = ["VmHWM:", "Threads:"].map(|field| {
            let value = status
                .lines()
                .find_map(|line| line.strip_prefix(field)?.split_whitespace().next());
            value.map_or(0.0, |number| number.parse().unwrap())
        });
    }
    recorded(match name.as_str() {
        "GET token" => "token-200",
        "HEAD client" => "get-200",
        "PATCH regenerate" => "patch-200",
        _ => "delete-200",
    })
}

/// Runs the programs in turn, an odd number of times. One more round is not counted: it fills the system's caches.
fn measure(rounds: usize, mut entries: Vec<Entry>, portal: &MockPortal) -> Vec<Entry> {
    for round in 0..=rounds {
        // The program that runs after the largest one finds the coldest caches, so the order alternates.
        entries.reverse();
        for entry in &mut entries {
            let run = timed(&mut entry.command, portal);
            entry.runs.extend((round > 0).then_some(run));
        }
    }
    println!("\nMedians of {rounds} runs:\n");
    entries
}

/// Returns the median of each figure.
fn medians(entry: &Entry) -> [f64; 9] {
    std::array::from_fn(|figure| {
        let mut values: Vec<f64> = entry.runs.iter().map(|run| run[figure]).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    })
}

/// Prints what the programs take without a delay.
fn print_costs(entries: &[Entry], lookups: &[String]) {
    println!(
        "| | wall ms | to bare | to curl | CPU ms | to bare | to curl | peak MiB | threads | connections \
         | handshakes (resumed) | bytes | lookups |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    );
    let find = |name| {
        medians(
            entries
                .iter()
                .find(|entry| entry.name.starts_with(name))
                .unwrap(),
        )
    };
    let others = [find("bare rustls"), find("curl, two calls")];
    for (entry @ Entry { name, .. }, lookups) in entries.iter().zip(lookups) {
        let [
            wall,
            cpu,
            peak,
            threads,
            connections,
            handshakes,
            resumed,
            _,
            bytes,
        ] = medians(entry);
        let ([to_bare, to_curl], peak) = (others.map(|other| wall / other[0]), peak / 1024.0);
        let [cpu_to_bare, cpu_to_curl] = others.map(|other| cpu / other[1]);
        println!(
            "| {name} | {wall:.1} | {to_bare:.2} | {to_curl:.2} | {cpu:.1} | {cpu_to_bare:.2} | {cpu_to_curl:.2} \
             | {peak:.1} | {threads} | {connections} | {handshakes} ({resumed}) | {bytes} | {lookups} |"
        );
    }
}

/// Prints how much longer the programs take than their round trips.
fn print_round_trips(entries: &[Entry]) {
    let delay = ROUND_TRIP.as_secs_f64() * 1e3;
    println!(
        "| round trip of {delay} ms | wall ms | round trips | ms over them |\n|---|---|---|---|"
    );
    for entry in entries {
        let [wall, .., round_trips, _] = medians(entry);
        println!(
            "| {} | {wall:.1} | {round_trips} | {:.1} |",
            entry.name,
            wall - round_trips * delay
        );
    }
}

/// Returns the programs that this machine has, run by a wrapper.
fn entries(url: &str, ca: &str, wrapper: &[&str]) -> Vec<Entry> {
    let client = format!("{url}/api/2.0/clients/{CLIENT}");
    let entry = |name: &str, words: &[&str]| {
        let words = [wrapper, words].concat();
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        // A proxy in the environment would take the traffic off this machine.
        command
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default());
        command.envs([
            ("DOCSPACE_BASE_URL", url),
            ("DOCSPACE_API_KEY", KEY),
            ("BEARER", BEARER),
        ]);
        command.envs([
            ("CLIENT", &*client),
            ("NODE_EXTRA_CA_CERTS", ca),
            ("CURL_CA_BUNDLE", ca),
        ]);
        Entry {
            name: name.to_owned(),
            command,
            runs: vec![],
        }
    };
    let rotate = |name: &str, binary: &str| entry(name, &[binary, "-q", CLIENT, "--cacert", ca]);
    let mut entries = vec![rotate(&format!("docspace-rotate, {LINKED}"), PROGRAM)];
    if let Some(binary) = static_binary(PROGRAM) {
        entries.push(rotate("docspace-rotate, static", binary.to_str().unwrap()));
    }
    if let Ok(binary) = env::var("BESIDE") {
        entries.push(rotate(
            &format!("beside, {}", said(&[&binary, "--version"]).unwrap()),
            &binary,
        ));
    }
    let this = env::current_exe().unwrap();
    entries.push(entry(
        &format!("bare rustls, {LINKED}"),
        &[this.to_str().unwrap(), "--bare", url, ca],
    ));
    let authorization = format!("Authorization: Bearer {BEARER}");
    let [patch, delete] = ["regenerate", "revoke"].map(|step| format!("{client}/{step}"));
    let call = |method, address| ["-sS", "-H", &authorization, "-X", method, address];
    let words = [
        &["curl"],
        &call("PATCH", &patch)[..],
        &["--next"],
        &call("DELETE", &delete),
    ]
    .concat();
    entries.push(entry("curl, two calls", &words));
    entries.push(entry("curl script, whole job", &["sh", "-c", SCRIPT]));
    if said(&["node", "--version"]).is_some() {
        entries.push(entry(
            "Node fetch, two calls",
            &["node", "--input-type=module", "-e", NODE],
        ));
    }
    // The interpreter itself: python3 may be a script that looks for it.
    if let Some(python) = said(&[
        "python3",
        "-c",
        "import sys, requests; print(sys.executable)",
    ]) {
        entries.push(entry(
            "Python requests, two calls",
            &[&python, "-c", PYTHON],
        ));
    }
    entries
}

/// Returns the first line that a command prints, or none if it fails.
fn said(command: &[&str]) -> Option<String> {
    let output = Command::new(command[0]).args(&command[1..]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    output
        .status
        .success()
        .then(|| text.lines().next().unwrap_or_default().to_owned())
}

/// Counts how often each program resolves the host: it opens /etc/hosts or asks port 53.
fn lookups(certificates: &Certificates, folder: &str, ca: &str) -> Vec<String> {
    let (hosts, trace, host) = (
        format!("{folder}/hosts"),
        format!("{folder}/trace"),
        "portal.test",
    );
    fs::write(&hosts, format!("127.0.0.1 {host}\n")).unwrap();
    let portal = MockPortal::answering(Some(certificates.server(host)), answer);
    let url = format!("https://{host}:{}", portal.at.port());
    let count = |mut entry: Entry| {
        let status = entry.command.stderr(Stdio::null()).status();
        if !status.is_ok_and(|status| status.success()) {
            return "unknown: needs strace, and unshare with mount".to_owned();
        }
        let is_lookup = |line: &&str| line.contains("\"/etc/hosts\"") || line.contains("htons(53)");
        fs::read_to_string(&trace)
            .unwrap()
            .lines()
            .filter(is_lookup)
            .count()
            .to_string()
    };
    let wrapper = ["unshare", "-rm", "sh", "-c", TRACE, &hosts, &trace];
    entries(&url, ca, &wrapper).into_iter().map(count).collect()
}

/// Runs a command, and returns wall and CPU milliseconds, peak KiB, threads, connections, handshakes, how many of them
/// were resumed, round trips, and bytes.
#[expect(
    clippy::zombie_processes,
    reason = "wait4 waits, and tells what was used"
)]
fn timed(command: &mut Command, portal: &MockPortal) -> [f64; 9] {
    let count = || {
        [
            portal.connections(),
            portal.requests().len(),
            portal.handshakes().len(),
            portal.bytes(),
        ]
    };
    let before = count();
    *SEEN.lock().unwrap() = [0.0; 2];
    let begin = Instant::now();
    let child = command.spawn().unwrap();
    PROCESS.store(child.id(), Ordering::SeqCst);
    // SAFETY: zero is a valid value for numbers.
    let (mut status, mut usage) = (0, unsafe { std::mem::zeroed::<libc::rusage>() });
    // SAFETY: the child is this function's own, and both pointers are valid.
    let waited = unsafe { libc::wait4(child.id() as i32, &mut status, 0, &mut usage) };
    let wall = begin.elapsed().as_secs_f64() * 1e3;
    assert!(
        waited == child.id() as i32 && status == 0,
        "{command:?} failed: {status}"
    );
    let ms = |time: libc::timeval| time.tv_sec as f64 * 1e3 + time.tv_usec as f64 / 1e3;
    let cpu = ms(usage.ru_utime) + ms(usage.ru_stime);
    // The last bytes may still be on their way.
    thread::sleep(ROUND_TRIP);
    let [peak, threads] = *SEEN.lock().unwrap();
    assert_ne!(peak, 0.0, "{command:?} never revoked");
    let after = count();
    let of_kind = |kind| {
        portal.handshakes()[before[2]..]
            .iter()
            .filter(|it| **it == kind)
            .count() as f64
    };
    let [connections, requests, handshakes, bytes] =
        std::array::from_fn(|i| (after[i] - before[i]) as f64);
    // One to connect, one for the handshake, and one for each request.
    let round_trips =
        2.0 * connections + of_kind(HandshakeKind::FullWithHelloRetryRequest) + requests;
    let resumed = of_kind(HandshakeKind::Resumed);
    [
        wall,
        cpu,
        peak,
        threads,
        connections,
        handshakes,
        resumed,
        round_trips,
        bytes,
    ]
}

/// Does the job with rustls alone.
fn bare(url: &str, ca: &str) {
    let authority = url.strip_prefix("https://").unwrap();
    let address = authority.to_socket_addrs().unwrap().next().unwrap();
    let name = authority.split(':').next().unwrap();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_file_iter(ca).unwrap().flatten());
    let config =
        ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into());
    let config = config
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = Arc::new(config.with_no_client_auth());
    let connect = || {
        let tcp = TcpStream::connect(address).unwrap();
        tcp.set_nodelay(true).unwrap();
        let tls =
            ClientConnection::new(config.clone(), name.to_owned().try_into().unwrap()).unwrap();
        StreamOwned::new(tls, tcp)
    };
    let agent = concat!(
        "docspace-rotate/",
        env!("CARGO_PKG_VERSION"),
        "\r\naccept: application/json"
    );
    let headers =
        format!("user-agent: {agent}\r\nhost: {authority}\r\nauthorization: Bearer {KEY}\r\n");
    let first_value = |json: &str| json.split('"').nth(3).unwrap().to_owned();
    let mut first = connect();
    let token = call(&mut first, "GET /api/2.0/security/oauth2/token", &headers);
    let headers = format!("{headers}x-signature: {}\r\n", first_value(&token));
    let client = format!("/api/2.0/clients/{CLIENT}");
    call(&mut first, &format!("HEAD {client}"), &headers);
    drop(first);
    let mut second = connect();
    let headers_of_patch = format!("content-length: 0\r\n{headers}");
    let created = call(
        &mut second,
        &format!("PATCH {client}/regenerate"),
        &headers_of_patch,
    );
    println!("{}", first_value(&created));
    call(&mut second, &format!("DELETE {client}/revoke"), &headers);
}

/// Makes a call and returns the body, chunked or not.
fn call(
    stream: &mut StreamOwned<ClientConnection, TcpStream>,
    request: &str,
    headers: &str,
) -> String {
    stream
        .write_all(format!("{request} HTTP/1.1\r\n{headers}\r\n").as_bytes())
        .unwrap();
    let (mut reply, mut buffer) = (String::new(), [0; 4096]);
    loop {
        let length = stream.read(&mut buffer).unwrap();
        assert!(length > 0, "truncated: {reply}");
        reply += str::from_utf8(&buffer[..length]).unwrap();
        let Some((head, body)) = reply.split_once("\r\n\r\n") else {
            continue;
        };
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok());
        let is_complete = length.map_or(body.ends_with("0\r\n\r\n"), |length: usize| {
            body.len() == length
        });
        if is_complete || request.starts_with("HEAD") {
            return body.to_owned();
        }
    }
}

/// Relays to this address and returns its own. A connection takes a round trip, each flight of bytes half of one.
fn relay(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    thread::spawn(move || {
        for near in listener.incoming().map(Result::unwrap) {
            thread::sleep(ROUND_TRIP);
            let far = TcpStream::connect(to).unwrap();
            for (from, to) in [(&near, &far), (&far, &near)] {
                to.set_nodelay(true).unwrap();
                let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                thread::spawn(move || {
                    let mut buffer = vec![0; 64 * 1024];
                    // What arrives during the pause belongs to the same flight.
                    while from.peek(&mut buffer).is_ok_and(|length| length > 0) {
                        thread::sleep(ROUND_TRIP / 2);
                        let _ = from
                            .read(&mut buffer)
                            .and_then(|length| to.write_all(&buffer[..length]));
                    }
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        }
    });
    at
}
