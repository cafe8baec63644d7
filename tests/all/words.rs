//! The state of the client in the error lines, and what to do next. People grep for these words.

pub const REFUSED: &str =
    "the client's secret is unchanged; check the address, CA, proxy, key and client id";

pub const UNCHANGED: &str = "the client's secret is unchanged; run again later";

pub const UNKNOWN: &str = "the client may or may not have a new secret; \
    treat the old secret as revoked and run again in a few minutes";

pub const NOT_REVOKED: &str = "the new secret was delivered, but the consent may still be in force; run again with --only revoke";

/// The end of the error line if the new secret was not delivered.
pub const NOT_DELIVERED: &str = "the client has a new secret that may not have been delivered; fix the output or the command, then run again";

pub const NOT_VERIFIED: &str = "the new secret was delivered, but not verified; check that the client can sign in with it, and if it cannot, run again";
