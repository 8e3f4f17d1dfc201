//! Uploads of keys: all that have queued while the last transaction was under way share the next one.

use std::{collections::BTreeMap, net::IpAddr};

use keystead_core::{keybox::audit_log::LogEvent, keys as rules, shard::Shard};
use keystead_store::{
    Error, ReadTx, Store, TransactionError, WriteTx, devices,
    keys::{self, Counts, Device, DeviceKey, NewKey},
};
use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedOneTimeKeyId,
    api::client::keys::upload_keys::v3 as upload_keys, encryption::OneTimeKey, serde::Raw,
};

use super::{refused, stored_object};
use crate::{
    context::{Ctx, Session},
    group_commit::Batches,
    http::error::ApiError,
    keyboxes::Actor,
};

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

    async fn store(&self, batch: Batch<'_>) -> Result<Vec<Result<Counts, ApiError>>, ApiError> {
        let batch = &batch;
        self.store.write("upload_keys", |tx| async move { batch.store(&tx).await }).await
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
        // That a one-time key is there already is rare, and found out by the insert.
        match self.store(Batch { uploads, checks_one_time_keys: false }).await {
            Err(error) if error.store_error().is_some_and(Error::is_conflict) => {
                self.store(Batch { uploads, checks_one_time_keys: true }).await
            }
            stored => stored,
        }
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

    /// What becomes of the device keys.
    async fn change_of_device_keys(
        &self,
        tx: &ReadTx,
        stored: Option<&String>,
    ) -> Result<DeviceKeysChange, ApiError> {
        let Some(new) = &self.device_keys else { return Ok(DeviceKeysChange::None) };
        let Some(stored) = stored else {
            self.refuse_revoked(tx, new).await?;
            return Ok(DeviceKeysChange::First);
        };
        let stored = stored_object("device_keys", self.device.1.as_str(), stored)?;
        if rules::same_device_keys(&stored, new) {
            let same = &stored == new;
            return Ok(if same { DeviceKeysChange::None } else { DeviceKeysChange::Description });
        }
        if rules::is_keybox(&stored) || rules::is_keybox(new) {
            return Err(ApiError::invalid_param(
                "This device has published other keys, and the keys of a KeyBox never change: log in as a new device",
            ));
        }
        Ok(DeviceKeysChange::Replaced)
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
    async fn put_device_keys(&self, tx: &WriteTx, change: DeviceKeysChange) -> Result<(), Error> {
        let (Some(device_keys), (user_id, device_id)) = (&self.device_keys, &self.device) else {
            return Ok(());
        };
        if change == DeviceKeysChange::Replaced {
            // What the former keys have signed, or were signed with, is worth nothing now.
            keys::delete_of_device(tx, user_id, device_id).await?;
        }
        if change == DeviceKeysChange::First && rules::is_keybox(device_keys) {
            let name = devices::find(tx, user_id, device_id).await?.and_then(|device| device.display_name);
            let actor = Actor { now: self.now, address: Some(self.client_addr), device_id: Some(device_id) };
            actor.note(tx, user_id, LogEvent::KeyboxRegistered(actor.on(device_id, name))).await?;
        }
        keys::put_device_keys(tx, user_id, device_id, &rules::to_json(device_keys)).await?;
        keys::note_device_list_change(tx, user_id).await
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
    /// Whether to ask which of the one-time keys are there already, rather than to find out by the insert that one is.
    checks_one_time_keys: bool,
}

/// What there is of the devices that upload.
struct Stored {
    /// Those that exist, with the one-time keys that they have.
    counts: BTreeMap<Device, Counts>,
    device_keys: BTreeMap<Device, String>,
    /// Those of the uploaded keys that are there already, if that was asked.
    one_time_keys: BTreeMap<DeviceKey, String>,
}

/// What becomes of the identity keys of a device.
#[derive(Clone, Copy, PartialEq, Eq)]
enum DeviceKeysChange {
    /// They stay as they are.
    None,
    /// There were none before.
    First,
    /// The keys stay; what is said about them (algorithms, signatures) changes.
    Description,
    /// Other keys take their place. The specification does not forbid it; for KeyBoxes their profile does (`profiles/keybox/SPEC.md`, section 3).
    Replaced,
}

/// What of an upload is new.
struct New {
    device_keys: DeviceKeysChange,
    one_time_keys: Vec<NewKey>,
}

impl Batch<'_> {
    /// Stores what is new and returns the counts of one-time keys. An upload that is sent again changes nothing.
    async fn store(&self, tx: &WriteTx) -> Result<Vec<Result<Counts, ApiError>>, ApiError> {
        self.lock_shards(tx).await?;
        let mut stored = self.stored(tx).await?;
        // Everything is checked before anything is written: a refused upload leaves nothing behind.
        let mut checked = Vec::with_capacity(self.uploads.len());
        for upload in self.uploads {
            match stored.new_of(tx, upload).await {
                Err(error) if error.store_error().is_some() => return Err(error),
                new => checked.push(new),
            }
        }
        self.put_device_keys(tx, &checked).await?;
        let (mut one_time_keys, mut fallback_keys) = (Vec::new(), Vec::new());
        let mut results = Vec::with_capacity(checked.len());
        for (upload, new) in self.uploads.iter().zip(checked) {
            let of_device = |key| (upload.device.clone(), key);
            results.push(new.map(|new| {
                let mut counts = stored.counts.remove(&upload.device).unwrap_or_default();
                if new.device_keys == DeviceKeysChange::Replaced {
                    counts.clear();
                }
                for key in &new.one_time_keys {
                    *counts.entry(key.algorithm.clone()).or_default() += 1;
                }
                one_time_keys.extend(new.one_time_keys.into_iter().map(of_device));
                fallback_keys.extend(upload.fallback_keys.iter().cloned().map(of_device));
                counts
            }));
        }
        keys::put_keys(tx, one_time_keys, fallback_keys).await?;
        Ok(results)
    }

    /// Locks the shards of all who upload, and of all who are to hear of new identity keys.
    async fn lock_shards(&self, tx: &WriteTx) -> Result<(), ApiError> {
        let users = self.uploads.iter().map(|upload| &*upload.device.0);
        if self.uploads.iter().all(|upload| upload.device_keys.is_none()) {
            // The counts of each of these users are about to change.
            return Ok(tx.lock_shards_of(users).await?);
        }
        let mut shards: Vec<Shard> = users.map(|user_id| tx.shards().of_user(user_id)).collect();
        let stored = self.device_keys(tx).await?;
        for upload in self.uploads {
            // A refusal is for when the shards are locked.
            let change = upload.change_of_device_keys(tx, stored.get(&upload.device)).await;
            if change.is_ok_and(|change| change != DeviceKeysChange::None) {
                shards.extend(keys::device_list_shards(tx, &upload.device.0).await?);
            }
        }
        Ok(tx.lock_shards(&shards).await?)
    }

    /// What is there; the shards are locked, so it stays (whoever deletes devices holds them, too).
    async fn stored(&self, tx: &ReadTx) -> Result<Stored, Error> {
        let devices: Vec<Device> = self.uploads.iter().map(|upload| upload.device.clone()).collect();
        let mut one_time_keys = BTreeMap::new();
        if self.checks_one_time_keys {
            let named = |upload: &Upload| upload.one_time_keys.iter().map(|key| upload.named(key)).collect();
            let wanted: Vec<Vec<DeviceKey>> = self.uploads.iter().map(named).collect();
            one_time_keys = keys::one_time_keys(tx, &wanted.concat()).await?;
        }
        Ok(Stored {
            counts: keys::one_time_key_counts(tx, &devices).await?,
            device_keys: self.device_keys(tx).await?,
            one_time_keys,
        })
    }

    /// The identity keys that are stored, of those devices that upload some.
    async fn device_keys(&self, tx: &ReadTx) -> Result<BTreeMap<Device, String>, Error> {
        let identities = self.uploads.iter().filter(|upload| upload.device_keys.is_some());
        let devices: Vec<Device> = identities.map(|upload| upload.device.clone()).collect();
        keys::stored_device_keys(tx, &devices).await
    }

    /// Publishes identity keys, in the order of the users: so does whoever else takes the locks of several users' device lists.
    async fn put_device_keys(&self, tx: &WriteTx, checked: &[Result<New, ApiError>]) -> Result<(), Error> {
        let change = |new: &Result<New, ApiError>| new.as_ref().ok().map(|new| new.device_keys);
        let changes = self.uploads.iter().zip(checked).filter_map(|(upload, new)| {
            let change = change(new).filter(|change| *change != DeviceKeysChange::None)?;
            Some((&upload.device, (upload, change)))
        });
        for (upload, change) in changes.collect::<BTreeMap<_, _>>().into_values() {
            upload.put_device_keys(tx, change).await?;
        }
        Ok(())
    }
}

impl Stored {
    /// What of an upload is new.
    ///
    /// # Errors
    /// Why it is refused; a row that cannot be read.
    async fn new_of(&self, tx: &ReadTx, upload: &Upload) -> Result<New, ApiError> {
        if !self.counts.contains_key(&upload.device) {
            return Err(ApiError::unknown_token(false));
        }
        let device_keys = upload.change_of_device_keys(tx, self.device_keys.get(&upload.device)).await?;
        let one_time_keys = match device_keys {
            DeviceKeysChange::Replaced => upload.one_time_keys.clone(),
            _ => upload.new_one_time_keys(&self.one_time_keys)?,
        };
        Ok(New { device_keys, one_time_keys })
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
