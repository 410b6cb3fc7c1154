//! Inserted yields: what is decided by who comes first is decided differently under each seed.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::FutureExt as _;
use mas_transport_core::{
    Confirm, Event, Fetch, Message, Outcome, Result, Settle, Settled, Source, Subscription, Token,
    Transport, Want,
};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::Instant;

use super::intercept::{Hooks, Joined};

/// Hooks that yield to the runtime now and then, before and after calls.
#[derive(Debug)]
pub struct Shake(Arc<Mutex<StdRng>>);

impl Shake {
    /// Yields as the seed says.
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed)))))
    }

    async fn shake(&self) {
        shake(&self.0).await;
    }
}

async fn shake(rng: &Mutex<StdRng>) {
    let times = {
        let mut rng = rng.lock().unwrap_or_else(PoisonError::into_inner);
        if rng.random_ratio(1, 2) {
            0
        } else {
            rng.random_range(1..8)
        }
    };
    for _ in 0..times {
        tokio::task::yield_now().await;
    }
}

#[async_trait]
impl Hooks for Shake {
    async fn publish(
        &self,
        next: &Arc<dyn Transport>,
        batch: Vec<Message>,
        deadline: Instant,
    ) -> Confirm {
        // Before the call the order of batches is fixed by nobody yet: the caller serialises.
        let confirm = next.publish(batch, deadline).await;
        let rng = Arc::clone(&self.0);
        async move {
            let outcomes = confirm.await;
            shake(&rng).await;
            outcomes
        }
        .boxed()
    }

    async fn subscribe(
        &self,
        next: &Arc<dyn Transport>,
        subscription: &Subscription,
    ) -> Result<Source> {
        self.shake().await;
        next.subscribe(subscription).await
    }

    async fn fetch(
        &self,
        next: &mut dyn Fetch,
        _member: &Joined,
        want: Want,
        out: &mut Vec<Event>,
    ) -> Result<()> {
        // Only before: an await after the events were pushed would break the rule of `fetch`.
        self.shake().await;
        next.fetch(want, out).await
    }

    async fn settle(
        &self,
        next: &Arc<dyn Settle>,
        _member: &Joined,
        batch: Vec<(Token, Outcome)>,
    ) -> Vec<Result<Settled>> {
        self.shake().await;
        let answers = next.settle(batch).await;
        self.shake().await;
        answers
    }
}
