//! Rooms: how events get into them, and who may see what is in them.

pub mod aliases;
mod batch;
mod client_events;
mod messages;
mod own_member;
mod placement;
mod visibility;
mod writer;

pub(crate) use self::own_member::set_own_member;
pub use self::{
    client_events::{Form, Reader, client_event, client_events, client_state},
    visibility::RoomView,
    writer::{Alongside, BatchObserver, Target, Write, WriteError, Writer, Written},
};
