//! Making small pictures of large ones, within limits that a hostile picture cannot pass.

use std::io::Cursor;

use image::{
    DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, codecs::jpeg::JpegEncoder,
    imageops::FilterType,
};

/// The most pixels of a picture that is decoded: what a good camera makes. Decoding takes nine bytes for each at most.
const MAX_PIXELS: u64 = 25_000_000;
/// The longest side in pixels.
const MAX_SIDE: u32 = 20_000;
/// The most memory that a decoder may take for itself, in bytes.
const MAX_MEMORY: u64 = 256 * 1024 * 1024;
/// Of 100: below it artefacts show.
const JPEG_QUALITY: u8 = 82;

/// What a picture is made to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// In pixels.
    pub(super) width: u32,
    /// In pixels.
    pub(super) height: u32,
    /// Whether the picture fills the bounds and loses its edges, rather than fitting into them.
    pub(super) crop: bool,
}

/// A picture that fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fitting {
    /// The picture itself does, which has this media type.
    Original(&'static str),
    /// A new one.
    Smaller {
        /// The file.
        bytes: Vec<u8>,
        /// Its media type.
        content_type: &'static str,
    },
}

/// Why no small picture can be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PictureError {
    /// It is no picture of a kind that is decoded here.
    #[error("no PNG, JPEG, GIF or WebP")]
    NotAPicture,
    /// It has too many pixels, or wants too much memory.
    #[error("the picture is too large to be made smaller here")]
    TooLarge,
    /// The file is broken.
    #[error("the picture is broken")]
    Broken(#[source] ImageError),
}

impl From<ImageError> for PictureError {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Limits(_) => Self::TooLarge,
            error => Self::Broken(error),
        }
    }
}

/// What a picture's head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Measured {
    /// The media type.
    pub(crate) content_type: &'static str,
    /// In pixels.
    pub(crate) width: u32,
    /// In pixels.
    pub(crate) height: u32,
}

/// Reads the head of a picture.
pub(crate) fn measure(file: &[u8]) -> Result<Measured, PictureError> {
    let (decoder, _, content_type) = open(file)?;
    let (width, height) = decoder.dimensions();
    Ok(Measured { content_type, width, height })
}

/// A decoder that has read the head of a picture and will not pass the limits.
fn open(file: &[u8]) -> Result<(impl ImageDecoder, ImageFormat, &'static str), PictureError> {
    let mut reader =
        ImageReader::new(Cursor::new(file)).with_guessed_format().map_err(|_| PictureError::NotAPicture)?;
    // What the file is, not what it is said to be.
    let format = reader.format().ok_or(PictureError::NotAPicture)?;
    let content_type = media_type(format).ok_or(PictureError::NotAPicture)?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_MEMORY);
    reader.limits(limits);
    let decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        // A WebP of 16,384 pixels, one more than its decoder counts to.
        return Err(PictureError::NotAPicture);
    }
    if u64::from(width) * u64::from(height) > MAX_PIXELS || decoder.total_bytes() > MAX_MEMORY {
        return Err(PictureError::TooLarge);
    }
    Ok((decoder, format, content_type))
}

/// Makes a picture fit into, or fill, these bounds. It is never made larger. Takes time and memory: for a thread of its own.
pub(super) fn fit(file: &[u8], bounds: Bounds) -> Result<Fitting, PictureError> {
    let (mut decoder, format, content_type) = open(file)?;
    let (width, height) = decoder.dimensions();
    let is_small = width <= bounds.width && height <= bounds.height;
    // The others may move, which a thumbnail must not.
    if is_small && matches!(format, ImageFormat::Jpeg | ImageFormat::Png) {
        return Ok(Fitting::Original(content_type));
    }
    let orientation = decoder.orientation()?;
    let mut picture = DynamicImage::from_decoder(decoder)?;
    picture.apply_orientation(orientation);
    write(&shrink(picture, bounds))
}

fn shrink(picture: DynamicImage, bounds: Bounds) -> DynamicImage {
    let (width, height) = (picture.width(), picture.height());
    if width <= bounds.width && height <= bounds.height {
        return picture;
    }
    if !bounds.crop {
        return picture.thumbnail(bounds.width, bounds.height);
    }
    picture.resize_to_fill(width.min(bounds.width), height.min(bounds.height), FilterType::Triangle)
}

