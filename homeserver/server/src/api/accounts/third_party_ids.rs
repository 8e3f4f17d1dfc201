//! Email addresses and telephone numbers of accounts. This server keeps none and sends no mail, and says so in the specification's words.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#adding-account-administrative-contact-information>.

use http::StatusCode;
use ruma::api::{
    client::account::{
        ThirdPartyIdRemovalStatus::NoSupport, add_3pid, bind_3pid, delete_3pid, get_3pids,
        request_3pid_management_token_via_email, request_3pid_management_token_via_msisdn,
        request_password_change_token_via_email, request_password_change_token_via_msisdn,
        request_registration_token_via_email, request_registration_token_via_msisdn, unbind_3pid,
    },
    error::ErrorCode,
};

use crate::{
    context::{Ctx, Session},
    http::{error::ApiError, reply::RawJson, router::Router},
};

/// Registers the endpoints.
pub(super) fn routes(router: &mut Router) {
    router
        .route(get_3pids)
        .route(denied::<Session, add_3pid::v3::Request>)
        .route(denied::<(), request_3pid_management_token_via_email::v3::Request>)
        .route(denied::<(), request_3pid_management_token_via_msisdn::v3::Request>)
        .route(denied::<(), request_registration_token_via_email::v3::Request>)
        .route(denied::<(), request_registration_token_via_msisdn::v3::Request>)
        .route(unknown::<request_password_change_token_via_email::v3::Request>)
        .route(unknown::<request_password_change_token_via_msisdn::v3::Request>)
        .route(bind_3pid)
        .route(delete_3pid)
        .route(unbind_3pid);
}

/// `GET /_matrix/client/v3/account/3pid`: accounts have no addresses or numbers.
async fn get_3pids(_ctx: Ctx<Session>, _request: get_3pids::v3::Request) -> Result<RawJson, ApiError> {
    Ok(RawJson(r#"{"threepids":[]}"#.into()))
}

/// Whatever would lead to an address or number of an account.
///
/// > 403: The homeserver does not allow the third-party identifier as a contact option.
async fn denied<Requester, Request>(_ctx: Ctx<Requester>, _request: Request) -> Result<RawJson, ApiError> {
    let message = "Accounts of this server have no addresses and numbers";
    Err(ApiError::new(StatusCode::FORBIDDEN, ErrorCode::ThreepidDenied, message))
}

/// What would let somebody in who has forgotten the password: no account has the address or number.
///
/// > `M_THREEPID_NOT_FOUND`: A third-party identifier used in a request could not be found.
async fn unknown<Request>(_ctx: Ctx<()>, _request: Request) -> Result<RawJson, ApiError> {
    let message = "No account has it: ask an administrator for a new password";
    Err(ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::ThreepidNotFound, message))
}

/// `POST /_matrix/client/v3/account/3pid/bind`.
///
/// > `M_SERVER_NOT_TRUSTED`: a third-party server […] that this server does not trust: it trusts no identity server.
async fn bind_3pid(_ctx: Ctx<Session>, _request: bind_3pid::v3::Request) -> Result<RawJson, ApiError> {
    let message = "This server speaks to no identity server";
    Err(ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::ServerNotTrusted, message))
}

/// `POST /_matrix/client/v3/account/3pid/delete`: what an account does not have is not there afterwards either.
async fn delete_3pid(
    _ctx: Ctx<Session>,
    _request: delete_3pid::v3::Request,
) -> Result<delete_3pid::v3::Response, ApiError> {
    Ok(delete_3pid::v3::Response::new(NoSupport))
}

/// `POST /_matrix/client/v3/account/3pid/unbind`.
///
/// > `no-support` […] occurs when […] the homeserver was unable to determine an identity server to unbind from.
async fn unbind_3pid(
    _ctx: Ctx<Session>,
    _request: unbind_3pid::v3::Request,
) -> Result<unbind_3pid::v3::Response, ApiError> {
    Ok(unbind_3pid::v3::Response::new(NoSupport))
}
