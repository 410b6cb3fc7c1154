//! Members in processes of their own, killed by the operating system or by their own hand.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mas_transport_core::ReasonCode;

use super::support::{all_settled, dead_letters, ensure};
use crate::child::{Job, Line};
use crate::ctx::Ctx;
use crate::harness::{Ability, Verdict};
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(L3, two_processes_are_killed_in_the_middle_of_a_batch).needs(&[Ability::Child]),
    trial!(G3, processes_come_and_go_without_loss).needs(&[Ability::Child]),
    trial!(A5, a_process_that_aborts_with_a_thousand_prefetched).needs(&[Ability::Child]),
];

async fn two_processes_are_killed_in_the_middle_of_a_batch(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx.subscription(&topic, "billing").prefetch(20);
    let agent = ctx.agent().await?;
    let count = ctx.pick(50, 100);
    agent.publish_all(ctx.messages(&topic, count)).await?;
    let mut one = ctx.child(&subscription, Job::Hold(3))?;
    let mut other = ctx.child(&subscription, Job::Hold(5))?;
    for _ in 0..3 {
        one.delivered().await?;
    }
    for _ in 0..5 {
        other.delivered().await?;
    }
    one.kill().await?;
    other.kill().await?;
    // The checker sees to it that nothing of theirs comes early or late.
    let member = agent.join(&subscription).await?;
    let ids: BTreeSet<_> = member.ack_all(count).await?.into_iter().collect();
    ensure!(
        ids.len() == count,
        "{count} were published, {} different ones came",
        ids.len()
    );
    ctx.drained();
    all_settled(&ctx, &agent, &topic, "billing").await
}

async fn processes_come_and_go_without_loss(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx.subscription(&topic, "billing").prefetch(10);
    let agent = ctx.agent().await?;
    let mut first = ctx.child(&subscription, Job::Ack)?;
    let mut second = ctx.child(&subscription, Job::Ack)?;
    first.joined().await?;
    second.joined().await?;
    // Or one of them may have done all before the other gets its share.
    tokio::time::sleep(ctx.timing().sharing).await;
    let count = 300;
    let messages = ctx.messages(&topic, count);
    let mut missing: BTreeSet<_> = messages.iter().map(|m| m.id().to_owned()).collect();
    agent.publish_all(messages).await?;
    for _ in 0..ctx.pick(1, 20) {
        missing.remove(&first.delivered().await?);
    }
    for line in first.kill().await? {
        if let Line::Delivered { id, .. } = line {
            missing.remove(&id);
        }
    }
    for _ in 0..ctx.pick(1, 20) {
        missing.remove(&second.delivered().await?);
    }
    let mut third = ctx.child(&subscription, Job::Ack)?;
    missing.remove(&third.delivered().await?);
    for killed in [&mut second, &mut third] {
        for line in killed.kill().await? {
            if let Line::Delivered { id, .. } = line {
                missing.remove(&id);
            }
        }
    }
    // Whatever is left, and whatever they held.
    let member = agent.join(&subscription).await?;
    let until = ctx.lease() + ctx.capabilities().reclaim_slack + ctx.timing().slack;
    while let Some(held) = member.next_within(until).await? {
        missing.remove(held.id());
        held.ack().await?;
    }
    ensure!(missing.is_empty(), "never handed to anybody: {missing:?}");
    ctx.drained();
    all_settled(&ctx, &agent, &topic, "billing").await
}

/// One of a thousand messages aborts every process that handles it. The service is started again
/// until all is done.
async fn a_process_that_aborts_with_a_thousand_prefetched(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx
        .subscription(&topic, "billing")
        .prefetch(1000)
        .max_attempts(3);
    let agent = ctx.agent().await?;
    let mut messages = ctx.messages(&topic, 1000);
    let place = ctx.pick(0, 200);
    messages[place] = messages[place].clone().with_payload(Bytes::from("poison"));
    let poison = messages[place].id().to_owned();
    agent.publish_all(messages).await?;
    let mut attempts = BTreeMap::new();
    let mut acked = BTreeSet::new();
    let mut deaths = 0;
    let mut child = ctx.child(&subscription, Job::AbortAt("poison".into()))?;
    while acked.len() < 999 || deaths < 3 {
        match child.line().await? {
            Some(Line::Delivered { id, attempt, .. }) => {
                attempts.insert(id, attempt);
            }
            Some(Line::Acked { id, .. }) => {
                acked.insert(id);
            }
            Some(Line::Failed(why)) => return Err(why.into()),
            Some(Line::Joined) => {}
            None => {
                child.ended().await?;
                deaths += 1;
                ensure!(deaths <= 3, "{deaths} processes died");
                child = ctx.child(&subscription, Job::AbortAt("poison".into()))?;
            }
        }
    }
    ensure!(!acked.contains(&poison), "the poison was acked");
    let letters = dead_letters(&ctx, &agent, &topic, "billing", 1).await?;
    let record = letters[0]
        .record()
        .ok_or("a dead letter without a record")?;
    ensure!(
        letters[0].id() == poison && record.reason.code == ReasonCode::MaxAttempts,
        "the dead letter is {} with {record:?}",
        letters[0].id()
    );
    ensure!(
        attempts.get(&poison) == Some(&3),
        "the poison was last attempted {:?} times, with {deaths} deaths",
        attempts.get(&poison)
    );
    all_settled(&ctx, &agent, &topic, "billing").await
}
