//! Any text as an id: what is taken is taken again when it is written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ruma::{EventId, MxcUri, RoomAliasId, RoomId, RoomOrAliasId, ServerName, UserId};

macro_rules! check {
    ($text:expr, $($id:ty),+) => {
        $(if let Ok(id) = <&$id>::try_from($text) {
            assert_eq!(id.as_str(), $text);
            assert!($text.len() <= 255, "longer than the specification allows");
        })+
    };
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    check!(text, UserId, RoomId, RoomAliasId, RoomOrAliasId);
    // Of any length for ruma; the server keeps those only that it has made.
    if let Ok(id) = <&EventId>::try_from(text) {
        assert_eq!(id.as_str(), text);
    }
    let _ = <&ServerName>::try_from(text).map(|name| (name.host().to_owned(), name.port()));
    let uri: &MxcUri = text.into();
    let _ = uri.parts();
    if let Ok(user) = <&UserId>::try_from(text) {
        let _ = (user.localpart(), user.server_name(), user.validate_strict());
    }
});
