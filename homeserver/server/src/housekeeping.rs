//! What has to be cleared away as time passes; any replica may do it, and doing it twice does no harm.

use std::{sync::Arc, time::Duration};

use keystead_store::{Error, media, openid_tokens, rooms, to_device, transactions};
use ruma::{MilliSecondsSinceUnixEpoch, UInt};

use crate::{app::App, presence, telemetry::metrics::Removed, url_preview};

/// How often to look whose typing has run out.
const TYPING_EVERY: Duration = Duration::from_secs(1);
/// How often to count what waits for devices.
const COUNT_EVERY: Duration = Duration::from_secs(60);
/// Where counting ends: beyond it costs too much, and is too much anyway.
const COUNT_UPTO: u32 = 1_000_000;
/// How often to forget old transaction ids.
const FORGET_EVERY: Duration = Duration::from_secs(1_800);
/// How long a client's transaction id is remembered: longer than any client goes on trying.
const REMEMBERED: Duration = Duration::from_secs(24 * 3_600);

/// How long messages wait for a device that is not seen any more.
const KEPT_FOR_ABSENT: Duration = Duration::from_secs(90 * 24 * 3_600);

/// How long an address for an upload stays known after it has lapsed: an upload that began in time may take this long.
const LAPSED_FOR: Duration = Duration::from_secs(24 * 3_600);

/// How often to look for rooms whose events' relationships are not all noted: those from before they were, and those to which replicas of
/// an older version have appended.
const NOTE_RELATIONS_EVERY: Duration = Duration::from_secs(600);
/// How many such rooms are read about at once, and how many pages of events are looked through in each before the next one.
const UNNOTED_ROOMS: u32 = 100;
const UNNOTED_PAGES: usize = 20;

/// Notes how the events of older rooms relate to each other, until the server stops.
pub async fn note_relations(app: Arc<App>) {
    let mut interval = tokio::time::interval(NOTE_RELATIONS_EVERY);
    loop {
        tokio::select! {
            _ = interval.tick() => {
                if let Err(error) = note_all_relations(&app).await {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot note the relationships of older events");
                }
            }
            () = app.shutdown.draining() => return,
        }
    }
}

async fn note_all_relations(app: &App) -> Result<(), Error> {
    loop {
        let unnoted = app
            .store
            .read_one("unnoted_relations", |tx| async move {
                rooms::with_unindexed_relations(&tx, UNNOTED_ROOMS).await
            })
            .await?;
        if unnoted.is_empty() {
            return Ok(());
        }
        for room_id in unnoted {
            if app.shutdown.is_draining() {
                return Ok(());
            }
            rooms::index_relations(&app.store, &room_id, UNNOTED_PAGES).await?;
        }
    }
}

/// Clears away until the server stops.
pub async fn run(app: Arc<App>) {
    let mut typing = tokio::time::interval(TYPING_EVERY);
    let mut count = tokio::time::interval(COUNT_EVERY);
    let mut forget = tokio::time::interval(FORGET_EVERY);
    loop {
        tokio::select! {
            _ = typing.tick() => app.tail.expire_typing(app.clock.now()),
            _ = count.tick() => {
                count_pending(&app).await;
                if let Err(error) = presence::mark_gone(&app).await {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot tell who has gone");
                }
            }
            _ = forget.tick() => {
                forget_transactions(&app).await;
                forget_lapsed_media(&app).await;
                forget_openid_tokens(&app).await;
                expire_messages(&app).await;
                if let Err(error) = url_preview::forget_old(&app).await {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot forget old previews of pages");
                }
            }
            () = app.shutdown.draining() => return,
        }
    }
}

async fn forget_transactions(app: &App) {
    let before = ago(app, REMEMBERED);
    let forgotten = app
        .store
        .write("forget_transactions", |tx| async move { transactions::delete_before(&tx, before).await })
        .await;
    if let Err(error) = forgotten {
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot forget old transaction ids");
    }
}

async fn expire_messages(app: &App) {
    let before = ago(app, KEPT_FOR_ABSENT);
    let expired: Result<u64, Error> =
        app.store.write("expire_messages", |tx| async move { to_device::expire(&tx, before).await }).await;
    match expired {
        Ok(expired) => app.metrics.to_device_removed(Removed::Expired, expired),
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot expire messages to absent devices"
            );
        }
    }
}

async fn count_pending(app: &App) {
    let count = app
        .store
        .read("count_to_device", |tx| async move { to_device::count_pending(&tx, COUNT_UPTO).await })
        .await;
    match count {
        Ok(count) => app.metrics.to_device_pending(count),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot count messages to devices");
        }
    }
}

async fn forget_lapsed_media(app: &App) {
    let before = ago(app, LAPSED_FOR);
    let forgotten: Result<u64, Error> = app
        .store
        .write("forget_lapsed_media", |tx| async move { media::delete_lapsed(&tx, before).await })
        .await;
    if let Err(error) = forgotten {
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot forget lapsed addresses of media");
    }
}

async fn forget_openid_tokens(app: &App) {
    let now = app.clock.now();
    let forgotten: Result<u64, Error> = app
        .store
        .write("forget_openid_tokens", |tx| async move { openid_tokens::delete_expired(&tx, now).await })
        .await;
    if let Err(error) = forgotten {
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot forget OpenID tokens that expired");
    }
}

fn ago(app: &App, age: Duration) -> MilliSecondsSinceUnixEpoch {
    let age = UInt::try_from(age.as_millis()).unwrap_or(UInt::MAX);
    MilliSecondsSinceUnixEpoch(app.clock.now().0.saturating_sub(age))
}
