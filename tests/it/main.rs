//! The integration tests: one program, so that all of them share one PostgreSQL container.

mod architecture;
mod consistency;
mod directory;
mod encryption;
mod hostile;
mod keybox;
mod keybox_audit;
mod keybox_contacts;
mod keybox_files;
mod keybox_identity;
mod keybox_key_sets;
mod keybox_log;
mod keybox_passphrases;
mod keybox_permission;
mod keybox_policy;
mod keybox_registry;
mod keybox_rotation;
mod keybox_suites;
mod lifecycle;
mod media;
mod push_rules;
mod rooms;
mod routes;
mod sessions;
mod syncing;
mod user_data;
