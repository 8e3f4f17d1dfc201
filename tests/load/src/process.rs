//! CPU time and memory of processes, as Linux tells them (`man 5 proc`).

use std::{collections::BTreeMap, fs, time::Duration};

use serde::{Deserialize, Serialize};

use crate::Error;

/// A process to watch, with all that descends from it (PostgreSQL has a process for each connection).
#[derive(Clone, Debug)]
pub struct Process {
    /// What it is called in the results; several of one name are added up.
    pub name: String,
    /// Its process id.
    pub pid: u32,
}

impl std::str::FromStr for Process {
    type Err = Error;

    /// From `NAME=PID`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let parsed = text.split_once('=').and_then(|(name, pid)| Some((name, pid.parse().ok()?)));
        let (name, pid) = parsed.ok_or_else(|| Error::Usage(format!("--pid {text}: not NAME=PID")))?;
        Ok(Self { name: name.to_owned(), pid })
    }
}

/// What processes have used, by name.
#[derive(Clone, Debug, Default)]
pub struct Usage(BTreeMap<String, Used>);

#[derive(Clone, Copy, Debug, Default)]
struct Used {
    cpu: Duration,
    memory: u64,
}

/// What one name used in a run.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Cost {
    /// CPU time in milliseconds, user and system.
    pub cpu_ms: f64,
    /// The same for each operation.
    pub cpu_ms_per_operation: f64,
    /// Memory at the end in KiB: the proportional set size, which counts a page that n processes share as 1/n in each.
    pub memory_kib: u64,
    /// How much it has grown in the run.
    pub memory_growth_kib: i64,
}

/// What the processes have used until now.
///
/// # Errors
/// One of them is not there.
pub fn usage(processes: &[Process]) -> Result<Usage, Error> {
    if processes.is_empty() {
        return Ok(Usage::default());
    }
    let parents = parents();
    let mut usage = Usage::default();
    for process in processes {
        if !parents.contains_key(&process.pid) {
            return Err(Error::Usage(format!("--pid {}={}: no such process", process.name, process.pid)));
        }
        let used = usage.0.entry(process.name.clone()).or_default();
        for pid in parents.keys().filter(|pid| descends(&parents, **pid, process.pid)) {
            used.cpu += cpu(*pid);
            used.memory += memory(*pid);
        }
    }
    Ok(usage)
}

impl Usage {
    /// What was used since `before`, which did `operations` operations.
    #[allow(clippy::cast_precision_loss)]
    pub fn since(&self, before: &Self, operations: u64) -> BTreeMap<String, Cost> {
        let cost = |(name, now): (&String, &Used)| {
            let before = before.0.get(name).copied().unwrap_or_default();
            let cpu_ms = now.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e3;
            let growth = i64::try_from(now.memory).unwrap_or(i64::MAX)
                - i64::try_from(before.memory).unwrap_or(i64::MAX);
            let cost = Cost {
                cpu_ms,
                cpu_ms_per_operation: cpu_ms / operations.max(1) as f64,
                memory_kib: now.memory,
                memory_growth_kib: growth,
            };
            (name.clone(), cost)
        };
        self.0.iter().map(cost).collect()
    }
}

/// The parent of each process.
fn parents() -> BTreeMap<u32, u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            Some((pid, field(&stat(pid)?, 4)?.parse().ok()?))
        })
        .collect()
}

fn descends(parents: &BTreeMap<u32, u32>, mut pid: u32, ancestor: u32) -> bool {
    while pid != ancestor {
        match parents.get(&pid) {
            Some(parent) if *parent != pid && *parent != 0 => pid = *parent,
            _ => return false,
        }
    }
    true
}

/// Of the process itself and of children that have ended and were waited for.
fn cpu(pid: u32) -> Duration {
    let Some(stat) = stat(pid) else { return Duration::ZERO };
    let ticks: u64 = (14..=17).filter_map(|n| field(&stat, n)?.parse::<u64>().ok()).sum();
    // Linux counts in hundredths of a second for whoever reads it here (USER_HZ), whatever the kernel was built with.
    Duration::from_millis(ticks * 10)
}

/// In KiB; 0 for a process that has just ended.
fn memory(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
}

fn stat(pid: u32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/stat")).ok()
}

/// Field `number` of a `stat` line, counted from 1 as in the manual. The second, a name, may hold blanks and parentheses.
fn field(stat: &str, number: usize) -> Option<&str> {
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split_whitespace().nth(number.checked_sub(3)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_blanks_do_not_shift_the_fields() {
        let stat = "12 (a) b (c) S 7 12 12 0 -1 4194304 1 2 3 4 50 60 70 80 20";
        assert_eq!(field(stat, 3), Some("S"));
        assert_eq!(field(stat, 4), Some("7"));
        let ticks: Vec<_> = (14..=17).filter_map(|n| field(stat, n)).collect();
        assert_eq!(ticks, ["50", "60", "70", "80"]);
    }

    #[test]
    fn the_work_of_a_child_counts() {
        let own = Process { name: "own".to_owned(), pid: std::process::id() };
        let before = usage(std::slice::from_ref(&own)).unwrap();
        let busy = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        let status = std::process::Command::new("sh").args(["-c", busy]).status().unwrap();
        assert!(status.success());
        let cost = &usage(&[own]).unwrap().since(&before, 2)["own"];
        assert!(cost.cpu_ms >= 10.0, "{cost:?}");
        assert!((cost.cpu_ms_per_operation * 2.0 - cost.cpu_ms).abs() < 1e-6);
        assert!(cost.memory_kib > 0);
    }
}
