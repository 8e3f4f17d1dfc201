//! What happened between the token and how far the sync reaches, for this user.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use keystead_core::{room::RoomEvent, shard::Shard};
use keystead_store::{
    receipts, rooms,
    streams::{AccountData, Receipt, ToDeviceMessage, UserChange},
};
use ruma::{OwnedRoomId, events::room::member::MembershipState};

use super::{Sync, load_account_data};
use crate::{
    http::error::ApiError,
    streams::{Entry, Item},
};

/// The news, as far as it is known without looking at rooms.
#[derive(Default)]
pub(super) struct Changes {
    /// The joined rooms with news.
    pub(super) rooms: HashMap<OwnedRoomId, RoomChanges>,
    /// The account data that was written, of the account and of rooms; oldest first.
    pub(super) account_data: Vec<Arc<AccountData>>,
    /// The messages to this device with their positions, if they are all in memory.
    pub(super) to_device: Option<Vec<(i64, Arc<ToDeviceMessage>)>>,
    /// Whether somebody's device list may have changed, or whose devices the user has to know.
    pub(super) device_lists_changed: bool,
    /// Whether the user's one-time keys or sessions changed.
    pub(super) own_account_changed: bool,
}

/// The news of one room.
#[derive(Default)]
pub(super) struct RoomChanges {
    /// All its new events, oldest first; `None` if they have to be read from the database.
    pub(super) events: Option<Vec<Arc<RoomEvent>>>,
    /// The receipts that moved.
    pub(super) receipts: Vec<Arc<Receipt>>,
}

impl Changes {
    pub(super) async fn collect(sync: &Sync<'_>) -> Result<Self, ApiError> {
        let mut changes = Self::default();
        let Some(since) = &sync.request.since else {
            changes.account_data = load_account_data(sync, None).await?;
            changes.collect_initial_receipts(sync).await?;
            return Ok(changes);
        };
        let shards = sync.app.tail.shards();
        let bounds = since.rooms.iter().zip(&sync.upto.rooms);
        for (shard, (after, upto)) in shards.room_shards().zip(bounds) {
            if !changes.collect_recent(sync, shard, *after, *upto) {
                changes.collect_old_rooms(sync, shard, *after, *upto).await?;
            }
        }
        changes.to_device = Some(Vec::new());
        let own_shard = shards.of_user(sync.user_id());
        if !changes.collect_recent(sync, own_shard, since.user, sync.upto.user) {
            changes.to_device = None;
            changes.own_account_changed = true;
            changes.device_lists_changed = true;
            changes.account_data = load_account_data(sync, Some(since.user)).await?;
            changes.collect_old_private_receipts(sync, since.user).await?;
        }
        Ok(changes)
    }

    /// From the tail's memory; false if it does not reach back so far.
    fn collect_recent(&mut self, sync: &Sync<'_>, shard: Shard, after: i64, upto: i64) -> bool {
        after >= upto || sync.app.tail.visit_recent(shard, after, upto, |entry| self.take(sync, entry))
    }

    fn take(&mut self, sync: &Sync<'_>, entry: &Entry) {
        let (user_id, device_id) = (sync.user_id(), &sync.request.session.device_id);
        let is_joined = |room_id| {
            sync.rooms.get(room_id).is_some_and(|membership| membership.membership == MembershipState::Join)
        };
        match &entry.item {
            Item::Event(event) if is_joined(&event.pdu.room_id) => {
                self.device_lists_changed |=
                    event.pdu.event_type == ruma::events::TimelineEventType::RoomMember;
                let room = self.rooms.entry(event.pdu.room_id.clone()).or_default();
                room.events.get_or_insert_default().push(event.clone());
            }
            // Leaving a room ends the need to know the devices of those who are in it.
            Item::Event(event) if event.pdu.state_key.as_deref() == Some(user_id.as_str()) => {
                self.device_lists_changed = true;
            }
            Item::Receipt(receipt) if is_joined(&receipt.room_id) => {
                let is_private = receipt.receipt_type == "m.read.private";
                if !is_private || receipt.user_id == *user_id {
                    let room = self.rooms.entry(receipt.room_id.clone()).or_default();
                    room.events.get_or_insert_default();
                    room.receipts.push(receipt.clone());
                }
            }
            Item::UserChange(_, UserChange::DeviceList) => self.device_lists_changed = true,
            Item::UserChange(changed, _) => self.own_account_changed |= changed == user_id,
            Item::ToDevice(message) if message.user_id == *user_id && message.device_id == *device_id => {
                if let Some(messages) = &mut self.to_device {
                    messages.push((entry.position, message.clone()));
                }
            }
            Item::AccountData(data) if data.user_id == *user_id => self.account_data.push(data.clone()),
            _ => {}
        }
    }

