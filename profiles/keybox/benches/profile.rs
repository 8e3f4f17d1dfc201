//! What the suites of the profile cost: wraps, unwraps, and content. `compare` sets the figures beside OpenSSL's own.
//!
//! Times are processor time of all threads, so that what else runs on the machine counts less. How well the cores are used shows
//! where the same work is measured by the clock on the wall, too.

#![allow(missing_docs, reason = "macros of the harness write functions")]
#![allow(clippy::unwrap_used, reason = "a benchmark")]

use std::hint::black_box;
use std::mem;
use std::sync::LazyLock;
use std::time::Duration;

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use rustix::time::{ClockId, clock_gettime};

use keystead_keybox::context::WrapContext;
use keystead_keybox::envelope::{Envelope, Payload, SealRequest};
use keystead_keybox::key_message::{Origin, Recipient, ResourceKeyContent, sign};
use keystead_keybox::key_set::{PrivateKeySet, PublicKeySet};
use keystead_keybox::resource_key::{ResourceKey, ResourceKeyId};
use keystead_keybox::suite::{SUITES, Suite};
use keystead_keybox::{OpensslEntropy, parallel};

const KEYBOXES: usize = 1_000;
const ROOM: &str = "!r3UXd9oTgYpXnI3kCqhOPvYl4vJmWbPzJ0zvMGuTPHI";
/// So few at once that they stay in the cache, as what a program just made does.
const BATCH: BatchSize = BatchSize::NumIterations(16);
const CONTEXT: &[u8] = &[7; 250];

/// Processor time of the process.
struct ProcessorTime;

impl Measurement for ProcessorTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        Duration::new(u64::try_from(time.tv_sec).unwrap(), u32::try_from(time.tv_nsec).unwrap())
    }

    fn end(&self, start: Duration) -> Duration {
        self.start() - start
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

fn context<'a>(suite: &'a Suite, key_id: &'a ResourceKeyId, recipient_keybox: &'a str) -> WrapContext<'a> {
    WrapContext {
        suite: suite.id,
        room_id: ROOM,
        key_id,
        sender: "@alice:example.org",
        sender_keybox: "ALICEBOX",
        recipient: "@bob:example.org",
        recipient_keybox,
    }
}

static BOB: LazyLock<PrivateKeySet> =
    LazyLock::new(|| PrivateKeySet::generate("@bob:example.org", "BOBBOX", &mut OpensslEntropy).unwrap());
static KEY: LazyLock<ResourceKey> = LazyLock::new(|| ResourceKey::generate(&mut OpensslEntropy).unwrap());

/// Many keys take long to make, and what a wrap costs depends on how many keys there are, not on which: 50 keys, each as 20
/// KeyBoxes with a copy of it of their own.
static MANY: LazyLock<Vec<PublicKeySet>> = LazyLock::new(|| {
    let make = || PrivateKeySet::generate("@bob:example.org", "BOBBOX", &mut OpensslEntropy).unwrap();
    let keys: Vec<_> = (0..50).map(|_| make().public().unwrap()).collect();
    let named = |(index, keys): (usize, &PublicKeySet)| {
        let mut keys = keys.clone();
        keys.keybox_id = format!("BOX{index}");
        keys
    };
    keys.iter().cycle().take(KEYBOXES).enumerate().map(named).collect()
});

fn wrap_for_all<M: Measurement>(criterion: &mut Criterion<M>, name: &str) {
    for suite in SUITES {
        let mut group = criterion.benchmark_group(format!("v{}", suite.version));
        group.throughput(Throughput::Elements(KEYBOXES as u64)).sample_size(10);
        group.bench_function(name, |bencher| {
            let id = KEY.id(ROOM);
            let recipients: Vec<_> =
                MANY.iter().map(|keybox| (keybox, context(suite, &id, &keybox.keybox_id))).collect();
            bencher.iter(|| black_box(suite.wrap_all(&KEY, &recipients, &mut OpensslEntropy).unwrap()));
        });
    }
}

/// Wraps, and the key messages that carry them, each signed: what a client does when a room gets a new key.
fn give_to_all<M: Measurement>(criterion: &mut Criterion<M>, name: &str) {
    for suite in SUITES {
        let mut group = criterion.benchmark_group(format!("v{}", suite.version));
        group.throughput(Throughput::Elements(KEYBOXES as u64)).sample_size(10);
        group.bench_function(name, |bencher| {
            let id = KEY.id(ROOM);
            let origin = Origin::sign(&BOB, suite.id, ROOM, &id, 0, "A".repeat(43)).unwrap();
            let recipients: Vec<_> =
                MANY.iter().map(|keybox| (keybox, context(suite, &id, &keybox.keybox_id))).collect();
            let message = |wrap| ResourceKeyContent {
                algorithm: suite.id.to_owned(),
                room_id: ROOM.to_owned(),
                key_id: id.clone(),
                wrap,
                sender_keybox: "BOBBOX".to_owned(),
                exchange_id: "A".repeat(22),
                sent_at: 0,
                origin: origin.clone(),
                closing: None,
            };
            bencher.iter(|| {
                let wraps = suite.wrap_all(&KEY, &recipients, &mut OpensslEntropy).unwrap();
                let named = wraps.into_iter().map(|wrap| message(wrap.unwrap()));
                let messages: Vec<_> = recipients.iter().map(|(keybox, _)| *keybox).zip(named).collect();
                parallel::map(&messages, |(keybox, message)| {
                    let (user_id, keybox_id) = (&*keybox.user_id, &*keybox.keybox_id);
                    sign(message, &BOB, Recipient { user_id, keybox_id }).unwrap()
                })
            });
        });
    }
}

