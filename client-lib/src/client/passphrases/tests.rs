//! A crash after every single step of a change of passphrase: of each file access, and before and after each call of the server takes
//! effect. Both what is on the disk then and what a power cut leaves (nothing since the last flush of the folder) must open.

mod server;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use keystead_keybox::OpensslEntropy;
use keystead_keybox::sealed_keys::random_passphrase;

use super::*;
use crate::api::LoggedIn;
use crate::store::Store;
use crate::store::files::crash;
use server::Server;

const OWN: &str = "the owner's first passphrase";
const NEXT: &str = "the owner's next passphrase";
const USER: &str = "@alice:x";
const KEYBOX: &str = "ABC";
const PASSWORD: &str = "the password";

/// Counts steps, of the files and of the server; at one of them the machine stops, and nothing happens any more.
#[derive(Default)]
struct Machine {
    steps: AtomicUsize,
    stops_at: AtomicUsize,
    stopped: AtomicBool,
}

impl Machine {
    /// Whether the machine goes on after one more step.
    fn step(&self) -> bool {
        let step = self.steps.fetch_add(1, Ordering::SeqCst) + 1;
        if step == self.stops_at.load(Ordering::SeqCst) {
            self.stopped.store(true, Ordering::SeqCst);
        }
        !self.stopped.load(Ordering::SeqCst)
    }

    fn start(&self, stops_at: usize) {
        self.steps.store(0, Ordering::SeqCst);
        self.stops_at.store(stops_at, Ordering::SeqCst);
        self.stopped.store(false, Ordering::SeqCst);
    }
}

/// A KeyBox's store, its homeserver, and what would be on the disk after a power cut.
struct Fixture {
    home: tempfile::TempDir,
    account: Account,
    machine: Arc<Machine>,
    server: Server,
    durable: Arc<Mutex<Vec<u8>>>,
    /// What the test begins with, and where that is put back to.
    first: Vec<u8>,
    kept_first: Vec<String>,
    opens_first: Zeroizing<String>,
}

impl Fixture {
    fn new(mode: PassphraseMode) -> Self {
        let machine = Arc::new(Machine::default());
        let server = Server::start(Arc::clone(&machine));
        let home = tempfile::tempdir().unwrap();
        let (passphrase, kept) = match mode {
            PassphraseMode::Advanced => (Zeroizing::new(OWN.to_owned()), Vec::new()),
            PassphraseMode::Normal => {
                let made = random_passphrase(&mut OpensslEntropy).unwrap();
                let kept = vec![made.to_string()];
                (made, kept)
            }
        };
        let api = Api::new(&server.address).unwrap();
        let logged_in =
            LoggedIn { user_id: USER.to_owned(), device_id: KEYBOX.to_owned(), access_token: String::new() };
        let token = Zeroizing::new("token".to_owned());
        let new = (passphrase.clone(), mode);
        let client = Client::make(home.path(), &api, &logged_in, token, &new).unwrap();
        let account = client.account().clone();
        let mut fixture = Self {
            home,
            account,
            machine,
            server,
            durable: Arc::default(),
            first: Vec::new(),
            kept_first: kept,
            opens_first: passphrase,
        };
        fixture.first = std::fs::read(fixture.file()).unwrap();
        fixture
    }

    fn file(&self) -> std::path::PathBuf {
        self.home.path().join("=40alice=3ax").join(KEYBOX).join("keys.pem")
    }

    /// Everything as in the beginning, with a machine that stops at a step (0: never).
    fn reset(&self, stops_at: usize) {
        crash::nowhere();
        std::fs::write(self.file(), &self.first).unwrap();
        *self.durable.lock().unwrap() = self.first.clone();
        *self.server.kept.lock().unwrap() = self.kept_first.clone();
        self.machine.start(stops_at);
        let (machine, durable, file) = (Arc::clone(&self.machine), Arc::clone(&self.durable), self.file());
        crash::at(move |done: &str, path: &Path| {
            if done == "folder flushed" && file.starts_with(path) {
                *durable.lock().unwrap() = std::fs::read(&file).unwrap();
            }
            if machine.step() { Ok(()) } else { Err(io::Error::other("the machine has stopped")) }
        });
    }

