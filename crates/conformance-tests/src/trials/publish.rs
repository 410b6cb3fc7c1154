//! Publishing: receipts (P1), batches (P3).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use mas_transport_core::{
    ErrorKind, Message, Position, Priority, Receipt, Result, StartFrom, Stored,
};
use rand::Rng as _;
use rand::seq::index::sample;
use tokio::time::Instant;

use super::tools::{Gate, equal, ids, same};
use crate::checker::Flaw;
use crate::ctx::Ctx;
use crate::harness::{Ability, Failure, Verdict};
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(P1, every_receipt_is_delivered),
    trial!(P1, what_has_a_receipt_is_there_at_once),
    trial!(P1, what_has_a_receipt_is_in_the_past),
    trial!(P1, a_receipt_outlives_its_sender),
    trial!(P1, a_receipt_outlives_the_death_of_its_sender).needs(&[Ability::Crash]),
    trial!(P1, giving_up_the_receipt_withdraws_nothing),
    trial!(P1, fifty_publishers_lose_nothing).once(),
    trial!(P3, one_refused_message_fails_alone),
    trial!(P3, bad_messages_in_a_large_batch_fail_alone),
    trial!(P3, outcomes_come_in_the_order_of_the_messages),
    trial!(P3, callers_side_by_side_get_their_own_outcomes),
    trial!(P3, an_empty_batch_has_no_outcomes),
];

async fn every_receipt_is_delivered(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let sender = ctx.connect().await?;
    let receiver = ctx.connect().await?;
    let mut member = ctx
        .join_raw(&receiver, &ctx.subscription(&topic, "billing"))
        .await?;
    let batch = ctx.messages(&topic, ctx.pick(1, 50));
    let count = batch.len();
    let receipts = ctx.publish_raw(&sender, batch).await?;
    if receipts
        .iter()
        .any(|r| r.durability != ctx.capabilities().durability)
    {
        return Err("a receipt does not say the declared durability".into());
    }
    if receipts.iter().any(|r| r.duplicate) {
        return Err("a receipt of a first publish says duplicate".into());
    }
    for delivery in member.take(count).await? {
        member.ack(&delivery).await?;
    }
    member.nothing().await
}

/// Whoever asks the broker after the receipt finds the message, on whatever connection.
async fn what_has_a_receipt_is_there_at_once(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let sender = ctx.connect().await?;
    let receiver = ctx.connect().await?;
    for round in 0..ctx.pick(2, 6) {
        let batch = ctx.messages(&topic, ctx.pick(1, 5));
        let sent = ids(&batch);
        ctx.publish_raw(&sender, batch).await?;
        // A group of its own each time: it starts with what is kept, which is everything, as the
        // first group settles nothing.
        let subscription = ctx.subscription(&topic, &format!("group-{round}"));
        let mut member = ctx.join_raw(&receiver, &subscription).await?;
        let mut seen = BTreeSet::new();
        let start = Instant::now();
        while !sent.iter().all(|id| seen.contains(id)) {
            seen.insert(member.next().await?.message.id().to_owned());
        }
        let took = start.elapsed();
        if took > ctx.timing().slack {
            return Err(format!("the message came {took:?} after its receipt").into());
        }
    }
    Ok(())
}

/// A group that begins with what is published after `subscribe` does not see what had a receipt
/// before: a store that happens after the receipt would show it.
async fn what_has_a_receipt_is_in_the_past(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let sender = ctx.connect().await?;
    let receiver = ctx.connect().await?;
    ctx.publish_raw(&sender, ctx.messages(&topic, ctx.pick(1, 5)))
        .await?;
    let subscription = ctx
        .subscription(&topic, "billing")
        .start_from(StartFrom::Latest);
    let mut member = ctx.join_raw(&receiver, &subscription).await?;
    member.nothing().await
}

async fn a_receipt_outlives_its_sender(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx.subscription(&topic, "billing");
    let receiver = ctx.agent().await?;
    let member = receiver.join(&subscription).await?;
    let count = ctx.pick(1, 30);
    {
        let sender = ctx.agent().await?;
        sender.publish_all(ctx.messages(&topic, count)).await?;
        sender.transport().close(Instant::now()).await?;
    }
    member.ack_all(count).await?;
    member.nothing().await
}

async fn a_receipt_outlives_the_death_of_its_sender(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let receiver = ctx.agent().await?;
    let member = receiver.join(&ctx.subscription(&topic, "billing")).await?;
    let sender = ctx.mortal_agent().await?;
    let count = ctx.pick(1, 30);
    sender.publish_all(ctx.messages(&topic, count)).await?;
    // Not a yield lies between the receipt and the death.
    sender.crash()?;
    member.ack_all(count).await?;
    member.nothing().await
}

