//! What a user was notified of, or would have been.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#listing-notifications>. Nothing is kept for it: the user's push rules, as
//! they are now, are asked about the newest events of each room, as many as unread events are counted.

use std::cmp::Reverse;

use keystead_core::{
    client_format,
    client_format::Unsigned,
    filter, push,
    room::{RoomEvent, RoomState},
};
use keystead_store::{
    Error, ReadTx, receipts,
    rooms::{self, Bounds},
};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId,
    api::client::push::get_notifications::v3::{Notification, Request, Response},
    events::room::member::MembershipState,
    push::{Action, PushConditionRoomCtx, Ruleset},
    serde::Raw,
};

use crate::{
    context::{Ctx, Session},
    http::error::ApiError,
    push_rules,
    rate_limits::Limit,
    rooms::{Form, MembershipHistory, Reader, client_events},
    sync::{COUNTED_EVENTS, IgnoredUsers, push_context},
};

/// How many notifications a page has if the client does not say, and at most.
const DEFAULT_LIMIT: usize = 20;
const MOST: usize = 200;
/// How many rooms' events are in memory at once.
const ROOMS_AT_ONCE: usize = 50;

/// An event that notifies the user.
struct Notifying {
    event: RoomEvent,
    actions: Vec<Action>,
    is_read: bool,
    /// The position at which the user came into the room.
    joined_at: i64,
}

/// Where a page goes on: with what is older than this.
type Place = (MilliSecondsSinceUnixEpoch, OwnedEventId);

/// `GET /_matrix/client/v3/notifications`.
pub(super) async fn get_notifications(ctx: Ctx<Session>, request: Request) -> Result<Response, ApiError> {
    let before = request.from.as_deref().map(place).transpose()?;
    let only_highlights = request.only.as_deref() == Some("highlight");
    let limit = filter::limit(request.limit, DEFAULT_LIMIT, MOST);
    let Session { user_id, device_id, .. } = &ctx.requester;
    ctx.app.rate_limits.take(Limit::Searches, user_id.as_str(), ctx.now)?;
    let _turn = ctx.app.long_reads.acquire().await.map_err(ApiError::internal)?;
    let reader = Reader { user_id, device_id, now: ctx.now, memberships: None };
    let of_user = ctx.app.tail.rooms_of(user_id).await?;
    let joined = of_user.iter().filter(|(_, room)| room.membership == MembershipState::Join);
    let joined: Vec<&RoomId> = joined.map(|(room_id, _)| &**room_id).collect();
    let (states, ignored) =
        (&ctx.app.tail.rooms(&joined).await?, &ctx.app.readers.ignored(&ctx.app.lookups, user_id).await?);
    let before = before.as_ref();
    let read = ctx.app.store.read("notifications", |tx| async move {
        let rules = push_rules::load(&tx, user_id).await?;
        let wanted = &Wanted { before, only_highlights, most: limit.saturating_add(1), rules, ignored };
        let mut found = find(&tx, states, wanted, reader).await?;
        let has_more = found.len() > limit;
        found.truncate(limit);
        let next = found.last().filter(|_| has_more).map(|last| token(&place_of(&last.event)));
        Ok::<_, Error>((write(&tx, found, ignored, reader).await?, next))
    });
    let (notifications, next_token) = read.await?;
    let mut response = Response::new(notifications);
    response.next_token = next_token;
    Ok(response)
}

/// Which of the notifications a page shows.
struct Wanted<'a> {
    before: Option<&'a Place>,
    only_highlights: bool,
    /// One more than the page has: whether there is one tells whether there is a next page.
    most: usize,
    rules: Ruleset,
    ignored: &'a IgnoredUsers,
}

