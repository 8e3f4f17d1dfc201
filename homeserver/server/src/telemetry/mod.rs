//! What operators see: metrics, log lines, health.

pub mod log;
pub mod metrics;
pub mod request;
