//! Connections and transactions.

use std::{
    collections::BTreeMap,
    future::Future,
    ops::Deref,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use keystead_core::shard::{Shard, Shards};
use sea_orm::{
    AccessMode, ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DatabaseTransaction,
    DbBackend, QueryResult, SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait, Value,
};
use sea_orm_migration::MigratorTrait;

use crate::{
    error::{Error, TransactionError},
    migrations::Migrator,
    stats,
    wake_bus::{Hint, WakeBus},
};

/// How often a transaction that another one was in the way of is tried in all.
const ATTEMPTS: u32 = 8;
/// The key of the advisory lock under which the schema changes: "keystead" in ASCII.
const MIGRATION_LOCK: i64 = 0x6b65_7973_7465_6164;
/// The most parameters that one statement takes, for both databases.
const MAX_PARAMETERS: usize = 16_000;

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

/// What became of a transaction.
#[derive(Clone, Copy, Debug)]
pub struct TransactionReport {
    /// The name that its caller gave it.
    pub name: &'static str,
    /// From asking for a connection to the end of the commit, all attempts together.
    pub duration: Duration,
    /// How long it waited for connections.
    pub pool_wait: Duration,
    /// How often it had to be tried again.
    pub retries: u32,
    /// Whether it was committed.
    pub committed: bool,
}

/// The database. Clones share its connections.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    reader: DatabaseConnection,
    /// The same pool as `reader` on PostgreSQL; the one writing connection on SQLite, which has one writer at a time.
    writer: DatabaseConnection,
    shards: Shards,
    wake_bus: WakeBus,
    options: Options,
}

/// A transaction that reads. Clones are handles of the same transaction.
#[derive(Clone)]
pub struct ReadTx {
    transaction: Arc<DatabaseTransaction>,
    shards: Shards,
}

/// A transaction that writes, and reads what it has written. Clones are handles of the same transaction.
#[derive(Clone)]
pub struct WriteTx {
    read: ReadTx,
    /// The shards that this transaction has locked.
    cursors: Arc<Mutex<BTreeMap<Shard, Cursor>>>,
    /// Whether this process's own readers are told by other means.
    others_only: Arc<AtomicBool>,
}

#[derive(Clone, Copy)]
struct Cursor {
    /// The position that the shard had reached before.
    before: i64,
    /// The newest position that this transaction took.
    newest: i64,
}

impl Store {
    /// Connects to a database whose schema is up to date (see [`Store::migrate`]).
    ///
    /// # Errors
    /// The database cannot be reached, or has not been migrated.
    pub async fn open(options: Options) -> Result<Self, Error> {
        let (reader, writer) = connect(&options).await?;
        let pending = Migrator::get_pending_migrations_read_only(&reader).await?;
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
        let wake_bus = match reader.get_database_backend() {
            DbBackend::Postgres => WakeBus::postgres(&options.url),
            _ => WakeBus::in_process(),
        };
        Ok(Self { inner: Arc::new(Inner { reader, writer, shards: Shards { rooms }, wake_bus, options }) })
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
        let pending = Migrator::get_pending_migrations(&transaction).await?.len();
        Migrator::up(&transaction, None).await?;
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
        self.inner.reader.get_database_backend() == DbBackend::Postgres
    }

    /// Hints that something happened: what this process committed, and what other replicas tell.
    ///
    /// A hint may be lost ([`Hint`]); a reader that falls behind gets `Lagged` and looks for itself.
    pub fn hints(&self) -> tokio::sync::broadcast::Receiver<Hint> {
        self.inner.wake_bus.subscribe()
    }

    /// Tells all replicas, this one included, something that need not survive (typing).
    pub fn send_hint(&self, hint: Hint) {
        self.inner.wake_bus.send(hint, false);
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
        let options = TransactionOptions {
            isolation_level: self.is_shared().then_some(sea_orm::IsolationLevel::RepeatableRead),
            access_mode: self.is_shared().then_some(AccessMode::ReadOnly),
            sqlite_transaction_mode: None,
        };
        let mut run = Run::new(name);
        let result = loop {
            let attempt = async {
                let transaction = run.begin(&self.inner.reader, options).await?;
                let tx = ReadTx { transaction: Arc::new(transaction), shards: self.inner.shards };
                let result = work(tx.clone()).await?;
                finish(tx.transaction).await?;
                Ok(result)
            };
            let result = attempt.await;
            if !run.again(&result).await {
                break result;
            }
        };
        run.report(&self.inner.options, result.is_ok());
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
        let mut run = Run::new(name);
        let result = loop {
            let attempt = async {
                let transaction = run.begin(&self.inner.writer, immediate()).await?;
                let read = ReadTx { transaction: Arc::new(transaction), shards: self.inner.shards };
                let tx = WriteTx { read, cursors: Arc::default(), others_only: Arc::default() };
                let result = work(tx.clone()).await?;
                let advanced = tx.save_positions().await?;
                finish(tx.read.transaction).await?;
                Ok((result, advanced, tx.others_only.load(Ordering::Relaxed)))
            };
            let result = attempt.await;
            if !run.again(&result).await {
                break result;
            }
        };
        run.report(&self.inner.options, result.is_ok());
        result.map(|(result, advanced, others_only)| {
            if !advanced.is_empty() {
                self.inner.wake_bus.send(Hint::Positions(advanced), others_only);
            }
            result
        })
    }

