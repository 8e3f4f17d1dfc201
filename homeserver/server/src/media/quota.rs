//! How much a user may keep here (`media.user_quota_bytes`).

use http::StatusCode;
use keystead_store::{WriteTx, media::care};
use ruma::{UserId, api::error::ErrorCode};

use crate::{app::App, http::error::ApiError};

/// How many more bytes a user may upload; none if there is no limit. Others may be uploading at the same time: [`check`] has the last word.
///
/// # Errors
///
/// When the database cannot be asked.
pub(super) async fn left(app: &App, user_id: &UserId) -> Result<Option<u64>, ApiError> {
    let Some(quota) = app.settings.media.user_quota_bytes else { return Ok(None) };
    let used =
        app.store.read("media_quota", |tx| async move { care::used_bytes(&tx, user_id).await }).await?;
    Ok(Some(quota.saturating_sub(used)))
}

/// Whether `size` bytes more are within the quota, on whatever replicas the user uploads. The user's media are locked.
///
/// # Errors
///
/// As [`exceeded`] says, or when the database cannot be asked.
pub(super) async fn check(app: &App, tx: &WriteTx, user_id: &UserId, size: u64) -> Result<(), ApiError> {
    let Some(quota) = app.settings.media.user_quota_bytes else { return Ok(()) };
    if care::used_bytes(tx, user_id).await?.saturating_add(size) > quota {
        Err(exceeded(app))
    } else {
        Ok(())
    }
}

/// 403 `M_USER_LIMIT_EXCEEDED`, which has to name a page with more information: that of `support.page`. Without one, 403 `M_FORBIDDEN`, which the
/// specification has for uploads over a quota, too.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixmediav3upload>
pub(super) fn exceeded(app: &App) -> ApiError {
    let quota = app.settings.media.user_quota_bytes.unwrap_or_default();
    let text = format!("Your files must not have more than {quota} bytes together");
    match &app.settings.support.page {
        Some(page) => ApiError::new(StatusCode::FORBIDDEN, ErrorCode::UserLimitExceeded, text)
            .with("info_uri", page.as_str()),
        None => ApiError::forbidden(text),
    }
}
