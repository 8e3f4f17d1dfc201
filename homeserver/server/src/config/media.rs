//! `[media]`: files that users upload.

use std::path::{Path, PathBuf};

use super::{reader::Section, secret::Secret};

/// Below this a picture of a phone would not pass.
const SMALLEST_LIMIT: u64 = 64 * 1024;
/// The region of S3 services that know none.
const DEFAULT_REGION: &str = "us-east-1";

/// Files that users upload.
#[derive(Clone, Debug)]
pub struct MediaSettings {
    /// Where the files lie: all replicas need the same place.
    pub place: MediaPlace,
    /// `media.max_upload_bytes`: the largest file that users may upload, in bytes; default 1 GiB.
    pub max_upload_bytes: u64,
    /// `media.user_quota_bytes`: how many bytes the files of one user may have together; no limit by default.
    pub user_quota_bytes: Option<u64>,
}

/// Where files lie.
#[derive(Clone, Debug)]
pub enum MediaPlace {
    /// `media.folder`: a folder; default `media` in `data_dir`. Several replicas need a folder that they share.
    Folder(PathBuf),
    /// `media.s3_bucket`: a bucket of an S3 service.
    Bucket(BucketSettings),
}

/// A bucket of an S3 service.
#[derive(Clone, Debug)]
pub struct BucketSettings {
    /// `media.s3_bucket`: its name.
    pub bucket: String,
    /// `media.s3_endpoint`: the URL of the service, without the bucket; by default Amazon's of the region.
    pub endpoint: Option<String>,
    /// `media.s3_region`: default `us-east-1`.
    pub region: String,
    /// `media.s3_access_key_id` or `media.s3_access_key_id_file`.
    pub access_key_id: Secret,
    /// `media.s3_secret_access_key` or `media.s3_secret_access_key_file`.
    pub secret_access_key: Secret,
    /// `media.s3_path_style`: whether the bucket's name stands in the path of URLs rather than before the host; default true.
    pub path_style: bool,
}

impl MediaSettings {
    pub(super) fn read(section: &mut Section<'_>, data_dir: &Path) -> Self {
        let max_upload_bytes = section.value("max_upload_bytes", || 1024 * 1024 * 1024);
        if max_upload_bytes < SMALLEST_LIMIT {
            section.problem("max_upload_bytes", format!("must be at least {SMALLEST_LIMIT}"));
        }
        let folder: Option<PathBuf> = section.optional("folder");
        let place = match bucket(section) {
            Some(bucket) => {
                if folder.is_some() {
                    section.problem("folder", "set either folder or s3_bucket, not both");
                }
                MediaPlace::Bucket(bucket)
            }
            None => MediaPlace::Folder(folder.unwrap_or_else(|| data_dir.join("media"))),
        };
        Self { place, max_upload_bytes, user_quota_bytes: section.optional("user_quota_bytes") }
    }
}

fn bucket(section: &mut Section<'_>) -> Option<BucketSettings> {
    let bucket: Option<String> = section.optional("s3_bucket");
    let endpoint: Option<String> = section.optional("s3_endpoint");
    let region: Option<String> = section.optional("s3_region");
    let access_key_id = section.secret("s3_access_key_id");
    let secret_access_key = section.secret("s3_secret_access_key");
    let path_style: Option<bool> = section.optional("s3_path_style");
    let allow_http: Option<bool> = section.optional("s3_allow_http");
    let Some(bucket) = bucket.filter(|bucket| !bucket.is_empty()) else {
        let is_useless = endpoint.is_some()
            || region.is_some()
            || access_key_id.is_some()
            || secret_access_key.is_some()
            || path_style.is_some()
            || allow_http.is_some();
        if is_useless {
            section.problem("s3_bucket", "is missing, while other s3 settings are there");
        }
        return None;
    };
    if let Some(text) = endpoint.as_deref().and_then(|url| problem_with(url, allow_http.unwrap_or(false))) {
        section.problem("s3_endpoint", text);
    }
    let mut needed = |secret: Option<Secret>, key: &str| {
        if secret.is_none() {
            section.problem(key, format!("is missing (or {key}_file), while s3_bucket is set"));
        }
        secret
    };
    let access_key_id = needed(access_key_id, "s3_access_key_id");
    let secret_access_key = needed(secret_access_key, "s3_secret_access_key");
    Some(BucketSettings {
        bucket,
        endpoint: endpoint.map(|url| url.trim_end_matches('/').to_owned()),
        region: region.unwrap_or_else(|| DEFAULT_REGION.to_owned()),
        access_key_id: access_key_id?,
        secret_access_key: secret_access_key?,
        path_style: path_style.unwrap_or(true),
    })
}

fn problem_with(endpoint: &str, allow_http: bool) -> Option<&'static str> {
    match url::Url::parse(endpoint) {
        Ok(url) if url.scheme() == "http" && !allow_http => Some(
            "does not begin with https://: files would travel in the clear; set s3_allow_http if they may",
        ),
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => None,
        _ => Some("must be a URL that begins with https://"),
    }
}

impl BucketSettings {
    /// The endpoint as it is to be asked for this bucket; none for Amazon's.
    #[must_use]
    pub fn endpoint_of_bucket(&self) -> Option<String> {
        let endpoint = self.endpoint.as_ref()?;
        match endpoint.split_once("://") {
            Some((scheme, host)) if !self.path_style => Some(format!("{scheme}://{}.{host}", self.bucket)),
            _ => Some(endpoint.clone()),
        }
    }
}
