//! Gives an ONLYOFFICE DocSpace OAuth client a new secret. The job is in [`rotate`].

mod address;
mod call;
pub mod cli;
mod connection;
pub mod error;
pub mod output;
mod portal;
mod reply;
mod retry;
pub mod rotate;
pub mod secret;
mod signal;
