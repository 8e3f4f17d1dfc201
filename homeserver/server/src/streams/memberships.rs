//! The rooms of the users that this replica serves, and the other way round.

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use keystead_core::{
    room::{RoomEvent, membership_of},
    shard::{Shard, Shards},
};
use keystead_store::rooms;
use lru::LruCache;
use ruma::{
    OwnedRoomId, OwnedUserId, RoomId, UserId,
    events::{TimelineEventType, room::member::MembershipState},
};

/// How many users' rooms are kept.
const CAPACITY: NonZeroUsize = NonZeroUsize::MIN.saturating_add(49_999);

/// A user's newest membership of a room.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RoomMembership {
    /// `join`, `invite`, `leave`, `ban` or `knock`.
    pub membership: MembershipState,
    /// The position of the member event in the room's shard.
    pub position: i64,
    /// Whether the user has forgotten the room after leaving it.
    pub forgotten: bool,
}

/// The rooms that one user is, was or is invited to be in, by shard.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RoomsOfUser {
    cut: Shards,
    shards: Vec<RoomsInShard>,
}

/// Those of them whose streams lie in one shard.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RoomsInShard {
    rooms: HashMap<OwnedRoomId, RoomMembership>,
    newest: i64,
}

impl RoomsOfUser {
    fn none(cut: Shards) -> Self {
        Self { cut, shards: cut.room_shards().map(|_| RoomsInShard::default()).collect() }
    }

    /// What the user is to a room.
    pub fn get(&self, room_id: &RoomId) -> Option<&RoomMembership> {
        self.get_key_value(room_id).map(|(_, membership)| membership)
    }

    /// As [`RoomsOfUser::get`], with the room's id as it is kept here.
    pub fn get_key_value(&self, room_id: &RoomId) -> Option<(&OwnedRoomId, &RoomMembership)> {
        self.in_shard(self.cut.of_room(room_id))?.rooms.get_key_value(room_id)
    }

    /// Whether the user is joined to a room.
    pub fn is_joined(&self, room_id: &RoomId) -> bool {
        self.get(room_id).is_some_and(|room| room.membership == MembershipState::Join)
    }

    /// Those of one shard; `None` for a number that is not a shard's of rooms.
    pub fn in_shard(&self, shard: Shard) -> Option<&RoomsInShard> {
        self.shards.get(usize::try_from(shard).ok()?)
    }

    /// All, with their shards.
    pub fn by_shard(&self) -> impl Iterator<Item = (Shard, &RoomsInShard)> {
        self.cut.room_shards().zip(&self.shards)
    }

    /// All, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&OwnedRoomId, &RoomMembership)> {
        self.shards.iter().flat_map(RoomsInShard::iter)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.shards.iter().map(RoomsInShard::count).sum()
    }

    /// Whether the user shares a room with the user whose rooms the others are: is joined to one that the other is
    /// joined or invited to.
    pub fn share_with(&self, others: &Self) -> bool {
        let is_there = |room: &RoomMembership| {
            matches!(room.membership, MembershipState::Join | MembershipState::Invite)
        };
        if self.count() <= others.count() {
            let mut joined = self.iter().filter(|(_, room)| room.membership == MembershipState::Join);
            return joined.any(|(room_id, _)| others.get(room_id).is_some_and(is_there));
        }
        others.iter().any(|(room_id, room)| is_there(room) && self.is_joined(room_id))
    }

    fn insert(&mut self, room_id: OwnedRoomId, membership: RoomMembership) {
        let shard = usize::try_from(self.cut.of_room(&room_id)).unwrap_or_default();
        if let Some(shard) = self.shards.get_mut(shard) {
            shard.newest = shard.newest.max(membership.position);
            shard.rooms.insert(room_id, membership);
        }
    }
}

impl RoomsInShard {
    /// All, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&OwnedRoomId, &RoomMembership)> {
        self.rooms.iter()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.rooms.len()
    }

    /// The position of the membership that changed last; 0 if there is none.
    pub fn newest(&self) -> i64 {
        self.newest
    }
}

