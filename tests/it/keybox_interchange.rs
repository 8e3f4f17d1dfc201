//! Interchange files: resource keys leave one KeyBox and reach another.

use keystead_tests::TestCluster;

use crate::keybox::{Person, pair};

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
