//! `[traces]`: traces by OpenTelemetry.

use super::reader::Section;

/// Traces by OpenTelemetry.
#[derive(Clone, Debug)]
pub struct TraceSettings {
    /// `traces.otlp_endpoint`: the URL of a collector that takes OTLP over HTTP, without `/v1/traces` and without a slash at
    /// the end; none by default, and nothing is traced.
    pub otlp_endpoint: Option<String>,
    /// `traces.sample_ratio`: the share of the requests that are traced, from 0 to 1; default 1. A request that brings a
    /// `traceparent` header is traced if that says so.
    pub sample_ratio: f64,
}

impl TraceSettings {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let otlp_endpoint: Option<String> = section.optional("otlp_endpoint");
        let is_url = |url: &String| {
            url.parse::<http::Uri>().is_ok_and(|url| {
                url.authority().is_some() && matches!(url.scheme_str(), Some("http" | "https"))
            })
        };
        if otlp_endpoint.as_ref().is_some_and(|url| !is_url(url)) {
            section.problem("otlp_endpoint", "must be a URL that begins with https:// or http://");
        }
        let sample_ratio = section.value("sample_ratio", || 1.0);
        if !(0.0..=1.0).contains(&sample_ratio) {
            section.problem("sample_ratio", "must be from 0 to 1");
        }
        let otlp_endpoint = otlp_endpoint.map(|url| url.trim_end_matches('/').to_owned());
        Self { otlp_endpoint, sample_ratio }
    }
}
