//! The client underneath.

use std::sync::Arc;

use async_nats::jetstream::Context;
use mas_transport_core::{Group, Topic};

use crate::transport::Shared;

/// What [`Transport::native`](mas_transport_core::Transport::native) gives on this backend: the
/// client underneath, and where a topic is kept.
///
/// ```
/// # async fn example(transport: &dyn mas_transport_core::Transport) -> Result<(), Box<dyn std::error::Error>> {
/// use mas_transport_nats::NatsNative;
/// let native = transport.native().and_then(|n| n.downcast_ref::<NatsNative>()).unwrap();
/// let topic = mas_transport_core::Topic::new("orders.created")?;
/// let stream = native.jetstream().get_stream(native.stream(&topic)).await?;
/// println!("{} messages", stream.cached_info().state.messages);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct NatsNative(pub(crate) Arc<Shared>);

impl NatsNative {
    /// The client of the connection that everything is published and settled over.
    pub fn client(&self) -> async_nats::Client {
        self.0.link.client()
    }

    /// Its JetStream.
    pub fn jetstream(&self) -> Context {
        self.0.link.jetstream()
    }

    /// The name of the stream of a topic, once there is one: `mas~orders~created`.
    pub fn stream(&self, topic: &Topic) -> String {
        self.0.streams.keys.stream(topic)
    }

    /// Where other programs publish messages of a topic: `mas.orders.created`.
    pub fn subject(&self, topic: &Topic) -> String {
        self.0.streams.keys.subject(topic)
    }

    /// The name of the durable consumer of a group, on the stream of its topic.
    pub fn consumer(&self, group: &Group) -> String {
        group.to_string()
    }
}
