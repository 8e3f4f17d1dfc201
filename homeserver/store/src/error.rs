//! What can go wrong between the server and its database.

use std::io::ErrorKind;

use sea_orm::{DbErr, RuntimeErr, SqlErr, sqlx};

/// An error of the store.
///
/// A missing row is never one of these: look-ups return an `Option`.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A unique constraint stands against the write; its name, as far as the database tells it.
    #[error("the row conflicts with another one: {0}")]
    Conflict(String),
    /// Another transaction was in the way (serialization failure, deadlock, busy): the same transaction may succeed now.
    #[error("the transaction has to be tried again")]
    Retryable(#[source] DbErr),
    /// The database cannot be reached, or no connection became free in time.
    #[error("the database cannot be reached")]
    Unavailable(#[source] DbErr),
    /// There is no room left where the database is kept.
    #[error("the database's disk is full")]
    Full(#[source] DbErr),
    /// A row is there, but cannot be read.
    #[error("cannot read column {column} of {table}, row {row}: {problem}")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// What identifies the row.
        row: String,
        /// What is wrong with the value; never the value itself.
        problem: String,
    },
    /// A text holds what a database cannot store: a zero character.
    #[error("a text holds a zero character")]
    InvalidText,
    /// The database refused the statement or the login for another reason.
    #[error("the database refused what was asked of it")]
    Database(#[source] DbErr),
    /// The database is not one that this program can serve (no schema, other settings).
    #[error("{0}")]
    Setup(String),
}

impl Error {
    /// Whether the transaction may succeed when it is run again.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Retryable(_))
    }

    /// Whether the database refused what was to be written, rather than being away.
    pub fn is_about_data(&self) -> bool {
        !matches!(self, Self::Unavailable(_) | Self::Retryable(_) | Self::Full(_) | Self::Setup(_))
    }

    /// Whether the connection had been ended at its other side, so that another one may do.
    pub(crate) fn is_stale_connection(&self) -> bool {
        let Self::Unavailable(error) = self else { return false };
        let (DbErr::Conn(RuntimeErr::SqlxError(cause))
        | DbErr::Exec(RuntimeErr::SqlxError(cause))
        | DbErr::Query(RuntimeErr::SqlxError(cause))) = error
        else {
            return false;
        };
        match &**cause {
            sqlx::Error::Io(cause) => matches!(
                cause.kind(),
                ErrorKind::BrokenPipe
                    | ErrorKind::ConnectionAborted
                    | ErrorKind::ConnectionReset
                    | ErrorKind::UnexpectedEof
            ),
            // The server ended this session, for it shut down, or for another reason that is the session's own.
            sqlx::Error::Database(cause) => {
                matches!(cause.code().as_deref(), Some("57P01" | "57P02" | "57P05" | "25P03"))
            }
            _ => false,
        }
    }

    /// Whether a unique constraint stood against the write.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict(_))
    }

    /// Passes over a row that is there but cannot be read, and says so in the log: for reading many rows of many rooms, where
    /// one that is damaged must not keep all others from those who wait for them. What decides about rights is never read so.
    ///
    /// # Errors
    /// Every other error.
    pub fn pass_over<T>(read: Result<T, Self>) -> Result<Option<T>, Self> {
        match read {
            Err(error @ Self::Corrupt { .. }) => {
                tracing::error!(error = &error as &dyn std::error::Error, "passing over a damaged row");
                Ok(None)
            }
            read => read.map(Some),
        }
    }

    /// A row of `table` that cannot be read, for functions that turn rows into values.
    pub fn corrupt(
        table: &'static str,
        column: &'static str,
        row: impl Into<String>,
        problem: impl std::fmt::Display,
    ) -> Self {
        Self::Corrupt { table, column, row: row.into(), problem: problem.to_string() }
    }
}

/// Errors that come out of the closure of a transaction.
///
/// Implemented by the store's own [`Error`] and by the errors of use cases that carry one.
pub trait TransactionError: From<Error> {
    /// The store's error inside, if that is what this is.
    fn store_error(&self) -> Option<&Error>;
}

impl TransactionError for Error {
    fn store_error(&self) -> Option<&Error> {
        Some(self)
    }
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        if let Some(SqlErr::UniqueConstraintViolation(constraint)) = error.sql_err() {
            return Self::Conflict(constraint);
        }
        match &error {
            DbErr::Conn(RuntimeErr::SqlxError(cause))
            | DbErr::Exec(RuntimeErr::SqlxError(cause))
            | DbErr::Query(RuntimeErr::SqlxError(cause)) => match kind_of(cause) {
                Kind::Retryable => Self::Retryable(error),
                Kind::Unavailable => Self::Unavailable(error),
                Kind::Full => Self::Full(error),
                Kind::Other => Self::Database(error),
            },
            DbErr::ConnectionAcquire(_) | DbErr::Conn(_) => Self::Unavailable(error),
            _ => Self::Database(error),
        }
    }
}

enum Kind {
    Retryable,
    Unavailable,
    Full,
    Other,
}

fn kind_of(error: &sqlx::Error) -> Kind {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        // What answered is no PostgreSQL: a proxy whose server is not there yet.
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => Kind::Unavailable,
        sqlx::Error::Database(cause) => match cause.code().as_deref() {
            // PostgreSQL: serialization_failure, deadlock_detected; SQLite: BUSY and BUSY_SNAPSHOT.
            Some("40001" | "40P01" | "5" | "517") => Kind::Retryable,
            // PostgreSQL class 57: the server is shutting down, starting, or ended this session.
            Some("57P01" | "57P02" | "57P03" | "57P05") => Kind::Unavailable,
            // query_canceled by statement_timeout, idle_in_transaction_session_timeout: nothing was committed.
            Some("57014" | "25P03") => Kind::Unavailable,
            // PostgreSQL: disk_full; SQLite: FULL.
            Some("53100" | "13") => Kind::Full,
            // PostgreSQL class 08 and 53: connection trouble, too many connections.
            Some(code) if code.starts_with("08") || code == "53300" => Kind::Unavailable,
            _ => Kind::Other,
        },
        _ => Kind::Other,
    }
}
