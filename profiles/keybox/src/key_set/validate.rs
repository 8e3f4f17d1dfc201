//! What a published key set must satisfy: asked by the server before it stores one, and by every KeyBox that reads one.

use openssl::bn::{BigNum, BigNumContext};
use openssl::error::ErrorStack;
use openssl::pkey::{Id, PKey};
use openssl::rsa::Rsa;
use serde_json::{Map, Value};

use super::{ED25519_ENTRY, PublicKeySet, RSA_BITS, RSA_ENTRY, X25519_ENTRY};
use crate::canonical_json::{JsonSignatureError, verify_json};
use crate::encoding::from_base64;
use crate::primitives::{CryptoError, x25519};
use crate::suite;

/// Why a published key set is refused. A server answers `M_INVALID_PARAM`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeySetError {
    /// The RSA key's public exponent is not 65537.
    #[error("the public exponent of the RSA key must be 65537")]
    BadExponent,
    /// The cryptographic library failed.
    #[error("the keys could not be checked")]
    Crypto(#[from] CryptoError),
    /// `user_id` or `device_id` is not that of the KeyBox that publishes.
    #[error("the key set names another user or device")]
    Identity,
    /// A public key is a point of low order: what is computed with it does not depend on the private key.
    #[error("the key in {0} is a point of low order")]
    LowOrder(&'static str),
    /// An entry is not unpadded base64 of a key of its type in its one encoding.
    #[error("the entry {0} is not a valid key of its type")]
    Malformed(&'static str),
    /// An entry that belongs to every KeyBox key set is missing.
    #[error("the entry {0} is missing")]
    Missing(&'static str),
    /// The self-signature is missing or wrong.
    #[error("the key set is not signed by its own ed25519 key")]
    Signature(#[source] JsonSignatureError),
    /// The RSA key has another size than 2048 bits.
    #[error("the RSA key has {0} bits instead of 2048")]
    WrongSize(u32),
}

/// Checks the `device_keys` object that `user_id` publishes for the device `keybox_id`.
///
/// `None` if the device is not a KeyBox, that is, has no `com.trustner.keybox.*` key and names no KeyBox suite: such a
/// device is Matrix's own business. Otherwise the key set, or why it is refused. The self-signature is checked too.
pub fn validate_device_keys(
    user_id: &str,
    keybox_id: &str,
    device_keys: &Map<String, Value>,
) -> Result<Option<PublicKeySet>, KeySetError> {
    let algorithms = algorithms(device_keys)?;
    let keys = device_keys.get("keys").and_then(Value::as_object).ok_or(KeySetError::Malformed("keys"))?;
    let has_keybox_key = keys.keys().any(|name| name.starts_with("com.trustner.keybox."));
    let names_suite = algorithms.iter().any(|algorithm| algorithm.starts_with("com.trustner.keybox."));
    if !has_keybox_key && !names_suite {
        return Ok(None);
    }
    let named =
        |field: &str, expected: &str| device_keys.get(field).and_then(Value::as_str) == Some(expected);
    if !named("user_id", user_id) || !named("device_id", keybox_id) {
        return Err(KeySetError::Identity);
    }

    let ed25519 = entry(keys, ED25519_ENTRY, keybox_id)?.ok_or(KeySetError::Missing(ED25519_ENTRY))?;
    let ed25519 = checked_ed25519(ed25519)?;
    let rsa = entry(keys, RSA_ENTRY, keybox_id)?.ok_or(KeySetError::Missing(RSA_ENTRY))?;
    check_rsa(&rsa)?;
    let x25519 = entry(keys, X25519_ENTRY, keybox_id)?.map(|key| checked_x25519(&key)).transpose()?;
    for suite in suite::SUITES.iter().filter(|suite| algorithms.iter().any(|named| named == suite.id)) {
        if entry(keys, suite.key_entry, keybox_id)?.is_none() {
            return Err(KeySetError::Missing(suite.key_entry));
        }
    }
    verify_json(&ed25519, user_id, keybox_id, device_keys).map_err(KeySetError::Signature)?;
    Ok(Some(PublicKeySet {
        user_id: user_id.to_owned(),
        keybox_id: keybox_id.to_owned(),
        algorithms,
        ed25519,
        rsa,
        x25519,
        prepared: Default::default(),
    }))
}

fn algorithms(device_keys: &Map<String, Value>) -> Result<Vec<String>, KeySetError> {
    let malformed = || KeySetError::Malformed("algorithms");
    let algorithms = device_keys.get("algorithms").and_then(Value::as_array).ok_or_else(malformed)?;
    algorithms.iter().map(|algorithm| algorithm.as_str().map(str::to_owned).ok_or_else(malformed)).collect()
}

/// The bytes of one entry of `keys`; `None` if it is not there.
fn entry(
    keys: &Map<String, Value>,
    algorithm: &'static str,
    keybox_id: &str,
) -> Result<Option<Vec<u8>>, KeySetError> {
    let Some(value) = keys.get(&format!("{algorithm}:{keybox_id}")) else { return Ok(None) };
    let text = value.as_str().ok_or(KeySetError::Malformed(algorithm))?;
    from_base64(text).map(Some).map_err(|_| KeySetError::Malformed(algorithm))
}

fn check_rsa(der: &[u8]) -> Result<(), KeySetError> {
    let malformed = KeySetError::Malformed(RSA_ENTRY);
    // A key of another type, or trailing bytes, would not survive the way there and back.
    let Ok(rsa) = Rsa::public_key_from_der(der) else { return Err(malformed) };
    if rsa.public_key_to_der().map_err(CryptoError::from)? != der {
        return Err(malformed);
    }
    let bits = u32::try_from(rsa.n().num_bits()).unwrap_or_default();
    if bits != RSA_BITS {
        return Err(KeySetError::WrongSize(bits));
    }
    if rsa.e() != &*BigNum::from_u32(65537).map_err(CryptoError::from)? {
        return Err(KeySetError::BadExponent);
    }
    if rsa.n().is_bit_set(0) { Ok(()) } else { Err(malformed) }
}

/// The prime of both curves, 2^255 - 19.
fn field_prime() -> Result<BigNum, ErrorStack> {
    let mut prime = BigNum::new()?;
    prime.set_bit(255)?;
    prime.sub_word(19)?;
    Ok(prime)
}

/// The key as an array, if it is canonically encoded and not of low order.
fn checked_x25519(key: &[u8]) -> Result<[u8; 32], KeySetError> {
    let malformed = KeySetError::Malformed(X25519_ENTRY);
    let Ok(bytes) = <[u8; 32]>::try_from(key) else { return Err(malformed) };
    if little_endian(&bytes).map_err(CryptoError::from)? >= field_prime().map_err(CryptoError::from)? {
        return Err(malformed);
    }
    // X25519 multiplies by a multiple of eight, so that any private key takes a point of low order to zero, which fails.
    let private = PKey::private_key_from_raw_bytes(&[0x55; 32], Id::X25519).map_err(CryptoError::from)?;
    match x25519(&private, &bytes) {
        Ok(_) => Ok(bytes),
        Err(_) => Err(KeySetError::LowOrder(X25519_ENTRY)),
    }
}

/// The key as an array, if it is a point of the curve, canonically encoded, and not of low order.
fn checked_ed25519(key: Vec<u8>) -> Result<[u8; 32], KeySetError> {
    let bytes = <[u8; 32]>::try_from(key).map_err(|_| KeySetError::Malformed(ED25519_ENTRY))?;
    match ed25519_point(&bytes).map_err(CryptoError::from)? {
        Point::Good => Ok(bytes),
        Point::LowOrder => Err(KeySetError::LowOrder(ED25519_ENTRY)),
        Point::Malformed => Err(KeySetError::Malformed(ED25519_ENTRY)),
    }
}

enum Point {
    Good,
    LowOrder,
    Malformed,
}

/// Classifies an encoded point of -x² + y² = 1 + dx²y² (RFC 8032, section 5.1.3), since OpenSSL accepts any 32 bytes.
fn ed25519_point(bytes: &[u8; 32]) -> Result<Point, ErrorStack> {
    let prime = field_prime()?;
    let mut y = little_endian(bytes)?;
    if y.is_bit_set(255) {
        y.clear_bit(255)?;
    }
    if y >= prime {
        return Ok(Point::Malformed);
    }
    let mut context = BigNumContext::new()?;
    let one = BigNum::from_u32(1)?;
    let (mut y2, mut numerator, mut denominator) = (BigNum::new()?, BigNum::new()?, BigNum::new()?);
    y2.mod_sqr(&y, &prime, &mut context)?;
    numerator.mod_sub(&y2, &one, &prime, &mut context)?;
    let (d, mut d_y2) = (curve_d(&prime, &mut context)?, BigNum::new()?);
    d_y2.mod_mul(&d, &y2, &prime, &mut context)?;
    denominator.mod_add(&d_y2, &one, &prime, &mut context)?;
    // x² = (y² - 1) / (dy² + 1). A quotient is a square exactly if the product is one.
    let (mut product, mut exponent, mut symbol) = (BigNum::new()?, BigNum::new()?, BigNum::new()?);
    product.mod_mul(&numerator, &denominator, &prime, &mut context)?;
    exponent.rshift1(&prime)?;
    symbol.mod_exp(&product, &exponent, &prime, &mut context)?;
    let x_is_zero = numerator.num_bits() == 0;
    if !x_is_zero && symbol != one {
        return Ok(Point::Malformed);
    }
    Ok(if has_low_order(&y, &y2, &prime, &mut context)? { Point::LowOrder } else { Point::Good })
}

/// Whether a point with this y has an order that divides eight: y is 1 or -1 (orders 1, 2), 0 (order 4), or, for
/// order 8, doubling gives y = 0, which by the curve's equation is dy⁴ + 2y² - 1 = 0.
fn has_low_order(
    y: &BigNum,
    y2: &BigNum,
    prime: &BigNum,
    context: &mut BigNumContext,
) -> Result<bool, ErrorStack> {
    let one = BigNum::from_u32(1)?;
    if y.num_bits() == 0 || *y2 == one {
        return Ok(true);
    }
    let d = curve_d(prime, context)?;
    let (mut y4, mut d_y4, mut two_y2, mut sum) =
        (BigNum::new()?, BigNum::new()?, BigNum::new()?, BigNum::new()?);
    y4.mod_sqr(y2, prime, context)?;
    d_y4.mod_mul(&d, &y4, prime, context)?;
    two_y2.mod_add(y2, y2, prime, context)?;
    sum.mod_add(&d_y4, &two_y2, prime, context)?;
    Ok(sum == one)
}

/// The constant d = -121665/121666 of the curve.
fn curve_d(prime: &BigNum, context: &mut BigNumContext) -> Result<BigNum, ErrorStack> {
    let (mut inverse, mut minus, mut d) = (BigNum::new()?, BigNum::new()?, BigNum::new()?);
    inverse.mod_inverse(&*BigNum::from_u32(121_666)?, prime, context)?;
    minus.checked_sub(prime, &*BigNum::from_u32(121_665)?)?;
    d.mod_mul(&minus, &inverse, prime, context)?;
    Ok(d)
}

fn little_endian(bytes: &[u8; 32]) -> Result<BigNum, ErrorStack> {
    let mut reversed = *bytes;
    reversed.reverse();
    BigNum::from_slice(&reversed)
}

#[cfg(test)]
mod tests;
