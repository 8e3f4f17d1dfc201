//! What `keystead doctor` asks a database, whatever state it is in: nothing here changes anything, and no schema is needed.

use std::{collections::BTreeMap, time::Duration};

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, QueryResult, Statement,
    sqlx::{self, Connection as _, PgConnection, postgres::PgListener},
};
use tokio::time::timeout;

use crate::{
    Error,
    connect::{Options, connect, session_options},
    migrations::{lacking, made, names, step_names, taken},
};

/// The channel of a test notification: not the one that replicas listen to.
const CHANNEL: &str = "keystead_doctor";
/// How long a notification may take.
const NOTIFICATION_WITHIN: Duration = Duration::from_secs(3);

/// What was found out about a database.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Steps of this program's schema that the database lacks.
    pub lacking_steps: Vec<String>,
    /// Steps that the database has and this program does not know: it is older.
    pub unknown_steps: Vec<String>,
    /// Indexes that should be there and are not, or cannot be used. Those of lacking steps are not named.
    pub missing_indexes: Vec<String>,
    /// Functions that should be there and are not, or that this user may not call. Those of lacking steps are not named.
    pub missing_functions: Vec<String>,
    /// What there is to know of PostgreSQL; `None` on SQLite.
    pub postgres: Option<PostgresFacts>,
}

/// What was found out about PostgreSQL.
#[derive(Clone, Debug)]
pub struct PostgresFacts {
    /// As `server_version_num` says it: 150004 for 15.4.
    pub version: i64,
    /// Of the database.
    pub encoding: String,
    /// Text columns that are not compared by their bytes, as `table.column`.
    pub other_collations: Vec<String>,
    /// Whether the system's rules of the database's collation have changed since its indexes were made.
    pub collation_changed: bool,
    /// Connections that there may be, without those for administrators.
    pub max_connections: i64,
    /// Connections that other programs hold now.
    pub foreign_connections: i64,
    /// Settings of the server and of this user in this database, by name.
    pub settings: BTreeMap<String, String>,
    /// Whether it is a standby, which only reads.
    pub is_standby: bool,
    /// Whether sessions have the settings that they asked for: a pooler may drop them.
    pub keeps_session_settings: bool,
    /// How long the oldest open transaction has been open, in seconds.
    pub oldest_transaction_seconds: i64,
    /// How many transactions old the oldest row may be; PostgreSQL stops writing at about 2,000,000,000.
    pub oldest_row: i64,
}

/// Whether notifications arrive that are sent through the database.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Notifications {
    /// They do.
    Arrive,
    /// They were sent and none came.
    Lost,
    /// They could not be sent or listened to; why.
    Failed(String),
}

/// The settings of PostgreSQL that matter here.
const SETTINGS: [&str; 5] =
    ["autovacuum", "default_transaction_read_only", "fsync", "full_page_writes", "synchronous_commit"];

/// The functions of this schema that this user may call.
const USABLE_FUNCTIONS: &str = "SELECT CAST(p.proname AS TEXT) AS name FROM pg_proc p \
    JOIN pg_namespace n ON n.oid = p.pronamespace \
    WHERE n.nspname = current_schema() AND has_function_privilege(p.oid, 'EXECUTE')";

/// Finds out what there is to know.
///
/// # Errors
/// The database cannot be reached, or refuses the questions.
pub async fn facts(options: &Options) -> Result<Facts, Error> {
    let (reader, writer) = connect(options).await?;
    let facts = collect(&reader, &writer).await;
    reader.close().await?;
    writer.close().await?;
    facts
}

async fn collect(reader: &DatabaseConnection, writer: &DatabaseConnection) -> Result<Facts, Error> {
    let is_postgres = writer.get_database_backend() == DbBackend::Postgres;
    let lacking_steps: Vec<String> = lacking(writer).await?.into_iter().map(str::to_owned).collect();
    let known = step_names();
    let unknown_steps =
        taken(writer).await?.into_iter().filter(|name| !known.contains(&name.as_str())).collect();
    let usable_indexes = if is_postgres {
        "SELECT CAST(c.relname AS TEXT) AS name FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
         JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = current_schema() AND i.indisvalid AND i.indisready"
    } else {
        "SELECT name FROM sqlite_master WHERE type = 'index'"
    };
    let found = names(writer, usable_indexes).await?;
    let missing_indexes = if lacking_steps.is_empty() {
        made("INDEX").into_iter().filter(|name| !found.contains(name)).collect()
    } else {
        Vec::new()
    };
    let missing_functions = if is_postgres && lacking_steps.is_empty() {
        let found = names(writer, USABLE_FUNCTIONS).await?;
        made("FUNCTION").into_iter().filter(|name| !found.contains(name)).collect()
    } else {
        Vec::new()
    };
    let postgres = if is_postgres { Some(postgres_facts(reader, writer).await?) } else { None };
    Ok(Facts { lacking_steps, unknown_steps, missing_indexes, missing_functions, postgres })
}

