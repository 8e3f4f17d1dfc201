//! Whom an event notifies, and what their gateways are told.

use std::{collections::BTreeSet, sync::Arc};

use keystead_core::{
    push,
    room::{RoomEvent, RoomState, membership_of},
};
use keystead_store::{
    Error,
    push_queue::{self, PusherId},
    pushers::{self, StoredPusher},
    rooms,
};
use ruma::{
    OwnedRoomAliasId, OwnedUserId, RoomId, UserId,
    api::{
        client::push::{Pusher, PusherKind},
        push_gateway::send_event_notification::v1::{Notification, NotificationPriority, PusherData},
    },
    events::{TimelineEventType, room::member::MembershipState},
    push::{Action, PushFormat, Tweak},
};
use serde::de::DeserializeOwned;
use url::{Position, Url};

use crate::{app::App, sync::push_context};

/// What a gateway is to be told of one event for one pusher.
#[derive(Debug)]
pub(super) struct Notice {
    pub(super) user_id: OwnedUserId,
    pub(super) target: Arc<Target>,
    pub(super) event: RoomEvent,
    pub(super) tweaks: Vec<Tweak>,
    /// Without its device, which is the target's, and without the event's content.
    pub(super) notification: Notification,
    /// Whether the event's content is told, too.
    pub(super) tells_content: bool,
}

/// A pusher.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) app_id: String,
    pub(super) pushkey: String,
    pub(super) gateway: Url,
    pub(super) data: PusherData,
    /// The JSON that the client set.
    pub(super) stored: String,
}

impl Notice {
    /// What is kept of it in the queue of its pusher.
    pub(super) fn queued(&self) -> push_queue::Notice {
        push_queue::Notice {
            id: self.pusher(),
            event_id: self.event.pdu.event_id.clone(),
            position: self.event.position,
        }
    }

    /// Whom it is for.
    pub(super) fn pusher(&self) -> PusherId {
        let Target { app_id, pushkey, .. } = &*self.target;
        PusherId { user_id: self.user_id.clone(), app_id: app_id.clone(), pushkey: pushkey.clone() }
    }
}

impl Target {
    /// The host and the port of its gateway.
    pub(super) fn place(&self) -> String {
        self.gateway[Position::BeforeHost..Position::AfterPort].to_owned()
    }

    /// A pusher out of the JSON that its client set; `None` for what is no pusher of a gateway.
    pub(super) fn read(stored: &str) -> Option<Self> {
        let pusher: Pusher = serde_json::from_str(stored).ok()?;
        let PusherKind::Http(data) = pusher.kind else { return None };
        Some(Self {
            app_id: pusher.ids.app_id,
            pushkey: pusher.ids.pushkey,
            gateway: data.url.parse().ok()?,
            data: data.into(),
            stored: stored.to_owned(),
        })
    }
}

/// What the gateways are to be told of events, in the order of the events for each pusher.
///
/// # Errors
/// The database's own.
pub(super) async fn of(app: &App, events: &[RoomEvent]) -> Result<Vec<Notice>, Error> {
    let room_ids: BTreeSet<&RoomId> = events.iter().map(|event| &*event.pdu.room_id).collect();
    let room_ids = &Vec::from_iter(room_ids);
    let of_members = |tx| async move { pushers::of_members(&tx, room_ids).await };
    let pushers = app.store.read_one("pushers_of_rooms", of_members).await?;
    if pushers.is_empty() {
        return Ok(Vec::new());
    }
    // Whoever changed their push rules before one of these events was sent has changed them for it. A database that is away shows at the next statement.
    let _ = app.fence().await;
    let mut notices = Vec::new();
    for (room_id, pushers) in pushers {
        notices.extend(in_room(app, &room_id, pushers, events).await?);
    }
    notices.sort_by_key(|notice| notice.event.position);
    Ok(notices)
}

/// [`of`] for those pushers, which are in the order of their users, and those of the events that are of the room.
pub(super) async fn in_room(
    app: &App,
    room_id: &RoomId,
    pushers: Vec<StoredPusher>,
    events: &[RoomEvent],
) -> Result<Vec<Notice>, Error> {
    let Some(room) = app.tail.room(room_id).await? else { return Ok(Vec::new()) };
    let events: Vec<&RoomEvent> = events.iter().filter(|event| event.pdu.room_id == room_id).collect();
    let mut notices = Vec::new();
    for of_user in pushers.chunk_by(|one, next| one.user_id == next.user_id) {
        let Some(StoredPusher { user_id, .. }) = of_user.first() else { continue };
        // What is damaged of one user's is no reason to tell nobody anything.
        let Some(notifying) = Error::pass_over(notifying(app, &room, user_id, &events).await)? else {
            continue;
        };
        if notifying.is_empty() {
            continue;
        }
        for target in of_user.iter().filter_map(|stored| Target::read(&stored.pusher)).map(Arc::new) {
            notices.extend(
                notifying
                    .iter()
                    .map(|(event, actions)| notice(app, (&room, user_id), &target, event, actions)),
            );
        }
    }
    Ok(notices)
}

