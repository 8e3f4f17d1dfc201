use std::collections::BTreeSet;

use ruma::{MilliSecondsSinceUnixEpoch, device_id, user_id};

use super::*;
use crate::{
    Store, devices,
    store::tests::store,
    streams::{StreamItem, UserChange, read_shards},
};

fn new_key(key_id: &str, json: &str) -> NewKey {
    let algorithm = key_id.split(':').next().unwrap().to_owned();
    NewKey { key_id: key_id.to_owned(), algorithm, json: json.to_owned() }
}

fn wanted(device: &str) -> BTreeSet<Wanted> {
    BTreeSet::from([Wanted {
        user_id: user_id!("@a:x").to_owned(),
        device_id: device.into(),
        algorithm: "alg".to_owned(),
    }])
}

async fn upload(store: &Store, keys: Vec<NewKey>, fallback: Vec<NewKey>) -> Result<(), Error> {
    let (user, device) = (user_id!("@a:x"), device_id!("D"));
    store
        .write("test", |tx| {
            let (keys, fallback) = (keys.clone(), fallback.clone());
            async move {
                tx.lock_shards(&[tx.shards().of_user(user)]).await?;
                let of_device = |key| ((user.to_owned(), device.to_owned()), key);
                let keys = keys.into_iter().map(of_device).collect();
                put_keys(&tx, keys, fallback.into_iter().map(of_device).collect()).await
            }
        })
        .await
}

async fn make_device(store: &Store, device: &str) {
    let device = &devices::Device {
        device_id: device.into(),
        display_name: None,
        last_seen_ts: MilliSecondsSinceUnixEpoch(0_u32.into()),
        last_seen_ip: String::new(),
    };
    let upsert = || vec![devices::upsert([(user_id!("@a:x"), device)])];
    store.write("test", |tx| async move { tx.insert_together(upsert()).await }).await.unwrap();
}

async fn claim_one(store: &Store, device: &str) -> Option<String> {
    let wanted = wanted(device);
    let claimed = store
        .write("test", |tx| {
            let wanted = wanted.clone();
            async move {
                tx.lock_shards(&[tx.shards().of_user(user_id!("@a:x"))]).await?;
                let claimed = claim(&tx, &wanted.iter().collect()).await?;
                note_one_time_keys(&tx, claimed.keys().map(|wanted| wanted.user_id.clone()).collect())
                    .await?;
                Ok::<_, Error>(claimed)
            }
        })
        .await
        .unwrap();
    assert!(claimed.len() <= 1);
    claimed.into_values().next().map(|claimed| claimed.key_id)
}

#[tokio::test]
async fn keys_are_claimed_once_in_the_order_of_their_upload_then_the_fallback_key() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder).await;
    let counts = || {
        store.read("test", |tx| async move {
            let devices = ["D", "NONE"].map(|device| (user_id!("@a:x").to_owned(), device.into()));
            Ok::<_, Error>(one_time_key_counts(&tx, &devices).await?.into_iter().collect::<Vec<_>>())
        })
    };
    assert!(counts().await.unwrap().is_empty());
    make_device(&store, "D").await;
    let device = (user_id!("@a:x").to_owned(), "D".into());
    assert_eq!(counts().await.unwrap(), [(device, BTreeMap::new())], "there is a device, but no key");
    upload(&store, vec![new_key("alg:z", "1"), new_key("alg:y", "2")], vec![]).await.unwrap();
    upload(&store, vec![new_key("alg:a", "3"), new_key("other:b", "4")], vec![new_key("alg:f", "5")])
        .await
        .unwrap();
    assert!(upload(&store, vec![new_key("alg:z", "1")], vec![]).await.unwrap_err().is_conflict());

    assert_eq!(claim_one(&store, "NONE").await, None);
    for expected in ["alg:y", "alg:z", "alg:a", "alg:f", "alg:f"] {
        assert_eq!(claim_one(&store, "D").await.as_deref(), Some(expected));
    }
    let state = || {
        store.read("test", |tx| async move {
            let device = (user_id!("@a:x").to_owned(), device_id!("D").to_owned());
            let counts =
                key_counts(&tx, std::slice::from_ref(&device)).await?.remove(&device).unwrap_or_default();
            Ok::<_, Error>((counts.one_time, Vec::from_iter(counts.unused_fallback)))
        })
    };
    assert_eq!(state().await.unwrap(), (BTreeMap::from([("other".to_owned(), 1)]), vec![]));
    // The same fallback key stays used; another one is not.
    upload(&store, vec![], vec![new_key("alg:f", "5")]).await.unwrap();
    assert!(state().await.unwrap().1.is_empty());
    upload(&store, vec![], vec![new_key("alg:g", "6")]).await.unwrap();
    assert_eq!(state().await.unwrap().1, ["alg"]);
}

