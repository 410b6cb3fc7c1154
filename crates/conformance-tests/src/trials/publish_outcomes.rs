//! What a failed publish says of the message (P2).

use std::time::Duration;

use mas_transport_core::{Durability, Stored};
use rand::Rng as _;
use tokio::time::Instant;

use super::tools::{equal, ids, same, without};
use crate::ctx::Ctx;
use crate::harness::{Ability, Verdict};
use crate::history::Trouble;
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(P2, a_refused_message_is_not_stored),
    trial!(P2, a_refusal_leaves_the_id_free),
    trial!(P2, a_lost_confirmation_is_unknown).needs(&[Ability::LoseConfirms]),
    trial!(P2, a_lost_confirmation_is_unknown_in_a_batch).needs(&[Ability::LoseConfirms]),
    trial!(P2, outcomes_are_true_while_connections_break).needs(&[Ability::Cut]),
    trial!(P2, outcomes_are_true_when_the_broker_dies)
        .needs(&[Ability::Kill])
        .own_server(),
];

async fn a_refused_message_is_not_stored(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    let large = vec![1; ctx.capabilities().max_message_bytes];
    let bad = [
        ctx.message(&topic).with_id(""),
        ctx.message(&topic).header("Not A Name", "x"),
        ctx.message(&topic).key("k".repeat(5000)),
        ctx.message(&topic).with_payload(large.into()),
    ];
    for message in bad {
        match agent.publish(message).await {
            Err(e) if e.stored() == Stored::No && !e.is_retryable() => {}
            other => return Err(format!("a bad message was answered with {other:?}").into()),
        }
    }
    member.nothing().await
}

/// Publishing again after a `No` makes one message, not two.
async fn a_refusal_leaves_the_id_free(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let transport = ctx.connect().await?;
    let mut member = ctx
        .join_raw(&transport, &ctx.subscription(&topic, "billing"))
        .await?;
    // A deadline in the past: nothing may be sent for it.
    let message = ctx.message(&topic);
    let outcomes = transport
        .publish(vec![message.clone()], Instant::now())
        .await
        .await;
    match outcomes.as_slice() {
        [Err(e)] if e.stored() == Stored::No => {}
        other => return Err(format!("a publish that was too late: {other:?}").into()),
    }
    ctx.publish_raw(&transport, vec![message.clone()]).await?;
    let delivery = member.next().await?;
    equal("the message", delivery.message.id(), message.id())?;
    member.ack(&delivery).await?;
    member.nothing().await
}

/// The harness says that the message was stored; the publisher cannot know it. Nobody else is
/// connected, so that it is the publisher's answer that gets lost.
async fn a_lost_confirmation_is_unknown(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    agent.publish(ctx.message(&topic)).await?;
    ctx.fault(Trouble::Plan, true);
    ctx.broker().lose_confirms(1).await?;
    match agent.publish(ctx.message(&topic)).await {
        Err(e) if e.stored() == Stored::Unknown && e.is_retryable() => {}
        other => return Err(format!("a publish whose answer was lost: {other:?}").into()),
    }
    // It heals, and both others were stored, once.
    publish_again(&ctx, &agent, &topic).await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    member.ack_all(3).await?;
    member.nothing().await
}

