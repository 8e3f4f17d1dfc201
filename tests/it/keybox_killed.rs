//! A `keybox` that is killed (SIGKILL) while it seals the private keys anew: whenever that is, they open afterwards.

use std::{
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use keystead_tests::{TestCluster, cluster::PASSWORD, proxy::Proxy};
use serde_json::{Value, json};

use crate::{
    keybox::Person,
    keybox_passphrases::{key, keybox_in_normal_mode, passphrases, retrieve},
};

const OWN: (&str, &str) = ("KEYBOX_PASSPHRASE", "a passphrase of my own");
const NEW: (&str, &str) = ("KEYBOX_NEW_PASSPHRASE", OWN.1);

/// When the process is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// The homeserver has done what it was asked for about the passphrase for the n-th time, and the answer has not arrived.
    Answered(usize),
    /// The new file is being written, beside the old one.
    Writing,
    /// The new file has taken the place of the old one.
    Replaced,
}

/// `keys.pem` of the only KeyBox in a home.
fn keys_file(home: &Path) -> PathBuf {
    let only = |folder: &Path| {
        let mut folders =
            std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
        folders.find(|path| path.is_dir()).expect("a folder in it")
    };
    only(&only(home)).join("keys.pem")
}

/// Starts a command and kills it at a moment. Returns how it ended: it may have been faster.
async fn killed(alice: &Person, proxy: &Proxy, moment: Moment, arguments: &[&str]) -> ExitStatus {
    let child: Arc<Mutex<Option<Child>>> = Arc::default();
    let (mut answers, answered) = (0, Arc::clone(&child));
    proxy.alter(move |path, _| {
        answers += usize::from(path.ends_with("/passphrase"));
        if matches!(moment, Moment::Answered(n) if n == answers && path.ends_with("/passphrase")) {
            let mut child = answered.lock().unwrap_or_else(PoisonError::into_inner);
            child.as_mut().expect("started").kill().expect("killed");
        }
    });
    let file = keys_file(&alice.home);
    let before = std::fs::read(&file).expect("the keys");
    let mut command = alice.command(arguments);
    command.envs([OWN, NEW]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if !arguments.contains(&"advanced") {
        command.env_remove(NEW.0);
    }
    *child.lock().expect("unpoisoned") = Some(command.spawn().expect("started"));
    tokio::task::spawn_blocking(move || {
        let is_time = || match moment {
            Moment::Answered(_) => false,
            Moment::Writing => file.with_extension("tmp").exists(),
            Moment::Replaced => std::fs::read(&file).is_ok_and(|now| now != before),
        };
        loop {
            let now = is_time();
            let mut child = child.lock().expect("unpoisoned");
            let child = child.as_mut().expect("started");
            if now {
                child.kill().expect("killed");
                return child.wait().expect("ended");
            }
            if let Some(status) = child.try_wait().expect("a child") {
                return status;
            }
            std::thread::yield_now();
        }
    })
    .await
    .expect("no panic")
}

#[tokio::test]
async fn whenever_a_change_of_the_passphrase_is_killed_the_keys_still_open() {
    let cluster = TestCluster::start_with(&[("KEYSTEAD_KEYBOX_MASTER_KEY", &key("one", 1))]).await;
    let proxy = Proxy::start(&cluster).await;
    let alice = Person { server: proxy.url.clone(), ..Person::new(&cluster, "alice", "alice-home", 0) };
    let run = async |arguments: &[&str]| -> Value {
        let (status, value, error) = keybox_in_normal_mode(&alice, arguments, &[OWN, NEW]).await;
        assert_eq!(status, 0, "{arguments:?}: {error}");
        value
    };
    let (status, made, error) = keybox_in_normal_mode(&alice, &["register", "--mode", "normal"], &[]).await;
    assert_eq!(status, 0, "{error}");
    let keybox_id = made["keybox_id"].as_str().expect("an id").to_owned();
    let change: &[&str] = &["passphrase", "change"];
    let (advanced, normal): (&[&str], &[&str]) =
        (&["passphrase", "mode", "advanced"], &["passphrase", "mode", "normal"]);
    let mut killed_in_time = 0;
    for (arguments, moment) in [
        // Another passphrase in normal mode: stored before the file changes, settled after.
        (change, Moment::Answered(2)),
        (change, Moment::Writing),
        (change, Moment::Answered(3)),
        // To advanced mode: the file first, and then the homeserver forgets.
        (advanced, Moment::Replaced),
        // And back: the homeserver first, and then the file.
        (normal, Moment::Answered(1)),
        (normal, Moment::Replaced),
        (advanced, Moment::Answered(1)),
    ] {
        let wanted = matches!(arguments, ["passphrase", "mode", ..]).then(|| arguments[2]);
        if wanted.is_some() && run(&["passphrase"]).await["mode"].as_str() == wanted {
            // The process before was killed after the file had changed: it is there already.
            continue;
        }
        let ended = killed(&alice, &proxy, moment, arguments).await;
        proxy.alter(|_, _| {});
        assert!(ended.success() || ended.signal() == Some(9), "{arguments:?} {moment:?}: {ended}");
        if matches!(moment, Moment::Answered(_)) {
            assert_eq!(ended.signal(), Some(9), "{arguments:?} {moment:?}");
        }
        killed_in_time += usize::from(ended.signal() == Some(9));

        // Whoever keeps the passphrase by what the file says, it opens; and what broke off is brought to its end.
        let listed = run(&["keyboxes"]).await;
        assert_eq!(listed["keybox_id"], keybox_id.as_str(), "{arguments:?} {moment:?}: {listed}");
        let kept = retrieve(&cluster, "alice", PASSWORD, &keybox_id).await;
        match run(&["passphrase"]).await["mode"].as_str() {
            Some("normal") => {
                assert_eq!(passphrases(&kept.ok()).as_array().map(Vec::len), Some(1), "{moment:?}")
            }
            mode => assert_eq!(mode, Some("advanced")),
        }
    }
    assert!(killed_in_time >= 4, "killed in time: {killed_in_time}");
    // After the last one: whatever the homeserver still had is gone with the next command that reaches it.
    if run(&["passphrase"]).await["mode"] == "normal" {
        run(advanced).await;
    }
    run(&["rooms"]).await;
    retrieve(&cluster, "alice", PASSWORD, &keybox_id).await.refused(404, "M_NOT_FOUND");
    assert_eq!(run(&["keyboxes"]).await["passphrase_kept"], json!(false));
}
