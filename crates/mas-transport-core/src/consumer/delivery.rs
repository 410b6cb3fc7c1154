//! A message in the hands of the application.

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until};

use super::shared::{Shared, Wanted};
use crate::coalesce::Ticket;
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::record::{Reason, ReasonCode};
use crate::transport::{Position, RawDelivery, Settled};

/// A message under lease, in the hands of the application until it is settled.
///
/// `ack`, `nack`, `nack_after` and `reject` consume it: the settlement is queued when the method
/// is called and goes out with its neighbours; awaiting the returned [`Settlement`] gives the
/// broker's confirmation. Dropping a delivery unsettled is a nack with the subscription's backoff,
/// so that a failing handler never spins.
///
/// It reads like its [`Message`].
#[must_use = "settle it: dropping it is a nack"]
pub struct Delivery {
    raw: RawDelivery,
    shared: Arc<Shared>,
    settled: bool,
}

impl Delivery {
    pub(super) fn new(raw: RawDelivery, shared: Arc<Shared>) -> Self {
        Self {
            raw,
            shared,
            settled: false,
        }
    }

    /// The message.
    pub fn message(&self) -> &Message {
        &self.raw.message
    }

    /// Which attempt this is, counted in hand-outs; the first is 1.
    pub fn attempt(&self) -> u32 {
        self.raw.attempt
    }

    /// Where the message stands in its topic.
    pub fn position(&self) -> Position {
        self.raw.position
    }

    /// Until when the message is ours, on tokio's clock. [`extend`](Self::extend) moves it.
    pub fn deadline(&self) -> Instant {
        let live = self.shared.lock().window.deadline(self.raw.token);
        live.unwrap_or(self.raw.deadline)
    }

    /// Reads the payload as JSON.
    ///
    /// # Errors
    /// `Decode`, with what is wrong and where.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        self.raw.message.parse_json()
    }

    /// Resolves when the message is no longer ours: its lease ended without an extension, or was
    /// taken away.
    ///
    /// # Cancel safety
    /// Dropping it loses nothing.
    pub async fn revoked(&self) {
        loop {
            let notified = self.shared.revoked().notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            let Some(deadline) = self.shared.lock().window.deadline(self.raw.token) else {
                return;
            };
            if deadline <= Instant::now() {
                return;
            }
            tokio::select! {
                () = notified => {}
                () = sleep_until(deadline) => {}
            }
        }
    }

    /// Renews the lease to its full length from now, for work that takes longer. Returns the new
    /// deadline.
    ///
    /// # Errors
    /// `LeaseLost` when it had ended; `Unavailable`, `Timeout`: the old deadline holds.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the lease extended or not.
    pub async fn extend(&self) -> Result<Instant> {
        match self.shared.extend(self.raw.token).await? {
            Settled::Lease(deadline) => Ok(deadline),
            Settled::Done => Err(Error::new(
                ErrorKind::Internal,
                "extend",
                "the backend confirmed an extension without a deadline",
            )
            .on(self.shared.info.backend)),
        }
    }

    /// The message is done: once this is confirmed, the group never sees it again.
    pub fn ack(self) -> Settlement {
        self.finish(Wanted::Ack)
    }

    /// The message is to come back at once, to any member, as the next attempt.
    pub fn nack(self) -> Settlement {
        self.finish(Wanted::Nack(Duration::ZERO))
    }

    /// The message is to come back, not before `delay` has passed, as the next attempt.
    pub fn nack_after(self, delay: Duration) -> Settlement {
        self.finish(Wanted::Nack(delay))
    }

    /// The message can never be handled: it goes to the dead-letter topic of this topic and group,
    /// with the reason (cut at 1 KiB).
    ///
    /// # Errors
    /// `Unsupported`, through the handle, on a delivery from such a topic: it has nowhere further to
    /// go, and comes back when its lease ends.
    pub fn reject(self, reason: impl fmt::Display) -> Settlement {
        let reason = Reason::new(ReasonCode::Rejected, reason.to_string());
        self.finish(Wanted::Reject(reason))
    }

    fn finish(mut self, wanted: Wanted) -> Settlement {
        self.settled = true;
        #[cfg(feature = "mutants")]
        if mutated!(self.shared.info, HandleWithdraws) {
            return Settlement {
                ticket: None,
                late: Some((self.shared.clone(), self.raw.token, wanted)),
            };
        }
        Settlement {
            ticket: Some(self.shared.settle(self.raw.token, wanted)),
            #[cfg(feature = "mutants")]
            late: None,
        }
    }
}

impl Deref for Delivery {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.raw.message
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("topic", self.raw.message.topic())
            .field("id", &self.raw.message.id())
            .field("position", &self.raw.position)
            .field("attempt", &self.raw.attempt)
            .finish_non_exhaustive()
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if !self.settled {
            drop(self.shared.settle(self.raw.token, Wanted::Drop));
        }
    }
}

/// The handle of a queued settlement: resolves to the broker's confirmation.
///
/// # Errors
/// `LeaseLost`: the lease had ended, the broker was not asked. Others with
/// [`stored`](Error::stored) `Unknown`: the connection was lost before the answer.
///
/// # Cancel safety
/// Dropping it gives up the confirmation, not the settlement; a failure still shows as a
/// [`ConsumerEvent`](super::ConsumerEvent).
pub struct Settlement {
    ticket: Option<Ticket<Result<Settled>>>,
    #[cfg(feature = "mutants")]
    late: Option<(Arc<Shared>, crate::Token, Wanted)>,
}

impl fmt::Debug for Settlement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settlement").finish_non_exhaustive()
    }
}

impl Future for Settlement {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        #[cfg(feature = "mutants")]
        if let Some((shared, token, wanted)) = self.late.take() {
            self.ticket = Some(shared.settle(token, wanted));
        }
        match &mut self.ticket {
            Some(ticket) => Pin::new(ticket).poll(cx).map(|result| result.map(drop)),
            None => Poll::Pending,
        }
    }
}
