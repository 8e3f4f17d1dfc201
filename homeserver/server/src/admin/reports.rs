//! `keystead admin reports`: what users reported.

use clap::{Args, Subcommand};
use keystead_store::{
    TransactionError,
    reports::{self, Report, Subject},
};
use serde_json::{Value, json};

use super::AdminError;
use crate::app::App;

/// How many reports are read for a list at once.
const PAGE: u32 = 500;

/// What may be done with reports.
#[derive(Debug, Subcommand)]
pub(crate) enum ReportsCommand {
    /// List all reports, the oldest first
    List(List),
    /// Delete reports that have been dealt with
    Delete(Delete),
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// As JSON, one report a line, for scripts
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The ids of the reports, as the list shows them
    #[arg(required = true, value_name = "ID")]
    reports: Vec<String>,
}

/// Does what is asked with reports.
pub(super) async fn run(app: &App, command: ReportsCommand) -> Result<(), AdminError> {
    match command {
        ReportsCommand::List(args) => list(app, args.json).await,
        ReportsCommand::Delete(args) => delete(app, &args.reports).await,
    }
}

async fn list(app: &App, as_json: bool) -> Result<(), AdminError> {
    let mut last: Option<Report> = None;
    loop {
        let behind = last.as_ref().map(|last| (last.received_ts, &*last.report_id));
        let page = app
            .store
            .read("admin_reports", |tx| async move { reports::page(&tx, behind, PAGE).await })
            .await?;
        for report in &page {
            println!("{}", if as_json { json_of(report).to_string() } else { line_of(report) });
        }
        let Some(newest) = page.into_iter().last() else { return Ok(()) };
        last = Some(newest);
    }
}

/// All or none of them.
async fn delete(app: &App, report_ids: &[String]) -> Result<(), AdminError> {
    let unknown = app
        .store
        .write("admin_delete_reports", |tx| async move {
            for report_id in report_ids {
                if !reports::delete(&tx, report_id).await? {
                    return Err(Missing::Report(report_id.clone()));
                }
            }
            Ok::<_, Missing>(())
        })
        .await;
    match unknown {
        Err(Missing::Report(report_id)) => return Err(AdminError::NoSuchReport(report_id)),
        Err(Missing::Store(error)) => return Err(error.into()),
        Ok(()) => {}
    }
    println!("Deleted {} report(s).", report_ids.len());
    Ok(())
}

/// Why reports were not deleted.
#[derive(Debug, thiserror::Error)]
enum Missing {
    #[error("there is no report {0}")]
    Report(String),
    #[error(transparent)]
    Store(#[from] keystead_store::Error),
}

impl TransactionError for Missing {
    fn store_error(&self) -> Option<&keystead_store::Error> {
        match self {
            Self::Store(error) => Some(error),
            Self::Report(_) => None,
        }
    }
}

fn json_of(report: &Report) -> Value {
    let mut json = json!({
        "report_id": report.report_id, "received_ts": report.received_ts, "reporter": report.reporter,
        "reason": report.reason,
    });
    let about = match &report.subject {
        Subject::Event { room_id, event_id, sender } => {
            json!({ "kind": "event", "room_id": room_id, "event_id": event_id, "sender": sender })
        }
        Subject::Room(room_id) => json!({ "kind": "room", "room_id": room_id }),
        Subject::User(user_id) => json!({ "kind": "user", "user_id": user_id }),
    };
    if let (Value::Object(json), Value::Object(about)) = (&mut json, about) {
        json.extend(about);
    }
    json
}

/// A report for people. What a user wrote cannot move the cursor or begin a line.
fn line_of(report: &Report) -> String {
    let about = match &report.subject {
        Subject::Event { room_id, event_id, sender } => format!("event {event_id} of {sender} in {room_id}"),
        Subject::Room(room_id) => format!("room {room_id}"),
        Subject::User(user_id) => format!("user {user_id}"),
    };
    let Report { report_id, received_ts, reporter, reason, .. } = report;
    format!("{report_id}  {}  {reporter} reports {about}: {}", received_ts.get(), reason.escape_debug())
}

#[cfg(test)]
mod tests {
    use ruma::{MilliSecondsSinceUnixEpoch, UInt, owned_event_id, owned_room_id, owned_user_id};

    use super::*;

    #[test]
    fn a_report_is_one_line_whatever_its_reason() {
        let sender = owned_user_id!("@b:x");
        let (room_id, event_id) = (owned_room_id!("!r:x"), owned_event_id!("$e"));
        let report = Report {
            report_id: "R".to_owned(),
            received_ts: MilliSecondsSinceUnixEpoch(UInt::from(7_u32)),
            reporter: owned_user_id!("@a:x"),
            subject: Subject::Event { room_id, event_id, sender },
            reason: "rude\n\u{1b}[2Jlies".to_owned(),
        };
        assert_eq!(line_of(&report), "R  7  @a:x reports event $e of @b:x in !r:x: rude\\n\\u{1b}[2Jlies");
        assert_eq!(
            json_of(&report),
            json!({
                "report_id": "R", "received_ts": 7, "reporter": "@a:x", "reason": "rude\n\u{1b}[2Jlies",
                "kind": "event", "room_id": "!r:x", "event_id": "$e", "sender": "@b:x",
            })
        );
    }
}
