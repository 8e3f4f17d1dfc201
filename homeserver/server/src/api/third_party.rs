//! Third-party networks: none is bridged, and clients that ask are told so.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#third-party-networks>.

use std::collections::BTreeMap;

use ruma::api::client::thirdparty::{
    get_location_for_protocol, get_location_for_room_alias, get_protocol, get_protocols,
    get_user_for_protocol, get_user_for_user_id,
};

use crate::{
    context::{Ctx, Session},
    http::error::ApiError,
};

/// `GET /_matrix/client/v3/thirdparty/protocols`.
pub(super) async fn get_protocols(
    _ctx: Ctx<Session>,
    _request: get_protocols::v3::Request,
) -> Result<get_protocols::v3::Response, ApiError> {
    Ok(get_protocols::v3::Response::new(BTreeMap::new()))
}

/// `GET /_matrix/client/v3/thirdparty/protocol/{protocol}`.
pub(super) async fn get_protocol(
    _ctx: Ctx<Session>,
    _request: get_protocol::v3::Request,
) -> Result<get_protocol::v3::Response, ApiError> {
    Err(unknown_protocol())
}

/// `GET /_matrix/client/v3/thirdparty/location/{protocol}`.
pub(super) async fn get_location_for_protocol(
    _ctx: Ctx<Session>,
    _request: get_location_for_protocol::v3::Request,
) -> Result<get_location_for_protocol::v3::Response, ApiError> {
    Err(unknown_protocol())
}

/// `GET /_matrix/client/v3/thirdparty/user/{protocol}`.
pub(super) async fn get_user_for_protocol(
    _ctx: Ctx<Session>,
    _request: get_user_for_protocol::v3::Request,
) -> Result<get_user_for_protocol::v3::Response, ApiError> {
    Err(unknown_protocol())
}

/// `GET /_matrix/client/v3/thirdparty/location`.
pub(super) async fn get_location_for_room_alias(
    _ctx: Ctx<Session>,
    _request: get_location_for_room_alias::v3::Request,
) -> Result<get_location_for_room_alias::v3::Response, ApiError> {
    Err(ApiError::not_found("No third-party location has this alias"))
}

/// `GET /_matrix/client/v3/thirdparty/user`.
pub(super) async fn get_user_for_user_id(
    _ctx: Ctx<Session>,
    _request: get_user_for_user_id::v3::Request,
) -> Result<get_user_for_user_id::v3::Response, ApiError> {
    Err(ApiError::not_found("No third-party user has this id"))
}

fn unknown_protocol() -> ApiError {
    ApiError::not_found("This server has no such third-party protocol")
}
