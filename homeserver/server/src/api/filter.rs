//! Filters that clients upload once and name in `/sync`.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#filtering>.

use keystead_store::filters;
use ruma::api::client::filter::{FilterDefinition, create_filter, get_filter};

use super::guard;
use crate::{
    app::App,
    context::{Ctx, Session},
    http::error::ApiError,
};

/// A filter may have this many bytes.
const MAX_FILTER_BYTES: usize = 64 * 1024;

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
    Ok(get_filter::v3::Response::new(filter))
}

/// The filter that a user has uploaded under this id.
///
/// # Errors
///
/// The database's own.
pub(crate) async fn find(
    app: &App,
    user_id: &ruma::UserId,
    filter_id: &str,
) -> Result<Option<FilterDefinition>, ApiError> {
    let Ok(filter_id) = filter_id.parse() else { return Ok(None) };
    let definition = app
        .store
        .read("get_filter", |tx| async move { filters::find(&tx, user_id, filter_id).await })
        .await?;
    definition.map(|definition| serde_json::from_str(&definition)).transpose().map_err(ApiError::internal)
}
