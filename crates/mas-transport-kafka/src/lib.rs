//! The Kafka backend of `mas-transport`.
//!
//! A topic is a Kafka topic, a group a consumer group of that topic alone. How they are named is in
//! [`KafkaNative`]. A partition belongs to one member of a group; those that come and go move partitions,
//! of which `revoked()` tells.
//!
//! - **Settlement**: Kafka knows offsets only. The lowest unsettled offset of a partition is committed,
//!   and with it, in the commit's metadata, what is settled above it and what is known of entries that
//!   were nacked or begun: attempts, and when they are due. An ack is confirmed when a commit that holds
//!   it was taken. At most 16,384 offsets beyond the lowest unsettled one are read: one message that waits
//!   for a long delay holds its partition up when so many others have come.
//! - **Nacks and leases** are kept by the member that owns the partition: a nacked message comes again
//!   from its memory, and a lease that ends by itself likewise. What a dead member held goes to others
//!   when the brokers miss it, after the [session timeout](KafkaConfig::session_timeout).
//! - **Durability**: brokers do not flush before they confirm, so a receipt survives the death of a
//!   broker's process (`Process`); with several replicas, of which two have to be in sync
//!   ([`min_insync_replicas`](KafkaConfig::min_insync_replicas)), the loss of a machine (`Replicated`).
//! - **Attempts**: before a member hands out what lies beyond what is known to have been fetched, it
//!   commits that it may: up to 128 offsets beyond the last one that was fetched. What lies below counts as
//!   attempted once for whoever gets the partition when its owner has died, or has lost it without being
//!   asked: also what nobody had fetched yet.
//! - **Loss**: records that retention or somebody else removed before the group had settled them, and a
//!   topic that was deleted, are told by a gap event. A group that somebody deletes while it has no
//!   members begins anew, like one that never was.
//!
//! - **Members that come and go**: each step of a rebalance takes up to a second, because a client joins
//!   its group once a second at most, and a partition that changes hands takes two. Confirmations of
//!   settlements wait meanwhile, and nothing is read from the partitions of a member that gives one of
//!   them up. A group whose members change more often than that makes no progress.
//!
//! Longer delays by retry topics are not there. And one thing is not steady yet, for which the suite runs on
//! Kafka only when it is asked to (`scripts/test --kafka`): now and then a member whose session ended while a
//! broker did not answer gets nothing for longer than 20 s after the broker is back
//! (`R1_a_broker_that_stops_answering_for_a_while`, one run in nine).
//!
//! What surprised, with librdkafka 2.12.1 and Kafka 4.3:
//!
//! - A topic that was just made: its leader refuses the first request of a producer as not yet leader and
//!   takes the second one, whose sequence it does not check, and the client then reports the messages of
//!   the first as delivered, at offset -1001, which are lost. Such an outcome is unknown here, and leaders
//!   are waited for.
//! - A broker answers the requests of a connection one by one, and that to join a group only when all
//!   members have: commits stand behind it for a second or more while partitions change hands.
//! - A member that lost its partitions and has joined again can commit them all the same: brokers do not
//!   ask whose a partition is.
//! - A client that unsubscribes sends no heartbeats while it waits for its partitions to be given up: what
//!   is committed after its session is refused. A member gives up its share before it does.
//! - A member that leaves before the group has answered its request to join is not heard, and the others
//!   wait until its session has ended. A member that is closed waits for that answer.
//! - A poll without waiting hears one event at most, and answers as if there had been none.
//! - Kafka refuses a topic whose name differs from another one's in nothing but `.` and `_`.
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
mod gather;
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
#[cfg(test)]
mod partition_tests;
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
