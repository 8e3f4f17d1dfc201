//! Files from KeyBox to KeyBox, through a homeserver that sees ciphertext and may try what it likes with it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use keystead_tests::TestCluster;
use openssl::sha::sha256;

use crate::keybox::{field, pair};

/// The only object that the servers hold, besides the mark of the place.
fn object(folder: &Path) -> PathBuf {
    let mut entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let path = entries.find(|path| !path.ends_with("keystead-place")).expect("one object");
    if path.is_dir() { object(&path) } else { path }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect()
}

#[tokio::test]
async fn a_file_reaches_the_other_keybox_whole_or_not_at_all() {
    let cluster = TestCluster::start().await;
    let (alice, bob, room) = pair(&cluster).await;
    let content: Vec<u8> =
        (0..1_000_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let source = cluster.folder().join("a secret plan.pdf");
    fs::write(&source, &content).expect("written");

    let sent = alice.run(&["send-file", &room, source.to_str().expect("a path")]).await;
    let event = field(&sent, "event_id");
    let object = object(&cluster.folder().join("media"));
    let ciphertext = fs::read(&object).expect("the object");
    assert_eq!(ciphertext.len(), content.len());
    assert!(!ciphertext.windows(16).any(|window| window == &content[..16]));
    let held = cluster.dump_database().await;
    assert!(!held.contains("secret plan"), "the server holds the name of the file");

    // By the sender's name into a folder, and nothing else stays there.
    let inbox = cluster.folder().join("inbox");
    fs::create_dir(&inbox).expect("made");
    let to = inbox.to_str().expect("a path");
    let saved = bob.run(&["download", &room, &event, "--output", to]).await;
    assert_eq!(field(&saved, "path"), inbox.join("a secret plan.pdf").display().to_string());
    assert!(fs::read(inbox.join("a secret plan.pdf")).expect("saved") == content);
    assert_eq!(names(&inbox), ["a secret plan.pdf"]);
    let refused = bob.refused(&["download", &room, &event, "--output", to]).await;
    assert!(refused["error"].as_str().expect("text").contains("is there already"), "{refused}");

    // A transfer that broke off goes on where it was.
    let name = sha256(&ciphertext).iter().take(16).map(|byte| format!("{byte:02x}")).collect::<String>();
    let part = inbox.join(format!(".keybox-{name}.part"));
    fs::write(&part, &ciphertext[..3_000_000]).expect("written");
    let second = inbox.join("second");
    let to = second.to_str().expect("a path");
    let saved = bob.run(&["download", &room, &event, "--output", to]).await;
    assert_eq!(saved[0]["resumed_at"], 3_000_000, "{saved:?}");
    assert!(fs::read(&second).expect("saved") == content);

    // What was left is bad: the file is received anew.
    fs::write(&part, vec![0; 3_000_000]).expect("written");
    fs::remove_file(&second).expect("removed");
    let saved = bob.run(&["download", &room, &event, "--output", to]).await;
    assert_eq!(saved[0]["resumed_at"], 0, "{saved:?}");
    assert!(fs::read(&second).expect("saved") == content);

    // The server alters one bit: not a byte is released, and nothing stays.
    fs::remove_file(&second).expect("removed");
    let mut altered = ciphertext.clone();
    altered[2_000_000] ^= 1;
    fs::write(&object, altered).expect("written");
    for _ in 0..2 {
        let refused = bob.refused(&["download", &room, &event, "--output", to]).await;
        assert!(refused["error"].as_str().expect("text").contains("not the file that was sent"), "{refused}");
        assert_eq!(names(&inbox), ["a secret plan.pdf"]);
    }
}

#[tokio::test]
async fn files_that_cannot_be_sent_are_told_before_anything_is() {
    let cluster = TestCluster::start_with(&[("KEYSTEAD_MEDIA_MAX_UPLOAD_BYTES", "100000")]).await;
    let (alice, _bob, room) = pair(&cluster).await;
    let large = cluster.folder().join("large");
    fs::write(&large, vec![0; 100_001]).expect("written");
    for (path, reason) in
        [(large.to_str().expect("a path"), "100000 at most"), ("/nonexistent", "cannot be used")]
    {
        let refused = alice.refused(&["send-file", &room, path]).await;
        assert!(refused["error"].as_str().expect("text").contains(reason), "{refused}");
    }
    assert_eq!(names(&cluster.folder().join("media")), ["keystead-place"]);
}
