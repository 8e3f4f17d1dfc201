//! Claims of one-time keys.

use std::collections::{BTreeMap, BTreeSet};

use crate::{group_commit::Batches, http::error::ApiError};
use keystead_store::{
    Error, Store, WriteTx,
    keys::{self, Claimed, Wanted},
};

/// Hands out one-time keys, each once.
pub struct KeyClaims {
    store: Store,
}

impl KeyClaims {
    /// Hands out what is in this database.
    pub fn new(store: Store) -> Self {
        Self { store }
    }
}

impl Batches for KeyClaims {
    type Work = BTreeSet<Wanted>;
    type Key = ();
    type Output = Vec<Claimed>;

    fn key(_: &Self::Work) -> Option<()> {
        None
    }

    fn weight(wanted: &Self::Work) -> usize {
        wanted.len()
    }

    async fn commit(&self, claims: &[Self::Work]) -> Result<Vec<Result<Vec<Claimed>, ApiError>>, ApiError> {
        let claimed = self.store.write("claim_keys", |tx| async move { claim(&tx, claims).await }).await?;
        Ok(claimed.into_iter().map(Ok).collect())
    }
}

async fn claim(tx: &WriteTx, claims: &[BTreeSet<Wanted>]) -> Result<Vec<Vec<Claimed>>, Error> {
    // The counts of each of these users are about to change.
    tx.lock_shards_of(claims.iter().flatten().map(|wanted| &*wanted.user_id)).await?;
    let mut given: Vec<Vec<Claimed>> = claims.iter().map(|_| Vec::new()).collect();
    // Who wants a key of which device; of those who want one of the same, one is served a round.
    let mut waiting: BTreeMap<&Wanted, Vec<usize>> = BTreeMap::new();
    for (number, claim) in claims.iter().enumerate().rev() {
        claim.iter().for_each(|wanted| waiting.entry(wanted).or_default().push(number));
    }
    let mut changed = BTreeSet::new();
    while !waiting.is_empty() {
        let wanted: BTreeSet<&Wanted> = waiting.keys().copied().collect();
        let mut claimed = keys::claim(tx, &wanted).await?;
        waiting.retain(|wanted, numbers| {
            let place = numbers.pop().and_then(|number| given.get_mut(number));
            match (claimed.remove(*wanted), place) {
                (Some(key), Some(place)) => {
                    changed.insert(key.user_id.clone());
                    place.push(key);
                    !numbers.is_empty()
                }
                // There is no key left, for the others neither.
                _ => false,
            }
        });
    }
    keys::note_one_time_keys(tx, changed).await?;
    Ok(given)
}
