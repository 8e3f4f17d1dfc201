//! Results as metrics, pushed to a Prometheus Pushgateway: a run is over before anybody could scrape it.

use std::fmt::Write as _;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, header};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};

use crate::{Error, api::encode, report::Report};

/// Replaces what the gateway holds of each report's scenario and label.
///
/// # Errors
/// The gateway cannot be reached, or refuses.
pub async fn push(gateway: &str, reports: &[Report]) -> Result<(), Error> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    for report in reports {
        let url = format!(
            "{}/metrics/job/keystead-load/scenario/{}/label/{}/replicas/{}",
            gateway.trim_end_matches('/'),
            encode(&report.scenario),
            encode(&report.label),
            report.replicas,
        );
        let failed = |why: String| Error::server(format!("the Pushgateway at {url}"), why);
        let request = Request::put(&url)
            .header(header::CONTENT_TYPE, "text/plain; version=0.0.4")
            .body(Full::from(metrics(report)))
            .map_err(|error| failed(error.to_string()))?;
        let answer = client.request(request).await.map_err(|error| failed(error.to_string()))?;
        let status = answer.status();
        if !status.is_success() {
            let body = answer.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            return Err(failed(format!("{status} {}", String::from_utf8_lossy(&body))));
        }
    }
    Ok(())
}

/// The result in the text format of Prometheus.
pub fn metrics(report: &Report) -> String {
    let mut text = String::new();
    let mut gauge = |name: &str, help: &str, samples: &[(String, f64)]| {
        let _ = writeln!(text, "# HELP keystead_load_{name} {help}\n# TYPE keystead_load_{name} gauge");
        for (labels, value) in samples {
            let _ = writeln!(text, "keystead_load_{name}{labels} {value}");
        }
    };
    let one = |value: f64| [(String::new(), value)];
    let check = &report.check;
    gauge("operations", "Operations of the run that succeeded.", &one(float(report.operations)));
    gauge("operations_per_second", "Operations a second.", &one(report.rate));
    gauge("failures", "Operations that failed.", &one(float(report.failures.values().sum())));
    gauge("retried", "Requests that were sent again.", &one(float(report.retried)));
    gauge("deliveries", "Deliveries that were compared.", &one(float(check.deliveries)));
    gauge("lost", "Acknowledged and not delivered.", &one(float(check.lost)));
    gauge("doubled", "Delivered more than once.", &one(float(check.doubled)));
    gauge("reordered", "Delivered after a later one.", &one(float(check.reordered)));
    gauge("late", "Long-polls that hung although there was news.", &one(float(check.late)));
    let mut latencies = Vec::new();
    for (name, latency) in &report.latencies {
        for (percentile, ms) in &latency.percentiles {
            let quantile = percentile.parse::<f64>().unwrap_or_default() / 100.0;
            latencies.push((format!("{{operation=\"{name}\",quantile=\"{quantile}\"}}"), ms / 1e3));
        }
    }
    gauge("latency_seconds", "Latencies, from when an operation was due.", &latencies);
    gauge("end_timestamp_seconds", "When the run ended.", &one(float(report.time)));
    text
}

#[allow(clippy::cast_precision_loss)]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use serde_json::json;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::{check::Verdict, report::Latencies};

    fn report() -> Report {
        let mut latencies = Latencies::new().unwrap();
        latencies.record(Duration::from_millis(20));
        Report {
            scenario: "send".to_owned(),
            label: "a b".to_owned(),
            time: 1_700_000_000,
            began: 1_699_999_998.0,
            parameters: json!({}),
            replicas: 2,
            operations: 10,
            operation: "event".to_owned(),
            seconds: 2.0,
            rate: 5.0,
            failures: BTreeMap::from([("503 M_UNKNOWN".to_owned(), 3)]),
            retried: 1,
            latencies: BTreeMap::from([("send".to_owned(), latencies.summary())]),
            stalls: None,
            processes: BTreeMap::new(),
            check: Verdict { deliveries: 10, lost: 4, checked: true, ..Verdict::default() },
        }
    }

    #[tokio::test]
    async fn a_gateway_gets_what_the_run_has_shown() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = format!("http://{}/", listener.local_addr().unwrap());
        let received = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 65_536];
            let mut length = 0;
            while !String::from_utf8_lossy(&request[..length]).contains("end_timestamp_seconds 1") {
                length += stream.read(&mut request[length..]).await.unwrap();
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        push(&gateway, &[report()]).await.unwrap();
        let request = received.await.unwrap();
        assert!(
            request.starts_with(
                "PUT /metrics/job/keystead-load/scenario/send/label/a%20b/replicas/2 HTTP/1.1\r\n"
            ),
            "{request}"
        );
        for line in [
            "keystead_load_lost 4",
            "keystead_load_failures 3",
            "keystead_load_operations_per_second 5",
            "keystead_load_latency_seconds{operation=\"send\",quantile=\"0.5\"} 0.02",
        ] {
            assert!(request.contains(line), "{line} in {request}");
        }
    }

    #[tokio::test]
    async fn a_gateway_that_is_not_there_is_an_error() {
        assert!(push("http://127.0.0.1:1", &[report()]).await.is_err());
    }
}
