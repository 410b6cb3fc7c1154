//! What the backend does not declare.

use std::sync::Arc;
use std::time::Duration;

use mas_transport_core::{
    Consumer, ErrorKind, Filter, Lag, Message, Order, Priority, ReadSpec, Result, StartFrom,
    Stored, Subscription,
};

use super::support::{ensure, long_leased, quiet};
use crate::ctx::Ctx;
use crate::harness::Verdict;
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(U1, a_ttl_is_refused).when("it has ttl", |c| !c.ttl),
    trial!(U1, a_delay_is_refused).when("it has delays", |c| !c.delay),
    trial!(U1, a_priority_is_refused).when("it has priorities", |c| !c.priority),
    trial!(U1, an_idempotency_key_is_refused).when("it has dedup", |c| !c.dedup),
    trial!(U1, a_wildcard_is_refused).when("it has wildcards", |c| !c.wildcard),
    trial!(U1, a_filter_is_refused).when("it has filters", |c| !c.filter),
    trial!(U1, order_per_key_is_refused).when("it has order per key", |c| !c.order_per_key),
    trial!(U1, reading_is_refused).when("it has read", |c| !c.read),
    trial!(U1, pausing_a_group_is_refused).when("it pauses groups", |c| !c.pause_group),
    trial!(U1, what_is_the_default_is_not_refused),
];

fn is_unsupported<T: std::fmt::Debug>(ctx: &Ctx, what: &str, answer: Result<T>) -> Verdict {
    match answer {
        Err(e) if e.kind() == ErrorKind::Unsupported && e.stored() == Stored::No => {
            let told = e.to_string();
            ensure!(
                e.backend() == ctx.info().backend && told.contains(ctx.info().backend),
                "the refusal of {what} does not name the backend: {told}"
            );
            ensure!(
                !e.is_retryable(),
                "the refusal of {what} says that waiting helps"
            );
            Ok(())
        }
        other => Err(format!("{what} was answered with {other:?}").into()),
    }
}

/// Refused alone and in a batch, by the pump and below it; nothing is stored, no topic is made, and
/// its neighbours are published.
async fn publish_refused(ctx: Ctx, what: &str, option: fn(Message) -> Message) -> Verdict {
    let (topic, untouched) = (ctx.topic("orders")?, ctx.topic("untouched")?);
    let agent = ctx.agent().await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    is_unsupported(
        &ctx,
        what,
        agent.publish(option(ctx.message(&untouched))).await,
    )?;
    let pending = agent.enqueue(option(ctx.message(&topic))).await?;
    is_unsupported(&ctx, what, pending.await)?;
    let raw = vec![option(ctx.message(&topic))];
    for outcome in ctx.try_publish_raw(agent.transport(), raw).await {
        is_unsupported(&ctx, what, outcome)?;
    }
    let mut batch = ctx.messages(&topic, 3);
    batch[1] = option(batch[1].clone());
    let mut outcomes = agent.publish_batch(batch).await;
    is_unsupported(&ctx, what, outcomes.remove(1))?;
    for outcome in outcomes {
        outcome?;
    }
    member.ack_all(2).await?;
    member.nothing().await?;
    let topics = agent.admin().topics().await?;
    ensure!(
        !topics.contains(&untouched),
        "a refused message made {untouched}: {topics:?}"
    );
    Ok(())
}

async fn a_ttl_is_refused(ctx: Ctx) -> Verdict {
    publish_refused(ctx, "a ttl", |m| m.ttl(Duration::from_secs(3600))).await
}

async fn a_delay_is_refused(ctx: Ctx) -> Verdict {
    publish_refused(ctx, "a delay", |m| m.delay(Duration::from_millis(1))).await
}

async fn a_priority_is_refused(ctx: Ctx) -> Verdict {
    publish_refused(ctx.clone(), "a high priority", |m| {
        m.priority(Priority::High)
    })
    .await?;
    let agent = ctx.agent().await?;
    for priority in [Priority::Background, Priority::Low, Priority::Critical] {
        let message = ctx.message(&ctx.topic("others")?).priority(priority);
        is_unsupported(&ctx, "a priority", agent.publish(message).await)?;
    }
    Ok(())
}

