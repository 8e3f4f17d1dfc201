//! HTTP: listeners, routing, authentication, errors. The only place that knows status codes.

mod access_log;
pub mod auth;
pub mod body;
pub mod client_address;
mod client_stream;
mod cors;
pub mod error;
pub mod listener;
mod open_files;
pub mod reply;
pub mod router;
pub mod service;
mod tls;

#[cfg(test)]
pub(crate) mod tests;