/// The memberships of users, by user and by room.
#[derive(Debug)]
pub struct Memberships {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    cut: Shards,
    users: LruCache<OwnedUserId, Cached>,
    /// The users of `users` who are joined to or invited to a room: whom an event of the room concerns here.
    rooms: HashMap<OwnedRoomId, HashSet<OwnedUserId>>,
    /// Counts what was put into `users`.
    loads: u64,
}

/// A load that has begun; what it reads counts only if nothing was dropped since.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Load(u64);

#[derive(Debug)]
struct Cached {
    rooms: Arc<RoomsOfUser>,
    /// False while the database is being read: what the tail tells meanwhile is kept and laid over it.
    complete: bool,
    /// From which load on the tail's news has been kept.
    since: Load,
}

impl Memberships {
    /// Knows of nobody yet.
    pub fn new(cut: Shards) -> Self {
        let inner = Inner { cut, users: LruCache::new(CAPACITY), rooms: HashMap::new(), loads: 0 };
        Self { inner: Mutex::new(inner) }
    }

    /// The rooms of a user, if they are here.
    pub fn get(&self, user_id: &UserId) -> Option<Arc<RoomsOfUser>> {
        self.lock().users.get(user_id).filter(|cached| cached.complete).map(|cached| cached.rooms.clone())
    }

    /// To be called before the user's rooms are read from the database: from now on the tail's news is kept for them.
    pub fn begin_load(&self, user_id: &UserId) -> Load {
        let mut inner = self.lock();
        if let Some(cached) = inner.users.peek(user_id) {
            return cached.since;
        }
        inner.loads += 1;
        let since = Load(inner.loads);
        let rooms = Arc::new(RoomsOfUser::none(inner.cut));
        inner.put(user_id.to_owned(), Cached { rooms, complete: false, since });
        since
    }

    /// Takes in what was read from the database; newer news from the tail stands. If what is known of the user was dropped
    /// while the database was read, the answer may be old by now, and is not kept.
    pub fn finish_load(
        &self,
        user_id: &UserId,
        load: Load,
        loaded: Vec<rooms::Membership>,
    ) -> Arc<RoomsOfUser> {
        let mut inner = self.lock();
        let is_kept = inner.users.peek(user_id).is_some_and(|cached| cached.since == load);
        let cached = if is_kept { inner.users.pop(user_id) } else { None };
        let mut rooms = match cached {
            Some(cached) => cached.rooms,
            None => Arc::new(RoomsOfUser::none(inner.cut)),
        };
        let map = Arc::make_mut(&mut rooms);
        for row in loaded {
            let membership = RoomMembership {
                membership: row.membership,
                position: row.position,
                forgotten: row.forgotten,
            };
            match map.get(&row.room_id) {
                Some(newer) if newer.position > membership.position => {}
                _ => {
                    map.insert(row.room_id, membership);
                }
            }
        }
        if is_kept {
            for (room_id, membership) in rooms.iter() {
                inner.index(user_id, room_id, &membership.membership);
            }
            inner.put(user_id.to_owned(), Cached { rooms: rooms.clone(), complete: true, since: load });
        }
        rooms
    }

    /// Takes in a member event of the stream.
    pub fn apply(&self, event: &RoomEvent) {
        let pdu = &event.pdu;
        let (TimelineEventType::RoomMember, Some(user_id)) = (&pdu.event_type, &pdu.state_key) else {
            return;
        };
        let Ok(user_id) = <&UserId>::try_from(user_id.as_str()) else { return };
        let mut inner = self.lock();
        let Some(cached) = inner.users.peek_mut(user_id) else { return };
        if cached.rooms.get(&pdu.room_id).is_some_and(|here| here.position >= event.position) {
            return;
        }
        let membership = membership_of(pdu);
        Arc::make_mut(&mut cached.rooms).insert(
            pdu.room_id.clone(),
            RoomMembership { membership: membership.clone(), position: event.position, forgotten: false },
        );
        inner.index(user_id, &pdu.room_id, &membership);
    }

    /// Drops what is known of a user; it is read again when it is next needed.
    pub fn forget_user(&self, user_id: &UserId) {
        self.lock().remove(user_id);
    }

