//! The static binary as the only file of an empty root: no shell, no libc, no CA bundle, no user.
//!
//! Each test runs in namespaces of its own, as root of nothing but these.

use std::ffi::CString;
use std::fs;
use std::io;
use std::net::UdpSocket;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::portal::{
    CLIENT, Certificates, KEY, Stand, good_run, held, line, looked, on, reply, static_binary,
};
use crate::run::{self, Folder, finish, run, skipped, start};

const BUILD: &str = "RUSTFLAGS=\"-C target-feature=+crt-static\" cargo build --release --locked --target ARCH-unknown-linux-gnu";
const INSIDE: &str = "DOCSPACE_ROTATE_IN_NAMESPACE";

/// Runs the test again in namespaces. True there, where it is to go on.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        loopback_up().unwrap();
        return true;
    }
    if binary().is_none() {
        let why =
            format!("no static binary, or an old one: {}", BUILD.replace("ARCH", std::env::consts::ARCH));
        assert!(std::env::var_os("CI").is_none(), "{why}");
        skipped(test, &why);
        return false;
    }
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--mount", "--net"]);
    if !unshare.arg("true").output().is_ok_and(|output| output.status.success()) {
        skipped(test, "no namespaces here (unshare --user --mount --net)");
        return false;
    }
    let mut again = Command::new("unshare");
    again.args(["--user", "--map-root-user", "--mount", "--net"]).arg(std::env::current_exe().unwrap());
    let output = again.args(["--exact", test, "--nocapture"]).env(INSIDE, "1").output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success() && text.contains("1 passed"), "in namespaces:\n{text}");
    false
}

fn binary() -> Option<PathBuf> {
    static_binary(env!("CARGO_BIN_EXE_docspace-rotate"))
}

/// A new network namespace has a loopback device that is down.
fn loopback_up() -> io::Result<()> {
    // SAFETY: plain system calls on a socket and a structure of their own.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[..2].copy_from_slice(&[b'l' as _, b'o' as _]);
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as _;
        let done = libc::ioctl(socket, libc::SIOCSIFFLAGS, &request);
        let error = io::Error::last_os_error();
        libc::close(socket);
        if done == 0 { Ok(()) } else { Err(error) }
    }
}

fn mount(source: &str, target: &Path, kind: &str, flags: libc::c_ulong) {
    let text = |bytes: &[u8]| CString::new(bytes).unwrap();
    let (source, target, kind) =
        (text(source.as_bytes()), text(target.as_os_str().as_bytes()), text(kind.as_bytes()));
    // SAFETY: the strings outlive the call.
    let done =
        unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) };
    assert_eq!(done, 0, "mount: {}", io::Error::last_os_error());
}

/// An empty root with the binary alone.
fn root() -> Folder {
    let root = Folder::new();
    fs::copy(binary().unwrap(), root.path("docspace-rotate")).unwrap();
    root
}

