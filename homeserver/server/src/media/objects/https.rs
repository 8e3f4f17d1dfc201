//! Requests to S3: by hyper and OpenSSL, as everything else here.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_openssl::client::legacy::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, Error as ClientError, connect},
    rt::{TokioExecutor, TokioTimer},
};
use object_store::{
    ClientOptions,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse,
        HttpResponseBody, HttpService,
    },
};
use openssl::ssl::{SslConnector, SslMethod, SslVersion};
use tokio::time::{Instant, Sleep};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// How long an answer may take to begin; putting the parts of a large object together takes the service a while.
const ANSWER: Duration = Duration::from_secs(120);
/// How long nothing may come of an answer that has begun.
const STALL: Duration = Duration::from_secs(30);

/// Makes the client of a bucket. Whether TLS is used, the endpoint's URL says, which the configuration has checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Https;

/// The client: its connections.
#[derive(Debug)]
struct Connections(Client<HttpsConnector<connect::HttpConnector>, HttpRequestBody>);

impl HttpConnector for Https {
    fn connect(&self, _options: &ClientOptions) -> Result<HttpClient, object_store::Error> {
        let tls = || {
            let mut tls = SslConnector::builder(SslMethod::tls_client())?;
            tls.set_min_proto_version(Some(SslVersion::TLS1_2))?;
            let mut tcp = connect::HttpConnector::new();
            tcp.enforce_http(false);
            tcp.set_nodelay(true);
            tcp.set_connect_timeout(Some(CONNECT));
            HttpsConnector::with_connector(tcp, tls)
        };
        let connector = tls().map_err(|error: openssl::error::ErrorStack| object_store::Error::Generic {
            store: "S3",
            source: Box::new(error),
        })?;
        let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Ok(HttpClient::new(Connections(client)))
    }
}

impl HttpService for Connections {
    /// What `async fn call` in a trait that is used as an object comes to.
    fn call<'a, 'async_trait>(
        &'a self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'async_trait>>
    where
        'a: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move {
            let answer = tokio::time::timeout(ANSWER, self.0.request(request)).await;
            let answer = answer.map_err(|late| HttpError::new(HttpErrorKind::Timeout, late))?;
            let (parts, body) = answer.map_err(|error| HttpError::new(kind(&error), error))?.into_parts();
            let body = Attentive { body, patience: Box::pin(tokio::time::sleep(STALL)) };
            Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)))
        })
    }
}

/// What may be tried again: all that did not reach the service for certain; the rest if twice is as good as once.
fn kind(error: &ClientError) -> HttpErrorKind {
    if error.is_connect() { HttpErrorKind::Connect } else { HttpErrorKind::Interrupted }
}

/// The body of an answer, which fails when nothing comes for a while.
struct Attentive {
    body: Incoming,
    patience: Pin<Box<Sleep>>,
}

impl Body for Attentive {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.patience.as_mut().reset(Instant::now() + STALL);
            return Poll::Ready(
                frame.map(|frame| frame.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error))),
            );
        }
        self.patience.as_mut().poll(context).map(|()| {
            let text = format!("nothing came for {} seconds", STALL.as_secs());
            Some(Err(HttpError::new(HttpErrorKind::Timeout, std::io::Error::other(text))))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
