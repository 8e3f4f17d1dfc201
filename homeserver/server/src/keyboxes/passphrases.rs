//! Passphrases that the server keeps for its users: sealed under the master key, given out to whoever logs in with the password.

use keystead_core::keybox::{
    CryptoError, Entropy as KeyBoxEntropy,
    audit_log::LogEvent,
    master_key::{CannotOpen, MasterKeys},
};
use keystead_store::{
    Error, devices,
    keybox_passphrases::{self, Kept},
};
use ruma::{DeviceId, UserId};
use zeroize::Zeroizing;

use super::Actor;
use crate::{app::App, entropy::Entropy, http::error::ApiError};

/// The errcode, sent with 403, of a passphrase for a server that has no master key to seal it with.
pub const NOT_KEPT: &str = "COM.TRUSTNER.KEYBOX_PASSPHRASES_NOT_KEPT";
/// The longest passphrase, in bytes: as long as private keys may be sealed with.
const MAX_PASSPHRASE: usize = 512;
/// How many are sealed anew at a time.
const BATCH: u32 = 100;

/// The server's entropy in the form that the profile takes it in.
struct Adapter<'a>(&'a dyn Entropy);

impl KeyBoxEntropy for Adapter<'_> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), CryptoError> {
        self.0.fill(bytes);
        Ok(())
    }
}

