//! The canonical alias of a room, and which aliases it may name.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#mroomcanonical_alias>.

use keystead_core::room::RoomState;
use keystead_store::{Error, Store, room_aliases};
use ruma::{OwnedRoomAliasId, events::room::canonical_alias::RoomCanonicalAliasEventContent};
use serde_json::value::RawValue;

/// Why an `m.room.canonical_alias` event is refused.
#[derive(Debug, thiserror::Error)]
pub enum AliasRefusal {
    /// `alias` or `alt_aliases` hold something else than aliases.
    #[error("alias and alt_aliases must be room aliases")]
    NotAnAlias,
    /// The alias stands for another room, or for none.
    #[error("{0} is not an alias of this room")]
    OfAnotherRoom(OwnedRoomAliasId),
    /// The database could not be asked.
    #[error("the database cannot be read")]
    Store(#[from] Error),
}

/// Checks an `m.room.canonical_alias` content before it is sent: what it names and the current one does not must
/// be an alias of this room.
///
/// # Errors
///
/// [`AliasRefusal`] says what is wrong with it.
pub async fn check_canonical_alias(
    store: &Store,
    room: &RoomState,
    content: &RawValue,
) -> Result<(), AliasRefusal> {
    let new: RoomCanonicalAliasEventContent =
        serde_json::from_str(content.get()).map_err(|_| AliasRefusal::NotAnAlias)?;
    let current = canonical_alias(room);
    for alias in aliases_of(&new).filter(|alias| !aliases_of(&current).any(|known| known == *alias)) {
        let target =
            store.read("check_alias", |tx| async move { room_aliases::find(&tx, alias).await }).await?;
        if target.is_none_or(|target| target.room_id != room.room_id) {
            return Err(AliasRefusal::OfAnotherRoom(alias.clone()));
        }
    }
    Ok(())
}

/// The room's canonical alias; empty if there is none, or none that can be read.
#[must_use]
pub fn canonical_alias(room: &RoomState) -> RoomCanonicalAliasEventContent {
    room.get("m.room.canonical_alias", "")
        .and_then(|event| serde_json::from_str(event.pdu.content.get()).ok())
        .unwrap_or_default()
}

/// All aliases that a canonical alias names.
pub fn aliases_of(content: &RoomCanonicalAliasEventContent) -> impl Iterator<Item = &OwnedRoomAliasId> {
    content.alias.iter().chain(&content.alt_aliases)
}
