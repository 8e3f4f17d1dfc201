//! The walk of one request: find the endpoint, read the body, run the handler, write the log line.

use std::{future::ready, net::IpAddr, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, Version, header};
use hyper::body::Incoming;
use keystead_store::with_query_stats;
use ruma::api::error::ErrorCode;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    app::App,
    http::{
        access_log,
        body::{self, Body, IncomingBody, RequestBody},
        client_address::Client,
        cors,
        error::{ApiError, ErrorReport},
        router::{Endpoint, Found, Router},
    },
    telemetry::{
        metrics::Counted,
        request::{self, RequestRecord},
        traces::Answered,
    },
};

/// The label of requests that lead to no endpoint, in metrics and in the access log.
pub const NO_ROUTE: &str = "none";

/// What becomes of a request.
pub(super) type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, ApiError>> + Send>>;

/// What is written down of a request when it is answered.
struct Exchange {
    started: Instant,
    method: Method,
    version: Version,
    route: &'static str,
    client: Client,
    beyond_limit: bool,
    record: Arc<RequestRecord>,
    _in_flight: Counted,
}

/// Answers requests; shared by all connections.
#[derive(Clone)]
pub struct Service {
    app: Arc<App>,
    router: Arc<Router>,
}

impl Service {
    /// A service that answers with the endpoints of `router`.
    #[must_use]
    pub fn new(app: Arc<App>, router: Router) -> Self {
        Self { app, router: Arc::new(router) }
    }

    /// What the endpoints share.
    #[must_use]
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Answers one request that came in over a connection from `peer`; if there are more connections than may be, only probes,
    /// and the others with [`ApiError::too_many_connections`]. What is done at once is not part of the future: thousands of
    /// long-polls wait, and each would keep the room for it.
    pub fn answer(
        &self,
        request: Request<Incoming>,
        peer: IpAddr,
        beyond_limit: bool,
    ) -> impl Future<Output = Response<Body>> + Send + use<> {
        let (head, body) = request.into_parts();
        let body = RequestBody::new(&head, body);
        let request = Request::from_parts(head, body);
        let (started, in_flight) = (Instant::now(), self.app.metrics.request_begins());
        let client = Client::of(peer, request.headers(), &self.app.settings.server.trusted_proxies);
        let (method, version) = (request.method().clone(), request.version());
        let trace = self.app.traces.begin(request.headers(), self.app.clock.now());
        let record = Arc::new(RequestRecord::new(trace));
        let (route, answering) = self.route(request, client.clone(), &record, beyond_limit);
        let exchange =
            Exchange { started, method, version, route, client, beyond_limit, record, _in_flight: in_flight };
        let service = self.clone();
        async move { service.complete(&exchange, answering.await) }
    }

