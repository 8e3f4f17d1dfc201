//! `GET /sync`.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3sync>

use std::{sync::Arc, time::Duration};

use keystead_core::token::SyncToken;
use ruma::api::client::sync::sync_events::v3 as sync_events;

use super::filter;
use crate::{
    context::{Ctx, Session},
    http::error::ApiError,
    presence,
    sync::{SyncRequest, reply::SyncReply, sync},
};

/// What happened since a token; waits for something to happen if nothing has.
pub(super) async fn sync_events(
    ctx: Ctx<Session>,
    request: sync_events::Request,
) -> Result<SyncReply, ApiError> {
    let room_shards = ctx.app.tail.shards().room_shards().count();
    let since = request
        .since
        .map(|token| SyncToken::parse(&token, room_shards))
        .transpose()
        .map_err(|error| ApiError::invalid_param(format!("since: {error}")))?;
    let filter = match request.filter {
        None => Arc::default(),
        Some(sync_events::Filter::FilterDefinition(filter)) => Arc::new(filter),
        Some(sync_events::Filter::FilterId(id)) => {
            let filter = Box::pin(filter::find(&ctx.app, &ctx.requester.user_id, &id)).await?;
            filter.ok_or_else(|| ApiError::invalid_param("filter: there is no filter of that id"))?
        }
        Some(_) => return Err(ApiError::invalid_param("filter: neither a filter nor the id of one")),
    };
    // Boxed, as the filter is: a long-poll does not keep the room for what is done before it waits.
    Box::pin(presence::note_sync(&ctx.app, &ctx.requester.user_id, &request.set_presence)).await?;
    let own_shard = ctx.app.tail.shards().of_user(&ctx.requester.user_id);
    let since = since.map(|since| ctx.app.restores.lost.settle(since, own_shard));
    let request = SyncRequest {
        session: ctx.requester,
        delivered: since.as_ref().and_then(|since| since.delivered),
        since: since.map(|since| since.token),
        filter,
        full_state: request.full_state,
        state_after: request.use_state_after,
        timeout: request.timeout.unwrap_or(Duration::ZERO),
    };
    Ok(SyncReply(sync(&ctx.app, request).await?))
}
