//! Annotations, such as reactions: nobody says the same of an event twice.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#avoiding-duplicate-annotations>.

use std::sync::Arc;

use http::StatusCode;
use keystead_core::{event::Draft, relations::relation_in};
use keystead_store::{
    Error,
    rooms::{self, Annotation},
    transactions::ClientTransaction,
};
use ruma::{RoomId, api::error::ErrorCode};

use super::relations;
use crate::{
    api::guard,
    context::{Ctx, Session},
    http::error::ApiError,
    rooms::Alongside,
};

/// The annotation that a client sends; `None` if the event is something else.
pub(super) fn annotation_of(
    room_id: &RoomId,
    draft: &Draft,
    transaction: &ClientTransaction,
) -> Option<Annotation> {
    let relation = relation_in(&draft.content)?;
    Some(Annotation {
        room_id: room_id.to_owned(),
        parent: relation.parent,
        event_type: draft.event_type.to_string(),
        key: relation.key?,
        transaction: transaction.clone(),
    })
}

/// Refuses an annotation that was sent before, as far as it can be known without the lock of the room.
///
/// # Errors
/// 400 `M_DUPLICATE_ANNOTATION` if it was; 403 for those who are not in the room.
pub(super) async fn check(ctx: &Ctx<Session>, annotation: &Annotation) -> Result<(), ApiError> {
    guard::joined_room(&ctx.app, &ctx.requester.user_id, &annotation.room_id).await?;
    relations::note_older(ctx, &annotation.room_id).await?;
    let read =
        ctx.app.store.read_one("annotation", |tx| async move { rooms::is_annotated(&tx, annotation).await });
    if read.await? { Err(duplicate()) } else { Ok(()) }
}

/// Refuses in the transaction that appends an annotation, which no other can come between.
pub(super) fn once(annotation: Annotation) -> Alongside {
    let annotation = Arc::new(annotation);
    Arc::new(move |tx, _| {
        let annotation = Arc::clone(&annotation);
        Box::pin(async move {
            if rooms::is_annotated(&tx, &annotation).await? {
                return Err(Error::Conflict("event_relations".to_owned()));
            }
            Ok(())
        })
    })
}

/// 400 `M_DUPLICATE_ANNOTATION`.
pub(super) fn duplicate() -> ApiError {
    let text = "You have said the same of this event before";
    ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::DuplicateAnnotation, text)
}
