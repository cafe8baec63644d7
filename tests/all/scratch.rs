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

/// Returns an empty root with the static binary alone, if this is the test in namespaces.
fn image(test: &str) -> Option<Folder> {
    let Some(binary) = static_binary(env!("CARGO_BIN_EXE_docspace-rotate")) else {
        let build =
            "RUSTFLAGS=\"-C target-feature=+crt-static\" cargo build --release --locked --target";
        let arch = std::env::consts::ARCH;
        skipped(
            test,
            &format!("no static binary, or an old one: {build} {arch}-unknown-linux-gnu"),
        );
        return None;
    };
    in_namespaces(test).then(|| {
        let root = Folder::new();
        fs::copy(binary, root.path("docspace-rotate")).unwrap();
        root
    })
}

/// Returns a command for the program in that root, as process 1.
fn in_image(root: &Folder, url: &str, args: &[&str]) -> Command {
    let mut command = command("unshare");
    command
        .args(["--pid", "--fork", "--kill-child", "--root"])
        .arg(root.as_ref());
    command
        .args(["/docspace-rotate", "-q", "--timeout", "5", CLIENT])
        .args(args);
    command
        .env("DOCSPACE_BASE_URL", url)
        .env("DOCSPACE_API_KEY", KEY);
    command
}

/// Adds a CA to a root, and a file for the resolver. Returns the certificates.
fn add_ca(root: &Folder, name: &str, text: &str) -> Certificates {
    let certificates = Certificates::new();
    root.file("ca.pem", &certificates.ca_pem);
    fs::create_dir(root.path("etc")).unwrap();
    root.file(name, text);
    certificates
}

#[test]
fn runs_alone_in_an_empty_image() {
    let Some(root) = image("scratch::runs_alone_in_an_empty_image") else {
        return;
    };
    let portal = MockPortal::new(good_run());
    run(&mut in_image(&root, &portal.url(), &[])).assert_run(0, &secret_line(), &[]);
    assert_eq!(root.names(), ["docspace-rotate"]);
}

#[test]
fn finds_a_name_in_etc_hosts_and_trusts_only_its_own_roots_or_the_ca_file() {
    let test = "scratch::finds_a_name_in_etc_hosts_and_trusts_only_its_own_roots_or_the_ca_file";
    let Some(root) = image(test) else { return };
    let certificates = add_ca(&root, "etc/hosts", "127.0.0.1 portal.invalid\n");
    let portal = MockPortal::tls(certificates.server("portal.invalid"), good_run());
    let url = format!("https://portal.invalid:{}", portal.at.port());
    let refused = run(&mut in_image(&root, &url, &[]));
    refused.fails_with(
        3,
        "TLS failed: the certificate is from an unknown CA (see --cacert); ",
    );
    run(in_image(&root, &url, &[]).env("SSL_CERT_FILE", "/ca.pem")).assert_run(
        0,
        &secret_line(),
        &[],
    );
}

/// Answers queries for A with 127.0.0.1, and for anything else with nothing (RFC 1035, section 4).
/// Returns the types that were asked for before an empty message came.
fn answer_names(socket: &UdpSocket) -> Vec<u16> {
    let mut types = vec![];
    let mut query = [0; 512];
    while let Ok((length @ 1.., from)) = socket.recv_from(&mut query) {
        // The question follows twelve bytes: a name that ends in an empty label, type, class.
        let end = 12
            + query[12..length]
                .iter()
                .position(|byte| *byte == 0)
                .unwrap()
            + 5;
        let kind = u16::from_be_bytes([query[end - 4], query[end - 3]]);
        types.push(kind);
        let mut reply = query[..end].to_vec();
        reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(kind == 1), 0, 0, 0, 0]);
        if kind == 1 {
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
        }
        socket.send_to(&reply, from).unwrap();
    }
    types.sort();
    types
}

