//! How much of a request's time was the database's: counted by a task-local, read by the access log.

use std::{cell::Cell, future::Future, time::Duration};

tokio::task_local! {
    static STATS: Cell<QueryStats>;
    static STATEMENTS: Cell<u32>;
}

/// What one request asked of the database.
#[derive(Clone, Copy, Debug, Default)]
pub struct QueryStats {
    /// How many statements, commits included.
    pub queries: u32,
    /// How long it waited for them, and for a connection.
    pub time: Duration,
}

/// Runs `work` and counts what it asks of the database; work that it hands to other tasks is not counted.
pub async fn with_query_stats<T>(work: impl Future<Output = T>) -> (T, QueryStats) {
    STATS
        .scope(Cell::default(), async {
            let result = work.await;
            (result, STATS.with(Cell::get))
        })
        .await
}

/// Runs part of a transaction and counts its statements; they are counted for the request as well.
pub(crate) async fn with_statement_count<T>(work: impl Future<Output = T>) -> (T, u32) {
    STATEMENTS
        .scope(Cell::default(), async {
            let result = work.await;
            (result, STATEMENTS.with(Cell::get))
        })
        .await
}

/// Adds to the counts of the current request, if there is one.
pub(crate) fn count(queries: u32, time: Duration) {
    let _ = STATEMENTS.try_with(|statements| statements.set(statements.get() + queries));
    // Outside of a request there is nobody to count for.
    let _ = STATS.try_with(|stats| {
        let before = stats.get();
        stats.set(QueryStats { queries: before.queries + queries, time: before.time + time });
    });
}
