//! A loss is raised (D3); what is unsettled is kept (D5).

use std::collections::BTreeSet;
use std::time::Duration;

use mas_transport_core::{ConsumerEvent, ErrorKind, Exactness, Gap, Stored, Subscription};
use rand::seq::SliceRandom as _;

use super::support::ensure;
use super::tools::{equal, failed, ids, same};
use crate::agent::Member;
use crate::checker::Flaw;
use crate::ctx::Ctx;
use crate::harness::{Ability, Failure, Verdict};
use crate::history::Trouble;
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(D3, trimmed_entries_are_told_to_each_group)
        .needs(&[Ability::Trim])
        .when("it counts exactly what a group is owed", |c| {
            c.lag == Exactness::Exact
        }),
    trial!(D3, a_trim_under_a_live_member_is_told).needs(&[Ability::Trim]),
    trial!(D3, a_trim_of_settled_entries_is_no_loss).needs(&[Ability::Trim]),
    trial!(D3, a_wiped_topic_is_told_and_goes_on).needs(&[Ability::Wipe]),
    trial!(D3, a_lost_group_goes_on_without_loss).needs(&[Ability::DropGroup]),
    trial!(D5, without_a_group_everything_is_kept),
    trial!(D5, a_later_group_finds_what_another_has_not_settled),
    trial!(D5, what_one_group_settled_is_kept_for_the_other),
    trial!(D5, an_old_unsettled_message_outlives_many_settled_ones),
    trial!(D5, a_group_that_left_still_keeps_its_messages),
    trial!(D5, a_full_topic_refuses_and_settling_makes_room)
        .when("its topics have a bound that a trial can reach", reachable)
        .once(),
    trial!(D5, a_full_broker_refuses_and_delivers)
        .needs(&[Ability::Fill])
        .own_server(),
];

fn reachable(can: &mas_transport_core::Capabilities) -> bool {
    can.max_topic_messages.is_some_and(|most| most <= 20_000)
}

/// How many messages a trial of many has.
fn many(ctx: &Ctx) -> usize {
    match ctx.timing().paused {
        true => ctx.pick(200, 1500),
        false => ctx.pick(200, 400),
    }
}

async fn gap(member: &Member) -> Result<Gap, Failure> {
    let gap = |event| match event {
        ConsumerEvent::Gap(gap) => Some(gap),
        _ => None,
    };
    member.event_like("a gap event", gap).await
}

/// The groups that had not settled what was removed hear of it, whether or not anybody was there.
async fn trimmed_entries_are_told_to_each_group(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    for group in ["billing", "audit"] {
        let member = agent.join(&ctx.subscription(&topic, group)).await?;
        member.close().await?;
    }
    let messages = ctx.messages(&topic, ctx.pick(5, 60));
    let all = ids(&messages);
    agent.publish_all(messages).await?;
    let keep = ctx.pick(1, all.len() - 1);
    let lost = (all.len() - keep) as u64;
    ctx.taken(&topic);
    ctx.broker().trim(&topic, lost).await?;
    for group in ["billing", "audit"] {
        let member = agent.join(&ctx.subscription(&topic, group)).await?;
        let gap = gap(&member).await?;
        equal("the topic of the gap", &gap.topic, &topic)?;
        if gap.lost.is_some_and(|told| told != lost) {
            return Err(format!("{lost} messages are gone, {gap:?} says another number").into());
        }
        if gap.reason.is_empty() {
            return Err("the gap has no reason".into());
        }
        let got = member.ack_all(keep).await?;
        let left = all[all.len() - keep..].iter().cloned();
        // Partitions are trimmed in turn, so which ones are left is the broker's choice there.
        match got.iter().all(|id| all.contains(id)) {
            true if gap.lost.is_some() => {}
            true => same("what was left", got, left)?,
            false => return Err("something came that was never published".into()),
        }
        member.nothing().await?;
    }
    Ok(())
}

async fn a_trim_under_a_live_member_is_told(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = ctx.subscription(&topic, "billing").prefetch(1);
    let member = agent.join(&subscription).await?;
    agent.publish(ctx.message(&topic)).await?;
    // It holds one, so that nothing more is fetched.
    let held = member.next().await?;
    let lost = ctx.pick(5, 40);
    let messages = ctx.messages(&topic, lost);
    let mut missing: BTreeSet<_> = ids(&messages).into_iter().collect();
    agent.publish_all(messages).await?;
    // The held one is the oldest, and is still there.
    ctx.taken(&topic);
    ctx.broker().trim(&topic, lost as u64 + 1).await?;
    drop(held.ack());
    // A client that reads ahead of what is wanted may have had them all: then nothing was lost.
    while !missing.is_empty() {
        tokio::select! {
            told = gap(&member) => {
                told?;
                break;
            }
            held = member.next() => {
                let held = held?;
                ensure!(missing.remove(held.id()), "{held:?} came, and was not wanted");
                held.ack().await?;
            }
        }
    }
    // It goes on.
    let last = ctx.message(&topic);
    let id = last.id().to_owned();
    agent.publish(last).await?;
    let mut got = member.ack_all(1).await?;
    // Of what was trimmed, what had been read ahead may still come.
    while let Some(other) = got.pop().filter(|got| *got != id) {
        ensure!(missing.remove(&other), "{other} came after the gap");
        got = member.ack_all(1).await?;
    }
    member.nothing().await
}

