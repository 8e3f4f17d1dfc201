//! Read receipts: public ones in the room's stream, private ones in the reader's own.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#receipts>

use std::collections::HashMap;

use keystead_core::shard::Shard;
use ruma::{OwnedRoomId, RoomId, UserId};
use sea_orm::Value;

use crate::{
    Error, ReadTx, WriteTx, streams,
    streams::{PRIVATE_RECEIPT as PRIVATE, Receipt},
};

/// The shard that a receipt belongs to.
pub fn shard_of(tx: &ReadTx, receipt: &Receipt) -> Shard {
    if receipt.is_private() {
        tx.shards().of_user(&receipt.user_id)
    } else {
        tx.shards().of_room(&receipt.room_id)
    }
}

/// Moves a receipt forward, at the next position of its shard ([`shard_of`]), which the transaction has locked.
///
/// Returns whether it moved: a receipt never goes back to an older event, and one for the same event is left alone.
/// The event must be one of the room's.
///
/// # Errors
/// The shard is not locked ([`WriteTx::lock_shards`]); the database's own.
pub async fn advance(tx: &WriteTx, receipt: &Receipt) -> Result<bool, Error> {
    let key = || {
        [
            receipt.room_id.as_str().into(),
            receipt.user_id.as_str().into(),
            receipt.receipt_type.as_str().into(),
            receipt.thread_id.as_str().into(),
            receipt.event_id.as_str().into(),
        ]
    };
    let newer = "SELECT 1 AS found FROM receipts r JOIN events old ON old.event_id = r.event_id \
         JOIN events new ON new.event_id = $5 \
         WHERE r.room_id = $1 AND r.user_id = $2 AND r.receipt_type = $3 AND r.thread_id = $4 \
         AND old.position >= new.position";
    if !tx.query(newer, key()).await?.is_empty() {
        return Ok(false);
    }
    let shard = shard_of(tx, receipt);
    let position = tx.next_position(shard)?;
    let values = key().into_iter().chain([i64::from(receipt.ts.0).into(), shard.into(), position.into()]);
    tx.execute(
        "INSERT INTO receipts (room_id, user_id, receipt_type, thread_id, event_id, ts, shard, position) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
         ON CONFLICT (room_id, user_id, receipt_type, thread_id) DO UPDATE SET \
         event_id = excluded.event_id, ts = excluded.ts, shard = excluded.shard, position = excluded.position",
        values,
    )
    .await?;
    Ok(true)
}

/// The public receipts of several rooms that lie after one position of their shard and up to another, and the
/// reader's own private ones, wherever they lie.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn in_rooms(
    tx: &ReadTx,
    reader: &UserId,
    room_ids: &[&RoomId],
    after: i64,
    upto: i64,
) -> Result<Vec<Receipt>, Error> {
    let mut receipts = Vec::new();
    for chunk in room_ids.chunks(tx.rows_a_statement(1)) {
        let (rooms, values) = tx.any_of(4, chunk.iter().map(|room_id| room_id.as_str()));
        let sql = format!(
            "SELECT room_id, user_id, receipt_type, thread_id, event_id, ts FROM receipts WHERE room_id {rooms} \
             AND ((receipt_type <> '{PRIVATE}' AND position > $1 AND position <= $2) \
             OR (receipt_type = '{PRIVATE}' AND user_id = $3))"
        );
        let bounds = [after.into(), upto.into(), reader.as_str().into()];
        for row in tx.query(&sql, bounds.into_iter().chain(values)).await? {
            receipts.push(streams::receipt(&row)?);
        }
    }
    Ok(receipts)
}

/// A reader's own private receipts after one position of the reader's shard and up to another.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn private_changed(
    tx: &ReadTx,
    reader: &UserId,
    after: i64,
    upto: i64,
) -> Result<Vec<Receipt>, Error> {
    let sql = format!(
        "SELECT room_id, user_id, receipt_type, thread_id, event_id, ts FROM receipts \
         WHERE shard = $1 AND position > $2 AND position <= $3 AND user_id = $4 AND receipt_type = '{PRIVATE}'"
    );
    let shard = tx.shards().of_user(reader);
    let rows = tx.query(&sql, [shard.into(), after.into(), upto.into(), reader.as_str().into()]).await?;
    rows.iter().map(streams::receipt).collect()
}

/// The thread of what is in none, as receipts name it.
pub const MAIN: &str = "main";

