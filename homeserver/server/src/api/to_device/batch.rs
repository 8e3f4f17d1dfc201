//! One transaction for all calls that have queued while the last one was under way.
//!
//! What the database is asked is asked for all calls together: who has which devices, whose inboxes are full, which calls
//! were made before. A call that is refused does not hold up the others.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use keystead_core::shard::Shard;
use keystead_store::{
    Error, ReadTx, TransactionError, WriteTx, devices, keybox_log,
    keys::Device,
    streams::ToDeviceMessage,
    to_device::{self, CROWDED, Inbox},
    transactions::{self, ClientTransaction},
};
use ruma::UserId;

use super::{Appended, Call, Devices, InboxCounts};
use crate::{
    group_commit::Batches,
    http::error::ApiError,
    streams::{Entry, Item, Tail},
};

/// Stores messages to devices.
pub struct ToDeviceMessages {
    /// What is committed is offered to it, so that this replica need not read it back.
    tail: Arc<Tail>,
    inboxes: Arc<InboxCounts>,
}

impl ToDeviceMessages {
    /// Stores in the database that `tail` follows, and of whose rows it tells `inboxes`.
    pub fn new(tail: Arc<Tail>, inboxes: Arc<InboxCounts>) -> Self {
        Self { tail, inboxes }
    }
}

impl Batches for ToDeviceMessages {
    type Work = Call;
    type Key = ClientTransaction;
    type Output = Appended;

    fn key(call: &Call) -> Option<ClientTransaction> {
        Some(call.transaction.clone())
    }

    fn weight(call: &Call) -> usize {
        call.targets.len().max(1)
    }

    async fn commit(&self, calls: &[Call]) -> Result<Vec<Result<Appended, ApiError>>, ApiError> {
        let batch = &Batch { calls, inboxes: &self.inboxes };
        let committed =
            self.tail.store().write("send_to_device", |tx| async move { batch.append(&tx).await }).await?;
        for (shard, (before, entries)) in committed.streams {
            self.tail.offer(shard, before, entries, &[]);
        }
        Ok(committed.results)
    }
}

struct Batch<'a> {
    calls: &'a [Call],
    inboxes: &'a InboxCounts,
}

/// What the transaction left behind.
struct Committed {
    /// What became of each call.
    results: Vec<Result<Appended, ApiError>>,
    /// Of each shard where it stood before, and what came then.
    streams: BTreeMap<Shard, (i64, Vec<Entry>)>,
}

impl Batch<'_> {
    async fn append(&self, tx: &WriteTx) -> Result<Committed, ApiError> {
        let used = self.used(tx).await?;
        let before = self.known_devices(tx, &used).await?;
        let shards: BTreeSet<Shard> = self.unmade(&used).flat_map(|call| call.shards(tx, &before)).collect();
        if shards.is_empty() {
            let nothing = || Ok(Appended::default());
            return Ok(Committed {
                results: self.calls.iter().map(|_| nothing()).collect(),
                streams: BTreeMap::new(),
            });
        }
        let inboxes = self.unmade(&used).flat_map(|call| call.inboxes(&before)).collect();
        let full = self.full_inboxes(tx, inboxes).await?;
        tx.lock_shards(&shards.into_iter().collect::<Vec<_>>()).await?;
        tx.announce_to_others_only();
        // The same call through another replica, and whoever deletes a recipient's device, held the same shards.
        let used = self.used(tx).await?;
        let mut known = self.known_devices(tx, &used).await?;
        known.retain(|user_id, _| before.contains_key(user_id));

        let mut results = Vec::with_capacity(self.calls.len());
        let (mut messages, mut log, mut done) = (Vec::new(), Vec::new(), Vec::new());
        for call in self.calls {
            if used.contains_key(&call.transaction) {
                results.push(Ok(Appended::default()));
                continue;
            }
            match call.admit(tx, &known, &full).await {
                Ok(admitted) => {
                    results.push(Ok(admitted.appended));
                    messages.extend(admitted.messages);
                    log.extend(admitted.log);
                    done.push((call.transaction.clone(), String::new()));
                }
                // What the database could not do concerns all.
                Err(error) if error.store_error().is_some() => return Err(error),
                Err(refusal) => results.push(Err(refusal)),
            }
        }
        let streams = append_messages(tx, messages).await?;
        let now = self.calls.iter().map(|call| call.now).max();
        if let Some(now) = now {
            keybox_log::append(tx, log, now).await?;
            transactions::insert(tx, done, now).await?;
        }
        Ok(Committed { results, streams })
    }

    /// The calls that were made before.
    async fn used(&self, tx: &ReadTx) -> Result<HashMap<ClientTransaction, String>, Error> {
        transactions::find_used(tx, &self.calls.iter().map(|call| &call.transaction).collect::<Vec<_>>())
            .await
    }

    /// The calls that were not.
    fn unmade(&self, used: &HashMap<ClientTransaction, String>) -> impl Iterator<Item = &Call> {
        self.calls.iter().filter(|call| !used.contains_key(&call.transaction))
    }

    /// Those that take no more from their sender. Messages are counted only where there may be many.
    async fn full_inboxes(
        &self,
        tx: &ReadTx,
        mut inboxes: BTreeSet<Inbox>,
    ) -> Result<BTreeSet<Inbox>, Error> {
        let device = |inbox: &Inbox| (inbox.user_id.clone(), inbox.device_id.clone());
        let devices: BTreeSet<Device> = inboxes.iter().map(device).collect();
        let waiting = to_device::waiting(tx, &self.inboxes.begin(devices.iter())).await?;
        self.inboxes.finish(&waiting);
        inboxes.retain(|inbox| waiting.get(&device(inbox)).is_some_and(|waiting| *waiting >= CROWDED));
        to_device::full_inboxes(tx, &inboxes).await
    }

    /// The devices of all users whom these calls name.
    async fn known_devices(
        &self,
        tx: &ReadTx,
        used: &HashMap<ClientTransaction, String>,
    ) -> Result<Devices, Error> {
        let users: BTreeSet<&UserId> = self.unmade(used).flat_map(Call::users).collect();
        devices::ids_of_users(tx, &users.into_iter().collect::<Vec<_>>()).await
    }
}

/// Stores messages, and gives back what each shard got.
async fn append_messages(
    tx: &WriteTx,
    messages: Vec<ToDeviceMessage>,
) -> Result<BTreeMap<Shard, (i64, Vec<Entry>)>, Error> {
    let positions = to_device::append(tx, &messages).await?;
    let mut streams: BTreeMap<Shard, (i64, Vec<Entry>)> = BTreeMap::new();
    for (position, message) in positions.into_iter().zip(messages) {
        let shard = tx.shards().of_user(&message.user_id);
        let stream = streams.entry(shard).or_insert_with(|| (tx.locked_position(shard), Vec::new()));
        stream.1.push(Entry { position, item: Item::ToDevice(Arc::new(message)) });
    }
    Ok(streams)
}
