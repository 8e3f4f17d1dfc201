//! Messages to single devices: kept until the device acknowledges them with its sync token.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#send-to-device-messaging>
//!
//! A device that stays away could fill the database, so each has a limit of messages that wait for it. What comes
//! beyond is not stored: the oldest stay, because a ratchet's first messages are what its later ones build on, and
//! because a device can ask again for keys that it lacks once it is back.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ruma::{DeviceId, MilliSecondsSinceUnixEpoch, OwnedDeviceId, OwnedUserId, UserId};
use sea_orm::{DbBackend, QueryResult, Value};

use crate::{
    Error, ReadTx, WriteTx,
    keys::Device,
    streams::{self, ToDeviceMessage},
};

/// How many messages may wait for one device. A few more can, if several senders pass the limit at the same time.
pub const MAX_PENDING: u64 = 10_000;
/// How many of these may be of one sender, who then cannot keep others' out. A user's own devices are not counted so.
pub const MAX_PENDING_FROM_ONE: u64 = 1_000;
/// How many may wait for a device if somebody is to add to them who shares no room with its user. So accounts that anybody
/// can make cannot keep out what a room's members send, however many they are.
pub const MAX_PENDING_FOR_STRANGERS: u64 = 1_000;

/// No inbox is full for anybody in which fewer messages wait.
pub const CROWDED: u64 = MAX_PENDING_FROM_ONE;
const _: () = assert!(CROWDED <= MAX_PENDING_FOR_STRANGERS && CROWDED <= MAX_PENDING);

/// A device that a sender has something for.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Inbox {
    /// The sender.
    pub sender: OwnedUserId,
    /// The recipient.
    pub user_id: OwnedUserId,
    /// The recipient's device.
    pub device_id: OwnedDeviceId,
}

/// A room that the recipient has joined, with the sender in it or invited. An invitation that the recipient has not accepted
/// does not count: anybody can send one.
const SHARED_ROOM: &str = "SELECT 1 FROM memberships theirs JOIN memberships own \
     ON own.room_id = theirs.room_id AND own.user_id = w.sender AND own.membership IN ('join', 'invite') \
     WHERE theirs.user_id = w.user_id AND theirs.membership = 'join'";

/// How many messages wait for each of these devices, counted up to [`CROWDED`].
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn waiting(tx: &ReadTx, devices: &[&Device]) -> Result<BTreeMap<Device, u64>, Error> {
    let mut waiting = BTreeMap::new();
    for chunk in devices.chunks(tx.rows_a_statement(2)) {
        let wanted =
            chunk.iter().map(|(user_id, device_id)| vec![user_id.as_str().into(), device_id.as_str().into()]);
        let (wanted, values) = tx.rows(1, wanted.collect());
        let sql = format!(
            "WITH wanted (user_id, device_id) AS ({wanted}) SELECT w.user_id, w.device_id, (SELECT COUNT(*) FROM \
             (SELECT 1 FROM to_device t WHERE t.user_id = w.user_id AND t.device_id = w.device_id LIMIT {CROWDED}) \
             AS some_of_them) AS waiting FROM wanted w"
        );
        for row in tx.query(&sql, values).await? {
            let device = (streams::user_id(&row, "to_device", "user_id")?, device_id(&row)?);
            let messages: i64 = row.try_get("", "waiting")?;
            waiting.insert(device, messages.unsigned_abs());
        }
    }
    Ok(waiting)
}