async fn a_trim_of_settled_entries_is_no_loss(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    let away = agent.join(&ctx.subscription(&topic, "away")).await?;
    away.close().await?;
    drop(away);
    let count = ctx.pick(5, 40);
    agent.publish_all(ctx.messages(&topic, count)).await?;
    member.ack_all(count).await?;
    // Held by a group that has settled nothing, so that they are still there to be trimmed.
    ctx.taken(&topic);
    ctx.broker().trim(&topic, count as u64).await?;
    let count = ctx.pick(1, 10);
    agent.publish_all(ctx.messages(&topic, count)).await?;
    member.ack_all(count).await?;
    let find = async {
        loop {
            if let ConsumerEvent::Gap(gap) = member.event().await? {
                return Ok::<_, Failure>(gap);
            }
        }
    };
    ctx.never("a gap without a loss", find).await
}

async fn a_wiped_topic_is_told_and_goes_on(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = ctx.subscription(&topic, "billing").prefetch(1);
    let member = agent.join(&subscription).await?;
    agent
        .publish_all(ctx.messages(&topic, ctx.pick(3, 40)))
        .await?;
    let held = member.next().await?;
    ctx.taken(&topic);
    ctx.fault(Trouble::Forget, true);
    ctx.broker().wipe(&topic).await?;
    ctx.fault(Trouble::Forget, false);
    drop(held.ack());
    gap(&member).await?;
    let messages = ctx.messages(&topic, ctx.pick(1, 20));
    let wanted = ids(&messages);
    agent.publish_all(messages).await?;
    // One that was in the member's hands may still come before them.
    let mut got = Vec::new();
    while !wanted.iter().all(|id| got.contains(id)) {
        got.extend(member.ack_all(1).await?);
    }
    member.nothing().await
}

/// The entries are still there; only who has settled what was lost.
async fn a_lost_group_goes_on_without_loss(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = ctx
        .subscription(&topic, "billing")
        .prefetch(ctx.pick(1, 20))
        .max_attempts(100);
    let member = agent.join(&subscription).await?;
    let messages = ctx.messages(&topic, ctx.pick(10, 60));
    let all = ids(&messages);
    agent.publish_all(messages).await?;
    let mut got = member.ack_all(ctx.pick(1, 9)).await?;
    // What the group had settled went with it, as far as the backend has no note of its own.
    ctx.excuse(Flaw::Resurrected);
    ctx.fault(Trouble::Forget, true);
    let group = ctx.group("billing")?;
    ctx.broker().drop_group(&topic, &group).await?;
    ctx.fault(Trouble::Forget, false);
    let last = ctx.message(&topic);
    let mut wanted = all;
    wanted.push(last.id().to_owned());
    agent.publish(last).await?;
    while !wanted.iter().all(|id| got.contains(id)) {
        let held = member.next().await?;
        got.push(held.id().to_owned());
        // What was on the way when the group was lost may fail; it then comes again.
        drop(held.ack().await);
    }
    Ok(())
}

async fn without_a_group_everything_is_kept(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let messages = ctx.messages(&topic, many(&ctx));
    let wanted = ids(&messages);
    agent.publish_all(messages).await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    same(
        "what was kept",
        ack_fast(&member, wanted.len()).await?,
        wanted,
    )?;
    member.nothing().await
}

/// Acks many without waiting for each.
async fn ack_fast(member: &Member, count: usize) -> Result<Vec<String>, Failure> {
    let mut answers = Vec::with_capacity(count);
    let mut ids = Vec::with_capacity(count);
    while ids.len() < count {
        let held = member.next().await?;
        ids.push(held.id().to_owned());
        answers.push(held.ack());
    }
    for answer in answers {
        answer.await?;
    }
    Ok(ids)
}

async fn a_later_group_finds_what_another_has_not_settled(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    // One that has settled nothing, one that has settled everything.
    let slow = agent.join(&ctx.subscription(&topic, "slow")).await?;
    slow.close().await?;
    let quick = agent.join(&ctx.subscription(&topic, "quick")).await?;
    let messages = ctx.messages(&topic, many(&ctx));
    let wanted = ids(&messages);
    agent.publish_all(messages).await?;
    ack_fast(&quick, wanted.len()).await?;
    let late = agent.join(&ctx.subscription(&topic, "late")).await?;
    let got = ack_fast(&late, wanted.len()).await?;
    same("what a later group found", got, wanted)?;
    late.nothing().await
}

