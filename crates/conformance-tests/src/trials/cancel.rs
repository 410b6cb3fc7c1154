//! Futures of publishing, dropped after each of their polls.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use mas_transport_core::{
    Confirm, Message, Outcome, PublishOptions, Result, Settle, Settled, Source, Subscription,
    Token, Transport,
};
use tokio::time::Instant;

use super::support::{at_once, ensure, long_leased};
use super::tools::Gate;
use crate::agent::{Agent, Member};
use crate::ctx::Ctx;
use crate::harness::Verdict;
use crate::layers::{Hooks, Joined};
use crate::polls::drop_after_each_poll;
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(C1, a_dropped_publish),
    trial!(C1, a_dropped_publish_batch),
    trial!(C1, a_dropped_enqueue_gives_its_room_back),
    trial!(C1, a_dropped_receipt),
    trial!(C1, a_dropped_publisher_close),
];

/// Hooks that yield before and after each call, so that there are more polls to be dropped after.
#[derive(Debug)]
pub(super) struct Slow;

async fn yields() {
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
}

#[async_trait]
impl Hooks for Slow {
    async fn publish(
        &self,
        next: &Arc<dyn Transport>,
        batch: Vec<Message>,
        deadline: Instant,
    ) -> Confirm {
        let confirm = next.publish(batch, deadline).await;
        async move {
            yields().await;
            let outcomes = confirm.await;
            yields().await;
            outcomes
        }
        .boxed()
    }

    async fn subscribe(
        &self,
        next: &Arc<dyn Transport>,
        subscription: &Subscription,
    ) -> Result<Source> {
        yields().await;
        let source = next.subscribe(subscription).await;
        yields().await;
        source
    }

    async fn close(&self, next: &Arc<dyn Transport>, deadline: Instant) -> Result<()> {
        yields().await;
        next.close(deadline).await
    }

    async fn settle(
        &self,
        next: &Arc<dyn Settle>,
        _member: &Joined,
        batch: Vec<(Token, Outcome)>,
    ) -> Vec<Result<Settled>> {
        yields().await;
        let answers = next.settle(batch).await;
        yields().await;
        answers
    }
}

/// An application on a slow connection, with a queue in which lost room is soon missed.
pub(super) async fn slow_agent(ctx: &Ctx) -> Result<Agent> {
    let options = PublishOptions {
        queue_messages: 3,
        ..PublishOptions::default()
    };
    Ok(ctx.agent_on(ctx.connect_with(vec![Arc::new(Slow)]).await?, options))
}

/// Acks everything there is: once the publisher has sent all it accepted, what was published is
/// there exactly once, what was given up at most once.
async fn settle_up(ctx: &Ctx, agent: &Agent, member: &Member, sure: &[String]) -> Verdict {
    agent.publisher().close(ctx.deadline()).await?;
    let mut came = BTreeSet::new();
    while let Some(held) = member.next_within(ctx.timing().quiet).await? {
        ensure!(came.insert(held.id().to_owned()), "{held:?} came twice");
        held.ack().await?;
    }
    for id in sure {
        ensure!(came.contains(id), "{id} was published and never came");
    }
    ctx.drained();
    Ok(())
}

async fn a_dropped_publish(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = slow_agent(&ctx).await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    let mut sure = Vec::new();
    for _ in 0..6 {
        let last = Mutex::new(String::new());
        let publishing = drop_after_each_poll(|_| {
            let message = ctx.message(&topic);
            *last.lock().unwrap_or_else(PoisonError::into_inner) = message.id().to_owned();
            agent.publish(message)
        });
        let (_, receipt) = ctx.soon("a publish", publishing).await??;
        receipt?;
        sure.push(last.into_inner().unwrap_or_else(PoisonError::into_inner));
    }
    settle_up(&ctx, &agent, &member, &sure).await
}

async fn a_dropped_publish_batch(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = slow_agent(&ctx).await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    let mut sure = Vec::new();
    for _ in 0..4 {
        let last = Mutex::new(Vec::new());
        let publishing = drop_after_each_poll(|_| {
            // More than the queue holds: it goes in parts.
            let batch = ctx.messages(&topic, 8);
            let ids = batch.iter().map(|m| m.id().to_owned()).collect();
            *last.lock().unwrap_or_else(PoisonError::into_inner) = ids;
            agent.publish_batch(batch)
        });
        let (_, receipts) = ctx.soon("a batch", publishing).await??;
        ensure!(
            receipts.len() == 8,
            "a batch of 8 has {} outcomes",
            receipts.len()
        );
        for receipt in receipts {
            receipt?;
        }
        sure.extend(last.into_inner().unwrap_or_else(PoisonError::into_inner));
    }
    settle_up(&ctx, &agent, &member, &sure).await
}

