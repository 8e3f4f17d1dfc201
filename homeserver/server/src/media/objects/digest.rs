//! SHA-256 and HMAC for the signatures of requests to S3, by OpenSSL.

use object_store::client::{
    CryptoProvider, DigestAlgorithm, DigestContext, HmacContext, Signer as RequestSigner, SigningAlgorithm,
};
use openssl::{
    error::ErrorStack,
    hash::{Hasher, MessageDigest},
    pkey::PKey,
    sign::Signer,
};
use zeroize::Zeroizing;

/// The one library for such things.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenSsl;

impl CryptoProvider for OpenSsl {
    fn digest(&self, algorithm: DigestAlgorithm) -> Result<Box<dyn DigestContext>, object_store::Error> {
        let hasher = Hasher::new(algorithm_of(&algorithm)?).map_err(failed)?;
        Ok(Box::new(Digest { hasher, state: Ok(()), digest: Vec::new() }))
    }

    fn hmac(
        &self,
        algorithm: DigestAlgorithm,
        secret: &[u8],
    ) -> Result<Box<dyn HmacContext>, object_store::Error> {
        let algorithm = algorithm_of(&algorithm)?;
        let secret = Zeroizing::new(secret.to_vec());
        Ok(Box::new(Hmac { algorithm, secret, text: Vec::new(), code: Vec::new() }))
    }

    fn sign(
        &self,
        _algorithm: SigningAlgorithm,
        _pem: &[u8],
    ) -> Result<Box<dyn RequestSigner>, object_store::Error> {
        Err(object_store::Error::NotSupported { source: "S3 signs with HMAC only".into() })
    }
}

fn algorithm_of(algorithm: &DigestAlgorithm) -> Result<MessageDigest, object_store::Error> {
    match algorithm {
        DigestAlgorithm::Sha256 => Ok(MessageDigest::sha256()),
        _ => Err(object_store::Error::NotSupported { source: "S3 wants SHA-256 only".into() }),
    }
}

fn failed(error: ErrorStack) -> object_store::Error {
    object_store::Error::Generic { store: "S3", source: Box::new(error) }
}

struct Digest {
    hasher: Hasher,
    /// What went wrong so far, to be told at the end.
    state: Result<(), ErrorStack>,
    digest: Vec<u8>,
}

impl DigestContext for Digest {
    fn update(&mut self, data: &[u8]) {
        if self.state.is_ok() {
            self.state = self.hasher.update(data);
        }
    }

    fn finish(&mut self) -> Result<&[u8], object_store::Error> {
        std::mem::replace(&mut self.state, Ok(())).map_err(failed)?;
        self.digest = self.hasher.finish().map_err(failed)?.to_vec();
        Ok(&self.digest)
    }
}

/// What is signed is a few lines, so it is kept until the end.
struct Hmac {
    algorithm: MessageDigest,
    secret: Zeroizing<Vec<u8>>,
    text: Vec<u8>,
    code: Vec<u8>,
}

impl HmacContext for Hmac {
    fn update(&mut self, data: &[u8]) {
        self.text.extend_from_slice(data);
    }

    fn finish(&mut self) -> Result<&[u8], object_store::Error> {
        let key = PKey::hmac(&self.secret).map_err(failed)?;
        let mut signer = Signer::new(self.algorithm, &key).map_err(failed)?;
        self.code = signer.sign_oneshot_to_vec(&self.text).map_err(failed)?;
        Ok(&self.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// <https://www.rfc-editor.org/rfc/rfc4231#section-4.3> and FIPS 180-4's example.
    #[test]
    fn digests_and_codes_are_those_of_the_standards() {
        let mut digest = OpenSsl.digest(DigestAlgorithm::Sha256).unwrap();
        digest.update(b"a");
        digest.update(b"bc");
        assert_eq!(
            hex(digest.finish().unwrap()),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let mut hmac = OpenSsl.hmac(DigestAlgorithm::Sha256, b"Jefe").unwrap();
        hmac.update(b"what do ya want ");
        hmac.update(b"for nothing?");
        assert_eq!(
            hex(hmac.finish().unwrap()),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert!(OpenSsl.sign(SigningAlgorithm::RS256, b"").is_err());
    }
}
