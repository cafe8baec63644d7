//! The program end to end: the real binary against a mock portal. One test binary, with a module a concern.
//! The tests mostly wait for timeouts, retries and other programs, so .cargo/config.toml runs 32 of them at a time
//! (`RUST_TEST_THREADS`), however few cores there are.
#![allow(clippy::unwrap_used)] // A test that cannot go on may panic.

#[path = "../mock/mod.rs"]
mod mock;
mod namespaces;
mod project;
mod run;
mod words;

mod action;
mod bounds;
mod causes;
mod check;
mod cli;
mod command;
mod faults;
mod losses;
mod output;
mod proxy;
mod random;
mod recipes;
mod rotate;
#[cfg(target_os = "linux")]
mod scratch;
mod servers;
mod signals;
mod stores;
mod systemd;
mod tls;
mod tls_words;
mod verify;
