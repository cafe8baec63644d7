//! Gives an ONLYOFFICE DocSpace OAuth client a new secret. Start with [`rotate`].

mod address;
pub mod cli;
pub mod error;
mod http;
mod output;
mod portal;
mod reply;
pub mod rotate;
mod secret;
pub mod signal;
