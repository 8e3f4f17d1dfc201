//! Media: files that users upload and others download.
//!
//! The bytes are objects outside of the database ([`objects`], in one [`place`] for all replicas); the row of a medium says which object it has. A row
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
pub(crate) mod picture;
pub(crate) mod place;
mod quota;
mod range;
pub(crate) mod removal;
pub(crate) mod thumbnails;
pub(crate) mod upload;

use tokio::sync::Semaphore;

use self::objects::{Objects, ObjectsError};
use crate::config::media::{MediaPlace, MediaSettings};

/// How many uploads a replica takes at once. Each holds up to two parts in memory: of 256 KiB for a folder, of 5 MiB for a bucket.
const MAX_UPLOADS: usize = 64;
/// As many for a bucket: 320 MiB of parts at most.
const MAX_UPLOADS_TO_BUCKET: usize = 32;

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
    /// When the folder cannot be made or used. A bucket is not asked for anything yet.
    pub async fn open(settings: &MediaSettings) -> Result<Self, ObjectsError> {
        let uploads = match settings.place {
            MediaPlace::Folder(_) => MAX_UPLOADS,
            MediaPlace::Bucket(_) => MAX_UPLOADS_TO_BUCKET,
        };
        Ok(Self {
            objects: Objects::open(settings).await?,
            max_upload_bytes: settings.max_upload_bytes,
            uploads: Semaphore::new(uploads),
            decoders: Semaphore::new(thumbnails::MAX_DECODERS),
        })
    }

    /// Whether the object of a medium is at its place.
    ///
    /// # Errors
    ///
    /// The place cannot be asked.
    pub(crate) async fn has(&self, object: &str) -> Result<bool, ObjectsError> {
        self.objects.has(object, objects::CONTENT).await
    }

    /// The largest file that may be uploaded, in bytes.
    #[must_use]
    pub fn max_upload_bytes(&self) -> u64 {
        self.max_upload_bytes
    }
}
