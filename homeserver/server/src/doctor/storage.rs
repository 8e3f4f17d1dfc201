//! What lies outside of the database or piles up in it: keys, media, disks, jobs and messages.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use keystead_core::keybox::master_key::MasterKeys;
use keystead_store::{
    Store,
    backlog::{self, Backlog},
    keybox_passphrases::{self, Listed},
    media as stored_media,
};
use ruma::{MilliSecondsSinceUnixEpoch, UInt};

use super::{Finding, chain, failed};
use crate::{
    clock::{Clock as _, SystemClock},
    config::{Settings, media::MediaPlace},
    entropy::{Entropy, SystemEntropy},
    keyboxes::passphrases,
    media::{Media, place},
    signing_keys,
};

/// How many passphrases are looked at at a time.
const PAGE: u32 = 500;
/// How many of the newest media are looked for at their place.
const MEDIA_SAMPLE: u32 = 25;
/// A job that is older than this does not get done.
const OVERDUE: Duration = Duration::from_secs(3_600);
/// A device that was not seen for so long may never come back.
const DEAD: Duration = Duration::from_secs(30 * 24 * 3_600);
/// So many messages for such devices are worth speaking of.
const MANY_DEAD_MESSAGES: i64 = 100_000;
/// So many messages for one device are half of what may wait for it.
const MANY_MESSAGES: u64 = 5_000;

/// The keys without which something cannot be read: of the passphrases, and the server's own.
pub(super) async fn keys(store: &Store, settings: &Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    match sealed(store, settings.keybox.master_keys.as_ref()).await {
        Ok((all, closed)) => {
            findings.extend(judge_sealed(all, closed, settings.keybox.master_keys.is_some()))
        }
        Err(error) => return failed(&error),
    }
    if let Err(error) = signing_keys::current_public_key(store).await {
        findings.push(signing_key(&chain(&error)));
    }
    findings
}

fn signing_key(why: &str) -> Finding {
    Finding::error(
        "keys.signing",
        format!("The key that the server signs with cannot be read: {why}."),
        "Start a replica if none has ever run; else take the rows signing_key… of the table server_settings from a backup, or, if that is lost, delete them: a new key is made.",
    )
}

/// How many passphrases are kept, and how many of them cannot be opened.
async fn sealed(store: &Store, keys: Option<&MasterKeys>) -> Result<(u64, u64), keystead_store::Error> {
    let (mut all, mut closed) = (0, 0);
    let mut last = (String::new(), String::new());
    loop {
        let after = (last.0.as_str(), last.1.as_str());
        let page: Vec<Listed> = store
            .read("doctor_passphrases", |tx| async move { keybox_passphrases::page(&tx, after, PAGE).await })
            .await?;
        let Some(newest) = page.last() else { return Ok((all, closed)) };
        for kept in &page {
            all += 1;
            let opens = keys.is_some_and(|keys| passphrases::opens(keys, kept));
            closed += u64::from(!opens);
        }
        last = (newest.user_id.clone(), newest.keybox_id.clone());
    }
}

fn judge_sealed(all: u64, closed: u64, has_key: bool) -> Option<Finding> {
    let advice = "Put the master key that sealed them into keybox.master_key (or its file) again, after the first: `keystead admin rotate-master-key` lists what it cannot open.";
    match (closed, has_key) {
        (0, _) => None,
        (_, false) => Some(Finding::error(
            "keys.master",
            format!(
                "{all} passphrase(s) of KeyBoxes are kept, and no master key is configured: their owners cannot open them with the password."
            ),
            advice,
        )),
        (_, true) => Some(Finding::error(
            "keys.master",
            format!(
                "{closed} of {all} passphrase(s) of KeyBoxes cannot be opened with the master keys that are configured."
            ),
            advice,
        )),
    }
}

