//! Doing one operation again and again, in a closed or an open loop.

use std::{
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until},
};

use crate::{
    Error,
    api::Failure,
    report::{self, Latencies},
};

/// How many operations of an open loop may be under way: beyond that the generator itself would be what is measured.
const MOST_IN_FLIGHT: usize = 20_000;
/// How often the generator looks whether it is late itself.
const TICK: Duration = Duration::from_millis(10);

/// How an operation is repeated.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// So many in flight: the next begins when one ends.
    Closed(usize),
    /// So many a second, whatever the server does.
    Open(f64),
}

/// When a run ends.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// After a time.
    After(Duration),
    /// After so many operations.
    Count(u64),
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// When the first began, in seconds since 1970.
    pub began: f64,
    /// The operations that succeeded.
    pub operations: u64,
    /// The others.
    pub failures: Vec<Failure>,
    /// The latencies of those that succeeded, from the time at which they were due.
    pub latencies: Latencies,
    /// From the first to the end of the last.
    pub elapsed: Duration,
    /// How late the generator itself was: its timers' lateness.
    pub stalls: Latencies,
}

/// One operation's place in the run.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Its number.
    pub number: u64,
    /// The lane: no two operations of one lane are under way at once.
    pub lane: u64,
    /// When it was due.
    pub due: Instant,
}

/// Repeats an operation. In an open loop each operation has a lane of its own.
///
/// # Errors
/// There is no memory for the latencies. Failures of operations are part of the outcome.
pub async fn drive<F, Fut>(pace: Pace, end: End, operation: F) -> Result<Outcome, Error>
where
    F: Fn(Turn) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Failure>> + Send + 'static,
{
    let operation = Arc::new(operation);
    let start = Instant::now();
    let stalls = Stalls::watch()?;
    let mut outcome = Outcome {
        began: report::since_1970().as_secs_f64(),
        operations: 0,
        failures: Vec::new(),
        latencies: Latencies::new()?,
        elapsed: Duration::ZERO,
        stalls: Latencies::new()?,
    };
    match pace {
        Pace::Closed(lanes) => closed(lanes.max(1), end, start, &operation, &mut outcome).await?,
        Pace::Open(rate) => open(rate, end, start, &operation, &mut outcome).await,
    }
    outcome.elapsed = start.elapsed();
    outcome.stalls = stalls.end();
    Ok(outcome)
}

/// How late this process itself is: how long after its time a timer of ten milliseconds is served. Where that is much, latencies and late long-polls tell of the
/// machine, not of the server.
struct Stalls {
    seen: Arc<Mutex<Latencies>>,
    watch: AbortHandle,
}

impl Stalls {
    fn watch() -> Result<Self, Error> {
        let seen = Arc::new(Mutex::new(Latencies::new()?));
        let noted = Arc::clone(&seen);
        let watch = tokio::spawn(async move {
            loop {
                let due = Instant::now() + TICK;
                sleep_until(due).await;
                noted.lock().unwrap_or_else(PoisonError::into_inner).record(due.elapsed());
            }
        });
        Ok(Self { seen, watch: watch.abort_handle() })
    }

