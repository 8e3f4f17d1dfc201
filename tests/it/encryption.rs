//! What end-to-end encryption asks of the server: keys, their signatures, their changes, their backup.

use keystead_tests::{
    TestCluster, User,
    cluster::{PASSWORD, at},
    http::encode,
    keys::{SigningKey, cross_signing_key, device_keys, fallback_key, one_time_keys},
};
use serde_json::{Value, json};

/// Publishes device keys and gives the key that signed them.
async fn publish(user: &User) -> SigningKey {
    let key = SigningKey::named(&user.device);
    user.post("/keys/upload", json!({ "device_keys": device_keys(user, &key) })).await.ok();
    key
}

#[tokio::test]
async fn device_keys_are_handed_out_as_they_were_signed() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    alice.put(&format!("/devices/{}", alice.device), json!({ "display_name": "phone" })).await.ok();
    let key = SigningKey::named(&alice.device);
    let keys = device_keys(&alice, &key);
    let counts = alice.at(0).post("/keys/upload", json!({ "device_keys": keys })).await.ok();
    assert!(counts["one_time_key_counts"].is_object());

    let answer = bob.at(1).post("/keys/query", json!({ "device_keys": { &alice.id: [] } })).await.ok();
    let mut shown = at(&answer, "/device_keys")[&alice.id][&alice.device].clone();
    assert_eq!(shown["unsigned"]["device_display_name"], "phone");
    shown.as_object_mut().expect("an object").remove("unsigned");
    assert_eq!(shown, keys);

    let one = json!({ "device_keys": { &alice.id: ["NOSUCH"] } });
    let answer = bob.post("/keys/query", one).await.ok();
    assert!(answer["device_keys"][&alice.id].get(&alice.device).is_none(), "{answer}");
}

#[tokio::test]
async fn keys_of_another_device_are_refused() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let key = SigningKey::named(&alice.device);
    let keys = device_keys(&alice, &key);
    let answer = bob.post("/keys/upload", json!({ "device_keys": keys })).await;
    assert_eq!(answer.status, 400, "{}", answer.text);
    let nonsense = alice.post("/keys/upload", json!({ "device_keys": { "user_id": 7 } })).await;
    assert_eq!(nonsense.status, 400, "{}", nonsense.text);
}

#[tokio::test]
async fn each_one_time_key_is_claimed_once_however_many_ask() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let key = publish(&alice).await;
    let upload = json!({
        "one_time_keys": one_time_keys(&alice, &key, 0, 20), "fallback_keys": fallback_key(&alice, &key),
    });
    let counts = alice.post("/keys/upload", upload.clone()).await.ok();
    assert_eq!(counts["one_time_key_counts"]["signed_curve25519"], 20);
    let again = alice.post("/keys/upload", upload).await.ok();
    assert_eq!(again["one_time_key_counts"]["signed_curve25519"], 20, "the same upload adds nothing");

    let claim = json!({ "one_time_keys": { &alice.id: { &alice.device: "signed_curve25519" } } });
    let claims = (0..30).map(|replica| {
        let (bob, claim) = (bob.at(replica), claim.clone());
        async move { bob.post("/keys/claim", claim).await.ok() }
    });
    let answers = futures_util::future::join_all(claims).await;
    let mut claimed: Vec<_> = answers
        .iter()
        .map(|answer| {
            let keys = answer["one_time_keys"][&alice.id][&alice.device].as_object().expect("a key").clone();
            assert_eq!(keys.len(), 1, "{answer}");
            keys.into_iter().next().expect("one").0
        })
        .collect();
    claimed.sort();
    let fallback = claimed.iter().filter(|name| *name == "signed_curve25519:AAAFB").count();
    assert_eq!(fallback, 10, "when the keys are used up the fallback key serves: {claimed:?}");
    claimed.dedup();
    assert_eq!(claimed.len(), 21, "{claimed:?}");

    let answer = alice.sync_once(None).await;
    let left = answer["device_one_time_keys_count"]["signed_curve25519"].as_u64().unwrap_or(0);
    assert_eq!(left, 0);
    assert_eq!(answer["device_unused_fallback_key_types"], json!([]));
}

