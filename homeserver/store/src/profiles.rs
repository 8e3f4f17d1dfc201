//! Global profiles: what users tell everybody about themselves, and the search among them.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#profiles>

use std::collections::HashMap;

use ruma::{OwnedUserId, UserId};
use sea_orm::QueryResult;

use crate::{Error, ReadTx, WriteTx, streams};

/// The profile field with the display name.
pub const DISPLAY_NAME: &str = "displayname";
/// The profile field with the address of the picture.
pub const AVATAR_URL: &str = "avatar_url";

/// Of how many users, at most, a search looks at all the rooms.
pub const STRANGERS: u64 = 500;

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

/// The names and pictures of users who have any: the fields [`DISPLAY_NAME`] and [`AVATAR_URL`] and their JSON values.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn shown_in_rooms(
    tx: &ReadTx,
    user_ids: &[OwnedUserId],
) -> Result<HashMap<OwnedUserId, Vec<(String, String)>>, Error> {
    let mut shown: HashMap<OwnedUserId, Vec<_>> = HashMap::new();
    for chunk in user_ids.chunks(tx.rows_a_statement(1)) {
        let (users, values) = tx.any_of(1, chunk.iter().map(|user_id| user_id.as_str()));
        let sql = format!(
            "SELECT user_id, name, value FROM profile_fields \
             WHERE user_id {users} AND name IN ('{DISPLAY_NAME}', '{AVATAR_URL}')"
        );
        for row in tx.query(&sql, values).await? {
            let user_id = streams::user_id(&row, "profile_fields", "user_id")?;
            shown.entry(user_id).or_default().push((row.try_get("", "name")?, row.try_get("", "value")?));
        }
    }
    Ok(shown)
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
/// Found are those who share a room with `asker`, those who are in a room of the server's directory, and, where these are fewer than
/// `limit`, those who are in a room that everybody may join or read: of the first [`STRANGERS`] whom the term fits.
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
    let rows = tx.query(&sql, [asker.as_str().into(), pattern.as_str().into()]).await?;
    let mut found = read_found(&rows)?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    if found.len() < limit {
        found.extend(search_strangers(tx, asker, pattern).await?);
        found.sort_unstable_by(|one, other| one.user_id.cmp(&other.user_id));
        found.dedup_by(|one, other| one.user_id == other.user_id);
        found.truncate(limit);
    }
    Ok(found)
}

/// The users in rooms that everybody may join or read. What rooms those are is in no index, so it is asked of the rooms of each user
/// whom the pattern fits.
async fn search_strangers(tx: &ReadTx, asker: &UserId, pattern: String) -> Result<Vec<FoundUser>, Error> {
    // Events are stored as canonical JSON, which has no spaces. The condition is no EXISTS, for which PostgreSQL might look through
    // all rooms.
    let sql = format!(
        r#"WITH matching AS MATERIALIZED (
            SELECT u.user_id, d.value AS display_name FROM users u
            LEFT JOIN profile_fields d ON d.user_id = u.user_id AND d.name = 'displayname'
            WHERE u.user_id <> $1 AND (u.user_id LIKE $2 ESCAPE '\' OR d.search_text LIKE $2 ESCAPE '\')
            ORDER BY u.user_id LIMIT {STRANGERS})
        SELECT m.user_id, m.display_name, a.value AS avatar_url FROM matching m
        LEFT JOIN profile_fields a ON a.user_id = m.user_id AND a.name = 'avatar_url'
        WHERE (SELECT 1 FROM memberships j
            JOIN room_state s ON s.room_id = j.room_id AND s.state_key = '' AND s.replaced_at IS NULL
                AND s.event_type IN ('m.room.join_rules', 'm.room.history_visibility')
            JOIN events e ON e.room_id = s.room_id AND e.position = s.position
            WHERE j.user_id = m.user_id AND j.membership = 'join'
            AND ((s.event_type = 'm.room.join_rules' AND e.json LIKE '%"join\_rule":"public"%' ESCAPE '\')
                OR (s.event_type = 'm.room.history_visibility'
                    AND e.json LIKE '%"history\_visibility":"world\_readable"%' ESCAPE '\'))
            LIMIT 1) IS NOT NULL"#
    );
    read_found(&tx.query(&sql, [asker.as_str().into(), pattern.into()]).await?)
}

fn read_found(rows: &[QueryResult]) -> Result<Vec<FoundUser>, Error> {
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

    #[tokio::test]
    async fn a_search_finds_who_is_in_a_room_that_is_open_now() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let rules = "m.room.join_rules";
        let visibility = "m.room.history_visibility";
        let state = [
            ("public", rules, r#""join_rule":"public""#, None),
            ("knock", rules, r#""join_rule":"knock""#, None),
            ("closed", rules, r#""join_rule":"public""#, Some(100_i64)),
            ("closed", rules, r#""join_rule":"invite""#, None),
            ("readable", visibility, r#""history_visibility":"world_readable""#, None),
            ("shared", visibility, r#""history_visibility":"shared""#, None),
            ("odd", visibility, r#""join_rule":"public""#, None),
        ];
        let found = store
            .write("test", |tx| async move {
                for ((room, event_type, content, replaced_at), position) in state.into_iter().zip(1_i64..) {
                    let room_id = format!("!{room}:x");
                    let columns = ["room_id", "event_type", "state_key", "position", "replaced_at"];
                    let row = vec![
                        room_id.as_str().into(),
                        event_type.into(),
                        "".into(),
                        position.into(),
                        replaced_at.into(),
                    ];
                    tx.insert_rows("room_state", &columns, vec![row], "").await?;
                    let columns = ["shard", "position", "room_id", "event_id", "json"];
                    let json = format!(r#"{{"content":{{{content}}},"state_key":"","type":"{event_type}"}}"#);
                    let row = vec![
                        1_i16.into(),
                        position.into(),
                        room_id.as_str().into(),
                        format!("${position}").into(),
                        json.into(),
                    ];
                    tx.insert_rows("events", &columns, vec![row], "").await?;
                    for membership in ["join", "invite"] {
                        let user_id = UserId::parse(format!("@{membership}_{room}:x")).unwrap();
                        let user = crate::users::User {
                            user_id: user_id.clone(),
                            password_hash: None,
                            is_admin: false,
                            deactivated: false,
                            created_ts: ruma::MilliSecondsSinceUnixEpoch(1_u32.into()),
                        };
                        if crate::users::insert(&tx, &user).await? {
                            let columns = ["user_id", "room_id", "membership", "position", "forgotten"];
                            let row = vec![
                                user_id.as_str().into(),
                                room_id.as_str().into(),
                                membership.into(),
                                position.into(),
                                false.into(),
                            ];
                            tx.insert_rows("memberships", &columns, vec![row], "").await?;
                        }
                    }
                }
                search(&tx, user_id!("@me:x"), "_", 10).await
            })
            .await
            .unwrap();
        let found: Vec<_> = found.iter().map(|user| user.user_id.as_str()).collect();
        assert_eq!(found, ["@join_public:x", "@join_readable:x"]);
    }
}
