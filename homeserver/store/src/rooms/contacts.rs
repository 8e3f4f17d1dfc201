//! With whom a user shares rooms, and of whom something changed since a place in the streams: who has to hear of devices and of presence.

use std::collections::BTreeSet;

use keystead_core::{room::membership_of, shard::Shard, token::SyncToken};
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId, events::room::member::MembershipState};
use sea_orm::Value;

use super::{Membership, state_event_at};
use crate::{
    Error, ReadTx,
    streams::{self, UserChange},
};

/// The users in the rooms of `user_id` of whom something of this kind changed since `from`.
pub(crate) async fn changed_members(
    tx: &ReadTx,
    user_id: &UserId,
    from: &SyncToken,
    kind: UserChange,
) -> Result<BTreeSet<OwnedUserId>, Error> {
    let own_shard = (tx.shards().of_user(user_id), from.user);
    let since: Vec<(Shard, i64)> =
        tx.shards().room_shards().zip(from.rooms.iter().copied()).chain([own_shard]).collect();
    // Conditions rather than a joined list, so that the planner sees how few rows follow each position.
    let conditions = since
        .iter()
        .zip(2..)
        .map(|((shard, _), n)| format!("(c.shard = {shard} AND c.position > ${n})"))
        .collect::<Vec<_>>()
        .join(" OR ");
    let sql = format!(
        "SELECT DISTINCT c.user_id FROM user_changes c \
         WHERE c.kind = '{}' AND ({conditions}) AND EXISTS ( \
             SELECT 1 FROM memberships mine JOIN memberships theirs ON theirs.room_id = mine.room_id \
             WHERE mine.user_id = $1 AND mine.membership = 'join' \
             AND theirs.user_id = c.user_id AND theirs.membership IN ('join', 'invite'))",
        kind.as_str()
    );
    let values = std::iter::once(Value::from(user_id.as_str()))
        .chain(since.iter().map(|(_, after)| Value::from(*after)));
    let rows = tx.query(&sql, values).await?;
    rows.iter().map(|row| streams::user_id(row, "user_changes", "user_id")).collect()
}

/// Who came to or went from the joined ones of these rooms since `from`.
pub(crate) async fn moved_members(
    tx: &ReadTx,
    memberships: &[Membership],
    from: &SyncToken,
) -> Result<Vec<(OwnedUserId, MembershipState)>, Error> {
    let joined: Vec<&Membership> =
        memberships.iter().filter(|room| room.membership == MembershipState::Join).collect();
    let mut moved = Vec::new();
    for chunk in joined.chunks(tx.rows_a_statement(2)) {
        let rooms = chunk.iter().map(|room| {
            vec![Value::from(room.room_id.as_str()), position_in(tx, from, &room.room_id).into()]
        });
        let (rooms, values) = tx.rows(1, rooms.collect());
        let sql = format!(
            "WITH mine (room_id, after) AS ({rooms}) \
             SELECT DISTINCT theirs.user_id, theirs.membership FROM mine \
             JOIN memberships theirs ON theirs.room_id = mine.room_id AND theirs.position > mine.after \
             WHERE theirs.membership IN ('join', 'leave', 'ban')"
        );
        for row in tx.query(&sql, values).await? {
            let membership: String = row.try_get("", "membership")?;
            moved.push((streams::user_id(&row, "memberships", "user_id")?, membership.into()));
        }
    }
    Ok(moved)
}

/// How far a reader had come in the shard of a room.
fn position_in(tx: &ReadTx, from: &SyncToken, room_id: &RoomId) -> i64 {
    let shard = usize::try_from(tx.shards().of_room(room_id)).unwrap_or_default();
    from.rooms.get(shard).copied().unwrap_or_default()
}

/// The rooms that the user has entered since `from`, and those that it has left.
pub(crate) async fn own_moves(
    tx: &ReadTx,
    user_id: &UserId,
    memberships: Vec<Membership>,
    from: &SyncToken,
) -> Result<(Vec<OwnedRoomId>, Vec<OwnedRoomId>), Error> {
    let (mut entered, mut gone) = (Vec::new(), Vec::new());
    for membership in memberships {
        let after = position_in(tx, from, &membership.room_id);
        if membership.position <= after {
            continue;
        }
        match membership.membership {
            // A member event of somebody who was in the room before is a new name or picture.
            MembershipState::Join if !was_joined(tx, &membership.room_id, user_id, after).await? => {
                entered.push(membership.room_id);
            }
            MembershipState::Leave | MembershipState::Ban => gone.push(membership.room_id),
            _ => {}
        }
    }
    Ok((entered, gone))
}

