//! What is said about a picture besides the picture: how large it is, and a small version of it, so that a receiver sees something at once.

use std::io::{BufRead, Cursor, Seek};
use std::path::Path;

use image::codecs::jpeg::JpegEncoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

/// The bounds of a thumbnail in pixels: the largest that the specification recommends.
/// <https://spec.matrix.org/v1.19/client-server-api/#thumbnails>
const BOUNDS: (u32, u32) = (800, 600);
/// The most pixels of a picture of which a thumbnail is made: decoding takes up to nine bytes for each.
const MAX_PIXELS: u64 = 25_000_000;
/// The most memory that a decoder may take for itself, in bytes.
const MAX_MEMORY: u64 = 256 << 20;
/// Of 100: below it artefacts show.
const JPEG_QUALITY: u8 = 82;

/// What is known of a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Picture {
    /// The media type, from the picture itself.
    pub(super) media_type: &'static str,
    /// In pixels, as it is shown.
    pub(super) width: u32,
    /// In pixels, as it is shown.
    pub(super) height: u32,
    /// A small version; none of one that is small, or too large to be worked on.
    pub(super) thumbnail: Option<Thumbnail>,
}

/// A small version of a picture. It has nothing of what cameras write into pictures, such as the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Thumbnail {
    /// The file.
    pub(super) bytes: Vec<u8>,
    /// Its media type.
    pub(super) media_type: &'static str,
    /// In pixels.
    pub(super) width: u32,
    /// In pixels.
    pub(super) height: u32,
}

/// Looks at a file; nothing if it is no picture of a kind that is known here. Takes time and memory: for a thread of its own.
pub(super) fn look_at(path: &Path) -> Option<Picture> {
    examine(ImageReader::open(path).ok()?)
}

/// The width and height of a picture, after its small version was made.
pub fn look_at_picture(bytes: &[u8]) -> Option<(u32, u32)> {
    examine(ImageReader::new(Cursor::new(bytes))).map(|picture| (picture.width, picture.height))
}

fn examine(reader: ImageReader<impl BufRead + Seek>) -> Option<Picture> {
    let mut reader = reader.with_guessed_format().ok()?;
    let media_type = media_type(reader.format()?)?;
    reader.limits(limits());
    let mut decoder = reader.into_decoder().ok()?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let (width, height) = match (decoder.dimensions(), orientation) {
        (
            (width, height),
            Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH,
        ) => (height, width),
        (dimensions, _) => dimensions,
    };
    let is_small = width <= BOUNDS.0 && height <= BOUNDS.1;
    let is_large = u64::from(width) * u64::from(height) > MAX_PIXELS || decoder.total_bytes() > MAX_MEMORY;
    let thumbnail = if is_small || is_large { None } else { shrink(decoder, orientation).ok() };
    Some(Picture { media_type, width, height, thumbnail })
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_MEMORY);
    limits
}

fn shrink(decoder: impl ImageDecoder, orientation: Orientation) -> Result<Thumbnail, ImageError> {
    let mut picture = DynamicImage::from_decoder(decoder)?;
    picture.apply_orientation(orientation);
    let small = picture.thumbnail(BOUNDS.0, BOUNDS.1);
    let mut bytes = Vec::new();
    // PNG for what is transparent, JPEG for all else, which is much smaller.
    let media_type = if small.color().has_alpha() {
        small.to_rgba8().write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)?;
        "image/png"
    } else {
        small.to_rgb8().write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY))?;
        "image/jpeg"
    };
    Ok(Thumbnail { bytes, media_type, width: small.width(), height: small.height() })
}

fn media_type(format: ImageFormat) -> Option<&'static str> {
    match format {
        ImageFormat::Gif => Some("image/gif"),
        ImageFormat::Jpeg => Some("image/jpeg"),
        ImageFormat::Png => Some("image/png"),
        ImageFormat::WebP => Some("image/webp"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage, Rgba, RgbaImage};

    use super::*;

    fn look(name: &str, bytes: &[u8]) -> Option<Picture> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(name), bytes).unwrap();
        look_at(&folder.path().join(name))
    }

    fn file(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Vec::new();
        picture.into().write_to(&mut Cursor::new(&mut bytes), format).unwrap();
        bytes
    }

    #[test]
    fn a_large_picture_has_a_small_version() {
        let wide = file(RgbImage::from_pixel(1_600, 400, Rgb([9, 9, 9])), ImageFormat::Png);
        let picture = look("wide.jpg", &wide).unwrap();
        assert_eq!((picture.media_type, picture.width, picture.height), ("image/png", 1_600, 400));
        let thumbnail = picture.thumbnail.unwrap();
        assert_eq!((thumbnail.media_type, thumbnail.width, thumbnail.height), ("image/jpeg", 800, 200));
        let small = image::load_from_memory(&thumbnail.bytes).unwrap();
        assert_eq!((small.width(), small.height()), (800, 200));
        let clear = file(RgbaImage::from_pixel(900, 900, Rgba([1, 2, 3, 4])), ImageFormat::WebP);
        let thumbnail = look("clear", &clear).unwrap().thumbnail.unwrap();
        assert_eq!((thumbnail.media_type, thumbnail.width, thumbnail.height), ("image/png", 600, 600));
    }

    #[test]
    fn a_small_picture_has_none_and_a_bomb_is_not_decoded() {
        let small = look("small", &file(RgbImage::new(30, 20), ImageFormat::Gif)).unwrap();
        assert_eq!((small.width, small.height, small.thumbnail), (30, 20, None));
        let mut bomb = file(RgbImage::new(10, 10), ImageFormat::Gif);
        // A GIF says its size in the bytes 6 to 9.
        bomb[6..10].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
        if let Some(picture) = look("bomb.gif", &bomb) {
            assert_eq!((picture.width, picture.height, picture.thumbnail), (65_535, 65_535, None));
        }
        for nothing in
            [&b""[..], b"no picture", b"BM123456789012345678", b"<svg xmlns='http://www.w3.org/2000/svg'/>"]
        {
            assert_eq!(look("x.png", nothing), None);
        }
        let whole = file(RgbImage::new(900, 900), ImageFormat::Png);
        let half = look("half.png", &whole[..whole.len() / 2]).unwrap();
        assert_eq!((half.width, half.thumbnail), (900, None));
    }

    #[test]
    fn a_picture_is_as_large_as_it_is_shown() {
        let jpeg = file(RgbImage::new(1_000, 500), ImageFormat::Jpeg);
        // An Exif segment that says: turn it by 90 degrees. It goes behind the two bytes that begin the file.
        let exif = b"\xff\xe1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        let turned = [&jpeg[..2], exif, &jpeg[2..]].concat();
        let picture = look("turned.jpg", &turned).unwrap();
        assert_eq!((picture.width, picture.height), (500, 1_000));
        let thumbnail = picture.thumbnail.unwrap();
        assert_eq!((thumbnail.width, thumbnail.height), (300, 600));
        assert!(!thumbnail.bytes.windows(4).any(|window| window == b"Exif"));
    }
}
