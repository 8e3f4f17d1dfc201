//! Replicas of the server, each on a machine of its own.

use std::{
    fs::File,
    path::{Path, PathBuf},
    time::Duration,
};

use keystead_load::{
    api::{Api, Call},
    process::{self, Process, Usage},
};
use tokio::{
    process::Child,
    time::{Instant, sleep, timeout},
};

use crate::{
    Result,
    network::{Network, address, signal},
};

/// The secret with which accounts are made.
pub const SECRET: &str = "chaos";
/// How long a server may take to start.
const START: Duration = Duration::from_secs(60);

/// One server process.
pub struct Replica {
    /// The machine.
    pub name: &'static str,
    program: PathBuf,
    network: Network,
    scratch: PathBuf,
    database: String,
    child: Option<Child>,
    has_own_clock: bool,
}

impl Replica {
    /// A replica on a machine, not yet started. Its files are in `scratch`, which all replicas share.
    pub fn new(
        network: &Network,
        name: &'static str,
        program: &Path,
        scratch: &Path,
        database: &str,
    ) -> Self {
        Self {
            name,
            program: program.to_owned(),
            network: network.clone(),
            scratch: scratch.to_owned(),
            database: database.to_owned(),
            child: None,
            has_own_clock: false,
        }
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://{}:8008", address(self.name))
    }

    /// Gives it a clock of its own from the next start on, which [`Replica::set_clock`] moves.
    ///
    /// # Errors
    /// libfaketime is not installed, or the file of the clock cannot be written.
    pub fn with_own_clock(&mut self) -> Result<()> {
        faketime()?;
        self.has_own_clock = true;
        self.set_clock(0)
    }

    /// Sets its clock to the machine's plus so many seconds. What measures durations is not concerned.
    ///
    /// # Errors
    /// The file of the clock cannot be written.
    pub fn set_clock(&self, offset: i64) -> Result<()> {
        // In one step, as the server may be reading.
        let new = self.scratch.join("clock.new");
        std::fs::write(&new, format!("{offset:+}\n"))?;
        Ok(std::fs::rename(new, self.scratch.join("clock"))?)
    }

    /// Starts it, and waits until it is ready.
    ///
    /// # Errors
    /// It is not within a minute.
    pub async fn start(&mut self) -> Result<()> {
        self.spawn()?;
        let began = Instant::now();
        let api = Api::new(&[self.url()])?;
        loop {
            let call = Call::get_own("/ready");
            let answer = timeout(Duration::from_secs(2), api.answer(0, None, &call)).await;
            if answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.status == 200)) {
                return Ok(());
            }
            let ended = self.child.as_mut().map(Child::try_wait).transpose()?.flatten();
            if ended.is_some() || began.elapsed() > START {
                return Err(
                    format!("replica {} does not start; see {}", self.name, self.log().display()).into()
                );
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts it.
    ///
    /// # Errors
    /// The program cannot be run.
    pub fn spawn(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = self.network.command(self.name);
        command.arg("env");
        if self.has_own_clock {
            command.arg(format!("LD_PRELOAD={}", faketime()?.display()));
            command.arg(format!("FAKETIME_TIMESTAMP_FILE={}", self.scratch.join("clock").display()));
            command.args(["FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "DONT_FAKE_MONOTONIC=1"]);
        }
        command.arg(&self.program).arg("serve");
        // Whoever runs a drill may have settings for another server.
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("KEYSTEAD_"))
        {
            command.env_remove(name);
        }
        for (name, value) in self.settings() {
            command.env(format!("KEYSTEAD_{name}"), value);
        }
        self.child = Some(command.stdout(log.try_clone()?).stderr(log).spawn()?);
        Ok(())
    }

    /// Ends it as a power cut would.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill(&mut self) -> Result<()> {
        match self.child.take() {
            Some(mut child) => Ok(child.kill().await?),
            None => Err("it does not run".into()),
        }
    }

    /// Sends it a signal, by its name (`STOP`).
    ///
    /// # Errors
    /// It does not run.
    pub async fn signal(&self, name: &str) -> Result<()> {
        signal(&self.pid()?.to_string(), name).await
    }

    /// Its memory in KiB: the proportional set size.
    ///
    /// # Errors
    /// It does not run.
    pub fn memory_kib(&self) -> Result<u64> {
        let process = Process { name: self.name.to_owned(), pid: self.pid()? };
        let used = process::usage(&[process])?.since(&Usage::default(), 1);
        Ok(used.get(self.name).map_or(0, |used| used.memory_kib))
    }

    /// Where it writes its log.
    pub fn log(&self) -> PathBuf {
        self.scratch.join(format!("{}.log", self.name))
    }

    fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().and_then(Child::id).ok_or("it does not run")?)
    }

    fn settings(&self) -> [(&'static str, String); 9] {
        [
            ("SERVER_NAME", "chaos.test".to_owned()),
            ("SERVER_LISTEN", format!("{}:8008", address(self.name))),
            ("SERVER_PUBLIC_BASE_URL", self.url()),
            ("DATABASE_URL", self.database.clone()),
            ("DATA_DIR", self.scratch.join("data").display().to_string()),
            ("REGISTRATION_SHARED_SECRET", SECRET.to_owned()),
            ("LIMITS_RATE_LIMITS", "false".to_owned()),
            ("AUTH_BCRYPT_COST", "4".to_owned()),
            ("LOG_FILTER", "warn,keystead_server=info,keystead::access=off".to_owned()),
        ]
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.start_kill();
        }
    }
}

/// The library that gives a process another clock.
fn faketime() -> Result<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib")?.flatten();
    let mut libraries = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    let found = libraries.find(|library| library.exists());
    found.ok_or_else(|| "no libfaketimeMT.so.1 below /usr/lib: install faketime".into())
}
