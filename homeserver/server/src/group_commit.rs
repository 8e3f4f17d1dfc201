//! Group commit: one task that does, in one transaction, all that has queued while the last one was under way.
//!
//! An idle server waits for nothing, and a busy one makes transactions larger instead of more. Once queued, work is done even
//! if nobody waits for its result any longer.

use std::{collections::HashSet, future::Future, hash::Hash};

use keystead_store::{Error, TransactionError};
use prometheus::Histogram;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::{http::error::ApiError, telemetry::request};

/// How much work may wait; more is refused, so that a flood is slowed at its source.
const QUEUE: usize = 2_048;
/// How much a batch weighs at most, the last piece in it not counted.
const ENOUGH: usize = 8_192;

/// Work that is done in batches.
pub trait Batches: Send + Sync + 'static {
    /// A piece of it.
    type Work: Send + Sync;
    /// What no two pieces of a batch may have in common: the second waits, and finds the first one done.
    type Key: Eq + Hash + Send;
    /// What comes of a piece.
    type Output: Send;

    /// See [`Batches::Key`]; `None` if it may stand beside any other.
    fn key(work: &Self::Work) -> Option<Self::Key>;

    /// About how many rows it makes.
    fn weight(work: &Self::Work) -> usize;

    /// Does all of `work` in one transaction: the result of each, in their order, or why the transaction failed. A refusal of
    /// one must leave nothing of it behind.
    fn commit(
        &self,
        work: &[Self::Work],
    ) -> impl Future<Output = Result<Vec<Result<Self::Output, ApiError>>, ApiError>> + Send;
}

/// Where a result is waited for.
type Answer<B> = oneshot::Sender<Result<<B as Batches>::Output, ApiError>>;

/// The way to have work done. Its task ends with it.
pub struct GroupCommit<B: Batches> {
    queue: mpsc::Sender<(B::Work, Answer<B>)>,
}

/// Why work was not taken, or has no result.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NotDone {
    /// Too much waits already.
    #[error("too much waits to be written")]
    Busy,
    /// The server is stopping, or the transaction came to an unforeseen end.
    #[error("the writer has ended")]
    Ended,
}

impl<B: Batches> GroupCommit<B> {
    /// Starts the task. `sizes` hears how many pieces of work each batch has.
    pub fn start(batches: B, sizes: Histogram) -> Self {
        let (queue, queued) = mpsc::channel(QUEUE);
        tokio::spawn(run(std::sync::Arc::new(batches), sizes, queued));
        Self { queue }
    }

    /// How many pieces of work wait.
    pub fn waiting(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    /// Queues a piece of work and waits for its result.
    ///
    /// # Errors
    /// 429 if too much waits already, 503 while the server stops; whatever the work itself comes to.
    pub async fn submit(&self, work: B::Work) -> Result<B::Output, ApiError> {
        let asked = Instant::now();
        let (answer, answered) = oneshot::channel();
        self.queue.try_send((work, answer)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NotDone::Busy,
            mpsc::error::TrySendError::Closed(_) => NotDone::Ended,
        })?;
        let result = answered.await;
        request::note("group_commit", asked.elapsed());
        result.map_err(|_| NotDone::Ended)?
    }
}

async fn run<B: Batches>(
    batches: std::sync::Arc<B>,
    sizes: Histogram,
    mut queued: mpsc::Receiver<(B::Work, Answer<B>)>,
) {
    while let Some(first) = queued.recv().await {
        let mut weight = B::weight(&first.0);
        let mut batch = vec![first];
        while weight < ENOUGH
            && let Ok(next) = queued.try_recv()
        {
            weight += B::weight(&next.0);
            batch.push(next);
        }
        sizes.observe(f64::from(u32::try_from(batch.len()).unwrap_or(u32::MAX)));
        let batches = batches.clone();
        // A panic ends one batch, not the task: those who wait for it see their senders gone.
        if let Err(error) = tokio::spawn(async move { rounds(&*batches, batch).await }).await {
            tracing::error!(error = &error as &dyn std::error::Error, "a group commit failed");
        }
    }
}

/// Does a batch in as many rounds as its keys demand.
async fn rounds<B: Batches>(batches: &B, mut batch: Vec<(B::Work, Answer<B>)>) {
    while !batch.is_empty() {
        let mut seen = HashSet::new();
        let (now, later): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|(work, _)| B::key(work).is_none_or(|key| seen.insert(key)));
        let (work, answers): (Vec<B::Work>, Vec<Answer<B>>) = now.into_iter().unzip();
        for (answer, result) in answers.into_iter().zip(all_or_each(batches, &work).await) {
            // Whoever asked may have gone; what was done stays done.
            let _ = answer.send(result);
        }
        batch = later;
    }
}

