//! The guards of the way in, with a clock that the tests move.

use std::{sync::Arc, time::Duration};

use keystead_store::registration::{self, RegistrationToken};
use serde_json::{Value, json};

use crate::{
    clock::{Clock as _, SettableClock},
    http::tests::{Answer, Server, serve_at},
};

const PASSWORD: &str = "Correct-horse-9";

async fn server(environment: &[(&str, &str)]) -> (Server, Arc<SettableClock>) {
    let clock = Arc::new(SettableClock::at(1_800_000_000_000));
    let base = [("KEYSTEAD_AUTH_BCRYPT_COST", "4")];
    let environment: Vec<_> = base.iter().chain(environment).copied().collect();
    (serve_at(&environment, Arc::clone(&clock) as _).await, clock)
}

async fn post(server: &Server, path: &str, body: Value) -> Answer {
    server.send("POST", &format!("/_matrix/client/v3{path}"), "", &body.to_string()).await
}

async fn register(server: &Server, name: &str) -> Answer {
    let auth = json!({ "type": "m.login.dummy" });
    post(server, "/register", json!({ "username": name, "password": PASSWORD, "auth": auth })).await
}

async fn login(server: &Server, name: &str, password: &str) -> Answer {
    let body =
        json!({ "type": "m.login.password", "user": name, "password": password, "refresh_token": true });
    post(server, "/login", body).await
}

const OPEN: (&str, &str) = ("KEYSTEAD_REGISTRATION_OPEN", "true");

#[tokio::test]
async fn after_three_failures_the_account_waits_longer_each_time() {
    let (server, clock) = server(&[OPEN]).await;
    assert_eq!(register(&server, "alice").await.status, 200);
    for _ in 0..3 {
        assert_eq!(login(&server, "alice", "wrong").await.errcode(), (403, "M_FORBIDDEN".to_owned()));
    }
    let refused = login(&server, "alice", PASSWORD).await;
    assert_eq!(refused.errcode(), (429, "M_LIMIT_EXCEEDED".to_owned()));
    assert_eq!(refused.json()["retry_after_ms"], 5_000);
    assert_eq!(refused.json()["error"], "Too many failed logins: wait 5 seconds");
    assert!(refused.head.contains("retry-after: 5"));
    // Others are not concerned.
    assert_eq!(register(&server, "bob").await.status, 200);
    assert_eq!(login(&server, "bob", PASSWORD).await.status, 200);

    clock.advance(Duration::from_secs(5));
    assert_eq!(login(&server, "alice", "wrong").await.status, 403);
    assert_eq!(login(&server, "alice", PASSWORD).await.json()["retry_after_ms"], 10_000);
    clock.advance(Duration::from_secs(10));
    assert_eq!(login(&server, "alice", PASSWORD).await.status, 200);
    // The right password ends the counting.
    assert_eq!(login(&server, "alice", "wrong").await.status, 403);
    assert_eq!(login(&server, "alice", PASSWORD).await.status, 200);
}

#[tokio::test]
async fn many_attempts_at_once_gain_nothing() {
    let (server, _) = server(&[OPEN]).await;
    assert_eq!(register(&server, "alice").await.status, 200);
    let guesses = (0..12).map(|_| login(&server, "alice", "wrong"));
    futures_util::future::join_all(guesses).await;
    assert_eq!(login(&server, "alice", PASSWORD).await.status, 429);
}

#[tokio::test]
async fn a_closed_server_takes_who_has_a_token_as_often_as_it_says() {
    let (server, clock) = server(&[]).await;
    let now = clock.now();
    let token =
        &RegistrationToken { token: "ticket".to_owned(), uses_allowed: Some(1), uses: 0, expires_ts: None };
    server
        .app
        .store
        .write("test", |tx| async move { registration::insert_token(&tx, token, now).await })
        .await
        .unwrap();

    let dummy = register(&server, "alice").await;
    assert_eq!(dummy.errcode(), (401, "M_UNRECOGNIZED".to_owned()));
    assert_eq!(dummy.json()["flows"], json!([{ "stages": ["m.login.registration_token"] }]));
    let session = dummy.json()["session"].clone();
    let with_token = async |name: &str, token: &str, session: &Value| {
        let auth = json!({ "type": "m.login.registration_token", "token": token, "session": session });
        post(&server, "/register", json!({ "username": name, "password": PASSWORD, "auth": auth })).await
    };
    assert_eq!(with_token("alice", "forged", &session).await.errcode(), (401, "M_UNAUTHORIZED".to_owned()));
    let validity = "/_matrix/client/v1/register/m.login.registration_token/validity?token=ticket";
    assert_eq!(server.get(validity).await.json(), json!({ "valid": true }));
    assert_eq!(with_token("alice", "ticket", &session).await.status, 200);
    assert_eq!(server.get(validity).await.json(), json!({ "valid": false }));
    assert_eq!(with_token("bob", "ticket", &Value::Null).await.status, 401);
    // A session is good for one registration: who asks for another is told that it is done.
    let again = with_token("bob", "ticket", &session).await;
    assert_eq!((again.status, &again.json()["completed"]), (401, &json!(["m.login.registration_token"])));
    assert_eq!(with_token("alice", "ticket", &session).await.json()["user_id"], "@alice:localhost:8008");
}

