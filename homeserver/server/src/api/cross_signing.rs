//! Cross-signing keys, and signatures on keys.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#cross-signing>.

use std::collections::{BTreeMap, BTreeSet};

use keystead_core::keys::{self as rules, CrossSigningKey, KeyRefusal, KeySignature, VerifyKey};
use keystead_store::{
    Error, ReadTx, WriteTx,
    cross_signing::{self, SignedKey},
    devices, keys,
};
use ruma::{
    CanonicalJsonObject, DeviceId, OwnedUserId, UserId,
    api::client::keys::{
        upload_signatures::v3 as upload_signatures, upload_signing_keys::v3 as upload_signing_keys,
    },
    encryption::KeyUsage,
};
use serde_json::{Value, json};

use super::keys::{refused, stored_object};
use crate::{
    accounts::interactive_auth::require_password,
    context::{Ctx, Session},
    http::{error::ApiError, reply::RawJson},
};

/// The greatest number of keys that one call signs.
const MAX_SIGNED_KEYS: usize = 10_000;

/// The cross-signing keys of one upload, checked each by itself.
struct Upload {
    keys: Vec<(KeyUsage, CrossSigningKey)>,
}

/// A user's cross-signing public keys and objects, by usage.
type Stored = BTreeMap<String, cross_signing::CrossSigningKey>;

/// `POST /_matrix/client/v3/keys/device_signing/upload`.
///
/// The first upload, and one that changes nothing, need no authentication; any other asks for the password.
pub(super) async fn upload_signing_keys(
    ctx: Ctx<Session>,
    request: upload_signing_keys::Request,
) -> Result<upload_signing_keys::Response, ApiError> {
    let user_id = &ctx.requester.user_id;
    let upload = &Upload::check(user_id, &request)?;
    let is_free = ctx
        .app
        .store
        .read("cross_signing_keys", |tx| async move {
            let stored = stored_keys(&tx, user_id).await?;
            // What cannot be stored is refused before anybody types a password.
            upload.check_signatures(user_id, &stored)?;
            Ok::<_, ApiError>(upload.is_free(&stored))
        })
        .await?;
    if !is_free {
        require_password(&ctx, "keys/device_signing/upload", request.auth.as_ref()).await?;
    }
    ctx.app
        .store
        .write("upload_signing_keys", |tx| async move { upload.store(&tx, user_id, is_free).await })
        .await?;
    Ok(upload_signing_keys::Response::new())
}

impl Upload {
    fn check(user_id: &UserId, request: &upload_signing_keys::Request) -> Result<Self, ApiError> {
        let given = [
            (KeyUsage::Master, &request.master_key),
            (KeyUsage::SelfSigning, &request.self_signing_key),
            (KeyUsage::UserSigning, &request.user_signing_key),
        ];
        let mut keys = Vec::new();
        for (usage, key) in given {
            let Some(raw) = key else { continue };
            raw.deserialize().map_err(|error| ApiError::bad_json(error.to_string()))?;
            let key = rules::check_cross_signing_key(user_id, &usage, raw.json().get()).map_err(refused)?;
            keys.push((usage, key));
        }
        let distinct: BTreeSet<&str> = keys.iter().map(|(_, key)| key.public_key.as_str()).collect();
        if distinct.len() < keys.len() {
            return Err(ApiError::invalid_param("Two of the cross-signing keys are the same key"));
        }
        Ok(Self { keys })
    }

    /// Whether the upload replaces nothing: there is no master key yet, or all keys are those that are there.
    fn is_free(&self, stored: &Stored) -> bool {
        !stored.contains_key(KeyUsage::Master.as_str())
            || self.keys.iter().all(|(usage, key)| {
                stored.get(usage.as_str()).is_some_and(|stored| stored.public_key == key.public_key)
            })
    }

    /// Checks that the master key, the new one if there is one, signed the other keys.
    fn check_signatures(&self, user_id: &UserId, stored: &Stored) -> Result<(), ApiError> {
        let new_master = self.keys.iter().find(|(usage, _)| *usage == KeyUsage::Master);
        let master = match (new_master, stored.get(KeyUsage::Master.as_str())) {
            (Some((_, master)), _) => Some(master.verify_key.clone()),
            (None, Some(stored)) => Some(verify_key(stored)?),
            (None, None) => None,
        };
        for (usage, key) in self.keys.iter().filter(|(usage, _)| *usage != KeyUsage::Master) {
            let master = master.as_ref().ok_or_else(|| {
                ApiError::invalid_param(format!(
                    "There is no master key that could have signed the {usage} key"
                ))
            })?;
            rules::check_signature(&key.object, user_id, master).map_err(refused)?;
        }
        Ok(())
    }

