//! Clients while a fault is on: they send, insist until they are acknowledged, and read everything.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use keystead_load::{
    account::{self, User, in_room},
    api::{Api, Call, Failure, unique},
    check::{Message, Verdict},
    reader::{self, Board, Journal},
    room::{self, MARK, Mark, Room},
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{Result, replica::SECRET};

const ROOMS: usize = 6;
const MEMBERS: usize = 4;
/// How long a client waits for an answer before it tries again.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a client that was refused waits before it tries again.
const PAUSE: Duration = Duration::from_millis(250);
/// How long a client insists, and a reader waits for what is missing, once the load has ended.
const PATIENCE: Duration = Duration::from_secs(90);
/// How often each replica is asked whether it is ready, and how long it may take to say so.
const PROBE_EVERY: Duration = Duration::from_millis(100);
const PROBE: Duration = Duration::from_secs(3);

/// Clients at work.
pub struct Load {
    board: Arc<Board>,
    notes: Arc<Notes>,
    rooms: Arc<Vec<Room>>,
    stop: watch::Sender<bool>,
    senders: Vec<JoinHandle<()>>,
    probes: Vec<JoinHandle<()>>,
    readers: Vec<JoinHandle<std::result::Result<Journal, keystead_load::Error>>>,
    replicas: usize,
}

/// What the clients have seen so far.
#[derive(Default)]
struct Notes {
    acknowledged: Mutex<Vec<(Instant, usize)>>,
    failed: Mutex<Vec<(Instant, String)>>,
    probes: Mutex<Vec<Probe>>,
}

/// Whether a replica said that it is ready.
struct Probe {
    asked: Instant,
    answered: Instant,
    replica: usize,
    ready: bool,
}

/// What one client sends, and to whom.
#[derive(Clone)]
struct Lane {
    number: u64,
    sender: User,
    /// A room's id; for a message to a device the user's.
    stream: String,
    /// The device, if it is one.
    device: Option<String>,
    habits: Habits,
}

/// How clients behave.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// How long a client waits after each acknowledgement.
    pub pause: Duration,
    /// How many bytes of text a message has.
    pub size: usize,
}

/// What the clients saw in all.
pub struct Outcome {
    /// Acknowledged messages.
    pub acknowledged: usize,
    /// How long it took at most from one acknowledgement to the next.
    pub longest_gap: Duration,
    /// What senders and readers were refused, by status and `errcode`, and how often.
    pub failures: BTreeMap<String, u64>,
    /// When the last failure was.
    pub last_failure: Option<Instant>,
    /// What was lost, doubled, reordered or late.
    pub verdict: Verdict,
}

impl Load {
    /// Makes accounts and rooms, and begins. Each client sends, waits a while after it was acknowledged, and sends again.
    ///
    /// # Errors
    /// The servers do not do what the load rests on.
    pub async fn start(urls: &[String], habits: Habits) -> Result<Self> {
        let api = Api::new(urls)?;
        let users = account::register(&api, Some(SECRET), ROOMS * MEMBERS).await?;
        let rooms = Arc::new(room::make_several(&users, MEMBERS).await?);
        let board = Board::new(PATIENCE);
        let notes = Arc::<Notes>::default();
        let mut readers = Vec::new();
        for room in rooms.iter() {
            for member in &room.members {
                let streams = vec![room.id.clone(), member.id.clone()];
                readers.push(reader::start(member.clone(), streams, board.clone()).await?);
            }
        }
        let stop = watch::Sender::new(false);
        let senders = lanes(&rooms, habits)
            .into_iter()
            .map(|lane| tokio::spawn(lane.run(board.clone(), notes.clone(), stop.subscribe())))
            .collect();
        let probes =
            (0..urls.len()).map(|replica| tokio::spawn(probe(api.clone(), replica, notes.clone()))).collect();
        Ok(Self { board, notes, rooms, stop, senders, probes, readers, replicas: urls.len() })
    }

