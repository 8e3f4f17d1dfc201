//! From a file to its ciphertext at the homeserver.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::try_unfold;
use futures_util::{Stream, TryStreamExt as _};
use tokio::fs::File;
use tokio::io::AsyncReadExt as _;

use keystead_keybox::OpensslEntropy;
use keystead_keybox::attachment::{EncryptedFile, Encryptor};

use super::{FileError, PART, Progress, Transfer, io};
use crate::api::{Api, ApiError};
use crate::client::ClientError;

/// How often an upload that breaks off begins anew.
const ATTEMPTS: u32 = 4;
/// The pause before the second attempt; it grows from there.
const PAUSE: Duration = Duration::from_secs(1);

/// Uploads the ciphertext of a file. Returns its description and its size.
pub(super) async fn upload(
    api: &Api,
    path: &Path,
    progress: &Progress,
) -> Result<(EncryptedFile, u64), ClientError> {
    let size = size_of(path).await?;
    if let Some(limit) = api.upload_limit().await?.filter(|limit| size > *limit) {
        return Err(FileError::TooLarge { size, limit }.into());
    }
    let mut attempt = 1;
    loop {
        match once(api, path, size, progress).await {
            Ok(file) => return Ok((file, size)),
            Err(ClientError::Api(error)) if error.is_temporary() && attempt < ATTEMPTS => {
                let asked = match &error {
                    ApiError::Server(error) => error.retry_after_ms.map(Duration::from_millis),
                    _ => None,
                };
                tokio::time::sleep(asked.unwrap_or(PAUSE * attempt).min(PAUSE * 60)).await;
            }
            Err(error) => return Err(error),
        }
        attempt += 1;
    }
}

/// Uploads the ciphertext of what is in memory, and returns its description.
pub(super) async fn upload_small(api: &Api, bytes: &[u8]) -> Result<EncryptedFile, ClientError> {
    let mut encryptor = Encryptor::new(&mut OpensslEntropy)?;
    let ciphertext = Bytes::from(encryptor.update(bytes)?);
    let length = ciphertext.len() as u64;
    let url = api.upload(length, futures_util::stream::iter([Ok(ciphertext)])).await?;
    Ok(encryptor.finish(url))
}

async fn size_of(path: &Path) -> Result<u64, FileError> {
    let metadata = tokio::fs::metadata(path).await.map_err(io(path))?;
    if metadata.is_file() {
        return Ok(metadata.len());
    }
    Err(io(path)(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a file")))
}

/// One attempt. Each has a key of its own: the file may have changed since the last, and a key must not encrypt two texts.
async fn once(api: &Api, path: &Path, size: u64, progress: &Progress) -> Result<EncryptedFile, ClientError> {
    let source = Source {
        file: File::open(path).await.map_err(io(path))?,
        path: path.to_owned(),
        encryptor: Encryptor::new(&mut OpensslEntropy)?,
        size,
        done: 0,
        progress: Arc::clone(progress),
    };
    let outcome = Outcome::default();
    let url = api.upload(size, source.ciphertext(Arc::clone(&outcome))).await;
    let outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (outcome, url) {
        (Some(Ok(encryptor)), Ok(url)) => Ok(encryptor.finish(url)),
        // What went wrong with the file says more than that the connection was given up over it.
        (Some(Err(error)), _) => Err(error.into()),
        (_, Err(error)) => Err(error.into()),
        (None, Ok(_)) => Err(ApiError::Malformed("an answer before the end of the file".into()).into()),
    }
}

/// The encryptor once all of the file has passed through it, or what was wrong with the file.
type Outcome = Arc<Mutex<Option<Result<Encryptor, FileError>>>>;

struct Source {
    file: File,
    path: PathBuf,
    encryptor: Encryptor,
    size: u64,
    done: u64,
    progress: Progress,
}

impl Source {
    /// The ciphertext of the file's first `size` bytes, part by part. The encryptor goes to `outcome` with the last part: nobody
    /// asks a stream for more once it has given as many bytes as were announced.
    fn ciphertext(
        self,
        outcome: Outcome,
    ) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static {
        let failed = Arc::clone(&outcome);
        let parts = try_unfold(self.or_done(&outcome), move |source| {
            let outcome = Arc::clone(&outcome);
            async move {
                let Some(mut source) = source else { return Ok(None) };
                let part = source.next().await?;
                Ok(Some((part, source.or_done(&outcome))))
            }
        });
        parts.map_err(move |error: FileError| {
            let told = std::io::Error::other(error.to_string());
            *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Err(error));
            told
        })
    }

    /// Itself while there is more to come; then nothing, and the outcome.
    fn or_done(self, outcome: &Outcome) -> Option<Self> {
        if self.done < self.size {
            return Some(self);
        }
        *outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(Ok(self.encryptor));
        None
    }

    async fn next(&mut self) -> Result<Bytes, FileError> {
        let mut part = Vec::with_capacity(PART);
        let left = self.size - self.done;
        let mut limited = (&mut self.file).take(left.min(PART as u64));
        limited.read_to_end(&mut part).await.map_err(io(&self.path))?;
        if part.is_empty() {
            return Err(FileError::Changed(self.path.clone()));
        }
        self.done += part.len() as u64;
        let ciphertext = self.encryptor.update(&part)?;
        (self.progress)(Transfer { done: self.done, total: Some(self.size) });
        Ok(ciphertext.into())
    }
}
