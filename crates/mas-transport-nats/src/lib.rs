//! The NATS JetStream backend of `mas-transport`.
//!
//! A topic is a stream of its own, a group a durable pull consumer on it that bears the group's name.
//! How they are named, and where other programs publish to a topic, is in [`NatsNative`]. What it takes
//! from the server, and how strongly it keeps the contract's promises there, is probed at connect:
//! [`mas_transport_core::TransportInfo`].
//!
//! - **Durability**: a receipt on file storage survives the death of the server's process
//!   (`Process`); the server flushes to the disk every 2 minutes by default (`sync_interval`), and
//!   does not tell clients how it is set, so that no more is claimed. With several
//!   [replicas](NatsConfig::replicas) it survives the loss of a machine (`Replicated`); in
//!   [memory](NatsConfig::storage) nothing (`Volatile`). What a group has settled is written behind
//!   by a single server (`WriteBehind`): after a crash the last acks may be forgotten.
//! - **Attempts**: the server counts what it sent, also what nobody was handed. What was handed out
//!   is recorded in a stream of our own, before a second attempt and with every nack, so that what
//!   was only fetched ahead costs nothing.
//! - **Space**: a topic keeps what some group has not settled, and everything while it has no group;
//!   members remove what every group has settled. The server's storage limits bound it; then publishing
//!   fails with `Full`.
//! - **Loss**: a stream that was deleted, purged or trimmed by others is told to every group by a gap
//!   event; how far each group had come is in a stream of our own.
//! - **Rights**: a user of limited rights has to be allowed to publish to `mas.>` (or what
//!   [`stream_prefix`](NatsConfig::stream_prefix) says), `$JS.API.>` and `$JS.ACK.>`, and to subscribe to
//!   `_INBOX.>`. What is missing is named by an error of the kind `Unauthorized`.
//! - **Hostile headers**: the client drops the connection over headers that it cannot read. Every
//!   consumer reads over a connection of its own, finds such an entry by asking for it in another
//!   form, and quarantines it.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod admin;
mod append;
mod bury;
mod config;
mod connection;
mod decode;
mod entries;
mod error;
mod health;
mod holding;
mod info;
mod keys;
mod lease;
mod member;
mod native;
mod notes;
mod publish;
mod pulls;
mod ranges;
mod reader;
mod refusals;
mod settle;
mod streams;
mod sweep;
mod taken;
mod transport;

pub use config::{NatsConfig, Storage};
pub use mas_transport_core::Tls;
pub use native::NatsNative;
pub use transport::NatsTransport;

/// What errors and capabilities call this backend.
const BACKEND: &str = "nats";
