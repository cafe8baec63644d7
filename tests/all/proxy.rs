//! Proxies: chosen, bypassed, refusing, dead and slow; their credentials are sent and never shown.

use std::process::Command;
use std::time::Duration;

use crate::mock::proxy::{Behavior, MockProxy};
use crate::mock::*;
use crate::run::*;
use crate::words::*;

/// A name that only the proxy can resolve.
const PORTAL: &str = "portal.invalid";

/// Time for attempts after 0, 1 and 3 s, but not for one after 7 s, even if a busy machine stalls the others.
const THREE_ATTEMPTS: [&str; 2] = ["--timeout", "6.9"];

/// A portal over TLS that is reached through a proxy, and the folder with the CA file for both.
struct Scene {
    scheme: &'static str,
    proxy: MockProxy,
    portal: MockPortal,
    folder: Folder,
}

impl Scene {
    fn new(scheme: &'static str, behavior: Behavior, script: Vec<Expect>) -> Scene {
        let (folder, certificates, _) = authority();
        let portal = MockPortal::tls(certificates.server(PORTAL), script);
        let tls = (scheme == "https").then(|| certificates.server("127.0.0.1"));
        Scene {
            scheme,
            proxy: MockProxy::start(portal.at, tls, behavior),
            portal,
            folder,
        }
    }

    /// Returns a proxy that sends these bytes to anybody, at once.
    fn answering(scheme: &'static str, answer: &[u8]) -> Scene {
        let behavior = Behavior::Answer(answer.to_vec(), Duration::ZERO);
        Scene::new(scheme, behavior, vec![])
    }

    /// Returns a command with the proxy in this variable, with these credentials, which end in `@`, or with none.
    fn rotate(&self, variable: &str, credentials: &str) -> Command {
        let proxy = format!("{}://{credentials}{}", self.scheme, self.proxy.at);
        let mut command = rotate(&self.portal);
        command
            .env(variable, proxy)
            .args(["-q", "--url", "https://portal.invalid", "--cacert"])
            .arg(self.folder.path("ca.pem"));
        command
    }

    /// Returns the portal and the proxy as errors show them.
    fn peer(&self) -> String {
        let proxy = self.proxy.at;
        format!("portal.invalid through the proxy {proxy} from HTTPS_PROXY")
    }

    /// Runs, and checks that the proxy could not be reached, and that its password is not shown.
    #[track_caller]
    fn fails_with(&self, status: i32, why: &str) -> Run {
        let mut command = self.rotate("HTTPS_PROXY", "user:hush@");
        let run = run(command.args(THREE_ATTEMPTS));
        let peer = self.peer();
        let error = format!("{peer} could not be reached for [GET token]: {why}");
        run.fails_with(status, &error);
        assert!(!run.stderr.contains("hush"), "{run}");
        run
    }
}

#[test]
fn a_connect_proxy_gets_the_name_and_the_credentials_but_not_the_key() {
    let scene = Scene::new("http", Behavior::Forward, good_run());
    let mut command = scene.rotate("HTTPS_PROXY", "us%40er:pass%3Aword@");
    run(&mut command).assert_run(0, &secret_line(), &[]);
    assert_eq!(scene.portal.connections(), 2);
    assert_eq!(scene.proxy.requests().len(), 2);
    for request in scene.proxy.requests() {
        let start = "CONNECT portal.invalid:443 HTTP/1.1\r\n";
        assert!(request.starts_with(start), "{request}");
        // us@er:pass:word
        let credentials = "\r\nProxy-Authorization: Basic dXNAZXI6cGFzczp3b3Jk\r\n";
        assert!(request.contains(credentials), "{request}");
        assert!(!request.contains(KEY), "{request}");
    }
    for request in scene.portal.requests() {
        assert_eq!(request.header("host"), Some(PORTAL));
        assert_eq!(request.header("proxy-authorization"), None);
    }
}

/// Both certificates are from the CA that is not trusted, so the proxy's fails first.
#[test]
fn a_certificate_of_a_tls_proxy_is_checked_and_the_proxy_is_named() {
    let scene = Scene::new("https", Behavior::Forward, vec![]);
    let mut command = scene.rotate("HTTPS_PROXY", "");
    command
        .args(["--cacert", "other.pem"])
        .current_dir(scene.folder.as_ref());
    let (_folder, other, _) = authority();
    scene.folder.file("other.pem", &other.ca_pem);
    let run = run(&mut command);
    run.fails_with(3, "through the proxy ");
    let cause = "no CA in other.pem (from --cacert) issued the server's certificate, \
                 or the server does not send its intermediate certificate, \
                 or a certificate has an RSA key of less than 2,048 or more than 8,192 bits; ";
    run.fails_with(3, cause);
}

#[test]
fn a_socks_proxy_resolves_the_name() {
    for (scheme, credentials) in [
        ("socks5", "user:password@"),
        ("socks5h", "user:password@"),
        ("socks5", ""),
        ("socks4a", ""),
        ("socks4", ""),
    ] {
        let _case = Named(scheme);
        let scene = Scene::new(scheme, Behavior::Forward, good_run());
        let mut command = scene.rotate("ALL_PROXY", credentials);
        run(&mut command).assert_run(0, &secret_line(), &[]);
        let request = credentials.replace([':', '@'], " ") + PORTAL;
        assert_eq!(scene.proxy.requests(), [&*request; 2]);
    }
}

