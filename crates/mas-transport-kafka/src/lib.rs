//! The Kafka backend of `mas-transport`.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod config;
mod passed;
mod security;

pub use config::{Acks, Compression, GroupProtocol, KafkaConfig};
pub use passed::NativeRefused;
pub use security::{Mechanism, SSL};

/// What errors and capabilities call this backend.
const BACKEND: &str = "kafka";
