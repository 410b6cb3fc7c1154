//! The Kafka backend of `mas-transport`.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod config;

pub use config::{Acks, Compression, GroupProtocol, KafkaConfig};

/// What errors and capabilities call this backend.
const BACKEND: &str = "kafka";
