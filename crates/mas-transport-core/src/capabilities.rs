//! What a backend can do, and how strongly it keeps its promises.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::message::{Message, Priority, RECORD_RESERVE};
use crate::subscription::{Order, Subscription};

/// What a confirmed write survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Durability {
    /// Nothing: it lives as long as the broker's process.
    Volatile,
    /// The death of the broker's process, but for what it confirmed in the last few seconds: it
    /// writes behind. Redis with `appendfsync everysec` postpones writing for up to 2 s while a
    /// flush to the disk is under way, and goes on confirming.
    WriteBehind,
    /// The death of the broker's process, but not of its machine.
    Process,
    /// The death of the broker's machine: it was flushed to the disk.
    Disk,
    /// The loss of a machine: it was replicated.
    Replicated,
}

/// How a number that the backend reports relates to the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Exactness {
    /// It is the number.
    Exact,
    /// It may be lower than the number, after a failure of the broker or of a member.
    AtLeast,
    /// It is near the number.
    Approximate,
}

/// The struct, and what tables say of it: the comment of a field is its meaning, so that no field can
/// be without one. Tables show the comments as they are: no links in them.
macro_rules! capabilities {
    (
        $(#[doc = $about:literal])+
        pub struct Capabilities {
            $($(#[doc = $meaning:literal])+ pub $field:ident: $type:ty,)+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Capabilities {
            $($(#[doc = $meaning])+ pub $field: $type,)+
        }

        impl Capabilities {
            /// Every field in words, in the order of the struct: for tables.
            pub fn describe(&self) -> Vec<Described> {
                vec![$(Described::new(
                    stringify!($field),
                    concat!($($meaning),+),
                    Show::show(&self.$field),
                )),+]
            }
        }
    };
}

capabilities! {
    /// What a backend can do: *operations*, whose absence means an
    /// [`Unsupported`](crate::ErrorKind::Unsupported) error, and *strengths*, the values at which
    /// the clauses of the contract hold. Probed at connect from the server's version and its echoed
    /// configuration.
    pub struct Capabilities {
        /// Operation: messages with an expiry.
        pub ttl: bool,
        /// Operation: messages delivered later.
        pub delay: bool,
        /// Operation: priorities other than normal.
        pub priority: bool,
        /// Operation: dedup by idempotency key.
        pub dedup: bool,
        /// Operation: subscriptions with wildcards.
        pub wildcard: bool,
        /// Operation: subscriptions with a filter.
        pub filter: bool,
        /// Operation: order by key across members, `Order::PerKey`.
        pub order_per_key: bool,
        /// Operation: reading without a group.
        pub read: bool,
        /// Operation: pausing a whole group.
        pub pause_group: bool,
        /// Operation: any idle member of a group can get any of its messages. Without it a topic is a
        /// partitioned log: a message goes to the member that owns its partition, and members that
        /// join, leave or die move partitions, with revocations.
        pub any_member: bool,
        /// Strength: what a receipt survives.
        pub durability: Durability,
        /// Strength: what a confirmed ack survives.
        pub ack_durability: Durability,
        /// Strength: the attempt of a delivery.
        pub attempts: Exactness,
        /// Strength: on reclaim from a dead member, or after an outage of the broker that was longer
        /// than the lease, a message that was fetched and never handed out counts as attempted once.
        pub reclaim_counts_prefetch: bool,
        /// Strength: what was on its way to a member when its connection broke comes back only when its
        /// lease ends, and counts as attempted once.
        pub cut_costs_lease: bool,
        /// Strength: when a member dies, leaves, loses its connection or has no room, one message of its group
        /// may come once more to another member, whether or not it is settled, and one that is due may wait for
        /// a lease.
        pub leaving_costs_ack: bool,
        /// Strength: the figures of `Lag`.
        pub lag: Exactness,
        /// Strength: the longest wait until a nacked message is available to an idle member.
        pub nack_latency: Duration,
        /// Strength: how long after its due time a delayed redelivery comes to an idle member.
        pub delay_slack: Duration,
        /// Strength: how long after its lease ended a dead member's message comes to an idle one.
        pub reclaim_slack: Duration,
        /// Strength: how far the clock that judges leases may be off.
        pub clock_error: Duration,
        /// Strength: the largest message, as `Message::size` counts it.
        pub max_message_bytes: usize,
        /// Strength: how many unsettled entries a topic keeps before publishing fails with `Full`;
        /// `None` where only the broker's memory bounds it.
        pub max_topic_messages: Option<u64>,
    }
}

/// A field of [`Capabilities`] in words.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Described {
    /// The field: `nack_latency`.
    pub name: &'static str,
    /// Whether it is an operation, which is there or not; or else a strength.
    pub operation: bool,
    /// What it means, as a sentence.
    pub meaning: String,
    /// Its value: `yes`, `Disk`, `250 ms`, `1 MiB`.
    pub value: String,
}

impl Described {
    fn new(name: &'static str, comment: &str, value: String) -> Self {
        let comment = comment.trim();
        let (kind, meaning) = comment.split_once(": ").unwrap_or(("", comment));
        // A sentence of its own begins with a capital, also where it began behind a colon.
        let mut letters = meaning.chars();
        let first = letters.next().map(char::to_uppercase);
        Self {
            name,
            operation: kind == "Operation",
            meaning: first.into_iter().flatten().chain(letters).collect(),
            value,
        }
    }
}

/// How a value of a capability is shown.
trait Show {
    fn show(&self) -> String;
}

impl Show for bool {
    fn show(&self) -> String {
        if *self { "yes" } else { "no" }.to_owned()
    }
}

impl Show for Durability {
    fn show(&self) -> String {
        format!("{self:?}")
    }
}

impl Show for Exactness {
    fn show(&self) -> String {
        format!("{self:?}")
    }
}

impl Show for Duration {
    fn show(&self) -> String {
        match self.as_millis() {
            0 if !self.is_zero() => format!("{} µs", self.as_micros()),
            millis => format!("{millis} ms"),
        }
    }
}

impl Show for usize {
    /// In bytes.
    fn show(&self) -> String {
        const MIB: usize = 1 << 20;
        const KIB: usize = 1 << 10;
        match *self {
            bytes if bytes >= MIB && bytes % MIB == 0 => format!("{} MiB", bytes / MIB),
            bytes if bytes >= KIB && bytes % KIB == 0 => format!("{} KiB", bytes / KIB),
            bytes => format!("{bytes} bytes"),
        }
    }
}

impl Show for Option<u64> {
    /// A bound.
    fn show(&self) -> String {
        self.map_or_else(|| "none".to_owned(), |bound| bound.to_string())
    }
}

/// How the pumps drive a backend: what was measured to be best for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Most messages in one call of `publish`.
    pub publish_batch: usize,
    /// Most calls of `publish` in flight.
    pub publish_in_flight: usize,
    /// Most settlements in one call of `settle`.
    pub settle_batch: usize,
    /// Most calls of `settle` in flight.
    pub settle_in_flight: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            publish_batch: 250,
            publish_in_flight: 4,
            settle_batch: 1000,
            settle_in_flight: 4,
        }
    }
}

/// A backend, its server and what they can do, as found at connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportInfo {
    /// The backend's name: `memory`, `redis`, `kafka`, `nats`.
    pub backend: &'static str,
    /// The server and its version, such as `redis 7.0.15`.
    pub server: String,
    /// What it can do.
    pub capabilities: Capabilities,
    /// How the pumps drive it.
    pub tuning: Tuning,
    /// A deliberate fault in the pumps above this transport, for the suite's own proof.
    #[cfg(feature = "mutants")]
    pub mutation: Option<crate::mutation::Mutation>,
}

