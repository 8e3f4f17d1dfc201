use super::*;
use crate::OpensslEntropy;
use crate::encoding::hex;
use crate::entropy::tests::SeededEntropy;
use crate::interchange;
use crate::key_message::Origin;
use crate::primitives::x25519;
use crate::resource_key::ResourceKey;

const VECTOR: &str = include_str!("../../vectors/recovery.json");
const USER: &str = "@alice:example.org";
const ROOM: &str = "!room:example.org";

fn entry() -> interchange::Entry {
    let key = ResourceKey::from_bytes(&[7; 32]).unwrap();
    let origin = Origin {
        user_id: USER.to_owned(),
        keybox_id: "ALICEBOX".to_owned(),
        created_at: 1_790_000_000_000,
        audience: "A".repeat(43),
        signature: vec![1; 64],
    };
    interchange::Entry {
        algorithm: crate::suite::V1.to_owned(),
        room_id: ROOM.to_owned(),
        key_id: key.id(ROOM),
        key: key.to_hex().to_string(),
        origin,
    }
}

fn own_values() -> serde_json::Value {
    let entropy = &mut SeededEntropy::new("recovery");
    let key = RecoveryKey::generate(entropy).unwrap();
    let writer = key.writer().unwrap();
    let sealed = writer.seal(USER, &entry(), entropy).unwrap();
    let private = key.private().unwrap();
    let enc: [u8; 32] = sealed.sealed[..32].try_into().unwrap();
    let dh = x25519(&private, &enc).unwrap();
    let context = hpke::key_schedule(
        &hpke::shared_secret(&dh, &enc, &writer.public),
        info(USER, ROOM, &entry().key_id).as_slice(),
    );
    serde_json::json!({
        "recovery_key": *key.to_text(),
        "user_id": USER,
        "x25519_private_hex": hex(&private.raw_private_key().unwrap()),
        "x25519_public": crate::encoding::base64(&writer.public),
        "mac_key_hex": hex(&*writer.mac_key),
        "auth_data": serde_json::to_string(&writer.head(USER)).unwrap(),
        "room_id": ROOM,
        "key_id": entry().key_id,
        "info_hex": hex(info(USER, ROOM, &entry().key_id).as_slice()),
        "hpke_key_hex": hex(&*context.key),
        "hpke_base_nonce_hex": hex(&*context.base_nonce),
        "plaintext": serde_json::to_string(&entry()).unwrap(),
        "session_data": serde_json::to_string(&sealed).unwrap(),
    })
}

#[test]
fn the_vector_is_what_is_written_and_read() {
    let vector: serde_json::Value = serde_json::from_str(VECTOR).unwrap();
    let own = own_values();
    assert_eq!(vector, own, "{own:#}");
    let text = |name: &str| vector[name].as_str().unwrap();
    let key = RecoveryKey::from_text(text("recovery_key")).unwrap();
    let head: BackupHead = serde_json::from_str(text("auth_data")).unwrap();
    assert!(key.writer().unwrap().is_of(USER, &head));
    let sealed: SealedEntry = serde_json::from_str(text("session_data")).unwrap();
    assert_eq!(key.open(USER, (ROOM, &entry().key_id), &sealed).unwrap(), entry());
}

#[test]
fn a_recovery_key_is_read_as_people_write_and_a_slip_is_noticed() {
    let key = RecoveryKey::generate(&mut OpensslEntropy).unwrap();
    let text = key.to_text();
    assert_eq!((text.len(), text.split(' ').count()), (68 + 16, 17));
    let written = text.to_uppercase().replace(' ', "-\n");
    assert_eq!(*RecoveryKey::from_text(&written).unwrap().0, *key.0);
    for position in (0..text.len()).filter(|index| index % 5 != 4) {
        let mut slipped = text.as_bytes().to_vec();
        slipped[position] = if slipped[position] == b'0' { b'1' } else { b'0' };
        let slipped = String::from_utf8(slipped).unwrap();
        assert_eq!(RecoveryKey::from_text(&slipped).unwrap_err(), RecoveryKeyError::Mistyped);
    }
    for wrong in ["", &text[1..], &text.replace(&text[..1], "x"), &format!("{}0", *text)] {
        assert_eq!(RecoveryKey::from_text(wrong).unwrap_err(), RecoveryKeyError::Malformed);
    }
}

