//! Reading the streams: where each shard stands, and the rows of a shard between two positions.

use std::collections::BTreeSet;

use keystead_core::shard::Shard;
use ruma::{MilliSecondsSinceUnixEpoch, OwnedDeviceId, OwnedEventId, OwnedRoomId, OwnedUserId, UInt, UserId};
use sea_orm::{QueryResult, Value};

use crate::{Error, ReadTx, WriteTx, rooms::StoredEvent, tx::Insert};

/// A row at a position of a shard's stream.
#[derive(Clone, Debug)]
pub struct StreamRow {
    /// Where it stands in the shard.
    pub position: i64,
    /// What it is.
    pub item: StreamItem,
}

/// What can stand in a stream.
#[derive(Clone, Debug)]
pub enum StreamItem {
    /// An event of a room (room shards).
    Event(Box<StoredEvent>),
    /// A read receipt: public ones in the room's shard, private ones in the reader's own.
    Receipt(Receipt),
    /// Something about a user changed.
    UserChange {
        /// The user.
        user_id: OwnedUserId,
        /// What changed.
        kind: UserChange,
    },
    /// A message to one device (user shards).
    ToDevice(ToDeviceMessage),
    /// A user's account data (user shards).
    AccountData(AccountData),
}

/// What about a user changed.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum UserChange {
    /// The devices' keys: others have to ask for them again.
    DeviceList,
    /// The number of a device's one-time keys or the use of its fallback key.
    OneTimeKeys,
    /// The user has forgotten a room: what is remembered of the user's rooms is void. Joining and leaving are events of
    /// the rooms and not noted here.
    Rooms,
    /// A session ended or the account's standing changed: caches of access tokens are void.
    Sessions,
}

/// A read receipt.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Receipt {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The reader.
    pub user_id: OwnedUserId,
    /// `m.read` or `m.read.private`.
    pub receipt_type: String,
    /// `main`, the thread's root, or empty for a receipt that is not threaded.
    pub thread_id: String,
    /// The event that was read.
    pub event_id: OwnedEventId,
    /// When.
    pub ts: MilliSecondsSinceUnixEpoch,
}

/// The type of the receipts that only their reader sees.
pub(crate) const PRIVATE_RECEIPT: &str = "m.read.private";

impl Receipt {
    /// Whether only its reader sees it: it then stands in the reader's own shard.
    pub fn is_private(&self) -> bool {
        self.receipt_type == PRIVATE_RECEIPT
    }
}

/// A message to one device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ToDeviceMessage {
    /// The recipient.
    pub user_id: OwnedUserId,
    /// The recipient's device.
    pub device_id: OwnedDeviceId,
    /// Who sent it.
    pub sender: OwnedUserId,
    /// Its type.
    pub message_type: String,
    /// Its content: a JSON object.
    pub content: String,
}

/// One entry of a user's account data.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AccountData {
    /// The user.
    pub user_id: OwnedUserId,
    /// The room that it is about; `None` for the account's own.
    pub room_id: Option<OwnedRoomId>,
    /// Its type.
    pub data_type: String,
    /// Its content: a JSON object.
    pub content: String,
}

impl UserChange {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::DeviceList => "device_list",
            Self::OneTimeKeys => "one_time_keys",
            Self::Rooms => "rooms",
            Self::Sessions => "sessions",
        }
    }

    fn parse(kind: &str) -> Option<Self> {
        [Self::DeviceList, Self::OneTimeKeys, Self::Rooms, Self::Sessions]
            .into_iter()
            .find(|known| known.as_str() == kind)
    }
}

/// All rows of a shard after a position, in order, up to where the shard stands in this transaction's view.
///
/// Rows that were replaced since (a newer receipt of the same reader) are not among them; the newer one is, at its own
/// position. This is why there is no upper bound: whoever stopped before the newer one would hear of neither, and believe
/// that nothing had changed so far.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn read_shard(tx: &ReadTx, shard: Shard, after: i64) -> Result<Vec<StreamRow>, Error> {
    let bounds = || [Value::from(shard), Value::from(after)];
    let mut rows = Vec::new();
    if tx.shards().is_room_shard(shard) {
        for row in tx.query(EVENTS, bounds()).await? {
            let event = StoredEvent::from_row(&row)?;
            rows.push(StreamRow { position: event.position, item: StreamItem::Event(Box::new(event)) });
        }
    } else {
        for row in tx.query(TO_DEVICE, bounds()).await? {
            rows.push(StreamRow {
                position: row.try_get("", "position")?,
                item: StreamItem::ToDevice(to_device(&row)?),
            });
        }
        for row in tx.query(ACCOUNT_DATA, bounds()).await? {
            let item = StreamItem::AccountData(account_data(&row)?);
            rows.push(StreamRow { position: row.try_get("", "position")?, item });
        }
    }
    for row in tx.query(RECEIPTS, bounds()).await? {
        rows.push(StreamRow {
            position: row.try_get("", "position")?,
            item: StreamItem::Receipt(receipt(&row)?),
        });
    }
    for row in tx.query(USER_CHANGES, bounds()).await? {
        let user_id = user_id(&row, "user_changes", "user_id")?;
        let name: String = row.try_get("", "kind")?;
        // A replica of a newer version may note what this one does not know.
        let Some(kind) = UserChange::parse(&name) else { continue };
        rows.push(StreamRow {
            position: row.try_get("", "position")?,
            item: StreamItem::UserChange { user_id, kind },
        });
    }
    rows.sort_unstable_by_key(|row| row.position);
    Ok(rows)
}

