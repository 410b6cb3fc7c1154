//! The consumer pump: a member of a group for applications.

mod delivery;
mod events;
mod meter;
mod pump;
mod shared;
mod window;

use std::sync::Arc;

use futures::Stream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

pub use delivery::{Delivery, Settlement};
pub use events::{ConsumerEvent, EVENTS_KEPT};
pub use meter::Meter;

use crate::error::{Error, ErrorKind, Result};
use crate::subscription::Subscription;
use crate::transport::Transport;
use pump::Pump;
use shared::{Phase, Shared};

impl Phase {
    fn is_open(&self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// One member of one group: prefetches within its window, hands out deliveries, keeps the leases of
/// what waits, gathers settlements, and returns what was not handed out.
///
/// Shared by reference: several tasks may call [`recv`](Self::recv). Dropping it returns what was
/// not handed out and lets what was handed out be settled while its leases live, for two leases at
/// most.
#[derive(Debug)]
pub struct Consumer {
    shared: Arc<Shared>,
    drain_by: watch::Sender<Option<Instant>>,
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.shared.begin_closing();
        self.shared.pump().notify_one();
    }
}

impl Consumer {
    /// Joins the group and starts the pump on the current tokio runtime.
    ///
    /// # Errors
    /// As [`Transport::subscribe`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves at most an empty group behind.
    pub async fn start(transport: Arc<dyn Transport>, subscription: Subscription) -> Result<Self> {
        Self::start_metered(transport, subscription, &Meter::new()).await
    }

    /// As [`start`](Self::start), and counts in `meter` what the consumer does.
    ///
    /// # Errors
    /// As [`Transport::subscribe`].
    ///
    /// # Cancel safety
    /// As [`start`](Self::start).
    pub async fn start_metered(
        transport: Arc<dyn Transport>,
        subscription: Subscription,
        meter: &Meter,
    ) -> Result<Self> {
        let info = transport.info();
        let source = transport.subscribe(&subscription).await?;
        let shared = Arc::new(Shared::new(info, subscription, &source, meter)?);
        let (drain_by, told) = watch::channel(None);
        let pump = Pump {
            shared: shared.clone(),
            drain_by: told,
        };
        tokio::spawn(pump.run(source.fetch));
        Ok(Self { shared, drain_by })
    }

    /// Waits for the next delivery; `None` once the consumer has been closed.
    ///
    /// # Errors
    /// `Closed` when the end had been told before; what ended the consumer for good
    /// (`Unauthorized`, `NotFound`, …). Passing failures do not show here but in
    /// [`events`](Self::next_event).
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: a delivery is taken in the poll that returns it.
    pub async fn recv(&self) -> Result<Option<Delivery>> {
        Ok(self.recv_batch(1).await?.pop())
    }

    /// Waits for at least one delivery and returns what is at hand, up to `most`. Empty once the
    /// consumer has been closed.
    ///
    /// # Errors
    /// As [`recv`](Self::recv); `InvalidArgument` when `most` is 0.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn recv_batch(&self, most: usize) -> Result<Vec<Delivery>> {
        if most == 0 {
            return Err(Error::invalid(
                "recv",
                "a batch holds at least one delivery",
            ));
        }
        // What came back is begun for receivers that wait, and goes before what is new.
        let in_line = !mutated!(self.shared.info, AgainWaits);
        let in_line = in_line && self.shared.lock().window.has_again();
        if !in_line && let Some(taken) = self.take(most) {
            return taken;
        }
        self.wait_for(most).await
    }

    /// `None` when there is nothing to hand out yet.
    fn take(&self, most: usize) -> Option<Result<Vec<Delivery>>> {
        match self.shared.take(most) {
            Ok(taken) if taken.is_empty() => None,
            Ok(taken) => Some(Ok(taken)),
            Err(None) => Some(Ok(Vec::new())),
            Err(Some(error)) => Some(Err(error)),
        }
    }

