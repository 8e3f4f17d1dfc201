//! How bytes are written: base64 and hex in JSON, length-prefixed fields under hashes, MACs and signatures.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

/// Text that is not the one accepted encoding of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not in the expected encoding")]
pub struct DecodeError;

/// Unpadded standard base64, as Matrix writes keys and signatures.
pub fn base64(bytes: &[u8]) -> String {
    STANDARD_NO_PAD.encode(bytes)
}

/// Reads [`base64()`]. Padding and non-zero trailing bits are refused, so that no two texts mean the same bytes.
pub fn from_base64(text: &str) -> Result<Vec<u8>, DecodeError> {
    STANDARD_NO_PAD.decode(text).map_err(|_| DecodeError)
}

/// Unpadded URL-safe base64, for identifiers.
pub fn base64_url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads [`base64_url`], and as strictly as [`from_base64`].
pub fn from_base64_url(text: &str) -> Result<Vec<u8>, DecodeError> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| DecodeError)
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    // Room for all of it, so that no part of a key is left behind by a reallocation.
    let mut text = String::with_capacity(2 * bytes.len());
    let nibbles = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    text.extend(nibbles.filter_map(|nibble| char::from_digit(nibble.into(), 16)));
    text
}

/// Reads lower-case hexadecimal of exactly `N` bytes; the result is wiped when dropped, since it is used for keys.
pub fn from_hex<const N: usize>(text: &str) -> Result<Zeroizing<[u8; N]>, DecodeError> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return Err(DecodeError);
    }
    let mut bytes = Zeroizing::new([0; N]);
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        for digit in pair {
            let nibble = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return Err(DecodeError),
            };
            *byte = *byte << 4 | nibble;
        }
    }
    Ok(bytes)
}

/// A byte string made of fields, each written as its length (8 bytes, big-endian) and then its bytes.
///
/// The lengths make the string injective: no two different lists of fields give the same bytes. The first field is
/// always a label that names the use, so that a hash or signature made for one use means nothing in another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields(Vec<u8>);

impl Fields {
    /// Starts with the label of the use.
    pub fn new(label: &str) -> Self {
        // Room for all our fields, so that a secret among them is not left behind by a reallocation.
        Self(Vec::with_capacity(512)).text(label)
    }

    /// Appends a field of bytes.
    #[must_use]
    pub fn bytes(mut self, field: &[u8]) -> Self {
        self = self.length_of(field);
        self.0.extend_from_slice(field);
        self
    }

    /// Appends the length of a last field only: for a large one, whose bytes the caller hashes itself right after.
    #[must_use]
    pub(crate) fn length_of(mut self, field: &[u8]) -> Self {
        self.0.extend_from_slice(&(field.len() as u64).to_be_bytes());
        self
    }

    /// Appends a field of UTF-8 text.
    #[must_use]
    pub fn text(self, field: &str) -> Self {
        self.bytes(field.as_bytes())
    }

    /// Appends a number as a field of 8 bytes, big-endian.
    #[must_use]
    pub fn number(self, field: u64) -> Self {
        self.bytes(&field.to_be_bytes())
    }

    /// The whole byte string.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// The whole byte string, to keep.
    pub fn into_vec(self) -> Vec<u8> {
        self.0
    }

    /// The same byte string in memory that is wiped when dropped, for fields that are secret.
    pub(crate) fn wiped(self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0)
    }
}

/// Serde of bytes as unpadded base64 text.
pub(crate) mod base64_bytes {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::base64(bytes))
    }

    pub(crate) fn deserialize<'de, D, T>(deserializer: D) -> Result<T, D::Error>
    where
        D: Deserializer<'de>,
        T: TryFrom<Vec<u8>>,
    {
        let text = String::deserialize(deserializer)?;
        let bytes = super::from_base64(&text).map_err(D::Error::custom)?;
        T::try_from(bytes).map_err(|_| D::Error::custom("wrong number of bytes"))
    }
}