/// Notes that something about a user changed, at the next position of a shard that is locked.
///
/// # Errors
/// The shard is not locked ([`WriteTx::lock_shards`]); the database's own.
pub async fn append_user_change(
    tx: &WriteTx,
    shard: Shard,
    user_id: &UserId,
    kind: UserChange,
) -> Result<(), Error> {
    let position = tx.next_position(shard)?;
    tx.execute(
        "INSERT INTO user_changes (shard, user_id, kind, position) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (shard, user_id, kind) DO UPDATE SET position = excluded.position",
        [shard.into(), user_id.as_str().into(), kind.as_str().into(), position.into()],
    )
    .await?;
    Ok(())
}

/// [`append_user_change`] for many users and shards, in one statement.
///
/// # Errors
/// A shard is not locked ([`WriteTx::lock_shards`]); the database's own.
pub async fn append_user_changes(
    tx: &WriteTx,
    changes: impl IntoIterator<Item = (Shard, OwnedUserId)>,
    kind: UserChange,
) -> Result<(), Error> {
    tx.insert_together(vec![insert_user_changes(tx, changes, kind)?]).await?;
    Ok(())
}

/// What [`append_user_changes`] inserts, for those who insert more with it.
///
/// # Errors
/// A shard is not locked ([`WriteTx::lock_shards`]).
pub(crate) fn insert_user_changes(
    tx: &WriteTx,
    changes: impl IntoIterator<Item = (Shard, OwnedUserId)>,
    kind: UserChange,
) -> Result<Insert<'static>, Error> {
    // A set, or the statement would touch a row twice.
    let changes: BTreeSet<(Shard, OwnedUserId)> = changes.into_iter().collect();
    let rows = changes
        .into_iter()
        .map(|(shard, user_id)| {
            let position = tx.next_position(shard)?;
            Ok(vec![shard.into(), user_id.as_str().into(), kind.as_str().into(), position.into()])
        })
        .collect::<Result<_, Error>>()?;
    Ok(Insert {
        table: "user_changes",
        columns: &["shard", "user_id", "kind", "position"],
        rows,
        suffix: "ON CONFLICT (shard, user_id, kind) DO UPDATE SET position = excluded.position",
    })
}

const EVENTS: &str = "SELECT position, room_id, event_id, json, redacted_by, device_id, transaction_id FROM events \
    WHERE shard = $1 AND position > $2 ORDER BY position";
const TO_DEVICE: &str = "SELECT position, user_id, device_id, sender, message_type, content FROM to_device \
    WHERE shard = $1 AND position > $2";
const ACCOUNT_DATA: &str = "SELECT position, user_id, room_id, data_type, content FROM account_data \
    WHERE shard = $1 AND position > $2";
const RECEIPTS: &str = "SELECT position, room_id, user_id, receipt_type, thread_id, event_id, ts FROM receipts \
    WHERE shard = $1 AND position > $2";
const USER_CHANGES: &str = "SELECT position, user_id, kind FROM user_changes \
    WHERE shard = $1 AND position > $2";

pub(crate) fn to_device(row: &QueryResult) -> Result<ToDeviceMessage, Error> {
    let device_id: String = row.try_get("", "device_id")?;
    Ok(ToDeviceMessage {
        user_id: user_id(row, "to_device", "user_id")?,
        device_id: device_id.as_str().into(),
        sender: user_id(row, "to_device", "sender")?,
        message_type: row.try_get("", "message_type")?,
        content: row.try_get("", "content")?,
    })
}

pub(crate) fn account_data(row: &QueryResult) -> Result<AccountData, Error> {
    let room: String = row.try_get("", "room_id")?;
    Ok(AccountData {
        user_id: user_id(row, "account_data", "user_id")?,
        room_id: if room.is_empty() { None } else { Some(room_id(row, "account_data")?) },
        data_type: row.try_get("", "data_type")?,
        content: row.try_get("", "content")?,
    })
}

pub(crate) fn receipt(row: &QueryResult) -> Result<Receipt, Error> {
    let event_id: String = row.try_get("", "event_id")?;
    let ts: i64 = row.try_get("", "ts")?;
    Ok(Receipt {
        room_id: room_id(row, "receipts")?,
        user_id: user_id(row, "receipts", "user_id")?,
        receipt_type: row.try_get("", "receipt_type")?,
        thread_id: row.try_get("", "thread_id")?,
        event_id: OwnedEventId::try_from(event_id.as_str())
            .map_err(|error| Error::corrupt("receipts", "event_id", &event_id, error))?,
        ts: milliseconds(ts),
    })
}

/// A user id out of a row.
pub(crate) fn user_id(
    row: &QueryResult,
    table: &'static str,
    column: &'static str,
) -> Result<OwnedUserId, Error> {
    let id: String = row.try_get("", column)?;
    OwnedUserId::try_from(id.as_str()).map_err(|error| Error::corrupt(table, column, &id, error))
}

/// A room id out of a row.
pub(crate) fn room_id(row: &QueryResult, table: &'static str) -> Result<OwnedRoomId, Error> {
    let id: String = row.try_get("", "room_id")?;
    OwnedRoomId::try_from(id.as_str()).map_err(|error| Error::corrupt(table, "room_id", &id, error))
}

/// A time out of a row.
pub(crate) fn milliseconds(ts: i64) -> MilliSecondsSinceUnixEpoch {
    MilliSecondsSinceUnixEpoch(UInt::new_saturating(ts.try_into().unwrap_or_default()))
}
