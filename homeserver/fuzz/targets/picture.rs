//! Any bytes as a picture: it is refused, or its thumbnail is no larger than was asked for. Memory is bounded by libFuzzer.
#![no_main]
#![allow(missing_docs, dead_code)]

use libfuzzer_sys::fuzz_target;

#[path = "../../server/src/media/picture.rs"]
mod picture;

use picture::{Bounds, Fitting};

fn check(file: &[u8], crop: bool) {
    let _ = picture::measure(file);
    if let Ok(Fitting::Smaller { bytes, .. }) = picture::fit(file, Bounds { width: 32, height: 32, crop }) {
        let smaller = picture::measure(&bytes).expect("a thumbnail is a picture");
        assert!(smaller.width <= 32 && smaller.height <= 32);
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((first, file)) = data.split_first() else { return };
    check(file, first % 2 == 0);
});
