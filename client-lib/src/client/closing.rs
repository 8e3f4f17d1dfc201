//! Closing a room and opening it; letting one more KeyBox into a closed one.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use keystead_keybox::closing::{EVENT_TYPE, MAX_MODERATORS};

use super::{Client, ClientError};
use crate::clock::now_ms;
use crate::engine::{ClosingFailure, KeyBoxAddress, KnownKeyBox, NewStep};
use crate::events::RoomEvent;

/// Why a room was not closed or opened, or a KeyBox not approved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloseError {
    /// The KeyBox could not ask or tell the server, or was refused.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The room is not one where that can be done now.
    #[error(transparent)]
    Closing(#[from] ClosingFailure),
}

/// A room that was closed or opened.
#[derive(Clone, Debug)]
pub struct Changed {
    /// The number of the step, in the room.
    pub generation: u64,
    /// The KeyBoxes that a closing names, or an approval adds.
    pub keyboxes: Vec<KnownKeyBox>,
    /// Who may open a closed room, and let KeyBoxes in.
    pub moderators: BTreeSet<String>,
}

impl Client {
    /// Closes a room: nobody comes in, and only the KeyBoxes that its members have now get resource keys. Those who may send such
    /// state now may open it again. `limit` is how many users the room may have from then on, also when it is open.
    pub async fn close_room(&mut self, room_id: &str, limit: Option<u64>) -> Result<Changed, CloseError> {
        let state = self.look_at(room_id).await?;
        let moderators = moderators(&state, &self.account().user_id);
        let step = self.engine.close(room_id, closing_in(&state), moderators, limit, now_ms())?;
        self.take_step(room_id, step).await
    }

    /// Opens a room that is closed, or sets how many users an open one may have (`None`: any number).
    pub async fn open_room(&mut self, room_id: &str, limit: Option<u64>) -> Result<Changed, CloseError> {
        let state = self.look_at(room_id).await?;
        let step = self.engine.open_room(room_id, closing_in(&state), limit, now_ms())?;
        self.take_step(room_id, step).await
    }

    /// Lets one more KeyBox of a member have the resource keys of a closed room.
    pub async fn approve_keybox(
        &mut self,
        room_id: &str,
        keybox: &KeyBoxAddress,
    ) -> Result<Changed, CloseError> {
        let state = self.look_at(room_id).await?;
        let step = self.engine.approve_keybox(room_id, closing_in(&state), keybox, now_ms())?;
        self.take_step(room_id, step).await
    }

    /// What the server says of the room now; the key sets of its members are here then.
    async fn look_at(&mut self, room_id: &str) -> Result<Vec<RoomEvent>, ClientError> {
        self.sync(Duration::ZERO).await?;
        {
            let _lock = self.begin().await?;
            self.engine.follow_members(room_id);
            self.flush().await?;
        }
        Ok(self.api.all_state(room_id).await?)
    }

    async fn take_step(&mut self, room_id: &str, step: NewStep) -> Result<Changed, CloseError> {
        self.api.set_state(room_id, EVENT_TYPE, step.content).await.map_err(ClientError::from)?;
        self.sync(Duration::ZERO).await?;
        let lock = self.begin().await?;
        // Who has the keys from now on gets them at once, and hears of the step from this KeyBox, whatever the server shows.
        match self.sending_key(room_id).await {
            Ok(_) | Err(ClientError::Encrypt(_)) => {}
            Err(error) => return Err(error.into()),
        }
        self.flush().await?;
        drop(lock);
        let closing = self.engine.rooms().get(room_id).and_then(|room| room.closing());
        Ok(Changed {
            generation: closing.map(|closing| closing.last.generation).unwrap_or_default(),
            keyboxes: step.keyboxes,
            moderators: closing.map(|closing| closing.moderators.clone()).unwrap_or_default(),
        })
    }
}

fn closing_in(state: &[RoomEvent]) -> Option<&Value> {
    content_of(state, EVENT_TYPE)
}

fn content_of<'a>(state: &'a [RoomEvent], event_type: &str) -> Option<&'a Value> {
    let is_it = |event: &&RoomEvent| event.event_type == event_type && event.state_key.as_deref() == Some("");
    state.iter().find(is_it).map(|event| &event.content)
}

/// The members who may send the closing event, with `own` first of those that fit in.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#mroompower_levels>
fn moderators(state: &[RoomEvent], own: &str) -> BTreeSet<String> {
    let levels = content_of(state, "m.room.power_levels");
    let level = |name: &str| levels.and_then(|levels| levels.get(name)?.as_i64());
    let required = levels.and_then(|levels| levels.get("events")?.get(EVENT_TYPE)?.as_i64());
    let required = required.or_else(|| level("state_default")).unwrap_or(50);
    let create = state.iter().find(|event| event.event_type == "m.room.create");
    let additional = create.and_then(|create| create.content.get("additional_creators")?.as_array());
    let is_creator = |user_id: &str| {
        create.is_some_and(|create| create.sender == user_id)
            || additional.is_some_and(|creators| creators.iter().any(|creator| creator == user_id))
    };
    let version = create.and_then(|create| create.content.get("room_version")?.as_str());
    // From room version 12 on, creators have more power than any number.
    let creators_rule =
        levels.is_none() || version.and_then(|version| version.parse::<u32>().ok()) >= Some(12);
    let has_power = |user_id: &str| {
        let given = levels.and_then(|levels| levels.get("users")?.get(user_id)?.as_i64());
        let given = given.or_else(|| level("users_default")).unwrap_or_default();
        creators_rule && is_creator(user_id) || given >= required
    };
    let joined = state.iter().filter(|event| {
        event.event_type == "m.room.member" && event.content.get("membership").is_some_and(|is| is == "join")
    });
    let mut found: Vec<_> =
        joined.filter_map(|event| event.state_key.clone()).filter(|user_id| has_power(user_id)).collect();
    found.sort_by_key(|user_id| user_id != own);
    found.into_iter().take(MAX_MODERATORS).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(event_type: &str, state_key: &str, content: Value) -> RoomEvent {
        RoomEvent {
            event_type: event_type.to_owned(),
            state_key: Some(state_key.to_owned()),
            sender: "@creator:x".to_owned(),
            event_id: String::new(),
            origin_server_ts: 0,
            content,
        }
    }

    fn found(version: &str, levels: Option<Value>) -> Vec<String> {
        let mut state = vec![event("m.room.create", "", json!({ "room_version": version }))];
        for (user_id, membership) in
            [("@creator:x", "join"), ("@a:x", "join"), ("@b:x", "join"), ("@gone:x", "leave")]
        {
            state.push(event("m.room.member", user_id, json!({ "membership": membership })));
        }
        state.extend(levels.map(|levels| event("m.room.power_levels", "", levels)));
        moderators(&state, "@a:x").into_iter().collect()
    }

    #[test]
    fn moderators_are_the_members_with_the_power() {
        assert_eq!(found("11", None), ["@creator:x"]);
        let levels = json!({ "users": { "@a:x": 50, "@b:x": 49, "@gone:x": 100 } });
        assert_eq!(found("11", Some(levels.clone())), ["@a:x"]);
        assert_eq!(found("12", Some(levels)), ["@a:x", "@creator:x"]);
        let levels = json!({ "users_default": 60, "events": { EVENT_TYPE: 70 }, "users": { "@b:x": 70 } });
        assert_eq!(found("11", Some(levels)), ["@b:x"]);
        assert_eq!(found("10", Some(json!({ "state_default": 0 }))).len(), 3);
    }
}
