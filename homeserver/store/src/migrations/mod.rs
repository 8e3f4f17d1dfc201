//! The schema, as numbered steps that only go forward.
//!
//! A step expands first and contracts in a later release, so that replicas of two neighbouring versions can serve
//! side by side. All pending steps run in one transaction, under a lock.

use sea_orm_migration::prelude::*;

mod m0001_streams_and_rooms;
mod m0002_accounts;
mod m0003_user_data_and_directory;
mod m0004_device_keys;

/// The list of steps, in order.
pub(crate) struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m0001_streams_and_rooms::Migration),
            Box::new(m0002_accounts::Migration),
            Box::new(m0003_user_data_and_directory::Migration),
            Box::new(m0004_device_keys::Migration),
        ]
    }
}

/// Runs the statements of one step, which are the same for SQLite and PostgreSQL.
///
/// Lines that begin with `--` are comments; every `;` elsewhere ends a statement.
async fn run(manager: &SchemaManager<'_>, statements: &str) -> Result<(), DbErr> {
    let statements: String =
        statements.lines().filter(|line| !line.starts_with("--")).collect::<Vec<_>>().join("\n");
    for statement in statements.split(';').map(str::trim).filter(|statement| !statement.is_empty()) {
        manager.get_connection().execute_unprepared(statement).await?;
    }
    Ok(())
}
