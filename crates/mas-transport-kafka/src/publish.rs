//! Publishing: a batch is handed to the client as a whole, which sends it in the order in which it came;
//! each message has its own outcome, and whoever waits is woken once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream;
use mas_transport_core::{
    Confirm, Durability, Error, ErrorKind, Message, Position, Receipt, Result, Topic,
};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseRecord, NoCustomPartitioner, ProducerContext, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, timeout_at};

use crate::BACKEND;
use crate::client::{self, Trouble};
use crate::config::{Acks, Compression, KafkaConfig, prefer};
use crate::error;
use crate::gather::Gather;
use crate::record::Outgoing;
use crate::topics::{Known, LARGEST_LETTER};
use crate::transport::Shared;

/// How long to wait before a queue that is full is tried again.
const FULL: Duration = Duration::from_millis(5);
/// How often a message is sent anew whose topic was gone.
const LOOKS: usize = 3;
/// How many topics are asked for or made side by side.
const TOPICS_AT_A_TIME: usize = 16;
/// How long a message may stay with the client after its outcome was given up as unknown.
const LINGERS: &str = "300000";

/// The client that publishes.
pub(crate) type Producer = ThreadedProducer<Delivered>;

/// Hears what became of messages.
#[derive(Debug, Default)]
pub(crate) struct Delivered {
    trouble: Arc<Trouble>,
    /// The brokers gave this client no producer id.
    refused: AtomicBool,
}

impl Delivered {
    pub(crate) fn new(trouble: Arc<Trouble>) -> Self {
        Self {
            trouble,
            refused: AtomicBool::new(false),
        }
    }

    /// Why a message was given up. A client that gets no producer id has broken for good, and tells of its
    /// messages only that it purged them: it says before why.
    fn cause(&self, told: &KafkaError) -> KafkaError {
        match error::code(told) {
            Some(Code::PurgeQueue) if self.refused.load(Ordering::Acquire) => {
                KafkaError::MessageProduction(Code::ClusterAuthorizationFailed)
            }
            _ => told.clone(),
        }
    }
}

impl ClientContext for Delivered {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // It explains nothing that is asked of this client, which answers all the same: many may read and
        // not write.
        if error::code(&error) == Some(Code::ClusterAuthorizationFailed) {
            tracing::debug!(reason, "a client may not publish");
            self.refused.store(true, Ordering::Release);
            return;
        }
        self.trouble.told(&error, reason);
    }
}

impl ProducerContext<NoCustomPartitioner> for Delivered {
    type DeliveryOpaque = Box<Place>;

    fn delivery(&self, result: &DeliveryResult<'_>, place: Box<Place>) {
        let outcome = match result {
            // The client takes a message for stored when one behind it in its partition was, and then
            // knows no offset. That need not be so: a leader that has just begun refuses one request as
            // too early and takes the next one, because it knows nothing of this producer yet and checks
            // no sequence. Seen with librdkafka 2.12.1 and Kafka 4.3 on a topic that was just made.
            Ok(message) if message.offset() < 0 => {
                Err(KafkaError::MessageProduction(Code::RequestTimedOut))
            }
            Ok(message) => Ok(Receipt {
                position: position(message.partition(), message.offset()),
                durability: place.durability,
                duplicate: false,
            }),
            Err((told, _)) => Err(self.cause(told)),
        };
        place.batch.outcomes.put(place.at, outcome);
    }
}

fn position(partition: i32, offset: i64) -> Position {
    Position {
        major: u64::try_from(partition).unwrap_or_default(),
        minor: u64::try_from(offset).unwrap_or_default(),
    }
}

