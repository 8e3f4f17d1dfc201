//! Who of those with whom the user shares a room has come and gone.

use keystead_core::filter::{self, Facts};
use keystead_store::presence::{self, Presence};
use ruma::{UInt, UserId, events::presence::PresenceEvent, presence::PresenceState, serde::Raw};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::{
    Sync,
    changes::{Changes, DeviceLists},
};
use crate::http::error::ApiError;

const EVENT_TYPE: &str = "m.presence";

#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    event_type: &'static str,
    sender: &'a UserId,
    content: &'a RawValue,
}

#[derive(Serialize)]
struct Content<'a> {
    presence: &'a PresenceState,
    last_active_ago: UInt,
    #[serde(skip_serializing_if = "Option::is_none")]
    currently_active: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_msg: Option<&'a str>,
}

impl Sync<'_> {
    /// The presence of others of whom there is news, as it is now; on a first sync, of all who are there.
    pub(super) async fn presence(&self, changes: &Changes) -> Result<Vec<Raw<PresenceEvent>>, ApiError> {
        if !self.app.settings.presence.enabled {
            return Ok(Vec::new());
        }
        let (user_id, is_initial, store) = (self.user_id(), self.request.since.is_none(), &self.app.store);
        let read = match (&self.request.since, &changes.device_lists) {
            (None, _) => {
                let all = |tx| async move { presence::visible(&tx, user_id, None).await };
                store.read_one("sync_presence", all).await?
            }
            (Some(_), DeviceLists::Known(_)) if changes.presence.is_empty() => return Ok(Vec::new()),
            (Some(_), DeviceLists::Known(_)) => {
                let wanted = &changes.presence;
                let these = |tx| async move { presence::visible(&tx, user_id, Some(wanted)).await };
                store.read_one("sync_presence", these).await?
            }
            // What of the memberships and changes is no longer in memory is not there for presence either.
            (Some(since), DeviceLists::Unknown) => {
                let changed = |tx| async move {
                    let wanted = presence::changed_since(&tx, user_id, since).await?;
                    presence::visible(&tx, user_id, Some(&wanted)).await
                };
                store.read("sync_presence", changed).await?
            }
        };
        let mut events = Vec::new();
        for presence in read {
            let is_wanted = if is_initial {
                presence.state != PresenceState::Offline
            } else {
                presence.user_id != *user_id
            };
            if is_wanted && !self.ignored.contains_key(&presence.user_id) {
                events.extend(self.presence_event(&presence)?);
            }
        }
        Ok(events)
    }

    /// A presence as an event, if the filter wants it.
    fn presence_event(&self, presence: &Presence) -> Result<Option<Raw<PresenceEvent>>, ApiError> {
        let content = Content {
            presence: &presence.state,
            last_active_ago: self.now.get().saturating_sub(presence.last_active_ts.get()),
            currently_active: presence.currently_active(),
            status_msg: presence.status_msg.as_deref(),
        };
        let content = &*to_raw_value(&content).map_err(ApiError::internal)?;
        let sender = &*presence.user_id;
        let facts = Facts { event_type: EVENT_TYPE, sender: Some(sender), content };
        if !filter::matches(&self.filter().presence, facts) {
            return Ok(None);
        }
        let event = Event { event_type: EVENT_TYPE, sender, content };
        Ok(Some(Raw::from_json(to_raw_value(&event).map_err(ApiError::internal)?)))
    }
}