/// Those of `inboxes` in which so many messages wait that no more are taken from their sender: of inboxes with [`CROWDED`]
/// messages, as all of them are counted. To be asked before the shards are locked.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn full_inboxes(tx: &ReadTx, inboxes: &BTreeSet<Inbox>) -> Result<BTreeSet<Inbox>, Error> {
    let inboxes: Vec<_> = inboxes.iter().collect();
    let mut full = BTreeSet::new();
    for chunk in inboxes.chunks(tx.rows_a_statement(3)) {
        let wanted = chunk.iter().map(|inbox| {
            let names = [inbox.sender.as_str(), inbox.user_id.as_str(), inbox.device_id.as_str()];
            names.map(Value::from).to_vec()
        });
        let (wanted, values) = tx.rows(1, wanted.collect());
        let sql = format!(
            "WITH wanted (sender, user_id, device_id) AS ({wanted}) \
             SELECT w.sender, w.user_id, w.device_id FROM wanted w \
             JOIN to_device t ON t.user_id = w.user_id AND t.device_id = w.device_id \
             GROUP BY w.sender, w.user_id, w.device_id HAVING COUNT(*) >= {MAX_PENDING} OR \
             (w.user_id <> w.sender \
             AND (SUM(CASE WHEN t.sender = w.sender THEN 1 ELSE 0 END) >= {MAX_PENDING_FROM_ONE} \
             OR (COUNT(*) >= {MAX_PENDING_FOR_STRANGERS} AND NOT EXISTS ({SHARED_ROOM}))))"
        );
        for row in tx.query(&sql, values).await? {
            full.insert(Inbox {
                sender: streams::user_id(&row, "to_device", "sender")?,
                user_id: streams::user_id(&row, "to_device", "user_id")?,
                device_id: device_id(&row)?,
            });
        }
    }
    Ok(full)
}

/// Stores messages, each at the next position of its recipient's shard; the shards of all recipients are locked. Returns
/// their positions.
///
/// # Errors
/// A shard is not locked; the database's own.
pub async fn append(tx: &WriteTx, messages: &[ToDeviceMessage]) -> Result<Vec<i64>, Error> {
    let mut positions = Vec::with_capacity(messages.len());
    let mut rows = Vec::with_capacity(messages.len());
    for message in messages {
        let shard = tx.shards().of_user(&message.user_id);
        let position = tx.next_position(shard)?;
        positions.push(position);
        rows.push(vec![
            shard.into(),
            position.into(),
            message.user_id.as_str().into(),
            message.device_id.as_str().into(),
            message.sender.as_str().into(),
            message.message_type.as_str().into(),
            message.content.as_str().into(),
        ]);
    }
    let columns = ["shard", "position", "user_id", "device_id", "sender", "message_type", "content"];
    tx.insert_rows("to_device", &columns, rows, "").await?;
    Ok(positions)
}

/// The messages to a device after one position of its user's shard and up to another, oldest first, at most `limit`, with
/// their positions.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn pending(
    tx: &ReadTx,
    (user_id, device_id): (&UserId, &DeviceId),
    (after, upto): (i64, i64),
    limit: u64,
) -> Result<Vec<(i64, ToDeviceMessage)>, Error> {
    let sql = format!(
        "SELECT position, user_id, device_id, sender, message_type, content FROM to_device \
         WHERE user_id = $1 AND device_id = $2 AND position > $3 AND position <= $4 \
         ORDER BY position LIMIT {limit}"
    );
    let rows = tx
        .query(&sql, [user_id.as_str().into(), device_id.as_str().into(), after.into(), upto.into()])
        .await?;
    rows.iter().map(|row| Ok((row.try_get("", "position")?, streams::to_device(row)?))).collect()
}

/// Deletes the messages that devices have acknowledged: of each device those up to a position. Returns how many.
///
/// # Errors
/// The database's own.
pub async fn acknowledge(
    tx: &WriteTx,
    acknowledged: &[(OwnedUserId, OwnedDeviceId, i64)],
) -> Result<u64, Error> {
    let mut deleted = 0;
    for chunk in acknowledged.chunks(tx.rows_a_statement(3)) {
        let rows = chunk.iter().map(|(user_id, device_id, upto)| {
            vec![user_id.as_str().into(), device_id.as_str().into(), (*upto).into()]
        });
        let (rows, values) = tx.rows(1, rows.collect());
        let matches = "t.user_id = a.user_id AND t.device_id = a.device_id AND t.position <= a.upto";
        let delete = match tx.backend() {
            // When PostgreSQL last looked, the table may have been empty, as it is whenever all have what is theirs. A plan
            // that was as good as any other then takes seconds once there is something: this one it can only begin with
            // what is acknowledged.
            DbBackend::Postgres => format!("DELETE FROM to_device t USING acknowledged a WHERE {matches}"),
            _ => format!(
                "DELETE FROM to_device WHERE (shard, position) IN ( \
                 SELECT t.shard, t.position FROM acknowledged a JOIN to_device t ON {matches})"
            ),
        };
        let sql = format!("WITH acknowledged (user_id, device_id, upto) AS ({rows}) {delete}");
        deleted += tx.execute(&sql, values).await?;
    }
    Ok(deleted)
}

