//! All metrics of the server, in one place.
//!
//! Labels come from closed sets only (routes, errcodes, transaction names), never from what a client sends, so that a
//! replica keeps below 2,000 series. What `monitoring/` makes of them is tested against them there.

mod area;

use std::time::Duration;

use http::{Method, StatusCode};
use keystead_core::keybox;
use keystead_store::{Access, Outcome, PoolStatus, TransactionReport};
use prometheus::{
    CounterVec, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder, core::Collector,
};

use self::area::area;
use crate::jobs;

/// The bounds of duration histograms, in seconds.
const SECONDS: [f64; 9] = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];
/// The bounds of histograms of how much went together.
const SIZES: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// The metrics of one replica. What each one means stands in its help text, in [`Metrics::new`].
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    bcrypt_queue: IntGauge,
    build: IntGaugeVec,
    certificate_expiry: IntGauge,
    database_connections: IntGaugeVec,
    database_connection_limits: IntGaugeVec,
    fence_wait: Histogram,
    group_commit_events: IntCounter,
    group_commit_waiting: IntGaugeVec,
    group_commit_writes: HistogramVec,
    http_connection_errors: IntCounterVec,
    http_connection_limit: IntGauge,
    http_connections: IntGauge,
    http_errors: IntCounterVec,
    http_panics: IntCounter,
    http_request_duration: HistogramVec,
    http_request_seconds: CounterVec,
    http_requests: IntCounterVec,
    http_requests_in_flight: IntGauge,
    jobs: IntCounterVec,
    job_seconds: CounterVec,
    jobs_waiting: IntGauge,
    key_messages: IntCounterVec,
    media_bytes: IntCounterVec,
    media_thumbnails: IntCounterVec,
    media_uploads: IntCounterVec,
    oldest_job: IntGauge,
    pool_wait: Histogram,
    statements: IntCounterVec,
    sync_waiters: IntGauge,
    sync_work: HistogramVec,
    tail_lag: IntGauge,
    tail_staleness: Gauge,
    to_device_messages: IntCounterVec,
    to_device_pending: IntGauge,
    to_device_removed: IntCounterVec,
    transaction_duration: HistogramVec,
    transaction_retries: IntCounterVec,
    transaction_seconds: CounterVec,
    transactions: IntCounterVec,
    pushes: IntCounterVec,
    url_previews: IntCounterVec,
    wake_bus: IntGauge,
}

/// Why a connection ended before its time; a closed set of labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionError {
    /// The peer broke the HTTP protocol, was too slow, or broke off.
    Http,
    /// There were as many as may be; it was only told so.
    Limit,
    /// The TLS handshake failed or took too long.
    Tls,
}

/// A queue whose work is done in batches; a closed set of labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// To-device messages that clients have received.
    Acknowledgements,
    /// Events for rooms.
    Events,
    /// Claims of one-time keys.
    KeyClaims,
    /// Uploads of keys.
    KeyUploads,
    /// Beginnings of sessions.
    NewSessions,
    /// What pushers were told.
    Pushes,
    /// Messages to devices.
    ToDevice,
}

/// What became of a job; a closed set of labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobOutcome {
    /// It is done.
    Done,
    /// It failed and will be tried again.
    Failed,
    /// It failed so often that it will not be tried again.
    GivenUp,
}

/// What became of a call with KeyBox messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyMessages {
    /// The server could not do what it should have done.
    Failed,
    /// The profile or the room does not allow it.
    Refused,
    /// So many messages were stored.
    Stored(usize),
}

/// Why messages to devices are no longer kept; a closed set of labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// Their devices have them.
    Acknowledged,
    /// Their devices have not been seen for too long.
    Expired,
}

