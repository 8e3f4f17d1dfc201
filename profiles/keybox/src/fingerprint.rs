//! Fingerprints: what two people compare, by voice or side by side.

use crate::encoding::hex;
use crate::key_set::PublicKeySet;

/// The fingerprint of a KeyBox, which is that of its Ed25519 key ([`of_key`]).
///
/// The key signs the whole key set, so comparing it covers the other keys.
pub fn fingerprint(keys: &PublicKeySet) -> String {
    of_key(&keys.ed25519)
}

/// An Ed25519 public key as 16 groups of 4 hexadecimal digits, in 4 lines of 4 groups.
pub fn of_key(key: &[u8; 32]) -> String {
    let digits = hex(key);
    let mut text = String::with_capacity(80);
    for (index, digit) in digits.chars().enumerate() {
        match index {
            0 => {}
            _ if index % 16 == 0 => text.push('\n'),
            _ if index % 4 == 0 => text.push(' '),
            _ => {}
        }
        text.push(digit);
    }
    text
}

/// Whether a typed or read-out fingerprint is that of the key set: spacing, line breaks and case do not matter.
pub fn matches(keys: &PublicKeySet, spoken: &str) -> bool {
    matches_key(&keys.ed25519, spoken)
}

/// [`matches()`] for an Ed25519 public key by itself.
pub fn matches_key(key: &[u8; 32], spoken: &str) -> bool {
    let digits: String =
        spoken.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_ascii_lowercase()).collect();
    digits == hex(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> PublicKeySet {
        PublicKeySet {
            user_id: String::new(),
            keybox_id: String::new(),
            algorithms: Vec::new(),
            ed25519: std::array::from_fn(|index| u8::try_from(index).unwrap()),
            rsa: Vec::new(),
            x25519: None,
            prepared: Default::default(),
        }
    }

    #[test]
    fn four_lines_of_four_groups() {
        assert_eq!(
            fingerprint(&keys()),
            "0001 0203 0405 0607\n0809 0a0b 0c0d 0e0f\n1011 1213 1415 1617\n1819 1a1b 1c1d 1e1f"
        );
    }

    #[test]
    fn read_back_in_any_spelling_but_not_with_another_digit() {
        let spoken = fingerprint(&keys()).to_uppercase().replace(' ', "  ");
        assert!(matches(&keys(), &spoken));
        assert!(!matches(&keys(), &spoken.replacen('1', "2", 1)));
        assert!(!matches(&keys(), ""));
    }
}
