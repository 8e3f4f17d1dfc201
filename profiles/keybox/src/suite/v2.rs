//! Suite v2, elliptic curves: HPKE over X25519 for keys, AES-256-GCM for content.

use std::sync::Arc;

use zeroize::Zeroizing;

use super::{ContentCipher, OpenError, Sealed, Suite, WrapError, hpke};
use crate::context::WrapContext;
use crate::entropy::{Entropy, random_public};
use crate::key_set::{PrivateKeySet, PublicKeySet, X25519_ENTRY};
use crate::primitives::{CryptoError, Gcm, hkdf_sha256};
use crate::resource_key::ResourceKey;

/// Identifier of suite v2.
pub const ID: &str = "com.trustner.keybox.v2.x25519-hpke.aes256-gcm";

pub(super) const SUITE: Suite = Suite { id: ID, version: 2, key_entry: X25519_ENTRY, wrap, unwrap, prepare };

fn wrap(
    key: &ResourceKey,
    recipient: &PublicKeySet,
    context: &WrapContext<'_>,
    ephemeral: &[u8; 32],
) -> Result<Vec<u8>, WrapError> {
    let public = recipient.x25519.as_ref().ok_or(WrapError::NotSpoken)?;
    Ok(hpke::seal(ephemeral, public, &context.to_bytes(), key.as_bytes())?)
}

fn unwrap(wrapped: &[u8], keys: &PrivateKeySet, context: &WrapContext<'_>) -> Result<ResourceKey, OpenError> {
    let opened = hpke::open(&keys.x25519, &context.to_bytes(), wrapped)?;
    ResourceKey::from_bytes(&opened).ok_or(OpenError::NotAuthentic)
}

struct Content(Gcm);

fn prepare(key: &ResourceKey) -> Result<Arc<dyn ContentCipher>, CryptoError> {
    Ok(Arc::new(Content(Gcm::new(&content_key(key))?)))
}

impl ContentCipher for Content {
    fn seal(
        &self,
        context: &[u8],
        mut content: Vec<u8>,
        entropy: &mut dyn Entropy,
    ) -> Result<Sealed, CryptoError> {
        let nonce: [u8; 12] = random_public(entropy)?;
        let tag = self.0.seal(&nonce, context, &mut content)?;
        Ok(Sealed { iv: nonce.to_vec(), ciphertext: content, mac: tag.to_vec() })
    }

    fn open(&self, context: &[u8], sealed: Sealed) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let nonce = <[u8; 12]>::try_from(sealed.iv.as_slice()).map_err(|_| OpenError::NotAuthentic)?;
        let tag = <[u8; 16]>::try_from(sealed.mac.as_slice()).map_err(|_| OpenError::NotAuthentic)?;
        let mut content = Zeroizing::new(sealed.ciphertext);
        self.0.open(&nonce, context, &mut content, &tag).map_err(|_| OpenError::NotAuthentic)?;
        Ok(content)
    }
}

/// Content has its own key, so that the resource key itself serves no primitive of this suite.
pub(crate) fn content_key(key: &ResourceKey) -> Zeroizing<[u8; 32]> {
    hkdf_sha256(key.as_bytes(), "com.trustner.keybox.v2.content_key")
}
