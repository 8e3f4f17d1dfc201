//! Areas of the API: few enough to have a histogram each.

/// The part of the API that a route belongs to.
pub(super) fn area(route: &'static str) -> &'static str {
    let Some(path) = route.strip_prefix("/_matrix/client/") else {
        return match route {
            route if route.starts_with("/_matrix/media/") => "media",
            route if route.starts_with("/_synapse/") => "admin",
            _ => "other",
        };
    };
    // After the version.
    let mut segments = path.split('/').skip(1);
    match (segments.next(), segments.last()) {
        (Some("sync"), _) => "sync",
        (Some("rooms"), Some("{txn_id}")) => "send",
        (Some("rooms" | "createRoom" | "join" | "knock" | "joined_rooms" | "directory"), _) => "rooms",
        (Some("sendToDevice"), _) => "to_device",
        (Some("keys" | "room_keys" | "com.trustner"), _) => "keys",
        (Some("login" | "logout" | "register" | "refresh" | "account" | "devices" | "delete_devices"), _) => {
            "account"
        }
        (Some("media"), _) => "media",
        _ => "other",
    }
}
