//! `GET /sync`.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3sync>

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use keystead_core::token::SyncToken;
use ruma::api::client::{filter::FilterDefinition, sync::sync_events::v3 as sync_events};

use super::filter;
use crate::{
    app::App,
    context::{Ctx, Session},
    http::error::ApiError,
    presence,
    sync::{SyncRequest, reply::SyncReply, sync},
};

/// What those get who ask for no filter.
static UNFILTERED: LazyLock<Arc<FilterDefinition>> = LazyLock::new(Arc::default);

/// What happened since a token; waits for something to happen if nothing has.
pub(super) fn sync_events(
    ctx: Ctx<Session>,
    request: sync_events::Request,
) -> impl Future<Output = Result<SyncReply, ApiError>> {
    // Boxed: a long-poll does not keep the room for what is done before it waits.
    let request = Box::pin(begin(ctx, request));
    async move {
        let (app, mut request) = request.await?;
        Ok(SyncReply(sync(&app, &mut request).await?))
    }
}

/// What is asked for, after it is noted that the user is here.
async fn begin(
    ctx: Ctx<Session>,
    request: sync_events::Request,
) -> Result<(Arc<App>, SyncRequest), ApiError> {
    let room_shards = ctx.app.tail.shards().room_shards().count();
    let since = request
        .since
        .map(|token| SyncToken::parse(&token, room_shards))
        .transpose()
        .map_err(|error| ApiError::invalid_param(format!("since: {error}")))?;
    let filter = match request.filter {
        None => Arc::clone(&UNFILTERED),
        Some(sync_events::Filter::FilterDefinition(filter)) => Arc::new(filter),
        Some(sync_events::Filter::FilterId(id)) => {
            let filter = filter::find(&ctx.app, &ctx.requester.user_id, &id).await?;
            filter.ok_or_else(|| ApiError::invalid_param("filter: there is no filter of that id"))?
        }
        Some(_) => return Err(ApiError::invalid_param("filter: neither a filter nor the id of one")),
    };
    presence::note_sync(&ctx.app, &ctx.requester.user_id, &request.set_presence).await?;
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
    Ok((ctx.app, request))
}