/// The program in that root, for a portal there.
fn in_root(root: &Folder, url: &str) -> Command {
    let path = CString::new(root.as_ref().as_os_str().as_bytes()).unwrap();
    let mut command = Command::new("/docspace-rotate");
    command.env_clear().args(["-q", "--timeout", "5", CLIENT]);
    command.env("DOCSPACE_BASE_URL", url).env("DOCSPACE_API_KEY", KEY);
    // SAFETY: chroot(2) and chdir(2) may be called between fork and exec.
    unsafe {
        command.pre_exec(move || match libc::chroot(path.as_ptr()) | libc::chdir(c"/".as_ptr()) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    command
}

#[test]
fn it_runs_alone() {
    if !inside("scratch::it_runs_alone") {
        return;
    }
    let root = root();
    let version = concat!("docspace-rotate ", env!("CARGO_PKG_VERSION"), "\n");
    run(in_root(&root, "").arg("--version")).is(0, version, &[]);
    let stand = Stand::script(good_run());
    run(&mut in_root(&root, &stand.url())).is(0, &line(), &[]);
    assert_eq!(root.names(), ["docspace-rotate"]);
}

#[test]
fn its_own_roots_trust_no_unknown_ca() {
    if !inside("scratch::its_own_roots_trust_no_unknown_ca") {
        return;
    }
    let stand = Stand::script_over(Some(Certificates::new().server("127.0.0.1")), vec![]);
    let refused = run(&mut in_root(&root(), &stand.url()));
    refused.is(
        3,
        "",
        &["docspace-rotate: the TLS handshake with 127.0.0.1 failed: invalid peer certificate: UnknownIssuer; …"],
    );
}

#[test]
fn a_ca_file_is_trusted() {
    if !inside("scratch::a_ca_file_is_trusted") {
        return;
    }
    let (root, certificates) = (root(), Certificates::new());
    root.file("ca.pem", &certificates.ca_pem);
    for by_argument in [true, false] {
        let stand = Stand::script_over(Some(certificates.server("127.0.0.1")), good_run());
        let mut command = in_root(&root, &stand.url());
        match by_argument {
            true => command.args(["--cacert", "/ca.pem"]),
            false => command.env("SSL_CERT_FILE", "/ca.pem"),
        };
        run(&mut command).is(0, &line(), &[]);
    }
}

#[test]
fn a_name_may_be_in_etc_hosts() {
    if !inside("scratch::a_name_may_be_in_etc_hosts") {
        return;
    }
    let (root, certificates) = (root(), Certificates::new());
    root.file("ca.pem", &certificates.ca_pem);
    fs::create_dir(root.path("etc")).unwrap();
    root.file("etc/hosts", "127.0.0.1 portal.invalid\n");
    let stand = Stand::script_over(Some(certificates.server("portal.invalid")), good_run());
    let url = format!("https://portal.invalid:{}", stand.at.port());
    run(in_root(&root, &url).args(["--cacert", "/ca.pem"])).is(0, &line(), &[]);
}

/// Answers queries for A with 127.0.0.1, and for anything else with nothing (RFC 1035, section 4).
/// Returns the kinds asked for, until nothing comes for a while.
fn answer_names(socket: &UdpSocket) -> Vec<u16> {
    let mut kinds = vec![];
    let mut query = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut query) {
        // The question stands behind twelve bytes: a name that ends in an empty label, type, class.
        let end = 12 + query[12..length].iter().position(|byte| *byte == 0).unwrap() + 5;
        let kind = u16::from_be_bytes([query[end - 4], query[end - 3]]);
        kinds.push(kind);
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let mut reply = query[..end].to_vec();
        reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(kind == 1), 0, 0, 0, 0]);
        if kind == 1 {
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
        }
        socket.send_to(&reply, from).unwrap();
    }
    kinds.sort();
    kinds
}

#[test]
fn a_name_is_asked_of_a_name_server_once() {
    if !inside("scratch::a_name_is_asked_of_a_name_server_once") {
        return;
    }
    let (root, certificates) = (root(), Certificates::new());
    root.file("ca.pem", &certificates.ca_pem);
    fs::create_dir(root.path("etc")).unwrap();
    root.file("etc/resolv.conf", "nameserver 127.0.0.1\n");
    let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let server = std::thread::spawn(move || answer_names(&socket));
    let stand = Stand::script_over(Some(certificates.server("portal.invalid")), good_run());
    let url = format!("https://portal.invalid:{}", stand.at.port());
    run(in_root(&root, &url).args(["--cacert", "/ca.pem"])).is(0, &line(), &[]);
    // One look-up asks for IPv4 (1) and IPv6 (28).
    assert_eq!(server.join().unwrap(), [1, 28]);
    assert_eq!(stand.connections(), 1);
}

/// There is no command, and no PATH to look for one.
#[test]
fn a_command_is_not_there() {
    if !inside("scratch::a_command_is_not_there") {
        return;
    }
    let root = root();
    let stand = Stand::script(vec![]);
    for (name, why) in [("gh", "there is no such program on PATH"), ("/bin/cat", "No such file or directory")]
    {
        let error =
            format!("docspace-rotate: can't run the command {name}: {why}; nothing was sent; see --help");
        run(in_root(&root, &stand.url()).args(["--", name])).is(2, "", &[&error]);
    }
    assert_eq!(stand.connections(), 0);
    // One that is put there works: the program is the only other file.
    let stand = Stand::script(looked([on("PATCH regenerate", reply("patch-200"))]));
    let lost = run(in_root(&root, &stand.url()).args(["--", "/docspace-rotate", "--version"]));
    assert_eq!(lost.status, Some(6), "{lost}");
    assert!(lost.error().contains("/docspace-rotate ended with 0 but did not read the secret; "), "{lost}");
}

