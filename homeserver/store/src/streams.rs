//! Reading the streams: where each shard stands, and the rows of a shard between two positions.

use std::collections::{BTreeMap, BTreeSet};

use keystead_core::{pdu::ClientSend, shard::Shard};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedDeviceId, OwnedEventId, OwnedRoomId, OwnedUserId, UInt, UserId};
use sea_orm::{DbBackend, QueryResult};

use crate::{
    Error, ReadTx, WriteTx,
    rooms::{StoredEvent, parse_event_id},
    tx::Insert,
};

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
    /// A row that cannot be read, as the log says.
    Damaged,
}

/// What about a user changed.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum UserChange {
    /// The devices' keys: others have to ask for them again.
    DeviceList,
    /// The number of a device's one-time keys or the use of its fallback key.
    OneTimeKeys,
    /// The user has come, gone or said something else about it.
    Presence,
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
            Self::Presence => "presence",
            Self::Rooms => "rooms",
            Self::Sessions => "sessions",
        }
    }

    fn parse(kind: &str) -> Option<Self> {
        [Self::DeviceList, Self::OneTimeKeys, Self::Presence, Self::Rooms, Self::Sessions]
            .into_iter()
            .find(|known| known.as_str() == kind)
    }
}

/// All rows of some shards, each after a position of its own, in order: one statement, and so one view of the database.
///
/// Rows that were replaced since (a newer receipt of the same reader) are not among them; the newer one is, at its own
/// position. This is why there is no upper bound: whoever stopped before the newer one would hear of neither, and believe
/// that nothing had changed so far. Of a row that cannot be read only that is told.
///
/// # Errors
/// The database's own.
pub async fn read_shards(
    tx: &ReadTx,
    after: &[(Shard, i64)],
) -> Result<BTreeMap<Shard, Vec<StreamRow>>, Error> {
    let mut shards: BTreeMap<Shard, Vec<StreamRow>> = BTreeMap::new();
    if after.is_empty() {
        return Ok(shards);
    }
    let wanted = after.iter().map(|(shard, after)| vec![(*shard).into(), (*after).into()]).collect();
    let (wanted, mut values) = tx.rows(1, wanted);
    let sources = SOURCES.map(|(source, columns)| {
        let matches = "s.shard = w.shard AND s.position > w.after";
        let rows = match tx.backend() {
            // Shard by shard, from its position on. A table that was small when PostgreSQL last looked at it would else be read from its beginning, or all of
            // a shard for the newest rows of it; an order that may be cut short anywhere has the index of positions only.
            DbBackend::Postgres => format!(
                "CROSS JOIN LATERAL (SELECT * FROM {source} s WHERE {matches} ORDER BY s.position LIMIT $3) s"
            ),
            _ => format!("JOIN {source} s ON {matches}"),
        };
        format!("SELECT w.shard, s.position, '{source}' AS source, {columns} FROM wanted w {rows}")
    });
    if tx.backend() == DbBackend::Postgres {
        values.push(i64::MAX.into());
    }
    let sql = format!("WITH wanted (shard, after) AS ({wanted}) {}", sources.join(" UNION ALL "));
    for row in tx.query(&sql, values).await? {
        let (shard, position) = (row.try_get("", "shard")?, row.try_get("", "position")?);
        if let Some(item) = Error::pass_over(item(&row))?.unwrap_or(Some(StreamItem::Damaged)) {
            shards.entry(shard).or_default().push(StreamRow { position, item });
        }
    }
    shards.values_mut().for_each(|rows| rows.sort_unstable_by_key(|row| row.position));
    Ok(shards)
}

/// The tables that have rows in streams, and what is read of each: the same columns of all, since they are read together.
const SOURCES: [(&str, &str); 5] = [
    (
        "events",
        "s.room_id, NULL AS user_id, s.device_id, s.event_id, s.transaction_id AS name, s.redacted_by AS extra, \
         s.json AS content, CAST(0 AS BIGINT) AS ts",
    ),
    ("receipts", "s.room_id, s.user_id, NULL, s.event_id, s.receipt_type, s.thread_id, NULL, s.ts"),
    ("user_changes", "NULL, s.user_id, NULL, NULL, s.kind, NULL, NULL, 0"),
    ("to_device", "NULL, s.user_id, s.device_id, NULL, s.message_type, s.sender, s.content, 0"),
    ("account_data", "s.room_id, s.user_id, NULL, NULL, s.data_type, NULL, s.content, 0"),
];

/// The item of a row with the columns of [`SOURCES`]; `None` for one that a newer version of this program has written.
fn item(row: &QueryResult) -> Result<Option<StreamItem>, Error> {
    let source: String = row.try_get("", "source")?;
    let text = |column: &str| row.try_get::<Option<String>>("", column).map(Option::unwrap_or_default);
    Ok(Some(match source.as_str() {
        "events" => {
            let optional = |column: &str| row.try_get::<Option<String>>("", column);
            let sent_by = optional("device_id")?.zip(optional("name")?);
            StreamItem::Event(Box::new(StoredEvent {
                position: row.try_get("", "position")?,
                room_id: room_id(row, "events")?,
                event_id: parse_event_id("event_id", &text("event_id")?)?,
                json: text("content")?,
                redacted_by: optional("extra")?.map(|id| parse_event_id("redacted_by", &id)).transpose()?,
                sent_by: sent_by.map(|(device_id, transaction_id)| ClientSend {
                    device_id: device_id.as_str().into(),
                    transaction_id,
                }),
            }))
        }
        "receipts" => StreamItem::Receipt(Receipt {
            room_id: room_id(row, "receipts")?,
            user_id: user_id(row, "receipts", "user_id")?,
            receipt_type: text("name")?,
            thread_id: text("extra")?,
            event_id: parse_event_id("event_id", &text("event_id")?)?,
            ts: milliseconds(row.try_get("", "ts")?),
        }),
        "to_device" => StreamItem::ToDevice(ToDeviceMessage {
            user_id: user_id(row, "to_device", "user_id")?,
            device_id: text("device_id")?.as_str().into(),
            sender: parse_user_id("to_device", "sender", &text("extra")?)?,
            message_type: text("name")?,
            content: text("content")?,
        }),
        "account_data" => {
            let room = text("room_id")?;
            StreamItem::AccountData(AccountData {
                user_id: user_id(row, "account_data", "user_id")?,
                room_id: if room.is_empty() { None } else { Some(room_id(row, "account_data")?) },
                data_type: text("name")?,
                content: text("content")?,
            })
        }
        _ => match UserChange::parse(&text("name")?) {
            Some(kind) => StreamItem::UserChange { user_id: user_id(row, "user_changes", "user_id")?, kind },
            None => return Ok(None),
        },
    }))
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
    parse_user_id(table, column, &id)
}

fn parse_user_id(table: &'static str, column: &'static str, id: &str) -> Result<OwnedUserId, Error> {
    OwnedUserId::try_from(id).map_err(|error| Error::corrupt(table, column, id, error))
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
