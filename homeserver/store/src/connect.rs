//! Connections to SQLite and PostgreSQL.

use std::{sync::Arc, time::Duration};

use sea_orm::{
    ConnectOptions, Database, DatabaseConnection,
    sqlx::{self, Connection as _, SqliteConnection, postgres::PgConnectOptions},
};

use crate::{Error, store::TransactionReport};

/// How to reach the database.
#[derive(Clone)]
pub struct Options {
    /// `sqlite:PATH` (made if missing), `sqlite::memory:` or `postgres://…`.
    pub url: String,
    /// The greatest number of connections.
    pub max_connections: u32,
    /// Into how many streams the rooms of a new database on PostgreSQL are cut; as many of users follow.
    pub room_shards: u32,
    /// Told of each transaction that ended.
    pub observer: Arc<dyn Fn(&TransactionReport) + Send + Sync>,
}

impl Options {
    /// How many connections there may be for reading, and for writing.
    pub(crate) fn connection_limits(&self) -> (u32, u32) {
        if self.url.starts_with("sqlite:") {
            let readers = if self.url.contains(":memory:") { 1 } else { self.max_connections };
            return (readers, 1);
        }
        let writers = (self.max_connections / 2).max(1);
        (self.max_connections.saturating_sub(writers).max(1), writers)
    }
}

/// Connections for reading and for writing: on SQLite one for writing, on PostgreSQL half of them.
///
/// # Errors
/// The database cannot be reached, or the folder of an SQLite file not be made.
pub(crate) async fn connect(options: &Options) -> Result<(DatabaseConnection, DatabaseConnection), Error> {
    open(options, false).await
}

/// The same, connecting when a connection is first needed.
///
/// # Errors
/// The URL cannot be read.
pub(crate) async fn connect_later(
    options: &Options,
) -> Result<(DatabaseConnection, DatabaseConnection), Error> {
    open(options, true).await
}

async fn open(options: &Options, lazy: bool) -> Result<(DatabaseConnection, DatabaseConnection), Error> {
    if let Some(path) = options.url.strip_prefix("sqlite:") {
        make_parent_folder(path)?;
        let writer = Database::connect(sqlite_options(&options.url, 1).connect_lazy(lazy).clone()).await?;
        // An in-memory database lives in its one connection.
        let reader = if path.contains(":memory:") {
            writer.clone()
        } else {
            let connect = sqlite_options(&options.url, options.max_connections).connect_lazy(lazy).clone();
            Database::connect(connect).await?
        };
        return Ok((reader, writer));
    }
    let (readers, writers) = options.connection_limits();
    // What every reading transaction is, said once a connection instead of once a transaction.
    const READING: &[(&str, &str)] =
        &[("default_transaction_isolation", "repeatable read"), ("default_transaction_read_only", "on")];
    // Statements that write look again at a row that was changed while they waited for it.
    const WRITING: &[(&str, &str)] = &[("default_transaction_isolation", "read committed")];
    let mut reader = postgres_options(&options.url, readers, READING);
    let mut writer = postgres_options(&options.url, writers, WRITING);
    let reader = Database::connect(reader.connect_lazy(lazy).clone()).await?;
    let writer = Database::connect(writer.connect_lazy(lazy).clone()).await?;
    Ok((reader, writer))
}

/// What every session on PostgreSQL asks for.
///
/// PostgreSQL keeps the locks of a replica that has gone without a word, and the rest of the cluster waits for them: so it looks
/// soon whether a silent client is there, and ends a transaction that does not go on (no transaction here waits for anything
/// but PostgreSQL).
const SESSION: &[(&str, &str)] = &[
    ("statement_timeout", "30s"),
    ("idle_in_transaction_session_timeout", "5s"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "2"),
    ("tcp_user_timeout", "15000"),
];

/// How a single connection to PostgreSQL is made.
///
/// # Errors
/// The URL cannot be read.
pub(crate) fn session_options(url: &str) -> Result<PgConnectOptions, sqlx::Error> {
    Ok(url.parse::<PgConnectOptions>()?.application_name("keystead").options(SESSION.iter().copied()))
}

fn postgres_options(
    url: &str,
    connections: u32,
    settings: &'static [(&'static str, &'static str)],
) -> ConnectOptions {
    // A statement's plan is made once a connection, often while its tables are still small and nothing is known of them. All
    // statements here look up a few rows by an index; a plan that reads whole tables would be kept while they grow. Where there
    // is no index, PostgreSQL takes such a plan for so costly that it would compile it, each time for longer than it runs. Left to
    // itself it plans anew for each array, since it takes arrays that it does not see for long ones.
    const BY_INDEX: &[(&str, &str)] = &[
        ("enable_seqscan", "off"),
        ("enable_hashjoin", "off"),
        ("enable_mergejoin", "off"),
        ("jit", "off"),
        ("plan_cache_mode", "force_generic_plan"),
    ];
    let mut connect = ConnectOptions::new(url.to_owned());
    connect
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(10))
        .sqlx_logging(false)
        .test_before_acquire(false)
        .map_sqlx_postgres_opts(move |options| {
            options
                .application_name("keystead")
                .options(SESSION.iter().copied())
                .options(BY_INDEX.iter().chain(settings).copied())
        });
    connect
}

fn sqlite_options(url: &str, connections: u32) -> ConnectOptions {
    let mut connect = ConnectOptions::new(url.to_owned());
    connect
        .max_connections(connections)
        .min_connections(1)
        .idle_timeout(None::<Duration>)
        .acquire_timeout(Duration::from_secs(10))
        .sqlx_logging(false)
        .map_sqlx_sqlite_pool_opts(|options| {
            options.after_release(|connection, _| Box::pin(is_idle(connection)))
        })
        .map_sqlx_sqlite_opts(|options| {
            use sea_orm::sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
            options
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                // What was acknowledged survives a power cut too.
                .synchronous(SqliteSynchronous::Full)
                .busy_timeout(Duration::from_secs(10))
        });
    connect
}

/// Whether the connection has no transaction open, as it must have when one has ended.
///
/// SQLite rolls a transaction back of itself when the disk is full; sqlx then counts one too many, takes the next
/// transaction for one inside of another, and a "commit" of that writes nothing that lasts. Such a connection is closed.
async fn is_idle(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    // A rollback may have been begun and not waited for; this is done after it.
    connection.ping().await?;
    Ok(!connection.is_in_transaction())
}

fn make_parent_folder(path: &str) -> Result<(), Error> {
    let path = path.trim_start_matches("//").split('?').next().unwrap_or_default();
    let Some(folder) = std::path::Path::new(path).parent() else { return Ok(()) };
    if path.contains(":memory:") || folder.as_os_str().is_empty() {
        return Ok(());
    }
    std::fs::create_dir_all(folder).map_err(|error| {
        Error::Setup(format!("Cannot make the folder {} of the database: {error}", folder.display()))
    })
}
