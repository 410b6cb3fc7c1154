//! One agent's receiving half.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use mas_transport::{Consumer, ConsumerEvent, Delivery, ErrorKind, Result};
use tokio::time::Instant;

use super::ledger::{Arrival, Ledger};
use super::stamp::Stamp;
use super::tally::Tally;

/// Most deliveries taken at once.
const BATCH: usize = 256;

/// One agent's receiving half.
#[derive(Debug)]
pub(crate) struct Receiver {
    pub(crate) agent: usize,
    pub(crate) consumer: Arc<Consumer>,
    pub(crate) ledger: Ledger,
    pub(crate) start: Instant,
    pub(crate) payload: usize,
    pub(crate) tally: Arc<Tally>,
}

impl Receiver {
    /// Takes and acknowledges what comes until the consumer is closed; the account of it.
    ///
    /// # Errors
    /// What ended the consumer otherwise.
    pub(crate) async fn run(mut self) -> Result<(usize, Ledger)> {
        let mut latencies = Vec::with_capacity(BATCH);
        loop {
            let batch = match self.consumer.recv_batch(BATCH).await {
                Ok(batch) if batch.is_empty() => break,
                Ok(batch) => batch,
                Err(error) if error.kind() == ErrorKind::Closed => break,
                Err(error) => return Err(error),
            };
            let now = Instant::now().saturating_duration_since(self.start);
            latencies.clear();
            for delivery in batch {
                if let Some(stamp) = self.enter(&delivery) {
                    latencies.push(now.saturating_sub(stamp.at));
                }
                // Its failure shows as an event.
                drop(delivery.ack());
            }
            self.tally.arrived(now, &latencies);
            let new = latencies.len() as u64;
            self.tally.delivered.fetch_add(new, Relaxed);
        }
        Ok((self.agent, self.ledger))
    }

    /// Enters a delivery into the account; what it carries, if it is new.
    fn enter(&mut self, delivery: &Delivery) -> Option<Stamp> {
        if delivery.attempt() > 1 {
            self.tally.redelivered.fetch_add(1, Relaxed);
        }
        let arrival = Stamp::read(delivery.payload(), self.payload).map(|stamp| {
            let arrival = self.ledger.enter(stamp.sender as usize, stamp.seq);
            (stamp, arrival)
        });
        match arrival {
            Some((stamp, Arrival::First)) => return Some(stamp),
            Some((stamp, Arrival::Duplicate)) => {
                let sender = stamp.sender as usize;
                let attempt = delivery.attempt();
                self.tally.duplicate(sender, self.agent, &stamp, attempt);
            }
            Some((_, Arrival::Foreign)) | None => {
                self.tally.corrupted.fetch_add(1, Relaxed);
            }
        }
        None
    }
}

/// Counts what happens to the consumer of an agent until it is closed.
pub(crate) async fn count_events(
    agent: usize,
    consumer: Arc<Consumer>,
    start: Instant,
    tally: Arc<Tally>,
) {
    while let Some(event) = consumer.next_event().await {
        let counter = match event {
            ConsumerEvent::Gap(_) => &tally.gaps,
            ConsumerEvent::SettlementFailed { .. } => &tally.ack_errors,
            ConsumerEvent::Retrying { .. } => {
                tally.disconnected(agent, Instant::now().saturating_duration_since(start));
                continue;
            }
            ConsumerEvent::Reconnected => {
                tally.reconnected(agent, Instant::now().saturating_duration_since(start));
                continue;
            }
            ConsumerEvent::DeadLettered(_) => &tally.dead_lettered,
            ConsumerEvent::Quarantined(_) => &tally.corrupted,
            _ => continue,
        };
        counter.fetch_add(1, Relaxed);
    }
}
