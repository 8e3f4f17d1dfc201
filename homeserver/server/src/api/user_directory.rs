//! The search for users.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#user-directory>.

use keystead_store::profiles::{self, FoundUser};
use ruma::api::client::user_directory::search_users::{
    self,
    v3::{Request, Response, User},
};
use serde::de::DeserializeOwned;

use crate::{
    context::{Ctx, Session},
    http::error::ApiError,
};

/// The most users that one search returns.
const MOST: u64 = 50;

/// `POST /_matrix/client/v3/user_directory/search`.
///
/// Users are found by a part of their id or display name, in any case, if they share a room with the one who asks or
/// are in a room of the room directory, or one that everybody may join or read.
pub(super) async fn search_users(
    ctx: Ctx<Session>,
    request: search_users::v3::Request,
) -> Result<Response, ApiError> {
    let Request { search_term, limit, .. } = request;
    let term = &search_term.trim().trim_start_matches('@').to_lowercase();
    if term.is_empty() {
        return Ok(Response::new(Vec::new(), false));
    }
    let limit = u64::from(limit).min(MOST);
    let asker = &*ctx.requester.user_id;
    let mut found = ctx
        .app
        .store
        .read("search_users", |tx| async move { profiles::search(&tx, asker, term, limit + 1).await })
        .await?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let limited = found.len() > limit;
    found.truncate(limit);
    Ok(Response::new(found.into_iter().map(user).collect(), limited))
}

fn user(found: FoundUser) -> User {
    let mut user = User::new(found.user_id);
    user.display_name = text(found.display_name);
    user.avatar_url = text(found.avatar_url);
    user
}

fn text<T: DeserializeOwned>(json: Option<String>) -> Option<T> {
    serde_json::from_str(&json?).ok()
}