#[tokio::test]
async fn a_one_time_key_is_never_replaced() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let key = publish(&alice).await;
    alice
        .at(0)
        .post("/keys/upload", json!({ "one_time_keys": one_time_keys(&alice, &key, 1, 1) }))
        .await
        .ok();
    let mut other = one_time_keys(&alice, &key, 2, 1);
    let moved = other.as_object_mut().expect("an object").remove("signed_curve25519:AAA002").expect("a key");
    let upload = json!({ "one_time_keys": { "signed_curve25519:AAA001": moved } });
    assert_eq!(alice.at(1).post("/keys/upload", upload).await.status, 400);
}

#[tokio::test]
async fn other_keys_of_a_device_take_the_place_of_all_it_had() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    let first = publish(&alice).await;
    let upload = json!({ "one_time_keys": one_time_keys(&alice, &first, 1, 5), "fallback_keys": fallback_key(&alice, &first) });
    alice.post("/keys/upload", upload).await.ok();
    let mut bobs = bob.at(1).syncing();
    bobs.until_joined(&room).await;

    let second = SigningKey::named(&alice.device);
    let keys = device_keys(&alice, &second);
    let upload = json!({ "device_keys": keys, "one_time_keys": one_time_keys(&alice, &second, 1, 2) });
    let counts = alice.at(1).post("/keys/upload", upload).await.ok();
    assert_eq!(counts["one_time_key_counts"]["signed_curve25519"], 2, "those of the former keys are gone");
    bobs.until("alice's other keys", |answer| {
        answer["device_lists"]["changed"].as_array()?.contains(&json!(alice.id)).then_some(())
    })
    .await;
    let shown = bob.post("/keys/query", json!({ "device_keys": { &alice.id: [] } })).await.ok();
    assert_eq!(shown["device_keys"][&alice.id][&alice.device]["keys"], keys["keys"]);
    let claim = json!({ "one_time_keys": { &alice.id: { &alice.device: "signed_curve25519" } } });
    for number in 0..3 {
        let claimed = bob.at(number).post("/keys/claim", claim.clone()).await.ok();
        let of_alice = claimed["one_time_keys"].get(&alice.id);
        assert_eq!(of_alice.is_some(), number < 2, "the former fallback key is gone, too: {claimed}");
    }
}

