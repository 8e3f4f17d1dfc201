//! Transactions: what may be done inside one.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    ops::Deref,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use keystead_core::shard::{Shard, Shards};
use ruma::UserId;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, QueryResult, Statement, Value,
};

use crate::{Error, stats};

/// A transaction that reads. Clones are handles of the same transaction.
#[derive(Clone)]
pub struct ReadTx {
    link: Link,
    shards: Shards,
}

#[derive(Clone)]
enum Link {
    /// A transaction that has begun.
    Transaction(Arc<DatabaseTransaction>),
    /// One statement, which is a transaction of itself; and whether it has been asked.
    Statement(DatabaseConnection, Arc<AtomicBool>),
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

/// Rows for a table. All have values of the same kinds.
pub(crate) struct Insert<'a> {
    pub(crate) table: &'static str,
    pub(crate) columns: &'a [&'static str],
    pub(crate) rows: Vec<Vec<Value>>,
    /// What follows the values: `ON CONFLICT …`, or nothing.
    pub(crate) suffix: &'static str,
}

impl Insert<'_> {
    /// The statement and its parameters, of which the first is number `first`.
    fn statement(self, tx: &ReadTx, first: usize) -> (String, Vec<Value>) {
        let Self { table, columns, rows, suffix } = self;
        let (given, values) = tx.rows(first, rows);
        (format!("INSERT INTO {table} ({}) {given} {suffix}", columns.join(", ")), values)
    }
}

/// The shards that are wanted, as `held`: their rows taken in the order of the shards.
const HOLD_WANTED: &str = "held AS MATERIALIZED (SELECT s.shard, wanted.added FROM stream_shards s \
    JOIN wanted ON wanted.shard = s.shard ORDER BY s.shard FOR UPDATE OF s)";
const WANTED: &str = "held AS (SELECT shard, added FROM wanted)";

#[derive(Clone, Copy)]
struct Cursor {
    /// The position that the shard had reached before.
    before: i64,
    /// What its row says as of now.
    saved: i64,
    /// The newest position that this transaction took.
    newest: i64,
}

impl ReadTx {
    /// The beginning of a transaction.
    pub(crate) fn new(transaction: DatabaseTransaction, shards: Shards) -> Self {
        Self { link: Link::Transaction(Arc::new(transaction)), shards }
    }

    /// A transaction of a single statement.
    pub(crate) fn of_one_statement(connection: DatabaseConnection, shards: Shards) -> Self {
        Self { link: Link::Statement(connection, Arc::default()), shards }
    }

    /// Commits. Every other handle of the transaction must be gone by now.
    ///
    /// # Errors
    /// A handle is left, which is a defect of the closure that kept it; the database's own.
    pub(crate) async fn commit(self) -> Result<(), Error> {
        let Link::Transaction(transaction) = self.link else { return Ok(()) };
        let transaction = Arc::into_inner(transaction)
            .ok_or_else(|| Error::Setup("A transaction was kept beyond its closure".to_owned()))?;
        uncancelled(sea_orm::TransactionSession::commit(transaction)).await
    }

    /// How the streams are cut.
    pub fn shards(&self) -> Shards {
        self.shards
    }

    /// Which of the two databases this is.
    pub(crate) fn backend(&self) -> DbBackend {
        match &self.link {
            Link::Transaction(transaction) => transaction.get_database_backend(),
            Link::Statement(connection, _) => connection.get_database_backend(),
        }
    }

    /// Runs a statement written by hand, with `$1`, `$2`… for `values`, and returns its rows.
    pub(crate) async fn query<I>(&self, sql: &str, values: I) -> Result<Vec<QueryResult>, Error>
    where
        I: IntoIterator<Item = Value>,
    {
        let statement = statement(self.backend(), sql, values)?;
        match &self.link {
            Link::Transaction(transaction) => timed(transaction.query_all_raw(statement)).await,
            // A second one would see another state of the database.
            Link::Statement(_, asked) if asked.swap(true, Ordering::Relaxed) => {
                Err(Error::Setup("A second statement in a transaction of one".to_owned()))
            }
            Link::Statement(connection, _) => timed(connection.query_all_raw(statement)).await,
        }
    }
}

impl WriteTx {
    /// The beginning of a transaction.
    pub(crate) fn new(transaction: DatabaseTransaction, shards: Shards) -> Self {
        Self { read: ReadTx::new(transaction, shards), cursors: Arc::default(), others_only: Arc::default() }
    }

