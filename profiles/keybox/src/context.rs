//! What a ciphertext belongs to. A message or a wrap that is moved to any other place does not open.

use crate::encoding::Fields;
use crate::resource_key::ResourceKeyId;

/// Where a content message belongs: under its MAC and its signature.
#[derive(Clone, Copy, Debug)]
pub struct MessageContext<'a> {
    /// Identifier of the suite.
    pub suite: &'a str,
    /// The room.
    pub room_id: &'a str,
    /// The resource key.
    pub key_id: &'a ResourceKeyId,
    /// The user who sent it.
    pub sender: &'a str,
    /// The KeyBox that sent it.
    pub sender_keybox: &'a str,
    /// How many messages that KeyBox had sealed with that resource key before: 0 for the first.
    pub counter: u64,
}

impl MessageContext<'_> {
    /// The context as bytes: label, suite, room, key id, sender, sending KeyBox, counter; see [`Fields`].
    pub fn to_bytes(&self) -> Vec<u8> {
        Fields::new("com.trustner.keybox.message")
            .text(self.suite)
            .text(self.room_id)
            .text(self.key_id.as_str())
            .text(self.sender)
            .text(self.sender_keybox)
            .number(self.counter)
            .into_vec()
    }
}

/// Where a wrapped resource key belongs: between which KeyBoxes, and for what.
#[derive(Clone, Copy, Debug)]
pub struct WrapContext<'a> {
    /// Identifier of the suite.
    pub suite: &'a str,
    /// The room.
    pub room_id: &'a str,
    /// The resource key.
    pub key_id: &'a ResourceKeyId,
    /// The user who wraps.
    pub sender: &'a str,
    /// The KeyBox that wraps.
    pub sender_keybox: &'a str,
    /// The user who may unwrap.
    pub recipient: &'a str,
    /// The KeyBox that may unwrap.
    pub recipient_keybox: &'a str,
}

impl WrapContext<'_> {
    /// The context as bytes: label, suite, room, key id, sender, sending KeyBox, recipient, receiving KeyBox.
    pub fn to_bytes(&self) -> Vec<u8> {
        Fields::new("com.trustner.keybox.wrap")
            .text(self.suite)
            .text(self.room_id)
            .text(self.key_id.as_str())
            .text(self.sender)
            .text(self.sender_keybox)
            .text(self.recipient)
            .text(self.recipient_keybox)
            .into_vec()
    }
}
