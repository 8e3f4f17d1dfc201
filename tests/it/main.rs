//! The integration tests: one program, so that all of them share one PostgreSQL container.

mod architecture;
mod consistency;
mod encryption;
mod hostile;
mod keybox;
mod lifecycle;
mod push_rules;
mod rooms;
mod routes;
mod sessions;
mod syncing;
