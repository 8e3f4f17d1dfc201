//! What operators see: metrics, log lines, traces, health.

pub mod log;
pub mod metrics;
pub mod request;
pub mod traces;
