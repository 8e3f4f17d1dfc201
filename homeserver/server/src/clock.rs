//! Time as an argument: the only place of the server that reads the system's clock.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use ruma::{MilliSecondsSinceUnixEpoch, UInt};

/// Tells the time of day.
///
/// Whatever is measured (time-outs, durations for metrics) uses tokio's monotonic clock instead.
pub trait Clock: Send + Sync {
    /// The present time, in milliseconds since the epoch.
    fn now(&self) -> MilliSecondsSinceUnixEpoch;
}

/// The clock of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the system's clock")]
    fn now(&self) -> MilliSecondsSinceUnixEpoch {
        // A machine whose clock stands before 1970 gets 1970.
        MilliSecondsSinceUnixEpoch::from_system_time(SystemTime::now())
            .unwrap_or(MilliSecondsSinceUnixEpoch(UInt::MIN))
    }
}

/// A clock that stands still until it is moved; for tests.
#[derive(Debug, Default)]
pub struct SettableClock(AtomicU64);

impl SettableClock {
    /// A clock that shows `millis` milliseconds since the epoch.
    #[must_use]
    pub fn at(millis: u64) -> Self {
        Self(AtomicU64::new(millis))
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.0.fetch_add(millis, Ordering::SeqCst);
    }
}

impl Clock for SettableClock {
    fn now(&self) -> MilliSecondsSinceUnixEpoch {
        MilliSecondsSinceUnixEpoch(UInt::new_saturating(self.0.load(Ordering::SeqCst)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_settable_clock_moves_only_when_told() {
        let clock = SettableClock::at(1_000);
        assert_eq!(clock.now(), clock.now());
        clock.advance(Duration::from_secs(2));
        assert_eq!(u64::from(clock.now().get()), 3_000);
    }

    #[test]
    fn the_system_clock_is_past_2020() {
        assert!(u64::from(SystemClock.now().get()) > 1_577_836_800_000);
    }
}
