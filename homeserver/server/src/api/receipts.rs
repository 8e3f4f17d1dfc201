//! Read receipts and read markers.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#receipts>,
//! <https://spec.matrix.org/v1.19/client-server-api/#read-and-unread-markers>.

use keystead_core::{relations::relation_of, room::RoomEvent, shard::Shard};
use keystead_store::{WriteTx, account_data, receipts, rooms, streams::AccountData, streams::Receipt};
use ruma::{
    EventId, OwnedEventId, OwnedRoomId,
    api::client::{
        read_marker::set_read_marker,
        receipt::create_receipt::{self, v3::ReceiptType},
    },
    events::receipt::ReceiptThread,
};
use serde::{Deserialize, Serialize};

use super::guard;
use crate::{
    context::{Ctx, Session},
    http::error::ApiError,
};

const FULLY_READ: &str = "m.fully_read";

/// What a client has read, all of it in one room.
struct Read {
    room_id: OwnedRoomId,
    /// Receipt type (`m.read`, `m.read.private`), thread (empty for none) and event.
    receipts: Vec<(ReceiptType, String, OwnedEventId)>,
    /// Where the marker of everything read goes.
    fully_read: Option<OwnedEventId>,
}

/// The content of `m.fully_read`.
#[derive(Deserialize, Serialize)]
struct FullyRead {
    event_id: OwnedEventId,
}

/// `POST /_matrix/client/v3/rooms/{roomId}/receipt/{receiptType}/{eventId}`.
pub(super) async fn create_receipt(
    ctx: Ctx<Session>,
    request: create_receipt::v3::Request,
) -> Result<create_receipt::v3::Response, ApiError> {
    let create_receipt::v3::Request { room_id, receipt_type, event_id, thread, .. } = request;
    let mut read = Read { room_id, receipts: Vec::new(), fully_read: None };
    match (receipt_type, thread) {
        (ReceiptType::FullyRead, ReceiptThread::Unthreaded) => read.fully_read = Some(event_id),
        (ReceiptType::FullyRead, _) => {
            return Err(ApiError::invalid_param("m.fully_read has no thread_id"));
        }
        (receipt_type @ (ReceiptType::Read | ReceiptType::ReadPrivate), thread) => {
            read.receipts.push((receipt_type, thread_name(&thread)?, event_id));
        }
        _ => return Err(ApiError::invalid_param("There are no receipts of this type")),
    }
    mark(&ctx, read).await?;
    Ok(create_receipt::v3::Response::new())
}

/// `POST /_matrix/client/v3/rooms/{roomId}/read_markers`.
pub(super) async fn set_read_marker(
    ctx: Ctx<Session>,
    request: set_read_marker::v3::Request,
) -> Result<set_read_marker::v3::Response, ApiError> {
    let set_read_marker::v3::Request { room_id, fully_read, read_receipt, private_read_receipt, .. } =
        request;
    let receipts = [(ReceiptType::Read, read_receipt), (ReceiptType::ReadPrivate, private_read_receipt)];
    let receipts = receipts
        .into_iter()
        .filter_map(|(receipt_type, event_id)| Some((receipt_type, String::new(), event_id?)))
        .collect();
    mark(&ctx, Read { room_id, receipts, fully_read }).await?;
    Ok(set_read_marker::v3::Response::new())
}

async fn mark(ctx: &Ctx<Session>, read: Read) -> Result<(), ApiError> {
    guard::joined_room(&ctx.app, &ctx.requester.user_id, &read.room_id).await?;
    let read = &read;
    ctx.app
        .store
        .write("mark_read", |tx| async move {
            tx.lock_shards(&shards(&tx, ctx, read)).await?;
            for (receipt_type, thread_id, event_id) in &read.receipts {
                let event = event(&tx, read, event_id).await?;
                check_thread(&tx, &event, thread_id).await?;
                let receipt = Receipt {
                    room_id: read.room_id.clone(),
                    user_id: ctx.requester.user_id.clone(),
                    receipt_type: receipt_type.to_string(),
                    thread_id: thread_id.clone(),
                    event_id: event_id.clone(),
                    ts: ctx.now,
                };
                receipts::advance(&tx, &receipt).await?;
            }
            match &read.fully_read {
                Some(event_id) => move_marker(&tx, ctx, read, event_id).await,
                None => Ok(()),
            }
        })
        .await
}

