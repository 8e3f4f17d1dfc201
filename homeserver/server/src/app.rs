//! [`App`]: what all endpoints share.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use keystead_core::room::Signer;
use keystead_store::{Options, Store};
use tokio::sync::Semaphore;

use crate::{
    accounts::{
        new_sessions::NewSessions,
        passwords::{PasswordError, Passwords},
        sessions::SessionCache,
    },
    api::{FilterCache, InboxCounts, KeyClaims, KeyUploads, PublishedKeys, ToDeviceMessages},
    clock::{Clock, SystemClock},
    config::Settings,
    entropy::{Entropy, SystemEntropy},
    group_commit::GroupCommit,
    http::error::ApiError,
    lifecycle::Shutdown,
    lookups::Lookups,
    media::{Media, objects::ObjectsError},
    presence::PresenceNotes,
    push::{Progress, Pushes},
    rate_limits::RateLimits,
    restores::Restores,
    rooms::{Parents, Writer},
    signing_keys::{self, OldKey},
    streams::{Fence, Listener, Tail},
    sync::{Acknowledgements, DeviceCaches, ReaderCaches},
    telemetry::{
        metrics::{Metrics, Queue},
        request,
        traces::{Traces, TracesError},
    },
    url_preview::UrlPreviews,
};

/// How long a request waits for this replica to see what was written before.
const FENCE_PATIENCE: Duration = Duration::from_secs(10);

/// How many requests that read a great many rows a replica runs at a time.
const LONG_READS: usize = 2;