#[test]
fn asks_a_name_server_once_for_two_connections_and_never_for_localhost() {
    let test = "scratch::asks_a_name_server_once_for_two_connections_and_never_for_localhost";
    let Some(root) = image(test) else { return };
    let certificates = add_ca(&root, "etc/resolv.conf", "nameserver 127.0.0.1\n");
    // One lookup asks for IPv4 (1) and IPv6 (28).
    for (name, types) in [("portal.invalid", &[1, 28][..]), ("localhost", &[])] {
        let server = UdpSocket::bind("127.0.0.1:53").unwrap();
        let server = thread::spawn(move || answer_names(&server));
        let portal = MockPortal::tls(certificates.server(name), good_run());
        let url = format!("https://{name}:{}", portal.at.port());
        run(&mut in_image(&root, &url, &["--cacert", "/ca.pem"])).assert_run(
            0,
            &secret_line(),
            &[],
        );
        assert_eq!(portal.connections(), 2);
        UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .send_to(&[], "127.0.0.1:53")
            .unwrap();
        assert_eq!(server.join().unwrap(), types, "{name}");
    }
}

/// The system's resolver would wait longer.
#[test]
fn the_timeout_covers_a_silent_name_server() {
    let Some(root) = image("scratch::the_timeout_covers_a_silent_name_server") else {
        return;
    };
    let _silent = UdpSocket::bind("127.0.0.1:53").unwrap();
    let error = "docspace-rotate: timed out during [GET token] at portal.invalid; the client's secret is unchanged; run again later";
    run(&mut in_image(
        &root,
        "https://portal.invalid",
        &["--timeout", "1"],
    ))
    .assert_run(4, "", &[error]);
}

#[test]
fn a_command_has_to_be_in_the_image() {
    let Some(root) = image("scratch::a_command_has_to_be_in_the_image") else {
        return;
    };
    for name in ["gh", "/bin/cat"] {
        let error = format!("cannot run the command {name}: not found, or not executable");
        assert_refused(&error, |portal| {
            in_image(&root, &portal.url(), &["--", name])
        });
    }
    // The program itself is one, and does not read its stdin.
    let portal = MockPortal::new(ready([regenerate()]));
    let lost = run(&mut in_image(
        &root,
        &portal.url(),
        &["--", "/docspace-rotate", "-q", "--help"],
    ));
    let error = "the new secret was not delivered to the command /docspace-rotate: it exited without reading the …";
    lost.assert_run(6, HELP, &[&format!("docspace-rotate: {error}")]);
}

#[test]
fn writes_to_a_mounted_file_in_a_read_only_image() {
    let Some(image) = image("scratch::writes_to_a_mounted_file_in_a_read_only_image") else {
        return;
    };
    let (outside, root) = (Folder::new(), Folder::new());
    let output = outside.file(
        "secret",
        "older and longer than any secret, so that it has to be truncated\n",
    );
    let at = root.as_ref().display();
    system(&format!("mount -t tmpfs none {at}"));
    fs::copy(image.path("docspace-rotate"), root.path("docspace-rotate")).unwrap();
    root.file("output", "");
    system(&format!("mount --bind {} {at}/output", output.display()));
    system(&format!("mount -o remount,bind,ro {at}"));

    let portal = MockPortal::new(good_run());
    run(&mut in_image(
        &root,
        &portal.url(),
        &["--output", "/output"],
    ))
    .assert_run(0, "", &[]);
    assert_eq!(fs::read_to_string(&output).unwrap(), secret_line());
    let error = "cannot write to --output /other: Read-only file system";
    assert_refused(error, |portal| {
        in_image(&root, &portal.url(), &["--output", "/other"])
    });
    system(&format!("umount -R {at}"));
}

#[test]
fn delivers_and_ends_at_a_signal() {
    let Some(root) = image("scratch::delivers_and_ends_at_a_signal") else {
        return;
    };
    let (answer, patch) = gated("PATCH regenerate", recorded("patch-200"));
    let portal = MockPortal::new(ready([patch]));
    let mut command = in_image(&root, &portal.url(), &[]);
    let child = start(&mut command);
    portal.wait_for(3);
    // SAFETY: a plain system call, to the only child of the child.
    assert_eq!(unsafe { libc::kill(process_1(&child), libc::SIGTERM) }, 0);
    drop(answer);
    finish(&command, child).assert_run(
        143,
        &secret_line(),
        &["docspace-rotate: ended by SIGTERM after the delivery; …"],
    );
}
