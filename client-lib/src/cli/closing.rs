//! Closing and opening rooms.

use serde_json::json;

use super::failure::Failure;
use super::output::{Output, plain};
use super::people::value_of;
use super::rooms::find_room;
use crate::client::Client;
use crate::engine::{KeyBoxAddress, KnownKeyBox};

pub(super) async fn close(
    client: &mut Client,
    output: &Output,
    room: &str,
    limit: Option<u64>,
) -> Result<(), Failure> {
    let room_id = find_room(client, room).await?;
    let closed = client.close_room(&room_id, limit).await?;
    let mut text = format!("{room_id} is closed. These KeyBoxes get its keys:");
    for known in &closed.keyboxes {
        let state = if known.is_verified() || is_own(client, known) { "verified" } else { "NOT VERIFIED" };
        let keybox = plain(&format!("{}/{}", known.keys.user_id, known.keys.keybox_id));
        text.push_str(&format!("\n  {keybox}  {state}"));
    }
    let moderators: Vec<_> = closed.moderators.iter().map(String::as_str).collect();
    text.push_str(&format!("\nIt is opened, and KeyBoxes are let in, by {}.", plain(&moderators.join(", "))));
    let keyboxes: Vec<_> =
        closed.keyboxes.iter().map(|known| value_of(known, is_own(client, known))).collect();
    let value = json!({
        "room_id": room_id, "closed": true, "generation": closed.generation, "limit": limit,
        "keyboxes": keyboxes, "moderators": moderators,
    });
    output.lines(&text, &value);
    Ok(())
}

pub(super) async fn open(
    client: &mut Client,
    output: &Output,
    room: &str,
    limit: Option<u64>,
) -> Result<(), Failure> {
    let room_id = find_room(client, room).await?;
    let opened = client.open_room(&room_id, limit).await?;
    let text = match limit {
        Some(limit) => format!("{room_id} is open, for {limit} member(s) at most."),
        None => format!("{room_id} is open."),
    };
    let value =
        json!({ "room_id": room_id, "closed": false, "generation": opened.generation, "limit": limit });
    output.result(&text, &value);
    Ok(())
}

pub(super) async fn approve(
    client: &mut Client,
    output: &Output,
    room: &str,
    user_id: &str,
    keybox_id: &str,
) -> Result<(), Failure> {
    let room_id = find_room(client, room).await?;
    let keybox = KeyBoxAddress::new(user_id, keybox_id);
    let approved = client.approve_keybox(&room_id, &keybox).await?;
    for known in &approved.keyboxes {
        if !known.is_verified() {
            output.progress(&format!(
                "WARNING: nobody here has verified {keybox}. If its owner does not know of it, open and close the room again \
                 after it was revoked."
            ));
        }
        let mut value = value_of(known, false);
        if let Some(object) = value.as_object_mut() {
            object.insert("room_id".to_owned(), room_id.as_str().into());
            object.insert("generation".to_owned(), approved.generation.into());
        }
        output.result(&format!("{keybox} gets the keys of {room_id} from now on."), &value);
    }
    Ok(())
}

fn is_own(client: &Client, known: &KnownKeyBox) -> bool {
    let own = client.account();
    known.keys.user_id == own.user_id && known.keys.keybox_id == own.keybox_id
}
