//! The check finds what is wrong: it is run against a server that drops, doubles, reorders and delays.

// A fault of the server in here is the test's own.
#![allow(clippy::expect_used, clippy::panic)]

mod server;

use std::time::Duration;

use clap::Parser;
use keystead_load::{
    check::Verdict,
    drive::{End, Pace},
    scenarios::{Run, Scenario},
};

use self::server::Fault;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
}

async fn verdict(fault: Fault, scenario: &[&str]) -> Verdict {
    verdict_at(Pace::Open(20.0), fault, scenario).await
}

async fn verdict_at(pace: Pace, fault: Fault, scenario: &[&str]) -> Verdict {
    let run = Run {
        urls: vec![server::start(fault).await],
        secret: None,
        processes: Vec::new(),
        pace,
        end: End::Count(40),
        patience: Duration::from_secs(3),
        label: "faulty".to_owned(),
        retries: 0,
        replicas: None,
    };
    let cli = Cli::parse_from([&["load"], scenario].concat());
    let mut reports = cli.scenario.run(&run).await.expect("the run ends");
    let report = reports.pop().expect("a report");
    assert_eq!(report.failures.values().sum::<u64>(), 0, "{report:?}");
    assert!(report.check.checked);
    report.check
}

const FAN_OUT: [&str; 3] = ["fan-out", "--rooms=1", "--members=3"];
const TO_DEVICE: [&str; 2] = ["to-device", "--devices=3"];
const PUSH: [&str; 3] = ["push", "--rooms=1", "--members=3"];

#[tokio::test]
async fn a_sound_server_is_found_sound() {
    for scenario in [&FAN_OUT[..], &TO_DEVICE, &PUSH] {
        let verdict = verdict(Fault::None, scenario).await;
        assert!(verdict.is_clean(), "{verdict:?}");
        assert!(verdict.deliveries >= 40, "{verdict:?}");
    }
}

#[tokio::test]
async fn what_is_dropped_is_lost() {
    for scenario in [&FAN_OUT[..], &TO_DEVICE, &PUSH] {
        let verdict = verdict(Fault::Drop, scenario).await;
        assert!(verdict.lost > 0, "{verdict:?}");
        assert_eq!((verdict.doubled, verdict.reordered, verdict.late), (0, 0, 0), "{verdict:?}");
    }
}

#[tokio::test]
async fn what_comes_twice_is_doubled() {
    for scenario in [&FAN_OUT[..], &TO_DEVICE, &PUSH] {
        let verdict = verdict(Fault::Double, scenario).await;
        assert!(verdict.doubled > 0, "{verdict:?}");
        assert_eq!((verdict.lost, verdict.reordered, verdict.late), (0, 0, 0), "{verdict:?}");
    }
}

#[tokio::test]
async fn what_comes_after_a_later_one_is_reordered() {
    for scenario in [&FAN_OUT[..], &PUSH] {
        // One lane, so that all messages have an order.
        let verdict = verdict_at(Pace::Closed(1), Fault::Reorder, scenario).await;
        assert!(verdict.reordered > 0, "{verdict:?}");
        assert_eq!((verdict.lost, verdict.doubled), (0, 0), "{verdict:?}");
    }
}

#[tokio::test]
async fn a_long_poll_that_hangs_is_late() {
    let verdict = verdict(Fault::Delay, &FAN_OUT).await;
    assert!(verdict.late > 0, "{verdict:?}");
    assert_eq!((verdict.lost, verdict.doubled, verdict.reordered), (0, 0, 0), "{verdict:?}");
}
