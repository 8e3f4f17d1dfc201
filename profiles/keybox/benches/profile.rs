//! What the suites of the profile cost: wraps, unwraps, and content. `compare` sets the figures beside OpenSSL's own.

#![allow(missing_docs, reason = "macros of the harness write functions")]
#![allow(clippy::unwrap_used, reason = "a benchmark")]

use std::hint::black_box;
use std::num::NonZero;
use std::thread;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

use keystead_keybox::OpensslEntropy;
use keystead_keybox::context::WrapContext;
use keystead_keybox::envelope::{Envelope, Payload, SealRequest};
use keystead_keybox::key_set::{PrivateKeySet, PublicKeySet};
use keystead_keybox::resource_key::{ResourceKey, ResourceKeyId};
use keystead_keybox::suite::{SUITES, Suite};

const KEYBOXES: usize = 1_000;
const CONTEXT: &[u8] = &[7; 250];

fn context<'a>(suite: &'a Suite, key_id: &'a ResourceKeyId, recipient_keybox: &'a str) -> WrapContext<'a> {
    WrapContext {
        suite: suite.id,
        room_id: "!r3UXd9oTgYpXnI3kCqhOPvYl4vJmWbPzJ0zvMGuTPHI",
        key_id,
        sender: "@alice:example.org",
        sender_keybox: "ALICEBOX",
        recipient: "@bob:example.org",
        recipient_keybox,
    }
}

/// Wraps a resource key for all of `keyboxes` on all cores; each core takes its share.
fn wrap_for_all(suite: &Suite, key: &ResourceKey, id: &ResourceKeyId, keyboxes: &[PublicKeySet]) {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for share in keyboxes.chunks(keyboxes.len().div_ceil(cores)) {
            scope.spawn(move || {
                for keybox in share {
                    let context = context(suite, id, &keybox.keybox_id);
                    black_box(suite.wrap(key, keybox, &context, &mut OpensslEntropy).unwrap());
                }
            });
        }
    });
}

fn wraps(criterion: &mut Criterion) {
    let key = ResourceKey::generate(&mut OpensslEntropy).unwrap();
    let id = key.id("!r3UXd9oTgYpXnI3kCqhOPvYl4vJmWbPzJ0zvMGuTPHI");
    let own = PrivateKeySet::generate("@bob:example.org", "BOBBOX", &mut OpensslEntropy).unwrap();
    // Many keys take long to make, and what a wrap costs depends on how many keys there are, not on which: 50 keys,
    // each as 20 KeyBoxes with a copy of it of their own.
    let keys: Vec<_> = (0..50)
        .map(|_| PrivateKeySet::generate("@bob:example.org", "BOBBOX", &mut OpensslEntropy).unwrap())
        .map(|keys| keys.public().unwrap())
        .collect();
    let keyboxes: Vec<PublicKeySet> = keys
        .iter()
        .cycle()
        .take(KEYBOXES)
        .enumerate()
        .map(|(index, keys)| PublicKeySet { keybox_id: format!("BOX{index}"), ..keys.clone() })
        .collect();
    for suite in SUITES {
        let version = suite.version;
        let mut group = criterion.benchmark_group(format!("v{version}"));
        group.throughput(Throughput::Elements(KEYBOXES as u64)).sample_size(10);
        group.bench_function("wrap for 1,000 KeyBoxes", |bencher| {
            bencher.iter(|| wrap_for_all(suite, &key, &id, &keyboxes));
        });
        group.throughput(Throughput::Elements(1)).sample_size(50);
        let (public, context) = (own.public().unwrap(), context(suite, &id, "BOBBOX"));
        let wrap = suite.wrap(&key, &public, &context, &mut OpensslEntropy).unwrap();
        group.bench_function("unwrap", |bencher| {
            bencher.iter(|| suite.unwrap(&wrap, &own, &context));
        });
    }
}

fn content(criterion: &mut Criterion) {
    let key = ResourceKey::generate(&mut OpensslEntropy).unwrap();
    for suite in SUITES {
        let version = suite.version;
        let mut group = criterion.benchmark_group(format!("v{version}"));
        for (size, name) in [(1 << 10, "1 KiB"), (1 << 20, "1 MiB")] {
            group.throughput(Throughput::Bytes(size as u64));
            let text = vec![42_u8; size];
            group.bench_function(format!("seal {name}"), |bencher| {
                bencher.iter_batched(
                    || text.clone(),
                    |text| suite.seal(&key, CONTEXT, text, &mut OpensslEntropy).unwrap(),
                    BatchSize::SmallInput,
                );
            });
            let sealed = suite.seal(&key, CONTEXT, text.clone(), &mut OpensslEntropy).unwrap();
            group.bench_function(format!("open {name}"), |bencher| {
                bencher.iter_batched(
                    || sealed.clone(),
                    |sealed| suite.open(&key, CONTEXT, sealed).unwrap(),
                    BatchSize::SmallInput,
                );
            });
        }
    }
}

/// A whole message, with its JSON and the Ed25519 signature, as it is sent and received.
fn envelopes(criterion: &mut Criterion) {
    let keys = PrivateKeySet::generate("@alice:example.org", "ALICEBOX", &mut OpensslEntropy).unwrap();
    let (public, key) = (keys.public().unwrap(), ResourceKey::generate(&mut OpensslEntropy).unwrap());
    let payload = Payload {
        room_id: "!r".to_owned(),
        event_type: "m.room.message".to_owned(),
        content: serde_json::json!({ "msgtype": "m.text", "body": "x".repeat(1 << 10) }),
    };
    for suite in SUITES {
        let mut group = criterion.benchmark_group(format!("v{}", suite.version));
        group.throughput(Throughput::Elements(1));
        let request = SealRequest { suite: suite.id, key: &key, keys: &keys, counter: 0 };
        group.bench_function("seal a message of 1 KiB", |bencher| {
            bencher.iter(|| Envelope::seal(request, &payload, &mut OpensslEntropy).unwrap());
        });
        let envelope = Envelope::seal(request, &payload, &mut OpensslEntropy).unwrap();
        group.bench_function("open a message of 1 KiB", |bencher| {
            bencher.iter(|| envelope.open("!r", &public, &key).unwrap());
        });
    }
}

criterion_group!(benches, wraps, content, envelopes);
criterion_main!(benches);
