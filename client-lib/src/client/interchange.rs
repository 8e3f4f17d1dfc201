//! Moving and keeping resource keys: interchange files.

use keystead_keybox::OpensslEntropy;
use keystead_keybox::interchange;

use super::{Client, ClientError};
use crate::clock::now_ms;
use crate::engine::Imported;

impl Client {
    /// The resource keys of some rooms, or with `None` of all, sealed with a passphrase of at least 12 bytes: the text of an interchange
    /// file, and how many keys are in it. Who has file and passphrase reads everything that these keys sealed.
    pub async fn export_keys(
        &mut self,
        rooms: Option<&[String]>,
        passphrase: &str,
    ) -> Result<(String, usize), ClientError> {
        let _lock = self.begin().await?;
        let entries = self.engine.export_keys(rooms);
        Ok((interchange::seal(&entries, passphrase, &mut OpensslEntropy)?, entries.len()))
    }

    /// Takes in the resource keys of an interchange file, for reading.
    pub async fn import_keys(&mut self, file: &str, passphrase: &str) -> Result<Imported, ClientError> {
        let entries = interchange::open(file, passphrase)?;
        let _lock = self.begin().await?;
        let imported = self.engine.import_keys(&entries, now_ms(), &mut OpensslEntropy, &mut self.notices)?;
        self.flush().await?;
        Ok(imported)
    }
}
