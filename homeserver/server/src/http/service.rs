//! The walk of one request: find the endpoint, read the body, run the handler, write the log line.

use std::{net::IpAddr, sync::Arc};

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
        body::{self, Body, IncomingBody},
        client_address::Client,
        cors,
        error::{ApiError, ErrorReport},
        router::{Endpoint, Found, Router},
    },
    telemetry::{
        request::{self, RequestRecord},
        traces::Answered,
    },
};

/// The label of requests that lead to no endpoint, in metrics and in the access log.
pub const NO_ROUTE: &str = "none";

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

    /// Answers one request that came in over a connection from `peer`.
    pub async fn answer(&self, request: Request<Incoming>, peer: IpAddr) -> Response<Body> {
        let started = Instant::now();
        let _in_flight = self.app.metrics.request_begins();
        let client = Client::of(peer, request.headers(), &self.app.settings.server.trusted_proxies);
        let (method, version) = (request.method().clone(), request.version());
        let trace = self.app.traces.begin(request.headers(), self.app.clock.now());
        let record = Arc::new(RequestRecord::new(trace));
        let (route, response) = self.route(request, client.clone(), &record).await;
        let mut response =
            response.unwrap_or_else(|error| self.with_contact(error).into_response().map(Body::from));
        cors::allow_any_origin(response.headers_mut());
        let took = started.elapsed();
        self.app.metrics.http_request(route, &method, response.status(), took);
        access_log::write(&self.app.metrics, &method, route, &client, &response, &record, took);
        if let Some(trace) = record.trace() {
            let report = response.extensions().get::<ErrorReport>();
            let errcode = report.and_then(|report| report.errcode.as_ref()).map(ErrorCode::as_str);
            trace.end(&Answered { method: &method, route, status: response.status(), errcode });
        }
        if self.app.shutdown.is_leaving() && version <= Version::HTTP_11 {
            // The client's next request comes over a new connection, which the load balancer gives to another replica.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        finish(&method, response)
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

    async fn route(
        &self,
        request: Request<Incoming>,
        client: Client,
        record: &Arc<RequestRecord>,
    ) -> (&'static str, Result<Response<Body>, ApiError>) {
        if request.method() == Method::OPTIONS {
            return (NO_ROUTE, Ok(cors::preflight()));
        }
        match self.router.find(request.method(), request.uri().path()) {
            Found::Endpoint(endpoint, args) => {
                let template = endpoint.template;
                (template, self.call(endpoint, request, args, client, record).await)
            }
            Found::OtherMethods(methods) => (NO_ROUTE, Ok(other_methods(&methods))),
            Found::Nothing => (NO_ROUTE, Err(ApiError::unrecognized())),
            Found::BadEncoding => {
                let text = "A parameter of the path is not valid percent-encoded UTF-8";
                (NO_ROUTE, Err(ApiError::invalid_param(text)))
            }
        }
    }

    /// Runs the endpoint in a task of its own, so that a panic ends that task only and a write whose client hung up
    /// still finishes; a long-poll ends with its client.
    async fn call(
        &self,
        endpoint: Arc<Endpoint>,
        request: Request<Incoming>,
        args: Vec<String>,
        client: Client,
        record: &Arc<RequestRecord>,
    ) -> Result<Response<Body>, ApiError> {
        let limits = &self.app.settings.limits;
        let (parts, incoming) = request.into_parts();
        let limit = endpoint.options.body_limit.unwrap_or(limits.max_body_bytes);
        let (bytes, stream) = if endpoint.is_streaming() {
            (Bytes::new(), Some(IncomingBody::new(&parts.headers, incoming, limits.body_timeout)))
        } else {
            (body::read(&parts.headers, incoming, limit, limits.body_timeout).await?, None)
        };
        let request = Request::from_parts(parts, bytes);

        let long_poll = endpoint.options.long_poll;
        let app = Arc::clone(&self.app);
        let noted = Arc::clone(record);
        let task = self.app.shutdown.tasks().spawn(request::scope(Arc::clone(record), async move {
            let (answer, stats) =
                with_query_stats(endpoint.answer(app, (request, stream), args, client)).await;
            noted.set_database(stats);
            answer
        }));
        let ended = if long_poll { AbortOnDropHandle::new(task).await } else { task.await };
        ended.unwrap_or_else(|failure| {
            if failure.is_panic() {
                self.app.metrics.handler_panicked();
            }
            Err(ApiError::internal(failure))
        })
    }
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
