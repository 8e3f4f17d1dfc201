//! A real Prometheus, with the project's rules, on this machine for one test; and postgres_exporter beside it.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use hyper::Method;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    eventually,
    http::{Client, Request, encode},
    reaper,
};

/// The folder of rules, dashboards and runbooks.
pub fn monitoring() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../monitoring")
}

/// The service; it ends when this is dropped.
pub struct Prometheus {
    _processes: Vec<Service>,
    url: String,
    client: Client,
    _folder: TempDir,
}

struct Service {
    child: Child,
    log: PathBuf,
}

impl Prometheus {
    /// Starts it with the project's rules, to look every second at the servers at `urls`, and, by postgres_exporter, at
    /// the PostgreSQL database at `database_url`, if that is one.
    ///
    /// # Panics
    /// When it is not installed (Debian packages `prometheus` and `prometheus-postgres-exporter`), or does not start.
    pub async fn start(urls: &[String], database_url: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut processes = Vec::new();
        let mut jobs = vec![job("keystead", urls.iter().filter_map(|url| url.strip_prefix("http://")))];
        if database_url.starts_with("postgres") {
            let address = format!("127.0.0.1:{}", free_port());
            let mut command = Command::new("prometheus-postgres-exporter");
            command
                .env("DATA_SOURCE_NAME", format!("{database_url}?sslmode=disable"))
                .arg(format!("--web.listen-address={address}"));
            processes.push(Service::start(command, folder.path().join("exporter.log")));
            jobs.push(job("postgres", [address.as_str()].into_iter()));
        }
        let config = folder.path().join("prometheus.yml");
        let rules = monitoring().join("rules").canonicalize().expect("the folder of the rules");
        let text = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: ['{}/*.yaml']\nscrape_configs:\n{}",
            rules.display(),
            jobs.concat()
        );
        fs::write(&config, text).expect("written");
        let address = format!("127.0.0.1:{}", free_port());
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"));
        processes.push(Service::start(command, folder.path().join("prometheus.log")));
        let client = Client::new();
        let url = format!("http://{address}");
        eventually("Prometheus is ready", || async {
            let answer = client.send(&url, Request::new(Method::GET, "/-/ready")).await;
            answer.ok().filter(|answer| answer.status == 200)
        })
        .await;
        Self { _processes: processes, url, client, _folder: folder }
    }

    /// The samples of a query at this moment: their labels and values.
    ///
    /// # Panics
    /// When Prometheus refuses the query.
    pub async fn query(&self, query: &str) -> Vec<(Value, f64)> {
        let data = self.get(&format!("/api/v1/query?query={}", encode(query))).await;
        let number = |value: &Value| value.as_str().and_then(|text| text.parse().ok()).expect("a number");
        match data["resultType"].as_str() {
            Some("scalar") => vec![(Value::Null, number(&data["result"][1]))],
            _ => {
                let samples = data["result"].as_array().expect("a list").iter();
                samples.map(|sample| (sample["metric"].clone(), number(&sample["value"][1]))).collect()
            }
        }
    }

    /// The `data` of an answer of its API.
    ///
    /// # Panics
    /// When the answer is an error.
    pub async fn get(&self, path: &str) -> Value {
        let answer = self.client.send(&self.url, Request::new(Method::GET, path)).await;
        let answer = answer.unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        answer.body["data"].clone()
    }
}

impl Service {
    fn start(mut command: Command, log: PathBuf) -> Self {
        let file = File::create(&log).expect("a log file");
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| {
                panic!(
                    "{program}: {error}: install the Debian packages prometheus and prometheus-postgres-exporter"
                )
            });
        reaper::process_started(child.id());
        Self { child, log }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
        reaper::process_ended(self.child.id());
        if std::thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("--- {}\n{}", self.log.display(), lines[lines.len().saturating_sub(30)..].join("\n"));
        }
    }
}

fn job<'a>(name: &str, targets: impl Iterator<Item = &'a str>) -> String {
    let targets: Vec<_> = targets.map(|target| format!("'{target}'")).collect();
    format!(" - {{job_name: {name}, static_configs: [{{targets: [{}]}}]}}\n", targets.join(", "))
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}