    /// Opens the keys as a person would after the crash, and says with what.
    async fn reopen(&self) -> (Client, Zeroizing<String>) {
        crash::nowhere();
        self.machine.start(0);
        let (home, account) = (self.home.path(), self.account.clone());
        match Store::passphrase_mode(home, &account).unwrap() {
            PassphraseMode::Normal => Client::unlock(home, account, PASSWORD).await.expect("unlocked"),
            PassphraseMode::Advanced => {
                let opened = [OWN, NEXT].into_iter().find_map(|passphrase| {
                    let client = Client::open(home, account.clone(), passphrase).ok()?;
                    Some((client, Zeroizing::new(passphrase.to_owned())))
                });
                opened.expect("opened with the old passphrase or the new one")
            }
        }
    }

    /// What distinguishes the states that a crash leaves, as far as opening is concerned.
    fn state(&self, file: &[u8]) -> (bool, usize, Option<usize>) {
        let kept = self.server.kept.lock().unwrap();
        let position = kept.iter().position(|kept| *kept == *self.opens_first);
        (file == self.first, kept.len(), position)
    }

    /// Lets the machine stop at each step of a change in turn, and opens what it leaves.
    async fn crash_everywhere(&self, new: Passphrase<'static>) -> usize {
        self.reset(0);
        let (mut client, current) = self.opened();
        assert!(client.change_passphrase(&current, new).await.unwrap());
        let steps = self.machine.steps.load(Ordering::SeqCst);
        let mut seen = Vec::new();
        for stop in 1..=steps {
            self.reset(stop);
            client.is_unsettled = false;
            client.change_passphrase(&current, new).await.ok();
            assert!(self.machine.stopped.load(Ordering::SeqCst), "step {stop}");
            let on_disk = std::fs::read(self.file()).unwrap();
            let after_power_cut = self.durable.lock().unwrap().clone();
            let kept = self.server.kept.lock().unwrap().clone();
            let mut left = vec![on_disk, after_power_cut];
            left.dedup();
            for file in left {
                self.server.kept.lock().unwrap().clone_from(&kept);
                let state = self.state(&file);
                let is_new = !seen.contains(&state);
                if state.0 && !is_new {
                    // Just as after an earlier step: the keys of the beginning, and they open.
                    continue;
                }
                std::fs::write(self.file(), &file).unwrap();
                let (client, current) = self.reopen().await;
                assert_eq!(client.keys.user_id(), USER);
                if is_new {
                    self.change_again(client, &current, new).await;
                }
                seen.push(state);
            }
        }
        steps
    }

    fn opened(&self) -> (Client, Zeroizing<String>) {
        let client = Client::open(self.home.path(), self.account.clone(), &self.opens_first).unwrap();
        (client, self.opens_first.clone())
    }

    /// After the crash the same change leads to where it should have.
    async fn change_again(&self, mut client: Client, current: &str, new: Passphrase<'static>) {
        if client.passphrase_mode().unwrap() == PassphraseMode::Normal {
            let kept = self.server.kept.lock().unwrap().clone();
            assert_eq!(kept, [current], "the one that opens nothing is gone");
        }
        assert!(client.change_passphrase(current, new).await.unwrap());
        let (_, current) = self.reopen().await;
        let kept = self.server.kept.lock().unwrap().clone();
        match new {
            Passphrase::Kept => assert_eq!(kept, [current.to_string()]),
            Passphrase::Own(own) => {
                assert_eq!(*current, own);
                assert!(kept.is_empty(), "the homeserver has forgotten it");
                assert!(std::fs::read_to_string(self.file()).unwrap().starts_with("-----BEGIN"));
            }
        }
    }
}

