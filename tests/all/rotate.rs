//! The job: which requests are sent, in which order, and what is said about the replies.

use std::fs;

use crate::mock::*;
use crate::run::*;
use crate::words::*;

const JSON: &str = "Content-Type: application/json";
const TEXT: &str = "Content-Type: text/plain; charset=utf-8";

/// Expects a good run in which this request gets another reply.
fn good_run_with(request: &'static str, reply: Vec<u8>) -> Vec<Expect> {
    let mut script = good_run_until(request, reply);
    let rest = good_run().into_iter().skip(script.len());
    script.extend(rest);
    script
}

/// A run that ends with one reply, and what its error line says.
pub struct Case<'a> {
    pub name: &'static str,
    pub key: &'static str,
    pub client: &'a str,
    pub args: &'a [&'a str],
    pub request: &'static str,
    pub reply: Vec<u8>,
    pub status: i32,
    /// What the error says about the reply, from its status on.
    pub said: &'a str,
}

impl Default for Case<'_> {
    fn default() -> Self {
        Case {
            name: "",
            key: KEY,
            client: CLIENT,
            args: &[],
            request: "PATCH regenerate",
            reply: vec![],
            status: 3,
            said: "",
        }
    }
}

impl Case<'_> {
    /// Runs the program, and checks its status and all of its output.
    pub fn check(self) {
        let Case {
            name,
            request,
            status,
            said,
            ..
        } = self;
        let portal = MockPortal::new(good_run_until(request, self.reply));
        let mut command = program();
        command.env("DOCSPACE_API_KEY", self.key);
        command.args([self.client, "--url", &portal.url()]);
        let run = run(command.args(self.args));

        let (earlier_lines, stdout) = match request {
            "GET token" => (0, String::new()),
            "HEAD client" => (1, String::new()),
            "PATCH regenerate" => (2, String::new()),
            _ => (4, secret_line()),
        };
        let state = match status {
            3 => REFUSED,
            5 => NOT_REVOKED,
            _ => UNKNOWN,
        };
        let status_line = format!("[{request}] Status: {}", &said[..3]);
        let error = format!(
            "docspace-rotate: 127.0.0.1:PORT answered [{request}] with status {said}; {state}\n"
        );
        let log = [&GOOD_RUN_LOG[..earlier_lines], &[&status_line, &error]].concat();
        assert_eq!(run.stderr, log.join("\n"), "{name}\n{run}");
        assert_eq!(run.status, Some(status), "{name}\n{run}");
        assert_eq!(run.stdout, stdout, "{name}\n{run}");
    }
}

/// Checks each request of a good run with this key, at a portal below this path.
fn assert_requests(key: &str, path: &str) {
    let portal = MockPortal::new(good_run());
    let url = format!("{}{path}/", portal.url());
    let mut command = rotate(&portal);
    command.env("DOCSPACE_API_KEY", key).args(["--url", &url]);
    run(&mut command).assert_run(0, &secret_line(), &GOOD_RUN_LOG);

    let requests = portal.requests();
    let targets = requests.iter().map(|request| request.target.clone());
    let api = format!("{path}/api/2.0");
    let client = format!("{api}/clients/{CLIENT}");
    let expected = [
        format!("{api}/security/oauth2/token"),
        client.clone(),
        format!("{client}/regenerate"),
        format!("{client}/revoke"),
    ];
    assert_eq!(targets.collect::<Vec<_>>(), expected);
    let connections = requests.iter().map(|request| request.connection);
    assert_eq!(connections.collect::<Vec<_>>(), [1, 1, 2, 2]);

    let bearer = format!("Bearer {key}");
    let host = portal.at.to_string();
    for request in &requests {
        let is_signed = request.name() != "GET token";
        let has_length = request.method == "PATCH";
        let assert_header = |name: &str, value: Option<&str>| {
            assert_eq!(request.header(name), value, "{name}: {request:?}");
        };
        assert_header("authorization", Some(&bearer));
        assert_header("x-signature", is_signed.then_some(SIGNATURE));
        let agent = concat!("docspace-rotate/", env!("CARGO_PKG_VERSION"));
        assert_header("user-agent", Some(agent));
        assert_header("accept", Some("application/json"));
        assert_header("accept-encoding", Some("identity"));
        assert_header("host", Some(&host));
        assert_header("content-length", has_length.then_some("0"));
        assert_header("transfer-encoding", None);
        assert_eq!(request.body, "");
    }
}

