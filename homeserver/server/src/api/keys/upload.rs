//! Uploads of keys: all that have queued while the last transaction was under way share the next one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use keystead_core::{keybox::audit_log::LogEvent, keys as rules, shard::Shard};
use keystead_store::{
    Error, ReadTx, Store, TransactionError, WriteTx, devices,
    keys::{self, DeviceKey, NewKey},
};
use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedDeviceId, OwnedOneTimeKeyId, OwnedUserId, UserId,
    api::client::keys::upload_keys::v3 as upload_keys, encryption::OneTimeKey, serde::Raw,
};

use super::{refused, stored_object};
use crate::{
    context::{Ctx, Session},
    group_commit::Batches,
    http::error::ApiError,
    keyboxes::Actor,
};

/// How many one-time keys of each algorithm a device has left.
pub type Counts = BTreeMap<String, u64>;
type Device = (OwnedUserId, OwnedDeviceId);

/// What a device uploads, checked as far as it can be without the database.
pub struct Upload {
    device: Device,
    client_addr: IpAddr,
    now: MilliSecondsSinceUnixEpoch,
    device_keys: Option<CanonicalJsonObject>,
    one_time_keys: Vec<NewKey>,
    fallback_keys: Vec<NewKey>,
}

/// Stores what devices upload.
pub struct KeyUploads {
    store: Store,
}

impl KeyUploads {
    /// Stores in this database.
    pub fn new(store: Store) -> Self {
        Self { store }
    }
}

impl Batches for KeyUploads {
    type Work = Upload;
    type Key = Device;
    type Output = Counts;

    fn key(upload: &Upload) -> Option<Device> {
        Some(upload.device.clone())
    }

    fn weight(upload: &Upload) -> usize {
        upload.one_time_keys.len() + upload.fallback_keys.len() + 1
    }

    async fn commit(&self, uploads: &[Upload]) -> Result<Vec<Result<Counts, ApiError>>, ApiError> {
        self.store.write("upload_keys", |tx| async move { Batch { uploads }.store(&tx).await }).await
    }
}

