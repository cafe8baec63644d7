//! The calls, and when one is repeated. `http.rs` sends them, `reply.rs` says what their replies mean,
//! `portal.rs` repeats them.
//!
//! ```text
//! call        request                 carries                   for
//! SignIn      GET .../oauth2/token    key                       the signature, which portals require
//! Probe       HEAD .../{id}           key, signature if issued  waiting for the portal; --check
//! Regenerate  PATCH .../regenerate    key, signature if issued  the new secret
//! Revoke      DELETE .../revoke       key, signature if issued  revoking the consent
//! Introspect  POST .../introspect     id, new secret            --verify
//! Expiry      GET .../keys/@self      key                       --check
//! ```
//!
//! The PATCH is special:
//! - Its first byte changes the state of the client (`connection.rs`).
//! - It is repeated only if it did nothing.
//! - It has a fresh connection and no time limit of its own (`http.rs`).
//! - A refusal that contains a secret does not prove that nothing changed (`reply.rs`).
//!
//! What happened decides whether a call is repeated. The first row that fits counts
//! (`reply::evaluate`):
//!
//! ```text
//! TLS or the proxy failed for good, before the request was sent   Refused   never
//! no connection, or no finished TLS handshake                     Busy      repeated
//! no valid header of a reply, but the request may have been sent  Unclear   repeated, but not the PATCH
//! 429                                                             Busy      repeated
//! 1xx, 408, 425, 500, 502 and above                               Unclear   repeated, but not the PATCH
//! any other status, with or without the end of its body           what the reader of the call returns
//! ```
//!
//! 425 to the PATCH is a refusal. A TLS error in answer to the sign-in or the HEAD is Refused, too. If the
//! wait before a retry (1 to 10 s, or `Retry-After`) would exceed the time limit, the run fails at once.
//! Expiry is sent once. `Portal::verify` asks 5 times while the portal rejects the secret.

/// The kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    SignIn,
    Probe,
    Regenerate,
    Revoke,
    Introspect,
    Expiry,
}

impl Call {
    /// Returns the HTTP method.
    pub fn method(self) -> &'static str {
        match self {
            Call::SignIn | Call::Expiry => "GET",
            Call::Probe => "HEAD",
            Call::Regenerate => "PATCH",
            Call::Revoke => "DELETE",
            Call::Introspect => "POST",
        }
    }

    /// Returns the path after the portal's address, for this client id.
    pub fn path(self, client: &str) -> String {
        let path = match self {
            Call::SignIn => "/api/2.0/security/oauth2/token",
            Call::Probe => "/api/2.0/clients/{id}",
            Call::Regenerate => "/api/2.0/clients/{id}/regenerate",
            Call::Revoke => "/api/2.0/clients/{id}/revoke",
            Call::Introspect => "/oauth2/introspect",
            Call::Expiry => "/api/2.0/keys/@self",
        };
        path.replace("{id}", client)
    }

    /// Returns the name in messages, as in the vendor's sample.
    pub fn name(self) -> &'static str {
        match self {
            Call::SignIn => "[GET token]",
            Call::Probe => "[HEAD client]",
            Call::Regenerate => "[PATCH regenerate]",
            Call::Revoke => "[DELETE revoke]",
            Call::Introspect => "[POST introspect]",
            Call::Expiry => "[GET key]",
        }
    }

    /// Each PATCH makes another secret. An unanswered one may take effect minutes later, and replace
    /// the secret of a later one (observed).
    pub fn is_idempotent(self) -> bool {
        self != Call::Regenerate
    }

    /// These calls carry the signature, if there is one: the identity service of portals requires it.
    pub fn is_signed(self) -> bool {
        matches!(self, Call::Probe | Call::Regenerate | Call::Revoke)
    }

    /// Returns true if a reply may contain a secret that the run does not know.
    pub fn returns_secret(self) -> bool {
        matches!(self, Call::SignIn | Call::Regenerate)
    }

    /// Returns true for the calls before the PATCH. There, a TLS error ends the run even if it comes
    /// in place of a reply: TLS 1.3 reports a missing client certificate only after the handshake.
    pub fn is_preparation(self) -> bool {
        matches!(self, Call::SignIn | Call::Probe)
    }
}

/// Why a call is not known to be done, with the cause where a reply proves one.
#[derive(Debug, PartialEq, Eq)]
pub enum NotDone {
    /// Nothing was done, and the next attempt may succeed.
    Busy,
    /// It may have been done.
    Unclear(Option<String>),
    /// Nothing was done, and the same call would be refused again.
    Refused(Option<String>),
}

impl NotDone {
    /// Returns true if the call may be sent again.
    pub fn may_repeat(&self, call: Call) -> bool {
        match self {
            NotDone::Busy => true,
            NotDone::Unclear(_) => call.is_idempotent(),
            NotDone::Refused(_) => false,
        }
    }

    /// Returns the cause that the reply proves.
    pub fn cause(&self) -> Option<&str> {
        match self {
            NotDone::Busy => None,
            NotDone::Unclear(cause) | NotDone::Refused(cause) => cause.as_deref(),
        }
    }
}
