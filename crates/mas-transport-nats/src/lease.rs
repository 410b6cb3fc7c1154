//! What is known of a delivery that a member holds.

use std::sync::Arc;

use async_nats::Subject;
use mas_transport_core::{Position, backend};
use tokio::time::Instant;

/// One held delivery.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    /// Its place in the stream.
    pub(crate) sequence: u64,
    /// Where its settlement is to be published.
    pub(crate) reply: Subject,
    /// The attempt that this delivery is.
    pub(crate) attempt: u32,
    /// How many attempts count as begun, as whoever gets it next would find it.
    pub(crate) begun: u32,
    /// The server had sent it before.
    pub(crate) again: bool,
    /// Where its note stands, if it has one.
    pub(crate) note: Option<u64>,
    /// How often the group had been joined when it came: of an earlier group it says nothing.
    pub(crate) joined: u64,
    pub(crate) origin: Origin,
    pub(crate) deadline: Instant,
}

/// Where a delivery came from.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// The server's process that sent it.
    pub(crate) process: Arc<str>,
    /// Over which connection settlements went when it came.
    pub(crate) epoch: u64,
}

impl backend::Lease for Lease {
    fn deadline(&self) -> Instant {
        self.deadline
    }
}

pub(crate) fn position(sequence: u64) -> Position {
    Position {
        major: 0,
        minor: sequence,
    }
}
