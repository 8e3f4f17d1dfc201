//! All metrics of the server, in one place.
//!
//! Labels come from closed sets only (routes, errcodes, transaction names), never from what a client sends, so that a
//! replica keeps below 2,000 series.

use std::time::Duration;

use http::{Method, StatusCode};
use keystead_store::TransactionReport;
use prometheus::{
    CounterVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder, core::Collector,
};

/// The bounds of duration histograms, in seconds.
const SECONDS: [f64; 9] = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// The metrics of one replica. What each one means stands in its help text, in [`Metrics::new`].
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    bcrypt_queue: IntGauge,
    http_requests: IntCounterVec,
    http_request_seconds: CounterVec,
    http_request_duration: HistogramVec,
    http_errors: IntCounterVec,
    http_panics: IntCounter,
    key_messages: IntCounterVec,
    media_bytes: IntCounterVec,
    media_thumbnails: IntCounterVec,
    media_uploads: IntCounterVec,
    to_device_messages: IntCounterVec,
    url_previews: IntCounterVec,
    http_connections: IntGauge,
    http_connection_errors: IntCounterVec,
    transactions: IntCounterVec,
    transaction_seconds: CounterVec,
    transaction_retries: IntCounterVec,
    pool_wait: Histogram,
    group_commit_writes: Histogram,
    group_commit_events: IntCounter,
    fence_wait: Histogram,
    oldest_job: IntGauge,
    tail_lag: IntGauge,
    sync_waiters: IntGauge,
}

