//! Thumbnails: made when somebody first asks, in a few sizes, and kept beside the picture.

use std::{sync::Arc, time::Duration};

use futures_util::TryStreamExt as _;
use http::{HeaderMap, Method};
use keystead_store::media::{self as store, Content, ThumbnailSize};

use super::{
    download::File,
    objects,
    picture::{self, Bounds, Fitting, PictureError},
};
use crate::{
    app::App,
    http::{error::ApiError, reply::Custom},
};

/// The largest file of which a thumbnail is made, in bytes: it is read whole.
const MAX_FILE: u64 = 32 * 1024 * 1024;
/// How many pictures a replica decodes at once. Each takes up to 260 MiB: 32 for the file, nine bytes for each of its pixels.
pub(super) const MAX_DECODERS: usize = 2;
/// How long a request waits for its turn to have a picture decoded.
const TURN: Duration = Duration::from_secs(20);
/// Width and height in pixels of the thumbnails that are made, in both methods: those that the specification recommends. A client gets
/// the smallest one that is not smaller than what it asked for, and so cannot fill the disk with a thumbnail of each size.
const SIZES: [(u32, u32); 5] = [(32, 32), (96, 96), (320, 240), (640, 480), (800, 600)];

/// The size that stands for what a client asks for, in pixels.
pub(crate) fn size_for(width: u64, height: u64, crop: bool) -> ThumbnailSize {
    let fits = |size: &&(u32, u32)| u64::from(size.0) >= width && u64::from(size.1) >= height;
    let (width, height) = *SIZES.iter().find(fits).or(SIZES.last()).unwrap_or(&(800, 600));
    ThumbnailSize { method: if crop { "crop" } else { "scale" }, width, height }
}

/// The answer to a request for a thumbnail of a medium.
///
/// # Errors
///
/// 400 `M_UNKNOWN` if it is no picture that can be read, 413 `M_TOO_LARGE` if it is too large, 429 `M_LIMIT_EXCEEDED` if too many others
/// wait.
pub(crate) async fn answer(
    app: &Arc<App>,
    (media_id, content): (&str, &Content),
    size: ThumbnailSize,
    (method, headers): (&Method, &HeaderMap),
) -> Result<Custom, ApiError> {
    let thumbnail = match find(app, media_id, size).await? {
        Some(thumbnail) => thumbnail,
        None => make(app, media_id, content, size).await?,
    };
    // The objects of a thumbnail lie below the name of its medium.
    let sent = Content { object: content.object.clone(), ..thumbnail.clone() };
    File { media_id, content: &sent, object: &thumbnail.object, file_name: None }
        .answer(app, method, headers)
        .await
}

async fn find(app: &App, media_id: &str, size: ThumbnailSize) -> Result<Option<Content>, ApiError> {
    let found = app
        .store
        .read("find_thumbnail", |tx| async move { store::find_thumbnail(&tx, media_id, size).await })
        .await;
    Ok(found?)
}

async fn make(
    app: &Arc<App>,
    media_id: &str,
    content: &Content,
    size: ThumbnailSize,
) -> Result<Content, ApiError> {
    if content.size > MAX_FILE {
        return Err(too_large());
    }
    let turn = tokio::time::timeout(TURN, app.media.decoders.acquire()).await;
    let _permit =
        turn.map_err(|_| ApiError::limit_exceeded(Duration::from_secs(1)))?.map_err(ApiError::internal)?;
    // While this request waited, another one may have had it made.
    if let Some(thumbnail) = find(app, media_id, size).await? {
        return Ok(thumbnail);
    }
    let parts = app.media.objects.read(&content.object, objects::CONTENT, 0..content.size).await;
    let parts: Vec<_> = parts.map_err(ApiError::internal)?.try_collect().await.map_err(ApiError::internal)?;
    let file = parts.concat();
    let bounds = Bounds { width: size.width, height: size.height, crop: size.method == "crop" };
    let fitting = tokio::task::spawn_blocking(move || picture::fit(&file, bounds)).await;
    let fitting = fitting.map_err(ApiError::internal)?;
    app.metrics.media_thumbnail(fitting.is_ok());
    let thumbnail = keep(app, content, size, fitting.map_err(refusal)?).await?;
    let new = &thumbnail;
    let is_kept = app
        .store
        .write(
            "insert_thumbnail",
            |tx| async move { store::insert_thumbnail(&tx, media_id, size, new).await },
        )
        .await?;
    if !is_kept {
        // The medium was deleted meanwhile, and perhaps before its thumbnail was written.
        app.media.objects.discard(&content.object, None).await.map_err(ApiError::internal)?;
        return Err(ApiError::not_found("There is no such medium on this server"));
    }
    Ok(thumbnail)
}

/// Writes the object of a thumbnail; a picture that fits as it is, is its own.
async fn keep(
    app: &App,
    content: &Content,
    size: ThumbnailSize,
    fitting: Fitting,
) -> Result<Content, ApiError> {
    let (object, content_type, length) = match fitting {
        Fitting::Original(content_type) => (objects::CONTENT.to_owned(), content_type, content.size),
        Fitting::Smaller { bytes, content_type } => {
            let object = format!("{}-{}x{}", size.method, size.width, size.height);
            let length = bytes.len().try_into().unwrap_or(u64::MAX);
            app.media
                .objects
                .put(&content.object, &object, bytes.into())
                .await
                .map_err(ApiError::internal)?;
            (object, content_type, length)
        }
    };
    Ok(Content { object, content_type: content_type.to_owned(), file_name: None, size: length })
}

fn refusal(error: PictureError) -> ApiError {
    match error {
        PictureError::TooLarge => too_large(),
        PictureError::NotAPicture | PictureError::Broken(_) => {
            ApiError::unknown_request("A thumbnail cannot be made of this file").because(error)
        }
    }
}

fn too_large() -> ApiError {
    ApiError::too_large("The picture is too large for a thumbnail to be made of it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_sizes_stand_for_all() {
        for (asked, given) in [
            ((0, 0), (32, 32)),
            ((32, 32), (32, 32)),
            ((33, 1), (96, 96)),
            ((300, 240), (320, 240)),
            ((320, 241), (640, 480)),
            ((5_000, 5_000), (800, 600)),
        ] {
            let size = size_for(asked.0, asked.1, true);
            assert_eq!((size.method, (size.width, size.height)), ("crop", given), "{asked:?}");
        }
    }
}
