//! Filters that clients upload once and name in `/sync`.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#filtering>.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
};

use keystead_store::filters;
use lru::LruCache;
use ruma::{
    OwnedUserId, UserId,
    api::client::filter::{FilterDefinition, create_filter, get_filter},
};

use super::guard;
use crate::{
    app::App,
    context::{Ctx, Session},
    http::error::ApiError,
};

/// A filter may have this many bytes.
const MAX_FILTER_BYTES: usize = 64 * 1024;
/// How many filters are kept in memory, and how large they may be for that, in bytes.
const CACHED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(19_999);
const MAX_CACHED_BYTES: usize = 2_048;

/// `POST /_matrix/client/v3/user/{userId}/filter`.
pub(super) async fn create_filter(
    ctx: Ctx<Session>,
    request: create_filter::v3::Request,
) -> Result<create_filter::v3::Response, ApiError> {
    guard::own_user(&ctx, &request.user_id)?;
    let definition = serde_json::to_string(&request.filter).map_err(ApiError::internal)?;
    guard::short("filter", &definition, MAX_FILTER_BYTES)?;
    let (user_id, definition) = (&*request.user_id, definition.as_str());
    let filter_id = ctx
        .app
        .store
        .write("create_filter", |tx| async move {
            tx.lock_shards(&[tx.shards().of_user(user_id)]).await?;
            filters::insert(&tx, user_id, definition).await
        })
        .await?;
    Ok(create_filter::v3::Response::new(filter_id.to_string()))
}

/// `GET /_matrix/client/v3/user/{userId}/filter/{filterId}`.
pub(super) async fn get_filter(
    ctx: Ctx<Session>,
    request: get_filter::v3::Request,
) -> Result<get_filter::v3::Response, ApiError> {
    guard::own_user(&ctx, &request.user_id)?;
    let filter = find(&ctx.app, &request.user_id, &request.filter_id).await?;
    let filter = filter.ok_or_else(|| ApiError::not_found("There is no such filter"))?;
    Ok(get_filter::v3::Response::new(FilterDefinition::clone(&filter)))
}

/// The filters that were used lately. One that is stored never changes.
#[derive(Debug)]
pub struct FilterCache(Mutex<LruCache<(OwnedUserId, i64), Arc<FilterDefinition>>>);

impl Default for FilterCache {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(CACHED)))
    }
}

/// The filter that a user has uploaded under this id.
///
/// # Errors
///
/// The database's own.
pub(crate) async fn find(
    app: &App,
    user_id: &UserId,
    filter_id: &str,
) -> Result<Option<Arc<FilterDefinition>>, ApiError> {
    let Ok(filter_id) = filter_id.parse() else { return Ok(None) };
    let cached = || app.filters.0.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (user_id.to_owned(), filter_id);
    if let Some(filter) = cached().get(&key) {
        return Ok(Some(filter.clone()));
    }
    let stored = app
        .store
        .read_one("get_filter", |tx| async move { filters::find(&tx, user_id, filter_id).await })
        .await?;
    let Some(stored) = stored else { return Ok(None) };
    let filter: Arc<FilterDefinition> =
        serde_json::from_str(&stored).map(Arc::new).map_err(ApiError::internal)?;
    if stored.len() <= MAX_CACHED_BYTES {
        cached().put(key, filter.clone());
    }
    Ok(Some(filter))
}
