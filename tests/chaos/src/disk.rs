//! A disk that runs full below a server on SQLite.

use std::{path::Path, time::Duration};

use keystead_load::{
    account::in_room,
    api::{Api, Call},
};
use tokio::{
    process::Command,
    time::{Instant, sleep},
};

use crate::{
    Drill, Result,
    drill::{Fault, Plan, Remarks, report},
    load::Load,
    network::{Network, succeed},
    replica::Replica,
    report::Report,
};

/// How large the disk is, and how much of it is left when the load begins to fill it.
const DISK_MIB: u32 = 64;
const LEFT_MIB: u64 = 12;

/// Runs the drill in the network of this process.
///
/// # Errors
/// The server cannot be set up, or the disk not be filled. What that does to clients is in the report.
pub async fn run(plan: &Plan, scratch: &Path) -> Result<Report> {
    let network = Network::of_this_process()?;
    let disk = scratch.join("disk");
    std::fs::create_dir(&disk)?;
    // `ip netns exec` gave this process mounts of its own: the disk goes with it.
    let size = format!("size={DISK_MIB}m");
    succeed(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&disk)).await?;
    let database = disk.join("keystead.db");
    let url = format!("sqlite:{}", database.display());
    let mut replica = Replica::new(&network, "a", &plan.program, &disk, &url);
    replica.start().await?;
    let load = Load::start(&[replica.url()], plan.habits).await?;
    sleep(plan.margin).await;

    let mut remarks = Remarks::default();
    let ballast = disk.join("ballast");
    let began = Instant::now();
    let free = free_kib(&disk).await?.saturating_sub(LEFT_MIB * 1024);
    succeed(Command::new("fallocate").arg("-l").arg(format!("{free}KiB")).arg(&ballast)).await?;
    until_full(&load).await?;
    remarks
        .notes
        .push(format!("full {:.1} s after the last {LEFT_MIB} MiB were left", began.elapsed().as_secs_f64()));
    let full = Instant::now();
    sleep(plan.margin).await;
    reads_go_on(&replica, &load, &mut remarks).await?;
    std::fs::remove_file(&ballast)?;
    let fault = Fault::since(full);

    let recovery = load.recovered(Instant::now(), Duration::from_secs(60)).await;
    sleep(plan.margin).await;
    let unready = load.first_unready(full).map(|time| time.as_secs_f64());
    let outcome = load.finish().await?;
    replica.kill().await?;
    check_file(&database, &mut remarks).await?;
    Ok(report(Drill::DiskFull, plan, &fault, recovery, unready, outcome, remarks))
}

/// Waits until writes are refused for it.
async fn until_full(load: &Load) -> Result<()> {
    for _ in 0..600 {
        if load.failed("5") > 20 {
            return Ok(());
        }
        sleep(Duration::from_millis(200)).await;
    }
    Err("the disk did not run full within two minutes".into())
}

/// What is on the disk can be read while it is full.
async fn reads_go_on(replica: &Replica, load: &Load, remarks: &mut Remarks) -> Result<()> {
    let api = Api::new(&[replica.url()])?;
    let (member, room) = load.member()?;
    let calls = [
        ("/sync", Call::get("/sync?timeout=0")),
        ("/messages", Call::get(in_room(room, "/messages?dir=b&limit=10"))),
        ("/ready", Call::get_own("/ready")),
    ];
    for (path, call) in calls {
        let answer = api.answer(0, Some(&member.token), &call).await;
        let status = answer.map_or(0, |answer| answer.status);
        if status != 200 {
            remarks.defects.push(format!("{path} was answered with {status} while the disk was full"));
        }
    }
    Ok(())
}

/// SQLite's own check of the file, which must be whole after the kill too.
async fn check_file(database: &Path, remarks: &mut Remarks) -> Result<()> {
    let code = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('PRAGMA integrity_check').fetchone()[0])";
    let found = succeed(Command::new("python3").args(["-c", code]).arg(database)).await?;
    remarks.notes.push(format!("PRAGMA integrity_check: {}", found.trim()));
    if found.trim() != "ok" {
        remarks.defects.push("the database is damaged".to_owned());
    }
    Ok(())
}

async fn free_kib(disk: &Path) -> Result<u64> {
    let said = succeed(Command::new("df").args(["--output=avail", "-k"]).arg(disk)).await?;
    Ok(said.split_whitespace().last().ok_or("df says nothing")?.parse()?)
}
