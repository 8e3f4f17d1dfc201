//! The homeserver: HTTP, endpoints, use cases, background work.

pub mod accounts;
mod admin;
pub mod api;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod context;
pub mod demo;
pub mod entropy;
pub mod group_commit;
pub mod housekeeping;
pub mod http;
pub mod jobs;
pub mod keyboxes;
mod lifecycle;
pub mod media;
mod profiles;
mod push_rules;
pub mod rate_limits;
pub mod rooms;
pub mod serve;
pub mod streams;
pub mod sync;
pub mod telemetry;
mod url_preview;