    /// Saves the positions that were taken and commits.
    ///
    /// Returns how far the shards now reach, and whether only other replicas are to be told.
    ///
    /// # Errors
    /// As [`ReadTx::commit`].
    pub(crate) async fn commit(self) -> Result<(Vec<(Shard, i64)>, bool), Error> {
        let advanced = self.save_positions().await?;
        let others_only = self.others_only.load(Ordering::Relaxed);
        self.read.commit().await?;
        Ok((advanced, others_only))
    }

    /// Runs a statement written by hand, with `$1`, `$2`… for `values`, and returns how many rows it changed.
    pub(crate) async fn execute<I>(&self, sql: &str, values: I) -> Result<u64, Error>
    where
        I: IntoIterator<Item = Value>,
    {
        let statement = statement(self.backend(), sql, values)?;
        let Link::Transaction(transaction) = &self.read.link else {
            return Err(Error::Setup("A transaction of one statement writes nothing".to_owned()));
        };
        Ok(timed(transaction.execute_raw(statement)).await?.rows_affected())
    }

    /// Inserts rows in as few statements as the database takes. `suffix` follows the values (`ON CONFLICT …`, or nothing).
    pub(crate) async fn insert_rows(
        &self,
        table: &'static str,
        columns: &[&'static str],
        rows: Vec<Vec<Value>>,
        suffix: &'static str,
    ) -> Result<(), Error> {
        self.insert(Insert { table, columns, rows, suffix }).await.map(drop)
    }

    /// Inserts rows into several tables, none of which needs what another gets: on PostgreSQL in one statement, which costs
    /// about what one of them would. Returns how many rows the last one took.
    pub(crate) async fn insert_together(&self, inserts: Vec<Insert<'_>>) -> Result<u64, Error> {
        let mut inserts: Vec<_> = inserts.into_iter().filter(|insert| !insert.rows.is_empty()).collect();
        let Some(last) = inserts.pop() else { return Ok(0) };
        if self.backend() != DbBackend::Postgres {
            for insert in inserts {
                self.insert(insert).await?;
            }
            return self.insert(last).await;
        }
        let (mut sql, mut values) = (String::new(), Vec::new());
        for (index, insert) in inserts.into_iter().enumerate() {
            let (given, mut more) = insert.statement(self, values.len() + 1);
            sql.push_str(if index == 0 { "WITH " } else { ", " });
            sql.push_str(&format!("done{index} AS ({given})"));
            values.append(&mut more);
        }
        let (given, mut more) = last.statement(self, values.len() + 1);
        values.append(&mut more);
        self.execute(&format!("{sql} {given}"), values).await
    }

    async fn insert(&self, mut insert: Insert<'_>) -> Result<u64, Error> {
        let mut inserted = 0;
        while !insert.rows.is_empty() {
            let later =
                insert.rows.split_off(insert.rows.len().min(self.rows_a_statement(insert.columns.len())));
            let (sql, values) = Insert { rows: insert.rows, ..insert }.statement(self, 1);
            inserted += self.execute(&sql, values).await?;
            insert.rows = later;
        }
        Ok(inserted)
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
        if shards.is_empty() {
            return Ok(());
        }
        let (wanted, values) = self.any_of(1, shards);
        // On SQLite the transaction has begun as the only writer.
        let lock = if self.backend() == DbBackend::Postgres { " FOR UPDATE OF s" } else { "" };
        let sql = format!(
            "SELECT s.shard, s.position FROM stream_shards s WHERE s.shard {wanted} ORDER BY s.shard{lock}"
        );
        let rows = self.query(&sql, values).await?;
        let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        for row in rows {
            let position: i64 = row.try_get("", "position")?;
            let cursor = Cursor { before: position, saved: position, newest: position };
            cursors.insert(row.try_get("", "shard")?, cursor);
        }
        Ok(())
    }

    /// [`WriteTx::lock_shards_for`] one row of each of these users, who may be named more than once, in the user's own shard.
    ///
    /// # Errors
    /// The database's own.
    pub async fn lock_shards_of<'a>(&self, users: impl IntoIterator<Item = &'a UserId>) -> Result<(), Error> {
        let users: BTreeSet<&UserId> = users.into_iter().collect();
        let mut rows: BTreeMap<Shard, i64> = BTreeMap::new();
        for user_id in users {
            *rows.entry(self.shards().of_user(user_id)).or_default() += 1;
        }
        self.lock_shards_for(&rows).await
    }