/// Why not all passphrases could be sealed anew.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// There is no key to seal with.
    #[error("no master key is configured (keybox.master_key)")]
    NoMasterKey,
    /// One cannot be opened.
    #[error("the passphrase of a KeyBox of {0} cannot be opened")]
    Open(ruma::OwnedUserId, #[source] CannotOpen),
    /// One cannot be sealed.
    #[error("a passphrase cannot be sealed")]
    Seal(#[source] CryptoError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] Error),
}

/// Keeps the passphrase of a KeyBox; with `keep_previous`, the one before as well until the next call without. A call that is repeated, because
/// its answer was lost, changes nothing.
///
/// # Errors
/// 400 `M_INVALID_PARAM` for its length; 403 [`NOT_KEPT`]; 401 `M_UNKNOWN_TOKEN` if the device is gone.
pub async fn store(
    app: &App,
    (user_id, keybox_id): (&UserId, &DeviceId),
    (passphrase, keep_previous): (&str, bool),
    actor: Actor<'_>,
) -> Result<(), ApiError> {
    let keys = master_keys(app)?;
    if passphrase.is_empty() || passphrase.len() > MAX_PASSPHRASE {
        return Err(ApiError::invalid_param("A passphrase must have 1 to 512 bytes"));
    }
    let place = (user_id.as_str(), keybox_id.as_str());
    let sealed = &keys.seal(place, passphrase, &mut Adapter(&*app.entropy)).map_err(ApiError::internal)?;
    app.store
        .write("passphrase_store", |tx| async move {
            tx.lock_shards(&[tx.shards().of_user(user_id)]).await?;
            // Whoever deletes devices holds the shard too.
            if devices::find(&tx, user_id, keybox_id).await?.is_none() {
                return Err(ApiError::unknown_token(false));
            }
            let before = keybox_passphrases::find(&tx, user_id, keybox_id).await?;
            let kept = Kept {
                user_id: user_id.to_owned(),
                keybox_id: keybox_id.to_owned(),
                sealed: sealed.clone(),
                previous: before.filter(|_| keep_previous).and_then(|kept| {
                    let is_repeated =
                        keys.open(place, &kept.sealed).is_ok_and(|newest| newest.as_str() == passphrase);
                    if is_repeated { kept.previous } else { Some(kept.sealed) }
                }),
            };
            keybox_passphrases::put(&tx, &kept, actor.now).await?;
            let event = LogEvent::PassphraseStored(actor.on(keybox_id, None));
            Ok(actor.note(&tx, user_id, event).await?)
        })
        .await
}

/// Destroys the passphrase of a KeyBox. That none is there is no error.
///
/// # Errors
/// When the database cannot be reached.
pub async fn destroy(
    app: &App,
    user_id: &UserId,
    keybox_id: &DeviceId,
    actor: Actor<'_>,
) -> Result<(), ApiError> {
    app.store
        .write("passphrase_destroy", |tx| async move {
            tx.lock_shards(&[tx.shards().of_user(user_id)]).await?;
            if keybox_passphrases::delete(&tx, user_id, keybox_id).await? {
                let event = LogEvent::PassphraseDestroyed(actor.on(keybox_id, None));
                actor.note(&tx, user_id, event).await?;
            }
            Ok::<_, Error>(())
        })
        .await?;
    Ok(())
}

/// Gives out what is kept for a KeyBox, the newest first, and notes it in the log. Only for whoever has just given the
/// account's password.
///
/// # Errors
/// 404 `M_NOT_FOUND` if nothing is kept; 503 if it cannot be opened with the master keys that are configured.
pub async fn retrieve(
    app: &App,
    user_id: &UserId,
    keybox_id: &DeviceId,
    actor: Actor<'_>,
) -> Result<Vec<Zeroizing<String>>, ApiError> {
    let keys = master_keys(app)?;
    app.store
        .write("passphrase_retrieve", |tx| async move {
            tx.lock_shards(&[tx.shards().of_user(user_id)]).await?;
            let kept = keybox_passphrases::find(&tx, user_id, keybox_id).await?;
            let kept = kept.ok_or_else(|| {
                ApiError::not_found(
                    "No passphrase is kept for this KeyBox: it was revoked, or its owner keeps it",
                )
            })?;
            let mut opened = Vec::new();
            for sealed in [Some(&kept.sealed), kept.previous.as_ref()].into_iter().flatten() {
                let place = (user_id.as_str(), keybox_id.as_str());
                opened.push(keys.open(place, sealed).map_err(ApiError::unavailable)?);
            }
            actor.note(&tx, user_id, LogEvent::PassphraseRetrieved(actor.on(keybox_id, None))).await?;
            Ok::<_, ApiError>(opened)
        })
        .await
}

/// Seals all passphrases under the first master key. Returns how many were sealed under another one.
///
/// # Errors
/// One cannot be opened; the database's own. What was sealed anew until then stays so.
pub async fn rotate(app: &App) -> Result<u64, RotationError> {
    let keys = app.settings.keybox.master_keys.as_ref().ok_or(RotationError::NoMasterKey)?;
    let mut after = (String::new(), String::new());
    let mut sealed_anew = 0;
    loop {
        let from = (after.0.as_str(), after.1.as_str());
        let page = app
            .store
            .read("passphrase_page", |tx| async move { keybox_passphrases::page(&tx, from, BATCH).await })
            .await?;
        let Some(last) = page.last() else { return Ok(sealed_anew) };
        after = (last.user_id.to_string(), last.keybox_id.to_string());
        for kept in &page {
            let is_current = |text: &String| keys.is_current(text);
            if is_current(&kept.sealed) && kept.previous.as_ref().is_none_or(is_current) {
                continue;
            }
            let sealed = &again(app, keys, kept, &kept.sealed)?;
            let previous = &kept.previous.as_ref().map(|text| again(app, keys, kept, text)).transpose()?;
            let done = app.store.write("passphrase_reseal", |tx| async move {
                keybox_passphrases::reseal(&tx, kept, sealed, previous.as_deref()).await
            });
            sealed_anew += u64::from(done.await?);
        }
    }
}

fn again(app: &App, keys: &MasterKeys, kept: &Kept, sealed: &str) -> Result<String, RotationError> {
    let place = (kept.user_id.as_str(), kept.keybox_id.as_str());
    let open = keys.open(place, sealed).map_err(|error| RotationError::Open(kept.user_id.clone(), error))?;
    keys.seal(place, &open, &mut Adapter(&*app.entropy)).map_err(RotationError::Seal)
}

fn master_keys(app: &App) -> Result<&MasterKeys, ApiError> {
    app.settings.keybox.master_keys.as_ref().ok_or_else(|| {
        ApiError::new(http::StatusCode::FORBIDDEN, NOT_KEPT, "This server keeps no passphrases")
    })
}
