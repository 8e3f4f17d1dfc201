//! Voice over IP: the TURN servers that clients may use.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#voice-over-ip>.

use crate::{
    context::{Ctx, Session},
    http::{error::ApiError, reply::RawJson, router::OwnRequest},
};

/// The paths; ruma's type has no form for a server without TURN.
pub(super) const PATHS: [&str; 2] =
    ["/_matrix/client/r0/voip/turnServer", "/_matrix/client/v3/voip/turnServer"];

/// `GET /_matrix/client/v3/voip/turnServer`: an empty object, because no TURN server belongs to this one.
pub(super) async fn get_turn_server(_ctx: Ctx<Session>, _request: OwnRequest) -> Result<RawJson, ApiError> {
    Ok(RawJson("{}".into()))
}
