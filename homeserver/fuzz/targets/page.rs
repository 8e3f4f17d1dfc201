//! Any bytes as a page that is looked at for its preview: few properties, none of them long.
#![no_main]
#![allow(missing_docs, dead_code)]

use libfuzzer_sys::fuzz_target;

#[path = "../../server/src/url_preview/open_graph.rs"]
mod open_graph;

fn check(page: &[u8], charset: Option<&str>) {
    let found = open_graph::read(page, charset);
    assert!(found.properties.len() <= 64);
    let json = serde_json::Value::Object(found.properties).to_string();
    assert!(json.len() < 1 << 20);
}

fuzz_target!(|data: &[u8]| {
    let (charset, page) = data.split_at(data.iter().position(|byte| *byte == b'\n').unwrap_or(0).min(20));
    check(page, std::str::from_utf8(charset).ok());
    check(data, None);
});
