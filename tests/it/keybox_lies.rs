//! A homeserver that gives out something else than the file that was sent: not a byte of it is released. And pictures, which come with
//! their dimensions and a small version.

use std::{fs, path::Path, sync::Arc, time::Duration};

use keystead_client::{
    api::Registration,
    client::{Client, ClientError, FileError, Passphrase, Progress},
};
use keystead_keybox::{attachment::EncryptedFile, suite::SUITES};
use keystead_tests::{TestCluster, cluster::PASSWORD, proxy::Proxy};
use serde_json::Value;

const PASSPHRASE: &str = "a passphrase for tests";

async fn register(cluster: &TestCluster, server: &str, name: &str) -> Client {
    let registration =
        Registration { username: name, password: PASSWORD, token: None, display_name: "KeyBox" };
    let home = cluster.folder().join("homes");
    Client::register(&home, server, &registration, Passphrase::Own(PASSPHRASE)).await.expect("registered")
}

/// Alice on one replica, Bob behind a proxy before the other, in a room; and the event of a file that Alice sent.
async fn send(cluster: &Arc<TestCluster>, file: &Path) -> (Client, Proxy, String, String) {
    let proxy = Proxy::start(cluster).await;
    let mut alice = register(cluster, &cluster.url(1), "alice").await;
    let mut bob = register(cluster, &proxy.url, "bob").await;
    let bob_id = bob.account().user_id.clone();
    let room = alice.create_room(None, &SUITES[0], std::slice::from_ref(&bob_id)).await.expect("a room");
    bob.api().join(&room).await.expect("joined");
    let event = alice.send_file(&room, file, &silent()).await.expect("sent").event_id;
    bob.message(&room, &event, Duration::from_secs(20)).await.expect("the message");
    (bob, proxy, room, event)
}

fn silent() -> Progress {
    Arc::new(|_| {})
}

/// All bytes in a folder.
fn held(folder: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.map(|path| fs::read(path).expect("a file")).collect()
}

#[tokio::test]
async fn what_is_not_the_file_that_was_sent_is_not_released() {
    let cluster = TestCluster::start().await;
    let content: Vec<u8> =
        (0..60_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let source = cluster.folder().join("plan.pdf");
    fs::write(&source, &content).expect("written");
    let (mut bob, proxy, room, event) = send(&cluster, &source).await;
    let inbox = cluster.folder().join("inbox");
    fs::create_dir(&inbox).expect("made");

    type Lie = (&'static str, fn(&mut Vec<u8>));
    let lies: [Lie; 9] = [
        ("nothing", |bytes| bytes.clear()),
        ("the first byte only", |bytes| bytes.truncate(1)),
        ("all but the last byte", |bytes| bytes.truncate(bytes.len() - 1)),
        ("half", |bytes| bytes.truncate(bytes.len() / 2)),
        ("one byte more", |bytes| bytes.push(0)),
        ("twice", |bytes| bytes.extend(bytes.clone())),
        ("a bit of the first byte altered", |bytes| bytes[0] ^= 1),
        ("a bit of the last byte altered", |bytes| *bytes.last_mut().expect("a byte") ^= 0x80),
        ("two parts exchanged", |bytes| bytes.rotate_left(64)),
    ];
    for (what, lie) in lies {
        proxy.alter_bytes(move |path, bytes| {
            if path.contains("/media/download/") {
                lie(bytes);
            }
        });
        let output = inbox.join("plan.pdf");
        let refused = bob.save_file(&room, &event, Some(&output), Duration::ZERO, &silent()).await;
        assert!(matches!(refused, Err(ClientError::File(FileError::Tampered))), "{what}: {refused:?}");
        assert!(held(&inbox).is_empty(), "{what}: something stays");
    }
    proxy.alter_bytes(|_, _| {});
    bob.save_file(&room, &event, Some(&inbox), Duration::ZERO, &silent()).await.expect("saved");
    assert_eq!(held(&inbox), [content]);
}

/// A grey PNG, its rows stored rather than compressed.
fn picture(width: u32, height: u32) -> Vec<u8> {
    crate::media::grey_png(width, height, (width, height))
}

#[tokio::test]
async fn a_picture_comes_with_its_dimensions_and_an_encrypted_thumbnail() {
    let cluster = TestCluster::start().await;
    let source = cluster.folder().join("garden.png");
    fs::write(&source, picture(1_200, 900)).expect("written");
    let (mut bob, _proxy, room, event) = send(&cluster, &source).await;
    let message = bob.message(&room, &event, Duration::ZERO).await.expect("the message");
    let info = &message.content["info"];
    assert_eq!(message.content["msgtype"], "m.image");
    assert_eq!(
        (&info["w"], &info["h"], &info["mimetype"]),
        (&1_200.into(), &900.into(), &"image/png".into())
    );
    assert_eq!(info["size"], fs::metadata(&source).expect("a file").len());
    let about = &info["thumbnail_info"];
    assert_eq!(
        (&about["w"], &about["h"], &about["mimetype"]),
        (&800.into(), &600.into(), &"image/jpeg".into())
    );
    assert!(info["thumbnail_url"].is_null(), "the thumbnail is encrypted");

    let file: EncryptedFile =
        serde_json::from_value(info["thumbnail_file"].clone()).expect("an encrypted file");
    let address = file.url.strip_prefix("mxc://").expect("an mxc address");
    let alice = cluster.login("alice").await;
    let ciphertext = crate::media::download(&alice, address).await;
    assert_eq!(ciphertext.header("content-type"), "application/octet-stream");
    assert_eq!(about["size"], ciphertext.bytes.len());
    let mut verifier = file.verifier().expect("a verifier");
    verifier.update(&ciphertext.bytes);
    assert!(verifier.is_right());
    let thumbnail = file.decryptor().expect("a decryptor").update(&ciphertext.bytes).expect("decrypted");
    assert!(thumbnail.starts_with(&[0xff, 0xd8]) && !ciphertext.bytes.starts_with(&[0xff, 0xd8]));
    assert_ne!(info["thumbnail_file"]["key"], message.content["file"]["key"]);

    // Whoever receives it may have it alone.
    let folder = cluster.folder().join("small");
    fs::create_dir(&folder).expect("a folder");
    let saved =
        bob.save_thumbnail(&room, &event, Some(&folder), Duration::ZERO, &silent()).await.expect("saved");
    assert_eq!(saved.path, folder.join("thumbnail of garden.png.jpg"));
    assert_eq!(fs::read(&saved.path).expect("the thumbnail"), *thumbnail);

    // A small picture needs none, and a text is no picture whatever it is called.
    let small = cluster.folder().join("small.png");
    fs::write(&small, picture(40, 30)).expect("written");
    let text = cluster.folder().join("text.png");
    fs::write(&text, "no picture").expect("written");
    for (path, width) in [(small, Value::from(40)), (text, Value::Null)] {
        let event = bob.send_file(&room, &path, &silent()).await.expect("sent").event_id;
        let content = bob.message(&room, &event, Duration::from_secs(20)).await.expect("the message").content;
        assert_eq!(content["info"]["w"], width);
        assert!(content["info"]["thumbnail_file"].is_null());
        bob.save_thumbnail(&room, &event, Some(&folder), Duration::ZERO, &silent()).await.expect_err("none");
    }
}
