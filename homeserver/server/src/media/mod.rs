//! Media: files that users upload and others download.
//!
//! The bytes are objects outside of the database ([`objects`]); the row of a medium says which object it has. A row
//! never points at an object that is not whole: an upload is first written down as a job that will discard its object
//! ([`upload`]), and the transaction that gives the medium its object takes that job back. So whatever breaks in
//! between, nothing is left behind.
//!
//! Nothing here holds a whole file: bytes pass in parts of bounded size, both ways. The exception is pictures of up to 32 MiB, of
//! which thumbnails are made, two at a time ([`thumbnails`]).
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#content-repository>.

pub(crate) mod download;
mod headers;
pub(crate) mod objects;
mod picture;
mod range;
pub(crate) mod thumbnails;
pub(crate) mod upload;

use tokio::sync::Semaphore;

use self::objects::{Objects, ObjectsError};
use crate::config::media::MediaSettings;

/// How many uploads a replica takes at once; each holds a few parts in memory.
const MAX_UPLOADS: usize = 64;

/// The media of this server.
pub struct Media {
    objects: Objects,
    max_upload_bytes: u64,
    uploads: Semaphore,
    decoders: Semaphore,
}

impl Media {
    /// Opens the place where the objects are.
    ///
    /// # Errors
    ///
    /// When the folder cannot be made or used.
    pub async fn open(settings: &MediaSettings) -> Result<Self, ObjectsError> {
        Ok(Self {
            objects: Objects::in_folder(&settings.folder).await?,
            max_upload_bytes: settings.max_upload_bytes,
            uploads: Semaphore::new(MAX_UPLOADS),
            decoders: Semaphore::new(thumbnails::MAX_DECODERS),
        })
    }

    /// The largest file that may be uploaded, in bytes.
    #[must_use]
    pub fn max_upload_bytes(&self) -> u64 {
        self.max_upload_bytes
    }
}