/// How many messages wait for all devices together, counted up to `limit`.
///
/// # Errors
/// The database's own.
pub async fn count_pending(tx: &ReadTx, limit: u32) -> Result<u64, Error> {
    let sql =
        format!("SELECT COUNT(*) AS waiting FROM (SELECT 1 FROM to_device LIMIT {limit}) AS some_of_them");
    let rows = tx.query(&sql, []).await?;
    let waiting: i64 = rows.first().map_or(Ok(0), |row| row.try_get("", "waiting"))?;
    Ok(waiting.unsigned_abs())
}

/// The oldest and the newest position of the messages to devices. Devices that have none are left out.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn extents(tx: &ReadTx, devices: &[Device]) -> Result<HashMap<Device, (i64, i64)>, Error> {
    let mut extents = HashMap::new();
    for chunk in devices.chunks(tx.rows_a_statement(2)) {
        let rows = chunk.iter().map(|(user, device)| vec![user.as_str().into(), device.as_str().into()]);
        let (rows, values) = tx.rows(1, rows.collect());
        let sql = format!(
            "SELECT user_id, device_id, MIN(position) AS oldest, MAX(position) AS newest FROM to_device \
             WHERE (user_id, device_id) IN ({rows}) GROUP BY user_id, device_id"
        );
        for row in tx.query(&sql, values).await? {
            let device_id: String = row.try_get("", "device_id")?;
            let device = (streams::user_id(&row, "to_device", "user_id")?, device_id.as_str().into());
            extents.insert(device, (row.try_get("", "oldest")?, row.try_get("", "newest")?));
        }
    }
    Ok(extents)
}

/// Deletes all messages to a device that is deleted. Returns how many.
///
/// # Errors
/// The database's own.
pub async fn delete_of_device(tx: &WriteTx, user_id: &UserId, device_id: &DeviceId) -> Result<u64, Error> {
    tx.execute(
        "DELETE FROM to_device WHERE user_id = $1 AND device_id = $2",
        [user_id.as_str().into(), device_id.as_str().into()],
    )
    .await
}

/// Deletes all messages to devices that were last seen before then: they are not coming back for them. Returns how many.
///
/// # Errors
/// The database's own.
pub async fn expire(tx: &WriteTx, unseen_since: MilliSecondsSinceUnixEpoch) -> Result<u64, Error> {
    tx.execute(
        "DELETE FROM to_device WHERE (user_id, device_id) IN \
         (SELECT user_id, device_id FROM devices WHERE last_seen_ts < $1)",
        [i64::from(unseen_since.0).into()],
    )
    .await
}

/// How many messages wait for a user's devices, by device.
///
/// # Errors
/// The database's own.
pub async fn depths(tx: &ReadTx, user_id: &UserId) -> Result<BTreeMap<OwnedDeviceId, u64>, Error> {
    let rows = tx
        .query(
            "SELECT device_id, COUNT(*) AS messages FROM to_device WHERE user_id = $1 GROUP BY device_id",
            [user_id.as_str().into()],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let messages: i64 = row.try_get("", "messages")?;
            Ok((device_id(row)?, messages.try_into().unwrap_or_default()))
        })
        .collect()
}

fn device_id(row: &QueryResult) -> Result<OwnedDeviceId, Error> {
    let device_id: String = row.try_get("", "device_id")?;
    Ok(device_id.as_str().into())
}

#[cfg(test)]
mod tests {
    use ruma::{device_id, user_id};

    use super::*;
    use crate::{Store, store::tests::store};

    fn message(user: &UserId, device: &str, content: &str) -> ToDeviceMessage {
        ToDeviceMessage {
            user_id: user.to_owned(),
            device_id: device.into(),
            sender: user_id!("@s:x").to_owned(),
            message_type: "m.x".to_owned(),
            content: content.to_owned(),
        }
    }

