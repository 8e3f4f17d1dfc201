//! Who is there: what clients say and do, put together.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#presence>
//!
//! Everybody who shares a room with somebody is told when these come and go, which costs a server more than what people say: it is
//! off unless the configuration says otherwise. Each replica remembers what it wrote last for a user, so that the database hears of one
//! who stays once a minute.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use keystead_store::{
    Error,
    presence::{self, Presence},
    streams::UserChange,
};
use lru::LruCache;
use ruma::{MilliSecondsSinceUnixEpoch, OwnedUserId, UInt, UserId, presence::PresenceState};

use crate::{app::App, streams::Item};

/// How long one who was active counts as such, and how often the database hears of one who stays.
const REMEMBERED: Duration = Duration::from_secs(60);
/// How long after the last question for news one counts as there: the longest that a sync waits, and what the database was not told.
const GONE_AFTER: Duration = Duration::from_secs(360);
/// How many users are remembered, and how many are looked at together when they may have gone.
const CAPACITY: NonZeroUsize = NonZeroUsize::MIN.saturating_add(99_999);
const GONE_AT_ONCE: u32 = 500;

/// What this replica wrote last.
pub struct PresenceNotes(Mutex<LruCache<OwnedUserId, (PresenceState, MilliSecondsSinceUnixEpoch)>>);

impl Default for PresenceNotes {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(CAPACITY)))
    }
}

impl PresenceNotes {
    /// Whether it was just written that the user has this state; if not, it is from now on.
    fn is_known(&self, user_id: &UserId, state: &PresenceState, now: MilliSecondsSinceUnixEpoch) -> bool {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known =
            notes.get(user_id).is_some_and(|(noted, at)| noted == state && is_within(*at, REMEMBERED, now));
        if !is_known {
            notes.put(user_id.to_owned(), (state.clone(), now));
        }
        is_known
    }

    /// Takes in a row of the stream: what others wrote makes what this replica wrote void.
    pub fn hear(&self, item: &Item) {
        if let Item::UserChange(user_id, UserChange::Presence) = item {
            self.forget(user_id);
        }
    }

    fn forget(&self, user_id: &UserId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop(user_id);
    }
}

/// Notes what a sync says about its user, who asks for news and is there therefore, unless the client says otherwise.
///
/// > `set_presence`: Controls whether the client is automatically marked as online by polling this API. […] When set to "offline",
/// > the client is not marked as being online when it uses this API. When set to "unavailable", the client is marked as being idle.
///
/// # Errors
/// The database's own.
pub async fn note_sync(app: &App, user_id: &UserId, asked: &PresenceState) -> Result<(), Error> {
    let now = app.clock.now();
    if !app.settings.presence.enabled
        || !matches!(asked, PresenceState::Online | PresenceState::Unavailable)
        || app.presence.is_known(user_id, asked, now)
    {
        return Ok(());
    }
    let written = app
        .store
        .write("note_presence", |tx| async move {
            let stored = presence::find(&tx, user_id).await?;
            let next = after_sync(user_id, stored.as_ref(), asked, now);
            let is_news = stored.is_none_or(|stored| stored.state != next.state);
            if is_news { presence::change(&tx, &next).await } else { presence::touch(&tx, &next).await }
        })
        .await;
    if written.is_err() {
        app.presence.forget(user_id);
    }
    written
}

/// What a user is after a sync that asks to be marked as `asked`.
fn after_sync(
    user_id: &UserId,
    stored: Option<&Presence>,
    asked: &PresenceState,
    now: MilliSecondsSinceUnixEpoch,
) -> Presence {
    let is_active = *asked == PresenceState::Online;
    // Another device of the user may be the one that is in use: it says so again within a minute.
    let was_active = stored.is_some_and(|stored| {
        stored.state == PresenceState::Online && is_within(stored.last_active_ts, REMEMBERED * 2, now)
    });
    let last_active_ts = match stored {
        Some(stored) if !is_active => stored.last_active_ts,
        _ => now,
    };
    Presence {
        user_id: user_id.to_owned(),
        state: if is_active || was_active { PresenceState::Online } else { PresenceState::Unavailable },
        status_msg: stored.and_then(|stored| stored.status_msg.clone()),
        last_active_ts,
        seen_ts: now,
    }
}

/// Sets what a user says to be.
///
/// # Errors
/// The database's own.
pub async fn set(
    app: &App,
    user_id: &UserId,
    state: PresenceState,
    status_msg: Option<String>,
) -> Result<(), Error> {
    let now = app.clock.now();
    app.presence.forget(user_id);
    let said = &(state, status_msg);
    app.store
        .write("set_presence", |tx| async move {
            let (state, status_msg) = said.clone();
            let stored = presence::find(&tx, user_id).await?;
            let next = Presence {
                user_id: user_id.to_owned(),
                last_active_ts: match &stored {
                    Some(stored) if state != PresenceState::Online => stored.last_active_ts,
                    _ => now,
                },
                state,
                status_msg,
                seen_ts: now,
            };
            let is_same =
                |stored: &Presence| stored.state == next.state && stored.status_msg == next.status_msg;
            let is_news = !stored.as_ref().is_some_and(is_same);
            if is_news { presence::change(&tx, &next).await } else { presence::touch(&tx, &next).await }
        })
        .await
}

