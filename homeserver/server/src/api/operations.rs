//! Health and metrics, for those who run the server.

use std::time::Duration;

use http::StatusCode;
use ruma::api::error::ErrorCode;

use crate::{
    context::Ctx,
    http::{
        error::ApiError,
        reply::{PlainText, RawJson},
        router::OwnRequest,
    },
};

/// How long a replica that is ready takes at most to see what was committed.
const CATCH_UP: Duration = Duration::from_secs(2);

/// `GET /live`: the process runs.
pub(super) async fn live(_ctx: Ctx<()>, _request: OwnRequest) -> Result<RawJson, ApiError> {
    Ok(RawJson("{}".into()))
}

/// `GET /ready`: this replica should be sent requests. 503 while it is stopping, or when it cannot reach the database or
/// cannot keep up with what the other replicas write.
pub(super) async fn ready(ctx: Ctx<()>, _request: OwnRequest) -> Result<RawJson, ApiError> {
    let not_ready = |why| Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unknown, why));
    if ctx.app.shutdown.is_leaving() {
        return not_ready("This replica is stopping");
    }
    // The fence asks the database where the streams stand and waits until this replica is there.
    match tokio::time::timeout(CATCH_UP, ctx.app.fence()).await {
        Ok(Ok(())) => Ok(RawJson("{}".into())),
        Ok(Err(_)) => not_ready("The database cannot be reached"),
        Err(_) => not_ready("This replica is behind, or the database does not answer"),
    }
}

/// `GET /metrics`, in the Prometheus text format.
pub(super) async fn metrics(ctx: Ctx<()>, _request: OwnRequest) -> Result<PlainText, ApiError> {
    ctx.app.refresh_metrics();
    let text = ctx.app.metrics.encode().map_err(ApiError::internal)?;
    Ok(PlainText { text, content_type: "text/plain; version=0.0.4; charset=utf-8" })
}
