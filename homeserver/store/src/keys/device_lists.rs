//! Who has to hear that a user's devices or keys changed.
//!
//! A change is one row in the shard of every room that the user has joined or is invited to, and one in the user's own
//! shard, written in the transaction of the change. A sync that passes it tells the client to ask for the keys again.

use std::collections::BTreeSet;

use keystead_core::{shard::Shard, token::SyncToken};
use ruma::{OwnedUserId, UserId, events::room::member::MembershipState};
use sea_orm::{DbBackend, DbErr, Value};

use crate::{
    Error, ReadTx, WriteTx,
    rooms::{
        self,
        contacts::{changed_members, former_companions, members_of, moved_members, own_moves, sharing},
    },
    streams::{self, UserChange},
};

/// The class of the advisory locks between a change of a user's devices (exclusive) and of the user's
/// memberships (shared). PostgreSQL keeps locks with two keys apart from those with one.
const MEMBERSHIP_LOCKS: i32 = 1;

/// Whose devices a client has to ask for again, and whose it can forget.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DeviceListDelta {
    /// Users whose devices or keys changed, and users who have come to share a room with the reader.
    pub changed: BTreeSet<OwnedUserId>,
    /// Users who no longer share a room with the reader.
    pub left: BTreeSet<OwnedUserId>,
}

/// The shards in which a change of the user's devices has to be noted; to be locked together with all others that
/// the transaction appends to.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn device_list_shards(tx: &ReadTx, user_id: &UserId) -> Result<Vec<Shard>, Error> {
    let rows = tx
        .query(
            "SELECT room_id FROM memberships WHERE user_id = $1 AND membership IN ('join', 'invite')",
            [user_id.as_str().into()],
        )
        .await?;
    let mut shards = BTreeSet::from([tx.shards().of_user(user_id)]);
    for row in &rows {
        shards.insert(tx.shards().of_room(&streams::room_id(row, "memberships")?));
    }
    Ok(shards.into_iter().collect())
}

/// Notes that the user's devices or keys changed. The shards of [`device_list_shards`] are locked.
///
/// # Errors
/// [`Error::Retryable`] if the user has meanwhile come into a room of a shard that is not locked; the database's own.
pub async fn note_device_list_change(tx: &WriteTx, user_id: &UserId) -> Result<(), Error> {
    if tx.backend() == DbBackend::Postgres {
        // A join that has not committed yet is waited for, and one that comes later waits for this transaction: its
        // readers then ask for keys that are already the new ones.
        tx.execute(
            "SELECT pg_advisory_xact_lock($1, hashtext($2))",
            [MEMBERSHIP_LOCKS.into(), user_id.as_str().into()],
        )
        .await?;
    }
    let shards = device_list_shards(tx, user_id).await?;
    if !shards.iter().all(|shard| tx.is_locked(*shard)) {
        let cause = "the user joined a room while its devices changed";
        return Err(Error::Retryable(DbErr::Custom(cause.to_owned())));
    }
    let changes = shards.into_iter().map(|shard| (shard, user_id.to_owned()));
    streams::append_user_changes(tx, changes, UserChange::DeviceList).await
}

/// Makes changes of these users' devices and this change of their memberships follow one another. To be called by whoever
/// writes joins and invites; the shard of the room is locked.
pub(crate) async fn hold_memberships(tx: &WriteTx, user_ids: &BTreeSet<&str>) -> Result<(), Error> {
    if tx.backend() != DbBackend::Postgres {
        return Ok(());
    }
    if user_ids.is_empty() {
        return Ok(());
    }
    let (users, values) = tx.list(2, user_ids.iter().copied());
    let sql = format!(
        "SELECT pg_advisory_xact_lock_shared($1, hashtext(user_id)) FROM ({users}) AS arriving (user_id)"
    );
    tx.execute(&sql, std::iter::once(Value::from(MEMBERSHIP_LOCKS)).chain(values)).await?;
    Ok(())
}

/// Notes that `signer` signed keys of `signed`: only the signer's own devices see such a signature, so the change stands in
/// the signer's shard alone, which is locked.
///
/// # Errors
/// The database's own.
pub async fn note_user_signature(tx: &WriteTx, signer: &UserId, signed: &UserId) -> Result<(), Error> {
    streams::append_user_change(tx, tx.shards().of_user(signer), signed, UserChange::DeviceList).await
}

/// The users whose devices or keys last changed after one position of a shard and up to another.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn device_list_changes(
    tx: &ReadTx,
    shard: Shard,
    after: i64,
    upto: i64,
) -> Result<Vec<OwnedUserId>, Error> {
    let rows = tx
        .query(
            "SELECT user_id FROM user_changes \
             WHERE shard = $1 AND position > $2 AND position <= $3 AND kind = $4 ORDER BY position",
            [shard.into(), after.into(), upto.into(), UserChange::DeviceList.as_str().into()],
        )
        .await?;
    rows.iter().map(|row| streams::user_id(row, "user_changes", "user_id")).collect()
}

/// Whose devices the user has to ask for again since `from`, and whose it can forget.
///
/// Goes up to the newest position: the specification takes the end that a client names as a hint. May name a user
/// whose keys are the same, never leaves out one whose keys changed.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn device_list_delta(
    tx: &ReadTx,
    user_id: &UserId,
    from: &SyncToken,
) -> Result<DeviceListDelta, Error> {
    let own_shard = tx.shards().of_user(user_id);
    let memberships = rooms::memberships_of(tx, user_id).await?;
    let mut delta = DeviceListDelta {
        changed: changed_members(tx, user_id, from, UserChange::DeviceList).await?,
        ..Default::default()
    };
    for (moved, membership) in moved_members(tx, &memberships, from).await? {
        match membership {
            MembershipState::Join => delta.changed.insert(moved),
            _ => delta.left.insert(moved),
        };
    }
    let (entered, gone) = own_moves(tx, user_id, memberships, from).await?;
    delta.changed.extend(members_of(tx, &entered).await?);
    delta.left.extend(former_companions(tx, &gone, from).await?);
    let shared = sharing(tx, user_id, &delta.left).await?;
    delta.left.retain(|user| !shared.contains(user) && user != user_id);
    // A change of the reader's own devices stands in the own shard whatever rooms it has.
    delta.changed.remove(user_id);
    let own = device_list_changes(tx, own_shard, from.user, i64::MAX).await?;
    delta.changed.extend(own.into_iter().filter(|user| user == user_id));
    delta.changed.retain(|user| !delta.left.contains(user));
    Ok(delta)
}
