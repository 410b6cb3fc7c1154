//! The Kafka backend of `mas-transport`.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod admin;
mod bury;
mod client;
mod commit;
mod config;
mod consumer;
mod error;
mod fetch;
mod health;
mod info;
mod keeper;
mod keys;
mod mark;
#[cfg(test)]
mod mark_tests;
mod member;
mod native;
#[cfg(test)]
mod notes_tests;
mod passed;
mod publish;
mod record;
mod security;
mod settle;
mod share;
mod topics;
mod tracker;
#[cfg(test)]
mod tracker_model;
#[cfg(test)]
mod tracker_tests;
mod transport;

pub use config::{Acks, Compression, GroupProtocol, KafkaConfig};
pub use native::KafkaNative;
pub use passed::NativeRefused;
pub use security::{Mechanism, SSL};
pub use transport::KafkaTransport;

/// What errors and capabilities call this backend.
const BACKEND: &str = "kafka";
