//! The fence: what a client wrote through one replica, it reads through any other.

use std::{sync::Arc, time::Duration};

use keystead_store::Error;
use tokio::{
    sync::{mpsc, oneshot},
    time::MissedTickBehavior,
};

use super::Tail;

/// The least time from one look at the database to the next: a busy replica looks once for many requests.
const LOOK_EVERY: Duration = Duration::from_millis(4);

/// Makes requests wait until this replica has read everything that was committed before they came.
#[derive(Debug)]
pub struct Fence {
    requests: mpsc::UnboundedSender<Request>,
}

type Request = oneshot::Sender<Result<(), Arc<Error>>>;

impl Fence {
    /// A fence before what `tail` knows. Its task ends with the fence.
    pub fn new(tail: Arc<Tail>) -> Self {
        let (requests, queue) = mpsc::unbounded_channel();
        tokio::spawn(serve(tail, queue));
        Self { requests }
    }

    /// Waits until everything that was committed before this call is in this replica's memory.
    ///
    /// # Errors
    /// The database cannot be asked.
    pub async fn pass(&self) -> Result<(), Arc<Error>> {
        let (answer, answered) = oneshot::channel();
        let ended = |_| Arc::new(Error::Setup("The server is stopping".to_owned()));
        self.requests.send(answer).map_err(|_| ended(()))?;
        answered.await.map_err(|_| ended(()))?
    }
}

/// One look at the database serves all requests that came before it; none that came after it had begun, because what they
/// have to see may have been committed since.
async fn serve(tail: Arc<Tail>, mut queue: mpsc::UnboundedReceiver<Request>) {
    let mut pace = tokio::time::interval(LOOK_EVERY);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while let Some(first) = queue.recv().await {
        pace.tick().await;
        let mut waiting = vec![first];
        while let Ok(next) = queue.try_recv() {
            waiting.push(next);
        }
        let positions = tail.store().positions().await.map_err(Arc::new);
        let tail = tail.clone();
        // The next look need not wait until the tail is there.
        tokio::spawn(async move {
            if let Ok(positions) = &positions {
                tail.all_reached(positions).await;
            }
            for request in waiting {
                // A request whose client hung up no longer waits.
                let _ = request.send(positions.as_ref().map(|_| ()).map_err(Arc::clone));
            }
        });
    }
}
