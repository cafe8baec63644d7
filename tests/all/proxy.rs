//! Proxies, end to end: chosen, not chosen, refused, dead, slow; credentials sent and never shown.

use std::process::Command;
use std::time::Duration;

use crate::portal::{Act, BEARER, Certificates, KEY, Stand, Step, anew, good_run, line};
use crate::proxies::{Proxy, Then};
use crate::run::{self, Folder, Run, rotate, run};

/// How an error of the proxy's ends.
const PROXY: &str = "; the client's secret is unchanged; check the proxy and its user and password";

/// A name that only the proxy knows a way to.
const PORTAL: &str = "portal.invalid";

struct Scene {
    folder: Folder,
    certificates: Certificates,
    stand: Stand,
}

impl Scene {
    fn new(script: Vec<Step>) -> Scene {
        let folder = Folder::new();
        let certificates = Certificates::new();
        folder.file("ca.pem", &certificates.ca_pem);
        let stand = Stand::script_over(Some(certificates.server(PORTAL)), script);
        Scene { folder, certificates, stand }
    }

    fn proxy(&self, then: Then) -> Proxy {
        Proxy::start(self.stand.at, None, then)
    }

    /// The program, told of a proxy, quiet, for a portal behind it.
    fn rotate(&self, variable: &str, value: &str) -> Command {
        let mut command = rotate(&self.stand);
        command.env(variable, value).args(["-q", "--url", &format!("https://{PORTAL}")]);
        command.arg("--cacert").arg(self.folder.path("ca.pem"));
        command
    }
}

/// The password in a proxy's address is in no output.
fn run_hiding(password: &str, command: &mut Command) -> Run {
    let done = run(command);
    assert!(!done.stderr.contains(password), "{done}");
    done
}

#[test]
fn a_connect_proxy_gets_the_name_and_the_credentials_and_no_key() {
    let scene = Scene::new(good_run());
    let proxy = scene.proxy(Then::Through);
    let value = format!("http://us%40er:pass%3Aword@{}", proxy.at);
    run(&mut scene.rotate("HTTPS_PROXY", &value)).is(0, &line(), &[]);
    let asked = proxy.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert!(asked[0].starts_with("CONNECT portal.invalid:443 HTTP/1.1\r\n"), "{asked:?}");
    // us@er:pass:word
    assert!(asked[0].contains("\r\nProxy-Authorization: Basic dXNAZXI6cGFzczp3b3Jk\r\n"), "{asked:?}");
    assert!(!asked[0].contains(KEY), "{asked:?}");
    assert_eq!(scene.stand.connections(), 1);
    assert_eq!(scene.stand.requests()[0].header("host"), Some(PORTAL));
    assert!(scene.stand.requests().iter().all(|r| r.header("proxy-authorization").is_none()));
}

#[test]
fn socks_proxies_get_the_name_to_look_up() {
    for (scheme, asked) in [
        ("socks5", "user password portal.invalid"),
        ("socks5h", "user password portal.invalid"),
        ("socks4a", "portal.invalid"),
        ("socks4", "portal.invalid"),
    ] {
        let scene = Scene::new(good_run());
        let proxy = scene.proxy(Then::Through);
        let credentials = if scheme.starts_with("socks5") { "user:password@" } else { "" };
        let value = format!("{scheme}://{credentials}{}", proxy.at);
        run(&mut scene.rotate("ALL_PROXY", &value)).is(0, &line(), &[]);
        assert_eq!(proxy.asked(), [asked]);
    }
}

#[test]
fn a_proxy_may_be_spoken_to_over_tls() {
    let scene = Scene::new(good_run());
    let tls = scene.certificates.server("127.0.0.1");
    let proxy = Proxy::start(scene.stand.at, Some(tls), Then::Through);
    let value = format!("https://user:hush@{}", proxy.at);
    run_hiding("hush", &mut scene.rotate("https_proxy", &value)).is(0, &line(), &[]);
    assert_eq!(proxy.asked().len(), 1);
}

