//! What is said to a push gateway, and what it answers.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use ruma::{
    api::push_gateway::send_event_notification::v1::{Device, Notification},
    push::Tweak,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::Instant;
use url::Position;

use super::notices::Notice;
use crate::outside::{Connection, Outside, OutsideError};

/// How long a gateway may take for one notification, the connection included.
const TIME: Duration = Duration::from_secs(10);
/// The longest answer, in bytes.
const MAX_ANSWER: usize = 64 * 1024;
/// How long after it was made a connection is used: then the gateway's name is looked up again.
const LINE_AGE: Duration = Duration::from_secs(60);
/// How many connections are kept that are not in use.
const MAX_LINES: usize = 512;

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

/// The gateways outside.
pub(super) struct Gateways {
    outside: Outside,
    /// The connections that are not in use, by scheme, host and port.
    lines: Mutex<HashMap<String, Vec<Line>>>,
}

/// A connection, and when it was made.
struct Line {
    connection: Connection,
    made_at: Instant,
}

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

impl Gateways {
    pub(super) fn new(outside: Outside) -> Self {
        Self { outside, lines: Mutex::default() }
    }

    /// Sends one notification; returns the keys of pushers that are no more.
    pub(super) async fn send(&self, notice: &Notice) -> Result<Vec<String>, GatewayError> {
        tokio::time::timeout(TIME, self.exchange(notice)).await.map_err(|_| GatewayError::Time).flatten()
    }

    /// Ends the connections that are too old to be used again.
    pub(super) fn end_old_lines(&self) {
        self.lines().retain(|_, lines| {
            lines.retain(Line::is_good);
            !lines.is_empty()
        });
    }

    async fn exchange(&self, notice: &Notice) -> Result<Vec<String>, GatewayError> {
        let gateway = &notice.target.gateway;
        let place = &gateway[Position::BeforeScheme..Position::BeforePath];
        let used = self.used_line(place);
        let reused = match used {
            // The gateway may have closed it in the meantime, which is its right.
            Some(mut line) => match line.connection.send(request(notice)?).await {
                Ok(answer) => Some((answer, line)),
                Err(_) => None,
            },
            None => None,
        };
        let (answer, line) = match reused {
            Some(reused) => reused,
            None => {
                let made_at = Instant::now();
                let mut line = Line { connection: self.outside.connect(gateway).await?, made_at };
                (line.connection.send(request(notice)?).await?, line)
            }
        };
        if answer.status() != StatusCode::OK {
            return Err(GatewayError::Status(answer.status()));
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|_| GatewayError::Answer)?.to_bytes();
        let Answer { rejected } = serde_json::from_slice(&body).map_err(|_| GatewayError::Answer)?;
        self.keep(place, line);
        Ok(rejected)
    }

    /// A connection that can be used once more.
    fn used_line(&self, place: &str) -> Option<Line> {
        let mut lines = self.lines();
        let of_place = lines.get_mut(place)?;
        std::iter::from_fn(|| of_place.pop()).find(Line::is_good)
    }

    fn keep(&self, place: &str, line: Line) {
        let mut lines = self.lines();
        if line.is_good() && lines.values().map(Vec::len).sum::<usize>() < MAX_LINES {
            lines.entry(place.to_owned()).or_default().push(line);
        }
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<String, Vec<Line>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn is_good(&self) -> bool {
        self.made_at.elapsed() < LINE_AGE && self.connection.is_open()
    }
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
    if notice.tells_content {
        notification.content = Some(notice.event.pdu.content.clone());
    }
    let body = serde_json::to_vec(&Body { notification: &notification }).map_err(|_| GatewayError::Answer)?;
    let gateway = &target.gateway;
    let request = Request::post(&gateway[Position::BeforePath..Position::AfterQuery])
        .header(header::HOST, &gateway[Position::BeforeHost..Position::AfterPort])
        .header(header::USER_AGENT, HeaderValue::from_static(concat!("Keystead/", env!("CARGO_PKG_VERSION"))))
        .header(header::CONTENT_TYPE, "application/json");
    request.body(body.into()).map_err(|_| OutsideError::Address.into())
}