/// Serde of bytes that may be missing, as unpadded base64 text.
pub(crate) mod optional_base64_bytes {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        bytes: &Option<[u8; 32]>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        bytes.map(|bytes| super::base64(&bytes)).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<[u8; 32]>, D::Error> {
        #[derive(Deserialize)]
        struct Bytes(#[serde(with = "super::base64_bytes")] [u8; 32]);
        Ok(Option::<Bytes>::deserialize(deserializer)?.map(|Bytes(bytes)| bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_base64_is_read() {
        assert_eq!(from_base64("Zg").unwrap(), b"f");
        for wrong in ["Zh", "Zg==", "Zg ", "Z", "Zg\n", "_-8"] {
            assert_eq!(from_base64(wrong), Err(DecodeError), "{wrong:?}");
        }
    }

    #[test]
    fn both_alphabets_are_written_and_read_and_never_mixed() {
        assert_eq!((base64(&[0xff, 0xef]), base64_url(&[0xff, 0xef])), ("/+8".to_owned(), "_-8".to_owned()));
        assert_eq!(
            (from_base64("/+8"), from_base64_url("_-8")),
            (Ok(vec![0xff, 0xef]), Ok(vec![0xff, 0xef]))
        );
        for wrong in ["/+8", "_-9", "_-8=", "_-8 ", "_"] {
            assert_eq!(from_base64_url(wrong), Err(DecodeError), "{wrong:?}");
        }
    }

    #[test]
    fn bytes_in_json_are_base64_of_the_right_length() {
        #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        struct Both {
            #[serde(with = "base64_bytes")]
            some: [u8; 2],
            #[serde(with = "optional_base64_bytes")]
            maybe: Option<[u8; 32]>,
        }
        let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
        let counted = std::array::from_fn(|index| u8::try_from(index).unwrap());
        for (maybe, text) in [(None, "null".to_owned()), (Some(counted), format!("\"{key}\""))] {
            let (value, json) =
                (Both { some: [0xff, 0xef], maybe }, format!(r#"{{"some":"/+8","maybe":{text}}}"#));
            assert_eq!(serde_json::to_string(&value).unwrap(), json);
            assert_eq!(serde_json::from_str::<Both>(&json).unwrap(), value);
        }
        for wrong in [
            r#"{"some":"/w","maybe":null}"#,
            r#"{"some":"_-8","maybe":null}"#,
            r#"{"some":"/+8","maybe":"AA"}"#,
        ] {
            assert!(serde_json::from_str::<Both>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn fields_are_written_one_after_the_other() {
        let expected = b"\0\0\0\0\0\0\0\x01u\0\0\0\0\0\0\0\x02ab";
        assert_eq!(Fields::new("u").bytes(b"ab").as_slice(), expected);
        assert_eq!(Fields::new("u").text("ab").into_vec(), expected);
        assert_eq!(*Fields::new("u").text("ab").wiped(), expected);
        // The bytes of a large last field are hashed by who has them.
        assert_eq!([Fields::new("u").length_of(b"ab").as_slice(), b"ab"].concat(), expected);
    }

    #[test]
    fn hex_round_trips_and_is_strict() {
        assert_eq!(hex(&[0, 0x1f, 0xa0]), "001fa0");
        assert_eq!(*from_hex::<3>("001fa0").unwrap(), [0, 0x1f, 0xa0]);
        for wrong in ["001fA0", "001fa", "001fa0a0", "001fg0", "é1fa0"] {
            assert!(from_hex::<3>(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn moving_a_byte_from_one_field_to_the_next_changes_the_string() {
        let left = Fields::new("use").text("ab").text("c");
        let right = Fields::new("use").text("a").text("bc");
        assert_ne!(left, right);
        assert_eq!(
            Fields::new("u").number(1).as_slice(),
            b"\0\0\0\0\0\0\0\x01u\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\x01"
        );
    }
}
