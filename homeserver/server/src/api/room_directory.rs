//! The room directory: which rooms the server lists, and the list.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#published-room-directory>.

use keystead_core::room::RoomEvent;
use keystead_store::room_directory::{self, ListedRoom, Page, Place};
use ruma::{
    ServerName, UInt,
    api::client::{
        directory::{get_public_rooms, get_public_rooms_filtered, get_room_visibility, set_room_visibility},
        room::Visibility,
    },
    directory::{Filter, PublicRoomsChunk, PublicRoomsChunkInit, RoomNetwork, RoomTypeFilter},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::room_aliases;
use crate::{
    app::App,
    context::{Ctx, Session},
    http::error::ApiError,
};

/// How many rooms a page has if the client does not say, and at most.
const DEFAULT_LIMIT: usize = 50;
const MOST: usize = 200;
/// How many rooms one look at the database brings when only some of them will match.
const SEARCH_STEP: usize = 200;

/// A page of the list.
struct Found {
    chunk: Vec<PublicRoomsChunk>,
    next_batch: Option<String>,
    prev_batch: Option<String>,
    total: Option<UInt>,
}

/// `GET /_matrix/client/v3/directory/list/room/{roomId}`.
pub(super) async fn get_room_visibility(
    ctx: Ctx<()>,
    request: get_room_visibility::v3::Request,
) -> Result<get_room_visibility::v3::Response, ApiError> {
    let room_id = &*request.room_id;
    ctx.app.tail.room(room_id).await?.ok_or_else(unknown_room)?;
    let listed = ctx
        .app
        .store
        .read("get_room_visibility", |tx| async move { room_directory::is_listed(&tx, room_id).await })
        .await?;
    let visibility = if listed { Visibility::Public } else { Visibility::Private };
    Ok(get_room_visibility::v3::Response::new(visibility))
}

/// `PUT /_matrix/client/v3/directory/list/room/{roomId}`, for those who may change the room's canonical alias, and for
/// administrators.
pub(super) async fn set_room_visibility(
    ctx: Ctx<Session>,
    request: set_room_visibility::v3::Request,
) -> Result<set_room_visibility::v3::Response, ApiError> {
    let room_id = &*request.room_id;
    let room = ctx.app.tail.room(room_id).await?.ok_or_else(unknown_room)?;
    let may_set = room_aliases::may_set_canonical_alias(&room, &ctx.requester.user_id)?;
    if !may_set && !ctx.requester.is_admin {
        return Err(ApiError::forbidden("You may not change whether this room is listed"));
    }
    let listed = match request.visibility {
        Visibility::Public => true,
        Visibility::Private => false,
        _ => return Err(ApiError::invalid_param("visibility is public or private")),
    };
    ctx.app
        .store
        .write(
            "set_room_visibility",
            |tx| async move { room_directory::set_listed(&tx, room_id, listed).await },
        )
        .await?;
    Ok(set_room_visibility::v3::Response::new())
}

/// `GET /_matrix/client/v3/publicRooms`.
pub(super) async fn get_public_rooms(
    ctx: Ctx<()>,
    request: get_public_rooms::v3::Request,
) -> Result<get_public_rooms::v3::Response, ApiError> {
    let get_public_rooms::v3::Request { limit, since, server, .. } = request;
    own_server(&ctx.app, server.as_deref())?;
    let found = find(&ctx.app, limit, since.as_deref(), &Filter::new()).await?;
    let mut response = get_public_rooms::v3::Response::new(found.chunk);
    response.next_batch = found.next_batch;
    response.prev_batch = found.prev_batch;
    response.total_room_count_estimate = found.total;
    Ok(response)
}

/// `POST /_matrix/client/v3/publicRooms`.
pub(super) async fn get_public_rooms_filtered(
    ctx: Ctx<Session>,
    request: get_public_rooms_filtered::v3::Request,
) -> Result<get_public_rooms_filtered::v3::Response, ApiError> {
    let get_public_rooms_filtered::v3::Request { server, limit, since, filter, room_network, .. } = request;
    own_server(&ctx.app, server.as_deref())?;
    let mut response = get_public_rooms_filtered::v3::Response::new();
    // No third-party network has rooms here.
    if matches!(room_network, RoomNetwork::ThirdParty(_)) {
        return Ok(response);
    }
    let found = find(&ctx.app, limit, since.as_deref(), &filter).await?;
    response.chunk = found.chunk;
    response.next_batch = found.next_batch;
    response.prev_batch = found.prev_batch;
    response.total_room_count_estimate = found.total;
    Ok(response)
}

/// The rooms from a place in the list on, in its direction, that match the filter.
async fn find(
    app: &App,
    limit: Option<UInt>,
    since: Option<&str>,
    filter: &Filter,
) -> Result<Found, ApiError> {
    let limit = keystead_core::filter::limit(limit, DEFAULT_LIMIT, MOST);
    let from = since.map_or(Ok(Page::First), parse_page)?;
    let matcher = Matcher::new(filter);
    let backward = matches!(from, Page::Before(_));
    let mut page = from.clone();
    let mut found: Vec<(Place, PublicRoomsChunk)> = Vec::new();
    let mut at_end = false;
    // One room more than asked for tells whether there is another page.
    while found.len() <= limit && !at_end {
        let step = if matcher.is_open() { limit + 1 } else { SEARCH_STEP };
        let (read, count) = (&page, u64::try_from(step).unwrap_or(u64::MAX));
        let mut rooms = app
            .store
            .read("list_public_rooms", |tx| async move { room_directory::page(&tx, read, count).await })
            .await?;
        at_end = rooms.len() < step;
        if backward {
            rooms.reverse();
        }
        if let Some(last) = rooms.last() {
            page = if backward { Page::Before(place(last)) } else { Page::After(place(last)) };
        }
        found.extend(
            rooms.iter().map(|room| (place(room), chunk(room))).filter(|(_, room)| matcher.matches(room)),
        );
    }
    let has_more = found.len() > limit;
    found.truncate(limit);
    if backward {
        found.reverse();
    }
    let first = found.first().map(|(place, _)| token('b', place));
    let last = found.last().map(|(place, _)| token('f', place));
    let total =
        app.store.read("count_public_rooms", |tx| async move { room_directory::count(&tx).await }).await?;
    Ok(Found {
        next_batch: last.filter(|_| backward || has_more),
        prev_batch: first.filter(|_| if backward { has_more } else { from != Page::First }),
        chunk: found.into_iter().map(|(_, room)| room).collect(),
        total: u64::try_from(total).ok().and_then(|total| UInt::try_from(total).ok()),
    })
}

/// The search of a filter.
struct Matcher<'a> {
    /// What to look for, in lower case.
    term: Option<String>,
    room_types: &'a [RoomTypeFilter],
}

