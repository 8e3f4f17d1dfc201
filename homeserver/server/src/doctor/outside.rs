//! The server as clients see it: its address, its TLS, and what it publishes there.

use std::{io, time::Duration};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use openssl::{
    asn1::Asn1Time,
    ssl::{Ssl, SslConnector, SslMethod, SslVersion},
};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use url::Url;

use super::{Finding, chain};
use crate::config::Settings;

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest answer that is read, in bytes.
const LARGEST: usize = 1 << 20;
/// How long before its end a certificate should have been renewed, in days.
const RENEWED_BEFORE: i32 = 14;

/// Why a question got no answer.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no connection")]
    Connect(#[source] io::Error),
    #[error("no TLS connection")]
    Tls(#[source] openssl::ssl::Error),
    #[error("TLS could not be set up")]
    TlsSetup(#[from] openssl::error::ErrorStack),
    #[error("no answer in HTTP")]
    Http(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the URL cannot be asked")]
    Url,
    #[error("nothing came for {} s", PATIENCE.as_secs())]
    Late(#[from] tokio::time::error::Elapsed),
}

/// An answer.
struct Answer {
    status: u16,
    json: Value,
    /// In how many days the certificate ends.
    days_left: Option<i32>,
}

/// Looks at the server from outside.
pub(super) async fn look(url: &str, settings: &Settings) -> Vec<Finding> {
    let base = url.trim_end_matches('/');
    let versions = match ask(&format!("{base}/_matrix/client/versions")).await {
        Ok(answer) => answer,
        Err(error) => return vec![failure(base, &error)],
    };
    let mut findings: Vec<Finding> = judge_certificate(base, versions.days_left).into_iter().collect();
    if versions.status != 200 || !versions.json.get("versions").is_some_and(Value::is_array) {
        findings.push(other_server(format!(
            "What answers at {base} (status {}) is no Matrix server",
            versions.status
        )));
        return findings;
    }
    if let Ok(keys) = ask(&format!("{base}/_matrix/key/v2/server")).await {
        findings.extend(judge_name(base, &keys.json, settings));
    }
    let host = settings.server.name.host();
    let is_elsewhere = base.starts_with("https:")
        && Url::parse(base)
            .ok()
            .and_then(|url| url.host_str().map(|found| found != host))
            .unwrap_or_default();
    let mut places = vec![base.to_owned()];
    if is_elsewhere {
        places.push(format!("https://{host}"));
    }
    for place in places {
        let found = ask(&format!("{place}/.well-known/matrix/client")).await;
        findings.extend(judge_well_known(&place, found.ok().as_ref(), settings));
    }
    findings
}

fn failure(base: &str, error: &Failure) -> Finding {
    let text = format!("{base} cannot be reached from here: {}.", chain(error));
    match error {
        Failure::Tls(_) | Failure::TlsSetup(_) => Finding::error(
            "outside.tls",
            text,
            "Clients refuse it too. The certificate has to be in force, be for this name, and come with its chain (fullchain.pem); at least TLS 1.2.",
        ),
        _ => Finding::error(
            "outside.unreachable",
            text,
            "Look at the name (DNS), the load balancer or Ingress, and whether it has replicas that are ready.",
        ),
    }
}

fn other_server(what: String) -> Finding {
    Finding::error(
        "outside.other_server",
        format!("{what}."),
        "Let the address lead to the replicas of this server, all of /_matrix and /.well-known/matrix.",
    )
}

fn judge_certificate(base: &str, days_left: Option<i32>) -> Option<Finding> {
    let days = days_left.filter(|days| *days < RENEWED_BEFORE)?;
    Some(Finding::warning(
        "outside.certificate",
        format!("The certificate of {base} ends in {days} day(s)."),
        "Renew it, and see why that did not happen by itself: docs/operations/certificates.md. Replicas read a new one when they start.",
    ))
}

fn judge_name(base: &str, keys: &Value, settings: &Settings) -> Option<Finding> {
    let name = keys.get("server_name")?.as_str()?;
    (name != settings.server.name.as_str()).then(|| {
        other_server(format!("At {base} answers the server {name}, and not {}", settings.server.name))
    })
}

fn judge_well_known(place: &str, answer: Option<&Answer>, settings: &Settings) -> Option<Finding> {
    let expected = &settings.server.public_base_url;
    let found = answer.and_then(|answer| answer.json.pointer("/m.homeserver/base_url")?.as_str());
    let what = match found {
        Some(found) if found.trim_end_matches('/') == expected => return None,
        Some(found) => {
            format!("{place}/.well-known/matrix/client leads clients to {found}, and not to {expected}")
        }
        None => format!("{place}/.well-known/matrix/client does not say where the server is"),
    };
    Some(Finding::warning(
        "outside.well_known",
        format!("{what}: people who log in by their user id alone do not find it."),
        "Pass /.well-known/matrix/ on to the replicas at the server's name too, or put a file there that says the same as theirs.",
    ))
}

async fn ask(url: &str) -> Result<Answer, Failure> {
    timeout(PATIENCE, ask_patiently(url)).await?
}

async fn ask_patiently(url: &str) -> Result<Answer, Failure> {
    let url = Url::parse(url).map_err(|_| Failure::Url)?;
    let host = url.host_str().ok_or(Failure::Url)?;
    let port = url.port_or_known_default().ok_or(Failure::Url)?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let tcp = TcpStream::connect((bare, port)).await.map_err(Failure::Connect)?;
    if url.scheme() != "https" {
        return exchange(tcp, &url, None).await;
    }
    let mut connector = SslConnector::builder(SslMethod::tls_client())?;
    connector.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    let ssl: Ssl = connector.build().configure()?.into_ssl(bare)?;
    let mut stream = tokio_openssl::SslStream::new(ssl, tcp)?;
    std::pin::Pin::new(&mut stream).connect().await.map_err(Failure::Tls)?;
    let days_left = stream.ssl().peer_certificate().and_then(|certificate| {
        Some(Asn1Time::days_from_now(0).ok()?.diff(certificate.not_after()).ok()?.days)
    });
    exchange(stream, &url, days_left).await
}

async fn exchange<S>(stream: S, url: &Url, days_left: Option<i32>) -> Result<Answer, Failure>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let failed = |error: hyper::Error| Failure::Http(error.into());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let connection = tokio::spawn(connection);
    let host = url.authority().to_owned();
    let request = Request::get(url.path())
        .header(header::HOST, host)
        .header(header::USER_AGENT, "keystead-doctor")
        .body(Empty::<Bytes>::new())
        .map_err(|error| Failure::Http(error.into()))?;
    let response = sender.send_request(request).await.map_err(failed)?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), LARGEST).collect().await.map_err(Failure::Http)?;
    connection.abort();
    Ok(Answer { status, json: serde_json::from_slice(&body.to_bytes()).unwrap_or_default(), days_left })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::{io::AsyncWriteExt as _, net::TcpListener};

    use super::*;
    use crate::{config::reader::Environment, doctor::tests::names};

    fn settings() -> Settings {
        let environment = [
            ("KEYSTEAD_SERVER_NAME", "example.org"),
            ("KEYSTEAD_SERVER_PUBLIC_BASE_URL", "https://chat.example.org"),
        ];
        Settings::from_environment(Environment::from(environment)).unwrap()
    }

    fn answer(json: Value) -> Answer {
        Answer { status: 200, json, days_left: None }
    }

    #[test]
    fn what_is_published_has_to_lead_here() {
        let judged = |json| judge_well_known("https://example.org", Some(&answer(json)), &settings());
        let base = |url: &str| json!({ "m.homeserver": { "base_url": url } });
        assert_eq!(judged(base("https://chat.example.org/")), None);
        assert_eq!(names(&[judged(base("https://old.example.org")).unwrap()]), ["outside.well_known"]);
        assert_eq!(names(&[judged(json!("<html>")).unwrap()]), ["outside.well_known"]);
        assert!(judge_well_known("https://example.org", None, &settings()).is_some());
        assert_eq!(judge_name("x", &json!({ "server_name": "example.org" }), &settings()), None);
        let other = judge_name("x", &json!({ "server_name": "example.com" }), &settings()).unwrap();
        assert_eq!(names(&[other]), ["outside.other_server"]);
    }

    #[test]
    fn a_certificate_that_ends_soon_is_named() {
        assert_eq!(judge_certificate("x", None), None);
        assert_eq!(judge_certificate("x", Some(60)), None);
        assert_eq!(names(&[judge_certificate("x", Some(3)).unwrap()]), ["outside.certificate"]);
    }

    /// A server that says the same to everybody.
    async fn saying(bytes: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(bytes).await.unwrap();
                // Until the client has read it.
                let mut rest = Vec::new();
                tokio::spawn(async move {
                    let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest).await;
                });
            }
        });
        address.to_string()
    }

    #[tokio::test]
    async fn what_is_no_tls_no_server_or_no_matrix_server_is_told_apart() {
        let web = saying(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await;
        assert_eq!(names(&look(&format!("http://{web}"), &settings()).await), ["outside.other_server"]);
        assert_eq!(names(&look(&format!("https://{web}"), &settings()).await), ["outside.tls"]);
        assert_eq!(names(&look("http://127.0.0.1:1", &settings()).await), ["outside.unreachable"]);
    }
}
