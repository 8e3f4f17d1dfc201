//! Room aliases: names of rooms that people can remember.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#room-aliases>

use ruma::{OwnedRoomAliasId, OwnedRoomId, OwnedUserId, RoomAliasId, RoomId, UserId};

use crate::{Error, ReadTx, WriteTx, streams};

/// What an alias stands for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AliasTarget {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Who made the alias.
    pub creator: OwnedUserId,
}

/// Gives a room an alias; returns false if the alias is taken.
///
/// # Errors
/// The database's own.
pub async fn insert(
    tx: &WriteTx,
    alias: &RoomAliasId,
    room_id: &RoomId,
    creator: &UserId,
) -> Result<bool, Error> {
    let inserted = tx
        .execute(
            "INSERT INTO room_aliases (alias, room_id, creator) VALUES ($1, $2, $3) ON CONFLICT (alias) DO NOTHING",
            [alias.as_str().into(), room_id.as_str().into(), creator.as_str().into()],
        )
        .await?;
    Ok(inserted > 0)
}

/// What an alias stands for, if it exists.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn find(tx: &ReadTx, alias: &RoomAliasId) -> Result<Option<AliasTarget>, Error> {
    let sql = "SELECT room_id, creator FROM room_aliases WHERE alias = $1";
    let rows = tx.query(sql, [alias.as_str().into()]).await?;
    rows.first()
        .map(|row| {
            Ok(AliasTarget {
                room_id: streams::room_id(row, "room_aliases")?,
                creator: streams::user_id(row, "room_aliases", "creator")?,
            })
        })
        .transpose()
}

/// Removes an alias; returns whether it was there.
///
/// # Errors
/// The database's own.
pub async fn delete(tx: &WriteTx, alias: &RoomAliasId) -> Result<bool, Error> {
    Ok(tx.execute("DELETE FROM room_aliases WHERE alias = $1", [alias.as_str().into()]).await? > 0)
}

/// Lets the aliases of one room stand for another.
///
/// # Errors
/// The database's own.
pub async fn move_all(tx: &WriteTx, from: &RoomId, to: &RoomId) -> Result<(), Error> {
    let sql = "UPDATE room_aliases SET room_id = $2 WHERE room_id = $1";
    tx.execute(sql, [from.as_str().into(), to.as_str().into()]).await?;
    Ok(())
}

/// The aliases of a room on this server, by name.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn of_room(tx: &ReadTx, room_id: &RoomId) -> Result<Vec<OwnedRoomAliasId>, Error> {
    let sql = "SELECT alias FROM room_aliases WHERE room_id = $1 ORDER BY alias";
    let rows = tx.query(sql, [room_id.as_str().into()]).await?;
    rows.iter()
        .map(|row| {
            let alias: String = row.try_get("", "alias")?;
            OwnedRoomAliasId::try_from(alias.as_str())
                .map_err(|error| Error::corrupt("room_aliases", "alias", &alias, error))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use ruma::{room_alias_id, room_id, user_id};

    use super::*;
    use crate::store::tests::store;

    #[tokio::test]
    async fn an_alias_belongs_to_whoever_came_first() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let (alias, a) = (room_alias_id!("#n:x"), user_id!("@a:x"));
        let (first, second) = (room_id!("!1:x"), room_id!("!2:x"));
        store
            .write("test", |tx| async move {
                assert!(insert(&tx, alias, first, a).await?);
                assert!(!insert(&tx, alias, second, a).await?);
                assert_eq!(find(&tx, alias).await?.map(|target| target.room_id), Some(first.to_owned()));
                assert_eq!(of_room(&tx, first).await?, [alias]);
                assert!(of_room(&tx, second).await?.is_empty());
                move_all(&tx, first, second).await?;
                assert_eq!(of_room(&tx, second).await?, [alias]);
                assert!(delete(&tx, alias).await? && !delete(&tx, alias).await?);
                assert_eq!(find(&tx, alias).await?, None);
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
    }
}
