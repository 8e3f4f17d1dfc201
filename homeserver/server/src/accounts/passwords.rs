//! Hashing passwords, on a bounded number of threads.
//!
//! bcrypt looks at the first 72 bytes only and stops at a zero byte. So what it gets is the base64 form (64 characters) of the
//! SHA-384 hash of the password: every byte of a password of any length counts. Stored as `bcrypt-sha384:` and bcrypt's own form.

use std::{sync::Arc, thread::available_parallelism};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bcrypt::Version;
use openssl::sha::sha384;
use prometheus::IntGauge;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::{entropy::Entropy, http::error::ApiError};

const SCHEME: &str = "bcrypt-sha384:";

/// Hashes and compares passwords.
pub struct Passwords {
    cost: u32,
    threads: Semaphore,
    queue: IntGauge,
    /// The hash of no password, so that the answer for an unknown account takes as long as for a known one.
    decoy: String,
}

/// Why a password could not be hashed.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// bcrypt refuses its input.
    #[error("bcrypt failed")]
    Bcrypt(#[from] bcrypt::BcryptError),
    /// The stored hash is of a kind that this version does not know.
    #[error("the stored hash of the password is of an unknown kind")]
    UnknownScheme,
}

impl Passwords {
    /// A hasher of this cost. `queue` counts the passwords that wait or are being hashed.
    ///
    /// # Errors
    ///
    /// When bcrypt does not take the cost.
    pub fn new(cost: u32, queue: IntGauge, entropy: &dyn Entropy) -> Result<Self, PasswordError> {
        let threads = available_parallelism().map_or(1, std::num::NonZero::get);
        let decoy = hash(&entropy.token(), cost, entropy.bytes())?;
        Ok(Self { cost, threads: Semaphore::new(threads), queue, decoy })
    }

    /// Hashes a new password.
    ///
    /// # Errors
    ///
    /// 500 when bcrypt fails.
    pub async fn hash(&self, entropy: &dyn Entropy, password: &str) -> Result<String, ApiError> {
        let (password, salt, cost) = (Zeroizing::new(password.to_owned()), entropy.bytes(), self.cost);
        self.run(move || hash(&password, cost, salt)).await
    }

    /// Whether a password is the one that was hashed. Takes as long when there is no hash.
    ///
    /// # Errors
    ///
    /// 500 when the hash cannot be read.
    pub async fn verify(&self, password: &str, stored: Option<&str>) -> Result<bool, ApiError> {
        let is_known = stored.is_some();
        let stored = stored.unwrap_or(&self.decoy).to_owned();
        let password = Zeroizing::new(password.to_owned());
        Ok(self.run(move || verify(&password, &stored)).await? && is_known)
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, PasswordError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let _queued = Queued::new(&self.queue);
        let _thread = self.threads.acquire().await.map_err(ApiError::internal)?;
        tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)?.map_err(ApiError::internal)
    }
}

/// Counts one password in the queue, for as long as it is in it.
struct Queued<'a>(&'a IntGauge);

impl<'a> Queued<'a> {
    fn new(queue: &'a IntGauge) -> Self {
        queue.inc();
        Self(queue)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn hash(password: &str, cost: u32, salt: [u8; 16]) -> Result<String, PasswordError> {
    let parts = bcrypt::hash_with_salt(condense(password), cost, salt)?;
    Ok(format!("{SCHEME}{}", parts.format_for_version(Version::TwoB)))
}

fn verify(password: &str, stored: &str) -> Result<bool, PasswordError> {
    let stored = stored.strip_prefix(SCHEME).ok_or(PasswordError::UnknownScheme)?;
    Ok(bcrypt::verify(condense(password), stored)?)
}

fn condense(password: &str) -> Arc<[u8]> {
    STANDARD.encode(sha384(password.as_bytes())).into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::SystemEntropy;

    fn passwords() -> Passwords {
        Passwords::new(4, IntGauge::new("queue", "queue").unwrap(), &SystemEntropy).unwrap()
    }

    #[tokio::test]
    async fn only_the_same_password_is_accepted() {
        let passwords = passwords();
        let hash = passwords.hash(&SystemEntropy, "correct horse").await.unwrap();
        assert!(hash.starts_with("bcrypt-sha384:$2b$04$"), "{hash}");
        assert!(passwords.verify("correct horse", Some(&hash)).await.unwrap());
        assert!(!passwords.verify("correct Horse", Some(&hash)).await.unwrap());
        assert!(!passwords.verify("correct horse", None).await.unwrap());
        assert!(passwords.verify("x", Some("md5:1")).await.is_err());
    }

    #[tokio::test]
    async fn every_byte_of_a_long_password_counts() {
        let passwords = passwords();
        let long = "a".repeat(100);
        let hash = passwords.hash(&SystemEntropy, &long).await.unwrap();
        assert!(passwords.verify(&long, Some(&hash)).await.unwrap());
        assert!(!passwords.verify(&format!("{}b", "a".repeat(99)), Some(&hash)).await.unwrap());
        let nul = passwords.hash(&SystemEntropy, "a\0b").await.unwrap();
        assert!(!passwords.verify("a\0c", Some(&nul)).await.unwrap());
    }

    #[tokio::test]
    async fn one_password_has_many_hashes() {
        let passwords = passwords();
        let first = passwords.hash(&SystemEntropy, "same").await.unwrap();
        assert_ne!(first, passwords.hash(&SystemEntropy, "same").await.unwrap());
    }
}
