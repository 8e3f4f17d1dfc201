//! Whether users are there, and what they say about it.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#presence>
//!
//! The row of a user is what holds now. That it changed is noted in the shards of the rooms that the user is in, as changes of devices
//! are, so that syncs of those who share one of them pass it.

use std::collections::BTreeSet;

use keystead_core::token::SyncToken;
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedUserId, UserId, events::room::member::MembershipState,
    presence::PresenceState,
};
use sea_orm::{QueryResult, Value};

use crate::{
    Error, ReadTx, WriteTx, keys,
    rooms::{
        self,
        contacts::{changed_members, members_of, moved_members, own_moves},
    },
    streams::{self, UserChange},
};

/// Whether a user is there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Presence {
    /// The user.
    pub user_id: OwnedUserId,
    /// `online`, `unavailable` or `offline`.
    pub state: PresenceState,
    /// What the user says about it.
    pub status_msg: Option<String>,
    /// When the user last did something, to within a minute or so.
    pub last_active_ts: MilliSecondsSinceUnixEpoch,
    /// When a client of the user last asked for news, to within a minute or so.
    pub seen_ts: MilliSecondsSinceUnixEpoch,
}

impl Presence {
    /// Whether the user counts as doing something now, however long ago the last thing was that was told: so it is while they are online, for of
    /// what they do then nobody is told ([spec]). `None` for who is not online.
    ///
    /// [spec]: https://spec.matrix.org/v1.19/client-server-api/#last-active-ago
    pub fn currently_active(&self) -> Option<bool> {
        (self.state == PresenceState::Online).then_some(true)
    }
}

/// What is known of a user's presence.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn find(tx: &ReadTx, user_id: &UserId) -> Result<Option<Presence>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM presence p WHERE p.user_id = $1");
    tx.query(&sql, [user_id.as_str().into()]).await?.first().map(from_row).transpose()
}

/// Writes down a presence that others are told of. Locks the shards that it needs: the transaction holds no others.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn change(tx: &WriteTx, presence: &Presence) -> Result<(), Error> {
    // A room that the user comes into meanwhile need not be among them: who joins is told of with all others.
    let shards = keys::device_list_shards(tx, &presence.user_id).await?;
    tx.lock_shards(&shards).await?;
    tx.execute(
        "INSERT INTO presence (user_id, state, status_msg, last_active_ts, seen_ts) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (user_id) DO UPDATE SET state = excluded.state, status_msg = excluded.status_msg, \
         last_active_ts = excluded.last_active_ts, seen_ts = excluded.seen_ts",
        [
            presence.user_id.as_str().into(),
            presence.state.as_str().into(),
            presence.status_msg.clone().into(),
            i64::from(presence.last_active_ts.get()).into(),
            i64::from(presence.seen_ts.get()).into(),
        ],
    )
    .await?;
    let changes = shards.into_iter().map(|shard| (shard, presence.user_id.clone()));
    streams::append_user_changes(tx, changes, UserChange::Presence).await
}

/// Writes down when a user was seen, of which nobody is told: what the user is may have changed since it was read, and stays.
///
/// # Errors
/// The database's own.
pub async fn touch(tx: &WriteTx, presence: &Presence) -> Result<(), Error> {
    tx.execute(
        "UPDATE presence SET last_active_ts = $2, seen_ts = $3 WHERE user_id = $1",
        [
            presence.user_id.as_str().into(),
            i64::from(presence.last_active_ts.get()).into(),
            i64::from(presence.seen_ts.get()).into(),
        ],
    )
    .await?;
    Ok(())
}

/// Forgets the presence of a user.
///
/// # Errors
/// The database's own.
pub async fn delete(tx: &WriteTx, user_id: &UserId) -> Result<(), Error> {
    tx.execute("DELETE FROM presence WHERE user_id = $1", [user_id.as_str().into()]).await?;
    Ok(())
}

/// At most `limit` users who count as there, though no client of theirs has asked for news since `before`.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn gone(
    tx: &ReadTx,
    before: MilliSecondsSinceUnixEpoch,
    limit: u32,
) -> Result<Vec<OwnedUserId>, Error> {
    let sql = format!("SELECT user_id FROM presence WHERE state <> 'offline' AND seen_ts < $1 LIMIT {limit}");
    let rows = tx.query(&sql, [i64::from(before.get()).into()]).await?;
    rows.iter().map(|row| streams::user_id(row, "presence", "user_id")).collect()
}

