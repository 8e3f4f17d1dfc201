//! A long run without a fault: memory must not grow.

use std::{path::Path, time::Duration};

use keystead_load::{
    account,
    api::{Api, Call},
};
use tokio::time::{Instant, sleep};

use crate::{
    Drill, Result,
    drill::{Fault, Plan, Remarks, report},
    load::Load,
    network::Network,
    postgres::Postgres,
    replica::{Replica, SECRET},
    report::Report,
};

/// How often memory is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The part of the run in which caches fill, not looked at.
const WARM_UP: f64 = 1.0 / 3.0;
/// What growth counts as none, of all memory: what is looked at goes up and down by as much.
const FLAT: f64 = 0.05;

/// A replica's memory at a time.
struct Look {
    seconds: f64,
    mib: f64,
}

/// Runs it in the network of this process, on two replicas. Beside the senders and readers, devices log in, do their first
/// sync and log out again.
///
/// # Errors
/// The cluster cannot be set up, or a replica ends.
pub async fn run(plan: &Plan, scratch: &Path) -> Result<Report> {
    let network = Network::of_this_process()?;
    let postgres = Postgres::start(&network, scratch).await?;
    let mut replicas =
        ["a", "b"].map(|name| Replica::new(&network, name, &plan.program, scratch, &postgres.url()));
    for replica in &mut replicas {
        replica.start().await?;
    }
    let urls = replicas.each_ref().map(Replica::url);
    let load = Load::start(&urls, plan.habits).await?;
    let coming_and_going = tokio::spawn(come_and_go(urls.to_vec()));
    let began = Instant::now();
    let mut looks = [Vec::new(), Vec::new()];
    let mut remarks = Remarks::default();
    while began.elapsed() < plan.soak {
        sleep(LOOK_EVERY).await;
        for (replica, looks) in replicas.iter().zip(&mut looks) {
            let kib = u32::try_from(replica.memory_kib()?)?;
            looks.push(Look { seconds: began.elapsed().as_secs_f64(), mib: f64::from(kib) / 1024.0 });
        }
    }
    let fault = Fault::since(began);
    coming_and_going.abort();
    for (replica, looks) in replicas.iter().zip(&looks) {
        let settled = settled(looks);
        let (Some(first), Some(last)) = (settled.first(), settled.last()) else { continue };
        let slope = slope(settled);
        let growth = slope * (last.seconds - first.seconds);
        let curve: Vec<_> =
            looks.iter().step_by(looks.len().div_ceil(12)).map(|look| look.mib.round()).collect();
        remarks.notes.push(format!(
            "memory of {}: {:.1} MiB at the end, {:+.2} MiB a minute after the first third ({:+.1} MiB in {:.0} s); \
             over the run {curve:?}",
            replica.name,
            last.mib,
            slope * 60.0,
            growth,
            last.seconds - first.seconds,
        ));
        if growth > FLAT * first.mib {
            remarks.defects.push(format!("the memory of {} grows", replica.name));
        }
    }
    let recovery = load.recovered(Instant::now(), Duration::from_secs(30)).await;
    let outcome = load.finish().await?;
    Ok(report(Drill::Soak, plan, &fault, recovery, None, outcome, remarks))
}

/// Two accounts log in with a new device each second, sync and log out.
async fn come_and_go(urls: Vec<String>) -> Result<()> {
    let api = Api::new(&urls)?;
    let users = account::register(&api, Some(SECRET), urls.len()).await?;
    loop {
        for user in &users {
            let body = serde_json::json!({
                "type": "m.login.password",
                "identifier": { "type": "m.id.user", "user": user.id },
                "password": account::PASSWORD,
            });
            let login = api.ok(user.replica, None, &Call::post("/login", body)).await;
            let Ok(login) = login else { continue };
            let token = login["access_token"].as_str();
            let _ = api.ok(user.replica + 1, token, &Call::get("/sync?timeout=0")).await;
            let _ = api.ok(user.replica, token, &Call::post("/logout", serde_json::json!({}))).await;
        }
        sleep(Duration::from_secs(1)).await;
    }
}

fn settled(looks: &[Look]) -> &[Look] {
    let end = looks.last().map_or(0.0, |look| look.seconds);
    let first = looks.iter().position(|look| look.seconds > end * WARM_UP).unwrap_or_default();
    looks.get(first..).unwrap_or_default()
}

/// The slope of the straight line that fits best, in MiB a second.
fn slope(looks: &[Look]) -> f64 {
    let count = looks.iter().map(|_| 1.0).sum::<f64>().max(1.0);
    let mean = |of: fn(&Look) -> f64| looks.iter().map(of).sum::<f64>() / count;
    let (time, memory) = (mean(|look| look.seconds), mean(|look| look.mib));
    let together: f64 = looks.iter().map(|look| (look.seconds - time) * (look.mib - memory)).sum();
    let alone: f64 = looks.iter().map(|look| (look.seconds - time).powi(2)).sum();
    if alone == 0.0 { 0.0 } else { together / alone }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leak_has_a_slope_and_what_goes_up_and_down_has_none() {
        let looks = |mib: fn(u32) -> f64| -> Vec<Look> {
            (0..100).map(|n| Look { seconds: f64::from(n), mib: mib(n) }).collect()
        };
        assert!((slope(&looks(|n| 10.0 + 0.5 * f64::from(n))) - 0.5).abs() < 1e-9);
        assert!(slope(&looks(|n| 10.0 + f64::from(n % 2))).abs() < 0.01);
        assert_eq!(settled(&looks(|_| 1.0)).len(), 66);
    }
}
