//! What is known of a delivery that a member holds.

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
    pub(crate) deadline: Instant,
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
