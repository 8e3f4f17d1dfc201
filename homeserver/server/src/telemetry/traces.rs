//! Traces by OpenTelemetry: a span for each request, and below it one for each transaction or wait that it was made of.
//!
//! Spans queue in memory, up to a bound, and a thread of the SDK's sends them (OTLP, protobuf over HTTP). No request ever waits for that; what the queue
//! does not take is dropped. Without `traces.otlp_endpoint` there is nothing of all this.

use std::{
    future::Future,
    pin::Pin,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_openssl::client::legacy::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect},
    rt::{TokioExecutor, TokioTimer},
};
use openssl::ssl::{SslConnector, SslMethod, SslVersion};
use opentelemetry::{
    Context, KeyValue,
    propagation::TextMapPropagator as _,
    trace::{
        Span as _, SpanContext, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _,
    },
};
use opentelemetry_http::{HeaderExtractor, HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, Span},
};
use ruma::MilliSecondsSinceUnixEpoch;
use tokio::{runtime::Handle, time::Instant};

use crate::config::traces::TraceSettings;

/// How many spans may wait to be sent.
const QUEUE: usize = 4_096;
/// How long they wait for more to be sent with them.
const SEND_EVERY: Duration = Duration::from_secs(1);
/// How long a collector may take to be connected to, and to answer.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(10);
/// The largest answer that is read, in bytes.
const LARGEST_ANSWER: usize = 64 * 1024;
/// How long a stop waits for the last spans to be sent.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Why traces cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// The exporter cannot be made.
    #[error("the exporter cannot be made")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// OpenSSL cannot be set up.
    #[error("OpenSSL cannot be set up")]
    Tls(#[from] openssl::error::ErrorStack),
}

/// Tells a collector what requests did.
pub struct Traces(Option<Exporting>);

struct Exporting {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// The trace of a request.
#[derive(Debug)]
pub struct RequestTrace {
    tracer: SdkTracer,
    span: Mutex<Span>,
    context: SpanContext,
    /// The same moment by the clock and by the stopwatch.
    began: (SystemTime, Instant),
}

/// How a request was answered.
pub struct Answered<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its route's template.
    pub route: &'static str,
    /// The answer's status.
    pub status: StatusCode,
    /// The errcode, if it is an error.
    pub errcode: Option<&'a str>,
}

impl Traces {
    /// Begins to send traces, if the settings say where to.
    ///
    /// # Errors
    ///
    /// [`TracesError`]; that a collector does not answer is none.
    pub fn start(settings: &TraceSettings) -> Result<Self, TracesError> {
        let Some(endpoint) = &settings.otlp_endpoint else { return Ok(Self(None)) };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector::new()?)
            .with_endpoint(format!("{endpoint}/v1/traces"))
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(ANSWER)
            .build()?;
        let config =
            BatchConfigBuilder::default().with_max_queue_size(QUEUE).with_scheduled_delay(SEND_EVERY);
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(config.build()).build();
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder().with_service_name("keystead").with_attribute(version).build();
        let share = Sampler::TraceIdRatioBased(settings.sample_ratio);
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_sampler(Sampler::ParentBased(Box::new(share)))
            .with_resource(resource)
            .build();
        let tracer = provider.tracer("keystead");
        Ok(Self(Some(Exporting { provider, tracer })))
    }

    /// Begins the trace of a request, if it is one of those that are traced: as its `traceparent` header says, or else by chance.
    ///
    /// <https://www.w3.org/TR/trace-context/>
    #[must_use]
    pub fn begin(&self, headers: &HeaderMap, now: MilliSecondsSinceUnixEpoch) -> Option<RequestTrace> {
        let Exporting { tracer, .. } = self.0.as_ref()?;
        let began = (now.to_system_time()?, Instant::now());
        let parent =
            TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
        let builder = tracer.span_builder("request").with_kind(SpanKind::Server).with_start_time(began.0);
        let span = builder.start_with_context(tracer, &parent);
        let context = span.span_context().clone();
        let trace = RequestTrace { tracer: tracer.clone(), span: Mutex::new(span), context, began };
        trace.context.is_sampled().then_some(trace)
    }

    /// Sends what waits to be sent, for a moment at most.
    pub async fn finish(&self) {
        let Some(Exporting { provider, .. }) = &self.0 else { return };
        let provider = provider.clone();
        // It blocks. What cannot be sent any more is lost, and no reason not to stop.
        let _ = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(LAST_WORDS)).await;
    }
}

