//! Holding the homeserver's log against what this KeyBox saw itself.

mod server_log;

use std::collections::BTreeMap;
use std::time::Duration;

use keystead_keybox::OpensslEntropy;
use keystead_keybox::audit_log::{Direction, Entry, Head, LogEvent, check_head};
use keystead_keybox::fingerprint::{matches_key, of_key};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use self::server_log::ServerLog;
use super::{Client, ClientError};
use crate::api::ServerKey;
use crate::engine::{Record, RecordError, part_name};

/// The record of what was last seen of the server's log.
const NAME: &str = "audit";
/// How often the KeyBox looks for messages that still wait for it, before it compares.
const MAX_CATCH_UP: u32 = 1_000;

/// What the last audit saw: nothing of it may be taken back.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Seen {
    key: ServerKey,
    head: Head,
}

/// What an audit found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditReport {
    /// How far the server's log reaches.
    pub server: Head,
    /// How far this KeyBox's own log reaches.
    pub own: Head,
    /// How many entries of the server's log were held against the KeyBox's own.
    pub compared: usize,
    /// All that does not fit; empty if the server's log can be believed as far as this KeyBox can tell.
    pub differences: Vec<Difference>,
}

/// Something that should not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "difference", rename_all = "snake_case")]
pub enum Difference {
    /// The server noted something else than what this KeyBox saw.
    Altered {
        /// What the KeyBox saw.
        own: LogEvent,
        /// What the server says.
        server: LogEvent,
    },
    /// The server's log is not a chain at this entry.
    BrokenChain {
        /// The number of the entry that should be here.
        seq: u64,
        /// What is wrong.
        problem: String,
    },
    /// The head is not signed by the server's key, or is of another log.
    HeadSignature {
        /// What is wrong.
        problem: String,
    },
    /// The log reaches less far than it did.
    HeadWentBack {
        /// How far it reached.
        seen: u64,
        /// How far it reaches.
        now: u64,
    },
    /// The KeyBox saw it, the server does not say so.
    Hidden {
        /// What the KeyBox saw.
        own: LogEvent,
    },
    /// The server says so, but the KeyBox saw nothing of it.
    Invented {
        /// What the server says.
        server: LogEvent,
    },
    /// The entries do not lead to the head that the server signed.
    NotTheHead {
        /// How far the signed head reaches.
        seq: u64,
    },
    /// The KeyBox's own log is not a chain: its store was altered.
    OwnLog {
        /// What is wrong.
        problem: String,
    },
    /// What was seen before is not what the log says now.
    Rewritten {
        /// Up to where it was seen.
        seq: u64,
    },
    /// The server signs with another key than before, or than the one that was to be accepted.
    ServerKeyChanged {
        /// The name of the key that it signs with now.
        key_name: String,
        /// That key's fingerprint.
        fingerprint: String,
    },
    /// An entry of the server's log is no JSON, or something else stands in its place.
    Unreadable {
        /// Its number.
        seq: u64,
    },
}

impl std::fmt::Display for Difference {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Altered { own, server } => {
                write!(formatter, "altered: the server says {}, but it was {}", text(server), text(own))
            }
            Self::BrokenChain { seq, problem } => {
                write!(formatter, "the chain of the server's log is broken at entry {seq}: {problem}")
            }
            Self::HeadSignature { problem } => write!(formatter, "the head of the server's log: {problem}"),
            Self::HeadWentBack { seen, now } => {
                write!(formatter, "the server's log had {seen} entries, and now has {now}")
            }
            Self::Hidden { own } => write!(formatter, "hidden by the server: {}", text(own)),
            Self::Invented { server } => write!(formatter, "invented by the server: {}", text(server)),
            Self::NotTheHead { seq } => {
                write!(formatter, "the entries do not lead to the signed head at entry {seq}")
            }
            Self::OwnLog { problem } => write!(formatter, "this KeyBox's own log was altered: {problem}"),
            Self::Rewritten { seq } => {
                write!(formatter, "the server has rewritten entries up to {seq} that were seen before")
            }
            Self::ServerKeyChanged { key_name, fingerprint } => {
                write!(
                    formatter,
                    "the server signs with another key than before or than you accept, ed25519:{key_name}; ask its administrator, not the \
                     server, for the fingerprint of the key that it should be, and give it to keybox audit --accept-signing-key FINGERPRINT. \
                     The server shows\n{fingerprint}"
                )
            }
            Self::Unreadable { seq } => {
                write!(
                    formatter,
                    "entry {seq} of the homeserver's log cannot be read: it was altered or removed there"
                )
            }
        }
    }
}