    fn end(self) -> Latencies {
        self.watch.abort();
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn closed<F, Fut>(
    lanes: usize,
    end: End,
    start: Instant,
    operation: &Arc<F>,
    outcome: &mut Outcome,
) -> Result<(), Error>
where
    F: Fn(Turn) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Failure>> + Send + 'static,
{
    let numbers = Arc::new(AtomicU64::new(0));
    let mut running = JoinSet::new();
    for lane in 0..lanes {
        let (operation, numbers, mut latencies) = (operation.clone(), numbers.clone(), Latencies::new()?);
        let lane = u64::try_from(lane).unwrap_or(u64::MAX);
        running.spawn(async move {
            let mut failures = Vec::new();
            loop {
                let number = numbers.fetch_add(1, Ordering::Relaxed);
                let due = Instant::now();
                let is_over = match end {
                    End::After(time) => due.duration_since(start) >= time,
                    End::Count(count) => number >= count,
                };
                if is_over {
                    return (latencies, failures);
                }
                match operation(Turn { number, lane, due }).await {
                    Ok(()) => latencies.record(due.elapsed()),
                    Err(failure) => failures.push(failure),
                }
            }
        });
    }
    while let Some(done) = running.join_next().await {
        let (latencies, failures) = done.map_err(|error| Error::server("an operation", error))?;
        outcome.operations += latencies.count();
        outcome.latencies.add(&latencies);
        outcome.failures.extend(failures);
    }
    Ok(())
}

async fn open<F, Fut>(rate: f64, end: End, start: Instant, operation: &Arc<F>, outcome: &mut Outcome)
where
    F: Fn(Turn) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Failure>> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(MOST_IN_FLIGHT));
    let mut running = JoinSet::new();
    let mut due = start;
    let interval = Duration::from_secs_f64(1.0 / rate.max(1e-3));
    for number in 0.. {
        let is_over = match end {
            End::After(time) => due.duration_since(start) >= time,
            End::Count(count) => number >= count,
        };
        if is_over {
            break;
        }
        sleep_until(due).await;
        let permit = room.clone().acquire_owned().await;
        let operation = operation.clone();
        running.spawn(async move {
            let result = operation(Turn { number, lane: number, due }).await;
            drop(permit);
            (result, due.elapsed())
        });
        while let Some(done) = running.try_join_next() {
            outcome.take(done);
        }
        due += interval;
    }
    while let Some(done) = running.join_next().await {
        outcome.take(done);
    }
}

impl Outcome {
    fn take(&mut self, done: Result<(Result<(), Failure>, Duration), tokio::task::JoinError>) {
        match done {
            Ok((Ok(()), latency)) => {
                self.operations += 1;
                self.latencies.record(latency);
            }
            Ok((Err(failure), _)) => self.failures.push(failure),
            Err(error) => self.failures.push(Failure(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_open_loop_charges_a_stall_to_all_that_had_to_wait() {
        // A server with one place that stalls for a second at the first operation, then takes a millisecond.
        let server = Arc::new(tokio::sync::Mutex::new(true));
        let outcome = drive(Pace::Open(100.0), End::Count(100), move |_| {
            let server = server.clone();
            async move {
                let mut stalls = server.lock().await;
                let time = if *stalls { 1_000 } else { 1 };
                *stalls = false;
                tokio::time::sleep(Duration::from_millis(time)).await;
                Ok(())
            }
        })
        .await
        .unwrap();
        assert_eq!(outcome.operations, 100);
        // Half of them came while the server stalled: a closed loop would have shown one slow operation.
        assert!(outcome.latencies.summary().percentiles["50"] > 400.0, "{:?}", outcome.latencies.summary());
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_loop_keeps_so_many_in_flight_and_its_lanes_apart() {
        let state = Arc::new(Mutex::new((0_usize, 0_usize, std::collections::HashSet::new())));
        let shared = state.clone();
        let outcome = drive(Pace::Closed(4), End::Count(40), move |turn| {
            let shared = shared.clone();
            async move {
                {
                    let mut state = shared.lock().unwrap();
                    assert!(state.2.insert(turn.lane), "two of one lane");
                    state.0 += 1;
                    state.1 = state.1.max(state.0);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
                let mut state = shared.lock().unwrap();
                state.0 -= 1;
                state.2.remove(&turn.lane);
                if turn.number == 7 { Err(Failure("seven".to_owned())) } else { Ok(()) }
            }
        })
        .await
        .unwrap();
        assert_eq!(outcome.operations, 39);
        assert_eq!(outcome.failures, [Failure("seven".to_owned())]);
        assert_eq!(state.lock().unwrap().1, 4);
        assert_eq!(outcome.elapsed, Duration::from_millis(100));
    }

    #[tokio::test]
    async fn a_generator_that_comes_to_a_standstill_says_so() {
        let stalls = Stalls::watch().unwrap();
        sleep_until(Instant::now() + TICK / 2).await;
        // Holds the only thread of this runtime.
        let until = Instant::now() + 20 * TICK;
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        sleep_until(Instant::now() + 2 * TICK).await;
        let seen = stalls.end().summary();
        assert!(seen.max > 100.0, "{seen:?}");
    }
}
