//! `[database]`: where everything is kept.

use std::time::Duration;

use super::{reader::Section, secret::Secret};

/// Where everything is kept.
#[derive(Clone, Debug)]
pub struct DatabaseSettings {
    /// `database.url` or `database.url_file`: `sqlite:PATH` or `postgres://USER:PASSWORD@HOST/NAME`; default
    /// `sqlite:data/keystead.db`. A secret, as it holds a password.
    pub url: Secret,
    /// `database.max_connections`: how many connections a replica opens at most; default 16.
    pub max_connections: u32,
    /// `database.message_writers`: how many tasks of a replica append messages, among which the streams of rooms are divided; default
    /// 1. On PostgreSQL only.
    pub message_writers: usize,
    /// `database.room_shards`: into how many streams the rooms of a new database are cut, from 1 to 256; default 8. On PostgreSQL only,
    /// and fixed once the database is made.
    pub room_shards: u32,
    /// `database.wait_seconds`: how long a start waits for a database that does not answer yet; default 60.
    pub wait: Duration,
}

impl DatabaseSettings {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let url = section.secret("url").unwrap_or_else(|| Secret::new("sqlite:data/keystead.db"));
        let known = ["sqlite:", "postgres://", "postgresql://"];
        if !known.iter().any(|scheme| url.expose().starts_with(scheme)) {
            section.problem("url", "must begin with sqlite: or postgres://");
        }
        let max_connections = section.value("max_connections", || 16);
        if max_connections < 2 {
            section.problem("max_connections", "must be at least 2");
        }
        let message_writers = section.value("message_writers", || 1);
        if message_writers == 0 {
            section.problem("message_writers", "must be at least 1");
        }
        let room_shards = section.value("room_shards", || 8);
        if !(1..=256).contains(&room_shards) {
            section.problem("room_shards", "must be from 1 to 256");
        }
        let wait = section.value("wait_seconds", || Duration::from_secs(60));
        Self { url, max_connections, message_writers, room_shards, wait }
    }
}