/// What all endpoints share, made once when the server starts.
pub struct App {
    /// The configuration that the server runs with.
    pub settings: Settings,
    /// Tells the time of day.
    pub clock: Arc<dyn Clock>,
    /// Gives random bytes.
    pub entropy: Arc<dyn Entropy>,
    /// Counts what happens.
    pub metrics: Metrics,
    /// Tells long-polls and background tasks that the server is about to stop.
    pub shutdown: Shutdown,
    /// Hashes passwords.
    pub passwords: Passwords,
    /// Slows down clients that ask too often.
    pub rate_limits: RateLimits,
    /// Sessions that were used lately.
    pub sessions: Arc<SessionCache>,
    /// Looks up what this replica has not in memory of a client.
    pub lookups: Lookups,
    /// The database.
    pub store: Store,
    /// Signs in the server's name.
    pub signer: Arc<Signer>,
    /// The keys that signed in the server's name before, by their ids.
    pub old_signing_keys: BTreeMap<String, OldKey>,
    /// What restores of the database from a backup have lost.
    pub restores: Restores,
    /// The files that users upload.
    pub media: Media,
    /// What this replica has read of the streams, and the caches that it keeps right.
    pub tail: Arc<Tail>,
    /// Which events may have children.
    pub parents: Arc<Parents>,
    /// Appends events to rooms.
    pub writer: Writer,
    /// Stores the keys of devices.
    pub key_uploads: GroupCommit<KeyUploads>,
    /// What is known of the keys that users have published.
    pub published_keys: Arc<PublishedKeys>,
    /// Hands out one-time keys.
    pub key_claims: GroupCommit<KeyClaims>,
    /// Begins sessions.
    pub new_sessions: GroupCommit<NewSessions>,
    /// What pushers were told, and what comes next for each.
    pub push_progress: GroupCommit<Progress>,
    /// Stores messages to devices.
    pub to_device: GroupCommit<ToDeviceMessages>,
    /// Deletes the messages to devices that were received.
    pub acknowledgements: GroupCommit<Acknowledgements>,
    /// What is known of devices for syncs.
    pub devices: Arc<DeviceCaches>,
    /// What is known of readers for syncs: whom they ignore, their push rules and unread events.
    pub readers: Arc<ReaderCaches>,
    /// What this replica wrote last about who is there.
    pub presence: Arc<PresenceNotes>,
    /// The filters that were used lately.
    pub filters: FilterCache,
    /// Tells a collector what requests did.
    pub traces: Traces,
    /// Turns of requests that read a great many rows: the connections to the database are there for all the others, too.
    pub(crate) long_reads: Semaphore,
    /// Looks at pages on the web.
    pub(crate) url_previews: UrlPreviews,
    /// Tells push gateways of events.
    pub pushes: Arc<Pushes>,
    fence: Fence,
}

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The folder of the media cannot be used.
    #[error("the folder of the media cannot be used (setting media.folder)")]
    Media(#[from] ObjectsError),
    /// Two metrics have the same name, or one has a malformed name.
    #[error("the metrics could not be registered")]
    Metrics(#[source] prometheus::Error),
    /// bcrypt cannot be used as configured.
    #[error("passwords cannot be hashed")]
    Passwords(#[from] PasswordError),
    /// Push gateways cannot be told of anything.
    #[error("push gateways cannot be told of events")]
    Pushes(#[source] openssl::error::ErrorStack),
    /// The database cannot be opened or brought up to date.
    #[error("the database could not be opened")]
    Store(#[from] keystead_store::Error),
    /// The signing key in the database cannot be read.
    #[error("the signing key in the database cannot be read: {0}")]
    SigningKey(String),
    /// Traces cannot be sent.
    #[error("traces cannot be set up (setting traces.otlp_endpoint)")]
    Traces(#[from] TracesError),
    /// Pages on the web cannot be looked at.
    #[error("previews of pages cannot be set up (setting url_preview.enabled)")]
    UrlPreviews(#[from] openssl::error::ErrorStack),
    /// The database belongs to a server of another name.
    #[error("the database belongs to the server {0}; a server's name can never change (setting server.name)")]
    ServerName(String),
}

impl App {
    /// Makes everything that the endpoints need.
    ///
    /// # Errors
    ///
    /// [`StartError`] says which part could not be made.
    pub async fn start(settings: Settings) -> Result<Arc<Self>, StartError> {
        Self::start_with(settings, Arc::new(SystemClock), Arc::new(SystemEntropy)).await
    }

    /// Like [`App::start`], with a clock and a source of randomness of the caller's choice.
    ///
    /// # Errors
    ///
    /// As [`App::start`].
    pub async fn start_with(
        settings: Settings,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Arc<Self>, StartError> {
        let metrics = Metrics::new().map_err(StartError::Metrics)?;
        let options = store_options(&settings, &metrics);
        Store::wait(&options, settings.database.wait).await?;
        // Replicas that start at once take turns; steps of a newer version leave older replicas able to serve.
        Store::migrate(&options).await?;
        let store = Store::open(options).await?;
        let keys = signing_keys::load(&store, &settings).await?;
        let signer = Arc::new(keys.signer);
        let (devices, readers) = (Arc::<DeviceCaches>::default(), Arc::<ReaderCaches>::default());
        let sessions = Arc::new(SessionCache::default());
        let published_keys = Arc::<PublishedKeys>::default();
        let parents = Arc::new(Parents::new(store.shards()));
        let mut listeners = listeners(&devices, &published_keys, &readers, &sessions);
        let hearing = Arc::clone(&parents);
        listeners.push(Box::new(move |entry| hearing.hear(&entry.item, entry.position)));
        let inboxes = Arc::<InboxCounts>::default();
        let hearing = Arc::clone(&inboxes);
        listeners.push(Box::new(move |entry| hearing.hear(&entry.item)));
        let presence = Arc::<PresenceNotes>::default();
        let hearing = Arc::clone(&presence);
        listeners.push(Box::new(move |entry| hearing.hear(&entry.item)));
        let pushes = Arc::new(Pushes::new(&settings.push, &*entropy).map_err(StartError::Pushes)?);
        let hearing = Arc::clone(&pushes);
        listeners.push(Box::new(move |entry| hearing.hear(&entry.item)));
        let tail = Tail::start(store.clone(), listeners).await?;
        parents.hears_all_after(|shard| tail.position(shard));
        let batches = metrics.clone();
        let observe = Box::new(move |writes, events| batches.events_committed(writes, events));
        let message_writers = settings.database.message_writers;
        let writer = Writer::start(Arc::clone(&tail), Arc::clone(&signer), observe, message_writers);
        let media = Media::open(&settings.media).await?;
        let fence = Fence::new(Arc::clone(&tail));
        metrics.started(store.is_shared());
        let push_progress = Progress::new(store.clone(), Arc::clone(pushes.holder()));
        let sizes = |queue| metrics.batches(queue);
        Ok(Arc::new(Self {
            passwords: Passwords::new(settings.auth.bcrypt_cost, metrics.bcrypt_queue().clone(), &*entropy)?,
            rate_limits: RateLimits::new(settings.limits.rate_limits),
            sessions,
            shutdown: Shutdown::default(),
            traces: Traces::start(&settings.traces)?,
            presence,
            pushes,
            long_reads: Semaphore::new(LONG_READS),
            url_previews: UrlPreviews::new(&settings.url_preview)?,
            settings,
            clock,
            entropy,
            signer,
            old_signing_keys: keys.old,
            restores: Restores::load(&store).await?,
            media,
            acknowledgements: GroupCommit::start(
                Acknowledgements::new(store.clone(), metrics.clone()),
                sizes(Queue::Acknowledgements),
            ),
            key_uploads: GroupCommit::start(KeyUploads::new(store.clone()), sizes(Queue::KeyUploads)),
            key_claims: GroupCommit::start(KeyClaims::new(store.clone()), sizes(Queue::KeyClaims)),
            new_sessions: GroupCommit::start(NewSessions::new(store.clone()), sizes(Queue::NewSessions)),
            push_progress: GroupCommit::start(push_progress, sizes(Queue::Pushes)),
            to_device: GroupCommit::start(
                ToDeviceMessages::new(Arc::clone(&tail), inboxes),
                sizes(Queue::ToDevice),
            ),
            metrics,
            published_keys,
            lookups: Lookups::start(&store),
            store,
            tail,
            parents,
            writer,
            devices,
            readers,
            filters: FilterCache::default(),
            fence,
        }))
    }

    /// Waits until this replica has seen everything that was committed before the call, so that what a client
    /// wrote through one replica it reads through any other.
    ///
    /// # Errors
    ///
    /// 503 when the database cannot be reached, or this replica cannot catch up within [`FENCE_PATIENCE`].
    pub async fn fence(&self) -> Result<(), ApiError> {
        let asked = Instant::now();
        let passed = tokio::time::timeout(FENCE_PATIENCE, self.fence.pass()).await;
        self.metrics.fence(asked.elapsed());
        passed.map_err(ApiError::unavailable)?.map_err(ApiError::unavailable)
    }

    /// Brings those metrics up to date that say how things stand now.
    pub fn refresh_metrics(&self) {
        self.metrics.tail(self.tail.lag(), self.tail.staleness(), self.store.has_wake_bus());
        self.metrics.pools(&self.store.pools());
        for (queue, waiting) in [
            (Queue::Acknowledgements, self.acknowledgements.waiting()),
            (Queue::Events, self.writer.waiting()),
            (Queue::KeyClaims, self.key_claims.waiting()),
            (Queue::KeyUploads, self.key_uploads.waiting()),
            (Queue::NewSessions, self.new_sessions.waiting()),
            (Queue::Pushes, self.push_progress.waiting()),
            (Queue::ToDevice, self.to_device.waiting()),
        ] {
            self.metrics.queued(queue, waiting);
        }
    }
}

/// What hears of every new row of the streams.
fn listeners(
    devices: &Arc<DeviceCaches>,
    published_keys: &Arc<PublishedKeys>,
    readers: &Arc<ReaderCaches>,
    sessions: &Arc<SessionCache>,
) -> Vec<Listener> {
    let (devices, published_keys) = (Arc::clone(devices), Arc::clone(published_keys));
    let (readers, sessions) = (Arc::clone(readers), Arc::clone(sessions));
    vec![Box::new(move |entry| {
        sessions.hear(&entry.item);
        devices.hear(&entry.item, entry.position);
        published_keys.hear(&entry.item);
        readers.hear(&entry.item);
    })]
}

/// How the server opens its database: also for `keystead migrate` and the administrator's commands.
#[must_use]
pub fn store_options(settings: &Settings, metrics: &Metrics) -> Options {
    let metrics = metrics.clone();
    Options {
        url: settings.database.url.expose().to_owned(),
        max_connections: settings.database.max_connections,
        room_shards: settings.database.room_shards,
        observer: Arc::new(move |report| {
            metrics.transaction(report);
            request::note(report.name, report.duration);
        }),
    }
}
