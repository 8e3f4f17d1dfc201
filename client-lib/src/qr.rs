//! QR codes: a contact code as an image, and back from one.
//!
//! A picture may come from anybody. It is looked through in a thread of its own, for a bounded time: what finds codes in pictures may
//! stumble, and takes very long, over one that was made for that.

use std::io::Cursor;
use std::sync::mpsc;
use std::time::Duration;

use image::{DynamicImage, GrayImage, ImageDecoder as _, ImageFormat, ImageReader, Luma};
use qrcode::render::{svg, unicode};
use qrcode::types::Color;
use qrcode::{EcLevel, QrCode};

/// Light modules around the code: what a reader needs to find it (ISO/IEC 18004, section 6.3.8).
const QUIET_ZONE: u32 = 4;
/// Pixels of one module's side.
const MODULE: u32 = 8;
/// The most pixels of an image that is read: more than most telephones' cameras make.
const MAX_PIXELS: u64 = 64_000_000;
/// The largest memory that an image may take while it is read.
const MAX_MEMORY: u64 = 512 << 20;
/// In pixels; a larger image is made smaller before it is searched. It bounds how much can look like a code's corner, by whose square
/// the search takes time and memory.
const SEARCHED_SIDE: u32 = 1_600;
/// How long an image is searched. One of a code takes a fraction of a second.
const PATIENCE: Duration = Duration::from_secs(20);
/// The name of the thread that reads a picture: what goes wrong in it is the picture's fault, and told as such.
pub const READER_THREAD: &str = "picture";

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
    /// It has more pixels than are looked at.
    #[error("the picture is too large; cut out the code")]
    TooLarge,
    /// It took too long: so many things in it look like parts of a code.
    #[error("no QR code was found in this image in time; cut out the code")]
    TooLong,
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

/// The text of the one QR code in an image file. Takes 20 seconds and a fraction of a gigabyte of memory at most, whatever is in the file; if
/// it ends for the time, a thread may still go on for a while.
pub fn read(file: &[u8]) -> Result<String, QrReadError> {
    read_within(file, PATIENCE)
}

fn read_within(file: &[u8], patience: Duration) -> Result<String, QrReadError> {
    let (sender, found) = mpsc::channel();
    let file = file.to_vec();
    let reading = move || sender.send(find(&file)).unwrap_or_default();
    if std::thread::Builder::new().name(READER_THREAD.to_owned()).spawn(reading).is_err() {
        return Err(QrReadError::TooLong);
    }
    match found.recv_timeout(patience) {
        Ok(found) => found,
        Err(mpsc::RecvTimeoutError::Timeout) => Err(QrReadError::TooLong),
        // It has stumbled.
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(QrReadError::NoCode),
    }
}

fn find(file: &[u8]) -> Result<String, QrReadError> {
    let mut prepared = rqrr::PreparedImage::prepare(decode(file)?);
    let mut texts = prepared.detect_grids().into_iter().filter_map(|grid| grid.decode().ok());
    match (texts.next(), texts.next()) {
        (Some((_, text)), None) => Ok(text),
        (Some(_), Some(_)) => Err(QrReadError::Several),
        (None, _) => Err(QrReadError::NoCode),
    }
}

/// The image in a file, in grey, of a size that can be searched.
fn decode(file: &[u8]) -> Result<GrayImage, QrReadError> {
    let mut reader = ImageReader::new(Cursor::new(file))
        .with_guessed_format()
        .map_err(|error| QrReadError::NoImage(error.into()))?;
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(MAX_MEMORY);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(QrReadError::NoImage)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MAX_PIXELS || decoder.total_bytes() > MAX_MEMORY {
        return Err(QrReadError::TooLarge);
    }
    let image = DynamicImage::from_decoder(decoder).map_err(QrReadError::NoImage)?;
    if width <= SEARCHED_SIDE && height <= SEARCHED_SIDE {
        return Ok(image.into_luma8());
    }
    Ok(DynamicImage::from(image.into_luma8()).thumbnail(SEARCHED_SIDE, SEARCHED_SIDE).into_luma8())
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

    fn file_of(image: GrayImage) -> Vec<u8> {
        let mut file = Cursor::new(Vec::new());
        image.write_to(&mut file, ImageFormat::Png).unwrap();
        file.into_inner()
    }

    /// An image with a code's corners (seven modules square) at these places, and nothing else.
    fn corners(side: u32, module: u32, places: impl Iterator<Item = (u32, u32)>) -> GrayImage {
        let mut image = GrayImage::from_pixel(side, side, Luma([255]));
        for (left, top) in places {
            for (x, y) in (0..7).flat_map(|x| (0..7).map(move |y| (x, y))) {
                let ring = x == 0 || x == 6 || y == 0 || y == 6;
                let dark = ring || ((2..5).contains(&x) && (2..5).contains(&y));
                for pixel in 0..module * module {
                    let at = (left + x * module + pixel % module, top + y * module + pixel / module);
                    image.put_pixel(at.0, at.1, Luma([if dark { 0 } else { 255 }]));
                }
            }
        }
        image
    }

    #[test]
    fn what_only_looks_like_a_code_is_survived() {
        let near = |gap: u32| [(16, 16), (16 + gap, 16), (16, 16 + gap)].into_iter();
        for gap in [32, 40, 64, 100, 400] {
            let picture = file_of(corners(512, 4, near(gap)));
            assert!(matches!(read(&picture), Err(QrReadError::NoCode)), "{gap}");
        }
    }

    #[test]
    fn a_picture_that_was_made_to_take_for_ever_does_not() {
        let places = (0..100).flat_map(|x| (0..100).map(move |y| (x * 16, y * 16)));
        let picture = file_of(corners(1_600, 2, places));
        let refused = read_within(&picture, Duration::from_millis(100));
        assert!(matches!(refused, Err(QrReadError::TooLong | QrReadError::NoCode)), "{refused:?}");
        let mut large = Cursor::new(Vec::new());
        DynamicImage::new_rgb8(10, 10).write_to(&mut large, ImageFormat::Gif).unwrap();
        // A GIF says its size in the bytes 6 to 9.
        let mut large = large.into_inner();
        large[6..10].copy_from_slice(&[0xff; 4]);
        assert!(matches!(read(&large), Err(QrReadError::TooLarge)));
    }

    #[test]
    fn a_large_photograph_is_read() {
        let code = image::load_from_memory(&png(TEXT).unwrap()).unwrap().into_luma8();
        let mut photograph = GrayImage::from_pixel(4_000, 3_000, Luma([200]));
        let code = image::imageops::resize(&code, 900, 900, image::imageops::FilterType::Triangle);
        image::imageops::replace(&mut photograph, &code, 1_500, 1_100);
        assert_eq!(read(&file_of(photograph)).unwrap(), TEXT);
    }

    #[test]
    fn the_terminal_shows_the_same_modules_either_way() {
        let (dark, light) = (terminal(TEXT, true).unwrap(), terminal(TEXT, false).unwrap());
        assert_ne!(dark, light);
        assert_eq!(dark.lines().count(), light.lines().count());
        assert!(svg(TEXT).unwrap().contains("<svg"));
    }
}
