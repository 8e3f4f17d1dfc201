//! Connections to SQLite and PostgreSQL.

use std::{sync::Arc, time::Duration};

use sea_orm::{ConnectOptions, Database, DatabaseConnection};

use crate::{Error, store::TransactionReport};

/// How to reach the database.
#[derive(Clone)]
pub struct Options {
    /// `sqlite:PATH` (made if missing), `sqlite::memory:` or `postgres://…`.
    pub url: String,
    /// The greatest number of connections.
    pub max_connections: u32,
    /// Told of each transaction that ended.
    pub observer: Arc<dyn Fn(&TransactionReport) + Send + Sync>,
}

/// Connections for reading and for writing: on SQLite one for writing, on PostgreSQL half of them.
///
/// # Errors
/// The database cannot be reached, or the folder of an SQLite file not be made.
pub(crate) async fn connect(options: &Options) -> Result<(DatabaseConnection, DatabaseConnection), Error> {
    if let Some(path) = options.url.strip_prefix("sqlite:") {
        make_parent_folder(path)?;
        let writer = Database::connect(sqlite_options(&options.url, 1)).await?;
        // An in-memory database lives in its one connection.
        let reader = if path.contains(":memory:") {
            writer.clone()
        } else {
            Database::connect(sqlite_options(&options.url, options.max_connections)).await?
        };
        return Ok((reader, writer));
    }
    let writers = (options.max_connections / 2).max(1);
    let readers = options.max_connections.saturating_sub(writers).max(1);
    // What every reading transaction is, said once a connection instead of once a transaction.
    const READING: &[(&str, &str)] =
        &[("default_transaction_isolation", "repeatable read"), ("default_transaction_read_only", "on")];
    let reader = Database::connect(postgres_options(&options.url, readers, READING)).await?;
    let writer = Database::connect(postgres_options(&options.url, writers, &[])).await?;
    Ok((reader, writer))
}

fn postgres_options(
    url: &str,
    connections: u32,
    settings: &'static [(&'static str, &'static str)],
) -> ConnectOptions {
    // A statement's plan is made once a connection, often while its tables are still small and nothing is known of them. All
    // statements here look up a few rows by an index; a plan that reads whole tables would be kept while they grow.
    const BY_INDEX: &[(&str, &str)] =
        &[("enable_seqscan", "off"), ("enable_hashjoin", "off"), ("enable_mergejoin", "off")];
    let mut connect = ConnectOptions::new(url.to_owned());
    connect
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(10))
        .sqlx_logging(false)
        .test_before_acquire(false)
        .map_sqlx_postgres_opts(move |options| {
            options
                .application_name("keystead")
                .options([("statement_timeout", "30s"), ("idle_in_transaction_session_timeout", "30s")])
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
