//! The KeyBox profile from end to end: the `keybox` command line of two people, each on another replica.

use std::{
    path::PathBuf,
    process::{Command, Output},
};

use keystead_tests::{TestCluster, cluster::PASSWORD, process};
use serde_json::{Value, json};

/// One person's KeyBoxes in a folder of their own.
#[derive(Clone)]
pub(crate) struct Person {
    pub(crate) name: &'static str,
    pub(crate) home: PathBuf,
    pub(crate) server: String,
}

impl Person {
    pub(crate) fn new(cluster: &TestCluster, name: &'static str, folder: &str, replica: usize) -> Self {
        Self { name, home: cluster.folder().join(folder), server: cluster.url(replica) }
    }

    /// Runs `keybox` and gives what it printed: one JSON value a line.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Vec<Value> {
        let what = format!("keybox {} of {}", arguments.join(" "), self.name);
        let output = self.try_run(arguments).await;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{what}: {}\n{out}{err}", output.status);
        out.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{what}: {line}")))
            .collect()
    }

    /// Runs `keybox`, which is to fail, and gives its error.
    pub(crate) async fn refused(&self, arguments: &[&str]) -> Value {
        let output = self.try_run(arguments).await;
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{}: {err}", arguments.join(" "));
        serde_json::from_str(err.lines().last().unwrap_or_default()).unwrap_or_else(|_| panic!("{err}"))
    }

    /// The command `keybox` with the person's password, and no passphrase.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(process::keystead().with_file_name("keybox"));
        command
            .args(arguments)
            .args(["--json", "--user", self.name])
            .env("KEYBOX_HOME", &self.home)
            .env("KEYBOX_SERVER", &self.server)
            .env("KEYBOX_PASSWORD", PASSWORD)
            .env_remove("KEYBOX_PASSPHRASE");
        command
    }

    /// Runs `keybox` and gives all that came of it.
    pub(crate) async fn try_run(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        command.env("KEYBOX_PASSPHRASE", format!("the passphrase of {}", self.name));
        tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("it ran")
    }

    /// The texts in what `keybox` printed.
    pub(crate) async fn texts(&self, arguments: &[&str]) -> Vec<String> {
        let lines = self.run(arguments).await;
        lines.iter().filter_map(|line| line["content"]["body"].as_str().map(str::to_owned)).collect()
    }
}

/// The first value of that name in what `keybox` printed.
pub(crate) fn field(lines: &[Value], name: &str) -> String {
    let value = lines.iter().find_map(|line| line[name].as_str());
    value.unwrap_or_else(|| panic!("no {name} in {lines:?}")).to_owned()
}

/// Alice on one replica, Bob on the other, and an encrypted room with both in it.
pub(crate) async fn pair(cluster: &TestCluster) -> (Person, Person, String) {
    let alice = Person::new(cluster, "alice", "alice-home", 0);
    let bob = Person::new(cluster, "bob", "bob-home", 1);
    alice.run(&["register"]).await;
    bob.run(&["register"]).await;
    let room = alice.run(&["create", "--name", "tea", "--invite", "@bob:keystead.test"]).await;
    let room = field(&room, "room_id");
    bob.run(&["join", &room]).await;
    (alice, bob, room)
}

#[tokio::test]
async fn two_people_talk_and_the_server_learns_nothing() {
    let cluster = TestCluster::start().await;
    let (alice, bob, room) = pair(&cluster).await;
    alice.run(&["send", &room, "the treasure is under the oak"]).await;
    let heard = bob.texts(&["listen", "--until-messages", "1", "--timeout", "30"]).await;
    assert_eq!(heard, ["the treasure is under the oak"]);
    bob.run(&["send", &room, "then bring a spade"]).await;
    let heard = alice.texts(&["listen", "--until-messages", "1", "--timeout", "30"]).await;
    assert_eq!(heard, ["then bring a spade"]);
    let history = alice.texts(&["history", &room]).await;
    assert_eq!(history, ["the treasure is under the oak", "then bring a spade"]);

    let held = cluster.dump_database().await;
    assert!(held.contains("com.trustner.keybox.v1"), "the dump holds the events");
    for secret in ["treasure", "under the oak", "spade", "passphrase of"] {
        assert!(!held.contains(secret), "the server holds {secret:?}");
    }
}

#[tokio::test]
async fn a_message_opens_with_openssl_and_the_resource_key_alone() {
    let cluster = TestCluster::start().await;
    let (alice, _bob, room) = pair(&cluster).await;
    let sent = alice.run(&["send", &room, "plain to openssl"]).await;
    let exported = alice.run(&["export-message", &room, &field(&sent, "event_id")]).await;
    let text = |name: &str| field(&exported, name);
    let script = "printf %s \"$1\" | openssl enc -d -aes-256-ofb -a -A -K \"$2\" -iv \"$3\"";
    let output = Command::new("sh")
        .args(["-c", script, "sh", &text("ciphertext"), &text("resource_key"), &text("iv")])
        .output()
        .expect("openssl");
    let opened = String::from_utf8_lossy(&output.stdout);
    assert!(opened.contains("plain to openssl"), "{opened}{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn a_new_keybox_asks_for_the_keys_it_misses() {
    let cluster = TestCluster::start().await;
    let (alice, bob, room) = pair(&cluster).await;
    alice.run(&["send", &room, "before the second KeyBox"]).await;
    bob.texts(&["listen", "--until-messages", "1", "--timeout", "30"]).await;

    let second = Person { home: cluster.folder().join("bob-second-home"), ..bob.clone() };
    second.run(&["login"]).await;
    let first = bob.clone();
    let answering = tokio::spawn(async move { first.run(&["listen", "--timeout", "15"]).await });
    let history = second.texts(&["history", &room, "--wait", "15"]).await;
    assert!(history.contains(&"before the second KeyBox".to_owned()), "{history:?}");
    answering.await.expect("bob's first KeyBox answered");
}

#[tokio::test]
async fn the_encryption_of_a_room_cannot_be_taken_back() {
    let cluster = TestCluster::start().await;
    let (_alice, _bob, room) = pair(&cluster).await;
    let alice = cluster.login("alice").await;
    let before = alice.state(&room, "m.room.encryption", "").await.ok();
    for content in [json!({}), json!({ "algorithm": "m.megolm.v1.aes-sha2" })] {
        let path = keystead_tests::user::in_room(&room, "/state/m.room.encryption");
        let answer = alice.put(&path, content).await;
        assert!([400, 403].contains(&answer.status), "{}", answer.text);
    }
    for replica in 0..2 {
        let after = alice.at(replica).state(&room, "m.room.encryption", "").await.ok();
        assert_eq!(after, before);
    }
}