    /// Closes all connections.
    pub async fn close(&self) {
        self.inner.wake_bus.close();
        // The process is about to end; a connection that does not close in order is closed by its end.
        let _ = self.inner.reader.clone().close().await;
        let _ = self.inner.writer.clone().close().await;
    }
}

impl ReadTx {
    /// The database's connection, for sea-orm's own queries in the modules of this crate.
    pub(crate) fn connection(&self) -> &DatabaseTransaction {
        &self.transaction
    }

    /// How the streams are cut.
    pub fn shards(&self) -> Shards {
        self.shards
    }

    /// Which of the two databases this is.
    pub(crate) fn backend(&self) -> DbBackend {
        self.transaction.get_database_backend()
    }

    /// Runs a statement written by hand, with `$1`, `$2`… for `values`, and returns its rows.
    pub(crate) async fn query<I>(&self, sql: &str, values: I) -> Result<Vec<QueryResult>, Error>
    where
        I: IntoIterator<Item = Value>,
    {
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        timed(self.connection().query_all_raw(statement)).await
    }
}

impl WriteTx {
    /// Runs a statement written by hand, with `$1`, `$2`… for `values`, and returns how many rows it changed.
    pub(crate) async fn execute<I>(&self, sql: &str, values: I) -> Result<u64, Error>
    where
        I: IntoIterator<Item = Value>,
    {
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        Ok(timed(self.connection().execute_raw(statement)).await?.rows_affected())
    }

    /// Inserts rows in as few statements as the database takes. `suffix` follows the values (`ON CONFLICT …`, or nothing).
    pub(crate) async fn insert_rows(
        &self,
        table: &'static str,
        columns: &[&'static str],
        rows: Vec<Vec<Value>>,
        suffix: &str,
    ) -> Result<(), Error> {
        for chunk in rows.chunks((MAX_PARAMETERS / columns.len().max(1)).max(1)) {
            let mut sql = format!("INSERT INTO {table} ({}) VALUES ", columns.join(", "));
            let mut parameter = 0;
            for (index, row) in chunk.iter().enumerate() {
                let separator = if index == 0 { "(" } else { ", (" };
                sql.push_str(separator);
                for column in 0..row.len() {
                    parameter += 1;
                    sql.push_str(if column == 0 { "$" } else { ", $" });
                    sql.push_str(&parameter.to_string());
                }
                sql.push(')');
            }
            sql.push(' ');
            sql.push_str(suffix);
            self.execute(&sql, chunk.iter().flatten().cloned()).await?;
        }
        Ok(())
    }

    /// Takes the rows of these shards, in ascending order, until the transaction ends: the first statement of every append.
    ///
    /// To be called once a transaction, with all shards that it will append to; two appends then cannot deadlock.
    ///
    /// # Errors
    /// The database's own.
    pub async fn lock_shards(&self, shards: &[Shard]) -> Result<(), Error> {
        let mut shards = shards.to_vec();
        shards.sort_unstable();
        shards.dedup();
        let list = shards.iter().map(Shard::to_string).collect::<Vec<_>>().join(", ");
        // On SQLite the transaction has begun as the only writer.
        let lock = if self.backend() == DbBackend::Postgres { " FOR UPDATE" } else { "" };
        let sql =
            format!("SELECT shard, position FROM stream_shards WHERE shard IN ({list}) ORDER BY shard{lock}");
        let rows = self.query(&sql, []).await?;
        let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        for row in rows {
            let position: i64 = row.try_get("", "position")?;
            cursors.insert(row.try_get("", "shard")?, Cursor { before: position, newest: position });
        }
        Ok(())
    }

    /// Takes the next position of a shard that [`WriteTx::lock_shards`] has locked.
    ///
    /// # Errors
    /// The shard was not locked, which is a defect of the caller.
    pub fn next_position(&self, shard: Shard) -> Result<i64, Error> {
        let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        let cursor = cursors
            .get_mut(&shard)
            .ok_or_else(|| Error::Setup(format!("Stream shard {shard} was not locked before its append")))?;
        cursor.newest += 1;
        Ok(cursor.newest)
    }

    /// Leaves it to the caller to tell this process's own readers what was committed; other replicas are told as always.
    pub fn announce_to_others_only(&self) {
        self.others_only.store(true, Ordering::Relaxed);
    }

    /// Whether this transaction has locked the shard.
    pub fn is_locked(&self, shard: Shard) -> bool {
        self.cursors.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&shard)
    }