/// Publishes new messages until one has a receipt: the connection may still be coming back. Only
/// refused ones come before it.
async fn publish_again(
    ctx: &Ctx,
    agent: &crate::agent::Agent,
    topic: &mas_transport_core::Topic,
) -> Verdict {
    let until = ctx.deadline();
    loop {
        match agent.publish(ctx.message(topic)).await {
            Ok(_) => return Ok(()),
            Err(e) if e.stored() == Stored::No && e.is_retryable() && Instant::now() < until => {
                // What is refused at once is tried again a little later.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(e) => return Err(format!("the connection did not heal: {e}").into()),
        }
    }
}

/// In a batch only those whose answers were lost are unknown, and none of them is called refused.
async fn a_lost_confirmation_is_unknown_in_a_batch(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let sender = ctx.connect().await?;
    // The connection works; what comes next is the batch.
    ctx.publish_raw(&sender, ctx.messages(&topic, 1)).await?;
    let lost = ctx.pick(1, 5);
    ctx.fault(Trouble::Plan, true);
    ctx.broker().lose_confirms(lost as u64).await?;
    let batch = ctx.messages(&topic, lost + ctx.pick(0, 5));
    let all = ids(&batch);
    let outcomes = ctx.try_publish_raw(&sender, batch).await;
    let mut refused = Vec::new();
    let mut unknown = 0;
    for (id, outcome) in all.iter().zip(&outcomes) {
        match outcome {
            Ok(_) => {}
            Err(e) if e.stored() == Stored::Unknown => unknown += 1,
            Err(_) => refused.push(id.clone()),
        }
    }
    if unknown < lost {
        return Err(format!("{lost} confirmations were lost, {unknown} are unknown").into());
    }
    let receiver = ctx.agent().await?;
    let member = receiver.join(&ctx.subscription(&topic, "billing")).await?;
    // Every unknown one of the first `lost` is there: the harness stored it. The history's judge
    // sees to the others: nothing refused is delivered, nothing receipted is missing.
    let stored: Vec<_> = without(&all[..lost], &refused);
    let mut got = Vec::new();
    while !stored.iter().all(|id| got.contains(id)) {
        got.extend(member.ack_all(1).await?);
    }
    while let Some(held) = member.next_within(ctx.timing().slack).await? {
        got.push(held.id().to_owned());
        held.ack().await?;
    }
    let twice = got.len() - got.iter().collect::<std::collections::BTreeSet<_>>().len();
    equal("messages delivered twice", twice, 0)
}

/// Whatever a publish answers while the connection breaks again and again, it is true: the
/// history's judge compares each answer with what is delivered.
async fn outcomes_are_true_while_connections_break(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let receiver = ctx.agent().await?;
    let member = receiver
        .join(&ctx.subscription(&topic, "billing").max_attempts(100))
        .await?;
    let count = ctx.pick(30, 80);
    let mut rng = ctx.rng();
    let mut pending = Vec::new();
    let mut sent = Vec::new();
    for _ in 0..count {
        if rng.random_ratio(1, 12) {
            ctx.fault(Trouble::Cut, true);
            ctx.broker().cut().await?;
            ctx.fault(Trouble::Cut, false);
        }
        let message = ctx.message(&topic);
        sent.push(message.id().to_owned());
        pending.push(agent.enqueue(message).await?);
        if rng.random_ratio(1, 4) {
            tokio::task::yield_now().await;
        }
    }
    let mut receipts = Vec::new();
    for (id, pending) in sent.into_iter().zip(pending) {
        let outcome = ctx.soon("the outcome of a publish", pending).await?;
        if outcome.is_ok() {
            receipts.push(id);
        }
    }
    // Until every receipt was seen; an unknown one may come too, a redelivery as well.
    let mut seen = Vec::new();
    while !receipts.iter().all(|id| seen.contains(id)) {
        let held = member.next().await?;
        seen.push(held.id().to_owned());
        // The cut may have cost the answer; the message then comes again, and is acked then.
        drop(held.ack().await);
    }
    Ok(())
}

async fn outcomes_are_true_when_the_broker_dies(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let receiver = ctx.agent().await?;
    let member = receiver
        .join(&ctx.subscription(&topic, "billing").max_attempts(100))
        .await?;
    let mut receipts = Vec::new();
    let first = ctx.messages(&topic, ctx.pick(1, 50));
    receipts.extend(ids(&first));
    agent.publish_all(first).await?;
    let caught = ctx.messages(&topic, ctx.pick(50, 200));
    let caught_ids = ids(&caught);
    let mut pending = Vec::new();
    for message in caught {
        pending.push(agent.enqueue(message).await?);
    }
    ctx.fault(Trouble::Kill, true);
    ctx.broker().kill().await?;
    if ctx.capabilities().durability < Durability::Process {
        // As it declares.
        receipts.clear();
    }
    ctx.broker().start().await?;
    ctx.fault(Trouble::Kill, false);
    for (id, pending) in caught_ids.into_iter().zip(pending) {
        if ctx
            .within(Duration::from_secs(35), "the outcome of a publish", pending)
            .await?
            .is_ok()
        {
            receipts.push(id);
        }
    }
    publish_again(&ctx, &agent, &topic).await?;
    let mut seen = Vec::new();
    while !receipts.iter().all(|id| seen.contains(id)) {
        let held = member.next().await?;
        seen.push(held.id().to_owned());
        drop(held.ack().await);
    }
    let twice = |id: &String| seen.iter().filter(|s| s == &id).count() > 2;
    same(
        "messages that came again and again",
        receipts.into_iter().filter(twice),
        [],
    )
}
