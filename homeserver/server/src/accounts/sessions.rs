//! Sessions: which user and device an access token stands for.
//!
//! Tokens are random, shown once, and kept as SHA-256 hashes. A cache spares the database; it hears of every ended session by the
//! user's stream, and a fenced request comes after whatever was committed before it, so an ended session is refused at
//! once on every replica. What does not pass the fence is written on the condition that no session has ended ([`good_up_to`]).

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use keystead_store::{
    Error,
    devices::{self, Device},
    keys,
    sessions::{self, NewSession, NewTokens, StoredSession},
    streams::UserChange,
};
use openssl::sha::sha256;
use ruma::{DeviceId, MilliSecondsSinceUnixEpoch, OwnedDeviceId, OwnedUserId, UInt, UserId};

use crate::{
    accounts::new_sessions::Beginning,
    app::App,
    context::Session,
    http::error::ApiError,
    keyboxes::{self, Actor},
    streams::Item,
    telemetry::request,
};

/// How long an access token is valid that can be refreshed.
const REFRESHABLE_FOR: Duration = Duration::from_secs(60 * 60);
/// How old the note of when a device was last seen may become.
const SEEN_PRECISION: Duration = Duration::from_secs(5 * 60);
/// How many sessions are remembered; at this point all are forgotten and read anew.
const MAX_CACHED: usize = 200_000;
/// The longest device id that is taken, in bytes.
const MAX_DEVICE_ID: usize = 255;
/// The longest name of a device that is taken, in characters.
const MAX_DISPLAY_NAME: usize = 100;
const DEVICE_ID_LENGTH: usize = 10;

/// Sessions that were used lately, by the hash of their access token.
#[derive(Debug, Default)]
pub struct SessionCache(Mutex<Cached>);

#[derive(Debug, Default)]
struct Cached {
    sessions: HashMap<String, StoredSession>,
    by_user: HashMap<OwnedUserId, Vec<String>>,
    /// Counts what was forgotten, so that nothing older than that is remembered.
    epoch: u64,
}

impl SessionCache {
    /// Forgets a user's sessions when the user's stream says that they changed.
    pub fn hear(&self, item: &Item) {
        if let Item::UserChange(user_id, UserChange::Sessions) = item {
            let mut cached = self.lock();
            cached.epoch += 1;
            for hash in cached.by_user.remove(user_id).unwrap_or_default() {
                cached.sessions.remove(&hash);
            }
        }
    }

    fn find(&self, hash: &str) -> Result<StoredSession, u64> {
        let cached = self.lock();
        cached.sessions.get(hash).cloned().ok_or(cached.epoch)
    }

    /// Remembers what the database said, unless something was forgotten since `epoch`.
    fn remember(&self, epoch: u64, hash: String, session: &StoredSession) {
        let mut cached = self.lock();
        if cached.epoch != epoch {
            return;
        }
        if cached.sessions.len() >= MAX_CACHED {
            cached.sessions.clear();
            cached.by_user.clear();
        }
        if cached.sessions.insert(hash.clone(), session.clone()).is_none() {
            cached.by_user.entry(session.user_id.clone()).or_default().push(hash);
        }
    }

