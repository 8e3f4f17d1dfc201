//! Health and metrics, for those who run the server.

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

/// `GET /live`: the process runs.
pub(super) async fn live(_ctx: Ctx<()>, _request: OwnRequest) -> Result<RawJson, ApiError> {
    Ok(RawJson("{}".into()))
}

/// `GET /ready`: this replica should be sent requests. 503 while it is stopping.
pub(super) async fn ready(ctx: Ctx<()>, _request: OwnRequest) -> Result<RawJson, ApiError> {
    if ctx.app.shutdown.is_draining() {
        return Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Unknown,
            "This replica is stopping",
        ));
    }
    Ok(RawJson("{}".into()))
}

/// `GET /metrics`, in the Prometheus text format.
pub(super) async fn metrics(ctx: Ctx<()>, _request: OwnRequest) -> Result<PlainText, ApiError> {
    let text = ctx.app.metrics.encode().map_err(ApiError::internal)?;
    Ok(PlainText { text, content_type: "text/plain; version=0.0.4; charset=utf-8" })
}