/// The system's resolver would wait for it for longer than the run may take.
#[test]
fn a_silent_name_server_is_waited_for_until_the_time_is_up() {
    if !inside("scratch::a_silent_name_server_is_waited_for_until_the_time_is_up") {
        return;
    }
    let root = root();
    fs::create_dir(root.path("etc")).unwrap();
    root.file("etc/resolv.conf", "nameserver 127.0.0.1\n");
    let _silent = UdpSocket::bind("127.0.0.1:53").unwrap();
    let missed = run(in_root(&root, "https://portal.invalid").args(["--timeout", "2"]));
    missed.is(
        4,
        "",
        &["docspace-rotate: timed out during [GET token] at portal.invalid; the client's secret …"],
    );
}

#[test]
fn a_key_file_as_windows_writes_it() {
    if !inside("scratch::a_key_file_as_windows_writes_it") {
        return;
    }
    let root = root();
    root.file("key", format!("{KEY}\r\n"));
    let stand = Stand::script(good_run());
    let mut command = in_root(&root, &stand.url());
    command.env_remove("DOCSPACE_API_KEY").env("DOCSPACE_API_KEY_FILE", "/key");
    run(&mut command).is(0, &line(), &[]);
}

#[test]
fn a_read_only_root_with_a_mounted_output() {
    if !inside("scratch::a_read_only_root_with_a_mounted_output") {
        return;
    }
    let (outside, root) = (Folder::new(), Folder::new());
    let output = outside.file("secret", "older and longer than any secret, so that it must be cut\n");
    mount("none", root.as_ref(), "tmpfs", 0);
    fs::copy(binary().unwrap(), root.path("docspace-rotate")).unwrap();
    let mounted = root.file("output", "");
    mount(output.to_str().unwrap(), &mounted, "none", libc::MS_BIND);
    mount("none", root.as_ref(), "none", libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY);

    let stand = Stand::script(good_run());
    run(in_root(&root, &stand.url()).args(["--output", "/output"])).is(0, "", &[]);
    assert_eq!(fs::read_to_string(&output).unwrap(), line());
    let stand = Stand::script(vec![]);
    let refused = run(in_root(&root, &stand.url()).args(["--output", "/other"]));
    refused.is(2, "", &["docspace-rotate: can't write to --output /other: Read-only file system; nothing was sent; see --help"]);
    for path in [&mounted, root.as_ref()] {
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: a plain system call; the string outlives it.
        assert_eq!(unsafe { libc::umount(path.as_ptr()) }, 0);
    }
}

#[test]
fn as_process_1_it_ends_at_a_signal() {
    if !inside("scratch::as_process_1_it_ends_at_a_signal") {
        return;
    }
    let root = root();
    let (_answer, step) = held("PATCH regenerate", reply("patch-200"));
    let mut script = good_run();
    script.truncate(3);
    script[2] = step;
    let stand = Stand::script(script);
    let mut command = Command::new("unshare");
    command.env_clear().args(["--pid", "--fork", "--kill-child", "--root"]).arg(root.as_ref());
    command.args(["/docspace-rotate", "-q", CLIENT]);
    command.env("DOCSPACE_BASE_URL", stand.url()).env("DOCSPACE_API_KEY", KEY);
    let child = start(&mut command);
    stand.wait_for(3);
    let inner = run::process_1(&child);
    // SAFETY: a plain system call, to the one child of the child.
    assert_eq!(unsafe { libc::kill(inner, libc::SIGTERM) }, 0);
    let done = finish(&command, child);
    done.is(143, "", &["docspace-rotate: ended by SIGTERM during [PATCH regenerate] at 127.0.0.1; …"]);
}
