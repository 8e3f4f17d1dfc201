//! Rooms: how events get into them, and who may see what is in them.

pub mod aliases;
mod batch;
mod client_events;
mod erasure;
mod membership_history;
mod messages;
mod own_member;
mod parents;
mod placement;
mod relations;
mod visibility;
mod writer;

pub(crate) use self::erasure::{Erased, may_be_erased};
pub(crate) use self::own_member::set_own_member;
pub use self::{
    client_events::{Form, Reader, client_event, client_events, client_state},
    membership_history::MembershipHistory,
    parents::Parents,
    visibility::RoomView,
    writer::{Alongside, BatchObserver, Target, Write, WriteError, Writer, Written},
};
