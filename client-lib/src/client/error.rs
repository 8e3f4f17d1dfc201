//! What a caller of [`super::Client`] can do something about.

use keystead_keybox::CryptoError;
use keystead_keybox::interchange::InterchangeError;
use keystead_keybox::sealed_keys::SealedKeysError;

use super::attachments::FileError;
use super::recovery::RecoveryError;
use crate::api::ApiError;
use crate::engine::{ContactError, DecryptError, EncryptError, EngineError, RecordError};
use crate::store::StoreError;

/// Why a KeyBox could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The homeserver refused, or cannot be reached.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// A contact code does not verify what it names.
    #[error(transparent)]
    Contact(#[from] ContactError),
    /// The message cannot be read.
    #[error(transparent)]
    Decrypt(DecryptError),
    /// The message cannot be encrypted for this room.
    #[error(transparent)]
    Encrypt(#[from] EncryptError),
    /// The KeyBox itself failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A file cannot be sent or saved.
    #[error(transparent)]
    File(#[from] FileError),
    /// An interchange file cannot be written or read.
    #[error(transparent)]
    Interchange(#[from] InterchangeError),
    /// New keys could not be made.
    #[error("the KeyBox's keys could not be made")]
    Keys(#[from] CryptoError),
    /// The homeserver keeps no passphrase for this KeyBox in normal mode.
    #[error(
        "the homeserver keeps no passphrase for this KeyBox any more: it was revoked, and its private keys can never be opened \
         again; log in anew, and remove its folder"
    )]
    PassphraseGone,
    /// The homeserver keeps no passphrases: only advanced mode is possible.
    #[error("this homeserver keeps no passphrases: choose one yourself (advanced mode)")]
    PassphrasesNotKept,
    /// The store holds no session: its making was cut short.
    #[error("this KeyBox is not logged in")]
    NotLoggedIn,
    /// There is no recovery key to make, to restore with or to remove.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// What is stored cannot be read.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another process keeps the store to itself.
    #[error("another process is using this KeyBox")]
    StoreBusy,
}

impl ClientError {
    /// The Matrix error code, if the homeserver refused.
    pub fn errcode(&self) -> Option<&str> {
        match self {
            Self::Api(error) => error.errcode(),
            _ => None,
        }
    }

    /// Whether the passphrase was wrong.
    pub fn is_wrong_passphrase(&self) -> bool {
        matches!(self, Self::Store(StoreError::Keys(SealedKeysError::WrongPassphrase)))
    }
}
