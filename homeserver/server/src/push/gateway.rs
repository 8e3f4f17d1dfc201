//! Sending notifications to push gateways.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use ruma::api::push_gateway::send_event_notification::v1::Notification;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use url::{Position, Url};

use super::notices::Notice;
use crate::outside::{Connection, Outside, OutsideError};

/// How long a gateway may take for one notification, the connection included.
const TIME: Duration = Duration::from_secs(10);
/// How long a gateway that could not be asked is left alone.
const LEFT_ALONE: Duration = Duration::from_secs(10);
/// How many connections are made to one gateway, and how many to all of them, at once.
const LANES: u64 = 4;
const CONNECTIONS: usize = 32;
/// The longest answer, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// Why a gateway did not take a notification.
#[derive(Debug, thiserror::Error)]
enum GatewayError {
    #[error(transparent)]
    Outside(#[from] OutsideError),
    #[error("the gateway answered with status {0}")]
    Status(StatusCode),
    #[error("the gateway's answer cannot be read")]
    Answer,
    #[error("the gateway took too long")]
    Time,
}

/// The gateways that clients have named.
pub(super) struct Gateways {
    outside: Outside,
    /// Those that could not be asked, and since when.
    silent: Mutex<HashMap<String, Instant>>,
}

/// What became of notifications.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// How many the gateways took.
    pub(super) sent: usize,
    /// Those of pushers that are no more.
    pub(super) rejected: Vec<Notice>,
    /// Those that could not be sent, of each pusher the newest.
    pub(super) put_off: Vec<Notice>,
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
        Self { outside, silent: Mutex::default() }
    }

    /// Sends notifications; those of each pusher in their order.
    pub(super) async fn tell(&self, notices: Vec<Notice>) -> Told {
        let mut lanes: BTreeMap<(String, u64), Vec<Notice>> = BTreeMap::new();
        for notice in notices {
            let gateway = notice.gateway[..Position::BeforePath].to_owned();
            let mut hasher = DefaultHasher::new();
            notice.pushkey.hash(&mut hasher);
            lanes.entry((gateway, hasher.finish() % LANES)).or_default().push(notice);
        }
        let lanes = lanes.into_iter().map(|((gateway, _), notices)| self.tell_one(gateway, notices));
        stream::iter(lanes)
            .buffer_unordered(CONNECTIONS)
            .fold(Told::default(), |mut all, told| async move {
                all.sent += told.sent;
                all.rejected.extend(told.rejected);
                all.put_off.extend(told.put_off);
                all
            })
            .await
    }

    /// Sends notifications to one gateway, one after another.
    async fn tell_one(&self, gateway: String, notices: Vec<Notice>) -> Told {
        let mut told = Told::default();
        let mut put_off: BTreeMap<(String, String, String), Notice> = BTreeMap::new();
        let mut connection = None;
        for notice in notices {
            if self.is_left_alone(&gateway) {
                let pusher = (notice.user_id.to_string(), notice.app_id.clone(), notice.pushkey.clone());
                put_off.insert(pusher, notice);
                continue;
            }
            let sent = tokio::time::timeout(TIME, self.send(&mut connection, &notice)).await;
            match sent.map_err(|_| GatewayError::Time).flatten() {
                Ok(rejected) => {
                    told.sent += 1;
                    if rejected.contains(&notice.pushkey) {
                        told.rejected.push(notice);
                    }
                }
                Err(error) => {
                    connection = None;
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        gateway,
                        "cannot tell a push gateway"
                    );
                    self.silent().insert(gateway.clone(), Instant::now());
                    let pusher = (notice.user_id.to_string(), notice.app_id.clone(), notice.pushkey.clone());
                    put_off.insert(pusher, notice);
                }
            }
        }
        told.put_off = put_off.into_values().collect();
        told
    }

    /// Sends one notification; returns the keys of pushers that are no more.
    async fn send(
        &self,
        connection: &mut Option<Connection>,
        notice: &Notice,
    ) -> Result<Vec<String>, GatewayError> {
        let used = match connection {
            Some(connection) => connection,
            None => connection.insert(self.outside.connect(&notice.gateway).await?),
        };
        let answer = used.send(request(&notice.gateway, &notice.notification)?).await?;
        if answer.status() != StatusCode::OK {
            return Err(GatewayError::Status(answer.status()));
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|_| GatewayError::Answer)?.to_bytes();
        let Answer { rejected } = serde_json::from_slice(&body).map_err(|_| GatewayError::Answer)?;
        Ok(rejected)
    }

    /// Whether a gateway could not be asked a moment ago.
    fn is_left_alone(&self, gateway: &str) -> bool {
        let mut silent = self.silent();
        silent.retain(|_, since| since.elapsed() < LEFT_ALONE);
        silent.contains_key(gateway)
    }

    fn silent(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn request(gateway: &Url, notification: &Notification) -> Result<Request<Full<Bytes>>, GatewayError> {
    let body = serde_json::to_vec(&Body { notification }).map_err(|_| GatewayError::Answer)?;
    let request = Request::post(&gateway[Position::BeforePath..Position::AfterQuery])
        .header(header::HOST, &gateway[Position::BeforeHost..Position::AfterPort])
        .header(header::USER_AGENT, HeaderValue::from_static(concat!("Keystead/", env!("CARGO_PKG_VERSION"))))
        .header(header::CONTENT_TYPE, "application/json");
    request.body(body.into()).map_err(|_| OutsideError::Address.into())
}