#[test]
fn makes_four_requests_on_two_connections() {
    assert_requests(KEY, "");
}

#[test]
fn makes_the_requests_below_the_path_of_the_url() {
    assert_requests(BEARER, "/docs");
}

#[test]
fn runs_on_one_thread() {
    let (gate, patch) = gated("PATCH regenerate", recorded("patch-200"));
    let portal = MockPortal::new(ready([patch, revoke()]));
    let url = format!("http://localhost:{}", portal.at.port());
    let mut command = rotate(&portal);
    let child = start(command.args(["--url", &url]));
    portal.wait_for(3);
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    drop(gate);
    finish(&command, child).assert_run(0, &secret_line(), &GOOD_RUN_LOG);
    assert!(status.contains("\nThreads:\t1\n"), "{status}");
}

#[test]
fn only_runs_one_step() {
    let script = ready([regenerate()]);
    let log = &GOOD_RUN_LOG[..4];
    run_script(script, &["--only", "regenerate"]).assert_run(0, &secret_line(), log);

    let script = vec![sign_in(), revoke()];
    let log = [GOOD_RUN_LOG[0], GOOD_RUN_LOG[4], GOOD_RUN_LOG[5]];
    run_script(script, &["--only", "revoke"]).assert_run(0, "", &log);
}

