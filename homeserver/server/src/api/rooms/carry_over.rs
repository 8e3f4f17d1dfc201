//! What a user has set for a room goes along to the room that replaces it.
//!
//! > When a user joins the new room, the server should automatically transfer/replicate some of the user's personalized settings
//! > such as notifications, tags, etc. ([room upgrades])
//!
//! [room upgrades]: https://spec.matrix.org/v1.19/client-server-api/#room-upgrades

use keystead_core::{push, room::RoomState};
use keystead_store::{WriteTx, account_data, streams::AccountData};
use ruma::{OwnedRoomId, RoomId, UserId};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    api::account_data::{MAX_CONTENT_BYTES, TAGS},
    context::{Ctx, Session},
    http::error::ApiError,
    push_rules,
};

/// The account data that names the rooms of two.
const DIRECT: &str = "m.direct";

/// Copies the requester's tags and push rules for the predecessor of a room to it, and notes it as direct chat if that was one. The
/// predecessor has to name the room, and the requester to have had something to do with it.
///
/// The requester is in the room whatever becomes of that: an error is logged only.
pub(super) async fn carry_over(ctx: &Ctx<Session>, room_id: &RoomId) {
    if let Err(error) = try_carry_over(ctx, room_id).await {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(error, %room_id, "settings for the room that this one replaces were not carried over");
    }
}

async fn try_carry_over(ctx: &Ctx<Session>, room_id: &RoomId) -> Result<(), ApiError> {
    let user_id = &*ctx.requester.user_id;
    let room = ctx.app.tail.room(room_id).await?;
    let Some(old) = room.as_ref().and_then(predecessor) else { return Ok(()) };
    if ctx.app.tail.rooms_of(user_id).await?.get(&old).is_none() {
        return Ok(());
    }
    // It may have been replaced through another replica just now.
    ctx.app.fence().await?;
    let replaced = ctx.app.tail.room(&old).await?;
    if replaced.as_ref().and_then(replacement).as_deref() != Some(room_id) {
        return Ok(());
    }
    let (old, new) = (&*old, room_id);
    ctx.app
        .store
        .write("carry_over_settings", |tx| async move {
            // The lock also keeps two changes of the same settings apart.
            tx.lock_shards(&[tx.shards().of_user(user_id)]).await?;
            carry_over_tags(&tx, user_id, old, new).await?;
            carry_over_direct(&tx, user_id, old, new).await?;
            let mut rules = push_rules::load(&tx, user_id).await?;
            if push::carry_over(&mut rules, old, new) {
                account_data::put(&tx, &push_rules::account_data_of(user_id, rules)?).await?;
            }
            Ok::<_, ApiError>(())
        })
        .await
}

async fn carry_over_tags(
    tx: &WriteTx,
    user_id: &UserId,
    old: &RoomId,
    new: &RoomId,
) -> Result<(), keystead_store::Error> {
    let Some(content) = account_data::find(tx, user_id, Some(old), TAGS).await? else { return Ok(()) };
    if account_data::find(tx, user_id, Some(new), TAGS).await?.is_some() {
        return Ok(());
    }
    let (user_id, room_id) = (user_id.to_owned(), Some(new.to_owned()));
    account_data::put(tx, &AccountData { user_id, room_id, data_type: TAGS.to_owned(), content }).await
}

async fn carry_over_direct(
    tx: &WriteTx,
    user_id: &UserId,
    old: &RoomId,
    new: &RoomId,
) -> Result<(), keystead_store::Error> {
    let stored = account_data::find(tx, user_id, None, DIRECT).await?;
    let Some(content) = stored.and_then(|stored| with_new_room(&stored, old, new)) else { return Ok(()) };
    if content.len() > MAX_CONTENT_BYTES {
        return Ok(());
    }
    let (user_id, data_type) = (user_id.to_owned(), DIRECT.to_owned());
    account_data::put(tx, &AccountData { user_id, room_id: None, data_type, content }).await
}

/// The content of `m.direct` with `new` wherever `old` is; `None` if it stays as it is. Clients write it, with anything in it.
fn with_new_room(content: &str, old: &RoomId, new: &RoomId) -> Option<String> {
    let mut direct: Map<String, Value> = serde_json::from_str(content).ok()?;
    let mut has_changed = false;
    for rooms in direct.values_mut().filter_map(Value::as_array_mut) {
        let has = |room: &RoomId| rooms.iter().any(|listed| listed == room.as_str());
        if has(old) && !has(new) {
            rooms.push(new.as_str().into());
            has_changed = true;
        }
    }
    has_changed.then(|| Value::Object(direct).to_string())
}

/// The room that a room replaces, as its creator says.
fn predecessor(room: &RoomState) -> Option<OwnedRoomId> {
    #[derive(Deserialize)]
    struct Create {
        predecessor: Predecessor,
    }
    #[derive(Deserialize)]
    struct Predecessor {
        room_id: OwnedRoomId,
    }
    let create = room.get("m.room.create", "")?;
    let create: Create = serde_json::from_str(create.pdu.content.get()).ok()?;
    Some(create.predecessor.room_id)
}

/// The room that replaces a room, as that says.
fn replacement(room: &RoomState) -> Option<OwnedRoomId> {
    #[derive(Deserialize)]
    struct Tombstone {
        replacement_room: OwnedRoomId,
    }
    let tombstone = room.get("m.room.tombstone", "")?;
    let tombstone: Tombstone = serde_json::from_str(tombstone.pdu.content.get()).ok()?;
    Some(tombstone.replacement_room)
}

#[cfg(test)]
mod tests {
    use ruma::room_id;

    use super::*;

    #[test]
    fn a_direct_chat_is_one_in_the_new_room() {
        let with_new = |content| with_new_room(content, room_id!("!old:x"), room_id!("!new:x"));
        let direct = r#"{"@a:x":["!old:x","!b:x"],"@b:x":["!b:x"],"@c:x":7}"#;
        let expected = r#"{"@a:x":["!old:x","!b:x","!new:x"],"@b:x":["!b:x"],"@c:x":7}"#;
        assert_eq!(with_new(direct).as_deref(), Some(expected));
        assert_eq!(with_new(expected), None);
        assert_eq!(with_new(r#"{"@b:x":["!b:x"]}"#), None);
        assert_eq!(with_new("[]"), None);
    }
}
