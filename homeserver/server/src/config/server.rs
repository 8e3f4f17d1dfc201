//! `[server]`: name, listeners, TLS.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ruma::{OwnedServerName, owned_server_name};

use super::reader::Section;
use crate::http::client_address::IpNetwork;

/// Name, listeners, TLS.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// `server.name`: the part of user ids behind the colon; can never be changed; default `localhost:8008`.
    pub name: OwnedServerName,
    /// `server.listen`: addresses with ports; default `127.0.0.1:8008`.
    pub listen: Vec<SocketAddr>,
    /// `server.public_base_url`: where clients reach the server, without a slash at the end; by default the first
    /// listener.
    pub public_base_url: String,
    /// `server.tls_certificate` and `server.tls_private_key`: PEM files; without them connections are not encrypted.
    pub tls: Option<TlsFiles>,
    /// `server.release_fingerprints_file`: a file with the SHA-256 of released clients, published for these to check themselves
    /// against; none by default.
    pub release_fingerprints_file: Option<PathBuf>,
    /// `server.trusted_proxies`: addresses or networks whose `X-Forwarded-For` is believed; none by default.
    pub trusted_proxies: Vec<IpNetwork>,
    /// `server.stop_grace_seconds`: how long a soft stop may take before requests are broken off; default 25.
    pub stop_grace: Duration,
    /// `server.stop_delay_seconds`: how long before a soft stop the server says that it is not ready and still takes requests, so
    /// that load balancers hear of it; default 0.
    pub stop_delay: Duration,
}

/// The files of the server's TLS identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// The private key of the first certificate.
    pub private_key: PathBuf,
}

impl ServerSettings {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let listen = section.value("listen", || vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 8008))]);
        if listen.is_empty() {
            section.problem("listen", "must have at least one address");
        }
        let tls = tls_files(section);
        let public_base_url =
            section.optional("public_base_url").unwrap_or_else(|| base_url(listen.first(), tls.is_some()));
        if !public_base_url.starts_with("http://") && !public_base_url.starts_with("https://") {
            section.problem("public_base_url", "must begin with https:// or http://");
        }
        Self {
            name: section.value("name", || owned_server_name!("localhost:8008")),
            listen,
            public_base_url: public_base_url.trim_end_matches('/').to_owned(),
            tls,
            release_fingerprints_file: section.optional("release_fingerprints_file"),
            trusted_proxies: section.value("trusted_proxies", Vec::new),
            stop_grace: section.value("stop_grace_seconds", || Duration::from_secs(25)),
            stop_delay: section.value("stop_delay_seconds", || Duration::ZERO),
        }
    }
}

fn tls_files(section: &mut Section<'_>) -> Option<TlsFiles> {
    match (section.optional("tls_certificate"), section.optional("tls_private_key")) {
        (Some(certificate), Some(private_key)) => Some(TlsFiles { certificate, private_key }),
        (None, None) => None,
        (Some(_), None) => {
            section.problem("tls_private_key", "is missing, while tls_certificate is set");
            None
        }
        (None, Some(_)) => {
            section.problem("tls_certificate", "is missing, while tls_private_key is set");
            None
        }
    }
}

/// A listener on all addresses is reached, from this machine at least, as localhost.
fn base_url(listener: Option<&SocketAddr>, has_tls: bool) -> String {
    let scheme = if has_tls { "https" } else { "http" };
    match listener {
        Some(address) if !address.ip().is_unspecified() => format!("{scheme}://{address}"),
        Some(address) => format!("{scheme}://localhost:{}", address.port()),
        None => format!("{scheme}://localhost"),
    }
}
