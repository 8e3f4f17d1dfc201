//! The database: opening it, migrating it, and running transactions.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use keystead_core::shard::{Shard, Shards};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, QueryResult, SqliteTransactionMode,
    Statement, TransactionOptions, TransactionTrait, Value,
};
use sea_orm_migration::MigratorTrait;

use crate::{
    connect::{Options, connect},
    error::{Error, TransactionError},
    link::{Connections, Link},
    migrations::{Migrator, compare_by_bytes, create_shards, lacking},
    stats::with_statement_count,
    tx::{ReadTx, WriteTx, statement, timed, uncancelled},
    wake_bus::{Hint, WakeBus},
};

/// How often a transaction that another one was in the way of is tried in all.
const ATTEMPTS: u32 = 8;
/// The key of the advisory lock under which the schema changes: "keystead" in ASCII.
const MIGRATION_LOCK: i64 = 0x6b65_7973_7465_6164;
/// How many connections that have been ended are tried in all before that is an error.
const STALE: u32 = 64;
/// How long to wait before the database is tried again at the start.
const WAIT_STEP: Duration = Duration::from_millis(500);

/// What became of a transaction.
#[derive(Clone, Copy, Debug)]
pub struct TransactionReport {
    /// The name that its caller gave it.
    pub name: &'static str,
    /// What it was for.
    pub access: Access,
    /// From asking for a connection to the end of the commit, all attempts together.
    pub duration: Duration,
    /// How long it waited for connections.
    pub pool_wait: Duration,
    /// How often it had to be tried again.
    pub retries: u32,
    /// How many statements it took, commits included, all attempts together.
    pub statements: u32,
    /// How it ended.
    pub outcome: Outcome,
}

/// What a transaction, or a connection, is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// Reading.
    Read,
    /// Writing.
    Write,
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It was committed.
    Committed,
    /// The database could not do it.
    Failed,
    /// Its caller's work refused to go on, for a reason that is not the database's; nothing was written.
    Refused,
}

impl Outcome {
    fn of<T, E: TransactionError>(result: &Result<T, E>) -> Self {
        match result {
            Ok(_) => Self::Committed,
            // What a client sent is in conflict with what there is, or cannot be stored: the database does its duty.
            Err(error) => match error.store_error() {
                None | Some(Error::Conflict(_) | Error::InvalidText) => Self::Refused,
                Some(_) => Self::Failed,
            },
        }
    }
}

/// How many connections there are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PoolStatus {
    /// What they are for.
    pub access: Access,
    /// How many are open and used now.
    pub used: u32,
    /// How many are open and wait to be used.
    pub idle: u32,
    /// How many there may be.
    pub limit: u32,
}

/// The database. Clones share its connections.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    link: Arc<Link>,
    backend: DbBackend,
    shards: Shards,
    wake_bus: WakeBus,
}

impl Store {
    /// Connects to a database whose schema is up to date (see [`Store::migrate`]).
    ///
    /// # Errors
    /// The database cannot be reached, or has not been migrated.
    pub async fn open(options: Options) -> Result<Self, Error> {
        let (reader, writer) = connect(&options).await?;
        if reader.get_database_backend() == DbBackend::Postgres {
            check_isolation(&reader).await?;
        }
        let pending = lacking(&reader).await?;
        if !pending.is_empty() {
            return Err(Error::Setup(format!(
                "The database lacks {} schema step(s). Run `keystead migrate` first.",
                pending.len()
            )));
        }
        let row = reader
            .query_one_raw(Statement::from_string(
                reader.get_database_backend(),
                "SELECT COUNT(*) AS shards FROM stream_shards",
            ))
            .await?;
        let count: i64 = row.map(|row| row.try_get("", "shards")).transpose()?.unwrap_or_default();
        let rooms = u16::try_from(count / 2).unwrap_or_default();
        if rooms == 0 {
            return Err(Error::Setup("The database has no stream shards.".to_owned()));
        }
        let backend = reader.get_database_backend();
        let link = Link::new(options, (reader, writer));
        let wake_bus = match backend {
            DbBackend::Postgres => WakeBus::postgres(&link),
            _ => WakeBus::in_process(),
        };
        Ok(Self { inner: Arc::new(Inner { link, backend, shards: Shards { rooms }, wake_bus }) })
    }

