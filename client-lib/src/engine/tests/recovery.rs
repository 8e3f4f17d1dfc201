use keystead_keybox::OpensslEntropy;
use keystead_keybox::interchange::Entry;
use keystead_keybox::recovery::{RecoveryKey, SealedEntry};
use keystead_keybox::resource_key::ResourceKeyId;
use serde::Deserialize as _;

use super::world::{World, user};
use crate::engine::Notice;

/// What the recovery key opens of the backup.
fn opened(world: &World, key: &RecoveryKey) -> Vec<Entry> {
    let entries = world.backup.iter().map(|((room_id, key_id), data)| {
        let sealed = SealedEntry::deserialize(&data["session_data"]).unwrap();
        let key_id = ResourceKeyId::try_from(key_id.clone()).unwrap();
        key.open(&user("A1"), (room_id, &key_id), &sealed).unwrap()
    });
    entries.collect()
}

/// Alice's KeyBox makes a recovery key.
fn create(world: &mut World, version: &str) -> RecoveryKey {
    let key = RecoveryKey::generate(&mut OpensslEntropy).unwrap();
    world.backup_version = Some(version.to_owned());
    world.boxes.get_mut("A1").unwrap().engine.keep_backup(version, &key.writer().unwrap());
    world.settle();
    key
}

#[test]
fn keys_that_are_here_and_keys_that_come_are_backed_up_and_opened_by_a_keybox_with_nothing() {
    let mut world = World::new(&["A1", "B1"]);
    world.say("A1", "before");
    assert!(world.backup.is_empty(), "off by default");
    let key = create(&mut world, "1");
    assert_eq!(world.backup.len(), 1);
    world.restart("A1");
    // A new resource key, which another KeyBox makes.
    world.add("B2");
    world.settle();
    world.revoke("B2");
    world.settle();
    world.say("B1", "after");
    assert_eq!((world.keys_in_use(), world.backup.len()), (2, 2));
    let written = world.backup.clone();
    world.restart("A1");
    world.settle();
    assert_eq!(world.backup, written, "once only");

    let entries = opened(&world, &key);
    // Nobody is there any more to ask.
    world.boxes.remove("A1");
    world.boxes.remove("B1");
    world.add("A2");
    world.settle();
    assert!(world.texts("A2").is_empty());
    let now = world.now;
    let one = world.boxes.get_mut("A2").unwrap();
    let imported = one.engine.import_keys(&entries, now, &mut OpensslEntropy, &mut one.notices).unwrap();
    assert_eq!((imported.new.len(), imported.refused.len()), (2, 0));
    assert_eq!(world.texts("A2"), ["before", "after"]);
}

#[test]
fn what_another_version_of_the_backup_lacks_is_added_to_it() {
    let mut world = World::new(&["A1"]);
    world.say("A1", "text");
    create(&mut world, "1");
    world.backup.clear();
    let second = create(&mut world, "2");
    assert_eq!(opened(&world, &second).len(), 1);
}

#[test]
fn a_backup_that_was_removed_elsewhere_is_not_kept_on_and_the_person_is_told() {
    let mut world = World::new(&["A1", "B1"]);
    create(&mut world, "1");
    world.backup_version = None;
    world.say("A1", "text");
    assert!(world.notices("A1").iter().any(|notice| matches!(notice, Notice::BackupEnded { .. })));
    world.restart("A1");
    world.settle();
    assert!(world.boxes["A1"].engine.backup_version().is_none() && world.backup.is_empty());
}

#[test]
fn the_store_does_not_hold_what_opens_the_backup() {
    let mut world = World::new(&["A1"]);
    let key = create(&mut world, "1");
    let digits = key.to_text().replace(' ', "");
    let shown = format!("{:?}", world.boxes["A1"].engine);
    assert!(!shown.contains("writer"), "{shown}");
    for record in world.stored("A1") {
        let text = String::from_utf8_lossy(record);
        assert!(!text.contains(&digits[..16]), "{text}");
    }
}
