//! What a KeyBox did or noticed by itself: for the person's log, and for programs.

use serde::Serialize;

use keystead_keybox::key_message::WithheldCode;

use super::{KeyBoxAddress, KeyRef};

/// Something worth telling. Never holds a key or content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "notice", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Notice {
    /// The policy is to ask: a person has to decide whether a KeyBox gets resource keys.
    ApprovalNeeded {
        /// Names the decision.
        id: u64,
        /// The room.
        room_id: String,
        /// Who would get the keys.
        keybox: KeyBoxAddress,
    },
    /// The backup that the recovery key opens was removed or replaced elsewhere: this KeyBox does not add to it any more.
    BackupEnded {
        /// The server's error code.
        errcode: String,
    },
    /// The server shows a step that closes or opens a room, and that is not what it should be. What held before still holds.
    ClosingRefused {
        /// The room.
        room_id: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Events that a sync left out could not be read: the server refused.
    GapLeft {
        /// The room.
        room_id: String,
        /// The server's error code.
        errcode: String,
    },
    /// The server shows another identity for a user than before. Nothing is sent to them until a person accepts it.
    IdentityChanged {
        /// Whose.
        user_id: String,
    },
    /// The private keys of the account's identity came from another of its KeyBoxes.
    IdentityReceived {
        /// Which.
        keybox: KeyBoxAddress,
    },
    /// The private keys of the account's identity were sent to another of its KeyBoxes.
    IdentityShared {
        /// Which.
        keybox: KeyBoxAddress,
    },
    /// This KeyBox's user was invited to a room.
    Invited {
        /// The room.
        room_id: String,
        /// Who invited.
        inviter: Option<String>,
    },
    /// A question for a resource key went out.
    KeyAsked {
        /// The missing key.
        key: KeyRef,
        /// Who was asked.
        keyboxes: Vec<KeyBoxAddress>,
    },
    /// Another KeyBox has confirmed that a resource key arrived.
    KeyConfirmed {
        /// The key.
        key: KeyRef,
        /// Who has it now.
        keybox: KeyBoxAddress,
    },
    /// A resource key was wrapped for another KeyBox and will be sent.
    KeyGiven {
        /// The key.
        key: KeyRef,
        /// Who gets it.
        keybox: KeyBoxAddress,
    },
    /// This KeyBox made a new resource key.
    KeyMade {
        /// The key.
        key: KeyRef,
    },
    /// A resource key arrived and opened.
    KeyReceived {
        /// The key.
        key: KeyRef,
        /// Who sent it.
        keybox: KeyBoxAddress,
    },
    /// A question for a resource key was refused, with what it was answered.
    KeyRefused {
        /// The key.
        key: KeyRef,
        /// Who asked.
        keybox: KeyBoxAddress,
        /// What they were told.
        code: WithheldCode,
    },
    /// The server did not take a resource key for a KeyBox: its user is not in the room.
    KeyUndeliverable {
        /// The key.
        key: KeyRef,
        /// Who did not get it.
        keybox: KeyBoxAddress,
        /// The server's error code.
        errcode: String,
    },
    /// Another KeyBox will not send a resource key.
    KeyWithheld {
        /// The key.
        key: KeyRef,
        /// Who answered.
        keybox: KeyBoxAddress,
        /// Why.
        code: WithheldCode,
    },
    /// A room is closed, and a KeyBox of a member was not there when that was done: it gets no keys until a moderator approves it.
    KeyBoxOutside {
        /// The room.
        room_id: String,
        /// Which.
        keybox: KeyBoxAddress,
    },
    /// A KeyBox is no longer on the server.
    KeyBoxGone {
        /// Which.
        keybox: KeyBoxAddress,
    },
    /// A KeyBox that was gone is shown again, with the same keys: it does not count as verified any more.
    KeyBoxReturned {
        /// Which.
        keybox: KeyBoxAddress,
    },
    /// A key message was dropped.
    KeyMessageDropped {
        /// Who sent it, by the server's word.
        sender: String,
        /// Its event type.
        event_type: String,
        /// Why.
        reason: String,
    },
    /// The server shows other keys for a KeyBox than before. Nothing is sent to its owner until a person accepts them.
    KeySetChanged {
        /// Which.
        keybox: KeyBoxAddress,
    },
    /// A published key set breaks the rules and is ignored.
    InvalidKeySet {
        /// Which.
        keybox: KeyBoxAddress,
        /// Why.
        reason: String,
    },
    /// A message was refused: altered, forged, or posted again.
    MessageRefused {
        /// The room.
        room_id: String,
        /// The event.
        event_id: String,
        /// Why.
        reason: String,
    },
    /// A KeyBox was seen for the first time.
    NewKeyBox {
        /// Which.
        keybox: KeyBoxAddress,
    },
    /// The account has a KeyBox that it did not have before: a person should know whether that is their own doing.
    NewOwnKeyBox {
        /// Which.
        keybox: KeyBoxAddress,
    },
    /// A KeyBox of the account is no longer on the server: a person should know whether that is their own doing.
    OwnKeyBoxGone {
        /// Which.
        keybox: KeyBoxAddress,
    },
    /// A KeyBox of the account came and went while this one was away, as the server's log says: a person should know whether that was their own doing.
    OwnKeyBoxPassed {
        /// Which.
        keybox: KeyBoxAddress,
        /// When it was revoked or logged out, by the server's clock, in milliseconds since the Unix epoch.
        revoked_at: u64,
    },
    /// A room was closed or opened, or one more KeyBox was let into a closed one.
    RoomClosing {
        /// The room.
        room_id: String,
        /// Whether it is closed now.
        closed: bool,
        /// Who did it.
        by: KeyBoxAddress,
        /// How many KeyBoxes get the keys of the closed room.
        keyboxes: usize,
    },
    /// A new resource key was made without this KeyBox of a member: it does not speak the room's suite, and will not read
    /// what is sealed with the key.
    SuiteNotSpoken {
        /// The key.
        key: KeyRef,
        /// Which.
        keybox: KeyBoxAddress,
    },
    /// A room has gone to a better suite.
    SuiteUpgraded {
        /// The room.
        room_id: String,
        /// Identifier of the suite.
        suite: String,
    },
    /// Somebody tried to take a room's encryption back, or to weaken it; it stays as it was.
    SuiteDowngrade {
        /// The room.
        room_id: String,
    },
}