/// Steps of replacing the file: made, written, flushed, renamed, folder flushed.
const REPLACED: usize = 5;
/// Steps of a call: arrived, done.
const CALLED: usize = 2;

#[tokio::test]
async fn a_new_passphrase_in_normal_mode() {
    let steps = Fixture::new(PassphraseMode::Normal).crash_everywhere(Passphrase::Kept).await;
    assert_eq!(steps, 4 * CALLED + REPLACED);
}

#[tokio::test]
async fn a_new_passphrase_in_advanced_mode() {
    let steps = Fixture::new(PassphraseMode::Advanced).crash_everywhere(Passphrase::Own(NEXT)).await;
    assert_eq!(steps, REPLACED, "the homeserver is not asked");
}

#[tokio::test]
async fn from_advanced_to_normal_mode() {
    let steps = Fixture::new(PassphraseMode::Advanced).crash_everywhere(Passphrase::Kept).await;
    assert_eq!(steps, 2 * CALLED + REPLACED);
}

#[tokio::test]
async fn from_normal_to_advanced_mode() {
    let steps = Fixture::new(PassphraseMode::Normal).crash_everywhere(Passphrase::Own(NEXT)).await;
    assert_eq!(steps, REPLACED + CALLED + REPLACED);
}

#[tokio::test]
async fn who_does_not_know_the_present_passphrase_changes_nothing() {
    let fixture = Fixture::new(PassphraseMode::Normal);
    fixture.reset(0);
    let (mut client, _) = fixture.opened();
    for new in [Passphrase::Kept, Passphrase::Own(NEXT)] {
        let refused = client.change_passphrase("another one", new).await.unwrap_err();
        assert!(refused.is_wrong_passphrase(), "{refused}");
    }
    assert_eq!(std::fs::read(fixture.file()).unwrap(), fixture.first);
    assert_eq!(*fixture.server.kept.lock().unwrap(), fixture.kept_first);
    let (home, account) = (fixture.home.path(), fixture.account.clone());
    let refused = Client::unlock(home, account.clone(), "wrong").await.unwrap_err();
    assert_eq!(refused.errcode(), Some("M_FORBIDDEN"));
    fixture.server.kept.lock().unwrap().clear();
    let gone = Client::unlock(home, account, PASSWORD).await.unwrap_err();
    assert!(matches!(gone, ClientError::PassphraseGone));
}

#[tokio::test]
async fn every_block_opens_with_openssl_after_a_change_and_the_line_before_is_passed_over() {
    let fixture = Fixture::new(PassphraseMode::Advanced);
    fixture.reset(0);
    let (mut client, current) = fixture.opened();
    assert!(client.change_passphrase(&current, Passphrase::Kept).await.unwrap());
    let passphrase = fixture.server.kept.lock().unwrap()[0].clone();
    let text = std::fs::read_to_string(fixture.file()).unwrap();
    assert!(text.starts_with("Passphrase: kept by the homeserver\n-----BEGIN ENCRYPTED"), "{text}");
    const END: &str = "-----END ENCRYPTED PRIVATE KEY-----\n";
    let file = fixture.home.path().join("block.pem");
    for (block, kind) in text.split_inclusive(END).zip(["ED25519", "RSA", "X25519"]) {
        std::fs::write(&file, block).unwrap();
        let output = std::process::Command::new("openssl")
            .args(["pkey", "-noout", "-text", "-passin", &format!("pass:{passphrase}"), "-in"])
            .arg(&file)
            .output()
            .unwrap();
        let shown = String::from_utf8_lossy(&output.stdout).to_uppercase();
        let is_kind = shown.contains(kind) || kind == "RSA" && shown.contains("2048 BIT");
        assert!(output.status.success() && is_kind, "{kind}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(text.matches(END).count(), 3);
}

#[test]
fn no_passphrase_is_shown() {
    assert_eq!(format!("{:?} {:?}", Passphrase::Kept, Passphrase::Own(OWN)), "Kept Own(redacted)");
}
