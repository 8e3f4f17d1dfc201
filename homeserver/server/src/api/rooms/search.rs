//! The search for words in what was said in the rooms of a user.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#server-side-search>. Encrypted messages are not found: the server cannot
//! read them. A page goes on from how many results were shown before; of a room, only the newest events with the words are looked at.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use keystead_core::{
    filter,
    room::RoomEvent,
    search::{Words, text},
};
use keystead_store::{
    Error, ReadTx,
    rooms::{self, Bounds, Direction},
};
use ruma::{
    OwnedRoomId, OwnedUserId, RoomId, UInt,
    api::client::{
        filter::RoomEventFilter,
        search::search_events::v3::{
            Criteria, EventContextResult, GroupingKey, OrderBy, Request, Response, ResultCategories,
            ResultGroup, ResultGroupMap, ResultRoomEvents, SearchResult, UserProfile,
        },
    },
    events::AnyStateEvent,
    serde::Raw,
};
use serde_json::value::RawValue;

use super::{
    reader,
    timeline::{Walk, Wanted, passes, senders, walk},
};
use crate::{
    context::{Ctx, Session},
    http::error::ApiError,
    rate_limits::Limit,
    rooms::{Erased, Form, Reader, RoomView, client_events, client_state},
    sync::IgnoredUsers,
};

/// How many results a page has if the client does not say, and at most.
const DEFAULT_LIMIT: usize = 10;
const MOST: usize = 100;
/// How many events around a result a client may ask for, on either side.
const MOST_AROUND: usize = 50;
/// How many results a room has, the newest ones; and how many a search has.
const MOST_IN_ROOM: usize = 500;
const MOST_RESULTS: usize = 5_000;
/// A room's events that have the words somewhere are read in pages of this size, and at most so many pages: beyond them, a word that
/// is in the envelope of every event is not looked for.
const PAGE: usize = 1_000;
const MOST_PAGES: usize = 5;

/// What is looked for.
struct Search<'a> {
    words: Words,
    criteria: &'a Criteria,
    /// Whose messages the user does not want to see.
    ignored: Arc<IgnoredUsers>,
}

impl Search<'_> {
    /// The event as a hit, if it is one that the user may see.
    fn hit(&self, view: &RoomView, event: RoomEvent) -> Option<Hit> {
        let rank = self.words.rank(&text(&event.pdu, self.criteria.keys.as_deref())?)?;
        let is_ignored = event.pdu.state_key.is_none() && self.ignored.contains_key(&event.pdu.sender);
        let is_hit = !is_ignored && passes(&self.criteria.filter, &event) && view.may_see(event.position);
        is_hit.then_some(Hit { event, rank })
    }
}

/// An event that matches.
struct Hit {
    event: RoomEvent,
    rank: f64,
}

/// What a search found.
#[derive(Default)]
struct Found {
    /// In the order that was asked for.
    hits: Vec<Hit>,
    /// What the user may see of the rooms that they are in.
    views: HashMap<OwnedRoomId, RoomView>,
}

/// `POST /_matrix/client/v3/search`.
pub(super) async fn search_events(ctx: Ctx<Session>, request: Request) -> Result<Response, ApiError> {
    let mut categories = ResultCategories::new();
    let Some(criteria) = &request.search_categories.room_events else {
        return Ok(Response::new(categories));
    };
    let shown = request.next_batch.as_deref().map_or(Ok(0), shown_before)?;
    ctx.app.rate_limits.take(Limit::Searches, ctx.requester.user_id.as_str(), ctx.now)?;
    let _turn = ctx.app.long_reads.acquire().await.map_err(ApiError::internal)?;
    let limit = filter::limit(criteria.filter.limit, DEFAULT_LIMIT, MOST);
    let ignored = ctx.app.readers.ignored(&ctx.app.lookups, &ctx.requester.user_id).await?;
    let search = &Search { words: Words::of(&criteria.search_term), criteria, ignored };
    let reader = reader(&ctx);
    let rooms = &searched_rooms(&ctx, &criteria.filter).await?;
    let read = ctx.app.store.read("search", |tx| async move {
        let found = find(&tx, rooms, search, reader).await?;
        page(&tx, found, search, (shown, limit), reader).await
    });
    let mut results = read.await?;
    results.highlights = search.words.iter().map(str::to_owned).collect();
    categories.room_events = results;
    Ok(Response::new(categories))
}