impl std::fmt::Display for Notice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ApprovalNeeded { id, room_id, keybox } => write!(
                f,
                "{keybox} waits for your approval to read {room_id}: keybox approve {id}, or keybox refuse {id}"
            ),
            Self::BackupEnded { errcode } => backup_ended(f, errcode),
            Self::GapLeft { room_id, errcode } => {
                write!(f, "messages of {room_id} are missing: the server did not give them ({errcode})")
            }
            Self::IdentityChanged { user_id } => write!(
                f,
                "WARNING: the server shows another identity for {user_id} than before; nothing is sent to them \
                 until you accept it (keybox accept {user_id})"
            ),
            Self::IdentityReceived { keybox } => {
                write!(f, "received the keys of your identity from {keybox}")
            }
            Self::IdentityShared { keybox } => write!(f, "sent the keys of your identity to {keybox}"),
            Self::Invited { room_id, inviter } => {
                write!(f, "invited to {room_id} by {}", inviter.as_deref().unwrap_or("somebody"))
            }
            Self::KeyAsked { key, keyboxes } => {
                write!(f, "asked {} KeyBox(es) for the resource key {}", keyboxes.len(), key.key_id)
            }
            Self::KeyConfirmed { key, keybox } => {
                write!(f, "{keybox} has the resource key {} now", key.key_id)
            }
            Self::KeyGiven { key, keybox } => write!(f, "gave the resource key {} to {keybox}", key.key_id),
            Self::KeyMade { key } => write!(f, "made the resource key {} for {}", key.key_id, key.room_id),
            Self::KeyReceived { key, keybox } => {
                write!(f, "received the resource key {} from {keybox}", key.key_id)
            }
            Self::KeyRefused { key, keybox, code } => {
                write!(f, "refused the resource key {} to {keybox} ({code:?})", key.key_id)
            }
            Self::KeyUndeliverable { key, keybox, errcode } => {
                write!(f, "the server did not take the resource key {} for {keybox} ({errcode})", key.key_id)
            }
            Self::KeyWithheld { key, keybox, code } => {
                write!(f, "{keybox} will not send the resource key {} ({code:?})", key.key_id)
            }
            Self::KeyBoxGone { keybox } => write!(f, "the KeyBox {keybox} is gone"),
            Self::KeyBoxReturned { keybox } => write!(
                f,
                "WARNING: the KeyBox {keybox} was gone, and the server shows it again; it does not count as verified: ask \
                 its owner, who may have revoked it"
            ),
            Self::KeyMessageDropped { sender, event_type, reason } => {
                write!(f, "dropped a {event_type} from {sender}: {reason}")
            }
            Self::KeySetChanged { keybox } => {
                write!(
                    f,
                    "WARNING: the server shows other keys for {keybox} than before; nothing is sent to its owner \
                     until you accept them (keybox accept {})",
                    keybox.user_id
                )
            }
            Self::InvalidKeySet { keybox, reason } => write!(f, "ignored the keys of {keybox}: {reason}"),
            Self::MessageRefused { room_id, event_id, reason } => {
                write!(f, "refused {event_id} in {room_id}: {reason}")
            }
            Self::NewKeyBox { keybox } => write!(f, "new KeyBox {keybox}"),
            Self::NewOwnKeyBox { .. } | Self::OwnKeyBoxGone { .. } | Self::OwnKeyBoxPassed { .. } => {
                self.write_own_keyboxes(f)
            }
            Self::ClosingRefused { .. } | Self::KeyBoxOutside { .. } | Self::RoomClosing { .. } => {
                self.write_closing(f)
            }
            Self::SuiteNotSpoken { .. } | Self::SuiteUpgraded { .. } | Self::SuiteDowngrade { .. } => {
                self.write_suite(f)
            }
        }
    }
}

