//! Previews of pages on the web: what a page says about itself, and its picture, fetched by the server so that a reader's client does not tell the page
//! who reads.
//!
//! Off unless it is switched on: the server learns which pages are spoken of, and every page who its server is. A client should not ask for pages that
//! stand in encrypted messages.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1mediapreview_url>.

mod fetch;
mod open_graph;

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::StatusCode;
use keystead_store::{
    Error, jobs as job_store, media as media_store,
    url_previews::{self as store, UrlPreview},
};
use openssl::{error::ErrorStack, sha::sha256};
use ruma::{MilliSecondsSinceUnixEpoch, UInt, UserId, api::error::ErrorCode};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use url::Url;

use self::{
    fetch::{Content, FetchError, Fetcher},
    open_graph::OpenGraph,
};
use crate::{
    app::App,
    config::url_preview::UrlPreviewSettings,
    context::{Ctx, Session},
    http::error::ApiError,
    media::{
        picture::{self, Measured},
        removal, upload,
    },
    outside::{self, Guard},
    rate_limits::Limit,
};

/// How many pages a replica fetches at once.
const MAX_FETCHES: usize = 8;
/// How long a request waits for its turn.
const TURN: Duration = Duration::from_secs(10);
/// How long what was fetched is told to others.
const FRESH: Duration = Duration::from_secs(3_600);
/// How long a page that could not be fetched is not tried again.
const FAILED: Duration = Duration::from_secs(300);
/// How long a preview's picture can be downloaded.
const KEPT: Duration = Duration::from_secs(24 * 3_600);
/// Whose the pictures are: nobody can have this name.
const OWNER: &str = "_url_preview";
/// How many old previews are forgotten at once.
const BATCH: u32 = 100;

/// What fetches pages, if it is switched on.
pub struct UrlPreviews {
    fetcher: Option<Fetcher>,
    turns: Semaphore,
}

impl UrlPreviews {
    /// As the settings say.
    ///
    /// # Errors
    ///
    /// When OpenSSL cannot be used.
    pub fn new(settings: &UrlPreviewSettings) -> Result<Self, ErrorStack> {
        let guard = Guard::new(settings.allowed_networks.clone(), settings.denied_networks.clone());
        let fetcher = settings.enabled.then(|| Fetcher::new(guard)).transpose()?;
        Ok(Self { fetcher, turns: Semaphore::new(MAX_FETCHES) })
    }
}

/// What a page says about itself, as a JSON object.
///
/// # Errors
///
/// 404 `M_UNRECOGNIZED` if it is not switched on, 400 `M_INVALID_PARAM` if it is no address on the web, 429 `M_LIMIT_EXCEEDED`, and 502 `M_UNKNOWN`
/// if nothing could be fetched. That is all a client is told: a reason would show what is in the server's network.
pub(crate) async fn answer(ctx: &Ctx<Session>, address: &str) -> Result<Bytes, ApiError> {
    let app = &ctx.app;
    let Some(fetcher) = &app.url_previews.fetcher else { return Err(ApiError::unrecognized()) };
    app.rate_limits.take(Limit::UrlPreviews, ctx.requester.user_id.as_str(), ctx.now)?;
    let not_on_the_web = || ApiError::invalid_param("url must be an http or https address");
    let mut url = Url::parse(address).map_err(|_| not_on_the_web())?;
    url.set_fragment(None);
    outside::target(&url).map_err(|_| not_on_the_web())?;

    let hash = URL_SAFE_NO_PAD.encode(sha256(url.as_str().as_bytes()));
    if let Some(known) = known(app, &hash, ctx.now).await? {
        app.metrics.url_preview("known");
        return known.map(Bytes::from).ok_or_else(nothing);
    }
    let turn = tokio::time::timeout(TURN, app.url_previews.turns.acquire()).await;
    let _permit =
        turn.map_err(|_| ApiError::limit_exceeded(Duration::from_secs(1)))?.map_err(ApiError::internal)?;
    // While this request waited, another one may have had it fetched.
    if let Some(known) = known(app, &hash, app.clock.now()).await? {
        app.metrics.url_preview("known");
        return known.map(Bytes::from).ok_or_else(nothing);
    }
    match make(fetcher, url).await {
        Ok((properties, picture)) => {
            app.metrics.url_preview("made");
            keep(app, &hash, properties, picture).await
        }
        Err(error) => {
            app.metrics.url_preview("failed");
            note(app, &hash, &UrlPreview { fetched_ts: app.clock.now(), preview: None }, None).await?;
            Err(nothing().because(error))
        }
    }
}

fn nothing() -> ApiError {
    ApiError::new(StatusCode::BAD_GATEWAY, ErrorCode::Unknown, "No preview can be made of this address")
}