impl RequestTrace {
    /// Notes that something has just ended that took so long.
    pub fn note(&self, name: &'static str, took: Duration) {
        let end = self.now();
        let start = end.checked_sub(took).unwrap_or(end).max(self.began.0);
        let parent = Context::new().with_remote_span_context(self.context.clone());
        let builder = self.tracer.span_builder(name).with_kind(SpanKind::Internal).with_start_time(start);
        builder.start_with_context(&self.tracer, &parent).end_with_timestamp(end);
    }

    /// Ends the trace of a request that was answered.
    pub fn end(&self, answered: &Answered<'_>) {
        let Answered { method, route, status, errcode } = answered;
        let mut span = self.span.lock().unwrap_or_else(PoisonError::into_inner);
        span.update_name(format!("{method} {route}"));
        span.set_attribute(KeyValue::new("http.request.method", method.to_string()));
        span.set_attribute(KeyValue::new("http.route", *route));
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
        if let Some(errcode) = errcode {
            span.set_attribute(KeyValue::new("matrix.errcode", (*errcode).to_owned()));
        }
        if status.is_server_error() {
            span.set_status(Status::error(""));
        }
        span.end_with_timestamp(self.now());
    }

    fn now(&self) -> SystemTime {
        self.began.0.checked_add(self.began.1.elapsed()).unwrap_or(self.began.0)
    }
}

/// The way to the collector: hyper and OpenSSL, as everywhere here.
#[derive(Debug)]
struct Collector {
    client: Client<HttpsConnector<connect::HttpConnector>, Full<Bytes>>,
    /// Where connections are driven: the SDK's thread has no reactor.
    runtime: Handle,
}

impl Collector {
    fn new() -> Result<Self, openssl::error::ErrorStack> {
        let mut tls = SslConnector::builder(SslMethod::tls_client())?;
        tls.set_min_proto_version(Some(SslVersion::TLS1_2))?;
        let mut tcp = connect::HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT));
        let connector = HttpsConnector::with_connector(tcp, tls)?;
        let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Ok(Self { client, runtime: Handle::current() })
    }
}

impl HttpClient for Collector {
    /// What `async fn send_bytes` in a trait that is used as an object comes to.
    fn send_bytes<'a, 'async_trait>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'async_trait>>
    where
        'a: 'async_trait,
        Self: 'async_trait,
    {
        let client = self.client.clone();
        let asking = async move {
            let (parts, body) = client.request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, LARGEST_ANSWER).collect().await?.to_bytes();
            Ok::<_, HttpError>(Response::from_parts(parts, body))
        };
        // Also the time-out is made there.
        let asked = self.runtime.spawn(async move { tokio::time::timeout(ANSWER, asking).await });
        Box::pin(async move { asked.await?? })
    }
}

#[cfg(test)]
mod tests {
    use ruma::UInt;

    use super::*;

    fn traces(ratio: f64) -> Traces {
        let settings =
            TraceSettings { otlp_endpoint: Some("http://127.0.0.1:1".to_owned()), sample_ratio: ratio };
        Traces::start(&settings).unwrap()
    }

    fn begin(traces: &Traces, traceparent: Option<&str>) -> Option<RequestTrace> {
        let mut headers = HeaderMap::new();
        headers.extend(
            traceparent
                .map(|value| (http::header::HeaderName::from_static("traceparent"), value.parse().unwrap())),
        );
        traces.begin(&headers, MilliSecondsSinceUnixEpoch(UInt::from(1_000_000_u32)))
    }

    #[tokio::test]
    async fn a_request_is_traced_as_its_caller_says_or_else_by_chance() {
        let (none, all) = (traces(0.0), traces(1.0));
        let caller = |flags: &str| format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}");
        assert!(begin(&none, None).is_none() && begin(&all, None).is_some());
        assert!(begin(&all, Some(&caller("00"))).is_none());
        let traced = begin(&none, Some(&caller("01"))).unwrap();
        assert_eq!(traced.context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(begin(&none, Some("nonsense")).is_none() && begin(&all, Some("nonsense")).is_some());
        let off = Traces::start(&TraceSettings { otlp_endpoint: None, sample_ratio: 1.0 }).unwrap();
        assert!(begin(&off, Some(&caller("01"))).is_none());
    }

    /// A collector that is away costs nobody any time, however much is told to it.
    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_waits_for_a_collector_that_is_away() {
        let traces = traces(1.0);
        let started = Instant::now();
        for _ in 0..3 * QUEUE {
            let trace = begin(&traces, None).unwrap();
            trace.note("transaction", Duration::from_millis(1));
            trace.end(&Answered { method: &Method::GET, route: "/x", status: StatusCode::OK, errcode: None });
        }
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        traces.finish().await;
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    }
}