#[test]
fn a_plain_address_goes_through_connect_too() {
    let stand = Stand::script(good_run());
    let proxy = Proxy::start(stand.at, None, Then::Through);
    let mut command = rotate(&stand);
    command.env("http_proxy", proxy.at.to_string()).args([
        "-q",
        "--allow-http",
        "--url",
        "http://portal.invalid",
    ]);
    run(&mut command).is(0, &line(), &[]);
    assert!(proxy.asked()[0].starts_with("CONNECT portal.invalid:80 HTTP/1.1\r\n"));
}

#[test]
fn a_proxy_that_is_not_for_this_address_is_not_asked() {
    for variables in [
        &[("https_proxy", "proxy"), ("NO_PROXY", "example.com,127.0.0.1")][..],
        &[("ALL_PROXY", "proxy"), ("no_proxy", "*")],
        &[("ALL_PROXY", "proxy"), ("no_proxy", "127.0.0.0/8")],
        // For the other scheme, and the one that a web server makes of a request's header.
        &[("http_proxy", "proxy"), ("HTTP_PROXY", "proxy")],
        &[("https_proxy", "")],
    ] {
        let (_folder, certificates, ca) = run::authority();
        let stand = Stand::script_over(Some(certificates.server("127.0.0.1")), good_run());
        let proxy = Proxy::start(stand.at, None, Then::Through);
        let mut command = rotate(&stand);
        for (name, value) in variables {
            command.env(name, value.replace("proxy", &proxy.at.to_string()));
        }
        run(command.arg("-q").arg("--cacert").arg(ca)).is(0, &line(), &[]);
        assert_eq!(proxy.asked().len(), 0, "{variables:?}");
    }
}

#[test]
fn a_dead_or_refusing_proxy_is_4_and_one_that_answers_4xx_3() {
    let http = |status: &str| format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").into_bytes();
    for (scheme, answer, status, said) in [
        (
            "http",
            http("407 Proxy Authentication Required"),
            3,
            "refused to connect to portal.invalid: status 407; ",
        ),
        ("http", http("403 Forbidden"), 3, "refused to connect to portal.invalid: status 403; "),
        ("http", http("408 Request Timeout"), 4, "status 408 (through the proxy "),
        ("http", http("302 Found"), 3, "refused to connect to portal.invalid: status 302; "),
        ("http", http("429 Too Many Requests"), 4, "status 429 (through the proxy "),
        ("http", http("502 Bad Gateway"), 4, "status 502 (through the proxy "),
        ("http", b"garbage\r\n\r\n".to_vec(), 4, "the reply is not HTTP"),
        ("http", vec![], 4, "proxy server did not respond"),
        // Connection not allowed by the rules; refused by the host.
        ("socks5", vec![5, 2, 0, 1, 0, 0, 0, 0, 0, 0], 3, "invalid: connection not allowed by ruleset; "),
        ("socks5", vec![5, 5, 0, 1, 0, 0, 0, 0, 0, 0], 4, "(through the proxy 127.0.0.1:"),
        // Rejected or failed; no identd; another user.
        ("socks4", vec![0, 91, 0, 0, 0, 0, 0, 0], 4, "(through the proxy 127.0.0.1:"),
        ("socks4", vec![0, 92, 0, 0, 0, 0, 0, 0], 3, "refused to connect to portal.invalid: "),
        ("socks4", vec![0, 93, 0, 0, 0, 0, 0, 0], 3, "refused to connect to portal.invalid: "),
    ] {
        let scene = Scene::new(vec![]);
        let proxy = scene.proxy(Then::Answer(answer, Duration::ZERO));
        let credentials = if scheme == "socks4" { "" } else { "user:hush@" };
        let value = format!("{scheme}://{credentials}{}", proxy.at);
        let mut command = scene.rotate("HTTPS_PROXY", &value);
        command.env("DOCSPACE_API_KEY", BEARER).args(["--timeout", "0.9"]);
        let done = run_hiding("hush", &mut command);
        assert_eq!((done.status, done.stdout.as_str()), (Some(status), ""), "{done}");
        assert!(done.error().contains(said), "{done}");
        assert!(done.error().contains(&format!("the proxy {} from HTTPS_PROXY", proxy.at)), "{done}");
        let next = if status == 3 { PROXY } else { "; run again later" };
        assert!(done.error().ends_with(next), "{done}");
        assert_eq!(proxy.asked().len(), 1);
    }
    let closed = "127.0.0.1:1";
    let scene = Scene::new(vec![]);
    let value = format!("user:hush@{closed}");
    let done = run_hiding("hush", scene.rotate("HTTPS_PROXY", &value).args(["--timeout", "0.9"]));
    assert_eq!(done.status, Some(4), "{done}");
    assert!(
        done.error().contains(&format!("Connection refused (through the proxy {closed} from HTTPS_PROXY)")),
        "{done}"
    );
}

