//! Proxies: chosen, bypassed, refusing, dead and slow; their credentials are sent and never shown.

use std::process::Command;
use std::time::Duration;

use crate::mock::proxy::{Behavior, MockProxy};
use crate::mock::*;
use crate::run::*;

/// A name that only the proxy can resolve.
const PORTAL: &str = "portal.invalid";

/// A portal over TLS that is reached through a proxy, and the folder with the CA file for both.
struct Scene {
    proxy: MockProxy,
    portal: MockPortal,
    folder: Folder,
}

impl Scene {
    fn new(scheme: &str, behavior: Behavior, script: Vec<Expect>) -> Scene {
        let (folder, certificates, _) = authority();
        let portal = MockPortal::tls(certificates.server(PORTAL), script);
        let tls = (scheme == "https").then(|| certificates.server("127.0.0.1"));
        Scene {
            proxy: MockProxy::start(portal.at, tls, behavior),
            portal,
            folder,
        }
    }

    /// Returns a command with a proxy in this variable.
    fn rotate(&self, variable: &str, value: &str) -> Command {
        let mut command = rotate(&self.portal);
        command
            .env(variable, value)
            .args(["-q", "--url", "https://portal.invalid"]);
        command.arg("--cacert").arg(self.folder.path("ca.pem"));
        command
    }
}

#[test]
fn a_connect_proxy_gets_the_name_and_the_credentials_but_not_the_key() {
    let scene = Scene::new("http", Behavior::Forward, good_run());
    let value = format!("http://us%40er:pass%3Aword@{}", scene.proxy.at);
    run(&mut scene.rotate("HTTPS_PROXY", &value)).assert_run(0, &secret_line(), &[]);
    assert_eq!(
        (scene.proxy.requests().len(), scene.portal.connections()),
        (2, 2)
    );
    for request in scene.proxy.requests() {
        assert!(
            request.starts_with("CONNECT portal.invalid:443 HTTP/1.1\r\n"),
            "{request}"
        );
        // us@er:pass:word
        assert!(
            request.contains("\r\nProxy-Authorization: Basic dXNAZXI6cGFzczp3b3Jk\r\n"),
            "{request}"
        );
        assert!(!request.contains(KEY), "{request}");
    }
    for request in scene.portal.requests() {
        assert_eq!(
            (
                request.header("host"),
                request.header("proxy-authorization")
            ),
            (Some(PORTAL), None)
        );
    }
}

#[test]
fn a_socks_proxy_resolves_the_name() {
    for (scheme, credentials, request) in [
        ("socks5", "user:password@", "user password portal.invalid"),
        ("socks5h", "user:password@", "user password portal.invalid"),
        ("socks5", "", "portal.invalid"),
        ("socks4a", "", "portal.invalid"),
        ("socks4", "", "portal.invalid"),
    ] {
        let scene = Scene::new(scheme, Behavior::Forward, good_run());
        let value = format!("{scheme}://{credentials}{}", scene.proxy.at);
        run(&mut scene.rotate("ALL_PROXY", &value)).assert_run(0, &secret_line(), &[]);
        assert_eq!(scene.proxy.requests(), [request; 2]);
    }
}

#[test]
fn a_plain_address_goes_through_connect_too_unless_no_proxy_contains_it() {
    for (no_proxy, requests) in [("example.com", 2), ("example.com,127.0.0.0/8", 0)] {
        let portal = MockPortal::new(good_run());
        let proxy = MockProxy::start(portal.at, None, Behavior::Forward);
        let mut command = rotate(&portal);
        command
            .env("http_proxy", proxy.at.to_string())
            .env("NO_PROXY", no_proxy);
        run(&mut command).assert_run(0, &secret_line(), &GOOD_RUN_LOG);
        let connect = format!("CONNECT {} HTTP/1.1\r\n", portal.at);
        assert_eq!(proxy.requests().len(), requests);
        assert!(
            proxy
                .requests()
                .iter()
                .all(|request| request.starts_with(&connect))
        );
    }
}

