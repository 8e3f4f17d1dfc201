use keystead_keybox::OpensslEntropy;

use super::*;

const PASSPHRASE: &str = "correct horse battery";

fn account(user: &str, keybox: &str) -> Account {
    let server = "http://127.0.0.1:8008".to_owned();
    Account { server, user_id: user.to_owned(), keybox_id: keybox.to_owned() }
}

fn create(home: &Path, account: &Account) -> Store {
    let keys = PrivateKeySet::generate(&account.user_id, &account.keybox_id, &mut OpensslEntropy).unwrap();
    Store::create(home, account.clone(), &keys, (PASSPHRASE, PassphraseMode::Advanced), &mut OpensslEntropy)
        .unwrap()
}

fn record(name: &str, json: &str) -> Record {
    Record { name: name.to_owned(), json: json.as_bytes().to_vec().into() }
}

#[test]
fn records_come_back_after_opening_again() {
    let home = tempfile::tempdir().unwrap();
    let account = account("@alice:localhost:8008", "ABC");
    let store = create(home.path(), &account);
    store.save(&[record("room !a", "{\"a\":1}"), record("exchange", "{}")], &mut OpensslEntropy).unwrap();
    store.save(&[record("room !a", "{\"a\":2}")], &mut OpensslEntropy).unwrap();

    let (store, keys) = Store::open(home.path(), account.clone(), PASSPHRASE).unwrap();
    assert_eq!((keys.user_id(), keys.keybox_id()), ("@alice:localhost:8008", "ABC"));
    let mut loaded: Vec<_> = store
        .load()
        .unwrap()
        .into_iter()
        .map(|record| (record.name, String::from_utf8(record.json.to_vec()).unwrap()))
        .collect();
    loaded.sort();
    assert_eq!(loaded, [("exchange".into(), "{}".into()), ("room !a".into(), "{\"a\":2}".into())]);
    assert_eq!(*store.load_one("exchange").unwrap().unwrap().json, b"{}");
    assert!(store.load_one("none").unwrap().is_none());

    let refused = Store::open(home.path(), account, "wrong").unwrap_err();
    assert!(matches!(refused, StoreError::Keys(SealedKeysError::WrongPassphrase)));
}

#[test]
fn nothing_on_disk_shows_names_or_content() {
    let home = tempfile::tempdir().unwrap();
    let store = create(home.path(), &account("@alice:x", "ABC"));
    store.save(&[record("room !secret", "{\"body\":\"secret\"}")], &mut OpensslEntropy).unwrap();
    for path in files::regular_files(&store.folder.join(RECORDS)).unwrap() {
        assert!(!path.to_string_lossy().contains("secret"));
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(6).any(|window| window == b"secret"));
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn an_altered_or_swapped_file_is_noticed() {
    let home = tempfile::tempdir().unwrap();
    let store = create(home.path(), &account("@alice:x", "ABC"));
    store.save(&[record("one", "1"), record("two", "2")], &mut OpensslEntropy).unwrap();
    let path = |name: &str| store.folder.join(RECORDS).join(file_name(name));
    std::fs::copy(path("one"), path("two")).unwrap();
    assert!(matches!(store.load_one("two"), Err(StoreError::Corrupt { .. })));
    std::fs::write(path("one"), b"short").unwrap();
    assert!(matches!(store.load(), Err(StoreError::Corrupt { .. })));
}

#[test]
fn a_file_left_half_written_by_a_crash_is_passed_over() {
    let home = tempfile::tempdir().unwrap();
    let store = create(home.path(), &account("@alice:x", "ABC"));
    store.save(&[record("one", "1")], &mut OpensslEntropy).unwrap();
    std::fs::write(store.folder.join(RECORDS).join(file_name("one")).with_extension("tmp"), b"half").unwrap();
    assert_eq!(store.load().unwrap().len(), 1);
}

#[test]
fn one_home_holds_several_keyboxes() {
    let home = tempfile::tempdir().unwrap();
    assert!(Store::accounts(&home.path().join("none")).unwrap().is_empty());
    let all = [account("@alice:x", "A1"), account("@alice:x", "A2"), account("@bob:x", "B1")];
    for account in &all {
        create(home.path(), account);
    }
    assert_eq!(Store::accounts(home.path()).unwrap(), all);
    let (store, _) = Store::open(home.path(), all[0].clone(), PASSPHRASE).unwrap();
    store.destroy().unwrap();
    assert_eq!(Store::accounts(home.path()).unwrap(), all[1..]);
}

#[test]
fn another_address_is_remembered_and_nothing_else_changes() {
    let home = tempfile::tempdir().unwrap();
    let account = account("@alice:x", "ABC");
    create(home.path(), &account).save(&[record("one", "1")], &mut OpensslEntropy).unwrap();
    let moved = Store::set_server(home.path(), &account, "https://x".to_owned()).unwrap();
    assert_eq!(moved.server, "https://x");
    assert_eq!(Store::accounts(home.path()).unwrap(), std::slice::from_ref(&moved));
    let (store, _) = Store::open(home.path(), moved, PASSPHRASE).unwrap();
    assert_eq!(store.load().unwrap().len(), 1);
}

#[test]
fn only_one_holds_the_lock() {
    let home = tempfile::tempdir().unwrap();
    let account = account("@alice:x", "ABC");
    let store = create(home.path(), &account);
    let (other, _) = Store::open(home.path(), account, PASSPHRASE).unwrap();
    let lock = store.try_lock().unwrap().unwrap();
    assert!(other.try_lock().unwrap().is_none());
    drop(lock);
    assert!(other.try_lock().unwrap().is_some());
}