    /// The position that a locked shard had reached when it was locked; 0 for one that was not.
    pub fn locked_position(&self, shard: Shard) -> i64 {
        let cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        cursors.get(&shard).map_or(0, |cursor| cursor.before)
    }

    async fn save_positions(&self) -> Result<Vec<(Shard, i64)>, Error> {
        let advanced: Vec<(Shard, i64)> = {
            let cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
            cursors
                .iter()
                .filter(|(_, cursor)| cursor.newest > cursor.before)
                .map(|(shard, cursor)| (*shard, cursor.newest))
                .collect()
        };
        for (shard, position) in &advanced {
            self.execute(
                "UPDATE stream_shards SET position = $1 WHERE shard = $2",
                [Value::from(*position), Value::from(*shard)],
            )
            .await?;
        }
        Ok(advanced)
    }
}

impl Deref for WriteTx {
    type Target = ReadTx;

    fn deref(&self) -> &ReadTx {
        &self.read
    }
}

/// One run of [`Store::read`] or [`Store::write`], with its attempts.
struct Run {
    name: &'static str,
    started: Instant,
    pool_wait: Duration,
    retries: u32,
}

impl Run {
    fn new(name: &'static str) -> Self {
        Self { name, started: Instant::now(), pool_wait: Duration::ZERO, retries: 0 }
    }

    async fn begin(
        &mut self,
        connection: &DatabaseConnection,
        options: TransactionOptions,
    ) -> Result<DatabaseTransaction, Error> {
        let asked = Instant::now();
        let transaction = timed(connection.begin_with_options(options)).await;
        self.pool_wait += asked.elapsed();
        transaction
    }

    /// Whether to try again, after a pause that grows and differs between transactions.
    async fn again<T, E: TransactionError>(&mut self, result: &Result<T, E>) -> bool {
        let retryable = result.as_ref().err().and_then(E::store_error).is_some_and(Error::is_retryable);
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

    fn report(&self, options: &Options, committed: bool) {
        (options.observer)(&TransactionReport {
            name: self.name,
            duration: self.started.elapsed(),
            pool_wait: self.pool_wait,
            retries: self.retries,
            committed,
        });
    }
}

/// Commits. Every other handle of the transaction must be gone by now.
async fn finish(transaction: Arc<DatabaseTransaction>) -> Result<(), Error> {
    let transaction = Arc::into_inner(transaction)
        .ok_or_else(|| Error::Setup("A transaction was kept beyond its closure".to_owned()))?;
    timed(transaction.commit()).await
}

/// Waits for the database and counts it.
async fn timed<T>(work: impl Future<Output = Result<T, sea_orm::DbErr>>) -> Result<T, Error> {
    let started = Instant::now();
    let result = work.await;
    stats::count(1, started.elapsed());
    Ok(result?)
}

/// On SQLite a transaction that will write says so at once, or two that began by reading would block each other for ever.
fn immediate() -> TransactionOptions {
    TransactionOptions {
        isolation_level: None,
        access_mode: None,
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
    }
}

async fn connect(options: &Options) -> Result<(DatabaseConnection, DatabaseConnection), Error> {
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
    let mut connect = ConnectOptions::new(options.url.clone());
    connect
        .max_connections(options.max_connections)
        .acquire_timeout(Duration::from_secs(10))
        .sqlx_logging(false)
        .test_before_acquire(false)
        .map_sqlx_postgres_opts(|options| {
            options
                .application_name("keystead")
                .options([("statement_timeout", "30s"), ("idle_in_transaction_session_timeout", "30s")])
        });
    let connection = Database::connect(connect).await?;
    Ok((connection.clone(), connection))
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{settings, streams};

    /// A new database in a folder.
    pub(crate) async fn store(folder: &tempfile::TempDir) -> Store {
        let url = format!("sqlite:{}/keystead.db", folder.path().display());
        let options = Options { url, max_connections: 4, observer: Arc::new(|_| {}) };
        assert!(Store::migrate(&options).await.unwrap() > 0);
        assert_eq!(Store::migrate(&options).await.unwrap(), 0);
        Store::open(options).await.unwrap()
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
        let (setting, positions) = store
            .read("test", |tx| async move {
                Ok::<_, Error>((settings::find(&tx, "name").await?, streams::positions(&tx).await?))
            })
            .await
            .unwrap();
        assert_eq!(setting, None);
        assert!(positions.iter().all(|(_, position)| *position == 0));
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
}