    /// Notes that a device was seen just now; returns false if another request did so.
    fn note_seen(&self, hash: &str, now: MilliSecondsSinceUnixEpoch) -> bool {
        let mut cached = self.lock();
        match cached.sessions.get_mut(hash) {
            Some(session) if is_seen_lately(session, now) => false,
            Some(session) => {
                session.last_seen_ts = now;
                true
            }
            None => true,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Cached> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The session that an access token belongs to.
///
/// # Errors
///
/// 401 `M_UNKNOWN_TOKEN`; with `soft_logout` if the token can be refreshed, or a restore may have lost it.
pub async fn of_access_token(app: &Arc<App>, token: &str, address: IpAddr) -> Result<Session, ApiError> {
    let hash = hash(token);
    let now = app.clock.now();
    let session = find(app, &hash).await?;
    if session.expires_ts.is_some_and(|expiry| expiry <= now) {
        return Err(ApiError::unknown_token(true));
    }
    request::set_requester(&session.user_id);
    if !is_seen_lately(&session, now) && app.sessions.note_seen(&hash, now) {
        note_seen(Arc::clone(app), &session, now, address);
    }
    let StoredSession { user_id, device_id, is_admin, .. } = session;
    Ok(Session { user_id, device_id, is_admin, token_hash: hash })
}

/// Whether a session that was good when its request came still is. Asks the database only if one of the user's sessions
/// has ended meanwhile.
///
/// # Errors
///
/// 401 `M_UNKNOWN_TOKEN` if it is not.
pub async fn check_again(app: &App, session: &Session) -> Result<(), ApiError> {
    find(app, &session.token_hash).await.map(drop)
}

/// Up to which position of its user's own shard a session is known to be good that was so when its request came, though the request
/// has not waited until this replica has seen everything.
///
/// # Errors
///
/// 401 `M_UNKNOWN_TOKEN` if it has ended.
pub async fn good_up_to(app: &App, session: &Session) -> Result<i64, ApiError> {
    // Read first: the sessions in memory are as of then, or newer.
    let position = app.tail.position(app.tail.shards().of_user(&session.user_id));
    check_again(app, session).await?;
    Ok(position)
}

/// Does late for a request what others wait for before they begin: this replica sees everything that was committed, and the session
/// is good as of then.
///
/// # Errors
///
/// 401 `M_UNKNOWN_TOKEN` if it has ended; 503 when the database cannot be reached.
pub async fn fence(app: &App, session: &Session) -> Result<(), ApiError> {
    app.fence().await?;
    check_again(app, session).await
}

/// A session from memory or the database.
async fn find(app: &App, hash: &str) -> Result<StoredSession, ApiError> {
    match app.sessions.find(hash) {
        Ok(session) => Ok(session),
        Err(epoch) => {
            let session = load(app, hash).await?;
            app.sessions.remember(epoch, hash.to_owned(), &session);
            Ok(session)
        }
    }
}

async fn load(app: &App, hash: &str) -> Result<StoredSession, ApiError> {
    let found = app.lookups.sessions.find(hash.to_owned()).await?;
    let lost = || ApiError::unknown_token(app.restores.may_have_lost_sessions(app.clock.now()));
    let mut session = found.ok_or_else(lost)?;
    if session.unconfirmed {
        let user_id = &*session.user_id;
        app.store
            .write("session_confirm", |tx| async move {
                tx.lock_shards(&[tx.shards().of_user(user_id)]).await?;
                sessions::confirm(&tx, user_id, hash).await
            })
            .await?;
        session.unconfirmed = false;
    }
    Ok(session)
}

fn is_seen_lately(session: &StoredSession, now: MilliSecondsSinceUnixEpoch) -> bool {
    let age = u64::from(now.get()).saturating_sub(session.last_seen_ts.get().into());
    Duration::from_millis(age) < SEEN_PRECISION
}

/// Writes down when a device was seen, beside the request.
fn note_seen(app: Arc<App>, session: &StoredSession, now: MilliSecondsSinceUnixEpoch, address: IpAddr) {
    let (user_id, device_id) = (session.user_id.clone(), session.device_id.clone());
    let tasks = app.shutdown.tasks().clone();
    tasks.spawn(async move {
        let (user_id, device_id, address) = (&*user_id, &*device_id, &*address.to_string());
        let noted: Result<(), Error> = app
            .store
            .write("device_seen", |tx| async move {
                devices::note_seen(&tx, user_id, device_id, now, address).await
            })
            .await;
        if let Err(error) = noted {
            tracing::warn!(error = &error as &dyn std::error::Error, "could not note when a device was seen");
        }
    });
}

/// What a login asks for.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// The device to log in on; a new one if there is none of this id, or none is named.
    pub device_id: Option<OwnedDeviceId>,
    /// What to call a new device.
    pub display_name: Option<String>,
    /// Whether the client can refresh its access token.
    pub refresh_token: bool,
}

impl Wish {
    /// Checks what the client sent.
    ///
    /// # Errors
    ///
    /// 400 `M_INVALID_PARAM` for a device id that is empty or longer than 255 bytes, or a name of more than 100 characters.
    pub fn check(&self) -> Result<(), ApiError> {
        if let Some(device_id) = &self.device_id {
            let id = device_id.as_str();
            if id.is_empty() || id.len() > MAX_DEVICE_ID || id.contains(char::is_control) {
                return Err(ApiError::invalid_param(
                    "A device id must have 1 to 255 bytes and no control characters",
                ));
            }
        }
        self.display_name.as_deref().map_or(Ok(()), check_display_name)
    }
}

/// Checks the name that a user gives a device.
///
/// # Errors
///
/// 400 `M_INVALID_PARAM` for more than 100 characters or control characters.
pub fn check_display_name(name: &str) -> Result<(), ApiError> {
    if name.chars().count() > MAX_DISPLAY_NAME || name.contains(char::is_control) {
        let text = "The name of a device must have at most 100 characters and no control characters";
        return Err(ApiError::invalid_param(text));
    }
    Ok(())
}

/// A session that has begun or was renewed: the only time that its tokens are shown.
#[derive(Clone)]
pub struct Granted {
    /// The access token.
    pub access_token: String,
    /// The refresh token, if the client asked for one.
    pub refresh_token: Option<String>,
    /// How long the access token is valid; none for as long as the session lasts.
    pub expires_in: Option<Duration>,
}

impl Granted {
    fn new(app: &App, refreshable: bool) -> Self {
        Self {
            access_token: format!("kst_{}", app.entropy.token()),
            refresh_token: refreshable.then(|| format!("ksr_{}", app.entropy.token())),
            expires_in: refreshable.then_some(REFRESHABLE_FOR),
        }
    }

    /// What is stored of it.
    fn tokens(&self, now: MilliSecondsSinceUnixEpoch) -> NewTokens {
        NewTokens {
            access_hash: hash(&self.access_token),
            expires_ts: self.expires_ts(now),
            refresh_hash: self.refresh_token.as_deref().map(hash),
        }
    }

    fn expires_ts(&self, now: MilliSecondsSinceUnixEpoch) -> Option<MilliSecondsSinceUnixEpoch> {
        let lifetime = u64::try_from(self.expires_in?.as_millis()).ok()?;
        Some(MilliSecondsSinceUnixEpoch(UInt::new_saturating(u64::from(now.get()) + lifetime)))
    }
}

/// Begins a session on a device, ending the one that the device has.
///
/// # Errors
///
/// 400 for a wish that cannot be met; when the database cannot be reached.
pub async fn begin(
    app: &App,
    user_id: &UserId,
    wish: Wish,
    now: MilliSecondsSinceUnixEpoch,
    address: IpAddr,
) -> Result<(OwnedDeviceId, Granted), ApiError> {
    wish.check()?;
    let granted = Granted::new(app, wish.refresh_token);
    // No session is on a device whose id was just thought of.
    let may_have_session = wish.device_id.is_some();
    let device_id = wish.device_id.unwrap_or_else(|| app.entropy.readable(DEVICE_ID_LENGTH).into());
    let device = Device {
        device_id: device_id.clone(),
        display_name: wish.display_name,
        last_seen_ts: now,
        last_seen_ip: address.to_string(),
    };
    let session = NewSession { user_id: user_id.to_owned(), device, tokens: granted.tokens(now) };
    app.new_sessions.submit(Beginning { session, may_have_session }).await?;
    Ok((device_id, granted))
}

/// Renews a session.
///
/// # Errors
///
/// 401 `M_UNKNOWN_TOKEN` if the refresh token is not known, or has been used and its successor too.
pub async fn refresh(
    app: &App,
    refresh_token: &str,
    now: MilliSecondsSinceUnixEpoch,
) -> Result<Granted, ApiError> {
    let old_hash = &hash(refresh_token);
    let granted = Granted::new(app, true);
    let tokens = &granted.tokens(now);
    let renewed = app
        .store
        .write("session_refresh", |tx| async move {
            let Some(user_id) = sessions::user_of_refresh_token(&tx, old_hash).await? else {
                return Ok::<_, Error>(false);
            };
            tx.lock_shards(&[tx.shards().of_user(&user_id)]).await?;
            sessions::refresh(&tx, &user_id, old_hash, tokens).await
        })
        .await?;
    if renewed {
        return Ok(granted);
    }
    Err(ApiError::unknown_token(app.restores.may_have_lost_sessions(now)).saying("Unknown refresh token"))
}

/// Ends the sessions of a user that `ends` says, with their devices.
///
/// # Errors
///
/// When the database cannot be reached.
pub async fn end(
    app: &App,
    user_id: &UserId,
    actor: Actor<'_>,
    ends: impl Fn(&DeviceId) -> bool + Send + Sync,
) -> Result<(), ApiError> {
    let ends = &ends;
    app.store
        .write("sessions_end", |tx| async move {
            tx.lock_shards(&keys::device_list_shards(&tx, user_id).await?).await?;
            let devices = devices::of_user(&tx, user_id).await?;
            let ended: Vec<_> = devices
                .into_iter()
                .map(|device| device.device_id)
                .filter(|device_id| ends(device_id))
                .collect();
            if ended.is_empty() {
                return Ok::<_, Error>(());
            }
            keyboxes::delete_devices(&tx, user_id, &ended, actor).await
        })
        .await?;
    Ok(())
}

fn hash(token: &str) -> String {
    STANDARD_NO_PAD.encode(sha256(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use ruma::{device_id, owned_user_id, user_id};

    use super::*;

    fn session() -> StoredSession {
        StoredSession {
            user_id: owned_user_id!("@a:x"),
            device_id: device_id!("D").to_owned(),
            is_admin: false,
            expires_ts: None,
            last_seen_ts: MilliSecondsSinceUnixEpoch(UInt::MIN),
            unconfirmed: false,
        }
    }

    fn ended(user_id: &UserId) -> Item {
        Item::UserChange(user_id.to_owned(), UserChange::Sessions)
    }

    #[test]
    fn what_ended_is_forgotten_and_nothing_older_is_remembered() {
        let cache = SessionCache::default();
        let epoch = cache.find("h").unwrap_err();
        cache.remember(epoch, "h".to_owned(), &session());
        assert_eq!(cache.find("h").unwrap(), session());
        cache.hear(&ended(user_id!("@b:x")));
        assert!(cache.find("h").is_ok());
        cache.hear(&ended(user_id!("@a:x")));
        assert!(cache.find("h").is_err());
        // Read from the database before the session ended.
        cache.remember(epoch, "h".to_owned(), &session());
        assert!(cache.find("h").is_err());
    }

    #[test]
    fn odd_devices_are_refused() {
        let with_id = |id: &str| Wish { device_id: Some(id.into()), ..Wish::default() }.check().is_ok();
        assert!(with_id("PHONE") && !with_id("") && !with_id("a\0") && !with_id(&"x".repeat(256)));
        assert!(check_display_name(&"x".repeat(101)).is_err());
    }
}