#[tokio::test]
async fn an_expired_token_asks_for_a_refresh_and_keeps_the_keys() {
    let (server, clock) = server(&[OPEN]).await;
    register(&server, "alice").await;
    let granted = login(&server, "alice", PASSWORD).await.json();
    let token = format!("Authorization: Bearer {}\r\n", granted["access_token"].as_str().unwrap());
    let whoami = async || server.send("GET", "/_matrix/client/v3/account/whoami", &token, "").await;
    assert_eq!(whoami().await.status, 200);
    clock.advance(Duration::from_millis(granted["expires_in_ms"].as_u64().unwrap()));
    let expired = whoami().await;
    assert_eq!(expired.errcode(), (401, "M_UNKNOWN_TOKEN".to_owned()));
    assert_eq!(expired.json()["soft_logout"], true);
    let refreshed = post(&server, "/refresh", json!({ "refresh_token": granted["refresh_token"] })).await;
    assert_eq!(refreshed.status, 200);
}

#[tokio::test]
async fn registrations_in_a_rush_are_told_to_wait() {
    let (server, clock) = server(&[OPEN]).await;
    let mut answers = Vec::new();
    for number in 0..21 {
        answers.push(register(&server, &format!("user{number}")).await.status);
    }
    assert_eq!(answers.iter().filter(|status| **status == 200).count(), 20);
    assert_eq!(answers.last(), Some(&429));
    clock.advance(Duration::from_secs(5));
    assert_eq!(register(&server, "later").await.status, 200);
}

#[tokio::test]
async fn guests_and_application_services_are_refused() {
    let (server, _) = server(&[OPEN]).await;
    let guest = post(&server, "/register?kind=guest", json!({})).await;
    assert_eq!(guest.errcode(), (403, "M_GUEST_ACCESS_FORBIDDEN".to_owned()));
    let service = post(&server, "/register", json!({ "type": "m.login.application_service" })).await;
    assert_eq!(service.status, 401);
}

#[tokio::test]
async fn malformed_logins_are_refused_and_nothing_panics() {
    let (server, _) = server(&[OPEN]).await;
    for (body, status, errcode) in [
        (json!({}), 400, "M_BAD_JSON"),
        (json!([]), 400, "M_BAD_JSON"),
        (json!({ "type": 5 }), 400, "M_BAD_JSON"),
        (json!({ "type": "m.login.token", "token": "x" }), 400, "M_UNKNOWN"),
        (json!({ "type": "m.login.password", "password": "x" }), 400, "M_MISSING_PARAM"),
        (json!({ "type": "m.login.password", "user": "a" }), 400, "M_MISSING_PARAM"),
        (json!({ "type": "m.login.password", "user": "@a:elsewhere", "password": "x" }), 403, "M_FORBIDDEN"),
        (json!({ "type": "m.login.password", "user": "a\0", "password": "x" }), 403, "M_FORBIDDEN"),
        (
            json!({ "type": "m.login.password", "identifier": { "type": "odd" }, "password": "x" }),
            400,
            "M_UNKNOWN",
        ),
        (
            json!({ "type": "m.login.password", "user": "a", "password": "x", "device_id": "" }),
            400,
            "M_INVALID_PARAM",
        ),
    ] {
        let answer = post(&server, "/login", body.clone()).await;
        assert_eq!(answer.errcode(), (status, errcode.to_owned()), "{body}");
    }
    assert!(server.get("/metrics").await.body_contains("keystead_http_handler_panics_total 0"));
}
