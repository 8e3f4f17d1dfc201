//! What the metrics tell.

use super::*;

#[test]
fn names_are_unique_and_series_are_labelled() {
    let metrics = Metrics::new().unwrap();
    metrics.http_request("/_matrix/client/v3/sync", &Method::GET, StatusCode::OK, Duration::from_millis(10));
    metrics.http_error("M_NOT_FOUND");
    metrics.connection_error(ConnectionError::Tls);
    let text = metrics.encode().unwrap();
    assert!(text.contains(r#"keystead_http_requests_total{route="/_matrix/client/v3/sync",status="2xx"} 1"#));
    assert!(text.contains(r#"keystead_http_errors_total{errcode="M_NOT_FOUND"} 1"#));
    assert!(text.contains(r#"area="sync",method="GET""#));
}

#[test]
fn an_invented_method_makes_no_new_series() {
    let metrics = Metrics::new().unwrap();
    let method = Method::from_bytes(b"BREW").unwrap();
    metrics.http_request("none", &method, StatusCode::METHOD_NOT_ALLOWED, Duration::ZERO);
    let text = metrics.encode().unwrap();
    assert!(text.contains(r#"method="other""#) && !text.contains("BREW"));
}
