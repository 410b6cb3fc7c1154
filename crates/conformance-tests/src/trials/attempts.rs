//! Attempts: what counts as one.

use std::collections::BTreeMap;

use mas_transport_core::{Backoff, ErrorKind};

use super::support::{ANY_MEMBER, at_once, ensure, long_leased};
use crate::ctx::Ctx;
use crate::harness::{Ability, Verdict};
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(A1, each_hand_out_counts_one),
    trial!(A1, what_was_returned_counts_nothing).when(ANY_MEMBER.0, ANY_MEMBER.1),
    trial!(A1, what_dead_processes_only_fetched_is_not_worn_out).needs(&[Ability::Crash]),
    trial!(A1, an_attempt_is_recorded_before_it_begins).needs(&[Ability::Crash]),
    trial!(A1, an_extension_is_no_attempt),
    trial!(A1, groups_count_apart),
];

/// However a hand-out ends, and whoever gets the message next, the next one is numbered by one more.
async fn each_hand_out_counts_one(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let pause = ctx.lease() / 8;
    let subscription = ctx
        .subscription(&topic, "billing")
        .max_attempts(50)
        .backoff(Backoff {
            first: pause,
            most: pause,
        });
    let mut agents = vec![ctx.agent().await?];
    agents[0].publish(ctx.message(&topic)).await?;
    let mut member = agents[0].join(&subscription).await?;
    let rounds = u32::try_from(ctx.pick(4, 8))?;
    for attempt in 1..=rounds {
        let held = member.next().await?;
        ensure!(
            held.attempt() == attempt,
            "hand-out {attempt} says that it is attempt {}",
            held.attempt()
        );
        if attempt == rounds {
            held.ack().await?;
            break;
        }
        match ctx.pick(0, 3) {
            0 => held.nack().await?,
            1 => held.nack_after(pause).await?,
            2 => drop(held),
            _ => {
                tokio::time::sleep_until(held.deadline()).await;
                match held.ack().await {
                    Err(e) if e.kind() == ErrorKind::LeaseLost => {}
                    other => return Err(format!("a late ack was answered with {other:?}").into()),
                }
            }
        }
        if ctx.pick(0, 1) == 1 {
            member.close().await?;
            let agent = ctx.agent().await?;
            member = agent.join(&subscription).await?;
            agents.push(agent);
        }
    }
    member.nothing().await
}

/// Messages that were fetched and given back, because their consumer was closed, dropped or paused,
/// come to the next one at once, as the first attempt.
async fn what_was_returned_counts_nothing(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = long_leased(&ctx, &topic, "billing").prefetch(ctx.pick(20, 60));
    let agent = ctx.agent().await?;
    let count = ctx.pick(20, 40);
    agent.publish_all(ctx.messages(&topic, count)).await?;
    let mut paused = Vec::new();
    for round in 0..3 {
        let member = agent.join(&subscription).await?;
        let Some(held) = member.next_within(at_once(&ctx)).await? else {
            return Err(format!("round {round}: what was given back did not come at once").into());
        };
        ensure!(
            held.attempt() == 1,
            "round {round}: a message that was only fetched before is at attempt {}",
            held.attempt()
        );
        held.ack().await?;
        match round {
            0 => member.close().await?,
            1 => drop(member),
            _ => {
                member.consumer().pause();
                paused.push(member);
            }
        }
    }
    let member = agent.join(&subscription).await?;
    for n in 3..count {
        let Some(held) = member.next_within(at_once(&ctx)).await? else {
            return Err(format!("only {n} of {count} came at once").into());
        };
        ensure!(
            held.attempt() == 1,
            "a message that was only fetched before is at attempt {}",
            held.attempt()
        );
        held.ack().await?;
    }
    member.nothing().await
}

