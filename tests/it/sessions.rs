//! Accounts, sessions and devices, each step through another replica.

use hyper::Method;
use keystead_tests::{
    TestCluster, User,
    cluster::{PASSWORD, SHARED_SECRET, at},
    eventually,
    http::Request,
    user::in_room,
};
use openssl::{hash::MessageDigest, pkey::PKey, sign::Signer};
use serde_json::{Value, json};

fn post(path: &str, body: &Value) -> Request {
    Request::new(Method::POST, format!("/_matrix/client/v3{path}")).json(body)
}

fn get(path: &str) -> Request {
    Request::new(Method::GET, format!("/_matrix/client/v3{path}"))
}

fn password_login(name: &str, password: &str) -> Value {
    json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": name },
        "password": password,
    })
}

#[tokio::test]
async fn registration_asks_for_a_stage_and_then_makes_a_session() {
    let cluster = TestCluster::start().await;
    let body = json!({ "username": "alice", "password": PASSWORD });
    let challenge = cluster.send(post("/register", &body)).await;
    assert_eq!(challenge.status, 401, "{}", challenge.text);
    assert!(challenge.body.get("errcode").is_none(), "the first answer is not an error: {}", challenge.text);
    let flows = at(&challenge.body, "/flows").as_array().expect("flows");
    assert!(flows.iter().any(|flow| flow["stages"] == json!(["m.login.dummy"])), "{flows:?}");
    let session = at(&challenge.body, "/session").clone();

    let body = json!({
        "username": "alice", "password": PASSWORD, "device_id": "PHONE",
        "initial_device_display_name": "Alice's phone",
        "auth": { "type": "m.login.dummy", "session": session },
    });
    let alice = User::from_login(&cluster, &cluster.send(post("/register", &body)).await.ok());
    assert_eq!((&*alice.id, &*alice.device), ("@alice:keystead.test", "PHONE"));
    for replica in 0..2 {
        let me = alice.at(replica).get("/account/whoami").await.ok();
        assert_eq!(me["user_id"], "@alice:keystead.test");
        assert_eq!(me["device_id"], "PHONE");
        let phone = alice.at(replica).get("/devices/PHONE").await.ok();
        assert_eq!(phone["display_name"], "Alice's phone");
    }
}

#[tokio::test]
async fn a_registration_whose_answer_was_lost_is_answered_again() {
    let cluster = TestCluster::start().await;
    for name in [json!({}), json!({ "username": "Alice" })] {
        let body = |session: &Value, password: &str| {
            let mut body = name.clone();
            body["password"] = json!(password);
            body["auth"] = json!({ "type": "m.login.dummy", "session": session });
            body
        };
        let session = cluster.send(post("/register", &name)).await.body["session"].clone();
        let first = cluster.send_to(0, post("/register", &body(&session, PASSWORD))).await.ok();
        let again = cluster.send_to(1, post("/register", &body(&session, PASSWORD))).await.ok();
        assert_eq!(again["user_id"], first["user_id"]);
        for answer in [&first, &again] {
            User::from_login(&cluster, answer).get("/account/whoami").await.ok();
        }
        // The session alone lets nobody in, and registers nobody else.
        let mut other = body(&session, PASSWORD);
        other["username"] = json!("mallory");
        for body in [body(&session, "Wrong-horse-9-battery?"), other] {
            let answer = cluster.send_to(1, post("/register", &body)).await;
            assert_eq!((answer.status, &answer.body["completed"]), (401, &json!(["m.login.dummy"])));
            assert!(answer.body.get("access_token").is_none(), "{}", answer.text);
        }
        let unknown = body(&json!("unknown"), PASSWORD);
        assert_eq!(cluster.send(post("/register", &unknown)).await.status, 400);
    }
}

#[tokio::test]
async fn a_sync_that_waits_ends_with_its_session() {
    let cluster = TestCluster::start().await;
    cluster.user("alice").await;
    let phone = cluster.login("alice").await;
    let since = phone.at(1).sync_once(None).await["next_batch"].as_str().expect("a token").to_owned();
    let there = phone.at(1);
    let waiting = tokio::spawn(async move { there.get(&format!("/sync?timeout=50000&since={since}")).await });
    eventually("the long-poll waits", || async {
        let metrics = cluster.send_to(1, Request::new(Method::GET, "/metrics")).await.text;
        metrics.lines().any(|line| line == "keystead_sync_waiters 1").then_some(())
    })
    .await;
    phone.at(0).post("/logout", json!({})).await.ok();
    waiting.await.expect("an answer").refused(401, "M_UNKNOWN_TOKEN");
}

