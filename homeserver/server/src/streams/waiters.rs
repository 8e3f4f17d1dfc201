//! The syncs that wait, by user.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ruma::{OwnedUserId, UserId};
use tokio::sync::{Notify, futures::OwnedNotified};

/// Who waits.
#[derive(Debug, Default)]
pub struct Waiters(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    users: HashMap<OwnedUserId, (usize, Arc<Notify>)>,
    /// Whether anybody has begun to wait since that was last asked.
    has_begun: bool,
}

/// One sync that waits for news of its user; dropping it ends the wait.
#[derive(Debug)]
pub struct Waiter {
    waiters: Arc<Waiters>,
    user_id: OwnedUserId,
    notify: Arc<Notify>,
}

impl Waiters {
    /// Begins to wait for news of a user; `first` is called if nobody waited before.
    pub fn register(self: &Arc<Self>, user_id: &UserId, first: impl FnOnce()) -> Waiter {
        let mut waiting = self.lock();
        if waiting.users.is_empty() {
            first();
        }
        waiting.has_begun = true;
        let (count, notify) = waiting.users.entry(user_id.to_owned()).or_default();
        *count += 1;
        Waiter { waiters: self.clone(), user_id: user_id.to_owned(), notify: notify.clone() }
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.lock().users.is_empty()
    }

    /// Calls `then` if nobody waits and nobody has begun to since the last call; whoever is `first` after that is so after `then`.
    pub fn if_quiet(&self, then: impl FnOnce()) {
        let mut waiting = self.lock();
        if !std::mem::take(&mut waiting.has_begun) && waiting.users.is_empty() {
            then();
        }
    }

    /// Wakes the syncs of a user.
    pub fn wake(&self, user_id: &UserId) {
        if let Some((_, notify)) = self.lock().users.get(user_id) {
            notify.notify_waiters();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter {
    /// Resolves at the next news. News that comes after this call, even before the first poll, is not missed.
    pub fn news(&self) -> OwnedNotified {
        self.notify.clone().notified_owned()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let users = &mut self.waiters.lock().users;
        if let Some((count, _)) = users.get_mut(&self.user_id) {
            *count -= 1;
            if *count == 0 {
                users.remove(&self.user_id);
            }
        }
    }
}
