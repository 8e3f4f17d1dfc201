//! Where random bytes come from.

use std::cell::RefCell;

use crate::primitives::CryptoError;

/// A source of random bytes. An argument of everything that draws some, so that tests and vectors can repeat.
pub trait Entropy {
    /// Fills `buffer` with random bytes that an attacker cannot guess, or fails without a usable result.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), CryptoError>;

    /// Fills `buffer` with random bytes that are published at once, such as the IV of a message: they must not repeat, but need
    /// not be secret.
    fn fill_public(&mut self, buffer: &mut [u8]) -> Result<(), CryptoError> {
        self.fill(buffer)
    }
}

/// OpenSSL's random generator: what a KeyBox uses.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpensslEntropy;

impl Entropy for OpensslEntropy {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), CryptoError> {
        Ok(openssl::rand::rand_priv_bytes(buffer)?)
    }

    fn fill_public(&mut self, buffer: &mut [u8]) -> Result<(), CryptoError> {
        POOL.with_borrow_mut(|pool| pool.draw(buffer))
    }
}

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { bytes: [0; POOL_BYTES], left: 0, process: 0 }) };
}

/// Bytes drawn from OpenSSL's generator at once: it takes as long for one IV as for a whole pool, longer than a short message.
const POOL_BYTES: usize = 512;

/// Random bytes of this thread that nobody has been given. Nothing secret is made of them.
struct Pool {
    bytes: [u8; POOL_BYTES],
    /// How many of the last of `bytes` have not been given out.
    left: usize,
    /// The process that drew them. After a fork both processes have them: neither may go on with what the other has.
    process: u32,
}

impl Pool {
    fn draw(&mut self, buffer: &mut [u8]) -> Result<(), CryptoError> {
        let process = std::process::id();
        if process != self.process || self.left < buffer.len() {
            self.left = 0;
            openssl::rand::rand_bytes(&mut self.bytes)?;
            (self.left, self.process) = (POOL_BYTES, process);
        }
        let fresh = self.bytes.get(POOL_BYTES - self.left..).unwrap_or_default();
        match fresh.get(..buffer.len()) {
            Some(fresh) => buffer.copy_from_slice(fresh),
            None => return Ok(openssl::rand::rand_bytes(buffer)?),
        }
        self.left -= buffer.len();
        Ok(())
    }
}

/// Draws an array of `N` random bytes that are published at once.
pub(crate) fn random_public<const N: usize>(entropy: &mut dyn Entropy) -> Result<[u8; N], CryptoError> {
    let mut bytes = [0; N];
    entropy.fill_public(&mut bytes)?;
    Ok(bytes)
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

    /// Of any length, also longer than the pool: no byte is given out twice, whoever draws.
    #[test]
    fn public_bytes_are_given_out_once() {
        let draw = |lengths: &[usize]| {
            let lengths = lengths.to_vec();
            std::thread::spawn(move || {
                let mut drawn = Vec::new();
                for length in lengths {
                    let mut bytes = vec![0; length];
                    OpensslEntropy.fill_public(&mut bytes).unwrap();
                    drawn.extend_from_slice(&bytes);
                }
                drawn
            })
        };
        let lengths = [16, 12, 12, 16, 0, 500, 12, 511, 512, 513, 5000, 16, 16].repeat(4);
        let (one, other) = (draw(&lengths), draw(&lengths));
        let all = [one.join().unwrap(), other.join().unwrap()].concat();
        assert_eq!(all.len(), 2 * lengths.iter().sum::<usize>());
        // Of 8 random bytes no two are the same, and none is left as it was.
        let mut seen: Vec<_> = all.chunks_exact(8).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), all.len() / 8);
        assert!(!seen.contains(&[0; 8].as_slice()));
    }

    #[test]
    fn public_bytes_are_of_the_entropy_that_was_asked() {
        let draws = |seed: &str| -> [[u8; 16]; 2] {
            let mut entropy = SeededEntropy::new(seed);
            [random_public(&mut entropy).unwrap(), random_public(&mut entropy).unwrap()]
        };
        let [first, second] = draws("one");
        assert_eq!(draws("one"), [first, second]);
        assert!(first != second && draws("other")[0] != first);
    }

    #[test]
    fn a_pool_of_another_process_is_not_used() {
        let mut pool = Pool { bytes: [1; POOL_BYTES], left: POOL_BYTES, process: std::process::id() };
        let mut bytes = [0; 16];
        pool.draw(&mut bytes).unwrap();
        assert_eq!((bytes, pool.left), ([1; 16], POOL_BYTES - 16));
        pool.process = pool.process.wrapping_add(1);
        pool.draw(&mut bytes).unwrap();
        assert_ne!(bytes, [1; 16]);
        assert_eq!(pool.process, std::process::id());
    }

    #[test]
    fn openssl_bytes_differ_from_draw_to_draw() {
        let first: [u8; 32] = random(&mut OpensslEntropy).unwrap();
        let second: [u8; 32] = random(&mut OpensslEntropy).unwrap();
        assert_ne!(first, second);
    }
}