impl<'a> Matcher<'a> {
    fn new(filter: &'a Filter) -> Self {
        let term = filter.generic_search_term.as_deref().map(str::trim).filter(|term| !term.is_empty());
        Self { term: term.map(str::to_lowercase), room_types: &filter.room_types }
    }

    /// Whether every room matches.
    fn is_open(&self) -> bool {
        self.term.is_none() && self.room_types.is_empty()
    }

    fn matches(&self, room: &PublicRoomsChunk) -> bool {
        let room_type = RoomTypeFilter::from(room.room_type.clone());
        let alias = room.canonical_alias.as_ref().map(|alias| alias.as_str());
        (self.room_types.is_empty() || self.room_types.contains(&room_type))
            && self.term.as_deref().is_none_or(|term| {
                let texts = [room.name.as_deref(), room.topic.as_deref(), alias];
                texts.into_iter().flatten().any(|text| text.to_lowercase().contains(term))
            })
    }
}

/// What strangers are told about a room. Content that cannot be read counts as absent.
fn chunk(room: &ListedRoom) -> PublicRoomsChunk {
    let mut chunk = PublicRoomsChunk::from(PublicRoomsChunkInit {
        num_joined_members: u64::try_from(room.joined)
            .ok()
            .and_then(|n| UInt::try_from(n).ok())
            .unwrap_or_default(),
        room_id: room.room_id.clone(),
        world_readable: false,
        guest_can_join: false,
    });
    for event in &room.state {
        match event.pdu.event_type.to_string().as_str() {
            "m.room.avatar" => chunk.avatar_url = value(event, "url"),
            "m.room.canonical_alias" => chunk.canonical_alias = value(event, "alias"),
            "m.room.create" => chunk.room_type = value(event, "type"),
            "m.room.guest_access" => {
                chunk.guest_can_join = value::<String>(event, "guest_access").as_deref() == Some("can_join");
            }
            "m.room.history_visibility" => {
                let visibility = value::<String>(event, "history_visibility");
                chunk.world_readable = visibility.as_deref() == Some("world_readable");
            }
            "m.room.join_rules" => chunk.join_rule = value(event, "join_rule").unwrap_or_default(),
            "m.room.name" => chunk.name = value(event, "name"),
            "m.room.topic" => chunk.topic = value(event, "topic"),
            _ => {}
        }
    }
    chunk
}

