//! A KeyBox at work: the engine, its store, and a homeserver.
//!
//! Several processes may use the same store at the same time, such as one that listens and one that sends: each takes
//! the store's lock for the moment that it changes something, and reads again what another has written.

mod attachments;
mod audit;
mod closing;
mod contacts;
mod error;
mod history;
mod interchange;
mod passphrases;
mod policy;
mod recovery;
mod session;
mod suites;
mod visitors;

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use zeroize::Zeroizing;

use keystead_keybox::OpensslEntropy;
use keystead_keybox::encoding::base64_url;
use keystead_keybox::key_set::PrivateKeySet;
use keystead_keybox::suite::Suite;

use crate::api::{Api, ApiError, LoggedIn, NewRoom, Registration};
use crate::clock::now_ms;
use crate::engine::{Engine, KeyBoxAddress, KeyRef, KnownKeyBox, Message, Notice, Outgoing, Readiness, Room};
use crate::store::{Account, Keeper, Lock, Store};

pub use attachments::{FileError, Progress, SavedFile, SentFile, Transfer};
#[doc(hidden)]
pub use attachments::{look_at_picture, safe_file_name};
pub use audit::{AuditReport, Difference};
pub use closing::{Changed, CloseError};
pub use error::ClientError;
pub use history::HistoryItem;
use passphrases::NewPassphrase;
pub use passphrases::Passphrase;
pub use recovery::{RecoveryError, RecoveryStatus};
use session::Session;
pub use suites::{UpgradeError, Upgraded};

/// How long to wait for another process that is at the store.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);
const LOCK_INTERVAL: Duration = Duration::from_millis(50);

/// A KeyBox that is logged in.
#[derive(Debug)]
pub struct Client {
    api: Api,
    store: Store,
    keys: PrivateKeySet,
    engine: Engine,
    session: Session,
    notices: Vec<Notice>,
    /// Whether the homeserver may keep a passphrase that is the owner's business by now.
    is_unsettled: bool,
}

impl Client {
    /// Makes an account, its first KeyBox, and the KeyBox's store under `home`.
    pub async fn register(
        home: &Path,
        server: &str,
        registration: &Registration<'_>,
        passphrase: Passphrase<'_>,
    ) -> Result<Self, ClientError> {
        let api = Api::new(server)?;
        passphrases::check_wanted(&api, passphrase).await?;
        let logged_in = api.register(registration).await?;
        Self::set_up(home, api, logged_in, passphrase).await
    }

    /// Logs in, which makes a new KeyBox of the account, and its store under `home`.
    pub async fn login(
        home: &Path,
        server: &str,
        user: &str,
        password: &str,
        passphrase: Passphrase<'_>,
    ) -> Result<Self, ClientError> {
        let api = Api::new(server)?;
        passphrases::check_wanted(&api, passphrase).await?;
        let logged_in = api.login(user, password, "KeyBox").await?;
        Self::set_up(home, api, logged_in, passphrase).await
    }

    async fn set_up(
        home: &Path,
        api: Api,
        mut logged_in: LoggedIn,
        passphrase: Passphrase<'_>,
    ) -> Result<Self, ClientError> {
        let token = logged_in.take_token();
        let api = api.with_token(token.clone());
        let made = match passphrases::begin_with(&api, &logged_in.device_id, passphrase).await {
            Ok(passphrase) => Self::make(home, &api, &logged_in, token, &passphrase),
            Err(error) => Err(error),
        };
        let mut client = match made {
            Ok(client) => client,
            Err(error) => {
                // Without its store the KeyBox is of no use: the account should not keep it.
                api.logout().await.ok();
                return Err(error);
            }
        };
        let _lock = client.begin().await?;
        client.flush().await?;
        Ok(client)
    }

    fn make(
        home: &Path,
        api: &Api,
        logged_in: &LoggedIn,
        token: Zeroizing<String>,
        (passphrase, mode): &NewPassphrase,
    ) -> Result<Self, ClientError> {
        let entropy = &mut OpensslEntropy;
        let keys = PrivateKeySet::generate(&logged_in.user_id, &logged_in.device_id, entropy)?;
        let account = Account {
            server: api.address(),
            user_id: logged_in.user_id.clone(),
            keybox_id: logged_in.device_id.clone(),
        };
        let store = Store::create(home, account, &keys, (passphrase, *mode), entropy)?;
        let engine = Engine::new(keys.clone()).map_err(crate::engine::RecordError::Keys)?;
        let session = Session::new(token);
        let (api, notices) = (api.clone(), Vec::new());
        let mut client = Self { api, store, keys, engine, session, notices, is_unsettled: false };
        client.commit()?;
        Ok(client)
    }

    /// Opens the store of a KeyBox that is logged in with its passphrase. Sends nothing. In normal mode the homeserver has the passphrase:
    /// [`Self::unlock`].
    pub fn open(home: &Path, account: Account, passphrase: &str) -> Result<Self, ClientError> {
        let api = Api::new(&account.server)?;
        let (store, keys) = Store::open(home, account, passphrase)?;
        let session = Session::load(&store)?.ok_or(ClientError::NotLoggedIn)?;
        let engine = Engine::load(keys.clone(), &store.load()?)?;
        let api = api.with_token(session.access_token());
        let is_unsettled = store.keeper()? == Keeper::OwnerNow;
        Ok(Self { api, store, keys, engine, session, notices: Vec::new(), is_unsettled })
    }