/// Marks those as offline of whom no client has asked for news for long. Any replica may do it.
///
/// # Errors
/// The database's own.
pub async fn mark_gone(app: &App) -> Result<(), Error> {
    if !app.settings.presence.enabled {
        return Ok(());
    }
    let before = before(app.clock.now(), GONE_AFTER);
    let gone = app
        .store
        .read("presence_gone", |tx| async move { presence::gone(&tx, before, GONE_AT_ONCE).await })
        .await?;
    for user_id in &gone {
        app.store
            .write("presence_offline", |tx| async move {
                match presence::find(&tx, user_id).await? {
                    // Another replica may have heard of the user meanwhile, or have done this.
                    Some(stored) if stored.seen_ts < before && stored.state != PresenceState::Offline => {
                        presence::change(&tx, &Presence { state: PresenceState::Offline, ..stored }).await
                    }
                    _ => Ok(()),
                }
            })
            .await?;
    }
    Ok(())
}

fn before(now: MilliSecondsSinceUnixEpoch, time: Duration) -> MilliSecondsSinceUnixEpoch {
    let time = UInt::try_from(time.as_millis()).unwrap_or(UInt::MAX);
    MilliSecondsSinceUnixEpoch(now.0.saturating_sub(time))
}

fn is_within(ts: MilliSecondsSinceUnixEpoch, time: Duration, now: MilliSecondsSinceUnixEpoch) -> bool {
    ts > before(now, time)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use PresenceState::{Offline, Online, Unavailable};
    use ruma::user_id;

    use super::*;
    use crate::{
        clock::SettableClock,
        config::{Settings, reader::Environment},
        entropy::SeededEntropy,
    };

    fn at(seconds: u32) -> MilliSecondsSinceUnixEpoch {
        MilliSecondsSinceUnixEpoch(UInt::from(seconds * 1_000))
    }

    #[test]
    fn a_device_in_use_outweighs_one_that_is_not() {
        let stored = |state, active| Presence {
            user_id: user_id!("@a:x").to_owned(),
            state,
            status_msg: Some("here".to_owned()),
            last_active_ts: at(active),
            seen_ts: at(active),
        };
        // What is stored, what the sync asks for at 1000 s, and what comes of it, active since when.
        let table = [
            (None, Online, Online, 1_000),
            (None, Unavailable, Unavailable, 1_000),
            (Some(stored(Offline, 10)), Online, Online, 1_000),
            (Some(stored(Offline, 10)), Unavailable, Unavailable, 10),
            (Some(stored(Online, 900)), Unavailable, Online, 900),
            (Some(stored(Online, 880)), Unavailable, Unavailable, 880),
            (Some(stored(Unavailable, 990)), Unavailable, Unavailable, 990),
            (Some(stored(Unavailable, 990)), Online, Online, 1_000),
        ];
        for (stored, asked, state, active) in table {
            let next = after_sync(user_id!("@a:x"), stored.as_ref(), &asked, at(1_000));
            assert_eq!((&next.state, next.last_active_ts), (&state, at(active)), "{stored:?} {asked}");
            assert_eq!(next.seen_ts, at(1_000));
            assert_eq!(next.status_msg, stored.and_then(|stored| stored.status_msg));
        }
    }

    #[tokio::test]
    async fn who_asks_no_more_is_offline_and_then_online_again() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("test.db").display());
        let environment: Environment = [
            ("KEYSTEAD_DATABASE_URL", &*url),
            ("KEYSTEAD_SERVER_NAME", "x"),
            ("KEYSTEAD_PRESENCE_ENABLED", "true"),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
        let clock = Arc::new(SettableClock::at(1_700_000_000_000));
        let entropy = Arc::new(SeededEntropy::new(1));
        let settings = Settings::from_environment(environment).unwrap();
        let app = App::start_with(settings, clock.clone(), entropy).await.unwrap();
        let alice = user_id!("@alice:x");
        let state = async || {
            let read = app.store.read("test", |tx| async move { presence::find(&tx, alice).await });
            read.await.unwrap().map(|presence| presence.state)
        };
        note_sync(&app, alice, &Online).await.unwrap();
        clock.advance(Duration::from_secs(359));
        mark_gone(&app).await.unwrap();
        assert_eq!(state().await, Some(Online));
        note_sync(&app, alice, &Online).await.unwrap();
        clock.advance(Duration::from_secs(359));
        mark_gone(&app).await.unwrap();
        assert_eq!(state().await, Some(Online), "the second question counts");
        clock.advance(Duration::from_secs(2));
        mark_gone(&app).await.unwrap();
        assert_eq!(state().await, Some(Offline));
        note_sync(&app, alice, &Unavailable).await.unwrap();
        assert_eq!(state().await, Some(Unavailable));
    }

    #[test]
    fn what_was_just_written_is_not_written_again() {
        let notes = PresenceNotes::default();
        let alice = user_id!("@a:x");
        assert!(!notes.is_known(alice, &Online, at(1_000)));
        assert!(notes.is_known(alice, &Online, at(1_059)));
        assert!(!notes.is_known(alice, &Unavailable, at(1_059)));
        assert!(!notes.is_known(alice, &Unavailable, at(1_119)));
        notes.forget(alice);
        assert!(!notes.is_known(alice, &Unavailable, at(1_119)));
    }
}
