//! The database of the homeserver: the only user of sea-orm.
//!
//! Everything goes through [`Store::read`] and [`Store::write`]: named transactions that are timed and retried.
//! Functions that read take a [`ReadTx`], functions that write a [`WriteTx`], which also reads, so that a write outside
//! a transaction does not compile. There is one module for each aggregate.
//!
//! ```ignore
//! let user = store.read("whoami", |tx| async move { users::find(&tx, &user_id).await }).await?;
//! store.write("send_to_device", |tx| async move {
//!     tx.lock_shards(&shards).await?;                 // first statement of every append
//!     let position = tx.next_position(shard)?;        // commit order = position order
//!     ...
//! }).await?;                                          // saves positions, commits, wakes the readers
//! ```
//!
//! # Streams
//!
//! What `/sync` delivers is a row at a position of a shard's stream. [`WriteTx::lock_shards`] takes the rows of the shards,
//! in ascending order; the locks stand until the commit, so whoever can see a position can see all before it.

pub mod account_data;
pub mod backlog;
pub mod checkup;
mod connect;
pub mod cross_signing;
pub mod devices;
mod error;
pub mod filters;
pub mod interactive_auth;
pub mod jobs;
pub mod key_backup;
pub mod keybox_log;
pub mod keybox_passphrases;
pub mod keys;
mod link;
pub mod login_failures;
pub mod media;
mod migrations;
pub mod openid_tokens;
pub mod presence;
pub mod profiles;
pub mod push_cursors;
pub mod push_queue;
pub mod pushers;
pub mod receipts;
pub mod registration;
pub mod replicas;
pub mod reports;
pub mod restored;
pub mod room_aliases;
pub mod room_directory;
pub mod room_summaries;
pub mod rooms;
mod rows;
pub mod sessions;
pub mod settings;
mod stats;
mod store;
pub mod streams;
pub mod to_device;
pub mod transactions;
mod tx;
pub mod url_previews;
pub mod users;
mod wake_bus;

pub use self::{
    connect::Options,
    error::{Error, TransactionError},
    stats::{QueryStats, with_query_stats},
    store::{Access, Outcome, PoolStatus, Store, TransactionReport},
    tx::{ReadTx, WriteTx},
    wake_bus::Hint,
};