/// Processes that die again and again with a full buffer use up the attempts of what they had
/// handed out, and of nothing else.
async fn what_dead_processes_only_fetched_is_not_worn_out(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx.subscription(&topic, "billing").max_attempts(100);
    let sender = ctx.agent().await?;
    let count = ctx.pick(20, 60);
    sender.publish_all(ctx.messages(&topic, count)).await?;
    let mut handed: BTreeMap<String, u32> = BTreeMap::new();
    let mut first = None;
    for _ in 0..5 {
        let mortal = ctx.mortal_agent().await?;
        let member = mortal.join(&subscription).await?;
        for _ in 0..ctx.pick(1, 3) {
            let held = member.next().await?;
            first.get_or_insert_with(|| held.id().to_owned());
            *handed.entry(held.id().to_owned()).or_default() += 1;
            held.hang();
        }
        mortal.crash()?;
    }
    let member = sender.join(&subscription).await?;
    let counts_a_fetch = ctx.capabilities().reclaim_counts_prefetch;
    for _ in 0..count {
        let held = member.next().await?;
        let least = handed.get(held.id()).copied().unwrap_or(0) + 1;
        // A first fetch may count, but only that one, and not where a hand-out followed it.
        let most = if counts_a_fetch && first.as_deref() != Some(held.id()) {
            least + 1
        } else {
            least
        };
        ensure!(
            (least..=most).contains(&held.attempt()),
            "a message that was handed out {} times before is at attempt {}, not {least} to {most}",
            least - 1,
            held.attempt()
        );
        held.ack().await?;
    }
    member.nothing().await
}

/// A redelivery is known to the broker before the application has it: a process that dies with it
/// has used the attempt up.
async fn an_attempt_is_recorded_before_it_begins(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx.subscription(&topic, "billing").max_attempts(20);
    let sender = ctx.agent().await?;
    sender.publish(ctx.message(&topic)).await?;
    let mut attempt = 0;
    // Nacked: by a living process. Then several that die, one after the other.
    let member = sender.join(&subscription).await?;
    for _ in 0..ctx.pick(0, 2) {
        attempt += 1;
        let held = member.next().await?;
        ensure!(
            held.attempt() == attempt,
            "attempt {} is {attempt}",
            held.attempt()
        );
        held.nack().await?;
    }
    member.close().await?;
    for _ in 0..ctx.pick(2, 4) {
        attempt += 1;
        let mortal = ctx.mortal_agent().await?;
        let member = mortal.join(&subscription).await?;
        let held = member.next().await?;
        ensure!(
            held.attempt() == attempt,
            "hand-out {attempt}, each to a process that died with it, says that it is attempt {}",
            held.attempt()
        );
        held.hang();
        mortal.crash()?;
    }
    attempt += 1;
    let member = sender.join(&subscription).await?;
    let held = member.next().await?;
    ensure!(
        held.attempt() == attempt,
        "after {} hand-outs the next one says that it is attempt {}",
        attempt - 1,
        held.attempt()
    );
    held.ack().await?;
    member.nothing().await
}

async fn an_extension_is_no_attempt(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    agent.publish(ctx.message(&topic)).await?;
    let held = member.next().await?;
    for _ in 0..3 {
        tokio::time::sleep(ctx.lease() / 2).await;
        held.extend().await?;
    }
    held.nack().await?;
    let held = member.next().await?;
    ensure!(
        held.attempt() == 2,
        "after one hand-out, extended three times, came attempt {}",
        held.attempt()
    );
    held.ack().await?;
    member.nothing().await
}

async fn groups_count_apart(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let billing = agent
        .join(&ctx.subscription(&topic, "billing").max_attempts(9))
        .await?;
    agent.publish(ctx.message(&topic)).await?;
    for attempt in 1..=3 {
        let held = billing.next().await?;
        ensure!(
            held.attempt() == attempt,
            "attempt {} is {attempt}",
            held.attempt()
        );
        held.nack().await?;
    }
    // Fetched only now, not from a buffer.
    let shipping = agent
        .join(&ctx.subscription(&topic, "shipping").max_attempts(9))
        .await?;
    let held = shipping.next().await?;
    ensure!(
        held.attempt() == 1,
        "the attempts of another group count: it is attempt {}",
        held.attempt()
    );
    held.ack().await?;
    let held = billing.next().await?;
    ensure!(held.attempt() == 4, "attempt {} is 4", held.attempt());
    held.ack().await?;
    Ok(())
}
