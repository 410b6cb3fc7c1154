//! What a backend implements: four small object-safe traits, batch first, without default methods,
//! so that a wrapper which forgets one does not compile.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::capabilities::{Durability, TransportInfo};
use crate::error::Result;
use crate::health::Health;
use crate::message::Message;
use crate::metrics::Connections;
use crate::name::{Group, Topic};
use crate::record::{Reason, Record};
use crate::subscription::{StartFrom, Subscription};

/// One connection to one broker.
///
/// Cancel safety is promised by the pumps above. Here: dropping a future of `publish` leaves its
/// messages stored or not; dropping a [`Confirm`] withdraws nothing; dropping `subscribe`, `read`,
/// `close` or a future of [`Admin`] leaves the operation done or not done, never half done.
#[async_trait]
pub trait Transport: fmt::Debug + Send + Sync + 'static {
    /// The backend, its server, and what was probed at connect.
    fn info(&self) -> Arc<TransportInfo>;

    /// Publishes a batch; returns once its place behind earlier batches is fixed. The future that
    /// it returns resolves by `deadline` with one outcome per message, in order: one refused
    /// message fails alone. What was not sent by the deadline fails with `Timeout` and
    /// [`Stored::No`](crate::Stored::No); what was sent and not answered, with `Unknown`.
    async fn publish(&self, batch: Vec<Message>, deadline: Instant) -> Confirm;

    /// Joins a group as a new member, creating topic and group where needed. Nothing published
    /// after it returned is missed by the group.
    ///
    /// # Errors
    /// `InvalidArgument`, `Unsupported`, `Conflict` when the group has another lease,
    /// `Unavailable`, `Closed`.
    async fn subscribe(&self, subscription: &Subscription) -> Result<Source>;

    /// Reads without a group: replay, tail, broadcast.
    ///
    /// # Errors
    /// `Unsupported` where the backend declares no `read`.
    async fn read(&self, spec: &ReadSpec) -> Result<Box<dyn Fetch>>;

    /// Topics, groups, lag.
    fn admin(&self) -> &dyn Admin;

    /// The client underneath, for what this contract does not cover.
    fn native(&self) -> Option<&(dyn Any + Send + Sync)>;

    /// The connections to the broker, as they are known here: asks nobody. `None` where there are
    /// none, or they are not known.
    fn connections(&self) -> Option<Connections>;

    /// Closes every source (as [`Settle::close`]) and reader, then the connections. Every later
    /// call fails with `Closed`. Idempotent. No task, connection or thread survives it.
    async fn close(&self, deadline: Instant) -> Result<()>;
}

/// The outcomes of a published batch, in the order of its messages.
pub type Confirm = BoxFuture<'static, Vec<Result<Receipt>>>;

/// The broker's word that it has a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Where in the topic the message stands.
    pub position: Position,
    /// What the receipt survives.
    pub durability: Durability,
    /// It was a duplicate of an earlier publish, which stands at `position`.
    pub duplicate: bool,
}

/// Where an entry stands: opaque, and comparable only within one topic and partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The larger unit: a Redis id's milliseconds, a Kafka partition.
    pub major: u64,
    /// The smaller one: a Redis id's counter, an offset or sequence.
    pub minor: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.major, self.minor)
    }
}

/// One member of one group.
#[derive(Debug)]
pub struct Source {
    /// What comes in.
    pub fetch: Box<dyn Fetch>,
    /// What goes back; used beside a pending `fetch`.
    pub settle: Arc<dyn Settle>,
}

/// The receiving half of a member.
#[async_trait]
pub trait Fetch: fmt::Debug + Send {
    /// Waits for something to happen and appends it to `out`, as much as is at hand and wanted.
    ///
    /// `want.messages == 0` waits for control events only. `want.bytes` never blocks the first
    /// message. Cancel-safe: there is no await between taking an event and pushing it. Dropping
    /// the `Fetch` returns what the backend had buffered, as [`Settle::close`] does.
    ///
    /// # Errors
    /// Retryable ones mean "again, later": the pump waits and calls again. `Closed` is final.
    async fn fetch(&mut self, want: Want, out: &mut Vec<Event>) -> Result<()>;
}

/// How much the pump has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// Deliveries.
    pub messages: usize,
    /// Their bytes, as [`Message::size`] counts them.
    pub bytes: usize,
    /// The consumer is paused, or its handlers hang past their leases: what the backend has fetched
    /// ahead goes back to the group at once, where otherwise it may wait a moment for room.
    pub give_back: bool,
}

impl Want {
    /// Room for so many messages with so many bytes.
    pub fn new(messages: usize, bytes: usize) -> Self {
        Self {
            messages,
            bytes,
            give_back: false,
        }
    }
}

/// What a fetch brings.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A message to hand out.
    Delivery(RawDelivery),
    /// An entry that could not be decoded. It is leased like a delivery; the pump answers with
    /// [`Outcome::Quarantine`].
    Malformed {
        /// Names the lease.
        token: Token,
        /// What is wrong with the entry.
        reason: Reason,
        /// Where it stands.
        position: Position,
        /// Which attempt this is.
        attempt: u32,
    },
    /// These deliveries will be taken away at `until`; settlements before that still count.
    Revoking {
        /// The leases.
        tokens: Vec<Token>,
        /// When they end.
        until: Instant,
    },
    /// These deliveries have been taken away: their leases are lost.
    Revoked(Vec<Token>),
    /// Messages were lost before this group had them.
    Gap(Gap),
    /// The connection was lost and is back; nothing is asked of the receiver.
    Reconnected,
    /// A bounded `read` has come to its end.
    End,
}

