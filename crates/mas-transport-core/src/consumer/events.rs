//! What happens to a consumer beside deliveries.

use std::collections::VecDeque;

use crate::error::Error;
use crate::record::Record;
use crate::transport::{Gap, Position};

/// Most events kept for a reader; the oldest go first, and [`ConsumerEvent::EventsLost`] says how
/// many.
pub const EVENTS_KEPT: usize = 1024;

/// What happens to a consumer beside deliveries: for logs, metrics and decisions.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ConsumerEvent {
    /// Messages were lost before this group had them.
    Gap(Gap),
    /// A settlement failed, whether or not somebody awaited its handle.
    SettlementFailed {
        /// Where the message stands.
        position: Position,
        /// `ack`, `nack`, `dead-letter`, …
        settlement: &'static str,
        /// Why.
        error: Error,
    },
    /// The lease of a delivery ended, or was taken away, while its handler worked.
    LeaseLost {
        /// Where the message stands.
        position: Position,
    },
    /// A message was dead-lettered, and the broker confirmed it.
    DeadLettered(Box<Record>),
    /// A malformed entry was quarantined, and the broker confirmed it.
    Quarantined(Box<Record>),
    /// Fetching failed and is tried again.
    Retrying {
        /// Why it failed.
        error: Error,
    },
    /// The connection was lost and is back.
    Reconnected,
    /// So many events were dropped because nobody read them.
    EventsLost(u64),
}

/// The bounded queue of events.
#[derive(Debug, Default)]
pub(super) struct EventQueue {
    events: VecDeque<ConsumerEvent>,
    lost: u64,
}

impl EventQueue {
    pub(super) fn push(&mut self, event: ConsumerEvent) {
        if self.events.len() == EVENTS_KEPT {
            self.events.pop_front();
            self.lost += 1;
        }
        self.events.push_back(event);
    }

    pub(super) fn pop(&mut self) -> Option<ConsumerEvent> {
        if self.lost > 0 {
            return Some(ConsumerEvent::EventsLost(std::mem::take(&mut self.lost)));
        }
        self.events.pop_front()
    }
}
