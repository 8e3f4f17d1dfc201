//! PostgreSQL of Debian's packages, on a machine of its own.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{process::Command, time::sleep};

use crate::{
    Result,
    network::{Network, address, succeed},
};

/// A server with an empty database, which syncs every commit to disk.
pub struct Postgres {
    network: Network,
    programs: PathBuf,
    data: PathBuf,
}

impl Postgres {
    /// Makes the cluster in a folder of the user `postgres`, and starts it.
    ///
    /// # Errors
    /// PostgreSQL is not installed, or does not start.
    pub async fn start(network: &Network, scratch: &Path) -> Result<Self> {
        let data = scratch.join("postgres");
        succeed(Command::new("install").args(["-d", "-o", "postgres", "-m", "700"]).arg(&data)).await?;
        let postgres = Self { network: network.clone(), programs: programs()?, data };
        let mut initdb = postgres.command("initdb");
        initdb.args(["--auth=trust", "--encoding=UTF8", "--username=postgres", "-D"]).arg(&postgres.data);
        succeed(&mut initdb).await?;
        postgres.run().await?;
        Ok(postgres)
    }

    /// The URL of the database.
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", address("pg"))
    }

    /// Starts the server and waits until it takes connections.
    ///
    /// # Errors
    /// It does not start.
    pub async fn run(&self) -> Result<()> {
        let hba = self.data.join("pg_hba.conf");
        std::fs::write(&hba, "local all all trust\nhost all all all trust\n")?;
        let options = format!(
            "-c listen_addresses=* -c unix_socket_directories={} -c shared_buffers=256MB -c max_connections=100",
            self.data.display()
        );
        self.control(&["start", "-w", "-t", "60", "-o", &options]).await
    }

    /// Stops the server: `fast` ends all sessions in order, `immediate` is a crash.
    ///
    /// # Errors
    /// It does not stop.
    pub async fn stop(&self, mode: &str) -> Result<()> {
        self.control(&["stop", "-w", "-m", mode]).await
    }

    /// Runs a statement, and gives what it returns.
    ///
    /// # Errors
    /// It fails.
    pub async fn query(&self, sql: &str) -> Result<String> {
        let mut psql = self.command("psql");
        psql.args(["-X", "-A", "-t", "-U", "postgres", "-d", "postgres", "-c", sql, "-h"]).arg(&self.data);
        Ok(succeed(&mut psql).await?.trim().to_owned())
    }

    /// Waits until a statement returns something other than zero or nothing.
    ///
    /// # Errors
    /// It does not within half a minute.
    pub async fn until(&self, sql: &str) -> Result<()> {
        for _ in 0..300 {
            if !["", "0", "f"].contains(&&*self.query(sql).await?) {
                return Ok(());
            }
            sleep(Duration::from_millis(100)).await;
        }
        Err(format!("not within half a minute: {sql}").into())
    }

    async fn control(&self, arguments: &[&str]) -> Result<()> {
        let log = self.data.join("log");
        let mut control = self.command("pg_ctl");
        // The server would keep the pipes open.
        control.args(arguments).arg("-D").arg(&self.data).arg("-l").arg(&log);
        let status = control.stdout(Stdio::null()).stderr(Stdio::null()).status().await?;
        if status.success() {
            return Ok(());
        }
        Err(format!("pg_ctl {arguments:?}: {status}\n{}", std::fs::read_to_string(log)?).into())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.network.command("pg");
        command.args(["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]);
        command.arg(self.programs.join(program)).current_dir("/");
        command
    }
}

/// The folder with `initdb` and `pg_ctl` of the newest version.
fn programs() -> Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<_> = versions.map(|version| version.path().join("bin")).collect();
    folders.retain(|folder| folder.join("initdb").exists());
    folders.sort();
    folders.pop().ok_or_else(|| "no PostgreSQL below /usr/lib/postgresql: install postgresql-15".into())
}
