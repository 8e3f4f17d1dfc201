//! Resource keys leave one KeyBox and reach another: by interchange files, and by a recovery key.

use keystead_keybox::{OpensslEntropy, recovery::RecoveryKey};
use keystead_tests::TestCluster;
use serde_json::json;

use crate::keybox::{Person, field, pair};

#[tokio::test]
async fn exported_keys_open_the_history_at_another_keybox() {
    let cluster = TestCluster::start().await;
    let (alice, bob, room) = pair(&cluster).await;
    alice.run(&["send", &room, "kept in a file"]).await;
    bob.texts(&["listen", "--until-messages", "1", "--timeout", "30"]).await;
    let file = cluster.folder().join("keys.json");
    let path = file.to_str().expect("text");
    let secret = ["--file-passphrase", "a passphrase for moving"];
    let short = bob.refused(&["export-keys", path, "--file-passphrase", "short"]).await;
    assert!(short["error"].as_str().is_some_and(|error| error.contains("12 to 512")), "{short}");
    let exported = bob.run(&[&["export-keys", path][..], &secret].concat()).await;
    assert_eq!(exported[0]["keys"], 1);
    let again = bob.refused(&[&["export-keys", path][..], &secret].concat()).await;
    assert!(again["error"].as_str().is_some_and(|error| error.contains("exists")), "{again}");
    assert!(
        !std::fs::read_to_string(&file).expect("the file").contains(&room),
        "not even the room is in the clear"
    );

    let second = Person { home: cluster.folder().join("bob-second-home"), ..bob.clone() };
    second.run(&["login"]).await;
    let wrong = second.refused(&["import-keys", path, "--file-passphrase", "another passphrase"]).await;
    assert!(wrong["error"].as_str().is_some_and(|error| error.contains("does not open")), "{wrong}");
    let imported = second.run(&[&["import-keys", path][..], &secret].concat()).await;
    assert_eq!((&imported[0]["new"], &imported[0]["refused"]), (&1.into(), &serde_json::json!([])));
    assert_eq!(second.texts(&["history", &room, "--wait", "0"]).await, ["kept in a file"]);
}

#[tokio::test]
async fn a_recovery_key_opens_the_history_after_every_keybox_is_lost() {
    let cluster = TestCluster::start().await;
    let (alice, bob, room) = pair(&cluster).await;
    alice.run(&["send", &room, "before"]).await;
    bob.texts(&["listen", "--until-messages", "1", "--timeout", "30"]).await;
    assert!(bob.run(&["recovery-key"]).await[0]["backed_up"].is_null(), "off by default");
    let none = bob.refused(&["recovery-key", "remove"]).await;
    assert_eq!(none["status"], 7, "{none}");
    let made = bob.run(&["recovery-key", "create"]).await;
    let key = field(&made, "recovery_key");
    let twice = bob.refused(&["recovery-key", "create"]).await;
    assert!(twice["error"].as_str().is_some_and(|error| error.contains("already")), "{twice}");
    // A key that comes later: the one of a second room.
    let second_room = alice.run(&["create", "--name", "cake", "--invite", "@bob:keystead.test"]).await;
    let second_room = field(&second_room, "room_id");
    bob.run(&["join", &second_room]).await;
    alice.run(&["send", &second_room, "after"]).await;
    bob.texts(&["listen", "--until-messages", "1", "--timeout", "30"]).await;
    assert_eq!(bob.run(&["recovery-key"]).await[0], json!({ "backed_up": 2, "kept_here": true }));
    let database = cluster.dump_database().await;
    assert!(!database.contains(&key) && !database.contains(&key.replace(' ', "")));

    // Everything is lost, and Alice's KeyBox does not run: nobody answers questions for keys.
    std::fs::remove_dir_all(&bob.home).expect("lost");
    let new = Person { home: cluster.folder().join("bob-new-home"), ..bob.clone() };
    new.run(&["login"]).await;
    assert!(new.texts(&["history", &room, "--wait", "0"]).await.is_empty());
    let mistyped = new.refused(&["recovery-key", "restore", &key.replacen(&key[..1], "x", 1)]).await;
    assert_eq!(mistyped["status"], 3, "{mistyped}");
    let other = RecoveryKey::generate(&mut OpensslEntropy).expect("drawn").to_text();
    let other = new.refused(&["recovery-key", "restore", &other]).await;
    assert!(other["error"].as_str().is_some_and(|error| error.contains("not of this")), "{other}");
    let restored = new.run(&["recovery-key", "restore", &key.to_uppercase()]).await;
    assert_eq!((&restored[0]["new"], &restored[0]["refused"]), (&2.into(), &json!([])));
    assert_eq!(new.texts(&["history", &room, "--wait", "0"]).await, ["before"]);
    assert_eq!(new.texts(&["history", &second_room, "--wait", "0"]).await, ["after"]);
    // What comes now goes into the backup from here.
    new.run(&["send", &room, "and on"]).await;
    assert_eq!(new.run(&["recovery-key"]).await[0], json!({ "backed_up": 3, "kept_here": true }));
    new.run(&["recovery-key", "remove"]).await;
    let gone = new.refused(&["recovery-key", "restore", &key]).await;
    assert_eq!(gone["status"], 7, "{gone}");
}