fn text(event: &LogEvent) -> String {
    serde_json::to_string(event).unwrap_or_else(|_| format!("{event:?}"))
}

impl Client {
    /// What this KeyBox noted itself, oldest first.
    pub async fn own_log(&mut self) -> Result<Vec<Map<String, Value>>, ClientError> {
        let _lock = self.begin().await?;
        let (_, parts, newest) = self.engine.log_state();
        let newest = newest.to_vec();
        let corrupt = |source| RecordError::Corrupt { name: "log".to_owned(), source };
        let mut entries = Vec::new();
        for part in 0..parts {
            let record = self.store.load_one(&part_name(part))?;
            let lines: Vec<String> = record
                .map(|record| serde_json::from_slice(&record.json))
                .transpose()
                .map_err(corrupt)?
                .unwrap_or_default();
            entries.extend(lines);
        }
        entries.extend(newest);
        Ok(entries
            .iter()
            .map(|line| serde_json::from_str(line))
            .collect::<Result<_, _>>()
            .map_err(corrupt)?)
    }

    /// Compares the server's log with this KeyBox's own, and with what was seen of it before.
    ///
    /// Of what happened to the user's other KeyBoxes this one cannot tell whether it is true.
    pub async fn audit(&mut self) -> Result<AuditReport, ClientError> {
        self.audit_accepting(None).await
    }

    /// [`Self::audit`] with the fingerprint of a key that the server is to sign with now, in place of the one that was seen before. A person has it
    /// from who runs the server, by another way than the server.
    ///
    /// The new key is remembered if the server shows it and there is no difference: its log goes on from the head that was seen under
    /// the old one.
    pub async fn audit_accepting(&mut self, fingerprint: Option<&str>) -> Result<AuditReport, ClientError> {
        let seen = self.seen()?;
        let key = self.api.server_key().await?;
        let mut server = ServerLog::new(&self.account().user_id);
        if !is_trusted(&key, seen.as_ref().map(|seen| &seen.key), fingerprint) {
            server.differences.push(Difference::ServerKeyChanged {
                key_name: key.key_name.clone(),
                fingerprint: of_key(&key.key),
            });
            server.trusted = seen.as_ref().map(|seen| seen.key.clone());
        }
        let mut known = seen.as_ref().map(|seen| seen.head.clone());
        self.read_log(&mut server, &key, &mut known).await?;
        // All that the server notes up to here has arrived when no message waits any more; what comes meanwhile may be missing here.
        let settled = server.events.len();
        self.catch_up().await?;
        self.read_log(&mut server, &key, &mut known).await?;
        let own = self.own_log().await?;
        let ServerLog { walked, events, mut differences, .. } = server;
        let own_head = self.check_own(&own, &mut differences);
        let compared = compare(&self.account().keybox_id, &own, &events, settled, &mut differences);
        if differences.is_empty() {
            self.remember(Seen { key, head: walked.clone() }).await?;
        }
        Ok(AuditReport { server: walked, own: own_head, compared, differences })
    }

    /// Reads on in the server's log, up to the head that it signs now.
    async fn read_log(
        &mut self,
        log: &mut ServerLog,
        key: &ServerKey,
        known: &mut Option<Head>,
    ) -> Result<(), ClientError> {
        let signed = self.api.log_head().await?;
        let trusted = log.trusted.as_ref().unwrap_or(key);
        let name = (trusted.key_name.as_str(), &trusted.key);
        let head = match check_head(&signed, &log.user_id, &trusted.server_name, name) {
            Ok(head) => Some(head),
            Err(error) => {
                let problem = error.to_string();
                log.note(Difference::HeadSignature { problem });
                None
            }
        };
        if let (Some(head), Some(known)) = (&head, &known)
            && head.seq < known.seq
        {
            log.note(Difference::HeadWentBack { seen: known.seq, now: head.seq });
        }
        log.take_all(self.api.whole_log(log.whole_to()).await?, known.as_ref(), head.as_ref());
        if head.is_some() {
            *known = head;
        }
        Ok(())
    }

    /// Takes in all messages that wait.
    async fn catch_up(&mut self) -> Result<(), ClientError> {
        for _ in 0..MAX_CATCH_UP {
            let before = self.session.sync_token.clone();
            self.sync(Duration::ZERO).await?;
            if self.session.sync_token == before {
                break;
            }
        }
        Ok(())
    }