/// A loss that the backend saw: entries that were trimmed, flushed, deleted or expired with their
/// offsets before the group settled them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The topic.
    pub topic: Topic,
    /// What happened, for people.
    pub reason: String,
    /// How many entries are gone, where the backend can tell.
    pub lost: Option<u64>,
}

/// A delivery as a backend makes it.
#[derive(Debug)]
pub struct RawDelivery {
    /// Names the lease in settlements.
    pub token: Token,
    /// The message.
    pub message: Message,
    /// Where it stands.
    pub position: Position,
    /// Which attempt this is, counted in hand-outs; the first is 1.
    pub attempt: u32,
    /// Until when the message is ours: from before the broker could have started the clock.
    pub deadline: Instant,
    /// The pump awaits [`Outcome::Begin`] before it hands this delivery out, which records the
    /// attempt at the broker: true on what comes back from another member or a nack.
    pub begin: bool,
    /// Its former holder died or let its lease lapse (and did not nack it), so it may be what kills
    /// its holders: on its last attempt the pump hands it out alone. Implies `begin`.
    pub reclaimed: bool,
}

/// Names one lease: a slot and its generation, so that a settled token is never taken for a later
/// one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token {
    /// The slot.
    pub slot: u32,
    /// How often the slot had been used before.
    pub generation: u32,
}

/// The settling half of a member.
#[async_trait]
pub trait Settle: fmt::Debug + Send + Sync {
    /// Settles a batch, several of them side by side. One outcome per entry, in order, each on its
    /// own: a token that is unknown, settled or past its deadline answers `LeaseLost` and leaves
    /// the others alone. `LeaseLost` means the broker was not touched for it.
    async fn settle(&self, batch: Vec<(Token, Outcome)>) -> Vec<Result<Settled>>;

    /// Runs beside `settle`: at once stops reading, returns what the backend had buffered and makes
    /// `fetch` answer `Closed`; still takes settlements; resolves when no token is out, or at the
    /// deadline after returning the rest. Idempotent.
    async fn close(&self, deadline: Instant) -> Result<()>;
}

/// What is to become of a delivery.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It is done: the group never sees it again.
    Ack,
    /// It comes back, not before the given time has passed; this hand-out counts.
    Nack(Duration),
    /// It was not handed out: it comes back at once, to anybody, and the attempt does not count.
    Return,
    /// It is about to be handed out: record the attempt and renew the lease.
    Begin,
    /// Renew the lease.
    Extend,
    /// Append it with this record to the dead-letter topic of topic and group, as it was read;
    /// when that is confirmed, settle it.
    DeadLetter(Box<Record>),
    /// Likewise, to the quarantine topic.
    Quarantine(Box<Record>),
}

/// The broker's word on a settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It took effect.
    Done,
    /// The lease now ends at this time; answers `Begin` and `Extend`.
    Lease(Instant),
}

/// What to read without a group.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadSpec {
    /// The topic.
    pub topic: Topic,
    /// Where to begin.
    pub start: StartFrom,
    /// End at what is there now, rather than wait for more.
    pub bounded: bool,
}

/// How far behind a group is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// Entries that no member has fetched since they were published.
    pub waiting: u64,
    /// Entries that a member holds or held, and that are not settled: under lease, nacked, dead.
    pub pending: u64,
}

/// How a topic is made.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TopicSpec {
    /// The topic.
    pub topic: Topic,
    /// Partitions; 1 by default.
    pub partitions: u32,
}

impl TopicSpec {
    /// A topic with one partition.
    pub fn new(topic: Topic) -> Self {
        Self {
            topic,
            partitions: 1,
        }
    }
}

/// Topics, groups and figures.
#[async_trait]
pub trait Admin: fmt::Debug + Send + Sync {
    /// Makes a topic, or checks that it exists as specified.
    ///
    /// # Errors
    /// `Conflict` when it exists otherwise; `Unsupported` for a value that the backend cannot give.
    async fn declare(&self, spec: &TopicSpec) -> Result<()>;

    /// The topics of this namespace, internal ones included, sorted.
    async fn topics(&self) -> Result<Vec<Topic>>;

    /// The groups of a topic, sorted; empty when there is no such topic.
    async fn groups(&self, topic: &Topic) -> Result<Vec<Group>>;

    /// How far behind a group is, at the declared exactness.
    ///
    /// # Errors
    /// `NotFound` when topic or group does not exist.
    async fn lag(&self, topic: &Topic, group: &Group) -> Result<Lag>;

    /// Removes every entry of a topic for every group, settled or not; groups stay. How many there
    /// were.
    ///
    /// # Errors
    /// `NotFound` when the topic does not exist.
    async fn purge(&self, topic: &Topic) -> Result<u64>;

    /// Asks the broker how it is: answered means connected.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout` when it does not answer, `Closed`.
    async fn health(&self) -> Result<Health>;

    /// Stops or resumes deliveries to every member of a group.
    ///
    /// # Errors
    /// `Unsupported` where the backend declares no `pause_group`.
    async fn pause(&self, topic: &Topic, group: &Group, paused: bool) -> Result<()>;
}

// Object safety is part of the contract: the factory and every layer depend on it.
const _: fn(&dyn Transport, &dyn Fetch, &dyn Settle, &dyn Admin) = |_, _, _, _| {};