fn by_the_clock(criterion: &mut Criterion) {
    wrap_for_all(criterion, "wrap for 1,000 KeyBoxes, wall clock");
    give_to_all(criterion, "give to 1,000 KeyBoxes, wall clock");
}

fn wraps(criterion: &mut Criterion<ProcessorTime>) {
    wrap_for_all(criterion, "wrap for 1,000 KeyBoxes");
    give_to_all(criterion, "give to 1,000 KeyBoxes");
    for suite in SUITES {
        let mut group = criterion.benchmark_group(format!("v{}", suite.version));
        group.throughput(Throughput::Elements(1)).sample_size(50);
        group.bench_function("wrap for a KeyBox never seen", |bencher| {
            let (id, public) = (KEY.id(ROOM), BOB.public().unwrap());
            let context = context(suite, &id, "BOBBOX");
            bencher.iter_batched(
                || public.clone(),
                |public| suite.wrap(&KEY, &public, &context, &mut OpensslEntropy).unwrap(),
                BATCH,
            );
        });
        group.bench_function("unwrap", |bencher| {
            let (id, public) = (KEY.id(ROOM), BOB.public().unwrap());
            let context = context(suite, &id, "BOBBOX");
            let wrap = suite.wrap(&KEY, &public, &context, &mut OpensslEntropy).unwrap();
            bencher.iter(|| suite.unwrap(&wrap, &BOB, &context));
        });
    }
}

fn content(criterion: &mut Criterion<ProcessorTime>) {
    for suite in SUITES {
        let mut group = criterion.benchmark_group(format!("v{}", suite.version));
        for (size, name) in [(1 << 10, "1 KiB"), (1 << 20, "1 MiB")] {
            group.throughput(Throughput::Bytes(size as u64));
            let text = vec![42_u8; size];
            group.bench_function(format!("seal {name}"), |bencher| {
                // In place, as `openssl speed` does: what comes out is what goes in next.
                let mut text = text.clone();
                bencher.iter(|| {
                    let sealed =
                        suite.seal(&KEY, CONTEXT, mem::take(&mut text), &mut OpensslEntropy).unwrap();
                    text = sealed.ciphertext;
                });
            });
            group.bench_function(format!("open {name}"), |bencher| {
                let sealed = suite.seal(&KEY, CONTEXT, text.clone(), &mut OpensslEntropy).unwrap();
                bencher.iter_batched(
                    || sealed.clone(),
                    |sealed| suite.open(&KEY, CONTEXT, sealed).unwrap(),
                    BATCH,
                );
            });
        }
        // A message under a key that was just received: what was kept beside the key is not there yet.
        group.throughput(Throughput::Bytes(1 << 10));
        group.bench_function("open 1 KiB with a new key", |bencher| {
            let sealed = suite.seal(&KEY, CONTEXT, vec![42; 1 << 10], &mut OpensslEntropy).unwrap();
            bencher.iter_batched(
                || (ResourceKey::from_bytes(KEY.as_bytes()).unwrap(), sealed.clone()),
                |(key, sealed)| suite.open(&key, CONTEXT, sealed).unwrap(),
                BATCH,
            );
        });
    }
}

/// A whole message, with its JSON and the Ed25519 signature, as it is sent and received.
fn envelopes(criterion: &mut Criterion<ProcessorTime>) {
    let payload = Payload {
        room_id: "!r".to_owned(),
        event_type: "m.room.message".to_owned(),
        content: serde_json::json!({ "msgtype": "m.text", "body": "x".repeat(1 << 10) }),
    };
    for suite in SUITES {
        let mut group = criterion.benchmark_group(format!("v{}", suite.version));
        group.throughput(Throughput::Elements(1));
        group.bench_function("seal a message of 1 KiB", |bencher| {
            let request = SealRequest { suite: suite.id, key: &KEY, keys: &BOB, counter: 0 };
            bencher.iter(|| Envelope::seal(request, &payload, &mut OpensslEntropy).unwrap());
        });
        group.bench_function("open a message of 1 KiB", |bencher| {
            let public = BOB.public().unwrap();
            let request = SealRequest { suite: suite.id, key: &KEY, keys: &BOB, counter: 0 };
            let envelope = Envelope::seal(request, &payload, &mut OpensslEntropy).unwrap();
            bencher.iter(|| envelope.open("!r", &public, &KEY).unwrap());
        });
    }
}

criterion_group! {
    name = processor;
    config = Criterion::default().with_measurement(ProcessorTime);
    targets = wraps, content, envelopes
}
criterion_group!(wall, by_the_clock);
criterion_main!(processor, wall);
