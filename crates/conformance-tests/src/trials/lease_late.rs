//! After the deadline nothing is settled (L2).

use std::time::Duration;

use mas_transport_core::{
    ConsumerEvent, ErrorKind, Outcome, Reason, ReasonCode, Record, Stored, Subscription, Topic,
};
use rand::seq::SliceRandom as _;
use tokio::time::{Instant, sleep_until};

use super::lease::pair;
use super::tools::{Gate, either, equal, failed, in_time, lapse, outlast};
use crate::ctx::Ctx;
use crate::harness::Verdict;
use crate::history::Trouble;
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(L2, whatever_comes_late_is_refused_and_does_nothing),
    trial!(L2, a_late_settlement_leaves_the_next_holder_alone),
    trial!(L2, a_settlement_just_in_time_counts),
    trial!(L2, the_broker_is_not_asked_after_the_deadline),
    trial!(L2, a_settlement_that_waited_too_long_is_not_sent),
    trial!(L2, a_lapsed_delivery_is_revoked_at_its_deadline),
    trial!(L2, a_late_settlement_shows_as_an_event),
];

fn record(topic: &Topic) -> Box<Record> {
    Box::new(Record {
        version: Record::VERSION,
        reason: Reason::new(ReasonCode::Rejected, "too late"),
        topic: topic.to_string(),
        group: "billing".into(),
        position: "0-0".into(),
        attempts: 1,
        member: "m".into(),
        first_failure_ms: 0,
        last_failure_ms: 0,
        history: Vec::new(),
    })
}

fn outcomes(ctx: &Ctx, topic: &Topic) -> Vec<Outcome> {
    let mut outcomes = vec![
        Outcome::Ack,
        Outcome::Nack(Duration::ZERO),
        Outcome::Nack(Duration::from_millis(100)),
        Outcome::Return,
        Outcome::Extend,
        Outcome::Begin,
        Outcome::DeadLetter(record(topic)),
    ];
    outcomes.shuffle(&mut ctx.rng());
    outcomes
}

/// Each in its own way, in one batch: `LeaseLost` for all, and every message comes once more, no
/// more and no fewer.
async fn whatever_comes_late_is_refused_and_does_nothing(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let transport = ctx.connect().await?;
    let mut member = ctx
        .join_raw(&transport, &ctx.subscription(&topic, "billing"))
        .await?;
    let outcomes = outcomes(&ctx, &topic);
    let count = outcomes.len();
    ctx.publish_raw(&transport, ctx.messages(&topic, count))
        .await?;
    let held = member.take(count).await?;
    if let Some(last) = held.iter().map(|d| d.deadline).max() {
        lapse(&ctx, last).await;
    }
    let batch = held.iter().map(|d| d.token).zip(outcomes.clone()).collect();
    let answers = member.answer_all(batch).await;
    for (outcome, answer) in outcomes.iter().zip(&answers) {
        failed(&format!("a late {outcome:?}"), answer, ErrorKind::LeaseLost)?;
        if answer.as_ref().is_err_and(|e| e.stored() != Stored::No) {
            return Err(format!("a late {outcome:?} says that it may have counted").into());
        }
    }
    let again = member.take(count).await?;
    for delivery in &again {
        member.ack(delivery).await?;
    }
    if let Some(last) = again.iter().map(|d| d.deadline).max() {
        outlast(&ctx, last).await;
    }
    member.nothing().await?;
    let letters = Topic::dead_letters(&topic, &ctx.group("billing")?);
    let mut clerk = ctx
        .join_raw(&transport, &ctx.subscription(&letters, "clerk"))
        .await?;
    clerk.nothing().await
}

/// The message has a new holder by then: it keeps it, and its ack is the one that counts.
async fn a_late_settlement_leaves_the_next_holder_alone(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    // The second lease has to live until the end of the trial.
    let (mut a, mut b) = pair(&ctx, &ctx.subscription(&topic, "billing")).await?;
    let sender = ctx.connect().await?;
    for outcome in outcomes(&ctx, &topic).into_iter().take(2) {
        ctx.publish_raw(&sender, ctx.messages(&topic, 1)).await?;
        let (first, late) = either(&ctx, &mut a, &mut b).await?;
        let (second, current) = either(&ctx, &mut a, &mut b).await?;
        equal("the message", current.message.id(), late.message.id())?;
        let what = format!("a late {outcome:?}");
        let holder = if first == 0 { &mut a } else { &mut b };
        let answer = holder.answer(late.token, outcome).await;
        failed(&what, &answer, ErrorKind::LeaseLost)?;
        // Not given to a third one, and still the second one's.
        let early = async {
            tokio::select! {
                d = a.wait() => d,
                d = b.wait() => d,
            }
        };
        let until = current.deadline - ctx.lease() / 2;
        if let Ok(third) = tokio::time::timeout_at(until, early).await {
            return Err(format!("{what} gave the message away: {:?}", third?.attempt).into());
        }
        let holder = if second == 0 { &mut a } else { &mut b };
        holder.ack(&current).await?;
    }
    Ok(())
}

/// As long as the deadline has not come, it counts; when it has, it does not.
async fn a_settlement_just_in_time_counts(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    agent.publish_all(ctx.messages(&topic, 2)).await?;
    let held = member.take(2).await?;
    let margin = match ctx.timing().paused {
        true => Duration::from_millis(ctx.pick(1, 3) as u64),
        false => ctx.lease() / 2,
    };
    let mut held = held.into_iter();
    let (Some(one), Some(two)) = (held.next(), held.next()) else {
        return Err("two were taken".into());
    };
    sleep_until(one.deadline() - margin).await;
    one.ack().await?;
    sleep_until(two.deadline()).await;
    failed(
        "an ack at the deadline",
        &two.ack().await,
        ErrorKind::LeaseLost,
    )?;
    member.ack_all(1).await?;
    member.nothing().await
}