async fn was_joined(tx: &ReadTx, room_id: &RoomId, user_id: &UserId, position: i64) -> Result<bool, Error> {
    let member = state_event_at(tx, room_id, position, ("m.room.member", user_id.as_str())).await?;
    Ok(member.is_some_and(|event| membership_of(&event.pdu) == MembershipState::Join))
}

/// Who is in these rooms.
pub(crate) async fn members_of(tx: &ReadTx, room_ids: &[OwnedRoomId]) -> Result<Vec<OwnedUserId>, Error> {
    let mut members = Vec::new();
    for chunk in room_ids.chunks(tx.rows_a_statement(1)) {
        let (rooms, values) = tx.any_of(1, chunk.iter().map(|room_id| room_id.as_str()));
        let sql =
            format!("SELECT DISTINCT user_id FROM memberships WHERE room_id {rooms} AND membership = 'join'");
        for row in tx.query(&sql, values).await? {
            members.push(streams::user_id(&row, "memberships", "user_id")?);
        }
    }
    Ok(members)
}

/// Who is in these rooms, or has left them since `from` like the reader.
pub(crate) async fn former_companions(
    tx: &ReadTx,
    room_ids: &[OwnedRoomId],
    from: &SyncToken,
) -> Result<Vec<OwnedUserId>, Error> {
    let mut companions = Vec::new();
    for chunk in room_ids.chunks(tx.rows_a_statement(2)) {
        let rooms = chunk
            .iter()
            .map(|room_id| vec![Value::from(room_id.as_str()), position_in(tx, from, room_id).into()]);
        let (rooms, values) = tx.rows(1, rooms.collect());
        let sql = format!(
            "WITH gone (room_id, after) AS ({rooms}) \
             SELECT DISTINCT theirs.user_id FROM gone JOIN memberships theirs ON theirs.room_id = gone.room_id \
             WHERE theirs.membership = 'join' \
             OR (theirs.membership IN ('leave', 'ban') AND theirs.position > gone.after)"
        );
        for row in tx.query(&sql, values).await? {
            companions.push(streams::user_id(&row, "memberships", "user_id")?);
        }
    }
    Ok(companions)
}

/// Those of `users` who share a room with the user.
pub(crate) async fn sharing(
    tx: &ReadTx,
    user_id: &UserId,
    users: &BTreeSet<OwnedUserId>,
) -> Result<BTreeSet<OwnedUserId>, Error> {
    let users: Vec<&OwnedUserId> = users.iter().collect();
    let mut sharing = BTreeSet::new();
    for chunk in users.chunks(tx.rows_a_statement(1)) {
        let (wanted, values) = tx.any_of(2, chunk.iter().map(|user| user.as_str()));
        let sql = format!(
            "SELECT DISTINCT theirs.user_id FROM memberships mine \
             JOIN memberships theirs ON theirs.room_id = mine.room_id \
             WHERE mine.user_id = $1 AND mine.membership = 'join' \
             AND theirs.membership = 'join' AND theirs.user_id {wanted}"
        );
        let reader = std::iter::once(Value::from(user_id.as_str()));
        for row in tx.query(&sql, reader.chain(values)).await? {
            sharing.insert(streams::user_id(&row, "memberships", "user_id")?);
        }
    }
    Ok(sharing)
}

/// Whether two users are in a room together.
///
/// # Errors
/// The database's own.
pub async fn share_room(tx: &ReadTx, one: &UserId, other: &UserId) -> Result<bool, Error> {
    let sql = "SELECT 1 AS found FROM memberships mine JOIN memberships theirs ON theirs.room_id = mine.room_id \
               WHERE mine.user_id = $1 AND mine.membership = 'join' \
               AND theirs.user_id = $2 AND theirs.membership = 'join' LIMIT 1";
    Ok(!tx.query(sql, [one.as_str().into(), other.as_str().into()]).await?.is_empty())
}
