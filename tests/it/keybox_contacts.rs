//! Verifying people: contact codes as QR images, and changed keys.

use keystead_tests::TestCluster;

use crate::keybox::{Person, field};

#[tokio::test]
async fn a_scanned_code_verifies_and_adds_a_contact() {
    let cluster = TestCluster::start().await;
    let alice = Person::new(&cluster, "alice", "alice-home", 0);
    let bob = Person::new(&cluster, "bob", "bob-home", 1);
    let registered = alice.run(&["register"]).await;
    bob.run(&["register"]).await;
    let (png, svg) = (cluster.folder().join("alice.png"), cluster.folder().join("alice.svg"));
    let (png, svg) = (png.to_str().expect("text"), svg.to_str().expect("text"));
    let shown = alice.run(&["qr", "--png", png]).await;
    assert_eq!(field(&shown, "fingerprint"), field(&registered, "fingerprint"));
    alice.run(&["qr", "--svg", svg]).await;

    let scanned = bob.run(&["scan", png]).await;
    assert_eq!(
        (field(&scanned, "user_id"), &scanned[0]["added"]),
        ("@alice:keystead.test".to_owned(), &true.into())
    );
    let contacts = bob.run(&["contacts"]).await;
    assert_eq!(contacts.len(), 1);
    assert_eq!(
        (&contacts[0]["user_id"], &contacts[0]["verified"]),
        (&"@alice:keystead.test".into(), &true.into())
    );

    let refused = bob.refused(&["scan", svg]).await;
    assert!(
        refused["error"].as_str().is_some_and(|error| error.contains("neither PNG nor JPEG")),
        "{refused}"
    );
    let refused = bob.refused(&["accept", "@alice:keystead.test"]).await;
    assert!(refused["error"].as_str().is_some_and(|error| error.contains("have not changed")), "{refused}");
    // The code outlives the KeyBox; trust in it does not.
    alice.run(&["logout"]).await;
    let refused = bob.refused(&["scan", png]).await;
    assert!(refused["error"].as_str().is_some_and(|error| error.contains("knows no KeyBox")), "{refused}");
}
