//! What the pumps count.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// What was done since the start, as of the moment of the question. A
/// [`Publisher`](crate::Publisher) knows what was published; a bus, all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Metrics {
    /// Messages with a receipt.
    pub published: u64,
    /// Messages whose publish failed, whether or not the broker may have them all the same.
    pub failed: u64,
    /// Messages that are queued or sent, and have no outcome yet.
    pub in_flight: u64,
    /// Messages with a receipt in a second: the mean of the last ten whole seconds, or of the time
    /// since the start when that is less.
    pub per_second: f64,
    /// How long a message took from the call to its outcome, failures included: a moving mean over
    /// the last batches. `None` before the first outcome. A batch counts once, with the time of its
    /// first message.
    pub latency: Option<Duration>,
    /// How long the pump has been there.
    pub uptime: Duration,
    /// What the consumers did, those that are gone included.
    pub consumed: Consumed,
    /// The connections to the broker; `None` where a backend has none or does not know.
    pub connections: Option<Connections>,
}

/// What consumers did, as of the moment of the question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Consumed {
    /// Deliveries handed out. A message that is handed out again counts again.
    pub delivered: u64,
    /// Acks that the broker confirmed.
    pub acked: u64,
    /// Nacks that it confirmed, those of dropped deliveries included.
    pub nacked: u64,
    /// Rejects that it confirmed. Each made a dead letter.
    pub rejected: u64,
    /// Dead letters that it confirmed, after a reject or because the attempts were used up.
    pub dead_lettered: u64,
    /// Malformed entries that were moved to the quarantine.
    pub quarantined: u64,
    /// Deliveries whose lease ended, or was taken away, before they were settled.
    pub lease_lost: u64,
    /// Acks, nacks and rejects that failed otherwise, or were not confirmed in time.
    pub failed: u64,
    /// Deliveries that are handed out, and settlements that are not confirmed yet.
    pub in_flight: u64,
    /// Messages that were fetched and wait to be handed out.
    pub buffered: u64,
}

/// The connections of a transport, as it knows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Connections {
    /// The most that are opened for commands, as configured.
    pub configured: u64,
    /// How often a connection that was lost came back, of any kind.
    pub reconnects: u64,
}

impl Connections {
    /// So many, and so often.
    pub fn new(configured: u64, reconnects: u64) -> Self {
        Self {
            configured,
            reconnects,
        }
    }
}

/// Whole seconds that the rate is the mean of.
const WINDOW: u64 = 10;
/// One more for the second that is still being counted, and room to a power of two.
const BUCKETS: usize = 16;
/// The share of a new batch in the moving mean.
const SHARE: f64 = 1.0 / 16.0;

/// The counters: written once a batch, without a lock, and read by whoever asks.
#[derive(Debug)]
pub(crate) struct Counters {
    since: Instant,
    published: AtomicU64,
    failed: AtomicU64,
    /// Nanoseconds as the bits of an `f64`; 0 before the first batch.
    latency: AtomicU64,
    /// Messages by second of the uptime: the second in the upper half, the count in the lower.
    seconds: [AtomicU64; BUCKETS],
}

impl Counters {
    pub(crate) fn new() -> Self {
        Self {
            since: Instant::now(),
            published: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            latency: AtomicU64::new(0),
            seconds: Default::default(),
        }
    }

