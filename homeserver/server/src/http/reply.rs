//! [`Reply`]: what an endpoint may answer with.

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Response, header};
use ruma::api::{OutgoingResponse, OutgoingResponseExt as _};

use crate::http::{body::Body, error::ApiError};

/// A successful answer of an endpoint.
pub trait Reply: Send {
    /// Turns the answer into an HTTP response.
    ///
    /// # Errors
    ///
    /// 500 `M_UNKNOWN` when the answer cannot be written down, which is a defect of ours.
    fn into_response(self) -> Result<Response<Body>, ApiError>;
}

impl<T: OutgoingResponse + Send> Reply for T {
    fn into_response(self) -> Result<Response<Body>, ApiError> {
        let response = self.try_into_http_response::<BytesMut>().map_err(ApiError::internal)?;
        Ok(response.map(|body| body.freeze().into()))
    }
}

/// A JSON body that is written down already, such as `/sync` puts together from stored events.
#[derive(Clone, Debug)]
pub struct RawJson(pub Bytes);

impl Reply for RawJson {
    fn into_response(self) -> Result<Response<Body>, ApiError> {
        Ok(with_content_type(self.0, HeaderValue::from_static("application/json")))
    }
}

/// Plain text, for people and for scrapers.
#[derive(Clone, Debug)]
pub struct PlainText {
    /// The text.
    pub text: String,
    /// Its media type.
    pub content_type: &'static str,
}

impl Reply for PlainText {
    fn into_response(self) -> Result<Response<Body>, ApiError> {
        Ok(with_content_type(Bytes::from(self.text), HeaderValue::from_static(self.content_type)))
    }
}

/// An answer that the endpoint has put together itself, such as a file with its ranges.
pub struct Custom(pub Response<Body>);

impl Reply for Custom {
    fn into_response(self) -> Result<Response<Body>, ApiError> {
        Ok(self.0)
    }
}

fn with_content_type(body: Bytes, content_type: HeaderValue) -> Response<Body> {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}
