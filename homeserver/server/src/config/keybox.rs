//! `[keybox]`: what the server keeps for KeyBoxes.

use keystead_core::keybox::master_key::MasterKeys;

use super::reader::Section;

/// What the server keeps for KeyBoxes.
#[derive(Clone, Debug, Default)]
pub struct KeyboxSettings {
    /// `keybox.master_key` or `keybox.master_key_file`: keys under which passphrases are sealed, as `NAME:BASE64` of 32 bytes each,
    /// separated by commas or white space; the first seals, all open. None by default: then the server keeps no passphrases.
    pub master_keys: Option<MasterKeys>,
}

impl KeyboxSettings {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let secret = section.secret("master_key");
        let master_keys = secret.and_then(|secret| match MasterKeys::parse(secret.expose()) {
            Ok(keys) => Some(keys),
            Err(error) => {
                section.problem("master_key", error.to_string());
                None
            }
        });
        Self { master_keys }
    }
}
