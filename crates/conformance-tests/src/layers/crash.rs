//! A process that dies, for backends inside this one.

use std::future::{Future, pending};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::FutureExt as _;
use mas_transport_core::{
    Confirm, Event, Fetch, Message, Outcome, Result, Settle, Settled, Source, Subscription, Token,
    Transport, Want,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::intercept::{Hooks, Joined};

/// Hooks that forward everything until [`Crash::now`], and nothing from then on: calls never
/// answer, and what is dropped above is not dropped below, so that nothing is returned. What was
/// under way is abandoned where it stands.
#[derive(Debug)]
pub struct Crash {
    dead: CancellationToken,
    // What a dead process leaves behind: kept until the trial ends, because dropping it would
    // return what it holds.
    left: Mutex<Vec<Box<dyn Fetch>>>,
}

impl Crash {
    /// A process that lives.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            dead: CancellationToken::new(),
            left: Mutex::default(),
        })
    }

    /// The process dies.
    pub fn now(&self) {
        self.dead.cancel();
    }

    fn is_dead(&self) -> bool {
        self.dead.is_cancelled()
    }

    async fn alive<T>(&self, call: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            () = self.dead.cancelled() => pending().await,
            answer = call => answer,
        }
    }
}

#[async_trait]
impl Hooks for Crash {
    async fn publish(
        &self,
        next: &Arc<dyn Transport>,
        batch: Vec<Message>,
        deadline: Instant,
    ) -> Confirm {
        let confirm = self.alive(next.publish(batch, deadline)).await;
        let dead = self.dead.clone();
        async move {
            tokio::select! {
                biased;
                () = dead.cancelled() => pending().await,
                outcomes = confirm => outcomes,
            }
        }
        .boxed()
    }

    async fn subscribe(
        &self,
        next: &Arc<dyn Transport>,
        subscription: &Subscription,
    ) -> Result<Source> {
        self.alive(next.subscribe(subscription)).await
    }

    async fn close(&self, next: &Arc<dyn Transport>, deadline: Instant) -> Result<()> {
        self.alive(next.close(deadline)).await
    }

    async fn fetch(
        &self,
        next: &mut dyn Fetch,
        _member: &Joined,
        want: Want,
        out: &mut Vec<Event>,
    ) -> Result<()> {
        self.alive(next.fetch(want, out)).await
    }

    async fn settle(
        &self,
        next: &Arc<dyn Settle>,
        _member: &Joined,
        batch: Vec<(Token, Outcome)>,
    ) -> Vec<Result<Settled>> {
        self.alive(next.settle(batch)).await
    }

    async fn settle_close(
        &self,
        next: &Arc<dyn Settle>,
        _member: &Joined,
        deadline: Instant,
    ) -> Result<()> {
        self.alive(next.close(deadline)).await
    }

    fn fetch_dropped(&self, fetch: Box<dyn Fetch>, _member: &Joined) {
        if self.is_dead() {
            let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
            left.push(fetch);
        }
    }
}
