//! `keystead health`: asks a server whether it is ready, for where there is no other program to ask with.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use http::{StatusCode, Uri, uri::InvalidUri};
use http_body_util::Empty;
use hyper_openssl::client::legacy::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use openssl::{
    error::ErrorStack,
    ssl::{SslConnector, SslMethod, SslVerifyMode},
};

use crate::config::Settings;

/// What a replica that is ready answers within, with some time for the network.
const PATIENCE: Duration = Duration::from_secs(4);

/// Why a server is not ready, or does not seem to be.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// The address is none.
    #[error("{0} is not the address of a server; it should look like http://127.0.0.1:8008")]
    Address(String, #[source] InvalidUri),
    /// There was no answer.
    #[error("{0} does not answer")]
    Exchange(String, #[source] hyper_util::client::legacy::Error),
    /// There was none in time.
    #[error("{0} has not answered within {PATIENCE:?}")]
    Late(String),
    /// It says no.
    #[error("{0} answers with status {1}")]
    NotReady(String, StatusCode),
    /// OpenSSL cannot be used.
    #[error("TLS cannot be set up")]
    Tls(#[from] ErrorStack),
}

/// Asks the server at `url` (scheme, host and port) or, without one, that of these settings on this machine, at `/ready`.
/// With `insecure`, any certificate will do.
///
/// # Errors
///
/// [`HealthError`] unless it answers with status 200 within four seconds.
pub async fn check(settings: &Settings, url: Option<&str>, insecure: bool) -> Result<(), HealthError> {
    let mut tls = SslConnector::builder(SslMethod::tls_client())?;
    if insecure || url.is_none() {
        // The server's own certificate is for the name that clients use, and that connection does not leave the machine.
        tls.set_verify(SslVerifyMode::NONE);
    }
    let base = url.map_or_else(|| own(settings), |url| url.trim_end_matches('/').to_owned());
    let asked = format!("{base}/ready");
    let uri: Uri = asked.parse().map_err(|error| HealthError::Address(base, error))?;
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    let connector = HttpsConnector::with_connector(tcp, tls)?;
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let answer = tokio::time::timeout(PATIENCE, client.get(uri)).await;
    match answer {
        Err(_) => Err(HealthError::Late(asked)),
        Ok(Err(error)) => Err(HealthError::Exchange(asked, error)),
        Ok(Ok(answer)) if answer.status() == StatusCode::OK => Ok(()),
        Ok(Ok(answer)) => Err(HealthError::NotReady(asked, answer.status())),
    }
}

/// Where a server with these settings is reached from its own machine: at its first listener.
fn own(settings: &Settings) -> String {
    let scheme = if settings.server.tls.is_some() { "https" } else { "http" };
    let listener = settings.server.listen.first().copied();
    let mut address = listener.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 8008)));
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    format!("{scheme}://{address}")
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::config::reader::Environment;

    fn settings(listen: &str) -> Settings {
        Settings::from_environment(Environment::from([("KEYSTEAD_SERVER_LISTEN", listen)])).unwrap()
    }

    #[test]
    fn a_listener_on_all_addresses_is_asked_on_this_machine() {
        let table = [
            ("0.0.0.0:8008", "http://127.0.0.1:8008"),
            ("[::]:81,127.0.0.1:82", "http://[::1]:81"),
            ("10.1.2.3:8008", "http://10.1.2.3:8008"),
        ];
        for (listen, asked) in table {
            assert_eq!(own(&settings(listen)), asked);
        }
    }

    /// A server that gives the same answer to each request; its address.
    async fn server(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let length = stream.read(&mut request).await.unwrap();
                assert!(request[..length].starts_with(b"GET /ready HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn only_a_200_is_health() {
        let ready = server("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await;
        check(&settings(&ready), None, false).await.unwrap();
        check(&settings("127.0.0.1:1"), Some(&format!("http://{ready}/")), false).await.unwrap();

        let stopping = server("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
        let error = check(&settings(&stopping), None, false).await.unwrap_err();
        assert!(matches!(error, HealthError::NotReady(_, StatusCode::SERVICE_UNAVAILABLE)), "{error}");

        let error = check(&settings("127.0.0.1:1"), None, true).await.unwrap_err();
        assert!(matches!(error, HealthError::Exchange(..)), "{error}");
        let error = check(&settings("127.0.0.1:1"), Some("not a url"), false).await.unwrap_err();
        assert!(matches!(error, HealthError::Address(..)), "{error}");
    }
}
