//! TLS 1.2 and later by OpenSSL.

use std::path::{Path, PathBuf};

use openssl::{
    asn1::Asn1Time,
    error::ErrorStack,
    ssl::{AlpnError, SslAcceptor, SslFiletype, SslMethod, SslVersion, select_next_proto},
};

/// The protocols that may be agreed on during the handshake, best first, each with its length before it.
const ALPN: &[u8] = b"\x02h2\x08http/1.1";

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate file cannot be read or holds no certificate chain.
    #[error("the TLS certificate chain in {0} cannot be used")]
    Certificate(PathBuf, #[source] ErrorStack),
    /// The certificate and the private key do not belong together.
    #[error("the TLS certificate does not belong to the private key")]
    Mismatch(#[source] ErrorStack),
    /// The key file cannot be read or holds no private key.
    #[error("the TLS private key in {0} cannot be used")]
    PrivateKey(PathBuf, #[source] ErrorStack),
    /// OpenSSL refuses what every version of it should take.
    #[error("OpenSSL could not be set up")]
    Setup(#[source] ErrorStack),
}

/// Accepts TLS connections with the certificate chain and the private key in these PEM files.
///
/// # Errors
///
/// [`TlsError`] says which file cannot be used.
pub(super) fn acceptor(certificate: &Path, private_key: &Path) -> Result<SslAcceptor, TlsError> {
    let mut builder =
        SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).map_err(TlsError::Setup)?;
    builder.set_min_proto_version(Some(SslVersion::TLS1_2)).map_err(TlsError::Setup)?;
    builder
        .set_certificate_chain_file(certificate)
        .map_err(|error| TlsError::Certificate(certificate.to_owned(), error))?;
    builder
        .set_private_key_file(private_key, SslFiletype::PEM)
        .map_err(|error| TlsError::PrivateKey(private_key.to_owned(), error))?;
    builder.check_private_key().map_err(TlsError::Mismatch)?;
    builder.set_alpn_select_callback(|_, offered| select_next_proto(ALPN, offered).ok_or(AlpnError::NOACK));
    Ok(builder.build())
}

/// When the certificate that connections are shown ends, in seconds since the epoch.
pub(super) fn certificate_end(acceptor: &SslAcceptor) -> Option<i64> {
    let since_epoch =
        Asn1Time::from_unix(0).ok()?.diff(acceptor.context().certificate()?.not_after()).ok()?;
    Some(i64::from(since_epoch.days) * 86_400 + i64::from(since_epoch.secs))
}