/// The settings of the client that publishes.
pub(crate) fn settings(config: &KafkaConfig) -> rdkafka::ClientConfig {
    let mut settings = config.client();
    let largest = config.max_message_bytes + (64 << 10);
    // A batch of several is never larger than one message may be.
    let batch = settings
        .get("batch.size")
        .and_then(|size| size.parse().ok());
    let batch = largest.min(batch.unwrap_or(1_000_000));
    let compression = match config.compression {
        Compression::None => "none",
        Compression::Snappy => "snappy",
        Compression::Gzip => "gzip",
        Compression::Lz4 => "lz4",
        Compression::Zstd => "zstd",
    };
    settings
        // The partition of a key is the one that Java's clients choose.
        .set("partitioner", "murmur2_random")
        .set("compression.type", compression)
        // Of messages it has been checked; letters hold what other programs wrote.
        .set("message.max.bytes", largest.max(LARGEST_LETTER).to_string())
        .set("batch.size", batch.to_string())
        .set("message.timeout.ms", LINGERS);
    for (key, value) in [
        // Whatever comes while a request is on its way makes the next batch.
        ("linger.ms", "0"),
        ("queue.buffering.max.messages", "100000"),
        ("queue.buffering.max.kbytes", "262144"),
        ("topic.metadata.propagation.max.ms", "5000"),
        // Messages without a key go to all partitions, and so to all members of a group, from the first
        // on; by default those of 10 ms go to one.
        ("sticky.partitioning.linger.ms", "0"),
    ] {
        prefer(&mut settings, key, value);
    }
    match config.acks {
        Acks::All => settings
            .set("acks", "all")
            .set("enable.idempotence", "true"),
        // Without idempotence a retry could overtake what was sent behind it.
        Acks::Leader => settings
            .set("acks", "1")
            .set("max.in.flight.requests.per.connection", "1"),
    };
    settings
}

/// Where the outcome of a message belongs.
#[derive(Debug)]
pub(crate) struct Place {
    batch: Arc<Batch>,
    at: usize,
    durability: Durability,
}

type Outcome = std::result::Result<Receipt, KafkaError>;

/// A batch with the client.
#[derive(Debug)]
struct Batch {
    outcomes: Gather<Outcome>,
    /// Room in the queue, for as long as any of it is with the client.
    _room: OwnedSemaphorePermit,
}

/// A record and where it goes.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) topic: Topic,
    pub(crate) record: Outgoing,
}

/// Hands records to the client, in order, and returns what will become of them, one for one. Each is made
/// as its turn comes: the client sends the first ones meanwhile.
pub(crate) async fn hand_over(
    shared: &Arc<Shared>,
    letters: impl ExactSizeIterator<Item = (Letter, Known)>,
    deadline: Instant,
) -> Handed {
    let count = letters.len();
    let room = shared
        .room
        .clone()
        .acquire_many_owned(u32::try_from(count).unwrap_or(u32::MAX));
    let Ok(Ok(room)) = timeout_at(deadline, room).await else {
        return Handed { batch: None, count };
    };
    let batch = Arc::new(Batch {
        outcomes: Gather::new(count),
        _room: room,
    });
    batch.outcomes.expect(count);
    let mut name: Option<(Topic, String)> = None;
    let mut producer = shared.asker.producer();
    for (at, (letter, known)) in letters.enumerate() {
        let name = match &mut name {
            Some((topic, name)) if *topic == letter.topic => name,
            other => {
                let spelt = shared.topics.keys.topic(&letter.topic);
                &mut other.insert((letter.topic.clone(), spelt)).1
            }
        };
        let place = Box::new(Place {
            batch: batch.clone(),
            at,
            durability: known.durability,
        });
        let mut record = BaseRecord::<[u8], [u8], Box<Place>>::with_opaque_to(name, place)
            .headers(letter.record.headers);
        if let Some(key) = &letter.record.key {
            record = record.key(key);
        }
        if let Some(value) = &letter.record.value {
            record = record.payload(value);
        }
        loop {
            let Some(client) = &producer else {
                record
                    .delivery_opaque
                    .refuse(KafkaError::MessageProduction(Code::DestroyBroker));
                break;
            };
            match client.send(record) {
                Ok(()) => break,
                // One that has just broken takes nothing; the next one does.
                Err((KafkaError::MessageProduction(Code::QueueFull | Code::Fatal), again))
                    if Instant::now() < deadline =>
                {
                    record = again;
                    // Not held meanwhile: whoever drops the last one waits until the client is closed.
                    drop(producer.take());
                    sleep(FULL).await;
                    producer = shared.asker.producer();
                }
                Err((told, refused)) => {
                    refused.delivery_opaque.refuse(told);
                    break;
                }
            }
        }
    }
    Handed {
        batch: Some(batch),
        count,
    }
}

