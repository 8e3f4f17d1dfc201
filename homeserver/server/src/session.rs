//! Sessions: which user and device an access token stands for.

use crate::{app::App, context::Session, http::error::ApiError};

/// The session that an access token belongs to.
///
/// # Errors
///
/// 401 `M_UNKNOWN_TOKEN` when there is none.
#[expect(clippy::unused_async, reason = "asks the database")]
pub async fn of_access_token(_app: &App, _token: &str) -> Result<Session, ApiError> {
    Err(ApiError::unknown_token(false))
}
