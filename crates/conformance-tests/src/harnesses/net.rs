//! What a network does to a connection, for a broker that has none.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::FutureExt as _;
use mas_transport_core::{
    Confirm, Error, ErrorKind, Event, Fetch, Message, Outcome, Result, Settle, Settled, Token,
    Transport, Want,
};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::layers::{Hooks, Joined};

/// Hooks that break connections: answers that were under way are lost, whatever they answer did
/// happen; fetches fail once, then say that they are connected again.
#[derive(Debug)]
pub struct Net {
    lose: Arc<AtomicU64>,
    cuts: Arc<Cuts>,
    told: Mutex<Vec<(u32, u64)>>,
}

#[derive(Debug, Default)]
struct Cuts {
    count: AtomicU64,
    now: Notify,
}

impl Cuts {
    /// The answer, or nothing when the connection broke first.
    async fn survive<T>(&self, since: u64, call: impl Future<Output = T>) -> Option<T> {
        let broken = async {
            loop {
                let notified = self.now.notified();
                tokio::pin!(notified);
                notified.as_mut().enable();
                if self.count.load(Ordering::SeqCst) != since {
                    return;
                }
                notified.await;
            }
        };
        tokio::select! {
            biased;
            () = broken => None,
            answer = call => Some(answer),
        }
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }
}

fn broken(operation: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, operation, "the connection broke")
}

impl Net {
    /// A network that works.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            lose: Arc::default(),
            cuts: Arc::default(),
            told: Mutex::default(),
        })
    }

    /// Breaks every connection once.
    pub fn cut(&self) {
        self.cuts.count.fetch_add(1, Ordering::SeqCst);
        self.cuts.now.notify_waiters();
    }

    /// Loses the answers to the next `count` messages.
    pub fn lose_confirms(&self, count: u64) {
        self.lose.store(count, Ordering::SeqCst);
    }

    /// The cuts that a member has not heard of yet.
    fn untold(&self, member: u32) -> bool {
        let count = self.cuts.count();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match told.iter_mut().find(|(m, _)| *m == member) {
            Some((_, heard)) => std::mem::replace(heard, count) != count,
            None => {
                told.push((member, count));
                false
            }
        }
    }
}

#[async_trait]
impl Hooks for Net {
    async fn publish(
        &self,
        next: &Arc<dyn Transport>,
        batch: Vec<Message>,
        deadline: Instant,
    ) -> Confirm {
        let (count, since) = (batch.len(), self.cuts.count());
        let confirm = next.publish(batch, deadline).await;
        let (lose, cuts) = (Arc::clone(&self.lose), Arc::clone(&self.cuts));
        let unknown = || broken("publish").maybe_stored();
        async move {
            let Some(mut outcomes) = cuts.survive(since, confirm).await else {
                return vec![Err(unknown()); count];
            };
            for outcome in outcomes.iter_mut().filter(|o| o.is_ok()) {
                let less = |n: u64| n.checked_sub(1);
                if lose
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
                    .is_ok()
                {
                    *outcome = Err(unknown());
                }
            }
            outcomes
        }
        .boxed()
    }

    async fn fetch(
        &self,
        next: &mut dyn Fetch,
        member: &Joined,
        want: Want,
        out: &mut Vec<Event>,
    ) -> Result<()> {
        if self.untold(member.number) {
            out.push(Event::Reconnected);
            return Ok(());
        }
        let since = self.cuts.count();
        match self.cuts.survive(since, next.fetch(want, out)).await {
            Some(answer) => answer,
            None => Err(broken("fetch")),
        }
    }

    async fn settle(
        &self,
        next: &Arc<dyn Settle>,
        _member: &Joined,
        batch: Vec<(Token, Outcome)>,
    ) -> Vec<Result<Settled>> {
        let (count, since) = (batch.len(), self.cuts.count());
        let answers = self.cuts.survive(since, next.settle(batch)).await;
        answers.unwrap_or_else(|| vec![Err(broken("settle").maybe_stored()); count])
    }
}