#[tokio::test]
async fn changes_of_devices_show_in_the_syncs_of_those_who_share_a_room() {
    let cluster = TestCluster::start().await;
    let (alice, bob, eve) =
        (cluster.user("alice").await, cluster.user("bob").await, cluster.user("eve").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    let mut bobs = bob.at(1).syncing();
    bobs.until_joined(&room).await;
    let before = bobs.since().expect("a token").to_owned();
    let mut eves = eve.syncing();
    eves.next(0).await;
    let lists = |answer: &Value, list: &str, user: &User| {
        answer["device_lists"][list].as_array().is_some_and(|users| users.contains(&json!(user.id)))
    };

    publish(&alice.at(0)).await;
    bobs.until("alice's new keys", |answer| lists(answer, "changed", &alice).then_some(())).await;
    let after = bobs.since().expect("a token").to_owned();
    assert!(!lists(&eves.next(0).await, "changed", &alice), "eve shares no room with her");
    let path = format!("/keys/changes?from={}&to={}", encode(&before), encode(&after));
    let changes = bob.at(0).get(&path).await.ok();
    assert_eq!(changes["changed"], json!([alice.id]));

    let tablet = cluster.login("alice").await;
    publish(&tablet).await;
    bobs.until("alice's tablet", |answer| lists(answer, "changed", &alice).then_some(())).await;
    tablet.post("/logout", json!({})).await.ok();
    bobs.until("the tablet is gone", |answer| lists(answer, "changed", &alice).then_some(())).await;
    let answer = bob.post("/keys/query", json!({ "device_keys": { &alice.id: [] } })).await.ok();
    let devices = answer["device_keys"][&alice.id].as_object().expect("devices");
    assert_eq!(devices.keys().collect::<Vec<_>>(), [&alice.device]);

    // Those who come to share a room learn of each other; those who part no longer.
    eve.join(&room).await;
    bobs.until("eve is new", |answer| lists(answer, "changed", &eve).then_some(())).await;
    eves.until("the others are new", |answer| lists(answer, "changed", &alice).then_some(())).await;
    alice.leave(&room).await;
    bobs.until("alice left", |answer| lists(answer, "left", &alice).then_some(())).await;
}

#[tokio::test]
async fn cross_signing_keys_are_shown_to_whom_they_concern() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let device = publish(&alice).await;
    let (master, selfs, users) = (SigningKey::anonymous(), SigningKey::anonymous(), SigningKey::anonymous());
    let upload = json!({
        "master_key": cross_signing_key(&alice, "master", &master, &[&device]),
        "self_signing_key": cross_signing_key(&alice, "self_signing", &selfs, &[&master]),
        "user_signing_key": cross_signing_key(&alice, "user_signing", &users, &[&master]),
    });
    upload_cross_signing(&alice, upload.clone()).await;

    let query = json!({ "device_keys": { &alice.id: [] } });
    let own = alice.at(0).post("/keys/query", query.clone()).await.ok();
    let others = bob.at(1).post("/keys/query", query.clone()).await.ok();
    for answer in [&own, &others] {
        assert_eq!(answer["master_keys"][&alice.id]["keys"], upload["master_key"]["keys"]);
        assert_eq!(answer["self_signing_keys"][&alice.id]["keys"], upload["self_signing_key"]["keys"]);
    }
    assert_eq!(own["user_signing_keys"][&alice.id]["keys"], upload["user_signing_key"]["keys"]);
    assert!(others["user_signing_keys"].get(&alice.id).is_none(), "{others}");

    // The device is signed by the owner's self-signing key, and everybody sees the signature.
    let signed = selfs.sign(&alice.id, device_keys(&alice, &device));
    let body = json!({ &alice.id: { &alice.device: signed } });
    let answer = alice.post("/keys/signatures/upload", body).await.ok();
    assert_eq!(answer.get("failures").unwrap_or(&json!({})), &json!({}));
    let shown = bob.post("/keys/query", query.clone()).await.ok();
    let signatures = &shown["device_keys"][&alice.id][&alice.device]["signatures"][&alice.id];
    assert!(signatures.get(format!("ed25519:{}", selfs.id)).is_some(), "{signatures}");
    assert!(signatures.get(format!("ed25519:{}", alice.device)).is_some(), "{signatures}");
}

#[tokio::test]
async fn a_cross_signing_key_that_the_master_key_did_not_sign_is_refused() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let (master, selfs, other) = (SigningKey::anonymous(), SigningKey::anonymous(), SigningKey::anonymous());
    let mut forged = cross_signing_key(&alice, "self_signing", &selfs, &[&master]);
    let name = format!("ed25519:{}", master.id);
    let by_other = cross_signing_key(&alice, "self_signing", &selfs, &[&other]);
    forged["signatures"][&alice.id][&name] =
        by_other["signatures"][&alice.id][format!("ed25519:{}", other.id)].clone();
    let upload = json!({
        "master_key": cross_signing_key(&alice, "master", &master, &[]), "self_signing_key": forged,
    });
    let answer = alice.post("/keys/device_signing/upload", with_password(&alice, upload).await).await;
    assert_eq!(answer.status, 400, "{}", answer.text);
    assert!(["M_INVALID_SIGNATURE", "M_INVALID_PARAM"].contains(&answer.errcode()), "{}", answer.text);
    let own = alice.post("/keys/query", json!({ "device_keys": { &alice.id: [] } })).await.ok();
    assert!(own["master_keys"].get(&alice.id).is_none(), "nothing of a refused upload stays: {own}");
}

