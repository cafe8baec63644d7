//! Gives an ONLYOFFICE DocSpace OAuth client a new secret. Start with [`rotate`].
//!
//! This library is not an API: it exists for the program, its tests and its examples, and any version may change it.

mod address;
mod call;
mod cause;
pub mod cli;
mod command;
mod connection;
pub mod error;
mod failure;
mod http;
mod output;
mod portal;
mod reply;
pub mod rotate;
mod secret;
pub mod settings;
pub mod signal;
