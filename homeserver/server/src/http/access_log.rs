//! One log line a request.

use std::time::Duration;

use http::{Method, Response};
use ruma::api::error::ErrorCode;

use crate::{
    http::{body::Body, client_address::Client, error::ErrorReport},
    telemetry::{metrics::Metrics, request::RequestRecord},
};

/// Writes the line, and counts the errcode. A failure of ours is an error; all else, a client's mistake or a limit too, is
/// information. The causes of an error are written here and nowhere else.
pub(super) fn write(
    metrics: &Metrics,
    method: &Method,
    route: &'static str,
    client: &Client,
    response: &Response<Body>,
    record: &RequestRecord,
    took: Duration,
) {
    let status = response.status();
    let database = record.database();
    let report = response.extensions().get::<ErrorReport>();
    let errcode = report.and_then(|report| report.errcode.as_ref()).map(ErrorCode::as_str);
    if let Some(errcode) = errcode {
        metrics.http_error(errcode);
    }
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                target: "keystead::access",
                {
                http.method = %method,
                http.route = route,
                http.status = status.as_u16(),
                http.duration_ms = millis(took),
                http.response_bytes = response.body().len(),
                client.address = %client.address,
                user.id = record.requester(),
                errcode,
                error = report.map(|report| report.chain.as_str()),
                db.queries = database.queries,
                db.duration_ms = millis(database.time),
                },
                "answered",
            )
        };
    }
    if status.is_server_error() && errcode != Some(ErrorCode::LimitExceeded.as_str()) {
        line!(error);
    } else {
        line!(info);
    }
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
