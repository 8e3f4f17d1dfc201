//! What the log of key messages costs: the same request with messages that are logged, and with such that are not.
//!
//! Both go through the same checks and are stored alike; a refusal (`withheld`) makes an entry in the log of each end, a
//! confirmation (`ack`) none.

use std::sync::Arc;

use clap::Args;
use serde_json::{Map, Value, json};

use super::{Measured, Stage};
use crate::{
    Error,
    account::User,
    api::{Call, Failure, encode, unique},
    check::Verdict,
    drive::drive,
    keybox,
    report::Report,
};

/// The size of each message, about that of a resource key.
const MESSAGE_BYTES: usize = 1_000;

/// How many get each message.
#[derive(Args, Clone, Debug)]
pub struct KeyBoxes {
    /// How many KeyBoxes one request writes to, each of an account of its own.
    #[arg(long, default_value_t = 1_000)]
    keyboxes: usize,
}

pub(super) async fn run(stage: &Stage<'_>, args: &KeyBoxes) -> Result<Vec<Report>, Error> {
    let sender = stage.users(1).await?.pop().ok_or_else(|| Error::Usage("there is nobody".to_owned()))?;
    let users = stage.users(args.keyboxes).await?;
    let room = room(&sender).await?;
    for user in &users {
        user.need("join", &Call::post(format!("/join/{}", encode(&room)), json!({}))).await?;
    }
    let shared = Arc::new((sender, users, room));
    let mut reports = Vec::new();
    // In turn and again, so that what the first one finds cold is not held against it.
    for (scenario, kind) in [
        ("key-messages-warm-up", "resource_key.ack"),
        ("key-messages-not-logged", "resource_key.ack"),
        ("key-messages-logged", "resource_key.withheld"),
    ] {
        let (before, shared) = (stage.usage()?, shared.clone());
        let outcome = drive(stage.run.pace, stage.run.end, move |_| {
            let shared = shared.clone();
            async move { send(&shared.0, &shared.1, &shared.2, kind).await }
        })
        .await?;
        let after = stage.usage()?;
        reports.push(stage.report(Measured {
            scenario,
            operation: "request",
            parameters: json!({ "keyboxes": args.keyboxes, "bytes": MESSAGE_BYTES }),
            operations: outcome.operations,
            outcome,
            more: Vec::new(),
            before,
            after,
            verdict: Verdict::default(),
        }));
    }
    Ok(reports)
}

async fn room(sender: &User) -> Result<String, Error> {
    let suite = keybox::suite()?.id;
    let encryption =
        json!({ "type": "m.room.encryption", "state_key": "", "content": { "algorithm": suite } });
    let request = json!({ "preset": "public_chat", "initial_state": [encryption] });
    let answer = sender.need("createRoom", &Call::post("/createRoom", request)).await?;
    Ok(answer["room_id"].as_str().unwrap_or_default().to_owned())
}

async fn send(sender: &User, to: &[User], room: &str, kind: &str) -> Result<(), Failure> {
    let mut content = json!({
        "algorithm": keybox::suite().map_err(|error| Failure(error.to_string()))?.id, "room_id": room,
        "key_id": "AAAAAAAAAAAAAAAAAAAAAA", "sender_keybox": sender.device, "signature": "AAAA",
        "exchange_id": unique(), "code": "m.unavailable", "reason": "It is not here.",
    });
    let length = content.to_string().len();
    content["padding"] = "x".repeat(MESSAGE_BYTES.saturating_sub(length)).into();
    let messages: Map<String, Value> =
        to.iter().map(|user| (user.id.clone(), json!({ &user.device: content }))).collect();
    let path = format!("/sendToDevice/com.trustner.keybox.{kind}/{}", unique());
    sender.ok(&Call::put(path, json!({ "messages": messages }))).await.map(drop)
}