#[tokio::test]
async fn registration_refuses_names_that_are_taken_or_malformed() {
    let cluster = TestCluster::start().await;
    let register = |name: &str| {
        post(
            "/register",
            &json!({ "username": name, "password": PASSWORD, "auth": { "type": "m.login.dummy" } }),
        )
    };
    cluster.user("alice").await;
    for _ in 0..2 {
        cluster.send(register("alice")).await.refused(400, "M_USER_IN_USE");
        cluster.send(get("/register/available?username=alice")).await.refused(400, "M_USER_IN_USE");
    }
    for name in ["with space", "ümlaut", "a/../b\n", "@x:y", &"x".repeat(300)] {
        cluster.send(register(name)).await.refused(400, "M_INVALID_USERNAME");
    }
    assert_eq!(cluster.send(get("/register/available?username=bob")).await.ok()["available"], true);

    let body = json!({ "username": "bob", "password": PASSWORD, "inhibit_login": true,
        "auth": { "type": "m.login.dummy" } });
    let answer = cluster.send(post("/register", &body)).await.ok();
    assert_eq!(answer["user_id"], "@bob:keystead.test");
    assert!(answer.get("access_token").is_none());
    cluster.login("bob").await;
}

#[tokio::test]
async fn capitals_in_a_username_mean_small_letters() {
    let cluster = TestCluster::start().await;
    let auth = json!({ "type": "m.login.dummy" });
    let body = json!({ "username": "Alice", "password": PASSWORD, "auth": auth });
    assert_eq!(cluster.send(post("/register", &body)).await.ok()["user_id"], "@alice:keystead.test");
    let body = json!({ "username": "ALICE", "password": PASSWORD, "auth": auth });
    cluster.send(post("/register", &body)).await.refused(400, "M_USER_IN_USE");
    for user in ["Alice", "@ALICE:keystead.test", "alice"] {
        let identifier = json!({ "type": "m.id.user", "user": user });
        let body = json!({ "type": "m.login.password", "identifier": identifier, "password": PASSWORD });
        assert_eq!(cluster.send(post("/login", &body)).await.ok()["user_id"], "@alice:keystead.test");
    }
}

#[tokio::test]
async fn two_registrations_of_one_name_at_once_make_one_account() {
    let cluster = TestCluster::start().await;
    let body = json!({ "username": "alice", "password": PASSWORD, "auth": { "type": "m.login.dummy" } });
    let both = (0..8).map(|replica| cluster.send_to(replica, post("/register", &body)));
    let answers = futures_util::future::join_all(both).await;
    let made = answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!(made, 1, "{answers:?}");
    for answer in answers.into_iter().filter(|answer| answer.status != 200) {
        answer.refused(400, "M_USER_IN_USE");
    }
}

#[tokio::test]
async fn login_wants_the_right_password() {
    let cluster = TestCluster::start().await;
    cluster.user("alice").await;
    let flows = cluster.send(get("/login")).await.ok();
    let flows = at(&flows, "/flows").as_array().expect("flows").clone();
    assert!(flows.iter().any(|flow| flow["type"] == "m.login.password"), "{flows:?}");

    cluster.send(post("/login", &password_login("alice", "wrong"))).await.refused(403, "M_FORBIDDEN");
    cluster.send(post("/login", &password_login("nobody", PASSWORD))).await.refused(403, "M_FORBIDDEN");
    cluster.send(post("/login", &json!({ "type": "com.example.unknown" }))).await.refused(400, "M_UNKNOWN");
    cluster.send(post("/login", &json!({}))).await.refused(400, "M_BAD_JSON");

    for name in ["alice", "@alice:keystead.test"] {
        let answer = cluster.send(post("/login", &password_login(name, PASSWORD))).await.ok();
        assert_eq!(answer["user_id"], "@alice:keystead.test");
    }
    // The form without an identifier, which old clients send.
    let old = json!({ "type": "m.login.password", "user": "alice", "password": PASSWORD });
    cluster.send(post("/login", &old)).await.ok();
}