/// How far a reader has read a room.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ReadUpTo {
    /// The position of the newest event with a receipt without a thread, which is one for all of them.
    pub all: Option<i64>,
    /// The same for receipts of each thread: [`MAIN`], or the id of the thread's root.
    pub threads: HashMap<String, i64>,
}

impl ReadUpTo {
    /// Up to which position a thread is read, if any of it is.
    pub fn in_thread(&self, thread: &str) -> Option<i64> {
        self.threads.get(thread).copied().max(self.all)
    }

    /// The newest position that is read, of whatever thread.
    pub fn newest(&self) -> Option<i64> {
        self.threads.values().copied().max().max(self.all)
    }
}

/// How far a reader has read rooms; those without a receipt are left out.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn read_positions(
    tx: &ReadTx,
    room_ids: &[&RoomId],
    reader: &UserId,
) -> Result<HashMap<OwnedRoomId, ReadUpTo>, Error> {
    let mut positions: HashMap<OwnedRoomId, ReadUpTo> = HashMap::new();
    for chunk in room_ids.chunks(tx.rows_a_statement(1)) {
        let (rooms, values) = tx.any_of(2, chunk.iter().map(|room_id| room_id.as_str()));
        let sql = format!(
            "SELECT r.room_id, r.thread_id, MAX(e.position) AS position \
             FROM receipts r JOIN events e ON e.event_id = r.event_id \
             WHERE r.room_id {rooms} AND r.user_id = $1 GROUP BY r.room_id, r.thread_id"
        );
        let reader = std::iter::once(Value::from(reader.as_str()));
        for row in tx.query(&sql, reader.chain(values)).await? {
            let read = positions.entry(streams::room_id(&row, "receipts")?).or_default();
            let (thread, position): (String, i64) =
                (row.try_get("", "thread_id")?, row.try_get("", "position")?);
            if thread.is_empty() {
                read.all = Some(position);
            } else {
                read.threads.insert(thread, position);
            }
        }
    }
    Ok(positions)
}

#[cfg(test)]
mod tests {
    use ruma::{MilliSecondsSinceUnixEpoch, UInt, event_id, room_id, user_id};

    use super::*;
    use crate::{Store, store::tests::store};

    async fn read(store: &Store, receipt_type: &str, event_id: &ruma::EventId) -> bool {
        let receipt = Receipt {
            room_id: room_id!("!r:x").to_owned(),
            user_id: user_id!("@a:x").to_owned(),
            receipt_type: receipt_type.to_owned(),
            thread_id: String::new(),
            event_id: event_id.to_owned(),
            ts: MilliSecondsSinceUnixEpoch(UInt::from(7_u32)),
        };
        let advance = |tx: WriteTx| {
            let receipt = receipt.clone();
            async move {
                tx.lock_shards(&[shard_of(&tx, &receipt)]).await?;
                advance(&tx, &receipt).await
            }
        };
        store.write::<_, Error, _, _>("test", advance).await.unwrap()
    }

    #[tokio::test]
    async fn receipts_only_move_forward_and_private_ones_stay_in_the_users_shard() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let rows = [(1, "$1"), (2, "$2")].map(|(position, id)| {
            vec![0.into(), i64::from(position).into(), "!r:x".into(), id.into(), "{}".into()]
        });
        let rows = rows.to_vec();
        store
            .write("test", |tx| {
                let rows = rows.clone();
                async move {
                    let columns = ["shard", "position", "room_id", "event_id", "json"];
                    tx.insert_rows("events", &columns, rows, "").await
                }
            })
            .await
            .unwrap();
        assert!(read(&store, "m.read", event_id!("$2")).await);
        assert!(!read(&store, "m.read", event_id!("$1")).await);
        assert!(!read(&store, "m.read", event_id!("$2")).await);
        assert!(read(&store, "m.read.private", event_id!("$1")).await);
        let positions = store.positions().await.unwrap();
        let of = |shard| positions.iter().find(|(s, _)| *s == shard).map(|(_, position)| *position);
        let room = of(store.shards().of_room(room_id!("!r:x")));
        let user = of(store.shards().of_user(user_id!("@a:x")));
        let all = store
            .read(
                "test",
                |tx| async move { in_rooms(&tx, user_id!("@a:x"), &[room_id!("!r:x")], 0, 9).await },
            )
            .await
            .unwrap();
        assert_eq!((room, user, all.len()), (Some(1), Some(1), 2));
    }
}
