//! Objects in a bucket of an S3 service: Amazon's, or one of the many that speak its protocol.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use object_store::{ObjectStoreExt as _, PutPayload};
use object_store::{
    RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    multipart::{MultipartStore as _, PartId},
    path::Path,
};
use tokio_util::task::AbortOnDropHandle;

use super::{ObjectsError, digest::OpenSsl, https::Https};
use crate::config::media::BucketSettings;

/// S3 takes no smaller parts, but for the last one.
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html>
const SMALLEST_PART: u64 = 5 * 1024 * 1024;
/// The most parts of an object that S3 takes.
const MAX_PARTS: u64 = 10_000;
/// How often a request is sent again before it has failed.
const RETRIES: usize = 5;
/// How long that goes on.
const RETRY_FOR: Duration = Duration::from_secs(30);

/// The bucket that the settings name. Nothing is asked of it yet.
pub(super) fn open(settings: &BucketSettings) -> Result<AmazonS3, ObjectsError> {
    let retry = RetryConfig { max_retries: RETRIES, retry_timeout: RETRY_FOR, ..RetryConfig::default() };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&settings.bucket)
        .with_region(&settings.region)
        .with_access_key_id(settings.access_key_id.expose())
        .with_secret_access_key(settings.secret_access_key.expose())
        .with_virtual_hosted_style_request(!settings.path_style)
        // A medium has a dozen objects at most, and not every service knows how to delete several at once.
        .with_disable_bulk_delete(true)
        .with_disable_tagging(true)
        .with_retry(retry)
        .with_crypto_provider(Arc::new(OpenSsl))
        .with_http_connector(Https);
    if let Some(endpoint) = settings.endpoint_of_bucket() {
        builder = builder.with_endpoint(endpoint);
    }
    Ok(builder.build()?)
}

/// How large the parts must be for the largest file to fit.
pub(super) fn part_bytes(max_upload_bytes: u64) -> usize {
    let part = max_upload_bytes.div_ceil(MAX_PARTS).max(SMALLEST_PART);
    usize::try_from(part).unwrap_or(usize::MAX)
}

/// An object on its way into the bucket: one part fills while another is sent.
///
/// A file that fits into one part is written at once. A larger one is a *multipart upload*, which the service keeps, and charges for, until it
/// is completed or aborted; its id has to be noted before the first part is sent, so that it can be aborted whatever happens.
pub(crate) struct BucketUpload {
    bucket: Arc<AmazonS3>,
    path: Path,
    part_bytes: usize,
    filling: Vec<u8>,
    multipart: Option<String>,
    sent: Vec<PartId>,
    sending: Option<AbortOnDropHandle<Result<PartId, object_store::Error>>>,
}

impl BucketUpload {
    pub(super) fn new(bucket: Arc<AmazonS3>, path: Path, part_bytes: usize) -> Self {
        Self {
            bucket,
            path,
            part_bytes,
            filling: Vec::new(),
            multipart: None,
            sent: Vec::new(),
            sending: None,
        }
    }

    /// The id of the multipart upload, as soon as there is one.
    pub(super) fn multipart(&self) -> Option<&str> {
        self.multipart.as_deref()
    }

    /// Appends bytes; waits while the service is behind. The call that begins the multipart upload sends nothing yet.
    pub(super) async fn write(&mut self, mut bytes: &[u8]) -> Result<(), ObjectsError> {
        while self.multipart.is_some() && self.filling.len().saturating_add(bytes.len()) > self.part_bytes {
            let (now, later) =
                bytes.split_at(self.part_bytes.saturating_sub(self.filling.len()).min(bytes.len()));
            self.filling.extend_from_slice(now);
            self.send().await?;
            bytes = later;
        }
        self.filling.extend_from_slice(bytes);
        if self.multipart.is_none() && self.filling.len() > self.part_bytes {
            self.multipart = Some(self.bucket.create_multipart(&self.path).await?);
        }
        Ok(())
    }

    /// Makes the object whole and readable.
    pub(super) async fn finish(mut self) -> Result<(), ObjectsError> {
        if self.multipart.is_none() {
            self.bucket.put(&self.path, PutPayload::from(self.filling)).await?;
            return Ok(());
        }
        if !self.filling.is_empty() {
            self.send().await?;
        }
        self.wait().await?;
        if let Some(multipart) = &self.multipart {
            self.bucket.complete_multipart(&self.path, multipart, self.sent).await?;
        }
        Ok(())
    }

    /// Begins to send what has filled, once what is under way has arrived.
    async fn send(&mut self) -> Result<(), ObjectsError> {
        self.wait().await?;
        let Some(multipart) = self.multipart.clone() else { return Ok(()) };
        let part = Bytes::from(std::mem::replace(&mut self.filling, Vec::with_capacity(self.part_bytes)));
        let (bucket, path, number) = (Arc::clone(&self.bucket), self.path.clone(), self.sent.len());
        self.sending = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            bucket.put_part(&path, &multipart, number, part.into()).await
        })));
        Ok(())
    }

    async fn wait(&mut self) -> Result<(), ObjectsError> {
        if let Some(sending) = self.sending.take() {
            let part = sending.await.map_err(|error| object_store::Error::JoinError { source: error })?;
            self.sent.push(part?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_as_small_as_the_service_takes_and_as_large_as_the_largest_file_needs() {
        assert_eq!(part_bytes(1), 5 << 20);
        assert_eq!(part_bytes(1 << 30), 5 << 20);
        let terabyte = 1_u64 << 40;
        let part = u64::try_from(part_bytes(terabyte)).unwrap();
        assert!(part * MAX_PARTS >= terabyte && part < 2 * terabyte / MAX_PARTS);
    }
}