/// A field of an event's content; `None` if it is not there or not of its type.
pub(super) fn value<T: DeserializeOwned>(event: &RoomEvent, key: &str) -> Option<T> {
    let mut content: Value = serde_json::from_str(event.pdu.content.get()).ok()?;
    serde_json::from_value(content.get_mut(key)?.take()).ok()
}

fn place(room: &ListedRoom) -> Place {
    Place { joined: room.joined, room_id: room.room_id.to_string() }
}

/// A token for the rooms after (`f`) or before (`b`) a place.
fn token(direction: char, place: &Place) -> String {
    format!("{direction}{}_{}", place.joined, place.room_id)
}

fn parse_page(token: &str) -> Result<Page, ApiError> {
    let invalid = || ApiError::invalid_param("since is not a token of this server");
    let (joined, room_id) = token.get(1..).and_then(|rest| rest.split_once('_')).ok_or_else(invalid)?;
    let place = Place { joined: joined.parse().map_err(|_| invalid())?, room_id: room_id.to_owned() };
    match token.get(..1) {
        Some("f") => Ok(Page::After(place)),
        Some("b") => Ok(Page::Before(place)),
        _ => Err(invalid()),
    }
}

fn own_server(app: &App, server: Option<&ServerName>) -> Result<(), ApiError> {
    if server.is_some_and(|server| server != app.settings.server.name) {
        return Err(ApiError::not_found("This server does not know the rooms of that server"));
    }
    Ok(())
}

fn unknown_room() -> ApiError {
    ApiError::not_found("There is no such room")
}

#[cfg(test)]
mod tests {
    use keystead_core::pdu::Pdu;
    use ruma::{owned_event_id, owned_room_id};
    use serde_json::json;

    use super::*;

    fn listed(state: &[(&str, Value)]) -> ListedRoom {
        let state = state
            .iter()
            .map(|(event_type, content)| {
                let json = json!({
                    "type": event_type, "state_key": "", "sender": "@a:x", "content": content, "origin_server_ts": 1,
                    "depth": 1, "prev_events": [], "auth_events": [],
                });
                let pdu = Pdu::from_json(owned_event_id!("$e"), owned_room_id!("!r:x"), &json.to_string());
                RoomEvent { position: 1, pdu: pdu.unwrap().into() }
            })
            .collect();
        ListedRoom { room_id: owned_room_id!("!r:x"), joined: 3, state }
    }

    #[test]
    fn a_room_is_described_by_its_state() {
        let room = chunk(&listed(&[
            ("m.room.name", json!({ "name": "Town" })),
            ("m.room.topic", json!({ "topic": 7 })),
            ("m.room.canonical_alias", json!({ "alias": "#town:x" })),
            ("m.room.history_visibility", json!({ "history_visibility": "world_readable" })),
            ("m.room.guest_access", json!({ "guest_access": "can_join" })),
            ("m.room.join_rules", json!({ "join_rule": "knock" })),
            ("m.room.create", json!({ "type": "m.space" })),
        ]));
        assert_eq!((room.name.as_deref(), room.topic), (Some("Town"), None));
        assert!(room.world_readable && room.guest_can_join);
        assert_eq!((room.join_rule.as_str(), room.num_joined_members), ("knock", UInt::from(3_u32)));
        assert_eq!(room.room_type.unwrap().as_str(), "m.space");
    }

    #[test]
    fn a_search_looks_at_name_topic_and_alias() {
        let room = chunk(&listed(&[
            ("m.room.name", json!({ "name": "ÄRZTE" })),
            ("m.room.canonical_alias", json!({ "alias": "#town:x" })),
        ]));
        let table = [
            (json!({}), true),
            (json!({ "generic_search_term": "ärz" }), true),
            (json!({ "generic_search_term": " TOWN " }), true),
            (json!({ "generic_search_term": "village" }), false),
            (json!({ "room_types": [null] }), true),
            (json!({ "room_types": ["m.space"] }), false),
        ];
        for (filter, expected) in table {
            let filter: Filter = serde_json::from_value(filter).unwrap();
            assert_eq!(Matcher::new(&filter).matches(&room), expected, "{filter:?}");
        }
    }

    #[test]
    fn tokens_lead_back_to_their_place() {
        let place = Place { joined: 12, room_id: "!a_b:x".to_owned() };
        assert_eq!(parse_page(&token('f', &place)).unwrap(), Page::After(place.clone()));
        assert_eq!(parse_page(&token('b', &place)).unwrap(), Page::Before(place));
        for odd in ["", "f", "f12", "fx_!a:x", "x12_!a:x", "ä12_!a:x"] {
            assert!(parse_page(odd).is_err(), "{odd}");
        }
    }
}