    async fn store(&self, tx: &WriteTx, user_id: &UserId, was_free: bool) -> Result<(), ApiError> {
        if self.keys.is_empty() {
            return Ok(());
        }
        tx.lock_shards(&keys::device_list_shards(tx, user_id).await?).await?;
        let stored = stored_keys(tx, user_id).await?;
        // Another upload may have come first, and this one has then not been authenticated for what it replaces.
        if was_free && !self.is_free(&stored) {
            return Err(ApiError::forbidden("The cross-signing keys have just been changed"));
        }
        self.check_signatures(user_id, &stored)?;
        self.check_names(tx, user_id).await?;
        let mut changed = false;
        for (usage, key) in &self.keys {
            let key = cross_signing::CrossSigningKey {
                user_id: user_id.to_owned(),
                usage: usage.clone(),
                public_key: key.public_key.clone(),
                json: rules::to_json(&key.object),
            };
            if stored.get(usage.as_str()) != Some(&key) {
                cross_signing::put_key(tx, &key).await?;
                changed = true;
            }
        }
        for usage in self.orphans(&stored) {
            cross_signing::delete_key(tx, user_id, &usage).await?;
        }
        if changed {
            keys::note_device_list_change(tx, user_id).await?;
        }
        Ok(())
    }

    /// The keys that a new master key did not sign: they mean nothing any more.
    fn orphans(&self, stored: &Stored) -> Vec<KeyUsage> {
        let given = |wanted: &KeyUsage| self.keys.iter().find(|(usage, _)| usage == wanted);
        let master = stored.get(KeyUsage::Master.as_str()).map(|master| &master.public_key);
        match given(&KeyUsage::Master) {
            Some((_, new)) if master.is_some_and(|master| *master != new.public_key) => {
                [KeyUsage::SelfSigning, KeyUsage::UserSigning]
                    .into_iter()
                    .filter(|usage| given(usage).is_none())
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    /// A key that is called like a device could be mistaken for it.
    async fn check_names(&self, tx: &ReadTx, user_id: &UserId) -> Result<(), ApiError> {
        for (usage, key) in &self.keys {
            if devices::find(tx, user_id, <&DeviceId>::from(key.public_key.as_str())).await?.is_some() {
                return Err(ApiError::forbidden(format!("A device is called like the {usage} key")));
            }
        }
        Ok(())
    }
}

/// `POST /_matrix/client/v3/keys/signatures/upload`. What cannot be taken is named in `failures`; the rest is stored.
pub(super) async fn upload_signatures(
    ctx: Ctx<Session>,
    request: upload_signatures::Request,
) -> Result<RawJson, ApiError> {
    let signer = &ctx.requester.user_id;
    let mut signed = BTreeMap::new();
    for (user_id, keys) in &request.signed_keys {
        for (key_id, json) in keys.iter() {
            signed.insert(SignedKey { user_id: user_id.clone(), key_id: key_id.to_owned() }, json.get());
        }
    }
    if signed.len() > MAX_SIGNED_KEYS {
        return Err(ApiError::too_large("One call must not sign more than 10,000 keys"));
    }
    let signed = &signed;
    let failures = ctx
        .app
        .store
        .write("upload_signatures", |tx| async move { store_signatures(&tx, signer, signed).await })
        .await?;
    let mut answer: BTreeMap<&UserId, BTreeMap<&str, Value>> = BTreeMap::new();
    for (key, refusal) in &failures {
        let failure = json!({"errcode": errcode(refusal), "error": refusal.to_string()});
        answer.entry(&key.user_id).or_default().insert(&key.key_id, failure);
    }
    Ok(RawJson(json!({"failures": answer}).to_string().into()))
}

/// Stores the signatures that pass and returns why the others do not.
async fn store_signatures(
    tx: &WriteTx,
    signer: &UserId,
    signed: &BTreeMap<SignedKey, &str>,
) -> Result<Vec<(SignedKey, KeyRefusal)>, ApiError> {
    tx.lock_shards(&keys::device_list_shards(tx, signer).await?).await?;
    let signers = SignerKeys::load(tx, signer).await?;
    let users: BTreeSet<&UserId> = signed.keys().map(|key| &*key.user_id).collect();
    let users: Vec<&UserId> = users.into_iter().collect();
    let published = Published::load(tx, signer, &users).await?;
    let known = cross_signing::visible_signatures(tx, &users, signer).await?;
    let (mut new, mut failures) = (BTreeMap::new(), Vec::new());
    for (key, json) in signed {
        match signers.check(signer, key, json, &published) {
            Ok(signatures) => {
                let known = known.get(key).map(Vec::as_slice).unwrap_or_default();
                let signatures: Vec<KeySignature> =
                    signatures.into_iter().filter(|signature| !known.contains(signature)).collect();
                if !signatures.is_empty() {
                    new.insert(key.clone(), signatures);
                }
            }
            Err(refusal) => failures.push((key.clone(), refusal)),
        }
    }
    let signed_users: BTreeSet<OwnedUserId> = new.keys().map(|key| key.user_id.clone()).collect();
    cross_signing::put_signatures(tx, new).await?;
    for user_id in signed_users {
        if user_id == signer {
            keys::note_device_list_change(tx, signer).await?;
        } else {
            keys::note_user_signature(tx, signer, &user_id).await?;
        }
    }
    Ok(failures)
}

/// The keys that a user signs with.
struct SignerKeys {
    self_signing: Option<VerifyKey>,
    user_signing: Option<VerifyKey>,
    /// The Ed25519 keys of the user's devices.
    devices: Vec<VerifyKey>,
}

/// The keys that can be signed: the signer's devices, and the master keys of all.
struct Published {
    objects: BTreeMap<SignedKey, CanonicalJsonObject>,
}

impl SignerKeys {
    async fn load(tx: &ReadTx, signer: &UserId) -> Result<Self, ApiError> {
        let stored = stored_keys(tx, signer).await?;
        let key = |usage: KeyUsage| stored.get(usage.as_str()).map(verify_key).transpose();
        let mut devices = Vec::new();
        for device in keys::query(tx, &BTreeMap::from([(signer.to_owned(), Vec::new())])).await? {
            let object = stored_object("device_keys", device.device_id.as_str(), &device.json)?;
            devices.extend(rules::device_verify_key(&object, &device.device_id));
        }
        Ok(Self {
            self_signing: key(KeyUsage::SelfSigning)?,
            user_signing: key(KeyUsage::UserSigning)?,
            devices,
        })
    }

    /// Checks what the signer uploads for one key, and returns the signatures to be stored: those of the keys that may sign
    /// it. Others that the object carries, a device's own for instance, are stored with the key itself.
    fn check(
        &self,
        signer: &UserId,
        key: &SignedKey,
        json: &str,
        published: &Published,
    ) -> Result<Vec<KeySignature>, KeyRefusal> {
        let object = rules::parse_object(json)?;
        let stored = published
            .objects
            .get(key)
            .ok_or_else(|| KeyRefusal::Invalid("There is no such key that you could sign".to_owned()))?;
        if !rules::same_signed_part(stored, &object) {
            return Err(KeyRefusal::Signature("The signed key is not the published one".to_owned()));
        }
        // A user's devices are signed by the self-signing key, the own master key by devices, other users' by the
        // user-signing key.
        let is_device = stored.contains_key("device_id");
        let permitted: Vec<&VerifyKey> = match (is_device, *key.user_id == *signer) {
            (true, _) => self.self_signing.iter().collect(),
            (false, true) => self.devices.iter().collect(),
            (false, false) => self.user_signing.iter().collect(),
        };
        let used = rules::signing_key_ids(&object, signer);
        let mut signatures = Vec::new();
        for verify_key in permitted.into_iter().filter(|permitted| used.contains(&permitted.key_id)) {
            signatures.push(rules::check_signature(&object, signer, verify_key)?);
        }
        if signatures.is_empty() {
            return Err(KeyRefusal::Signature("No key that may sign this one has signed it".to_owned()));
        }
        Ok(signatures)
    }
}

impl Published {
    async fn load(tx: &ReadTx, signer: &UserId, users: &[&UserId]) -> Result<Self, ApiError> {
        let mut objects = BTreeMap::new();
        for key in cross_signing::keys_of(tx, users).await? {
            if key.usage == KeyUsage::Master {
                let object = stored_object("cross_signing_keys", &key.public_key, &key.json)?;
                objects.insert(SignedKey { user_id: key.user_id, key_id: key.public_key }, object);
            }
        }
        for device in keys::query(tx, &BTreeMap::from([(signer.to_owned(), Vec::new())])).await? {
            let object = stored_object("device_keys", device.device_id.as_str(), &device.json)?;
            let key_id = device.device_id.to_string();
            objects.insert(SignedKey { user_id: device.user_id, key_id }, object);
        }
        Ok(Self { objects })
    }
}

async fn stored_keys(tx: &ReadTx, user_id: &UserId) -> Result<Stored, Error> {
    let keys = cross_signing::keys_of(tx, &[user_id]).await?;
    Ok(keys.into_iter().map(|key| (key.usage.to_string(), key)).collect())
}

fn verify_key(key: &cross_signing::CrossSigningKey) -> Result<VerifyKey, ApiError> {
    let object = stored_object("cross_signing_keys", &key.public_key, &key.json)?;
    let found = rules::one_ed25519_key(&object).ok_or_else(|| {
        Error::corrupt(
            "cross_signing_keys",
            "json",
            key.public_key.as_str(),
            "it does not hold one ed25519 key",
        )
    })?;
    Ok(found.1)
}

/// The errcode of one failure among others that are no failures.
fn errcode(refusal: &KeyRefusal) -> &'static str {
    match refusal {
        KeyRefusal::Malformed(_) => "M_BAD_JSON",
        KeyRefusal::Invalid(_) => "M_NOT_FOUND",
        KeyRefusal::Signature(_) => "M_INVALID_SIGNATURE",
        KeyRefusal::TooLarge => "M_TOO_LARGE",
    }
}
