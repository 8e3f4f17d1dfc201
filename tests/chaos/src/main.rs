//! Drills: a fault under load, and then a look at whether anything that was acknowledged is lost, doubled or in another
//! order, and how long the cluster took to be itself again.
//!
//! Everything runs in network namespaces that are made for it ([`network`]), so that a network can be cut without touching
//! this machine's own.

// The clock is what this crate is about.
#![allow(clippy::disallowed_methods)]

mod disk;
mod drill;
mod load;
mod network;
mod postgres;
mod replica;
mod report;
mod soak;

use std::{
    fmt,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    drill::Plan,
    load::Habits,
    network::{INSIDE, Network},
    report::{Report, table},
};

/// What can fail here fails the drill; the text is for whoever runs it.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Faults under load. Needs root, `ip`, `iptables`, `setpriv` and PostgreSQL's server programs.
///
/// Ends with status 1 if something was lost, doubled or reordered, or if the cluster did not recover.
#[derive(Parser)]
#[command(name = "keystead-chaos", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a drill.
    Run(RunArgs),
    /// Print results as a table.
    Table {
        /// A file with results.
        results: PathBuf,
    },
}

#[derive(Args)]
struct RunArgs {
    /// What to do to the cluster.
    drill: Drill,
    /// The server's program.
    #[arg(long, default_value = "target/release/keystead")]
    keystead: PathBuf,
    /// A name for it in the results.
    #[arg(long, default_value = "keystead")]
    label: String,
    /// Append the result to this file, as a line of JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keep the servers' logs in this folder.
    #[arg(long, value_name = "FOLDER")]
    logs: Option<PathBuf>,
    /// How long a client waits after each acknowledgement, in milliseconds.
    #[arg(long, default_value_t = 50)]
    pause: u64,
    /// How many bytes of text a message has. In a soak, large ones fill the caches soon.
    #[arg(long, default_value_t = 200)]
    size: usize,
    /// How long a fault that lasts is on, in seconds.
    #[arg(long, default_value_t = 30)]
    fault: u64,
    /// Load before a fault and after the recovery, in seconds.
    #[arg(long, default_value_t = 5)]
    margin: u64,
    /// How long a soak takes, in minutes.
    #[arg(long, default_value_t = 30)]
    minutes: u64,
}

/// The drills.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Drill {
    /// Each replica in its turn is killed, and started again.
    Sigkill,
    /// A replica is stopped for a while, and goes on.
    Sigstop,
    /// PostgreSQL is restarted, first in order, then as after a crash.
    PostgresRestart,
    /// All packets from and to PostgreSQL are dropped for a while.
    PostgresUnreachable,
    /// All packets between one replica and PostgreSQL are dropped for a while.
    ReplicaCutOff,
    /// The connections that LISTEN are ended.
    ListenCut,
    /// A replica's clock jumps an hour ahead, an hour back and home again.
    ClockJump,
    /// The disk below SQLite runs full, and is freed.
    DiskFull,
    /// No fault: a long run, and a look at the memory.
    Soak,
}

impl fmt::Display for Drill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) if std::env::var_os(INSIDE).is_some() => block_on(run(&args)),
        Command::Run(_) => block_on(enter_network()),
        Command::Table { results } => Report::read_all(&results).map(|reports| {
            print!("{}", table(&reports));
            reports.iter().all(Report::is_clean)
        }),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("keystead-chaos: {error}");
            ExitCode::from(2)
        }
    }
}

fn block_on(work: impl Future<Output = Result<bool>>) -> Result<bool> {
    tokio::runtime::Runtime::new()?.block_on(work)
}

/// Runs this program with the same arguments among the clients of a new network, and removes that when it ends.
async fn enter_network() -> Result<bool> {
    let network = Network::create().await?;
    let mut inside = network.command_for_clients(std::env::current_exe()?);
    let mut inside = inside.args(std::env::args_os().skip(1)).spawn()?;
    let status = tokio::select! {
        status = inside.wait() => status?,
        // It hears of the signal as well.
        _ = tokio::signal::ctrl_c() => inside.wait().await?,
    };
    network.remove().await;
    match status.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => Err("the drill was not carried through".into()),
    }
}

async fn run(args: &RunArgs) -> Result<bool> {
    let program = std::path::absolute(&args.keystead)?;
    if !program.exists() {
        return Err(
            format!("there is no {}: build it, or name another with --keystead", program.display()).into()
        );
    }
    let plan = Plan {
        program,
        label: args.label.clone(),
        habits: Habits { pause: Duration::from_millis(args.pause), size: args.size },
        margin: Duration::from_secs(args.margin),
        fault: Duration::from_secs(args.fault),
        soak: Duration::from_secs(args.minutes * 60),
    };
    let scratch = tempfile::Builder::new().prefix("keystead-chaos").tempdir()?;
    // PostgreSQL's own user has to come through.
    std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o755))?;
    let done = match args.drill {
        Drill::DiskFull => disk::run(&plan, scratch.path()).await,
        Drill::Soak => soak::run(&plan, scratch.path()).await,
        drill => drill::run(drill, &plan, scratch.path()).await,
    };
    if let Some(folder) = &args.logs {
        keep_logs(args.drill, scratch.path(), folder)?;
    }
    let report = done?;
    print!("{}{}", table(std::slice::from_ref(&report)), report.details());
    if let Some(file) = &args.json {
        report.append_to(file)?;
    }
    Ok(report.is_clean())
}

/// Copies the logs of the servers out of the folder that is about to go.
fn keep_logs(drill: Drill, scratch: &Path, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    for log in ["a.log", "b.log", "disk/a.log", "postgres/log"] {
        if scratch.join(log).exists() {
            std::fs::copy(scratch.join(log), folder.join(format!("{drill}-{}", log.replace('/', "-"))))?;
        }
    }
    Ok(())
}