impl TransportInfo {
    /// What is known of a backend; `tuning` can be changed afterwards.
    pub fn new(
        backend: &'static str,
        server: impl Into<String>,
        capabilities: Capabilities,
    ) -> Self {
        Self {
            backend,
            server: server.into(),
            capabilities,
            tuning: Tuning::default(),
            #[cfg(feature = "mutants")]
            mutation: None,
        }
    }

    fn unsupported(&self, operation: &'static str, what: &'static str) -> Error {
        Error::unsupported(self.backend, operation, what).with("server", &self.server)
    }

    /// Whether this backend takes the message: its rules, its size, and every option it carries.
    /// Every backend asks this for each message before anything goes on the wire.
    ///
    /// # Errors
    /// `InvalidArgument`, `TooLarge` (with size and limit) or `Unsupported`; never stored.
    pub fn check_message(&self, message: &Message) -> Result<()> {
        let can = &self.capabilities;
        message.check().map_err(|e| e.on(self.backend))?;
        let size = message.size();
        // An ordinary message leaves room for the record that a dead letter adds.
        if size > can.max_message_bytes.saturating_sub(RECORD_RESERVE) {
            return Err(Error::new(
                crate::ErrorKind::TooLarge,
                "publish",
                "the message is larger than this backend takes; send a reference to the data instead",
            )
            .on(self.backend)
            .with("bytes", size)
            .with("limit", can.max_message_bytes.saturating_sub(RECORD_RESERVE)));
        }
        if message.expires_at().is_some() && !can.ttl {
            return Err(self.unsupported("publish", "messages with a ttl are not supported"));
        }
        if message.get_delay().is_some() && !can.delay {
            return Err(self.unsupported("publish", "delayed messages are not supported"));
        }
        if message.get_priority() != Priority::Normal && !can.priority {
            return Err(self.unsupported("publish", "priorities are not supported"));
        }
        let key = crate::Attribute::IdempotencyKey;
        if message.attribute(key).is_some() && !can.dedup {
            return Err(self.unsupported("publish", "idempotency keys are not supported"));
        }
        Ok(())
    }

