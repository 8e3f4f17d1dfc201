//! The command line of a KeyBox: `keybox --help`.

use std::process::ExitCode;

use clap::Parser as _;
use keystead_client::cli::{Arguments, run};
use keystead_client::qr::READER_THREAD;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // A picture that makes its reader stumble is told of in plain words by who waits for it.
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name() != Some(READER_THREAD) {
            usual(info);
        }
    }));
    run(Arguments::parse()).await
}
