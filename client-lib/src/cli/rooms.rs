//! Rooms and messages.

use std::io::Read as _;
use std::time::{Duration, Instant};

use serde_json::json;

use super::failure::Failure;
use super::output::{Output, date_time, one_word};
use keystead_keybox::suite::{SUITES, Suite, V1};

use crate::client::Client;
use crate::engine::{Membership, MissingMessages, Room};

/// How long one request waits for news.
const POLL: Duration = Duration::from_secs(30);
/// How long to wait before trying again to reach a homeserver.
const RETRY: Duration = Duration::from_secs(2);

/// The id of a room given by its id, or by the name of exactly one room; asks the server if that is not known yet.
pub(super) async fn find_room(client: &mut Client, room: &str) -> Result<String, Failure> {
    if let Ok(known) = room_id(client, room) {
        return Ok(known);
    }
    client.sync(Duration::ZERO).await?;
    room_id(client, room)
}

fn room_id(client: &Client, room: &str) -> Result<String, Failure> {
    if room.starts_with('!') {
        return Ok(room.to_owned());
    }
    let present = |known: &&Room| matches!(known.membership, Membership::Join | Membership::Invite);
    let mut named = client.rooms().filter(present).filter(|known| known.name.as_deref() == Some(room));
    match (named.next(), named.next()) {
        (Some(only), None) => Ok(only.room_id.clone()),
        _ => Err(Failure::NoSuchRoom(room.to_owned())),
    }
}

pub(super) async fn list(client: &mut Client, output: &Output) -> Result<(), Failure> {
    client.sync(Duration::ZERO).await?;
    for room in client.rooms() {
        let state = match room.membership {
            Membership::Join => "joined",
            Membership::Invite => "invited",
            Membership::Ban | Membership::Knock | Membership::Leave => continue,
        };
        let joined = room.members.values().filter(|membership| **membership == Membership::Join).count();
        let name = room.name.as_deref().unwrap_or("(no name)");
        let encryption = if room.suite.is_some() { "encrypted" } else { "NOT ENCRYPTED" };
        let text = match room.membership {
            Membership::Invite => {
                format!(
                    "{}  {name}  invited by {}",
                    room.room_id,
                    one_word(room.inviter.as_deref().unwrap_or("somebody"))
                )
            }
            _ => {
                let closed = if room.is_closed() { ", closed" } else { "" };
                format!("{}  {name}  {joined} member(s), {encryption}{closed}", room.room_id)
            }
        };
        let value = json!({
            "room_id": room.room_id, "name": room.name, "membership": state, "inviter": room.inviter,
            "joined_members": joined, "suite": room.suite, "waiting_for_keys": room.waiting(),
            "closed": room.is_closed(), "limit": room.closing().and_then(|closing| closing.limit),
        });
        output.result(&text, &value);
    }
    Ok(())
}

pub(super) async fn create(
    client: &mut Client,
    output: &Output,
    name: Option<&str>,
    suite: &Suite,
    invite: &[String],
) -> Result<(), Failure> {
    let room_id = client.create_room(name, suite, invite).await?;
    client.sync(Duration::ZERO).await?;
    output.result(&room_id, &json!({ "room_id": room_id, "suite": suite.id }));
    Ok(())
}

/// A suite by its version, as in `v1`, or by its identifier.
pub(super) fn suite(text: &str) -> Result<&'static Suite, String> {
    let known = |suite: &&Suite| suite.id == text || format!("v{}", suite.version) == text;
    let versions = || SUITES.iter().map(|suite| format!("v{}", suite.version)).collect::<Vec<_>>();
    SUITES.iter().find(known).ok_or_else(|| format!("there is {}", versions().join(", ")))
}

pub(super) async fn upgrade_suite(
    client: &mut Client,
    output: &Output,
    room: &str,
    leave_behind: bool,
) -> Result<(), Failure> {
    let room_id = find_room(client, room).await?;
    let upgraded = client.upgrade_suite(&room_id, leave_behind).await?;
    for keybox in &upgraded.left_behind {
        output.progress(&format!(
            "WARNING: {keybox} does not speak the new suite and reads nothing from now on."
        ));
    }
    let text = format!("{room_id} is encrypted with {} from now on.", upgraded.to);
    let value = json!({
        "room_id": room_id, "from": upgraded.from, "suite": upgraded.to, "left_behind": upgraded.left_behind,
    });
    output.result(&text, &value);
    Ok(())
}

pub(super) async fn invite(
    client: &mut Client,
    output: &Output,
    room: &str,
    user_id: &str,
) -> Result<(), Failure> {
    let room_id = find_room(client, room).await?;
    client.api().invite(&room_id, user_id).await?;
    output.progress(&format!("Invited {user_id}."));
    Ok(())
}

pub(super) async fn join(client: &mut Client, output: &Output, room: &str) -> Result<(), Failure> {
    let room = if room.starts_with('#') { room.to_owned() } else { find_room(client, room).await? };
    let room_id = client.api().join(&room).await?;
    client.sync(Duration::ZERO).await?;
    output.result(&format!("Joined {room_id}."), &json!({ "room_id": room_id }));
    Ok(())
}

pub(super) async fn leave(client: &mut Client, output: &Output, room: &str) -> Result<(), Failure> {
    let room_id = find_room(client, room).await?;
    client.api().leave(&room_id).await?;
    client.sync(Duration::ZERO).await?;
    output.result(&format!("Left {room_id}."), &json!({ "room_id": room_id }));
    Ok(())
}