/// The shards that a transaction will append to.
fn shards(tx: &WriteTx, ctx: &Ctx<Session>, read: &Read) -> Vec<Shard> {
    let is_public =
        |(receipt_type, ..): &(ReceiptType, String, OwnedEventId)| *receipt_type == ReceiptType::Read;
    let room = read.receipts.iter().any(is_public).then(|| tx.shards().of_room(&read.room_id));
    let own = read.fully_read.is_some() || !read.receipts.iter().all(is_public);
    let user = own.then(|| tx.shards().of_user(&ctx.requester.user_id));
    room.into_iter().chain(user).collect()
}

/// An event that a client says to have read, with its position.
async fn event(tx: &WriteTx, read: &Read, event_id: &EventId) -> Result<RoomEvent, ApiError> {
    let event = rooms::event(tx, &read.room_id, event_id).await?;
    event.ok_or_else(|| ApiError::not_found("There is no such event in this room"))
}

/// Moves the marker forward; it never goes back.
async fn move_marker(
    tx: &WriteTx,
    ctx: &Ctx<Session>,
    read: &Read,
    event_id: &EventId,
) -> Result<(), ApiError> {
    let (user_id, room_id) = (&ctx.requester.user_id, &read.room_id);
    let event = event(tx, read, event_id).await?;
    let marker = account_data::find(tx, user_id, Some(room_id), FULLY_READ).await?;
    if let Some(marker) = marker.and_then(|content| serde_json::from_str::<FullyRead>(&content).ok())
        && let Some(before) = rooms::event(tx, room_id, &marker.event_id).await?
        && before.position >= event.position
    {
        return Ok(());
    }
    let content = FullyRead { event_id: event_id.to_owned() };
    let data = AccountData {
        user_id: user_id.clone(),
        room_id: Some(room_id.clone()),
        data_type: FULLY_READ.to_owned(),
        content: serde_json::to_string(&content).map_err(ApiError::internal)?,
    };
    Ok(account_data::put(tx, &data).await?)
}

/// The thread as it is stored: `main`, the id of the thread's root, or empty for a receipt without a thread.
fn thread_name(thread: &ReceiptThread) -> Result<String, ApiError> {
    match thread {
        ReceiptThread::Unthreaded => Ok(String::new()),
        ReceiptThread::Main => Ok(receipts::MAIN.to_owned()),
        ReceiptThread::Thread(root) => Ok(root.to_string()),
        _ => Err(ApiError::invalid_param("thread_id is neither main nor the id of an event")),
    }
}

/// Refuses a receipt in a thread that its event is no part of. A thread's root, and what relates to it otherwise than by the thread, stand
/// in the main timeline; clients show them with the thread, so a receipt there is taken as well.
async fn check_thread(tx: &WriteTx, event: &RoomEvent, thread_id: &str) -> Result<(), ApiError> {
    let event_id = &event.pdu.event_id;
    let is_shown_there = || {
        *event_id == thread_id || relation_of(&event.pdu).is_some_and(|relation| relation.parent == thread_id)
    };
    if thread_id.is_empty() || is_shown_there() {
        return Ok(());
    }
    let threads = rooms::threads_of(tx, [event]).await?;
    let thread = threads.get(event_id).map_or(receipts::MAIN, |root| root.as_str());
    if thread == thread_id { Ok(()) } else { Err(ApiError::invalid_param("The event is not in this thread")) }
}
