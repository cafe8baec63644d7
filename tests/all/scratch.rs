//! The static binary as the only file of an empty root: no shell, no libc, no CA bundle, no user.
//!
//! Each test runs again in namespaces of its own, as root of nothing but these.

use std::net::UdpSocket;
use std::process::Command;
use std::{fs, thread};

use docspace_rotate::cli::HELP;

use crate::mock::certificates::Certificates;
use crate::mock::*;
use crate::namespaces::*;
use crate::run::*;
use crate::words::*;

/// An empty root with the static binary.
struct Image {
    root: Folder,
}

impl Image {
    /// Returns None unless this is the test in namespaces.
    fn new(test: &str) -> Option<Image> {
        let Some(binary) = static_binary(env!("CARGO_BIN_EXE_docspace-rotate")) else {
            let build =
                "RUSTFLAGS=\"-C target-feature=+crt-static\" cargo build --release --locked";
            let target = format!("--target {}-unknown-linux-gnu", std::env::consts::ARCH);
            skipped(
                test,
                &format!("no static binary, or an old one: {build} {target}"),
            );
            return None;
        };
        if !in_namespaces(test) {
            return None;
        }
        let root = Folder::new();
        fs::copy(binary, root.path("docspace-rotate")).unwrap();
        Some(Image { root })
    }

    /// Returns a command for the program as process 1.
    fn command(&self, url: &str, args: &str) -> Command {
        let mut command = command("unshare");
        command
            .args(["--pid", "--fork", "--kill-child", "--root"])
            .arg(self.root.as_ref())
            .args(["/docspace-rotate", "-q", "--timeout", "5", CLIENT])
            .args(args.split_whitespace())
            .env("DOCSPACE_BASE_URL", url)
            .env("DOCSPACE_API_KEY", KEY);
        command
    }

    fn run(&self, url: &str, args: &str) -> Run {
        run(&mut self.command(url, args))
    }

    /// Adds the file of a new CA, and a file for the resolver.
    fn add_ca(&self, name: &str, text: &str) -> Certificates {
        let certificates = Certificates::new();
        self.root.file("ca.pem", &certificates.ca_pem);
        fs::create_dir(self.root.path("etc")).unwrap();
        self.root.file(name, text);
        certificates
    }
}

#[test]
fn runs_alone_in_an_empty_image() {
    let Some(image) = Image::new("scratch::runs_alone_in_an_empty_image") else {
        return;
    };
    let portal = MockPortal::new(good_run());
    let run = image.run(&portal.url(), "");
    run.assert_run(0, &secret_line(), &[]);
    assert_eq!(image.root.names(), ["docspace-rotate"]);
}

#[test]
fn finds_a_name_in_etc_hosts_and_trusts_only_its_own_roots_or_the_ca_file() {
    let test = "scratch::finds_a_name_in_etc_hosts_and_trusts_only_its_own_roots_or_the_ca_file";
    let Some(image) = Image::new(test) else {
        return;
    };
    let certificates = image.add_ca("etc/hosts", "127.0.0.1 portal.invalid\n");
    let portal = MockPortal::tls(certificates.server("portal.invalid"), good_run());
    let url = format!("https://portal.invalid:{}", portal.at.port());
    let why = "no built-in CA issued the server's certificate, or the server does not send its intermediate certificate (private CA: see --cacert); ";
    image.run(&url, "").fails_with(3, why);
    let mut command = image.command(&url, "");
    let run = run(command.env("SSL_CERT_FILE", "/ca.pem"));
    run.assert_run(0, &secret_line(), &[]);
}

/// A query for IPv4 addresses (RFC 1035, section 3.2.2).
const A: u8 = 1;
/// A query for IPv6 addresses (RFC 3596).
const AAAA: u8 = 28;

/// Answers queries for A with 127.0.0.1, and for anything else with nothing (RFC 1035, section 4).
/// Returns the types that were asked for before an empty message came, sorted.
fn answer_names(socket: &UdpSocket) -> Vec<u8> {
    let mut types = vec![];
    let mut query = [0; 512];
    while let Ok((length @ 1.., from)) = socket.recv_from(&mut query) {
        // The question follows twelve bytes: a name that ends in an empty label, and two
        // bytes each for type and class.
        let mut question = query[12..length].iter();
        let name = question.position(|byte| *byte == 0).unwrap();
        let end = 12 + name + 5;
        let kind = query[end - 3];
        types.push(kind);
        let mut reply = query[..end].to_vec();
        let answers = u8::from(kind == A);
        reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, answers, 0, 0, 0, 0]);
        if kind == A {
            reply.extend(b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x7f\0\0\x01");
        }
        socket.send_to(&reply, from).unwrap();
    }
    types.sort();
    types
}

