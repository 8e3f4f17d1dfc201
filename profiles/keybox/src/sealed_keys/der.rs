//! The few DER types of an encrypted private key (RFC 5958, RFC 8018, RFC 7914 section 7).

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const SEQUENCE: u8 = 0x30;

/// 1.2.840.113549.1.5.13
const PBES2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0d];
/// 1.3.6.1.4.1.11591.4.11
const SCRYPT: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x04, 0x0b];
/// 2.16.840.1.101.3.4.1.42
const AES_256_CBC: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2a];

pub(super) struct ScryptParameters<'a> {
    pub(super) salt: &'a [u8],
    pub(super) n: u64,
    pub(super) r: u64,
    pub(super) p: u64,
}

pub(super) fn encrypted_private_key_info(kdf: ScryptParameters<'_>, iv: &[u8], sealed: &[u8]) -> Vec<u8> {
    let scrypt = sequence(&[
        element(OCTET_STRING, kdf.salt),
        integer(kdf.n),
        integer(kdf.r),
        integer(kdf.p),
        integer(32),
    ]);
    let kdf = sequence(&[element(OBJECT_IDENTIFIER, SCRYPT), scrypt]);
    let encryption = sequence(&[element(OBJECT_IDENTIFIER, AES_256_CBC), element(OCTET_STRING, iv)]);
    let algorithm = sequence(&[element(OBJECT_IDENTIFIER, PBES2), sequence(&[kdf, encryption])]);
    sequence(&[algorithm, element(OCTET_STRING, sealed)])
}

fn sequence(elements: &[Vec<u8>]) -> Vec<u8> {
    element(SEQUENCE, &elements.concat())
}

/// A non-negative INTEGER in the fewest bytes, the first without its high bit.
fn integer(value: u64) -> Vec<u8> {
    let bytes = value.to_be_bytes();
    let zeros = bytes.iter().take(bytes.len() - 1).take_while(|byte| **byte == 0).count();
    let significant: Vec<u8> = bytes.iter().skip(zeros).copied().collect();
    let negative = significant.first().is_some_and(|byte| byte & 0x80 != 0);
    element(INTEGER, &if negative { [&[0], significant.as_slice()].concat() } else { significant })
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let zeros = length.iter().take(length.len() - 1).take_while(|byte| **byte == 0).count();
    let length: Vec<u8> = length.iter().skip(zeros).copied().collect();
    let short = length.len() == 1 && length.first().is_some_and(|byte| *byte < 0x80);
    let mut encoded = vec![tag];
    if !short {
        // At most eight bytes of length, so this fits beside the high bit.
        encoded.push(0x80 | u8::try_from(length.len()).unwrap_or(8));
    }
    encoded.extend(length);
    encoded.extend_from_slice(content);
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_integers_take_the_fewest_bytes() {
        assert_eq!(integer(0), [2, 1, 0]);
        assert_eq!(integer(127), [2, 1, 127]);
        assert_eq!(integer(128), [2, 2, 0, 128]);
        assert_eq!(integer(16384), [2, 2, 0x40, 0]);
        assert_eq!(element(4, &[]), [4, 0]);
        assert_eq!(element(4, &[7; 127])[..2], [4, 127]);
        assert_eq!(element(4, &[7; 128])[..3], [4, 0x81, 128]);
        assert_eq!(element(4, &[7; 300])[..4], [4, 0x82, 1, 44]);
    }
}
