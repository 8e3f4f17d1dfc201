use keystead_keybox::OpensslEntropy;

use super::world::{ROOM, World, user};
use crate::engine::Imported;
use keystead_keybox::interchange::Entry;

fn import(world: &mut World, name: &str, entries: &[Entry]) -> Imported {
    let now = world.now;
    let one = world.boxes.get_mut(name).unwrap();
    let imported = one.engine.import_keys(entries, now, &mut OpensslEntropy, &mut one.notices).unwrap();
    world.restart(name);
    imported
}

/// A room with one message, a KeyBox that misses its key, and the key.
fn scene() -> (World, Vec<Entry>) {
    let mut world = World::new(&["A1", "B1"]);
    world.say("A1", "kept");
    let entries = world.boxes.get_mut("B1").unwrap().engine.export_keys(None);
    world.boxes.remove("A1");
    world.boxes.remove("B1");
    world.add("B2");
    world.settle();
    assert!(world.texts("B2").is_empty());
    (world, entries)
}

#[test]
fn imported_keys_open_what_waits_and_are_not_sent_with() {
    let (mut world, entries) = scene();
    assert_eq!(entries.len(), 1);
    let imported = import(&mut world, "B2", &entries);
    assert_eq!((imported.new.len(), imported.conflicts.len(), imported.refused.len()), (1, 0, 0));
    assert_eq!(world.texts("B2"), ["kept"]);
    assert_eq!(import(&mut world, "B2", &entries).known.len(), 1, "again changes nothing");
    world.post("B2", "new");
    assert_eq!(world.keys_in_use(), 2);
}

#[test]
fn what_does_not_fit_is_refused_and_what_differs_is_reported() {
    let (mut world, entries) = scene();
    let mut wrong_key = entries[0].clone();
    wrong_key.key = "00".repeat(32);
    let mut wrong_room = entries[0].clone();
    wrong_room.room_id.push('x');
    let mut unknown_suite = entries[0].clone();
    unknown_suite.algorithm = "com.trustner.keybox.v9".to_owned();
    let imported = import(&mut world, "B2", &[wrong_key, wrong_room, unknown_suite]);
    assert_eq!((imported.new.len(), imported.refused.len()), (0, 3), "{imported:?}");

    import(&mut world, "B2", &entries);
    let mut other_maker = entries[0].clone();
    other_maker.origin.user_id = user("C1");
    let imported = import(&mut world, "B2", &[other_maker]);
    assert_eq!(imported.conflicts.len(), 1);
    assert_eq!(world.boxes.get_mut("B2").unwrap().engine.export_keys(None), entries, "kept as it was");
}

#[test]
fn only_the_rooms_that_were_named_are_exported() {
    let mut world = World::new(&["A1"]);
    world.say("A1", "text");
    let engine = &mut world.boxes.get_mut("A1").unwrap().engine;
    assert_eq!(engine.export_keys(Some(&[ROOM.to_owned()])).len(), 1);
    assert!(engine.export_keys(Some(&["!other".to_owned()])).is_empty());
}
