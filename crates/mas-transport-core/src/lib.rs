//! The contract of `mas-transport`: what a backend implements and what applications see of it.
//!
//! Backends depend on this crate alone and implement [`Transport`], [`Fetch`], [`Settle`] and
//! [`Admin`]; applications depend on `mas-transport`, which re-exports it.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

/// Whether a deliberate fault is on; never, without the feature `mutants`.
#[cfg(feature = "mutants")]
macro_rules! mutated {
    ($info:expr, $mutation:ident) => {
        $info.mutation == Some($crate::mutation::Mutation::$mutation)
    };
}
#[cfg(not(feature = "mutants"))]
macro_rules! mutated {
    ($info:expr, $mutation:ident) => {{
        let _ = &$info;
        false
    }};
}

pub mod backend;
mod capabilities;
pub mod clock;
mod coalesce;
pub mod codec;
mod consumer;
mod error;
mod headers;
mod health;
mod message;
mod metrics;
#[cfg(feature = "mutants")]
pub mod mutation;
mod name;
mod publisher;
mod record;
mod subscription;
mod tls;
mod transport;

pub use capabilities::*;
pub use consumer::*;
pub use error::*;
pub use headers::*;
pub use health::*;
pub use message::*;
pub use metrics::{Connections, Consumed, Metrics};
pub use name::*;
pub use publisher::*;
pub use record::*;
pub use subscription::*;
pub use tls::Tls;
pub use transport::*;