#[test]
fn a_proxy_that_refuses_is_3_and_one_that_fails_is_4() {
    let refused = |status: &str| response(status, "", "");
    for (scheme, answer, status, why) in [
        (
            "http",
            refused("407 "),
            3,
            "the proxy refused with status 407; ",
        ),
        (
            "http",
            refused("403 "),
            3,
            "the proxy refused with status 403; ",
        ),
        (
            "http",
            refused("302 "),
            3,
            "the proxy refused with status 302; ",
        ),
        (
            "http",
            refused("408 "),
            4,
            "the proxy refused with status 408, and the next attempt",
        ),
        (
            "http",
            refused("429 "),
            4,
            "the proxy refused with status 429, and the next attempt",
        ),
        (
            "http",
            refused("502 "),
            4,
            "the proxy refused with status 502, and the next attempt",
        ),
        (
            "http",
            b"garbage\r\n\r\n".to_vec(),
            4,
            "the reply is not HTTP, and the next attempt",
        ),
        ("http", vec![], 4, ", and the next attempt"),
        // The portal refuses the connection.
        (
            "socks5",
            vec![5, 5, 0, 1, 0, 0, 0, 0, 0, 0],
            4,
            ", and the next attempt",
        ),
    ] {
        let scene = Scene::new(scheme, Behavior::Answer(answer, Duration::ZERO), vec![]);
        let value = format!("{scheme}://user:hush@{}", scene.proxy.at);
        let run = run(scene
            .rotate("HTTPS_PROXY", &value)
            .args(["--timeout", "0.9"]));
        let peer = format!(
            "portal.invalid through the proxy {} from HTTPS_PROXY",
            scene.proxy.at
        );
        run.fails_with(
            status,
            &format!("docspace-rotate: {peer} could not be reached for [GET token]: "),
        );
        let next = if status == 3 {
            "; check the address, CA, proxy, "
        } else {
            "; run again later"
        };
        run.fails_with(status, why).fails_with(status, next);
        assert!(!run.stderr.contains("hush"), "{run}");
        assert_eq!(scene.proxy.requests().len(), 1);
    }
    let scene = Scene::new("http", Behavior::Forward, vec![]);
    let run = run(scene
        .rotate("HTTPS_PROXY", "user:hush@127.0.0.1:1")
        .args(["--timeout", "0.9"]));
    run.fails_with(
        4,
        " the proxy 127.0.0.1:1 from HTTPS_PROXY could not be reached for [GET token]: Connection ",
    );
}

/// Each byte of its answer comes in time, but not the whole.
#[test]
fn a_slow_proxy_is_ended_by_the_timer() {
    let header = format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(200));
    let slow = Behavior::Answer(header.into_bytes(), Duration::from_millis(50));
    let scene = Scene::new("http", slow, vec![]);
    let run = run(scene
        .rotate("HTTPS_PROXY", &scene.proxy.at.to_string())
        .args(["--timeout", "1.5"]));
    let peer = format!(
        "portal.invalid through the proxy {} from HTTPS_PROXY",
        scene.proxy.at
    );
    run.fails_with(4, &format!(": timed out during [GET token] at {peer}; "));
}

/// The handshake with the proxy itself does not count, even where it is over TLS.
#[test]
fn failures_beyond_a_proxy_are_as_without_one() {
    for_each(vec!["http", "https", "socks5"], |scheme| {
        let lost = expect_then("PATCH regenerate", [Action::Close]);
        let reset = || Expect::Connection(vec![Action::Reset]);
        for (failures, status, words) in [
            (
                vec![lost],
                7,
                "gave no valid answer to [PATCH regenerate]: ",
            ),
            // The third attempt would be after 3 s.
            (
                vec![reset(), reset()],
                4,
                "could not be reached for [PATCH regenerate]: ",
            ),
        ] {
            let scene = Scene::new(scheme, Behavior::Forward, ready(failures));
            let mut command =
                scene.rotate("HTTPS_PROXY", &format!("{scheme}://{}", scene.proxy.at));
            run(command.args(["--timeout", "2.9"])).fails_with(status, words);
        }
    });
}
