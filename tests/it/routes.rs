//! The table of routes: every endpoint that needs a session refuses those who have none, and says who may call it
//! as the specification does.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::PathBuf};

use hyper::Method;
use keystead_tests::{
    TestCluster,
    http::{Request, encode},
    process,
};
use serde_json::{Value, json};

/// `METHOD path auth` of every route that is proven to refuse a stranger, or that needs no session. A route that
/// comes or goes is noted here by hand, or by running this test with `KEYSTEAD_TEST_BLESS=1` and reading the change.
const ROUTES: &str = include_str!("../data/routes.txt");

/// The endpoints of the client-server API of the specification, version 1.19.
const SPECIFICATION: &str = include_str!("../data/client-server-endpoints.csv");

pub(crate) struct Route {
    pub(crate) method: Method,
    pub(crate) path: String,
    auth: String,
}

impl Route {
    fn line(&self) -> String {
        format!("{} {} {}", self.method, self.path, self.auth)
    }

    /// The path with something in the place of every parameter that the server must be able to read.
    fn filled(&self) -> String {
        let fill = |segment: &str| match segment.trim_matches(['{', '}']) {
            name if name == segment => segment.to_owned(),
            "room_id" | "room_id_or_alias" => "!room:keystead.test".to_owned(),
            "user_id" => "@stranger:keystead.test".to_owned(),
            "event_id" => "$event".to_owned(),
            "room_alias" => "%23alias:keystead.test".to_owned(),
            "receipt_type" => "m.read".to_owned(),
            "kind" => "override".to_owned(),
            _ => "x".to_owned(),
        };
        self.path.split('/').map(fill).collect::<Vec<_>>().join("/")
    }
}

#[test]
fn the_list_of_routes_is_complete() {
    let mut served: Vec<_> = served().iter().map(Route::line).collect();
    served.sort();
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/routes.txt");
    if std::env::var_os("KEYSTEAD_TEST_BLESS").is_some() {
        fs::write(file, served.join("\n") + "\n").expect("written");
        return;
    }
    let served: BTreeSet<_> = served.iter().map(String::as_str).collect();
    let listed: BTreeSet<_> = ROUTES.lines().collect();
    let mut changes = String::new();
    for new in served.difference(&listed) {
        writeln!(changes, "+ {new}").expect("a string");
    }
    for gone in listed.difference(&served) {
        writeln!(changes, "- {gone}").expect("a string");
    }
    assert!(changes.is_empty(), "{} must change:\n{changes}", file.display());
}

#[tokio::test]
async fn every_route_with_a_session_refuses_strangers() {
    let cluster = TestCluster::start().await;
    let routes = served();
    let guarded: Vec<_> =
        routes.iter().filter(|route| !["none", "optional"].contains(&&*route.auth)).collect();
    assert!(guarded.len() > 100, "only {} routes need a session", guarded.len());
    for route in guarded {
        let mut request = Request::new(route.method.clone(), route.filled());
        if ![Method::GET, Method::DELETE].contains(&route.method) {
            request = request.json(&json!({}));
        }
        cluster.send(request.clone()).await.refused(401, "M_MISSING_TOKEN");
        cluster.send(request.clone().token("no-such-token")).await.refused(401, "M_UNKNOWN_TOKEN");
        let query = Request { path: format!("{}?access_token=no-such-token", request.path), ..request };
        cluster.send(query).await.refused(401, "M_UNKNOWN_TOKEN");
    }
}

#[tokio::test]
async fn administrators_routes_refuse_other_users() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    for route in served().iter().filter(|route| route.auth == "admin") {
        let request = Request::new(route.method.clone(), route.filled()).json(&json!({}));
        alice.send(request).await.refused(403, "M_FORBIDDEN");
    }
}

#[tokio::test]
async fn what_belongs_to_one_user_is_refused_to_another() {
    let cluster = TestCluster::start().await;
    let (alice, eve) = (cluster.user("alice").await, cluster.user("eve").await);
    let routes = served();
    let personal: Vec<_> = routes.iter().filter(|route| route.path.contains("/user/{user_id}/")).collect();
    assert!(personal.len() > 8, "only {} routes below /user", personal.len());
    for route in personal {
        let path = route.filled().replace("@stranger:keystead.test", &alice.id);
        let request = Request::new(route.method.clone(), path).json(&json!({}));
        eve.send(request).await.refused(403, "M_FORBIDDEN");
    }
}

