//! What happened between the token and how far the sync reaches, for this user.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use keystead_core::{
    room::{RoomEvent, membership_of},
    shard::Shard,
};
use keystead_store::{
    keys::DeviceListDelta,
    receipts, rooms,
    streams::{AccountData, Receipt, ToDeviceMessage, UserChange},
};
use ruma::{
    OwnedRoomId, OwnedUserId, UserId,
    events::{TimelineEventType, room::member::MembershipState},
};

use super::{Sync, load_account_data};
use crate::{
    http::error::ApiError,
    streams::{Entry, Item, RoomsInShard, Whose},
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
    /// Whose devices changed, or came to be or ceased to be of interest.
    pub(super) device_lists: DeviceLists,
    /// Who has come or gone, and who has come to share a room with the user; if `device_lists` are known, so is this.
    pub(super) presence: BTreeSet<OwnedUserId>,
    /// Whether the user's one-time keys or sessions changed.
    pub(super) own_account_changed: bool,
}

/// Whose devices the client has to ask for again, and whose it need not follow any longer.
pub(super) enum DeviceLists {
    /// These, and no others.
    Known(DeviceListDelta),
    /// The database has to be asked.
    Unknown,
}

impl Default for DeviceLists {
    fn default() -> Self {
        Self::Known(DeviceListDelta::default())
    }
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
        for ((shard, rooms), (after, upto)) in sync.rooms.by_shard().zip(bounds) {
            if !changes.collect_recent(sync, shard, (*after, *upto), Whose::Rooms(rooms)) {
                changes.collect_old_rooms(sync, shard, *after, *upto).await?;
            }
        }
        changes.to_device = Some(Vec::new());
        let own_shard = shards.of_user(sync.user_id());
        let own = Whose::User(sync.user_id());
        if !changes.collect_recent(sync, own_shard, (since.user, sync.upto.user), own) {
            changes.to_device = None;
            changes.own_account_changed = true;
            changes.device_lists = DeviceLists::Unknown;
            changes.account_data = load_account_data(sync, Some(since.user)).await?;
            changes.collect_old_private_receipts(sync, since.user).await?;
        }
        Ok(changes)
    }

    /// From the tail's memory; false if it does not reach back so far.
    fn collect_recent(
        &mut self,
        sync: &Sync<'_>,
        shard: Shard,
        (after, upto): (i64, i64),
        whose: Whose<'_>,
    ) -> bool {
        after >= upto
            || sync.app.tail.visit_recent(shard, (after, upto), whose, |entry| self.take(sync, shard, entry))
    }

    fn take(&mut self, sync: &Sync<'_>, shard: Shard, entry: &Entry) {
        let (user_id, device_id) = (sync.user_id(), &sync.request.session.device_id);
        match &entry.item {
            Item::Event(event) if sync.rooms.is_joined(&event.pdu.room_id) => {
                self.take_member(sync, event);
                let room = self.rooms.entry(event.pdu.room_id.clone()).or_default();
                room.events.get_or_insert_default().push(event.clone());
            }
            // Leaving a room ends the need to know the devices of those who are in it.
            Item::Event(event) if event.pdu.state_key.as_deref() == Some(user_id.as_str()) => {
                self.device_lists = DeviceLists::Unknown;
            }
            Item::Receipt(receipt)
                if sync.rooms.is_joined(&receipt.room_id)
                    && (!receipt.is_private() || receipt.user_id == *user_id) =>
            {
                self.add_receipt(receipt.clone(), false);
            }
            Item::UserChange(changed, UserChange::DeviceList) => self.take_device_list(sync, shard, changed),
            // To oneself it is no news.
            Item::UserChange(changed, UserChange::Presence) if changed == user_id => {}
            Item::UserChange(changed, UserChange::Presence) => drop(self.presence.insert(changed.clone())),
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

    /// What the change of a user's devices, noted in this shard, means to the reader.
    fn take_device_list(&mut self, sync: &Sync<'_>, shard: Shard, changed: &UserId) {
        let DeviceLists::Known(delta) = &mut self.device_lists else { return };
        if changed == sync.user_id() {
            // It stands in the own shard whatever rooms there are.
            if !sync.app.tail.shards().is_room_shard(shard) {
                delta.changed.insert(changed.to_owned());
            }
            return;
        }
        match sync.app.tail.share_room(&sync.rooms, changed) {
            Some(true) => drop(delta.changed.insert(changed.to_owned())),
            Some(false) => {}
            None => self.device_lists = DeviceLists::Unknown,
        }
    }

    /// What an event of a room that the reader is in means for whose devices it has to know.
    fn take_member(&mut self, sync: &Sync<'_>, event: &RoomEvent) {
        let DeviceLists::Known(delta) = &mut self.device_lists else { return };
        let (TimelineEventType::RoomMember, Some(member)) = (&event.pdu.event_type, &event.pdu.state_key)
        else {
            return;
        };
        let Ok(member) = OwnedUserId::try_from(member.as_str()) else { return };
        if member == *sync.user_id() {
            self.device_lists = DeviceLists::Unknown;
            return;
        }
        match membership_of(&event.pdu) {
            MembershipState::Join => {
                delta.left.remove(&member);
                self.presence.insert(member.clone());
                delta.changed.insert(member);
            }
            MembershipState::Leave | MembershipState::Ban => {
                match sync.app.tail.share_room(&sync.rooms, &member) {
                    Some(true) => {}
                    Some(false) => {
                        delta.changed.remove(&member);
                        delta.left.insert(member);
                    }
                    None => self.device_lists = DeviceLists::Unknown,
                }
            }
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
            .in_shard(shard)
            .into_iter()
            .flat_map(RoomsInShard::iter)
            .filter(|(_, membership)| membership.membership == MembershipState::Join)
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
        self.device_lists = DeviceLists::Unknown;
        for room_id in changed {
            self.rooms.entry(room_id).or_default().events = None;
        }
        self.add_receipts(moved.into_iter().filter(|receipt| !receipt.is_private()), false);
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
        receipts.into_iter().for_each(|receipt| self.add_receipt(Arc::new(receipt), unread));
    }

    /// What is known of the room's events stays as it is: a private receipt may be in memory where they are not.
    fn add_receipt(&mut self, receipt: Arc<Receipt>, unread: bool) {
        let room = self
            .rooms
            .entry(receipt.room_id.clone())
            .or_insert_with(|| RoomChanges { events: (!unread).then(Vec::new), receipts: Vec::new() });
        room.receipts.push(receipt);
    }
}
