//! A delivery in the hands of a trial, and the handles of its settlements; recorded.

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use mas_transport_core::{Backoff, Delivery, Error, Result, Settlement};
use tokio::time::Instant;

use crate::history::{Ended, Happened, History, How, MemberId};

/// A delivery in the hands of a trial.
pub struct Held {
    history: Arc<History>,
    member: MemberId,
    backoff: Backoff,
    delivery: Option<Delivery>,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.delivery.fmt(f)
    }
}

impl Deref for Held {
    type Target = Delivery;

    #[expect(
        clippy::expect_used,
        reason = "only the methods that consume it take it"
    )]
    fn deref(&self) -> &Delivery {
        self.delivery.as_ref().expect("a delivery is held")
    }
}

impl Held {
    pub(crate) fn new(
        history: &Arc<History>,
        member: MemberId,
        backoff: Backoff,
        delivery: Delivery,
    ) -> Self {
        Self {
            history: Arc::clone(history),
            member,
            backoff,
            delivery: Some(delivery),
        }
    }

    fn settle(mut self, how: How, settle: impl FnOnce(Delivery) -> Settlement) -> Answer {
        let delivery = self.delivery.take();
        let id = delivery.as_ref().map(|d| d.id().to_owned());
        let id = id.unwrap_or_default();
        let attempt = delivery.as_ref().map_or(0, Delivery::attempt);
        self.history.settling(self.member, &id, attempt, how);
        Answer {
            history: Arc::clone(&self.history),
            member: self.member,
            id,
            attempt,
            how,
            settlement: delivery.map(settle),
        }
    }

    /// As [`Delivery::ack`].
    pub fn ack(self) -> Answer {
        self.settle(How::Ack, Delivery::ack)
    }

    /// As [`Delivery::nack`].
    pub fn nack(self) -> Answer {
        self.settle(How::Nack(Duration::ZERO), Delivery::nack)
    }

    /// As [`Delivery::nack_after`].
    pub fn nack_after(self, delay: Duration) -> Answer {
        self.settle(How::Nack(delay), |d| d.nack_after(delay))
    }

    /// As [`Delivery::reject`].
    pub fn reject(self, reason: impl fmt::Display) -> Answer {
        self.settle(How::Reject, |d| d.reject(reason))
    }

    /// As [`Delivery::extend`].
    ///
    /// # Errors
    /// As [`Delivery::extend`].
    pub async fn extend(&self) -> Result<Instant> {
        let deadline = self.deref().extend().await?;
        self.history.push(Happened::Extended {
            member: self.member,
            id: self.id().to_owned(),
            attempt: self.attempt(),
            deadline: self.history.at(deadline),
        });
        Ok(deadline)
    }

    /// Keeps the delivery forever, as a handler that hangs does.
    pub fn hang(mut self) {
        std::mem::forget(self.delivery.take());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(delivery) = self.delivery.take() {
            let how = How::Dropped(self.backoff.after(delivery.attempt()));
            let (id, attempt) = (delivery.id(), delivery.attempt());
            self.history.settling(self.member, id, attempt, how);
        }
    }
}

/// The handle of a settlement; given up, its end is unknown.
pub struct Answer {
    history: Arc<History>,
    member: MemberId,
    id: String,
    attempt: u32,
    how: How,
    settlement: Option<Settlement>,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Answer({:?} of {})", self.how, self.id)
    }
}

impl Answer {
    fn ended(&mut self, ended: Ended) {
        self.settlement = None;
        let id = std::mem::take(&mut self.id);
        let (member, attempt) = (self.member, self.attempt);
        self.history.settled(member, id, attempt, self.how, ended);
    }
}

impl Future for Answer {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let Some(settlement) = &mut self.settlement else {
            return Poll::Ready(Err(Error::closed("settle")));
        };
        let answer = futures::ready!(Pin::new(settlement).poll(cx));
        let ended = Ended::of(&answer);
        self.ended(ended);
        Poll::Ready(answer)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.settlement.is_some() {
            self.ended(Ended::Unknown);
        }
    }
}
