//! Faults of a cluster: two replicas on one PostgreSQL.

use std::{path::PathBuf, time::Duration};

use keystead_load::{
    account::in_room,
    api::{Api, Call, unique},
};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{
    Drill, Result,
    load::{Habits, Load, Outcome},
    network::Network,
    postgres::Postgres,
    replica::Replica,
    report::Report,
};

/// How a drill is run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server's program.
    pub program: PathBuf,
    /// A name for it.
    pub label: String,
    /// How clients behave.
    pub habits: Habits,
    /// Load before the fault, and after the recovery.
    pub margin: Duration,
    /// How long a fault that lasts is on.
    pub fault: Duration,
    /// How long a soak takes.
    pub soak: Duration,
}

/// How long a cluster may take to be itself again before the drill is given up.
const PATIENCE: Duration = Duration::from_secs(120);
/// What counts as recovered too late.
const TOO_LATE: Duration = Duration::from_secs(15);

/// A cluster, and where its files are.
pub struct Scene {
    /// The network.
    pub network: Network,
    /// The database.
    pub postgres: Postgres,
    /// The replicas.
    pub replicas: Vec<Replica>,
}

/// When a fault began and ended.
pub struct Fault {
    began: Instant,
    ended: Instant,
}

/// What was seen beside what the load sees.
#[derive(Default)]
pub struct Remarks {
    /// What was measured.
    pub notes: Vec<String>,
    /// What was wrong.
    pub defects: Vec<String>,
}

/// Runs one drill in the network of this process. Files go to `scratch`.
///
/// # Errors
/// The cluster cannot be set up, or the fault not be brought about. What the fault does to clients is in the report.
pub async fn run(drill: Drill, plan: &Plan, scratch: &std::path::Path) -> Result<Report> {
    let network = Network::of_this_process()?;
    let postgres = Postgres::start(&network, scratch).await?;
    let mut replicas: Vec<_> =
        ["a", "b"].map(|name| Replica::new(&network, name, &plan.program, scratch, &postgres.url())).into();
    for replica in &mut replicas {
        if drill == Drill::ClockJump && replica.name == "b" {
            replica.with_own_clock()?;
        }
        replica.start().await?;
    }
    let mut scene = Scene { network, postgres, replicas };
    let urls: Vec<_> = scene.replicas.iter().map(Replica::url).collect();
    let load = Load::start(&urls, plan.habits).await?;
    sleep(plan.margin).await;
    let mut remarks = Remarks::default();
    let fault = strike(drill, plan, &mut scene, &load, &mut remarks).await?;
    let recovery = load.recovered(fault.ended, PATIENCE).await;
    sleep(plan.margin).await;
    let unready = load.first_unready(fault.began).map(|time| time.as_secs_f64());
    let outcome = load.finish().await?;
    Ok(report(drill, plan, &fault, recovery, unready, outcome, remarks))
}

/// Puts a report together.
pub fn report(
    drill: Drill,
    plan: &Plan,
    fault: &Fault,
    recovery: Result<Duration>,
    unready_after_seconds: Option<f64>,
    outcome: Outcome,
    mut remarks: Remarks,
) -> Report {
    match &recovery {
        Ok(recovery) if *recovery > TOO_LATE => {
            remarks.defects.push(format!("recovered only {:.1} s after the fault", recovery.as_secs_f64()));
        }
        Ok(_) => {}
        Err(error) => remarks.defects.push(error.to_string()),
    }
    let silent = outcome.failures.keys().filter(|failure| failure.contains("without Retry-After"));
    remarks.defects.extend(silent.map(|failure| format!("answered {failure}")));
    let after_end = |time: Instant| match time.checked_duration_since(fault.ended) {
        Some(later) => later.as_secs_f64(),
        None => -fault.ended.duration_since(time).as_secs_f64(),
    };
    Report {
        drill: drill.to_string(),
        label: plan.label.clone(),
        time: keystead_load::report::now(),
        acknowledged: outcome.acknowledged,
        check: outcome.verdict,
        fault_seconds: fault.ended.duration_since(fault.began).as_secs_f64(),
        recovery_seconds: recovery.ok().map(|recovery| recovery.as_secs_f64()),
        longest_gap_seconds: outcome.longest_gap.as_secs_f64(),
        unready_after_seconds,
        last_failure_seconds: outcome.last_failure.map(after_end),
        failures: outcome.failures,
        notes: remarks.notes,
        defects: remarks.defects,
    }
}

impl Fault {
    /// A fault that began then and ends now.
    pub fn since(began: Instant) -> Self {
        Self { began, ended: Instant::now() }
    }
}

