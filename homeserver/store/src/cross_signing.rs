//! Cross-signing keys, and the signatures on keys that are uploaded apart from them.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#cross-signing>

use std::collections::{BTreeMap, BTreeSet};

use keystead_core::keys::KeySignature;
use ruma::{OwnedUserId, UserId, encryption::KeyUsage};
use sea_orm::QueryResult;

use crate::{
    Error, ReadTx, WriteTx,
    streams::{self, UserChange},
};

/// Signatures on keys, by what is signed.
pub type Signatures = BTreeMap<SignedKey, Vec<KeySignature>>;

/// A user's cross-signing key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CrossSigningKey {
    /// The owner.
    pub user_id: OwnedUserId,
    /// `master`, `self_signing` or `user_signing`.
    pub usage: KeyUsage,
    /// The public key, as unpadded base64.
    pub public_key: String,
    /// The key object, with the owner's signatures only.
    pub json: String,
}

/// What was signed: a user's device or cross-signing key.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct SignedKey {
    /// The owner.
    pub user_id: OwnedUserId,
    /// The device's id, or the cross-signing public key.
    pub key_id: String,
}

/// All cross-signing keys of these users; who may see which is for the caller to know.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn keys_of(tx: &ReadTx, user_ids: &[&UserId]) -> Result<Vec<CrossSigningKey>, Error> {
    let mut keys = Vec::new();
    for chunk in user_ids.chunks(tx.rows_a_statement(1)) {
        let (users, values) = tx.any_of(1, chunk.iter().map(|user_id| user_id.as_str()));
        let sql = format!(
            "SELECT user_id, key_usage, public_key, json FROM cross_signing_keys WHERE user_id {users}"
        );
        for row in tx.query(&sql, values).await? {
            let usage: String = row.try_get("", "key_usage")?;
            keys.push(CrossSigningKey {
                user_id: streams::user_id(&row, "cross_signing_keys", "user_id")?,
                usage: usage.into(),
                public_key: row.try_get("", "public_key")?,
                json: row.try_get("", "json")?,
            });
        }
    }
    Ok(keys)
}

/// Stores a cross-signing key in place of the former one of that usage, whose signatures go with it. The caller notes
/// the change ([`crate::keys::note_device_list_change`]).
///
/// # Errors
/// The database's own.
pub async fn put_key(tx: &WriteTx, key: &CrossSigningKey) -> Result<(), Error> {
    tx.execute(
        "DELETE FROM key_signatures WHERE user_id = $1 AND key_id IN (SELECT public_key FROM cross_signing_keys \
         WHERE user_id = $1 AND key_usage = $2 AND public_key <> $3)",
        [key.user_id.as_str().into(), key.usage.as_str().into(), key.public_key.as_str().into()],
    )
    .await?;
    tx.execute(
        "INSERT INTO cross_signing_keys (user_id, key_usage, public_key, json) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (user_id, key_usage) DO UPDATE SET public_key = excluded.public_key, json = excluded.json",
        [
            key.user_id.as_str().into(),
            key.usage.as_str().into(),
            key.public_key.as_str().into(),
            key.json.as_str().into(),
        ],
    )
    .await?;
    Ok(())
}

/// Deletes a user's cross-signing key of one usage, if there is one.
///
/// # Errors
/// The database's own.
pub async fn delete_key(tx: &WriteTx, user_id: &UserId, usage: &KeyUsage) -> Result<(), Error> {
    tx.execute(
        "DELETE FROM cross_signing_keys WHERE user_id = $1 AND key_usage = $2",
        [user_id.as_str().into(), usage.as_str().into()],
    )
    .await?;
    Ok(())
}