/// Why a connection ended before its time; a closed set of labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionError {
    /// The peer broke the HTTP protocol, was too slow, or broke off.
    Http,
    /// The TLS handshake failed or took too long.
    Tls,
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
        let metrics = Self {
            bcrypt_queue: register(
                &registry,
                IntGauge::new("keystead_bcrypt_queue", "Passwords that wait to be hashed or are being hashed.")?,
            )?,
            http_requests: counters(
                &registry,
                "keystead_http_requests_total",
                "Requests answered, by route template and class of status (2xx, 4xx, ...).",
                &["route", "status"],
            )?,
            http_request_seconds: register(
                &registry,
                CounterVec::new(
                    Opts::new(
                        "keystead_http_request_seconds_total",
                        "Time spent on answering requests in seconds, by route template.",
                    ),
                    &["route"],
                )?,
            )?,
            http_request_duration: register(
                &registry,
                HistogramVec::new(
                    HistogramOpts::new(
                        "keystead_http_request_duration_seconds",
                        "Duration of requests from the last header to the answer, by method and area of the API.",
                    )
                    .buckets(SECONDS.to_vec()),
                    &["method", "area"],
                )?,
            )?,
            http_errors: counters(
                &registry,
                "keystead_http_errors_total",
                "Requests that were refused or that failed, by errcode.",
                &["errcode"],
            )?,
            http_panics: register(
                &registry,
                IntCounter::new(
                    "keystead_http_handler_panics_total",
                    "Requests whose handler panicked; each is a defect and was answered with status 500.",
                )?,
            )?,
            http_connections: register(
                &registry,
                IntGauge::new("keystead_http_connections", "Connections that are open now.")?,
            )?,
            http_connection_errors: counters(
                &registry,
                "keystead_http_connection_errors_total",
                "Connections that ended with an error, by layer (http, tls).",
                &["layer"],
            )?,
            transactions: counters(
                &registry,
                "keystead_transactions_total",
                "Database transactions that ended, by name and outcome (committed, failed).",
                &["name", "outcome"],
            )?,
            transaction_seconds: register(
                &registry,
                CounterVec::new(
                    Opts::new(
                        "keystead_transaction_seconds_total",
                        "Time spent in database transactions in seconds, retries and waits included, by name.",
                    ),
                    &["name"],
                )?,
            )?,
            transaction_retries: counters(
                &registry,
                "keystead_transaction_retries_total",
                "Database transactions that had to be tried again because another one was in the way, by name.",
                &["name"],
            )?,
            pool_wait: register(
                &registry,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "keystead_database_pool_wait_seconds",
                        "Time that transactions waited for a connection and their BEGIN.",
                    )
                    .buckets(SECONDS.to_vec()),
                )?,
            )?,
            group_commit_writes: register(
                &registry,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "keystead_group_commit_writes",
                        "How many waiting writes to rooms one transaction took.",
                    )
                    .buckets(vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]),
                )?,
            )?,
            group_commit_events: register(
                &registry,
                IntCounter::new("keystead_events_total", "Events that this replica appended to rooms.")?,
            )?,
            fence_wait: register(
                &registry,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "keystead_fence_wait_seconds",
                        "Time that requests waited until the replica had seen all that was committed before them.",
                    )
                    .buckets(SECONDS.to_vec()),
                )?,
            )?,
            oldest_job: register(
                &registry,
                IntGauge::new(
                    "keystead_jobs_oldest_seconds",
                    "How long the oldest job that is not done has been waiting; 0 if there is none.",
                )?,
            )?,
            tail_lag: register(
                &registry,
                IntGauge::new(
                    "keystead_tail_lag_positions",
                    "How many positions the replica is known to be behind, in the shard where it is most.",
                )?,
            )?,
            sync_waiters: register(
                &registry,
                IntGauge::new("keystead_sync_waiters", "Syncs that wait for news now.")?,
            )?,
            key_messages: counters(
                &registry,
                "keystead_keybox_messages_total",
                "KeyBox key messages, by type and outcome: messages stored, or calls refused.",
                &["type", "outcome"],
            )?,
            media_bytes: counters(
                &registry,
                "keystead_media_bytes_total",
                "Bytes of media, by direction (received, sent).",
                &["direction"],
            )?,
            media_thumbnails: counters(
                &registry,
                "keystead_media_thumbnails_total",
                "Pictures that were to be made smaller, by outcome (made, refused: no picture, broken, or too large).",
                &["outcome"],
            )?,
            media_uploads: counters(
                &registry,
                "keystead_media_uploads_total",
                "Uploads of media that ended, by outcome (received, broken: too large, too slow, or broken off).",
                &["outcome"],
            )?,
            to_device_messages: counters(
                &registry,
                "keystead_to_device_messages_total",
                "Messages to single devices, by outcome (stored, or dropped because too many wait for the device).",
                &["outcome"],
            )?,
            url_previews: counters(
                &registry,
                "keystead_url_previews_total",
                "Previews of pages on the web that were asked for, by outcome (known, made, failed).",
                &["outcome"],
            )?,
            registry,
        };
        // Memory, processor time and file descriptors; on Linux only.
        metrics.registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(metrics)
    }

    /// Counts what became of a call with KeyBox messages of a type, one of the profile's: how many were stored, `None` if
    /// the call was refused.
    pub fn key_messages(&self, message_type: &'static str, stored: Option<usize>) {
        match stored {
            Some(stored) => self
                .key_messages
                .with_label_values(&[message_type, "stored"])
                .inc_by(u64::try_from(stored).unwrap_or_default()),
            None => self.key_messages.with_label_values(&[message_type, "refused"]).inc(),
        }
    }

    /// Counts messages to single devices.
    pub fn to_device_messages(&self, stored: usize, dropped: usize) {
        for (outcome, count) in [("stored", stored), ("dropped", dropped)] {
            let count = u64::try_from(count).unwrap_or_default();
            self.to_device_messages.with_label_values(&[outcome]).inc_by(count);
        }
    }

    /// Counts bytes of media that a client sent.
    pub fn media_received(&self, bytes: usize) {
        self.media_bytes.with_label_values(&["received"]).inc_by(bytes.try_into().unwrap_or_default());
    }

    /// Counts bytes of media that were sent to a client.
    pub fn media_sent(&self, bytes: usize) {
        self.media_bytes.with_label_values(&["sent"]).inc_by(bytes.try_into().unwrap_or_default());
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
        let outcome = if report.committed { "committed" } else { "failed" };
        self.transactions.with_label_values(&[report.name, outcome]).inc();
        self.transaction_seconds.with_label_values(&[report.name]).inc_by(report.duration.as_secs_f64());
        if report.retries > 0 {
            self.transaction_retries.with_label_values(&[report.name]).inc_by(report.retries.into());
        }
        self.pool_wait.observe(report.pool_wait.as_secs_f64());
    }

    /// Counts a transaction of the writer: how many writes it took, and how many events they became.
    pub fn group_commit(&self, writes: usize, events: usize) {
        self.group_commit_writes.observe(f64::from(u32::try_from(writes).unwrap_or(u32::MAX)));
        self.group_commit_events.inc_by(events.try_into().unwrap_or(u64::MAX));
    }

    /// Counts a wait at the fence.
    pub fn fence(&self, waited: Duration) {
        self.fence_wait.observe(waited.as_secs_f64());
    }

    /// Notes how long the oldest job that is not done has been waiting.
    pub fn oldest_job(&self, waiting: Duration) {
        self.oldest_job.set(waiting.as_secs().try_into().unwrap_or(i64::MAX));
    }

    /// Notes how the streams stand: how far behind the tail is, and how many syncs wait.
    pub fn streams(&self, lag: i64, waiting: usize) {
        self.tail_lag.set(lag);
        self.sync_waiters.set(waiting.try_into().unwrap_or(i64::MAX));
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

    /// How many connections are open now.
    #[must_use]
    pub fn connections(&self) -> &IntGauge {
        &self.http_connections
    }

    /// Counts a connection that ended with an error.
    pub fn connection_error(&self, layer: ConnectionError) {
        let layer = match layer {
            ConnectionError::Http => "http",
            ConnectionError::Tls => "tls",
        };
        self.http_connection_errors.with_label_values(&[layer]).inc();
    }
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

/// The part of the API that a route belongs to: few enough to have a histogram each.
fn area(route: &'static str) -> &'static str {
    let Some(path) = route.strip_prefix("/_matrix/client/") else {
        return match route {
            route if route.starts_with("/_matrix/media/") => "media",
            route if route.starts_with("/_synapse/") => "admin",
            _ => "other",
        };
    };
    // After the version.
    let mut segments = path.split('/').skip(1);
    match (segments.next(), segments.last()) {
        (Some("sync"), _) => "sync",
        (Some("rooms"), Some("{txn_id}")) => "send",
        (Some("rooms" | "createRoom" | "join" | "knock" | "joined_rooms" | "directory"), _) => "rooms",
        (Some("sendToDevice"), _) => "to_device",
        (Some("keys" | "room_keys" | "com.trustner"), _) => "keys",
        (Some("login" | "logout" | "register" | "refresh" | "account" | "devices" | "delete_devices"), _) => {
            "account"
        }
        (Some("media"), _) => "media",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_series_are_labelled() {
        let metrics = Metrics::new().unwrap();
        metrics.http_request(
            "/_matrix/client/v3/sync",
            &Method::GET,
            StatusCode::OK,
            Duration::from_millis(10),
        );
        metrics.http_error("M_NOT_FOUND");
        metrics.connection_error(ConnectionError::Tls);
        let text = metrics.encode().unwrap();
        assert!(
            text.contains(r#"keystead_http_requests_total{route="/_matrix/client/v3/sync",status="2xx"} 1"#)
        );
        assert!(text.contains(r#"keystead_http_errors_total{errcode="M_NOT_FOUND"} 1"#));
        assert!(text.contains(r#"area="sync",method="GET""#));
    }

    #[test]
    fn an_invented_method_makes_no_new_series() {
        let metrics = Metrics::new().unwrap();
        let method = Method::from_bytes(b"BREW").unwrap();
        metrics.http_request("none", &method, StatusCode::METHOD_NOT_ALLOWED, Duration::ZERO);
        let text = metrics.encode().unwrap();
        assert!(text.contains(r#"method="other""#) && !text.contains("BREW"));
    }
}
