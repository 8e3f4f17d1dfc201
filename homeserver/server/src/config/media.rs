//! `[media]`: files that users upload.

use std::path::{Path, PathBuf};

use super::reader::Section;

/// Below this a picture of a phone would not pass.
const SMALLEST_LIMIT: u64 = 64 * 1024;

/// Files that users upload.
#[derive(Clone, Debug)]
pub struct MediaSettings {
    /// `media.folder`: where the files lie; default `media` in `data_dir`. Several replicas need a folder that they share.
    pub folder: PathBuf,
    /// `media.max_upload_bytes`: the largest file that users may upload, in bytes; default 1 GiB.
    pub max_upload_bytes: u64,
}

impl MediaSettings {
    pub(super) fn read(section: &mut Section<'_>, data_dir: &Path) -> Self {
        let max_upload_bytes = section.value("max_upload_bytes", || 1024 * 1024 * 1024);
        if max_upload_bytes < SMALLEST_LIMIT {
            section.problem("max_upload_bytes", format!("must be at least {SMALLEST_LIMIT}"));
        }
        Self { folder: section.value("folder", || data_dir.join("media")), max_upload_bytes }
    }
}
