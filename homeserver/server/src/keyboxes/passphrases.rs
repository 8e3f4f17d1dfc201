//! Passphrases that the server keeps for its users: sealed under the master key, given out to whoever logs in with the password.

use keystead_core::keybox::{
    CryptoError, Entropy as KeyBoxEntropy,
    audit_log::LogEvent,
    master_key::{CannotOpen, MasterKeys},
};
use keystead_store::{
    Error, devices,
    keybox_passphrases::{self, Kept, Listed},
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

/// Why nothing, or nothing more, could be sealed anew.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// There is no key to seal with.
    #[error("no master key is configured (keybox.master_key)")]
    NoMasterKey,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] Error),
}

/// Why what is kept for one KeyBox could not be sealed anew.
#[derive(Debug, thiserror::Error)]
pub enum CannotReseal {
    /// It changed at the same moment, without the lock that all who change it hold.
    #[error("it was changed at the same moment")]
    Changed,
    /// The user id that it is kept under is none.
    #[error("its user id is not one of a user")]
    NoUser,
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] CannotOpen),
    /// It cannot be sealed.
    #[error("it cannot be sealed")]
    Seal(#[from] CryptoError),
}

/// What sealing all passphrases anew came to.
#[derive(Debug, Default)]
pub struct Rotated {
    /// For how many KeyBoxes what is kept was sealed anew.
    pub resealed: u64,
    /// For how many it stood under the first master key before.
    pub current: u64,
    /// Those for which it stands as it stood: user, KeyBox, and why.
    pub failed: Vec<(String, String, CannotReseal)>,
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

/// Whether these keys open all that is kept for a KeyBox.
pub(crate) fn opens(keys: &MasterKeys, kept: &Listed) -> bool {
    let place = (kept.user_id.as_str(), kept.keybox_id.as_str());
    [Some(&kept.sealed), kept.previous.as_ref()]
        .into_iter()
        .flatten()
        .all(|sealed| keys.open(place, sealed).is_ok())
}

/// Seals all passphrases under the first master key. One that cannot be opened does not hold up the others.
///
/// # Errors
/// There is no key; the database's own. What was sealed anew until then stays so.
pub async fn rotate(app: &App) -> Result<Rotated, RotationError> {
    let keys = app.settings.keybox.master_keys.as_ref().ok_or(RotationError::NoMasterKey)?;
    let mut after = (String::new(), String::new());
    let mut rotated = Rotated::default();
    loop {
        let from = (after.0.as_str(), after.1.as_str());
        let page = app
            .store
            .read("passphrase_page", |tx| async move { keybox_passphrases::page(&tx, from, BATCH).await })
            .await?;
        let Some(last) = page.last() else { return Ok(rotated) };
        after = (last.user_id.clone(), last.keybox_id.clone());
        for row in page {
            if is_current(keys, &row.sealed, row.previous.as_deref()) {
                rotated.current += 1;
                continue;
            }
            match reseal(app, keys, &row).await? {
                Ok(true) => rotated.resealed += 1,
                // Its KeyBox was revoked, or it is under the first key by now.
                Ok(false) => {}
                Err(reason) => rotated.failed.push((row.user_id, row.keybox_id, reason)),
            }
        }
    }
}

/// Seals anew what is kept for one KeyBox, as it stands now. Returns whether there was anything to do.
async fn reseal(app: &App, keys: &MasterKeys, row: &Listed) -> Result<Result<bool, CannotReseal>, Error> {
    let Ok(user_id) = UserId::parse(&row.user_id) else { return Ok(Err(CannotReseal::NoUser)) };
    let (user_id, keybox_id) = (&user_id, <&DeviceId>::from(row.keybox_id.as_str()));
    app.store
        .write("passphrase_reseal", |tx| async move {
            tx.lock_shards(&[tx.shards().of_user(user_id)]).await?;
            let Some(kept) = keybox_passphrases::find(&tx, user_id, keybox_id).await? else {
                return Ok(Ok(false));
            };
            if is_current(keys, &kept.sealed, kept.previous.as_deref()) {
                return Ok(Ok(false));
            }
            let (sealed, previous) = match sealed_anew(app, keys, &kept) {
                Ok(texts) => texts,
                Err(reason) => return Ok(Err(reason)),
            };
            let done = keybox_passphrases::reseal(&tx, &kept, &sealed, previous.as_deref()).await?;
            Ok::<_, Error>(if done { Ok(true) } else { Err(CannotReseal::Changed) })
        })
        .await
}

/// Whether what is kept is all under the first master key.
fn is_current(keys: &MasterKeys, sealed: &str, previous: Option<&str>) -> bool {
    keys.is_current(sealed) && previous.is_none_or(|text| keys.is_current(text))
}

/// The passphrase and the one before, under the first master key.
fn sealed_anew(app: &App, keys: &MasterKeys, kept: &Kept) -> Result<(String, Option<String>), CannotReseal> {
    let place = (kept.user_id.as_str(), kept.keybox_id.as_str());
    let again = |text: &String| -> Result<String, CannotReseal> {
        let open = keys.open(place, text)?;
        Ok(keys.seal(place, &open, &mut Adapter(&*app.entropy))?)
    };
    Ok((again(&kept.sealed)?, kept.previous.as_ref().map(again).transpose()?))
}

fn master_keys(app: &App) -> Result<&MasterKeys, ApiError> {
    app.settings.keybox.master_keys.as_ref().ok_or_else(|| {
        ApiError::new(http::StatusCode::FORBIDDEN, NOT_KEPT, "This server keeps no passphrases")
    })
}
