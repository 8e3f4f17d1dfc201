//! The page about threats names a test for each guard: here it is seen to that these are there.

use std::path::Path;

/// `path::name` in backquotes, in the tables of docs/security.md.
fn named_tests(page: &str) -> Vec<(String, String)> {
    let quoted =
        page.lines().filter(|line| line.starts_with('|')).flat_map(|line| line.split('`').skip(1).step_by(2));
    quoted
        .filter_map(|text| text.split_once("::"))
        .filter(|(file, _)| file.contains('/'))
        .map(|(file, name)| (file.to_owned(), name.to_owned()))
        .collect()
}

#[test]
fn every_test_that_the_page_about_threats_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = std::fs::read_to_string(root.join("docs/security.md")).expect("the page");
    let tests = named_tests(&page);
    assert!(tests.len() > 40, "only {} tests are named", tests.len());
    let mut missing = Vec::new();
    for (file, name) in tests {
        let source = std::fs::read_to_string(root.join(&file)).unwrap_or_default();
        let is_there = if file.contains("/targets/") {
            source.contains("fuzz_target!")
        } else {
            let at = source.find(&format!("fn {name}("));
            at.is_some_and(|at| {
                source.get(..at).is_some_and(|before| {
                    let lines = before.rsplit('\n').skip(1).take(8);
                    lines.take_while(|line| !line.trim().is_empty()).any(|line| line.contains("test"))
                })
            })
        };
        if !is_there {
            missing.push(format!("{file}::{name}"));
        }
    }
    assert!(missing.is_empty(), "docs/security.md names tests that there are not: {missing:#?}");
}

/// Keys that are shipped, or made from something known, are the same everywhere.
#[tokio::test(flavor = "multi_thread")]
async fn two_new_servers_have_nothing_secret_in_common() {
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..2 {
        let cluster = keystead_tests::TestCluster::start().await;
        let keys = keystead_tests::http::Request::new(hyper::Method::GET, "/_matrix/key/v2/server");
        let keys = cluster.send(keys).await.ok();
        let key = keys["verify_keys"]["ed25519:1"]["key"].as_str().expect("a key").to_owned();
        let alice = cluster.user("alice").await;
        for secret in [key, alice.token.clone(), alice.device.clone()] {
            assert!(seen.insert(secret.clone()), "{secret} came before");
        }
    }
}