/// The place of the media: whether it can be written to, is the one that the database knows, and has what the database speaks of.
pub(super) async fn media(store: &Store, settings: &Settings) -> Vec<Finding> {
    let media = match Media::open(&settings.media).await {
        Ok(media) => media,
        Err(error) => return vec![unusable(&chain(&error))],
    };
    let entropy: &dyn Entropy = &SystemEntropy;
    let test = format!("doctor-{}", entropy.readable(12));
    if let Err(error) = place::try_out(&media, &test).await {
        return vec![unusable(&chain(&error))];
    }
    match place::is_known(&media, store).await {
        Ok(true) => {}
        Ok(false) => return vec![other_place()],
        Err(error) => return vec![unusable(&chain(&error))],
    }
    let newest = store
        .read("doctor_media", |tx| async move { stored_media::newest_objects(&tx, MEDIA_SAMPLE).await })
        .await;
    let newest: Vec<String> = match newest {
        Ok(newest) => newest,
        Err(error) => return failed(&error),
    };
    let mut lost = 0;
    for object in &newest {
        match media.has(object).await {
            Ok(true) => {}
            Ok(false) => lost += 1,
            Err(error) => return vec![unusable(&chain(&error))],
        }
    }
    judge_lost(lost, newest.len()).into_iter().collect()
}

fn unusable(why: &str) -> Finding {
    Finding::error(
        "media.unusable",
        format!("The place of the media cannot be written to or read: {why}."),
        "Correct media.folder or media.s3_…, or the permissions there; the user that the server runs as needs to write.",
    )
}

fn other_place() -> Finding {
    Finding::error(
        "media.place",
        "The media of this database are in another place than the one that is configured: half of all downloads would fail.",
        "Give all replicas the same media.folder (a network file system) or bucket. If the media have moved, copy everything, the folder keystead-place too.",
    )
}

fn judge_lost(lost: usize, looked_at: usize) -> Option<Finding> {
    (lost > 0).then(|| {
        Finding::error(
            "media.lost",
            format!("{lost} of the {looked_at} newest media are in the database and not at their place."),
            "Bring them back from a backup of the media (copy what is missing; files never change). They were deleted there by something else, or the backup of the media is older than the database's.",
        )
    })
}

/// What piles up in the database.
pub(super) async fn backlog(store: &Store) -> Vec<Finding> {
    let ago = |age: Duration| {
        let age = UInt::try_from(age.as_millis()).unwrap_or(UInt::MAX);
        MilliSecondsSinceUnixEpoch(SystemClock.now().0.saturating_sub(age))
    };
    let (overdue, dead) = (ago(OVERDUE), ago(DEAD));
    let counted = store
        .read("doctor_backlog", |tx| async move { backlog::count(&tx, overdue, dead, MANY_MESSAGES).await })
        .await;
    match counted {
        Ok(backlog) => judge_backlog(&backlog),
        Err(error) => failed(&error),
    }
}

fn judge_backlog(backlog: &Backlog) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let (jobs @ 1.., attempts) = backlog.overdue_jobs {
        findings.push(Finding::error(
            "jobs.overdue",
            format!("{jobs} job(s) should have been done more than an hour ago; the one tried most often was tried {attempts} time(s)."),
            "See monitoring/runbooks/KeysteadJobsStuck.md: the logs of the replicas say why (\"job\").",
        ));
    }
    if let (messages @ MANY_DEAD_MESSAGES.., devices) = backlog.dead_messages {
        findings.push(Finding::warning(
            "to_device.dead",
            format!("{messages} messages wait for {devices} device(s) that nobody has used for 30 days."),
            "They go by themselves after 90 days. Ask their owners to log out what they do not use any more.",
        ));
    }
    if backlog.full_devices > 0 {
        findings.push(Finding::warning(
            "to_device.full",
            format!("For {} device(s) more than {MANY_MESSAGES} messages wait; at 10,000 new ones are dropped.", backlog.full_devices),
            "See monitoring/runbooks/KeysteadToDeviceDropped.md: a client that does not sync, or somebody who sends too much.",
        ));
    }
    findings
}

/// How much room there is on a disk.
#[derive(Clone, Copy, Debug)]
struct Room {
    free_bytes: u64,
    all_bytes: u64,
    free_files: u64,
    all_files: u64,
}

