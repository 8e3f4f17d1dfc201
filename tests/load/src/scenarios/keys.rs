//! Keys for Matrix's own encryption: devices publish them, others look them up and claim them.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use clap::Args;
use openssl::{
    pkey::{PKey, Private},
    sign::Signer,
};
use serde_json::{Map, Value, json};

use super::{Measured, Stage, nth};
use crate::{
    Error,
    account::User,
    api::{Call, Failure},
    check::Verdict,
    drive::{Outcome, drive},
    process::Usage,
    report::Report,
};

/// How many one-time keys one upload has, and how many users one query asks for.
const KEYS: u64 = 10;
const QUERIED: u64 = 10;

/// How many devices.
#[derive(Args, Clone, Debug)]
pub struct Devices {
    /// How many devices, each of an account of its own. They upload in turn: a client keeps some 50 one-time keys on its server, and
    /// what an upload costs depends on how many there are.
    #[arg(long, default_value_t = 400)]
    devices: usize,
}

/// A device with its signing key.
struct Device {
    user: User,
    key: PKey<Private>,
}

impl Device {
    fn sign(&self, canonical: &str) -> Result<Value, Failure> {
        let failed = |error: openssl::error::ErrorStack| Failure(error.to_string());
        let mut signer = Signer::new_without_digest(&self.key).map_err(failed)?;
        let signature = signer.sign_oneshot_to_vec(canonical.as_bytes()).map_err(failed)?;
        let name = format!("ed25519:{}", self.user.device);
        Ok(json!({ &self.user.id: { name: STANDARD_NO_PAD.encode(signature) } }))
    }

    /// Publishes the device's identity.
    async fn publish(&self) -> Result<(), Failure> {
        let (user, device) = (&self.user.id, &self.user.device);
        let public = self.key.raw_public_key().map_err(|error| Failure(error.to_string()))?;
        let (ed25519, curve25519) = (STANDARD_NO_PAD.encode(public), random_key());
        // Canonical JSON: the keys sorted, no blanks.
        let canonical = format!(
            "{{\"algorithms\":[\"m.olm.v1.curve25519-aes-sha2\",\"m.megolm.v1.aes-sha2\"],\"device_id\":\"{device}\",\
             \"keys\":{{\"curve25519:{device}\":\"{curve25519}\",\"ed25519:{device}\":\"{ed25519}\"}},\
             \"user_id\":\"{user}\"}}"
        );
        let mut keys: Value = serde_json::from_str(&canonical).map_err(|error| Failure(error.to_string()))?;
        keys["signatures"] = self.sign(&canonical)?;
        self.user.ok(&Call::post("/keys/upload", json!({ "device_keys": keys }))).await.map(drop)
    }

    /// Publishes signed one-time keys with ids that no other upload has.
    async fn upload(&self, turn: u64) -> Result<(), Failure> {
        let mut keys = Map::new();
        for number in 0..KEYS {
            let key = random_key();
            let signatures = self.sign(&format!("{{\"key\":\"{key}\"}}"))?;
            let id = format!("signed_curve25519:{:X}", turn * KEYS + number);
            keys.insert(id, json!({ "key": key, "signatures": signatures }));
        }
        self.user.ok(&Call::post("/keys/upload", json!({ "one_time_keys": keys }))).await.map(drop)
    }
}

/// 32 random bytes in base64; as X25519 keys any are good.
fn random_key() -> String {
    STANDARD_NO_PAD.encode(rand::random::<[u8; 32]>())
}

pub(super) async fn run(stage: &Stage<'_>, args: &Devices) -> Result<Vec<Report>, Error> {
    let mut devices = Vec::new();
    for user in stage.users(args.devices).await? {
        let key = PKey::generate_ed25519().map_err(|error| Error::server("a key", error))?;
        let device = Device { user, key };
        device.publish().await.map_err(|failure| Error::server("keys/upload", failure))?;
        devices.push(device);
    }
    let devices = Arc::new(devices);
    Ok(vec![upload(stage, &devices).await?, query(stage, &devices).await?, claim(stage, &devices).await?])
}

