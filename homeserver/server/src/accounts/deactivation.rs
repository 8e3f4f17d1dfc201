//! Closing accounts for ever.

use std::sync::Arc;

use keystead_store::{
    Error, account_data, cross_signing, devices, jobs, key_backup, keybox_log, keys, presence, profiles,
    users,
};
use ruma::{
    MilliSecondsSinceUnixEpoch, UserId,
    events::room::member::{MembershipState, RoomMemberEventContent},
};

use crate::{app::App, http::error::ApiError, jobs::JobError, media::removal, rooms::set_own_member};

/// The kind of job that takes a closed account out of its rooms; its payload is the user's id.
pub(crate) const JOB: &str = "leave_rooms";

/// Closes an account: nobody can log in to it or take its name any more, its sessions, devices, keys and profile are gone,
/// and it leaves its rooms soon. With `erase`, its account data are gone, too, its messages are shown to nobody who was not there, and the files that it uploaded
/// are deleted soon.
///
/// # Errors
///
/// When the database cannot be reached; then nothing has changed.
pub async fn deactivate(
    app: &Arc<App>,
    user_id: &UserId,
    now: MilliSecondsSinceUnixEpoch,
    erase: bool,
) -> Result<(), ApiError> {
    let kinds = [Some(JOB), erase.then_some(removal::JOB)];
    let new = |kind| crate::jobs::new(&*app.entropy, kind, user_id.as_str(), now);
    let jobs: Vec<_> = kinds.into_iter().flatten().map(new).collect();
    let new_jobs = &jobs;
    app.store
        .write("deactivate", |tx| async move {
            tx.lock_shards(&keys::device_list_shards(&tx, user_id).await?).await?;
            users::deactivate(&tx, user_id).await?;
            presence::delete(&tx, user_id).await?;
            for (name, _) in profiles::fields(&tx, user_id).await? {
                profiles::delete_field(&tx, user_id, &name).await?;
            }
            let devices = devices::of_user(&tx, user_id).await?;
            let devices: Vec<_> = devices.into_iter().map(|device| device.device_id).collect();
            cross_signing::delete_of_user(&tx, user_id).await?;
            key_backup::delete_of_user(&tx, user_id).await?;
            devices::delete(&tx, user_id, &devices).await?;
            keys::forget_revoked_key_sets(&tx, user_id).await?;
            keybox_log::delete_of_user(&tx, user_id).await?;
            if erase {
                users::erase(&tx, user_id).await?;
                account_data::delete_of_user(&tx, user_id).await?;
            }
            for job in new_jobs {
                jobs::insert(&tx, job).await?;
            }
            Ok::<_, Error>(())
        })
        .await?;
    for job in jobs {
        crate::jobs::start(app, job);
    }
    Ok(())
}

/// Takes a user out of all rooms, and declines all invitations: the job [`JOB`].
///
/// # Errors
///
/// What kept it from being finished; it can be done again.
pub(crate) async fn leave_rooms(app: &App, user_id: &str) -> Result<(), JobError> {
    let user_id = &*UserId::parse(user_id).map_err(|_| JobError::Payload)?;
    app.fence().await.map_err(JobError::Fence)?;
    let rooms = app.tail.rooms_of(user_id).await?;
    for (room_id, room) in rooms.iter() {
        if matches!(room.membership, MembershipState::Join | MembershipState::Invite | MembershipState::Knock)
        {
            set_own_member(app, user_id, room_id, &RoomMemberEventContent::new(MembershipState::Leave))
                .await?;
        }
    }
    Ok(())
}
