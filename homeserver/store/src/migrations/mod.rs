//! The schema, as numbered steps that only go forward.
//!
//! A step expands first and contracts in a later release, so that replicas of two neighbouring versions can serve
//! side by side. All pending steps run in one transaction, under a lock.

use std::collections::BTreeSet;

use sea_orm::{ConnectionTrait, DbBackend, Statement};
use sea_orm_migration::prelude::*;

/// Room shards of a new database on SQLite: one process cannot gain from several writers to one file.
const SQLITE_ROOM_SHARDS: u32 = 1;

/// The list of steps, in order.
pub(crate) struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        steps().into_iter().map(|step| Box::new(step) as Box<dyn MigrationTrait>).collect()
    }
}

/// All steps, in order.
fn steps() -> Vec<Step> {
    vec![
        step("m0001_streams_and_rooms", include_str!("m0001_streams_and_rooms.sql")),
        step("m0002_accounts", include_str!("m0002_accounts.sql")),
        step("m0003_user_data_and_directory", include_str!("m0003_user_data_and_directory.sql")),
        step("m0004_device_keys", include_str!("m0004_device_keys.sql")),
        step("m0005_memberships_by_position", include_str!("m0005_memberships_by_position.sql")),
        step("m0006_signatures_by_signer", include_str!("m0006_signatures_by_signer.sql")),
        step("m0007_media", include_str!("m0007_media.sql")),
        step("m0008_keybox_log", include_str!("m0008_keybox_log.sql")),
        step("m0009_keybox_passphrases", include_str!("m0009_keybox_passphrases.sql")),
        step("m0010_state_positions", include_str!("m0010_state_positions.sql")),
        step("m0011_media_care", include_str!("m0011_media_care.sql")),
        step("m0012_replaced_state", include_str!("m0012_replaced_state.sql")),
        step("m0013_revoked_key_sets", include_str!("m0013_revoked_key_sets.sql")),
        step("m0014_restores_and_replicas", include_str!("m0014_restores_and_replicas.sql")),
        step("m0015_event_relations", include_str!("m0015_event_relations.sql")),
        step("m0016_reports_and_openid", include_str!("m0016_reports_and_openid.sql")),
        step("m0017_presence", include_str!("m0017_presence.sql")),
        postgres_step("m0018_append_messages", include_str!("m0018_append_messages.sql")),
        step("m0019_push_cursors", include_str!("m0019_push_cursors.sql")),
        step("m0020_erased_users", include_str!("m0020_erased_users.sql")),
        step("m0021_push_queue", include_str!("m0021_push_queue.sql")),
        postgres_step("m0022_append_messages_by_index", include_str!("m0022_append_messages_by_index.sql")),
    ]
}

/// The names of all steps, in order.
pub(crate) fn step_names() -> Vec<&'static str> {
    steps().iter().map(|step| step.name).collect()
}

/// The names of the steps that a database has taken, in order; none if it is empty.
pub(crate) async fn taken(connection: &impl ConnectionTrait) -> Result<Vec<String>, DbErr> {
    let tables = match connection.get_database_backend() {
        DbBackend::Postgres => {
            "SELECT table_name AS name FROM information_schema.tables \
             WHERE table_schema = current_schema() AND table_name = 'seaql_migrations'"
        }
        _ => "SELECT name FROM sqlite_master WHERE type = 'table' AND name = 'seaql_migrations'",
    };
    if names(connection, tables).await?.is_empty() {
        return Ok(Vec::new());
    }
    names(connection, "SELECT version AS name FROM seaql_migrations ORDER BY version").await
}

/// The names of the steps that a database lacks. That it has taken steps of a newer version is no obstacle: they leave this one able to serve.
pub(crate) async fn lacking(connection: &impl ConnectionTrait) -> Result<Vec<&'static str>, DbErr> {
    let taken = taken(connection).await?;
    Ok(step_names().into_iter().filter(|name| !taken.iter().any(|taken| taken == name)).collect())
}

/// The column `name` of what a statement returns.
pub(crate) async fn names(connection: &impl ConnectionTrait, sql: &str) -> Result<Vec<String>, DbErr> {
    let statement = Statement::from_string(connection.get_database_backend(), sql);
    connection.query_all_raw(statement).await?.iter().map(|row| row.try_get("", "name")).collect()
}

