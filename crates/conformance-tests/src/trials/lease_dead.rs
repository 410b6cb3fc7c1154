//! A dead member loses its messages to the others (L3).

use std::collections::{BTreeMap, BTreeSet};

use mas_transport_core::Outcome;
use rand::Rng as _;
use tokio::time::Instant;

use super::lease::{hold, pair};
use super::tools::{either, equal, ids, in_time, lapse, same};
use crate::ctx::Ctx;
use crate::harness::{Ability, Verdict};
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(L3, what_nobody_settles_comes_back_when_its_lease_ends),
    trial!(L3, only_what_is_unsettled_comes_back),
    trial!(L3, two_members_die_in_the_middle_of_a_batch).needs(&[Ability::Crash]),
    trial!(L3, what_a_dead_member_had_fetched_comes_back_too).needs(&[Ability::Crash]),
    trial!(L3, a_member_that_died_while_it_waited_takes_nothing_along).needs(&[Ability::Crash]),
];

/// Of two members that settle nothing, whoever is idle gets it: not before the lease ended, and
/// soon after.
async fn what_nobody_settles_comes_back_when_its_lease_ends(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let (mut a, mut b) = pair(&ctx, &ctx.subscription(&topic, "billing")).await?;
    let sender = ctx.connect().await?;
    let mut ends = BTreeMap::new();
    let count = ctx.pick(1, 12);
    for _ in 0..count {
        ctx.publish_raw(&sender, ctx.messages(&topic, 1)).await?;
        let (_, delivery) = either(&ctx, &mut a, &mut b).await?;
        ends.insert(delivery.message.id().to_owned(), delivery.deadline);
        // Apart in time, so that each has an end of its own.
        let pause = ctx.lease() / 20 * ctx.pick(0, 1) as u32;
        tokio::time::sleep(pause).await;
    }
    for _ in 0..count {
        let (who, delivery) = either(&ctx, &mut a, &mut b).await?;
        let now = Instant::now();
        let Some(end) = ends.remove(delivery.message.id()) else {
            return Err(format!("{:?} came once more", delivery.message.id()).into());
        };
        let latest = end + ctx.capabilities().reclaim_slack;
        in_time(&ctx, "the redelivery", now, end, latest)?;
        let holder = if who == 0 { &mut a } else { &mut b };
        holder.ack(&delivery).await?;
    }
    Ok(())
}

/// Acked in any order, some in batches; exactly the others come back.
async fn only_what_is_unsettled_comes_back(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let (mut a, mut b) = pair(&ctx, &ctx.subscription(&topic, "billing")).await?;
    let sender = ctx.connect().await?;
    let messages = ctx.messages(&topic, ctx.pick(10, 60));
    let count = messages.len();
    ctx.publish_raw(&sender, messages).await?;
    let held = hold(&ctx, &mut a, &mut b, count).await?;
    let mut rng = ctx.rng();
    let mut left = Vec::new();
    let mut batches = [Vec::new(), Vec::new()];
    for (who, delivery) in held.iter().rev() {
        match rng.random_range(0..3) {
            0 => left.push(delivery.message.id().to_owned()),
            _ => batches[*who].push((delivery.token, Outcome::Ack)),
        }
    }
    for (member, batch) in [&mut a, &mut b].into_iter().zip(batches) {
        for answer in member.answer_all(batch).await {
            answer?;
        }
    }
    if let Some(last) = held.iter().map(|(_, d)| d.deadline).max() {
        lapse(&ctx, last).await;
    }
    let mut got = Vec::new();
    for _ in 0..left.len() {
        let (who, delivery) = either(&ctx, &mut a, &mut b).await?;
        got.push(delivery.message.id().to_owned());
        let holder = if who == 0 { &mut a } else { &mut b };
        holder.ack(&delivery).await?;
    }
    same("what came back", got, left)?;
    let race = async {
        tokio::select! {
            d = a.wait() => d.map(|d| d.message.id().to_owned()),
            d = b.wait() => d.map(|d| d.message.id().to_owned()),
        }
    };
    ctx.never("one more delivery", race).await
}