    /// Waits until each replica is ready and has acknowledged something after `since`, and gives how long that took.
    ///
    /// # Errors
    /// It takes longer than `patience`.
    pub async fn recovered(&self, since: Instant, patience: Duration) -> Result<Duration> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(recovered) = self.notes.recovered(since, self.replicas) {
                return Ok(recovered.duration_since(since));
            }
            sleep(Duration::from_millis(50)).await;
        }
        Err(format!("a replica is not itself again {patience:?} after the fault").into())
    }

    /// How long after `since` a replica had first said that it is not ready, or had said nothing for so long that nobody would
    /// wait for it; `None` if none did.
    pub fn first_unready(&self, since: Instant) -> Option<Duration> {
        let probes = lock(&self.notes.probes);
        let times = probes.iter().filter(|probe| probe.answered >= since && !probe.ready);
        times.map(|probe| probe.answered.duration_since(since)).min()
    }

    /// How many messages were acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        lock(&self.notes.acknowledged).len()
    }

    /// How many of the failures so far begin with this text.
    pub fn failed(&self, beginning: &str) -> usize {
        lock(&self.notes.failed).iter().filter(|(_, failure)| failure.starts_with(beginning)).count()
    }

    /// A member of a room, and the room's id.
    ///
    /// # Errors
    /// There is no room.
    pub fn member(&self) -> Result<(&User, &str)> {
        let room = self.rooms.first().ok_or("no room")?;
        Ok((room.members.first().ok_or("no member")?, &room.id))
    }

    /// Ends it, and compares what was acknowledged with what every reader saw and what each replica says.
    ///
    /// # Errors
    /// A reader was refused for good.
    pub async fn finish(self) -> Result<Outcome> {
        self.stop.send_replace(true);
        for sender in self.senders {
            sender.await?;
        }
        for probe in &self.probes {
            probe.abort();
        }
        let journal = reader::finish(&self.board, self.readers).await?;
        let mut verdict = journal.verdict;
        let mut histories = HashMap::new();
        for room in self.rooms.iter() {
            let member = room.members.first().ok_or("no member")?;
            for replica in 0..self.replicas {
                let history = room::history(&member.at(replica), &room.id).await?;
                let from = format!("/messages of replica {replica}");
                verdict.compare(&self.board.acknowledged(), &room.id, &from, &history);
                let first: &mut Vec<Message> = histories.entry(room.id.clone()).or_default();
                if replica == 0 {
                    *first = history;
                } else if *first != history {
                    verdict.reordered += 1;
                    verdict.examples.push(format!("{from} differs from that of replica 0 in {}", room.id));
                }
            }
        }
        for order in journal.orders {
            let Some(history) = histories.get(&order.stream) else { continue };
            let defects = out_of_order(history, &order.messages);
            if defects > 0 {
                verdict.reordered += defects;
                verdict.examples.push(format!("{} saw {} in another order", order.reader, order.stream));
            }
        }
        let mut failures = BTreeMap::new();
        let failed = lock(&self.notes.failed);
        let reading = journal.failures.iter().map(|Failure(reason)| format!("sync: {reason}"));
        for failure in failed.iter().map(|(_, failure)| failure.clone()).chain(reading) {
            *failures.entry(failure).or_default() += 1;
        }
        let acknowledged = lock(&self.notes.acknowledged);
        let gaps = acknowledged.windows(2).filter_map(|pair| match pair {
            [(one, _), (next, _)] => Some(next.saturating_duration_since(*one)),
            _ => None,
        });
        Ok(Outcome {
            acknowledged: acknowledged.len(),
            longest_gap: gaps.max().unwrap_or_default(),
            failures,
            last_failure: failed.iter().map(|(time, _)| *time).max(),
            verdict,
        })
    }
}

impl Notes {
    fn recovered(&self, since: Instant, replicas: usize) -> Option<Instant> {
        let (probes, acknowledged) = (lock(&self.probes), lock(&self.acknowledged));
        let mut last = since;
        for replica in 0..replicas {
            let is_ready = |probe: &&Probe| probe.asked >= since && probe.replica == replica && probe.ready;
            let ready = probes.iter().find(is_ready)?;
            let acknowledged = acknowledged.iter().find(|(time, by)| *time >= since && *by == replica)?;
            last = last.max(ready.answered).max(acknowledged.0);
        }
        Some(last)
    }
}

/// Each member sends to its room, and to the next member's device.
fn lanes(rooms: &[Room], habits: Habits) -> Vec<Lane> {
    let mut lanes: Vec<Lane> = Vec::new();
    let mut add = |sender: &User, stream: &str, device: Option<String>| {
        let number = u64::try_from(lanes.len()).unwrap_or_default();
        lanes.push(Lane { number, sender: sender.clone(), stream: stream.to_owned(), device, habits });
    };
    for room in rooms {
        for (member, next) in room.members.iter().zip(room.members.iter().cycle().skip(1)) {
            add(member, &room.id, None);
            add(member, &next.id, Some(next.device.clone()));
        }
    }
    lanes
}

