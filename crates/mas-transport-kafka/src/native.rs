//! The client underneath.

use std::sync::Arc;

use mas_transport_core::{Group, Topic};
use rdkafka::ClientConfig;

use crate::transport::Shared;

/// What [`Transport::native`](mas_transport_core::Transport::native) gives on this backend: the
/// settings of the client underneath, and where a topic is kept.
///
/// ```
/// # fn example(transport: &dyn mas_transport_core::Transport) -> Result<(), Box<dyn std::error::Error>> {
/// use mas_transport_kafka::KafkaNative;
/// let native = transport.native().and_then(|n| n.downcast_ref::<KafkaNative>()).unwrap();
/// let topic = mas_transport_core::Topic::new("orders.created")?;
/// println!("{} at {:?}", native.topic(&topic), native.client().get("bootstrap.servers"));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct KafkaNative(pub(crate) Arc<Shared>);

impl KafkaNative {
    /// The settings with which every client here begins: brokers, identity, TLS. It holds the password,
    /// if there is one.
    pub fn client(&self) -> ClientConfig {
        self.0.asker.config.client()
    }

    /// The name of the Kafka topic of a topic: `mas.orders.created`.
    pub fn topic(&self, topic: &Topic) -> String {
        self.0.topics.keys.topic(topic)
    }

    /// The name of the consumer group of a group: `mas.orders.created.billing`.
    pub fn group(&self, topic: &Topic, group: &Group) -> String {
        self.0.topics.keys.group(topic, group)
    }
}
