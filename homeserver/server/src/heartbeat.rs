//! What this replica tells about itself every so often, for `keystead doctor` to compare with the others.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use keystead_store::{Error, replicas};
use serde::{Deserialize, Serialize};

use crate::{
    app::App,
    config::{Settings, media::MediaPlace, registration::PasswordPolicy},
};

/// How often it does.
pub const EVERY: Duration = Duration::from_secs(10);
/// Characters of a replica's id.
const ID_LENGTH: usize = 8;

/// What a replica tells about itself.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Status {
    /// The machine, or the pod, that it runs on.
    pub host: String,
    /// The program's version.
    pub version: String,
    /// The settings that all replicas must have alike, by name. No secrets.
    pub settings: BTreeMap<String, String>,
    /// The public part of the key that it signs with.
    pub signing_key: String,
    /// How many positions it knows to be behind.
    pub lag: i64,
    /// How long ago it last knew that it was not behind, in milliseconds.
    pub stale_ms: u64,
    /// Whether hints reach it, and its own go out.
    pub hints: bool,
}

impl Status {
    fn of(app: &App, host: &str) -> Self {
        Self {
            host: host.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            settings: shared_settings(&app.settings),
            signing_key: STANDARD_NO_PAD.encode(app.signer.key_pair().public_key()),
            lag: app.tail.lag(),
            stale_ms: u64::try_from(app.tail.staleness().as_millis()).unwrap_or(u64::MAX),
            hints: app.store.has_wake_bus(),
        }
    }
}

/// Tells until the server stops, and then takes leave.
pub async fn run(app: Arc<App>) {
    let (id, started) = (app.entropy.readable(ID_LENGTH), app.clock.now());
    let host = host();
    let mut every = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = app.shutdown.draining() => break,
        }
        let Ok(status) = serde_json::to_string(&Status::of(&app, &host)) else { continue };
        let report = &replicas::Report { replica_id: id.clone(), started, now: app.clock.now(), status };
        let told: Result<(), Error> =
            app.store.write("heartbeat", |tx| async move { replicas::put(&tx, report).await }).await;
        if let Err(error) = told {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot tell the others of this replica"
            );
        }
    }
    let id = id.as_str();
    let left: Result<(), Error> =
        app.store.write("take_leave", |tx| async move { replicas::delete(&tx, id).await }).await;
    if let Err(error) = left {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "cannot tell the others that this replica stops"
        );
    }
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// The settings that must be the same on all replicas, because any request may reach any of them.
pub(crate) fn shared_settings(settings: &Settings) -> BTreeMap<String, String> {
    let place = match &settings.media.place {
        MediaPlace::Folder(folder) => folder.display().to_string(),
        MediaPlace::Bucket(bucket) => format!("bucket {}", bucket.bucket),
    };
    let keys = settings.keybox.master_keys.as_ref();
    let policy = match settings.registration.password_policy {
        PasswordPolicy::Bsi => "bsi",
        PasswordPolicy::None => "none",
    };
    [
        ("keybox.master_key", keys.map_or("none", |_| "set").to_owned()),
        ("limits.max_body_bytes", settings.limits.max_body_bytes.to_string()),
        ("limits.rate_limits", settings.limits.rate_limits.to_string()),
        ("media.max_upload_bytes", settings.media.max_upload_bytes.to_string()),
        ("media.folder or media.s3_bucket", place),
        ("push.enabled", settings.push.enabled.to_string()),
        ("push.include_content", settings.push.include_content.to_string()),
        ("registration.open", settings.registration.open.to_string()),
        ("registration.password_policy", policy.to_owned()),
        ("registration.shared_secret", secret(settings.registration.shared_secret.is_some())),
        ("rooms.default_version", settings.rooms.default_version.to_string()),
        ("server.name", settings.server.name.to_string()),
        ("server.public_base_url", settings.server.public_base_url.clone()),
        ("url_preview.enabled", settings.url_preview.enabled.to_string()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

fn secret(is_set: bool) -> String {
    if is_set { "set" } else { "none" }.to_owned()
}