/// The disks of the data folder, the media and an SQLite database.
pub(super) fn disks(settings: &Settings) -> Vec<Finding> {
    let mut folders: BTreeSet<PathBuf> = BTreeSet::new();
    if let MediaPlace::Folder(folder) = &settings.media.place {
        folders.insert(folder.clone());
    }
    if let Some(path) = settings.database.url.expose().strip_prefix("sqlite:") {
        let path = path.trim_start_matches("//").split('?').next().unwrap_or_default();
        folders.extend(Path::new(path).parent().map(Path::to_owned));
    }
    folders.into_iter().filter_map(|folder| judge_disk(&folder, room(&folder)?)).collect()
}

fn room(folder: &Path) -> Option<Room> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let disk = rustix::fs::statvfs(folder).ok()?;
    Some(Room {
        free_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
        all_bytes: disk.f_blocks.saturating_mul(disk.f_frsize),
        free_files: disk.f_favail,
        all_files: disk.f_files,
    })
}

fn judge_disk(folder: &Path, room: Room) -> Option<Finding> {
    const GIB: u64 = 1 << 30;
    let share = |free: u64, all: u64| free.saturating_mul(100).checked_div(all).unwrap_or(100);
    let (bytes, files) = (share(room.free_bytes, room.all_bytes), share(room.free_files, room.all_files));
    let what = format!(
        "The disk of {} has {} MiB left, which is {bytes} %, and {files} % of its files.",
        folder.display(),
        room.free_bytes >> 20
    );
    let advice = "Make room or enlarge it: writes are refused with 507 when it is full. `keystead admin media purge` deletes old media.";
    if room.free_bytes < GIB / 4 || files == 0 {
        return Some(Finding::error("disk.space", what, advice));
    }
    (bytes < 5 || room.free_bytes < GIB || files < 5).then(|| Finding::warning("disk.space", what, advice))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Severity, tests::names};

    #[test]
    fn passphrases_that_nothing_opens_are_named() {
        assert_eq!(judge_sealed(0, 0, false), None);
        assert_eq!(judge_sealed(5, 0, true), None);
        for (closed, has_key) in [(5, false), (1, true)] {
            let found = judge_sealed(5, closed, has_key).unwrap();
            assert_eq!(names(&[found]), ["keys.master"]);
        }
        assert_eq!(names(&[signing_key("why")]), ["keys.signing"]);
    }

    #[test]
    fn each_backlog_is_named_and_a_small_one_is_not() {
        let some = Backlog { overdue_jobs: (0, 0), dead_messages: (99_999, 3), full_devices: 0 };
        assert!(judge_backlog(&some).is_empty());
        let much = Backlog { overdue_jobs: (1, 9), dead_messages: (100_000, 3), full_devices: 1 };
        assert_eq!(names(&judge_backlog(&much)), ["jobs.overdue", "to_device.dead", "to_device.full"]);
    }

    #[test]
    fn a_disk_that_fills_up_is_named_before_it_is_full() {
        let room =
            |free_bytes, free_files| Room { free_bytes, all_bytes: 100 << 30, free_files, all_files: 100 };
        let judged = |room| judge_disk(Path::new("/data"), room).map(|finding| finding.severity);
        assert_eq!(judged(room(50 << 30, 50)), None);
        assert_eq!(judged(room(4 << 30, 50)), Some(Severity::Warning));
        assert_eq!(judged(room(100 << 20, 50)), Some(Severity::Error));
        assert_eq!(judged(room(50 << 30, 0)), Some(Severity::Error));
        // Some file systems do not count files.
        assert_eq!(judged(Room { all_files: 0, ..room(50 << 30, 0) }), None);
        assert!(super::room(Path::new("/")).is_some());
        assert_eq!(names(&[judge_disk(Path::new("/"), room(0, 0)).unwrap()]), ["disk.space"]);
    }

    #[test]
    fn media_that_are_gone_or_elsewhere_are_named() {
        assert_eq!(judge_lost(0, 25), None);
        let found = [judge_lost(2, 25).unwrap(), other_place(), unusable("read-only")];
        assert_eq!(names(&found), ["media.lost", "media.place", "media.unusable"]);
    }
}