/// PNG for what is transparent, JPEG for all else, which is much smaller.
fn write(picture: &DynamicImage) -> Result<Fitting, PictureError> {
    let mut bytes = Vec::new();
    let content_type = if picture.color().has_alpha() {
        picture.to_rgba8().write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)?;
        "image/png"
    } else {
        picture.to_rgb8().write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY))?;
        "image/jpeg"
    };
    Ok(Fitting::Smaller { bytes, content_type })
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

    const SCALE: Bounds = Bounds { width: 320, height: 240, crop: false };
    const CROP: Bounds = Bounds { width: 96, height: 96, crop: true };

    fn file(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Vec::new();
        picture.into().write_to(&mut Cursor::new(&mut bytes), format).unwrap();
        bytes
    }

    fn opaque(width: u32, height: u32) -> RgbImage {
        RgbImage::from_pixel(width, height, Rgb([200, 20, 20]))
    }

    fn size(fitting: Fitting) -> (u32, u32, &'static str) {
        let Fitting::Smaller { bytes, content_type } = fitting else { panic!("the original") };
        let picture = image::load_from_memory(&bytes).unwrap();
        (picture.width(), picture.height(), content_type)
    }

    #[test]
    fn pictures_are_fitted_in_or_cropped_and_never_made_larger() {
        let wide = file(opaque(800, 200), ImageFormat::Png);
        assert_eq!(size(fit(&wide, SCALE).unwrap()), (320, 80, "image/jpeg"));
        assert_eq!(size(fit(&wide, CROP).unwrap()), (96, 96, "image/jpeg"));
        let thin = file(opaque(20, 800), ImageFormat::Jpeg);
        assert_eq!(size(fit(&thin, SCALE).unwrap()), (6, 240, "image/jpeg"));
        assert_eq!(size(fit(&thin, CROP).unwrap()), (20, 96, "image/jpeg"));
        let clear = file(RgbaImage::from_pixel(400, 400, Rgba([1, 2, 3, 4])), ImageFormat::WebP);
        assert_eq!(size(fit(&clear, SCALE).unwrap()), (240, 240, "image/png"));
    }

    #[test]
    fn what_is_small_stays_what_it_is_unless_it_might_move() {
        let small = file(opaque(50, 40), ImageFormat::Png);
        assert_eq!(fit(&small, SCALE).unwrap(), Fitting::Original("image/png"));
        let small = file(RgbaImage::new(50, 40), ImageFormat::Gif);
        assert_eq!(size(fit(&small, SCALE).unwrap()), (50, 40, "image/png"));
    }

    /// A picture of one colour is a small file, however many pixels it has: the head says how many.
    #[test]
    fn bombs_are_refused_before_they_are_decoded() {
        let mut png = file(opaque(10, 10), ImageFormat::Png);
        for (width, height) in [(60_000_u32, 10_u32), (6_000, 6_000), (u32::MAX >> 1, u32::MAX >> 1)] {
            png[16..20].copy_from_slice(&width.to_be_bytes());
            png[20..24].copy_from_slice(&height.to_be_bytes());
            let sum = crc32(&png[12..29]);
            png[29..33].copy_from_slice(&sum.to_be_bytes());
            assert!(matches!(fit(&png, SCALE), Err(PictureError::TooLarge)), "{width} x {height}");
        }
    }

    /// The head of each kind says another size than the file has, its own way.
    #[test]
    fn bombs_of_all_kinds_are_refused() {
        let picture = || DynamicImage::from(opaque(10, 10));
        let mut gif = file(picture(), ImageFormat::Gif);
        gif[6..10].copy_from_slice(&[0xff; 4]);
        let mut jpeg = file(picture(), ImageFormat::Jpeg);
        // The frame's head: marker, length, precision, height, width.
        let frame = jpeg.windows(2).position(|bytes| bytes == [0xff, 0xc0]).unwrap();
        jpeg[frame + 5..frame + 9].copy_from_slice(&[0xff; 4]);
        let mut webp = file(picture(), ImageFormat::WebP);
        // A lossless picture's head: 14 bits each of width and height, less one, behind the signature.
        let head = webp.windows(4).position(|bytes| bytes == b"VP8L").unwrap() + 9;
        webp[head..head + 3].copy_from_slice(&[0xfe, 0xbf, 0xff]);
        webp[head + 3] |= 0x0f;
        let mut uncounted = webp.clone();
        uncounted[head..head + 2].copy_from_slice(&[0xff; 2]);
        assert!(matches!(fit(&uncounted, SCALE), Err(PictureError::NotAPicture)));
        for (kind, bomb) in [("GIF", gif), ("JPEG", jpeg), ("WebP", webp)] {
            let refused = measure(&bomb).unwrap_err();
            assert!(!matches!(refused, PictureError::NotAPicture), "{kind}: {refused:?}");
            assert!(fit(&bomb, SCALE).is_err(), "{kind}");
        }
    }

    #[test]
    fn what_is_no_picture_or_half_of_one_is_told() {
        for file in
            [&b""[..], b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"BM123456789012345678"]
        {
            assert!(matches!(fit(file, SCALE), Err(PictureError::NotAPicture)));
        }
        let whole = file(opaque(800, 800), ImageFormat::Png);
        assert!(matches!(fit(&whole[..whole.len() / 2], SCALE), Err(PictureError::Broken(_))));
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0_u32, |sum, byte| {
            (0..8)
                .fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg()))
        })
    }
}
