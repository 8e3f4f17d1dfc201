//! The syncs that wait, by user.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use ruma::{OwnedUserId, UserId};
use tokio::sync::{Notify, futures::OwnedNotified};

/// Who waits.
#[derive(Debug, Default)]
pub struct Waiters {
    users: Mutex<HashMap<OwnedUserId, (usize, Arc<Notify>)>>,
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
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = users.is_empty();
        let (count, notify) = users.entry(user_id.to_owned()).or_default();
        *count += 1;
        let waiter = Waiter { waiters: self.clone(), user_id: user_id.to_owned(), notify: notify.clone() };
        drop(users);
        if is_first {
            first();
        }
        waiter
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.users.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Wakes the syncs of a user.
    pub fn wake(&self, user_id: &UserId) {
        let users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, notify)) = users.get(user_id) {
            notify.notify_waiters();
        }
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
        let mut users = self.waiters.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((count, _)) = users.get_mut(&self.user_id) {
            *count -= 1;
            if *count == 0 {
                users.remove(&self.user_id);
            }
        }
    }
}