#[tokio::test]
async fn what_is_in_a_private_room_is_refused_to_those_outside() {
    let cluster = TestCluster::start().await;
    let (alice, eve) = (cluster.user("alice").await, cluster.user("eve").await);
    let room = alice.create_room(json!({ "preset": "private_chat" })).await;
    let event = alice.send_text(&room, "not for eve").await;
    let mut syncing = alice.syncing();
    syncing.until_event(&room, &event).await;

    let routes = served();
    let inside: Vec<_> = routes.iter().filter(|route| route.path.contains("/rooms/{room_id}/")).collect();
    assert!(inside.len() > 25, "only {} routes in rooms", inside.len());
    let body = json!({
        "user_id": eve.id, "new_version": "11", "typing": true, "timeout": 1000, "name": "Eve's", "m.read": event, "m.fully_read": event,
    });
    for route in inside.into_iter().filter(|route| !route.path.contains("/user/{user_id}/")) {
        let path = route.filled();
        let path = path.replace("!room:keystead.test", &encode(&room)).replace("$event", &encode(&event));
        let path = path.replace("@stranger:keystead.test", &eve.id);
        let request = match route.method {
            Method::GET => Request::new(Method::GET, format!("{path}?dir=b&ts=0")),
            _ => Request::new(route.method.clone(), path).json(&body),
        };
        let answer = eve.send(request).await;
        // To forget a room that one is not in is no harm; to be told that one is not in it is none either.
        // The room can be reported from outside, which shows nothing of it and leaves no trace in it.
        let harmless = ["/forget", "/leave", "/report"].iter().any(|end| route.path.ends_with(end));
        let refused = [403, 404].contains(&answer.status);
        assert!(refused || harmless, "{}: {} {}", answer.request, answer.status, answer.text);
        assert!(!answer.text.contains("not for eve"), "{}: {}", answer.request, answer.text);
    }
    let after = syncing.next(0).await;
    assert!(after["rooms"]["join"].get(&room).is_none(), "eve left traces: {after:#}");
}

#[test]
fn routes_guard_what_the_specification_guards() {
    let served = served();
    let mut missing = Vec::new();
    let mut found = 0;
    for line in SPECIFICATION.lines().skip(1) {
        let [method, path, auth, deprecated] = line.split(',').collect::<Vec<_>>()[..] else {
            panic!("four columns: {line}");
        };
        let route = served.iter().find(|route| route.method == method && same_path(&route.path, path));
        let Some(route) = route else {
            if deprecated == "no" {
                missing.push(format!("{method} {path}"));
            }
            continue;
        };
        found += 1;
        let allowed: &[&str] = match auth {
            "none" => &["none", "optional"],
            "accessToken" => &["user", "admin"],
            "accessToken?" => &["none", "optional"],
            "appserviceAccessToken" => &["appservice"],
            _ => continue,
        };
        assert!(allowed.contains(&&*route.auth), "{method} {path} is for {auth}, not {}", route.auth);
    }
    println!("{found} endpoints of the specification are served; these, not deprecated, are not:");
    println!("  {}", missing.join("\n  "));
}

/// Whether two paths are the same but for the names of their parameters.
fn same_path(one: &str, other: &str) -> bool {
    let one: Vec<_> = one.trim_end_matches('/').split('/').collect();
    let other: Vec<_> = other.trim_end_matches('/').split('/').collect();
    let same = |(a, b): (&&str, &&str)| a == b || (a.starts_with('{') && b.starts_with('{'));
    one.len() == other.len() && one.iter().zip(&other).all(same)
}

pub(crate) fn served() -> Vec<Route> {
    let output = process::command("admin").args(["routes", "--json"]).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let routes: Vec<Value> = serde_json::from_slice(&output.stdout).expect("a list in JSON");
    let text = |route: &Value, name: &str| route[name].as_str().expect("text").to_owned();
    routes
        .iter()
        .map(|route| Route {
            method: text(route, "method").parse().expect("a method"),
            path: text(route, "path"),
            auth: text(route, "auth"),
        })
        .collect()
}
