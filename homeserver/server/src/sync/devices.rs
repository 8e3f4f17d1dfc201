//! What a sync delivers to the device rather than to the user: to-device messages, device lists and key counts.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use http::StatusCode;
use keystead_core::token::SyncToken;
use keystead_store::{
    keys::{self, Device, DeviceKeyCounts},
    streams::{ToDeviceMessage, UserChange},
    to_device,
};
use lru::LruCache;
use ruma::{
    OneTimeKeyAlgorithm, OwnedDeviceId, OwnedUserId, UInt,
    api::client::sync::sync_events::v3::{Response, ToDevice},
    serde::Raw,
};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::{
    Sync,
    changes::{Changes, DeviceLists},
};
use crate::{http::error::ApiError, streams::Item};

/// How many messages one answer takes; the next sync goes on.
const MESSAGES_AN_ANSWER: usize = 100;
/// How many devices are remembered.
const DEVICES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(49_999);

/// What is known of devices without asking the database; kept right by the tail.
pub struct DeviceCaches {
    /// What may be in the database for devices. All that the tail hears of a device since it is in here is noted.
    inboxes: Mutex<LruCache<Device, Inbox>>,
    key_counts: Mutex<LruCache<OwnedUserId, Vec<(OwnedDeviceId, KeyCounts)>>>,
    /// Counts what voids `key_counts`, so that what was read before is not kept after.
    key_changes: AtomicU64,
}

/// The one-time keys that a device has left, and the fallback keys that nobody was given yet.
#[derive(Clone, Default)]
struct KeyCounts {
    one_time: BTreeMap<OneTimeKeyAlgorithm, UInt>,
    unused_fallback: Vec<OneTimeKeyAlgorithm>,
}

/// The positions of the oldest and the newest message that may still be in the database, if there may be any.
#[derive(Clone, Copy, Default)]
struct Inbox(Option<(i64, i64)>);

impl Inbox {
    fn add(&mut self, (oldest, newest): (i64, i64)) {
        self.0 = Some(self.0.map_or((oldest, newest), |(first, last)| (first.min(oldest), last.max(newest))));
    }

    /// Takes out what is at `position` and before it.
    fn remove_upto(&mut self, position: i64) {
        self.0 = self.0.filter(|(_, newest)| *newest > position);
        if let Some((oldest, _)) = &mut self.0 {
            *oldest = (*oldest).max(position + 1);
        }
    }
}

impl Default for DeviceCaches {
    fn default() -> Self {
        Self {
            inboxes: Mutex::new(LruCache::new(DEVICES)),
            key_counts: Mutex::new(LruCache::new(DEVICES)),
            key_changes: AtomicU64::new(0),
        }
    }
}

impl DeviceCaches {
    /// Takes in a row of the stream.
    pub fn hear(&self, item: &Item, position: i64) {
        match item {
            Item::ToDevice(message) => {
                let device = (message.user_id.clone(), message.device_id.clone());
                if let Some(inbox) = lock(&self.inboxes).peek_mut(&device) {
                    inbox.add((position, position));
                }
            }
            Item::UserChange(user_id, UserChange::OneTimeKeys | UserChange::DeviceList) => {
                self.key_changes.fetch_add(1, Ordering::SeqCst);
                lock(&self.key_counts).pop(user_id);
            }
            _ => {}
        }
    }

    /// Whether messages up to `position` may still be in the database.
    fn may_hold(&self, device: &Device, position: i64) -> bool {
        lock(&self.inboxes)
            .get(device)
            .is_none_or(|Inbox(held)| held.is_some_and(|(oldest, _)| oldest <= position))
    }

    /// Notes that the messages up to `position` are about to go. Returns whether it is known what there is after it. If it
    /// is not, whoever calls reads that from the database and adds it: what came before this call was not noted.
    fn empty(&self, device: &Device, position: i64) -> bool {
        let mut inboxes = lock(&self.inboxes);
        let known = inboxes.contains(device);
        inboxes.get_or_insert_mut(device.clone(), Inbox::default).remove_upto(position);
        known
    }

    /// Notes that the database has messages at these positions and between them, unless the device was forgotten meanwhile.
    fn add_stored(&self, device: &Device, extent: (i64, i64)) {
        if let Some(inbox) = lock(&self.inboxes).peek_mut(device) {
            inbox.add(extent);
        }
    }

    /// Notes that nothing is known of a device's messages.
    fn forget_inbox(&self, device: &Device) {
        lock(&self.inboxes).pop(device);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Serialize)]
