//! The table of endpoints: paths and methods come from the request types, one line an endpoint.

use std::{collections::BTreeMap, future::Future, marker::PhantomData, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use keystead_core::json::{JsonRefusal, is_too_deep};
use percent_encoding::percent_decode_str;
use ruma::{
    UserId,
    api::{IncomingRequest, Metadata, path_builder::PathBuilder as _},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    app::App,
    context::Ctx,
    http::{
        auth::{AuthKind, Authenticate},
        body::IncomingBody,
        client_address::Client,
        error::ApiError,
        reply::Reply,
        service::Answering,
    },
    rate_limits::Limit,
};

/// All endpoints of the server.
#[derive(Default)]
pub struct Router {
    paths: matchit::Router<usize>,
    /// For each registered path, the endpoints by method; `paths` holds the indexes.
    methods: Vec<BTreeMap<String, Arc<Endpoint>>>,
    /// The index into `methods` of each path, with its parameters numbered.
    indexes: BTreeMap<String, usize>,
    routes: Vec<RouteInfo>,
}

/// One endpoint.
pub struct Endpoint {
    /// The newest of its paths, as the specification writes it; labels metrics and the access log.
    pub template: &'static str,
    /// How it is run.
    pub options: Options,
    handler: Box<dyn Handle>,
    /// Whether the handler reads the body itself, part by part.
    is_streaming: bool,
}

/// How an endpoint is run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whether the request waits, before it is authenticated, until this replica has seen all that was committed.
    pub fence: bool,
    /// Whether the endpoint waits for something to happen; such a wait ends with its client and with the server.
    pub long_poll: bool,
    /// The greatest size of the request's body in bytes; None for the configured one.
    pub body_limit: Option<usize>,
    /// Whether it is answered even where there are too many connections.
    pub beyond_limit: bool,
}

impl Options {
    /// Fenced, answers at once, body as configured.
    pub const NORMAL: Self = Self { fence: true, long_poll: false, body_limit: None, beyond_limit: false };
    /// May wait, ends when its client hangs up; fenced unless the client asks it to wait.
    pub const LONG_POLL: Self = Self { fence: false, long_poll: true, ..Self::NORMAL };
    /// Not fenced: the answer does not depend on what the database holds, or the endpoint sees to it itself.
    pub const UNFENCED: Self = Self { fence: false, ..Self::NORMAL };
    /// For those who watch the server: an orchestrator that hears nothing ends it, and all its clients come to another.
    pub const PROBE: Self = Self { beyond_limit: true, ..Self::UNFENCED };
}

/// A line of the route table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct RouteInfo {
    /// The path with its parameters in braces.
    pub path: &'static str,
    /// The HTTP method.
    pub method: String,
    /// Who may call it.
    #[serde(rename = "auth")]
    auth: &'static str,
    /// The newest path of the endpoint: the label of its metrics and log lines.
    #[serde(skip)]
    pub template: &'static str,
}

impl RouteInfo {
    /// Who may call it: `none`, `optional`, `user`, `admin` or `appservice`.
    #[must_use]
    pub fn auth(&self) -> &'static str {
        self.auth
    }
}

/// What a path and a method lead to.
pub enum Found {
    /// An endpoint, with the decoded parameters of the path in their order.
    Endpoint(Arc<Endpoint>, Vec<String>),
    /// The path exists, with other methods only; these.
    OtherMethods(Vec<String>),
    /// No endpoint has such a path.
    Nothing,
    /// A parameter of the path is not valid percent-encoded UTF-8.
    BadEncoding,
}

/// What a streaming endpoint gets of a request besides ruma's type, whose own body is empty.
#[derive(Debug)]
pub struct Streaming {
    /// GET or HEAD, POST or PUT.
    pub method: Method,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: IncomingBody,
}

/// A request to an endpoint for which ruma has no type.
#[derive(Clone, Debug)]
pub struct OwnRequest {
    /// The decoded parameters of the path, in their order.
    pub path: Vec<String>,
    /// The undecoded query string, without the question mark.
    pub query: Option<String>,
    /// The body.
    pub body: Bytes,
}