/// The names of what the steps make of a kind and leave: `INDEX`, or `FUNCTION`.
pub(crate) fn made(kind: &str) -> BTreeSet<String> {
    let mut made = BTreeSet::new();
    for statement in steps().iter().flat_map(Step::statements) {
        let is_said = |word: &&str| !["OR", "REPLACE", "UNIQUE", "IF", "NOT", "EXISTS"].contains(word);
        let words = statement.split(|letter: char| letter.is_whitespace() || letter == '(');
        let mut words = words.filter(|word| !word.is_empty()).filter(is_said);
        match (words.next(), words.next(), words.next()) {
            (Some("CREATE"), Some(what), Some(name)) if what == kind => drop(made.insert(name.to_owned())),
            (Some("DROP"), Some(what), Some(name)) if what == kind => drop(made.remove(name)),
            _ => {}
        }
    }
    made
}

/// Cuts the streams of a database that has none yet: so many of rooms on PostgreSQL, and as many of users.
pub(crate) async fn create_shards(connection: &impl ConnectionTrait, room_shards: u32) -> Result<(), DbErr> {
    let rooms = match connection.get_database_backend() {
        DbBackend::Postgres => room_shards,
        _ => SQLITE_ROOM_SHARDS,
    };
    let values = (0..rooms * 2).map(|shard| format!("({shard}, 0)")).collect::<Vec<_>>().join(", ");
    let insert = format!(
        "INSERT INTO stream_shards (shard, position) \
         SELECT * FROM (VALUES {values}) AS new WHERE NOT EXISTS (SELECT 1 FROM stream_shards)"
    );
    connection.execute_unprepared(&insert).await?;
    Ok(())
}

/// Makes PostgreSQL compare texts by their bytes, as SQLite does: all that is compared here are ids and the like. By the rules of
/// a language, which a database is set to when it is made, a look into an index costs several times as much, and an update of
/// the system's rules for it breaks the indexes.
pub(crate) async fn compare_by_bytes(connection: &impl ConnectionTrait) -> Result<(), DbErr> {
    if connection.get_database_backend() != DbBackend::Postgres {
        return Ok(());
    }
    let columns = "SELECT format('ALTER TABLE %I %s', c.table_name, string_agg( \
            format('ALTER COLUMN %I TYPE TEXT COLLATE \"C\"', c.column_name), ', ')) AS change \
        FROM information_schema.columns c \
        JOIN information_schema.tables t ON t.table_schema = c.table_schema AND t.table_name = c.table_name \
        WHERE c.table_schema = current_schema() AND t.table_type = 'BASE TABLE' AND c.data_type = 'text' \
        AND c.collation_name IS DISTINCT FROM 'C' GROUP BY c.table_name";
    let changes = connection.query_all_raw(Statement::from_string(DbBackend::Postgres, columns)).await?;
    for change in changes {
        connection.execute_unprepared(&change.try_get::<String>("", "change")?).await?;
    }
    Ok(())
}

/// One step: statements that SQLite and PostgreSQL both take, or that only PostgreSQL takes.
///
/// Lines that begin with `--` are comments; every `;` elsewhere ends a statement, but in those for PostgreSQL only, which are one.
struct Step {
    name: &'static str,
    statements: &'static str,
    only_postgres: bool,
}

fn step(name: &'static str, statements: &'static str) -> Step {
    Step { name, statements, only_postgres: false }
}

fn postgres_step(name: &'static str, statements: &'static str) -> Step {
    Step { name, statements, only_postgres: true }
}

impl Step {
    fn statements(&self) -> Vec<String> {
        let lines: Vec<&str> = self.statements.lines().filter(|line| !line.starts_with("--")).collect();
        let statements = lines.join("\n");
        if self.only_postgres {
            return vec![statements];
        }
        let statements = statements.split(';').map(str::trim);
        statements.filter(|statement| !statement.is_empty()).map(str::to_owned).collect()
    }
}

impl MigrationName for Step {
    fn name(&self) -> &str {
        self.name
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Step {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if self.only_postgres && manager.get_database_backend() != DbBackend::Postgres {
            return Ok(());
        }
        for statement in self.statements() {
            manager.get_connection().execute_unprepared(&statement).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_steps_make_is_known_by_name() {
        let functions = ["append_messages", "append_messages_by_index"];
        assert_eq!(made("FUNCTION"), functions.map(str::to_owned).into());
        let indexes = made("INDEX");
        for name in ["events_event_id", "jobs_run_at", "media_reserved", "url_previews_by_age"] {
            assert!(indexes.contains(name), "{name}: {indexes:?}");
        }
        assert!(indexes.len() > 25, "{indexes:?}");
    }
}
