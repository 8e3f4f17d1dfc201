//! The pure rules of the homeserver: no async, no SQL, no HTTP, no clock and no randomness of its own.

pub mod client_format;
pub mod closing;
pub mod encryption;
pub mod event;
pub mod event_fields;
pub mod filter;
pub mod json;
pub mod keybox;
pub mod keys;
pub mod lost_positions;
pub mod password;
pub mod pdu;
pub mod push;
pub mod redaction;
pub mod relations;
pub mod room;
pub mod room_creation;
pub mod room_upgrade;
pub mod search;
pub mod shard;
pub mod throttle;
pub mod token;
pub mod visibility;
