//! The Kafka backend of `mas-transport`.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod config;
mod native;
mod security;

pub use config::{Acks, Compression, GroupProtocol, KafkaConfig};
pub use native::NativeRefused;
pub use security::{Mechanism, SSL};

/// What errors and capabilities call this backend.
const BACKEND: &str = "kafka";
