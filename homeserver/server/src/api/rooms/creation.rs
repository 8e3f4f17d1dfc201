//! Making rooms.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#creation>.

use std::sync::Arc;

use http::StatusCode;
use keystead_core::{
    event::Draft,
    room::{Refusal, room_id_from_parts},
    room_creation::{self, CreationRefusal, RoomPlan},
};
use keystead_store::{Error, room_aliases, room_directory};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedRoomAliasId, OwnedRoomId, UInt, UserId,
    api::{
        client::room::{Visibility, create_room::v3},
        error::ErrorCode,
    },
    events::TimelineEventType,
};

use super::membership::{Member, check_can_be_invited};
use crate::{
    context::{Ctx, Session},
    http::error::ApiError,
    rooms::{Alongside, Target, Write, WriteError},
};

/// How often a room is tried to be made: each time a millisecond later, since two rooms that one user makes alike in
/// one millisecond would have the same id.
const TRIES: u32 = 20;

/// The number of characters of a room's id before room version 12.
const LOCALPART: usize = 18;

/// `POST /_matrix/client/v3/createRoom`.
pub(super) async fn create_room(ctx: Ctx<Session>, request: v3::Request) -> Result<v3::Response, ApiError> {
    for invited in &request.invite {
        check_can_be_invited(&ctx, invited)?;
    }
    make(&ctx, &request, More::default()).await.map(v3::Response::new)
}

/// What the making of a room does besides what the request asks for.
#[derive(Clone, Default)]
pub(super) struct More {
    /// More events, after all others.
    pub(super) drafts: Vec<Draft>,
    /// More work for the same transaction.
    pub(super) alongside: Option<Alongside>,
}

/// Makes a room, with its alias and its place in the directory, all of it or nothing.
///
/// # Errors
///
/// 400 with the errcodes that the specification lists for `createRoom`, 413 `M_TOO_LARGE`.
pub(super) async fn make(
    ctx: &Ctx<Session>,
    request: &v3::Request,
    more: More,
) -> Result<OwnedRoomId, ApiError> {
    let creator = &*ctx.requester.user_id;
    let default_version = &ctx.app.settings.rooms.default_version;
    for delay in 0..TRIES {
        let at = MilliSecondsSinceUnixEpoch(ctx.now.get() + UInt::from(delay));
        let plan = room_creation::plan(request, creator, default_version, at).map_err(refused)?;
        let alias = plan.alias.clone();
        check_alias_is_free(ctx, alias.as_ref()).await?;
        match write(ctx, plan, more.clone()).await {
            Ok(room_id) => return Ok(room_id),
            // Another replica may have given the alias away meanwhile; else the create event is the one of another room.
            Err(WriteError::Conflict) => check_alias_is_free(ctx, alias.as_ref()).await?,
            Err(WriteError::Refused(Refusal::Forbidden(reason))) => {
                return Err(ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::InvalidRoomState, reason));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(WriteError::Busy.into())
}

async fn write(ctx: &Ctx<Session>, plan: RoomPlan, more: More) -> Result<OwnedRoomId, WriteError> {
    let RoomPlan { room_version, mut drafts, alias, visibility } = plan;
    introduce_members(ctx, &mut drafts).await?;
    drafts.extend(more.drafts);
    let alongside = more.alongside;
    let localpart = ctx.app.entropy.readable(LOCALPART);
    let room_id = room_id_from_parts(&localpart, &ctx.app.settings.server.name)
        .map_err(|error| Error::Setup(error.to_string()))?;
    let listed = visibility == Visibility::Public;
    let creator = ctx.requester.user_id.clone();
    let alongside: Alongside = Arc::new(move |tx, room_id| {
        let (alias, creator, alongside) = (alias.clone(), creator.clone(), alongside.clone());
        Box::pin(async move {
            if let Some(alias) = alias
                && !room_aliases::insert(&tx, &alias, &room_id, &creator).await?
            {
                return Err(Error::Conflict("room_aliases".to_owned()));
            }
            if listed {
                room_directory::set_listed(&tx, &room_id, true).await?;
            }
            match alongside {
                Some(more) => more(tx, room_id).await,
                None => Ok(()),
            }
        })
    });
    let write = Write {
        target: Target::NewRoom { version: room_version, room_id },
        drafts,
        transaction: None,
        alongside: Some(alongside),
        good_up_to: None,
        now: ctx.now,
    };
    Ok(ctx.app.writer.write(write).await?.room_id)
}

/// Puts the names and pictures of the members into their events.
async fn introduce_members(ctx: &Ctx<Session>, drafts: &mut [Draft]) -> Result<(), Error> {
    for draft in drafts.iter_mut().filter(|draft| draft.event_type == TimelineEventType::RoomMember) {
        let Some(user_id) = draft.state_key.as_deref().and_then(|key| <&UserId>::try_from(key).ok()) else {
            continue;
        };
        if let Ok(member) = serde_json::from_str::<Member>(draft.content.get()) {
            draft.content = member.introduced(ctx, user_id).await?.content()?;
        }
    }
    Ok(())
}

async fn check_alias_is_free(ctx: &Ctx<Session>, alias: Option<&OwnedRoomAliasId>) -> Result<(), ApiError> {
    let Some(alias) = alias else { return Ok(()) };
    let taken = ctx
        .app
        .store
        .read("find_alias", |tx| async move { room_aliases::find(&tx, alias).await })
        .await?
        .is_some();
    if taken {
        return Err(ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::RoomInUse, "The alias is taken"));
    }
    Ok(())
}

fn refused(refusal: CreationRefusal) -> ApiError {
    let text = match &refusal {
        CreationRefusal::Encryption(reason) => reason.to_string(),
        refusal => refusal.to_string(),
    };
    match refusal {
        CreationRefusal::BadAlias => ApiError::invalid_param(text),
        CreationRefusal::BadJson { .. } => ApiError::bad_json(text),
        CreationRefusal::Encryption(_) | CreationRefusal::InvalidState(_) => {
            ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::InvalidRoomState, text)
        }
        CreationRefusal::ThirdPartyInvite => {
            ApiError::new(StatusCode::FORBIDDEN, ErrorCode::ThreepidDenied, text)
        }
        CreationRefusal::TooLarge(_) => ApiError::too_large(text),
        CreationRefusal::UnsupportedRoomVersion => {
            ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::UnsupportedRoomVersion, text)
        }
    }
}
