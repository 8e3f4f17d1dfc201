//! What the server does for a user's KeyBoxes: which devices are such, and the log of what happens to them.

pub mod passphrases;

use std::{collections::BTreeMap, net::IpAddr};

use keystead_core::{
    keybox::audit_log::{LogEvent, OnKeyBox},
    keys as rules,
};
use keystead_store::{
    Error, ReadTx, WriteTx, devices,
    keybox_log::{self, NewEntry},
    keybox_passphrases, keys,
};
use ruma::{DeviceId, MilliSecondsSinceUnixEpoch, OwnedDeviceId, UserId};

use crate::context::{Ctx, Session};

/// Who does something to a user's devices, for the log.
#[derive(Clone, Copy, Debug)]
pub struct Actor<'a> {
    /// When.
    pub now: MilliSecondsSinceUnixEpoch,
    /// The address that the request came from; none for an administrator at the server.
    pub address: Option<IpAddr>,
    /// The device whose session it is, if it is one of the user's.
    pub device_id: Option<&'a DeviceId>,
}

impl<'a> Actor<'a> {
    /// The user who sent this request.
    pub fn of(ctx: &'a Ctx<Session>) -> Self {
        let device_id = Some(&*ctx.requester.device_id);
        Self { now: ctx.now, address: Some(ctx.client_addr), device_id }
    }

    /// Somebody who has given the password, but has no session yet.
    pub fn logging_in(ctx: &'a Ctx<()>) -> Self {
        Self { now: ctx.now, address: Some(ctx.client_addr), device_id: None }
    }

    /// The administrator, at the server itself.
    pub fn administrator(now: MilliSecondsSinceUnixEpoch) -> Self {
        Self { now, address: None, device_id: None }
    }

    /// What the log says of this actor and one of the user's KeyBoxes.
    pub fn on(&self, keybox_id: &DeviceId, name: Option<String>) -> OnKeyBox {
        OnKeyBox {
            keybox_id: keybox_id.to_string(),
            name,
            address: self.address.map(|address| address.to_string()),
            by: self.device_id.map(ToString::to_string),
        }
    }

    /// Writes something about one KeyBox into its owner's log, whose shard is locked.
    ///
    /// # Errors
    /// The shard is not locked; the database's own.
    pub async fn note(&self, tx: &WriteTx, user_id: &UserId, event: LogEvent) -> Result<(), Error> {
        keybox_log::append(tx, vec![NewEntry { user_id: user_id.to_owned(), event }], self.now).await
    }
}

/// What a user calls a KeyBox, and what its keys are known by.
#[derive(Clone, Debug)]
pub struct Named {
    /// The device's name, if it has one.
    pub name: Option<String>,
    /// The hash of its key set ([`rules::key_set_id`]).
    pub key_set_id: Option<String>,
}

/// Which of a user's devices are KeyBoxes.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn of_user(tx: &ReadTx, user_id: &UserId) -> Result<BTreeMap<OwnedDeviceId, Named>, Error> {
    let wanted = BTreeMap::from([(user_id.to_owned(), Vec::new())]);
    let mut keyboxes = BTreeMap::new();
    for device in keys::query(tx, &wanted).await? {
        let object = rules::parse_object(&device.json)
            .map_err(|error| Error::corrupt("device_keys", "json", device.device_id.as_str(), error))?;
        if rules::is_keybox(&object) {
            let key_set_id = rules::key_set_id(user_id, &device.device_id, &object);
            keyboxes.insert(device.device_id, Named { name: device.display_name, key_set_id });
        }
    }
    Ok(keyboxes)
}

/// Deletes devices of a user with all that belongs to them; the KeyBoxes among them are revoked: the log says so, and their keys are
/// never taken again. The shards of [`keys::device_list_shards`] are locked.
///
/// # Errors
/// A shard is not locked; the database's own.
pub async fn delete_devices(
    tx: &WriteTx,
    user_id: &UserId,
    device_ids: &[OwnedDeviceId],
    actor: Actor<'_>,
) -> Result<(), Error> {
    let mut entries = Vec::new();
    for keybox_id in keybox_passphrases::keyboxes_of(tx, user_id).await? {
        if device_ids.contains(&keybox_id) {
            let event = LogEvent::PassphraseDestroyed(actor.on(&keybox_id, None));
            entries.push(NewEntry { user_id: user_id.to_owned(), event });
        }
    }
    for (keybox_id, Named { name, key_set_id }) in of_user(tx, user_id).await? {
        if device_ids.contains(&keybox_id) {
            let event = LogEvent::KeyboxRevoked(actor.on(&keybox_id, name));
            entries.push(NewEntry { user_id: user_id.to_owned(), event });
            if let Some(key_set_id) = key_set_id {
                keys::note_revoked_key_set(tx, user_id, &keybox_id, &key_set_id, actor.now).await?;
            }
        }
    }
    keybox_log::append(tx, entries, actor.now).await?;
    devices::delete(tx, user_id, device_ids).await
}