    /// Writes down what became of a request.
    fn complete(&self, exchange: &Exchange, answer: Result<Response<Body>, ApiError>) -> Response<Body> {
        let Exchange { started, method, version, route, client, beyond_limit, record, _in_flight } = exchange;
        let mut response =
            answer.unwrap_or_else(|error| self.with_contact(error).into_response().map(Body::from));
        cors::allow_any_origin(response.headers_mut());
        let took = started.elapsed();
        self.app.metrics.http_request(route, method, response.status(), took);
        access_log::write(&self.app.metrics, method, route, client, &response, record, took);
        if let Some(trace) = record.trace() {
            let report = response.extensions().get::<ErrorReport>();
            let errcode = report.and_then(|report| report.errcode.as_ref()).map(ErrorCode::as_str);
            trace.end(&Answered { method, route, status: response.status(), errcode });
        }
        if (*beyond_limit || self.app.shutdown.is_leaving()) && *version <= Version::HTTP_11 {
            // The client's next request comes over a new connection, which the load balancer may give to another replica.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        finish(method, response)
    }

    /// "The error MUST include an `admin_contact` field": whoever runs the server has to make room.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#other-error-codes>
    fn with_contact(&self, error: ApiError) -> ApiError {
        if error.errcode() != Some(&ErrorCode::ResourceLimitExceeded) {
            return error;
        }
        let settings = &self.app.settings;
        error.with("admin_contact", settings.support.contact(&settings.server.public_base_url))
    }

    /// The label of the endpoint that a request leads to, and its answer.
    fn route(
        &self,
        request: Request<RequestBody>,
        client: Client,
        record: &Arc<RequestRecord>,
        beyond_limit: bool,
    ) -> (&'static str, Answering) {
        let answer = if head_bytes(&request) > self.app.settings.limits.max_header_bytes {
            Err(ApiError::large_head())
        } else if request.method() == Method::OPTIONS {
            Ok(cors::preflight())
        } else {
            match self.router.find(request.method(), request.uri().path()) {
                Found::Endpoint(endpoint, _) if beyond_limit && !endpoint.options.beyond_limit => {
                    return (endpoint.template, Box::pin(ready(Err(ApiError::too_many_connections()))));
                }
                Found::Endpoint(endpoint, args) => {
                    return (endpoint.template, self.call(endpoint, request, args, client, record));
                }
                Found::OtherMethods(methods) => Ok(other_methods(&methods)),
                Found::Nothing => Err(ApiError::unrecognized()),
                Found::BadEncoding => {
                    Err(ApiError::invalid_param("A parameter of the path is not valid percent-encoded UTF-8"))
                }
            }
        };
        (NO_ROUTE, Box::pin(ready(answer)))
    }

    /// Reads the body and runs the endpoint in a task of its own, so that a panic ends that task only and a write whose client hung up
    /// still finishes; a long-poll ends with its client.
    fn call(
        &self,
        endpoint: Arc<Endpoint>,
        request: Request<RequestBody>,
        args: Vec<String>,
        client: Client,
        record: &Arc<RequestRecord>,
    ) -> Answering {
        let limits = &self.app.settings.limits;
        let limit = endpoint.options.body_limit.unwrap_or(limits.max_body_bytes);
        let long_poll = endpoint.options.long_poll;
        let read = Box::pin(read(request, endpoint.is_streaming(), limit, limits.body_timeout));
        let (service, record) = (self.clone(), Arc::clone(record));
        Box::pin(async move {
            let request = read.await?;
            let answer = endpoint.answer(Arc::clone(&service.app), request, args, client);
            let task = service.app.shutdown.tasks().spawn(answer_noting(answer, record));
            let ended = if long_poll { AbortOnDropHandle::new(task).await } else { task.await };
            ended.unwrap_or_else(|failure| {
                if failure.is_panic() {
                    service.app.metrics.handler_panicked();
                }
                Err(ApiError::internal(failure))
            })
        })
    }
}

/// The bytes of a request's line and headers, without what separates them. hyper looks only between two reads whether it has too many, and they double.
fn head_bytes(request: &Request<RequestBody>) -> usize {
    let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len());
    let line = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    headers.sum::<usize>() + line
}

/// Reads the body of a request; leaves it to the endpoint if that reads it itself.
async fn read(
    request: Request<RequestBody>,
    is_streaming: bool,
    limit: usize,
    timeout: Duration,
) -> Result<(Request<Bytes>, Option<IncomingBody>), ApiError> {
    let (parts, incoming) = request.into_parts();
    let (bytes, stream) = if is_streaming {
        (Bytes::new(), Some(IncomingBody::new(&parts.headers, incoming, timeout)))
    } else {
        (body::read(&parts.headers, incoming, limit, timeout).await?, None)
    };
    Ok((Request::from_parts(parts, bytes), stream))
}

/// Runs an endpoint; notes in the request's record what it asks of the database.
fn answer_noting(
    answer: Answering,
    record: Arc<RequestRecord>,
) -> impl Future<Output = Result<Response<Body>, ApiError>> {
    let noted = Arc::clone(&record);
    request::scope(record, async move {
        let (answer, stats) = with_query_stats(answer).await;
        noted.set_database(stats);
        answer
    })
}

fn other_methods(methods: &[String]) -> Response<Body> {
    let mut response = ApiError::method_not_allowed().into_response().map(Body::from);
    if let Ok(value) = HeaderValue::try_from(methods.join(", ")) {
        response.headers_mut().insert(header::ALLOW, value);
    }
    response
}

/// A HEAD request gets the headers of the answer that GET would have got.
fn finish(method: &Method, response: Response<Body>) -> Response<Body> {
    if method != Method::HEAD {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    Response::from_parts(parts, Bytes::new().into())
}