impl Place {
    /// The client did not take it.
    fn refuse(&self, told: KafkaError) {
        self.batch.outcomes.put(self.at, Err(told));
    }
}

/// A batch that was handed over; without one there was no room in time.
#[derive(Debug)]
pub(crate) struct Handed {
    batch: Option<Arc<Batch>>,
    count: usize,
}

/// What became of one record.
#[derive(Debug)]
pub(crate) enum Fate {
    Stored(Receipt),
    /// It is certainly not there: its topic is gone.
    Gone,
    Failed(Error),
}

impl Handed {
    pub(crate) async fn fates(self, operation: &'static str, deadline: Instant) -> Vec<Fate> {
        let Some(batch) = self.batch else {
            let each = |_| Fate::Failed(late(operation));
            return (0..self.count).map(each).collect();
        };
        let outcomes = batch.outcomes.answers(deadline).await;
        let fate = |outcome: Option<Outcome>| match outcome {
            Some(Ok(receipt)) => Fate::Stored(receipt),
            Some(Err(told)) => failed(operation, told),
            None => Fate::Failed(
                error::error(
                    ErrorKind::Timeout,
                    operation,
                    "the broker did not confirm in time",
                )
                .maybe_stored(),
            ),
        };
        outcomes.into_iter().map(fate).collect()
    }
}

/// What it means that the client gave a message up. It tells nothing of whether it was sent, but for what
/// a broker refused, and what never was a message for it.
fn failed(operation: &'static str, told: KafkaError) -> Fate {
    let code = error::code(&told);
    match code {
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition) => {
            Fate::Gone
        }
        // It stands for a producer id that was refused, without which nothing is sent. A client asks for one
        // once: of what was sent with one it never says this.
        Some(Code::ClusterAuthorizationFailed) => {
            let why = "the user may not publish: it lacks WRITE for the topic, or on brokers before 2.8 \
                       IDEMPOTENT_WRITE for the cluster";
            Fate::Failed(error::error(ErrorKind::Unauthorized, operation, why).because(told))
        }
        _ => {
            let error = error::told(operation, told);
            let certain = matches!(
                error.kind(),
                ErrorKind::TooLarge
                    | ErrorKind::Unauthorized
                    | ErrorKind::InvalidArgument
                    | ErrorKind::Unsupported
            ) || matches!(
                code,
                Some(Code::QueueFull | Code::Fatal | Code::NotEnoughReplicas)
            );
            Fate::Failed(if certain { error } else { error.maybe_stored() })
        }
    }
}

/// What was not sent in time.
fn late(operation: &'static str) -> Error {
    let why = "there was no room, or no connection, before the deadline";
    error::error(ErrorKind::Timeout, operation, why)
}

/// Publishes a batch and returns when its place in line is fixed.
pub(crate) async fn publish(
    shared: &Arc<Shared>,
    messages: Vec<Message>,
    deadline: Instant,
) -> Confirm {
    let count = messages.len();
    let closed = || {
        let each = vec![Err(Error::closed("publish").on(BACKEND)); count];
        Box::pin(std::future::ready(each)) as Confirm
    };
    if shared.is_closed() {
        return closed();
    }
    let outcomes: Vec<Option<Result<Receipt>>> = messages
        .iter()
        .map(|message| shared.info.check_message(message).err().map(Err))
        .collect();
    let mut run = Run {
        shared: shared.clone(),
        messages,
        outcomes,
        deadline,
    };
    // Before the line, in which one batch stands behind the other: making a topic takes a while.
    run.make_topics().await;
    let line = timeout_at(deadline, shared.line.clone().lock_owned()).await;
    if line.is_err() || Instant::now() >= deadline {
        return Box::pin(std::future::ready(run.finish()));
    }
    if shared.is_closed() {
        return closed();
    }
    let handed = run.hand_over().await;
    drop(line);
    // A task of its own: whoever gives up waiting does not keep the rest from being sent anew.
    let task = shared.tasks.spawn(async move {
        run.settle(handed).await;
        run.finish()
    });
    Box::pin(async move {
        // It neither panics nor is it aborted; a runtime that shuts down drops it.
        task.await.unwrap_or_default()
    })
}

