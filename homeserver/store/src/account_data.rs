//! Account data: what a user's clients keep at the server, for the account or for one room.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#client-config>

use std::collections::HashMap;

use ruma::{OwnedUserId, RoomId, UserId};

use crate::{Error, ReadTx, WriteTx, streams, streams::AccountData};

/// The account's data that name the users whom its user ignores.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#ignoring-users>
pub const IGNORED_USER_LIST: &str = "m.ignored_user_list";

/// The contents of the entries of one type that users have for their accounts, JSON objects. Users who have none are left out.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn of_users(
    tx: &ReadTx,
    user_ids: &[OwnedUserId],
    data_type: &str,
) -> Result<HashMap<OwnedUserId, String>, Error> {
    let mut contents = HashMap::with_capacity(user_ids.len());
    for chunk in user_ids.chunks(tx.rows_a_statement(1)) {
        let (users, values) = tx.any_of(3, chunk.iter().map(|user_id| user_id.as_str()));
        let sql = format!(
            "SELECT user_id, content FROM account_data WHERE room_id = $1 AND data_type = $2 AND user_id {users}"
        );
        let of_accounts = [room_key(None).into(), data_type.into()];
        for row in tx.query(&sql, of_accounts.into_iter().chain(values)).await? {
            contents.insert(streams::user_id(&row, "account_data", "user_id")?, row.try_get("", "content")?);
        }
    }
    Ok(contents)
}

/// The content of one entry, a JSON object; `room_id` is `None` for the account's own.
///
/// # Errors
/// The database's own.
pub async fn find(
    tx: &ReadTx,
    user_id: &UserId,
    room_id: Option<&RoomId>,
    data_type: &str,
) -> Result<Option<String>, Error> {
    let rows = tx
        .query(
            "SELECT content FROM account_data WHERE user_id = $1 AND room_id = $2 AND data_type = $3",
            [user_id.as_str().into(), room_key(room_id).into(), data_type.into()],
        )
        .await?;
    Ok(rows.first().map(|row| row.try_get("", "content")).transpose()?)
}

/// All entries of a user, of the account and of all rooms.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn of_user(tx: &ReadTx, user_id: &UserId) -> Result<Vec<AccountData>, Error> {
    let sql = "SELECT user_id, room_id, data_type, content FROM account_data WHERE user_id = $1";
    tx.query(sql, [user_id.as_str().into()]).await?.iter().map(streams::account_data).collect()
}

/// The entries of a user that were written after one position of the user's shard and up to another.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn changed(
    tx: &ReadTx,
    user_id: &UserId,
    after: i64,
    upto: i64,
) -> Result<Vec<AccountData>, Error> {
    let sql = "SELECT user_id, room_id, data_type, content FROM account_data \
        WHERE user_id = $1 AND position > $2 AND position <= $3";
    let rows = tx.query(sql, [user_id.as_str().into(), after.into(), upto.into()]).await?;
    rows.iter().map(streams::account_data).collect()
}

/// Writes an entry at the next position of the user's shard, which the transaction has locked.
///
/// # Errors
/// The shard is not locked ([`WriteTx::lock_shards`]); the database's own.
pub async fn put(tx: &WriteTx, data: &AccountData) -> Result<(), Error> {
    let shard = tx.shards().of_user(&data.user_id);
    let position = tx.next_position(shard)?;
    tx.execute(
        "INSERT INTO account_data (user_id, room_id, data_type, content, shard, position) \
         VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT (user_id, room_id, data_type) DO UPDATE SET \
         content = excluded.content, position = excluded.position",
        [
            data.user_id.as_str().into(),
            room_key(data.room_id.as_deref()).into(),
            data.data_type.as_str().into(),
            data.content.as_str().into(),
            shard.into(),
            position.into(),
        ],
    )
    .await?;
    Ok(())
}

fn room_key(room_id: Option<&RoomId>) -> &str {
    room_id.map_or("", RoomId::as_str)
}

/// Deletes all of a user's account data, of which nobody is told.
///
/// # Errors
/// The database's own.
pub async fn delete_of_user(tx: &WriteTx, user_id: &UserId) -> Result<(), Error> {
    tx.execute("DELETE FROM account_data WHERE user_id = $1", [user_id.as_str().into()]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use ruma::{room_id, user_id};

    use super::*;
    use crate::{store::tests::store, streams::StreamItem};

    #[tokio::test]
    async fn the_newest_entry_stands_at_the_newest_position() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let user = user_id!("@a:x");
        let shard = store.shards().of_user(user);
        for (room, content) in [(None, "1"), (Some(room_id!("!r:x")), "2"), (None, "3")] {
            let data = AccountData {
                user_id: user.to_owned(),
                room_id: room.map(ToOwned::to_owned),
                data_type: "m.x".to_owned(),
                content: content.to_owned(),
            };
            let put = |tx: WriteTx| {
                let data = data.clone();
                async move {
                    tx.lock_shards(&[shard]).await?;
                    put(&tx, &data).await
                }
            };
            store.write::<_, Error, _, _>("test", put).await.unwrap();
        }
        let (account, room, all, rows) = store
            .read("test", |tx| async move {
                let account = find(&tx, user, None, "m.x").await?;
                let room = find(&tx, user, Some(room_id!("!r:x")), "m.x").await?;
                let rows = streams::read_shards(&tx, &[(shard, 0)]).await?.remove(&shard).unwrap_or_default();
                Ok::<_, Error>((account, room, of_user(&tx, user).await?.len(), rows))
            })
            .await
            .unwrap();
        assert_eq!((account.as_deref(), room.as_deref(), all), (Some("3"), Some("2"), 2));
        let positions: Vec<i64> = rows.iter().map(|row| row.position).collect();
        assert_eq!(positions, [2, 3]);
        assert!(matches!(&rows[1].item, StreamItem::AccountData(data) if data.content == "3"));
    }
}