/// If the database refuses a transaction for what one piece of its work says, each is tried alone, so that nobody fails for
/// somebody else.
async fn all_or_each<B: Batches>(batches: &B, work: &[B::Work]) -> Vec<Result<B::Output, ApiError>> {
    match batches.commit(work).await {
        Ok(results) => results,
        Err(error) if work.len() > 1 && error.store_error().is_some_and(Error::is_about_data) => {
            let mut results = Vec::with_capacity(work.len());
            for piece in work {
                match batches.commit(std::slice::from_ref(piece)).await {
                    Ok(result) => results.extend(result),
                    Err(error) => results.push(Err(error)),
                }
            }
            results
        }
        Err(error) => work.iter().map(|_| Err(error.shared())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http::StatusCode;
    use tokio::sync::Semaphore;

    use super::*;

    /// Multiplies by ten. Numbers of the same last digit must not meet; 13 panics; 7 is what the database does not take.
    #[derive(Clone, Default)]
    struct Tens {
        batches: Arc<Mutex<Vec<Vec<u32>>>>,
        gate: Option<Arc<Semaphore>>,
    }

    impl Batches for Tens {
        type Work = u32;
        type Key = u32;
        type Output = u32;

        fn key(work: &u32) -> Option<u32> {
            Some(work % 10)
        }

        fn weight(_: &u32) -> usize {
            ENOUGH / 4
        }

        async fn commit(&self, work: &[u32]) -> Result<Vec<Result<u32, ApiError>>, ApiError> {
            if let Some(gate) = &self.gate {
                gate.acquire().await.unwrap().forget();
            }
            assert!(!work.contains(&13));
            self.batches.lock().unwrap().push(work.to_vec());
            if work.contains(&7) {
                return Err(Error::InvalidText.into());
            }
            Ok(work.iter().map(|n| Ok(n * 10)).collect())
        }
    }

    fn sizes() -> Histogram {
        Histogram::with_opts(prometheus::HistogramOpts::new("sizes", "Sizes.")).unwrap()
    }

    /// Queues all while the first one's commit is under way.
    async fn submit_all(tens: &Tens, work: &[u32]) -> Vec<Result<u32, StatusCode>> {
        let gate = Arc::new(Semaphore::new(0));
        let group = Arc::new(GroupCommit::start(Tens { gate: Some(gate.clone()), ..tens.clone() }, sizes()));
        let mut waiting = Vec::new();
        for n in work.iter().copied() {
            let group = group.clone();
            waiting.push(tokio::spawn(async move { group.submit(n).await }));
            // The tasks of one thread take turns: after this one the queue's has had its turn, too.
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
        }
        gate.add_permits(100);
        let mut results = Vec::new();
        for result in waiting {
            results.push(result.await.unwrap().map_err(|error| error.status()));
        }
        results
    }

    #[tokio::test]
    async fn what_queues_during_a_commit_goes_into_the_next_one_together() {
        let tens = Tens::default();
        let results = submit_all(&tens, &[0, 1, 2, 3, 4, 5]).await;
        assert_eq!(results, [0, 10, 20, 30, 40, 50].map(Ok));
        assert_eq!(*tens.batches.lock().unwrap(), [vec![0], vec![1, 2, 3, 4], vec![5]]);
    }

    #[tokio::test]
    async fn what_must_not_meet_is_done_one_after_the_other() {
        let tens = Tens::default();
        let results = submit_all(&tens, &[0, 1, 11, 2]).await;
        assert_eq!(results, [0, 10, 110, 20].map(Ok));
        assert_eq!(*tens.batches.lock().unwrap(), [vec![0], vec![1, 2], vec![11]]);
    }

    #[tokio::test]
    async fn what_the_database_refuses_fails_alone() {
        let tens = Tens::default();
        let results = submit_all(&tens, &[0, 1, 7, 2]).await;
        assert_eq!(results, [Ok(0), Ok(10), Err(StatusCode::BAD_REQUEST), Ok(20)]);
    }

    #[tokio::test]
    async fn a_panic_ends_its_batch_alone() {
        let group = GroupCommit::start(Tens::default(), sizes());
        let status = group.submit(13).await.map_err(|error| error.status());
        assert_eq!(status, Err(StatusCode::SERVICE_UNAVAILABLE));
        assert_eq!(group.submit(14).await.ok(), Some(140));
    }
}