    fn check_own(&self, own: &[Map<String, Value>], differences: &mut Vec<Difference>) -> Head {
        let mut walked = Head::default();
        for entry in own {
            if let Err(error) = walked.follow(&self.account().user_id, entry) {
                differences.push(Difference::OwnLog { problem: error.to_string() });
                break;
            }
        }
        walked
    }

    fn seen(&self) -> Result<Option<Seen>, ClientError> {
        let Some(record) = self.store.load_one(NAME)? else { return Ok(None) };
        let corrupt = |source| RecordError::Corrupt { name: NAME.to_owned(), source };
        Ok(Some(serde_json::from_slice(&record.json).map_err(corrupt)?))
    }

    async fn remember(&mut self, seen: Seen) -> Result<(), ClientError> {
        let _lock = self.begin().await?;
        let corrupt = |source| RecordError::Corrupt { name: NAME.to_owned(), source };
        let json = Zeroizing::new(serde_json::to_vec(&seen).map_err(corrupt)?);
        self.store.save(&[Record { name: NAME.to_owned(), json }], &mut OpensslEntropy)?;
        Ok(())
    }
}

/// Whether a server may sign with `shown`: with the key that was seen before, if there is one; or with that of the fingerprint that a person accepts, in
/// the name of the same server.
fn is_trusted(shown: &ServerKey, seen: Option<&ServerKey>, accepted: Option<&str>) -> bool {
    match (seen, accepted) {
        (Some(seen), None) => seen == shown,
        (Some(seen), Some(accepted)) => {
            seen.server_name == shown.server_name && matches_key(&shown.key, accepted)
        }
        (None, Some(accepted)) => matches_key(&shown.key, accepted),
        (None, None) => true,
    }
}

/// Holds the server's entries about the KeyBox `keybox_id` against its own. Those from `settled` on may not have arrived yet.
/// Returns how many were compared.
fn compare(
    keybox_id: &str,
    own: &[Map<String, Value>],
    server: &[LogEvent],
    settled: usize,
    differences: &mut Vec<Difference>,
) -> usize {
    let own =
        own.iter().filter_map(|entry| serde_json::from_value::<Entry>(Value::Object(entry.clone())).ok());
    // How often each event was seen.
    let mut seen: BTreeMap<LogEvent, usize> = BTreeMap::new();
    for event in own.filter_map(|entry| comparable(&entry.event, keybox_id)) {
        *seen.entry(event).or_default() += 1;
    }
    let mut invented = Vec::new();
    let mut compared = 0;
    for (index, event) in server.iter().enumerate() {
        let Some(event) = comparable(event, keybox_id) else { continue };
        compared += 1;
        match seen.get_mut(&event).filter(|times| **times > 0) {
            Some(times) => *times -= 1,
            None if index < settled || is_sent(&event) => invented.push(event),
            None => {}
        }
    }
    seen.retain(|_, times| *times > 0);
    for server in invented {
        match seen.iter_mut().find(|(own, times)| **times > 0 && is_version_of(own, &server)) {
            Some((own, times)) => {
                *times -= 1;
                differences.push(Difference::Altered { own: own.clone(), server });
            }
            None => differences.push(Difference::Invented { server }),
        }
    }
    for (own, times) in seen {
        differences.extend(std::iter::repeat_n(Difference::Hidden { own }, times));
    }
    compared
}

/// What both sides must agree on of an event that this KeyBox took part in; `None` for any other.
fn comparable(event: &LogEvent, keybox_id: &str) -> Option<LogEvent> {
    if event.keybox_id() != keybox_id {
        return None;
    }
    let mut event = event.clone();
    match &mut event {
        // The server alone knows name and address, and what another session did to this KeyBox.
        LogEvent::KeyboxRegistered(on) => {
            on.name = None;
            on.address = None;
            on.by = None;
        }
        LogEvent::ResourceKeyGiven(exchange)
        | LogEvent::ResourceKeyAsked(exchange)
        | LogEvent::ResourceKeyRefused(exchange) => exchange.undelivered = false,
        _ => return None,
    }
    Some(event)
}

fn is_sent(event: &LogEvent) -> bool {
    event.exchange().is_some_and(|exchange| exchange.direction == Direction::Sent)
}