    /// Whose KeyBox this is.
    pub fn account(&self) -> &Account {
        self.store.account()
    }

    /// The connection to the homeserver, for what this type has no function for.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// This KeyBox's fingerprint, as people compare it.
    pub fn fingerprint(&self) -> String {
        keystead_keybox::fingerprint::fingerprint(self.engine.public_keys())
    }

    /// What the KeyBox did or noticed since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Ends the session at the server and removes the store. Messages that only this KeyBox could open are lost to it.
    pub async fn logout(self) -> Result<(), ClientError> {
        match self.api.logout().await {
            // The server has ended the session already: what remains is to clean up here.
            Err(error) if error.errcode() == Some("M_UNKNOWN_TOKEN") => {}
            other => other?,
        }
        Ok(self.store.destroy()?)
    }

    /// The rooms that this KeyBox knows, as of the last sync.
    pub fn rooms(&self) -> impl Iterator<Item = &Room> {
        self.engine.rooms().values()
    }

    /// Makes a room that is encrypted with a suite. Returns its id.
    pub async fn create_room(
        &mut self,
        name: Option<&str>,
        suite: &Suite,
        invite: &[String],
    ) -> Result<String, ClientError> {
        Ok(self.api.create_room(&NewRoom { name, suite: suite.id, invite }).await?)
    }

    /// Takes in what has happened, waiting up to `wait` for something to happen, and does what follows from it: answers
    /// questions for keys, asks for missing ones.
    pub async fn sync(&mut self, wait: Duration) -> Result<(), ClientError> {
        let since = {
            let lock = self.begin().await?;
            self.destroy_kept(&lock).await?;
            // What is due now, such as a question for a key, must not wait until the server has news.
            self.flush().await?;
            self.session.sync_token.clone()
        };
        let deadline = self.engine.next_deadline();
        let until_due = deadline.map(|deadline| Duration::from_millis(deadline.saturating_sub(now_ms())));
        let wait = until_due.map_or(wait, |due| wait.min(due));
        let response = self.api.sync(since.as_deref(), wait).await?;
        let _lock = self.begin().await?;
        if self.session.sync_token != since {
            // Another process has taken in the same: it is in the store, and so here by now.
            return Ok(());
        }
        self.engine.begin_batch(since.as_deref().unwrap_or_default());
        let received = self.engine.receive_sync(&response, now_ms(), &mut OpensslEntropy)?;
        self.notices.extend(received.notices);
        for gap in &received.gaps {
            self.fill(gap).await?;
        }
        // The token is stored last: until then a crash makes the same come again, which changes nothing.
        self.flush().await?;
        if response.device_lists.changed.contains(&self.account().user_id) {
            self.look_for_visitors().await?;
        }
        self.session.advance(response.next_batch);
        self.commit()
    }

    /// The oldest messages that are not marked as read, of one room or of all.
    pub async fn unread(&mut self, room_id: Option<&str>, limit: usize) -> Result<Vec<Message>, ClientError> {
        let _lock = self.begin().await?;
        Ok(self.engine.unread(room_id, limit))
    }

    /// Marks messages as read. Do so after they were shown or worked on: what a crash comes before is unread again.
    pub async fn mark_read(&mut self, messages: &[Message]) -> Result<(), ClientError> {
        let _lock = self.begin().await?;
        self.engine.mark_read(messages);
        self.commit()
    }

    /// Sends a text to a room. Returns the event's id.
    pub async fn send_text(&mut self, room_id: &str, text: &str) -> Result<String, ClientError> {
        self.send(room_id, "m.room.message", json!({ "msgtype": "m.text", "body": text })).await
    }

    /// Encrypts an event for everybody in the room now, and sends it. Returns its id. Nothing is ever sent in the clear.
    pub async fn send(
        &mut self,
        room_id: &str,
        event_type: &str,
        content: Value,
    ) -> Result<String, ClientError> {
        // Who has left in the meantime must not get the message.
        self.sync(Duration::ZERO).await?;
        let _lock = self.begin().await?;
        let key = self.sending_key(room_id).await?;
        let envelope = self.engine.encrypt(&key, event_type, content, &mut OpensslEntropy)?;
        // Stores the counter and sends the keys before the message that they open.
        self.flush().await?;
        let content = serde_json::to_value(&envelope).map_err(|error| ApiError::Malformed(error.into()))?;
        let txn_id = base64_url(&envelope.hash(room_id, &self.account().user_id));
        Ok(self.api.send(room_id, "m.room.encrypted", &txn_id, content).await?)
    }

    /// Finds out whether a message to the room would be sent now.
    async fn check_sending(&mut self, room_id: &str) -> Result<(), ClientError> {
        self.sync(Duration::ZERO).await?;
        let _lock = self.begin().await?;
        self.sending_key(room_id).await?;
        self.flush().await
    }

