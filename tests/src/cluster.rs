//! Replicas of the server on one database.

use std::{
    path::Path,
    process::{Command, ExitStatus, Output},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use hyper::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    eventually,
    http::{Client, Request, Response},
    postgres,
    process::{self, Replica},
    user::User,
};

/// The name of the servers under test: the part after the colon in user ids.
pub const SERVER_NAME: &str = "keystead.test";

/// The password of every user that [`TestCluster::user`] registers; it satisfies the strictest policy.
pub const PASSWORD: &str = "Correct-Horse-7-battery!";

/// The secret with which the servers under test allow registration of administrators.
pub const SHARED_SECRET: &str = "shared-secret-of-the-tests";

/// Replicas of the server on one database; they end when this is dropped. When the test fails, their logs are
/// printed.
pub struct TestCluster {
    replicas: Vec<Mutex<Replica>>,
    ports: Vec<u16>,
    turn: AtomicUsize,
    client: Client,
    database_url: String,
    folder: TempDir,
}

impl TestCluster {
    /// Two replicas on one PostgreSQL, or one process on SQLite, as `KEYSTEAD_TEST_DATABASE` says.
    pub async fn start() -> Arc<Self> {
        Self::start_with(&[]).await
    }

    /// As [`TestCluster::start`], with more settings (names of environment variables, values).
    pub async fn start_with(settings: &[(&str, &str)]) -> Arc<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (count, url) = if on_sqlite() {
            let url = format!("sqlite:{}", folder.path().join("keystead.db").display());
            process::migrate(&url).unwrap_or_else(|error| panic!("{error}"));
            (1, url)
        } else {
            let database = tokio::task::spawn_blocking(postgres::create_database);
            (2, database.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())))
        };
        // Shared, as every deployment of several replicas must have it.
        let media = folder.path().join("media").display().to_string();
        let has_bucket = settings.iter().any(|(name, _)| *name == "KEYSTEAD_MEDIA_S3_BUCKET");
        let replicas: Vec<_> = (0..count)
            .map(|number| {
                let name = char::from(b'a' + u8::try_from(number).expect("few"));
                let data = folder.path().join(format!("data-{name}"));
                let mut all = vec![
                    ("KEYSTEAD_SERVER_NAME".to_owned(), SERVER_NAME.to_owned()),
                    ("KEYSTEAD_DATABASE_URL".to_owned(), url.clone()),
                    ("KEYSTEAD_DATA_DIR".to_owned(), data.display().to_string()),
                    ("KEYSTEAD_REGISTRATION_OPEN".to_owned(), "true".to_owned()),
                    ("KEYSTEAD_REGISTRATION_SHARED_SECRET".to_owned(), SHARED_SECRET.to_owned()),
                    ("KEYSTEAD_LIMITS_RATE_LIMITS".to_owned(), "false".to_owned()),
                    ("KEYSTEAD_AUTH_BCRYPT_COST".to_owned(), "4".to_owned()),
                    ("KEYSTEAD_LOG_FILTER".to_owned(), "info".to_owned()),
                ];
                if !has_bucket {
                    all.push(("KEYSTEAD_MEDIA_FOLDER".to_owned(), media.clone()));
                }
                all.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
                Replica::new(all, folder.path().join(format!("{name}.log")))
            })
            .collect();
        let ports = replicas.iter().map(|replica| replica.port).collect();
        let cluster = Arc::new(Self {
            replicas: replicas.into_iter().map(Mutex::new).collect(),
            ports,
            turn: AtomicUsize::new(0),
            client: Client::new(),
            database_url: url,
            folder,
        });
        for number in 0..count {
            cluster.replica(number).spawn();
        }
        for number in 0..count {
            cluster.until_ready(number).await;
        }
        cluster
    }

    /// How many replicas there are.
    pub fn size(&self) -> usize {
        self.replicas.len()
    }

    /// `http://HOST:PORT` of a replica. Numbers past the last start over: with one process, all are the same.
    pub fn url(&self, replica: usize) -> String {
        format!("http://127.0.0.1:{}", self.ports[replica % self.ports.len()])
    }

    /// The replica whose turn it is.
    pub fn next_replica(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed) % self.size()
    }

    /// Sends a request to the replica whose turn it is.
    ///
    /// # Panics
    /// When no answer comes.
    pub async fn send(&self, request: Request) -> Response {
        self.send_to(self.next_replica(), request).await
    }

    /// Sends a request to one replica.
    ///
    /// # Panics
    /// When no answer comes.
    pub async fn send_to(&self, replica: usize, request: Request) -> Response {
        let what = format!("{} {}", request.method, request.path);
        self.try_send_to(replica, request).await.unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    /// Sends a request to one replica, which may be down.
    ///
    /// # Errors
    /// What kept the answer from coming, in words.
    pub async fn try_send_to(&self, replica: usize, request: Request) -> Result<Response, String> {
        self.client.send(&self.url(replica), request).await
    }

    /// Registers `name` with [`PASSWORD`].
    pub async fn user(self: &Arc<Self>, name: &str) -> User {
        let body = json!({
            "username": name,
            "password": PASSWORD,
            "auth": { "type": "m.login.dummy" },
        });
        let request = Request::new(Method::POST, "/_matrix/client/v3/register").json(&body);
        User::from_login(self, &self.send(request).await.ok())
    }

    /// Logs `name` in once more: another device.
    pub async fn login(self: &Arc<Self>, name: &str) -> User {
        let body = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": name },
            "password": PASSWORD,
        });
        let request = Request::new(Method::POST, "/_matrix/client/v3/login").json(&body);
        User::from_login(self, &self.send(request).await.ok())
    }

    /// Ends a replica as a power cut would (SIGKILL).
    pub fn kill(&self, replica: usize) {
        self.replica(replica).kill();
    }

    /// Asks a replica to stop (SIGTERM) and waits until it has.
    pub async fn stop(&self, replica: usize) -> ExitStatus {
        self.replica(replica).ask_to_stop();
        eventually("the replica stops", || async { self.replica(replica).has_ended() }).await
    }

    /// Starts a replica that was killed or stopped, at its old address.
    pub async fn restart(&self, replica: usize) {
        self.replica(replica).spawn();
        self.until_ready(replica).await;
    }

    /// What a replica has logged so far.
    pub fn log(&self, replica: usize) -> String {
        self.replica(replica).log()
    }

    /// The URL of the database.
    pub fn database_url(&self) -> &str {
        &self.database_url
    }

    /// All that the database holds, as text: for a look whether something is in it.
    pub async fn dump_database(&self) -> String {
        let url = self.database_url.clone();
        let dumping = tokio::task::spawn_blocking(move || match url.strip_prefix("sqlite:") {
            Some(file) => ["", "-wal"]
                .map(|suffix| std::fs::read(format!("{file}{suffix}")).unwrap_or_default())
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                .concat(),
            None => postgres::dump(&url),
        });
        dumping.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// Writes into the database past the servers, as who runs it can: all statements or none. The servers end before and start again
    /// after it, so that they know nothing of before.
    ///
    /// # Panics
    /// When a statement fails.
    pub async fn tamper(&self, statements: &str) {
        for replica in 0..self.size() {
            self.stop(replica).await;
        }
        let (url, statements) = (self.database_url.clone(), statements.to_owned());
        let writing = tokio::task::spawn_blocking(move || match url.strip_prefix("sqlite:") {
            Some(file) => sqlite(file, &statements),
            None => postgres::execute(&url, &statements),
        });
        writing.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        for replica in 0..self.size() {
            self.restart(replica).await;
        }
    }

    /// Runs a command of `keystead` with the settings of replica 0 and more, until it ends.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn run(&self, arguments: &[&str], settings: &[(&str, &str)]) -> Output {
        let (name, rest) = arguments.split_first().expect("a command");
        let mut command = self.replica(0).command(name);
        command.args(rest).envs(settings.iter().copied());
        let running = tokio::task::spawn_blocking(move || command.output().expect("the program runs"));
        running.await.expect("no panic")
    }

    /// Runs an SQL statement on PostgreSQL and gives what it returns: a line a row, columns separated by `|`.
    ///
    /// # Panics
    /// When that fails, or the database is SQLite.
    pub async fn sql(&self, statement: &str) -> String {
        let (url, statement) = (self.database_url.clone(), statement.to_owned());
        blocking(move || postgres::run(&url, &statement)).await
    }

    /// Backs database and media up, as docs/operations/backup.md says, while the replicas serve.
    ///
    /// # Panics
    /// When that fails.
    pub async fn backup(&self) {
        let folder = self.folder();
        if on_sqlite() {
            let file = folder.join("backup.db").display().to_string();
            let output = self.run(&["admin", "backup", &file], &[]).await;
            assert!(output.status.success(), "{output:?}");
        } else {
            let url = self.database_url.clone();
            blocking(move || postgres::backup(&url)).await;
        }
        copy_folder(&folder.join("media"), &folder.join("backup-media"));
    }

    /// Puts database and media back to the backup. The replicas have stopped.
    ///
    /// # Panics
    /// When that fails.
    pub async fn restore(&self) {
        let folder = self.folder();
        if let Some(file) = self.database_url.strip_prefix("sqlite:") {
            for suffix in ["-wal", "-shm"] {
                let _it_may_not_be_there = std::fs::remove_file(format!("{file}{suffix}"));
            }
            std::fs::copy(folder.join("backup.db"), file).expect("copied");
        } else {
            let url = self.database_url.clone();
            blocking(move || postgres::restore(&url)).await;
        }
        std::fs::remove_dir_all(folder.join("media")).expect("removed");
        copy_folder(&folder.join("backup-media"), &folder.join("media"));
    }

    /// The folder of this cluster's files, gone with it.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    async fn until_ready(&self, replica: usize) {
        eventually("the replica is ready", || async {
            if let Some(status) = self.replica(replica).has_ended() {
                panic!("replica {replica} ended as it started: {status}");
            }
            let answer = self.try_send_to(replica, Request::new(Method::GET, "/ready")).await;
            answer.ok().filter(|response| response.status == 200).map(|_| ())
        })
        .await;
    }

    fn replica(&self, number: usize) -> MutexGuard<'_, Replica> {
        self.replicas[number].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for number in 0..self.size() {
            let log = self.log(number);
            let lines: Vec<_> = log.lines().collect();
            let newest = &lines[lines.len().saturating_sub(200)..];
            eprintln!("--- log of replica {number} (newest {} lines)\n{}", newest.len(), newest.join("\n"));
        }
    }
}

/// Carries out statements in an SQLite file that nobody uses.
fn sqlite(file: &str, statements: &str) {
    let script =
        "import sqlite3, sys\ndatabase = sqlite3.connect(sys.argv[1])\ndatabase.executescript(sys.argv[2])";
    let script = std::process::Command::new("python3").args(["-c", script, file, statements]).output();
    let output = script.expect("python3 runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let running = tokio::task::spawn_blocking(work);
    running.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

fn copy_folder(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status().expect("cp");
    assert!(status.success(), "{} to {}", from.display(), to.display());
}

/// Whether this run tests one process on SQLite.
pub fn on_sqlite() -> bool {
    match std::env::var("KEYSTEAD_TEST_DATABASE").as_deref() {
        Ok("sqlite") => true,
        Ok("postgres") | Err(_) => false,
        Ok(other) => panic!("KEYSTEAD_TEST_DATABASE is {other:?}: say sqlite or postgres"),
    }
}

/// The part of a JSON value at a pointer (`/rooms/join`).
///
/// # Panics
/// When there is nothing there.
pub fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or_else(|| panic!("nothing at {pointer} in {value:#}"))
}
