//! The connections to the database, which are given up together when it does not answer.
//!
//! A network that drops packets says nothing: whoever waits for an answer would wait until TCP gives up, which takes a quarter
//! of an hour, and after a short outage until TCP happens to try again. So the connection that listens for hints is asked
//! for a sign of life every so often ([`PING_EVERY`], [`ANSWER_WITHIN`]). When none comes, all work under way fails
//! with [`Error::Unavailable`], new work fails at once, and what comes later goes over new connections.

use std::{
    future::Future,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use sea_orm::{DatabaseConnection, DbErr, RuntimeErr};
use tokio_util::sync::CancellationToken;

use crate::{
    Error,
    connect::{self, Options},
};

/// How often a connection that says nothing is asked for a sign of life.
pub(crate) const PING_EVERY: Duration = Duration::from_secs(2);
/// How long the database may take to give one.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How long it may take to take a connection: it starts a process for each, which an overloaded machine is slow to do.
pub(crate) const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Connections for reading and for writing.
pub(crate) struct Connections {
    pub(crate) reader: DatabaseConnection,
    /// On SQLite one connection, as it has one writer at a time.
    pub(crate) writer: DatabaseConnection,
    given_up: CancellationToken,
}

/// The connections that are in use now. None while the database does not answer.
pub(crate) struct Link {
    options: Options,
    connections: RwLock<Option<Arc<Connections>>>,
}

impl Connections {
    fn new((reader, writer): (DatabaseConnection, DatabaseConnection)) -> Arc<Self> {
        Arc::new(Self { reader, writer, given_up: CancellationToken::new() })
    }

    /// Does work on these connections, for as long as they are any good.
    ///
    /// # Errors
    /// The work's own; [`Error::Unavailable`] if the connections were given up: then it is not known what the
    /// database has done of it.
    pub(crate) async fn run<T, E: From<Error>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        tokio::select! {
            biased;
            result = work => result,
            () = self.given_up.cancelled() => Err(does_not_answer().into()),
        }
    }
}

impl Link {
    pub(crate) fn new(options: Options, connections: (DatabaseConnection, DatabaseConnection)) -> Arc<Self> {
        Arc::new(Self { options, connections: RwLock::new(Some(Connections::new(connections))) })
    }

    /// How the database is reached.
    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// The connections that are in use now.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while the database does not answer.
    pub(crate) fn connections(&self) -> Result<Arc<Connections>, Error> {
        let connections = self.connections.read().unwrap_or_else(PoisonError::into_inner);
        connections.clone().ok_or_else(does_not_answer)
    }

    /// Ends all work under way, and refuses more, until [`Link::restore`].
    ///
    /// What hangs in the network is left to the operating system, which ends it in its own time.
    pub(crate) fn give_up(&self) {
        let given_up = self.connections.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(connections) = given_up {
            tracing::warn!("the database does not answer: its connections are given up");
            connections.given_up.cancel();
        }
    }

    /// Takes up work again over new connections, if the old ones were given up.
    ///
    /// # Errors
    /// The URL of the database cannot be read.
    pub(crate) async fn restore(&self) -> Result<(), Error> {
        if self.connections().is_ok() {
            return Ok(());
        }
        let connections = Connections::new(connect::connect_later(&self.options).await?);
        *self.connections.write().unwrap_or_else(PoisonError::into_inner) = Some(connections);
        tracing::info!("the database answers again");
        Ok(())
    }

    /// Closes all connections. There is no more work.
    pub(crate) async fn close(&self) {
        let Ok(connections) = self.connections() else { return };
        // The process is about to end; a connection that does not close in order is closed by its end.
        let _ = connections.reader.clone().close().await;
        let _ = connections.writer.clone().close().await;
    }
}

fn does_not_answer() -> Error {
    Error::Unavailable(DbErr::Conn(RuntimeErr::Internal("the database does not answer".to_owned())))
}

#[cfg(test)]
mod tests {
    use sea_orm::{ConnectionTrait, DbBackend, Statement};

    use super::*;

    #[tokio::test]
    async fn what_is_given_up_ends_and_later_work_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}/keystead.db", folder.path().display());
        let options = Options { url, max_connections: 2, room_shards: 8, observer: Arc::new(|_| {}) };
        let link = Link::new(options.clone(), connect::connect(&options).await.unwrap());

        let connections = link.connections().unwrap();
        let hanging =
            tokio::spawn(async move { connections.run(std::future::pending::<Result<(), Error>>()).await });
        tokio::task::yield_now().await;
        link.give_up();
        let ended = hanging.await.unwrap();
        assert!(matches!(ended, Err(Error::Unavailable(_))), "{ended:?}");
        assert!(matches!(link.connections().map(drop), Err(Error::Unavailable(_))));

        link.restore().await.unwrap();
        let connections = link.connections().unwrap();
        let statement = Statement::from_string(DbBackend::Sqlite, "SELECT 1");
        let row = connections
            .run(async { Ok::<_, Error>(connections.reader.query_one_raw(statement).await?) })
            .await;
        assert!(row.unwrap().is_some());
    }
}
