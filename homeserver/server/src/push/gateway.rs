//! What is said to a push gateway, and what it answers.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use ruma::{
    api::push_gateway::send_event_notification::v1::{Device, Notification},
    push::Tweak,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use url::Position;

use super::notices::Notice;
use crate::outside::{Connection, Outside, OutsideError};

/// How long a gateway may take for one notification, the connection included.
const TIME: Duration = Duration::from_secs(10);
/// The longest answer, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// Why a gateway did not take a notification.
#[derive(Debug, thiserror::Error)]
pub(super) enum GatewayError {
    #[error(transparent)]
    Outside(#[from] OutsideError),
    #[error("the gateway answered with status {0}")]
    Status(StatusCode),
    #[error("the gateway's answer cannot be read")]
    Answer,
    #[error("the gateway took too long")]
    Time,
}

/// A connection that was used before, and to where.
#[derive(Default)]
pub(super) struct Line(Option<(String, Connection)>);

/// > `POST /_matrix/push/v1/notify`
#[derive(Serialize)]
struct Body<'a> {
    notification: &'a Notification,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    rejected: Vec<String>,
}

/// Sends one notification; returns the keys of pushers that are no more.
pub(super) async fn send(
    outside: &Outside,
    line: &mut Line,
    notice: &Notice,
) -> Result<Vec<String>, GatewayError> {
    let sent = tokio::time::timeout(TIME, exchange(outside, line, notice)).await;
    sent.map_err(|_| GatewayError::Time).flatten()
}

async fn exchange(outside: &Outside, line: &mut Line, notice: &Notice) -> Result<Vec<String>, GatewayError> {
    let gateway = &notice.target.gateway;
    let place = &gateway[Position::BeforeScheme..Position::BeforePath];
    let used = line.0.take().filter(|(to, _)| to == place).map(|(_, connection)| connection);
    let reused = match used {
        // The gateway may have closed it in the meantime, which is its right.
        Some(mut connection) => match connection.send(request(notice)?).await {
            Ok(answer) => Some((answer, connection)),
            Err(_) => None,
        },
        None => None,
    };
    let (answer, connection) = match reused {
        Some(reused) => reused,
        None => {
            let mut connection = outside.connect(gateway).await?;
            (connection.send(request(notice)?).await?, connection)
        }
    };
    if answer.status() != StatusCode::OK {
        return Err(GatewayError::Status(answer.status()));
    }
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|_| GatewayError::Answer)?.to_bytes();
    let Answer { rejected } = serde_json::from_slice(&body).map_err(|_| GatewayError::Answer)?;
    line.0 = Some((place.to_owned(), connection));
    Ok(rejected)
}

/// > It may also have a `value` key.
///
/// ruma writes no tweak without one, but for a highlight, and ends in a panic instead.
fn with_value(tweak: &Tweak) -> Tweak {
    let nothing = || Some(RawValue::NULL.to_owned());
    match tweak {
        Tweak::Sound(_) | Tweak::Highlight(_) => tweak.clone(),
        _ if tweak.value().is_some() => tweak.clone(),
        _ => Tweak::new(tweak.set_tweak().to_owned(), nothing()).unwrap_or_else(|_| tweak.clone()),
    }
}

fn request(notice: &Notice) -> Result<Request<Full<Bytes>>, GatewayError> {
    let target = &notice.target;
    let mut device = Device::new(target.app_id.clone(), target.pushkey.clone());
    device.data = target.data.clone();
    device.tweaks = notice.tweaks.iter().map(with_value).collect();
    let mut notification = notice.notification.clone();
    notification.devices = vec![device];
    let body = serde_json::to_vec(&Body { notification: &notification }).map_err(|_| GatewayError::Answer)?;
    let gateway = &target.gateway;
    let request = Request::post(&gateway[Position::BeforePath..Position::AfterQuery])
        .header(header::HOST, &gateway[Position::BeforeHost..Position::AfterPort])
        .header(header::USER_AGENT, HeaderValue::from_static(concat!("Keystead/", env!("CARGO_PKG_VERSION"))))
        .header(header::CONTENT_TYPE, "application/json");
    request.body(body.into()).map_err(|_| OutsideError::Address.into())
}