/// The rooms that the user is in or was in, as far as the filter wants them.
async fn searched_rooms(ctx: &Ctx<Session>, filter: &RoomEventFilter) -> Result<Vec<OwnedRoomId>, ApiError> {
    if filter::excludes_everything(filter) {
        return Ok(Vec::new());
    }
    let rooms = ctx.app.tail.rooms_of(&ctx.requester.user_id).await?;
    let wanted = rooms
        .iter()
        .filter(|(room_id, membership)| !membership.forgotten && filter::matches_room(filter, room_id));
    Ok(wanted.map(|(room_id, _)| room_id.clone()).collect())
}

async fn find(
    tx: &ReadTx,
    rooms: &[OwnedRoomId],
    search: &Search<'_>,
    reader: Reader<'_>,
) -> Result<Found, Error> {
    let mut found = Found::default();
    if search.words.is_empty() {
        return Ok(found);
    }
    for room_id in rooms {
        let view = RoomView::load(tx, room_id, reader.user_id).await?;
        if !view.was_joined() {
            continue;
        }
        let mut hits = find_in_room(tx, room_id, (&view, reader), search).await?;
        if hits.is_empty() {
            continue;
        }
        found.hits.append(&mut hits);
        found.views.insert(room_id.clone(), view);
        if found.hits.len() > 2 * MOST_RESULTS {
            found.sort(search.criteria);
        }
    }
    found.sort(search.criteria);
    Ok(found)
}