async fn an_idempotency_key_is_refused(ctx: Ctx) -> Verdict {
    publish_refused(ctx, "an idempotency key", |m| m.idempotency_key("once")).await
}

/// Refused by the consumer and below it; no topic, no group and no member is made.
async fn subscribe_refused(
    ctx: Ctx,
    what: &str,
    pattern: &str,
    option: fn(Subscription) -> Subscription,
) -> Verdict {
    let topic = ctx.topic("orders.eu")?;
    let agent = ctx.agent().await?;
    let asked = Subscription::new(pattern)
        .group("refused")
        .lease(ctx.lease());
    let asked = option(asked);
    let started = Consumer::start(Arc::clone(agent.transport()), asked.clone()).await;
    is_unsupported(&ctx, what, started)?;
    is_unsupported(&ctx, what, agent.transport().subscribe(&asked).await)?;
    let topics = agent.admin().topics().await?;
    ensure!(topics.is_empty(), "a refused subscription made {topics:?}");
    // Beside a group that is there already, too.
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    is_unsupported(&ctx, what, agent.transport().subscribe(&asked).await)?;
    agent.publish(ctx.message(&topic)).await?;
    member.ack_all(1).await?;
    let groups = agent.admin().groups(&topic).await?;
    ensure!(
        groups == [ctx.group("billing")?],
        "after a refused subscription the groups are {groups:?}"
    );
    quiet(&member, ctx.lease() / 8).await
}

async fn a_wildcard_is_refused(ctx: Ctx) -> Verdict {
    for pattern in ["orders.*", "*.eu", "*", ">", "orders.>"] {
        let transport = ctx.connect().await?;
        let asked = Subscription::new(pattern)
            .group("refused")
            .lease(ctx.lease());
        is_unsupported(&ctx, pattern, transport.subscribe(&asked).await)?;
    }
    subscribe_refused(ctx, "a wildcard", "orders.*", |s| s).await
}

async fn a_filter_is_refused(ctx: Ctx) -> Verdict {
    let transport = ctx.connect().await?;
    for filter in [
        Filter::Tag("t".into()),
        Filter::Header("a".into(), "b".into()),
    ] {
        let asked = ctx
            .subscription(&ctx.topic("orders.eu")?, "refused")
            .filter(filter);
        is_unsupported(&ctx, "a filter", transport.subscribe(&asked).await)?;
    }
    subscribe_refused(ctx, "a filter", "orders.eu", |s| {
        s.filter(Filter::Kind("k".into()))
    })
    .await
}

async fn order_per_key_is_refused(ctx: Ctx) -> Verdict {
    subscribe_refused(ctx, "Order::PerKey", "orders.eu", |s| {
        s.order(Order::PerKey)
    })
    .await
}

async fn reading_is_refused(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    for bounded in [true, false] {
        for start in [StartFrom::Earliest, StartFrom::Latest] {
            let spec = ReadSpec {
                topic: topic.clone(),
                start,
                bounded,
            };
            is_unsupported(&ctx, "read", agent.transport().read(&spec).await)?;
        }
    }
    let topics = agent.admin().topics().await?;
    ensure!(topics.is_empty(), "a refused read made {topics:?}");
    Ok(())
}

async fn pausing_a_group_is_refused(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let group = ctx.group("billing")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    for paused in [true, false, true] {
        let answer = agent.admin().pause(&topic, &group, paused).await;
        is_unsupported(&ctx, "pausing a group", answer)?;
    }
    // Refused, so nothing is paused.
    agent.publish(ctx.message(&topic)).await?;
    member.ack_all(1).await?;
    let lag = agent.admin().lag(&topic, &group).await?;
    ensure!(
        lag == Lag::default() || lag.waiting == 0,
        "the lag is {lag:?}"
    );
    Ok(())
}

/// Nothing is refused that asks for nothing.
async fn what_is_the_default_is_not_refused(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = long_leased(&ctx, &topic, "billing").order(Order::None);
    let member = agent.join(&subscription).await?;
    let message = ctx
        .message(&topic)
        .priority(Priority::Normal)
        .key("k")
        .tag("t");
    // For information of the consumer only.
    let message = message
        .max_attempts(1)
        .processing_timeout(Duration::from_secs(1));
    agent.publish(message).await?;
    member.ack_all(1).await?;
    Ok(())
}
