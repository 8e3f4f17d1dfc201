//! OpenID tokens: users prove to others who they are.

use hyper::Method;
use keystead_tests::{
    TestCluster,
    http::{Request, encode},
};
use serde_json::json;

#[tokio::test]
async fn a_token_says_who_its_user_is_through_any_replica_and_nothing_else() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let path = format!("/user/{}/openid/request_token", encode(&alice.id));
    let answer = alice.at(0).post(&path, json!({})).await.ok();
    assert_eq!(answer["token_type"], "Bearer");
    assert_eq!(answer["matrix_server_name"], "keystead.test");
    assert_eq!(answer["expires_in"], 3_600);
    let token = answer["access_token"].as_str().expect("a token");

    let userinfo =
        |query: &str| Request::new(Method::GET, format!("/_matrix/federation/v1/openid/userinfo{query}"));
    let query = format!("?access_token={}", encode(token));
    for replica in 0..2 {
        let info = cluster.send_to(replica, userinfo(&query)).await.ok();
        assert_eq!(info, json!({ "sub": alice.id }));
    }
    cluster.send(userinfo("")).await.refused(401, "M_MISSING_TOKEN");
    cluster.send(userinfo("?access_token=x")).await.refused(401, "M_UNKNOWN_TOKEN");
    // The two kinds of tokens are no use in each other's place.
    let session = format!("?access_token={}", encode(&alice.token));
    cluster.send(userinfo(&session)).await.refused(401, "M_UNKNOWN_TOKEN");
    let whoami = Request::new(Method::GET, "/_matrix/client/v3/account/whoami").token(token);
    cluster.send(whoami).await.refused(401, "M_UNKNOWN_TOKEN");
    bob.post(&path, json!({})).await.refused(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn a_closed_account_has_no_tokens() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let path = format!("/user/{}/openid/request_token", encode(&alice.id));
    let answer = alice.post(&path, json!({})).await.ok();
    let token = encode(answer["access_token"].as_str().expect("a token"));
    let auth = json!({
        "auth": {
            "type": "m.login.password", "password": keystead_tests::cluster::PASSWORD,
            "identifier": { "type": "m.id.user", "user": alice.id },
        },
    });
    alice.post("/account/deactivate", auth).await.ok();
    let userinfo = format!("/_matrix/federation/v1/openid/userinfo?access_token={token}");
    cluster.send(Request::new(Method::GET, userinfo)).await.refused(401, "M_UNKNOWN_TOKEN");
}
