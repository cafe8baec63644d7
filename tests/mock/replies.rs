//! What scripts are made of: requests, and replies of a real portal and of others.

use std::sync::mpsc::{Sender, channel};

use super::{Action, Expect};

/// The id of the client in the recorded replies.
pub const CLIENT: &str = "27d1f5ac-11da-4592-828d-1bd6e6212e9d";
/// The secret in `patch-200`.
pub const SECRET: &str = "LQn1uOTJsTqgOLJO1oB2ztSqw5IoxNuP8zQa";
/// The signature in `token-200`.
pub const SIGNATURE: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJ0ZXN0IiwiZXhwIjoxNzk1NDEzNDY2fQ.c2lnbmF0dXJlLW9mLWEtdGVzdA";
pub const KEY: &str = "sk-4f1d9c0b7a6e5d3c2b1a0f9e8d7c6b5a";
/// A bearer token that is not an API key.
pub const BEARER: &str = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJiZWFyZXIifQ.b2Ytc29tZS1vdGhlci1raW5k";

/// What the program logs during a good run.
pub const GOOD_RUN_LOG: [&str; 6] = [
    "[GET token] Status: 200",
    "[HEAD client] Status: 200",
    "[PATCH regenerate] Status: 200",
    "Client secret has been regenerated.",
    "[DELETE revoke] Status: 200",
    "Client consent revoked for client 27d1f5ac-11da-4592-828d-1bd6e6212e9d.",
];

/// Returns what the program prints for `patch-200`.
pub fn secret_line() -> String {
    format!("{SECRET}\n")
}

/// Reads a reply that a real portal sent.
pub fn recorded(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mock/replies");
    let path = format!("{folder}/{name}.http");
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns a reply with a status, at most one more header line, and a body.
pub fn response(status: &str, header: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", body.len());
    if !header.is_empty() {
        head += &format!("{header}\r\n");
    }
    head += "\r\n";
    [head.as_bytes(), body].concat()
}

pub fn json(body: impl AsRef<[u8]>) -> Vec<u8> {
    response("200 OK", "Content-Type: application/json", body)
}

pub fn without_body(mut reply: Vec<u8>) -> Vec<u8> {
    let end = b"\r\n\r\n";
    if let Some(start) = reply.windows(4).position(|bytes| bytes == end) {
        reply.truncate(start + 4);
    }
    reply
}

/// Sends a reply to this request, without the body if it is a HEAD.
pub fn reply_to(request: &str, reply: Vec<u8>) -> Action {
    if request.starts_with("HEAD ") {
        return Action::Send(without_body(reply));
    }
    Action::Send(reply)
}

/// Expects a request and sends a reply, without the body if it is a HEAD.
pub fn expect(request: &'static str, reply: impl Into<Vec<u8>>) -> Expect {
    expect_then(request, [reply_to(request, reply.into())])
}

pub fn expect_then(request: &'static str, actions: impl Into<Vec<Action>>) -> Expect {
    Expect::Request(request, actions.into())
}

/// Expects a request whose reply waits until the sender is dropped.
pub fn gated(request: &'static str, reply: impl Into<Vec<u8>>) -> (Sender<()>, Expect) {
    let (sender, gate) = channel();
    let actions = [Action::WaitFor(gate), reply_to(request, reply.into())];
    (sender, expect_then(request, actions))
}

// The requests of a good run, with the replies of a real portal.
pub fn sign_in() -> Expect {
    expect("GET token", recorded("token-200"))
}
pub fn probe() -> Expect {
    expect("HEAD client", recorded("get-200"))
}
pub fn regenerate() -> Expect {
    expect("PATCH regenerate", recorded("patch-200"))
}
pub fn revoke() -> Expect {
    expect("DELETE revoke", recorded("delete-200"))
}
pub fn introspect() -> Expect {
    expect("POST introspect", recorded("introspect-200"))
}

/// Expects the sign-in, the HEAD, and then more.
pub fn ready(more: impl IntoIterator<Item = Expect>) -> Vec<Expect> {
    let mut script = vec![sign_in(), probe()];
    script.extend(more);
    script
}

pub fn good_run() -> Vec<Expect> {
    ready([regenerate(), revoke()])
}
