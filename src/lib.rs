//! Gives an ONLYOFFICE DocSpace OAuth client a new secret. The job is in [`rotate`].

pub mod address;
pub mod cli;
pub mod error;
pub mod io;
pub mod output;
pub mod portal;
pub mod reply;
pub mod retry;
pub mod rotate;
pub mod secret;
pub mod signal;
