//! What is known of a delivery that a member holds.

use std::fmt;

use mas_transport_core::{Position, backend};
use tokio::time::Instant;

/// Under which of the member's consumers an entry stands at the server. A consumer is one
/// connection's: when an answer may have been lost, the next number is taken, so that what is found
/// under the old name and is not held here was lost on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    /// Fetched by the blocking read.
    Reader(u32),
    /// Taken by a sweep.
    Sweeper(u32),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reader(n) => write!(f, "r{n}"),
            Self::Sweeper(n) => write!(f, "s{n}"),
        }
    }
}

/// One held delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) id: Position,
    pub(crate) owner: Owner,
    /// The count at the server.
    pub(crate) count: u32,
    /// The attempt that this delivery is; the count, once it is begun.
    pub(crate) attempt: u32,
    pub(crate) deadline: Instant,
}

impl backend::Lease for Lease {
    fn deadline(&self) -> Instant {
        self.deadline
    }
}