    /// [`WriteTx::lock_shards`] for shards to which so many rows each are about to be appended: if that many they are, the
    /// positions are saved with this statement.
    ///
    /// # Errors
    /// The database's own.
    pub async fn lock_shards_for(&self, rows: &BTreeMap<Shard, i64>) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        let given = rows.iter().map(|(shard, rows)| vec![(*shard).into(), (*rows).into()]).collect();
        let (wanted, values) = self.rows(1, given);
        // On SQLite the transaction has begun as the only writer, and of one shard there is no order to keep.
        let held = if self.backend() == DbBackend::Postgres && rows.len() > 1 { HOLD_WANTED } else { WANTED };
        let sql = format!(
            "WITH wanted (shard, added) AS ({wanted}), {held} UPDATE stream_shards \
             SET position = stream_shards.position + held.added FROM held \
             WHERE stream_shards.shard = held.shard RETURNING stream_shards.shard, stream_shards.position"
        );
        for row in self.query(&sql, values).await? {
            let (shard, saved): (Shard, i64) = (row.try_get("", "shard")?, row.try_get("", "position")?);
            let before = saved - rows.get(&shard).copied().unwrap_or_default();
            let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
            cursors.insert(shard, Cursor { before, saved, newest: before });
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

    /// Leaves out all positions of a shard that [`WriteTx::lock_shards`] has locked up to this one, which counts as taken.
    ///
    /// # Errors
    /// The shard was not locked, which is a defect of the caller.
    pub(crate) fn skip_to(&self, shard: Shard, position: i64) -> Result<(), Error> {
        let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        let cursor = cursors.get_mut(&shard).ok_or_else(|| {
            Error::Setup(format!("Stream shard {shard} was not locked before it was moved"))
        })?;
        cursor.newest = cursor.newest.max(position);
        Ok(())
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

    /// Saves how far the shards now reach, and returns it of those that moved.
    async fn save_positions(&self) -> Result<Vec<(Shard, i64)>, Error> {
        let cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let unsaved: Vec<Vec<Value>> = cursors
            .iter()
            .filter(|(_, cursor)| cursor.newest != cursor.saved)
            .map(|(shard, cursor)| vec![(*shard).into(), cursor.newest.into()])
            .collect();
        if !unsaved.is_empty() {
            let (rows, values) = self.rows(1, unsaved);
            let sql = format!(
                "WITH reached (shard, position) AS ({rows}) UPDATE stream_shards SET position = \
                 (SELECT reached.position FROM reached WHERE reached.shard = stream_shards.shard) \
                 WHERE shard IN (SELECT shard FROM reached)"
            );
            self.execute(&sql, values).await?;
        }
        let moved = cursors.into_iter().filter(|(_, cursor)| cursor.newest > cursor.before);
        Ok(moved.map(|(shard, cursor)| (shard, cursor.newest)).collect())
    }
}

impl Deref for WriteTx {
    type Target = ReadTx;

    fn deref(&self) -> &ReadTx {
        &self.read
    }
}

/// PostgreSQL takes no U+0000 in a text; so that both databases hold the same, neither gets one.
pub(crate) fn statement<I>(backend: DbBackend, sql: &str, values: I) -> Result<Statement, Error>
where
    I: IntoIterator<Item = Value>,
{
    let statement = Statement::from_sql_and_values(backend, sql, values);
    match &statement.values {
        Some(values) if values.0.iter().any(holds_nul) => Err(Error::InvalidText),
        _ => Ok(statement),
    }
}

fn holds_nul(value: &Value) -> bool {
    match value {
        Value::String(Some(text)) => text.contains('\0'),
        Value::Array(_, Some(values)) => values.iter().any(holds_nul),
        _ => false,
    }
}

/// [`timed`] work that goes on if nobody waits for it any longer, because its client has hung up.
///
/// A BEGIN that is dropped half-way leaves sqlx (0.9) with a connection that is in a transaction, and that it takes for one that is not:
/// what is then asked over it sees the past, and what is written is never committed.
pub(crate) async fn uncancelled<T: Send + 'static>(
    work: impl Future<Output = Result<T, sea_orm::DbErr>> + Send + 'static,
) -> Result<T, Error> {
    let ended = |error: tokio::task::JoinError| sea_orm::DbErr::Custom(error.to_string());
    timed(async { tokio::spawn(work).await.map_err(ended)? }).await
}

/// Waits for the database and counts it.
pub(crate) async fn timed<T>(work: impl Future<Output = Result<T, sea_orm::DbErr>>) -> Result<T, Error> {
    let started = Instant::now();
    let result = work.await;
    stats::count(1, started.elapsed());
    Ok(result?)
}