/// Uploads cross-signing keys; the first ones of a user may need no password.
async fn upload_cross_signing(user: &User, upload: Value) {
    let answer = user.post("/keys/device_signing/upload", upload.clone()).await;
    if answer.status == 401 {
        let body = with_session(user, upload, &answer.body["session"]);
        user.post("/keys/device_signing/upload", body).await.ok();
    } else {
        answer.ok();
    }
}

/// The body with the password stage completed, or the body itself where no stage is asked for.
async fn with_password(user: &User, body: Value) -> Value {
    let challenge = user.post("/keys/device_signing/upload", json!({})).await;
    if challenge.status == 401 { with_session(user, body, &challenge.body["session"]) } else { body }
}

fn with_session(user: &User, mut body: Value, session: &Value) -> Value {
    body["auth"] = json!({
        "type": "m.login.password", "session": session, "password": PASSWORD,
        "identifier": { "type": "m.id.user", "user": user.id },
    });
    body
}

#[tokio::test]
async fn replacing_cross_signing_keys_asks_for_the_password() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let (first, second) = (SigningKey::anonymous(), SigningKey::anonymous());
    let upload = |key: &SigningKey| json!({ "master_key": cross_signing_key(&alice, "master", key, &[]) });
    upload_cross_signing(&alice, upload(&first)).await;
    let challenge = alice.post("/keys/device_signing/upload", upload(&second)).await;
    assert_eq!(challenge.status, 401, "{}", challenge.text);
    let body = with_session(&alice, upload(&second), &challenge.body["session"]);
    alice.post("/keys/device_signing/upload", body).await.ok();
}

