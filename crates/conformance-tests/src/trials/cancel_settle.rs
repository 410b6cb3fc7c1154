//! Futures of settling and closing, dropped after each of their polls.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use mas_transport_core::{Consumer, ConsumerEvent, Group, Topic, TopicSpec};

use super::cancel::slow_agent;
use super::support::{ANY_MEMBER, all_settled, at_once, dead_letters, ensure, long_leased, quiet};
use crate::agent::{Agent, Answer, Held, Member};
use crate::ctx::Ctx;
use crate::harness::{Failure, Verdict};
use crate::polls::drop_after_each_poll;
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(C1, a_dropped_ack),
    trial!(C1, a_dropped_nack),
    trial!(C1, a_dropped_delayed_nack),
    trial!(C1, a_dropped_reject),
    trial!(C1, a_dropped_extend),
    trial!(C1, a_dropped_revoked).when(ANY_MEMBER.0, ANY_MEMBER.1),
    trial!(C1, a_dropped_next_event),
    trial!(C1, a_dropped_consumer_close).when(ANY_MEMBER.0, ANY_MEMBER.1),
    trial!(C1, a_dropped_transport_close),
    trial!(C1, dropped_calls_of_the_administration),
];

/// Settles messages, dropping the handle after each of its polls: each settlement stands.
async fn dropped(
    ctx: &Ctx,
    topic: &Topic,
    settle: impl Fn(Held) -> Answer,
) -> Result<(Agent, Member, usize), Failure> {
    let agent = slow_agent(ctx).await?;
    let member = agent.join(&long_leased(ctx, topic, "billing")).await?;
    let mut settled = 0;
    for _ in 0..5 {
        let mut ready = Vec::new();
        agent.publish_all(ctx.messages(topic, 6)).await?;
        while ready.len() < 6 {
            ready.push(member.next().await?);
        }
        let settling = drop_after_each_poll(|_| {
            let answer = ready.pop().map(&settle);
            async move {
                match answer {
                    Some(answer) => answer.await.map_err(Failure::from),
                    None => Err("a settlement takes more than six polls".into()),
                }
            }
        });
        let (dropped, answer) = ctx.soon("a settlement", settling).await??;
        answer?;
        settled += dropped + 1;
        for held in ready {
            held.ack().await?;
        }
    }
    Ok((agent, member, settled))
}

async fn a_dropped_ack(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let (agent, member, _) = dropped(&ctx, &topic, Held::ack).await?;
    all_settled(&ctx, &agent, &topic, "billing").await?;
    member.nothing().await
}

async fn come_back(
    ctx: &Ctx,
    agent: &Agent,
    topic: &Topic,
    member: &Member,
    count: usize,
) -> Verdict {
    for held in member.take(count).await? {
        ensure!(
            held.attempt() == 2,
            "after a nack there came attempt {}",
            held.attempt()
        );
        held.ack().await?;
    }
    member.nothing().await?;
    all_settled(ctx, agent, topic, "billing").await
}

async fn a_dropped_nack(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = slow_agent(&ctx).await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    // All at once, so that none comes back while others are still to be nacked.
    agent.publish_all(ctx.messages(&topic, 12)).await?;
    let mut ready = member.take(12).await?;
    let mut nacked = 0;
    while let Some(held) = ready.pop() {
        let mut answer = Some(held.nack());
        for _ in 0..ctx.pick(0, 2) {
            if let Some(waiting) = &mut answer
                && futures::poll!(waiting).is_ready()
            {
                answer = None;
            }
        }
        drop(answer);
        nacked += 1;
    }
    come_back(&ctx, &agent, &topic, &member, nacked).await
}

async fn a_dropped_delayed_nack(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let delay = ctx.lease() / 2;
    let called = tokio::time::Instant::now();
    let (agent, member, nacked) = dropped(&ctx, &topic, |h| h.nack_after(delay)).await?;
    if called.elapsed() < delay / 2 {
        quiet(&member, delay / 4).await?;
    }
    come_back(&ctx, &agent, &topic, &member, nacked).await
}

async fn a_dropped_reject(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let (agent, member, rejected) = dropped(&ctx, &topic, |h| h.reject("dropped")).await?;
    dead_letters(&ctx, &agent, &topic, "billing", rejected).await?;
    member.nothing().await?;
    all_settled(&ctx, &agent, &topic, "billing").await
}

/// Extended or not, the delivery is still ours and can be settled.
async fn a_dropped_extend(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = slow_agent(&ctx).await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    agent.publish_all(ctx.messages(&topic, 3)).await?;
    for _ in 0..3 {
        let held = member.next().await?;
        let before = held.deadline();
        // Unrecorded until it completes: the history knows the older, shorter lease.
        let extending = drop_after_each_poll(|_| held.extend());
        let (_, extended) = ctx.soon("an extension", extending).await??;
        let until = extended?;
        ensure!(
            until >= before && held.deadline() == until,
            "a lease until {before:?} was extended until {until:?}, the delivery says {:?}",
            held.deadline()
        );
        held.ack().await?;
    }
    member.nothing().await?;
    all_settled(&ctx, &agent, &topic, "billing").await
}