struct ToDeviceEvent<'a> {
    #[serde(rename = "type")]
    message_type: &'a str,
    sender: &'a ruma::UserId,
    content: &'a RawValue,
}

impl Sync<'_> {
    /// The messages to this device. If there are more than one answer takes, the token ends behind the last one.
    ///
    /// > the client's `since` token acknowledges what came before it ([send-to-device messaging]).
    ///
    /// [send-to-device messaging]: https://spec.matrix.org/v1.19/client-server-api/#server-behaviour-4
    pub(super) async fn to_device(
        &self,
        changes: &mut Changes,
        upto: &mut SyncToken,
    ) -> Result<ToDevice, ApiError> {
        let since = self.request.since.as_ref().map_or(0, |since| since.user);
        let since = self.request.delivered.map_or(since, |delivered| delivered.max(since));
        self.acknowledge(since).await?;
        let mut messages = match changes.to_device.take() {
            Some(messages) => messages,
            None => self.stored_messages(since).await?,
        };
        if messages.len() > MESSAGES_AN_ANSWER {
            messages.truncate(MESSAGES_AN_ANSWER);
            upto.user = messages.last().map_or(upto.user, |(position, _)| *position);
        }
        let mut answer = ToDevice::new();
        for (_, message) in &messages {
            answer.events.push(to_device_event(message)?);
        }
        Ok(answer)
    }

    async fn stored_messages(&self, since: i64) -> Result<Vec<(i64, Arc<ToDeviceMessage>)>, ApiError> {
        let session = &self.request.session;
        let upto = self.upto.user;
        let limit = u64::try_from(MESSAGES_AN_ANSWER + 1).unwrap_or(u64::MAX);
        let messages = self
            .app
            .store
            .read_one("sync_to_device", |tx| async move {
                to_device::pending(&tx, (&session.user_id, &session.device_id), (since, upto), limit).await
            })
            .await?;
        Ok(messages.into_iter().map(|(position, message)| (position, Arc::new(message))).collect())
    }

    /// Deletes the messages that the client has shown to have, unless they are known to be gone.
    async fn acknowledge(&self, since: i64) -> Result<(), ApiError> {
        let session = &self.request.session;
        let device = (session.user_id.clone(), session.device_id.clone());
        if since == 0 || !self.app.devices.may_hold(&device, since) {
            return Ok(());
        }
        // Noted first, so that a message which comes meanwhile is noted after it.
        let known = self.app.devices.empty(&device, since);
        if let Err(error) = self.remove_acknowledged(&device, since, known).await {
            self.app.devices.forget_inbox(&device);
            // What there is no room to delete now, on the disk or among what waits for that since thousands have come at once, is deleted at
            // another sync. Nobody gets it twice: the token stands behind it.
            if ![StatusCode::INSUFFICIENT_STORAGE, StatusCode::TOO_MANY_REQUESTS].contains(&error.status()) {
                return Err(error);
            }
        }
        Ok(())
    }

    async fn remove_acknowledged(&self, device: &Device, upto: i64, known: bool) -> Result<(), ApiError> {
        if !known {
            let Some((oldest, newest)) = self.app.lookups.inboxes.find(device.clone()).await? else {
                return Ok(());
            };
            if newest > upto {
                self.app.devices.add_stored(device, (oldest.max(upto + 1), newest));
            }
            if oldest > upto {
                return Ok(());
            }
        }
        self.app.acknowledgements.submit((device.0.clone(), device.1.clone(), upto)).await
    }

    /// Whose devices the client has to ask for again, and whose it need not follow any longer.
    pub(super) async fn device_lists(
        &self,
        lists: DeviceLists,
        response: &mut Response,
    ) -> Result<(), ApiError> {
        let Some(since) = self.request.since.as_ref() else { return Ok(()) };
        let user_id = self.user_id();
        let delta = match lists {
            DeviceLists::Known(delta) => delta,
            DeviceLists::Unknown => {
                let delta = |tx| async move { keys::device_list_delta(&tx, user_id, since).await };
                self.app.store.read("sync_device_lists", delta).await?
            }
        };
        response.device_lists.changed = delta.changed.into_iter().collect();
        response.device_lists.left = delta.left.into_iter().collect();
        Ok(())
    }

    /// How many one-time keys the device has left, and which fallback keys are unused: in every answer.
    pub(super) async fn key_counts(&self, response: &mut Response) -> Result<(), ApiError> {
        let session = &self.request.session;
        let caches = &self.app.devices;
        let cached = lock(&caches.key_counts)
            .get(&session.user_id)
            .and_then(|devices| devices.iter().find(|(device_id, _)| *device_id == session.device_id))
            .map(|(_, counts)| counts.clone());
        let counts = if let Some(counts) = cached {
            counts
        } else {
            let changes = caches.key_changes.load(Ordering::SeqCst);
            let counts = self.load_key_counts().await?;
            let mut cache = lock(&caches.key_counts);
            if caches.key_changes.load(Ordering::SeqCst) == changes {
                let devices = cache.get_or_insert_mut(session.user_id.clone(), Vec::new);
                devices.push((session.device_id.clone(), counts.clone()));
            }
            counts
        };
        response.device_one_time_keys_count = counts.one_time;
        response.device_unused_fallback_key_types = Some(counts.unused_fallback);
        Ok(())
    }
}