/// A batch on its way.
struct Run {
    shared: Arc<Shared>,
    messages: Vec<Message>,
    /// For each message, what is already known.
    outcomes: Vec<Option<Result<Receipt>>>,
    deadline: Instant,
}

/// Which messages were handed over, in parts that the queue has room for.
type Parts = Vec<(Vec<usize>, Handed)>;

impl Run {
    /// Sees to it that the topics of the batch are known, several at a time. Whatever fails is tried again
    /// for each message.
    async fn make_topics(&self) {
        let open = self.messages.iter().zip(&self.outcomes);
        let unknown: BTreeSet<Topic> = open
            .filter(|(_, outcome)| outcome.is_none())
            .map(|(message, _)| message.topic())
            .filter(|topic| self.shared.topics.known(topic).is_none())
            .cloned()
            .collect();
        if unknown.is_empty() {
            return;
        }
        let shared = self.shared.clone();
        let made = stream::iter(unknown)
            .map(move |topic| {
                let shared = shared.clone();
                async move { shared.topics.reach("publish", &topic).await.map(drop) }
            })
            .buffer_unordered(TOPICS_AT_A_TIME)
            .for_each(|_| std::future::ready(()));
        let _ = timeout_at(self.deadline, made).await;
    }

    /// Hands over everything that is not decided yet.
    async fn hand_over(&mut self) -> Parts {
        let shared = self.shared.clone();
        let open = self.prepare().await;
        let mut parts = Parts::new();
        let most = shared.asker.config.max_in_flight;
        let message = |(at, known)| Some((at, self.messages.get(at)?, known));
        let open: Vec<(usize, &Message, Known)> = open.into_iter().filter_map(message).collect();
        for page in open.chunks(most) {
            let places = page.iter().map(|(at, ..)| *at).collect();
            let letters = page.iter().map(|(_, message, known)| {
                let letter = Letter {
                    topic: message.topic().clone(),
                    record: Outgoing::of(message),
                };
                (letter, *known)
            });
            let handed = hand_over(&shared, letters, self.deadline).await;
            parts.push((places, handed));
        }
        parts
    }

    /// Waits for the outcomes, and sends anew what found its topic gone: only if the topic is really not
    /// there, and nothing of what was sent to it. The client may be told of a topic that it does not exist
    /// while a broker starts, of messages that were stored before.
    async fn settle(&mut self, mut parts: Parts) {
        for look in 1.. {
            let mut gone = Vec::new();
            for (places, handed) in std::mem::take(&mut parts) {
                let fates = handed.fates("publish", self.deadline).await;
                for (at, fate) in places.into_iter().zip(fates) {
                    match fate {
                        Fate::Stored(receipt) => self.set(at, Ok(receipt)),
                        Fate::Failed(error) => self.set(at, Err(error)),
                        Fate::Gone => gone.push(at),
                    }
                }
            }
            let again = look < LOOKS && Instant::now() < self.deadline;
            let mut missing = false;
            for at in gone {
                let Some(topic) = self.messages.get(at).map(|m| m.topic().clone()) else {
                    continue;
                };
                let topics = &self.shared.topics;
                topics.forget(&topic);
                if again && matches!(topics.find("publish", &topic).await, Ok(None)) {
                    missing = true;
                    continue;
                }
                let (kind, why) = match again {
                    true => (
                        ErrorKind::Unavailable,
                        "a broker did not know the topic, which is there",
                    ),
                    false => error::meaning(Code::UnknownTopicOrPartition),
                };
                let error = error::error(kind, "publish", why);
                self.set(at, Err(error.maybe_stored()));
            }
            if !missing {
                return;
            }
            sleep(FULL).await;
            let line = self.shared.line.clone().lock_owned();
            let Ok(_line) = timeout_at(self.deadline, line).await else {
                return;
            };
            parts = self.hand_over().await;
        }
    }