#[tokio::test]
async fn concurrent_claims_share_out_the_keys() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder).await;
    let keys = (0..20).map(|n| new_key(&format!("alg:{n:02}"), "{}")).collect();
    upload(&store, keys, vec![]).await.unwrap();
    let claims = (0..30).map(|_| {
        let store = store.clone();
        tokio::spawn(async move { claim_one(&store, "D").await })
    });
    let mut claimed = BTreeSet::new();
    for claim in claims.collect::<Vec<_>>() {
        if let Some(key) = claim.await.unwrap() {
            assert!(claimed.insert(key), "a key was claimed twice");
        }
    }
    assert_eq!(claimed.len(), 20);
}

#[tokio::test]
async fn a_claim_wakes_the_owner() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder).await;
    upload(&store, vec![new_key("alg:a", "1")], vec![]).await.unwrap();
    claim_one(&store, "D").await;
    let shard = store.shards().of_user(user_id!("@a:x"));
    let mut rows =
        store.read("test", |tx| async move { read_shards(&tx, &[(shard, 1)]).await }).await.unwrap();
    let rows = rows.remove(&shard).unwrap_or_default();
    assert_eq!(rows.len(), 1);
    assert!(matches!(&rows[0].item, StreamItem::UserChange { kind: UserChange::OneTimeKeys, .. }));
}

#[tokio::test]
async fn device_keys_are_found_by_user_and_device() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder).await;
    let (a, b) = (user_id!("@a:x"), user_id!("@b:x"));
    let of = |user: &UserId, devices: &[&str]| {
        BTreeMap::from([(user.to_owned(), devices.iter().map(|device| (*device).into()).collect::<Vec<_>>())])
    };
    let found = |wanted: BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>| {
        let store = store.clone();
        async move {
            let keys = store
                .read("test", |tx| {
                    let wanted = wanted.clone();
                    async move { query(&tx, &wanted).await }
                })
                .await
                .unwrap();
            keys.into_iter().map(|keys| keys.json).collect::<BTreeSet<_>>()
        }
    };
    store
        .write("test", |tx| async move {
            put_device_keys(&tx, a, device_id!("D"), "old").await?;
            put_device_keys(&tx, a, device_id!("D"), "a-d").await?;
            put_device_keys(&tx, a, device_id!("E"), "a-e").await?;
            put_device_keys(&tx, b, device_id!("D"), "b-d").await
        })
        .await
        .unwrap();
    assert_eq!(found(of(a, &[])).await, BTreeSet::from(["a-d".to_owned(), "a-e".to_owned()]));
    assert_eq!(found(of(a, &["D", "X"])).await, BTreeSet::from(["a-d".to_owned()]));
    store.write("test", |tx| async move { delete_of_device(&tx, a, device_id!("D")).await }).await.unwrap();
    assert_eq!(found(of(a, &[])).await, BTreeSet::from(["a-e".to_owned()]));
    assert_eq!(found(of(b, &[])).await, BTreeSet::from(["b-d".to_owned()]));
}

mod lists {
    use keystead_core::{shard::Shard, token::SyncToken};
    use ruma::{RoomId, room_id};

    use super::*;

    async fn member(store: &Store, user: &UserId, room: &RoomId, membership: &'static str, position: i64) {
        store
            .write("test", |tx| async move {
                let shard = tx.shards().of_room(room);
                tx.execute(
                    "INSERT INTO rooms (room_id, shard, version, position, depth, extremities) \
                     VALUES ($1, $2, '12', 1, 1, '[]') ON CONFLICT DO NOTHING",
                    [room.as_str().into(), shard.into()],
                )
                .await?;
                tx.execute(
                    "INSERT INTO memberships (user_id, room_id, membership, position) VALUES ($1, $2, $3, $4) \
                     ON CONFLICT (user_id, room_id) DO UPDATE SET membership = $3, position = $4",
                    [user.as_str().into(), room.as_str().into(), membership.into(), position.into()],
                )
                .await
            })
            .await
            .unwrap();
    }

    async fn change(store: &Store, user: &UserId) {
        store
            .write("test", |tx| async move {
                tx.lock_shards(&device_list_shards(&tx, user).await?).await?;
                note_device_list_change(&tx, user).await
            })
            .await
            .unwrap();
    }

    async fn delta(store: &Store, user: &UserId, rooms: i64, own: i64) -> DeviceListDelta {
        let from = SyncToken { rooms: vec![rooms], user: own, typing: Vec::new() };
        store
            .read("test", |tx| {
                let from = from.clone();
                async move { device_list_delta(&tx, user, &from).await }
            })
            .await
            .unwrap()
    }

    fn users(users: &[&UserId]) -> BTreeSet<OwnedUserId> {
        users.iter().map(|user| (*user).to_owned()).collect()
    }

