//! Fingerprints of released clients, for these to check themselves against.
//!
//! Specification: the KeyBox profile, `profiles/keybox/SPEC.md`, section 18.

use tokio::io::AsyncReadExt as _;

use crate::{
    context::Ctx,
    http::{error::ApiError, reply::PlainText, router::OwnRequest},
};

/// Where they are published.
pub(super) const PATH: &str = "/_matrix/client/unstable/com.trustner.keybox/v1/releases";
/// The largest file that is served, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// `GET …/v1/releases`: the file `server.release_fingerprints_file` as it is now; 404 if the configuration names none.
pub(super) async fn releases(ctx: Ctx<()>, _request: OwnRequest) -> Result<PlainText, ApiError> {
    let Some(path) = &ctx.app.settings.server.release_fingerprints_file else {
        return Err(ApiError::not_found("This server publishes no fingerprints of releases"));
    };
    let mut text = String::new();
    let file = tokio::fs::File::open(path).await.map_err(ApiError::internal)?;
    file.take(MAX_FILE).read_to_string(&mut text).await.map_err(ApiError::internal)?;
    Ok(PlainText { text, content_type: "text/plain; charset=utf-8" })
}
