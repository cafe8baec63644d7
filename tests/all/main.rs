//! The program end to end, through the real binary and against the stand-in portal. One test
//! binary, with a module a concern.
#![allow(clippy::unwrap_used)] // A test that can't go on may panic.

#[path = "../portal/mod.rs"]
mod portal;
#[path = "../portal/proxy.rs"]
mod proxies;
#[path = "../portal/run.rs"]
mod run;

mod bounds;
mod check;
mod cli;
mod command;
mod faults;
mod output;
mod proxy;
mod random;
mod recipes;
mod rotate;
#[cfg(target_os = "linux")]
mod scratch;
mod signals;
mod stale;
mod tls;
mod verify;
