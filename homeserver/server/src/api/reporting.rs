//! Reports to the administrators: of events, of rooms and of users. `keystead admin reports` shows them.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#reporting-content>.

use keystead_store::{
    reports::{self, Report, Subject},
    rooms,
};
use ruma::{
    api::client::{
        reporting::report_user,
        room::{report_content, report_room},
    },
    events::room::member::MembershipState,
};

use super::{guard, profile};
use crate::{
    context::{Ctx, Session},
    http::error::ApiError,
    rate_limits::Limit,
    rooms::RoomView,
};

/// The longest reason, in bytes.
const MAX_REASON: usize = 4 * 1024;
const REPORT_ID_LENGTH: usize = 12;

/// `POST /_matrix/client/v3/rooms/{roomId}/report/{eventId}`.
///
/// > 404: The event was not found or you are not joined to the room where the event resides.
pub(super) async fn report_content(
    ctx: Ctx<Session>,
    request: report_content::v3::Request,
) -> Result<report_content::v3::Response, ApiError> {
    limit(&ctx)?;
    let (room_id, event_id, user_id) = (&*request.room_id, &*request.event_id, &*ctx.requester.user_id);
    let read = ctx.app.store.read("reported_event", |tx| async move {
        let view = RoomView::load(&tx, room_id, user_id).await?;
        if view.membership() != MembershipState::Join {
            return Ok(None);
        }
        let event = rooms::event(&tx, room_id, event_id).await?;
        Ok::<_, keystead_store::Error>(event.filter(|event| view.may_see(event.position)))
    });
    let event =
        read.await?.ok_or_else(|| ApiError::not_found("There is no such event, or you may not see it"))?;
    let subject = Subject::Event {
        room_id: request.room_id.clone(),
        event_id: request.event_id.clone(),
        sender: event.pdu.sender.clone(),
    };
    keep(&ctx, subject, request.reason.unwrap_or_default()).await?;
    Ok(report_content::v3::Response::new())
}

/// `POST /_matrix/client/v3/rooms/{roomId}/report`.
///
/// > The caller is not required to be joined to the room to report it.
pub(super) async fn report_room(
    ctx: Ctx<Session>,
    request: report_room::v3::Request,
) -> Result<report_room::v3::Response, ApiError> {
    limit(&ctx)?;
    let report_room::v3::Request { room_id, reason, .. } = request;
    ctx.app.tail.room(&room_id).await?.ok_or_else(|| ApiError::not_found("There is no such room"))?;
    keep(&ctx, Subject::Room(room_id), reason).await?;
    Ok(report_room::v3::Response::new())
}

/// `POST /_matrix/client/v3/users/{userId}/report`.
pub(super) async fn report_user(
    ctx: Ctx<Session>,
    request: report_user::v3::Request,
) -> Result<report_user::v3::Response, ApiError> {
    limit(&ctx)?;
    let report_user::v3::Request { user_id, reason, .. } = request;
    profile::known_user(&ctx.app, &user_id).await?;
    keep(&ctx, Subject::User(user_id), reason).await?;
    Ok(report_user::v3::Response::new())
}

fn limit(ctx: &Ctx<Session>) -> Result<(), ApiError> {
    ctx.app.rate_limits.take(Limit::Reports, ctx.requester.user_id.as_str(), ctx.now)
}

async fn keep(ctx: &Ctx<Session>, subject: Subject, reason: String) -> Result<(), ApiError> {
    guard::short("reason", &reason, MAX_REASON)?;
    if reason.contains('\0') {
        return Err(ApiError::invalid_param("The reason has a character that no text has"));
    }
    let report = &Report {
        report_id: ctx.app.entropy.readable(REPORT_ID_LENGTH),
        received_ts: ctx.now,
        reporter: ctx.requester.user_id.clone(),
        subject,
        reason,
    };
    ctx.app.store.write("report", |tx| async move { reports::insert(&tx, report).await }).await?;
    Ok(())
}
