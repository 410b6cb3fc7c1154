//! Futures of joining and receiving, dropped after each of their polls.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use mas_transport_core::{Consumer, Event, Message, Outcome, Result, Source, Want};

use super::cancel::slow_agent;
use super::support::{all_settled, at_once, ensure, long_leased};
use crate::agent::Agent;
use crate::ctx::Ctx;
use crate::harness::Verdict;
use crate::polls::{drop_after, drop_after_each_poll};
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(C1, a_dropped_start),
    trial!(C1, a_dropped_recv),
    trial!(C1, a_dropped_recv_of_a_redelivery),
    trial!(C1, a_dropped_recv_beside_another),
    trial!(C1, a_dropped_recv_batch),
    trial!(C1, a_dropped_stream),
    trial!(C1, a_dropped_fetch),
];

/// At most an empty group is left: no member that gets messages and keeps them.
async fn a_dropped_start(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = slow_agent(&ctx).await?;
    let subscription = long_leased(&ctx, &topic, "billing");
    let sender = ctx.agent().await?;
    let before = ctx.pick(0, 5);
    sender.publish_all(ctx.messages(&topic, before)).await?;
    for _ in 0..2 {
        let start = || Consumer::start(Arc::clone(agent.transport()), subscription.clone());
        let starting = drop_after_each_poll(|_| start());
        let (dropped, consumer) = ctx.soon("a start", starting).await??;
        ensure!(dropped > 0, "the trial dropped nothing");
        drop(consumer?);
    }
    sender.publish_all(ctx.messages(&topic, 5)).await?;
    let member = sender.join(&subscription).await?;
    for n in 0..before + 5 {
        let Some(held) = member.next_within(at_once(&ctx)).await? else {
            return Err(format!(
                "{n} of {} came at once: a dropped start keeps the rest",
                before + 5
            )
            .into());
        };
        ensure!(held.attempt() == 1, "{held:?} was never handed out before");
        held.ack().await?;
    }
    member.nothing().await?;
    all_settled(&ctx, &sender, &topic, "billing").await
}

/// Publishes soon, but not yet.
fn publish_soon(agent: &Agent, message: Message) -> impl Future<Output = Result<()>> + use<> {
    let agent = agent.clone();
    async move {
        tokio::time::sleep(Duration::from_millis(1)).await;
        agent.publish(message).await.map(drop)
    }
}

async fn a_dropped_recv(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    for n in 0..20 {
        let message = ctx.message(&topic);
        let id = message.id().to_owned();
        let receiving = drop_after_each_poll(|_| member.recv());
        let both = async { tokio::join!(receiving, publish_soon(&agent, message)) };
        let (received, published) = ctx.soon(&format!("delivery {n}"), both).await?;
        published?;
        let held = received?.1?.ok_or("the consumer has ended")?;
        ensure!(
            held.id() == id && held.attempt() == 1,
            "{id} was published, {held:?} came"
        );
        held.ack().await?;
    }
    member.nothing().await?;
    all_settled(&ctx, &agent, &topic, "billing").await
}

/// A redelivery is begun for the receiver that waits; when that is dropped, the next one gets it,
/// and no attempt is lost.
async fn a_dropped_recv_of_a_redelivery(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = slow_agent(&ctx).await?;
    let subscription = long_leased(&ctx, &topic, "billing").max_attempts(10);
    let member = agent.join(&subscription).await?;
    for _ in 0..3 {
        agent.publish(ctx.message(&topic)).await?;
        let mut held = member.next().await?;
        for attempt in 2..=4 {
            match ctx.pick(0, 1) {
                0 => held.nack().await?,
                _ => held.nack_after(Duration::from_millis(2)).await?,
            }
            let receiving = drop_after_each_poll(|_| member.recv());
            let received = ctx.soon("a redelivery", receiving).await?;
            held = received?.1?.ok_or("the consumer has ended")?;
            ensure!(
                held.attempt() == attempt,
                "hand-out {attempt} says that it is attempt {}",
                held.attempt()
            );
        }
        held.ack().await?;
    }
    member.nothing().await
}

