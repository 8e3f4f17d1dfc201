//! Transactions: what may be done inside one.

use std::{
    collections::BTreeMap,
    future::Future,
    ops::Deref,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use keystead_core::shard::{Shard, Shards};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, QueryResult, Statement, Value};

use crate::{Error, stats};

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

impl ReadTx {
    /// The beginning of a transaction.
    pub(crate) fn new(transaction: DatabaseTransaction, shards: Shards) -> Self {
        Self { transaction: Arc::new(transaction), shards }
    }

    /// Commits. Every other handle of the transaction must be gone by now.
    ///
    /// # Errors
    /// A handle is left, which is a defect of the closure that kept it; the database's own.
    pub(crate) async fn commit(self) -> Result<(), Error> {
        let transaction = Arc::into_inner(self.transaction)
            .ok_or_else(|| Error::Setup("A transaction was kept beyond its closure".to_owned()))?;
        timed(sea_orm::TransactionSession::commit(transaction)).await
    }

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

    /// PostgreSQL takes no U+0000 in a text; so that both databases hold the same, neither gets one.
    fn statement<I>(&self, sql: &str, values: I) -> Result<Statement, Error>
    where
        I: IntoIterator<Item = Value>,
    {
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        match &statement.values {
            Some(values) if values.0.iter().any(holds_nul) => Err(Error::InvalidText),
            _ => Ok(statement),
        }
    }

    /// Runs a statement written by hand, with `$1`, `$2`… for `values`, and returns its rows.
    pub(crate) async fn query<I>(&self, sql: &str, values: I) -> Result<Vec<QueryResult>, Error>
    where
        I: IntoIterator<Item = Value>,
    {
        timed(self.connection().query_all_raw(self.statement(sql, values)?)).await
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
        Ok(timed(self.connection().execute_raw(self.statement(sql, values)?)).await?.rows_affected())
    }

    /// Inserts rows in as few statements as the database takes. `suffix` follows the values (`ON CONFLICT …`, or nothing).
    pub(crate) async fn insert_rows(
        &self,
        table: &'static str,
        columns: &[&'static str],
        rows: Vec<Vec<Value>>,
        suffix: &str,
    ) -> Result<(), Error> {
        let mut rows = rows;
        while !rows.is_empty() {
            let later = rows.split_off(rows.len().min(self.rows_a_statement(columns.len())));
            let (given, values) = self.rows(1, rows);
            let sql = format!("INSERT INTO {table} ({}) {given} {suffix}", columns.join(", "));
            self.execute(&sql, values).await?;
            rows = later;
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

fn holds_nul(value: &Value) -> bool {
    match value {
        Value::String(Some(text)) => text.contains('\0'),
        Value::Array(_, Some(values)) => values.iter().any(holds_nul),
        _ => false,
    }
}

/// Waits for the database and counts it.
pub(crate) async fn timed<T>(work: impl Future<Output = Result<T, sea_orm::DbErr>>) -> Result<T, Error> {
    let started = Instant::now();
    let result = work.await;
    stats::count(1, started.elapsed());
    Ok(result?)
}
