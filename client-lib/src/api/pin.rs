//! Pinning: a client that knows its server's certificate, or the key in it, talks to no other.

use openssl::hash::MessageDigest;
use openssl::x509::X509Ref;

use keystead_keybox::encoding::{from_hex, hex};
use keystead_keybox::sha256;

use super::ApiError;

const FRAGMENT: &str = "sha256=";

/// What a server has shown of itself: SHA-256, in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFingerprint {
    /// Of its certificate (DER): changes with every new certificate.
    pub certificate: String,
    /// Of its public key (DER SubjectPublicKeyInfo): outlasts a new certificate for the same key.
    pub public_key: String,
}

impl ServerFingerprint {
    pub(super) fn of(certificate: &X509Ref) -> Option<Self> {
        let public_key = certificate.public_key().and_then(|key| key.public_key_to_der()).ok()?;
        Some(Self {
            certificate: hex(&certificate.digest(MessageDigest::sha256()).ok()?),
            public_key: hex(&sha256(&public_key)),
        })
    }

    /// Whether `pin`, as [`normal_pin`] writes it, is of the certificate or of its key.
    pub fn fits(&self, pin: &str) -> bool {
        pin == self.certificate || pin == self.public_key
    }
}

/// A fingerprint as a person wrote it, with colons, spaces and capitals as they come: as 64 lower-case hexadecimal digits.
pub fn normal_pin(text: &str) -> Result<String, ApiError> {
    let digits: String =
        text.chars().filter(|c| *c != ':' && !c.is_whitespace()).map(|c| c.to_ascii_lowercase()).collect();
    match from_hex::<32>(&digits) {
        Ok(_) => Ok(digits),
        Err(_) => Err(ApiError::PinMalformed),
    }
}

/// An address with a pin at its end, such as `https://matrix.example.org#sha256=…`; replaces one that is there.
pub fn with_pin(server: &str, pin: &str) -> Result<String, ApiError> {
    let (base, _) = split_pin(server)?;
    Ok(format!("{base}#{FRAGMENT}{}", normal_pin(pin)?))
}

/// The address and the pin of what [`with_pin`] wrote.
pub(super) fn split_pin(server: &str) -> Result<(&str, Option<String>), ApiError> {
    match server.split_once('#') {
        None => Ok((server, None)),
        Some((base, fragment)) => {
            let pin = fragment.strip_prefix(FRAGMENT).ok_or(ApiError::PinMalformed)?;
            Ok((base, Some(normal_pin(pin)?)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_read_in_any_spelling_and_kept_in_one() {
        let digits = "0123456789abcdef".repeat(4);
        let capitals = digits.to_uppercase();
        let pairs: Vec<_> = capitals.as_bytes().chunks(2).map(String::from_utf8_lossy).collect();
        let spoken = pairs.join(":");
        let pinned = with_pin("https://x", &spoken).unwrap();
        assert_eq!(pinned, format!("https://x#sha256={digits}"));
        assert_eq!(split_pin(&pinned).unwrap(), ("https://x", Some(digits.clone())));
        assert_eq!(with_pin(&pinned, &digits).unwrap(), pinned, "one pin at a time");
        assert_eq!(split_pin("https://x").unwrap(), ("https://x", None));
        for wrong in ["", "12", &digits[1..], &digits.replace('a', "g")] {
            assert!(matches!(normal_pin(wrong), Err(ApiError::PinMalformed)), "{wrong}");
        }
        assert!(matches!(split_pin("https://x#other"), Err(ApiError::PinMalformed)));
    }
}
