//! The reference backend of `mas-transport`: a broker in memory.
//!
//! It is the model that the other backends are held against: the same semantics with the strictest
//! answers. Applications use it as their default and in tests; everything in it goes by tokio's
//! clock, so that leases and delays run under a paused one. It starts no task and no thread.
//!
//! [`MemoryBroker`] stands for the server, [`MemoryTransport`] for one connection to it.
//! [`Profile`] chooses between a queue with leases and a partitioned log; [`FaultPlan`] raises
//! faults on the way.
//!
//! ```
//! # use mas_transport_memory::{MemoryBroker, MemoryConfig};
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> mas_transport_core::Result<()> {
//! let broker = MemoryBroker::new(MemoryConfig::default());
//! let one = broker.connect().await?;
//! let another = broker.connect().await?; // as another process would
//! # let _ = (one, another);
//! # Ok(())
//! # }
//! ```
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod admin;
mod broker;
mod config;
mod connection;
mod fault;
mod group;
#[cfg(test)]
mod group_tests;
mod leases;
mod member;
mod rebalance;
#[cfg(test)]
mod rebalance_tests;
mod source;
mod store;
mod topic;
mod transport;
mod wire;

pub use broker::MemoryBroker;
pub use config::{MAX_PARTITIONS, MemoryConfig, Profile};
pub use fault::{FaultEffect, FaultOperation, FaultPlan, FaultRule};
pub use transport::MemoryTransport;

/// The name of this backend in errors and in its `TransportInfo`.
const BACKEND: &str = "memory";
/// Nothing here waits for anything but tokio's timers, which go by whole milliseconds; the rest is
/// room for a busy machine to run the task.
const LATENCY: std::time::Duration = std::time::Duration::from_millis(5);
