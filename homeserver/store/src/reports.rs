//! What users reported to the administrators of the server.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#reporting-content>

use ruma::{MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId};
use sea_orm::QueryResult;

use crate::{Error, ReadTx, WriteTx, rooms::parse_event_id, streams};

/// A report.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Report {
    /// Its id, chosen by the server.
    pub report_id: String,
    /// When it came.
    pub received_ts: MilliSecondsSinceUnixEpoch,
    /// Who reports.
    pub reporter: OwnedUserId,
    /// What is reported.
    pub subject: Subject,
    /// Why, in the reporter's words; may be empty.
    pub reason: String,
}

/// What a report is about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Subject {
    /// An event.
    Event {
        /// The room that it is in.
        room_id: OwnedRoomId,
        /// The event.
        event_id: OwnedEventId,
        /// Who sent it.
        sender: OwnedUserId,
    },
    /// A room.
    Room(OwnedRoomId),
    /// A user.
    User(OwnedUserId),
}

/// Writes a report down.
///
/// # Errors
/// [`Error::Conflict`] if there is one with this id; the database's own.
pub async fn insert(tx: &WriteTx, report: &Report) -> Result<(), Error> {
    let (room_id, event_id, user_id) = match &report.subject {
        Subject::Event { room_id, event_id, sender } => (Some(room_id), Some(event_id), Some(sender)),
        Subject::Room(room_id) => (Some(room_id), None, None),
        Subject::User(user_id) => (None, None, Some(user_id)),
    };
    tx.execute(
        "INSERT INTO reports (report_id, received_ts, reporter, room_id, event_id, user_id, reason) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        [
            report.report_id.as_str().into(),
            i64::from(report.received_ts.get()).into(),
            report.reporter.as_str().into(),
            room_id.map(ToString::to_string).into(),
            event_id.map(ToString::to_string).into(),
            user_id.map(ToString::to_string).into(),
            report.reason.as_str().into(),
        ],
    )
    .await?;
    Ok(())
}

/// At most `limit` reports, the oldest first: those after this one, if one is named by its time and id.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn page(
    tx: &ReadTx,
    behind: Option<(MilliSecondsSinceUnixEpoch, &str)>,
    limit: u32,
) -> Result<Vec<Report>, Error> {
    let (ts, id) = behind.map_or((-1, ""), |(ts, id)| (i64::from(ts.get()), id));
    let sql = format!(
        "SELECT report_id, received_ts, reporter, room_id, event_id, user_id, reason FROM reports \
         WHERE (received_ts, report_id) > ($1, $2) ORDER BY received_ts, report_id LIMIT {limit}"
    );
    tx.query(&sql, [ts.into(), id.into()]).await?.iter().map(from_row).collect()
}

/// Deletes a report; returns whether there was one.
///
/// # Errors
/// The database's own.
pub async fn delete(tx: &WriteTx, report_id: &str) -> Result<bool, Error> {
    Ok(tx.execute("DELETE FROM reports WHERE report_id = $1", [report_id.into()]).await? > 0)
}

fn from_row(row: &QueryResult) -> Result<Report, Error> {
    let report_id: String = row.try_get("", "report_id")?;
    let room_id: Option<String> = row.try_get("", "room_id")?;
    let event_id: Option<String> = row.try_get("", "event_id")?;
    let user_id: Option<String> = row.try_get("", "user_id")?;
    let room = || streams::room_id(row, "reports");
    let user = || streams::user_id(row, "reports", "user_id");
    let subject = match (room_id, event_id, user_id) {
        (Some(_), Some(event_id), Some(_)) => Subject::Event {
            room_id: room()?,
            event_id: parse_event_id("event_id", &event_id)?,
            sender: user()?,
        },
        (Some(_), None, None) => Subject::Room(room()?),
        (None, None, Some(_)) => Subject::User(user()?),
        _ => return Err(Error::corrupt("reports", "event_id", &report_id, "it is about nothing known")),
    };
    Ok(Report {
        received_ts: streams::milliseconds(row.try_get("", "received_ts")?),
        reporter: streams::user_id(row, "reports", "reporter")?,
        subject,
        reason: row.try_get("", "reason")?,
        report_id,
    })
}

#[cfg(test)]
mod tests {
    use ruma::{UInt, owned_event_id, owned_room_id, owned_user_id};

    use super::*;
    use crate::store::tests::store;

    #[tokio::test]
    async fn reports_are_listed_by_age_and_deleted_by_id() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let report = |report_id: &str, ms: u32, subject| Report {
            report_id: report_id.to_owned(),
            received_ts: MilliSecondsSinceUnixEpoch(UInt::from(ms)),
            reporter: owned_user_id!("@a:x"),
            subject,
            reason: "spam".to_owned(),
        };
        let event = Subject::Event {
            room_id: owned_room_id!("!r:x"),
            event_id: owned_event_id!("$e"),
            sender: owned_user_id!("@b:x"),
        };
        let reports = &[
            report("B", 1, event),
            report("A", 2, Subject::Room(owned_room_id!("!r:x"))),
            report("C", 2, Subject::User(owned_user_id!("@b:x"))),
        ];
        let (all, rest, deleted) = store
            .write("test", |tx| async move {
                for report in reports.iter().rev() {
                    insert(&tx, report).await?;
                }
                let all = page(&tx, None, 9).await?;
                let behind = all.first().map(|report| (report.received_ts, &*report.report_id));
                let rest = page(&tx, behind, 1).await?;
                let deleted = (delete(&tx, "B").await?, delete(&tx, "B").await?);
                Ok::<_, Error>((all, rest, deleted))
            })
            .await
            .unwrap();
        assert_eq!(all, reports);
        assert_eq!(rest, reports[1..2]);
        assert_eq!(deleted, (true, false));
    }
}
