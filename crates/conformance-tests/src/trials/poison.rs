//! Messages that kill the process which handles them.

use std::collections::{BTreeMap, BTreeSet};

use mas_transport_core::{ReasonCode, Subscription};

use super::support::{ANY_MEMBER, all_settled, dead_letters, ensure, past_a_lease, quiet};
use crate::ctx::Ctx;
use crate::harness::{Ability, Failure, Verdict};
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(A5, a_process_that_dies_with_a_thousand_prefetched).needs(&[Ability::Crash]),
    trial!(A5, neighbours_of_poison_survive_it).needs(&[Ability::Crash]),
    trial!(A5, several_poisons_are_all_capped).needs(&[Ability::Crash]),
    trial!(A5, a_suspect_on_its_last_attempt_runs_alone)
        .needs(&[Ability::Crash])
        .when(ANY_MEMBER.0, ANY_MEMBER.1),
    trial!(A5, a_poison_is_capped_by_whoever_comes_next).needs(&[Ability::Crash]),
];

/// What became of a service that was restarted whenever it died.
#[derive(Debug, Default)]
struct Service {
    deaths: usize,
    handled: BTreeMap<String, u32>,
}

/// Handles messages `side_by_side` at a time, dies when one of them is poison, and is restarted
/// until nothing comes any more.
async fn restart_until_done(
    ctx: &Ctx,
    subscription: &Subscription,
    poison: &BTreeSet<String>,
    side_by_side: usize,
) -> Result<Service, Failure> {
    let mut service = Service::default();
    // Dead processes are kept until the trial ends, so that nothing of them is dropped.
    let mut dead = Vec::new();
    'lives: loop {
        let process = ctx.mortal_agent().await?;
        let member = process.join(subscription).await?;
        loop {
            let batch =
                tokio::time::timeout(past_a_lease(ctx) * 2, member.recv_batch(side_by_side));
            let Ok(batch) = batch.await else {
                member.close().await?;
                return Ok(service);
            };
            let batch = batch?;
            if batch.iter().any(|held| poison.contains(held.id())) {
                service.deaths += 1;
                ensure!(
                    service.deaths <= 4 * poison.len(),
                    "{poison:?} killed {} processes",
                    service.deaths
                );
                batch.into_iter().for_each(crate::agent::Held::hang);
                process.crash()?;
                dead.push((process, member));
                continue 'lives;
            }
            for held in batch {
                let id = held.id().to_owned();
                held.ack().await?;
                *service.handled.entry(id).or_default() += 1;
            }
        }
    }
}

async fn poisoned(
    ctx: Ctx,
    count: usize,
    poisons: usize,
    side_by_side: usize,
) -> Result<Service, Failure> {
    let topic = ctx.topic("orders")?;
    let subscription = ctx
        .subscription(&topic, "billing")
        .max_attempts(3)
        .prefetch(1000);
    let sender = ctx.agent().await?;
    let messages = ctx.messages(&topic, count);
    let mut poison = BTreeSet::new();
    while poison.len() < poisons {
        poison.insert(messages[ctx.pick(0, count - 1)].id().to_owned());
    }
    sender.publish_all(messages).await?;
    let service = restart_until_done(&ctx, &subscription, &poison, side_by_side).await?;
    ensure!(
        service.handled.len() == count - poisons && service.handled.values().all(|n| *n == 1),
        "of {} good messages {} were handled, {:?} more than once",
        count - poisons,
        service.handled.len(),
        service
            .handled
            .iter()
            .filter(|(_, n)| **n > 1)
            .collect::<Vec<_>>()
    );
    let letters = dead_letters(&ctx, &sender, &topic, "billing", poisons).await?;
    for letter in letters {
        ensure!(
            poison.remove(letter.id()),
            "{} was dead-lettered, and killed nobody",
            letter.id()
        );
        let record = letter.record().ok_or("a dead letter has no record")?;
        ensure!(
            record.reason.code == ReasonCode::MaxAttempts && record.attempts == 3,
            "the record of a message that killed three processes: {record:?}"
        );
    }
    all_settled(&ctx, &sender, &topic, "billing").await?;
    Ok(service)
}

/// Restarted until done: exactly one dead letter, every other message handled once.
async fn a_process_that_dies_with_a_thousand_prefetched(ctx: Ctx) -> Verdict {
    let service = poisoned(ctx, 1000, 1, 1).await?;
    ensure!(
        service.deaths == 3,
        "one poison killed {} processes, not 3",
        service.deaths
    );
    Ok(())
}

