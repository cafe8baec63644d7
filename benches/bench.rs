//! `cargo bench`: the program beside bare rustls and curl, against one TLS mock on loopback. It needs curl. The static
//! binary and BESIDE, another docspace-rotate, are measured as well if they exist.
//!
//!     RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --target "$(rustc --print host-tuple)"
//!     BESIDE=FILE cargo bench --locked
//!
//! The program and bare rustls make four requests: GET and HEAD on one connection, PATCH and DELETE on a second one.
//! Bare rustls is this benchmark as a child process. curl makes only the two documented calls, PATCH and DELETE with a
//! bearer token. The programs run in turn, after a round that fills caches.
//! - wall ms, CPU ms: of the whole process, medians of 41 runs; to bare, to curl: divided by theirs
//! - peak MiB: the median of the most resident memory up to the last request
//! - threads at the last request, connections, and handshakes, full or resumed: of the last run
#![allow(clippy::print_stdout, clippy::unwrap_used)]

#[path = "../tests/mock/mod.rs"]
mod mock;

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::{env, fs, mem, net::TcpStream, time::Instant};

use mock::{certificates::Certificates, *};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

const ROTATE: &str = env!("CARGO_BIN_EXE_docspace-rotate");
const CA: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/bench-ca.pem");
const RUNS: usize = 41;

/// The process that is measured, and its status file at the last request.
static PROCESS: Mutex<u32> = Mutex::new(0);
static STATUS: Mutex<String> = Mutex::new(String::new());

struct Program {
    name: &'static str,
    command: Command,
    runs: Vec<Run>,
}

struct Run {
    wall_ms: f64,
    cpu_ms: f64,
    peak_mib: f64,
    counts: String,
}

fn main() {
    if env::args().any(|arg| arg == "--bare") {
        return bare();
    }
    let certificates = Certificates::new();
    fs::write(CA, &certificates.ca_pem).unwrap();
    let portal = MockPortal::answering(Some(certificates.server("127.0.0.1")), answer);
    let mut programs = programs(&portal.url());
    for _ in 0..=RUNS {
        // A program that runs after a large one finds colder caches, so the order alternates.
        programs.reverse();
        for program in &mut programs {
            program.runs.push(measure(&mut program.command, &portal));
        }
    }
    print_table(&programs);
}

/// Returns the recorded reply. At the last request, reads the status of the process.
fn answer(request: &Request) -> Vec<u8> {
    match &*request.name() {
        "GET token" => recorded("token-200"),
        "HEAD client" => recorded("get-200"),
        "PATCH regenerate" => recorded("patch-200"),
        _ => {
            let file = format!("/proc/{}/status", PROCESS.lock().unwrap());
            *STATUS.lock().unwrap() = fs::read_to_string(file).unwrap();
            recorded("delete-200")
        }
    }
}

fn programs(url: &str) -> Vec<Program> {
    let call = format!("-sS --oauth2-bearer {BEARER} {url}/api/2.0/clients/{CLIENT}");
    let calls = format!("-q -X PATCH {call}/regenerate --next -X DELETE {call}/revoke");
    let mut programs = vec![
        program("bare rustls", "/proc/self/exe", "--bare", url),
        program("curl", "curl", &calls, url),
        program("docspace-rotate", ROTATE, "-q", url),
    ];
    if let Some(file) = static_binary(ROTATE) {
        programs.push(program("static", file.to_str().unwrap(), "-q", url));
    }
    if let Ok(file) = env::var("BESIDE") {
        programs.push(program("BESIDE", &file, "-q", url));
    }
    programs
}

fn program(name: &'static str, file: &str, args: &str, url: &str) -> Program {
    let mut command = Command::new(file);
    command.args(args.split(' ')).stdout(Stdio::null());
    // A proxy in the environment would take the requests off this machine.
    command.env_clear().env("PATH", env::var("PATH").unwrap());
    command.env("SSL_CERT_FILE", CA);
    command.env("DOCSPACE_BASE_URL", url);
    command.env("DOCSPACE_API_KEY", KEY);
    command.env("DOCSPACE_CLIENT_ID", CLIENT);
    Program {
        name,
        command,
        runs: vec![],
    }
}