#[tokio::test]
async fn a_second_login_of_a_device_ends_its_first_session() {
    let cluster = TestCluster::start().await;
    cluster.user("alice").await;
    let mut login = password_login("alice", PASSWORD);
    login["device_id"] = "LAPTOP".into();
    let first = User::from_login(&cluster, &cluster.send(post("/login", &login)).await.ok());
    let second = User::from_login(&cluster, &cluster.send(post("/login", &login)).await.ok());
    assert_eq!((&*first.device, &*second.device), ("LAPTOP", "LAPTOP"));
    assert_ne!(first.token, second.token);
    for replica in 0..2 {
        first.at(replica).get("/account/whoami").await.refused(401, "M_UNKNOWN_TOKEN");
        second.at(replica).get("/account/whoami").await.ok();
    }
}

#[tokio::test]
async fn logout_holds_on_all_replicas_at_once() {
    let cluster = TestCluster::start().await;
    let phone = cluster.user("alice").await;
    let laptop = cluster.login("alice").await;
    let tablet = cluster.login("alice").await;
    laptop.at(1).get("/account/whoami").await.ok();
    laptop.at(0).post("/logout", json!({})).await.ok();
    laptop.at(1).get("/account/whoami").await.refused(401, "M_UNKNOWN_TOKEN");
    let devices = phone.at(1).get("/devices").await.ok();
    assert_eq!(at(&devices, "/devices").as_array().expect("a list").len(), 2, "{devices}");

    phone.at(0).post("/logout/all", json!({})).await.ok();
    for session in [&phone, &tablet] {
        session.at(1).get("/account/whoami").await.refused(401, "M_UNKNOWN_TOKEN");
    }
}

#[tokio::test]
async fn nothing_is_sent_in_a_session_that_has_ended_through_another_replica() {
    let cluster = TestCluster::start().await;
    let phone = cluster.user("alice").await;
    let room = phone.create_public_room().await;
    let laptops = async |count: usize| {
        let mut laptops = Vec::new();
        for _ in 0..count {
            let laptop = cluster.login("alice").await;
            // The other replica knows the session and the room from now on.
            laptop.at(1).send_text(&room, "still here").await;
            laptops.push(laptop);
        }
        laptops
    };
    let path = in_room(&room, "/send/m.room.message/after");
    let message = json!({ "msgtype": "m.text", "body": "too late" });
    for laptop in laptops(5).await {
        laptop.at(0).post("/logout", json!({})).await.ok();
        laptop.at(1).put(&path, message.clone()).await.refused(401, "M_UNKNOWN_TOKEN");
    }
    let laptops = laptops(2).await;
    phone.at(0).post("/logout/all", json!({})).await.ok();
    for session in laptops.iter().chain([&phone]) {
        session.at(1).put(&path, message.clone()).await.refused(401, "M_UNKNOWN_TOKEN");
    }
    let reader = cluster.user("bob").await;
    reader.join(&room).await;
    let messages = reader.get(&in_room(&room, "/messages?dir=b&limit=50")).await.text;
    assert_eq!(messages.matches("still here").count(), 7, "{messages}");
    assert!(!messages.contains("too late"), "{messages}");
}

#[tokio::test]
async fn a_refresh_token_gives_a_new_session_once() {
    let cluster = TestCluster::start().await;
    cluster.user("alice").await;
    let mut login = password_login("alice", PASSWORD);
    login["refresh_token"] = true.into();
    let first = User::from_login(&cluster, &cluster.send(post("/login", &login)).await.ok());
    assert!(at(&first.login, "/expires_in_ms").as_u64().is_some_and(|time| time > 0));
    let refresh_token = at(&first.login, "/refresh_token").clone();

    let refresh = post("/refresh", &json!({ "refresh_token": refresh_token }));
    let answer = cluster.send(refresh.clone()).await.ok();
    let mut second = first.clone();
    second.token = at(&answer, "/access_token").as_str().expect("a token").to_owned();
    assert_ne!(first.token, second.token);
    for replica in 0..2 {
        let me = second.at(replica).get("/account/whoami").await.ok();
        assert_eq!(me["device_id"], json!(first.device));
    }
    // Once the new session was used the old token, and what it was refreshed with, are worth nothing.
    for replica in 0..2 {
        first.at(replica).get("/account/whoami").await.refused(401, "M_UNKNOWN_TOKEN");
        cluster.send_to(replica, refresh.clone()).await.refused(401, "M_UNKNOWN_TOKEN");
    }
    let bogus = post("/refresh", &json!({ "refresh_token": "bogus" }));
    cluster.send(bogus).await.refused(401, "M_UNKNOWN_TOKEN");
}

