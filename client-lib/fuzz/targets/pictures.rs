//! Any bytes as a picture: of a contact code, or one to send.
#![no_main]

use std::sync::Once;

use keystead_client::parsers::look_at_picture;
use keystead_client::qr;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // What finds codes in pictures panics over some; its thread ends, and the picture is refused. That is no finding, all else is.
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().name() != Some(qr::READER_THREAD) {
                usual(info);
            }
        }));
    });
    if let Ok(text) = qr::read(data)
        && let Ok(drawn) = qr::png(&text)
    {
        assert_eq!(qr::read(&drawn).unwrap(), text);
    }
    let _ = look_at_picture(data);
});