fn measure(command: &mut Command, portal: &MockPortal) -> Run {
    let (connections, handshakes) = (portal.connections(), portal.handshakes().len());
    let start = Instant::now();
    // Locked until it is known: its last request may come before.
    let mut process = PROCESS.lock().unwrap();
    let child = command.spawn().unwrap().id();
    *process = child;
    drop(process);
    let mut exit = -1;
    // SAFETY: zero is a valid value for numbers, and the pointers are valid.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    unsafe { libc::wait4(child as i32, &mut exit, 0, &mut usage) };
    let wall_ms = start.elapsed().as_secs_f64() * 1e3;
    assert_eq!(exit, 0, "{:?}", command.get_program());
    // Not the peak in usage: that includes this process's own memory from before exec.
    let status = mem::take(&mut *STATUS.lock().unwrap());
    let threads = number_after("Threads:", &status);
    let connections = portal.connections() - connections;
    let handshakes = &portal.handshakes()[handshakes..];
    let ms = |time: libc::timeval| time.tv_sec as f64 * 1e3 + time.tv_usec as f64 / 1e3;
    Run {
        wall_ms,
        cpu_ms: ms(usage.ru_utime) + ms(usage.ru_stime),
        peak_mib: number_after("VmHWM:", &status) / 1024.0,
        counts: format!("{threads} | {connections} | {handshakes:?}"),
    }
}

fn number_after(field: &str, status: &str) -> f64 {
    let (_, rest) = status.split_once(field).expect("a DELETE was sent");
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

fn median(program: &Program, figure: fn(&Run) -> f64) -> f64 {
    let mut values: Vec<f64> = program.runs[1..].iter().map(figure).collect();
    values.sort_by(f64::total_cmp);
    values[RUNS / 2]
}

fn print_table(programs: &[Program]) {
    let (bare, curl) = (&programs[0], &programs[1]);
    let times: [fn(&Run) -> f64; 2] = [|run| run.wall_ms, |run| run.cpu_ms];
    print!("| | wall ms | to bare | to curl | CPU ms | to bare | to curl | peak MiB ");
    println!("| threads | connections | handshakes |");
    println!("{}|", "|---".repeat(11));
    for program in programs {
        print!("| {} |", program.name);
        for time in times {
            let ms = median(program, time);
            let ratio = |other: &Program| ms / median(other, time);
            print!(" {ms:.1} | {:.2} | {:.2} |", ratio(bare), ratio(curl));
        }
        let peak = median(program, |run| run.peak_mib);
        println!(" {peak:.1} | {} |", program.runs[RUNS].counts);
    }
}

/// Makes the four requests with rustls alone.
fn bare() {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(CA);
    roots.add(ca.unwrap()).unwrap();
    let config = ClientConfig::builder().with_root_certificates(roots);
    let config = Arc::new(config.with_no_client_auth());
    let url = env::var("DOCSPACE_BASE_URL").unwrap();
    let address = &url["https://".len()..];
    let headers = format!("host: {address}\r\nauthorization: Bearer {KEY}");
    let signed = format!("HTTP/1.1\r\n{headers}\r\nx-signature: {SIGNATURE}\r\n\r\n");
    let client = format!("/api/2.0/clients/{CLIENT}");
    let get = format!("GET /api/2.0/security/oauth2/token HTTP/1.1\r\n{headers}\r\n\r\n");
    let head = format!("HEAD {client} {signed}");
    let patch = format!("PATCH {client}/regenerate {signed}");
    let delete = format!("DELETE {client}/revoke {signed}");
    for requests in [[get, head], [patch, delete]] {
        let tcp = TcpStream::connect(address).unwrap();
        tcp.set_nodelay(true).unwrap();
        let host = "127.0.0.1".try_into();
        let tls = ClientConnection::new(config.clone(), host.unwrap()).unwrap();
        let mut stream = StreamOwned::new(tls, tcp);
        for request in requests {
            stream.write_all(request.as_bytes()).unwrap();
            // The mock sends a reply as one TLS record, so one read returns all of it.
            let mut reply = [0; 4096];
            let length = stream.read(&mut reply).unwrap();
            assert!(reply[..length].starts_with(b"HTTP/1.1 200 "));
        }
    }
}