impl OwnRequest {
    /// The parameter of the path at this place, counted from 0; empty if there are fewer.
    #[must_use]
    pub fn path_arg(&self, index: usize) -> &str {
        self.path.get(index).map_or("", String::as_str)
    }

    /// Reads the body as JSON.
    ///
    /// # Errors
    ///
    /// 400 `M_NOT_JSON` or `M_BAD_JSON`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        check_encoding(&self.body)?;
        let json = serde_json::from_slice(&self.body).map_err(|error| {
            if error.is_data() {
                ApiError::bad_json(error.to_string())
            } else {
                ApiError::not_json(error.to_string())
            }
        })?;
        check_depth(&self.body)?;
        Ok(json)
    }

    /// The value of a query parameter, decoded; the first one if there are several.
    #[must_use]
    pub fn query_arg(&self, name: &str) -> Option<String> {
        let query = self.query.as_deref()?;
        query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name)
                .then(|| percent_decode_str(&value.replace('+', " ")).decode_utf8_lossy().into_owned())
        })
    }
}

impl Router {
    /// Registers the endpoint that `handler` answers, under all paths of its request type.
    pub fn route<Req, F, Fut, Rep>(&mut self, handler: F) -> &mut Self
    where
        Req: IncomingRequest + Metadata<Authentication: Authenticate> + Send + Sync + 'static,
        F: Fn(Ctx<<Req::Authentication as Authenticate>::Requester>, Req) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Rep, ApiError>> + Send + 'static,
        Rep: Reply + 'static,
    {
        self.route_with(Options::NORMAL, handler)
    }

    /// Like [`Router::route`], run as `options` say.
    pub fn route_with<Req, F, Fut, Rep>(&mut self, options: Options, handler: F) -> &mut Self
    where
        Req: IncomingRequest + Metadata<Authentication: Authenticate> + Send + Sync + 'static,
        F: Fn(Ctx<<Req::Authentication as Authenticate>::Requester>, Req) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Rep, ApiError>> + Send + 'static,
        Rep: Reply + 'static,
    {
        let paths: Vec<&'static str> = Req::PATH_BUILDER.all_paths().collect();
        let handler = Typed { handler: Arc::new(handler), request: PhantomData::<fn(Req)> };
        let (auth, handler) = (<Req::Authentication as Authenticate>::KIND, Box::new(handler));
        self.add(Req::METHOD, &paths, auth, Endpoint::new(options, handler))
    }

    /// Like [`Router::route_with`], for files: the handler reads the body itself, part by part and with a limit of its
    /// own, and sees the headers.
    pub fn route_streaming<Req, F, Fut, Rep>(&mut self, options: Options, handler: F) -> &mut Self
    where
        Req: IncomingRequest + Metadata<Authentication: Authenticate> + Send + Sync + 'static,
        F: Fn(Ctx<<Req::Authentication as Authenticate>::Requester>, Req, Streaming) -> Fut,
        F: Send + Sync + 'static,
        Fut: Future<Output = Result<Rep, ApiError>> + Send + 'static,
        Rep: Reply + 'static,
    {
        let paths: Vec<&'static str> = Req::PATH_BUILDER.all_paths().collect();
        let handler = Box::new(Streamed { handler: Arc::new(handler), request: PhantomData::<fn(Req)> });
        let endpoint = Endpoint { is_streaming: true, ..Endpoint::new(options, handler) };
        self.add(Req::METHOD, &paths, <Req::Authentication as Authenticate>::KIND, endpoint)
    }

