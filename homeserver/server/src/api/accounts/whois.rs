//! What is known of a user's sessions: for the user and for administrators.

use keystead_store::{Error, devices, users};
use ruma::api::client::admin::get_user_info::{
    self,
    v3::{ConnectionInfo, DeviceInfo, SessionInfo},
};

use crate::{
    context::{Ctx, Session},
    http::error::ApiError,
};

/// `GET /_matrix/client/v3/admin/whois/{userId}` ([specification]). A device has one session, of which the address and time are known
/// that it was last seen at, to within some minutes.
///
/// > This API may be restricted to only be called by the user being looked up, or by a server admin.
///
/// [specification]: https://spec.matrix.org/v1.19/client-server-api/#server-administration
pub(super) async fn get_user_info(
    ctx: Ctx<Session>,
    request: get_user_info::v3::Request,
) -> Result<get_user_info::v3::Response, ApiError> {
    if request.user_id != ctx.requester.user_id && !ctx.requester.is_admin {
        return Err(ApiError::forbidden("Only the user and administrators may see this"));
    }
    let user_id = &*request.user_id;
    let read = ctx.app.store.read("whois", |tx| async move {
        let Some(user) = users::find(&tx, user_id).await? else { return Ok(None) };
        Ok::<_, Error>(Some((user, devices::of_user(&tx, user_id).await?)))
    });
    let (user, devices) =
        read.await?.ok_or_else(|| ApiError::not_found("There is no such user on this server"))?;
    let mut response = get_user_info::v3::Response::new();
    response.user_id = Some(user.user_id);
    for device in devices {
        let mut connection = ConnectionInfo::new();
        connection.ip = Some(device.last_seen_ip);
        connection.last_seen = Some(device.last_seen_ts);
        let mut session = SessionInfo::new();
        session.connections.push(connection);
        let mut info = DeviceInfo::new();
        info.sessions.push(session);
        response.devices.insert(device.device_id.into(), info);
    }
    Ok(response)
}