#[test]
fn a_plain_address_goes_through_connect_too_unless_no_proxy_contains_it() {
    for (no_proxy, requests) in [("example.com", 2), ("example.com,127.0.0.0/8", 0)] {
        let _case = Named(no_proxy);
        let portal = MockPortal::new(good_run());
        let proxy = MockProxy::start(portal.at, None, Behavior::Forward);
        let mut command = rotate(&portal);
        command
            .env("http_proxy", proxy.at.to_string())
            .env("NO_PROXY", no_proxy);
        run(&mut command).assert_run(0, &secret_line(), &GOOD_RUN_LOG);
        assert_eq!(proxy.requests().len(), requests);
        let connect = format!("CONNECT {} HTTP/1.1\r\n", portal.at);
        for request in proxy.requests() {
            assert!(request.starts_with(&connect), "{request}");
        }
    }
}

#[test]
fn a_proxy_that_refuses_for_good_is_3_at_once() {
    for status in [302, 403, 407] {
        let reply = response(&format!("{status} "), "", "");
        let scene = Scene::answering("http", &reply);
        let why = format!("the proxy answered CONNECT with status {status}; {REFUSED}");
        scene.fails_with(3, &why);
        assert_eq!(scene.proxy.requests().len(), 1);
    }
}

/// Checks that a run at a proxy that may work a moment later is 4, after three attempts.
#[track_caller]
fn is_tried_again(scheme: &'static str, answer: &[u8], why: &str) {
    let scene = Scene::answering(scheme, answer);
    let run = scene.fails_with(4, why);
    run.fails_with(4, ", and the next attempt");
    run.fails_with(4, UNCHANGED);
    assert_eq!(scene.proxy.requests().len(), 3);
}

#[test]
fn a_proxy_that_is_busy_is_tried_again_and_is_4() {
    for_each(vec![201, 408, 429, 502], |status| {
        let reply = response(&format!("{status} "), "", "");
        let why = format!("the proxy answered CONNECT with status {status}, and ");
        is_tried_again("http", &reply, &why);
    });
}

#[test]
fn a_proxy_that_answers_with_garbage_is_tried_again_and_is_4() {
    let why = "the reply is not HTTP/1.1, or cannot be parsed, and ";
    is_tried_again("http", b"garbage\r\n\r\n", why);
}

#[test]
fn a_proxy_that_sends_too_much_is_tried_again_and_is_4() {
    let answer = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(40_000));
    let why = "the proxy gave no valid answer to CONNECT, and ";
    is_tried_again("http", answer.as_bytes(), why);
    let answer = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: x\r\n".repeat(200));
    let why = "the reply is not HTTP/1.1, or cannot be parsed, and ";
    is_tried_again("http", answer.as_bytes(), why);
}

#[test]
fn a_proxy_that_closes_the_connection_is_tried_again_and_is_4() {
    is_tried_again("http", b"", "");
}

#[test]
fn a_socks_proxy_that_is_refused_by_the_portal_is_tried_again_and_is_4() {
    let refused = b"\x05\x05\0\x01\0\0\0\0\0\0";
    is_tried_again("socks5", refused, "");
}

#[test]
fn a_proxy_that_does_not_speak_socks_is_3_at_once() {
    let scene = Scene::answering("socks5", b"HTTP/1.1 400 \r\n\r\n");
    scene.fails_with(3, "the proxy does not speak SOCKS; ");
}

#[test]
fn a_proxy_that_is_down_is_4() {
    let mut scene = Scene::answering("http", b"");
    scene.proxy.at = "127.0.0.1:1".parse().unwrap();
    scene.fails_with(4, "Connection ");
}

/// Each byte of its answer comes in time, but not the whole.
#[test]
fn a_slow_proxy_is_ended_by_the_timer() {
    let header = format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(200));
    let slow = Behavior::Answer(header.into_bytes(), Duration::from_millis(50));
    let scene = Scene::new("http", slow, vec![]);
    let mut command = scene.rotate("HTTPS_PROXY", "");
    let run = run(command.args(["--timeout", "2.5"]));
    let error = format!(": timed out during [GET token] at {}; ", scene.peer());
    run.fails_with(4, &error);
}

/// A check that is ready asks for the expiry, but not for long, and whatever happens then.
#[test]
fn a_slow_proxy_does_not_hold_up_a_check_that_is_ready() {
    let header = format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(2000));
    let slow = Behavior::ForwardOnce(header.into_bytes(), Duration::from_millis(50));
    let head = String::from_utf8(without_body(recorded("get-200"))).unwrap();
    let close = head.replacen("keep-alive", "close", 1).into();
    let head = expect_then("HEAD client", [Action::Send(close), Action::Close]);
    let scene = Scene::new("http", slow, vec![sign_in(), head]);
    let mut command = scene.rotate("HTTPS_PROXY", "");
    let run = run(command.args(["--check", "-q"]));
    run.assert_run(0, "", &[]);
    assert_eq!(scene.proxy.requests().len(), 2);
}

/// The handshake with the proxy itself does not count, even where it is over TLS.
#[test]
fn failures_beyond_a_proxy_are_as_without_one() {
    for_each(vec!["http", "https", "socks5"], |scheme| {
        let _case = Named(scheme);
        let run_with = |failures| {
            let scene = Scene::new(scheme, Behavior::Forward, ready(failures));
            run(scene.rotate("HTTPS_PROXY", "").args(THREE_ATTEMPTS))
        };
        let lost = expect_then("PATCH regenerate", [Action::Close]);
        let error = "gave no valid answer to [PATCH regenerate]: ";
        run_with(vec![lost]).fails_with(7, error);
        let reset = || Expect::Connection(vec![Action::Reset]);
        let error = "could not be reached for [PATCH regenerate]: ";
        let failures = vec![reset(), reset(), reset()];
        run_with(failures).fails_with(4, error);
    });
}