/// The newest events of a room with the words, as far as the user was there and may see them.
async fn find_in_room(
    tx: &ReadTx,
    room_id: &RoomId,
    (view, reader): (&RoomView, Reader<'_>),
    search: &Search<'_>,
) -> Result<Vec<Hit>, Error> {
    let list: Vec<&str> = search.words.iter().collect();
    let (mut hits, mut upto) = (Vec::new(), view.joined_until().unwrap_or(i64::MAX));
    for _ in 0..MOST_PAGES {
        let read = rooms::with_words(tx, room_id, Bounds { after: 0, upto }, &list, PAGE).await?;
        let erased = Erased::among(tx, &read.events, reader.knowing(view.memberships())).await?;
        let shown = read.events.into_iter().filter(|event| !erased.hides(event));
        hits.extend(shown.filter_map(|event| search.hit(view, event)));
        match read.rest_upto {
            Some(rest) if hits.len() < MOST_IN_ROOM => upto = rest,
            _ => break,
        }
    }
    hits.truncate(MOST_IN_ROOM);
    Ok(hits)
}

impl Found {
    /// Puts the hits in the order that was asked for, and keeps the first ones.
    fn sort(&mut self, criteria: &Criteria) {
        let newest = |hit: &Hit| Reverse((hit.event.pdu.origin_server_ts, hit.event.position));
        if criteria.order_by == Some(OrderBy::Recent) {
            self.hits.sort_by_key(newest);
        } else {
            // > By default, this is "rank".
            self.hits.sort_by(|a, b| b.rank.total_cmp(&a.rank).then_with(|| newest(a).cmp(&newest(b))));
        }
        self.hits.truncate(MOST_RESULTS);
    }
}

/// The results after those that were shown before.
async fn page(
    tx: &ReadTx,
    found: Found,
    search: &Search<'_>,
    (shown, limit): (usize, usize),
    reader: Reader<'_>,
) -> Result<ResultRoomEvents, Error> {
    let criteria = search.criteria;
    let Found { hits, views } = found;
    let mut results = ResultRoomEvents::new();
    results.count = UInt::try_from(hits.len()).ok();
    let end = shown.saturating_add(limit);
    results.next_batch = (hits.len() > end).then(|| format!("s{end}"));
    let hits: Vec<Hit> = hits.into_iter().skip(shown).take(limit).collect();
    group(&mut results, &hits, criteria);
    let mut in_rooms = BTreeSet::new();
    for hit in hits {
        let Some(view) = views.get(&hit.event.pdu.room_id) else { continue };
        in_rooms.insert(hit.event.pdu.room_id.clone());
        results.results.push(result(tx, hit, view, search, reader).await?);
    }
    if criteria.include_state == Some(true) {
        for room_id in in_rooms {
            let Some(view) = views.get(&room_id) else { continue };
            // > The current state for every room in the results: of those who have left, as it was then.
            let position = view.joined_until().unwrap_or(i64::MAX);
            let state = rooms::state_at(tx, &room_id, position).await?;
            let state =
                client_state(tx, &state, reader.knowing(view.memberships()), Form::WithRoomId).await?;
            results.state.insert(room_id, raw::<AnyStateEvent>(state));
        }
    }
    Ok(results)
}

/// One result with what was said around it.
async fn result(
    tx: &ReadTx,
    hit: Hit,
    view: &RoomView,
    search: &Search<'_>,
    reader: Reader<'_>,
) -> Result<SearchResult, Error> {
    let around_it = &search.criteria.event_context;
    let Hit { event, rank } = hit;
    let room_id = event.pdu.room_id.clone();
    let about = (reader.knowing(view.memberships()), Some(&*search.ignored));
    let around = |limit: UInt| usize::try_from(u64::from(limit)).unwrap_or(MOST_AROUND).min(MOST_AROUND);
    let all = &RoomEventFilter::default();
    let wanted = Wanted { room_id: &room_id, view, filter: all };
    let older = Bounds { after: 0, upto: event.position - 1 };
    let before = walk(tx, wanted, older, Direction::Backward, around(around_it.before_limit)).await?;
    let newer = Bounds { after: event.position, upto: view.joined_until().unwrap_or(i64::MAX) };
    let after = walk(tx, wanted, newer, Direction::Forward, around(around_it.after_limit)).await?;

    let mut context = EventContextResult::new();
    if around_it.include_profile {
        context.profile_info = profiles(tx, &event, &before, &after).await?;
    }
    context.events_before = raw(client_events(tx, &before.events, about, Form::WithRoomId).await?);
    context.events_after = raw(client_events(tx, &after.events, about, Form::WithRoomId).await?);
    context.start = Some(before.reached.to_string());
    context.end = Some(after.reached.to_string());
    let mut result = SearchResult::new();
    result.context = context;
    result.rank = Some(rank);
    result.result = client_events(tx, &[event], about, Form::WithRoomId).await?.pop().map(Raw::from_json);
    Ok(result)
}

/// > The historic profile information of the users that sent the events returned.
async fn profiles(
    tx: &ReadTx,
    event: &RoomEvent,
    before: &Walk,
    after: &Walk,
) -> Result<BTreeMap<OwnedUserId, UserProfile>, Error> {
    let shown = before.events.iter().chain([event]).chain(&after.events);
    let members = rooms::members_of_at(tx, &event.pdu.room_id, event.position, &senders(shown)).await?;
    let profile = |member: &RoomEvent| {
        let user_id = OwnedUserId::try_from(member.pdu.state_key.as_deref()?).ok()?;
        Some((user_id, serde_json::from_str(member.pdu.content.get()).ok()?))
    };
    Ok(members.iter().filter_map(profile).collect())
}

/// > Any groups that were requested: which of the results of this page are in each.
fn group(results: &mut ResultRoomEvents, hits: &[Hit], criteria: &Criteria) {
    fn grouped<K: Ord>(hits: &[Hit], key: impl Fn(&Hit) -> K) -> BTreeMap<K, ResultGroup> {
        let mut groups: BTreeMap<K, ResultGroup> = BTreeMap::new();
        for hit in hits {
            let order = UInt::try_from(groups.len()).ok();
            let group = groups.entry(key(hit)).or_insert_with(|| {
                let mut group = ResultGroup::new();
                group.order = order;
                group
            });
            group.results.push(hit.event.pdu.event_id.clone());
        }
        groups
    }
    for grouping in &criteria.groupings.group_by {
        match grouping.key {
            Some(GroupingKey::RoomId) => {
                let rooms = grouped(hits, |hit| hit.event.pdu.room_id.clone());
                results.groups.insert(ResultGroupMap::RoomId(rooms));
            }
            Some(GroupingKey::Sender) => {
                let senders = grouped(hits, |hit| hit.event.pdu.sender.clone());
                results.groups.insert(ResultGroupMap::Sender(senders));
            }
            _ => {}
        }
    }
}

/// How many results were shown before the page that a token leads to.
fn shown_before(token: &str) -> Result<usize, ApiError> {
    let shown = token.strip_prefix('s').and_then(|shown| shown.parse().ok());
    shown.ok_or_else(|| ApiError::invalid_param("next_batch is not a token of this server"))
}

fn raw<T>(events: Vec<Box<RawValue>>) -> Vec<Raw<T>> {
    events.into_iter().map(Raw::from_json).collect()
}
