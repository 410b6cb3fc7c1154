//! The harnesses of this workspace's backends.

mod memory;
mod net;
#[cfg(feature = "redis")]
mod redis;

pub use memory::MemoryHarness;
pub use net::Net;
#[cfg(feature = "redis")]
pub use redis::RedisHarness;