impl Sync<'_> {
    async fn load_key_counts(&self) -> Result<KeyCounts, ApiError> {
        let session = &self.request.session;
        let device = (session.user_id.clone(), session.device_id.clone());
        let DeviceKeyCounts { one_time, unused_fallback } =
            self.app.lookups.key_counts.find(device).await?.unwrap_or_default();
        let mut counts = KeyCounts {
            one_time: one_time
                .into_iter()
                .map(|(algorithm, count)| (algorithm.into(), UInt::new_saturating(count)))
                .collect(),
            unused_fallback: unused_fallback.into_iter().map(Into::into).collect(),
        };
        // A client that finds no number takes it for unchanged, not for none.
        counts.one_time.entry(OneTimeKeyAlgorithm::SignedCurve25519).or_default();
        Ok(counts)
    }
}

fn to_device_event<T>(message: &ToDeviceMessage) -> Result<Raw<T>, ApiError> {
    let content = serde_json::from_str(&message.content).map_err(ApiError::internal)?;
    let event = ToDeviceEvent { message_type: &message.message_type, sender: &message.sender, content };
    Ok(Raw::from_json(to_raw_value(&event).map_err(ApiError::internal)?))
}

#[cfg(test)]
mod tests {
    use ruma::{device_id, user_id};

    use super::*;

    fn device() -> Device {
        (user_id!("@a:x").to_owned(), device_id!("D").to_owned())
    }

    fn hear(caches: &DeviceCaches, position: i64) {
        let (user_id, device_id) = device();
        let message = ToDeviceMessage {
            user_id,
            device_id,
            sender: user_id!("@s:x").to_owned(),
            message_type: "m.x".to_owned(),
            content: "{}".to_owned(),
        };
        caches.hear(&Item::ToDevice(Arc::new(message)), position);
    }

    #[test]
    fn a_message_that_came_while_nothing_was_known_is_found_in_the_database() {
        let caches = DeviceCaches::default();
        assert!(caches.may_hold(&device(), 5), "nothing is known");
        hear(&caches, 7);
        assert!(!caches.empty(&device(), 5), "whoever empties must look for the message at 7");
        hear(&caches, 9);
        caches.add_stored(&device(), (7, 8));
        assert!(!caches.may_hold(&device(), 6));
        assert!(caches.may_hold(&device(), 7));

        assert!(caches.empty(&device(), 8), "all is known from now on");
        assert!(!caches.may_hold(&device(), 8));
        assert!(caches.may_hold(&device(), 9), "the one that was heard meanwhile is left");
    }

    #[test]
    fn a_message_that_came_behind_an_older_one_is_not_lost() {
        let caches = DeviceCaches::default();
        caches.empty(&device(), 1);
        hear(&caches, 3);
        // While a sync that began at 3 is under way, before it has acknowledged.
        hear(&caches, 4);
        assert!(caches.may_hold(&device(), 3));
        assert!(caches.empty(&device(), 3));
        assert!(!caches.may_hold(&device(), 3));
        assert!(caches.may_hold(&device(), 4));
        assert!(caches.empty(&device(), 4));
        assert!(!caches.may_hold(&device(), 100));
    }

    #[test]
    fn after_a_failure_nothing_is_known() {
        let caches = DeviceCaches::default();
        caches.empty(&device(), 1);
        caches.forget_inbox(&device());
        caches.add_stored(&device(), (2, 2));
        assert!(caches.may_hold(&device(), 1));
    }
}