async fn what_one_group_settled_is_kept_for_the_other(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let quick = agent
        .join(&ctx.subscription(&topic, "quick").prefetch(5000))
        .await?;
    let slow = ctx.subscription(&topic, "slow").prefetch(1);
    let slow = agent.join(&slow).await?;
    let messages = ctx.messages(&topic, many(&ctx));
    let wanted = ids(&messages);
    agent.publish_all(messages).await?;
    // Settled in no order at all.
    let mut held = quick.take(wanted.len()).await?;
    held.shuffle(&mut ctx.rng());
    let answers: Vec<_> = held.into_iter().map(|held| held.ack()).collect();
    for answer in answers {
        answer.await?;
    }
    let got = slow.ack_all(wanted.len()).await?;
    same("what the slower group got", got, wanted)?;
    slow.nothing().await
}

async fn an_old_unsettled_message_outlives_many_settled_ones(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = ctx
        .subscription(&topic, "billing")
        .lease(Duration::from_secs(30));
    let member = agent.join(&subscription).await?;
    let first = ctx.message(&topic);
    let id = first.id().to_owned();
    agent.publish(first).await?;
    let delay = Duration::from_secs(match ctx.timing().paused {
        true => 300,
        false => 5,
    });
    member.next().await?.nack_after(delay).await?;
    let messages = ctx.messages(&topic, many(&ctx));
    let wanted = ids(&messages);
    agent.publish_all(messages).await?;
    let got = ack_fast(&member, wanted.len()).await?;
    same("messages that overtook", got, wanted)?;
    same("the old one", member.ack_all(1).await?, [id])?;
    member.nothing().await
}

async fn a_group_that_left_still_keeps_its_messages(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let quick = agent.join(&ctx.subscription(&topic, "quick")).await?;
    let away: Subscription = ctx.subscription(&topic, "away").prefetch(ctx.pick(1, 50));
    let messages = ctx.messages(&topic, many(&ctx));
    let wanted = ids(&messages);
    let mut got = Vec::new();
    let member = agent.join(&away).await?;
    agent.publish_all(messages).await?;
    got.extend(member.ack_all(ctx.pick(1, 50)).await?);
    // It leaves with a full window.
    member.close().await?;
    drop(member);
    ack_fast(&quick, wanted.len()).await?;
    // More traffic, which its members never see the end of.
    let more = ctx.messages(&topic, 100);
    let mut wanted = wanted;
    wanted.extend(ids(&more));
    agent.publish_all(more).await?;
    ack_fast(&quick, 100).await?;
    let member = agent.join(&away).await?;
    got.extend(ack_fast(&member, wanted.len() - got.len()).await?);
    same("what was kept for a group that was away", got, wanted)?;
    member.nothing().await
}

async fn a_full_topic_refuses_and_settling_makes_room(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let most = ctx.capabilities().max_topic_messages.unwrap_or_default() as usize;
    let small = |_| ctx.message(&topic).with_payload("x".into());
    // Without a group everything is kept.
    agent.publish_all((0..most).map(small).collect()).await?;
    let refused = agent.publish(small(0)).await;
    failed("a publish to a full topic", &refused, ErrorKind::Full)?;
    if refused.is_err_and(|e| e.stored() != Stored::No || !e.is_retryable()) {
        return Err("a full topic is refused for certain, and may have room later".into());
    }
    // Other topics have their own room.
    agent.publish(ctx.message(&ctx.topic("invoices")?)).await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    let room = ctx.pick(1, 50);
    ack_fast(&member, room).await?;
    agent.publish_all((0..room).map(small).collect()).await?;
    let refused = agent.publish(small(0)).await;
    failed(
        "a publish to a topic that is full again",
        &refused,
        ErrorKind::Full,
    )?;
    ack_fast(&member, most).await?;
    member.nothing().await
}

/// Whatever it has no room for: what it has, it delivers, and lets be settled.
async fn a_full_broker_refuses_and_delivers(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let receiver = ctx.agent().await?;
    let subscription = ctx.subscription(&topic, "billing").max_attempts(100);
    let member = receiver.join(&subscription).await?;
    let count = ctx.pick(1, 20);
    agent.publish_all(ctx.messages(&topic, count)).await?;
    ctx.fault(Trouble::Full, true);
    ctx.broker().fill(true).await?;
    let refused = agent.publish(ctx.message(&topic)).await;
    failed("a publish to a full broker", &refused, ErrorKind::Full)?;
    if refused.is_err_and(|e| e.stored() != Stored::No || !e.is_retryable()) {
        return Err("a full broker refuses for certain, and may have room later".into());
    }
    member.ack_all(count).await?;
    ctx.broker().fill(false).await?;
    ctx.fault(Trouble::Full, false);
    agent.publish(ctx.message(&topic)).await?;
    member.ack_all(1).await?;
    member.nothing().await
}
