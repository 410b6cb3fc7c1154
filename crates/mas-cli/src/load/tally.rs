//! What has happened so far, counted by all agents together.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

/// The counters of a run. Senders and receivers add to them, progress and report read them.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Messages whose scheduled time came and that were handed to the bus.
    pub(crate) sent: AtomicU64,
    /// Messages with a receipt.
    pub(crate) published: AtomicU64,
    /// Messages that arrived, each counted once.
    pub(crate) delivered: AtomicU64,
    /// Deliveries of an attempt later than the first.
    pub(crate) redelivered: AtomicU64,
    /// Duplicates, by what explains them.
    pub(crate) duplicates: Duplicates,
    /// Deliveries that no sender of this run had sent like that.
    pub(crate) corrupted: AtomicU64,
    /// Publishes that failed; each was tried again.
    pub(crate) publish_errors: AtomicU64,
    /// Of these, how many had an unknown outcome.
    pub(crate) unknown: AtomicU64,
    /// Acks that the broker did not confirm.
    pub(crate) ack_errors: AtomicU64,
    /// Connections lost and made again, as consumers saw them.
    pub(crate) reconnects: AtomicU64,
    /// Losses that a backend reported.
    pub(crate) gaps: AtomicU64,
    /// Messages that were dead-lettered.
    pub(crate) dead_lettered: AtomicU64,
    /// From the scheduled send to the arrival, in microseconds.
    latency: Mutex<Latency>,
    /// Messages that were sent again after an unknown outcome: sender, recipient, number. One
    /// entry for each, so it grows with the outages of the broker, not with the run.
    resent: Mutex<HashSet<(usize, usize, u64)>>,
}

/// Duplicates, by what explains them.
#[derive(Debug, Default)]
pub(crate) struct Duplicates {
    /// The outcome of a publish was unknown, and the message was sent again.
    pub(crate) resent: AtomicU64,
    /// The broker delivered it again and said so: an attempt later than the first.
    pub(crate) redelivered: AtomicU64,
    /// Neither.
    pub(crate) unexplained: AtomicU64,
}

#[derive(Debug)]
struct Latency {
    micros: Histogram<u64>,
    last_arrival: Duration,
}

/// Percentiles in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Percentiles {
    pub(crate) p50: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

/// What a histogram bucket may be off by: three significant digits. It grows with the largest
/// value, to some 200 KB for an hour.
const DIGITS: u8 = 3;

impl Tally {
    /// Everything at zero.
    pub(crate) fn new() -> Result<Self, hdrhistogram::CreationError> {
        Ok(Self {
            sent: AtomicU64::new(0),
            published: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            redelivered: AtomicU64::new(0),
            duplicates: Duplicates::default(),
            corrupted: AtomicU64::new(0),
            publish_errors: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            ack_errors: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            gaps: AtomicU64::new(0),
            dead_lettered: AtomicU64::new(0),
            latency: Mutex::new(Latency {
                micros: Histogram::new(DIGITS)?,
                last_arrival: Duration::ZERO,
            }),
            resent: Mutex::default(),
        })
    }

    /// Notes the latencies of messages that arrived together, `now` after the start of the run.
    pub(crate) fn arrived(&self, now: Duration, latencies: &[Duration]) {
        let mut latency = lock(&self.latency);
        latency.last_arrival = latency.last_arrival.max(now);
        for one in latencies {
            // It grows by itself, so any latency fits.
            let _ = latency.micros.record(one.as_micros() as u64);
        }
    }

    /// The latencies so far.
    pub(crate) fn percentiles(&self) -> Percentiles {
        let latency = lock(&self.latency);
        let at = |quantile| latency.micros.value_at_quantile(quantile) as f64 / 1_000.0;
        Percentiles {
            p50: at(0.50),
            p95: at(0.95),
            p99: at(0.99),
            max: latency.micros.max() as f64 / 1_000.0,
        }
    }

    /// When the last new message arrived, from the start of the run.
    pub(crate) fn last_arrival(&self) -> Duration {
        lock(&self.latency).last_arrival
    }

    /// Notes that a message is sent again after an unknown outcome, before it is.
    pub(crate) fn resending(&self, sender: usize, recipient: usize, seq: u64) {
        lock(&self.resent).insert((sender, recipient, seq));
    }

    /// Counts a duplicate under what explains it.
    pub(crate) fn duplicate(&self, sender: usize, recipient: usize, seq: u64, attempt: u32) {
        let counter = if attempt > 1 {
            &self.duplicates.redelivered
        } else if lock(&self.resent).contains(&(sender, recipient, seq)) {
            &self.duplicates.resent
        } else {
            &self.duplicates.unexplained
        };
        counter.fetch_add(1, Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_told_to_three_digits() {
        let tally = Tally::new().unwrap();
        assert_eq!(tally.percentiles(), Percentiles::default());
        let millis: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        tally.arrived(Duration::from_secs(2), &millis);
        tally.arrived(Duration::from_secs(1), &[]);
        let told = tally.percentiles();
        for (told, expected) in [(told.p50, 50.0), (told.p95, 95.0), (told.p99, 99.0)] {
            assert!((told - expected).abs() <= expected / 1_000.0, "{told}");
        }
        assert_eq!(tally.last_arrival(), Duration::from_secs(2));
    }

    #[test]
    fn a_duplicate_is_explained_by_what_caused_it() {
        let tally = Tally::new().unwrap();
        tally.resending(1, 2, 3);
        tally.duplicate(1, 2, 3, 1);
        tally.duplicate(1, 2, 3, 2);
        tally.duplicate(2, 1, 3, 1);
        let counts = &tally.duplicates;
        let told = [&counts.resent, &counts.redelivered, &counts.unexplained];
        assert_eq!(told.map(|c| c.load(Relaxed)), [1, 1, 1]);
    }
}