async fn upload(stage: &Stage<'_>, devices: &Arc<Vec<Device>>) -> Result<Report, Error> {
    let (before, shared) = (stage.usage()?, devices.clone());
    let outcome = drive(stage.run.pace, stage.run.end, move |turn| {
        let devices = shared.clone();
        async move { nth(&devices, turn.number)?.upload(turn.number).await }
    })
    .await?;
    let after = stage.usage()?;
    report(stage, ("keys-upload", "upload"), devices, outcome, (before, after), Verdict::default())
}

async fn query(stage: &Stage<'_>, devices: &Arc<Vec<Device>>) -> Result<Report, Error> {
    let (before, shared) = (stage.usage()?, devices.clone());
    let outcome = drive(stage.run.pace, stage.run.end, move |turn| {
        let devices = shared.clone();
        async move {
            let mut wanted = Map::new();
            for n in 0..QUERIED {
                wanted.insert(nth(&devices, turn.number + n)?.user.id.clone(), json!([]));
            }
            let asking = &nth(&devices, turn.lane)?.user;
            let count = wanted.len();
            let answer = asking.ok(&Call::post("/keys/query", json!({ "device_keys": wanted }))).await?;
            let found = answer["device_keys"].as_object().map_or(0, Map::len);
            if found == count { Ok(()) } else { Err(Failure(format!("{found} of {count} users"))) }
        }
    })
    .await?;
    let after = stage.usage()?;
    report(stage, ("keys-query", "query"), devices, outcome, (before, after), Verdict::default())
}

async fn claim(stage: &Stage<'_>, devices: &Arc<Vec<Device>>) -> Result<Report, Error> {
    let claimed: Arc<Mutex<Vec<String>>> = Arc::default();
    let (before, shared) = (stage.usage()?, (devices.clone(), claimed.clone()));
    let outcome = drive(stage.run.pace, stage.run.end, move |turn| {
        let (devices, claimed) = shared.clone();
        async move {
            let asking = &nth(&devices, turn.lane)?.user;
            let of = &nth(&devices, turn.number)?.user;
            let body = json!({ "one_time_keys": { &of.id: { &of.device: "signed_curve25519" } } });
            let answer = asking.ok(&Call::post("/keys/claim", body)).await?;
            let keys = answer["one_time_keys"][&of.id][&of.device].as_object();
            let (id, _) = keys.and_then(|keys| keys.iter().next()).ok_or_else(|| {
                Failure("no one-time key is left: run longer uploads or fewer claims".to_owned())
            })?;
            let claim = format!("{} {id}", of.id);
            claimed.lock().unwrap_or_else(PoisonError::into_inner).push(claim);
            Ok(())
        }
    })
    .await?;
    let after = stage.usage()?;
    let claimed = claimed.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut verdict = Verdict { checked: true, ..Verdict::default() };
    let mut seen = HashSet::new();
    for claim in &claimed {
        verdict.deliveries += 1;
        if !seen.insert(claim) {
            verdict.doubled += 1;
            verdict.examples.push(format!("{claim} was given out twice"));
        }
    }
    report(stage, ("keys-claim", "claim"), devices, outcome, (before, after), verdict)
}

fn report(
    stage: &Stage<'_>,
    (scenario, operation): (&'static str, &'static str),
    devices: &[Device],
    outcome: Outcome,
    (before, after): (Usage, Usage),
    verdict: Verdict,
) -> Result<Report, Error> {
    Ok(stage.report(Measured {
        scenario,
        operation,
        parameters: json!({ "devices": devices.len(), "keys": KEYS, "queried": QUERIED }),
        operations: outcome.operations,
        outcome,
        more: Vec::new(),
        before,
        after,
        verdict,
    }))
}
