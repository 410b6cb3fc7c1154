//! How to reach brokers, and how they are used.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use mas_transport_core::{MAX_MESSAGE, Namespace, Topic};
use rdkafka::ClientConfig;

use crate::keys::Keys;

/// When a broker confirms a message: [`KafkaConfig::acks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Acks {
    /// When all replicas that are in sync have it.
    #[default]
    All,
    /// When the partition's leader has it: it is lost with the leader's machine.
    Leader,
}

/// How batches of messages are compressed: [`KafkaConfig::compression`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    None,
    /// Fast, and smaller by about half for text.
    #[default]
    Snappy,
    /// Slow and small.
    Gzip,
    /// The fastest.
    Lz4,
    /// Smaller than gzip, and faster.
    Zstd,
}

/// How the members of a group share partitions: [`KafkaConfig::group_protocol`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum GroupProtocol {
    /// Cooperative rebalancing by the members: a dead one is noticed within the session timeout.
    #[default]
    Classic,
    /// KIP-848, by the broker (Kafka 4.0): a dead member is noticed after 45 s by default, as the
    /// broker is configured.
    Consumer,
}

/// How to reach brokers, and how they are used.
#[derive(Clone)]
pub struct KafkaConfig {
    pub(crate) brokers: Vec<String>,
    pub(crate) namespace: Namespace,
    pub(crate) prefix: String,
    pub(crate) partitions: i32,
    pub(crate) replication: i32,
    pub(crate) min_insync: Option<i32>,
    pub(crate) retention: Option<Duration>,
    pub(crate) acks: Acks,
    pub(crate) compression: Compression,
    pub(crate) client_id: String,
    pub(crate) group_protocol: GroupProtocol,
    pub(crate) session_timeout: Duration,
    pub(crate) revocation_notice: Duration,
    pub(crate) max_message_bytes: usize,
    pub(crate) connect_timeout: Duration,
    pub(crate) response_timeout: Duration,
    pub(crate) max_in_flight: usize,
    pub(crate) auto_create: bool,
    /// Settings of librdkafka, passed through.
    pub(crate) native: BTreeMap<String, String>,
}

impl KafkaConfig {
    /// Brokers at `host:port`, several of one cluster by comma; without a port, 9092. Without
    /// credentials or a namespace.
    pub fn new(brokers: impl AsRef<str>) -> Self {
        let split = brokers.as_ref().split(',').map(str::trim);
        Self {
            brokers: split
                .filter(|broker| !broker.is_empty())
                .map(str::to_owned)
                .collect(),
            namespace: Namespace::default(),
            prefix: "mas".to_owned(),
            partitions: 3,
            replication: 1,
            min_insync: None,
            retention: Some(Duration::from_secs(168 * 3600)),
            acks: Acks::All,
            compression: Compression::Snappy,
            client_id: "mas-transport".to_owned(),
            group_protocol: GroupProtocol::Classic,
            session_timeout: Duration::from_secs(6),
            revocation_notice: Duration::from_secs(5),
            max_message_bytes: MAX_MESSAGE,
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(5),
            max_in_flight: 32_768,
            auto_create: true,
            native: BTreeMap::new(),
        }
    }

    /// Goes in front of everything kept in the broker; none by default.
    #[must_use]
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = namespace;
        self
    }

    /// How long the broker waits for a member before it takes it for dead; 6 s by default, which is
    /// also the least that brokers take by default.
    #[must_use]
    pub fn session_timeout(mut self, timeout: Duration) -> Self {
        self.session_timeout = timeout;
        self
    }

    /// How long to wait for the answer to a request; 5 s by default. Publishes wait until their own
    /// deadline.
    #[must_use]
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.response_timeout = timeout;
        self
    }

    /// The name of the Kafka topic of a topic: `mas.orders.created`.
    pub fn topic_name(&self, topic: &Topic) -> String {
        Keys::new(&self.prefix, &self.namespace).topic(topic)
    }

    /// The brokers, as `host:port` by comma.
    pub fn address(&self) -> String {
        self.brokers.join(",")
    }

    /// Checks the ranges.
    pub(crate) fn check(&self) -> mas_transport_core::Result<()> {
        Ok(())
    }

    /// What every client of this configuration begins with.
    pub(crate) fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", self.address());
        client.set("client.id", &self.client_id);
        for (key, value) in &self.native {
            client.set(key, value);
        }
        client
    }
}

impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaConfig")
            .field("brokers", &self.brokers)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}
