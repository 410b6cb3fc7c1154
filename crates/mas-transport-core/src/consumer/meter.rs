//! What consumers count: each for itself, under the lock that it holds anyway, and summed up when
//! somebody asks.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use super::shared::Guarded;
use crate::coalesce::lock;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::Consumed;
use crate::record::ReasonCode;
use crate::transport::Settled;

/// Sums up what some consumers did, those that are gone included. A clone is a handle of the same
/// sum; [`Consumer::start_metered`](crate::Consumer::start_metered) adds a consumer to it.
#[derive(Clone, Default)]
pub struct Meter(Arc<Mutex<Counted>>);

#[derive(Default)]
struct Counted {
    /// Of consumers that are no more.
    gone: Consumed,
    there: Vec<(Arc<Tally>, Weak<Guarded>)>,
}

impl Counted {
    /// Takes in what consumers that are no more have counted: it does not change any more.
    fn retire(&mut self) {
        let gone = &mut self.gone;
        self.there.retain(|(tally, consumer)| {
            let is_there = consumer.strong_count() > 0;
            if !is_there {
                tally.add_to(gone);
            }
            is_there
        });
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Meter").field(&self.read()).finish()
    }
}

impl Meter {
    /// One without consumers.
    pub fn new() -> Self {
        Self::default()
    }

    /// The sum as of now. Looks at each consumer, so it is not for every message.
    pub fn read(&self) -> Consumed {
        let mut counted = lock(&self.0);
        counted.retire();
        let mut sum = counted.gone;
        for (tally, consumer) in &counted.there {
            tally.add_to(&mut sum);
            if let Some(consumer) = consumer.upgrade() {
                let (held, buffered) = consumer.standing();
                sum.in_flight += held as u64;
                sum.buffered += buffered as u64;
            }
        }
        sum
    }

    pub(super) fn add(&self, tally: Arc<Tally>, consumer: Weak<Guarded>) {
        let mut counted = lock(&self.0);
        counted.retire();
        counted.there.push((tally, consumer));
    }
}

/// What came of a batch of settlements.
#[derive(Debug, Default)]
pub(super) struct Settlements {
    acked: u64,
    nacked: u64,
    rejected: u64,
    dead_lettered: u64,
    quarantined: u64,
    lease_lost: u64,
    failed: u64,
}

impl Settlements {
    /// Counts one, of the kind that `what` names; `reason` is that of a record.
    pub(super) fn count(
        &mut self,
        what: &'static str,
        reason: Option<ReasonCode>,
        result: &Result<Settled>,
    ) {
        let failure = result.as_ref().err().map(Error::kind);
        let counter = match (what, failure) {
            ("ack" | "nack" | "dead-letter", Some(ErrorKind::LeaseLost)) => &mut self.lease_lost,
            ("ack" | "nack" | "dead-letter", Some(_)) => &mut self.failed,
            ("ack", None) => &mut self.acked,
            ("nack", None) => &mut self.nacked,
            ("dead-letter", None) => {
                if reason == Some(ReasonCode::Rejected) {
                    self.rejected += 1;
                }
                &mut self.dead_lettered
            }
            ("quarantine", None) => &mut self.quarantined,
            // Returns, begins and extensions are the pump's own affair.
            _ => return,
        };
        *counter += 1;
    }
}

/// The counters of one consumer. They are written under the lock of its state only, so a write needs
/// no more than a load and a store.
#[derive(Debug, Default)]
pub(super) struct Tally {
    delivered: AtomicU64,
    acked: AtomicU64,
    nacked: AtomicU64,
    rejected: AtomicU64,
    dead_lettered: AtomicU64,
    quarantined: AtomicU64,
    lease_lost: AtomicU64,
    failed: AtomicU64,
}

fn add(counter: &AtomicU64, more: u64) {
    if more > 0 {
        counter.store(counter.load(Ordering::Relaxed) + more, Ordering::Relaxed);
    }
}

impl Tally {
    pub(super) fn delivered(&self, messages: usize) {
        add(&self.delivered, messages as u64);
    }

    pub(super) fn lease_lost(&self, deliveries: usize) {
        add(&self.lease_lost, deliveries as u64);
    }

    pub(super) fn settled(&self, batch: &Settlements) {
        add(&self.acked, batch.acked);
        add(&self.nacked, batch.nacked);
        add(&self.rejected, batch.rejected);
        add(&self.dead_lettered, batch.dead_lettered);
        add(&self.quarantined, batch.quarantined);
        add(&self.lease_lost, batch.lease_lost);
        add(&self.failed, batch.failed);
    }

    fn add_to(&self, sum: &mut Consumed) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        sum.delivered += read(&self.delivered);
        sum.acked += read(&self.acked);
        sum.nacked += read(&self.nacked);
        sum.rejected += read(&self.rejected);
        sum.dead_lettered += read(&self.dead_lettered);
        sum.quarantined += read(&self.quarantined);
        sum.lease_lost += read(&self.lease_lost);
        sum.failed += read(&self.failed);
    }
}
