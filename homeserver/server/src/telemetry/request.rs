//! What the access log and the trace tell about a request besides the answer; gathered while the request is worked on.

use std::{
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use keystead_store::QueryStats;
use ruma::{OwnedUserId, UserId};

use super::traces::RequestTrace;

tokio::task_local! {
    static RECORD: Arc<RequestRecord>;
}

/// Facts about one request.
#[derive(Debug, Default)]
pub struct RequestRecord {
    requester: OnceLock<OwnedUserId>,
    database: OnceLock<QueryStats>,
    trace: Option<Box<RequestTrace>>,
}

impl RequestRecord {
    /// A record of a request that may be traced.
    #[must_use]
    pub fn new(trace: Option<RequestTrace>) -> Self {
        Self { trace: trace.map(Box::new), ..Self::default() }
    }

    /// Its trace, if it is traced.
    #[must_use]
    pub fn trace(&self) -> Option<&RequestTrace> {
        self.trace.as_deref()
    }

    /// The user who asked, once known.
    #[must_use]
    pub fn requester(&self) -> Option<&str> {
        self.requester.get().map(|user| user.as_str())
    }

    /// What the database did for it; nothing if it ended before its time.
    #[must_use]
    pub fn database(&self) -> QueryStats {
        self.database.get().copied().unwrap_or_default()
    }

    /// Notes what the database did for it.
    pub fn set_database(&self, stats: QueryStats) {
        // Noted once, by the task that ran the request.
        let _ = self.database.set(stats);
    }
}

/// Runs `future` with `record` as the one that [`set_requester`] writes to.
pub fn scope<F: Future>(record: Arc<RequestRecord>, future: F) -> impl Future<Output = F::Output> {
    RECORD.scope(record, future)
}

/// Notes who asks, once the access token is checked.
pub fn set_requester(user: &UserId) {
    // Outside of a request, in a test for instance, there is no log line to write to.
    let _ = RECORD.try_with(|record| record.requester.set(user.to_owned()));
}

/// Notes in the trace of the current request, if it has one, that something has just ended that took so long.
pub fn note(name: &'static str, took: Duration) {
    // Outside of a request there is no trace.
    let _ = RECORD.try_with(|record| {
        if let Some(trace) = record.trace() {
            trace.note(name, took);
        }
    });
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;

    #[tokio::test]
    async fn the_requester_is_noted_in_the_requests_own_record() {
        let record = Arc::new(RequestRecord::default());
        set_requester(user_id!("@nobody:x"));
        scope(Arc::clone(&record), async { set_requester(user_id!("@a:x")) }).await;
        assert_eq!(record.requester(), Some("@a:x"));
    }
}
