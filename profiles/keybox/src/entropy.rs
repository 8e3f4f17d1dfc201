//! Where random bytes come from.

use crate::primitives::CryptoError;

/// A source of random bytes. An argument of everything that draws some, so that tests and vectors can repeat.
pub trait Entropy {
    /// Fills `buffer` with random bytes that an attacker cannot guess, or fails without a usable result.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), CryptoError>;
}

/// OpenSSL's random generator: what a KeyBox uses.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpensslEntropy;

impl Entropy for OpensslEntropy {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), CryptoError> {
        Ok(openssl::rand::rand_priv_bytes(buffer)?)
    }
}

/// Draws an array of `N` random bytes.
pub(crate) fn random<const N: usize>(entropy: &mut dyn Entropy) -> Result<[u8; N], CryptoError> {
    let mut bytes = [0; N];
    entropy.fill(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Repeatable bytes: SHA-256 in counter mode over a seed. For tests and vectors only.
    pub(crate) struct SeededEntropy {
        seed: String,
        block: u64,
    }

    impl SeededEntropy {
        pub(crate) fn new(seed: &str) -> Self {
            Self { seed: seed.to_owned(), block: 0 }
        }
    }

    impl Entropy for SeededEntropy {
        fn fill(&mut self, buffer: &mut [u8]) -> Result<(), CryptoError> {
            for chunk in buffer.chunks_mut(32) {
                let digest = crate::sha256(format!("{}:{}", self.seed, self.block).as_bytes());
                self.block += 1;
                chunk.copy_from_slice(&digest[..chunk.len()]);
            }
            Ok(())
        }
    }

    #[test]
    fn openssl_bytes_differ_from_draw_to_draw() {
        let first: [u8; 32] = random(&mut OpensslEntropy).unwrap();
        let second: [u8; 32] = random(&mut OpensslEntropy).unwrap();
        assert_ne!(first, second);
    }
}
