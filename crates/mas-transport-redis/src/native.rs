//! The client underneath.

use std::sync::Arc;

use mas_transport_core::{Result, Topic};
use redis::aio::MultiplexedConnection;

use crate::keys;
use crate::transport::Shared;

/// What [`Transport::native`](mas_transport_core::Transport::native) gives on this backend: the
/// client underneath, and where a topic is kept.
///
/// ```
/// # async fn example(transport: &dyn mas_transport_core::Transport) -> Result<(), Box<dyn std::error::Error>> {
/// use mas_transport_redis::RedisNative;
/// let native = transport.native().and_then(|n| n.downcast_ref::<RedisNative>()).unwrap();
/// let mut connection = native.connect().await?;
/// let topic = mas_transport_core::Topic::new("orders.created")?;
/// let length: u64 = redis::cmd("XLEN").arg(native.stream(&topic)).query_async(&mut connection).await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct RedisNative(pub(crate) Arc<Shared>);

impl RedisNative {
    /// Opens a connection of its own to the same server, which the caller keeps. It speaks RESP3
    /// and has no response timeout.
    ///
    /// # Errors
    /// As [`RedisTransport::connect`](crate::RedisTransport::connect), after one attempt.
    pub async fn connect(&self) -> Result<MultiplexedConnection> {
        Ok(self.0.link.dial().await?.detach())
    }

    /// The key of the stream of a topic. Other programs may write to it, and read it without a
    /// group.
    pub fn stream(&self, topic: &Topic) -> String {
        keys::stream(&self.0.link.config.namespace, topic)
    }
}
