//! `[limits]`: what protects the server from clients that ask too much.

use std::time::Duration;

use super::reader::Section;

/// Limits that protect the server.
#[derive(Clone, Debug)]
pub struct LimitSettings {
    /// `limits.rate_limits`: whether clients that ask too often are told to wait; default true.
    pub rate_limits: bool,
    /// `limits.max_body_bytes`: the largest request body in bytes, except where media is uploaded; default 4 MiB.
    pub max_body_bytes: usize,
    /// `limits.max_connections`: how many connections may be open at once, as far as the limit of open files allows;
    /// default 30,000.
    pub max_connections: usize,
    /// `limits.max_headers`: the most headers a request may have; default 100.
    pub max_headers: usize,
    /// `limits.max_header_bytes`: the most bytes that all headers of a request may have; default 64 KiB.
    pub max_header_bytes: usize,
    /// `limits.header_timeout_seconds`: within which the headers of a request, or the next request on the same
    /// connection, must arrive; default 60.
    pub header_timeout: Duration,
    /// `limits.body_timeout_seconds`: within which a request's body must arrive; default 60.
    pub body_timeout: Duration,
    /// `limits.write_timeout_seconds`: how long a client may go without taking anything of an answer; default 60.
    pub write_timeout: Duration,
    /// `limits.handshake_timeout_seconds`: within which a TLS handshake must be done; default 10.
    pub handshake_timeout: Duration,
    /// `limits.idle_timeout_seconds`: after which a silent HTTP/2 connection is asked whether it lives; default 60.
    pub idle_timeout: Duration,
}

impl LimitSettings {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let seconds = |section: &mut Section<'_>, key: &str, default| {
            let duration = section.value(key, || Duration::from_secs(default));
            if duration.is_zero() {
                section.problem(key, "must be at least 1");
            }
            duration
        };
        let count = |section: &mut Section<'_>, key: &str, least: usize, default| {
            let count = section.value(key, || default);
            if count < least {
                section.problem(key, format!("must be at least {least}"));
            }
            count
        };
        Self {
            rate_limits: section.value("rate_limits", || true),
            max_body_bytes: count(section, "max_body_bytes", 65_536, 4 * 1024 * 1024),
            max_connections: count(section, "max_connections", 1, 30_000),
            max_headers: count(section, "max_headers", 16, 100),
            // Below 8 KiB hyper refuses to work.
            max_header_bytes: count(section, "max_header_bytes", 8_192, 65_536),
            header_timeout: seconds(section, "header_timeout_seconds", 60),
            body_timeout: seconds(section, "body_timeout_seconds", 60),
            write_timeout: seconds(section, "write_timeout_seconds", 60),
            handshake_timeout: seconds(section, "handshake_timeout_seconds", 10),
            idle_timeout: seconds(section, "idle_timeout_seconds", 60),
        }
    }
}
