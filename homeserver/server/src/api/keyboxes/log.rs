//! Reading the log of one's own KeyBoxes.

use std::str::FromStr;

use keystead_store::keybox_log::{self, Filter, StoredEntry};
use ruma::{CanonicalJsonObject, CanonicalJsonValue, UInt, UserId};

use crate::{
    api::server_keys::sign,
    context::{Ctx, Session},
    http::{
        error::ApiError,
        reply::{PlainText, RawJson},
        router::OwnRequest,
    },
};

/// How many entries a page has if the client does not say.
const DEFAULT_PAGE: u32 = 100;
/// How many it has at most.
const MAX_PAGE: u32 = 1_000;
/// How many entries an export has at most.
const MAX_EXPORT: u32 = 10_000;

/// `GET …/log?after&limit&room_id&keybox_id&since&until`: a page of the log, oldest first.
///
/// `next_after` is there if more entries may follow. Errors: 400 `M_INVALID_PARAM`.
pub(super) async fn page(ctx: Ctx<Session>, request: OwnRequest) -> Result<RawJson, ApiError> {
    let limit = number(&request, "limit")?.unwrap_or(DEFAULT_PAGE).clamp(1, MAX_PAGE);
    let (entries, next_after) = read(&ctx, &request, limit).await?;
    let entries: Vec<&str> = entries.iter().map(|entry| entry.json.as_str()).collect();
    let next = next_after.map(|after| format!(r#","next_after":{after}"#)).unwrap_or_default();
    Ok(RawJson(format!(r#"{{"entries":[{}]{next}}}"#, entries.join(",")).into()))
}

/// `GET …/log/export`, with the parameters of [`page`]: the entries as JSON Lines, in canonical JSON, so that the SHA-256 of a line is
/// the hash of its entry.
pub(super) async fn export(ctx: Ctx<Session>, request: OwnRequest) -> Result<PlainText, ApiError> {
    let limit = number(&request, "limit")?.unwrap_or(MAX_EXPORT).clamp(1, MAX_EXPORT);
    let (entries, _) = read(&ctx, &request, limit).await?;
    let text = entries.into_iter().fold(String::new(), |text, entry| text + &entry.json + "\n");
    Ok(PlainText { text, content_type: "application/x-ndjson" })
}

/// `GET …/log/head`: how far the log reaches, signed by the server.
pub(super) async fn head(ctx: Ctx<Session>, _request: OwnRequest) -> Result<RawJson, ApiError> {
    let user_id: &UserId = &ctx.requester.user_id;
    let head = ctx
        .app
        .store
        .read("keybox_log_head", |tx| async move { keybox_log::head(&tx, user_id).await })
        .await?;
    let integer = |value: u64| CanonicalJsonValue::from(UInt::new_saturating(value));
    let mut object = CanonicalJsonObject::from([
        ("user_id".to_owned(), CanonicalJsonValue::from(user_id.as_str())),
        ("seq".to_owned(), integer(head.seq)),
        ("hash".to_owned(), CanonicalJsonValue::from(head.hash)),
        ("ts".to_owned(), integer(head.ts)),
    ]);
    sign(&ctx.app, &mut object)?;
    Ok(RawJson(CanonicalJsonValue::Object(object).to_string().into()))
}

/// The entries that the request asks for, and after which number to go on if there may be more.
async fn read(
    ctx: &Ctx<Session>,
    request: &OwnRequest,
    limit: u32,
) -> Result<(Vec<StoredEntry>, Option<u64>), ApiError> {
    let filter = &Filter {
        after: number(request, "after")?.unwrap_or_default(),
        room_id: request.query_arg("room_id"),
        keybox_id: request.query_arg("keybox_id"),
        since: number(request, "since")?,
        until: number(request, "until")?,
    };
    let user_id: &UserId = &ctx.requester.user_id;
    let mut entries = ctx
        .app
        .store
        .read("keybox_log", |tx| async move { keybox_log::page(&tx, user_id, filter, limit + 1).await })
        .await?;
    let has_more = entries.len() > usize::try_from(limit).unwrap_or(usize::MAX);
    if has_more {
        entries.pop();
    }
    let next_after = entries.last().filter(|_| has_more).map(|entry| entry.seq);
    Ok((entries, next_after))
}

fn number<T: FromStr>(request: &OwnRequest, name: &str) -> Result<Option<T>, ApiError> {
    let parse = |text: String| {
        text.parse().map_err(|_| ApiError::invalid_param(format!("{name} must be a whole number")))
    };
    request.query_arg(name).map(parse).transpose()
}
