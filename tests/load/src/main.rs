//! The command line.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use keystead_load::{
    Error,
    drive::{End, Pace},
    plot,
    process::Process,
    push,
    report::Report,
    scenarios::{Run, Scenario},
};

/// Load for any Matrix homeserver, with a check of everything that was delivered.
///
/// Ends with status 1 if something was lost, doubled, reordered or late.
#[derive(Parser)]
#[command(name = "keystead-load", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a scenario.
    Run(Box<RunArgs>),
    /// Draw the latencies and the CPU time of results, as PNG and SVG.
    Plot(PlotArgs),
}

#[derive(Args)]
struct RunArgs {
    /// A server; several are replicas of one, and users are spread over them.
    #[arg(long = "base-url", value_name = "URL", required = true)]
    base_urls: Vec<String>,
    /// Make accounts with this registration shared secret instead of by open registration.
    #[arg(long, env = "KEYSTEAD_LOAD_SHARED_SECRET", hide_env_values = true)]
    shared_secret: Option<String>,
    /// Tell the CPU time and the memory of a process and its descendants, each time as NAME=PID.
    #[arg(long = "pid", value_name = "NAME=PID")]
    pids: Vec<Process>,
    /// Closed loop: so many operations in flight.
    #[arg(long, default_value_t = 64, conflicts_with = "rate")]
    in_flight: usize,
    /// Open loop: so many operations a second, whatever the server does.
    #[arg(long)]
    rate: Option<f64>,
    /// How long the measured part takes, in seconds.
    #[arg(long, default_value_t = 20, conflicts_with = "count")]
    seconds: u64,
    /// How many operations it has, instead.
    #[arg(long)]
    count: Option<u64>,
    /// How often a request is sent again, with the same transaction id, to which there was no answer or one with status 5xx.
    #[arg(long, default_value_t = 0)]
    retries: u32,
    /// How many replicas there are, if they are behind one address.
    #[arg(long)]
    replicas: Option<usize>,
    /// How long to wait at the end for what has not arrived, in seconds, before it counts as lost.
    #[arg(long, default_value_t = 20)]
    patience: u64,
    /// A name for the server in the results.
    #[arg(long, default_value = "server")]
    label: String,
    /// Append the result to this file, as a line of JSON; `-` is the standard output, which then has nothing else.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Push the result to this Prometheus Pushgateway.
    #[arg(long, value_name = "URL")]
    push: Option<String>,
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Args)]
struct PlotArgs {
    /// Files with results.
    #[arg(required = true)]
    results: Vec<PathBuf>,
    /// The folder for the pictures.
    #[arg(long, default_value = ".")]
    output: PathBuf,
    /// A TrueType font for the PNG pictures.
    #[arg(long, default_value = plot::FONT)]
    font: PathBuf,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => run(*args),
        Command::Plot(args) => draw(&args).map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("keystead-load: {error}");
            ExitCode::from(2)
        }
    }
}

/// Returns whether everything was delivered as it should be.
fn run(args: RunArgs) -> Result<bool, Error> {
    let run = Run {
        urls: args.base_urls,
        secret: args.shared_secret,
        processes: args.pids,
        pace: args.rate.map_or(Pace::Closed(args.in_flight), Pace::Open),
        end: args.count.map_or(End::After(Duration::from_secs(args.seconds)), End::Count),
        patience: Duration::from_secs(args.patience),
        label: args.label,
        retries: args.retries,
        replicas: args.replicas,
    };
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|source| Error::File { path: "the runtime".to_owned(), source })?;
    let reports = runtime.block_on(args.scenario.run(&run))?;
    for report in &reports {
        match args.json.as_deref() {
            Some(path) if path == Path::new("-") => {
                eprint!("{}", report.to_text());
                println!("{}", report.to_json()?);
            }
            Some(path) => {
                print!("{}", report.to_text());
                report.append_to(path)?;
            }
            None => print!("{}", report.to_text()),
        }
    }
    if let Some(gateway) = &args.push {
        runtime.block_on(push::push(gateway, &reports))?;
    }
    Ok(reports.iter().all(|report| report.check.is_clean()))
}

fn draw(args: &PlotArgs) -> Result<(), Error> {
    let mut reports = Vec::new();
    for path in &args.results {
        reports.extend(Report::read_all(path)?);
    }
    for picture in plot::draw(&reports, &args.output, &args.font)? {
        println!("{}", picture.display());
    }
    Ok(())
}
