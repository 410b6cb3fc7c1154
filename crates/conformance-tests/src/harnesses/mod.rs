//! The harnesses of this workspace's backends.

#[cfg(feature = "kafka")]
mod kafka;
mod memory;
#[cfg(feature = "nats")]
mod nats;
mod net;
#[cfg(feature = "redis")]
mod redis;

#[cfg(feature = "kafka")]
pub use kafka::KafkaHarness;
pub use memory::MemoryHarness;
#[cfg(feature = "nats")]
pub use nats::NatsHarness;
pub use net::Net;
#[cfg(feature = "redis")]
pub use redis::RedisHarness;
