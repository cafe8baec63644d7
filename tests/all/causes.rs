//! The cause of a failure: a line names one only where the reply proves it, and shows what the
//! server said. What stands in front of a portal refuses with the same statuses.

use crate::mock::*;
use crate::run::*;
use crate::words::*;

/// One run, and every line that it prints.
struct Case {
    name: String,
    tls: bool,
    key: &'static str,
    /// The path of the portal's address.
    path: &'static str,
    args: &'static [&'static str],
    script: Vec<Expect>,
    status: i32,
    stdout: String,
    /// The log and the error line. `<portal>` is the portal's address.
    stderr: Vec<String>,
}

impl Default for Case {
    fn default() -> Case {
        Case {
            name: String::new(),
            tls: false,
            key: KEY,
            path: "",
            args: &[],
            script: vec![],
            status: 3,
            stdout: String::new(),
            stderr: vec![],
        }
    }
}

fn check_all(cases: Vec<Case>) {
    for_each(cases, check);
}

fn check(case: Case) {
    let (_folder, certificates, ca) = authority();
    let server = case.tls.then(|| certificates.server("127.0.0.1"));
    let portal = MockPortal::start(server, case.script);
    let mut command = rotate(&portal);
    command
        .env("CASE", &case.name)
        .env("DOCSPACE_API_KEY", case.key)
        .env("DOCSPACE_BASE_URL", portal.url() + case.path)
        .arg("--cacert")
        .arg(ca)
        .args(case.args);
    let done = run(&mut command);
    let at = "127.0.0.1:PORT".to_owned() + case.path.trim_end_matches('/');
    let mut expected = vec![];
    for line in case.stderr {
        expected.push(line.replace("<portal>", &at));
    }
    let found: Vec<&str> = done.stderr.lines().collect();
    assert_eq!(found, expected, "{}\n{done}", case.name);
    let result = (done.status, &done.stdout);
    let expected = (Some(case.status), &case.stdout);
    assert_eq!(result, expected, "{}\n{done}", case.name);
}

/// A way to run the program, and the call whose refusal ends the run.
#[derive(Clone, Copy)]
struct Mode {
    args: &'static [&'static str],
    call: &'static str,
}

const RUN: Mode = Mode {
    args: &[],
    call: "PATCH regenerate",
};
const CHECK: Mode = Mode {
    args: &["--check"],
    call: "HEAD client",
};
const ONLY_REVOKE: Mode = Mode {
    args: &["--only", "revoke"],
    call: "DELETE revoke",
};
const MODES: [Mode; 3] = [RUN, CHECK, ONLY_REVOKE];

impl Mode {
    fn script(self, sign_in: Vec<u8>, reply: Vec<u8>) -> Vec<Expect> {
        let mut script = vec![expect("GET token", sign_in)];
        if self.call == RUN.call {
            script.push(probe());
        }
        script.push(expect(self.call, reply));
        script
    }

    /// Returns the lines of a run that this reply ends. The sign-in's line is missing if it issued
    /// a signature.
    fn log(self, sign_in: &[u8], why: Option<&str>, reply: &[u8]) -> Vec<String> {
        let mut log = vec![status_line("GET token", sign_in)];
        if let Some(why) = why {
            log.push(unsigned_line(why));
        }
        if self.call == RUN.call {
            log.push(GOOD_RUN_LOG[1].to_owned());
        }
        log.push(status_line(self.call, reply));
        log
    }
}

/// Returns the status of a reply.
fn status_in(reply: &[u8]) -> String {
    String::from_utf8_lossy(&reply[9..12]).into_owned()
}

fn status_line(call: &str, reply: &[u8]) -> String {
    format!("[{call}] Status: {}", status_in(reply))
}

fn unsigned_line(why: &str) -> String {
    format!("The portal issued no signature ({why}): continuing with the key alone.")
}

fn note(why: &str) -> String {
    format!(", and [GET token] issued no signature ({why})")
}

fn error_line(call: &str, said: &str, state: &str) -> String {
    format!("docspace-rotate: <portal> answered [{call}] with status {said}; {state}")
}

/// Returns a refusal without a body, and without a type.
fn empty(status: &str) -> Vec<u8> {
    response(status, "", "")
}

fn json_with(status: &str, body: &str) -> Vec<u8> {
    response(status, "Content-Type: application/json", body)
}

fn problem(status: &str, body: &str) -> Vec<u8> {
    response(status, "Content-Type: application/problem+json", body)
}

fn plain(status: &str, body: &str) -> Vec<u8> {
    response(status, "Content-Type: text/plain", body)
}

fn html(status: &str, body: &str) -> Vec<u8> {
    response(status, "Content-Type: text/html", body)
}

/// Returns the reply with another status.
fn with_status(status: &str, reply: &[u8]) -> Vec<u8> {
    [b"HTTP/1.1 ", status.as_bytes(), &reply[12..]].concat()
}

/// Returns the reply with one more header line.
fn with_header(header: &str, reply: &[u8]) -> Vec<u8> {
    let text = [header.as_bytes(), b"\r\n"].concat();
    let end = reply.windows(2).position(|end| end == b"\r\n").unwrap();
    let (first, rest) = reply.split_at(end + 2);
    [first, &text, rest].concat()
}

/// Returns the reply with a wait that no run has time for, so that the run ends at once.
fn later(reply: &[u8]) -> Vec<u8> {
    with_header("Retry-After: 3600", reply)
}

const TOO_LATE: &str = ", and the next attempt in 3600s would exceed the time limit";

const WRONG_KEY: &str = "the key is wrong, deactivated or expired, or its user is disabled, \
    or something in front of the portal refuses, or removes the key";
const PASSWORD: &str = "something in front of the portal asks for a password or other credentials";
const RESTRICTED: &str = "usually means that the key's rights are restricted \
    (it needs read access to everything), or something in front of the portal refuses";
const NO_API: &str = "no DocSpace API at this address, or DocSpace is older than 3.1";
const WEB_PAGE: &str = "a web page, not an API reply";
const ROLE: &str = "the key's user is a guest, or Developer Tools are limited to administrators";
const SIGNATURE_REFUSED: &str = "the identity service does not accept the portal's signature, or is failing, \
    or something in front of the portal refuses, or removes x-signature";
const NO_CLIENT: &str = "no client with this id, or the key's user may not manage it";

struct SignInRow {
    name: &'static str,
    key: &'static str,
    reply: Vec<u8>,
    /// What the line says after the status.
    said: String,
}

impl Default for SignInRow {
    fn default() -> SignInRow {
        SignInRow {
            name: "",
            key: KEY,
            reply: vec![],
            said: String::new(),
        }
    }
}