    /// The resource key that the next message of a room goes under. Only under the lock.
    async fn sending_key(&mut self, room_id: &str) -> Result<KeyRef, ClientError> {
        loop {
            match self.engine.prepare(room_id, now_ms(), &mut OpensslEntropy, &mut self.notices)? {
                Readiness::Ready(key) => return Ok(key),
                Readiness::KeySetsNeeded => self.flush().await?,
            }
        }
    }

    /// The KeyBoxes of a user, as the server shows them now, with those that are gone.
    pub async fn keyboxes(&mut self, user_id: &str) -> Result<Vec<KnownKeyBox>, ClientError> {
        let _lock = self.begin().await?;
        self.engine.follow(user_id);
        self.flush().await?;
        Ok(self.engine.keyboxes(user_id).into_iter().cloned().collect())
    }

    /// Marks a KeyBox as verified, or not. `false` if it is not known.
    pub async fn set_verified(
        &mut self,
        keybox: &KeyBoxAddress,
        verified: bool,
    ) -> Result<bool, ClientError> {
        let _lock = self.begin().await?;
        let known = self.engine.set_verified(keybox, verified);
        self.flush().await?;
        Ok(known)
    }

    /// Waits for the store's lock, and reads what another process has changed meanwhile.
    async fn begin(&mut self) -> Result<Lock, ClientError> {
        let mut waited = Duration::ZERO;
        let lock = loop {
            if let Some(lock) = self.store.try_lock()? {
                break lock;
            }
            if waited >= LOCK_PATIENCE {
                return Err(ClientError::StoreBusy);
            }
            tokio::time::sleep(LOCK_INTERVAL).await;
            waited += LOCK_INTERVAL;
        };
        let stored = Session::load(&self.store)?.ok_or(ClientError::NotLoggedIn)?;
        if stored.generation != self.session.generation {
            self.engine = Engine::load(self.keys.clone(), &self.store.load()?)?;
            self.session = stored;
        }
        Ok(lock)
    }

    /// Stores what has changed. Only under the lock, or before anybody else knows the store.
    fn commit(&mut self) -> Result<(), ClientError> {
        let entropy = &mut OpensslEntropy;
        let records = self.engine.take_changes()?;
        if records.is_empty() && !self.session.changed {
            return Ok(());
        }
        self.store.save(&records, entropy)?;
        self.session.generation = self.session.generation.wrapping_add(1);
        self.session.changed = false;
        self.store.save(&[self.session.record()?], entropy)?;
        Ok(())
    }

    /// Carries out what the engine wants sent, until nothing is left.
    async fn flush(&mut self) -> Result<(), ClientError> {
        loop {
            let requests = self.engine.outgoing(now_ms(), &mut OpensslEntropy, &mut self.notices)?;
            self.commit()?;
            if requests.is_empty() {
                return Ok(());
            }
            for request in requests {
                self.carry_out(request).await?;
            }
        }
    }

    async fn carry_out(&mut self, request: Outgoing) -> Result<(), ClientError> {
        let entropy = &mut OpensslEntropy;
        match request {
            Outgoing::BackUpKeys { version, rooms, keys } => {
                match self.api.back_up_keys(&version, &rooms).await {
                    Ok(()) => self.engine.backed_up(&version, &keys),
                    Err(ApiError::Server(error)) if is_final(&error) => {
                        self.notices.push(self.engine.backup_refused(&error.errcode));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Outgoing::UploadKeys { device_keys } => {
                self.api.upload_keys(&device_keys).await?;
                self.engine.keys_uploaded();
            }
            Outgoing::QueryKeys { users } => {
                let query = self.api.query_keys(&users).await?;
                self.notices.extend(self.engine.receive_key_sets(&users, &query, now_ms(), entropy)?);
            }
            Outgoing::UploadIdentity { objects } => match self.api.upload_identity(&objects).await {
                Ok(()) => self.engine.identity_uploaded(),
                // The account has an identity already, and another one would take the password.
                Err(ApiError::Server(error)) if is_final(&error) || error.asks_for_authentication() => {
                    self.engine.identity_refused();
                }
                Err(error) => return Err(error.into()),
            },
            Outgoing::UploadSignatures { signatures } => {
                match self.api.upload_signatures(&signatures).await {
                    Ok(()) => {}
                    Err(ApiError::Server(error)) if is_final(&error) => {}
                    Err(error) => return Err(error.into()),
                }
                self.engine.signatures_uploaded();
            }
            Outgoing::SendToDevice { txn_id, event_type, messages } => {
                match self.api.send_to_device(&event_type, &txn_id, &messages).await {
                    Ok(()) => self.engine.to_device_sent(&txn_id),
                    Err(ApiError::Server(error)) if is_final(&error) => {
                        let notices = self.engine.to_device_refused(&txn_id, &error.errcode, entropy)?;
                        self.notices.extend(notices);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}

/// Whether the server has judged the request itself: it will say the same next time.
fn is_final(error: &crate::api::ServerError) -> bool {
    matches!(error.status, 400 | 403 | 404 | 413)
}
