//! Reading back what the server keeps of a room.

use std::time::{Duration, Instant};

use keystead_keybox::OpensslEntropy;

use super::{Client, ClientError, is_final};
use crate::api::ApiError;
use crate::clock::now_ms;
use crate::engine::{DecryptError, ExportedKey, Gap, Message, MissingMessages, Notice};
use crate::events::RoomEvent;

/// Events of one request.
const PAGE: usize = 100;
/// How many pages are read at most: a server that leads in a circle is not followed for ever.
const MOST_PAGES: usize = 1_000;
/// A gap in a sync is filled up to this many events; older ones are found with [`Client::history`].
const LONGEST_GAP: usize = 1_000;

/// One event of a room's history.
#[derive(Debug)]
pub struct HistoryItem {
    /// The event as the server has it.
    pub event: RoomEvent,
    /// What it says, or why that cannot be read.
    pub message: Result<Message, DecryptError>,
}

impl Client {
    /// The last `limit` messages of a room, oldest first. Missing resource keys are asked for, and waited for up to `wait`.
    pub async fn history(
        &mut self,
        room_id: &str,
        limit: usize,
        wait: Duration,
    ) -> Result<Vec<HistoryItem>, ClientError> {
        self.sync(Duration::ZERO).await?;
        let events = self.read_back(room_id, limit).await?;
        self.open_within(room_id, &events, wait).await
    }

    /// One message of a room. A missing resource key is asked for, and waited for up to `wait`.
    pub async fn message(
        &mut self,
        room_id: &str,
        event_id: &str,
        wait: Duration,
    ) -> Result<Message, ClientError> {
        self.sync(Duration::ZERO).await?;
        let event = self.api.event(room_id, event_id).await?;
        let item = self.open_within(room_id, &[event], wait).await?.pop();
        item.ok_or_else(|| ApiError::Malformed("no event".into()))?.message.map_err(ClientError::Decrypt)
    }

    /// Opens events; asks for missing resource keys and waits for them up to `wait`.
    async fn open_within(
        &mut self,
        room_id: &str,
        events: &[RoomEvent],
        wait: Duration,
    ) -> Result<Vec<HistoryItem>, ClientError> {
        let started = Instant::now();
        loop {
            let items = self.open_all(room_id, events).await?;
            let waiting =
                items.iter().any(|item| item.message.as_ref().is_err_and(DecryptError::is_temporary));
            let left = wait.saturating_sub(started.elapsed());
            if !waiting || left.is_zero() {
                return Ok(items);
            }
            self.sync(left).await?;
        }
    }

    async fn open_all(
        &mut self,
        room_id: &str,
        events: &[RoomEvent],
    ) -> Result<Vec<HistoryItem>, ClientError> {
        let _lock = self.begin().await?;
        let mut items = Vec::new();
        // A second time, when the key sets of senders who were unknown have come.
        for _ in 0..2 {
            items = events
                .iter()
                .map(|event| HistoryItem {
                    event: event.clone(),
                    message: self.engine.read_history(room_id, event, now_ms(), &mut OpensslEntropy),
                })
                .collect();
            self.flush().await?;
            let unknown = |item: &HistoryItem| matches!(item.message, Err(DecryptError::UnknownKeyBox(_)));
            if !items.iter().any(unknown) {
                break;
            }
        }
        Ok(items)
    }

    /// The last messages of a room, encrypted or not, oldest first.
    async fn read_back(&self, room_id: &str, limit: usize) -> Result<Vec<RoomEvent>, ClientError> {
        let is_message = |event: &RoomEvent| {
            event.state_key.is_none()
                && matches!(event.event_type.as_str(), "m.room.encrypted" | "m.room.message")
        };
        let mut events = Vec::new();
        let mut from = None;
        for _ in 0..MOST_PAGES {
            if events.len() >= limit {
                break;
            }
            let page = self.api.messages(room_id, from.as_deref(), PAGE).await?;
            events.extend(page.events().into_iter().filter(is_message));
            match page.end {
                Some(end) if !page.chunk.is_empty() => from = Some(end),
                _ => break,
            }
        }
        events.truncate(limit);
        events.reverse();
        Ok(events)
    }

    /// Reads the events that a sync left out, and takes them in.
    pub(super) async fn fill(&mut self, gap: &Gap) -> Result<(), ClientError> {
        let mut missing = Vec::new();
        let mut from = gap.from.clone();
        'pages: for _ in 0..MOST_PAGES {
            if missing.len() >= LONGEST_GAP {
                break;
            }
            let page = match self.api.messages(&gap.room_id, Some(&from), PAGE).await {
                Ok(page) => page,
                Err(ApiError::Server(error)) if is_final(&error) => {
                    // Such as 403 when we have left meanwhile: following the other rooms must not end over it.
                    self.notices.push(Notice::GapLeft {
                        room_id: gap.room_id.clone(),
                        errcode: error.errcode.clone(),
                    });
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            for event in page.events() {
                if Some(&event.event_id) == gap.until.as_ref() {
                    break 'pages;
                }
                missing.push(event);
            }
            match page.end {
                Some(end) if !page.chunk.is_empty() => from = end,
                _ => break,
            }
        }
        missing.reverse();
        let notices = self.engine.receive_gap(&gap.room_id, &missing, now_ms(), &mut OpensslEntropy)?;
        self.notices.extend(notices);
        Ok(())
    }

    /// The messages of a room that were sealed and have not come, as far as the counters of later ones tell: they were not asked for yet
    /// (see [`Self::history`]), never sent, or are held back.
    pub fn missing_messages(&self, room_id: &str) -> Vec<MissingMessages> {
        self.engine.missing_messages(room_id)
    }

    /// The open resource key, IV and ciphertext of a message, to be decrypted by hand with the `openssl` command line. `None` if
    /// the event is not a message of the profile, or its key is not here.
    pub async fn export_message(
        &mut self,
        room_id: &str,
        event_id: &str,
    ) -> Result<Option<ExportedKey>, ClientError> {
        let event = self.api.event(room_id, event_id).await?;
        let _lock = self.begin().await?;
        Ok(self.engine.export_key(room_id, &event))
    }
}