/// The newest of what notifies the user in rooms that they are in.
async fn find(
    tx: &ReadTx,
    states: &[RoomState],
    wanted: &Wanted<'_>,
    reader: Reader<'_>,
) -> Result<Vec<Notifying>, Error> {
    let mut found: Vec<Notifying> = Vec::new();
    for states in states.chunks(ROOMS_AT_ONCE) {
        let room_ids: Vec<&RoomId> = states.iter().map(|room| &*room.room_id).collect();
        let joined = rooms::joined_positions(tx, &room_ids, reader.user_id).await?;
        let read = receipts::read_positions(tx, &room_ids, reader.user_id).await?;
        let bounds: Vec<_> = joined
            .iter()
            .map(|(room_id, joined_at)| (room_id.clone(), Bounds { after: *joined_at, upto: i64::MAX }))
            .collect();
        let mut timelines = rooms::timelines(tx, &bounds, COUNTED_EVENTS).await?;
        // What is older than all of a full page need not be looked at.
        let oldest = found.last().filter(|_| found.len() == wanted.most).map(|last| place_of(&last.event));
        for room in states {
            let (Some(joined_at), Some(events)) =
                (joined.get(&room.room_id), timelines.remove(&room.room_id))
            else {
                continue;
            };
            let read = read.get(&room.room_id);
            let context = push_context(room, reader.user_id);
            let threads = rooms::threads_of(tx, &events).await?;
            found.extend(events.into_iter().filter_map(|event| {
                if oldest.as_ref().is_some_and(|oldest| place_of(&event) < *oldest) {
                    return None;
                }
                let actions = wanted.actions(&event, &context)?;
                let thread = threads.get(&event.pdu.event_id).map_or(receipts::MAIN, |root| root.as_str());
                Some(Notifying {
                    is_read: read.and_then(|read| read.in_thread(thread)) >= Some(event.position),
                    event,
                    actions,
                    joined_at: *joined_at,
                })
            }));
        }
        found.sort_by_key(|found| Reverse(place_of(&found.event)));
        found.truncate(wanted.most);
    }
    Ok(found)
}

impl Wanted<'_> {
    /// What an event does for the user, if it notifies them and is wanted on the page.
    fn actions(&self, event: &RoomEvent, context: &PushConditionRoomCtx) -> Option<Vec<Action>> {
        let is_ignored = event.pdu.state_key.is_none() && self.ignored.contains_key(&event.pdu.sender);
        let is_older = self.before.is_none_or(|before| place_of(event) < *before);
        if is_ignored || event.pdu.redacted_by.is_some() || !is_older {
            return None;
        }
        let json = client_format::with_room_id(&event.pdu, &Unsigned::default()).ok()?;
        let actions = push::notifying_actions(&self.rules, &push::flatten(&json)?, context)?;
        (!self.only_highlights || actions.iter().any(Action::is_highlight)).then_some(actions)
    }
}

async fn write(
    tx: &ReadTx,
    found: Vec<Notifying>,
    ignored: &IgnoredUsers,
    reader: Reader<'_>,
) -> Result<Vec<Notification>, Error> {
    let mut notifications = Vec::with_capacity(found.len());
    for Notifying { event, actions, is_read, joined_at } in found {
        let memberships = MembershipHistory::newest(joined_at, MembershipState::Join);
        let (room_id, ts) = (event.pdu.room_id.clone(), event.pdu.origin_server_ts);
        let written =
            client_events(tx, &[event], (reader.knowing(&memberships), Some(ignored)), Form::Sync).await?;
        let written = written.into_iter().map(Raw::from_json);
        notifications.extend(
            written.map(|event| Notification::new(actions.clone(), event, is_read, room_id.clone(), ts)),
        );
    }
    Ok(notifications)
}

fn place_of(event: &RoomEvent) -> Place {
    (event.pdu.origin_server_ts, event.pdu.event_id.clone())
}

fn token((ts, event_id): &Place) -> String {
    format!("n{}_{event_id}", ts.get())
}

fn place(token: &str) -> Result<Place, ApiError> {
    let parse = || {
        let (ts, event_id) = token.strip_prefix('n')?.split_once('_')?;
        let ts = MilliSecondsSinceUnixEpoch(ruma::UInt::try_from(ts.parse::<u64>().ok()?).ok()?);
        Some((ts, OwnedEventId::try_from(event_id).ok()?))
    };
    parse().ok_or_else(|| ApiError::invalid_param("from is not a token of this server"))
}

#[cfg(test)]
mod tests {
    use ruma::{UInt, owned_event_id};

    use super::*;

    #[test]
    fn a_token_leads_back_to_its_place() {
        let there = (MilliSecondsSinceUnixEpoch(UInt::from(7_u32)), owned_event_id!("$a_b"));
        assert_eq!(place(&token(&there)).unwrap(), there);
        for odd in ["", "n", "n7", "n7_", "n-7_$a", "7_$a", "nx_$a"] {
            assert!(place(odd).is_err(), "{odd}");
        }
    }
}