/// Brings a fault about, and ends it.
async fn strike(
    drill: Drill,
    plan: &Plan,
    scene: &mut Scene,
    load: &Load,
    remarks: &mut Remarks,
) -> Result<Fault> {
    let began = Instant::now();
    match drill {
        Drill::Sigkill => kill_each(plan, scene).await?,
        Drill::Sigstop => {
            let stopped = scene.replicas.last().ok_or("no replica")?;
            stopped.signal("STOP").await?;
            let before = load.acknowledged();
            sleep(plan.fault).await;
            remarks.notes.push(format!("the other replica acknowledged {}", load.acknowledged() - before));
            stopped.signal("CONT").await?;
        }
        Drill::PostgresRestart => {
            scene.postgres.stop("fast").await?;
            scene.postgres.run().await?;
            let healthy = load.recovered(Instant::now(), PATIENCE).await?;
            remarks.notes.push(format!("recovered {:.1} s after an orderly restart", healthy.as_secs_f64()));
            sleep(plan.margin).await;
            scene.postgres.stop("immediate").await?;
            scene.postgres.run().await?;
        }
        Drill::PostgresUnreachable => {
            scene.network.cut("pg", None).await?;
            sleep(plan.fault).await;
            scene.network.mend("pg", None).await?;
        }
        Drill::ReplicaCutOff => {
            scene.network.cut("b", Some("pg")).await?;
            let before = load.acknowledged();
            sleep(plan.fault).await;
            remarks.notes.push(format!("the other replica acknowledged {}", load.acknowledged() - before));
            scene.network.mend("b", Some("pg")).await?;
        }
        Drill::ListenCut => cut_listeners(scene, remarks).await?,
        Drill::ClockJump => {
            for offset in [3_600, -3_600, 0] {
                let replica = scene.replicas.last().ok_or("no replica")?;
                replica.set_clock(offset)?;
                sleep(plan.margin).await;
                let skew = skew(replica, load).await?;
                remarks.notes.push(format!("clock set to {offset:+} s: its events are stamped {skew:+} s"));
                if skew.abs_diff(offset) > 5 {
                    remarks.defects.push("the clock did not jump".to_owned());
                }
            }
        }
        Drill::DiskFull | Drill::Soak => return Err("this is no fault of a cluster".into()),
    }
    Ok(Fault::since(began))
}

/// Each replica in its turn is killed, and started again two seconds later.
async fn kill_each(plan: &Plan, scene: &mut Scene) -> Result<()> {
    let last = scene.replicas.len().saturating_sub(1);
    for (number, replica) in scene.replicas.iter_mut().enumerate() {
        replica.kill().await?;
        sleep(Duration::from_secs(2)).await;
        if number < last {
            replica.start().await?;
            sleep(plan.margin).await;
        } else {
            replica.spawn()?;
        }
    }
    Ok(())
}

/// Ends the backends that listen, three times.
async fn cut_listeners(scene: &Scene, remarks: &mut Remarks) -> Result<()> {
    const LISTENING: &str = "FROM pg_stat_activity WHERE application_name = 'keystead listen'";
    for _ in 0..3 {
        let sql = format!("SELECT COUNT(pg_terminate_backend(pid)) {LISTENING}");
        let ended = scene.postgres.query(&sql).await?;
        let cut = Instant::now();
        sleep(Duration::from_millis(50)).await;
        scene.postgres.until(&format!("SELECT COUNT(*) >= {} {LISTENING}", scene.replicas.len())).await?;
        let seconds = cut.elapsed().as_secs_f64();
        remarks.notes.push(format!("{ended} LISTEN backends ended; all listened again after {seconds:.1} s"));
        sleep(Duration::from_secs(3)).await;
    }
    Ok(())
}

/// How many seconds after this machine's time a replica stamps its events.
async fn skew(replica: &Replica, load: &Load) -> Result<i64> {
    let api = Api::new(&[replica.url()])?;
    let (member, room) = load.member()?;
    let token = Some(member.token.as_str());
    let body = json!({ "msgtype": "m.text", "body": "what time is it?" });
    let sent = Call::put(in_room(room, &format!("/send/m.room.message/{}", unique())), body);
    let failed = |failure: keystead_load::api::Failure| failure.0;
    let event_id = api.ok(0, token, &sent).await.map_err(failed)?["event_id"].clone();
    let path = in_room(room, &format!("/event/{}", event_id.as_str().unwrap_or_default()));
    let event = api.ok(0, token, &Call::get(path)).await.map_err(failed)?;
    let stamped = event["origin_server_ts"].as_i64().ok_or("an event without a time")? / 1_000;
    Ok(stamped - i64::try_from(keystead_load::report::now())?)
}
