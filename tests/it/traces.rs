//! Traces, at a receiver of the test's own.

use std::sync::{Arc, Mutex, PoisonError};

use hyper::Method;
use keystead_tests::{TestCluster, eventually, http::Request};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, common::v1::any_value::Value, trace::v1::Span,
};
use prost::Message as _;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

/// All spans that came.
type Spans = Arc<Mutex<Vec<Span>>>;

/// Takes OTLP over HTTP, as protobuf.
async fn receiver() -> (String, Spans) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let spans = Spans::default();
    let received = Arc::clone(&spans);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(receive(stream, Arc::clone(&received)));
        }
    });
    (url, spans)
}

async fn receive(stream: TcpStream, spans: Spans) {
    let mut stream = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or_default() == 0 {
            return;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
        if line.trim().is_empty() {
            break;
        }
        head.push_str(&line);
    }
    assert!(
        head.starts_with("POST /v1/traces HTTP/1.1\r\n") && head.contains("application/x-protobuf"),
        "{head}"
    );
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.expect("a body");
    let request = ExportTraceServiceRequest::decode(&*body).expect("protobuf");
    for resource in request.resource_spans {
        let attributes = resource.resource.expect("a resource").attributes;
        let service = attributes.iter().find(|attribute| attribute.key == "service.name").expect("a name");
        let value = service.value.as_ref().and_then(|value| value.value.as_ref());
        assert_eq!(value, Some(&Value::StringValue("keystead".to_owned())));
        let new = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        spans.lock().unwrap_or_else(PoisonError::into_inner).extend(new);
    }
    let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    stream.write_all(answer).await.expect("sent");
}

async fn until_span(what: &str, spans: &Spans, found: impl Fn(&Span) -> bool) -> Span {
    eventually(what, || async {
        spans.lock().unwrap_or_else(PoisonError::into_inner).iter().find(|span| found(span)).cloned()
    })
    .await
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attribute(span: &Span, key: &str) -> Option<Value> {
    let found = span.attributes.iter().find(|attribute| attribute.key == key)?;
    found.value.as_ref()?.value.clone()
}

#[tokio::test]
async fn requests_are_traced_with_their_transactions() {
    let (url, spans) = receiver().await;
    let cluster = TestCluster::start_with(&[("KEYSTEAD_TRACES_OTLP_ENDPOINT", &url)]).await;
    let alice = cluster.user("alice").await;
    let room = alice.create_public_room().await;

    // What the ingress began goes on here.
    let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let path = format!("/_matrix/client/v3/rooms/{room}/event/$nothing");
    let request = Request::new(Method::GET, path).header("traceparent", format!("00-{trace}-{parent}-01"));
    alice.send(request).await.refused(404, "M_NOT_FOUND");
    let span = until_span("the span of a request", &spans, |span| hex(&span.parent_span_id) == parent).await;
    assert_eq!(hex(&span.trace_id), trace);
    let route = "/_matrix/client/v3/rooms/{room_id}/event/{event_id}";
    assert_eq!(span.name, format!("GET {route}"));
    let text = |text: &str| Some(Value::StringValue(text.to_owned()));
    assert_eq!(attribute(&span, "http.route"), text(route));
    assert_eq!(attribute(&span, "http.response.status_code"), Some(Value::IntValue(404)));
    assert_eq!(attribute(&span, "matrix.errcode"), text("M_NOT_FOUND"));
    let child = until_span("a transaction of it", &spans, |child| child.parent_span_id == span.span_id).await;
    assert_eq!(hex(&child.trace_id), trace);
    assert!(child.start_time_unix_nano >= span.start_time_unix_nano, "{child:?} {span:?}");
    assert!(child.end_time_unix_nano <= span.end_time_unix_nano, "{child:?} {span:?}");

    // A message waits for the transaction that all that queue share.
    alice.send_text(&room, "secret words").await;
    let sent = until_span("the span of a message", &spans, |span| span.name.contains("/send/")).await;
    assert!(sent.parent_span_id.is_empty(), "{sent:?}");
    let waits = |span: &Span| span.parent_span_id == sent.span_id && span.name == "append_events";
    until_span("what it waited for", &spans, waits).await;
    let all = format!("{:?}", spans.lock().unwrap_or_else(PoisonError::into_inner));
    for secret in ["secret words", "alice", &room, &alice.token] {
        assert!(!all.contains(secret), "{secret} is in a span");
    }
}

#[tokio::test]
async fn a_stop_sends_what_is_left_and_nothing_is_traced_that_is_not_to_be() {
    let (url, spans) = receiver().await;
    let cluster = TestCluster::start_with(&[
        ("KEYSTEAD_TRACES_OTLP_ENDPOINT", &url),
        ("KEYSTEAD_TRACES_SAMPLE_RATIO", "0"),
    ])
    .await;
    let alice = cluster.user("alice").await.at(0);
    let trace = "00112233445566778899aabbccddeeff";
    let request = Request::new(Method::GET, "/_matrix/client/v3/account/whoami")
        .header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"));
    alice.send(request).await.ok();
    cluster.stop(0).await;
    let spans = spans.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(spans.iter().any(|span| span.name.ends_with("/account/whoami")), "{spans:?}");
    assert!(spans.iter().all(|span| hex(&span.trace_id) == trace), "{spans:?}");
}
