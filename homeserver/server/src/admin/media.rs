//! `keystead admin media`: the files that users uploaded.
//!
//! Whatever is deleted is deleted in the database first and in the folder or bucket then, as [`removal`] says; replicas may serve meanwhile.

use std::{sync::Arc, time::Duration};

use clap::{Args, Subcommand};
use keystead_store::media::{
    self as store,
    care::{self, Listed, Selection},
};
use ruma::{MilliSecondsSinceUnixEpoch, MxcUri, OwnedUserId, UInt};
use serde_json::json;

use super::AdminError;
use crate::{
    accounts::registration,
    app::App,
    media::{place, removal},
};

/// How many media are read for a list at once.
const PAGE: u32 = 500;

/// What may be done with media.
#[derive(Debug, Subcommand)]
pub(crate) enum MediaCommand {
    /// Delete media: the files with their thumbnails, and all that is known of them
    Delete(Addresses),
    /// Delete all media of a user
    DeleteOfUser(OfUser),
    /// List the media of a user, the oldest first
    List(List),
    /// Delete all media from before some days ago; pictures of people and rooms are media, too
    Purge(Purge),
    /// Give media out to nobody, but keep them
    Quarantine(Addresses),
    /// Give media out again that are in quarantine
    Release(Addresses),
}

#[derive(Debug, Args)]
pub(crate) struct Addresses {
    /// mxc://SERVER/ID, or the ID alone
    #[arg(required = true, value_name = "MEDIUM")]
    media: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct OfUser {
    /// The part of the user id before the colon
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// The part of the user id before the colon
    name: String,
    /// As JSON, one medium a line, for scripts
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Purge {
    /// Media that were uploaded this many days ago or more
    #[arg(long, value_name = "DAYS")]
    older_than_days: u32,
    /// Those of one user only: the part of the user id before the colon
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Only say how many there are
    #[arg(long)]
    dry_run: bool,
}

/// Does what is asked with media.
pub(super) async fn run(app: &Arc<App>, command: MediaCommand) -> Result<(), AdminError> {
    // In another place nothing would be found to be deleted, and all would seem well.
    place::check(app).await?;
    match command {
        MediaCommand::Delete(args) => delete(app, &args.media).await,
        MediaCommand::DeleteOfUser(args) => delete_of_user(app, &args).await,
        MediaCommand::List(args) => list(app, &args).await,
        MediaCommand::Purge(args) => purge(app, &args).await,
        MediaCommand::Quarantine(args) => quarantine(app, &args.media, Some(app.clock.now())).await,
        MediaCommand::Release(args) => quarantine(app, &args.media, None).await,
    }
}

async fn delete(app: &Arc<App>, addresses: &[String]) -> Result<(), AdminError> {
    let media_ids = ids(app, addresses).await?;
    removal::remove(app, &media_ids).await?;
    println!("Deleted {}.", counted(media_ids.len()));
    Ok(())
}

async fn delete_of_user(app: &Arc<App>, args: &OfUser) -> Result<(), AdminError> {
    let user_id = &*registration::user_id(app, Some(&args.name))?;
    let count = removal::remove_all(app, Selection { user_id: Some(user_id), before: None }).await?;
    println!("Deleted {} of {user_id}.", counted(count));
    Ok(())
}

async fn list(app: &Arc<App>, args: &List) -> Result<(), AdminError> {
    let user_id = &*registration::user_id(app, Some(&args.name))?;
    let selection = Selection { user_id: Some(user_id), before: None };
    let mut last: Option<Listed> = None;
    loop {
        let behind = last.as_ref();
        let page = app
            .store
            .read("admin_media", |tx| async move { care::list(&tx, selection, behind, PAGE).await })
            .await?;
        page.iter().for_each(|listed| print(app, listed, args.json));
        match page.into_iter().next_back() {
            Some(listed) => last = Some(listed),
            None => break,
        }
    }
    if !args.json {
        let (count, bytes) =
            app.store.read("admin_media", |tx| async move { care::count(&tx, selection).await }).await?;
        println!("{} with {bytes} bytes", counted(usize::try_from(count).unwrap_or(usize::MAX)));
    }
    Ok(())
}

fn print(app: &App, listed: &Listed, as_json: bool) {
    let address = format!("mxc://{}/{}", app.settings.server.name, listed.media_id);
    let content = listed.content.as_ref();
    if as_json {
        let line = json!({
            "address": address,
            "created_ts": listed.created_ts,
            "quarantined_ts": listed.quarantined_ts,
            "size": content.map(|content| content.size),
            "content_type": content.map(|content| &content.content_type),
            "file_name": content.and_then(|content| content.file_name.as_ref()),
        });
        println!("{line}");
        return;
    }
    let kind = content.map_or("not uploaded yet", |content| &content.content_type);
    let size = content.map_or(0, |content| content.size);
    let state = if listed.quarantined_ts.is_some() { "  in quarantine" } else { "" };
    println!("{address}  {size} bytes  {kind}{state}");
}

async fn purge(app: &Arc<App>, args: &Purge) -> Result<(), AdminError> {
    let user_id: Option<OwnedUserId> =
        args.user.as_ref().map(|name| registration::user_id(app, Some(name))).transpose()?;
    let age = Duration::from_secs(u64::from(args.older_than_days) * 24 * 3_600);
    let age = UInt::try_from(age.as_millis()).unwrap_or(UInt::MAX);
    let before = MilliSecondsSinceUnixEpoch(app.clock.now().0.saturating_sub(age));
    let selection = Selection { user_id: user_id.as_deref(), before: Some(before) };
    if args.dry_run {
        let (count, bytes) =
            app.store.read("admin_media", |tx| async move { care::count(&tx, selection).await }).await?;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        println!("{} with {bytes} bytes would be deleted.", counted(count));
        return Ok(());
    }
    println!("Deleted {}.", counted(removal::remove_all(app, selection).await?));
    Ok(())
}

async fn quarantine(
    app: &Arc<App>,
    addresses: &[String],
    since: Option<MilliSecondsSinceUnixEpoch>,
) -> Result<(), AdminError> {
    let media_ids = &ids(app, addresses).await?;
    app.store
        .write("quarantine_media", |tx| async move {
            for media_id in media_ids {
                care::set_quarantine(&tx, media_id, since).await?;
            }
            Ok::<_, keystead_store::Error>(())
        })
        .await?;
    let what = if since.is_some() { "Put into quarantine" } else { "Released" };
    println!("{what}: {}.", counted(media_ids.len()));
    Ok(())
}

/// The ids in addresses, all of which must be there.
async fn ids(app: &App, addresses: &[String]) -> Result<Vec<String>, AdminError> {
    let server = &app.settings.server.name;
    let mut ids = Vec::new();
    for address in addresses {
        let unknown = || AdminError::NoSuchMedium(address.clone());
        let id = match address.starts_with("mxc://").then(|| <&MxcUri>::from(address.as_str()).parts()) {
            None => address.as_str(),
            Some(Ok((of_server, id))) if of_server == server => id,
            Some(_) => return Err(unknown()),
        };
        let found = app.store.read("admin_media", |tx| async move { store::find(&tx, id).await }).await?;
        found.ok_or_else(unknown)?;
        ids.push(id.to_owned());
    }
    Ok(ids)
}

fn counted(count: usize) -> String {
    if count == 1 { "1 medium".to_owned() } else { format!("{count} media") }
}
