//! Changes of profiles, and how the rooms of a user learn of them.
//!
//! A change and the job that carries it into the rooms are written in one transaction. The replica that took the
//! change does the job at once; if it dies before it is done, another one finds the job and does it.

use std::sync::Arc;

use keystead_core::room::RoomState;
use keystead_store::{
    Error, jobs,
    profiles::{self, AVATAR_URL, DISPLAY_NAME},
};
use ruma::{OwnedRoomId, UserId, events::room::member::MembershipState};
use serde_json::{Map, Value};

use crate::{
    app::App,
    context::{Ctx, Session},
    http::error::ApiError,
    jobs::JobError,
    rooms::set_own_member,
};

/// The kind of job that carries a profile into the user's rooms; its payload is the user's id.
pub(crate) const JOB: &str = "profile_change";

/// Whether the member events of a user show this field of the profile.
pub(crate) fn is_shown_in_rooms(name: &str) -> bool {
    [DISPLAY_NAME, AVATAR_URL].contains(&name)
}

/// The fields of a user's profile that belong into the user's member events.
///
/// # Errors
///
/// The database's own, or a value that cannot be read.
pub(crate) async fn shown_in_rooms(app: &App, user_id: &UserId) -> Result<Map<String, Value>, Error> {
    let fields = app.lookups.profiles.find(user_id.to_owned()).await?.unwrap_or_default();
    let corrupt = |error| Error::corrupt("profile_fields", "value", user_id.as_str(), error);
    fields
        .into_iter()
        .map(|(name, value)| Ok((name, serde_json::from_str(&value).map_err(corrupt)?)))
        .collect()
}

/// Sets a field of the requester's profile, or removes it, and lets the user's rooms know.
///
/// # Errors
///
/// The database's own; then nothing has changed.
pub(crate) async fn change(ctx: &Ctx<Session>, name: &str, value: Option<&Value>) -> Result<(), ApiError> {
    let user_id = &*ctx.requester.user_id;
    let job = is_shown_in_rooms(name)
        .then(|| crate::jobs::new(ctx.app.entropy.as_ref(), JOB, user_id.as_str(), ctx.now));
    let new_job = job.as_ref();
    let json = value.map(Value::to_string);
    let json = json.as_deref();
    let search_text = value.filter(|_| name == DISPLAY_NAME).and_then(Value::as_str).map(str::to_lowercase);
    let search_text = search_text.as_deref();
    ctx.app
        .store
        .write("change_profile", |tx| async move {
            match json {
                Some(json) => profiles::set_field(&tx, user_id, (name, json), search_text).await?,
                None => {
                    profiles::delete_field(&tx, user_id, name).await?;
                }
            }
            match new_job {
                Some(job) => jobs::insert(&tx, job).await,
                None => Ok(()),
            }
        })
        .await?;
    if let Some(job) = job {
        crate::jobs::start(&ctx.app, job);
    }
    Ok(())
}

/// Brings the member events of a user's rooms up to the user's profile: the job [`JOB`].
///
/// # Errors
///
/// What kept it from being finished; it can be done again.
pub(crate) async fn carry_into_rooms(app: &Arc<App>, user_id: &str) -> Result<(), JobError> {
    let user_id = &*UserId::parse(user_id).map_err(|_| JobError::Payload)?;
    loop {
        // The user may have joined a room through another replica just before.
        app.fence().await.map_err(JobError::Fence)?;
        let profile = shown_in_rooms(app, user_id).await?;
        for room_id in joined_rooms(app, user_id).await? {
            carry_into_room(app, user_id, &room_id, &profile).await?;
        }
        // Two jobs of two changes may run at once; whoever ends last sees to it that the newest profile stands.
        if shown_in_rooms(app, user_id).await? == profile {
            return Ok(());
        }
    }
}

async fn joined_rooms(app: &App, user_id: &UserId) -> Result<Vec<OwnedRoomId>, JobError> {
    let rooms = app.tail.rooms_of(user_id).await?;
    let joined = rooms.iter().filter(|(_, room)| room.membership == MembershipState::Join);
    Ok(joined.map(|(room_id, _)| room_id.clone()).collect())
}

async fn carry_into_room(
    app: &App,
    user_id: &UserId,
    room_id: &OwnedRoomId,
    profile: &Map<String, Value>,
) -> Result<(), JobError> {
    let Some(room) = app.tail.room(room_id).await? else { return Ok(()) };
    let Some(content) = member_content(&room, user_id, profile) else { return Ok(()) };
    set_own_member(app, user_id, room_id, &content).await
}

/// The user's member content with this profile, or `None` if it shows it already or the user is not in the room.
fn member_content(
    room: &RoomState,
    user_id: &UserId,
    profile: &Map<String, Value>,
) -> Option<Map<String, Value>> {
    if room.membership(user_id) != MembershipState::Join {
        return None;
    }
    let member = room.get("m.room.member", user_id.as_str())?;
    let current: Map<String, Value> = serde_json::from_str(member.pdu.content.get()).ok()?;
    let content = with_profile(&current, profile);
    (content != current).then_some(content)
}

/// A member content with the shown fields of this profile, and without what belongs to the joining alone.
fn with_profile(current: &Map<String, Value>, profile: &Map<String, Value>) -> Map<String, Value> {
    let shows_profile =
        [DISPLAY_NAME, AVATAR_URL].iter().all(|name| current.get(*name) == profile.get(*name));
    if shows_profile {
        return current.clone();
    }
    let of_the_joining = ["is_direct", "join_authorised_via_users_server", "reason", "third_party_invite"];
    let mut content = current.clone();
    content.retain(|name, _| !of_the_joining.contains(&name.as_str()) && !is_shown_in_rooms(name));
    content.extend(profile.clone());
    content
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn a_member_event_takes_the_profile_and_keeps_the_rest() {
        let profile = object(json!({ "displayname": "New" }));
        let current = json!({
            "membership": "join", "displayname": "Old", "avatar_url": "mxc://x/y", "reason": "hi", "org.example": 1,
        });
        let expected = json!({ "membership": "join", "displayname": "New", "org.example": 1 });
        assert_eq!(with_profile(&object(current), &profile), object(expected.clone()));
        // Nothing to do the second time.
        assert_eq!(with_profile(&object(expected.clone()), &profile), object(expected));
    }

    #[test]
    fn what_belongs_to_the_joining_is_no_reason_for_a_new_event() {
        let current = object(json!({ "membership": "join", "reason": "hi" }));
        assert_eq!(with_profile(&current, &Map::new()), current);
    }
}
