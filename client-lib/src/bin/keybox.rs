//! The command line of a KeyBox: `keybox --help`.

use std::process::ExitCode;

use clap::Parser as _;
use keystead_client::cli::{Arguments, run};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    run(Arguments::parse()).await
}