#[tokio::test]
async fn a_key_backup_keeps_the_best_key_and_counts_its_changes() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    alice.get("/room_keys/version").await.refused(404, "M_NOT_FOUND");
    let auth = json!({ "public_key": "abc", "signatures": {} });
    let create = json!({ "algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": auth });
    let made = alice.at(0).post("/room_keys/version", create).await.ok();
    let version = at(&made, "/version").as_str().expect("text").to_owned();
    let current = alice.at(1).get("/room_keys/version").await.ok();
    assert_eq!((&current["version"], &current["count"]), (&json!(version), &json!(0)));
    bob.get(&format!("/room_keys/version/{version}")).await.refused(404, "M_NOT_FOUND");

    let room = encode("!room:keystead.test");
    let path = format!("/room_keys/keys/{room}/session?version={version}");
    let key = |first: u32, forwarded: u32, verified: bool| {
        json!({
            "first_message_index": first, "forwarded_count": forwarded, "is_verified": verified,
            "session_data": { "ciphertext": format!("{first}-{forwarded}-{verified}") },
        })
    };
    let one = alice.at(0).put(&path, key(5, 1, false)).await.ok();
    assert_eq!(one["count"], 1);
    let worse = alice.at(1).put(&path, key(9, 0, false)).await.ok();
    assert_eq!(worse["etag"], one["etag"], "a worse key changes nothing");
    assert_eq!(alice.get(&path).await.ok()["first_message_index"], 5);
    let better = alice.put(&path, key(5, 1, true)).await.ok();
    assert_ne!(better["etag"], one["etag"]);
    assert_eq!(alice.at(0).get(&path).await.ok()["is_verified"], true);

    let all = json!({ "rooms": { "!other:keystead.test": { "sessions": { "s2": key(0, 0, true) } } } });
    let count = alice.put(&format!("/room_keys/keys?version={version}"), all).await.ok();
    assert_eq!(count["count"], 2);
    let everything = alice.get(&format!("/room_keys/keys?version={version}")).await.ok();
    assert_eq!(everything["rooms"].as_object().expect("rooms").len(), 2);
    alice.get(&format!("/room_keys/keys/{room}/none?version={version}")).await.refused(404, "M_NOT_FOUND");

    let newer = alice
        .post(
            "/room_keys/version",
            json!({ "algorithm": "m.megolm_backup.v1.curve25519-aes-sha2",
            "auth_data": { "public_key": "def", "signatures": {} } }),
        )
        .await
        .ok();
    let wrong = alice.put(&path, key(0, 0, true)).await.refused(403, "M_WRONG_ROOM_KEYS_VERSION");
    assert_eq!(wrong["current_version"], newer["version"]);
    alice.delete(&format!("/room_keys/version/{version}")).await.ok();
    alice.get(&path).await.refused(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn whom_a_user_has_verified_is_known_to_that_user_alone() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    let (master, users) = (SigningKey::anonymous(), SigningKey::anonymous());
    let upload = json!({
        "master_key": cross_signing_key(&alice, "master", &master, &[]),
        "user_signing_key": cross_signing_key(&alice, "user_signing", &users, &[&master]),
    });
    upload_cross_signing(&alice, upload).await;
    let bobs = SigningKey::anonymous();
    let bobs_master = cross_signing_key(&bob, "master", &bobs, &[]);
    upload_cross_signing(&bob, json!({ "master_key": &bobs_master })).await;
    let device = publish(&bob).await;

    let mut alices = cluster.login("alice").await.syncing();
    alices.next(0).await;
    let signed = users.sign(&alice.id, bobs_master.clone());
    let mut altered = signed.clone();
    altered["usage"] = json!(["master", "self_signing"]);
    let upload = |key: &Value| json!({ &bob.id: { &bobs.id: key } });
    let failure = |answer: &Value, key: &str| answer["failures"][&bob.id][key]["errcode"].clone();

    // Neither something else than what bob published, nor by a key that does not sign others, nor his device.
    let answer = alice.post("/keys/signatures/upload", upload(&altered)).await.ok();
    assert_eq!(failure(&answer, &bobs.id), "M_INVALID_SIGNATURE");
    let by_master = master.sign(&alice.id, bobs_master.clone());
    let answer = alice.post("/keys/signatures/upload", upload(&by_master)).await.ok();
    assert_eq!(failure(&answer, &bobs.id), "M_INVALID_SIGNATURE");
    let his_device = users.sign(&alice.id, device_keys(&bob, &device));
    let both = json!({ &bob.id: { &bobs.id: &signed, &bob.device: his_device } });
    let answer = alice.post("/keys/signatures/upload", both).await.ok();
    assert_eq!(failure(&answer, &bob.device), "M_NOT_FOUND");
    assert!(answer["failures"][&bob.id].get(&bobs.id).is_none(), "the good one is taken: {answer}");

    alices
        .until("bob is verified", |answer| {
            let changed = answer["device_lists"]["changed"].as_array()?;
            changed.contains(&json!(bob.id)).then_some(())
        })
        .await;
    let query = json!({ "device_keys": { &bob.id: [] } });
    let seen = alice.post("/keys/query", query.clone()).await.ok();
    let signatures = &seen["master_keys"][&bob.id]["signatures"];
    assert!(signatures[&alice.id].get(format!("ed25519:{}", users.id)).is_some(), "{seen}");
    let seen = bob.post("/keys/query", query).await.ok();
    assert!(seen["master_keys"][&bob.id]["signatures"].get(&alice.id).is_none(), "{seen}");
}

/// The names that a query through each of the replicas shows for two devices of one user.
async fn shown_names(viewer: &User, owner: &str, devices: [&str; 2]) -> Vec<[String; 2]> {
    let query = &json!({ "device_keys": { owner: [] } });
    let ask = |replica: usize| async move {
        let answer = viewer.at(replica).post("/keys/query", query.clone()).await.ok();
        devices.map(|device| {
            let name = &answer["device_keys"][owner][device]["unsigned"]["device_display_name"];
            name.as_str().unwrap_or_default().to_owned()
        })
    };
    futures_util::future::join_all((0..2).map(ask)).await
}