    /// Calls `each` for every user here whom an event of the room concerns.
    pub fn for_each_user_of(&self, room_id: &RoomId, mut each: impl FnMut(&UserId)) {
        if let Some(users) = self.lock().rooms.get(room_id) {
            users.iter().for_each(|user| each(user));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn put(&mut self, user_id: OwnedUserId, cached: Cached) {
        if let Some((evicted, old)) = self.users.push(user_id.clone(), cached)
            && evicted != user_id
        {
            self.unindex(&evicted, &old.rooms);
        }
    }

    fn remove(&mut self, user_id: &UserId) {
        if let Some(old) = self.users.pop(user_id) {
            self.unindex(user_id, &old.rooms);
        }
    }

    fn index(&mut self, user_id: &UserId, room_id: &RoomId, membership: &MembershipState) {
        if matches!(membership, MembershipState::Join | MembershipState::Invite | MembershipState::Knock) {
            self.rooms.entry(room_id.to_owned()).or_default().insert(user_id.to_owned());
        } else {
            self.unindex_room(user_id, room_id);
        }
    }

    fn unindex(&mut self, user_id: &UserId, rooms: &RoomsOfUser) {
        for (room_id, _) in rooms.iter() {
            self.unindex_room(user_id, room_id);
        }
    }

    fn unindex_room(&mut self, user_id: &UserId, room_id: &RoomId) {
        if let Some(users) = self.rooms.get_mut(room_id) {
            users.remove(user_id);
            if users.is_empty() {
                self.rooms.remove(room_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ruma::{room_id, user_id};

    use super::*;

    fn row(membership: MembershipState) -> rooms::Membership {
        rooms::Membership { room_id: room_id!("!r:x").to_owned(), membership, position: 5, forgotten: false }
    }

    fn rooms(rooms: &[(&str, MembershipState)]) -> RoomsOfUser {
        let mut of_user = RoomsOfUser::none(Shards { rooms: 2 });
        for (room_id, membership) in rooms {
            let membership = RoomMembership { membership: membership.clone(), position: 1, forgotten: false };
            of_user.insert(OwnedRoomId::try_from(*room_id).unwrap(), membership);
        }
        of_user
    }

    #[test]
    fn who_is_joined_shares_a_room_with_whoever_is_joined_or_invited() {
        use MembershipState::{Invite, Join, Leave};
        let mine = rooms(&[("!a:x", Join), ("!b:x", Invite), ("!c:x", Leave), ("!d:x", Join)]);
        assert!(mine.share_with(&rooms(&[("!a:x", Join)])));
        assert!(mine.share_with(&rooms(&[("!a:x", Invite)])));
        assert!(!mine.share_with(&rooms(&[("!a:x", Leave)])));
        assert!(!mine.share_with(&rooms(&[("!b:x", Join), ("!c:x", Join)])), "the reader is not in there");
        let many = ["!e:x", "!f:x", "!g:x", "!h:x", "!a:x"].map(|room| (room, Join));
        assert!(mine.share_with(&rooms(&many)), "whoever has more rooms");
        assert!(!mine.share_with(&rooms(&many[..4])));
    }

    #[test]
    fn the_newest_membership_of_a_shard_is_known() {
        let mut of_user = rooms(&[("!a:x", MembershipState::Join)]);
        let left = RoomMembership { membership: MembershipState::Leave, position: 7, forgotten: false };
        of_user.insert(room_id!("!a:x").to_owned(), left);
        assert_eq!(of_user.count(), 1);
        assert_eq!(of_user.by_shard().map(|(_, rooms)| rooms.newest()).max(), Some(7));
    }

    #[test]
    fn what_is_read_while_the_user_is_dropped_is_not_kept() {
        let memberships = Memberships::new(Shards { rooms: 2 });
        let user = user_id!("@a:x");
        let load = memberships.begin_load(user);
        memberships.forget_user(user);
        assert_eq!(memberships.finish_load(user, load, vec![row(MembershipState::Join)]).count(), 1);
        assert!(memberships.get(user).is_none());

        let newer = memberships.begin_load(user);
        memberships.finish_load(user, load, vec![row(MembershipState::Join)]);
        assert!(memberships.get(user).is_none(), "an older load does not end a newer one");
        memberships.finish_load(user, newer, vec![row(MembershipState::Leave)]);
        let known = memberships.get(user).unwrap();
        assert_eq!(known.get(room_id!("!r:x")).unwrap().membership, MembershipState::Leave);
    }
}
