//! The Keystead client library: a KeyBox as a library.
//!
//! - [`engine`] is the KeyBox itself and does no I/O: push what arrived, pull what to send.
//! - [`store`] keeps its records encrypted in a folder.
//! - [`qr`] draws and reads contact codes.
//! - [`api`] speaks the Matrix client-server API.
//! - [`client`] puts the three together; this is what an application uses.
//! - [`cli`] is the command line `keybox` on top of it.
//!
//! The protocol is `profiles/keybox/SPEC.md`; `README.md` beside this crate shows how to use both.

pub mod api;
pub mod cli;
pub mod client;
pub mod clock;
pub mod engine;
pub mod events;
pub mod qr;
pub mod store;

/// What reads bytes from outside and is of no use by itself: for the fuzz targets in `fuzz/`.
#[doc(hidden)]
pub mod parsers {
    pub use crate::api::parse_releases;
    pub use crate::client::{look_at_picture, safe_file_name};
}

/// The examples of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
