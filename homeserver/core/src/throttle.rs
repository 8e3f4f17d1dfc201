//! The growing time-out after failed logins (section 10 of the KeyBox profile's specification).
//!
//! The count and the time of the last failure are rows that all replicas share; this is only the arithmetic.

use std::time::Duration;

use ruma::MilliSecondsSinceUnixEpoch;

/// This many failures cost nothing yet but the next attempt has to wait.
pub const FREE_FAILURES: u32 = 3;
/// The wait after the last free failure; each further failure doubles it.
pub const FIRST_WAIT: Duration = Duration::from_secs(15);
/// No wait is longer: whoever knows the password must not be kept out for ever by somebody who does not.
pub const LONGEST_WAIT: Duration = Duration::from_secs(15 * 60);
/// Failures are forgotten after this long without a new one.
pub const MEMORY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long, from `now`, the next attempt has to wait; `None` if it may be made at once.
///
/// `failures` is the number of failures in a row, `last_failure` the time of the last one.
pub fn wait(
    failures: u32,
    last_failure: MilliSecondsSinceUnixEpoch,
    now: MilliSecondsSinceUnixEpoch,
) -> Option<Duration> {
    if is_forgotten(last_failure, now) {
        return None;
    }
    penalty(failures).checked_sub(elapsed(last_failure, now)).filter(|left| !left.is_zero())
}

/// The count to store when one more attempt fails at `now`.
pub fn failures_after(
    failures: u32,
    last_failure: MilliSecondsSinceUnixEpoch,
    now: MilliSecondsSinceUnixEpoch,
) -> u32 {
    if is_forgotten(last_failure, now) { 1 } else { failures.saturating_add(1) }
}

/// Whether the failures are so old that they no longer count.
pub fn is_forgotten(last_failure: MilliSecondsSinceUnixEpoch, now: MilliSecondsSinceUnixEpoch) -> bool {
    elapsed(last_failure, now) >= MEMORY
}

/// The whole wait that so many failures in a row cost.
fn penalty(failures: u32) -> Duration {
    let Some(doublings) = failures.checked_sub(FREE_FAILURES) else { return Duration::ZERO };
    let factor = 2_u32.checked_pow(doublings).unwrap_or(u32::MAX);
    FIRST_WAIT.checked_mul(factor).unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT)
}

/// Clocks of replicas differ a little: a failure in the future happened just now.
fn elapsed(since: MilliSecondsSinceUnixEpoch, now: MilliSecondsSinceUnixEpoch) -> Duration {
    Duration::from_millis(u64::from(now.get()).saturating_sub(u64::from(since.get())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ruma::UInt;

    use super::*;

    fn at(seconds: u32) -> MilliSecondsSinceUnixEpoch {
        MilliSecondsSinceUnixEpoch(UInt::from(seconds) * UInt::from(1000_u32))
    }

    #[test]
    fn grows_from_the_third_failure_and_is_capped() {
        let table = [
            (0, 0),
            (1, 0),
            (2, 0),
            (3, 15),
            (4, 30),
            (5, 60),
            (8, 480),
            (9, 900),
            (40, 900),
            (u32::MAX, 900),
        ];
        for (failures, seconds) in table {
            let expected = (seconds > 0).then(|| Duration::from_secs(seconds));
            assert_eq!(wait(failures, at(1000), at(1000)), expected, "{failures}");
        }
    }

    #[test]
    fn time_that_passed_counts() {
        assert_eq!(wait(4, at(1000), at(1010)), Some(Duration::from_secs(20)));
        assert_eq!(wait(4, at(1000), at(1030)), None);
        assert_eq!(wait(4, at(1030), at(1000)), Some(Duration::from_secs(30)));
    }

    #[test]
    fn a_quiet_day_forgets() {
        let day = 24 * 60 * 60;
        assert_eq!(failures_after(7, at(0), at(day - 1)), 8);
        assert_eq!(failures_after(7, at(0), at(day)), 1);
        assert_eq!(failures_after(u32::MAX, at(0), at(1)), u32::MAX);
    }

    proptest! {
        #[test]
        fn more_failures_never_wait_less(failures in 0_u32..100, elapsed in 0_u32..2000) {
            prop_assert!(wait(failures, at(0), at(elapsed)) <= wait(failures + 1, at(0), at(elapsed)));
        }
    }
}