    async fn changes(store: &Store, shard: Shard) -> Vec<OwnedUserId> {
        store
            .read("test", |tx| async move { device_list_changes(&tx, shard, 0, i64::MAX).await })
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn a_change_is_noted_where_the_user_has_rooms_and_in_its_own_shard() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let (a, b) = (user_id!("@a:x"), user_id!("@b:x"));
        let room = store.shards().of_room(room_id!("!r:x"));
        let own = store.shards().of_user(a);
        change(&store, a).await;
        assert!(changes(&store, room).await.is_empty());
        assert_eq!(changes(&store, own).await, [a]);
        member(&store, b, room_id!("!r:x"), "invite", 1).await;
        change(&store, b).await;
        assert_eq!(changes(&store, room).await, [b]);
        member(&store, b, room_id!("!r:x"), "leave", 2).await;
        let shards = store.read("test", |tx| async move { device_list_shards(&tx, b).await }).await.unwrap();
        assert_eq!(shards, [store.shards().of_user(b)]);
    }

    #[tokio::test]
    async fn a_shard_that_was_not_locked_makes_the_transaction_run_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let a = user_id!("@a:x");
        member(&store, a, room_id!("!r:x"), "join", 1).await;
        let result = store
            .write("test", |tx| async move {
                tx.lock_shards(&[tx.shards().of_user(a)]).await?;
                note_device_list_change(&tx, a).await
            })
            .await;
        assert!(result.unwrap_err().is_retryable());
        assert!(changes(&store, store.shards().of_user(a)).await.is_empty());
    }

    #[tokio::test]
    async fn the_delta_names_who_changed_who_came_and_who_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let (a, b, c, d) = (user_id!("@a:x"), user_id!("@b:x"), user_id!("@c:x"), user_id!("@d:x"));
        let (r, s) = (room_id!("!r:x"), room_id!("!s:x"));
        for user in [a, b, c] {
            member(&store, user, r, "join", 1).await;
        }
        member(&store, d, s, "join", 1).await;
        assert_eq!(delta(&store, a, 1, 0).await, DeviceListDelta::default());

        // b and d change; a shares no room with d.
        change(&store, b).await;
        change(&store, d).await;
        assert_eq!(delta(&store, a, 0, 9).await.changed, users(&[b, c]));
        let seen = store.positions().await.unwrap();
        assert_eq!(seen, [(0, 2), (1, 2)]);
        assert_eq!(delta(&store, a, 2, 2).await, DeviceListDelta::default());

        // a changes itself; c leaves; a comes to d.
        change(&store, a).await;
        member(&store, c, r, "leave", 4).await;
        member(&store, a, s, "join", 5).await;
        let expected = DeviceListDelta { changed: users(&[a, d]), left: users(&[c]) };
        assert_eq!(delta(&store, a, 2, 2).await, expected);

        // a goes from b, but still shares a room with d.
        member(&store, d, r, "join", 6).await;
        member(&store, a, r, "leave", 7).await;
        assert_eq!(delta(&store, a, 6, 9).await.left, users(&[b]));
    }
}

#[tokio::test]
async fn keys_carry_the_name_of_their_device_and_go_with_it() {
    use crate::to_device;

    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder).await;
    let (a, b) = (user_id!("@a:x"), user_id!("@b:x"));
    let device = devices::Device {
        device_id: device_id!("D").to_owned(),
        display_name: Some("phone".to_owned()),
        last_seen_ts: ruma::MilliSecondsSinceUnixEpoch(ruma::uint!(1)),
        last_seen_ip: "::1".to_owned(),
    };
    let wanted = BTreeMap::from([(a.to_owned(), Vec::new())]);
    let (named, known, left, waiting) = store
        .write("test", |tx| {
            let (device, wanted) = (device.clone(), wanted.clone());
            async move {
                tx.lock_shards(&[tx.shards().of_user(a)]).await?;
                tx.insert_together(vec![devices::upsert([(a, &device)])]).await?;
                put_device_keys(&tx, a, device_id!("D"), "{}").await?;
                let message = streams::ToDeviceMessage {
                    user_id: a.to_owned(),
                    device_id: device.device_id.clone(),
                    sender: b.to_owned(),
                    message_type: "m.x".to_owned(),
                    content: "{}".to_owned(),
                };
                to_device::append(&tx, &[message]).await?;
                let named = query(&tx, &wanted).await?;
                let known = devices::ids_of_users(&tx, &[a, b]).await?;
                devices::delete(&tx, a, &[device.device_id]).await?;
                let left = query(&tx, &wanted).await?;
                Ok::<_, Error>((named, known, left, to_device::depths(&tx, a).await?))
            }
        })
        .await
        .unwrap();
    assert_eq!(named[0].display_name.as_deref(), Some("phone"));
    assert_eq!(known, BTreeMap::from([(a.to_owned(), vec!["D".into()])]));
    assert!(left.is_empty() && waiting.is_empty());
}