    async fn wait_for(&self, most: usize) -> Result<Vec<Delivery>> {
        let _waiting = Waiting::new(&self.shared, most);
        loop {
            let notified = self.shared.app().notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if let Some(taken) = self.take(most) {
                #[cfg(feature = "mutants")]
                if mutated!(self.shared.info, RecvLosesOnCancel) {
                    let taken = taken.map(|t| t.into_iter().map(Kept::new).collect::<Vec<_>>());
                    tokio::task::yield_now().await;
                    return taken.map(|t| t.into_iter().map(Kept::give).collect());
                }
                return taken;
            }
            notified.await;
        }
    }

    /// The deliveries as a stream, which ends when the consumer is closed. Errors as
    /// [`recv`](Self::recv).
    pub fn stream(&self) -> impl Stream<Item = Result<Delivery>> + Send + '_ {
        futures::stream::unfold(Some(self), |consumer| async move {
            let consumer = consumer?;
            match consumer.recv().await {
                Ok(Some(delivery)) => Some((Ok(delivery), Some(consumer))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// Waits for the next event; `None` once the consumer is closed and every event was read. Each
    /// event is read once; the newest [`EVENTS_KEPT`] wait for a reader.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn next_event(&self) -> Option<ConsumerEvent> {
        loop {
            let notified = self.shared.events().notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if let Some(event) = self.shared.next_event() {
                return Some(event);
            }
            if matches!(self.shared.lock().phase, Phase::Closed | Phase::Failed(_)) {
                return None;
            }
            notified.await;
        }
    }

    /// The next event, if there is one.
    pub fn try_next_event(&self) -> Option<ConsumerEvent> {
        self.shared.next_event()
    }

    /// Stops handing out: what waits is returned to the group. What is handed out is not touched.
    pub fn pause(&self) {
        let mut state = self.shared.lock();
        if matches!(state.phase, Phase::Running) {
            state.phase = Phase::Paused;
        }
        drop(state);
        self.shared.pump().notify_one();
    }

    /// Goes on after a [`pause`](Self::pause).
    pub fn resume(&self) {
        let mut state = self.shared.lock();
        if matches!(state.phase, Phase::Paused) {
            state.phase = Phase::Running;
        }
        drop(state);
        self.shared.pump().notify_one();
        self.shared.app().notify_waiters();
    }

    /// Closes: hands out nothing more, returns what was not handed out, and waits until what was
    /// handed out is settled, or the deadline; the rest is returned then. Afterwards settling
    /// answers `Closed`. Idempotent: a later call waits for the first one's deadline.
    ///
    /// # Errors
    /// `Timeout` when the backend had not let go shortly after the deadline.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the consumer closing.
    pub async fn close(&self, deadline: Instant) -> Result<()> {
        // The deadline first: the pump looks for it as soon as the close has begun.
        self.drain_by.send_if_modified(|by| match by {
            Some(_) => false,
            None => {
                *by = Some(deadline);
                true
            }
        });
        self.shared.begin_closing();
        self.shared.pump().notify_one();
        self.shared.app().notify_waiters();
        let mut closed = self.shared.closed.subscribe();
        // The backend returns the rest at the deadline; that takes a round trip.
        let grace = deadline.max(Instant::now()) + CLOSE_GRACE;
        match timeout_at(grace, closed.wait_for(|closed| *closed)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                "close",
                "the broker did not answer by the deadline; unsettled messages come back when \
                 their leases end",
            )
            .on(self.shared.info.backend)),
        }
    }
}

/// How long after its deadline a close may take to return what is left.
const CLOSE_GRACE: std::time::Duration = std::time::Duration::from_secs(2);

/// A receiver that waits: the pump begins no more deliveries than are waited for.
struct Waiting<'a> {
    shared: &'a Shared,
    most: usize,
}

impl<'a> Waiting<'a> {
    fn new(shared: &'a Shared, most: usize) -> Self {
        shared.lock().window.wait(most);
        Self { shared, most }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.lock().window.unwait(self.most);
    }
}

/// A delivery that vanishes without a trace when dropped.
#[cfg(feature = "mutants")]
struct Kept(std::mem::ManuallyDrop<Delivery>);

#[cfg(feature = "mutants")]
impl Kept {
    fn new(delivery: Delivery) -> Self {
        Self(std::mem::ManuallyDrop::new(delivery))
    }

    fn give(self) -> Delivery {
        std::mem::ManuallyDrop::into_inner(self.0)
    }
}
