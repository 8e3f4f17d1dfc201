//! `keystead admin backup` and `keystead admin after-restore`.

use std::path::PathBuf;

use clap::Args;
use keystead_store::{Error, restored};

use super::AdminError;
use crate::app::App;

#[derive(Debug, Args)]
pub(crate) struct AfterRestore {
    /// End all sessions: people log in again, their clients keep their keys. Sessions that were ended after the backup would go on otherwise
    #[arg(long)]
    end_sessions: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Backup {
    /// The file to make; it must not be there yet
    file: PathBuf,
}

/// What a restored past brings back that no command can know of.
const TO_CHECK: &str = "\
What the backup does not know has come undone. Check, from the time of the backup on:
  - accounts closed, passwords changed, administrators appointed or removed: do it again;
  - people who were removed or banned from rooms are in them again, and read what is written there from now on;
  - devices and KeyBoxes that were revoked are back, with their sessions (--end-sessions ends these): revoke them again;
  - passphrases of KeyBoxes that were changed: the old ones are kept again, and do not open what was sealed anew;
  - names of accounts made since are free again: keep registration closed until their owners are back;
  - media deleted or quarantined since.
KeyBoxes whose owners compare logs will report that the server's log went back. That is true: tell them of the restore.";

/// Makes a restored database fit to serve.
pub(super) async fn after_restore(app: &App, args: &AfterRestore) -> Result<(), AdminError> {
    let now = app.clock.now();
    let settled = app
        .store
        .write("after_restore", |tx| async move {
            match restored::other_processes(&tx).await? {
                0 => Ok::<_, AdminError>(restored::settle(&tx, now, args.end_sessions).await?),
                others => Err(AdminError::OthersServe(others)),
            }
        })
        .await?;
    println!(
        "The database can serve again: {} one-time key(s) dropped, {} fallback key(s) to be replaced, the device lists of {} user(s) to be asked for \
         again, {} session(s) ended.\n{TO_CHECK}",
        settled.one_time_keys, settled.fallback_keys, settled.users, settled.sessions
    );
    Ok(())
}

/// Copies an SQLite database as it stands at one moment, while it serves.
pub(super) async fn backup(app: &App, args: &Backup) -> Result<(), AdminError> {
    if app.store.is_shared() {
        return Err(AdminError::BackupOfPostgres);
    }
    if args.file.exists() {
        return Err(AdminError::BackupExists(args.file.clone()));
    }
    let file = args.file.to_string_lossy();
    app.store.copy_to(&file).await?;
    println!("Copied the database to {file}. Copy the media now, and keep the master key elsewhere.");
    Ok(())
}

impl keystead_store::TransactionError for AdminError {
    fn store_error(&self) -> Option<&Error> {
        match self {
            Self::Store(error) => Some(error),
            _ => None,
        }
    }
}

impl keystead_store::TransactionError for crate::app::StartError {
    fn store_error(&self) -> Option<&Error> {
        match self {
            Self::Store(error) => Some(error),
            _ => None,
        }
    }
}
