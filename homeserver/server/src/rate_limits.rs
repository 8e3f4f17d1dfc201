//! Rate limits: a client that asks too often is told to wait.
//!
//! Each replica counts for itself, so behind a load balancer the limits are that many times higher: they protect the
//! server's resources. What protects accounts (failed logins) is counted for all replicas together, in the database.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use ruma::MilliSecondsSinceUnixEpoch;

use crate::http::error::ApiError;

/// How many buckets are kept; at this point full ones, which say nothing, are dropped.
const MAX_BUCKETS: usize = 100_000;

/// What is limited, each for itself.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Limit {
    /// Logins from an address.
    Login,
    /// Events that a user sends.
    Messages,
    /// Registrations, and questions about registration tokens, from an address.
    Registration,
    /// Reports to the administrators by a user.
    Reports,
    /// Requests that the specification calls rate-limited, by user or, without one, by address.
    Requests,
    /// Searches for words, and lists of notifications, by a user.
    Searches,
    /// Files that a user uploads.
    Uploads,
    /// Pages on the web that a user wants to be looked at.
    UrlPreviews,
}

impl Limit {
    /// How many may come at once, and how many a second from then on.
    fn rate(self) -> (f64, f64) {
        match self {
            Self::Login => (20.0, 0.5),
            Self::Messages => (100.0, 20.0),
            Self::Registration => (20.0, 0.2),
            Self::Reports => (20.0, 0.1),
            Self::Requests => (300.0, 30.0),
            Self::Searches => (30.0, 1.0),
            Self::Uploads => (50.0, 1.0),
            Self::UrlPreviews => (20.0, 0.5),
        }
    }
}

/// Token buckets.
#[derive(Debug)]
pub struct RateLimits {
    is_enabled: bool,
    buckets: Mutex<HashMap<(Limit, String), Bucket>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at_ms: u64,
}

impl RateLimits {
    /// Full buckets for everybody; without limits if not enabled.
    #[must_use]
    pub fn new(is_enabled: bool) -> Self {
        Self { is_enabled, buckets: Mutex::default() }
    }

    /// Takes a token out of the bucket of `subject`: a user or an address.
    ///
    /// # Errors
    ///
    /// 429 `M_LIMIT_EXCEEDED` with the time until the next token.
    pub fn take(&self, limit: Limit, subject: &str, now: MilliSecondsSinceUnixEpoch) -> Result<(), ApiError> {
        if !self.is_enabled {
            return Ok(());
        }
        let now = u64::from(now.get());
        let (burst, per_second) = limit.rate();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MAX_BUCKETS {
            buckets.retain(|(limit, _), bucket| bucket.tokens_at(now, *limit) < limit.rate().0);
        }
        let bucket =
            buckets.entry((limit, subject.to_owned())).or_insert(Bucket { tokens: burst, at_ms: now });
        let tokens = bucket.tokens_at(now, limit);
        if tokens < 1.0 {
            return Err(ApiError::limit_exceeded(Duration::from_secs_f64((1.0 - tokens) / per_second)));
        }
        *bucket = Bucket { tokens: tokens - 1.0, at_ms: now };
        Ok(())
    }
}

impl Bucket {
    fn tokens_at(self, now_ms: u64, limit: Limit) -> f64 {
        let (burst, per_second) = limit.rate();
        let passed = Duration::from_millis(now_ms.saturating_sub(self.at_ms));
        (self.tokens + passed.as_secs_f64() * per_second).min(burst)
    }
}

#[cfg(test)]
mod tests {
    use ruma::UInt;

    use super::*;

    fn at(millis: u64) -> MilliSecondsSinceUnixEpoch {
        MilliSecondsSinceUnixEpoch(UInt::new_saturating(millis))
    }

    #[test]
    fn a_burst_is_taken_then_the_rate() {
        let limits = RateLimits::new(true);
        for _ in 0..20 {
            limits.take(Limit::Login, "a", at(0)).unwrap();
        }
        assert_eq!(limits.take(Limit::Login, "a", at(0)).unwrap_err().status(), 429);
        assert!(limits.take(Limit::Login, "b", at(0)).is_ok());
        assert!(limits.take(Limit::Registration, "a", at(0)).is_ok());
        assert!(limits.take(Limit::Login, "a", at(1_999)).is_err());
        assert!(limits.take(Limit::Login, "a", at(2_000)).is_ok());
        assert!(limits.take(Limit::Login, "a", at(2_000)).is_err());
    }

    #[test]
    fn limits_can_be_switched_off() {
        let limits = RateLimits::new(false);
        assert!((0..1_000).all(|_| limits.take(Limit::Login, "a", at(0)).is_ok()));
    }
}