/// Some acked and confirmed, some acked and cut off, some in hand, some in the buffer.
async fn two_members_die_in_the_middle_of_a_batch(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx
        .subscription(&topic, "billing")
        .prefetch(ctx.pick(5, 40))
        .max_attempts(100);
    let mut mortals = Vec::new();
    for _ in 0..2 {
        let agent = ctx.mortal_agent().await?;
        let member = agent.join(&subscription).await?;
        mortals.push((agent, member));
    }
    let sender = ctx.agent().await?;
    let messages = ctx.messages(&topic, ctx.pick(40, 150));
    let all = ids(&messages);
    sender.publish_all(messages).await?;
    let mut rng = ctx.rng();
    let mut confirmed = BTreeSet::new();
    let mut cut_off = BTreeSet::new();
    let mut deadlines = Vec::new();
    let mut in_hand = Vec::new();
    let mut answers = Vec::new();
    for (_, member) in &mortals {
        for _ in 0..ctx.pick(3, 15) {
            // A member may have nothing where the other one got it all.
            let Some(held) = member.next_within(ctx.timing().slack).await? else {
                break;
            };
            let id = held.id().to_owned();
            match rng.random_range(0..3) {
                0 => {
                    held.ack().await?;
                    confirmed.insert(id);
                }
                1 => in_hand.push(held),
                _ => {
                    answers.push(held.ack());
                    cut_off.insert(id);
                }
            }
        }
        deadlines.push(Instant::now() + ctx.lease());
    }
    for (agent, _) in &mortals {
        agent.crash()?;
    }
    let died = Instant::now();
    let survivor = ctx.agent().await?;
    let member = survivor.join(&subscription).await?;
    let must: BTreeSet<_> = all
        .iter()
        .filter(|id| !confirmed.contains(*id) && !cut_off.contains(*id))
        .cloned()
        .collect();
    let mut got = BTreeSet::new();
    while !must.is_subset(&got) {
        let held = member.next().await?;
        let id = held.id().to_owned();
        if confirmed.contains(&id) {
            return Err(format!("{id} came back, its ack was confirmed").into());
        }
        if !got.insert(id) {
            return Err(format!("{held:?} came twice to the survivor").into());
        }
        held.ack().await?;
    }
    let took = died.elapsed();
    let most = ctx.lease() + ctx.capabilities().reclaim_slack + ctx.timing().slack;
    if took > most {
        return Err(format!("the survivor had everything after {took:?}, not {most:?}").into());
    }
    // What was cut off may still come, once.
    while let Some(held) = member.next_within(ctx.timing().quiet).await? {
        let id = held.id().to_owned();
        if !cut_off.contains(&id) || !got.insert(id) {
            return Err(format!("{held:?} was settled").into());
        }
        held.ack().await?;
    }
    drop((in_hand, answers));
    Ok(())
}

/// In its buffer, never handed out: it comes back as well, once.
async fn what_a_dead_member_had_fetched_comes_back_too(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx.subscription(&topic, "billing").prefetch(1000);
    let mortal = ctx.mortal_agent().await?;
    let doomed = mortal.join(&subscription).await?;
    let sender = ctx.agent().await?;
    let messages = ctx.messages(&topic, ctx.pick(5, 100));
    let all = ids(&messages);
    sender.publish_all(messages).await?;
    let held = doomed.next().await?;
    let died = Instant::now();
    mortal.crash()?;
    let member = sender.join(&subscription).await?;
    let mut got = Vec::new();
    for _ in 0..all.len() {
        let again = member.next().await?;
        got.push(again.id().to_owned());
        again.ack().await?;
    }
    // The lease of what was fetched last ends last.
    let latest = died + ctx.lease() + ctx.capabilities().reclaim_slack;
    in_time(&ctx, "the last redelivery", Instant::now(), died, latest)?;
    same("what came back from the dead", got, all)?;
    drop(held);
    member.nothing().await
}

/// A fetch that is pending when its process dies must not swallow what is published later for
/// longer than a lease.
async fn a_member_that_died_while_it_waited_takes_nothing_along(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx.subscription(&topic, "billing");
    let mortal = ctx.mortal_agent().await?;
    let doomed = mortal.join(&subscription).await?;
    doomed.nothing().await?;
    mortal.crash()?;
    let sender = ctx.agent().await?;
    let member = sender.join(&subscription).await?;
    let messages = ctx.messages(&topic, ctx.pick(1, 50));
    let all = ids(&messages);
    let published = Instant::now();
    sender.publish_all(messages).await?;
    let got = member.ack_all(all.len()).await?;
    let most = ctx.lease() + ctx.capabilities().reclaim_slack;
    in_time(
        &ctx,
        "the last delivery",
        Instant::now(),
        published,
        published + most,
    )?;
    same("what was published after the death", got, all)?;
    equal(
        "what is left",
        member
            .next_within(ctx.timing().quiet)
            .await?
            .map(|h| h.attempt()),
        None,
    )
}
