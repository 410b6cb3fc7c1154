//! What has happened so far, counted by all agents together.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

use super::stamp::Stamp;

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
    /// When an agent's consumer lost its connection, and when it had it back, from the start of the run.
    outages: Mutex<HashMap<usize, Vec<Outage>>>,
}

/// Duplicates, by what explains them.
#[derive(Debug, Default)]
pub(crate) struct Duplicates {
    /// The outcome of a publish was unknown, and the message was sent again.
    pub(crate) resent: AtomicU64,
    /// The broker delivered it again and said so: an attempt later than the first.
    pub(crate) redelivered: AtomicU64,
    /// Neither, so far: who got it again, and when it was sent first, from the start of the run.
    others: Mutex<Vec<(usize, Duration)>>,
    /// Neither, and too many to be remembered.
    beyond: AtomicU64,
}

/// When a connection was lost, and when it was back.
type Outage = (Duration, Option<Duration>);

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

/// After how long an ack is written that a broker writes behind, its message's way included.
const WRITTEN: Duration = Duration::from_secs(5);
/// Most outages of a connection that are remembered.
const MOST_OUTAGES: usize = 1000;
/// Duplicates that are remembered until the end, which tells what explains them.
const MOST_OTHERS: usize = 1 << 20;
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
            outages: Mutex::default(),
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

    /// Notes that an agent's consumer lost its connection, `now` after the start of the run.
    pub(crate) fn disconnected(&self, agent: usize, now: Duration) {
        let mut outages = lock(&self.outages);
        let outages = outages.entry(agent).or_default();
        if outages.last().is_none_or(|(_, back)| back.is_some()) && outages.len() < MOST_OUTAGES {
            outages.push((now, None));
        }
    }

    /// Notes that it has it back.
    pub(crate) fn reconnected(&self, agent: usize, now: Duration) {
        self.reconnects.fetch_add(1, Relaxed);
        // It may have been too short for anybody to notice its beginning.
        self.disconnected(agent, now);
        if let Some((_, back)) = lock(&self.outages)
            .get_mut(&agent)
            .and_then(|o| o.last_mut())
        {
            back.get_or_insert(now);
        }
    }

    /// Counts a duplicate of what was sent `at`, after the start of the run, under what explains it.
    pub(crate) fn duplicate(&self, sender: usize, recipient: usize, stamp: &Stamp, attempt: u32) {
        if attempt > 1 {
            self.duplicates.redelivered.fetch_add(1, Relaxed);
        } else if lock(&self.resent).contains(&(sender, recipient, stamp.seq)) {
            self.duplicates.resent.fetch_add(1, Relaxed);
        } else {
            let mut others = lock(&self.duplicates.others);
            if others.len() < MOST_OTHERS {
                others.push((recipient, stamp.at));
            } else {
                self.duplicates.beyond.fetch_add(1, Relaxed);
            }
        }
    }

    /// Duplicates that came as first attempts of what was not sent again: how many came from a broker
    /// that may have forgotten their acks, and how many are unexplained. It may have where it is one that
    /// forgets, and the connection was lost and made again after the message had been sent.
    pub(crate) fn forgotten(&self, forgets: bool) -> (u64, u64) {
        let outages = lock(&self.outages);
        let others = lock(&self.duplicates.others);
        let during = |at: Duration, (lost, back): &Outage| {
            at + WRITTEN >= *lost && back.is_none_or(|back| at <= back)
        };
        let explained = others.iter().filter(|(agent, at)| {
            let outages = outages.get(agent).map_or(&[][..], Vec::as_slice);
            forgets && outages.iter().any(|outage| during(*at, outage))
        });
        let explained = explained.count() as u64;
        let all = others.len() as u64 + self.duplicates.beyond.load(Relaxed);
        (explained, all - explained)
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
        let stamp = |seq, at| Stamp {
            sender: 1,
            seq,
            at: Duration::from_secs(at),
        };
        tally.resending(1, 2, 3);
        tally.duplicate(1, 2, &stamp(3, 1), 1);
        tally.duplicate(1, 2, &stamp(3, 1), 2);
        tally.duplicate(1, 2, &stamp(4, 1), 1);
        tally.duplicate(1, 2, &stamp(5, 29), 1);
        tally.duplicate(1, 3, &stamp(4, 1), 1);
        let counts = &tally.duplicates;
        assert_eq!(
            [&counts.resent, &counts.redelivered].map(|c| c.load(Relaxed)),
            [1, 1]
        );
        tally.duplicate(1, 2, &stamp(6, 12), 1);
        assert_eq!(tally.forgotten(true), (0, 4));
        for _ in 0..2 {
            tally.disconnected(2, Duration::from_secs(14));
        }
        tally.reconnected(2, Duration::from_secs(20));
        // Not what was sent long before, or after.
        assert_eq!(tally.forgotten(true), (1, 3));
        tally.reconnected(2, Duration::from_secs(4));
        assert_eq!(tally.forgotten(true), (2, 2));
        assert_eq!(tally.forgotten(false), (0, 4));
    }
}