    /// Registers an endpoint for which ruma has no request type. `Auth` says who may call it.
    pub fn route_own<Auth, F, Fut, Rep>(
        &mut self,
        method: Method,
        path: &'static str,
        options: Options,
        handler: F,
    ) -> &mut Self
    where
        Auth: Authenticate,
        F: Fn(Ctx<Auth::Requester>, OwnRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Rep, ApiError>> + Send + 'static,
        Rep: Reply + 'static,
    {
        let handler = Own { handler: Arc::new(handler), auth: PhantomData::<fn(Auth)> };
        self.add(method, &[path], Auth::KIND, Endpoint::new(options, Box::new(handler)))
    }

    /// The route table, sorted by path.
    #[must_use]
    pub fn routes(&self) -> Vec<RouteInfo> {
        let mut routes = self.routes.clone();
        routes.sort();
        routes
    }

    /// Finds the endpoint for a method and an undecoded path; GET endpoints answer HEAD as well.
    #[must_use]
    pub fn find(&self, method: &Method, path: &str) -> Found {
        let Ok(matched) = self.paths.at(path) else { return Found::Nothing };
        let Some(methods) = self.methods.get(*matched.value) else { return Found::Nothing };
        let method = if method == Method::HEAD { &Method::GET } else { method };
        let Some(endpoint) = methods.get(method.as_str()) else {
            return Found::OtherMethods(methods.keys().cloned().collect());
        };
        let decoded: Result<Vec<String>, _> =
            matched.params.iter().map(|(_, value)| decode_segment(value)).collect();
        match decoded {
            Ok(args) => Found::Endpoint(Arc::clone(endpoint), args),
            Err(BadPercentEncoding) => Found::BadEncoding,
        }
    }

    fn add(
        &mut self,
        method: Method,
        paths: &[&'static str],
        auth: AuthKind,
        endpoint: Endpoint,
    ) -> &mut Self {
        let Some(template) = paths.last().copied() else { return self };
        let endpoint = Arc::new(Endpoint { template, ..endpoint });
        for path in paths {
            self.routes.push(RouteInfo { path, method: method.to_string(), auth: auth.name(), template });
            for variant in variants(path) {
                self.insert(&variant, &method, &endpoint);
            }
        }
        self
    }

    #[expect(
        clippy::panic,
        reason = "a conflict in the route table is a defect that no server should start with"
    )]
    fn insert(&mut self, path: &str, method: &Method, endpoint: &Arc<Endpoint>) {
        let key = number_parameters(path);
        let index = *self.indexes.entry(key.clone()).or_insert_with(|| {
            let index = self.methods.len();
            self.methods.push(BTreeMap::new());
            if let Err(error) = self.paths.insert(key, index) {
                panic!("the path {path} cannot be routed: {error}");
            }
            index
        });
        let known = self
            .methods
            .get_mut(index)
            .and_then(|methods| methods.insert(method.to_string(), Arc::clone(endpoint)));
        assert!(known.is_none(), "{method} {path} is registered twice");
    }
}

impl Endpoint {
    /// An endpoint that has no path yet.
    fn new(options: Options, handler: Box<dyn Handle>) -> Self {
        Self { template: "", options, handler, is_streaming: false }
    }

    /// Whether the handler reads the body itself, part by part.
    #[must_use]
    pub fn is_streaming(&self) -> bool {
        self.is_streaming
    }

    /// Checks who asks, reads the request and runs the handler. The body is in the request, or, for a streaming
    /// endpoint, beside it.
    ///
    /// # Errors
    ///
    /// Whatever the endpoint refuses with.
    pub fn answer(
        &self,
        app: Arc<App>,
        (request, body): (Request<Bytes>, Option<IncomingBody>),
        path_args: Vec<String>,
        client: Client,
    ) -> Answering {
        let fence = self.options.fence || (self.options.long_poll && !asks_to_wait(request.uri().query()));
        self.handler.handle(Call { app, request, body, path_args, client, fence })
    }
}

struct Call {
    app: Arc<App>,
    request: Request<Bytes>,
    /// The body of a request to a streaming endpoint.
    body: Option<IncomingBody>,
    path_args: Vec<String>,
    client: Client,
    fence: bool,
}

impl Call {
    /// Who asks. What was committed before the request came is seen first, so a session that another replica ended
    /// is refused here at once.
    async fn requester<Auth: Authenticate>(&self) -> Result<Auth::Requester, ApiError> {
        if self.fence && Auth::KIND != AuthKind::None {
            self.app.fence().await?;
        }
        Auth::authenticate(&self.app, &self.request, &self.client).await
    }