#[test]
fn a_sign_in_that_is_not_authorized() {
    let basic = "WWW-Authenticate: Basic realm=\"staff\"";
    let rows = vec![
        SignInRow {
            name: "an API key",
            reply: recorded("token-401"),
            said: format!("401: {WRONG_KEY}"),
            ..SignInRow::default()
        },
        SignInRow {
            name: "another bearer",
            key: BEARER,
            reply: recorded("token-401"),
            said: format!("401: {WRONG_KEY} (it does not begin with sk-, so it is not an API key)"),
        },
        SignInRow {
            name: "an API key, and a challenge for a bearer",
            reply: with_header("WWW-Authenticate: Bearer", &recorded("token-401")),
            said: format!("401: {WRONG_KEY}"),
            ..SignInRow::default()
        },
        SignInRow {
            name: "a bearer realm called basic, which is ambiguous",
            reply: response("401 ", "WWW-Authenticate: Bearer realm=\"basic\"", ""),
            said: "401".to_owned(),
            ..SignInRow::default()
        },
        SignInRow {
            name: "a bearer whose error is described",
            reply: response(
                "401 ",
                "WWW-Authenticate: Bearer error=\"invalid_token\", error_description=\"It is old\"",
                "",
            ),
            said: format!("401: {WRONG_KEY}"),
            ..SignInRow::default()
        },
        SignInRow {
            name: "a bearer, and Basic on a line of its own",
            reply: with_header(
                "WWW-Authenticate: Bearer",
                &with_header(basic, &recorded("token-401")),
            ),
            said: "401".to_owned(),
            ..SignInRow::default()
        },
        SignInRow {
            name: "a bearer, and Basic on the same line",
            reply: response("401 ", "WWW-Authenticate: Bearer, Basic realm=\"x\"", ""),
            said: "401".to_owned(),
            ..SignInRow::default()
        },
        SignInRow {
            name: "a bearer, and Negotiate",
            reply: response("401 ", "WWW-Authenticate: Bearer, Negotiate", ""),
            said: "401".to_owned(),
            ..SignInRow::default()
        },
        SignInRow {
            name: "a bearer, and NTLM",
            reply: response("401 ", "WWW-Authenticate: Bearer, NTLM", ""),
            said: "401".to_owned(),
            ..SignInRow::default()
        },
        SignInRow {
            name: "a scheme without a password",
            reply: response("401 ", "WWW-Authenticate: AWS4-HMAC-SHA256", ""),
            said: format!("401: {PASSWORD}"),
            ..SignInRow::default()
        },
        SignInRow {
            name: "Basic before a tab",
            reply: response("401 ", "WWW-Authenticate: Basic\trealm=\"x\"", ""),
            said: format!("401: {PASSWORD}"),
            ..SignInRow::default()
        },
        SignInRow {
            name: "Basic",
            reply: with_header(basic, &recorded("token-401")),
            said: format!("401: {PASSWORD}"),
            ..SignInRow::default()
        },
        SignInRow {
            name: "Basic, another bearer",
            key: BEARER,
            reply: with_header(basic, &recorded("token-401")),
            said: format!("401: {PASSWORD}"),
        },
        SignInRow {
            name: "Basic, with an umlaut",
            reply: response("401 ", "WWW-Authenticate: Basic realm=\"Büro\"", ""),
            said: format!("401: {PASSWORD}"),
            ..SignInRow::default()
        },
        SignInRow {
            name: "Negotiate",
            reply: response("401 ", "WWW-Authenticate: NEGOTIATE", ""),
            said: format!("401: {PASSWORD}"),
            ..SignInRow::default()
        },
        SignInRow {
            name: "NTLM",
            reply: response("401 ", "WWW-Authenticate: ntlm", ""),
            said: format!("401: {PASSWORD}"),
            ..SignInRow::default()
        },
        SignInRow {
            name: "Basic, with text",
            reply: with_header(basic, &plain("401 ", "Who are you?")),
            said: format!("401 (Who are you?): {PASSWORD}"),
            ..SignInRow::default()
        },
        SignInRow {
            name: "JSON",
            reply: json_with("401 ", r#"{"error":"unauthorized"}"#),
            said: "401 (unauthorized)".to_owned(),
            ..SignInRow::default()
        },
        SignInRow {
            name: "JSON that is called compressed",
            reply: with_header(
                "Content-Encoding: gzip",
                &json_with("401 ", r#"{"error":"unauthorized"}"#),
            ),
            said: "401 (unauthorized)".to_owned(),
            ..SignInRow::default()
        },
        SignInRow {
            name: "JSON, another bearer",
            key: BEARER,
            reply: json_with("401 ", r#"{"title":"No","detail":"not you"}"#),
            said: "401 (No: not you)".to_owned(),
        },
        SignInRow {
            name: "JSON with nothing to show",
            reply: json_with("401 ", "{}"),
            said: "401".to_owned(),
            ..SignInRow::default()
        },
        SignInRow {
            name: "text",
            reply: plain("401 ", "Unauthorized\n"),
            said: "401 (Unauthorized)".to_owned(),
            ..SignInRow::default()
        },
        SignInRow {
            name: "text without a type",
            reply: response("401 ", "", "Unauthorized"),
            said: "401".to_owned(),
            ..SignInRow::default()
        },
        SignInRow {
            name: "a page",
            reply: recorded("page-401-nginx"),
            said: format!("401 (401 Authorization Required): {WEB_PAGE}"),
            ..SignInRow::default()
        },
        SignInRow {
            name: "a page, and Basic",
            reply: with_header(basic, &recorded("page-401-nginx")),
            said: format!("401 (401 Authorization Required): {WEB_PAGE}"),
            ..SignInRow::default()
        },
        SignInRow {
            name: "an empty page",
            reply: html("401 ", ""),
            said: format!("401: {WEB_PAGE}"),
            ..SignInRow::default()
        },
    ];
    let mut cases = vec![];
    for row in rows {
        for mode in MODES {
            cases.push(Case {
                name: format!("{}, for {}", row.name, mode.call),
                key: row.key,
                args: mode.args,
                script: vec![expect("GET token", row.reply.clone())],
                stderr: vec![
                    status_line("GET token", &row.reply),
                    error_line("GET token", &row.said, REFUSED),
                ],
                ..Case::default()
            });
        }
    }
    check_all(cases);
}

/// The cause is in the log, and in the error of the call that is then refused.
#[test]
fn a_sign_in_without_a_signature() {
    let unfinished = b"HTTP/1.1 403 \r\nContent-Length: 99\r\nConnection: close\r\n\r\n{".to_vec();
    let rows = vec![
        SignInRow {
            name: "402",
            reply: recorded("token-402"),
            said: "402: the portal's subscription or licence has lapsed".to_owned(),
            ..SignInRow::default()
        },
        SignInRow {
            name: "402 of something else",
            reply: plain("402 ", "quota exceeded"),
            said: "402 (quota exceeded)".to_owned(),
            ..SignInRow::default()
        },
        SignInRow {
            name: "403, an API key",
            reply: recorded("token-403"),
            said: format!("403: {RESTRICTED}"),
            ..SignInRow::default()
        },
        SignInRow {
            name: "403, another bearer",
            key: BEARER,
            reply: recorded("token-403"),
            said: "403: OAuth and personal access tokens cannot sign in, use an API key".to_owned(),
        },
        SignInRow {
            name: "403, problem+json",
            reply: recorded("token-403-restore"),
            said: "403 (Forbidden): the portal is being restored, moved or encrypted".to_owned(),
            ..SignInRow::default()
        },
        SignInRow {
            name: "403, problem+json, another bearer",
            key: BEARER,
            reply: recorded("token-403-restore"),
            said: "403 (Forbidden): the portal is being restored, moved or encrypted".to_owned(),
        },
        SignInRow {
            name: "403, a JSON string",
            reply: recorded("token-403-restricted"),
            said: "403 (The access to the portal is restricted)".to_owned(),
            ..SignInRow::default()
        },
        SignInRow {
            name: "403, a JSON string in Russian, another bearer",
            key: BEARER,
            reply: json_with("403 ", "\"Доступ к порталу ограничен\""),
            said: "403 (Доступ к порталу ограничен)".to_owned(),
        },
        SignInRow {
            name: "403, other JSON",
            reply: json_with("403 ", r#"{"error":{"message":"not from here"}}"#),
            said: "403 (not from here)".to_owned(),
            ..SignInRow::default()
        },
        SignInRow {
            name: "403, JSON that is called HTML",
            reply: html("403 ", r#"{"message":"not from here"}"#),
            said: "403 (not from here)".to_owned(),
            ..SignInRow::default()
        },
        SignInRow {
            name: "403, text",
            reply: plain("403 ", "RBAC: access denied"),
            said: "403 (RBAC: access denied)".to_owned(),
            ..SignInRow::default()
        },
        SignInRow {
            name: "403, text without a type",
            reply: response("403 ", "", "access denied"),
            said: "403".to_owned(),
            ..SignInRow::default()
        },
        SignInRow {
            name: "403, a page",
            reply: recorded("page-403-challenge"),
            said: format!("403 (Just a moment...): {WEB_PAGE}"),
            ..SignInRow::default()
        },
        SignInRow {
            name: "403, a page that is called JSON",
            reply: json_with("403 ", "\u{feff}\r\n <title>no</title>"),
            said: format!("403 (no): {WEB_PAGE}"),
            ..SignInRow::default()
        },
        SignInRow {
            name: "403, an empty page",
            reply: html("403 ", ""),
            said: format!("403: {WEB_PAGE}"),
            ..SignInRow::default()
        },
        SignInRow {
            name: "404, problem+json",
            reply: recorded("token-404-suspended"),
            said: "404 (Not Found): the portal is suspended or being removed, or no portal is at this address".to_owned(),
            ..SignInRow::default()
        },
        SignInRow {
            name: "404, empty",
            reply: recorded("token-404-old"),
            said: format!("404: {NO_API}"),
            ..SignInRow::default()
        },
        SignInRow {
            name: "404, empty, another bearer",
            key: BEARER,
            reply: recorded("token-404-old"),
            said: format!("404: {NO_API}"),
        },
        SignInRow {
            name: "404, other JSON",
            reply: json_with("404 ", r#"{"message":"no Route matched"}"#),
            said: "404 (no Route matched)".to_owned(),
            ..SignInRow::default()
        },
        SignInRow {
            name: "404, text",
            reply: plain("404 ", "404 page not found\n"),
            said: "404 (404 page not found)".to_owned(),
            ..SignInRow::default()
        },
        SignInRow {
            name: "400, a page",
            reply: recorded("page-400-https"),
            said: format!("400 (400 The plain HTTP request was sent to HTTPS port): {WEB_PAGE}"),
            ..SignInRow::default()
        },
        SignInRow {
            name: "405",
            reply: empty("405 "),
            said: "405".to_owned(),
            ..SignInRow::default()
        },
        SignInRow {
            name: "501",
            reply: empty("501 "),
            said: "501".to_owned(),
            ..SignInRow::default()
        },
        SignInRow {
            name: "200, a page",
            reply: json("<html><title>Sign in</title></html>"),
            said: format!("200 (Sign in): {WEB_PAGE}"),
            ..SignInRow::default()
        },
        SignInRow {
            name: "200, no signature",
            reply: json(r#"{"response":"no.jwt","title":"x"}"#),
            said: "200".to_owned(),
            ..SignInRow::default()
        },
    ];
    let mut cases = vec![];
    for row in rows {
        let why = format!("status {}", row.said);
        let refusal = recorded("patch-403-unsigned");
        for mode in MODES {
            let mut stderr = mode.log(&row.reply, Some(&why), &refusal);
            let said = format!("403{}", note(&why));
            stderr.push(error_line(mode.call, &said, REFUSED));
            cases.push(Case {
                name: format!("{}, for {}", row.name, mode.call),
                key: row.key,
                args: mode.args,
                script: mode.script(row.reply.clone(), refusal.clone()),
                stderr,
                ..Case::default()
            });
        }
    }
    // A body whose end is missing is not empty, and is not shown.
    let mut stderr = CHECK.log(&unfinished, Some("status 403"), b"HTTP/1.1 404 ");
    let said = format!("404{}", note("status 403"));
    stderr.push(error_line(CHECK.call, &said, REFUSED));
    cases.push(Case {
        name: "403, the connection is closed".to_owned(),
        args: CHECK.args,
        script: vec![
            expect_then("GET token", [Action::Send(unfinished), Action::Close]),
            expect(CHECK.call, empty("404 ")),
        ],
        stderr,
        ..Case::default()
    });
    check_all(cases);
}

/// A refused call, signed and unsigned.
#[derive(Default)]
struct Refusal<'a> {
    name: &'static str,
    reply: Vec<u8>,
    /// In parentheses. A reply to a HEAD has no words.
    words: &'static str,
    signed: &'a str,
    unsigned: &'a str,
}

impl Refusal<'_> {
    fn cases(&self, mode: Mode) -> [Case; 2] {
        let why = format!("status 403: {RESTRICTED}");
        let words = if mode.call == CHECK.call {
            ""
        } else {
            self.words
        };
        let status = status_in(&self.reply);
        let case = |sign_in: Vec<u8>, why: Option<&str>, cause: &str| {
            let mut said = format!("{status}{words}");
            if !cause.is_empty() {
                said += &format!(": {cause}");
            }
            said += &why.map(note).unwrap_or_default();
            let mut stderr = mode.log(&sign_in, why, &self.reply);
            stderr.push(error_line(mode.call, &said, REFUSED));
            let signed = if why.is_some() { "unsigned" } else { "signed" };
            Case {
                name: format!("{}, {signed} {}", self.name, mode.call),
                args: mode.args,
                script: mode.script(sign_in, self.reply.clone()),
                stderr,
                ..Case::default()
            }
        };
        [
            case(recorded("token-200"), None, self.signed),
            case(recorded("token-403"), Some(&why), self.unsigned),
        ]
    }
}

#[test]
fn a_call_that_is_refused() {
    let not_found = format!(
        r#"{{"title":"Not Found","detail":"{} is not here"}}"#,
        CLIENT.to_uppercase()
    );
    let rows = [
        Refusal {
            name: "403, problem+json",
            reply: recorded("patch-403-denied"),
            words: " (Forbidden: Access denied)",
            signed: ROLE,
            ..Refusal::default()
        },
        Refusal {
            name: "403, empty, without a type",
            reply: recorded("patch-403-unsigned"),
            signed: SIGNATURE_REFUSED,
            ..Refusal::default()
        },
        Refusal {
            name: "403, empty, with a type",
            reply: plain("403 ", ""),
            ..Refusal::default()
        },
        Refusal {
            name: "403, other JSON",
            reply: json_with("403 ", r#"{"message":"not from here"}"#),
            words: " (not from here)",
            ..Refusal::default()
        },
        Refusal {
            name: "403, text",
            reply: plain("403 ", "RBAC: access denied"),
            words: " (RBAC: access denied)",
            ..Refusal::default()
        },
        Refusal {
            name: "403, a page",
            reply: recorded("page-403-challenge"),
            words: " (Just a moment...)",
            signed: WEB_PAGE,
            unsigned: WEB_PAGE,
        },
        Refusal {
            name: "403, empty, with a challenge",
            reply: response(
                "403 ",
                "WWW-Authenticate: Bearer error=\"insufficient_scope\"",
                "",
            ),
            ..Refusal::default()
        },
        Refusal {
            name: "404, problem+json",
            reply: problem("404 ", &not_found),
            words: " (Not Found: 27D1F5AC-11DA-4592-828D-1BD6E6212E9D is not here)",
            signed: NO_CLIENT,
            unsigned: NO_CLIENT,
        },
        Refusal {
            name: "404, text",
            reply: plain("404 ", "404 page not found\n"),
            words: " (404 page not found)",
            ..Refusal::default()
        },
        Refusal {
            name: "404, empty",
            reply: empty("404 "),
            ..Refusal::default()
        },
        Refusal {
            name: "404, an empty page",
            reply: html("404 ", ""),
            signed: WEB_PAGE,
            unsigned: WEB_PAGE,
            ..Refusal::default()
        },
        Refusal {
            name: "401, empty",
            reply: recorded("token-401"),
            ..Refusal::default()
        },
        Refusal {
            name: "401, Basic",
            reply: response("401 ", "WWW-Authenticate: Basic", ""),
            ..Refusal::default()
        },
        Refusal {
            name: "401, JSON",
            reply: json_with("401 ", r#"{"error":"unauthorized"}"#),
            words: " (unauthorized)",
            ..Refusal::default()
        },
        Refusal {
            name: "400, a page",
            reply: recorded("page-400-https"),
            words: " (400 The plain HTTP request was sent to HTTPS port)",
            signed: WEB_PAGE,
            unsigned: WEB_PAGE,
        },
        Refusal {
            name: "402",
            reply: recorded("token-402"),
            ..Refusal::default()
        },
    ];
    let with_body = [
        Refusal {
            name: "404 with a reason",
            reply: json_with("404 ", r#"{"reason":"no such client"}"#),
            words: " (no such client)",
            signed: NO_CLIENT,
            unsigned: NO_CLIENT,
        },
        Refusal {
            name: "404 with a reason, and more",
            reply: json_with("404 ", r#"{"reason":"no route","code":"5"}"#),
            words: " (no route)",
            ..Refusal::default()
        },
        Refusal {
            name: "404 with a reason, truncated",
            reply: json_with("404 ", r#"{"reason":"no such client"#),
            ..Refusal::default()
        },
        Refusal {
            name: "404 in plain JSON that is called compressed",
            reply: encoded("gzip", &problem("404 ", r#"{"title":"Not Found"}"#)),
            words: " (Not Found)",
            signed: NO_CLIENT,
            unsigned: NO_CLIENT,
        },
        Refusal {
            name: "404 of Kubernetes",
            reply: json_with(
                "404 ",
                r#"{"kind":"Status","reason":"NotFound","code":404}"#,
            ),
            words: " (NotFound)",
            ..Refusal::default()
        },
        Refusal {
            name: "404, other JSON",
            reply: json_with("404 ", r#"{"message":"no Route matched"}"#),
            words: " (no Route matched)",
            ..Refusal::default()
        },
        Refusal {
            name: "404, JSON that is called HTML",
            reply: html("404 ", r#"{"message":"no Route matched"}"#),
            words: " (no Route matched)",
            ..Refusal::default()
        },
        Refusal {
            name: "403, a page that is called problem+json",
            reply: problem("403 ", "\u{feff} <title>no</title>"),
            words: " (no)",
            signed: WEB_PAGE,
            unsigned: WEB_PAGE,
        },
        Refusal {
            name: "400 problem+json",
            reply: problem("400 ", r#"{"errors":[{"message":"a"},{"message":"b"}]}"#),
            words: " (a)",
            ..Refusal::default()
        },
        Refusal {
            name: "405",
            reply: empty("405 "),
            ..Refusal::default()
        },
    ];
    let mut cases = vec![];
    for row in &rows {
        cases.extend(MODES.iter().flat_map(|mode| row.cases(*mode)));
    }
    for row in &with_body {
        cases.extend(row.cases(RUN));
        cases.extend(row.cases(ONLY_REVOKE));
    }
    check_all(cases);
}

/// A HEAD has no body, so a type or a status alone has to do.
#[test]
fn a_check_that_is_refused() {
    let no_path = "no client with this id that the key's user may manage, or no such path";
    let cannot = "this server cannot check a client; a run may still work";
    let rows = [
        Refusal {
            name: "404, JSON",
            reply: json_with("404 ", r#"{"reason":"no such client"}"#),
            signed: no_path,
            unsigned: no_path,
            ..Refusal::default()
        },
        Refusal {
            name: "404, JSON with a charset",
            reply: response("404 ", "Content-Type: Application/JSON;charset=utf-8", "{}"),
            signed: no_path,
            unsigned: no_path,
            ..Refusal::default()
        },
        Refusal {
            name: "405",
            reply: empty("405 "),
            signed: cannot,
            unsigned: cannot,
            ..Refusal::default()
        },
        Refusal {
            name: "501",
            reply: empty("501 "),
            signed: cannot,
            unsigned: cannot,
            ..Refusal::default()
        },
        Refusal {
            name: "405, a page",
            reply: html("405 ", ""),
            signed: WEB_PAGE,
            unsigned: WEB_PAGE,
            ..Refusal::default()
        },
    ];
    let mut cases = vec![];
    for row in &rows {
        cases.extend(row.cases(CHECK));
    }
    // A success is no note's business.
    for args in [&[][..], &["--check"]] {
        cases.push(Case {
            name: format!("200, a page, {args:?}"),
            args,
            script: vec![sign_in(), expect("HEAD client", html("200 OK", ""))],
            stderr: vec![
                GOOD_RUN_LOG[0].to_owned(),
                GOOD_RUN_LOG[1].to_owned(),
                error_line("HEAD client", &format!("200: {WEB_PAGE}"), REFUSED),
            ],
            ..Case::default()
        });
    }
    check_all(cases);
}

/// The first retry shows the server's words, and the error does.
#[test]
fn a_portal_that_fails_for_now_says_why() {
    let rows = [
        (
            "token-500-tenant",
            "500",
            "500 (Could not resolve current tenant :-(.)",
        ),
        ("gateway-502", "502", "502 (500 Error Page)"),
        ("gateway-504", "504", "504 (500 Error Page)"),
    ];
    let mut cases = vec![];
    for (reply, status, said) in rows {
        for mode in MODES {
            cases.push(Case {
                name: format!("{reply}, before {}", mode.call),
                args: mode.args,
                script: vec![
                    expect("GET token", recorded(reply)),
                    expect("GET token", later(&recorded(reply))),
                ],
                status: 4,
                stderr: vec![
                    format!("[GET token] Status: {said}, trying again in 1s"),
                    format!("[GET token] Status: {status}"),
                    error_line("GET token", &format!("{said}{TOO_LATE}"), UNCHANGED),
                ],
                ..Case::default()
            });
        }
    }
    check_all(cases);
}

struct Redirect {
    name: &'static str,
    tls: bool,
    status: &'static str,
    /// `<portal>` is the portal's address.
    location: String,
    cause: String,
}

impl Default for Redirect {
    fn default() -> Redirect {
        Redirect {
            name: "",
            tls: false,
            status: "302 Found",
            location: String::new(),
            cause: String::new(),
        }
    }
}

fn redirects_to(target: &str) -> String {
    format!(
        "it redirects to {target}: set --url to it if it is the portal's own address, \
         otherwise a login page stands in front, or an error page"
    )
}

fn redirects() -> Vec<Redirect> {
    let forwarded = |target: &str| {
        format!(
            "it redirects to {target}: \
             the proxy in front of the portal must send X-Forwarded-Proto: https"
        )
    };
    let upper = CLIENT.to_uppercase();
    let long = format!("{}.invalid", "a-host.".repeat(1000));
    vec![
        Redirect {
            name: "https to http on the same host",
            tls: true,
            location: "http://127.0.0.1/api/2.0/security/oauth2/token".to_owned(),
            cause: forwarded("http://127.0.0.1/api/2.0/security/oauth2/token"),
            ..Redirect::default()
        },
        Redirect {
            name: "https to http on the same host and port",
            tls: true,
            status: "308 ",
            location: "HTTP://<portal>/x".to_owned(),
            cause: forwarded("http://<portal>/x"),
        },
        Redirect {
            name: "http to https on the same host",
            status: "301 ",
            location: "https://127.0.0.1/api/2.0".to_owned(),
            cause: "it redirects to https://127.0.0.1/api/2.0: use https:// in the address, with this host and port"
                .to_owned(),
            ..Redirect::default()
        },
        Redirect {
            name: "http to https on another port of the same host",
            location: "https://127.0.0.1:8443/api/2.0".to_owned(),
            cause:
                "it redirects to https://127.0.0.1:8443/api/2.0: use https:// in the address, with this host and port"
                    .to_owned(),
            ..Redirect::default()
        },
        Redirect {
            name: "https to http on another host",
            tls: true,
            location: "http://login.invalid/".to_owned(),
            cause: redirects_to("http://login.invalid/"),
            ..Redirect::default()
        },
        Redirect {
            name: "http to https on another host",
            location: "https://login.invalid/".to_owned(),
            cause: redirects_to("https://login.invalid/"),
            ..Redirect::default()
        },
        Redirect {
            name: "another host with a port, a query and a fragment",
            status: "307 ",
            location: "https://login.invalid:8443/sign-in?next=%2Fapi#top".to_owned(),
            cause: redirects_to("https://login.invalid:8443/sign-in"),
            ..Redirect::default()
        },
        Redirect {
            name: "another host with a user and a password",
            location: "https://user:word@login.invalid/".to_owned(),
            cause: redirects_to("https://login.invalid/"),
            ..Redirect::default()
        },
        Redirect {
            name: "the same host, another port",
            location: "http://127.0.0.1:1/docs".to_owned(),
            cause: redirects_to("http://127.0.0.1:1/docs"),
            ..Redirect::default()
        },
        Redirect {
            name: "relative, from the root",
            status: "307 ",
            location: "/login?next=/".to_owned(),
            cause: redirects_to("/login"),
            ..Redirect::default()
        },
        Redirect {
            name: "relative, from the root, over TLS",
            tls: true,
            location: "/login".to_owned(),
            cause: redirects_to("/login"),
            ..Redirect::default()
        },
        Redirect {
            name: "relative to the path",
            location: "login.php".to_owned(),
            cause: redirects_to("login.php"),
            ..Redirect::default()
        },
        Redirect {
            name: "a bad address",
            location: "http://[login/".to_owned(),
            cause: redirects_to("http://[login/"),
            ..Redirect::default()
        },
        Redirect {
            name: "a port that is none",
            location: "https://127.0.0.1:x/".to_owned(),
            cause: "it redirects to https://127.0.0.1:x/: use https:// in the address, with this host and port"
                .to_owned(),
            ..Redirect::default()
        },
        Redirect {
            name: "a space",
            location: "https://login.invalid/sign in".to_owned(),
            cause: redirects_to("https://login.invalid/sign in"),
            ..Redirect::default()
        },
        Redirect {
            name: "a space in a path",
            location: "/sign in".to_owned(),
            cause: redirects_to("/sign in"),
            ..Redirect::default()
        },
        Redirect {
            name: "a target that is sent twice",
            location: "https://login.invalid/\r\nLocation: https://login.invalid/".to_owned(),
            cause: redirects_to("https://login.invalid/"),
            ..Redirect::default()
        },
        Redirect {
            name: "without a scheme",
            location: "//login.invalid/path".to_owned(),
            cause: redirects_to("//login.invalid/path"),
            ..Redirect::default()
        },
        Redirect {
            name: "without a scheme, over TLS",
            tls: true,
            location: "//login.invalid:8443/path".to_owned(),
            cause: redirects_to("//login.invalid:8443/path"),
            ..Redirect::default()
        },
        Redirect {
            name: "a path with an unknown secret",
            location: "https://login.invalid/s/4kQmW8xYz2LpVn6RbT1cHs9D".to_owned(),
            cause: redirects_to("https://login.invalid/[hidden]"),
            ..Redirect::default()
        },
        Redirect {
            name: "a path with the client id in another case",
            location: format!("https://docs.invalid/api/2.0/clients/{upper}"),
            cause: redirects_to(&format!("https://docs.invalid/api/2.0/clients/{upper}")),
            ..Redirect::default()
        },
        Redirect {
            name: "a path with the key",
            location: format!("https://login.invalid/{KEY}/x"),
            cause: redirects_to("https://login.invalid/[hidden]"),
            ..Redirect::default()
        },
        Redirect {
            name: "a path with part of the key",
            location: format!("https://login.invalid/{}/x", &KEY[3..18]),
            cause: "[hidden]".to_owned(),
            ..Redirect::default()
        },
        Redirect {
            name: "a host with part of the key",
            location: format!("https://{}.invalid/", &KEY[3..18].to_uppercase()),
            cause: "[hidden]".to_owned(),
            ..Redirect::default()
        },
        Redirect {
            name: "a long host",
            location: format!("https://{long}/"),
            cause: redirects_to(&format!("https://{}…", &long[..191])),
            ..Redirect::default()
        },
        Redirect {
            name: "a compressed page",
            location: "/login\r\nContent-Encoding: gzip\r\nContent-Type: text/html".to_owned(),
            cause: redirects_to("/login"),
            ..Redirect::default()
        },
    ]
}

/// The mock has to know its own address, so its replies are computed.
#[test]
fn a_redirect_is_not_followed_and_says_where_it_leads() {
    for_each(redirects(), |row| {
        for (asked, mode) in [
            ("GET", ONLY_REVOKE),
            ("DELETE", ONLY_REVOKE),
            ("PATCH", RUN),
        ] {
            check_redirect(&row, asked, mode);
        }
        check_redirect(&row, "HEAD", CHECK);
    });
}

/// Checks a run in which this method, or both this and the sign-in, are answered with the redirect.
fn check_redirect(row: &Redirect, method: &'static str, mode: Mode) {
    let (_folder, certificates, ca) = authority();
    let server = row.tls.then(|| certificates.server("127.0.0.1"));
    let (status, location) = (row.status, row.location.clone());
    let portal = MockPortal::answering(server, move |request| {
        let at = request.header("host").unwrap();
        let location = location.replace("<portal>", at);
        let redirect = response(status, &format!("Location: {location}"), "moved");
        match request.method.as_str() {
            asked if asked == method => redirect,
            "GET" => recorded("token-200"),
            "HEAD" => recorded("get-200"),
            _ => recorded("patch-403-unsigned"),
        }
    });
    let done = run(rotate(&portal)
        .env("CASE", row.name)
        .args(mode.args)
        .arg("--cacert")
        .arg(ca));
    let status = row.status.split(' ').next().unwrap();
    let at = portal.at.to_string();
    let cause = row.cause.replace("<portal>", &at);
    let (said, line) = if method == "GET" {
        let why = format!("status {status}: {cause}");
        (format!("403{}", note(&why)), unsigned_line(&why))
    } else {
        let line = GOOD_RUN_LOG[0].to_owned();
        (format!("{status}: {cause}"), line)
    };
    let error = error_line(mode.call, &said, REFUSED);
    let error = error.replacen("<portal>", "127.0.0.1:PORT", 1);
    assert_eq!(done.error(), error, "{}\n{done}", row.name);
    assert_eq!(done.status, Some(3), "{}\n{done}", row.name);
    let has_line = done.stderr.lines().any(|found| found == line);
    assert!(has_line, "{}: {line}\n{done}", row.name);
}

/// What gzip makes of a text, as far as it matters here.
const COMPRESSED: &[u8] = b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xabV*J-.(\xca,NU\xb2R\xca\xceO";

fn compressed_by(encoding: &str) -> String {
    format!("the reply is compressed ({encoding}), although the request did not allow it")
}

fn encoded(encoding: &str, reply: &[u8]) -> Vec<u8> {
    with_header(&format!("Content-Encoding: {encoding}"), reply)
}

/// The PATCH's reply would be compressed, too, and the secret in it would be lost.
#[test]
fn a_portal_that_compresses_gets_no_patch() {
    let mut cases = vec![];
    for (encoding, shown) in [
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        ("deflate", "deflate"),
        ("compress", "compress"),
        ("br", "br"),
        ("zstd", "zstd"),
        ("GZip", "gzip"),
        ("identity, br", "br"),
    ] {
        let cause = compressed_by(shown);
        for mode in [RUN, CHECK] {
            // A good signature does not make up for the label: behind it, the secret could be compressed.
            for token in [json(COMPRESSED), recorded("token-200")] {
                cases.push(Case {
                    name: format!("{encoding:?}, sign-in before {}", mode.call),
                    args: mode.args,
                    script: vec![expect("GET token", encoded(encoding, &token))],
                    stderr: vec![
                        GOOD_RUN_LOG[0].to_owned(),
                        error_line("GET token", &format!("200: {cause}"), REFUSED),
                    ],
                    ..Case::default()
                });
            }
            for head in [recorded("get-200"), recorded("get-404")] {
                let said = format!("{}: {cause}", status_in(&head));
                cases.push(Case {
                    name: format!("{encoding:?}, HEAD before {}", mode.call),
                    args: mode.args,
                    script: vec![sign_in(), expect("HEAD client", encoded(encoding, &head))],
                    stderr: vec![
                        GOOD_RUN_LOG[0].to_owned(),
                        status_line("HEAD client", &head),
                        error_line("HEAD client", &said, REFUSED),
                    ],
                    ..Case::default()
                });
            }
        }
    }
    check_all(cases);
}

#[test]
fn compression_that_loses_no_secret_is_fine() {
    let mut cases = vec![];
    for encoding in ["identity", "Identity", "", "aws-chunked", "utf-8"] {
        let [token, head, patch] =
            ["token-200", "get-200", "patch-200"].map(|name| encoded(encoding, &recorded(name)));
        cases.push(Case {
            name: format!("{encoding:?}"),
            script: vec![
                expect("GET token", token),
                expect("HEAD client", head),
                expect("PATCH regenerate", patch),
                revoke(),
            ],
            status: 0,
            stdout: secret_line(),
            stderr: GOOD_RUN_LOG.map(str::to_owned).to_vec(),
            ..Case::default()
        });
    }
    let gzip = |reply: &[u8]| encoded("gzip", reply);
    cases.push(Case {
        name: "plain JSON that is called compressed, and a compressed reply to the DELETE"
            .to_owned(),
        script: ready([
            expect("PATCH regenerate", gzip(&recorded("patch-200"))),
            expect("DELETE revoke", gzip(&json(COMPRESSED))),
        ]),
        status: 0,
        stdout: secret_line(),
        stderr: GOOD_RUN_LOG.map(str::to_owned).to_vec(),
        ..Case::default()
    });
    let why = format!("status 200: {}", compressed_by("gzip"));
    cases.push(Case {
        name: "only revoke".to_owned(),
        args: ONLY_REVOKE.args,
        script: ONLY_REVOKE.script(gzip(&json(COMPRESSED)), gzip(&json(COMPRESSED))),
        status: 0,
        stderr: vec![
            GOOD_RUN_LOG[0].to_owned(),
            unsigned_line(&why),
            GOOD_RUN_LOG[4].to_owned(),
            GOOD_RUN_LOG[5].to_owned(),
        ],
        ..Case::default()
    });
    check_all(cases);
}

#[test]
fn a_compressed_refusal() {
    let gzip = |reply: &[u8]| encoded("gzip", reply);
    let cause = compressed_by("gzip");
    let rows = [
        Refusal {
            name: "a page",
            reply: gzip(&html("403 ", "\u{1f}")),
            ..Refusal::default()
        },
        Refusal {
            name: "text",
            reply: gzip(&response("403 ", "Content-Type: text/plain", COMPRESSED)),
            ..Refusal::default()
        },
        Refusal {
            name: "problem+json",
            reply: gzip(&problem("404 ", "\u{1f}")),
            ..Refusal::default()
        },
    ];
    let mut cases = vec![];
    for row in rows {
        let row = Refusal {
            signed: &cause,
            unsigned: &cause,
            ..row
        };
        cases.extend(row.cases(RUN));
        cases.extend(row.cases(ONLY_REVOKE));
    }
    // A portal that fails for now is waited for, whatever it sends.
    let busy = later(&gzip(&html("503 ", "\u{1f}")));
    cases.push(Case {
        name: "an outage".to_owned(),
        script: vec![expect("GET token", busy)],
        status: 4,
        stderr: vec![
            "[GET token] Status: 503".to_owned(),
            error_line("GET token", &format!("503{TOO_LATE}"), UNCHANGED),
        ],
        ..Case::default()
    });
    check_all(cases);
}

/// A reply to the PATCH that does not prove that it did nothing.
#[derive(Default)]
struct Lost {
    name: &'static str,
    reply: Vec<u8>,
    then: Option<Action>,
    said: String,
}

const CLOSED: &str = "200: the reply is incomplete: the connection was closed";
const ALL_THE_SAME: &str = "the reply contains a client_secret all the same";
const NO_SECRET: &str = "200: no valid client_secret in the reply";

fn lost_secrets() -> Vec<Lost> {
    let part = r#"{"client_secret":"LQn1uOTJsTqgOLJO1oB2ztSqw"#;
    let half = format!("HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{part}").into_bytes();
    let chunked = recorded("patch-200");
    let middle = chunked.len() - 20;
    let until_closed = format!("HTTP/1.1 200 OK\r\n\r\n{part}").into_bytes();
    let page = "<html><head><title>Sign\nin</title>";
    let open_page = format!("HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{page}").into_bytes();
    let large = format!(r#"{{"x":"{}"}}"#, "x ".repeat(40_000));
    let secret = format!(r#"{{"client_secret":"{SECRET}"}}"#);
    vec![
        Lost {
            name: "truncated JSON",
            reply: json(part),
            said: "200: truncated JSON".to_owned(),
            ..Lost::default()
        },
        Lost {
            name: "truncated JSON, up to the close",
            reply: until_closed,
            then: Some(Action::Close),
            said: "200: truncated JSON".to_owned(),
        },
        Lost {
            name: "closed",
            reply: half.clone(),
            then: Some(Action::Close),
            said: CLOSED.to_owned(),
        },
        Lost {
            name: "reset",
            reply: half,
            then: Some(Action::Reset),
            said: CLOSED.to_owned(),
        },
        Lost {
            name: "closed in a chunk",
            reply: chunked[..middle].to_vec(),
            then: Some(Action::Close),
            said: CLOSED.to_owned(),
        },
        Lost {
            name: "closed in the length of a chunk",
            reply: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n37".to_vec(),
            then: Some(Action::Close),
            said: CLOSED.to_owned(),
        },
        Lost {
            name: "a chunk with an invalid length",
            reply: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n{}\r\n".to_vec(),
            then: Some(Action::Hang),
            said: "200: the reply is incomplete: the reply is not HTTP/1.1, or cannot be parsed"
                .to_owned(),
        },
        Lost {
            name: "closed before the body",
            reply: b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n".to_vec(),
            then: Some(Action::Close),
            said: CLOSED.to_owned(),
        },
        Lost {
            name: "compressed",
            reply: encoded("br", &json(COMPRESSED)),
            said: format!("200: {}", compressed_by("br")),
            ..Lost::default()
        },
        Lost {
            name: "a page",
            reply: html("200 OK", page),
            said: format!("200 (Sign in): {WEB_PAGE}"),
            ..Lost::default()
        },
        Lost {
            name: "a page that is called JSON",
            reply: json(format!("\u{feff}\r\n{page}")),
            said: format!("200 (Sign in): {WEB_PAGE}"),
            ..Lost::default()
        },
        Lost {
            name: "a page without its end",
            reply: open_page,
            then: Some(Action::Close),
            said: format!("200 (Sign in): {WEB_PAGE}"),
        },
        Lost {
            name: "text",
            reply: plain("200 OK", "OK"),
            said: "200: not JSON".to_owned(),
            ..Lost::default()
        },
        Lost {
            name: "text that is called HTML",
            reply: html("201 ", "OK"),
            said: "201: not JSON".to_owned(),
            ..Lost::default()
        },
        Lost {
            name: "nothing",
            reply: empty("200 OK"),
            said: "200: the reply has no body".to_owned(),
            ..Lost::default()
        },
        Lost {
            name: "nothing, and says so",
            reply: b"HTTP/1.1 204 \r\nContent-Type: text/html\r\n\r\n".to_vec(),
            said: "204: the reply has no body".to_owned(),
            ..Lost::default()
        },
        Lost {
            name: "too large",
            reply: json(large),
            said: "200: the reply is incomplete: it is too large".to_owned(),
            ..Lost::default()
        },
        Lost {
            name: "no client_secret",
            reply: json(r#"{"message":"done"}"#),
            said: NO_SECRET.to_owned(),
            ..Lost::default()
        },
        Lost {
            name: "JSON that is called HTML",
            reply: html("200 OK", "{}"),
            said: NO_SECRET.to_owned(),
            ..Lost::default()
        },
        Lost {
            name: "null",
            reply: json(r#"{"response":{"client_secret":null}}"#),
            said: NO_SECRET.to_owned(),
            ..Lost::default()
        },
        Lost {
            name: "two words",
            reply: json(format!(r#"{{"client_secret":"{SECRET} x"}}"#)),
            said: NO_SECRET.to_owned(),
            ..Lost::default()
        },
        Lost {
            name: "501",
            reply: empty("501 "),
            said: "501".to_owned(),
            ..Lost::default()
        },
        Lost {
            name: "303, after which it may be done",
            reply: response("303 ", "Location: /done", ""),
            said: format!("303: {}", redirects_to("/done")),
            ..Lost::default()
        },
        Lost {
            name: "a redirect with a secret",
            reply: response("302 ", "Location: /done", &secret),
            said: format!("302: {ALL_THE_SAME}"),
            ..Lost::default()
        },
        Lost {
            name: "a refusal with a secret",
            reply: with_status("400 ", &recorded("patch-200")),
            said: format!("400: {ALL_THE_SAME}"),
            ..Lost::default()
        },
        Lost {
            name: "a refusal that says the secret in words, too",
            reply: json_with("400 ", r#"{"title":"not a+b/c","client_secret":"a+b/c"}"#),
            said: format!("400: {ALL_THE_SAME}"),
            ..Lost::default()
        },
        Lost {
            name: "501, a page",
            reply: html("501 ", page),
            said: format!("501 (Sign in): {WEB_PAGE}"),
            ..Lost::default()
        },
        Lost {
            name: "504, a page",
            reply: recorded("gateway-504"),
            said: "504 (500 Error Page)".to_owned(),
            ..Lost::default()
        },
        Lost {
            name: "500",
            reply: problem("500 ", r#"{"title":"Something went wrong"}"#),
            said: "500 (Something went wrong)".to_owned(),
            ..Lost::default()
        },
    ]
}

#[test]
fn a_patch_without_a_secret_says_what_came_instead() {
    let mut cases = vec![];
    for row in lost_secrets() {
        let stderr = vec![
            GOOD_RUN_LOG[0].to_owned(),
            GOOD_RUN_LOG[1].to_owned(),
            status_line(RUN.call, &row.reply),
            error_line(RUN.call, &row.said, UNKNOWN),
        ];
        let mut actions = vec![Action::Send(row.reply)];
        actions.extend(row.then);
        cases.push(Case {
            name: row.name.to_owned(),
            script: ready([expect_then(RUN.call, actions)]),
            status: 7,
            stderr,
            ..Case::default()
        });
    }
    check_all(cases);
}

/// A page that refuses any call, and how its title is shown.
struct Title {
    name: &'static str,
    page: Vec<u8>,
    shown: String,
}

fn titles() -> Vec<Title> {
    let row = |name, page: &str, shown: &str| Title {
        name,
        page: page.as_bytes().to_vec(),
        shown: shown.to_owned(),
    };
    let titled = |name, title: &str, shown: &str| {
        let page = format!("<html><title>{title}</title><p>{KEY}");
        row(name, &page, shown)
    };
    let long = "no entry ".repeat(600);
    let short = format!("{}…", &long[..199]);
    let bytes = [b"<title>caf\xe9 ".as_slice(), b"</title>"].concat();
    vec![
        row("capitals", "<HTML><TITLE>No Entry</TITLE>", "No Entry"),
        titled(
            "two lines",
            "\r\n  Just a\r\n\tmoment...\n",
            "Just a moment...",
        ),
        titled("entities", "A &amp; B &lt;x&gt;", "A &amp; B &lt;x&gt;"),
        row("attributes", "<title lang=\"en\">Oh</title>", "Oh"),
        row("two titles", "<title>a</title><title>b</title>", "a"),
        titled("5,000 characters", &long, &short),
        titled(
            "control characters",
            "a\u{1b}[31mb\u{202e}c\u{7}d",
            "a\\u{1b}[31mb\\u{202e}c\\u{7}d",
        ),
        Title {
            name: "not UTF-8",
            page: bytes,
            shown: "caf\u{fffd}".to_owned(),
        },
        titled("the key", &format!("No: {KEY}!"), "[hidden]"),
        titled("the key in capitals", &KEY.to_uppercase(), "[hidden]"),
        titled("part of the key", &KEY[4..12], "[hidden]"),
        titled("the key after much text", &(long + KEY), "[hidden]"),
        titled("another key", "a-key-with-24-characters", "[hidden]"),
        row("no title", "<p>no</p>", ""),
        row("an empty title", "<title> \n </title>", ""),
        row("a title that is not closed", "<title>No entry", ""),
    ]
}

/// Returns the cases in which this page refuses the sign-in, and then the PATCH.
fn title_cases(row: &Title) -> [Case; 2] {
    let page = response("403 ", "Content-Type: text/html", &row.page);
    let words = match row.shown.as_str() {
        "" => String::new(),
        shown => format!(" ({shown})"),
    };
    let mut patch_log = RUN.log(&recorded("token-200"), None, &page);
    let said = format!("403{words}: {WEB_PAGE}");
    patch_log.push(error_line(RUN.call, &said, REFUSED));
    let why = format!("status 403{words}: {WEB_PAGE}");
    let mut token_log = CHECK.log(&page, Some(&why), b"HTTP/1.1 404 ");
    let said = format!("404{}", note(&why));
    token_log.push(error_line(CHECK.call, &said, REFUSED));
    [
        Case {
            name: format!("{}, PATCH", row.name),
            script: RUN.script(recorded("token-200"), page.clone()),
            stderr: patch_log,
            ..Case::default()
        },
        Case {
            name: format!("{}, sign-in", row.name),
            args: CHECK.args,
            script: CHECK.script(page, empty("404 ")),
            stderr: token_log,
            ..Case::default()
        },
    ]
}

#[test]
fn the_title_of_a_page() {
    let mut cases = vec![];
    for row in titles() {
        cases.extend(title_cases(&row));
    }
    let signature = Title {
        name: "the signature",
        page: format!("<title>{}</title>", &SIGNATURE[40..60]).into_bytes(),
        shown: "[hidden]".to_owned(),
    };
    let [patch, _] = title_cases(&signature);
    cases.push(patch);
    let secret = Title {
        name: "the secret",
        page: format!("<title>{SECRET}</title>").into_bytes(),
        shown: "[hidden]".to_owned(),
    };
    cases.extend(title_cases(&secret));
    check_all(cases);
}

/// By then the run knows the new secret, and a reply can contain no other.
#[test]
fn the_title_of_a_page_in_reply_to_the_delete() {
    let unknown = "a-case-with-24-characters";
    let mut cases = vec![];
    for (title, shown) in [
        (SECRET, "[hidden]"),
        (&SECRET[9..17], "[hidden]"),
        (&KEY[9..17], "[hidden]"),
        (&SIGNATURE[9..17], "[hidden]"),
        (unknown, unknown),
    ] {
        let page = html("403 ", &format!("<title>Not {title}</title>"));
        let shown = if shown == unknown {
            "Not a-case-with-24-characters"
        } else {
            shown
        };
        let mut stderr = GOOD_RUN_LOG[..4]
            .iter()
            .map(|line| (*line).to_owned())
            .collect::<Vec<_>>();
        stderr.push("[DELETE revoke] Status: 403".to_owned());
        let said = format!("403 ({shown}): {WEB_PAGE}");
        stderr.push(error_line("DELETE revoke", &said, NOT_REVOKED));
        cases.push(Case {
            name: title.to_owned(),
            script: good_run_until("DELETE revoke", page),
            status: 5,
            stdout: secret_line(),
            stderr,
            ..Case::default()
        });
    }
    check_all(cases);
}

/// Only a title needs no complete body.
#[test]
fn a_truncated_refusal() {
    let problem = "Content-Type: application/problem+json\r\n";
    let rows = [
        (
            "a title",
            "",
            "<title>No entry</title><p>",
            " (No entry)",
            WEB_PAGE,
        ),
        ("part of a title", "", "<title>No entry</ti", "", WEB_PAGE),
        ("JSON", "", r#"{"title":"No entry"}"#, "", ""),
        ("text", "Content-Type: text/plain\r\n", "No entry", "", ""),
        ("problem+json", problem, r#"{"title":"#, "", ROLE),
        ("nothing", "", "", "", ""),
    ];
    let mut cases = vec![];
    for (name, header, body, words, cause) in rows {
        let reply = format!("HTTP/1.1 403 \r\n{header}Content-Length: 999\r\n\r\n{body}");
        let mut said = format!("403{words}");
        if !cause.is_empty() {
            said += &format!(": {cause}");
        }
        let mut stderr = RUN.log(&recorded("token-200"), None, reply.as_bytes());
        stderr.push(error_line(RUN.call, &said, REFUSED));
        let actions = [Action::Send(reply.into_bytes()), Action::Close];
        cases.push(Case {
            name: name.to_owned(),
            script: ready([expect_then(RUN.call, actions)]),
            stderr,
            ..Case::default()
        });
    }
    check_all(cases);
}

#[test]
fn a_secret_in_other_words() {
    let unknown = "4kQmW8xYz2LpVn6RbT1cHs9D";
    let key = KEY;
    let rows = [
        (
            format!(r#"{{"title":"No","detail":"not {key}"}}"#),
            " (No: [hidden])",
        ),
        (
            format!(r#"{{"title":"No","detail":"{SECRET}"}}"#),
            " (No: [hidden])",
        ),
        (
            format!(r#"{{"error":{{"message":"{unknown}"}}}}"#),
            " ([hidden])",
        ),
        (format!(r#"{{"x":"{unknown}","reason":"x"}}"#), " (x)"),
        (format!(r#""{SIGNATURE}""#), " ([hidden])"),
        (
            format!(r#""of client {CLIENT}""#),
            " (of client 27d1f5ac-11da-4592-828d-1bd6e6212e9d)",
        ),
        (r#""a\u001b[2J\nb""#.to_owned(), r" (a\u{1b}[2J\nb)"),
    ];
    let mut cases = vec![];
    for (body, words) in rows {
        let reply = json_with("400 ", &body);
        let mut stderr = RUN.log(&recorded("token-200"), None, &reply);
        stderr.push(error_line(RUN.call, &format!("400{words}"), REFUSED));
        cases.push(Case {
            name: body,
            script: RUN.script(recorded("token-200"), reply),
            stderr,
            ..Case::default()
        });
    }
    check_all(cases);
}

/// So a path too much is seen.
#[test]
fn a_line_shows_the_address_with_its_path() {
    let mut cases = vec![];
    for path in ["/docs", "/docs/", "/api/2.0//"] {
        let why = format!("status 404: {NO_API}");
        for mode in MODES {
            let token = recorded("token-404-old");
            let refusal = plain("404 ", "404 page not found");
            let words = if mode.call == CHECK.call {
                ""
            } else {
                " (404 page not found)"
            };
            let mut stderr = mode.log(&token, Some(&why), &refusal);
            let said = format!("404{words}{}", note(&why));
            stderr.push(error_line(mode.call, &said, REFUSED));
            cases.push(Case {
                name: format!("{path}, {}", mode.call),
                path,
                args: mode.args,
                script: mode.script(token, refusal),
                stderr,
                ..Case::default()
            });
        }
    }
    check_all(cases);
}

/// What a page in front of the portal proves nothing about.
const ACCUSED: [&str; 6] = ["key", "rights", "role", "user", "client id", "no client"];

/// A page that answers every request of a run, or every one but the sign-in.
#[derive(Clone, Copy)]
struct Front {
    page: &'static str,
    title: &'static str,
    status: &'static str,
    signed: bool,
    mode: Mode,
}

#[test]
fn a_page_in_front_accuses_neither_key_nor_client() {
    let pages = [
        (
            "page-400-https",
            "400 The plain HTTP request was sent to HTTPS port",
        ),
        ("page-401-nginx", "401 Authorization Required"),
        ("page-403-challenge", "Just a moment..."),
        ("gateway-502", "500 Error Page"),
    ];
    let mut fronts = vec![];
    for (page, title) in pages {
        for status in ["200", "401", "403", "404", "502"] {
            for mode in MODES {
                for signed in [false, true] {
                    fronts.push(Front {
                        page,
                        title,
                        status,
                        signed,
                        mode,
                    });
                }
            }
        }
    }
    for_each(fronts, check_front);
}

fn check_front(front: Front) {
    let page = later(&with_status(front.status, &recorded(front.page)));
    let portal = MockPortal::answering(None, move |request| match request.method.as_str() {
        "GET" if front.signed => recorded("token-200"),
        _ => page.clone(),
    });
    let Front { page, status, .. } = front;
    let name = format!("{page} as {status}, signed: {}", front.signed);
    let done = run(rotate(&portal).env("CASE", &name).args(front.mode.args));
    let is_outage = status.starts_with('5');
    let expected = if is_outage { 4 } else { 3 };
    assert_eq!(done.status, Some(expected), "{name}\n{done}");
    let (what, _state) = done.error().split_once("; the client's secret").unwrap();
    let log = done.stderr.replace("continuing with the key alone", "");
    let reasons = log.replace(REFUSED, "");
    for accused in ACCUSED {
        assert!(!reasons.contains(accused), "{name}: {accused}\n{done}");
    }
    let names_page = what.contains(WEB_PAGE);
    assert_eq!(names_page, !is_outage, "{name}\n{done}");
    // A HEAD has no body, and so no title.
    if !what.contains("[HEAD client] with") {
        assert!(what.contains(front.title), "{name}\n{done}");
    }
}
