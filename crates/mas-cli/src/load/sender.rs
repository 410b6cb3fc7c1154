//! One agent's sending half: it keeps to its schedule whatever the broker does.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures::FutureExt;
use mas_transport::{Bus, Error, ErrorKind, Message, Pending, Result, Stored, Topic};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::schedule::{Schedule, Slot};
use super::stamp::Stamp;
use super::tally::Tally;

/// How long a failed publish waits before it is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// One agent's sending half.
#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) agent: usize,
    pub(crate) bus: Bus,
    pub(crate) inboxes: Arc<[Topic]>,
    pub(crate) schedule: Schedule,
    pub(crate) start: Instant,
    pub(crate) payload: usize,
    /// Most messages without a receipt; the schedule waits beyond it, and its delay counts.
    pub(crate) window: usize,
    pub(crate) tally: Arc<Tally>,
    /// Send nothing new; what was sent still gets its receipt.
    pub(crate) stop: CancellationToken,
    /// Wait for no more receipts.
    pub(crate) give_up: CancellationToken,
}

/// What a sender has done, for the account of what was lost.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) agent: usize,
    /// How many numbers were used for each recipient.
    pub(crate) taken: Vec<u64>,
    /// Recipient and number of what has no receipt.
    pub(crate) unconfirmed: HashSet<(usize, u64)>,
}

#[derive(Debug)]
struct InFlight {
    slot: Slot,
    message: Message,
    pending: Pending,
}

#[derive(Debug)]
struct Retry {
    at: Instant,
    slot: Slot,
    message: Message,
}

/// What has no receipt yet. In flight and waiting to be sent again stand in the order in which
/// they came there, so that only the front of each has to be watched.
#[derive(Debug, Default)]
struct Open {
    in_flight: VecDeque<InFlight>,
    retries: VecDeque<Retry>,
}

impl Open {
    fn len(&self) -> usize {
        self.in_flight.len() + self.retries.len()
    }
}

impl Sender {
    /// Sends what the schedule says until it ends or `stop`, then waits for receipts.
    ///
    /// # Errors
    /// The first error that trying again cannot help: a payload that is too large, missing rights.
    pub(crate) async fn run(mut self) -> Result<Sent> {
        let mut open = Open::default();
        while !self.give_up.is_cancelled() {
            let now = Instant::now();
            self.send_due(now, &mut open).await?;
            let more = match self.stop.is_cancelled() {
                true => None,
                false => self.schedule.peek(),
            };
            if more.is_none() && open.len() == 0 {
                break;
            }
            let has_room = open.len() < self.window;
            let next_send = more.filter(|_| has_room).map(|slot| self.start + slot.at);
            let next_retry = open.retries.front().map(|retry| retry.at);
            let wake = [next_send, next_retry].into_iter().flatten().min();
            let Open { in_flight, .. } = &mut open;
            tokio::select! {
                biased;
                () = self.give_up.cancelled() => {}
                () = self.stop.cancelled(), if more.is_some() => {}
                outcome = receipt(in_flight), if !in_flight.is_empty() => {
                    self.settle(outcome, &mut open)?;
                    // Receipts come in batches.
                    while let Some(Some(outcome)) = open
                        .in_flight
                        .front_mut()
                        .map(|first| (&mut first.pending).now_or_never())
                    {
                        self.settle(outcome, &mut open)?;
                    }
                }
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
            }
        }
        let in_flight = open.in_flight.iter().map(|open| &open.slot);
        let retries = open.retries.iter().map(|open| &open.slot);
        Ok(Sent {
            agent: self.agent,
            taken: self.schedule.taken(),
            unconfirmed: in_flight
                .chain(retries)
                .map(|slot| (slot.recipient, slot.seq))
                .collect(),
        })
    }

    /// Sends again what has waited for it, then what the schedule has due.
    async fn send_due(&mut self, now: Instant, open: &mut Open) -> Result<()> {
        while let Some(retry) = open.retries.pop_front_if(|retry| retry.at <= now) {
            self.send(retry.slot, retry.message, open).await?;
        }
        while open.len() < self.window && !self.stop.is_cancelled() {
            let elapsed = now.saturating_duration_since(self.start);
            let Some(slot) = self.schedule.due(elapsed) else {
                break;
            };
            let stamp = Stamp {
                sender: self.agent as u32,
                seq: slot.seq,
                at: slot.at,
            };
            let inbox = self.inboxes[slot.recipient].clone();
            let message = Message::new(inbox, stamp.write(self.payload))?;
            self.tally.sent.fetch_add(1, Relaxed);
            self.send(slot, message, open).await?;
        }
        Ok(())
    }

    async fn send(&self, slot: Slot, message: Message, open: &mut Open) -> Result<()> {
        let enqueued = tokio::select! {
            biased;
            enqueued = self.bus.enqueue(message.clone()) => enqueued,
            () = self.give_up.cancelled() => Err(Error::new(
                ErrorKind::Timeout,
                "publish",
                "the run ended before there was room",
            )),
        };
        match enqueued {
            Ok(pending) => open.in_flight.push_back(InFlight {
                slot,
                message,
                pending,
            }),
            Err(error) => self.failed(&error, slot, message, open)?,
        }
        Ok(())
    }

    /// Takes the outcome of the first message in flight.
    fn settle(&self, outcome: Result<mas_transport::Receipt>, open: &mut Open) -> Result<()> {
        let Some(InFlight { slot, message, .. }) = open.in_flight.pop_front() else {
            return Ok(());
        };
        match outcome {
            Ok(_) => {
                self.tally.published.fetch_add(1, Relaxed);
                Ok(())
            }
            Err(error) => self.failed(&error, slot, message, open),
        }
    }

    fn failed(&self, error: &Error, slot: Slot, message: Message, open: &mut Open) -> Result<()> {
        if !is_worth_retrying(error) {
            return Err(error.clone());
        }
        self.tally.publish_errors.fetch_add(1, Relaxed);
        if error.stored() == Stored::Unknown {
            self.tally.unknown.fetch_add(1, Relaxed);
            self.tally.resending(self.agent, slot.recipient, slot.seq);
        }
        open.retries.push_back(Retry {
            at: Instant::now() + RETRY_AFTER,
            slot,
            message,
        });
        Ok(())
    }
}

/// What a broker answers while it starts or is overloaded counts as worth it too.
fn is_worth_retrying(error: &Error) -> bool {
    error.is_retryable() || error.kind() == ErrorKind::Broker
}

async fn receipt(in_flight: &mut VecDeque<InFlight>) -> Result<mas_transport::Receipt> {
    match in_flight.front_mut() {
        Some(first) => (&mut first.pending).await,
        None => std::future::pending().await,
    }
}