    /// Sees to it that the topics of what is not decided are there: which messages those are.
    async fn prepare(&mut self) -> Vec<(usize, Known)> {
        let shared = self.shared.clone();
        let mut open = Vec::with_capacity(self.messages.len());
        let mut last: Option<(Topic, Result<Known>)> = None;
        for at in 0..self.messages.len() {
            let (Some(message), Some(None)) = (self.messages.get(at), self.outcomes.get(at)) else {
                continue;
            };
            let topic = message.topic();
            let known = match &last {
                Some((same, known)) if same == topic => known.clone(),
                _ => {
                    let reach = shared.topics.reach("publish", topic);
                    let reached = match timeout_at(self.deadline, reach).await {
                        // Making a topic stores no message.
                        Ok(reached) => reached.map_err(|error| {
                            let why = "the topic could not be reached or made";
                            Error::new(error.kind(), "publish", why)
                                .on(BACKEND)
                                .because(error)
                        }),
                        Err(_) => Err(late("publish")),
                    };
                    last.insert((topic.clone(), reached)).1.clone()
                }
            };
            match known {
                Ok(known) => open.push((at, known)),
                Err(error) => self.set(at, Err(error)),
            }
        }
        open
    }

    fn set(&mut self, at: usize, outcome: Result<Receipt>) {
        if let Some(slot) = self.outcomes.get_mut(at) {
            *slot = Some(outcome);
        }
    }

    fn finish(&mut self) -> Vec<Result<Receipt>> {
        let each = |outcome: Option<_>| outcome.unwrap_or_else(|| Err(late("publish")));
        self.outcomes.drain(..).map(each).collect()
    }
}

#[cfg(test)]
mod tests {
    use mas_transport_core::Stored;

    use super::*;

    const NO_ID: KafkaError = KafkaError::Global(Code::ClusterAuthorizationFailed);
    const WHY: &str = "Failed to acquire idempotence PID from broker localhost:9092/1";
    const PURGED: KafkaError = KafkaError::MessageProduction(Code::PurgeQueue);

    fn error_of(told: KafkaError) -> Error {
        match failed("publish", told) {
            Fate::Failed(error) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_client_without_a_producer_id_purges_was_refused_and_never_sent() {
        let delivered = Delivered::default();
        delivered.error(NO_ID, WHY);
        let error = error_of(delivered.cause(&PURGED));
        assert_eq!(error.kind(), ErrorKind::Unauthorized);
        assert_eq!(error.stored(), Stored::No);
        for word in ["WRITE for the topic", "IDEMPOTENT_WRITE for the cluster"] {
            assert!(error.to_string().contains(word), "{error}");
        }
        // What a broker answered stays what it is.
        let other = KafkaError::MessageProduction(Code::TopicAuthorizationFailed);
        assert_eq!(delivered.cause(&other), other);
    }

    #[test]
    fn what_another_client_purges_may_have_been_sent() {
        let delivered = Delivered::default();
        // Nobody, or a broker that has other sequence numbers.
        for broken in [None, Some(Code::OutOfOrderSequenceNumber)] {
            if let Some(code) = broken {
                delivered.error(KafkaError::Global(code), "ProduceRequest for t [0] failed");
            }
            let error = error_of(delivered.cause(&PURGED));
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            assert_eq!(error.stored(), Stored::Unknown);
        }
    }

    #[test]
    fn that_a_client_may_not_publish_explains_no_other_request() {
        let trouble = Arc::<Trouble>::default();
        let delivered = Delivered::new(trouble.clone());
        let since = Instant::now();
        delivered.error(NO_ID, WHY);
        let late = || KafkaError::MetadataFetch(Code::OperationTimedOut);
        let explained = || {
            client::explain(
                &KafkaConfig::new("localhost:9092"),
                &trouble,
                "lag",
                since,
                late(),
            )
        };
        let error = explained();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(!error.to_string().contains("authorization"), "{error}");
        delivered.error(KafkaError::Global(Code::Authentication), "wrong password");
        assert_eq!(explained().kind(), ErrorKind::Unauthorized);
    }
}
