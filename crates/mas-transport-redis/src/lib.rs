//! The Redis Streams and Valkey backend of `mas-transport`.
//!
//! A topic is a stream, a group a consumer group; keys are named in [`RedisNative::stream`] and the
//! source's `keys` module. What it takes from the server, and how strongly it keeps the contract's
//! promises there, is probed at connect: [`mas_transport_core::TransportInfo`].
//!
//! - **Durability** is the server's: without the append-only file a receipt survives nothing
//!   (`Volatile`). With it and `appendfsync everysec` it survives the death of the process but for
//!   the last 2 s, in which a slow flush may hold up writing while the server goes on confirming
//!   (`WriteBehind`); with `no`, that death (`Process`); with `always`, that of the machine (`Disk`).
//!   A server that does not tell is taken at its worst.
//! - **Memory**: a topic keeps what some group has not settled, and everything while it has no
//!   group; only the server's `maxmemory` bounds it, with `maxmemory-policy noeviction`. Then
//!   publishing and dead-lettering fail with `Full`, while consumers can still ack and nack.
//!   [`RedisConfig::stream_max_len`] gives every topic a cap of its own.
//! - **Redelivery**: nacked entries stand in a sorted set by due time and wake the group's members
//!   by PUBLISH; the entries of dead members are found by their idle time at the server.
//! - **Permissions**: with access control lists the least rule for a user is this, where `mas:*` may
//!   be narrowed to `mas:{<namespace>:*`. The second line may be left out: then a consumer takes up
//!   to a second longer to close, the durability is taken at its worst, and nacked messages wait for
//!   the next look, which is at most a second away.
//!
//!   ```text
//!   ACL SETUSER mas on >password ~mas:* resetchannels &mas:*
//!       +client|id +client|unblock +config|get +unsubscribe +publish
//!       +info +ping +script|load +eval +evalsha +subscribe
//!       +xadd +xack +xlen +xrange +xtrim +xpending +xclaim +xreadgroup
//!       +xgroup|create +xgroup|setid +xgroup|delconsumer
//!       +xinfo|stream +xinfo|groups +xinfo|consumers
//!       +exists +del +time +hget +hmget +hset +sadd +smembers +sismember
//!       +zadd +zrem +zcard +zrange +zrangebyscore
//!   ```
//!
//!   A database other than 0 also needs `+select`. A user that only publishes needs `info`,
//!   `script|load`, `xadd`, and `sadd` to have its topics listed.
//! - **Loss**: a deleted stream and a flushed server are noticed by a marker group that lives in the
//!   stream, a deleted group is made again where it had settled everything.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod admin;
mod bells;
mod bury;
mod cap;
mod config;
mod connection;
mod decode;
mod error;
mod health;
mod holding;
mod info;
mod keys;
mod lanes;
mod lease;
mod member;
mod native;
mod publish;
mod reader;
mod scripts;
mod settle;
mod sweep;
mod tls;
mod transport;

pub use config::{Overflow, RedisConfig};
pub use mas_transport_core::Tls;
pub use native::RedisNative;
pub use transport::RedisTransport;

/// What errors and capabilities call this backend.
const BACKEND: &str = "redis";
