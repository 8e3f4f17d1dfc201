//! Load for any Matrix homeserver, through the client-server API alone.
//!
//! A *scenario* makes accounts and rooms, then does one kind of operation again and again, in a closed loop (so many in
//! flight) or an open one (so many a second, whatever the server does), and measures:
//!
//! - the latency of each operation, counted from the time at which it was due, so that a server that stalls is charged for
//!   all that had to wait meanwhile;
//! - the CPU time and the memory of the processes that are named, for each operation;
//! - and whether all was right: each acknowledged event arrives at each member exactly once, those of one sender in the order
//!   in which they were sent, and no long-poll hangs while a sync with the same token would answer at once.
//!
//! Results are JSON lines ([`report::Report`]), one a run, and pictures of them ([`plot`]).

// The clock and random ids are what this crate is about.
#![allow(clippy::disallowed_methods)]

pub mod account;
pub mod api;
pub mod check;
pub mod drive;
pub mod gateway;
pub mod keybox;
pub mod plot;
pub mod process;
pub mod push;
pub mod reader;
pub mod report;
pub mod room;
pub mod scenarios;

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server did not do what the run rests on.
    #[error("{what}: {why}")]
    Server {
        /// What was wanted.
        what: String,
        /// What came instead.
        why: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The command line does not make sense.
    #[error("{0}")]
    Usage(String),
    /// A picture could not be drawn.
    #[error("cannot draw: {0}")]
    Plot(String),
}

impl Error {
    fn server(what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::Server { what: what.into(), why: why.to_string() }
    }
}
