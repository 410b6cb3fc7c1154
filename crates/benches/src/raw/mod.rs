//! The yardsticks: the raw clients as their documentation shows them, with the same fields and
//! payload.

#[cfg(feature = "kafka")]
mod kafka;
mod nats;
mod redis;

use async_trait::async_trait;

use crate::Result;
use crate::meter::Sample;
use crate::ours::Way;

#[cfg(feature = "kafka")]
pub(crate) use kafka::RawKafka;
pub(crate) use nats::RawNats;
pub(crate) use redis::RawRedis;

/// The raw client of a broker.
#[async_trait]
pub(crate) trait Raw: Send {
    /// Publishes so many, in the way of the client that is as fast as ours or faster.
    async fn publish(&mut self, way: Way, messages: usize) -> Result<Sample>;

    /// Reads and acknowledges what is there.
    async fn consume(&mut self, messages: usize) -> Result<Sample>;
}