#[test]
fn asks_a_name_server_once_for_two_connections_and_never_for_localhost() {
    let test = "scratch::asks_a_name_server_once_for_two_connections_and_never_for_localhost";
    let Some(image) = Image::new(test) else {
        return;
    };
    let certificates = image.add_ca("etc/resolv.conf", "nameserver 127.0.0.1\n");
    for (name, types) in [("portal.invalid", &[A, AAAA][..]), ("localhost", &[])] {
        let server = UdpSocket::bind("127.0.0.1:53").unwrap();
        let server = thread::spawn(move || answer_names(&server));
        let portal = MockPortal::tls(certificates.server(name), good_run());
        let url = format!("https://{name}:{}", portal.at.port());
        let run = image.run(&url, "--cacert /ca.pem");
        run.assert_run(0, &secret_line(), &[]);
        assert_eq!(portal.connections(), 2);
        let end = UdpSocket::bind("127.0.0.1:0").unwrap();
        end.send_to(&[], "127.0.0.1:53").unwrap();
        assert_eq!(server.join().unwrap(), types, "{name}");
    }
}

/// The system's resolver would wait longer.
#[test]
fn the_timeout_covers_a_silent_name_server() {
    let Some(image) = Image::new("scratch::the_timeout_covers_a_silent_name_server") else {
        return;
    };
    let _silent = UdpSocket::bind("127.0.0.1:53").unwrap();
    let error =
        format!("docspace-rotate: timed out during [GET token] at portal.invalid; {UNCHANGED}");
    let run = image.run("https://portal.invalid", "--timeout 2.5");
    run.assert_run(4, "", &[&error]);
}

#[test]
fn a_command_has_to_be_in_the_image() {
    let Some(image) = Image::new("scratch::a_command_has_to_be_in_the_image") else {
        return;
    };
    for name in ["gh", "/bin/cat"] {
        let error = format!("cannot deliver to the command {name}: not found, or not executable");
        let args = format!("-- {name}");
        assert_refused(&error, |portal| image.command(&portal.url(), &args));
    }
    // The program itself is one, and does not read its stdin.
    let portal = MockPortal::new(ready([regenerate()]));
    let run = image.run(&portal.url(), "-- /docspace-rotate -q --help");
    let error = "the new secret was not delivered to the command /docspace-rotate: it exited without reading the …";
    run.assert_run(6, HELP, &[&format!("docspace-rotate: {error}")]);
}

#[test]
fn writes_to_a_mounted_file_in_a_read_only_image() {
    let Some(mut image) = Image::new("scratch::writes_to_a_mounted_file_in_a_read_only_image")
    else {
        return;
    };
    let outside = Folder::new();
    let old = "older and longer than any secret, so that it has to be truncated\n";
    let output = outside.file("secret", old);
    let root = Folder::new();
    let at = root.as_ref().display();
    system(&format!("mount -t tmpfs none {at}"));
    let program = image.root.path("docspace-rotate");
    fs::copy(program, root.path("docspace-rotate")).unwrap();
    root.file("output", "");
    system(&format!("mount --bind {} {at}/output", output.display()));
    system(&format!("mount -o remount,bind,ro {at}"));
    let unmount = format!("umount -R {at}");
    image.root = root;

    let portal = MockPortal::new(good_run());
    let run = image.run(&portal.url(), "--output /output");
    run.assert_run(0, "", &[]);
    assert_eq!(fs::read_to_string(&output).unwrap(), secret_line());
    let error = "cannot deliver to --output /other: Read-only file system";
    assert_refused(error, |portal| {
        image.command(&portal.url(), "--output /other")
    });
    system(&unmount);
}

#[test]
fn delivers_and_ends_at_a_signal() {
    let Some(image) = Image::new("scratch::delivers_and_ends_at_a_signal") else {
        return;
    };
    let (answer, patch) = gated("PATCH regenerate", recorded("patch-200"));
    let portal = MockPortal::new(ready([patch]));
    let mut command = image.command(&portal.url(), "");
    let child = start(&mut command);
    portal.wait_for(3);
    kill(process_1(&child), libc::SIGTERM);
    drop(answer);
    let run = finish(&command, child);
    let error = "docspace-rotate: ended by SIGTERM after the delivery; …";
    run.assert_run(143, &secret_line(), &[error]);
}