    /// Sends the messages that fit; returns how many.
    async fn send(store: &Store, messages: &[ToDeviceMessage]) -> usize {
        let inbox = |message: &ToDeviceMessage| Inbox {
            sender: message.sender.clone(),
            user_id: message.user_id.clone(),
            device_id: message.device_id.clone(),
        };
        store
            .write("test", |tx| async move {
                let shards: Vec<_> =
                    messages.iter().map(|message| tx.shards().of_user(&message.user_id)).collect();
                let full = full_inboxes(&tx, &messages.iter().map(inbox).collect()).await?;
                tx.lock_shards(&shards).await?;
                let mut fitting = messages.to_vec();
                fitting.retain(|message| !full.contains(&inbox(message)));
                Ok::<_, Error>(append(&tx, &fitting).await?.len())
            })
            .await
            .unwrap()
    }

    async fn set_membership(store: &Store, user: &str, room: &str, membership: &str) {
        let sql = "INSERT INTO memberships (user_id, room_id, membership, position) VALUES ($1, $2, $3, 1)";
        let values: &[Value; 3] = &[user.into(), room.into(), membership.into()];
        store.write("test", |tx| async move { tx.execute(sql, values.clone()).await }).await.unwrap();
    }

    async fn contents(store: &Store, after: i64, limit: u64) -> Vec<(i64, String)> {
        let device = (user_id!("@a:x"), device_id!("D"));
        let found = store
            .read("test", |tx| async move { pending(&tx, device, (after, i64::MAX), limit).await })
            .await
            .unwrap();
        found.into_iter().map(|(position, message)| (position, message.content)).collect()
    }

    #[tokio::test]
    async fn messages_wait_in_order_until_they_are_acknowledged() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let user = user_id!("@a:x");
        let appended =
            send(&store, &[message(user, "D", "1"), message(user, "E", "2"), message(user, "D", "3")]).await;
        assert_eq!(appended, 3);
        for (limit, counted) in [(100, 3), (2, 2)] {
            let count = store.read("test", |tx| async move { count_pending(&tx, limit).await }).await;
            assert_eq!(count.unwrap(), counted);
        }
        assert_eq!(contents(&store, 0, 10).await, [(1, "1".to_owned()), (3, "3".to_owned())]);
        assert_eq!(contents(&store, 0, 1).await, [(1, "1".to_owned())]);
        assert_eq!(contents(&store, 1, 10).await, [(3, "3".to_owned())]);

