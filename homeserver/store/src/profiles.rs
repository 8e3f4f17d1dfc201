//! Global profiles: what users tell everybody about themselves, and the search among them.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#profiles>

use ruma::{OwnedUserId, UserId};

use crate::{Error, ReadTx, WriteTx, streams};

/// The profile field with the display name.
pub const DISPLAY_NAME: &str = "displayname";
/// The profile field with the address of the picture.
pub const AVATAR_URL: &str = "avatar_url";

/// A user that a search found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FoundUser {
    /// The user.
    pub user_id: OwnedUserId,
    /// The display name as JSON: a string.
    pub display_name: Option<String>,
    /// The address of the picture as JSON: a string.
    pub avatar_url: Option<String>,
}

/// All fields of a profile: names and JSON values, by name.
///
/// # Errors
/// The database's own.
pub async fn fields(tx: &ReadTx, user_id: &UserId) -> Result<Vec<(String, String)>, Error> {
    let sql = "SELECT name, value FROM profile_fields WHERE user_id = $1 ORDER BY name";
    let rows = tx.query(sql, [user_id.as_str().into()]).await?;
    rows.iter().map(|row| Ok((row.try_get("", "name")?, row.try_get("", "value")?))).collect()
}

/// One field of a profile as JSON.
///
/// # Errors
/// The database's own.
pub async fn field(tx: &ReadTx, user_id: &UserId, name: &str) -> Result<Option<String>, Error> {
    let sql = "SELECT value FROM profile_fields WHERE user_id = $1 AND name = $2";
    let rows = tx.query(sql, [user_id.as_str().into(), name.into()]).await?;
    Ok(rows.first().map(|row| row.try_get("", "value")).transpose()?)
}

/// Sets a field of a profile to a JSON value. `search_text` is what the search compares, in lower case; only
/// display names have one.
///
/// # Errors
/// The database's own.
pub async fn set_field(
    tx: &WriteTx,
    user_id: &UserId,
    (name, value): (&str, &str),
    search_text: Option<&str>,
) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO profile_fields (user_id, name, value, search_text) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (user_id, name) DO UPDATE SET value = excluded.value, search_text = excluded.search_text",
        [user_id.as_str().into(), name.into(), value.into(), search_text.map(str::to_owned).into()],
    )
    .await?;
    Ok(())
}

/// Removes a field of a profile; returns whether it was there.
///
/// # Errors
/// The database's own.
pub async fn delete_field(tx: &WriteTx, user_id: &UserId, name: &str) -> Result<bool, Error> {
    let sql = "DELETE FROM profile_fields WHERE user_id = $1 AND name = $2";
    Ok(tx.execute(sql, [user_id.as_str().into(), name.into()]).await? > 0)
}

/// Users whose id or display name contains `term` (in lower case), at most `limit`, by user id.
///
/// Found are those who share a room with `asker` and those who are in a room of the server's directory.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn search(tx: &ReadTx, asker: &UserId, term: &str, limit: u64) -> Result<Vec<FoundUser>, Error> {
    let pattern = format!("%{}%", term.replace('\\', r"\\").replace('%', r"\%").replace('_', r"\_"));
    let sql = format!(
        r"SELECT DISTINCT m.user_id, d.value AS display_name, a.value AS avatar_url FROM memberships m
        LEFT JOIN profile_fields d ON d.user_id = m.user_id AND d.name = 'displayname'
        LEFT JOIN profile_fields a ON a.user_id = m.user_id AND a.name = 'avatar_url'
        WHERE m.membership = 'join' AND m.user_id <> $1
        AND (m.user_id LIKE $2 ESCAPE '\' OR d.search_text LIKE $2 ESCAPE '\')
        AND (m.room_id IN (SELECT room_id FROM memberships WHERE user_id = $1 AND membership = 'join')
            OR m.room_id IN (SELECT room_id FROM room_directory))
        ORDER BY m.user_id LIMIT {limit}"
    );
    let rows = tx.query(&sql, [asker.as_str().into(), pattern.into()]).await?;
    rows.iter()
        .map(|row| {
            Ok(FoundUser {
                user_id: streams::user_id(row, "memberships", "user_id")?,
                display_name: row.try_get("", "display_name")?,
                avatar_url: row.try_get("", "avatar_url")?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;
    use crate::store::tests::store;

    #[tokio::test]
    async fn fields_are_set_replaced_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let user = user_id!("@a:x");
        let fields = store
            .write("test", |tx| async move {
                set_field(&tx, user, (DISPLAY_NAME, "\"A\""), Some("a")).await?;
                set_field(&tx, user, (DISPLAY_NAME, "\"B\""), Some("b")).await?;
                set_field(&tx, user, ("m.tz", "\"UTC\""), None).await?;
                assert!(delete_field(&tx, user, "m.tz").await?);
                assert!(!delete_field(&tx, user, "m.tz").await?);
                assert_eq!(field(&tx, user, "m.tz").await?, None);
                fields(&tx, user).await
            })
            .await
            .unwrap();
        assert_eq!(fields, [(DISPLAY_NAME.to_owned(), "\"B\"".to_owned())]);
    }

    #[tokio::test]
    async fn a_search_finds_who_shares_a_room_or_stands_in_a_listed_one() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let members = [
            ("@me:x", "!shared:x", "join"),
            ("@bob:x", "!shared:x", "join"),
            ("@gone_bob:x", "!shared:x", "leave"),
            ("@listed_bob:x", "!listed:x", "join"),
            ("@hidden_bob:x", "!other:x", "join"),
        ];
        let found = store
            .write("test", |tx| async move {
                let rows = members.map(|(user, room, membership)| {
                    vec![user.into(), room.into(), membership.into(), 1_i64.into(), false.into()]
                });
                let columns = ["user_id", "room_id", "membership", "position", "forgotten"];
                tx.insert_rows("memberships", &columns, rows.to_vec(), "").await?;
                crate::room_directory::set_listed(&tx, ruma::room_id!("!listed:x"), true).await?;
                set_field(&tx, user_id!("@bob:x"), (DISPLAY_NAME, "\"Ärger 100%\""), Some("ärger 100%"))
                    .await?;
                let mut found = Vec::new();
                for term in ["bob", "ärger", "0%", "%", "_bob"] {
                    let users = search(&tx, user_id!("@me:x"), term, 10).await?;
                    found.push(users.into_iter().map(|user| user.user_id.to_string()).collect::<Vec<_>>());
                }
                Ok::<_, Error>(found)
            })
            .await
            .unwrap();
        let bob = || vec!["@bob:x".to_owned()];
        let listed = "@listed_bob:x".to_owned();
        assert_eq!(found, [vec!["@bob:x".to_owned(), listed.clone()], bob(), bob(), bob(), vec![listed]]);
    }
}