impl Notice {
    /// What is said of the account's own KeyBoxes.
    fn write_own_keyboxes(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NewOwnKeyBox { keybox } => write!(
                f,
                "WARNING: your account has a new KeyBox, {}; if that is not you, change your password and log it out",
                keybox.keybox_id
            ),
            Self::OwnKeyBoxGone { keybox } => {
                write!(f, "your KeyBox {} was revoked or logged out", keybox.keybox_id)
            }
            Self::OwnKeyBoxPassed { keybox, .. } => write!(
                f,
                "WARNING: your account had a KeyBox {id} for a while, which is gone again; if that was not you, change your password. What it was given: \
                 keybox log --homeserver --of {id}",
                id = keybox.keybox_id
            ),
            _ => Ok(()),
        }
    }

    /// What is said of the suites of rooms.
    fn write_suite(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::SuiteNotSpoken { key, keybox } => write!(
                f,
                "WARNING: {keybox} does not speak the suite of {} and cannot read what is sent there; its owner has to \
                 update the software, or log in anew",
                key.room_id
            ),
            Self::SuiteUpgraded { room_id, suite } => {
                write!(f, "{room_id} is encrypted with {suite} from now on")
            }
            Self::SuiteDowngrade { room_id } => {
                write!(f, "WARNING: somebody tried to weaken the encryption of {room_id}; it stays as it was")
            }
            _ => Ok(()),
        }
    }

    /// What is said of closed rooms.
    fn write_closing(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ClosingRefused { room_id, reason } => write!(
                f,
                "WARNING: the homeserver shows that {room_id} was closed or opened, or a KeyBox approved, and it is not to be \
                 believed: {reason}; it stays as it was"
            ),
            Self::KeyBoxOutside { room_id, keybox } => write!(
                f,
                "{room_id} is closed and {keybox} is none of its KeyBoxes; a moderator lets it in with \
                 keybox approve-keybox {room_id} {} {}",
                keybox.user_id, keybox.keybox_id
            ),
            Self::RoomClosing { room_id, closed: true, by, keyboxes } => {
                write!(f, "{room_id} is closed, by {by}: {keyboxes} KeyBox(es) get its keys")
            }
            Self::RoomClosing { room_id, by, .. } => write!(f, "{room_id} is open, by {by}"),
            _ => Ok(()),
        }
    }
}

fn backup_ended(f: &mut std::fmt::Formatter<'_>, errcode: &str) -> std::fmt::Result {
    write!(
        f,
        "WARNING: the recovery key was removed or replaced elsewhere, or the server keeps its backup no more ({errcode}); \
         new resource keys are not backed up"
    )
}