/// A call that waits for room in a full queue and is dropped has published nothing and keeps no
/// room.
async fn a_dropped_enqueue_gives_its_room_back(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let gate = Gate::open();
    let transport = ctx.connect_with(vec![Arc::clone(&gate) as _]).await?;
    let options = PublishOptions {
        queue_messages: 2,
        ..PublishOptions::default()
    };
    let agent = ctx.agent_on(transport, options);
    let member = ctx
        .agent()
        .await?
        .join(&long_leased(&ctx, &topic, "billing"))
        .await?;
    let mut sure = Vec::new();
    for round in 0..4 {
        gate.publishes(false);
        let mut accepted = Vec::new();
        for message in ctx.messages(&topic, 2) {
            sure.push(message.id().to_owned());
            let room = ctx
                .within(at_once(&ctx), "room", agent.enqueue(message))
                .await;
            let room = room.map_err(|e| format!("round {round}, an empty queue: {e}"))?;
            accepted.push(room?);
        }
        for _ in 0..3 {
            // Polled once, pending, dropped.
            let waiting = agent.enqueue(ctx.message(&topic)).now_or_never();
            ensure!(waiting.is_none(), "a full queue answered {waiting:?}");
        }
        let opened = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            gate.publishes(true);
        };
        let last = Mutex::new(String::new());
        let waiting = drop_after_each_poll(|_| {
            let message = ctx.message(&topic);
            *last.lock().unwrap_or_else(PoisonError::into_inner) = message.id().to_owned();
            agent.enqueue(message)
        });
        let both = async { tokio::join!(waiting, opened) };
        let (waited, ()) = ctx.soon("room", both).await?;
        waited?.1?.await?;
        sure.push(last.into_inner().unwrap_or_else(PoisonError::into_inner));
        for receipt in accepted {
            receipt.await?;
        }
    }
    settle_up(&ctx, &agent, &member, &sure).await
}

/// The handle is dropped, the message is published.
async fn a_dropped_receipt(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = slow_agent(&ctx).await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    let mut sure = Vec::new();
    let mut pending = Vec::new();
    for _ in 0..30 {
        let message = ctx.message(&topic);
        sure.push(message.id().to_owned());
        let mut handle = agent.enqueue(message).await?;
        match ctx.pick(0, 2) {
            0 => drop(handle),
            1 => {
                let _ = futures::poll!(&mut handle);
                drop(handle);
            }
            _ => pending.push(handle),
        }
    }
    for receipt in pending {
        receipt.await?;
    }
    settle_up(&ctx, &agent, &member, &sure).await
}

/// The close goes on: nothing more is taken, everything is sent.
async fn a_dropped_publisher_close(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let gate = Gate::open();
    let transport = ctx.connect_with(vec![Arc::clone(&gate) as _]).await?;
    let agent = ctx.agent_on(transport, PublishOptions::default());
    let member = ctx
        .agent()
        .await?
        .join(&long_leased(&ctx, &topic, "billing"))
        .await?;
    gate.publishes(false);
    let mut sure = Vec::new();
    let mut pending = Vec::new();
    for message in ctx.messages(&topic, 20) {
        sure.push(message.id().to_owned());
        pending.push(agent.enqueue(message).await?);
    }
    let once = agent.publisher().close(ctx.deadline()).now_or_never();
    ensure!(
        once.is_none(),
        "a close with 20 unsent messages answered {once:?}"
    );
    let refused = agent.publish(ctx.message(&topic)).await;
    ensure!(
        refused.is_err(),
        "after a close was called a publish was answered {refused:?}"
    );
    let opened = async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        gate.publishes(true);
    };
    let closing = drop_after_each_poll(|_| agent.publisher().close(ctx.deadline()));
    let both = async { tokio::join!(closing, opened) };
    let (closed, ()) = ctx.soon("a close", both).await?;
    closed?.1?;
    for receipt in pending {
        receipt.await?;
    }
    settle_up(&ctx, &agent, &member, &sure).await
}
