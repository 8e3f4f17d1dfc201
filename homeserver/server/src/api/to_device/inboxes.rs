//! How many messages wait in inboxes, remembered: to count a hundred takes longer than to add one.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
};

use keystead_store::{keys::Device, to_device::CROWDED};
use lru::LruCache;

use crate::streams::Item;

/// How many inboxes are remembered.
const INBOXES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(49_999);

/// What is known of inboxes without asking the database; the tail tells of what comes through other replicas.
///
/// Nobody tells of what is received and goes: there may be less than is known of, never more.
pub struct InboxCounts(Mutex<LruCache<Device, Count>>);

#[derive(Default)]
struct Count {
    /// How many there were when they were counted; `None` while they are.
    counted: Option<u64>,
    /// How many have come since, or since the counting began.
    since: u64,
}

impl Default for InboxCounts {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(INBOXES)))
    }
}

impl InboxCounts {
    /// Takes in a row of the stream.
    pub fn hear(&self, item: &Item) {
        if let Item::ToDevice(message) = item {
            let device = (message.user_id.clone(), message.device_id.clone());
            if let Some(count) = self.lock().peek_mut(&device) {
                count.since += 1;
            }
        }
    }

    /// Those of `devices` whose messages have to be counted: all others have fewer than [`CROWDED`]. What comes from now on is
    /// noted.
    pub(super) fn begin<'a>(&self, devices: impl Iterator<Item = &'a Device>) -> Vec<&'a Device> {
        let mut counts = self.lock();
        let must_be_counted = |device: &&Device| {
            let count = counts.get_or_insert_mut((*device).clone(), Count::default);
            let has_room = count.counted.is_some_and(|counted| counted + count.since < CROWDED);
            if !has_room {
                *count = Count::default();
            }
            !has_room
        };
        devices.filter(must_be_counted).collect()
    }

    /// Notes how many were counted, unless the inbox was forgotten meanwhile.
    pub(super) fn finish(&self, counted: &BTreeMap<Device, u64>) {
        let mut counts = self.lock();
        for (device, counted) in counted {
            if let Some(count) = counts.peek_mut(device) {
                count.counted = Some(*counted);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LruCache<Device, Count>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{slice, sync::Arc};

    use keystead_store::streams::ToDeviceMessage;
    use ruma::user_id;

    use super::*;

    #[test]
    fn what_comes_is_counted_with_what_was_there() {
        let inboxes = InboxCounts::default();
        let device: Device = (user_id!("@a:x").to_owned(), "D".into());
        let hear = |device_id: &str| {
            inboxes.hear(&Item::ToDevice(Arc::new(ToDeviceMessage {
                user_id: device.0.clone(),
                device_id: device_id.into(),
                sender: user_id!("@s:x").to_owned(),
                message_type: "m.x".to_owned(),
                content: "{}".to_owned(),
            })));
        };
        let has_room = || inboxes.begin(slice::from_ref(&device).iter()).is_empty();
        let count = |waiting| inboxes.finish(&BTreeMap::from([(device.clone(), waiting)]));

        hear("D");
        assert!(!has_room(), "nobody has counted");
        // One that comes while the others are counted may be among them or not.
        hear("D");
        count(CROWDED - 3);
        assert!(has_room());
        hear("E");
        hear("D");
        assert!(has_room());
        hear("D");
        assert!(!has_room());
        assert!(!has_room(), "it is being counted");
        count(CROWDED);
        assert!(!has_room());
        count(0);
        assert!(has_room(), "they were received");
    }
}
