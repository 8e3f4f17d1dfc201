//! Rooms: how events get into them, and who may see what is in them.

mod batch;
mod visibility;
mod writer;

pub use self::{
    visibility::RoomView,
    writer::{Alongside, BatchObserver, Target, Write, WriteError, Writer, Written},
};
