//! The harnesses of this workspace's backends.

mod memory;
#[cfg(feature = "nats")]
mod nats;
mod net;
#[cfg(feature = "redis")]
mod redis;

pub use memory::MemoryHarness;
#[cfg(feature = "nats")]
pub use nats::NatsHarness;
pub use net::Net;
#[cfg(feature = "redis")]
pub use redis::RedisHarness;
