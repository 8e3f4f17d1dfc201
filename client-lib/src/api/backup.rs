//! Key backups. <https://spec.matrix.org/v1.19/client-server-api/#server-side-key-backups>

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::http::{Call, segment};
use super::{Api, ApiError};

const VERSION: &str = "/_matrix/client/v3/room_keys/version";
const KEYS: &str = "/_matrix/client/v3/room_keys/keys";

/// A version of the account's key backup.
#[derive(Clone, Debug, Deserialize)]
pub struct Backup {
    /// What its keys are sealed with.
    pub algorithm: String,
    /// What the algorithm says of it.
    pub auth_data: Value,
    /// Names it.
    pub version: String,
    /// How many keys are in it.
    pub count: u64,
}

/// The keys of one room in a backup: `session_data` by session id.
#[derive(Clone, Debug, Deserialize)]
pub struct BackedUpRoom {
    /// By session id; of a KeyBox's backup by the resource key's id.
    pub sessions: BTreeMap<String, BackedUpSession>,
}

/// One key in a backup.
#[derive(Clone, Debug, Deserialize)]
pub struct BackedUpSession {
    /// The sealed key.
    pub session_data: Value,
}

impl Api {
    /// The newest version of the account's key backup; `None` if it has none.
    pub async fn backup(&self) -> Result<Option<Backup>, ApiError> {
        match self.call(Call::get(VERSION)).await {
            Ok(backup) => Ok(Some(backup)),
            Err(error) if error.errcode() == Some("M_NOT_FOUND") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a new version of the account's key backup, and returns its name.
    pub async fn create_backup(
        &self,
        algorithm: &str,
        auth_data: &impl Serialize,
    ) -> Result<String, ApiError> {
        #[derive(Deserialize)]
        struct Answer {
            version: String,
        }
        let call = Call::post(VERSION, json!({ "algorithm": algorithm, "auth_data": auth_data }));
        Ok(self.call::<Answer>(call.once()).await?.version)
    }

    /// Deletes a version with its keys.
    pub async fn delete_backup(&self, version: &str) -> Result<(), ApiError> {
        self.call::<Value>(Call::delete(format!("{VERSION}/{}", segment(version)))).await.map(drop)
    }

    /// Adds keys to a version: rooms with their `sessions`. What is there already is not replaced by what is not better.
    pub async fn back_up_keys(&self, version: &str, rooms: &Map<String, Value>) -> Result<(), ApiError> {
        let path = format!("{KEYS}?version={}", segment(version));
        self.call::<Value>(Call::put(path, json!({ "rooms": rooms }))).await.map(drop)
    }

    /// All keys of a version, by room.
    pub async fn backed_up_keys(&self, version: &str) -> Result<BTreeMap<String, BackedUpRoom>, ApiError> {
        #[derive(Deserialize)]
        struct Answer {
            rooms: BTreeMap<String, BackedUpRoom>,
        }
        let path = format!("{KEYS}?version={}", segment(version));
        Ok(self.call::<Answer>(Call::get(path)).await?.rooms)
    }
}
