//! Pushers: where a user wants notifications sent.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#push-notifications>.

use keystead_store::{
    Error, push_cursors,
    pushers::{self, PusherKey},
};
use ruma::api::client::push::{
    Pusher, PusherIds, PusherKind, get_pushers,
    set_pusher::{
        self,
        v3::{PusherAction, PusherPostData},
    },
};

use url::Url;

use super::guard;
use crate::{
    context::{Ctx, Session},
    http::error::ApiError,
    outside,
    push::MAX_PUSHERS,
};

/// > `app_id` […] max length, 64 chars; `pushkey` […] max length, 512 bytes.
const MAX_APP_ID_CHARS: usize = 64;
const MAX_PUSHKEY_BYTES: usize = 512;
/// All the rest of a pusher together.
const MAX_PUSHER_BYTES: usize = 16 * 1024;

/// `GET /_matrix/client/v3/pushers`.
pub(super) async fn get_pushers(
    ctx: Ctx<Session>,
    _request: get_pushers::v3::Request,
) -> Result<get_pushers::v3::Response, ApiError> {
    let user_id = &*ctx.requester.user_id;
    let pushers =
        ctx.app.store.read("get_pushers", |tx| async move { pushers::of_user(&tx, user_id).await }).await?;
    let pushers =
        pushers.iter().map(|pusher| serde_json::from_str::<Pusher>(pusher)).collect::<Result<_, _>>();
    Ok(get_pushers::v3::Response::new(pushers.map_err(ApiError::internal)?))
}

/// `POST /_matrix/client/v3/pushers/set`.
pub(super) async fn set_pusher(
    ctx: Ctx<Session>,
    request: set_pusher::v3::Request,
) -> Result<set_pusher::v3::Response, ApiError> {
    match &request.action {
        PusherAction::Post(data) => post(&ctx, data).await?,
        PusherAction::Delete(ids) => delete(&ctx, ids).await?,
        _ => return Err(ApiError::invalid_param("This is neither a pusher nor its removal")),
    }
    Ok(set_pusher::v3::Response::new())
}

async fn post(ctx: &Ctx<Session>, data: &PusherPostData) -> Result<(), ApiError> {
    check(&data.pusher)?;
    let pusher = &serde_json::to_string(&data.pusher).map_err(ApiError::internal)?;
    guard::short("pusher", pusher, MAX_PUSHER_BYTES)?;
    let (key, session, append) = (key(&data.pusher.ids), &ctx.requester, data.append);
    ctx.app
        .store
        .write("set_pusher", |tx| async move {
            // > If `append` is false, the server removes all other pushers with the same app id and pushkey for
            // > different users.
            if !append {
                pushers::delete_of_others(&tx, key, &session.user_id).await?;
            }
            // What happened before the first one is nobody's news.
            if !pushers::exist(&tx).await? {
                push_cursors::skip(&tx).await?;
            }
            pushers::set(&tx, key, &session.user_id, &session.device_id, pusher).await?;
            if pushers::count(&tx, &session.user_id).await? > MAX_PUSHERS {
                return Err(ApiError::forbidden("A user has at most 50 pushers: delete others first"));
            }
            Ok(())
        })
        .await?;
    ctx.app.pushes.pusher_set();
    Ok(())
}

async fn delete(ctx: &Ctx<Session>, ids: &PusherIds) -> Result<(), ApiError> {
    let (key, user_id) = (key(ids), &*ctx.requester.user_id);
    ctx.app
        .store
        .write("delete_pusher", |tx| async move {
            // Whoever deletes a pusher that is gone has got what they wanted.
            pushers::delete(&tx, key, user_id).await?;
            Ok::<_, Error>(())
        })
        .await?;
    Ok(())
}

fn key(ids: &PusherIds) -> PusherKey<'_> {
    PusherKey { app_id: &ids.app_id, pushkey: &ids.pushkey }
}

fn check(pusher: &Pusher) -> Result<(), ApiError> {
    if pusher.ids.app_id.chars().count() > MAX_APP_ID_CHARS || pusher.ids.pushkey.len() > MAX_PUSHKEY_BYTES {
        return Err(ApiError::invalid_param("app_id has at most 64 characters, pushkey at most 512 bytes"));
    }
    match &pusher.kind {
        PusherKind::Http(data) => check_url(&data.url),
        _ => Err(ApiError::invalid_param("This server supports pushers of kind http only")),
    }
}

/// > The URL […] MUST be an HTTPS URL with a path of `/_matrix/push/v1/notify`.
fn check_url(url: &str) -> Result<(), ApiError> {
    let is_gateway = url.parse::<Url>().is_ok_and(|url| {
        let is_there = outside::target(&url).is_ok_and(|(_, port)| port != 0);
        is_there
            && url.scheme() == "https"
            && url.path() == "/_matrix/push/v1/notify"
            && url.fragment().is_none()
    });
    if is_gateway {
        Ok(())
    } else {
        Err(ApiError::invalid_param("The url must be an https URL with the path /_matrix/push/v1/notify"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_are_reached_by_https_at_the_specified_path() {
        let table = [
            ("https://push.example/_matrix/push/v1/notify", true),
            ("https://push.example:8443/_matrix/push/v1/notify", true),
            ("http://push.example/_matrix/push/v1/notify", false),
            ("https://push.example/notify", false),
            ("/_matrix/push/v1/notify", false),
            ("not a url", false),
            ("https://user:password@push.example/_matrix/push/v1/notify", false),
            ("https://push.example:99999/_matrix/push/v1/notify", false),
            ("https://push.example:0/_matrix/push/v1/notify", false),
            ("https://256.256.256.256/_matrix/push/v1/notify", false),
            ("https://push.example/_matrix/push/v1/notify#x", false),
        ];
        for (url, accepted) in table {
            assert_eq!(check_url(url).is_ok(), accepted, "{url}");
        }
    }
}