/// Deletes the cross-signing keys of an account that is closed, and all signatures that it made or got. Its shard is
/// locked. What it signed of others is noted there as in [`crate::keys::note_user_signature`]; the caller notes the change of its own
/// keys ([`crate::keys::note_device_list_change`]).
///
/// # Errors
/// The shard is not locked ([`WriteTx::lock_shards`]); the database's own.
pub async fn delete_of_user(tx: &WriteTx, user_id: &UserId) -> Result<(), Error> {
    for sql in
        ["DELETE FROM cross_signing_keys WHERE user_id = $1", "DELETE FROM key_signatures WHERE user_id = $1"]
    {
        tx.execute(sql, [user_id.as_str().into()]).await?;
    }
    let sql = "DELETE FROM key_signatures WHERE signer_id = $1 RETURNING user_id";
    let rows = tx.query(sql, [user_id.as_str().into()]).await?;
    let signed: BTreeSet<OwnedUserId> = rows
        .iter()
        .map(|row| streams::user_id(row, "key_signatures", "user_id"))
        .collect::<Result<_, _>>()?;
    let shard = tx.shards().of_user(user_id);
    let changes = signed.into_iter().map(|signed| (shard, signed));
    streams::append_user_changes(tx, changes, UserChange::DeviceList).await
}

/// The signatures on the keys of these users that `viewer` may see: the owners' own, and the viewer's.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn visible_signatures(
    tx: &ReadTx,
    user_ids: &[&UserId],
    viewer: &UserId,
) -> Result<Signatures, Error> {
    read_signatures(tx, user_ids, Some(viewer)).await
}

/// All signatures on the keys of these users. A signature on somebody else's key is nobody's business but the signer's.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn signatures_on(tx: &ReadTx, user_ids: &[&UserId]) -> Result<Signatures, Error> {
    read_signatures(tx, user_ids, None).await
}

async fn read_signatures(
    tx: &ReadTx,
    user_ids: &[&UserId],
    viewer: Option<&UserId>,
) -> Result<Signatures, Error> {
    let mut signatures = Signatures::new();
    for chunk in user_ids.chunks(tx.rows_a_statement(1)) {
        let (users, mut values) = tx.any_of(1, chunk.iter().map(|user_id| user_id.as_str()));
        let mut sql = format!(
            "SELECT user_id, key_id, signer_id, signer_key_id, signature FROM key_signatures \
             WHERE user_id {users}"
        );
        if let Some(viewer) = viewer {
            values.push(viewer.as_str().into());
            sql.push_str(&format!(" AND signer_id IN (user_id, ${})", values.len()));
        }
        for row in tx.query(&sql, values).await? {
            let (signed, signature) = read_signature(&row)?;
            signatures.entry(signed).or_default().push(signature);
        }
    }
    Ok(signatures)
}

fn read_signature(row: &QueryResult) -> Result<(SignedKey, KeySignature), Error> {
    let user_id = streams::user_id(row, "key_signatures", "user_id")?;
    let signature = KeySignature {
        signer_id: row.try_get("", "signer_id")?,
        signer_key_id: row.try_get("", "signer_key_id")?,
        signature: row.try_get("", "signature")?,
    };
    Ok((SignedKey { user_id, key_id: row.try_get("", "key_id")? }, signature))
}

/// Those of these users on whose keys there are more than `most` signatures of others.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn signed_by_many(
    tx: &ReadTx,
    user_ids: &[&UserId],
    most: u32,
) -> Result<BTreeSet<OwnedUserId>, Error> {
    let mut found = BTreeSet::new();
    for chunk in user_ids.chunks(tx.rows_a_statement(1)) {
        let (users, values) = tx.list(1, chunk.iter().map(|user_id| user_id.as_str()));
        let sql = format!(
            "WITH wanted (user_id) AS ({users}) SELECT user_id FROM wanted WHERE ( \
                 SELECT 1 FROM key_signatures s WHERE s.user_id = wanted.user_id AND s.signer_id <> s.user_id \
                 LIMIT 1 OFFSET {most}) = 1"
        );
        for row in tx.query(&sql, values).await? {
            found.insert(streams::user_id(&row, "key_signatures", "user_id")?);
        }
    }
    Ok(found)
}

