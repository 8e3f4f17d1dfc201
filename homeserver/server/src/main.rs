//! `keystead`, the server's binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    keystead_server::cli::run()
}