/// Messages that were being handled beside the poison, each time that it killed, are handled all
/// the same: none of them is taken for it.
async fn neighbours_of_poison_survive_it(ctx: Ctx) -> Verdict {
    let side_by_side = ctx.pick(5, 20);
    let service = poisoned(ctx, 60, 1, side_by_side).await?;
    ensure!(
        service.deaths == 3,
        "one poison killed {} processes, not 3",
        service.deaths
    );
    Ok(())
}

async fn several_poisons_are_all_capped(ctx: Ctx) -> Verdict {
    let poisons = ctx.pick(2, 4);
    let service = poisoned(ctx, 80, poisons, 4).await?;
    ensure!(
        (3..=3 * poisons).contains(&service.deaths),
        "{poisons} poisons killed {} processes",
        service.deaths
    );
    Ok(())
}

/// While a message that may be what killed its holder is on its last attempt, its member hands out
/// nothing else; and it is not begun while the member has something else in hand.
async fn a_suspect_on_its_last_attempt_runs_alone(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx.subscription(&topic, "billing").max_attempts(2);
    let sender = ctx.agent().await?;
    let first = ctx.messages(&topic, ctx.pick(2, 4));
    let suspects: BTreeSet<_> = first.iter().map(|m| m.id().to_owned()).collect();
    sender.publish_all(first).await?;
    let mortal = ctx.mortal_agent().await?;
    let doomed = mortal.join(&subscription).await?;
    for held in doomed.take(suspects.len()).await? {
        held.hang();
    }
    mortal.crash()?;
    let member = sender.join(&subscription).await?;
    sender.publish_all(ctx.messages(&topic, 3)).await?;
    // In hand when the suspects arrive.
    let mut in_hand = member.take(2).await?;
    let wait = tokio::time::sleep(past_a_lease(&ctx));
    tokio::pin!(wait);
    loop {
        tokio::select! {
            () = &mut wait => break,
            () = tokio::time::sleep(ctx.lease() / 4) => {
                for held in &in_hand {
                    held.extend().await?;
                }
            }
        }
    }
    while let Some(held) = member.next_within(ctx.lease() / 8).await? {
        ensure!(
            !suspects.contains(held.id()),
            "a suspect was handed out beside {} others",
            in_hand.len()
        );
        in_hand.push(held);
    }
    // Whoever waits for the next one is woken by the settlement that lets it go on.
    let settle = async {
        for held in in_hand {
            held.ack().await?;
        }
        Ok::<_, Failure>(())
    };
    let (next, settled) = tokio::join!(member.next(), settle);
    settled?;
    let mut next = next?;
    let mut left = suspects;
    loop {
        let held = next;
        if left.contains(held.id()) {
            ensure!(
                held.attempt() == 2,
                "the second hand-out of a suspect is attempt {}",
                held.attempt()
            );
            quiet(&member, ctx.lease() / 4)
                .await
                .map_err(|e| format!("beside a suspect on its last attempt: {e}"))?;
            left.remove(held.id());
        }
        if left.is_empty() {
            held.ack().await?;
            break;
        }
        let (after, acked) = tokio::join!(member.next(), held.ack());
        acked?;
        next = after?;
    }
    // Then the others go side by side again.
    sender.publish_all(ctx.messages(&topic, 3)).await?;
    for held in member.take(3).await? {
        held.ack().await?;
    }
    Ok(())
}

/// The attempts are with the broker: members that never saw the message before stop it too, on
/// connections of their own.
async fn a_poison_is_capped_by_whoever_comes_next(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let most = u32::try_from(ctx.pick(1, 3))?;
    let subscription = ctx.subscription(&topic, "billing").max_attempts(most);
    let sender = ctx.agent().await?;
    let message = ctx.message(&topic);
    sender.publish(message.clone()).await?;
    let mut dead = Vec::new();
    for attempt in 1..=most {
        let mortal = ctx.mortal_agent().await?;
        let member = mortal.join(&subscription).await?;
        let held = member.next().await?;
        ensure!(
            held.attempt() == attempt,
            "the hand-out to process {attempt} says that it is attempt {}",
            held.attempt()
        );
        held.hang();
        mortal.crash()?;
        dead.push((mortal, member));
    }
    let member = sender.join(&subscription).await?;
    super::letters::letter_event(&member).await?;
    let letters = dead_letters(&ctx, &sender, &topic, "billing", 1).await?;
    super::support::same(&message, &letters[0])?;
    member.nothing().await
}