#[test]
fn a_socks_proxy_that_lets_nobody_or_not_us_in_is_3() {
    // The proxy's answers to the greeting and to the password are all that it says.
    for (answers, why) in [
        (vec![[5, 2], [1, 1]], "password authentication failed"),
        (vec![[5, 0xff]], "no acceptable auth methods"),
        (vec![[5, 1]], "unknown auth method"),
    ] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let proxy = std::thread::spawn(move || {
            use std::io::{Read, Write};
            let (mut client, _) = listener.accept().unwrap();
            for answer in answers {
                assert_ne!(client.read(&mut [0; 512]).unwrap(), 0);
                client.write_all(&answer).unwrap();
            }
        });
        let scene = Scene::new(vec![]);
        let done = run_hiding("hush", &mut scene.rotate("HTTPS_PROXY", &format!("socks5://user:hush@{at}")));
        proxy.join().unwrap();
        let error = format!(
            "docspace-rotate: the proxy {at} from HTTPS_PROXY refused to connect to portal.invalid: {why}{PROXY}"
        );
        done.is(3, "", &[&error]);
    }
}

/// Each piece of its answer comes in time, all of it does not.
#[test]
fn a_slow_proxy_is_held_to_the_limit() {
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(200));
    let scene = Scene::new(vec![]);
    let proxy = scene.proxy(Then::Answer(endless.into_bytes(), Duration::from_millis(50)));
    let value = format!("http://{}", proxy.at);
    let done = run(scene.rotate("HTTPS_PROXY", &value).args(["--timeout", "1.5"]));
    assert_eq!(done.status, Some(4), "{done}");
    assert!(
        done.error().contains(&format!(
            ": timed out during [GET token] at portal.invalid through the proxy {}; ",
            proxy.at
        )),
        "{done}"
    );
}

#[test]
fn beyond_the_proxy_all_is_as_without_one() {
    let folder = Folder::new();
    for (script, status, said) in [
        (
            anew([Step::Request("PATCH regenerate", vec![Act::Close])]),
            7,
            "gave no usable answer to [PATCH regenerate]",
        ),
        (anew([Step::Accepted(vec![Act::Reset])]), 4, "was not reached for [PATCH regenerate]"),
    ] {
        let scene = Scene::new(script);
        let proxy = scene.proxy(Then::Through);
        let mut command = scene.rotate("HTTPS_PROXY", &proxy.at.to_string());
        command.env("DOCSPACE_API_KEY", BEARER).args(["--timeout", "0.9"]);
        let done = run(&mut command);
        assert_eq!(done.status, Some(status), "{done}");
        assert!(done.error().contains(said), "{done}");
    }
    // A certificate that nobody vouches for.
    let scene = Scene::new(vec![]);
    let proxy = scene.proxy(Then::Through);
    let other = folder.file("other.pem", Certificates::new().ca_pem);
    let mut command = scene.rotate("HTTPS_PROXY", &proxy.at.to_string());
    let done = run(command.arg("--cacert").arg(other));
    assert_eq!(done.status, Some(3), "{done}");
    assert!(
        done.error().contains(" from HTTPS_PROXY failed: invalid peer certificate: UnknownIssuer; "),
        "{done}"
    );
}

/// The limit on reaching a proxy is over, and the way through it stands.
#[test]
fn a_way_that_stands_is_held_to_no_limit_of_the_proxys() {
    let mut script = good_run();
    let late = vec![Act::Sleep(Duration::from_millis(1500)), Act::Send(crate::portal::reply("delete-200"))];
    script[3] = Step::Request("DELETE revoke", late);
    let scene = Scene::new(script);
    let proxy = scene.proxy(Then::Through);
    let mut command = scene.rotate("HTTPS_PROXY", &proxy.at.to_string());
    run(command.args(["--timeout", "1"])).is(0, &line(), &[]);
}
