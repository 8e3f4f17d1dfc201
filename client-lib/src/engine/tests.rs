//! KeyBoxes wired together in memory, over a stand-in for the homeserver that keeps rooms, key sets and to-device queues.

mod closing;
mod contacts;
mod exchange;
mod identity;
mod interchange;
mod policy;
mod recovery;
mod refusals;
mod rotation;
mod suites;
mod world;
