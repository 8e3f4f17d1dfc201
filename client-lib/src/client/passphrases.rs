//! The passphrase of the private keys: who keeps it, and how it changes without a moment in which a crash would lose them
//! (`profiles/keybox/SPEC.md`, section 22).

use std::path::Path;

use zeroize::Zeroizing;

use keystead_keybox::OpensslEntropy;
use keystead_keybox::sealed_keys::{SealedKeysError, random_passphrase};

use super::{Client, ClientError};
use crate::api::Api;
use crate::store::{Account, Keeper, Lock, PassphraseMode, StoreError};

/// What the private keys on this machine are sealed with.
#[derive(Clone, Copy)]
pub enum Passphrase<'a> {
    /// *Normal mode*: 256 random bits that the homeserver keeps, and gives to whoever logs in with the account's password.
    Kept,
    /// *Advanced mode*: this one, of 1 to 512 bytes, which the homeserver never sees.
    Own(&'a str),
}

impl std::fmt::Debug for Passphrase<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Kept => "Kept",
            Self::Own(_) => "Own(redacted)",
        })
    }
}

/// A passphrase to make a store with, and who keeps it.
pub(super) type NewPassphrase = (Zeroizing<String>, PassphraseMode);

impl Client {
    /// Opens the store of a KeyBox in normal mode with the account's password: the homeserver gives the passphrase for it, begins no session,
    /// and notes it in the account's log. Returns the passphrase too, for [`Self::change_passphrase`]; drop it otherwise.
    ///
    /// # Errors
    /// The homeserver's, such as `M_FORBIDDEN` for a wrong password; [`ClientError::PassphraseGone`]; those of [`Self::open`].
    pub async fn unlock(
        home: &Path,
        account: Account,
        password: &str,
    ) -> Result<(Self, Zeroizing<String>), ClientError> {
        let api = Api::new(&account.server)?;
        // Twice: another process may have changed the passphrase between the answer and the look at the file.
        for _ in 0..2 {
            let kept = api.retrieve_passphrases(&account.user_id, password, &account.keybox_id).await;
            let kept = kept.map_err(|error| match error.errcode() {
                Some("M_NOT_FOUND") => ClientError::PassphraseGone,
                _ => error.into(),
            })?;
            let is_unsettled = kept.len() > 1;
            for passphrase in kept {
                match Self::open(home, account.clone(), &passphrase) {
                    Err(error) if error.is_wrong_passphrase() => {}
                    Err(error) => return Err(error),
                    Ok(client) => {
                        if is_unsettled {
                            client.settle(&passphrase).await;
                        }
                        return Ok((client, passphrase));
                    }
                }
            }
        }
        Err(StoreError::Keys(SealedKeysError::WrongPassphrase).into())
    }

    /// A change that broke off has left two passphrases at the homeserver: the one that opens nothing goes. If not now, then another time.
    async fn settle(&self, passphrase: &str) {
        let Ok(Some(_lock)) = self.store.try_lock() else { return };
        if self.store.check_passphrase(passphrase).is_ok() {
            self.api.store_passphrase(&self.account().keybox_id, passphrase, false).await.ok();
        }
    }

    /// Who keeps the passphrase.
    pub fn passphrase_mode(&self) -> Result<PassphraseMode, ClientError> {
        Ok(self.store.keeper()?.mode())
    }

    /// Seals the private keys with another passphrase; `current` opens them now. With [`Passphrase::Kept`] in normal mode the homeserver keeps a
    /// new one. A crash at any moment leaves keys that open with the passphrase of before or the new one, and the homeserver has the one that
    /// they open with if it keeps it.
    ///
    /// Returns whether the homeserver has already forgotten the passphrase of before. If not, the next [`Self::unlock`] or [`Self::sync`] sees
    /// to it.
    ///
    /// # Errors
    /// [`ClientError::PassphrasesNotKept`]; a wrong `current` ([`ClientError::is_wrong_passphrase`]); the homeserver's and the store's. After an
    /// error the one or the other passphrase opens the keys.
    pub async fn change_passphrase(
        &mut self,
        current: &str,
        new: Passphrase<'_>,
    ) -> Result<bool, ClientError> {
        if matches!(new, Passphrase::Kept) && !self.api.keeps_passphrases().await? {
            return Err(ClientError::PassphrasesNotKept);
        }
        let lock = self.begin().await?;
        let keeper = self.store.check_passphrase(current)?;
        match new {
            Passphrase::Own(passphrase) => {
                let keeper = if keeper == Keeper::Owner { keeper } else { Keeper::OwnerNow };
                self.store.reseal(&lock, &self.keys, (passphrase, keeper), &mut OpensslEntropy)?;
                self.is_unsettled = keeper == Keeper::OwnerNow;
                self.destroy_kept(&lock).await
            }
            Passphrase::Kept => self.renew_kept(&lock, (current, keeper)).await,
        }
    }

    async fn renew_kept(&self, lock: &Lock, (current, keeper): (&str, Keeper)) -> Result<bool, ClientError> {
        let keybox_id = &self.account().keybox_id;
        let passphrase = random_passphrase(&mut OpensslEntropy)?;
        let was_kept = keeper == Keeper::Homeserver;
        if was_kept {
            // The server keeps one before the newest. After a change that broke off that may be the one that the file needs: first of all
            // it has to be the newest.
            self.api.store_passphrase(keybox_id, current, false).await?;
        }
        self.api.store_passphrase(keybox_id, &passphrase, was_kept).await?;
        self.store.reseal(lock, &self.keys, (&passphrase, Keeper::Homeserver), &mut OpensslEntropy)?;
        // The new one is on disk for good: now the one before may go.
        Ok(!was_kept || self.api.store_passphrase(keybox_id, &passphrase, false).await.is_ok())
    }

    /// In advanced mode the homeserver has no business with a passphrase of before. Returns whether it has none.
    pub(super) async fn destroy_kept(&mut self, lock: &Lock) -> Result<bool, ClientError> {
        if self.is_unsettled {
            // Another process may have been here, and gone over to normal mode: what the homeserver keeps now is needed.
            let is_due = self.store.keeper()? == Keeper::OwnerNow;
            if is_due && self.api.destroy_passphrase(&self.account().keybox_id).await.is_err() {
                return Ok(false);
            }
            if is_due {
                self.store.set_keeper(lock, Keeper::Owner)?;
            }
            self.is_unsettled = false;
        }
        Ok(true)
    }
}

/// Checks what is wanted of a KeyBox that is to be made, before anything is made.
pub(super) async fn check_wanted(api: &Api, passphrase: Passphrase<'_>) -> Result<(), ClientError> {
    match passphrase {
        Passphrase::Kept if !api.keeps_passphrases().await? => Err(ClientError::PassphrasesNotKept),
        Passphrase::Kept | Passphrase::Own(_) => Ok(()),
    }
}

/// The passphrase for the keys of a KeyBox that is being made. One that the homeserver is to keep it has by now: keys must not be sealed with
/// a passphrase that nobody has.
pub(super) async fn begin_with(
    api: &Api,
    keybox_id: &str,
    passphrase: Passphrase<'_>,
) -> Result<NewPassphrase, ClientError> {
    match passphrase {
        Passphrase::Own(passphrase) => Ok((Zeroizing::new(passphrase.to_owned()), PassphraseMode::Advanced)),
        Passphrase::Kept => {
            let passphrase = random_passphrase(&mut OpensslEntropy)?;
            api.store_passphrase(keybox_id, &passphrase, false).await?;
            Ok((passphrase, PassphraseMode::Normal))
        }
    }
}

#[cfg(test)]
mod tests;
