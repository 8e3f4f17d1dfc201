//! What traces cost a request: when they are off, when they are on and the request is not one of the sample, and when it is.
//!
//! Prints nanoseconds a request as JSON: `without` is what a request's record costs that no trace is ever asked of, `off`, `not_sampled` and `sampled` are the same
//! with all that a request does for traces, three notes included. Time of the request's own thread; of a few rounds the fastest counts.
//! `tests/load/traces` sets it beside a whole request.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, Method, StatusCode};
use keystead_server::{
    config::traces::TraceSettings,
    telemetry::{
        request::{RequestRecord, note, scope},
        traces::{Answered, RequestTrace, Traces},
    },
};
use ruma::{MilliSecondsSinceUnixEpoch, UInt};
use serde_json::json;

const REQUESTS: u32 = 100_000;
const ROUNDS: usize = 9;
/// Transactions and waits of a request that writes an event.
const NOTES: usize = 3;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let without = measure(|| RequestRecord::new(None), 0).await;
    let off = traced(None, 1.0).await?;
    let not_sampled = traced(Some("http://127.0.0.1:1"), 0.0).await?;
    let sampled = traced(Some("http://127.0.0.1:1"), 1.0).await?;
    println!("{}", json!({ "without": without, "off": off, "not_sampled": not_sampled, "sampled": sampled }));
    Ok(())
}

/// Nanoseconds of a request with traces that are set so.
async fn traced(endpoint: Option<&str>, sample_ratio: f64) -> Result<f64, Box<dyn std::error::Error>> {
    let settings = TraceSettings { otlp_endpoint: endpoint.map(str::to_owned), sample_ratio };
    let traces = Traces::start(&settings)?;
    let (headers, now) = (HeaderMap::new(), MilliSecondsSinceUnixEpoch(UInt::from(1_000_000_u32)));
    Ok(measure(|| RequestRecord::new(traces.begin(black_box(&headers), now)), NOTES).await)
}

/// Nanoseconds of a request whose record is made so, and that notes so much.
async fn measure(record: impl Fn() -> RequestRecord, notes: usize) -> f64 {
    let mut fastest = Duration::MAX;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        for _ in 0..REQUESTS {
            request(Arc::new(record()), notes).await;
        }
        fastest = fastest.min(started.elapsed());
    }
    fastest.as_secs_f64() * 1e9 / f64::from(REQUESTS)
}

/// What `http::service` does with the record of a request.
async fn request(record: Arc<RequestRecord>, notes: usize) {
    let work = async {
        for _ in 0..black_box(notes) {
            note("transaction", Duration::from_micros(100));
        }
    };
    scope(Arc::clone(&record), work).await;
    if let Some(trace) = black_box(&record).trace() {
        end(trace);
    }
}

fn end(trace: &RequestTrace) {
    trace.end(&Answered { method: &Method::PUT, route: "/send", status: StatusCode::OK, errcode: None });
}
