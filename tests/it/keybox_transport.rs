//! Pinning and the self-check, over a real server with TLS.

use std::{
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use keystead_tests::{certificate, cluster::PASSWORD, process};
use serde_json::Value;

/// `keystead serve` with a certificate of its own making, on SQLite.
struct TlsServer {
    process: Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl TlsServer {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        certificate::make(folder.path());
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        let process = process::command("serve")
            .env("KEYSTEAD_SERVER_LISTEN", format!("127.0.0.1:{port}"))
            .env("KEYSTEAD_SERVER_TLS_CERTIFICATE", path("certificate.pem"))
            .env("KEYSTEAD_SERVER_TLS_PRIVATE_KEY", path("key.pem"))
            .env("KEYSTEAD_SERVER_RELEASE_FINGERPRINTS_FILE", path("releases"))
            .env("KEYSTEAD_DATABASE_URL", format!("sqlite:{}", path("keystead.db")))
            .env("KEYSTEAD_DATA_DIR", path("data"))
            .env("KEYSTEAD_REGISTRATION_OPEN", "true")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        Self { process, folder, port }
    }

    async fn until_ready(&self) {
        for _ in 0..600 {
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the server does not listen");
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Runs `keybox` with the server's certificate as a trusted authority, if `trusting`.
    async fn keybox(&self, trusting: bool, arguments: &[&str]) -> Output {
        let mut command = Command::new(process::keystead().with_file_name("keybox"));
        command
            .args(arguments)
            .args(["--json", "--user", "alice"])
            .env("KEYBOX_HOME", self.path().join("home"))
            .env("KEYBOX_SERVER", format!("https://localhost:{}", self.port))
            .env("KEYBOX_PASSWORD", PASSWORD)
            .env("KEYBOX_PASSPHRASE", "the passphrase of alice");
        if trusting {
            command.env("SSL_CERT_FILE", self.path().join("certificate.pem"));
        }
        tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("it ran")
    }

    async fn run(&self, arguments: &[&str]) -> Value {
        let output = self.keybox(true, arguments).await;
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {err}", arguments.join(" "));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", arguments.join(" ")))
    }

    async fn refused(&self, trusting: bool, arguments: &[&str]) -> String {
        let output = self.keybox(trusting, arguments).await;
        assert!(!output.status.success(), "{}", arguments.join(" "));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[tokio::test]
async fn a_pinned_server_is_the_only_one_that_is_spoken_to() {
    let server = TlsServer::start();
    server.until_ready().await;
    let shown = server.run(&["server-fingerprint"]).await;
    let text = |name: &str| shown[name].as_str().expect(name).to_owned();
    let (certificate, key) = (text("certificate"), text("public_key"));
    let openssl = Command::new("openssl")
        .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
        .arg(server.path().join("certificate.pem"))
        .output()
        .expect("openssl");
    let printed = String::from_utf8_lossy(&openssl.stdout).trim().to_owned();
    let (_, as_openssl_writes) = printed.split_once('=').expect("a fingerprint");
    assert_eq!(as_openssl_writes.replace(':', "").to_lowercase(), certificate);

    let wrong = "00".repeat(32);
    let error = server.refused(true, &["register", "--pin", &wrong]).await;
    assert!([&wrong, &certificate, &key].iter().all(|value| error.contains(*value)), "{error}");
    let error = server.refused(false, &["register", "--pin", &certificate]).await;
    assert!(error.contains("cannot be reached"), "a pin does not replace trust: {error}");
    server.run(&["register", "--pin", as_openssl_writes]).await;
    server.run(&["devices", "--pin", &key]).await;
    // Remembered: it holds without being named.
    let account = server.path().join("home/=40alice=3alocalhost=3a8008");
    let account = std::fs::read_dir(account).expect("the account").next().expect("one").expect("it").path();
    let account = std::fs::read_to_string(account.join("account.json")).expect("it is there");
    assert!(account.contains(&certificate), "{account}");
    assert!(server.refused(true, &["devices", "--pin", &wrong]).await.contains("pinned"));

    // What is remembered is shown and changed, and a wrong one is not taken.
    let shown = server.run(&["pin"]).await;
    assert_eq!((&shown["pin"], &shown["fits"]), (&certificate.clone().into(), &true.into()), "{shown}");
    assert!(server.refused(true, &["pin", "set", &wrong]).await.contains(&wrong));
    assert_eq!(server.run(&["pin", "show"]).await["pin"], certificate);
    assert_eq!(server.run(&["pin", "set"]).await["pin"], key);
    server.run(&["devices"]).await;
    server.run(&["pin", "set", "--unchecked", &wrong]).await;
    assert!(server.refused(true, &["devices"]).await.contains("pinned"));
    assert!(server.refused(true, &["pin"]).await.contains(&certificate), "status and error tell it too");
    assert!(
        server.refused(true, &["pin", "set"]).await.contains("pinned"),
        "not by way of a server that does not fit"
    );
    assert!(server.run(&["pin", "clear"]).await["pin"].is_null());
    server.run(&["devices"]).await;
}

#[tokio::test]
async fn a_program_finds_itself_among_the_published_ones_or_says_that_it_does_not() {
    let server = TlsServer::start();
    server.until_ready().await;
    assert!(server.refused(true, &["self-check"]).await.contains("M_"), "there is no file yet");
    let releases = server.path().join("releases");
    std::fs::write(&releases, format!("{}  keybox 0.0\n", "ab".repeat(32))).expect("written");
    let error = server.refused(true, &["self-check"]).await;
    assert!(error.contains("none of those"), "{error}");

    let keybox = process::keystead().with_file_name("keybox");
    let sums = Command::new("sha256sum").arg(&keybox).output().expect("sha256sum");
    std::fs::write(&releases, &sums.stdout).expect("written");
    let checked = server.run(&["self-check"]).await;
    assert_eq!(checked["name"], keybox.display().to_string());
}
