//! Following the streams: what this replica keeps in memory, and how it stays right.
//!
//! The [`Tail`] reads every shard's new rows once, however many users wait for them, keeps the newest in a
//! [`Ring`](ring::Ring), brings the caches up to date and wakes exactly the syncs concerned. The [`Fence`] makes a
//! request wait until the tail has seen everything that was committed before the request came.

mod fence;
mod freshness;
mod memberships;
mod ring;
mod room_states;
mod tail;
mod timelines;
mod typing;
mod waiters;

pub use self::{
    fence::Fence,
    memberships::{RoomMembership, RoomsInShard, RoomsOfUser},
    ring::{Entry, Item, Whose},
    tail::{Listener, Tail},
    typing::Typing,
    waiters::Waiter,
};