    /// The rooms of a shard with news that is no longer in memory.
    async fn collect_old_rooms(
        &mut self,
        sync: &Sync<'_>,
        shard: Shard,
        after: i64,
        upto: i64,
    ) -> Result<(), ApiError> {
        let user_id = sync.user_id();
        let of_shard: Vec<OwnedRoomId> = sync
            .rooms
            .iter()
            .filter(|(room_id, membership)| {
                membership.membership == MembershipState::Join
                    && sync.app.tail.shards().of_room(room_id) == shard
            })
            .map(|(room_id, _)| room_id.clone())
            .collect();
        let of_shard = &of_shard;
        let (changed, moved) = sync
            .app
            .store
            .read("sync_old_rooms", |tx| async move {
                let changed = rooms::with_news(&tx, user_id, shard, after).await?;
                let room_ids: Vec<_> = of_shard.iter().map(AsRef::as_ref).collect();
                let moved = receipts::in_rooms(&tx, user_id, &room_ids, after, upto).await?;
                Ok::<_, keystead_store::Error>((changed, moved))
            })
            .await?;
        self.device_lists_changed = true;
        for room_id in changed {
            self.rooms.entry(room_id).or_default().events = None;
        }
        self.add_receipts(
            moved.into_iter().filter(|receipt| receipt.receipt_type != "m.read.private"),
            false,
        );
        Ok(())
    }

    async fn collect_old_private_receipts(&mut self, sync: &Sync<'_>, after: i64) -> Result<(), ApiError> {
        let (user_id, upto) = (sync.user_id(), sync.upto.user);
        let moved = sync
            .app
            .store
            .read_one("sync_private_receipts", |tx| async move {
                receipts::private_changed(&tx, user_id, after, upto).await
            })
            .await?;
        self.add_receipts(moved, false);
        Ok(())
    }

    async fn collect_initial_receipts(&mut self, sync: &Sync<'_>) -> Result<(), ApiError> {
        let user_id = sync.user_id();
        let joined: HashSet<&OwnedRoomId> = sync
            .wanted_rooms()
            .filter(|(_, membership)| membership.membership == MembershipState::Join)
            .map(|(room_id, _)| room_id)
            .collect();
        let joined = &joined;
        let all = sync
            .app
            .store
            .read_one("sync_receipts", |tx| async move {
                let room_ids: Vec<_> = joined.iter().map(|room_id| room_id.as_ref()).collect();
                receipts::in_rooms(&tx, user_id, &room_ids, 0, i64::MAX).await
            })
            .await?;
        self.add_receipts(all, true);
        Ok(())
    }

    /// `unread`: whether the rooms' events have yet to be read from the database.
    fn add_receipts(&mut self, receipts: impl IntoIterator<Item = Receipt>, unread: bool) {
        for receipt in receipts {
            let room = self
                .rooms
                .entry(receipt.room_id.clone())
                .or_insert_with(|| RoomChanges { events: (!unread).then(Vec::new), receipts: Vec::new() });
            room.receipts.push(Arc::new(receipt));
        }
    }
}