/// Whether or not anybody waits for them, accepted messages are published, once each.
async fn giving_up_the_receipt_withdraws_nothing(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    let messages = ctx.messages(&topic, ctx.pick(2, 100));
    let mut wanted = ids(&messages);
    for message in messages {
        drop(agent.enqueue(message).await?);
    }
    // The last one is awaited: what was accepted before it has gone before it.
    let last = ctx.message(&topic);
    wanted.push(last.id().to_owned());
    agent.publish(last).await?;
    let got = member.ack_all(wanted.len()).await?;
    same("messages whose receipts nobody awaited", got, wanted)?;
    member.nothing().await
}

async fn fifty_publishers_lose_nothing(ctx: Ctx) -> Verdict {
    const EACH: usize = 40;
    let topic = ctx.topic("orders")?;
    let receiver = ctx.agent().await?;
    let member = receiver.join(&ctx.subscription(&topic, "billing")).await?;
    let mut tasks = Vec::new();
    for number in 0..50 {
        let (ctx, topic) = (ctx.clone(), topic.clone());
        tasks.push(tokio::spawn(async move {
            let agent = ctx.agent().await?;
            let messages = ctx.messages(&topic, EACH);
            let sent = ids(&messages);
            // A third each: one by one, together, in a window.
            match number % 3 {
                0 => {
                    for message in messages {
                        agent.publish(message).await?;
                    }
                }
                1 => drop(agent.publish_all(messages).await?),
                _ => {
                    let mut pending = Vec::new();
                    for message in messages {
                        pending.push(agent.enqueue(message).await?);
                    }
                    try_join_all(pending).await?;
                }
            }
            agent.close().await?;
            Ok::<_, Failure>(sent)
        }));
    }
    let got = member.ack_all(50 * EACH).await?;
    let mut wanted = Vec::new();
    for task in tasks {
        wanted.extend(task.await??);
    }
    same("messages of fifty publishers", got, wanted)
}

async fn one_refused_message_fails_alone(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let transport = ctx.connect().await?;
    let mut member = ctx
        .join_raw(&transport, &ctx.subscription(&topic, "billing"))
        .await?;
    let mut batch = ctx.messages(&topic, 10);
    let bad = ctx.pick(0, 9);
    batch[bad] = batch[bad].clone().header("", "no name");
    let outcomes = ctx.try_publish_raw(&transport, batch).await;
    for (n, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Ok(_) if n != bad => {}
            Err(e)
                if n == bad
                    && e.kind() == ErrorKind::InvalidArgument
                    && e.stored() == Stored::No => {}
            other => return Err(format!("message {n} of 10, {bad} is bad: {other:?}").into()),
        }
    }
    for delivery in member.take(9).await? {
        member.ack(&delivery).await?;
    }
    member.nothing().await
}

/// Makes a message that is refused, and says how.
fn spoil(ctx: &Ctx, message: Message, way: usize) -> (Message, ErrorKind) {
    let can = ctx.capabilities();
    match way {
        0 if !can.priority => (message.priority(Priority::High), ErrorKind::Unsupported),
        1 if !can.ttl => (message.ttl(Duration::from_secs(60)), ErrorKind::Unsupported),
        2 => {
            let large = vec![7; can.max_message_bytes];
            (message.with_payload(large.into()), ErrorKind::TooLarge)
        }
        _ => (message.with_id(""), ErrorKind::InvalidArgument),
    }
}

/// What one outcome of a batch should be: `None` for a receipt.
fn judge(n: usize, outcome: &Result<Receipt>, wanted: Option<ErrorKind>) -> Verdict {
    match (outcome, wanted) {
        (Ok(_), None) => Ok(()),
        (Err(e), Some(kind)) if e.kind() == kind && e.stored() == Stored::No => Ok(()),
        (other, wanted) => Err(format!("message {n}: expected {wanted:?}, got {other:?}").into()),
    }
}

