//! Log lines: as text for people or as JSON for machines.

use std::io::IsTerminal as _;

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::log::{LogFormat, LogSettings};

/// What libraries say at `info` that no operator needs; the setting can ask for it by name.
const QUIET: &str = "ruma_state_res=warn,sea_orm_migration=warn,sqlx=warn";

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Something else logs already.
    #[error("logging is set up already")]
    AlreadySet(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The filter is not one.
    #[error("log.filter is not a valid filter")]
    Filter(#[source] tracing_subscriber::filter::ParseError),
}

/// Writes log lines to standard error from now on.
///
/// # Errors
///
/// [`LogError`] when the filter is not valid, or when called twice.
pub fn start(settings: &LogSettings) -> Result<(), LogError> {
    let filter = EnvFilter::try_new(format!("{QUIET},{}", settings.filter)).map_err(LogError::Filter)?;
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match settings.format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
    }
    .map_err(LogError::AlreadySet)
}