/// Whether the two tell of the same thing in different words: the same exchange, or all the same but its name.
fn is_version_of(own: &LogEvent, server: &LogEvent) -> bool {
    let (Some(a), Some(b)) = (own.exchange(), server.exchange()) else { return false };
    let same_kind = std::mem::discriminant(own) == std::mem::discriminant(server);
    let refusal = matches!(own, LogEvent::ResourceKeyRefused(_));
    let same_name = a.reference == b.reference && (!refusal || a.key_id == b.key_id);
    let same_rest = (&a.peer_user_id, &a.peer_keybox_id, &a.room_id, &a.key_id)
        == (&b.peer_user_id, &b.peer_keybox_id, &b.room_id, &b.key_id);
    a.direction == b.direction && ((same_kind && (same_name || same_rest)) || (same_name && same_rest))
}

#[cfg(test)]
mod tests {
    use keystead_keybox::audit_log::{KeyExchange, OnKeyBox};

    use super::*;

    fn given(reference: &str, key_id: &str) -> LogEvent {
        LogEvent::ResourceKeyGiven(KeyExchange {
            keybox_id: "BOX".to_owned(),
            direction: Direction::Received,
            peer_user_id: "@b:x".to_owned(),
            peer_keybox_id: "B".to_owned(),
            room_id: "!r:x".to_owned(),
            key_id: key_id.to_owned(),
            reference: reference.to_owned(),
            undelivered: false,
        })
    }

    fn differences(own: &[LogEvent], server: &[LogEvent], settled: usize) -> Vec<Difference> {
        let mut head = Head::default();
        let own: Vec<_> = own
            .iter()
            .map(|event| serde_json::from_str(&head.append("@a:x", 1, event.clone()).unwrap()).unwrap())
            .collect();
        let mut found = Vec::new();
        compare("BOX", &own, server, settled, &mut found);
        found
    }

    #[test]
    fn another_key_of_the_server_is_taken_by_its_fingerprint_only() {
        let key = |byte: u8, server_name: &str| ServerKey {
            server_name: server_name.to_owned(),
            key_name: byte.to_string(),
            key: [byte; 32],
        };
        let (old, new) = (key(1, "x"), key(2, "x"));
        assert!(is_trusted(&old, None, None), "the first one that is seen");
        assert!(is_trusted(&old, Some(&old), None));
        assert!(!is_trusted(&new, Some(&old), None));
        let fingerprint = of_key(&new.key);
        for spoken in [fingerprint.clone(), "0202".repeat(16), fingerprint.replace('\n', " ")] {
            assert!(is_trusted(&new, Some(&old), Some(&spoken)), "{spoken}");
            assert!(is_trusted(&new, None, Some(&spoken)));
            assert!(!is_trusted(&old, Some(&old), Some(&spoken)), "the server has not changed it yet");
            assert!(!is_trusted(&key(2, "y"), Some(&old), Some(&spoken)), "of another server");
            assert!(!is_trusted(&old, None, Some(&spoken)));
        }
        for wrong in ["", "02", &of_key(&old.key)] {
            assert!(!is_trusted(&new, Some(&old), Some(wrong)), "{wrong}");
        }
    }

    #[test]
    fn what_both_saw_is_no_difference() {
        let renamed =
            LogEvent::KeyboxRenamed(OnKeyBox { keybox_id: "BOX".to_owned(), ..OnKeyBox::default() });
        let other = LogEvent::KeyboxRegistered(OnKeyBox { keybox_id: "C".to_owned(), ..OnKeyBox::default() });
        assert_eq!(differences(&[given("1", "k")], &[other, renamed, given("1", "k")], 3), []);
        assert_eq!(
            differences(&[given("1", "k")], &[given("1", "k"), given("2", "k")], 1),
            [],
            "still under way"
        );
    }

    #[test]
    fn every_difference_is_named() {
        assert_eq!(differences(&[given("1", "k")], &[], 0), [Difference::Hidden { own: given("1", "k") }]);
        let invented = Difference::Invented { server: given("1", "k") };
        assert_eq!(differences(&[], &[given("1", "k")], 1), [invented]);
        let altered = Difference::Altered { own: given("1", "k"), server: given("1", "other") };
        assert_eq!(differences(&[given("1", "k")], &[given("1", "other")], 1), [altered]);
        let twice = Difference::Invented { server: given("1", "k") };
        assert_eq!(differences(&[given("1", "k")], &[given("1", "k"), given("1", "k")], 2), [twice]);
    }
}