    /// Waits until the database can be reached, at most `patience`. Replicas are often started before their database is.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if it could not be reached in that time; at once whatever does not pass by waiting (a
    /// wrong password, a database that does not exist).
    pub async fn wait(options: &Options, patience: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + patience;
        loop {
            match connect(options).await {
                Ok((reader, _)) => return Ok(reader.close().await?),
                Err(Error::Unavailable(error)) if Instant::now() + WAIT_STEP < deadline => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the database does not answer yet"
                    );
                    tokio::time::sleep(WAIT_STEP).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Brings the schema up to date, under a lock, in one transaction. Replicas may do so at the same time.
    ///
    /// Returns how many steps were taken.
    ///
    /// # Errors
    /// The database cannot be reached, or a step failed; then nothing has changed.
    pub async fn migrate(options: &Options) -> Result<usize, Error> {
        let (_, writer) = connect(options).await?;
        let transaction = writer.begin_with_options(immediate()).await?;
        if writer.get_database_backend() == DbBackend::Postgres {
            let lock = format!("SELECT pg_advisory_xact_lock({MIGRATION_LOCK})");
            transaction.execute_unprepared(&lock).await?;
        }
        let pending = lacking(&transaction).await?.len();
        if pending > 0 {
            Migrator::up(&transaction, None).await?;
        }
        compare_by_bytes(&transaction).await?;
        create_shards(&transaction, options.room_shards).await?;
        transaction.commit().await?;
        writer.close().await?;
        Ok(pending)
    }

    /// How the streams are cut.
    pub fn shards(&self) -> Shards {
        self.inner.shards
    }

    /// Whether other processes may use the same database: true on PostgreSQL.
    pub fn is_shared(&self) -> bool {
        self.inner.backend == DbBackend::Postgres
    }

    /// Hints that something happened: what this process committed, and what other replicas tell.
    ///
    /// A hint may be lost ([`Hint`]); a reader that falls behind gets `Lagged` and looks for itself.
    pub fn hints(&self) -> tokio::sync::broadcast::Receiver<Hint> {
        self.inner.wake_bus.subscribe()
    }

    /// Whether hints are to tell which positions other replicas have reached: they do until this says that nobody waits for it, which saves this
    /// process a wake-up for each. When it is wanted again, [`Hint::Resync`] comes first.
    pub fn hear_positions(&self, wanted: bool) {
        self.inner.wake_bus.hear_positions(wanted);
    }

    /// Tells all replicas, this one included, something that need not survive (typing).
    pub fn send_hint(&self, hint: Hint) {
        self.inner.wake_bus.send(hint, false);
    }

    /// The position that each shard has reached, in the order of the shards.
    ///
    /// Nothing is asked more often than this, by the fence; a statement on its own needs no more than itself.
    ///
    /// # Errors
    /// The database's own.
    pub async fn positions(&self) -> Result<Vec<(Shard, i64)>, Error> {
        let sql = "SELECT shard, position FROM stream_shards ORDER BY shard";
        // It only reads, so that it may be asked again over another connection.
        let alone = |connections: Arc<Connections>| async move {
            fresh(|| self.ask(&connections.reader, sql, &[])).await
        };
        let rows = self.alone("positions", Access::Read, alone).await?;
        rows.iter().map(|row| Ok((row.try_get("", "shard")?, row.try_get("", "position")?))).collect()
    }

    /// Runs one statement that writes and is a transaction of itself.
    pub(crate) async fn append_alone(
        &self,
        name: &'static str,
        (sql, values): (&str, &[Value]),
    ) -> Result<Vec<QueryResult>, Error> {
        let alone =
            |connections: Arc<Connections>| async move { self.ask(&connections.writer, sql, values).await };
        self.alone(name, Access::Write, alone).await
    }

    /// Tells the other replicas that shards have reached positions.
    pub(crate) fn announce(&self, positions: Vec<(Shard, i64)>) {
        self.inner.wake_bus.send(Hint::Positions(positions), true);
    }

    async fn ask(
        &self,
        connection: &DatabaseConnection,
        sql: &str,
        values: &[Value],
    ) -> Result<Vec<QueryResult>, Error> {
        timed(connection.query_all_raw(statement(self.inner.backend, sql, values.iter().cloned())?)).await
    }

    async fn alone<Fut>(
        &self,
        name: &'static str,
        access: Access,
        work: impl Fn(Arc<Connections>) -> Fut,
    ) -> Result<Vec<QueryResult>, Error>
    where
        Fut: Future<Output = Result<Vec<QueryResult>, Error>>,
    {
        let mut run = Run::new(name, access);
        let result = loop {
            let result = match self.inner.link.connections() {
                Ok(connections) => {
                    let work = connections.run(work(connections.clone()));
                    let (result, statements) = with_statement_count(work).await;
                    run.statements += statements;
                    result
                }
                Err(error) => Err(error),
            };
            if !run.again(&result).await {
                break result;
            }
        };
        run.report(self.inner.link.options(), Outcome::of(&result));
        result
    }

    /// Runs `work` in a transaction that only reads, on one consistent view of the database.
    ///
    /// # Errors
    /// Whatever `work` returns, or the database's own.
    pub async fn read<T, E, F, Fut>(&self, name: &'static str, work: F) -> Result<T, E>
    where
        E: TransactionError,
        F: Fn(ReadTx) -> Fut,
        Fut: Future<Output = Result<T, E>> + Send,
    {
        // On PostgreSQL the reading connections are repeatable-read and read-only of themselves.
        let options = TransactionOptions::default();
        let mut run = Run::reading(name);
        let result = loop {
            let attempt = async {
                let connections = self.inner.link.connections()?;
                let attempt = async {
                    let transaction = run.begin(&connections.reader, options).await?;
                    let tx = ReadTx::new(transaction, self.inner.shards);
                    let result = work(tx.clone()).await?;
                    tx.commit().await?;
                    Ok(result)
                };
                connections.run(attempt).await
            };
            let (result, statements) = with_statement_count(attempt).await;
            run.statements += statements;
            if !run.again(&result).await {
                break result;
            }
        };
        run.report(self.inner.link.options(), Outcome::of(&result));
        result
    }

    /// [`Store::read`] for work that asks a single statement on PostgreSQL, which is a transaction of itself there: it spares the
    /// database BEGIN and COMMIT.
    ///
    /// # Errors
    /// As [`Store::read`]; a second statement is refused.
    pub async fn read_one<T, E, F, Fut>(&self, name: &'static str, work: F) -> Result<T, E>
    where
        E: TransactionError,
        F: Fn(ReadTx) -> Fut,
        Fut: Future<Output = Result<T, E>> + Send,
    {
        if !self.is_shared() {
            return self.read(name, work).await;
        }
        let mut run = Run::reading(name);
        let result = loop {
            let attempt = async {
                let connections = self.inner.link.connections()?;
                let tx = ReadTx::of_one_statement(connections.reader.clone(), self.inner.shards);
                connections.run(work(tx)).await
            };
            let (result, statements) = with_statement_count(attempt).await;
            run.statements += statements;
            if !run.again(&result).await {
                break result;
            }
        };
        run.report(self.inner.link.options(), Outcome::of(&result));
        result
    }

    /// Runs `work` in a transaction that writes, commits it, and wakes the readers of the streams that it appended to.
    ///
    /// `work` may run more than once (the database asked to try again), so it must have no other effects, and must await nothing but
    /// the database.
    ///
    /// # Errors
    /// Whatever `work` returns, or the database's own; then nothing was written.
    pub async fn write<T, E, F, Fut>(&self, name: &'static str, work: F) -> Result<T, E>
    where
        E: TransactionError,
        F: Fn(WriteTx) -> Fut,
        Fut: Future<Output = Result<T, E>> + Send,
    {
        let mut run = Run::new(name, Access::Write);
        let result = loop {
            let attempt = async {
                let connections = self.inner.link.connections()?;
                let attempt = async {
                    let transaction = run.begin(&connections.writer, immediate()).await?;
                    let tx = WriteTx::new(transaction, self.inner.shards);
                    let result = work(tx.clone()).await?;
                    Ok((result, tx.commit().await?))
                };
                connections.run(attempt).await
            };
            let (result, statements) = with_statement_count(attempt).await;
            run.statements += statements;
            if !run.again(&result).await {
                break result;
            }
        };
        run.report(self.inner.link.options(), Outcome::of(&result));
        result.map(|(result, (advanced, others_only))| {
            if !advanced.is_empty() {
                self.inner.wake_bus.send(Hint::Positions(advanced), others_only);
            }
            result
        })
    }

    /// Whether hints of other replicas arrive, and those of this process go out. Always, where there are no others.
    pub fn has_wake_bus(&self) -> bool {
        self.inner.wake_bus.is_connected()
    }

    /// The connections for reading and for writing; in memory, SQLite has one for both.
    pub fn pools(&self) -> [PoolStatus; 2] {
        let (readers, writers) = self.inner.link.options().connection_limits();
        let connections = self.inner.link.connections().ok();
        [
            pool_status(connections.as_ref().map(|connections| &connections.reader), Access::Read, readers),
            pool_status(connections.as_ref().map(|connections| &connections.writer), Access::Write, writers),
        ]
    }

    /// Copies an SQLite database to a new file, as it stands at one moment, while others read and write it.
    ///
    /// # Errors
    /// The database is not SQLite, the file cannot be written, or the database's own.
    pub async fn copy_to(&self, file: &str) -> Result<(), Error> {
        if self.is_shared() {
            return Err(Error::Setup("Only an SQLite database is copied so".to_owned()));
        }
        let connections = self.inner.link.connections()?;
        let sql = format!("VACUUM INTO '{}'", file.replace('\'', "''"));
        timed(connections.reader.execute_unprepared(&sql)).await?;
        let written = tokio::fs::File::open(file).await;
        let synced = async { written?.sync_all().await };
        synced
            .await
            .map_err(|error| Error::Setup(format!("The copy {file} cannot be written through: {error}")))
    }

    /// Closes all connections.
    pub async fn close(&self) {
        self.inner.wake_bus.close();
        self.inner.link.close().await;
    }
}

/// One run of [`Store::read`] or [`Store::write`], with its attempts.
struct Run {
    name: &'static str,
    access: Access,
    started: Instant,
    pool_wait: Duration,
    retries: u32,
    statements: u32,
    only_reads: bool,
}

impl Run {
    fn new(name: &'static str, access: Access) -> Self {
        let (started, pool_wait) = (Instant::now(), Duration::ZERO);
        Self { name, access, started, pool_wait, retries: 0, statements: 0, only_reads: false }
    }

    /// A run that has no effect, so that it may be repeated whatever became of it.
    fn reading(name: &'static str) -> Self {
        Self { only_reads: true, ..Self::new(name, Access::Read) }
    }

    async fn begin(
        &mut self,
        connection: &DatabaseConnection,
        options: TransactionOptions,
    ) -> Result<DatabaseTransaction, Error> {
        let asked = Instant::now();
        let begin = || {
            let connection = connection.clone();
            uncancelled(async move { connection.begin_with_options(options).await })
        };
        let transaction = fresh(begin).await;
        self.pool_wait += asked.elapsed();
        transaction
    }

    /// Whether to try again, after a pause that grows and differs between transactions.
    async fn again<T, E: TransactionError>(&mut self, result: &Result<T, E>) -> bool {
        let retryable =
            result.as_ref().err().and_then(E::store_error).is_some_and(|error| {
                error.is_retryable() || (self.only_reads && error.is_stale_connection())
            });
        if !retryable || self.retries + 1 >= ATTEMPTS {
            return false;
        }
        self.retries += 1;
        // Two transactions that met have not begun at the same instant: their ages are the jitter.
        let jitter = self.started.elapsed().subsec_nanos() % 5_000_000;
        tokio::time::sleep(Duration::from_millis(1 << self.retries) + Duration::from_nanos(jitter.into()))
            .await;
        true
    }

    fn report(&self, options: &Options, outcome: Outcome) {
        (options.observer)(&TransactionReport {
            name: self.name,
            access: self.access,
            duration: self.started.elapsed(),
            pool_wait: self.pool_wait,
            retries: self.retries,
            statements: self.statements,
            outcome,
        });
    }
}

/// Does what has no effect of its own over another connection, while connections turn out to have been ended at their other
/// side: after a restart of the database, all that are idle have.
async fn fresh<T, Fut: Future<Output = Result<T, Error>>>(work: impl Fn() -> Fut) -> Result<T, Error> {
    for _ in 1..STALE {
        match work().await {
            Err(error) if error.is_stale_connection() => {}
            result => return result,
        }
    }
    work().await
}

fn pool_status(connection: Option<&DatabaseConnection>, access: Access, limit: u32) -> PoolStatus {
    let (open, idle) = match connection {
        Some(connection) if connection.get_database_backend() == DbBackend::Postgres => {
            let pool = connection.get_postgres_connection_pool();
            (pool.size(), pool.num_idle())
        }
        Some(connection) => {
            let pool = connection.get_sqlite_connection_pool();
            (pool.size(), pool.num_idle())
        }
        None => (0, 0),
    };
    let idle = u32::try_from(idle).unwrap_or(u32::MAX).min(open);
    PoolStatus { access, used: open - idle, idle, limit }
}

/// A pooler between may drop what a connection asked for at its start; then readers would see a different database with
/// each statement.
async fn check_isolation(reader: &DatabaseConnection) -> Result<(), Error> {
    let sql = "SHOW transaction_isolation";
    let row = reader.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await?;
    let level: Option<String> = row.map(|row| row.try_get("", "transaction_isolation")).transpose()?;
    if level.as_deref() == Some("repeatable read") {
        return Ok(());
    }
    Err(Error::Setup(format!(
        "The database connection does not keep its settings (transaction_isolation is {}): a pooler before \
         PostgreSQL has to pass on startup options, or be left out.",
        level.unwrap_or_default()
    )))
}

/// On SQLite a transaction that will write says so at once, or two that began by reading would block each other for ever.
fn immediate() -> TransactionOptions {
    TransactionOptions {
        isolation_level: None,
        access_mode: None,
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{settings, streams};

    /// A new database in a folder.
    pub(crate) async fn store(folder: &tempfile::TempDir) -> Store {
        let url = format!("sqlite:{}/keystead.db", folder.path().display());
        let options = Options { url, max_connections: 4, room_shards: 8, observer: Arc::new(|_| {}) };
        assert!(Store::migrate(&options).await.unwrap() > 0);
        assert_eq!(Store::migrate(&options).await.unwrap(), 0);
        Store::open(options).await.unwrap()
    }

    #[tokio::test]
    async fn a_start_waits_for_a_database_that_cannot_be_reached_and_for_no_other() {
        // Nobody listens on a port that was just given back.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let url = format!("postgres://user@{address}/none");
        let options = Options { url, max_connections: 2, room_shards: 8, observer: Arc::new(|_| {}) };
        let started = Instant::now();
        let waited = Store::wait(&options, WAIT_STEP * 3).await;
        assert!(matches!(waited, Err(Error::Unavailable(_))), "{waited:?}");
        assert!(started.elapsed() >= WAIT_STEP);

        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "no folder").unwrap();
        let url = format!("sqlite:{}/keystead.db", file.display());
        let options = Options { url, ..options };
        let refused = Store::wait(&options, Duration::from_secs(3_600)).await;
        assert!(matches!(refused, Err(Error::Setup(_))), "{refused:?}");
    }

    #[tokio::test]
    async fn a_failed_transaction_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let shard = store.shards().of_user(ruma::user_id!("@a:x"));
        let failed: Result<(), Error> = store
            .write("test", |tx| async move {
                tx.lock_shards(&[shard]).await?;
                settings::find_or_insert(&tx, "name", "value").await?;
                tx.next_position(shard)?;
                Err(Error::Conflict("on purpose".to_owned()))
            })
            .await;
        assert!(failed.unwrap_err().is_conflict());
        let setting =
            store.read("test", |tx| async move { settings::find(&tx, "name").await }).await.unwrap();
        let positions = store.positions().await.unwrap();
        assert_eq!(setting, None);
        assert!(positions.iter().all(|(_, position)| *position == 0));
    }

    /// What SQLite does when the disk is full it does at a limit of pages, too: it rolls back of itself.
    #[tokio::test]
    async fn what_is_committed_after_the_disk_was_full_lasts() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let large = &"x".repeat(1 << 20);
        let full: Result<(), Error> = store
            .write("test", |tx| async move {
                tx.execute("PRAGMA max_page_count = 1", []).await?;
                settings::find_or_insert(&tx, "large", large).await.map(drop)
            })
            .await;
        assert!(matches!(full, Err(Error::Full(_))), "{full:?}");
        let refused: Result<(), Error> = store
            .write("test", |tx| async move {
                tx.execute("PRAGMA max_page_count = 1000000", []).await?;
                settings::find_or_insert(&tx, "refused", "value").await?;
                Err(Error::Conflict("on purpose".to_owned()))
            })
            .await;
        assert!(refused.unwrap_err().is_conflict());
        store
            .write("test", |tx| async move { settings::find_or_insert(&tx, "name", "value").await })
            .await
            .unwrap();
        // Reading goes over another connection.
        for (name, value) in [("large", None), ("refused", None), ("name", Some("value"))] {
            let found: Result<_, Error> =
                store.read("test", |tx| async move { settings::find(&tx, name).await }).await;
            assert_eq!(found.unwrap().as_deref(), value, "{name}");
        }
    }

    #[tokio::test]
    async fn positions_are_handed_out_in_commit_order_without_gaps() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let user = ruma::user_id!("@a:x");
        let shard = store.shards().of_user(user);
        let mut hints = store.hints();
        let writers = (0..20).map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                store
                    .write("test", |tx| async move {
                        tx.lock_shards(&[shard]).await?;
                        let before = tx.locked_position(shard);
                        streams::append_user_change(&tx, shard, user, streams::UserChange::Sessions).await?;
                        Ok::<_, Error>(before)
                    })
                    .await
                    .unwrap()
            })
        });
        let mut seen = Vec::new();
        for writer in writers.collect::<Vec<_>>() {
            seen.push(writer.await.unwrap());
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..20).collect::<Vec<_>>());
        for position in 1..=20 {
            assert_eq!(hints.recv().await.unwrap(), Hint::Positions(vec![(shard, position)]));
        }
    }

    #[tokio::test]
    async fn an_append_to_a_shard_that_is_not_locked_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let result = store.write("test", |tx| async move { tx.next_position(0) }).await;
        assert!(matches!(result, Err(Error::Setup(_))));
    }

    #[tokio::test]
    async fn a_transaction_is_reported_with_its_outcome_and_its_statements() {
        let folder = tempfile::tempdir().unwrap();
        let reports = Arc::new(std::sync::Mutex::new(Vec::new()));
        let noted = reports.clone();
        let observer: Arc<dyn Fn(&TransactionReport) + Send + Sync> = Arc::new(move |report| {
            noted.lock().unwrap().push((report.access, report.outcome, report.statements));
        });
        let url = format!("sqlite:{}/keystead.db", folder.path().display());
        let options = Options { url, max_connections: 4, room_shards: 8, observer };
        Store::migrate(&options).await.unwrap();
        let store = Store::open(options).await.unwrap();
        store.read("test", |tx| async move { settings::find(&tx, "name").await }).await.unwrap();
        for error in ["conflict", "corrupt"] {
            let failed: Result<(), Error> = store
                .write("test", |tx| async move {
                    settings::find(&tx, "name").await?;
                    settings::find(&tx, "name").await?;
                    Err(match error {
                        "conflict" => Error::Conflict("on purpose".to_owned()),
                        _ => Error::corrupt("t", "c", "r", "on purpose"),
                    })
                })
                .await;
            failed.unwrap_err();
        }
        // BEGIN and COMMIT are round trips, too.
        let expected = [
            (Access::Read, Outcome::Committed, 3),
            (Access::Write, Outcome::Refused, 3),
            (Access::Write, Outcome::Failed, 3),
        ];
        assert_eq!(*reports.lock().unwrap(), expected);
        let [readers, writers] = store.pools();
        assert_eq!((readers.access, readers.limit), (Access::Read, 4));
        assert_eq!((writers.access, writers.limit), (Access::Write, 1));
        assert!(store.has_wake_bus());
    }
}