impl Metrics {
    /// All metrics, at zero.
    ///
    /// # Errors
    ///
    /// When two metrics have the same name, or one has a malformed name.
    #[expect(clippy::too_many_lines, reason = "a list: one entry a metric, with its help text")]
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let r = &registry;
        let metrics = Self {
            bcrypt_queue: gauge(
                r,
                "keystead_bcrypt_queue",
                "Passwords that wait to be hashed or are being hashed.",
            )?,
            build: gauges(
                r,
                "keystead_build_info",
                "Always 1; the version of the program, and the kind of its database (postgresql, sqlite).",
                &["version", "database"],
            )?,
            certificate_expiry: gauge(
                r,
                "keystead_tls_certificate_expiry_timestamp_seconds",
                "When the server's own TLS certificate ends, in seconds since the epoch; 0 if it has none.",
            )?,
            database_connections: gauges(
                r,
                "keystead_database_connections",
                "Open connections to the database, by what they are for (read, write) and state (idle, used).",
                &["kind", "state"],
            )?,
            database_connection_limits: gauges(
                r,
                "keystead_database_connections_limit",
                "How many connections to the database there may be, by what they are for (read, write).",
                &["kind"],
            )?,
            fence_wait: histogram(
                r,
                "keystead_fence_wait_seconds",
                "Time that requests waited until the replica had seen all that was committed before them.",
                &SECONDS,
            )?,
            group_commit_events: register(
                r,
                IntCounter::new("keystead_events_total", "Events that this replica appended to rooms.")?,
            )?,
            group_commit_waiting: gauges(
                r,
                "keystead_group_commit_waiting",
                "Pieces of work that wait for a transaction, by queue; one queue takes 2,048 (of events: a shard's).",
                &["queue"],
            )?,
            group_commit_writes: histograms(
                r,
                "keystead_group_commit_writes",
                "How many waiting pieces of work one transaction took, by queue.",
                &SIZES,
                &["queue"],
            )?,
            http_connection_errors: counters(
                r,
                "keystead_http_connection_errors_total",
                "Connections that ended with an error, by layer (http, tls).",
                &["layer"],
            )?,
            http_connection_limit: gauge(
                r,
                "keystead_http_connections_limit",
                "How many connections may be open at once (limits.max_connections).",
            )?,
            http_connections: gauge(r, "keystead_http_connections", "Connections that are open now.")?,
            http_errors: counters(
                r,
                "keystead_http_errors_total",
                "Requests that were refused or that failed, by errcode.",
                &["errcode"],
            )?,
            http_panics: register(
                r,
                IntCounter::new(
                    "keystead_http_handler_panics_total",
                    "Requests whose handler panicked; each is a defect and was answered with status 500.",
                )?,
            )?,
            http_request_duration: histograms(
                r,
                "keystead_http_request_duration_seconds",
                "Duration of requests from the last header to the answer, by method and area of the API.",
                &SECONDS,
                &["method", "area"],
            )?,
            http_request_seconds: seconds(
                r,
                "keystead_http_request_seconds_total",
                "Time spent on answering requests in seconds, by route template.",
                &["route"],
            )?,
            http_requests: counters(
                r,
                "keystead_http_requests_total",
                "Requests answered, by route template and class of status (2xx, 4xx, ...).",
                &["route", "status"],
            )?,
            http_requests_in_flight: gauge(
                r,
                "keystead_http_requests_in_flight",
                "Requests that are being answered now, this one of /metrics too, but not syncs that wait for news.",
            )?,
            jobs: counters(
                r,
                "keystead_jobs_total",
                "Attempts at jobs, by kind and outcome (done; failed: tried again; given_up: never tried again).",
                &["kind", "outcome"],
            )?,
            job_seconds: seconds(
                r,
                "keystead_job_seconds_total",
                "Time spent on attempts at jobs in seconds, by kind.",
                &["kind"],
            )?,
            jobs_waiting: gauge(
                r,
                "keystead_jobs_waiting",
                "Jobs in the database that are necessary and not done; all replicas see the same.",
            )?,
            key_messages: counters(
                r,
                "keystead_keybox_messages_total",
                "KeyBox key messages, by type (resource_key, resource_key_request, resource_key.withheld, \
                 resource_key.ack) and outcome: messages stored, or calls refused, or failed by fault of the server.",
                &["type", "outcome"],
            )?,
            media_bytes: counters(
                r,
                "keystead_media_bytes_total",
                "Bytes of media, by direction (received, sent).",
                &["direction"],
            )?,
            media_thumbnails: counters(
                r,
                "keystead_media_thumbnails_total",
                "Pictures that were to be made smaller, by outcome (made, refused: no picture, broken, or too large).",
                &["outcome"],
            )?,
            media_uploads: counters(
                r,
                "keystead_media_uploads_total",
                "Uploads of media that ended, by outcome (received, broken: too large, too slow, or broken off).",
                &["outcome"],
            )?,
            oldest_job: gauge(
                r,
                "keystead_jobs_oldest_seconds",
                "How long the oldest job that is not done has been waiting; 0 if there is none.",
            )?,
            pool_wait: histogram(
                r,
                "keystead_database_pool_wait_seconds",
                "Time that transactions waited for a connection and their BEGIN.",
                &SECONDS,
            )?,
            statements: counters(
                r,
                "keystead_database_statements_total",
                "Round trips to the database (statements, BEGIN and COMMIT too), by kind of transaction (read, write).",
                &["kind"],
            )?,
            sync_waiters: gauge(r, "keystead_sync_waiters", "Syncs that wait for news now.")?,
            sync_work: histograms(
                r,
                "keystead_sync_work_seconds",
                "Time that syncs took besides waiting for news, by kind (initial: without a token; incremental).",
                &SECONDS,
                &["kind"],
            )?,
            tail_lag: gauge(
                r,
                "keystead_tail_lag_positions",
                "How many positions the replica is known to be behind, in the shard where it is most.",
            )?,
            tail_staleness: register(
                r,
                Gauge::new(
                    "keystead_tail_staleness_seconds",
                    "How long ago the replica was last known to have read all that was committed; it looks every 2 s.",
                )?,
            )?,
            to_device_messages: counters(
                r,
                "keystead_to_device_messages_total",
                "Messages to single devices, by outcome (stored, or dropped because too many wait for the device).",
                &["outcome"],
            )?,
            to_device_pending: gauge(
                r,
                "keystead_to_device_pending",
                "Messages in the database that wait for their devices, counted once a minute up to 1,000,000; all \
                 replicas see the same.",
            )?,
            to_device_removed: counters(
                r,
                "keystead_to_device_removed_total",
                "Messages that wait for their devices no more, by reason (acknowledged by them, expired).",
                &["reason"],
            )?,
            transaction_duration: histograms(
                r,
                "keystead_transaction_duration_seconds",
                "Duration of database transactions, retries and waits included, by kind (read, write).",
                &SECONDS,
                &["kind"],
            )?,
            transaction_retries: counters(
                r,
                "keystead_transaction_retries_total",
                "Database transactions that had to be tried again because another one was in the way, by name.",
                &["name"],
            )?,
            transaction_seconds: seconds(
                r,
                "keystead_transaction_seconds_total",
                "Time spent in database transactions in seconds, retries and waits included, by name.",
                &["name"],
            )?,
            transactions: counters(
                r,
                "keystead_transactions_total",
                "Database transactions that ended, by name and outcome (committed; refused, for a reason that is not \
                 the database's; failed).",
                &["name", "outcome"],
            )?,
            pushes: counters(
                r,
                "keystead_pushes_total",
                "Notifications sent to push gateways, by outcome (sent; rejected, after which the pusher is removed; put_off: the gateway could not \
                 be reached, and it is tried again).",
                &["outcome"],
            )?,
            url_previews: counters(
                r,
                "keystead_url_previews_total",
                "Previews of pages on the web that were asked for, by outcome (known, made, failed).",
                &["outcome"],
            )?,
            wake_bus: gauge(
                r,
                "keystead_wake_bus_connected",
                "1 while hints to and from other replicas pass, else 0: news of others then come up to 2 s late.",
            )?,
            registry,
        };
        // Memory, processor time and file descriptors; on Linux only.
        metrics.registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        metrics.begin_at_zero();
        Ok(metrics)
    }

    /// What happens seldom is there from the start: a counter that first shows up at 1 has no increase.
    fn begin_at_zero(&self) {
        for kind in keybox::KEY_MESSAGE_TYPES {
            for outcome in ["stored", "refused", "failed"] {
                self.key_messages.with_label_values(&[key_message_type(kind), outcome]);
            }
        }
        for (counter, values) in [
            (&self.http_connection_errors, ["http", "tls"].as_slice()),
            (&self.media_bytes, &["received", "sent"]),
            (&self.media_thumbnails, &["made", "refused"]),
            (&self.media_uploads, &["received", "broken"]),
            (&self.statements, &["read", "write"]),
            (&self.to_device_messages, &["stored", "dropped"]),
            (&self.to_device_removed, &["acknowledged", "expired"]),
            (&self.pushes, &["sent", "rejected", "put_off"]),
            (&self.url_previews, &["known", "made", "failed"]),
        ] {
            for value in values {
                counter.with_label_values(&[value]);
            }
        }
        for kind in jobs::KINDS {
            self.job_seconds.with_label_values(&[kind]);
            for outcome in ["done", "failed", "given_up"] {
                self.jobs.with_label_values(&[kind, outcome]);
            }
        }
        for kind in ["read", "write"] {
            self.transaction_duration.with_label_values(&[kind]);
        }
        for kind in ["initial", "incremental"] {
            self.sync_work.with_label_values(&[kind]);
        }
    }

    /// Notes which program runs, and on which kind of database.
    pub fn started(&self, is_shared: bool) {
        let database = if is_shared { "postgresql" } else { "sqlite" };
        self.build.with_label_values(&[env!("CARGO_PKG_VERSION"), database]).set(1);
    }

    /// Notes how many connections may be open at once.
    pub fn takes_connections(&self, most: usize) {
        self.http_connection_limit.set(most.try_into().unwrap_or(i64::MAX));
    }

    /// Notes when the server's TLS certificate ends, in seconds since the epoch.
    pub fn certificate_ends(&self, at: i64) {
        self.certificate_expiry.set(at);
    }

    /// Counts what became of a call with KeyBox messages of a type, one of the profile's.
    pub fn key_messages(&self, message_type: &'static str, what: KeyMessages) {
        let (outcome, count) = match what {
            KeyMessages::Failed => ("failed", 1),
            KeyMessages::Refused => ("refused", 1),
            KeyMessages::Stored(count) => ("stored", count),
        };
        self.key_messages.with_label_values(&[key_message_type(message_type), outcome]).inc_by(number(count));
    }

    /// Counts messages to single devices.
    pub fn to_device_messages(&self, stored: usize, dropped: usize) {
        for (outcome, count) in [("stored", stored), ("dropped", dropped)] {
            self.to_device_messages.with_label_values(&[outcome]).inc_by(number(count));
        }
    }

    /// Counts messages to single devices that are no longer kept.
    pub fn to_device_removed(&self, why: Removed, count: u64) {
        let reason = match why {
            Removed::Acknowledged => "acknowledged",
            Removed::Expired => "expired",
        };
        self.to_device_removed.with_label_values(&[reason]).inc_by(count);
    }

    /// Notes how many messages wait for their devices.
    pub fn to_device_pending(&self, count: u64) {
        self.to_device_pending.set(count.try_into().unwrap_or(i64::MAX));
    }

    /// Counts bytes of media that a client sent.
    pub fn media_received(&self, bytes: usize) {
        self.media_bytes.with_label_values(&["received"]).inc_by(number(bytes));
    }

    /// Counts bytes of media that were sent to a client.
    pub fn media_sent(&self, bytes: usize) {
        self.media_bytes.with_label_values(&["sent"]).inc_by(number(bytes));
    }

    /// Counts an upload that ended: whether all of it came.
    pub fn media_upload(&self, received: bool) {
        let outcome = if received { "received" } else { "broken" };
        self.media_uploads.with_label_values(&[outcome]).inc();
    }

    /// Counts a picture that was to be made smaller: whether it was.
    pub fn media_thumbnail(&self, made: bool) {
        let outcome = if made { "made" } else { "refused" };
        self.media_thumbnails.with_label_values(&[outcome]).inc();
    }

    /// Counts notifications for a push gateway: `sent`, `rejected` or `put_off`.
    pub fn pushes(&self, outcome: &'static str, count: usize) {
        self.pushes.with_label_values(&[outcome]).inc_by(u64::try_from(count).unwrap_or_default());
    }

    /// Counts a preview of a page that was asked for: `known`, `made` or `failed`.
    pub fn url_preview(&self, outcome: &'static str) {
        self.url_previews.with_label_values(&[outcome]).inc();
    }

    /// All series in the Prometheus text format.
    ///
    /// # Errors
    ///
    /// When a series cannot be written, which is a defect.
    pub fn encode(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// Counts a database transaction that ended.
    pub fn transaction(&self, report: &TransactionReport) {
        let (kind, duration) = (access(report.access), report.duration.as_secs_f64());
        let outcome = match report.outcome {
            Outcome::Committed => "committed",
            Outcome::Failed => "failed",
            Outcome::Refused => "refused",
        };
        self.transactions.with_label_values(&[report.name, outcome]).inc();
        self.transaction_seconds.with_label_values(&[report.name]).inc_by(duration);
        self.transaction_duration.with_label_values(&[kind]).observe(duration);
        self.statements.with_label_values(&[kind]).inc_by(report.statements.into());
        // At zero too: else the first retries of a name would be no increase.
        self.transaction_retries.with_label_values(&[report.name]).inc_by(report.retries.into());
        self.pool_wait.observe(report.pool_wait.as_secs_f64());
    }

    /// Notes how the connections to the database stand.
    pub fn pools(&self, pools: &[PoolStatus]) {
        for pool in pools {
            let kind = access(pool.access);
            self.database_connections.with_label_values(&[kind, "used"]).set(pool.used.into());
            self.database_connections.with_label_values(&[kind, "idle"]).set(pool.idle.into());
            self.database_connection_limits.with_label_values(&[kind]).set(pool.limit.into());
        }
    }

    /// Counts a transaction of the writer: how many writes it took, and how many events they became.
    pub fn events_committed(&self, writes: usize, events: usize) {
        self.batches(Queue::Events).observe(f64::from(u32::try_from(writes).unwrap_or(u32::MAX)));
        self.group_commit_events.inc_by(number(events));
    }

    /// The sizes of a queue's batches.
    #[must_use]
    pub fn batches(&self, queue: Queue) -> Histogram {
        self.group_commit_writes.with_label_values(&[queue.name()])
    }

    /// Notes how much waits in a queue.
    pub fn queued(&self, queue: Queue, waiting: usize) {
        let waiting = waiting.try_into().unwrap_or(i64::MAX);
        self.group_commit_waiting.with_label_values(&[queue.name()]).set(waiting);
    }

    /// Counts a wait at the fence.
    pub fn fence(&self, waited: Duration) {
        self.fence_wait.observe(waited.as_secs_f64());
    }

    /// Counts an attempt at a job of a kind, one of this program's.
    pub fn job(&self, kind: &'static str, outcome: JobOutcome, took: Duration) {
        let outcome = match outcome {
            JobOutcome::Done => "done",
            JobOutcome::Failed => "failed",
            JobOutcome::GivenUp => "given_up",
        };
        self.jobs.with_label_values(&[kind, outcome]).inc();
        self.job_seconds.with_label_values(&[kind]).inc_by(took.as_secs_f64());
    }

    /// Notes how many jobs are not done, and how long the oldest of them has been waiting.
    pub fn jobs_waiting(&self, waiting: u64, oldest: Duration) {
        self.jobs_waiting.set(waiting.try_into().unwrap_or(i64::MAX));
        self.oldest_job.set(oldest.as_secs().try_into().unwrap_or(i64::MAX));
    }

    /// Notes how the tail stands: how many positions it is behind, how long ago it had everything, and whether other
    /// replicas' hints come.
    pub fn tail(&self, lag: i64, staleness: Duration, hears_others: bool) {
        self.tail_lag.set(lag);
        self.tail_staleness.set(staleness.as_secs_f64());
        self.wake_bus.set(hears_others.into());
    }

    /// Counts a sync, and the time that it did not spend waiting for news.
    pub fn sync(&self, is_initial: bool, worked: Duration) {
        let kind = if is_initial { "initial" } else { "incremental" };
        self.sync_work.with_label_values(&[kind]).observe(worked.as_secs_f64());
    }

    /// Counts a sync as waiting for news instead of being answered, until the result is dropped.
    #[must_use]
    pub fn sync_waits(&self) -> Waiting {
        self.http_requests_in_flight.dec();
        Waiting { in_flight: self.http_requests_in_flight.clone(), _waits: Counted::new(&self.sync_waiters) }
    }

    /// Counts a request as being answered, until the result is dropped.
    #[must_use]
    pub fn request_begins(&self) -> Counted {
        Counted::new(&self.http_requests_in_flight)
    }

    /// Counts an answered request. `route` is a route template, never a path that a client sent.
    pub fn http_request(&self, route: &'static str, method: &Method, status: StatusCode, took: Duration) {
        let class = match status.as_u16() / 100 {
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            5 => "5xx",
            _ => "1xx",
        };
        self.http_requests.with_label_values(&[route, class]).inc();
        self.http_request_seconds.with_label_values(&[route]).inc_by(took.as_secs_f64());
        let method = match method.as_str() {
            method @ ("GET" | "POST" | "PUT" | "DELETE" | "OPTIONS" | "HEAD") => method,
            _ => "other",
        };
        self.http_request_duration.with_label_values(&[method, area(route)]).observe(took.as_secs_f64());
    }

    /// Counts an errcode that was sent; errcodes are constants of this program.
    pub fn http_error(&self, errcode: &str) {
        self.http_errors.with_label_values(&[errcode]).inc();
    }

    /// Counts a handler that panicked.
    pub fn handler_panicked(&self) {
        self.http_panics.inc();
    }

    /// Passwords that wait to be hashed or are being hashed.
    #[must_use]
    pub fn bcrypt_queue(&self) -> &IntGauge {
        &self.bcrypt_queue
    }

    /// Counts a connection as open, until the result is dropped.
    #[must_use]
    pub fn connection_begins(&self) -> Counted {
        Counted::new(&self.http_connections)
    }

    /// Counts a connection that ended with an error.
    pub fn connection_error(&self, layer: ConnectionError) {
        let layer = match layer {
            ConnectionError::Http => "http",
            ConnectionError::Limit => "limit",
            ConnectionError::Tls => "tls",
        };
        self.http_connection_errors.with_label_values(&[layer]).inc();
    }
}

