//! How a command fails: in words for a person, and in a status for a script.

use std::path::PathBuf;

use keystead_keybox::contact_code::ContactCodeError;

use crate::api::ApiError;
use crate::client::{ClientError, CloseError, RecoveryError, UpgradeError};
use crate::engine::{ClosingFailure, EncryptError};
use crate::qr::{QrReadError, QrWriteError};

/// Why a command did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the server at {0} showed no certificate; only https has one")]
    NoCertificate(String),
    #[error("this program (SHA-256 {digest}) is none of those that {server} publishes: do not trust it")]
    NotReleased { digest: String, server: String },
    #[error("several KeyBoxes are here; choose one with --user and --keybox: {0}")]
    Ambiguous(String),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Closing(ClosingFailure),
    #[error(transparent)]
    ContactCode(#[from] ContactCodeError),
    #[error("{} cannot be used", .path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("the fingerprint of {0} is another one; do not trust this KeyBox")]
    Fingerprint(String),
    #[error(
        "{0} difference(s) between what this KeyBox saw and what the homeserver says; do not rely on it before they are explained"
    )]
    Differences(usize),
    #[error(
        "this is the KeyBox that you are using; `keybox logout` ends it and removes its keys from this machine"
    )]
    OwnKeyBox,
    #[error("{0:?} is not a time; write it as 2026-01-31 or 2026-01-31T12:00:00, in UTC")]
    NotATime(String),
    #[error("cannot read from the terminal")]
    Input(#[source] std::io::Error),
    #[error("the user name or the password is wrong, or the account may not log in")]
    LoginRefused(#[source] ClientError),
    #[error("no account is here yet; make one with `keybox register`, or use `keybox login`")]
    NoAccount,
    #[error("no KeyBox of {0} is here; `keybox login` makes one")]
    NoSuchAccount(String),
    #[error("there is no approval {0}; keybox approvals --all lists them")]
    NoSuchApproval(u64),
    #[error("no resource key for that message is here, or it is not a KeyBox message")]
    NoSuchKey,
    #[error("{0} is not known here")]
    NoSuchKeyBox(String),
    #[error("{0:?} is no policy; there are automatic, verified_only, ask, never, and for a room default")]
    NoSuchPolicy(String),
    #[error("no room {0:?} is known here")]
    NoSuchRoom(String),
    #[error("name the account with --user")]
    NoUser,
    #[error("the keys of {0} have not changed: there is nothing to accept")]
    NothingToAccept(String),
    #[error(
        "in normal mode the program makes the passphrase: leave out --passphrase and --new-passphrase, and unset their variables"
    )]
    PassphraseNotWanted,
    #[error(transparent)]
    QrRead(#[from] QrReadError),
    #[error(transparent)]
    QrWrite(#[from] QrWriteError),
    #[error(transparent)]
    Upgrade(UpgradeError),
    #[error("{shown} of {wanted} messages came in time")]
    TimedOut { shown: usize, wanted: usize },
    #[error("that was not the same twice; nothing has changed")]
    TypedDifferently,
}

impl Failure {
    /// The exit status; `keybox --help` lists them.
    pub(super) fn status(&self) -> u8 {
        match self {
            Self::Ambiguous(_)
            | Self::NoSuchPolicy(_)
            | Self::NoUser
            | Self::NotATime(_)
            | Self::OwnKeyBox
            | Self::PassphraseNotWanted => 2,
            Self::Client(error) => client_status(error),
            Self::Closing(ClosingFailure::NotOfAMember(_)) => 7,
            Self::Closing(_)
            | Self::ContactCode(_)
            | Self::Differences(_)
            | Self::File { .. }
            | Self::Fingerprint(_)
            | Self::Input(_)
            | Self::NoCertificate(_)
            | Self::NotReleased { .. }
            | Self::NothingToAccept(_)
            | Self::QrRead(_)
            | Self::QrWrite(_)
            | Self::TypedDifferently
            | Self::Upgrade(_) => 1,
            Self::LoginRefused(_) => 3,
            Self::NoAccount
            | Self::NoSuchAccount(_)
            | Self::NoSuchApproval(_)
            | Self::NoSuchKey
            | Self::NoSuchKeyBox(_)
            | Self::NoSuchRoom(_) => 7,
            Self::TimedOut { .. } => 6,
        }
    }

    /// The Matrix error code, if the homeserver refused.
    pub(super) fn errcode(&self) -> Option<&str> {
        match self {
            Self::Client(error) | Self::LoginRefused(error) => error.errcode(),
            _ => None,
        }
    }
}

fn client_status(error: &ClientError) -> u8 {
    match error {
        error if error.is_wrong_passphrase() => 3,
        ClientError::Api(ApiError::Server(error)) => match error.errcode.as_str() {
            "M_UNKNOWN_TOKEN" | "M_MISSING_TOKEN" => 3,
            _ => 4,
        },
        ClientError::Api(ApiError::Timeout | ApiError::Unreachable { .. }) => 5,
        ClientError::Decrypt(error) if error.is_temporary() => 6,
        ClientError::Encrypt(EncryptError::NotJoined) => 7,
        ClientError::NotLoggedIn | ClientError::PassphraseGone => 3,
        ClientError::PassphrasesNotKept => 4,
        ClientError::Recovery(RecoveryError::Key(_) | RecoveryError::OtherKey) => 3,
        ClientError::Recovery(RecoveryError::None) => 7,
        _ => 1,
    }
}

impl From<UpgradeError> for Failure {
    fn from(error: UpgradeError) -> Self {
        match error {
            UpgradeError::Client(error) => Self::Client(error),
            error => Self::Upgrade(error),
        }
    }
}

impl From<CloseError> for Failure {
    fn from(error: CloseError) -> Self {
        match error {
            CloseError::Client(error) => Self::Client(error),
            CloseError::Closing(ClosingFailure::Encrypt(error)) => Self::Client(error.into()),
            CloseError::Closing(error) => Self::Closing(error),
        }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Client(error.into())
    }
}
