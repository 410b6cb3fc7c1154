//! One message bus contract over several brokers: write against [`Bus`], run in memory on a laptop,
//! and choose the broker by `PROTOCOL_TYPE` in production without touching code.
//!
//! ```
//! use mas_transport::{Bus, Message, Subscription};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> mas_transport::Result<()> {
//! let bus = Bus::from_env().await?;
//! let orders = bus
//!     .subscribe(Subscription::new("orders.created").group("billing"))
//!     .await?;
//! bus.publish(Message::json("orders.created", &42)?.key("customer-7"))
//!     .await?;
//!
//! if let Some(delivery) = orders.recv().await? {
//!     assert_eq!(delivery.json::<i32>()?, 42);
//!     delivery.ack().await?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A message with a receipt reaches every group of its topic until the group settles it; the
//! members of a group share its messages. [`Capabilities`] says what a backend can do and how
//! strongly it keeps its promises.
//!
//! [`Config`] says where the settings come from; [`Registry`] takes backends of your own.
//!
//! Cargo features: `memory` (default), `kafka`, `nats` and `redis`, one for each backend, and `kafka-ssl` for
//! TLS and SCRAM on Kafka. `PROTOCOL_TYPE` chooses among those that are compiled in.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod backends;
mod bus;
mod config;
mod connect;
mod registry;
mod requirements;
mod secret;

pub use bus::{Bus, BusOptions, Purge};
pub use config::{Caution, Config, Kind, Origin, Problem, Setting, Settings, Variable};
pub use mas_transport_core::*;
#[cfg(feature = "kafka")]
pub use mas_transport_kafka as kafka;
#[cfg(feature = "memory")]
pub use mas_transport_memory as memory;
#[cfg(feature = "nats")]
pub use mas_transport_nats as nats;
#[cfg(feature = "redis")]
pub use mas_transport_redis as redis;
pub use registry::{Backend, Registry};
pub use requirements::{Missing, Requirements};
pub use secret::Secret;

/// The guides, so that their snippets are compiled and run like any other.
#[cfg(all(doctest, feature = "memory"))]
mod guides {
    #[doc = include_str!("../../../README.md")]
    struct Readme;
    #[doc = include_str!("../../../docs/guide/getting-started.md")]
    struct GettingStarted;
    #[doc = include_str!("../../../docs/guide/choosing-a-backend.md")]
    struct ChoosingABackend;
    #[doc = include_str!("../../../docs/guide/configuration.md")]
    struct Configuration;
    #[doc = include_str!("../../../docs/guide/delivery-semantics.md")]
    struct DeliverySemantics;
    #[doc = include_str!("../../../docs/guide/kafka.md")]
    struct Kafka;
    #[doc = include_str!("../../../docs/guide/nats.md")]
    struct Nats;
    #[doc = include_str!("../../../docs/guide/operating.md")]
    struct Operating;
    #[doc = include_str!("../../../docs/guide/securing-redis.md")]
    struct SecuringRedis;
    #[doc = include_str!("../../../docs/guide/troubleshooting.md")]
    struct Troubleshooting;
    #[doc = include_str!("../../../docs/guide/writing-a-backend.md")]
    struct WritingABackend;
}