    /// Whether this backend can serve the subscription, and whether its names and ranges are
    /// right. Every backend asks this first in `subscribe`.
    ///
    /// # Errors
    /// `InvalidArgument` or `Unsupported`; nothing was created.
    pub fn check_subscription(&self, subscription: &Subscription) -> Result<()> {
        let can = &self.capabilities;
        subscription.check().map_err(|e| e.on(self.backend))?;
        if subscription.has_wildcard() && !can.wildcard {
            return Err(self.unsupported("subscribe", "wildcards are not supported"));
        }
        if subscription.get_filter().is_some() && !can.filter {
            return Err(self.unsupported("subscribe", "filters are not supported"));
        }
        if subscription.get_order() == Order::PerKey && !can.order_per_key {
            return Err(self.unsupported("subscribe", "Order::PerKey is not supported"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_becomes_a_sentence() {
        let described = Described::new("lag", " Strength: the figures\n of `Lag`.", "Exact".into());
        assert!(!described.operation);
        assert_eq!(described.meaning, "The figures\n of `Lag`.");
        let described = Described::new("ttl", " Operation: messages.", "no".into());
        assert!(described.operation);
        assert_eq!(described.meaning, "Messages.");
    }

    #[test]
    fn values_are_shown_with_their_units() {
        assert_eq!(true.show(), "yes");
        assert_eq!(Durability::Disk.show(), "Disk");
        assert_eq!(Exactness::AtLeast.show(), "AtLeast");
        assert_eq!(Duration::ZERO.show(), "0 ms");
        assert_eq!(Duration::from_micros(20).show(), "20 µs");
        assert_eq!(Duration::from_millis(1500).show(), "1500 ms");
        assert_eq!((1usize << 20).show(), "1 MiB");
        assert_eq!((96usize << 10).show(), "96 KiB");
        assert_eq!(1000usize.show(), "1000 bytes");
        assert_eq!(None::<u64>.show(), "none");
        assert_eq!(Some(10_000u64).show(), "10000");
    }
}
