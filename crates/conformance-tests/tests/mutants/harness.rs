//! A backend with a mutant in front of it.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use conformance_tests::layers::{Hooks, Intercept, Joined};
use conformance_tests::{Ability, Broker, Failure, Harness, Setup, Timing, Variant, Verdict};
use mas_transport_core::{
    Confirm, Event, Fetch, Group, Message, Outcome, Result, Settle, Settled, Token, Topic,
    Transport, Want,
};
use tokio::time::Instant;

use crate::Mutant;

/// Calls of one broker after which it answers no more: what comes so far spins, and its thread
/// would go on for ever.
const MOST_CALLS: u64 = 60_000;

/// A harness whose transports are mutated.
#[derive(Debug)]
pub(crate) struct Mutated {
    pub(crate) inner: Arc<dyn Harness>,
    pub(crate) mutant: Mutant,
}

#[async_trait]
impl Harness for Mutated {
    fn name(&self) -> &str {
        self.mutant.name
    }

    fn timing(&self) -> Timing {
        self.inner.timing()
    }

    fn abilities(&self) -> &[Ability] {
        self.inner.abilities()
    }

    fn variants(&self) -> &[Variant] {
        &[Variant::Bare]
    }

    async fn broker(&self, setup: &Setup) -> std::result::Result<Arc<dyn Broker>, Failure> {
        let inner = self.inner.broker(setup).await?;
        // One for all connections of the trial: what a broker does wrong it does to all of them.
        let hooks = (self.mutant.make)(&inner);
        Ok(Arc::new(MutatedBroker {
            inner,
            hooks,
            calls: Arc::default(),
        }))
    }
}

#[derive(Debug)]
struct MutatedBroker {
    inner: Arc<dyn Broker>,
    hooks: Arc<dyn Hooks>,
    calls: Arc<Calls>,
}

#[async_trait]
impl Broker for MutatedBroker {
    async fn connect(&self) -> Result<Arc<dyn Transport>> {
        let transport = self.inner.connect().await?;
        let transport = Intercept::layer(transport, Arc::clone(&self.calls) as _);
        Ok(Intercept::layer(transport, Arc::clone(&self.hooks)))
    }

    async fn inject(&self, topic: &Topic, fields: Vec<(Bytes, Bytes)>) -> Verdict {
        self.inner.inject(topic, fields).await
    }

    async fn drop_group(&self, topic: &Topic, group: &Group) -> Verdict {
        self.inner.drop_group(topic, group).await
    }

    async fn wipe(&self, topic: &Topic) -> Verdict {
        self.inner.wipe(topic).await
    }

    async fn trim(&self, topic: &Topic, keep: u64) -> Verdict {
        self.inner.trim(topic, keep).await
    }

    async fn fill(&self, full: bool) -> Verdict {
        self.inner.fill(full).await
    }

    async fn block(&self, topic: &Topic, blocked: bool) -> Verdict {
        self.inner.block(topic, blocked).await
    }

    async fn kill(&self) -> Verdict {
        self.inner.kill().await
    }

    async fn start(&self) -> Verdict {
        self.inner.start().await
    }

    async fn freeze(&self, frozen: bool) -> Verdict {
        self.inner.freeze(frozen).await
    }

    async fn cut(&self) -> Verdict {
        self.inner.cut().await
    }

    async fn lose_confirms(&self, count: u64) -> Verdict {
        self.inner.lose_confirms(count).await
    }

    async fn connections(&self) -> std::result::Result<usize, Failure> {
        self.inner.connections().await
    }

    fn address(&self) -> Option<String> {
        self.inner.address()
    }

    async fn end(&self) {
        self.inner.end().await;
    }
}

/// Counts calls, and answers no more when there are too many.
#[derive(Debug, Default)]
struct Calls(AtomicU64);

impl Calls {
    async fn one_more(&self) {
        if self.0.fetch_add(1, Ordering::Relaxed) > MOST_CALLS {
            pending::<()>().await;
        }
    }
}

#[async_trait]
impl Hooks for Calls {
    async fn publish(
        &self,
        next: &Arc<dyn Transport>,
        batch: Vec<Message>,
        deadline: Instant,
    ) -> Confirm {
        self.one_more().await;
        next.publish(batch, deadline).await
    }

    async fn fetch(
        &self,
        next: &mut dyn Fetch,
        _member: &Joined,
        want: Want,
        out: &mut Vec<Event>,
    ) -> Result<()> {
        self.one_more().await;
        next.fetch(want, out).await
    }

    async fn settle(
        &self,
        next: &Arc<dyn Settle>,
        _member: &Joined,
        batch: Vec<(Token, Outcome)>,
    ) -> Vec<Result<Settled>> {
        self.one_more().await;
        next.settle(batch).await
    }
}
