//! [`Objects`]: where the bytes of media are kept, by way of the crate `object_store`.
//!
//! Now this is a folder. Nothing outside of this file knows: a bucket is another [`ObjectStore`] and another size of parts.
//! Each medium has a name of its own that nobody can guess, and its objects lie below it: `Ab/Ab…/content`, `Ab/Ab…/THUMBNAIL`.

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use object_store::{
    GetOptions, GetRange, GetResultPayload, ObjectStore, ObjectStoreExt as _, WriteMultipart,
    local::LocalFileSystem,
};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use crate::http::body::BoxError;

/// The name of what was uploaded, below the name of its medium.
pub(crate) const CONTENT: &str = "content";
/// In a folder, parts of any size can be written. (S3 wants 5 MiB and more.)
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

/// The store of objects.
pub(crate) struct Objects {
    store: Arc<dyn ObjectStore>,
    /// Where a folder keeps what is being written.
    folder: PathBuf,
    part_bytes: usize,
}

/// An object that is being written; it can be read once it is finished. Dropped before, it is removed.
pub(crate) struct NewObject(WriteMultipart);

impl Objects {
    /// Objects in a folder, which is made if it is not there. What is finished has reached the disk.
    pub(super) async fn in_folder(folder: &Path) -> Result<Self, ObjectsError> {
        tokio::fs::create_dir_all(folder)
            .await
            .map_err(|error| ObjectsError::Folder(folder.to_owned(), error))?;
        let store = LocalFileSystem::new_with_prefix(folder)?.with_fsync(true).with_automatic_cleanup(true);
        Ok(Self { store: Arc::new(store), folder: folder.to_owned(), part_bytes: FOLDER_PART_BYTES })
    }

    /// Begins an object of the medium called `name`.
    pub(super) async fn create(&self, name: &str) -> Result<NewObject, ObjectsError> {
        let upload = self.store.put_multipart(&path(name, CONTENT)).await?;
        Ok(NewObject(WriteMultipart::new_with_chunk_size(upload, self.part_bytes)))
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

    /// Removes all objects of a medium, and what an upload that broke off has left of one. There may be none.
    pub(super) async fn discard(&self, name: &str) -> Result<(), ObjectsError> {
        let all = self.store.list(Some(&folder_of(name)));
        let locations = all.map_ok(|meta| meta.location).boxed();
        let deleted: Result<Vec<_>, _> = self.store.delete_stream(locations).try_collect().await;
        deleted?;
        // A folder keeps a file that is being written beside its place, where the store does not list it.
        match tokio::fs::remove_dir_all(self.folder.join(folder_of(name).as_ref())).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ObjectsError::Leftover(error)),
            _ => Ok(()),
        }
    }
}

impl NewObject {
    /// Appends bytes; waits while the disk is behind.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), ObjectsError> {
        self.0.wait_for_capacity(PARTS_UNDER_WAY).await?;
        self.0.write(bytes);
        Ok(())
    }

    /// Makes the object whole and readable.
    pub(super) async fn finish(self) -> Result<(), ObjectsError> {
        self.0.finish().await?;
        Ok(())
    }
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
    use super::*;

    async fn text(objects: &Objects, range: Range<u64>) -> String {
        let parts = objects.read("name", CONTENT, range).await.unwrap();
        let parts: Vec<Bytes> = parts.try_collect().await.unwrap();
        String::from_utf8(parts.concat()).unwrap()
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
    }

    #[tokio::test]
    async fn an_object_is_there_once_it_is_finished_and_gone_once_it_is_discarded() {
        let folder = tempfile::tempdir().unwrap();
        let objects = Objects::in_folder(&folder.path().join("new/media")).await.unwrap();
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
        objects.discard("name").await.unwrap();
        assert!(files(folder.path()).is_empty());
        assert!(objects.read("name", CONTENT, 0..1).await.is_err());
        objects.discard("name").await.unwrap();
    }

    #[tokio::test]
    async fn what_a_crash_leaves_of_an_upload_is_discarded() {
        let folder = tempfile::tempdir().unwrap();
        let objects = Objects::in_folder(folder.path()).await.unwrap();
        let mut object = objects.create("name").await.unwrap();
        object.write(&vec![7; 2 * FOLDER_PART_BYTES]).await.unwrap();
        // A crash drops nothing.
        std::mem::forget(object);
        assert_eq!(files(folder.path()).len(), 1);
        objects.discard("name").await.unwrap();
        assert!(files(folder.path()).is_empty());
    }
}
