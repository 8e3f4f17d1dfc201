//! Group commit: one task that does, in one transaction, all that has queued while the last one was under way.
//!
//! An idle server waits for nothing, and a busy one makes transactions larger instead of more. Once queued, work is done even
//! if nobody waits for its result any longer.

use std::future::Future;

use tokio::sync::{mpsc, oneshot};

/// How much work may wait; more is refused, so that a flood is slowed at its source.
const QUEUE: usize = 2_048;

/// The way to have work done. Its task ends with it.
pub struct GroupCommit<W, R> {
    queue: mpsc::Sender<(W, oneshot::Sender<R>)>,
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

impl<W: Send + 'static, R: Send + 'static> GroupCommit<W, R> {
    /// Starts the task. `commit` gets what has queued, at least one piece of it, and gives the result of each in their order.
    ///
    /// A batch ends when the `weight` of all that is in it has reached `enough`.
    pub fn start<F, Fut>(enough: usize, weight: fn(&W) -> usize, commit: F) -> Self
    where
        F: Fn(Vec<W>) -> Fut + Send + 'static,
        Fut: Future<Output = Vec<R>> + Send + 'static,
    {
        let (queue, mut queued) = mpsc::channel::<(W, oneshot::Sender<R>)>(QUEUE);
        tokio::spawn(async move {
            while let Some(first) = queued.recv().await {
                let mut total = weight(&first.0);
                let mut batch = vec![first];
                while total < enough
                    && let Ok(next) = queued.try_recv()
                {
                    total += weight(&next.0);
                    batch.push(next);
                }
                let (work, waiting): (Vec<W>, Vec<_>) = batch.into_iter().unzip();
                // A panic ends one batch, not the task: those who wait for it see their senders gone.
                match tokio::spawn(commit(work)).await {
                    Ok(results) => {
                        for (answer, result) in waiting.into_iter().zip(results) {
                            // Whoever asked may have gone; what was done stays done.
                            let _ = answer.send(result);
                        }
                    }
                    Err(error) => {
                        tracing::error!(error = &error as &dyn std::error::Error, "a group commit failed");
                    }
                }
            }
        });
        Self { queue }
    }

    /// Queues a piece of work and waits for its result.
    ///
    /// # Errors
    /// [`NotDone`] says why there is none.
    pub async fn submit(&self, work: W) -> Result<R, NotDone> {
        let (answer, answered) = oneshot::channel();
        self.queue.try_send((work, answer)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NotDone::Busy,
            mpsc::error::TrySendError::Closed(_) => NotDone::Ended,
        })?;
        answered.await.map_err(|_| NotDone::Ended)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn what_queues_during_a_commit_goes_into_the_next_one_together() {
        let (batches, gate) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Semaphore::new(0)));
        let (seen, opened) = (batches.clone(), gate.clone());
        let group = Arc::new(GroupCommit::start(
            4,
            |_: &u32| 1,
            move |work: Vec<u32>| {
                let (seen, opened) = (seen.clone(), opened.clone());
                async move {
                    opened.acquire().await.unwrap().forget();
                    seen.lock().unwrap().push(work.clone());
                    work.into_iter().map(|n| n * 10).collect()
                }
            },
        ));
        let submit = |n| {
            let group = group.clone();
            tokio::spawn(async move { group.submit(n).await })
        };
        let mut waiting = Vec::new();
        for n in 0..6 {
            waiting.push(submit(n));
            // In order; the first is taken alone, since nothing else is there yet.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
        }
        gate.add_permits(3);
        for (n, result) in waiting.into_iter().enumerate() {
            assert_eq!(result.await.unwrap(), Ok(u32::try_from(n).unwrap() * 10));
        }
        assert_eq!(*batches.lock().unwrap(), [vec![0], vec![1, 2, 3, 4], vec![5]]);
    }

    #[tokio::test]
    async fn a_panic_ends_its_batch_alone() {
        let group = GroupCommit::start(
            1,
            |_: &u32| 1,
            |work: Vec<u32>| async move {
                assert_ne!(work, [13]);
                work
            },
        );
        assert_eq!(group.submit(13).await, Err(NotDone::Ended));
        assert_eq!(group.submit(14).await, Ok(14));
    }
}
