//! Profiles.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#profiles>.

use http::StatusCode;
use keystead_store::{profiles as store, users};
use ruma::{
    UserId,
    api::{
        client::profile::{delete_profile_field, get_profile, get_profile_field, set_profile_field},
        error::ErrorCode,
    },
    profile::ProfileFieldValue,
};

use super::guard;
use crate::{
    app::App,
    context::{Ctx, Session},
    http::error::ApiError,
    profiles,
};

/// > A profile field's key name […] MUST NOT exceed 255 bytes; the whole profile MUST NOT exceed 64 KiB.
const MAX_KEY_BYTES: usize = 255;
const MAX_PROFILE_BYTES: usize = 64 * 1024;
/// The longest name and address of a picture, as JSON: they become part of member events, which have to stay small.
const MAX_SHOWN_BYTES: usize = 2 * 1024;

/// `GET /_matrix/client/v3/profile/{userId}`.
pub(super) async fn get_profile(
    ctx: Ctx<()>,
    request: get_profile::v3::Request,
) -> Result<get_profile::v3::Response, ApiError> {
    let user_id = &*request.user_id;
    known_user(&ctx.app, user_id).await?;
    let fields =
        ctx.app.store.read("get_profile", |tx| async move { store::fields(&tx, user_id).await }).await?;
    fields
        .into_iter()
        .map(|(name, value)| Ok((name, serde_json::from_str(&value).map_err(ApiError::internal)?)))
        .collect::<Result<Vec<(String, serde_json::Value)>, ApiError>>()
        .map(get_profile::v3::Response::from_iter)
}

/// `GET /_matrix/client/v3/profile/{userId}/{keyName}`.
pub(super) async fn get_profile_field(
    ctx: Ctx<()>,
    request: get_profile_field::v3::Request,
) -> Result<get_profile_field::v3::Response, ApiError> {
    let (user_id, name) = (&*request.user_id, request.field.as_str());
    known_user(&ctx.app, user_id).await?;
    let value = ctx
        .app
        .store
        .read("get_profile_field", |tx| async move { store::field(&tx, user_id, name).await })
        .await?;
    let value = value.ok_or_else(|| ApiError::not_found("The profile has no such field"))?;
    let value = serde_json::from_str(&value).map_err(ApiError::internal)?;
    let field = ProfileFieldValue::new(name, value).map_err(ApiError::internal)?;
    Ok(get_profile_field::v3::Response::new(field))
}

/// `PUT /_matrix/client/v3/profile/{userId}/{keyName}`.
pub(super) async fn set_profile_field(
    ctx: Ctx<Session>,
    request: set_profile_field::v3::Request,
) -> Result<set_profile_field::v3::Response, ApiError> {
    guard::own_user(&ctx, &request.user_id)?;
    let (name, value) = (request.value.field_name(), request.value.value());
    let name = name.as_str();
    check_name(name)?;
    // Clients set an empty name or picture to have none.
    if profiles::is_shown_in_rooms(name) && value.as_str() == Some("") {
        profiles::change(&ctx, name, None).await?;
        return Ok(set_profile_field::v3::Response::new());
    }
    let json = value.to_string();
    if profiles::is_shown_in_rooms(name) && json.len() > MAX_SHOWN_BYTES {
        let text = "A display name and the address of a picture have at most 2 KiB each";
        return Err(ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::ProfileTooLarge, text));
    }
    let user_id = &*ctx.requester.user_id;
    let fields =
        ctx.app.store.read("get_profile", |tx| async move { store::fields(&tx, user_id).await }).await?;
    let others = fields.iter().filter(|(other, _)| other != name);
    let size: usize = others.map(|(name, value)| name.len() + value.len()).sum();
    if size + name.len() + json.len() > MAX_PROFILE_BYTES {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            ErrorCode::ProfileTooLarge,
            "A profile has at most 64 KiB",
        ));
    }
    profiles::change(&ctx, name, Some(&value)).await?;
    Ok(set_profile_field::v3::Response::new())
}

/// `DELETE /_matrix/client/v3/profile/{userId}/{keyName}`.
pub(super) async fn delete_profile_field(
    ctx: Ctx<Session>,
    request: delete_profile_field::v3::Request,
) -> Result<delete_profile_field::v3::Response, ApiError> {
    guard::own_user(&ctx, &request.user_id)?;
    check_name(request.field.as_str())?;
    profiles::change(&ctx, request.field.as_str(), None).await?;
    Ok(delete_profile_field::v3::Response::new())
}

/// > Key names follow the Common Namespaced Identifier Grammar.
fn check_name(name: &str) -> Result<(), ApiError> {
    if name.len() > MAX_KEY_BYTES {
        let text = "The name of a profile field has at most 255 bytes";
        return Err(ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::KeyTooLarge, text));
    }
    let is_identifier = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c));
    if is_identifier {
        Ok(())
    } else {
        Err(ApiError::invalid_param("Names of profile fields have lower-case letters, digits, and -_. only"))
    }
}

pub(super) async fn known_user(app: &App, user_id: &UserId) -> Result<(), ApiError> {
    let found = app.store.read("find_user", |tx| async move { users::find(&tx, user_id).await }).await?;
    found.map(drop).ok_or_else(|| ApiError::not_found("There is no such user on this server"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_fields_are_namespaced_identifiers() {
        for (name, accepted) in [
            ("displayname", true),
            ("m.tz", true),
            ("org.example.a-b_c1", true),
            ("", false),
            ("1a", false),
            ("Upper", false),
            ("a b", false),
            ("ä", false),
        ] {
            assert_eq!(check_name(name).is_ok(), accepted, "{name}");
        }
        let long = "a".repeat(256);
        assert_eq!(check_name(&long).unwrap_err().errcode(), Some(&ErrorCode::KeyTooLarge));
    }
}