impl Queue {
    fn name(self) -> &'static str {
        match self {
            Self::Acknowledgements => "acknowledgements",
            Self::Events => "events",
            Self::KeyClaims => "key_claims",
            Self::KeyUploads => "key_uploads",
            Self::NewSessions => "new_sessions",
            Self::Pushes => "pushes",
            Self::ToDevice => "to_device",
        }
    }
}

/// Something that a gauge counts, for as long as it lives.
#[derive(Debug)]
pub struct Counted(IntGauge);

impl Counted {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A sync that waits for news: for as long as this lives it is not one of the requests in flight.
#[derive(Debug)]
pub struct Waiting {
    in_flight: IntGauge,
    _waits: Counted,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.in_flight.inc();
    }
}

fn access(access: Access) -> &'static str {
    match access {
        Access::Read => "read",
        Access::Write => "write",
    }
}

/// The type of a key message without what all of them begin with.
fn key_message_type(message_type: &'static str) -> &'static str {
    message_type.strip_prefix("com.trustner.keybox.").unwrap_or(message_type)
}

fn number(count: usize) -> u64 {
    count.try_into().unwrap_or(u64::MAX)
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn seconds(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<CounterVec, prometheus::Error> {
    register(registry, CounterVec::new(Opts::new(name, help), labels)?)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    register(registry, IntGauge::new(name, help)?)
}

fn gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntGaugeVec, prometheus::Error> {
    register(registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
}

fn histogram(
    registry: &Registry,
    name: &str,
    help: &str,
    bounds: &[f64],
) -> Result<Histogram, prometheus::Error> {
    register(registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(bounds.to_vec()))?)
}

fn histograms(
    registry: &Registry,
    name: &str,
    help: &str,
    bounds: &[f64],
    labels: &[&str],
) -> Result<HistogramVec, prometheus::Error> {
    let options = HistogramOpts::new(name, help).buckets(bounds.to_vec());
    register(registry, HistogramVec::new(options, labels)?)
}

#[cfg(test)]
mod tests;
