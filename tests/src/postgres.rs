//! One PostgreSQL container for all tests of the run, and a database of its own for each test.
//!
//! The container is driven from a thread with a runtime of its own: a test's runtime ends with the test, the
//! container must not. A new database is a copy of a template that `keystead migrate` filled once.

use std::{
    sync::{
        Mutex, OnceLock, PoisonError,
        mpsc::{self, Receiver, SyncSender},
    },
    time::Duration,
};

use testcontainers::{ContainerAsync, ImageExt, core::ExecCommand, runners::AsyncRunner};
use testcontainers_modules::postgres::Postgres;

use crate::{process, reaper};

enum Task {
    /// Create a database and give its URL.
    Create,
    /// Give all rows of the database with this URL, as SQL.
    Dump(String),
    /// Carry out statements in the database with this URL.
    Execute(String, String),
    /// Back the database with this URL up.
    Backup(String),
    /// Put the database with this URL back to its backup.
    Restore(String),
    /// Run a statement in the database with this URL; give what `psql` prints.
    Run(String, String),
}

type Call = (Task, SyncSender<Result<String, String>>);

/// Creates a database and gives its URL.
///
/// # Panics
/// When PostgreSQL cannot be had; the message says what to do.
pub(crate) fn create_database() -> String {
    call(Task::Create)
}

/// All rows of a database that [`create_database`] made, as SQL.
///
/// # Panics
/// When that fails.
pub(crate) fn dump(url: &str) -> String {
    call(Task::Dump(url.to_owned()))
}

/// Carries out statements in a database that [`create_database`] made, all or none.
///
/// # Panics
/// When that fails.
pub(crate) fn execute(url: &str, statements: &str) {
    call(Task::Execute(url.to_owned(), statements.to_owned()));
}

/// Backs a database up, as an operator would: by pg_dump, while it is in use.
///
/// # Panics
/// When that fails.
pub(crate) fn backup(url: &str) {
    call(Task::Backup(url.to_owned()));
}

/// Puts a database back to what [`backup`] kept of it.
///
/// # Panics
/// When that fails.
pub(crate) fn restore(url: &str) {
    call(Task::Restore(url.to_owned()));
}

/// Runs an SQL statement, and gives what it returns: a line a row, columns separated by `|`.
///
/// # Panics
/// When that fails.
pub(crate) fn run(url: &str, statement: &str) -> String {
    call(Task::Run(url.to_owned(), statement.to_owned()))
}

fn call(task: Task) -> String {
    static CALLS: OnceLock<Mutex<mpsc::Sender<Call>>> = OnceLock::new();
    let calls = CALLS.get_or_init(|| {
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || serve(&receiver));
        Mutex::new(sender)
    });
    let (reply, answer) = mpsc::sync_channel(1);
    calls
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send((task, reply))
        .expect("the PostgreSQL thread ended");
    answer.recv().expect("the PostgreSQL thread ended").unwrap_or_else(|error| panic!("{error}"))
}

fn serve(calls: &Receiver<Call>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut server: Option<Result<Server, String>> = None; // tried once: a second try would fail as slowly
    let mut number = 0;
    while let Ok((task, reply)) = calls.recv() {
        let made = runtime.block_on(async {
            if server.is_none() {
                server = Some(Server::start().await);
            }
            match &server {
                Some(Ok(server)) => match task {
                    Task::Create => {
                        number += 1;
                        server.clone_template(&format!("test_{number}")).await
                    }
                    Task::Dump(url) => server.dump(&url).await,
                    Task::Execute(url, statements) => server.execute(&url, &statements).await,
                    Task::Backup(url) => server.backup(&url).await,
                    Task::Restore(url) => server.restore(&url).await,
                    Task::Run(url, statement) => server.run_in(&url, &statement).await,
                },
                Some(Err(error)) => Err(error.clone()),
                None => Err("not started".to_owned()),
            }
        });
        let _the_test_may_have_ended = reply.send(made);
    }
}

struct Server {
    container: ContainerAsync<Postgres>,
    port: u16,
}

impl Server {
    async fn start() -> Result<Self, String> {
        let container = Postgres::default()
            .with_tag("15")
            .with_cmd([
                "-c",
                "fsync=off",
                "-c",
                "full_page_writes=off",
                "-c",
                "max_connections=1000",
                "-c",
                "shared_buffers=256MB",
            ])
            .with_startup_timeout(Duration::from_secs(120))
            .start()
            .await
            .map_err(|error| {
                format!("no PostgreSQL from Docker (tests/run sets it up, or says what is missing): {error}")
            })?;
        reaper::container_started(container.id());
        let port = container.get_host_port_ipv4(5432).await.map_err(|error| error.to_string())?;
        let server = Self { container, port };
        server.psql("CREATE DATABASE template_of_tests").await?;
        process::migrate(&server.url("template_of_tests"))?;
        Ok(server)
    }

    async fn clone_template(&self, name: &str) -> Result<String, String> {
        self.psql(&format!("CREATE DATABASE {name} TEMPLATE template_of_tests")).await?;
        Ok(self.url(name))
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://postgres:postgres@127.0.0.1:{}/{database}", self.port)
    }

    async fn backup(&self, url: &str) -> Result<String, String> {
        let name = name(url)?;
        self.run(&["pg_dump", "-U", "postgres", "-Fc", "-f", &file(name), name]).await
    }

    async fn restore(&self, url: &str) -> Result<String, String> {
        let name = name(url)?;
        self.psql(&format!("DROP DATABASE {name}")).await?;
        self.psql(&format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")).await?;
        self.run(&["pg_restore", "-U", "postgres", "--exit-on-error", "-d", name, &file(name)]).await
    }

    async fn run_in(&self, url: &str, statement: &str) -> Result<String, String> {
        let name = name(url)?;
        self.run(&["psql", "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-qAt", "-d", name, "-c", statement])
            .await
    }

    async fn dump(&self, url: &str) -> Result<String, String> {
        let name = name(url)?;
        self.run(&["pg_dump", "-U", "postgres", "--inserts", name]).await
    }

    async fn execute(&self, url: &str, statements: &str) -> Result<String, String> {
        let (_, name) = url.rsplit_once('/').ok_or("a URL ends with the database's name")?;
        self.run(&["psql", "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-1", "-d", name, "-c", statements])
            .await
    }

    async fn psql(&self, statement: &str) -> Result<String, String> {
        self.run(&["psql", "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-c", statement]).await
    }

    async fn run(&self, command: &[&str]) -> Result<String, String> {
        let text = |error: testcontainers::TestcontainersError| error.to_string();
        let mut result =
            self.container.exec(ExecCommand::new(command.iter().copied())).await.map_err(text)?;
        let output = result.stdout_to_vec().await.map_err(text)?;
        let messages = result.stderr_to_vec().await.map_err(text)?;
        match result.exit_code().await.map_err(text)? {
            Some(0) => Ok(String::from_utf8_lossy(&output).into_owned()),
            _ => Err(format!("{command:?}: {}", String::from_utf8_lossy(&messages))),
        }
    }
}

/// The name of the database at the end of its URL.
fn name(url: &str) -> Result<&str, String> {
    url.rsplit_once('/').map(|(_, name)| name).ok_or_else(|| "a URL ends with the database's name".to_owned())
}

/// Where the backup of a database lies, in the container.
fn file(name: &str) -> String {
    format!("/tmp/{name}.dump")
}
