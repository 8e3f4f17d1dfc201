//! Starting and stopping: the soft stop on SIGTERM, the hard one on a second signal.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Tells every part of the server that it is about to stop, and knows which requests are still being answered.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    leaving: CancellationToken,
    draining: CancellationToken,
    tasks: TaskTracker,
}

impl Shutdown {
    /// Says that the soft stop will begin soon: readiness fails and connections are not kept, but requests are still taken, for load
    /// balancers need a moment to send them elsewhere.
    pub fn leave(&self) {
        self.leaving.cancel();
    }

    /// Whether clients and load balancers should go elsewhere.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.leaving.is_cancelled()
    }

    /// Begins the soft stop: readiness fails, long-polls answer, listeners close.
    pub fn begin(&self) {
        self.leaving.cancel();
        self.draining.cancel();
        self.tasks.close();
    }

    /// Whether the soft stop has begun.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Waits for the soft stop to begin; a long-poll returns early then.
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// The tasks that a soft stop waits for.
    #[must_use]
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Waits until all tasks have ended; only sensible after [`Shutdown::begin`].
    pub async fn drained(&self) {
        self.tasks.wait().await;
    }
}

/// The signals that ask the process to stop.
#[derive(Debug)]
pub struct StopSignals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl StopSignals {
    /// Takes over SIGTERM and SIGINT from the default action.
    ///
    /// # Errors
    ///
    /// When the operating system refuses.
    pub fn install() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next of them.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn draining_wakes_waiters_and_waits_for_tasks() {
        let shutdown = Shutdown::default();
        let (done, wait) = tokio::sync::oneshot::channel::<()>();
        shutdown.tasks().spawn(async move {
            let _ = wait.await;
        });
        assert!(!shutdown.is_leaving());
        shutdown.leave();
        assert!(shutdown.is_leaving() && !shutdown.is_draining());
        shutdown.begin();
        shutdown.draining().await;
        assert!(shutdown.is_draining());
        assert!(!shutdown.tasks().is_empty());
        drop(done);
        shutdown.drained().await;
    }
}