impl Upload {
    pub(super) fn check(ctx: &Ctx<Session>, request: &upload_keys::Request) -> Result<Self, ApiError> {
        let Session { user_id, device_id, .. } = &ctx.requester;
        let device_keys = request
            .device_keys
            .as_ref()
            .map(|raw| {
                // The types of the specification first: they say best what is wrong.
                raw.deserialize().map_err(|error| ApiError::bad_json(error.to_string()))?;
                rules::check_device_keys(user_id, device_id, raw.json().get()).map_err(refused)
            })
            .transpose()?;
        Ok(Self {
            device: (user_id.clone(), device_id.clone()),
            client_addr: ctx.client_addr,
            now: ctx.now,
            device_keys,
            one_time_keys: new_keys(&request.one_time_keys)?,
            fallback_keys: new_keys(&request.fallback_keys)?,
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.device_keys.is_none() && self.one_time_keys.is_empty() && self.fallback_keys.is_empty()
    }

    /// Whether the device keys differ from the stored ones, as far as they may.
    async fn changes_device_keys(&self, tx: &ReadTx) -> Result<bool, ApiError> {
        let Some(new) = &self.device_keys else { return Ok(false) };
        let (user_id, device_id) = &self.device;
        let Some(stored) = keys::device_keys(tx, user_id, device_id).await? else {
            self.refuse_revoked(tx, new).await?;
            return Ok(true);
        };
        let stored = stored_object("device_keys", device_id.as_str(), &stored)?;
        if !rules::same_device_keys(&stored, new) {
            return Err(ApiError::invalid_param(
                "This device has published other keys, and the keys of a device never change: log in as a new device",
            ));
        }
        Ok(&stored != new)
    }

    /// Refuses the key set of a KeyBox that was revoked: whoever has its private keys may have the account's password, too
    /// (`profiles/keybox/SPEC.md`, section 21).
    async fn refuse_revoked(&self, tx: &ReadTx, new: &CanonicalJsonObject) -> Result<(), ApiError> {
        let (user_id, device_id) = &self.device;
        let Some(key_set_id) = rules::key_set_id(user_id, device_id, new) else { return Ok(()) };
        if keys::is_revoked_key_set(tx, user_id, device_id, &key_set_id).await? {
            return Err(ApiError::invalid_param(
                "The KeyBox with these keys was revoked or logged out, and its keys are not taken again: log in as a new one",
            ));
        }
        Ok(())
    }

    /// Publishes the identity keys. The shards of the user's device list are locked.
    async fn put_device_keys(&self, tx: &WriteTx) -> Result<(), ApiError> {
        let (Some(device_keys), (user_id, device_id)) = (&self.device_keys, &self.device) else {
            return Ok(());
        };
        if rules::is_keybox(device_keys) && keys::device_keys(tx, user_id, device_id).await?.is_none() {
            let name = devices::find(tx, user_id, device_id).await?.and_then(|device| device.display_name);
            let actor = Actor { now: self.now, address: Some(self.client_addr), device_id: Some(device_id) };
            actor.note(tx, user_id, LogEvent::KeyboxRegistered(actor.on(device_id, name))).await?;
        }
        keys::put_device_keys(tx, user_id, device_id, &rules::to_json(device_keys)).await?;
        Ok(keys::note_device_list_change(tx, user_id).await?)
    }

    /// The one-time keys that are not there yet.
    fn new_one_time_keys(&self, stored: &BTreeMap<DeviceKey, String>) -> Result<Vec<NewKey>, ApiError> {
        let mut new = Vec::new();
        for key in &self.one_time_keys {
            match stored.get(&self.named(key)) {
                None => new.push(key.clone()),
                Some(stored) if rules::same_one_time_key(stored, &key.json) => {}
                Some(_) => {
                    let text =
                        format!("The one-time key {} is there already, with another value", key.key_id);
                    return Err(ApiError::invalid_param(text));
                }
            }
        }
        Ok(new)
    }

    fn named(&self, key: &NewKey) -> DeviceKey {
        (self.device.0.clone(), self.device.1.clone(), key.key_id.clone())
    }
}

struct Batch<'a> {
    uploads: &'a [Upload],
}

impl Batch<'_> {
    /// Stores what is new and returns the counts of one-time keys. An upload that is sent again changes nothing.
    async fn store(&self, tx: &WriteTx) -> Result<Vec<Result<Counts, ApiError>>, ApiError> {
        tx.lock_shards(&self.shards(tx).await?).await?;
        let mut results = Vec::with_capacity(self.uploads.len());
        // Everything is checked before anything is written: a refused upload leaves nothing behind.
        let stored = self.stored(tx).await?;
        let users: BTreeSet<&UserId> = self.uploads.iter().map(|upload| &*upload.device.0).collect();
        // Whoever deletes devices holds the shard too.
        let devices = devices::ids_of_users(tx, &users.into_iter().collect::<Vec<_>>()).await?;
        let (mut new, mut fallback, mut changed) = (Vec::new(), Vec::new(), BTreeSet::new());
        for upload in self.uploads {
            let (user_id, device_id) = &upload.device;
            if !devices.get(user_id).is_some_and(|devices| devices.contains(device_id)) {
                results.push(Err(ApiError::unknown_token(false)));
                continue;
            }
            let one_time_keys = match upload.new_one_time_keys(&stored) {
                Ok(one_time_keys) => one_time_keys,
                Err(refusal) => {
                    results.push(Err(refusal));
                    continue;
                }
            };
            match upload.changes_device_keys(tx).await {
                Ok(true) => upload.put_device_keys(tx).await?,
                Ok(false) => {}
                Err(error) if error.store_error().is_some() => return Err(error),
                Err(refusal) => {
                    results.push(Err(refusal));
                    continue;
                }
            }
            if !one_time_keys.is_empty() || !upload.fallback_keys.is_empty() {
                changed.insert(user_id.clone());
            }
            let of_device = |key| (user_id.clone(), device_id.clone(), key);
            new.extend(one_time_keys.into_iter().map(of_device));
            fallback.extend(upload.fallback_keys.iter().cloned().map(of_device));
            results.push(Ok(Counts::new()));
        }
        keys::insert_one_time_keys(tx, new).await?;
        keys::put_fallback_keys(tx, fallback).await?;
        keys::note_one_time_keys(tx, changed).await?;
        let mut counts = self.counts(tx).await?;
        for (upload, result) in self.uploads.iter().zip(&mut results) {
            if let Ok(count) = result {
                *count = counts.remove(&upload.device).unwrap_or_default();
            }
        }
        Ok(results)
    }

    /// The shards of all who upload, and of all who are to hear of new identity keys.
    async fn shards(&self, tx: &ReadTx) -> Result<Vec<Shard>, ApiError> {
        let mut shards = Vec::new();
        for upload in self.uploads {
            shards.push(tx.shards().of_user(&upload.device.0));
            // A refusal is for when the shards are locked.
            if matches!(upload.changes_device_keys(tx).await, Ok(true)) {
                shards.extend(keys::device_list_shards(tx, &upload.device.0).await?);
            }
        }
        Ok(shards)
    }

    /// Those of the one-time keys that are there already.
    async fn stored(&self, tx: &ReadTx) -> Result<BTreeMap<DeviceKey, String>, Error> {
        let wanted = self
            .uploads
            .iter()
            .flat_map(|upload| upload.one_time_keys.iter().map(|key| upload.named(key)))
            .collect::<Vec<_>>();
        keys::one_time_keys(tx, &wanted).await
    }

    async fn counts(&self, tx: &ReadTx) -> Result<BTreeMap<Device, Counts>, Error> {
        let devices: Vec<Device> = self.uploads.iter().map(|upload| upload.device.clone()).collect();
        keys::one_time_key_counts(tx, &devices).await
    }
}

fn new_keys(keys: &BTreeMap<OwnedOneTimeKeyId, Raw<OneTimeKey>>) -> Result<Vec<NewKey>, ApiError> {
    keys.iter()
        .map(|(key_id, key)| {
            Ok(NewKey {
                key_id: key_id.to_string(),
                algorithm: key_id.algorithm().to_string(),
                json: rules::check_one_time_key(key.json().get()).map_err(refused)?,
            })
        })
        .collect()
}
