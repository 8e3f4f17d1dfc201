//! Any `X-Forwarded-For` and any network: no address that a client claims is believed past the trusted proxies.
#![no_main]
#![allow(missing_docs, dead_code)]

use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;

#[path = "../../server/src/http/client_address.rs"]
mod client_address;

use client_address::{Client, IpNetwork};

fuzz_target!(|data: &[u8]| {
    let (network, header) = data.split_at(data.iter().position(|byte| *byte == b'\n').unwrap_or(0));
    let network = std::str::from_utf8(network).ok().and_then(|text| text.parse::<IpNetwork>().ok());
    let Ok(header) = HeaderValue::from_bytes(header.strip_prefix(b"\n").unwrap_or(header)) else { return };
    let mut headers = HeaderMap::new();
    headers.insert("x-forwarded-for", header);
    let peer = "192.0.2.1".parse().unwrap();
    assert_eq!(Client::of(peer, &headers, &[]).address, peer, "nobody is trusted");
    let trusted: Vec<IpNetwork> = network.into_iter().collect();
    let found = Client::of(peer, &headers, &trusted).address;
    assert!(found == peer || trusted.iter().any(|network| network.contains(peer)), "the peer is not trusted");
});