#[tokio::test]
async fn removing_a_device_asks_for_the_password() {
    let cluster = TestCluster::start().await;
    let phone = cluster.user("alice").await;
    let laptop = cluster.login("alice").await;
    let bob = cluster.user("bob").await;
    phone.put(&format!("/devices/{}", laptop.device), json!({ "display_name": "old laptop" })).await.ok();
    bob.get(&format!("/devices/{}", laptop.device)).await.refused(404, "M_NOT_FOUND");

    let path = format!("/_matrix/client/v3/devices/{}", laptop.device);
    let challenge = phone.send(Request::new(Method::DELETE, &*path).json(&json!({}))).await;
    assert_eq!(challenge.status, 401, "{}", challenge.text);
    let auth = |password: &str| {
        json!({ "auth": {
            "type": "m.login.password", "password": password, "session": challenge.body["session"],
            "identifier": { "type": "m.id.user", "user": "alice" },
        }})
    };
    let wrong = phone.send(Request::new(Method::DELETE, &*path).json(&auth("wrong"))).await;
    assert_eq!((wrong.status, wrong.errcode()), (401, "M_FORBIDDEN"), "{}", wrong.text);
    assert!(wrong.body.get("flows").is_some(), "another try is possible: {}", wrong.text);
    laptop.get("/account/whoami").await.ok();
    let mut of_bob = auth(PASSWORD);
    of_bob["auth"]["identifier"]["user"] = json!("bob");
    phone.send(Request::new(Method::DELETE, &*path).json(&of_bob)).await.refused(403, "M_FORBIDDEN");

    phone.send(Request::new(Method::DELETE, &*path).json(&auth(PASSWORD))).await.ok();
    // Whose answer was lost may ask again, at another replica as well, and is asked for the password again.
    for replica in 0..2 {
        let phone = phone.at(replica);
        phone.send(Request::new(Method::DELETE, &*path).json(&auth(PASSWORD))).await.ok();
        let without = json!({ "auth": { "session": challenge.body["session"] } });
        for body in [auth("wrong"), without] {
            let answer = phone.send(Request::new(Method::DELETE, &*path).json(&body)).await;
            assert_eq!((answer.status, &answer.body["completed"]), (401, &json!(["m.login.password"])));
        }
    }
    for replica in 0..2 {
        laptop.at(replica).get("/account/whoami").await.refused(401, "M_UNKNOWN_TOKEN");
        phone.at(replica).get(&format!("/devices/{}", laptop.device)).await.refused(404, "M_NOT_FOUND");
    }
}

#[tokio::test]
async fn a_new_password_ends_the_other_sessions() {
    let cluster = TestCluster::start().await;
    let phone = cluster.user("alice").await;
    let laptop = cluster.login("alice").await;
    let new = "Another-Staple-9-battery?";
    let mut body = json!({ "new_password": new });
    let challenge = phone.post("/account/password", body.clone()).await;
    assert_eq!(challenge.status, 401, "{}", challenge.text);
    body["auth"] = json!({
        "type": "m.login.password", "password": PASSWORD, "session": challenge.body["session"],
        "identifier": { "type": "m.id.user", "user": "alice" },
    });
    phone.post("/account/password", body).await.ok();
    for replica in 0..2 {
        phone.at(replica).get("/account/whoami").await.ok();
        laptop.at(replica).get("/account/whoami").await.refused(401, "M_UNKNOWN_TOKEN");
        let old = post("/login", &password_login("alice", PASSWORD));
        cluster.send_to(replica, old).await.refused(403, "M_FORBIDDEN");
        cluster.send_to(replica, post("/login", &password_login("alice", new))).await.ok();
    }
}