#[test]
fn an_entry_opens_unaltered_in_its_place_with_its_key_only() {
    let key = RecoveryKey::generate(&mut OpensslEntropy).unwrap();
    let writer = BackupWriter::from_bytes(&key.writer().unwrap().to_bytes()).unwrap();
    let sealed = writer.seal(USER, &entry(), &mut OpensslEntropy).unwrap();
    let id = &entry().key_id;
    assert_eq!(key.open(USER, (ROOM, id), &sealed).unwrap(), entry());
    let other = ResourceKey::from_bytes(&[8; 32]).unwrap().id(ROOM);
    for (user, room, id) in [("@bob:example.org", ROOM, id), (USER, "!other", id), (USER, ROOM, &other)] {
        assert!(matches!(key.open(user, (room, id), &sealed), Err(OpenError::NotAuthentic)));
    }
    for index in 0..sealed.sealed.len() {
        let mut altered = sealed.clone();
        altered.sealed[index] ^= 1;
        assert!(key.open(USER, (ROOM, id), &altered).is_err());
        // Whoever has the MAC key alone gets no further: the tag of HPKE is wrong.
        altered.mac = writer.entry_mac(USER, (ROOM, id), &altered.sealed);
        assert!(key.open(USER, (ROOM, id), &altered).is_err(), "{index}");
    }
    let mut altered = sealed.clone();
    altered.mac[31] ^= 1;
    assert!(key.open(USER, (ROOM, id), &altered).is_err());
    let stranger = RecoveryKey::generate(&mut OpensslEntropy).unwrap();
    assert!(stranger.open(USER, (ROOM, id), &sealed).is_err());
    // A server, which knows the public key, cannot make an entry: it does not have the MAC key.
    let mut forger = stranger.writer().unwrap();
    forger.public = writer.public;
    let forged = forger.seal(USER, &entry(), &mut OpensslEntropy).unwrap();
    assert!(key.open(USER, (ROOM, id), &forged).is_err());
}

#[test]
fn an_entry_that_names_another_room_or_key_within_is_refused() {
    let key = RecoveryKey::generate(&mut OpensslEntropy).unwrap();
    let writer = key.writer().unwrap();
    let id = &entry().key_id;
    let plain = serde_json::to_vec(&entry()).unwrap();
    let place = ("!other:example.org", id);
    let info = info(USER, place.0, id);
    let sealed = hpke::seal(&[5; 32], &writer.public, info.as_slice(), &plain).unwrap();
    let mac = writer.entry_mac(USER, place, &sealed);
    assert!(key.open(USER, place, &SealedEntry { sealed, mac }).is_err());
}

#[test]
fn a_head_is_of_one_key_and_one_user() {
    let key = RecoveryKey::generate(&mut OpensslEntropy).unwrap();
    let writer = key.writer().unwrap();
    let head = writer.head(USER);
    assert!(writer.is_of(USER, &head));
    assert!(!writer.is_of("@bob:example.org", &head));
    assert!(!RecoveryKey::generate(&mut OpensslEntropy).unwrap().writer().unwrap().is_of(USER, &head));
    let mut altered = head.clone();
    altered.mac[0] ^= 1;
    assert!(!writer.is_of(USER, &altered));
    let mut altered = head;
    altered.public_key[0] ^= 1;
    assert!(!writer.is_of(USER, &altered));
    for length in [0, 63, 65] {
        assert!(BackupWriter::from_bytes(&vec![0; length]).is_none());
    }
}

#[test]
fn nothing_of_it_is_shown() {
    let key = RecoveryKey::generate(&mut OpensslEntropy).unwrap();
    let shown = format!("{key:?} {:?}", key.writer().unwrap());
    assert_eq!(shown, "RecoveryKey(redacted) BackupWriter(redacted)");
}