#[test]
fn json_is_the_object_on_one_line() {
    let object = format!(r#"{{"client_secret":"{SECRET}","note":"é \" \u001b"}}"#);
    let indented = object.replace(",\"", " ,\r\n\t\"");
    let reply = json(format!("{{\"count\":1,\n\"response\":{indented}}}\n"));
    let script = good_run_with("PATCH regenerate", reply);
    let line = format!("{object}\n");
    run_script(script, &["--json"]).assert_run(0, &line, &GOOD_RUN_LOG);
}

#[test]
fn the_longest_key_and_signature_are_sent() {
    let key = format!("sk-{}", "k".repeat(7997));
    let signature = format!("a.b.{}", "c".repeat(7996));
    let reply = json(format!(r#"{{"response":"{signature}"}}"#));
    let portal = MockPortal::new(good_run_with("GET token", reply));
    let mut command = rotate(&portal);
    command.env("DOCSPACE_API_KEY", &key);
    run(&mut command).assert_run(0, &secret_line(), &GOOD_RUN_LOG);
    let last = portal.requests().pop().unwrap();
    let bearer = format!("Bearer {key}");
    assert_eq!(last.header("authorization"), Some(&*bearer));
    assert_eq!(last.header("x-signature"), Some(&*signature));
}

#[test]
fn a_wrong_key_ends_the_run() {
    let message = r#"{"error":{"message":"The key was deactivated"},"title":""}"#;
    for case in [
        Case {
            name: "an API key",
            reply: recorded("token-401"),
            said: "401: the key is wrong, deactivated or expired, or its user is disabled, or something in front of the portal refuses, or removes the key",
            ..Case::default()
        },
        Case {
            name: "a bearer token",
            key: BEARER,
            reply: recorded("token-401"),
            said: "401: the key is wrong, deactivated or expired, or its user is disabled, or something in front of the portal refuses, or removes the key (it does not begin with sk-, so it is not an API key)",
            ..Case::default()
        },
        Case {
            name: "a reason",
            reply: response("401 ", JSON, message),
            said: "401 (The key was deactivated)",
            ..Case::default()
        },
    ] {
        let request = "GET token";
        Case { request, ..case }.check();
    }
}

/// Runs until the portal refuses this request, which has no signature because the sign-in got another reply.
fn refused_without_signature(sign_in: Vec<u8>, request: &'static str) -> Run {
    let mut script = good_run_until(request, recorded("patch-403-unsigned"));
    script[0] = expect("GET token", sign_in);
    run_script(script, &[])
}

#[test]
fn a_refusal_without_a_signature_names_both_answers() {
    let no_signature = "and [GET token] issued no signature";
    let run = refused_without_signature(recorded("token-403"), "PATCH regenerate");
    let rights = "(status 403: usually means that the key's rights are restricted";
    run.fails_with(3, &format!("with status 403, {no_signature} {rights}"));

    let run = refused_without_signature(response("404 ", "", ""), "DELETE revoke");
    let error = format!(
        "with status 403, {no_signature} (status 404: no DocSpace API at this address, or DocSpace is older than 3.1); {NOT_REVOKED}"
    );
    assert_eq!(run.status, Some(5), "{run}");
    assert!(run.error().ends_with(&error), "{run}");
}

#[test]
fn a_web_page_in_reply_to_the_head_ends_the_run() {
    for header in [
        "Content-Type: text/html",
        "content-type: Text/HTML; charset=utf-8",
    ] {
        let case = Case {
            name: header,
            request: "HEAD client",
            reply: response("200 OK", header, ""),
            said: "200: a web page, not an API reply",
            ..Case::default()
        };
        case.check();
    }
}

#[test]
fn a_refusal_is_shown_in_the_servers_words() {
    let too_long = format!("{{\"title\":\"hush\"}}{}", " ".repeat(64 * 1024));
    let words = "é ".repeat(60);
    let long = format!(r#"{{"title":"{words}","detail":"{words}"}}"#);
    let (title, detail) = ("é ".repeat(59), "é ".repeat(39));
    for case in [
        Case {
            // The id in the detail is not that of the run, so it could be a secret.
            name: "a title and a detail",
            reply: recorded("patch-404-unknown"),
            said: "404 (Not Found: [hidden]): no client with this id, or the key's user may not manage it",
            ..Case::default()
        },
        Case {
            name: "no definite answer",
            reply: recorded("patch-500"),
            status: 7,
            said: "500 (Internal Server Error: Something went wrong)",
            ..Case::default()
        },
        Case {
            name: "a web page",
            reply: recorded("gateway-502"),
            status: 7,
            said: "502 (500 Error Page)",
            ..Case::default()
        },
        Case {
            name: "text",
            reply: response("409 ", TEXT, " gone  for good\r\n"),
            said: "409 (gone  for good)",
            ..Case::default()
        },
        Case {
            name: "JSON sent as text",
            reply: response("409 ", TEXT, r#"{"secret":"hush"}"#),
            said: "409",
            ..Case::default()
        },
        Case {
            name: "200 characters are shown",
            reply: response("410 ", JSON, long),
            said: &format!("410 ({title}é: {detail}…)"),
            ..Case::default()
        },
        Case {
            name: "a body over 64 KiB",
            reply: response("409 ", JSON, too_long),
            said: "409",
            ..Case::default()
        },
    ] {
        case.check();
    }
}

/// A reply to the sign-in or the PATCH may contain a secret that the run does not know.
#[test]
fn a_refusal_that_may_contain_an_unknown_secret_is_hidden() {
    let (client, token) = ("a1".repeat(16), "b2".repeat(16));
    for case in [
        Case {
            name: "the sign-in",
            request: "GET token",
            reply: response("401 ", TEXT, &token),
            said: "401 ([hidden])",
            ..Case::default()
        },
        Case {
            name: "the PATCH",
            reply: response("409 ", TEXT, format!("secret={token}")),
            said: "409 ([hidden])",
            ..Case::default()
        },
        Case {
            name: "a redirect of the PATCH",
            reply: response("307 ", &format!("Location: /{token}"), ""),
            said: "307: it redirects to /[hidden]: set --url to it if it is the portal's own address, otherwise a login page stands in front, or an error page",
            ..Case::default()
        },
        Case {
            name: "the client id is no secret",
            client: &client,
            reply: response("409 ", TEXT, format!("no {client}")),
            said: &format!("409 (no {client})"),
            ..Case::default()
        },
        Case {
            name: "the DELETE",
            request: "DELETE revoke",
            reply: response("409 ", TEXT, &token),
            status: 5,
            said: &format!("409 ({token})"),
            ..Case::default()
        },
    ] {
        case.check();
    }
}

#[test]
fn a_refusal_that_contains_a_part_of_a_known_secret_is_hidden() {
    let new_secret = SECRET.to_lowercase();
    let fields = format!(r#"{{"title":"Bad","detail":"it is {new_secret}."}}"#);
    let late_key = format!("{}{KEY}", "x ".repeat(98));
    for case in [
        Case {
            name: "the key",
            reply: response("409 ", TEXT, &KEY[5..13]),
            said: "409 ([hidden])",
            ..Case::default()
        },
        Case {
            name: "the key after the part that is shown",
            reply: response("409 ", TEXT, late_key),
            said: "409 ([hidden])",
            ..Case::default()
        },
        Case {
            name: "the signature",
            reply: response("409 ", TEXT, SIGNATURE[30..40].to_uppercase()),
            said: "409 ([hidden])",
            ..Case::default()
        },
        Case {
            name: "the new secret",
            reply: response("409 ", TEXT, &SECRET[28..]),
            said: "409 ([hidden])",
            ..Case::default()
        },
        Case {
            name: "one of two fields",
            reply: response("404 ", JSON, fields),
            said: "404 (Bad: [hidden])",
            ..Case::default()
        },
    ] {
        let (request, status) = ("DELETE revoke", 5);
        Case {
            request,
            status,
            ..case
        }
        .check();
    }
}

#[test]
fn a_redirect_is_not_followed_and_its_target_is_named() {
    let other = MockPortal::new(vec![]);
    let url = other.url();
    let redirect =
        |location: &str| response("307 Moved", &format!("Location: {location}"), "moved");
    for case in [
        Case {
            name: "a query and a fragment",
            reply: redirect(&format!("{url}/x/?key=hush#hush")),
            said: &format!(
                "307: it redirects to {url}/x/: set --url to it if it is the portal's own address, otherwise a login page stands in front, or an error page"
            ),
            ..Case::default()
        },
        Case {
            name: "a user and a password",
            reply: redirect("https://user:hush@new.invalid/x"),
            said: "307: it redirects to https://new.invalid/x: set --url to it if it is the portal's own address, otherwise a login page stands in front, or an error page",
            ..Case::default()
        },
        Case {
            name: "a path alone",
            reply: redirect("/login?hush"),
            said: "307: it redirects to /login: set --url to it if it is the portal's own address, otherwise a login page stands in front, or an error page",
            ..Case::default()
        },
    ] {
        case.check();
    }
    assert_eq!(other.connections(), 0);
}

#[test]
fn a_revoke_that_is_refused_or_answered_with_a_web_page_is_5_and_ends_the_run() {
    for case in [
        Case {
            name: "refused",
            reply: recorded("delete-403-unsigned"),
            said: "403: the identity service does not accept the portal's signature, or is failing, or something in front of the portal refuses, or removes x-signature",
            ..Case::default()
        },
        Case {
            name: "a web page",
            reply: response("202 ", "", "\u{feff} \r\n<html>login</html>"),
            said: "202: a web page, not an API reply",
            ..Case::default()
        },
    ] {
        let (request, status) = ("DELETE revoke", 5);
        let args = &["--verify"];
        Case {
            request,
            status,
            args,
            ..case
        }
        .check();
    }
}

#[test]
fn a_revoke_alone_that_is_refused_is_3() {
    let delete = expect("DELETE revoke", recorded("delete-403-unsigned"));
    let run = run_script(vec![sign_in(), delete], &["--only", "revoke"]);
    run.fails_with(
        3,
        &format!(
            "with status 403: the identity service does not accept the portal's signature, or is failing, or something in front of the portal refuses, or removes x-signature; {REFUSED}"
        ),
    );
}
