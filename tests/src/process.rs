//! Server processes: started with settings from the environment only, observed through their log file.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU16, Ordering},
    },
};

use crate::reaper;

/// The `keystead` program of this build.
///
/// `KEYSTEAD_BIN_DIR` names the folder with the programs; without it they are built first, so that a test never
/// runs against an old one.
pub fn keystead() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(folder) = std::env::var_os("KEYSTEAD_BIN_DIR") {
            return PathBuf::from(folder).join("keystead");
        }
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--workspace", "--bins"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .expect("cannot run cargo");
        assert!(status.success(), "the programs do not build");
        let test = std::env::current_exe().expect("the path of this test");
        let folder = test.parent().and_then(Path::parent).expect("target/debug/deps/TEST");
        folder.join("keystead")
    })
}

/// A command of the `keystead` program that has no settings yet: those of this process are not passed on.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(keystead());
    let others = std::env::vars_os().filter(|(name, _)| !name.to_string_lossy().starts_with("KEYSTEAD_"));
    command.arg(name).env_clear().envs(others);
    command
}

/// Brings the database to the newest schema.
pub(crate) fn migrate(database_url: &str) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let mut command = command("migrate");
    command.env("KEYSTEAD_DATABASE_URL", database_url).env("KEYSTEAD_DATA_DIR", folder.path());
    let output = command.output().map_err(|error| format!("keystead migrate: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    Err(format!("keystead migrate failed: {}\n{out}{err}", output.status))
}

/// One server process and the address it listens on, which stays the same over restarts.
pub(crate) struct Replica {
    pub(crate) port: u16,
    settings: Vec<(String, String)>,
    log: PathBuf,
    child: Option<Child>,
}

impl Replica {
    /// Prepares a replica; [`Replica::spawn`] starts it.
    pub(crate) fn new(settings: Vec<(String, String)>, log: PathBuf) -> Self {
        Self { port: free_port(), settings, log, child: None }
    }

    /// A command of the program with this replica's settings.
    pub(crate) fn command(&self, name: &str) -> Command {
        let mut command = command(name);
        command
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            .env("KEYSTEAD_SERVER_LISTEN", format!("127.0.0.1:{}", self.port));
        command
    }

    pub(crate) fn spawn(&mut self) {
        assert!(self.child.is_none(), "already running");
        let log = File::options().create(true).append(true).open(&self.log).expect("a log file");
        let mut command = self.command("serve");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", keystead().display()));
        reaper::process_started(child.id());
        self.child = Some(child);
    }

    /// Its exit status, if it runs no more.
    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut()?;
        let status = child.try_wait().expect("wait")?;
        reaper::process_ended(child.id());
        self.child = None;
        Some(status)
    }

    /// Ends the process as a power cut would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill");
            child.wait().expect("wait");
            reaper::process_ended(child.id());
        }
    }

    /// Asks the process to end (SIGTERM).
    pub(crate) fn ask_to_stop(&self) {
        let child = self.child.as_ref().expect("it runs");
        let status = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().expect("kill");
        assert!(status.success());
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port below the range from which the kernel picks those of outgoing connections.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 200).expect("below 200") * 100;
    (0..20_000)
        .map(|_| 10_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("no free port")
}
