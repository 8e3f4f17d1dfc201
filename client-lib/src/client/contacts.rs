//! The people whom this KeyBox knows.

use keystead_keybox::contact_code::ContactCode;

use super::{Client, ClientError};
use crate::clock::now_ms;
use crate::engine::{Accepted, Contact, KeyBoxAddress};

impl Client {
    /// The contact code of this KeyBox, for others to scan: see [`crate::qr`].
    pub fn contact_code(&self) -> ContactCode {
        self.engine.contact_code()
    }

    /// Everybody whose KeyBoxes have been seen here, with what is known as of the last sync.
    pub async fn contacts(&mut self) -> Result<Vec<Contact>, ClientError> {
        let _lock = self.begin().await?;
        Ok(self.engine.contacts())
    }

    /// Looks up the KeyBox that a contact code names and marks it as verified, if the code was made for its keys. Returns the KeyBox,
    /// and whether its owner is a new contact.
    pub async fn verify_contact(&mut self, code: &ContactCode) -> Result<(KeyBoxAddress, bool), ClientError> {
        let _lock = self.begin().await?;
        let is_new = self.engine.keyboxes(&code.user_id).is_empty();
        self.engine.follow(&code.user_id);
        self.flush().await?;
        let verified = self.engine.verify_contact(code)?;
        self.flush().await?;
        Ok((verified, is_new))
    }

    /// Accepts the keys that the server has shown for a user's KeyBoxes, and the identity, in place of those known before.
    pub async fn accept(&mut self, user_id: &str) -> Result<Accepted, ClientError> {
        let _lock = self.begin().await?;
        let accepted = self.engine.accept(user_id, now_ms());
        self.flush().await?;
        Ok(accepted)
    }
}
