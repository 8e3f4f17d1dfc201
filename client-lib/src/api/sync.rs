//! Following what happens: `/sync` and to-device messages.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::http::{Call, segment};
use super::{Api, ApiError};
use crate::events::SyncResponse;

impl Api {
    /// What happened since `since` (or all of it); the server waits up to `wait` for something to happen.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3sync>
    pub async fn sync(&self, since: Option<&str>, wait: Duration) -> Result<SyncResponse, ApiError> {
        let mut path = format!("/_matrix/client/v3/sync?timeout={}", wait.as_millis());
        if let Some(since) = since {
            path.push_str("&since=");
            path.push_str(&segment(since));
        }
        self.call(Call::get(path).long_poll(wait)).await
    }

    /// Sends to-device messages: contents by user, by device.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3sendtodeviceeventtypetxnid>
    pub async fn send_to_device(
        &self,
        event_type: &str,
        txn_id: &str,
        messages: &BTreeMap<String, BTreeMap<String, Value>>,
    ) -> Result<(), ApiError> {
        let path = format!("/_matrix/client/v3/sendToDevice/{}/{}", segment(event_type), segment(txn_id));
        self.call::<Value>(Call::put(path, json!({ "messages": messages }))).await.map(drop)
    }
}