/// The presence of the reader and of those who are in a room with the reader: of all of them, or of those among `wanted`.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn visible(
    tx: &ReadTx,
    reader: &UserId,
    wanted: Option<&BTreeSet<OwnedUserId>>,
) -> Result<Vec<Presence>, Error> {
    let Some(wanted) = wanted else {
        let sql = format!(
            "SELECT {COLUMNS} FROM presence p JOIN ( \
                 SELECT theirs.user_id FROM memberships mine \
                 JOIN memberships theirs ON theirs.room_id = mine.room_id AND theirs.membership = 'join' \
                 WHERE mine.user_id = $1 AND mine.membership = 'join' UNION SELECT $1) AS shared \
             ON shared.user_id = p.user_id"
        );
        return tx.query(&sql, [reader.as_str().into()]).await?.iter().map(from_row).collect();
    };
    let wanted: Vec<&UserId> = wanted.iter().map(|user_id| &**user_id).collect();
    let mut visible = Vec::new();
    for chunk in wanted.chunks(tx.rows_a_statement(1)) {
        let (users, values) = tx.any_of(2, chunk.iter().map(|user_id| user_id.as_str()));
        let sql = format!(
            "SELECT {COLUMNS} FROM presence p WHERE p.user_id {users} AND (p.user_id = $1 OR EXISTS ( \
                 SELECT 1 FROM memberships mine JOIN memberships theirs ON theirs.room_id = mine.room_id \
                 WHERE mine.user_id = $1 AND mine.membership = 'join' \
                 AND theirs.user_id = p.user_id AND theirs.membership = 'join'))"
        );
        let reader = std::iter::once(Value::from(reader.as_str()));
        for row in tx.query(&sql, reader.chain(values)).await? {
            visible.push(from_row(&row)?);
        }
    }
    Ok(visible)
}

/// Those with whom the reader shares a room and whose presence changed since `from`, or whom the reader may not have seen before.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn changed_since(
    tx: &ReadTx,
    reader: &UserId,
    from: &SyncToken,
) -> Result<BTreeSet<OwnedUserId>, Error> {
    let memberships = rooms::memberships_of(tx, reader).await?;
    let mut changed = changed_members(tx, reader, from, UserChange::Presence).await?;
    let moved = moved_members(tx, &memberships, from).await?;
    changed.extend(moved.into_iter().filter(|(_, to)| *to == MembershipState::Join).map(|(user, _)| user));
    let (entered, _) = own_moves(tx, reader, memberships, from).await?;
    changed.extend(members_of(tx, &entered).await?);
    Ok(changed)
}

const COLUMNS: &str = "p.user_id, p.state, p.status_msg, p.last_active_ts, p.seen_ts";

fn from_row(row: &QueryResult) -> Result<Presence, Error> {
    let state: String = row.try_get("", "state")?;
    Ok(Presence {
        user_id: streams::user_id(row, "presence", "user_id")?,
        state: state.into(),
        status_msg: row.try_get("", "status_msg")?,
        last_active_ts: streams::milliseconds(row.try_get("", "last_active_ts")?),
        seen_ts: streams::milliseconds(row.try_get("", "seen_ts")?),
    })
}

#[cfg(test)]
mod tests {
    use ruma::{UInt, user_id};

    use super::*;
    use crate::store::tests::store;

    #[tokio::test]
    async fn who_was_seen_since_has_not_gone() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let at = |ms: u32| MilliSecondsSinceUnixEpoch(UInt::from(ms));
        let of = |user_id: &UserId, state, seen| Presence {
            user_id: user_id.to_owned(),
            state,
            status_msg: None,
            last_active_ts: at(1),
            seen_ts: at(seen),
        };
        let (alice, bob) = (user_id!("@alice:x"), user_id!("@bob:x"));
        let presences = &[of(alice, PresenceState::Online, 5), of(bob, PresenceState::Offline, 1)];
        for presence in presences {
            store.write("test", |tx| async move { change(&tx, presence).await }).await.unwrap();
        }
        store
            .write("test", |tx| async move {
                assert_eq!(gone(&tx, at(5), 9).await?, [""; 0]);
                assert_eq!(gone(&tx, at(6), 9).await?, [alice]);
                touch(&tx, &of(alice, PresenceState::Offline, 6)).await?;
                assert_eq!(gone(&tx, at(6), 9).await?, [""; 0]);
                let stored = find(&tx, alice).await?.map(|stored| stored.state);
                assert_eq!(stored, Some(PresenceState::Online));
                // Nobody shares a room with anybody: one sees oneself.
                let all = BTreeSet::from([alice.to_owned(), bob.to_owned()]);
                let seen = |seen: Vec<Presence>| seen.into_iter().map(|one| one.user_id).collect::<Vec<_>>();
                assert_eq!(seen(visible(&tx, bob, Some(&all)).await?), [bob]);
                assert_eq!(seen(visible(&tx, bob, None).await?), [bob]);
                assert!(!rooms::share_room(&tx, alice, bob).await?);
                delete(&tx, alice).await?;
                assert_eq!(find(&tx, alice).await?, None);
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
    }
}