async fn the_broker_is_not_asked_after_the_deadline(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let gate = Gate::open();
    let receiver = ctx.connect_with(vec![gate.clone()]).await?;
    let agent = ctx.agent_on(receiver, Default::default());
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    let sender = ctx.agent().await?;
    sender.publish_all(ctx.messages(&topic, 5)).await?;
    let held = member.take(5).await?;
    if let Some(last) = held.iter().map(|h| h.deadline()).max() {
        lapse(&ctx, last).await;
    }
    let before = gate.settled().len();
    let mut answers = Vec::new();
    for (n, held) in held.into_iter().enumerate() {
        answers.push(match n {
            0 => held.ack().await,
            1 => held.nack().await,
            2 => held.nack_after(Duration::from_millis(50)).await,
            3 => held.reject("late").await,
            _ => {
                let extended = held.extend().await;
                // Dropped too late, it is not even nacked.
                drop(held);
                extended.map(drop)
            }
        });
    }
    for answer in &answers {
        failed("a late call", answer, ErrorKind::LeaseLost)?;
    }
    // Only what the pump itself asks for deliveries that came since: it begins them.
    let asked = gate.settled().split_off(before);
    if let Some(outcome) = asked.iter().find(|(_, o)| !matches!(o, Outcome::Begin)) {
        return Err(format!("the broker was asked for {outcome:?}").into());
    }
    member.ack_all(5).await?;
    member.nothing().await
}

/// Called in time, but the line to the broker is busy until the deadline has passed: it is checked
/// again when it is written.
async fn a_settlement_that_waited_too_long_is_not_sent(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let gate = Gate::open();
    let receiver = ctx.connect_with(vec![gate.clone()]).await?;
    let slots = receiver.info().tuning.settle_in_flight;
    let agent = ctx.agent_on(receiver, Default::default());
    let lease = ctx.lease() * 3;
    let subscription: Subscription = ctx
        .subscription(&topic, "billing")
        .lease(lease)
        .prefetch(slots + 5)
        .max_attempts(100);
    let member = agent.join(&subscription).await?;
    let sender = ctx.agent().await?;
    let count = slots + 5;
    sender.publish_all(ctx.messages(&topic, count)).await?;
    let mut held = member.take(count).await?;
    let first = held.iter().map(|h| h.deadline()).min();
    let last = held.iter().map(|h| h.deadline()).max();
    let (Some(first), Some(last)) = (first, last) else {
        return Err("nothing is held".into());
    };
    sleep_until(first - lease / 2).await;
    ctx.fault(Trouble::Plan, true);
    gate.settlements(false);
    let reached = gate.settled().len();
    let mut on_the_way = Vec::new();
    for n in 1..=slots {
        let Some(held) = held.pop() else { break };
        on_the_way.push(held.ack());
        ctx.soon("a settlement at the gate", gate.reached(reached + n))
            .await?;
    }
    let mut queued = Vec::new();
    for held in held.drain(..) {
        queued.push(held.ack());
    }
    let sent = gate.settled().len();
    sleep_until(last + lease / 8).await;
    gate.settlements(true);
    ctx.fault(Trouble::Plan, false);
    for answer in queued {
        match ctx.soon("the answer to a late ack", answer).await? {
            Err(e) if e.kind() == ErrorKind::LeaseLost && e.stored() == Stored::No => {}
            other => return Err(format!("an ack that waited too long: {other:?}").into()),
        }
    }
    drop(on_the_way);
    let late = gate.settled().split_off(sent);
    if late.iter().any(|(_, o)| matches!(o, Outcome::Ack)) {
        return Err("an ack was sent after its deadline".into());
    }
    member.ack_all(count).await?;
    member.nothing().await
}

async fn a_lapsed_delivery_is_revoked_at_its_deadline(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    agent.publish(ctx.message(&topic)).await?;
    let held = member.next().await?;
    let deadline = held.deadline();
    ctx.soon("the revocation", held.revoked()).await?;
    in_time(&ctx, "the revocation", Instant::now(), deadline, deadline)?;
    let lost = |event| match event {
        ConsumerEvent::LeaseLost { position } => Some(position),
        _ => None,
    };
    let position = member.event_like("the loss of the lease", lost).await?;
    equal("the position of the lost lease", position, held.position())?;
    failed("a late ack", &held.ack().await, ErrorKind::LeaseLost)?;
    member.ack_all(1).await?;
    member.nothing().await
}

async fn a_late_settlement_shows_as_an_event(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    agent.publish(ctx.message(&topic)).await?;
    let held = member.next().await?;
    let position = held.position();
    lapse(&ctx, held.deadline()).await;
    // Nobody waits for the answer.
    drop(held.ack());
    let failure = |event| match event {
        ConsumerEvent::SettlementFailed {
            position, error, ..
        } => Some((position, error)),
        _ => None,
    };
    let (at, error) = member.event_like("the failed settlement", failure).await?;
    equal("the position of the failed settlement", at, position)?;
    failed(
        "the failed settlement",
        &Err::<(), _>(error),
        ErrorKind::LeaseLost,
    )?;
    member.ack_all(1).await?;
    member.nothing().await
}