    /// Slows down who calls an endpoint that the specification calls rate-limited too often.
    fn limit<Req>(&self, requester: &<Req::Authentication as Authenticate>::Requester) -> Result<(), ApiError>
    where
        Req: Metadata<Authentication: Authenticate>,
    {
        if !Req::RATE_LIMITED {
            return Ok(());
        }
        let address = self.client.address.to_string();
        let subject = Req::Authentication::user(requester).map_or(address.as_str(), UserId::as_str);
        self.app.rate_limits.take(Limit::Requests, subject, self.app.clock.now())
    }

    /// Refuses a PUT without a body: all endpoints want an object there, and ruma would take nothing for an empty one.
    fn check_body(&self) -> Result<(), ApiError> {
        if self.request.method() == Method::PUT && self.request.body().is_empty() {
            return Err(ApiError::not_json("The body is empty: a JSON object was expected"));
        }
        Ok(())
    }

    /// The request as ruma's type.
    fn read<Req: IncomingRequest>(self) -> Result<Req, ApiError> {
        let args: Vec<&str> = self.path_args.iter().map(String::as_str).collect();
        let (parts, body) = self.request.into_parts();
        let body = if asks_without_body(&parts, &body) { b"{}" } else { body.as_ref() };
        check_encoding(body)?;
        let request = Req::try_from_http_request_inner(Request::from_parts(parts, body), &args)?;
        // What is no JSON has been refused by now.
        check_depth(body)?;
        Ok(request)
    }

    fn ctx<R>(&self, requester: R) -> Ctx<R> {
        Ctx {
            now: self.app.clock.now(),
            app: Arc::clone(&self.app),
            client_addr: self.client.address,
            user_agent: self.client.user_agent.clone(),
            requester,
        }
    }
}

trait Handle: Send + Sync {
    fn handle(&self, call: Call) -> Answering;
}

/// A handler whose request type is ruma's.
struct Typed<Req, F> {
    handler: Arc<F>,
    request: PhantomData<fn(Req)>,
}

impl<Req, F, Fut, Rep> Handle for Typed<Req, F>
where
    Req: IncomingRequest + Metadata<Authentication: Authenticate> + Send + Sync + 'static,
    F: Fn(Ctx<<Req::Authentication as Authenticate>::Requester>, Req) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Rep, ApiError>> + Send + 'static,
    Rep: Reply + 'static,
{
    fn handle(&self, call: Call) -> Answering {
        let handler = Arc::clone(&self.handler);
        // Boxed each: while the handler runs, and that may be a long-poll, it would keep the room for what was done before.
        let opened = Box::pin(async move {
            let requester = call.requester::<Req::Authentication>().await?;
            call.limit::<Req>(&requester)?;
            call.check_body()?;
            Ok::<_, ApiError>(Box::pin(handler(call.ctx(requester), call.read()?)))
        });
        Box::pin(async move { opened.await?.await?.into_response() })
    }
}

/// A handler whose request type is ruma's and that reads the body itself.
struct Streamed<Req, F> {
    handler: Arc<F>,
    request: PhantomData<fn(Req)>,
}

impl<Req, F, Fut, Rep> Handle for Streamed<Req, F>
where
    Req: IncomingRequest + Metadata<Authentication: Authenticate> + Send + Sync + 'static,
    F: Fn(Ctx<<Req::Authentication as Authenticate>::Requester>, Req, Streaming) -> Fut,
    F: Send + Sync + 'static,
    Fut: Future<Output = Result<Rep, ApiError>> + Send + 'static,
    Rep: Reply + 'static,
{
    fn handle(&self, mut call: Call) -> Answering {
        let handler = Arc::clone(&self.handler);
        Box::pin(async move {
            let requester = call.requester::<Req::Authentication>().await?;
            call.limit::<Req>(&requester)?;
            let ctx = call.ctx(requester);
            let body = call.body.take().ok_or_else(|| ApiError::internal("The body was read already"))?;
            let (method, headers) = (call.request.method().clone(), call.request.headers().clone());
            handler(ctx, call.read()?, Streaming { method, headers, body }).await?.into_response()
        })
    }
}

