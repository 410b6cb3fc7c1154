//! How a memory broker is set up.

use std::time::Duration;

use mas_transport_core::MAX_MESSAGE;

use crate::fault::FaultPlan;

/// What kind of broker to behave like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Profile {
    /// A queue with leases, as Redis Streams and NATS JetStream are: any member of a group gets
    /// any message, and partitions are only remembered.
    #[default]
    LeaseQueue,
    /// A partitioned log, as Kafka is: a key chooses the partition, each partition belongs to one
    /// member of a group, and joining or leaving moves partitions, with revocations.
    PartitionedLog {
        /// Partitions of a topic that nobody declared, 1 to 1,024.
        partitions: u32,
    },
}

/// Most partitions of a topic.
pub const MAX_PARTITIONS: u32 = 1024;

/// The settings of a [`MemoryBroker`](crate::MemoryBroker). Everything in it is bounded.
///
/// ```
/// # use mas_transport_memory::{MemoryBroker, MemoryConfig, Profile};
/// let broker = MemoryBroker::new(
///     MemoryConfig::new()
///         .profile(Profile::PartitionedLog { partitions: 4 })
///         .max_topic_messages(10_000),
/// );
/// ```
#[derive(Clone, Debug)]
pub struct MemoryConfig {
    pub(crate) profile: Profile,
    pub(crate) max_topics: usize,
    pub(crate) max_topic_messages: u64,
    pub(crate) max_topic_bytes: u64,
    pub(crate) max_message_bytes: usize,
    pub(crate) revocation_notice: Duration,
    pub(crate) wire: bool,
    pub(crate) faults: Option<FaultPlan>,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryConfig {
    /// The defaults: a lease queue of up to 100,000 topics, each with up to 1,000,000 entries or
    /// 1 GiB, messages of up to 1 MiB, no wire format, no faults.
    pub fn new() -> Self {
        Self {
            profile: Profile::LeaseQueue,
            max_topics: 100_000,
            max_topic_messages: 1_000_000,
            max_topic_bytes: 1 << 30,
            max_message_bytes: MAX_MESSAGE,
            revocation_notice: Duration::from_secs(1),
            wire: false,
            faults: None,
        }
    }

    /// What kind of broker to behave like.
    #[must_use]
    pub fn profile(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    /// How many topics a namespace holds; publishing to one more fails with `Full`.
    #[must_use]
    pub fn max_topics(mut self, topics: usize) -> Self {
        self.max_topics = topics;
        self
    }

    /// How many entries a topic keeps: those that some group has not settled, or all while there
    /// is no group. Beyond it publishing fails with `Full`.
    #[must_use]
    pub fn max_topic_messages(mut self, messages: u64) -> Self {
        self.max_topic_messages = messages;
        self
    }

    /// How many bytes these entries have at most, as
    /// [`Message::size`](mas_transport_core::Message::size) counts them.
    #[must_use]
    pub fn max_topic_bytes(mut self, bytes: u64) -> Self {
        self.max_topic_bytes = bytes;
        self
    }

    /// The largest message, 32 KiB of room for a dead letter's record included.
    #[must_use]
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.max_message_bytes = bytes;
        self
    }

    /// In a partitioned log: how long a member may go on settling what it holds of a partition
    /// that is to move to another member. 1 s by default.
    #[must_use]
    pub fn revocation_notice(mut self, notice: Duration) -> Self {
        self.revocation_notice = notice;
        self
    }

    /// Whether entries are kept in the wire format, as a real broker keeps them, and decoded on
    /// each fetch. Slower; finds what does not survive the wire.
    #[must_use]
    pub fn wire(mut self, wire: bool) -> Self {
        self.wire = wire;
        self
    }

    /// Faults to raise on the way.
    #[must_use]
    pub fn faults(mut self, plan: FaultPlan) -> Self {
        self.faults = Some(plan);
        self
    }

    pub(crate) fn partitions(&self) -> u32 {
        match self.profile {
            Profile::LeaseQueue => 1,
            Profile::PartitionedLog { partitions } => partitions.clamp(1, MAX_PARTITIONS),
        }
    }

    /// The notice before a partition is taken away, in a partitioned log.
    pub(crate) fn partitioned(&self) -> Option<Duration> {
        let is_log = matches!(self.profile, Profile::PartitionedLog { .. });
        is_log.then_some(self.revocation_notice)
    }
}