/// Of two receivers the one that is woken may be dropped: the other one gets the delivery.
async fn a_dropped_recv_beside_another(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = Arc::new(agent.join(&long_leased(&ctx, &topic, "billing")).await?);
    for n in 0..10 {
        let patient = {
            let member = Arc::clone(&member);
            tokio::spawn(async move { member.recv().await })
        };
        for _ in 0..ctx.pick(1, 3) {
            tokio::task::yield_now().await;
        }
        let mut fickle = Box::pin(member.recv());
        let early = futures::poll!(fickle.as_mut());
        ensure!(
            early.is_pending(),
            "before anything was published there came {early:?}"
        );
        agent.publish(ctx.message(&topic)).await?;
        drop(fickle);
        let held = ctx.soon(&format!("delivery {n}"), patient).await??;
        held?.ok_or("the consumer has ended")?.ack().await?;
    }
    member.nothing().await
}

async fn a_dropped_recv_batch(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    let mut left = BTreeSet::new();
    let mut count = 0;
    while count < 60 {
        let message = ctx.message(&topic);
        count += 1;
        left.insert(message.id().to_owned());
        let receiving = drop_after_each_poll(|_| member.recv_batch(4));
        let both = async { tokio::join!(receiving, publish_soon(&agent, message)) };
        let (received, published) = ctx.soon("a batch", both).await?;
        published?;
        for held in received?.1? {
            ensure!(left.remove(held.id()), "{held:?} came and was not expected");
            held.ack().await?;
        }
    }
    for held in member.take(left.len()).await? {
        held.ack().await?;
    }
    member.nothing().await
}

async fn a_dropped_stream(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = long_leased(&ctx, &topic, "billing");
    let consumer = Consumer::start(Arc::clone(agent.transport()), subscription).await?;
    for n in 0..20 {
        let message = ctx.message(&topic);
        let id = message.id().to_owned();
        // Once the stream, once only its `next`, is dropped.
        let kept = tokio::sync::Mutex::new(Box::pin(consumer.stream()));
        let receiving = drop_after_each_poll(|_| async {
            if n % 2 == 0 {
                Box::pin(consumer.stream()).next().await
            } else {
                kept.lock().await.next().await
            }
        });
        let both = async { tokio::join!(receiving, publish_soon(&agent, message)) };
        let (received, published) = ctx.soon(&format!("delivery {n}"), both).await?;
        published?;
        let delivery = received?.1.ok_or("the stream has ended")??;
        ensure!(delivery.id() == id, "{id} was published, {delivery:?} came");
        delivery.ack().await?;
    }
    all_settled(&ctx, &agent, &topic, "billing").await
}

/// At the level of the transport: what a dropped fetch took is among the events.
async fn a_dropped_fetch(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let source = ctx
        .connect()
        .await?
        .subscribe(&long_leased(&ctx, &topic, "billing"))
        .await?;
    let Source { fetch, settle } = source;
    let fetching = tokio::sync::Mutex::new((fetch, Vec::new()));
    let want = Want::new(3, 1 << 20);
    let mut tokens = Vec::new();
    for n in 0..20 {
        let message = ctx.message(&topic);
        let publishing = publish_soon(&agent, message);
        // Each delivery begins with another number of polls, so that a drop meets every moment:
        // what wakes the task polls the fetch, whether or not it was meant.
        let receiving = async {
            for tried in 0.. {
                let allowed = match tried < 8 {
                    true => 1 + (n + tried) % 5,
                    false => tried,
                };
                let fetched = drop_after(allowed, async {
                    let mut both = fetching.lock().await;
                    let (fetch, out) = &mut *both;
                    fetch.fetch(want, out).await
                });
                if let Some(result) = fetched.await {
                    return result;
                }
                if !fetching.lock().await.1.is_empty() {
                    return Ok(());
                }
            }
            Ok(())
        };
        let both = async { tokio::join!(receiving, publishing) };
        let (received, published) = ctx.soon(&format!("delivery {n}"), both).await?;
        published?;
        received?;
        for event in fetching.lock().await.1.drain(..) {
            match event {
                Event::Delivery(delivery) => tokens.push((delivery.token, delivery.attempt)),
                other => return Err(format!("{other:?} was fetched").into()),
            }
        }
    }
    ensure!(
        tokens.len() == 20 && tokens.iter().all(|(_, attempt)| *attempt == 1),
        "of 20 messages there were fetched {tokens:?}"
    );
    let acks = tokens.into_iter().map(|(token, _)| (token, Outcome::Ack));
    for answer in settle.settle(acks.collect()).await {
        answer?;
    }
    all_settled(&ctx, &agent, &topic, "billing").await
}