#[tokio::test]
async fn a_weak_password_is_refused_with_the_reason() {
    let cluster = TestCluster::start().await;
    let flawed = ["short1!", "alllowercase", "NODIGITS!no", "NoSpecial123"];
    for password in flawed {
        let body = json!({ "username": "alice", "password": password, "auth": { "type": "m.login.dummy" } });
        cluster.send(post("/register", &body)).await.refused(400, "M_WEAK_PASSWORD");
    }
    let long = json!({ "username": "alice", "password": "a passphrase of more than twenty characters",
        "auth": { "type": "m.login.dummy" } });
    cluster.send(post("/register", &long)).await.ok();
}

#[tokio::test]
async fn a_deactivated_account_stays_closed() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let challenge = alice.post("/account/deactivate", json!({})).await;
    assert_eq!(challenge.status, 401, "{}", challenge.text);
    let body = json!({ "auth": {
        "type": "m.login.password", "password": PASSWORD, "session": challenge.body["session"],
        "identifier": { "type": "m.id.user", "user": "alice" },
    }});
    alice.post("/account/deactivate", body).await.ok();
    for replica in 0..2 {
        alice.at(replica).get("/account/whoami").await.refused(401, "M_UNKNOWN_TOKEN");
        let login = cluster.send_to(replica, post("/login", &password_login("alice", PASSWORD))).await;
        assert_eq!(login.status, 403, "{}", login.text);
    }
    let again = json!({ "username": "alice", "password": PASSWORD, "auth": { "type": "m.login.dummy" } });
    cluster.send(post("/register", &again)).await.refused(400, "M_USER_IN_USE");
}

#[tokio::test]
async fn the_shared_secret_registers_users_and_administrators() {
    let cluster = TestCluster::start().await;
    let path = "/_synapse/admin/v1/register";
    let nonce = || async {
        let answer = cluster.send(Request::new(Method::GET, path)).await.ok();
        at(&answer, "/nonce").as_str().expect("a nonce").to_owned()
    };
    let mac = |nonce: &str, name: &str, admin: bool| {
        let key = PKey::hmac(SHARED_SECRET.as_bytes()).expect("a key");
        let mut signer = Signer::new(MessageDigest::sha1(), &key).expect("a signer");
        let role = if admin { "admin" } else { "notadmin" };
        let message = [nonce, name, PASSWORD, role].join("\0");
        let mac = signer.sign_oneshot_to_vec(message.as_bytes()).expect("a mac");
        mac.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let request = |nonce: &str, name: &str, admin: bool, mac: &str| {
        let body =
            json!({ "nonce": nonce, "username": name, "password": PASSWORD, "admin": admin, "mac": mac });
        Request::new(Method::POST, path).json(&body)
    };

    let first = nonce().await;
    let made = cluster.send(request(&first, "root", true, &mac(&first, "root", true))).await.ok();
    assert_eq!(made["user_id"], "@root:keystead.test");
    User::from_login(&cluster, &made).get("/account/whoami").await.ok();

    let used = cluster.send(request(&first, "carol", false, &mac(&first, "carol", false))).await;
    assert_eq!(used.status, 400, "a nonce is good for one registration: {}", used.text);
    let second = nonce().await;
    let forged = cluster.send(request(&second, "carol", true, &mac(&second, "carol", false))).await;
    assert_eq!(forged.status, 403, "{}", forged.text);
}

#[tokio::test]
async fn who_guesses_passwords_has_to_wait_on_all_replicas() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    for replica in 0..3 {
        let guess = post("/login", &password_login("alice", &format!("Guess-number-{replica}!")));
        cluster.send_to(replica, guess).await.refused(403, "M_FORBIDDEN");
    }
    for replica in 0..2 {
        let right = cluster.send_to(replica, post("/login", &password_login("alice", PASSWORD))).await;
        let header = right.headers.get("retry-after").cloned();
        let body = right.refused(429, "M_LIMIT_EXCEEDED");
        assert!(
            at(&body, "/retry_after_ms").as_u64().is_some_and(|time| (1..=15_000).contains(&time)),
            "{body}"
        );
        let seconds: u64 = header.expect("a header").to_str().expect("text").parse().expect("seconds");
        assert!((1..=15).contains(&seconds), "{seconds}");
        alice.at(replica).get("/account/whoami").await.ok();
    }
    // Nobody else waits.
    cluster.user("bob").await;
    cluster.login("bob").await;
}

