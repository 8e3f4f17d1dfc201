//! [`Objects`]: where the bytes of media are kept, by way of the crate `object_store`: a folder, or a bucket of an S3 service.
//!
//! Nothing outside of this module knows which. Each medium has a name of its own that nobody can guess, and its objects lie below
//! it: `Ab/Ab…/content`, `Ab/Ab…/THUMBNAIL`.

mod bucket;
mod digest;
mod https;

use std::{io, ops::Range, path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use object_store::{
    GetOptions, GetRange, GetResultPayload, ObjectStore, ObjectStoreExt as _, WriteMultipart, aws::AmazonS3,
    local::LocalFileSystem, multipart::MultipartStore as _,
};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use self::bucket::BucketUpload;
use crate::{
    config::media::{MediaPlace, MediaSettings},
    http::{body::BoxError, error::ApiError},
};

/// The name of what was uploaded, below the name of its medium.
pub(crate) const CONTENT: &str = "content";
/// Below it lies what marks the place where the media of a server are.
const MARKS: &str = "keystead-place";
/// What a mark says to people who come across it.
const MARK: &str = "Here lie the media of a Keystead server. It looks for this file when it starts: leave it here, and copy it if the media move.\n";
/// In a folder, parts of any size can be written.
const FOLDER_PART_BYTES: usize = 256 * 1024;
/// How much of a file is read at once.
const READ_BYTES: usize = 64 * 1024;
/// How many parts may be on their way to the disk while the next one fills.
const PARTS_UNDER_WAY: usize = 2;

/// Why an object could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ObjectsError {
    /// The folder of the media cannot be made.
    #[error("the folder {0} cannot be made")]
    Folder(PathBuf, #[source] io::Error),
    /// A leftover of an upload cannot be removed.
    #[error("what is left of an upload cannot be removed")]
    Leftover(#[source] io::Error),
    /// An object cannot be read or written.
    #[error("an object of a medium cannot be read or written")]
    Object(#[from] object_store::Error),
}

impl ObjectsError {
    /// Whether there is no such object.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Object(object_store::Error::NotFound { .. }))
    }

    /// Whether there is no room left for an object.
    fn is_full(&self) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
            if matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

/// 507 if there is no room left, else 500.
impl From<ObjectsError> for ApiError {
    fn from(error: ObjectsError) -> Self {
        if error.is_full() { Self::storage_full(error) } else { Self::internal(error) }
    }
}

/// The store of objects.
pub(crate) struct Objects {
    store: Arc<dyn ObjectStore>,
    place: Place,
    part_bytes: usize,
}

enum Place {
    /// Where the folder is, in which also lies what is being written.
    Folder(PathBuf),
    Bucket(Arc<AmazonS3>),
}

/// An object that is being written; it can be read once it is finished.
pub(crate) enum NewObject {
    /// Dropped before it is finished, it is removed.
    Folder(WriteMultipart),
    /// Dropped before it is finished, it has to be discarded.
    Bucket(Box<BucketUpload>),
}

impl Objects {
    /// Objects in the place that the settings name; a folder is made if it is not there.
    pub(super) async fn open(settings: &MediaSettings) -> Result<Self, ObjectsError> {
        match &settings.place {
            MediaPlace::Folder(folder) => Self::in_folder(folder.clone()).await,
            MediaPlace::Bucket(bucket) => {
                let store = Arc::new(bucket::open(bucket)?);
                let part_bytes = bucket::part_bytes(settings.max_upload_bytes);
                Ok(Self { store: Arc::clone(&store) as _, place: Place::Bucket(store), part_bytes })
            }
        }
    }

    /// What is finished has reached the disk.
    async fn in_folder(folder: PathBuf) -> Result<Self, ObjectsError> {
        tokio::fs::create_dir_all(&folder)
            .await
            .map_err(|error| ObjectsError::Folder(folder.clone(), error))?;
        let store = LocalFileSystem::new_with_prefix(&folder)?.with_fsync(true).with_automatic_cleanup(true);
        Ok(Self { store: Arc::new(store), place: Place::Folder(folder), part_bytes: FOLDER_PART_BYTES })
    }

    /// Whether the place bears this mark.
    pub(super) async fn has_mark(&self, mark: &str) -> Result<bool, ObjectsError> {
        match self.store.head(&mark_path(mark)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Sets a mark.
    pub(super) async fn set_mark(&self, mark: &str) -> Result<(), ObjectsError> {
        self.store.put(&mark_path(mark), MARK.into()).await?;
        Ok(())
    }

    /// Takes a mark away.
    pub(super) async fn remove_mark(&self, mark: &str) -> Result<(), ObjectsError> {
        Ok(self.store.delete(&mark_path(mark)).await?)
    }

    /// Whether the object of a medium is there.
    pub(super) async fn has(&self, name: &str, object: &str) -> Result<bool, ObjectsError> {
        match self.store.head(&path(name, object)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Begins an object of the medium called `name`.
    pub(super) async fn create(&self, name: &str) -> Result<NewObject, ObjectsError> {
        let path = path(name, CONTENT);
        if let Place::Bucket(bucket) = &self.place {
            let upload = BucketUpload::new(Arc::clone(bucket), path, self.part_bytes);
            return Ok(NewObject::Bucket(Box::new(upload)));
        }
        let upload = self.store.put_multipart(&path).await?;
        Ok(NewObject::Folder(WriteMultipart::new_with_chunk_size(upload, self.part_bytes)))
    }

    /// Writes a small object of a medium at once.
    pub(super) async fn put(&self, name: &str, object: &str, bytes: Bytes) -> Result<(), ObjectsError> {
        self.store.put(&path(name, object), bytes.into()).await?;
        Ok(())
    }

    /// The bytes `range` of an object, part by part.
    pub(super) async fn read(
        &self,
        name: &str,
        object: &str,
        range: Range<u64>,
    ) -> Result<impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static, ObjectsError> {
        let length = range.end.saturating_sub(range.start);
        // A range of nothing is an error to object stores.
        let wanted = (length > 0).then(|| GetRange::Bounded(range.clone()));
        let options = GetOptions { range: wanted, ..GetOptions::default() };
        let found = self.store.get_opts(&path(name, object), options).await?;
        Ok(match found.payload {
            GetResultPayload::File(file, _) => {
                let mut file = tokio::fs::File::from_std(file);
                let sought = file.seek(io::SeekFrom::Start(range.start)).await;
                sought.map_err(|error| object_store::Error::Generic {
                    store: "folder",
                    source: Box::new(error),
                })?;
                let parts = ReaderStream::with_capacity(file.take(length), READ_BYTES);
                parts.map_err(BoxError::from).boxed()
            }
            GetResultPayload::Stream(parts) => parts.map_err(BoxError::from).boxed(),
        })
    }

    /// Removes all objects of a medium, and what an upload that broke off has left of one: `multipart` is what [`NewObject::multipart`] gave.
    /// There may be none.
    pub(super) async fn discard(&self, name: &str, multipart: Option<&str>) -> Result<(), ObjectsError> {
        if let (Place::Bucket(bucket), Some(multipart)) = (&self.place, multipart) {
            let aborted = bucket.abort_multipart(&path(name, CONTENT), &multipart.to_owned()).await;
            // One that was completed, or aborted before, is not there.
            match aborted {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let all = self.store.list(Some(&folder_of(name)));
        let locations = all.map_ok(|meta| meta.location).boxed();
        let mut deleted = self.store.delete_stream(locations);
        while let Some(deleted) = deleted.next().await {
            match deleted {
                // Somebody else may discard the same.
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let Place::Folder(folder) = &self.place else { return Ok(()) };
        // A folder keeps a file that is being written beside its place, where the store does not list it.
        match tokio::fs::remove_dir_all(folder.join(folder_of(name).as_ref())).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ObjectsError::Leftover(error)),
            _ => Ok(()),
        }
    }
}

impl NewObject {
    /// Appends bytes; waits while the disk or the service is behind.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), ObjectsError> {
        match self {
            Self::Folder(upload) => {
                upload.wait_for_capacity(PARTS_UNDER_WAY).await?;
                upload.write(bytes);
                Ok(())
            }
            Self::Bucket(upload) => upload.write(bytes).await,
        }
    }

    /// What has to be known to discard what was written so far, besides the medium's name: it appears in some call of [`Self::write`],
    /// and is to be noted before the next one.
    pub(super) fn multipart(&self) -> Option<&str> {
        match self {
            Self::Folder(_) => None,
            Self::Bucket(upload) => upload.multipart(),
        }
    }

    /// Makes the object whole and readable.
    pub(super) async fn finish(self) -> Result<(), ObjectsError> {
        match self {
            Self::Folder(upload) => {
                upload.finish().await?;
                Ok(())
            }
            Self::Bucket(upload) => upload.finish().await,
        }
    }
}

fn mark_path(mark: &str) -> object_store::path::Path {
    object_store::path::Path::from_iter([MARKS, mark])
}

/// `Ab/Ab…`: no folder gets too full.
fn folder_of(name: &str) -> object_store::path::Path {
    let begin: String = name.chars().take(2).collect();
    object_store::path::Path::from_iter([begin.as_str(), name])
}

fn path(name: &str, object: &str) -> object_store::path::Path {
    folder_of(name).join(object)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    async fn text(objects: &Objects, range: Range<u64>) -> String {
        let parts = objects.read("name", CONTENT, range).await.unwrap();
        let parts: Vec<Bytes> = parts.try_collect().await.unwrap();
        String::from_utf8(parts.concat()).unwrap()
    }

    #[test]
    fn a_full_disk_is_told_from_a_broken_one() {
        let status = |kind: io::ErrorKind| {
            let source = Box::new(io::Error::from(kind));
            ApiError::from(ObjectsError::Object(object_store::Error::Generic { store: "test", source }))
                .status()
        };
        assert_eq!(status(io::ErrorKind::StorageFull), http::StatusCode::INSUFFICIENT_STORAGE);
        assert_eq!(status(io::ErrorKind::PermissionDenied), http::StatusCode::INTERNAL_SERVER_ERROR);
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
    }

    #[tokio::test]
    async fn an_object_is_there_once_it_is_finished_and_gone_once_it_is_discarded() {
        let folder = tempfile::tempdir().unwrap();
        let objects = Objects::in_folder(folder.path().join("new/media")).await.unwrap();
        let mut object = objects.create("name").await.unwrap();
        object.write(b"Hello ").await.unwrap();
        assert!(objects.read("name", CONTENT, 0..1).await.is_err());
        object.write(b"world").await.unwrap();
        object.finish().await.unwrap();
        assert_eq!(text(&objects, 0..11).await, "Hello world");
        assert_eq!(text(&objects, 4..7).await, "o w");
        assert_eq!(text(&objects, 3..3).await, "");
        objects.put("name", "small", Bytes::from_static(b"s")).await.unwrap();
        assert_eq!(files(folder.path()).len(), 2);
        objects.discard("name", None).await.unwrap();
        assert!(files(folder.path()).is_empty());
        assert!(objects.read("name", CONTENT, 0..1).await.is_err());
        objects.discard("name", None).await.unwrap();
    }

    #[tokio::test]
    async fn what_a_crash_leaves_of_an_upload_is_discarded() {
        let folder = tempfile::tempdir().unwrap();
        let objects = Objects::in_folder(folder.path().to_owned()).await.unwrap();
        let mut object = objects.create("name").await.unwrap();
        object.write(&vec![7; 2 * FOLDER_PART_BYTES]).await.unwrap();
        // A crash drops nothing.
        std::mem::forget(object);
        assert_eq!(files(folder.path()).len(), 1);
        objects.discard("name", None).await.unwrap();
        assert!(files(folder.path()).is_empty());
    }

    #[tokio::test]
    async fn a_place_bears_the_marks_that_were_set() {
        let folder = tempfile::tempdir().unwrap();
        let objects = Objects::in_folder(folder.path().to_owned()).await.unwrap();
        assert!(!objects.has_mark("m").await.unwrap());
        objects.set_mark("m").await.unwrap();
        assert!(objects.has_mark("m").await.unwrap() && !objects.has_mark("n").await.unwrap());
        objects.remove_mark("m").await.unwrap();
        assert!(!objects.has_mark("m").await.unwrap());
    }
}