#[tokio::test]
async fn every_replica_forgets_published_keys_when_they_change() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let tablet = cluster.login("alice").await;
    publish(&alice).await;
    publish(&tablet).await;
    let devices = [&*alice.device, &*tablet.device];
    let done = std::sync::atomic::AtomicBool::new(false);
    // Both devices are named again and again while others ask: what was named is seen at once, whatever is being read or changed
    // meanwhile.
    let rename = |user: &User, index: usize| {
        let (user, viewer) = (user.clone(), bob.clone());
        async move {
            for turn in 0..40 {
                let name = format!("{turn}");
                let path = format!("/devices/{}", user.device);
                user.at(turn).put(&path, json!({ "display_name": &name })).await.ok();
                for names in shown_names(&viewer, &user.id, devices).await {
                    assert_eq!(names[index], name);
                }
            }
        }
    };
    let ask = async {
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            shown_names(&alice, &alice.id, devices).await;
        }
    };
    let renames = async {
        futures_util::future::join(rename(&alice, 0), rename(&tablet, 1)).await;
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    futures_util::future::join(renames, ask).await;

    tablet.at(0).post("/logout", json!({})).await.ok();
    for names in shown_names(&bob, &alice.id, devices).await {
        assert_eq!(names, ["39", ""], "the tablet is gone");
    }
}

#[tokio::test]
async fn a_remembered_key_shows_signatures_to_their_signers_alone() {
    let cluster = TestCluster::start().await;
    let bob = cluster.user("bob").await;
    let bobs = SigningKey::anonymous();
    let master = cross_signing_key(&bob, "master", &bobs, &[]);
    upload_cross_signing(&bob, json!({ "master_key": &master })).await;
    let query = json!({ "device_keys": { &bob.id: [] } });
    let signers = |user: User| {
        let (query, bob) = (query.clone(), bob.id.clone());
        async move {
            let mut seen = Vec::new();
            for replica in [0, 1, 0, 1] {
                let answer = user.at(replica).post("/keys/query", query.clone()).await.ok();
                let signatures = answer["master_keys"][&bob]["signatures"].as_object().cloned();
                seen.push(signatures.unwrap_or_default().keys().cloned().collect::<Vec<_>>());
            }
            seen.dedup();
            assert_eq!(seen.len(), 1, "the replicas agree, and so do database and memory: {seen:?}");
            seen.remove(0)
        }
    };
    let eve = cluster.user("eve").await;
    assert_eq!(signers(eve.clone()).await, [""; 0]);
    let mut verifiers = Vec::new();
    for (replica, name) in ["alice", "carol"].into_iter().enumerate() {
        let user = cluster.user(name).await;
        let (own, users) = (SigningKey::anonymous(), SigningKey::anonymous());
        let upload = json!({
            "master_key": cross_signing_key(&user, "master", &own, &[]),
            "user_signing_key": cross_signing_key(&user, "user_signing", &users, &[&own]),
        });
        upload_cross_signing(&user, upload).await;
        let signed = users.sign(&user.id, master.clone());
        let body = json!({ &bob.id: { &bobs.id: signed } });
        let answer = user.at(replica).post("/keys/signatures/upload", body).await.ok();
        assert_eq!(answer["failures"], json!({}));
        assert_eq!(signers(user.clone()).await, std::slice::from_ref(&user.id));
        verifiers.push(user);
    }
    for verifier in &verifiers {
        assert_eq!(signers(verifier.clone()).await, std::slice::from_ref(&verifier.id));
    }
    assert_eq!(signers(eve).await, [""; 0]);
    assert_eq!(signers(bob.clone()).await, [""; 0]);
}
