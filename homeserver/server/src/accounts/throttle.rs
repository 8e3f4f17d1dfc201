//! After some failed logins in a row the account waits, and so does the address that they came from: longer each
//! time, counted for all replicas together. Sessions that exist are not concerned. Section 10 of the KeyBox profile.
//!
//! Attempts at the same moment gain nothing: an attempt that was right is refused as well if the account was blocked
//! while its password was being compared.

use std::{net::IpAddr, time::Duration};

use keystead_store::{
    ReadTx, WriteTx,
    login_failures::{self, Failures},
};
use ruma::{MilliSecondsSinceUnixEpoch, UInt, UserId};

use crate::{app::App, http::error::ApiError};

/// From this failure in a row on, the account waits.
const ACCOUNT_FAILURES: u32 = 3;
/// From this failure in a row on, the address waits: many people may share one.
const ADDRESS_FAILURES: u32 = 30;
/// The first time-out; each failure doubles it.
const FIRST_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest time-out.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// After this long without a failure, counting begins anew.
const FORGET_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// The account and the address of a login.
#[derive(Clone, Debug)]
pub struct Attempt {
    account: String,
    address: String,
}

impl Attempt {
    /// An attempt to log in as `user_id` from `address`.
    #[must_use]
    pub fn new(user_id: &UserId, address: IpAddr) -> Self {
        Self { account: format!("account {user_id}"), address: format!("address {}", network(address)) }
    }

    fn subjects(&self) -> [(&str, u32); 2] {
        [(&self.account, ACCOUNT_FAILURES), (&self.address, ADDRESS_FAILURES)]
    }

    /// Refuses the attempt while the account or the address has to wait; tells whether the account has failures.
    ///
    /// # Errors
    ///
    /// 429 `M_LIMIT_EXCEEDED`, saying how long.
    pub async fn check(&self, tx: &ReadTx, now: MilliSecondsSinceUnixEpoch) -> Result<bool, ApiError> {
        let failures = login_failures::find(tx, &self.subjects().map(|(subject, _)| subject)).await?;
        match failures.values().map(|failures| failures.blocked_until_ts).max() {
            Some(until) if until > now => Err(blocked(until, now)),
            _ => Ok(failures.contains_key(&self.account)),
        }
    }

    /// Counts a failed attempt.
    ///
    /// # Errors
    ///
    /// When the database cannot be reached.
    pub async fn failed(&self, app: &App) -> Result<(), ApiError> {
        let now = app.clock.now();
        app.store
            .write("login_failed", |tx| async move {
                login_failures::forget_older(&tx, earlier(now, FORGET_AFTER)).await?;
                for (subject, allowed) in self.subjects() {
                    count(&tx, subject, allowed, now).await?;
                }
                Ok(())
            })
            .await
    }

    /// Forgets the account's failures after a login with the right password; refuses it if the account was blocked
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// 429 `M_LIMIT_EXCEEDED`, saying how long.
    pub async fn succeeded(&self, app: &App) -> Result<(), ApiError> {
        let now = app.clock.now();
        let has_failures =
            app.store.read_one("login_failures", |tx| async move { self.check(&tx, now).await }).await?;
        if has_failures {
            app.store
                .write("login_succeeded", |tx| async move {
                    self.check(&tx, now).await?;
                    Ok::<_, ApiError>(login_failures::forget(&tx, &self.account).await?)
                })
                .await?;
        }
        Ok(())
    }
}

async fn count(
    tx: &WriteTx,
    subject: &str,
    allowed: u32,
    now: MilliSecondsSinceUnixEpoch,
) -> Result<(), keystead_store::Error> {
    login_failures::lock(tx, subject).await?;
    let before = login_failures::find(tx, &[subject]).await?;
    let before = before.get(subject).map_or(0, |failures| failures.count);
    let count = before.saturating_add(1);
    let blocked_until_ts = blocked_until(count, allowed, now);
    login_failures::put(tx, subject, Failures { count, newest_ts: now, blocked_until_ts }).await
}

/// Until when to wait after this many failures in a row, of which so many go unpunished; for one of those not even until now: whoever came at
/// the same moment, or to a replica whose clock is behind, would be refused.
fn blocked_until(failures: u32, allowed: u32, now: MilliSecondsSinceUnixEpoch) -> MilliSecondsSinceUnixEpoch {
    let epoch = MilliSecondsSinceUnixEpoch(UInt::MIN);
    timeout(failures, allowed).map_or(epoch, |timeout| later(now, timeout))
}

/// How long to wait after this many failures in a row, of which so many go unpunished.
fn timeout(failures: u32, allowed: u32) -> Option<Duration> {
    let doublings = failures.checked_sub(allowed)?;
    let factor = 2_u32.checked_pow(doublings).unwrap_or(u32::MAX);
    Some(FIRST_TIMEOUT.saturating_mul(factor).min(LONGEST_TIMEOUT))
}

fn blocked(until: MilliSecondsSinceUnixEpoch, now: MilliSecondsSinceUnixEpoch) -> ApiError {
    let wait = Duration::from_millis(u64::from(until.get()).saturating_sub(now.get().into()));
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    ApiError::limit_exceeded(wait).saying(format!("Too many failed logins: wait {seconds} seconds"))
}

/// The network that counts as one address: a household has a /64 of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let prefix = address.to_bits() & (u128::MAX << 64);
            IpAddr::V6(prefix.into())
        }
    }
}

fn later(ts: MilliSecondsSinceUnixEpoch, by: Duration) -> MilliSecondsSinceUnixEpoch {
    let by = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
    MilliSecondsSinceUnixEpoch(UInt::new_saturating(u64::from(ts.get()).saturating_add(by)))
}

fn earlier(ts: MilliSecondsSinceUnixEpoch, by: Duration) -> MilliSecondsSinceUnixEpoch {
    let by = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
    MilliSecondsSinceUnixEpoch(UInt::new_saturating(u64::from(ts.get()).saturating_sub(by)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_begins_at_the_third_failure_and_doubles_up_to_a_limit() {
        let seconds = |failures| timeout(failures, 3).map(|timeout| timeout.as_secs());
        assert_eq!([seconds(2), seconds(3), seconds(4), seconds(5)], [None, Some(5), Some(10), Some(20)]);
        assert_eq!([seconds(11), seconds(1_000)], [Some(900), Some(900)]);
    }

    #[test]
    fn failures_that_go_unpunished_block_nobody_whatever_the_clock_says() {
        let now = MilliSecondsSinceUnixEpoch(1_000_000_u32.into());
        assert_eq!(blocked_until(2, 3, now).get(), UInt::MIN);
        assert_eq!(blocked_until(3, 3, now), later(now, FIRST_TIMEOUT));
    }

    #[test]
    fn a_household_is_one_address() {
        let network = |text: &str| network(text.parse().unwrap()).to_string();
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(network("192.0.2.1"), "192.0.2.1");
    }
}