/// Also across the batches that the pump makes of it, whatever is wrong with the bad ones.
async fn bad_messages_in_a_large_batch_fail_alone(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    let count = 2 * ctx.info().tuning.publish_batch.min(300) + ctx.pick(1, 20);
    let mut rng = ctx.rng();
    let mut batch = ctx.messages(&topic, count);
    let mut bad = BTreeMap::new();
    for (way, n) in sample(&mut rng, count, 6).into_iter().enumerate() {
        let (message, kind) = spoil(&ctx, batch[n].clone(), way % 4);
        batch[n] = message;
        bad.insert(n, kind);
    }
    let all = ids(&batch);
    let outcomes = agent.publish_batch(batch).await;
    equal("outcomes of the batch", outcomes.len(), count)?;
    for (n, outcome) in outcomes.iter().enumerate() {
        judge(n, outcome, bad.get(&n).copied())?;
    }
    let good = (0..count).filter(|n| !bad.contains_key(n));
    let wanted: Vec<_> = good.map(|n| all[n].clone()).collect();
    let got = member.ack_all(wanted.len()).await?;
    same("the good ones of the batch", got, wanted)?;
    member.nothing().await
}

/// A receipt's position is that of its own message, also where a batch spans topics.
async fn outcomes_come_in_the_order_of_the_messages(ctx: Ctx) -> Verdict {
    let topics = [ctx.topic("orders")?, ctx.topic("invoices")?];
    let transport = ctx.connect().await?;
    let mut rng = ctx.rng();
    let count = ctx.pick(20, 200);
    let mut batch = Vec::new();
    for _ in 0..count {
        batch.push(ctx.message(&topics[rng.random_range(0..2)]));
    }
    // One that is refused moves no other's outcome.
    let bad = rng.random_range(0..count);
    batch[bad] = batch[bad].clone().with_id("");
    let asked = batch.clone();
    let outcomes = ctx.try_publish_raw(&transport, batch).await;
    equal("outcomes of the batch", outcomes.len(), count)?;
    let mut told: BTreeMap<String, Position> = BTreeMap::new();
    for (n, (message, outcome)) in asked.iter().zip(&outcomes).enumerate() {
        judge(n, outcome, (n == bad).then_some(ErrorKind::InvalidArgument))?;
        if let Ok(receipt) = outcome {
            told.insert(message.id().to_owned(), receipt.position);
        }
    }
    for topic in &topics {
        let mut member = ctx
            .join_raw(&transport, &ctx.subscription(topic, "billing"))
            .await?;
        let of = |m: &&Message| m.topic() == topic && !m.id().is_empty();
        for _ in asked.iter().filter(of) {
            let delivery = member.next().await?;
            let id = delivery.message.id();
            if told.get(id) != Some(&delivery.position) {
                return Err(format!(
                    "{id} stands at {}, its receipt says {:?}",
                    delivery.position,
                    told.get(id)
                )
                .into());
            }
            member.ack(&delivery).await?;
        }
    }
    Ok(())
}

/// Messages of many callers share batches; each handle still tells of its own message.
async fn callers_side_by_side_get_their_own_outcomes(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    // While the gate holds the first ones, the others gather into batches. It lets them through
    // in any order.
    ctx.excuse(Flaw::Order);
    let gate = Gate::open();
    let transport = ctx.connect_with(vec![gate.clone()]).await?;
    let agent = ctx.agent_on(transport, Default::default());
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    gate.publishes(false);
    let mut rng = ctx.rng();
    let mut calls = Vec::new();
    let mut kinds = Vec::new();
    let mut wanted = Vec::new();
    for _ in 0..ctx.pick(50, 200) {
        let message = ctx.message(&topic);
        let (message, kind) = if rng.random_ratio(1, 5) {
            let (bad, kind) = spoil(&ctx, message, rng.random_range(0..4));
            (bad, Some(kind))
        } else {
            wanted.push(message.id().to_owned());
            (message, None)
        };
        kinds.push(kind);
        calls.push(agent.publish(message));
    }
    let opened = async {
        gate.reached(1).await;
        gate.publishes(true);
    };
    let (outcomes, ()) = tokio::join!(join_all(calls), opened);
    for (n, (outcome, kind)) in outcomes.iter().zip(kinds).enumerate() {
        judge(n, outcome, kind)?;
    }
    let got = member.ack_all(wanted.len()).await?;
    same("the good ones among many calls", got, wanted)?;
    member.nothing().await
}

async fn an_empty_batch_has_no_outcomes(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let raw = ctx.try_publish_raw(agent.transport(), Vec::new()).await;
    let pumped = agent.publish_batch(Vec::new()).await;
    equal(
        "outcomes of empty batches",
        (raw.len(), pumped.len()),
        (0, 0),
    )?;
    // The line still moves.
    agent.publish(ctx.message(&topic)).await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    member.ack_all(1).await?;
    member.nothing().await
}
