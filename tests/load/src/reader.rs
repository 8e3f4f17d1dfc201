//! Readers: each follows its `/sync` and writes down what arrives, when and in which order.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::{
    Error,
    account::{User, in_room},
    api::{Call, Failure, encode},
    check::{Acknowledged, Message, Verdict},
    report::Latencies,
    room::{Event, Mark},
};

/// A message that was acknowledged so long ago should have arrived: the long-poll that waits for it is looked into.
const LATE_AFTER: Duration = Duration::from_secs(1);
/// How often a long-poll that goes on is asked whether it should.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long a long-poll may go on after a sync with the same token has answered with news.
const GRACE: Duration = Duration::from_millis(500);
/// How long a reader that was refused waits.
const PAUSE: Duration = Duration::from_millis(200);

/// What all readers and senders of a run share.
#[derive(Debug)]
pub struct Board {
    /// When the run began.
    pub start: Instant,
    acknowledged: Mutex<Acknowledged>,
    /// The newest acknowledgements of each stream with their times.
    recent: Mutex<HashMap<String, VecDeque<(Instant, Message)>>>,
    end: watch::Sender<bool>,
    /// How long readers wait for what is missing, once nothing more is sent.
    patience: Duration,
}

impl Board {
    /// The board of a run that begins now. Readers wait for `patience` for what is missing at its end.
    pub fn new(patience: Duration) -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            acknowledged: Mutex::default(),
            recent: Mutex::default(),
            end: watch::Sender::new(false),
            patience,
        })
    }

    /// The mark of a message that is due now or was at `due`.
    pub fn mark(&self, lane: u64, number: u64, due: Instant) -> Mark {
        let due = due.saturating_duration_since(self.start).as_micros();
        Mark { lane, number, due: u64::try_from(due).unwrap_or(u64::MAX) }
    }

    /// Notes that the server acknowledged a message.
    pub fn acknowledge(&self, stream: &str, message: Message) {
        lock(&self.acknowledged).add(stream, message);
        let now = Instant::now();
        let mut recent = lock(&self.recent);
        let recent = match recent.get_mut(stream) {
            Some(recent) => recent,
            None => recent.entry(stream.to_owned()).or_default(),
        };
        recent.push_back((now, message));
        // One that is old enough to be missed is enough.
        while recent.get(1).is_some_and(|(time, _)| now.duration_since(*time) > LATE_AFTER) {
            recent.pop_front();
        }
    }

    /// What was acknowledged.
    pub fn acknowledged(&self) -> MutexGuard<'_, Acknowledged> {
        lock(&self.acknowledged)
    }

    /// Says that nothing more will be sent.
    pub fn end(&self) {
        self.end.send_replace(true);
    }

    /// Whether a message is missing that was acknowledged a while ago.
    fn is_due(&self, stream: &str, seen: &HashSet<Message>) -> bool {
        let now = Instant::now();
        let recent = lock(&self.recent);
        let Some(recent) = recent.get(stream) else { return false };
        recent.iter().any(|(time, message)| now.duration_since(*time) > LATE_AFTER && !seen.contains(message))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one reader found.
#[derive(Debug)]
pub struct Journal {
    /// How many messages of the run arrived.
    pub deliveries: u64,
    /// How long each took from the time at which it was due.
    pub latencies: Latencies,
    /// What was wrong.
    pub verdict: Verdict,
    /// Syncs that failed.
    pub failures: Vec<Failure>,
    /// In which order each stream's messages arrived.
    pub orders: Vec<Order>,
}

/// In which order the messages of a stream reached one reader.
#[derive(Debug)]
pub struct Order {
    /// The stream.
    pub stream: String,
    /// The user who read it.
    pub reader: String,
    /// What arrived.
    pub messages: Vec<Message>,
}

/// What happens to one user.
struct Reader {
    user: User,
    board: Arc<Board>,
    filter: String,
    since: String,
    /// What arrived in each stream that the user follows: rooms by their ids, the inbox by the user's id.
    streams: HashMap<String, Stream>,
    journal: Journal,
}

#[derive(Default)]
struct Stream {
    seen: HashSet<Message>,
    order: Vec<Message>,
}

#[derive(Deserialize)]
struct Answer {
    next_batch: String,
    #[serde(default)]
    rooms: Rooms,
    #[serde(default)]
    to_device: Events,
}

#[derive(Default, Deserialize)]
struct Rooms {
    #[serde(default)]
    join: HashMap<String, Joined>,
}

#[derive(Deserialize)]
struct Joined {
    #[serde(default)]
    timeline: Timeline,
}

#[derive(Default, Deserialize)]
struct Timeline {
    #[serde(default)]
    events: Vec<Event>,
    #[serde(default)]
    limited: bool,
    prev_batch: Option<String>,
}

#[derive(Default, Deserialize)]
struct Events {
    #[serde(default)]
    events: Vec<Event>,
}

/// The filter that readers use, as the server knows it: long timelines and no presence.
///
/// # Errors
/// The server refuses it.
pub async fn filter(user: &User) -> Result<String, Error> {
    let filter = json!({
        "room": { "timeline": { "limit": 100 }, "state": { "lazy_load_members": true } },
        "presence": { "types": [] },
    });
    let path = format!("/user/{}/filter", encode(&user.id));
    let answer = user.need("filter", &Call::post(path, filter)).await?;
    Ok(answer["filter_id"].as_str().unwrap_or_default().to_owned())
}

/// Starts a reader for the streams given: room ids, and the user's own id for to-device messages. Its first sync is done when
/// this returns.
///
/// # Errors
/// The first sync is refused.
pub async fn start(
    user: User,
    streams: Vec<String>,
    board: Arc<Board>,
) -> Result<JoinHandle<Result<Journal, Error>>, Error> {
    let filter = filter(&user).await?;
    let first = user.need("the first sync", &Call::get(format!("/sync?timeout=0&filter={filter}"))).await?;
    let since = first["next_batch"].as_str().unwrap_or_default().to_owned();
    let journal = Journal {
        deliveries: 0,
        latencies: Latencies::new()?,
        verdict: Verdict::default(),
        failures: Vec::new(),
        orders: Vec::new(),
    };
    let streams = streams.into_iter().map(|stream| (stream, Stream::default())).collect();
    let reader = Reader { user, board, filter, since, streams, journal };
    Ok(tokio::spawn(reader.run()))
}

/// Waits for readers and adds up what they found.
///
/// # Errors
/// One of them ended early.
pub async fn finish(
    board: &Board,
    readers: Vec<JoinHandle<Result<Journal, Error>>>,
) -> Result<Journal, Error> {
    board.end();
    let mut all = Journal {
        deliveries: 0,
        latencies: Latencies::new()?,
        verdict: Verdict::default(),
        failures: Vec::new(),
        orders: Vec::new(),
    };
    for reader in readers {
        let journal = reader.await.map_err(|error| Error::server("a reader", error))??;
        all.deliveries += journal.deliveries;
        all.latencies.add(&journal.latencies);
        all.verdict.add(journal.verdict);
        all.failures.extend(journal.failures);
        all.orders.extend(journal.orders);
    }
    Ok(all)
}

impl Reader {
    async fn run(mut self) -> Result<Journal, Error> {
        let mut end = self.board.end.subscribe();
        while !*end.borrow() {
            let polled = tokio::select! {
                polled = self.poll() => polled,
                _ = end.changed() => break,
            };
            self.take_or_pause(polled).await?;
        }
        let deadline = Instant::now() + self.board.patience;
        while !self.has_all() && Instant::now() < deadline {
            let call = self.call(500);
            let polled = self.user.ok(&call).await;
            self.take_or_pause(polled).await?;
        }
        let acknowledged = self.board.acknowledged();
        for (name, stream) in std::mem::take(&mut self.streams) {
            self.journal.verdict.compare(&acknowledged, &name, &self.user.id, &stream.order);
            let reader = self.user.id.clone();
            self.journal.orders.push(Order { stream: name, reader, messages: stream.order });
        }
        drop(acknowledged);
        Ok(self.journal)
    }

    fn call(&self, timeout: u64) -> Call {
        let (filter, since) = (&self.filter, encode(&self.since));
        Call::get(format!("/sync?timeout={timeout}&filter={filter}&since={since}"))
    }

    /// One long-poll. If it hangs although there is news, that is noted.
    async fn poll(&mut self) -> Result<Value, Failure> {
        let (user, call) = (self.user.clone(), self.call(30_000));
        let mut poll = std::pin::pin!(user.ok(&call));
        loop {
            tokio::select! {
                answer = &mut poll => return answer,
                () = sleep(LOOK_EVERY) => {}
            }
            if !self.misses_something() || !self.probe().await {
                continue;
            }
            // Where processor time is short, the answer may be here and only not have been looked at. Whoever has had another
            // answer since has had the time for this one.
            for wait in [GRACE, Duration::ZERO] {
                tokio::select! {
                    biased;
                    answer = &mut poll => return answer,
                    () = async { sleep(wait).await; self.probe().await; } => {}
                }
            }
            let example = format!("a long-poll of {} hung while there was news", self.user.id);
            self.journal.verdict.late(example);
            return poll.await;
        }
    }

    fn misses_something(&self) -> bool {
        self.streams.iter().any(|(name, stream)| self.board.is_due(name, &stream.seen))
    }

    /// Whether a sync with the same token has news at once.
    async fn probe(&self) -> bool {
        let Ok(answer) = self.user.ok(&self.call(0)).await else { return false };
        let Ok(answer) = serde_json::from_value::<Answer>(answer) else { return false };
        !answer.to_device.events.is_empty()
            || answer.rooms.join.values().any(|room| !room.timeline.events.is_empty())
    }

    async fn take_or_pause(&mut self, polled: Result<Value, Failure>) -> Result<(), Error> {
        match polled {
            Ok(answer) => self.take(answer).await,
            Err(failure) => {
                self.refused(failure).await;
                Ok(())
            }
        }
    }

    /// Notes a failure, and goes on with the next replica after a pause.
    async fn refused(&mut self, failure: Failure) {
        self.journal.failures.push(failure);
        self.user = self.user.at(self.user.replica + 1);
        sleep(PAUSE).await;
    }

    async fn take(&mut self, answer: Value) -> Result<(), Error> {
        let answer: Answer =
            serde_json::from_value(answer).map_err(|error| Error::server("an answer of /sync", error))?;
        for (room, joined) in answer.rooms.join {
            let mut marks: Vec<_> = joined.timeline.events.iter().filter_map(Event::mark).collect();
            if let Some(before) = joined.timeline.prev_batch.filter(|_| joined.timeline.limited) {
                let mut missing = self.missing(&room, before).await?;
                missing.append(&mut marks);
                marks = missing;
            }
            self.arrived(&room, &marks);
        }
        let inbox: Vec<_> = answer.to_device.events.iter().filter_map(Event::mark).collect();
        let own = self.user.id.clone();
        self.arrived(&own, &inbox);
        self.since = answer.next_batch;
        Ok(())
    }

    /// The messages before a gap's end, back to one that was seen, oldest first.
    async fn missing(&mut self, room: &str, before: String) -> Result<Vec<Mark>, Error> {
        let mut found = Vec::new();
        let mut from = Some(before);
        while let Some(token) = from {
            let path = in_room(room, &format!("/messages?dir=b&limit=100&from={}", encode(&token)));
            let call = Call::get(path);
            let page = loop {
                match self.user.ok(&call).await {
                    Ok(page) => break page,
                    Err(failure) if Self::is_final(&failure) => {
                        return Err(Error::server("messages of a gap", failure));
                    }
                    Err(failure) => self.refused(failure).await,
                }
            };
            from = page["end"].as_str().map(str::to_owned);
            for event in page["chunk"].as_array().into_iter().flatten() {
                let event: Event = serde_json::from_value(event.clone())
                    .map_err(|error| Error::server("messages", error))?;
                let Some(mark) = event.mark() else { continue };
                if self.streams.get(room).is_some_and(|stream| stream.seen.contains(&mark.message())) {
                    from = None;
                    break;
                }
                found.push(mark);
            }
        }
        found.reverse();
        Ok(found)
    }

    /// Whether asking again would not help: the server understood and refused.
    fn is_final(failure: &Failure) -> bool {
        failure.0.starts_with('4') && !failure.0.starts_with("429")
    }

    fn arrived(&mut self, stream: &str, marks: &[Mark]) {
        let Some(stream) = self.streams.get_mut(stream) else { return };
        for mark in marks {
            stream.order.push(mark.message());
            if stream.seen.insert(mark.message()) {
                self.journal.deliveries += 1;
                self.journal.latencies.record(mark.age(self.board.start));
            }
        }
    }

    fn has_all(&self) -> bool {
        let acknowledged = self.board.acknowledged();
        self.streams.iter().all(|(name, stream)| acknowledged.is_complete(name, &stream.seen))
    }
}
