//! Randomness as an argument: the only place of the server that draws from the system's generator.

use std::sync::{Mutex, PoisonError};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

/// The letters and digits of identifiers that people may have to read aloud: no 0/O, 1/I/l.
const READABLE: &[u8; 32] = b"ABCDEFGHJKLMNPQRSTUVWXYZ23456789";

/// A source of unpredictable bytes, fit for keys and tokens.
pub trait Entropy: Send + Sync {
    /// Fills `bytes` with random bytes.
    fn fill(&self, bytes: &mut [u8]);
}

impl dyn Entropy + '_ {
    /// `N` random bytes.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }

    /// A secret of 256 random bits, as 43 characters of unpadded URL-safe base64.
    pub fn token(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.bytes::<32>())
    }

    /// `length` random capital letters and digits (5 bits each) that are not easily mistaken for each other.
    pub fn readable(&self, length: usize) -> String {
        let mut bytes = vec![0; length];
        self.fill(&mut bytes);
        bytes
            .into_iter()
            .filter_map(|byte| READABLE.get(usize::from(byte % 32)).copied())
            .map(char::from)
            .collect()
    }
}

/// The generator of the operating system, by way of a cryptographic generator per thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that draws system randomness")]
    fn fill(&self, bytes: &mut [u8]) {
        rand::rng().fill_bytes(bytes);
    }
}

/// The same bytes in every run; for tests only.
#[derive(Debug)]
pub struct SeededEntropy(Mutex<StdRng>);

impl SeededEntropy {
    /// A source whose every output follows from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }
}

impl Entropy for SeededEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeded_entropy_repeats_itself_and_system_entropy_does_not() {
        let (a, b): (&dyn Entropy, &dyn Entropy) = (&SeededEntropy::new(7), &SeededEntropy::new(7));
        assert_eq!(a.token(), b.token());
        let system: &dyn Entropy = &SystemEntropy;
        assert_ne!(system.token(), system.token());
    }

    #[test]
    fn tokens_and_readable_strings_have_their_length_and_alphabet() {
        let entropy: &dyn Entropy = &SystemEntropy;
        assert_eq!(entropy.token().len(), 43);
        let id = entropy.readable(10);
        assert_eq!(id.len(), 10);
        assert!(id.bytes().all(|byte| READABLE.contains(&byte)));
    }
}