/// Stores signatures that were checked, each in place of the former one by the same key. The caller notes the changes.
///
/// # Errors
/// The database's own.
pub async fn put_signatures(tx: &WriteTx, signatures: Signatures) -> Result<(), Error> {
    let rows = signatures
        .into_iter()
        .flat_map(|(signed, signatures)| {
            // By signing key, or the statement would touch a row twice.
            let by_key: BTreeMap<_, _> = signatures
                .into_iter()
                .map(|signature| ((signature.signer_id, signature.signer_key_id), signature.signature))
                .collect();
            by_key.into_iter().map(move |((signer_id, signer_key_id), signature)| {
                vec![
                    signed.user_id.as_str().into(),
                    signed.key_id.as_str().into(),
                    signer_id.into(),
                    signer_key_id.into(),
                    signature.into(),
                ]
            })
        })
        .collect();
    tx.insert_rows(
        "key_signatures",
        &["user_id", "key_id", "signer_id", "signer_key_id", "signature"],
        rows,
        "ON CONFLICT (user_id, key_id, signer_id, signer_key_id) DO UPDATE SET signature = excluded.signature",
    )
    .await
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;
    use crate::store::tests::store;

    fn key(usage: KeyUsage, public_key: &str) -> CrossSigningKey {
        CrossSigningKey {
            user_id: user_id!("@a:x").to_owned(),
            usage,
            public_key: public_key.to_owned(),
            json: "{}".to_owned(),
        }
    }

    fn signature(signer: &str) -> KeySignature {
        KeySignature {
            signer_id: signer.to_owned(),
            signer_key_id: "ed25519:K".to_owned(),
            signature: format!("by {signer}"),
        }
    }

    #[tokio::test]
    async fn signatures_are_seen_by_everybody_or_by_their_signer_and_go_with_a_replaced_key() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let (a, b, c) = (user_id!("@a:x"), user_id!("@b:x"), user_id!("@c:x"));
        let signed = SignedKey { user_id: a.to_owned(), key_id: "M1".to_owned() };
        let of = |viewer: &'static UserId| {
            store.read("test", move |tx| async move { visible_signatures(&tx, &[a], viewer).await })
        };
        store
            .write("test", |tx| {
                let signed = signed.clone();
                async move {
                    put_key(&tx, &key(KeyUsage::Master, "M1")).await?;
                    put_key(&tx, &key(KeyUsage::SelfSigning, "S1")).await?;
                    let twice = vec![signature("@a:x"), signature("@b:x"), signature("@b:x")];
                    put_signatures(&tx, BTreeMap::from([(signed, twice)])).await
                }
            })
            .await
            .unwrap();
        assert_eq!(of(b).await.unwrap()[&signed], [signature("@a:x"), signature("@b:x")]);
        assert_eq!(of(c).await.unwrap()[&signed], [signature("@a:x")]);
        let by_more_than =
            |most| store.read("test", move |tx| async move { signed_by_many(&tx, &[a, b], most).await });
        assert_eq!(by_more_than(0).await.unwrap(), BTreeSet::from([a.to_owned()]));
        assert!(by_more_than(1).await.unwrap().is_empty(), "the owner's own do not count");

        let keys = store
            .write("test", |tx| async move {
                put_key(&tx, &key(KeyUsage::Master, "M2")).await?;
                delete_key(&tx, a, &KeyUsage::SelfSigning).await?;
                keys_of(&tx, &[a, b]).await
            })
            .await
            .unwrap();
        assert_eq!(keys, [key(KeyUsage::Master, "M2")]);
        assert!(of(b).await.unwrap().is_empty());

        let left = store
            .write("test", |tx| async move {
                let signed = SignedKey { user_id: b.to_owned(), key_id: "M".to_owned() };
                put_signatures(&tx, BTreeMap::from([(signed, vec![signature("@a:x")])])).await?;
                tx.lock_shards(&[tx.shards().of_user(a)]).await?;
                delete_of_user(&tx, a).await?;
                Ok::<_, Error>((keys_of(&tx, &[a]).await?, signatures_on(&tx, &[b]).await?))
            })
            .await
            .unwrap();
        assert_eq!(left, (Vec::new(), BTreeMap::new()));
        let shard = store.shards().of_user(a);
        let changed = store
            .read(
                "test",
                move |tx| async move { crate::keys::device_list_changes(&tx, shard, 0, i64::MAX).await },
            )
            .await
            .unwrap();
        assert_eq!(changed, [b.to_owned()], "b's keys look different to those who remember them");
    }
}
