//! The keys that the server signs with: one in force, and the public parts of those that were before it.
//!
//! All replicas share them; they are in the database. A replica reads them when it starts.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use keystead_core::{keybox::of_key, room::Signer};
use keystead_store::{Error, ReadTx, Store, WriteTx, settings};
use ruma::{MilliSecondsSinceUnixEpoch, signatures::Ed25519KeyPair};
use serde::{Deserialize, Serialize};

use crate::{app::StartError, config::Settings};

/// The setting of the database that holds the key in force: PKCS#8 DER in unpadded base64.
const SIGNING_KEY: &str = "signing_key";
/// The setting that holds its version, the part of its id after `ed25519:`; [`FIRST`] if it was never changed.
const VERSION: &str = "signing_key_version";
/// The setting that holds the keys before it: a JSON object of [`OldKey`] by key id.
const OLD_KEYS: &str = "old_signing_keys";
/// The setting that holds the server's name, which can never change.
const SERVER_NAME: &str = "server_name";
/// The version of a server's first key.
const FIRST: &str = "1";

/// A key that the server signed with once, as it is published.
///
/// <https://spec.matrix.org/v1.19/server-server-api/#publishing-keys>
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct OldKey {
    /// When it was last used, in milliseconds since the epoch.
    pub expired_ts: u64,
    /// Its public part in unpadded base64.
    pub key: String,
}

/// What the server signs with, and did.
#[derive(Debug)]
pub struct SigningKeys {
    /// Signs in the server's name.
    pub signer: Signer,
    /// The keys before, by their ids.
    pub old: BTreeMap<String, OldKey>,
}

/// What [`rotate`] did: the ids of the key that was in force and of the one that is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rotated {
    /// The key before.
    pub old: String,
    /// The key in force now.
    pub new: String,
    /// Its fingerprint: what people compare before their KeyBoxes accept it.
    pub fingerprint: String,
}

/// A key as people compare it, in one line.
fn fingerprint(key_pair: &Ed25519KeyPair) -> String {
    of_key(&key_pair.public_key()).replace('\n', " ")
}

/// Reads the keys; whichever replica comes first makes the first one.
///
/// # Errors
///
/// [`StartError`]: the database belongs to a server of another name, the keys cannot be read, or the database fails.
pub async fn load(store: &Store, app_settings: &Settings) -> Result<SigningKeys, StartError> {
    let new_key = STANDARD_NO_PAD.encode(&*Ed25519KeyPair::generate());
    let (new_key, name) = (&new_key, &app_settings.server.name);
    let (known_name, stored) = store
        .write("server_identity", |tx| async move {
            let known_name = settings::find_or_insert(&tx, SERVER_NAME, name.as_str()).await?;
            settings::find_or_insert(&tx, SIGNING_KEY, new_key).await?;
            Ok::<_, Error>((known_name, Stored::read(&tx).await?))
        })
        .await?;
    if known_name != name.as_str() {
        return Err(StartError::ServerName(known_name));
    }
    let key_pair = stored.key_pair()?;
    Ok(SigningKeys { signer: Signer::new(name.clone(), key_pair), old: stored.old()? })
}

/// The public part of the key in force.
///
/// # Errors
///
/// As [`load`].
pub async fn current_public_key(store: &Store) -> Result<Vec<u8>, StartError> {
    let stored = store.read("signing_key", |tx| async move { Stored::read(&tx).await }).await?;
    Ok(stored.key_pair()?.public_key().to_vec())
}

/// The id of the key in force, and its fingerprint.
///
/// # Errors
///
/// As [`load`].
pub async fn current(store: &Store) -> Result<(String, String), StartError> {
    let stored = store.read("signing_key", |tx| async move { Stored::read(&tx).await }).await?;
    let key_pair = stored.key_pair()?;
    Ok((format!("ed25519:{}", key_pair.version()), fingerprint(&key_pair)))
}

/// Puts a new key in force. The key before is published as an old one from now on; its private part is gone. Replicas go on with the old one until they
/// are started again.
///
/// # Errors
///
/// As [`load`].
pub async fn rotate(store: &Store, now: MilliSecondsSinceUnixEpoch) -> Result<Rotated, StartError> {
    let new_key = &STANDARD_NO_PAD.encode(&*Ed25519KeyPair::generate());
    store
        .write("rotate_signing_key", |tx| async move {
            let stored = Stored::read(&tx).await?;
            let (before, mut old) = (stored.key_pair()?, stored.old()?);
            let id = |version: &str| format!("ed25519:{version}");
            let public = STANDARD_NO_PAD.encode(before.public_key());
            old.insert(id(before.version()), OldKey { expired_ts: now.get().into(), key: public });
            let version = next_version(before.version(), &old);
            put(&tx, SIGNING_KEY, new_key).await?;
            put(&tx, VERSION, &version).await?;
            let old =
                serde_json::to_string(&old).map_err(|error| StartError::SigningKey(error.to_string()))?;
            put(&tx, OLD_KEYS, &old).await?;
            let now = Stored::read(&tx).await?.key_pair()?;
            let fingerprint = fingerprint(&now);
            Ok(Rotated { old: id(before.version()), new: id(&version), fingerprint })
        })
        .await
}

async fn put(tx: &WriteTx, name: &str, value: &str) -> Result<(), Error> {
    settings::put(tx, name, value).await
}

/// A version that no key of this server had: a number if the one before was.
fn next_version(before: &str, old: &BTreeMap<String, OldKey>) -> String {
    let first = before.parse::<u64>().unwrap_or_default().saturating_add(1);
    let is_free = |version: &u64| !old.contains_key(&format!("ed25519:{version}"));
    (first..).find(is_free).unwrap_or(first).to_string()
}

/// The settings of the database.
struct Stored {
    key: String,
    version: String,
    old: Option<String>,
}

impl Stored {
    async fn read(tx: &ReadTx) -> Result<Self, Error> {
        Ok(Self {
            key: settings::find(tx, SIGNING_KEY).await?.unwrap_or_default(),
            version: settings::find(tx, VERSION).await?.unwrap_or_else(|| FIRST.to_owned()),
            old: settings::find(tx, OLD_KEYS).await?,
        })
    }

    fn key_pair(&self) -> Result<Ed25519KeyPair, StartError> {
        let der =
            STANDARD_NO_PAD.decode(&self.key).map_err(|error| StartError::SigningKey(error.to_string()))?;
        Ed25519KeyPair::from_der(&der, self.version.clone())
            .map_err(|error| StartError::SigningKey(error.to_string()))
    }

    fn old(&self) -> Result<BTreeMap<String, OldKey>, StartError> {
        let Some(old) = &self.old else { return Ok(BTreeMap::new()) };
        serde_json::from_str(old).map_err(|error| StartError::SigningKey(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_never_used_twice() {
        let old = |ids: &[&str]| {
            let key = || OldKey { expired_ts: 1, key: String::new() };
            ids.iter().map(|id| ((*id).to_owned(), key())).collect()
        };
        assert_eq!(next_version("1", &old(&["ed25519:1"])), "2");
        assert_eq!(next_version("2", &old(&["ed25519:2", "ed25519:3"])), "4");
        assert_eq!(next_version("a_name", &old(&["ed25519:a_name"])), "1");
    }
}