/// Those of the events that notify a user, and what their push rules say to do.
async fn notifying<'a>(
    app: &App,
    room: &RoomState,
    user_id: &UserId,
    events: &[&'a RoomEvent],
) -> Result<Vec<(&'a RoomEvent, Vec<Action>)>, Error> {
    let rules = app.readers.push_rules(&app.store, user_id).await?;
    let ignored = app.readers.ignored(&app.lookups, user_id).await?;
    let context = push_context(room, user_id);
    let member = room.get("m.room.member", user_id.as_str());
    let is_joined = member.is_some_and(|member| membership_of(&member.pdu) == MembershipState::Join);
    let entered = match member {
        // They came after one of these, or have another name since.
        Some(member) if is_joined && events.iter().any(|event| event.position < member.position) => {
            let room_id = &*room.room_id;
            let joined = app.store.read_one("joined_positions", |tx| async move {
                rooms::joined_positions(&tx, &[room_id], user_id).await
            });
            joined.await?.remove(room_id)
        }
        _ => None,
    };
    let concerns = |event: &RoomEvent| {
        let pdu = &event.pdu;
        let is_own_invitation = pdu.event_type == TimelineEventType::RoomMember
            && pdu.state_key.as_deref() == Some(user_id.as_str());
        let is_ignored = ignored.contains_key(&pdu.sender) && (pdu.state_key.is_none() || is_own_invitation);
        let is_there =
            is_own_invitation || (is_joined && entered.is_none_or(|entered| entered < event.position));
        pdu.sender != user_id && pdu.redacted_by.is_none() && !is_ignored && is_there
    };
    let notifying = events.iter().filter(|event| concerns(event)).filter_map(|event| {
        let flat = app.readers.flat(event)?;
        Some((*event, push::notifying_actions(&rules, &flat, &context)?))
    });
    Ok(notifying.collect())
}

fn notice(
    app: &App,
    (room, user_id): (&RoomState, &UserId),
    target: &Arc<Target>,
    event: &RoomEvent,
    actions: &[Action],
) -> Notice {
    let pdu = &event.pdu;
    let tweak = |action: &Action| match action {
        Action::SetTweak(tweak) => Some(tweak.clone()),
        _ => None,
    };
    let is_urgent = pdu.event_type == TimelineEventType::RoomEncrypted
        || actions.iter().any(|action| action.is_highlight() || action.sound().is_some());
    let mut notification = Notification::new(Vec::new());
    notification.event_id = Some(pdu.event_id.clone());
    notification.room_id = Some(pdu.room_id.clone());
    notification.prio = if is_urgent { NotificationPriority::High } else { NotificationPriority::Low };
    let tells_content = app.pushes.include_content && target.data.format != Some(PushFormat::EventIdOnly);
    if tells_content {
        notification.event_type = Some(pdu.event_type.clone());
        notification.sender = Some(pdu.sender.clone());
        notification.sender_display_name = field(room, ("m.room.member", pdu.sender.as_str()), "displayname");
        notification.room_name = field(room, ("m.room.name", ""), "name");
        notification.room_alias = field::<OwnedRoomAliasId>(room, ("m.room.canonical_alias", ""), "alias");
        notification.user_is_target = pdu.event_type == TimelineEventType::RoomMember
            && pdu.state_key.as_deref() == Some(user_id.as_str());
    }
    Notice {
        user_id: user_id.to_owned(),
        target: Arc::clone(target),
        event: event.clone(),
        tweaks: actions.iter().filter_map(tweak).collect(),
        notification,
        tells_content,
    }
}

/// A field of a state event's content, if it is there and as it should be.
fn field<T: DeserializeOwned>(
    room: &RoomState,
    (event_type, state_key): (&str, &str),
    name: &str,
) -> Option<T> {
    let content = &room.get(event_type, state_key)?.pdu.content;
    let mut content: serde_json::Map<String, serde_json::Value> = serde_json::from_str(content.get()).ok()?;
    serde_json::from_value(content.remove(name)?).ok()
}