async fn postgres_facts(
    reader: &DatabaseConnection,
    writer: &DatabaseConnection,
) -> Result<PostgresFacts, Error> {
    let row = one(writer, FACTS).await?;
    let changed = "SELECT COALESCE(bool_or(datcollversion IS DISTINCT FROM pg_database_collation_actual_version(oid)), FALSE) \
        AS changed FROM pg_database WHERE datname = current_database() AND datcollversion IS NOT NULL";
    let version: i64 = row.try_get("", "version")?;
    // PostgreSQL before 15 does not keep that version.
    let collation_changed =
        if version >= 150_000 { one(writer, changed).await?.try_get("", "changed")? } else { false };
    let isolation: String = one(reader, "SELECT current_setting('transaction_isolation') AS level")
        .await?
        .try_get("", "level")?;
    let jit: String = one(writer, "SELECT current_setting('jit') AS jit").await?.try_get("", "jit")?;
    let mut settings = BTreeMap::new();
    for name in SETTINGS {
        let row = one(writer, &format!("SELECT current_setting('{name}') AS value")).await?;
        settings.insert(name.to_owned(), row.try_get("", "value")?);
    }
    let other_collations = "SELECT c.table_name || '.' || c.column_name AS name FROM information_schema.columns c \
        JOIN information_schema.tables t ON t.table_schema = c.table_schema AND t.table_name = c.table_name \
        WHERE c.table_schema = current_schema() AND t.table_type = 'BASE TABLE' AND c.data_type = 'text' \
        AND c.collation_name IS DISTINCT FROM 'C' ORDER BY 1";
    Ok(PostgresFacts {
        version,
        encoding: row.try_get("", "encoding")?,
        other_collations: names(writer, other_collations).await?,
        collation_changed,
        max_connections: row.try_get("", "max_connections")?,
        foreign_connections: row.try_get("", "foreign_connections")?,
        settings,
        is_standby: row.try_get("", "is_standby")?,
        keeps_session_settings: isolation == "repeatable read" && jit == "off",
        oldest_transaction_seconds: row.try_get("", "oldest_transaction")?,
        oldest_row: row.try_get("", "oldest_row")?,
    })
}

const FACTS: &str = "SELECT \
    CAST(current_setting('server_version_num') AS BIGINT) AS version, \
    (SELECT CAST(pg_encoding_to_char(encoding) AS TEXT) FROM pg_database WHERE datname = current_database()) AS encoding, \
    CAST(current_setting('max_connections') AS BIGINT) - CAST(current_setting('superuser_reserved_connections') AS BIGINT) \
        AS max_connections, \
    (SELECT COUNT(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name NOT LIKE 'keystead%') \
        AS foreign_connections, \
    pg_is_in_recovery() AS is_standby, \
    (SELECT COALESCE(MAX(CAST(EXTRACT(EPOCH FROM clock_timestamp() - xact_start) AS BIGINT)), 0) FROM pg_stat_activity \
        WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()) AS oldest_transaction, \
    (SELECT CAST(age(datfrozenxid) AS BIGINT) FROM pg_database WHERE datname = current_database()) AS oldest_row";

/// Sends a notification and listens to it, over connections of their own. A pooler that hands a connection to another client after each transaction
/// loses notifications without an error.
pub async fn notifications(options: &Options) -> Notifications {
    match timeout(NOTIFICATION_WITHIN * 2, notify_and_listen(&options.url)).await {
        Ok(Ok(arrived)) => arrived,
        Ok(Err(error)) => Notifications::Failed(error.to_string()),
        Err(_) => Notifications::Lost,
    }
}

async fn notify_and_listen(url: &str) -> Result<Notifications, sqlx::Error> {
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(1);
    let connect = session_options(url)?.application_name("keystead doctor");
    let mut listener = PgListener::connect_with(&pool.connect_with(connect.clone()).await?).await?;
    listener.listen(CHANNEL).await?;
    let mut sender = PgConnection::connect_with(&connect).await?;
    sqlx::query("SELECT pg_notify($1, 'doctor')").bind(CHANNEL).execute(&mut sender).await?;
    let heard = timeout(NOTIFICATION_WITHIN, listener.recv()).await;
    sender.close().await?;
    match heard {
        Ok(heard) => heard.map(|_| Notifications::Arrive),
        Err(_) => Ok(Notifications::Lost),
    }
}

async fn one(connection: &DatabaseConnection, sql: &str) -> Result<QueryResult, Error> {
    let row = connection.query_one_raw(statement(connection, sql)).await?;
    row.ok_or_else(|| Error::Setup("The database did not answer a question about itself".to_owned()))
}

fn statement(connection: &DatabaseConnection, sql: &str) -> Statement {
    Statement::from_string(connection.get_database_backend(), sql)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::Store;

    #[tokio::test]
    async fn an_empty_a_whole_and_a_damaged_database_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}/keystead.db", folder.path().display());
        let options = Options { url, max_connections: 2, room_shards: 8, observer: Arc::new(|_| {}) };
        let empty = facts(&options).await.unwrap();
        assert_eq!(empty.lacking_steps.len(), step_names().len());
        assert!(empty.missing_indexes.is_empty() && empty.postgres.is_none());

        Store::migrate(&options).await.unwrap();
        let whole = facts(&options).await.unwrap();
        assert!(whole.lacking_steps.is_empty() && whole.unknown_steps.is_empty(), "{whole:?}");
        assert!(whole.missing_indexes.is_empty(), "{whole:?}");

        let (_, writer) = connect(&options).await.unwrap();
        for sql in [
            "DROP INDEX events_event_id",
            "INSERT INTO seaql_migrations (version, applied_at) VALUES ('m9999_of_the_future', 0)",
        ] {
            writer.execute_unprepared(sql).await.unwrap();
        }
        let damaged = facts(&options).await.unwrap();
        assert_eq!(damaged.missing_indexes, ["events_event_id"]);
        assert_eq!(damaged.unknown_steps, ["m9999_of_the_future"]);
        // The release before can start again all the same: in the middle of an upgrade, or to go back.
        assert_eq!(Store::migrate(&options).await.unwrap(), 0);
        Store::open(options).await.unwrap();
    }
}