/// Refuses bytes that are no text: serde_json finds them where it reads a string only, not where it passes over one (RFC 8259, section 8.1).
fn check_encoding(body: &[u8]) -> Result<(), ApiError> {
    let text = std::str::from_utf8(body).map(drop);
    text.map_err(|error| ApiError::not_json(format!("The body is not UTF-8: {error}")))
}

/// Refuses what the server could read and store, but others could not read once it stands in an answer to them: device keys,
/// fields of a profile.
fn check_depth(body: &[u8]) -> Result<(), ApiError> {
    if is_too_deep(body) { Err(ApiError::bad_json(JsonRefusal::TooDeep.to_string())) } else { Ok(()) }
}

/// Whether a client leaves out a body that could only have been an empty object: some do so where all fields are optional,
/// as when they join a room.
fn asks_without_body(parts: &http::request::Parts, body: &Bytes) -> bool {
    let content_type = parts.headers.get(http::header::CONTENT_TYPE);
    let may_be_json = content_type.is_none_or(|value| value.as_bytes().starts_with(b"application/json"));
    parts.method == Method::POST && body.is_empty() && may_be_json
}

/// A handler whose request ruma has no type for.
struct Own<Auth, F> {
    handler: Arc<F>,
    auth: PhantomData<fn(Auth)>,
}

impl<Auth, F, Fut, Rep> Handle for Own<Auth, F>
where
    Auth: Authenticate,
    F: Fn(Ctx<Auth::Requester>, OwnRequest) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Rep, ApiError>> + Send + 'static,
    Rep: Reply + 'static,
{
    fn handle(&self, call: Call) -> Answering {
        let handler = Arc::clone(&self.handler);
        Box::pin(async move {
            let requester = call.requester::<Auth>().await?;
            let ctx = call.ctx(requester);
            let request = OwnRequest {
                query: call.request.uri().query().map(str::to_owned),
                path: call.path_args,
                body: call.request.into_body(),
            };
            handler(ctx, request).await?.into_response()
        })
    }
}

/// Whether a long-poll goes on from where the last one ended and may wait for news: then it need not see at once what
/// was committed just now, because it will hear of it.
fn asks_to_wait(query: Option<&str>) -> bool {
    let parameter = |name: &str| {
        let pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    parameter("since").is_some() && parameter("timeout").is_some_and(|timeout| timeout != "0")
}

/// The forms under which clients call one path of the specification.
fn variants(path: &str) -> Vec<String> {
    let mut variants = vec![path.to_owned()];
    // "The trailing slash on this endpoint is optional", and with it the state key is empty.
    if let Some(stem) = path.strip_suffix("/{state_key}") {
        variants.extend([stem.to_owned(), format!("{stem}/")]);
    } else if let Some(stem) = path.strip_suffix('/').filter(|stem| !stem.is_empty()) {
        variants.push(stem.to_owned());
    }
    variants
}

/// `/a/{x}/b/{y}` as `/a/{0}/b/{1}`: endpoints name the same place differently.
fn number_parameters(path: &str) -> String {
    let mut number = 0_usize;
    let segments = path.split('/').map(|segment| {
        if segment.starts_with('{') {
            number += 1;
            format!("{{{}}}", number - 1)
        } else {
            segment.to_owned()
        }
    });
    segments.collect::<Vec<_>>().join("/")
}

struct BadPercentEncoding;

fn decode_segment(segment: &str) -> Result<String, BadPercentEncoding> {
    let mut rest = segment;
    while let Some(at) = rest.find('%') {
        let digits = rest.get(at + 1..at + 3).ok_or(BadPercentEncoding)?;
        if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(BadPercentEncoding);
        }
        rest = rest.get(at + 3..).unwrap_or_default();
    }
    // No name that is part of a path has U+0000 in it, and no database could hold it.
    let decoded = percent_decode_str(segment).decode_utf8().ok().filter(|text| !text.contains('\0'));
    decoded.map(|text| text.into_owned()).ok_or(BadPercentEncoding)
}