/// What was fetched lately, or that it could not be.
async fn known(
    app: &App,
    hash: &str,
    now: MilliSecondsSinceUnixEpoch,
) -> Result<Option<Option<String>>, ApiError> {
    let newest =
        app.store.read("find_url_preview", |tx| async move { store::newest(&tx, hash).await }).await?;
    let newest = newest.filter(|known| {
        let lifetime = if known.preview.is_some() { FRESH } else { FAILED };
        known.fetched_ts > before(now, lifetime)
    });
    Ok(newest.map(|known| known.preview))
}

/// A picture that can be kept.
struct Picture {
    bytes: Vec<u8>,
    measured: Measured,
}

/// Fetches a page and then its picture. A picture that cannot be had is left out.
async fn make(fetcher: &Fetcher, url: Url) -> Result<(Map<String, Value>, Option<Picture>), FetchError> {
    let fetched = fetcher.fetch(url).await?;
    let (page, charset) = match fetched.content {
        Content::Page(page, charset) => (page, charset),
        Content::Picture(bytes) => return Ok((Map::new(), measured(bytes).await)),
        Content::Other => return Ok((Map::new(), None)),
    };
    let read = tokio::task::spawn_blocking(move || open_graph::read(&page, charset.as_deref())).await;
    let OpenGraph { properties, image } = read.unwrap_or_default();
    let Some(address) = image.and_then(|image| fetched.url.join(&image).ok()) else {
        return Ok((properties, None));
    };
    let picture = match fetcher.fetch(address).await.map(|fetched| fetched.content) {
        Ok(Content::Picture(bytes)) => measured(bytes).await,
        _ => None,
    };
    Ok((properties, picture))
}

async fn measured(bytes: Vec<u8>) -> Option<Picture> {
    let measuring = tokio::task::spawn_blocking(move || {
        picture::measure(&bytes).ok().map(|measured| Picture { bytes, measured })
    });
    measuring.await.ok().flatten()
}

/// Writes down a preview, and its picture as a medium of the server's own.
async fn keep(
    app: &Arc<App>,
    hash: &str,
    mut properties: Map<String, Value>,
    picture: Option<Picture>,
) -> Result<Bytes, ApiError> {
    let now = app.clock.now();
    let Some(Picture { bytes, measured }) = picture else {
        let preview = Value::from(properties).to_string();
        let new = UrlPreview { fetched_ts: now, preview: Some(preview.clone()) };
        note(app, hash, &new, None).await?;
        return Ok(preview.into());
    };
    let server = &app.settings.server.name;
    let media_id = &app.entropy.token();
    properties.insert("og:image".to_owned(), format!("mxc://{server}/{media_id}").into());
    properties.insert("og:image:type".to_owned(), measured.content_type.into());
    properties.insert("og:image:width".to_owned(), measured.width.into());
    properties.insert("og:image:height".to_owned(), measured.height.into());
    properties.insert("matrix:image:size".to_owned(), bytes.len().into());
    let preview = Value::from(properties).to_string();
    let new = &UrlPreview { fetched_ts: now, preview: Some(preview.clone()) };
    let owner = &*UserId::parse_with_server_name(OWNER, server).map_err(ApiError::internal)?;
    let (job, content) = &upload::put_own(app, bytes.into(), measured.content_type).await?;
    app.store
        .write("keep_url_preview", |tx| async move {
            if !job_store::withdraw(&tx, &job.job_id).await? {
                return Err(ApiError::unavailable(
                    "The picture was held up for so long that it was given up",
                ));
            }
            store::insert(&tx, hash, new, Some(media_id)).await?;
            Ok(media_store::insert(&tx, media_id, owner, now, content).await?)
        })
        .await?;
    Ok(preview.into())
}

async fn note(app: &App, hash: &str, new: &UrlPreview, media_id: Option<&str>) -> Result<(), ApiError> {
    let noted = app
        .store
        .write("keep_url_preview", |tx| async move { store::insert(&tx, hash, new, media_id).await });
    noted.await?;
    Ok(())
}

/// Forgets old previews, and their pictures before them.
///
/// # Errors
///
/// When the database cannot be reached; what is left is forgotten the next time.
pub(crate) async fn forget_old(app: &Arc<App>) -> Result<(), Error> {
    let time = before(app.clock.now(), KEPT);
    loop {
        let old = &app
            .store
            .read("old_url_previews", |tx| async move { store::before(&tx, time, BATCH).await })
            .await?;
        if old.is_empty() {
            return Ok(());
        }
        let media_ids: Vec<_> = old.iter().filter_map(|old| old.media_id.clone()).collect();
        removal::remove(app, &media_ids).await?;
        app.store.write("forget_url_previews", |tx| async move { store::delete(&tx, old).await }).await?;
    }
}

fn before(now: MilliSecondsSinceUnixEpoch, age: Duration) -> MilliSecondsSinceUnixEpoch {
    let age = UInt::try_from(age.as_millis()).unwrap_or(UInt::MAX);
    MilliSecondsSinceUnixEpoch(now.0.saturating_sub(age))
}
