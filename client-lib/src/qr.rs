//! QR codes: a contact code as an image, and back from one.

use std::io::Cursor;

use image::{GrayImage, ImageFormat, Luma};
use qrcode::render::{svg, unicode};
use qrcode::types::Color;
use qrcode::{EcLevel, QrCode};

/// Light modules around the code: what a reader needs to find it (ISO/IEC 18004, section 6.3.8).
const QUIET_ZONE: u32 = 4;
/// Pixels of one module's side.
const MODULE: u32 = 8;
/// The widest or highest image that is read, in pixels: more than a telephone's camera makes.
const MAX_SIDE: u32 = 16_384;
/// The largest memory that an image may take while it is read.
const MAX_MEMORY: u64 = 512 << 20;

/// Why there is no image of a text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QrWriteError {
    /// The image could not be written.
    #[error("the image cannot be made")]
    Image(#[from] image::ImageError),
    /// The text does not fit into a QR code.
    #[error("the text is too long for a QR code")]
    TooLong(#[from] qrcode::types::QrError),
}

/// Why there is no text in an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QrReadError {
    /// There is no QR code in it that can be read.
    #[error("no QR code can be read in this image; take it again, sharper and straight")]
    NoCode,
    /// It is not an image in PNG or JPEG format.
    ///
    /// What the decoder says is kept from [`std::error::Error::source`]: it is of no use to who holds the picture.
    #[error("the picture cannot be read: it is damaged, or neither PNG nor JPEG")]
    NoImage(image::ImageError),
    /// There are several codes in it.
    #[error("several QR codes are in this image; cut out the one that is meant")]
    Several,
}

fn code_of(text: &str) -> Result<QrCode, QrWriteError> {
    Ok(QrCode::with_error_correction_level(text, EcLevel::M)?)
}

/// The QR code of `text` as a PNG file: black on white.
pub fn png(text: &str) -> Result<Vec<u8>, QrWriteError> {
    let code = code_of(text)?;
    let colors = code.to_colors();
    let width = code.width();
    let modules = u32::try_from(width).unwrap_or_default();
    let side = (modules + 2 * QUIET_ZONE) * MODULE;
    let image = GrayImage::from_fn(side, side, |x, y| {
        let module = |pixel: u32| usize::try_from((pixel / MODULE).checked_sub(QUIET_ZONE)?).ok();
        let color = || {
            let (column, row) = (module(x)?, module(y)?);
            (column < width).then(|| colors.get(row * width + column).copied())?
        };
        Luma([if color() == Some(Color::Dark) { 0 } else { 255 }])
    });
    let mut file = Cursor::new(Vec::new());
    image.write_to(&mut file, ImageFormat::Png)?;
    Ok(file.into_inner())
}

/// The QR code of `text` as an SVG file.
pub fn svg(text: &str) -> Result<String, QrWriteError> {
    Ok(code_of(text)?.render::<svg::Color<'_>>().module_dimensions(MODULE, MODULE).build())
}

/// The QR code of `text` in characters for a terminal. `dark` is whether the terminal writes light on dark.
pub fn terminal(text: &str, dark: bool) -> Result<String, QrWriteError> {
    use unicode::Dense1x2::{Dark, Light};
    let code = code_of(text)?;
    let mut render = code.render::<unicode::Dense1x2>();
    if dark {
        // What the terminal draws is light there.
        render.dark_color(Light).light_color(Dark);
    }
    Ok(render.build())
}

/// The text of the one QR code in an image file.
pub fn read(file: &[u8]) -> Result<String, QrReadError> {
    let mut reader = image::ImageReader::new(Cursor::new(file))
        .with_guessed_format()
        .map_err(|error| QrReadError::NoImage(error.into()))?;
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_MEMORY);
    reader.limits(limits);
    let image = reader.decode().map_err(QrReadError::NoImage)?.into_luma8();
    let mut prepared = rqrr::PreparedImage::prepare(image);
    let mut texts = prepared.detect_grids().into_iter().filter_map(|grid| grid.decode().ok());
    match (texts.next(), texts.next()) {
        (Some((_, text)), None) => Ok(text),
        (Some(_), Some(_)) => Err(QrReadError::Several),
        (None, _) => Err(QrReadError::NoCode),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "com.trustner.keybox.contact:1:QGFsaWNlOmV4YW1wbGUub3Jn:QUxJQ0VCT1g:\
                        AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8:jfk7zTA7QmHnw4-7kYMcl-rmyIHGpdpe_Mov-caBDZE";

    #[test]
    fn an_image_is_read_back() {
        assert_eq!(read(&png(TEXT).unwrap()).unwrap(), TEXT);
    }

    #[test]
    fn a_photograph_that_is_turned_and_grey_is_read_back() {
        let image = image::load_from_memory(&png(TEXT).unwrap()).unwrap().rotate90().adjust_contrast(-60.0);
        let mut file = Cursor::new(Vec::new());
        image.into_luma8().write_to(&mut file, ImageFormat::Jpeg).unwrap();
        assert_eq!(read(&file.into_inner()).unwrap(), TEXT);
    }

    #[test]
    fn what_is_no_code_is_refused() {
        let cut = png(TEXT).unwrap()[..60].to_vec();
        for file in [b"no image".as_slice(), &cut] {
            let error = read(file).unwrap_err();
            assert!(matches!(error, QrReadError::NoImage(_)));
            assert!(std::error::Error::source(&error).is_none(), "a decoder's words help nobody");
        }
        let mut white = Cursor::new(Vec::new());
        GrayImage::from_pixel(64, 64, Luma([255])).write_to(&mut white, ImageFormat::Png).unwrap();
        assert!(matches!(read(&white.into_inner()), Err(QrReadError::NoCode)));
        let code = image::load_from_memory(&png(TEXT).unwrap()).unwrap().into_luma8();
        let mut two = GrayImage::from_pixel(code.width() * 2, code.height(), Luma([255]));
        image::imageops::replace(&mut two, &code, 0, 0);
        image::imageops::replace(&mut two, &code, code.width().into(), 0);
        let mut file = Cursor::new(Vec::new());
        two.write_to(&mut file, ImageFormat::Png).unwrap();
        assert!(matches!(read(&file.into_inner()), Err(QrReadError::Several)));
        assert!(matches!(png(&"x".repeat(4_000)), Err(QrWriteError::TooLong(_))));
    }

    #[test]
    fn the_terminal_shows_the_same_modules_either_way() {
        let (dark, light) = (terminal(TEXT, true).unwrap(), terminal(TEXT, false).unwrap());
        assert_ne!(dark, light);
        assert_eq!(dark.lines().count(), light.lines().count());
        assert!(svg(TEXT).unwrap().contains("<svg"));
    }
}