    /// A batch that began at `begun` has its outcomes.
    pub(crate) fn batch(&self, published: u64, failed: u64, begun: Instant) {
        let now = Instant::now();
        if published > 0 {
            self.published.fetch_add(published, Ordering::Relaxed);
            self.count(
                now.saturating_duration_since(self.since).as_secs(),
                published,
            );
        }
        if failed > 0 {
            self.failed.fetch_add(failed, Ordering::Relaxed);
        }
        // At least 1 ns, so that it is told from "nothing yet".
        let nanos = now.saturating_duration_since(begun).as_nanos().max(1);
        #[expect(
            clippy::cast_precision_loss,
            reason = "a mean of times needs no exact nanoseconds"
        )]
        let nanos = nanos as f64;
        let _ = self
            .latency
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bits| {
                let mean = f64::from_bits(bits);
                let next = if bits == 0 {
                    nanos
                } else {
                    mean + (nanos - mean) * SHARE
                };
                Some(next.to_bits())
            });
    }

    /// Messages that failed without an answer from the backend.
    pub(crate) fn failed(&self, messages: u64) {
        self.failed.fetch_add(messages, Ordering::Relaxed);
    }

    fn count(&self, second: u64, messages: u64) {
        let index = usize::try_from(second % BUCKETS as u64).unwrap_or(0);
        let Some(bucket) = self.seconds.get(index) else {
            return;
        };
        let _ = bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| {
            let (of, count) = (packed >> 32, packed & u64::from(u32::MAX));
            let count = if of == second & u64::from(u32::MAX) {
                count
            } else {
                0
            };
            let count = (count + messages).min(u64::from(u32::MAX));
            Some(second << 32 | count)
        });
    }

    pub(crate) fn read(&self, in_flight: u64) -> Metrics {
        let uptime = self.since.elapsed();
        let now = uptime.as_secs();
        let recent = self.seconds.iter().map(|bucket| {
            let packed = bucket.load(Ordering::Relaxed);
            let age = now.saturating_sub(packed >> 32);
            // The second that is still being counted counts only while there is no other.
            let counts = match now {
                0..WINDOW => true,
                _ => (1..=WINDOW).contains(&age),
            };
            if counts {
                packed & u64::from(u32::MAX)
            } else {
                0
            }
        });
        let recent: u64 = recent.sum();
        let over = match now {
            0..WINDOW => uptime.as_secs_f64().max(0.001),
            _ => Duration::from_secs(WINDOW).as_secs_f64(),
        };
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no exact count")]
        let per_second = recent as f64 / over;
        let latency = self.latency.load(Ordering::Relaxed);
        Metrics {
            published: self.published.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            in_flight,
            per_second,
            latency: (latency != 0).then(|| Duration::from_secs_f64(f64::from_bits(latency) / 1e9)),
            uptime,
            ..Metrics::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_that_of_the_last_ten_seconds() {
        let counters = Counters::new();
        let wait = |millis| tokio::time::advance(Duration::from_millis(millis));
        assert_eq!(counters.read(0), Metrics::default());
        for _ in 0..4 {
            wait(500).await;
            counters.batch(100, 0, Instant::now());
        }
        assert!((counters.read(0).per_second - 200.0).abs() < 1e-9);
        // Twenty seconds at 50, of which the first ten are forgotten, and the present one is not
        // counted yet.
        for _ in 0..20 {
            wait(1000).await;
            counters.batch(50, 0, Instant::now());
        }
        assert!((counters.read(0).per_second - 50.0).abs() < 1e-9);
        wait(60_000).await;
        let read = counters.read(7);
        assert_eq!((read.published, read.failed, read.in_flight), (1400, 0, 7));
        assert!(read.per_second < 1e-9);
    }

    #[tokio::test(start_paused = true)]
    async fn the_latency_moves_and_failures_count() {
        let counters = Counters::new();
        let begun = Instant::now();
        tokio::time::advance(Duration::from_millis(10)).await;
        counters.batch(1, 2, begun);
        let read = counters.read(0);
        assert_eq!(read.latency, Some(Duration::from_millis(10)));
        assert_eq!((read.published, read.failed), (1, 2));
        for _ in 0..200 {
            let begun = Instant::now();
            tokio::time::advance(Duration::from_millis(2)).await;
            counters.batch(1, 0, begun);
        }
        let mean = counters.read(0).latency.unwrap().as_secs_f64();
        assert!((mean - 0.002).abs() < 1e-5, "{mean}");
        counters.failed(3);
        assert_eq!(counters.read(0).failed, 5);
    }
}
