//! The harness of Keystead's integration tests: real server processes on a real database, and users that talk to
//! them over HTTP.
//!
//! [`TestCluster::start`] gives two replicas on one PostgreSQL database, or, with
//! `KEYSTEAD_TEST_DATABASE=sqlite` in the environment, one process on SQLite. [`TestCluster::user`] registers an
//! account whose requests go to the replicas in turn: what a test writes through one it reads through the next.

pub mod certificate;
pub mod cluster;
pub mod http;
pub mod keys;
mod postgres;
pub mod process;
pub mod prometheus;
pub mod proxy;
mod reaper;
pub mod seaweedfs;
pub mod sync;
pub mod user;

pub use cluster::TestCluster;
pub use http::Response;
pub use user::User;

use std::{future::Future, time::Duration};

/// How long a test waits for something that must come to pass.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks again and again until `probe` gives a value.
///
/// # Panics
/// When `what` has not come to pass within [`PATIENCE`].
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut probe: impl FnMut() -> F) -> T {
    let asking = async {
        loop {
            if let Some(value) = probe().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}