async fn a_dropped_revoked(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    agent.publish_all(ctx.messages(&topic, 2)).await?;
    let (lapses, acked) = (member.next().await?, member.next().await?);
    for _ in 0..3 {
        let early = acked.revoked().now_or_never();
        ensure!(early.is_none(), "a live delivery says that it was revoked");
    }
    acked.ack().await?;
    let deadline = lapses.deadline();
    let revoked = drop_after_each_poll(|_| lapses.revoked());
    ctx.soon("the end of a lease", revoked).await??;
    let now = tokio::time::Instant::now();
    ensure!(
        now >= deadline,
        "revoked() resolved {:?} before the deadline",
        deadline - now
    );
    lapses.hang();
    let other = agent.join(&ctx.subscription(&topic, "billing")).await?;
    other.next().await?.ack().await?;
    other.nothing().await
}

/// Each event is read once, whatever becomes of those who wait for it.
async fn a_dropped_next_event(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = long_leased(&ctx, &topic, "billing");
    let consumer = Consumer::start(Arc::clone(agent.transport()), subscription).await?;
    let count = 10;
    for n in 0..count {
        agent.publish(ctx.message(&topic)).await?;
        let delivery = ctx.soon("a delivery", consumer.recv()).await??;
        let delivery = delivery.ok_or("the consumer has ended")?;
        let rejecting = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            delivery.reject(format!("reason {n}")).await
        };
        let listening = drop_after_each_poll(|_| consumer.next_event());
        let both = async { tokio::join!(listening, rejecting) };
        let (heard, rejected) = ctx.soon(&format!("event {n}"), both).await?;
        rejected?;
        match heard?.1 {
            Some(ConsumerEvent::DeadLettered(record))
                if record.reason.text == format!("reason {n}") => {}
            other => return Err(format!("event {n} is {other:?}").into()),
        }
    }
    ensure!(
        consumer.try_next_event().is_none(),
        "there is an event too many"
    );
    Ok(())
}

/// The close goes on: what was not handed out is given back, what is in hand is waited for.
async fn a_dropped_consumer_close(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = long_leased(&ctx, &topic, "billing");
    let member = agent.join(&subscription).await?;
    agent.publish_all(ctx.messages(&topic, 10)).await?;
    let held = member.next().await?;
    let other = ctx.agent().await?.join(&subscription).await?;
    let deadline = ctx.deadline();
    let once = member.consumer().close(deadline).now_or_never();
    ensure!(
        once.is_none(),
        "a close with a delivery in hand answered {once:?}"
    );
    for n in 0..9 {
        let Some(back) = other.next_within(at_once(&ctx)).await? else {
            return Err(format!("{n} of 9 messages were given back at once").into());
        };
        ensure!(back.attempt() == 1, "{back:?} was never handed out before");
        back.ack().await?;
    }
    let acking = async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        held.ack().await
    };
    let closing = drop_after_each_poll(|_| member.consumer().close(deadline));
    let both = async { tokio::join!(closing, acking) };
    let (closed, acked) = ctx.soon("a close", both).await?;
    acked?;
    closed?.1?;
    quiet(&other, ctx.lease() / 4).await?;
    all_settled(&ctx, &agent, &topic, "billing").await
}

/// Done or not done: a second call closes it, and everything comes back.
async fn a_dropped_transport_close(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = slow_agent(&ctx).await?;
    let subscription = long_leased(&ctx, &topic, "billing");
    let member = agent.join(&subscription).await?;
    agent.publish_all(ctx.messages(&topic, 3)).await?;
    member.next().await?.ack().await?;
    let deadline = ctx.deadline();
    let closing = drop_after_each_poll(|_| agent.transport().close(deadline));
    let (_, closed) = ctx.soon("a close", closing).await??;
    closed?;
    let other = ctx.agent().await?;
    let member = other.join(&subscription).await?;
    for n in 0..2 {
        let Some(back) = member.next_within(at_once(&ctx)).await? else {
            return Err(format!("{n} of 2 messages were given back at once").into());
        };
        back.ack().await?;
    }
    member.nothing().await
}

/// Each call is made until it completes, and dropped after each poll before: the next ones work.
async fn dropped_calls_of_the_administration(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let group: Group = ctx.group("billing")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    let admin = agent.admin();
    let new = TopicSpec::new(ctx.topic("new")?);
    for _ in 0..2 {
        drop_after_each_poll(|_| admin.declare(&new)).await?.1?;
        let topics = drop_after_each_poll(|_| admin.topics()).await?.1?;
        ensure!(
            topics.contains(&new.topic),
            "{} was declared, there are {topics:?}",
            new.topic
        );
        let groups = drop_after_each_poll(|_| admin.groups(&topic)).await?.1?;
        ensure!(groups == [group.clone()], "the groups are {groups:?}");
        let lag = drop_after_each_poll(|_| admin.lag(&topic, &group))
            .await?
            .1?;
        ensure!(
            lag.waiting + lag.pending == 0,
            "nothing was published, the lag is {lag:?}"
        );
    }
    agent.publish(ctx.message(&topic)).await?;
    member.next().await?.ack().await?;
    drop_after_each_poll(|_| admin.purge(&new.topic)).await?.1?;
    member.nothing().await
}
