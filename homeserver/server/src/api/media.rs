//! The content repository.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#content-repository>.

use std::time::Duration;

use keystead_store::media as store;
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedMxcUri, UInt,
    api::client::{
        authenticated_media::{
            get_content, get_content_as_filename, get_content_thumbnail, get_media_config, get_media_preview,
        },
        media::{self as legacy, create_content, create_content_async, create_mxc_uri},
    },
};

use crate::{
    app::App,
    context::{Ctx, Session},
    http::{
        error::ApiError,
        reply::{Custom, RawJson},
        router::Streaming,
    },
    media::{
        download::{self, File},
        thumbnails,
        upload::{self, Description, Target},
    },
    url_preview,
};

/// The specification recommends 24 hours.
const RESERVED_FOR: Duration = Duration::from_secs(24 * 3_600);
/// How many addresses a user may have reserved without using them.
const MAX_RESERVED: i64 = 100;

/// `POST /_matrix/media/v3/upload`.
pub(super) async fn create_content(
    ctx: Ctx<Session>,
    request: create_content::v3::Request,
    streaming: Streaming,
) -> Result<create_content::v3::Response, ApiError> {
    let media_id = ctx.app.entropy.token();
    let description = Description { content_type: request.content_type, file_name: request.filename };
    upload::receive(&ctx, Target::New(&media_id), description, streaming.body).await?;
    Ok(create_content::v3::Response::new(address(&ctx.app, &media_id)))
}

/// `POST /_matrix/media/v1/create`.
pub(super) async fn create_mxc_uri(
    ctx: Ctx<Session>,
    _request: create_mxc_uri::v1::Request,
) -> Result<create_mxc_uri::v1::Response, ApiError> {
    let media_id = ctx.app.entropy.token();
    let (id, user_id, now) = (&*media_id, &*ctx.requester.user_id, ctx.now);
    let lifetime = UInt::try_from(RESERVED_FOR.as_millis()).unwrap_or(UInt::MAX);
    let expires = MilliSecondsSinceUnixEpoch(now.0.saturating_add(lifetime));
    ctx.app
        .store
        .write("reserve_media", |tx| async move {
            // The specification wants pending uploads limited.
            if store::count_reserved(&tx, user_id, now).await? >= MAX_RESERVED {
                let text = "Too many addresses are reserved and not used";
                return Err(ApiError::limit_exceeded(Duration::from_secs(3_600)).saying(text));
            }
            Ok(store::reserve(&tx, id, user_id, now, expires).await?)
        })
        .await?;
    let mut response = create_mxc_uri::v1::Response::new(address(&ctx.app, &media_id));
    response.unused_expires_at = Some(expires);
    Ok(response)
}

/// `PUT /_matrix/media/v3/upload/{serverName}/{mediaId}`.
pub(super) async fn create_content_async(
    ctx: Ctx<Session>,
    request: create_content_async::v3::Request,
    streaming: Streaming,
) -> Result<RawJson, ApiError> {
    let medium = download::find(&ctx.app, &request.server_name, &request.media_id).await?;
    if medium.user_id != ctx.requester.user_id {
        return Err(ApiError::forbidden("This address was reserved by another user"));
    }
    if medium.content.is_some() {
        return Err(upload::cannot_overwrite());
    }
    let description = Description { content_type: request.content_type, file_name: request.filename };
    upload::receive(&ctx, Target::Reserved(&request.media_id), description, streaming.body).await?;
    Ok(RawJson("{}".into()))
}

/// `GET /_matrix/client/v1/media/download/{serverName}/{mediaId}`.
pub(super) async fn get_content(
    ctx: Ctx<Session>,
    request: get_content::v1::Request,
    streaming: Streaming,
) -> Result<Custom, ApiError> {
    let content =
        download::content(&ctx.app, &request.server_name, &request.media_id, request.timeout_ms).await?;
    File::whole(&request.media_id, &content, None)
        .answer(&ctx.app, &streaming.method, &streaming.headers)
        .await
}

/// `GET /_matrix/client/v1/media/download/{serverName}/{mediaId}/{fileName}`.
pub(super) async fn get_content_as_filename(
    ctx: Ctx<Session>,
    request: get_content_as_filename::v1::Request,
    streaming: Streaming,
) -> Result<Custom, ApiError> {
    let content =
        download::content(&ctx.app, &request.server_name, &request.media_id, request.timeout_ms).await?;
    let file = File::whole(&request.media_id, &content, Some(&request.filename));
    file.answer(&ctx.app, &streaming.method, &streaming.headers).await
}

/// `GET /_matrix/client/v1/media/thumbnail/{serverName}/{mediaId}`. Thumbnails do not move: `animated` changes nothing.
pub(super) async fn get_content_thumbnail(
    ctx: Ctx<Session>,
    request: get_content_thumbnail::v1::Request,
    streaming: Streaming,
) -> Result<Custom, ApiError> {
    let (server, media_id) = (&request.server_name, &*request.media_id);
    let content = download::content(&ctx.app, server, media_id, request.timeout_ms).await?;
    let crop = request.method == Some(ruma::media::Method::Crop);
    let size = thumbnails::size_for(request.width.into(), request.height.into(), crop);
    let conditions = (&streaming.method, &streaming.headers);
    thumbnails::answer(&ctx.app, (media_id, &content), size, conditions).await
}

/// `GET /_matrix/client/v1/media/config`.
pub(super) async fn get_media_config(
    ctx: Ctx<Session>,
    _request: get_media_config::v1::Request,
) -> Result<get_media_config::v1::Response, ApiError> {
    Ok(get_media_config::v1::Response::new(upload_limit(&ctx.app)))
}

/// `GET /_matrix/media/v3/config`, deprecated.
#[expect(deprecated, reason = "clients still call it")]
pub(super) async fn get_media_config_legacy(
    ctx: Ctx<Session>,
    _request: legacy::get_media_config::v3::Request,
) -> Result<legacy::get_media_config::v3::Response, ApiError> {
    Ok(legacy::get_media_config::v3::Response::new(upload_limit(&ctx.app)))
}

/// `GET /_matrix/client/v1/media/preview_url`. What was fetched within the hour is told, whatever time is asked for.
pub(super) async fn get_media_preview(
    ctx: Ctx<Session>,
    request: get_media_preview::v1::Request,
) -> Result<RawJson, ApiError> {
    url_preview::answer(&ctx, &request.url).await.map(RawJson)
}

/// `GET /_matrix/media/v3/preview_url`, deprecated.
#[expect(deprecated, reason = "clients still call it")]
pub(super) async fn get_media_preview_legacy(
    ctx: Ctx<Session>,
    request: legacy::get_media_preview::v3::Request,
) -> Result<RawJson, ApiError> {
    url_preview::answer(&ctx, &request.url).await.map(RawJson)
}

/// The deprecated endpoints that want no access token: they know none of this server's media, all of which were uploaded after
/// the freeze.
///
/// So new media are out of the reach of strangers, as the specification's freeze demands.
pub(super) async fn frozen<Req>(_ctx: Ctx<()>, _request: Req) -> Result<RawJson, ApiError> {
    Err(ApiError::not_found("Media are served to logged-in users only, at /_matrix/client/v1/media"))
}

fn upload_limit(app: &App) -> UInt {
    UInt::new_saturating(app.media.max_upload_bytes())
}

fn address(app: &App, media_id: &str) -> OwnedMxcUri {
    format!("mxc://{}/{media_id}", app.settings.server.name).into()
}
