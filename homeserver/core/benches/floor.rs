//! What no server can save itself for one event, the database aside: reading the request's JSON, writing the event's once,
//! two SHA-256 hashes of it, one Ed25519 signature, the answer's JSON.
//!
//! Prints the processor time of one thread, in milliseconds an event. `tests/load/floor` sets the whole server beside it.

use std::{collections::BTreeMap, fs, hint::black_box, time::Instant};

use openssl::sha::sha256;
use ruma::signatures::{Ed25519KeyPair, KeyPair as _};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

/// Bytes of text in a message: what the load generator sends.
const TEXT: usize = 200;
const EVENTS: u32 = 20_000;

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    #[allow(dead_code, reason = "reading them is what is measured")]
    fields: BTreeMap<&'a str, &'a RawValue>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let key = Ed25519KeyPair::from_der(&Ed25519KeyPair::generate(), "1".to_owned())?;
    let content = json!({"msgtype": "m.text", "body": "x".repeat(TEXT)});
    let request = json!({"fields": content}).to_string();
    let event = json!({
        "type": "m.room.message", "room_id": format!("!{}", "r".repeat(43)), "sender": "@someone:example.org",
        "content": content, "origin_server_ts": 1_700_000_000_000_u64, "depth": 12_345,
        "prev_events": [format!("${}", "p".repeat(43))],
        "auth_events": vec![format!("${}", "a".repeat(43)); 3],
        "hashes": {"sha256": "h".repeat(43)},
        "signatures": {"example.org": {"ed25519:1": "s".repeat(86)}},
    });

    let (started, cpu) = (Instant::now(), cpu_ticks()?);
    for _ in 0..EVENTS {
        let body: Body<'_> = serde_json::from_str(black_box(&request))?;
        black_box(body);
        let json = serde_json::to_string(black_box(&event))?;
        let content_hash = sha256(black_box(json.as_bytes()));
        let reference_hash = sha256(black_box(json.as_bytes()));
        black_box((content_hash, key.sign(json.as_bytes())));
        black_box(format!("{{\"event_id\":\"${}\"}}", hex(&reference_hash)));
    }
    let (wall, ticks) = (started.elapsed(), cpu_ticks()? - cpu);
    println!(
        "{}",
        json!({
            "events": EVENTS,
            "event_bytes": serde_json::to_string(&event)?.len(),
            "cpu_ms_per_event": f64::from(ticks) * 10.0 / f64::from(EVENTS),
            "wall_ms_per_event": wall.as_secs_f64() * 1e3 / f64::from(EVENTS),
        })
    );
    Ok(())
}

fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// CPU time of this process, user and system, in hundredths of a second (`man 5 proc`).
fn cpu_ticks() -> Result<u32, Box<dyn std::error::Error>> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(") ").ok_or("no stat line")?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut next = || Ok::<u32, Box<dyn std::error::Error>>(fields.next().ok_or("too short")?.parse()?);
    Ok(next()? + next()?)
}