pub(super) async fn send(
    client: &mut Client,
    output: &Output,
    room: &str,
    text: &str,
) -> Result<(), Failure> {
    let mut typed = String::new();
    let text = if text == "-" {
        std::io::stdin().read_to_string(&mut typed).map_err(Failure::Input)?;
        typed.trim_end_matches('\n')
    } else {
        text
    };
    let room_id = find_room(client, room).await?;
    let event_id = client.send_text(&room_id, text).await?;
    output.notices(client.take_notices());
    output.result(&format!("Sent as {event_id}."), &json!({ "event_id": event_id, "room_id": room_id }));
    Ok(())
}

pub(super) async fn listen(
    client: &mut Client,
    output: &Output,
    room: Option<&str>,
    until_messages: Option<usize>,
    timeout: Option<u64>,
) -> Result<(), Failure> {
    client.sync(Duration::ZERO).await?;
    let room_id = room.map(|room| room_id(client, room)).transpose()?;
    let started = Instant::now();
    let mut shown = 0;
    if timeout.is_none() && until_messages.is_none() {
        output.progress("Listening; end with Ctrl-C.");
    }
    loop {
        let limit = until_messages.map_or(usize::MAX, |wanted| wanted.saturating_sub(shown));
        let unread = client.unread(room_id.as_deref(), limit).await?;
        output.notices(client.take_notices());
        unread.iter().for_each(|message| output.message(message));
        shown += unread.len();
        client.mark_read(&unread).await?;
        if until_messages.is_some_and(|wanted| shown >= wanted) {
            return Ok(());
        }
        let left = timeout.map(|timeout| Duration::from_secs(timeout).saturating_sub(started.elapsed()));
        if left.is_some_and(|left| left.is_zero()) {
            return until_messages.map_or(Ok(()), |wanted| Err(Failure::TimedOut { shown, wanted }));
        }
        tokio::select! {
            synced = client.sync(left.map_or(POLL, |left| left.min(POLL))) => match synced {
                Ok(()) => {}
                Err(crate::client::ClientError::Api(error)) if error.is_temporary() => {
                    output.progress(&format!("{error}; trying again …"));
                    tokio::time::sleep(left.map_or(RETRY, |left| left.min(RETRY))).await;
                }
                Err(error) => return Err(error.into()),
            },
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

pub(super) async fn history(
    client: &mut Client,
    output: &Output,
    room: &str,
    limit: usize,
    wait: u64,
) -> Result<(), Failure> {
    let room_id = find_room(client, room).await?;
    for item in client.history(&room_id, limit, Duration::from_secs(wait)).await? {
        match item.message {
            Ok(message) => output.message(&message),
            Err(error) => {
                let sender = one_word(&item.event.sender);
                let text = format!("{}  {sender} [{error}]", date_time(item.event.origin_server_ts));
                let value = json!({
                    "room_id": room_id, "event_id": item.event.event_id, "sender": item.event.sender,
                    "sent_at": item.event.origin_server_ts, "unreadable": error.to_string(),
                });
                output.result(&text, &value);
            }
        }
    }
    Ok(())
}

pub(super) async fn missing(client: &mut Client, output: &Output, room: &str) -> Result<(), Failure> {
    client.sync(Duration::ZERO).await?;
    let room_id = room_id(client, room)?;
    output.notices(client.take_notices());
    let missing = client.missing_messages(&room_id);
    for MissingMessages { key, keybox, counters } in &missing {
        let (first, last) = (counters.start(), counters.end());
        let text = format!("{keybox}: messages {first} to {last} under the resource key {}", key.key_id);
        let value = json!({
            "room_id": room_id, "user_id": keybox.user_id, "keybox_id": keybox.keybox_id, "key_id": key.key_id,
            "first": first, "last": last,
        });
        output.result(&text, &value);
    }
    output.progress(if missing.is_empty() {
        "Nothing is missing before the last message that came from each KeyBox."
    } else {
        "They were not read yet (keybox history reads further back), never sent, or are held back."
    });
    Ok(())
}

pub(super) async fn export(
    client: &mut Client,
    output: &Output,
    room: &str,
    event_id: &str,
) -> Result<(), Failure> {
    let room_id = find_room(client, room).await?;
    let exported = client.export_message(&room_id, event_id).await?.ok_or(Failure::NoSuchKey)?;
    output.progress("WARNING: whoever has this key reads every message that was sealed with it.");
    let key = exported.resource_key.as_str();
    let mut text = format!(
        "resource key  {}\nkey           {key}\niv            {}\nciphertext    {}\nmac           {}\n\n",
        exported.key_id, exported.iv, exported.ciphertext, exported.mac
    );
    text.push_str(&match exported.suite.as_str() {
        V1 => format!(
            "printf %s '{}' | openssl enc -d -aes-256-ofb -a -A -K {key} -iv {}",
            exported.ciphertext, exported.iv
        ),
        suite => {
            format!("The openssl command line does not open {suite}; profiles/keybox/SPEC.md says what does.")
        }
    });
    let value = json!({
        "key_id": exported.key_id, "resource_key": key, "iv": exported.iv, "ciphertext": exported.ciphertext,
        "mac": exported.mac, "suite": exported.suite,
    });
    output.lines(&text, &value);
    Ok(())
}
