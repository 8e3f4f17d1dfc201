//! Events of a room in which some words may be.

use keystead_core::room::RoomEvent;
use ruma::RoomId;
use sea_orm::Value;

use super::{Bounds, StoredEvent};
use crate::{Error, ReadTx};

/// How many of the newest events of a room within the bounds are looked at.
const LOOKED_AT: u32 = 100_000;

/// Events in which some words may be.
#[derive(Debug)]
pub struct WithWords {
    /// Newest first.
    pub events: Vec<RoomEvent>,
    /// Up to which position there may be more of them; `None` if there are none.
    pub rest_upto: Option<i64>,
}

/// At most `limit` messages, names and topics of a room within `bounds`, newest first, whose JSON has all these words (in lower case)
/// in it somewhere. The caller looks whether they are in the right place. Of a word with other characters than ASCII letters, the two
/// databases have different ideas what its lower case is: it is looked for in lower case, in upper case, and with a capital
/// in front.
///
/// This reads the newest 100,000 events of the room within the bounds, if it must: an index of words would have to be written with
/// every message, of which most servers send far more than they ever search, and could hold nothing of encrypted ones.
///
/// # Errors
/// The database's own. An event that cannot be read is passed over ([`Error::pass_over`]).
pub async fn with_words(
    tx: &ReadTx,
    room_id: &RoomId,
    bounds: Bounds,
    words: &[&str],
    limit: usize,
) -> Result<WithWords, Error> {
    let mut values: Vec<Value> = vec![room_id.as_str().into(), bounds.after.into(), bounds.upto.into()];
    let mut conditions = String::new();
    for word in words {
        let column = if word.is_ascii() { "lower(json)" } else { "json" };
        let mut alternatives = Vec::new();
        for spelling in spellings(word) {
            values.push(format!("%{spelling}%").into());
            alternatives.push(format!("{column} LIKE ${}", values.len()));
        }
        conditions.push_str(&format!(" AND ({})", alternatives.join(" OR ")));
    }
    let sql = format!(
        "SELECT * FROM ( \
            SELECT position, room_id, event_id, json, redacted_by, device_id, transaction_id FROM events \
            WHERE room_id = $1 AND position > $2 AND position <= $3 ORDER BY position DESC LIMIT {LOOKED_AT} \
         ) newest \
         WHERE (json LIKE '%\"m.room.message\"%' OR json LIKE '%\"m.room.name\"%' OR json LIKE '%\"m.room.topic\"%') \
         {conditions} ORDER BY position DESC LIMIT {limit}"
    );
    let rows = tx.query(&sql, values).await?;
    let mut found = WithWords { events: Vec::with_capacity(rows.len()), rest_upto: None };
    if let Some(oldest) = rows.last().filter(|_| rows.len() == limit) {
        found.rest_upto = Some(oldest.try_get::<i64>("", "position")? - 1);
    }
    for row in rows {
        let event = Error::pass_over(StoredEvent::from_row(&row).and_then(StoredEvent::into_room_event))?;
        found.events.extend(event);
    }
    Ok(found)
}

/// The ways in which a word is usually written that the database cannot be asked to see as one, each once.
fn spellings(word: &str) -> Vec<String> {
    if word.is_ascii() {
        return vec![word.to_ascii_lowercase()];
    }
    let mut letters = word.chars();
    let capital = letters.next().map(|first| first.to_uppercase().chain(letters).collect());
    let mut spellings: Vec<String> =
        [Some(word.to_owned()), Some(word.to_uppercase()), capital].into_iter().flatten().collect();
    spellings.sort();
    spellings.dedup();
    spellings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_beyond_ascii_are_looked_for_as_they_are_usually_written() {
        assert_eq!(spellings("men"), ["men"]);
        assert_eq!(spellings("ärzte"), ["ÄRZTE", "Ärzte", "ärzte"]);
        assert_eq!(spellings("東京"), ["東京"]);
    }
}