#[tokio::test]
async fn rate_limits_tell_when_to_try_again() {
    let cluster = TestCluster::start_with(&[("KEYSTEAD_LIMITS_RATE_LIMITS", "true")]).await;
    let login = post("/login", &password_login("nobody", "x"));
    let mut answers = Vec::new();
    for _ in 0..30 {
        answers.push(cluster.send_to(0, login.clone()).await);
    }
    let refused: Vec<_> = answers.into_iter().filter(|answer| answer.status == 429).collect();
    assert!(!refused.is_empty());
    for answer in refused {
        let body = answer.refused(429, "M_LIMIT_EXCEEDED");
        assert!(at(&body, "/retry_after_ms").as_u64().is_some_and(|time| time > 0), "{body}");
    }
}

#[tokio::test]
async fn users_and_administrators_see_where_sessions_are() {
    let cluster = TestCluster::start().await;
    let (alice, eve) = (cluster.user("alice").await, cluster.user("eve").await);
    cluster.login("alice").await;
    let made = cluster.run(&["admin", "create-user", "root", "--admin"], &[]).await;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let password = String::from_utf8(made.stdout).expect("text");
    let (_, password) = password.split_once("Its password is ").expect("a password");
    let password = password.split_whitespace().next().expect("a password");
    let root = cluster.send(post("/login", &password_login("root", password))).await.ok();
    let root = User::from_login(&cluster, &root);

    let path = "/admin/whois/%40alice%3Akeystead.test";
    for asker in [alice.at(0), root.at(1)] {
        let who = asker.get(path).await.ok();
        assert_eq!(who["user_id"], alice.id.as_str());
        let devices = who["devices"].as_object().expect("devices");
        assert_eq!(devices.len(), 2, "{who:#}");
        let connection = &devices[&alice.device]["sessions"][0]["connections"][0];
        assert_eq!(connection["ip"], "127.0.0.1");
        assert!(connection["last_seen"].as_u64().is_some_and(|ts| ts > 0), "{who:#}");
    }
    eve.get(path).await.refused(403, "M_FORBIDDEN");
    root.get("/admin/whois/%40nobody%3Akeystead.test").await.refused(404, "M_NOT_FOUND");
    cluster.send(get(path)).await.refused(401, "M_MISSING_TOKEN");
}

#[tokio::test]
async fn addresses_and_numbers_are_refused_in_the_words_of_the_specification() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let email = json!({ "client_secret": "abc", "email": "a@example.org", "send_attempt": 1 });
    let number = json!({ "client_secret": "abc", "country": "DE", "phone_number": "07", "send_attempt": 1 });
    for (kind, body) in [("email", &email), ("msisdn", &number)] {
        for at in ["/register", "/account/3pid"] {
            let answer = cluster.send(post(&format!("{at}/{kind}/requestToken"), body)).await;
            answer.refused(403, "M_THREEPID_DENIED");
        }
        let answer = cluster.send(post(&format!("/account/password/{kind}/requestToken"), body)).await;
        answer.refused(400, "M_THREEPID_NOT_FOUND");
    }
    let sid = json!({ "client_secret": "abc", "sid": "1" });
    alice.post("/account/3pid/add", sid).await.refused(403, "M_THREEPID_DENIED");
    let bind = json!({
        "client_secret": "abc", "sid": "1", "id_server": "id.example.org", "id_access_token": "x",
    });
    alice.post("/account/3pid/bind", bind).await.refused(400, "M_SERVER_NOT_TRUSTED");
    let address = json!({ "medium": "email", "address": "a@example.org" });
    for path in ["/account/3pid/delete", "/account/3pid/unbind"] {
        let answer = alice.post(path, address.clone()).await.ok();
        assert_eq!(answer, json!({ "id_server_unbind_result": "no-support" }));
        alice.post(path, json!({ "medium": "email" })).await.refused(400, "M_BAD_JSON");
    }
    assert_eq!(alice.get("/account/3pid").await.ok(), json!({ "threepids": [] }));
}
