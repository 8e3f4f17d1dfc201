//! The command line.

use std::{error::Error as StdError, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use keystead_store::Store;

use crate::{
    admin::{self, AdminCommand, AdminError},
    api, app,
    config::{ConfigError, Settings, reader::Environment},
    demo::{self, DemoError},
    doctor::{self, DoctorArgs},
    health::{self, HealthError},
    serve::{self, ServeError},
    telemetry::metrics::Metrics,
};

/// A Matrix homeserver that scales out, with the Trustner KeyBox encryption profile.
#[derive(Debug, Parser)]
#[command(name = "keystead", version)]
struct Cli {
    /// The configuration file (TOML); environment variables stand over it
    #[arg(long, global = true, env = "KEYSTEAD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring the database to the schema of this version; `serve` does so too when it starts
    Migrate,
    /// Watch two people talk through a server of their own, and see what it keeps of that
    Demo(DemoArgs),
    /// Run the server
    Serve,
    /// Check the configuration and report every problem
    CheckConfig,
    /// Look at a running deployment: what is wrong, and what to do. Exit status 1 for warnings, 2 for errors
    Doctor(DoctorArgs),
    /// Ask a server whether it is ready; status 0 if it is
    Health(HealthArgs),
    /// Look at and change a server
    #[command(subcommand)]
    Admin(Admin),
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// Leave everything in this folder instead of removing it
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct HealthArgs {
    /// Ask this server (like http://keystead:8008) instead of the one of the configuration on this machine
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Do not ask who it is: its certificate may be for another name
    #[arg(long)]
    insecure: bool,
}

#[derive(Debug, Subcommand)]
enum Admin {
    #[command(flatten)]
    Command(AdminCommand),
    /// List all endpoints
    Routes(RoutesArgs),
}

#[derive(Debug, Args)]
struct RoutesArgs {
    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Demo(#[from] DemoError),
    #[error(transparent)]
    Health(#[from] HealthError),
    #[error("the answer cannot be written as JSON")]
    Json(#[source] serde_json::Error),
    #[error("the metrics could not be registered")]
    Metrics(#[source] prometheus::Error),
    #[error("the asynchronous runtime cannot be started")]
    Runtime(#[source] std::io::Error),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("the database could not be brought to the schema of this version")]
    Store(#[from] keystead_store::Error),
}

/// Does what the arguments of the process say. Exit status 0 on success, 1 on failure, 2 on wrong arguments; `doctor` has its own.
#[must_use]
pub fn run() -> ExitCode {
    match execute(Cli::parse()) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

fn execute(cli: Cli) -> Result<u8, CommandError> {
    let load = || Settings::load(cli.config.as_deref(), Environment::of_process());
    match cli.command {
        Command::Migrate => migrate(&load()?)?,
        Command::Demo(args) => runtime()?.block_on(demo::run(args.keep))?,
        Command::Doctor(args) => {
            let looking = doctor::run(cli.config.as_deref(), Environment::of_process(), &args);
            return Ok(runtime()?.block_on(looking));
        }
        Command::Serve => {
            let settings = load()?;
            runtime()?.block_on(serve::run(settings))?;
        }
        Command::CheckConfig => {
            load()?;
            println!("The configuration is valid.");
        }
        Command::Health(args) => {
            let settings = load()?;
            runtime()?.block_on(health::check(&settings, args.url.as_deref(), args.insecure))?;
        }
        Command::Admin(Admin::Command(command)) => {
            let settings = load()?;
            runtime()?.block_on(admin::run(settings, command))?;
        }
        Command::Admin(Admin::Routes(args)) => print_routes(args.json)?,
    }
    Ok(0)
}

fn migrate(settings: &Settings) -> Result<(), CommandError> {
    let metrics = Metrics::new().map_err(CommandError::Metrics)?;
    let options = app::store_options(settings, &metrics);
    runtime()?.block_on(async {
        Store::wait(&options, settings.database.wait).await?;
        Store::migrate(&options).await
    })?;
    println!("The database has the schema of this version.");
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime, CommandError> {
    tokio::runtime::Runtime::new().map_err(CommandError::Runtime)
}

fn print_routes(json: bool) -> Result<(), CommandError> {
    let routes = api::routes().routes();
    if json {
        println!("{}", serde_json::to_string_pretty(&routes).map_err(CommandError::Json)?);
    } else {
        for route in routes {
            println!("{:6} {:10} {}", route.method, route.auth(), route.path);
        }
    }
    Ok(())
}

/// Prints an error with all its causes.
fn report(error: &dyn StdError) {
    eprintln!("keystead: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
