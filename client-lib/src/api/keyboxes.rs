//! The profile's own endpoints: the server's log (`profiles/keybox/SPEC.md`, section 20).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::http::{Call, segment};
use super::{Api, ApiError};
use keystead_keybox::encoding::from_base64;

/// Where the endpoints are.
const BASE: &str = "/_matrix/client/unstable/com.trustner.keybox/v1";

/// Which entries of a log are wanted; all by default.
#[derive(Clone, Debug, Default)]
pub struct LogFilter {
    /// Only those after this number.
    pub after: u64,
    /// Only those about resource keys of this room.
    pub room_id: Option<String>,
    /// Only those that name this KeyBox, at either end.
    pub keybox_id: Option<String>,
    /// Only those of this time and later, in milliseconds since the Unix epoch.
    pub since: Option<u64>,
}

/// One of the account's KeyBoxes, as the server lists it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListedKeyBox {
    /// Its id.
    pub keybox_id: String,
    /// What its owner calls it.
    pub name: Option<String>,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_ts: u64,
    /// When it was last seen, to within some minutes.
    pub last_seen_ts: u64,
    /// The address that it was last seen at.
    pub last_seen_ip: String,
    /// The suites that it speaks.
    pub suites: Vec<String>,
    /// Whether the server has a signature of the owner's self-signing key on its key set.
    pub verified: bool,
    /// Whether the server keeps the passphrase of its private keys.
    pub passphrase_kept: bool,
}

/// The key that a homeserver signs with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerKey {
    /// The server's name.
    pub server_name: String,
    /// The key's name, as in `ed25519:NAME`.
    pub key_name: String,
    /// The Ed25519 public key.
    pub key: [u8; 32],
}

impl Api {
    /// The account's KeyBoxes.
    pub async fn keyboxes(&self) -> Result<Vec<ListedKeyBox>, ApiError> {
        #[derive(Deserialize)]
        struct Answer {
            keyboxes: Vec<ListedKeyBox>,
        }
        Ok(self.call::<Answer>(Call::get(format!("{BASE}/keyboxes"))).await?.keyboxes)
    }

    /// Names one of the account's devices.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3devicesdeviceid>
    pub async fn rename_device(&self, device_id: &str, name: &str) -> Result<(), ApiError> {
        let path = format!("/_matrix/client/v3/devices/{}", segment(device_id));
        self.call::<Value>(Call::put(path, json!({ "display_name": name }))).await.map(drop)
    }

    /// Deletes one of the account's devices, with its session, keys and messages; the password shows that it is the owner who asks.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3delete_devices>
    pub async fn delete_device(
        &self,
        device_id: &str,
        user_id: &str,
        password: &str,
    ) -> Result<(), ApiError> {
        let request = json!({
            "devices": [device_id],
            "auth": {
                "type": "m.login.password",
                "identifier": { "type": "m.id.user", "user": user_id },
                "password": password,
            },
        });
        self.call::<Value>(Call::post("/_matrix/client/v3/delete_devices", request).once()).await.map(drop)
    }

    /// All entries of the account's log that `filter` lets through, oldest first.
    pub async fn log(&self, filter: &LogFilter) -> Result<Vec<Map<String, Value>>, ApiError> {
        #[derive(Deserialize)]
        struct Page {
            entries: Vec<Map<String, Value>>,
            next_after: Option<u64>,
        }
        let mut entries = Vec::new();
        let mut after = filter.after;
        loop {
            let mut path = format!("{BASE}/log?limit=1000&after={after}");
            let parameters = [("room_id", filter.room_id.clone()), ("keybox_id", filter.keybox_id.clone())];
            let since = ("since", filter.since.map(|since| since.to_string()));
            for (name, value) in parameters.into_iter().chain([since]) {
                if let Some(value) = value {
                    path.push_str(&format!("&{name}={}", segment(&value)));
                }
            }
            let page: Page = self.call(Call::get(path)).await?;
            entries.extend(page.entries);
            match page.next_after {
                // A server that leads in a circle is not followed.
                Some(next) if next > after => after = next,
                _ => return Ok(entries),
            }
        }
    }

    /// The signed head of the account's log.
    pub async fn log_head(&self) -> Result<Map<String, Value>, ApiError> {
        self.call(Call::get(format!("{BASE}/log/head"))).await
    }

    /// The key that the server says it signs with.
    ///
    /// <https://spec.matrix.org/v1.19/server-server-api/#publishing-keys>
    pub async fn server_key(&self) -> Result<ServerKey, ApiError> {
        let answer: Value = self.call(Call::get("/_matrix/key/v2/server")).await?;
        let key = || {
            let keys = answer.get("verify_keys")?.as_object()?;
            let (id, value) = keys.iter().find(|(id, _)| id.starts_with("ed25519:"))?;
            let bytes = from_base64(value.get("key")?.as_str()?).ok()?;
            Some(ServerKey {
                server_name: answer.get("server_name")?.as_str()?.to_owned(),
                key_name: id.strip_prefix("ed25519:")?.to_owned(),
                key: bytes.try_into().ok()?,
            })
        };
        key().ok_or_else(|| ApiError::Malformed("the homeserver publishes no Ed25519 key".into()))
    }
}
