//! Who is in a room: the lists.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidmembers>.

use std::sync::Arc;

use keystead_core::room::{RoomEvent, membership_of};
use keystead_store::rooms;
use ruma::{
    OwnedMxcUri, OwnedUserId,
    api::client::membership::{
        get_member_events,
        joined_members::{self, v3::RoomMember},
    },
    events::room::member::MembershipState,
    serde::Raw,
};
use serde_json::Value;

use super::{
    access::{self, Access},
    reader,
    timeline::place,
};
use crate::{
    api::guard,
    context::{Ctx, Session},
    http::error::ApiError,
    rooms::{Form, MembershipHistory, client_state},
};

/// `GET /_matrix/client/v3/rooms/{roomId}/members`.
pub(super) async fn get_member_events(
    ctx: Ctx<Session>,
    request: get_member_events::v3::Request,
) -> Result<get_member_events::v3::Response, ApiError> {
    let (room_id, reader) = (&*request.room_id, reader(&ctx));
    let Access { room, until } = access::readable(&ctx, room_id).await?;
    let at = request.at.as_deref().map(|at| place(&ctx.app, room_id, ("at", at))).transpose()?;
    let then = match (at, until) {
        (Some(at), Some(until)) => Some(at.0.min(until)),
        (at, until) => at.map(|at| at.0).or(until),
    };
    let now: Vec<Arc<RoomEvent>> = room.members().cloned().collect();
    let (now, request) = (&now, &request);
    let read = ctx.app.store.read("members", |tx| async move {
        let mut members = match then {
            None => now.clone(),
            Some(position) => {
                let then = rooms::members_at(&tx, room_id, position).await?;
                then.into_iter().map(Arc::new).collect()
            }
        };
        members.retain(|event| is_asked_for(request, &membership_of(&event.pdu)));
        let memberships = MembershipHistory::load(&tx, room_id, reader.user_id).await?;
        client_state(&tx, &members, reader.knowing(&memberships), Form::WithRoomId).await
    });
    let chunk = read.await?.into_iter().map(Raw::from_json).collect();
    Ok(get_member_events::v3::Response::new(chunk))
}

/// > When specified alongside `not_membership`, the two parameters create an 'or' condition.
fn is_asked_for(request: &get_member_events::v3::Request, membership: &MembershipState) -> bool {
    match (&request.membership, &request.not_membership) {
        (None, None) => true,
        (wanted, unwanted) => {
            wanted.as_ref().is_some_and(|wanted| wanted == membership)
                || unwanted.as_ref().is_some_and(|unwanted| unwanted != membership)
        }
    }
}

/// `GET /_matrix/client/v3/rooms/{roomId}/joined_members`, for those who are in the room.
pub(super) async fn joined_members(
    ctx: Ctx<Session>,
    request: joined_members::v3::Request,
) -> Result<joined_members::v3::Response, ApiError> {
    let room = guard::joined_room(&ctx.app, &ctx.requester.user_id, &request.room_id).await?;
    let joined = room
        .members()
        .filter(|event| membership_of(&event.pdu) == MembershipState::Join)
        .filter_map(|event| {
            let user_id = OwnedUserId::try_from(event.pdu.state_key.as_deref()?).ok()?;
            let content: Value = serde_json::from_str(event.pdu.content.get()).unwrap_or_default();
            let text = |name: &str| content.get(name).and_then(Value::as_str).map(str::to_owned);
            let mut member = RoomMember::new();
            member.display_name = text("displayname");
            member.avatar_url = text("avatar_url").map(OwnedMxcUri::from);
            Some((user_id, member))
        })
        .collect();
    Ok(joined_members::v3::Response::new(joined))
}

#[cfg(test)]
mod tests {
    use ruma::owned_room_id;

    use super::*;

    #[test]
    fn the_two_conditions_are_joined_by_or() {
        use MembershipState::{Ban, Invite, Join, Leave};
        let table = [
            (None, None, vec![Join, Leave, Invite, Ban]),
            (Some(Join), None, vec![Join]),
            (None, Some(Join), vec![Leave, Invite, Ban]),
            (Some(Join), Some(Leave), vec![Join, Invite, Ban]),
            (Some(Leave), Some(Leave), vec![Join, Leave, Invite, Ban]),
        ];
        for (membership, not_membership, expected) in table {
            let mut request = get_member_events::v3::Request::new(owned_room_id!("!r"));
            (request.membership, request.not_membership) = (membership, not_membership);
            let mut all = vec![Join, Leave, Invite, Ban];
            all.retain(|membership| is_asked_for(&request, membership));
            assert_eq!(all, expected, "{request:?}");
        }
    }
}