        let deleted = store
            .write("test", |tx| async move {
                let nothing = (user_id!("@b:x").to_owned(), "D".into(), 9);
                acknowledge(&tx, &[(user.to_owned(), "D".into(), 2), nothing]).await
            })
            .await
            .unwrap();
        assert_eq!(deleted, 1);
        assert_eq!(contents(&store, 0, 10).await, [(3, "3".to_owned())]);
        let (left, extents) = store
            .write("test", |tx| async move {
                let device = (user.to_owned(), device_id!("D").to_owned());
                let extent = async || {
                    let found = extents(&tx, std::slice::from_ref(&device)).await?;
                    Ok::<_, Error>(found.get(&device).copied())
                };
                let before = extent().await?;
                delete_of_device(&tx, user, device_id!("D")).await?;
                let extents = [before, extent().await?];
                Ok::<_, Error>((depths(&tx, user).await?, extents))
            })
            .await
            .unwrap();
        assert_eq!(left, BTreeMap::from([("E".into(), 1)]));
        assert_eq!(extents, [Some((3, 3)), None]);
    }

    #[tokio::test]
    async fn a_full_device_keeps_its_oldest_messages() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let user = user_id!("@a:x");
        let many: Vec<_> = (0..MAX_PENDING)
            .map(|n| ToDeviceMessage {
                sender: UserId::parse(format!("@s{}:x", n % 20)).unwrap(),
                ..message(user, "D", &n.to_string())
            })
            .collect();
        send(&store, &many).await;
        let appended = send(&store, &[message(user, "D", "late"), message(user, "E", "fits")]).await;
        assert_eq!(appended, 1);
        assert_eq!(contents(&store, 0, 1).await, [(1, "0".to_owned())]);
        let devices = ["D", "E", "F"].map(|device_id| (user.to_owned(), device_id.into()));
        let wanted = &devices.each_ref();
        let waiting = store.read("test", |tx| async move { waiting(&tx, wanted).await }).await.unwrap();
        assert_eq!(waiting, devices.into_iter().zip([CROWDED, 1, 0]).collect());
        let depths = store.read("test", |tx| async move { depths(&tx, user).await }).await.unwrap();
        assert_eq!(depths, BTreeMap::from([("D".into(), MAX_PENDING), ("E".into(), 1)]));
    }

    #[tokio::test]
    async fn one_sender_does_not_fill_what_waits_for_a_device() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let user = user_id!("@a:x");
        for member in ["@a:x", "@s:x", "@t:x"] {
            set_membership(&store, member, "!one:x", "join").await;
        }
        let many: Vec<_> = (0..MAX_PENDING_FROM_ONE).map(|n| message(user, "D", &n.to_string())).collect();
        send(&store, &many).await;
        assert_eq!(send(&store, &[message(user, "D", "more")]).await, 0);
        assert_eq!(send(&store, &[message(user, "E", "other")]).await, 1);
        for (sender, is_full) in [(user_id!("@s:x"), true), (user_id!("@t:x"), false), (user, false)] {
            let inbox = Inbox { sender: sender.to_owned(), user_id: user.to_owned(), device_id: "D".into() };
            let wanted = &BTreeSet::from([inbox]);
            let full = store.read("test", |tx| async move { full_inboxes(&tx, wanted).await }).await.unwrap();
            assert_eq!(!full.is_empty(), is_full, "{sender}");
        }
    }

    #[tokio::test]
    async fn strangers_together_fill_a_small_part_of_what_waits_for_a_device() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let user = user_id!("@a:x");
        let stranger = |n| UserId::parse(format!("@stranger{n}:x")).unwrap();
        let from = |sender: &UserId| ToDeviceMessage { sender: sender.to_owned(), ..message(user, "D", "") };
        for (member, room, membership) in [
            ("@a:x", "!one:x", "join"),
            ("@member:x", "!one:x", "join"),
            ("@invited:x", "!one:x", "invite"),
            ("@gone:x", "!one:x", "leave"),
            ("@a:x", "!two:x", "invite"),
            ("@inviter:x", "!two:x", "join"),
        ] {
            set_membership(&store, member, room, membership).await;
        }
        let most: Vec<_> = (0..MAX_PENDING_FOR_STRANGERS - 1).map(|n| from(&stranger(n % 10))).collect();
        send(&store, &most).await;
        assert_eq!(send(&store, &[from(&stranger(11))]).await, 1, "there is one place left");
        let strangers = [stranger(12), user_id!("@gone:x").to_owned(), user_id!("@inviter:x").to_owned()];
        for sender in strangers {
            assert_eq!(send(&store, &[from(&sender)]).await, 0, "{sender}");
        }
        for sender in [user_id!("@member:x"), user_id!("@invited:x"), user] {
            assert_eq!(send(&store, &[from(sender)]).await, 1, "{sender}");
        }
    }

    #[tokio::test]
    async fn messages_to_devices_that_stay_away_expire() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let user = user_id!("@a:x");
        let at = |ms: u32| MilliSecondsSinceUnixEpoch(ms.into());
        for (id, seen) in [("OLD", 10), ("NEW", 30)] {
            let device = &crate::devices::Device {
                device_id: id.into(),
                display_name: None,
                last_seen_ts: at(seen),
                last_seen_ip: String::new(),
            };
            store
                .write("test", |tx| async move {
                    tx.insert_together(vec![crate::devices::upsert([(user, device)])]).await
                })
                .await
                .unwrap();
        }
        send(&store, &[message(user, "OLD", "1"), message(user, "NEW", "2")]).await;
        let expired = store.write("test", |tx| async move { expire(&tx, at(20)).await }).await.unwrap();
        assert_eq!(expired, 1);
        let depths = store.read("test", |tx| async move { depths(&tx, user).await }).await.unwrap();
        assert_eq!(depths, BTreeMap::from([("NEW".into(), 1)]));
    }
}