impl Lane {
    /// Sends until it is told to stop. A message is given up only if nobody takes it long after that.
    async fn run(self, board: Arc<Board>, notes: Arc<Notes>, stop: watch::Receiver<bool>) {
        let mut number = 0;
        while !*stop.borrow() {
            let mark = board.mark(self.number, number, Instant::now());
            let call = self.call(mark);
            let mut replica = self.sender.replica;
            let mut stopped = None;
            loop {
                match self.attempt(replica, &call).await {
                    Ok(()) => {
                        board.acknowledge(&self.stream, mark.message());
                        lock(&notes.acknowledged)
                            .push((Instant::now(), replica % self.sender.api().urls().len()));
                        break;
                    }
                    Err(reason) => lock(&notes.failed).push((Instant::now(), reason)),
                }
                if *stop.borrow() && stopped.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                    return;
                }
                replica += 1;
                sleep(PAUSE).await;
            }
            number += 1;
            sleep(self.habits.pause).await;
        }
    }

    /// The same request, with the same transaction id, however often it has to be sent.
    fn call(&self, mark: Mark) -> Call {
        let text = "x".repeat(self.habits.size);
        match &self.device {
            None => {
                let path = in_room(&self.stream, &format!("/send/m.room.message/{}", unique()));
                Call::put(path, json!({ "msgtype": "m.text", "body": text, MARK: mark }))
            }
            Some(device) => {
                let content: Value = json!({ "text": text, MARK: mark });
                let messages = json!({ &self.stream: { device: content } });
                let path = format!("/sendToDevice/org.keystead.load/{}", unique());
                Call::put(path, json!({ "messages": messages }))
            }
        }
    }

    async fn attempt(&self, replica: usize, call: &Call) -> std::result::Result<(), String> {
        let asking = self.sender.api().answer(replica, Some(&self.sender.token), call);
        let answer = match timeout(ANSWER, asking).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(failure)) => return Err(failure.0),
            Err(_) => return Err(format!("no answer in {ANSWER:?}")),
        };
        if answer.status == 200 {
            return Ok(());
        }
        let mut reason = format!("{} {}", answer.status, answer.json()["errcode"].as_str().unwrap_or("-"));
        if [429, 503].contains(&answer.status) && !answer.tells_when {
            reason.push_str(" without Retry-After");
        }
        Err(reason)
    }
}

async fn probe(api: Api, replica: usize, notes: Arc<Notes>) {
    let call = Call::get_own("/ready");
    loop {
        let asked = Instant::now();
        let answer = timeout(PROBE, api.answer(replica, None, &call)).await;
        let ready = answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.status == 200));
        lock(&notes.probes).push(Probe { asked, answered: Instant::now(), replica, ready });
        sleep(PROBE_EVERY).await;
    }
}

/// How many messages a reader saw after one that stands behind them in the history.
fn out_of_order(history: &[Message], seen: &[Message]) -> u64 {
    let places: HashMap<_, _> =
        history.iter().enumerate().map(|(place, message)| (*message, place)).collect();
    let mut furthest = None;
    let mut defects = 0;
    for place in seen.iter().filter_map(|message| places.get(message)) {
        if furthest.is_some_and(|furthest| place <= furthest) {
            defects += 1;
        } else {
            furthest = Some(place);
        }
    }
    defects
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_order_is_found_and_a_shorter_one_is_none() {
        let messages = |numbers: &[u64]| -> Vec<Message> {
            numbers.iter().map(|number| Message { lane: *number, number: 0 }).collect()
        };
        let history = messages(&[1, 2, 3, 4]);
        for (seen, defects) in
            [(&[1, 2, 3, 4][..], 0), (&[1, 3], 0), (&[2, 1, 3], 1), (&[1, 2, 2], 1), (&[4, 3, 2], 2)]
        {
            assert_eq!(out_of_order(&history, &messages(seen)), defects, "{seen:?}");
        }
    }

    #[test]
    fn a_cluster_is_recovered_when_every_replica_is() {
        let notes = Notes::default();
        let since = Instant::now();
        let at = |ms| since + Duration::from_millis(ms);
        for (ms, replica, ready) in [(1, 0, true), (1, 1, false), (30, 1, true)] {
            lock(&notes.probes).push(Probe { asked: at(ms), answered: at(ms), replica, ready });
        }
        lock(&notes.acknowledged).extend([(since - Duration::from_millis(5), 1), (at(2), 0)]);
        assert_eq!(notes.recovered(since, 2), None, "replica 1 has acknowledged nothing since");
        lock(&notes.acknowledged).push((at(20), 1));
        assert_eq!(notes.recovered(since, 2), Some(at(30)));
    }
}
