//! Settling: for good (S1), one by one (S2), whether or not anybody waits for it (S3).

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use mas_transport_core::{
    Backoff, ConsumerEvent, Durability, ErrorKind, Outcome, Settled, Stored, Token, Topic,
};
use rand::Rng as _;
use rand::seq::SliceRandom as _;
use tokio::time::{Instant, sleep, sleep_until};

use super::tools::{Gate, equal, failed, ids, in_time, lapse, outlast, same};
use crate::checker::survives_after;
use crate::ctx::Ctx;
use crate::harness::{Ability, Verdict};
use crate::history::Trouble;
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(S1, an_acked_message_never_comes_again),
    trial!(S1, acks_out_of_order_leave_exactly_the_others),
    trial!(S1, an_ack_outlives_the_death_of_the_broker)
        .needs(&[Ability::Kill])
        .own_server(),
    trial!(S1, acks_outlive_their_member_whatever_it_left),
    trial!(S2, a_batch_is_answered_entry_by_entry),
    trial!(S2, each_outcome_of_a_batch_does_its_own),
    trial!(S2, a_token_settles_once),
    trial!(S2, a_token_is_good_for_its_own_member_only),
    trial!(S2, hundreds_of_settlements_tell_their_own_end),
    trial!(S3, an_ack_without_a_handle_counts),
    trial!(S3, every_settlement_without_a_handle_counts),
    trial!(S3, a_failure_without_a_handle_is_told),
];

/// Not when its lease would have ended, not to another member, not on a new connection.
async fn an_acked_message_never_comes_again(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx.subscription(&topic, "billing");
    let transport = ctx.connect().await?;
    let mut member = ctx.join_raw(&transport, &subscription).await?;
    let count = ctx.pick(1, 40);
    ctx.publish_raw(&transport, ctx.messages(&topic, count))
        .await?;
    let mut deadline = Instant::now();
    for delivery in member.take(count).await? {
        deadline = deadline.max(delivery.deadline);
        member.ack(&delivery).await?;
    }
    let other = ctx.connect().await?;
    let mut second = ctx.join_raw(&other, &subscription).await?;
    outlast(&ctx, deadline).await;
    member.nothing().await?;
    second.nothing().await?;
    transport.close(ctx.deadline()).await?;
    let third = ctx.connect().await?;
    let mut third = ctx.join_raw(&third, &subscription).await?;
    third.nothing().await?;
    second.nothing().await
}

/// Whatever the order: a new member on a new connection gets exactly what was not acked.
async fn acks_out_of_order_leave_exactly_the_others(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx
        .subscription(&topic, "billing")
        .lease(Duration::from_secs(600));
    let agent = ctx.agent().await?;
    let member = agent.join(&subscription).await?;
    let messages = ctx.messages(&topic, ctx.pick(10, 150));
    let all = ids(&messages);
    agent.publish_all(messages).await?;
    let mut held = member.take(all.len()).await?;
    held.shuffle(&mut ctx.rng());
    let acked = ctx.pick(1, all.len() - 1);
    let mut left = Vec::new();
    for (n, held) in held.into_iter().enumerate() {
        if n < acked {
            held.ack().await?;
        } else {
            left.push(held.id().to_owned());
            held.nack().await?;
        }
    }
    member.close().await?;
    agent.close().await?;
    let other = ctx.agent().await?;
    let member = other.join(&subscription).await?;
    same(
        "what was not acked",
        member.ack_all(left.len()).await?,
        left,
    )?;
    member.nothing().await
}

async fn an_ack_outlives_the_death_of_the_broker(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx.subscription(&topic, "billing").max_attempts(100);
    let agent = ctx.agent().await?;
    let member = agent.join(&subscription).await?;
    let messages = ctx.messages(&topic, ctx.pick(10, 60));
    let all = ids(&messages);
    agent.publish_all(messages).await?;
    let can = ctx.capabilities();
    let (old, new) = (ctx.pick(1, all.len() / 2), ctx.pick(1, all.len() / 2));
    let mut acked: BTreeSet<_> = member.ack_all(old).await?.into_iter().collect();
    // What was acked a while ago is kept by every broker that writes.
    let after = survives_after(can.ack_durability);
    let mut kept = acked.clone();
    match after {
        None => kept.clear(),
        Some(Duration::ZERO) => {}
        Some(after) => sleep(after).await,
    }
    acked.extend(member.ack_all(new).await?);
    if after == Some(Duration::ZERO) {
        kept.clone_from(&acked);
    }
    ctx.fault(Trouble::Kill, true);
    ctx.broker().kill().await?;
    ctx.broker().start().await?;
    ctx.fault(Trouble::Kill, false);
    let mut left: BTreeSet<_> = all.into_iter().filter(|id| !acked.contains(id)).collect();
    let survives = can.durability >= Durability::Process;
    if !survives {
        // As it declares: nothing was kept, or perhaps not all.
        left.clear();
    }
    while !left.is_empty() {
        let held = member.next().await?;
        if kept.contains(held.id()) {
            return Err(format!("{held:?} came again, its ack was confirmed").into());
        }
        let id = held.id().to_owned();
        if held.ack().await.is_ok() {
            left.remove(&id);
        }
    }
    // Acks that it had not written yet come again.
    if survives && can.ack_durability >= Durability::Process {
        member.nothing().await?;
    }
    Ok(())
}

/// It leaves with messages in its hands and in its buffer: those come back, the acked do not.
async fn acks_outlive_their_member_whatever_it_left(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx.subscription(&topic, "billing").backoff(Backoff {
        first: Duration::from_millis(50),
        most: Duration::from_millis(50),
    });
    let sender = ctx.agent().await?;
    let messages = ctx.messages(&topic, ctx.pick(20, 100));
    let all = ids(&messages);
    sender.publish_all(messages).await?;
    let mut acked = Vec::new();
    for _ in 0..3 {
        let agent = ctx.agent().await?;
        let member = agent.join(&subscription).await?;
        acked.extend(member.ack_all(ctx.pick(1, 5)).await?);
        let in_hand = member.take(ctx.pick(0, 1)).await?;
        drop(member);
        drop(in_hand);
        agent.transport().close(ctx.deadline()).await?;
    }
    let agent = ctx.agent().await?;
    let member = agent.join(&subscription).await?;
    acked.extend(member.ack_all(all.len() - acked.len()).await?);
    same("what was acked by four members", acked, all)?;
    member.nothing().await
}

/// One bad token in the middle fails alone; the others take effect.
async fn a_batch_is_answered_entry_by_entry(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let transport = ctx.connect().await?;
    let mut member = ctx
        .join_raw(&transport, &ctx.subscription(&topic, "billing"))
        .await?;
    let count = ctx.pick(3, 60);
    ctx.publish_raw(&transport, ctx.messages(&topic, count))
        .await?;
    let held = member.take(count).await?;
    let mut batch: Vec<_> = held.iter().map(|d| (d.token, Outcome::Ack)).collect();
    batch.shuffle(&mut ctx.rng());
    let token = batch[0].0;
    let unknown = [
        Token {
            generation: token.generation.wrapping_add(7),
            ..token
        },
        Token {
            slot: u32::MAX,
            generation: 0,
        },
    ];
    let mut bad = BTreeSet::new();
    for token in unknown {
        let at = ctx.pick(0, batch.len());
        batch.insert(at, (token, Outcome::Ack));
        bad.insert(token);
    }
    // The same one twice in one batch: it counts once.
    let twice = batch[ctx.pick(0, batch.len() - 1)].0;
    batch.push((twice, Outcome::Nack(Duration::ZERO)));
    let tokens: Vec<_> = batch.iter().map(|(token, _)| *token).collect();
    let last = tokens.len() - 1;
    let answers = member.answer_all(batch).await;
    equal("answers", answers.len(), tokens.len())?;
    for (n, (token, answer)) in tokens.iter().zip(answers).enumerate() {
        if bad.contains(token) || n == last {
            failed("an ack of a wrong token", &answer, ErrorKind::LeaseLost)?;
        } else {
            equal("the answer to an ack", answer?, Settled::Done)?;
        }
    }
    if let Some(last) = held.iter().map(|d| d.deadline).max() {
        outlast(&ctx, last).await;
    }
    member.nothing().await
}

/// Acks, nacks, extensions, dead letters and returns side by side.
async fn each_outcome_of_a_batch_does_its_own(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = ctx
        .subscription(&topic, "billing")
        .lease(Duration::from_secs(3600));
    let member = agent.join(&subscription).await?;
    let messages = ctx.messages(&topic, ctx.pick(10, 100));
    let count = messages.len();
    agent.publish_all(messages).await?;
    // While the gate is shut the settlements gather.
    let mut rng = ctx.rng();
    let (mut again, mut letters) = (Vec::new(), Vec::new());
    let mut answers = Vec::new();
    let mut kept = Vec::new();
    for held in member.take(count).await? {
        let id = held.id().to_owned();
        match rng.random_range(0..5) {
            0 => {
                again.push(id);
                answers.push(held.nack());
            }
            1 => {
                letters.push(id);
                answers.push(held.reject("one of many"));
            }
            2 => kept.push(held),
            _ => answers.push(held.ack()),
        }
    }
    let extend = join_all(kept.iter().map(|held| held.extend()));
    let (answers, extended) = tokio::join!(join_all(answers), extend);
    for answer in answers {
        answer?;
    }
    for deadline in extended {
        deadline?;
    }
    same("nacked messages", member.ack_all(again.len()).await?, again)?;
    member.nothing().await?;
    for held in kept {
        held.ack().await?;
    }
    let topic = Topic::dead_letters(&topic, &ctx.group("billing")?);
    let clerk = agent.join(&ctx.subscription(&topic, "clerk")).await?;
    same("dead letters", clerk.ack_all(letters.len()).await?, letters)?;
    clerk.nothing().await
}

/// What has been settled cannot be settled again, in whatever way, nor can a later delivery in the
/// same slot be settled by it.
async fn a_token_settles_once(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let transport = ctx.connect().await?;
    let mut member = ctx
        .join_raw(&transport, &ctx.subscription(&topic, "billing"))
        .await?;
    ctx.publish_raw(&transport, ctx.messages(&topic, 3)).await?;
    let first = member.next().await?;
    let way = [Outcome::Ack, Outcome::Nack(Duration::ZERO)][ctx.pick(0, 1)].clone();
    let comes_again = !matches!(way, Outcome::Ack);
    member.answer(first.token, way).await?;
    for outcome in [
        Outcome::Ack,
        Outcome::Nack(Duration::ZERO),
        Outcome::Return,
        Outcome::Extend,
    ] {
        let what = format!("a second settlement by {outcome:?}");
        let answer = member.answer(first.token, outcome).await;
        failed(&what, &answer, ErrorKind::LeaseLost)?;
    }
    let rest = member.take(2 + usize::from(comes_again)).await?;
    // All are held now, one of them maybe in the slot that the first one had.
    let answer = member.answer(first.token, Outcome::Ack).await;
    failed("an ack of an old token", &answer, ErrorKind::LeaseLost)?;
    let mut last = Instant::now();
    for delivery in &rest {
        member.ack(delivery).await?;
        last = last.max(delivery.deadline);
    }
    outlast(&ctx, last).await;
    member.nothing().await
}

async fn a_token_is_good_for_its_own_member_only(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let transport = ctx.connect().await?;
    // Of one group, of another group, of another connection.
    let mut holder = ctx
        .join_raw(&transport, &ctx.subscription(&topic, "billing"))
        .await?;
    let count = ctx.pick(1, 10);
    ctx.publish_raw(&transport, ctx.messages(&topic, count))
        .await?;
    let held = holder.take(count).await?;
    let other = ctx.connect().await?;
    let mut others = vec![
        ctx.join_raw(&transport, &ctx.subscription(&topic, "audit"))
            .await?,
        ctx.join_raw(&other, &ctx.subscription(&topic, "archive"))
            .await?,
    ];
    for member in &mut others {
        for delivery in &held {
            let answer = member.settle.settle(vec![(delivery.token, Outcome::Ack)]);
            match answer.await.as_slice() {
                [Err(e)] if e.kind() == ErrorKind::LeaseLost => {}
                answer => return Err(format!("an ack of another's token: {answer:?}").into()),
            }
        }
    }
    for delivery in &held {
        holder.ack(delivery).await?;
    }
    for mut member in others {
        let deliveries = member.take(count).await?;
        for delivery in &deliveries {
            member.ack(delivery).await?;
        }
        member.nothing().await?;
    }
    Ok(())
}

/// Through the pump, where they share batches: those that lapsed fail, and no other does.
async fn hundreds_of_settlements_tell_their_own_end(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = ctx
        .subscription(&topic, "billing")
        .prefetch(10_000)
        .max_attempts(100);
    let member = agent.join(&subscription).await?;
    let late = ctx.messages(&topic, ctx.pick(1, 20));
    let late_ids: BTreeSet<_> = ids(&late).into_iter().collect();
    agent.publish_all(late).await?;
    let mut all = member.take(late_ids.len()).await?;
    let early = ctx.messages(&topic, ctx.pick(100, 400));
    let count = early.len();
    agent.publish_all(early).await?;
    // These are extended, those are not.
    let fresh = member.take(count).await?;
    let lapsed = all.iter().map(|held| held.deadline()).max();
    let lapsed = lapsed.ok_or("nothing is held")?;
    sleep_until(lapsed - ctx.lease() / 3).await;
    for deadline in join_all(fresh.iter().map(|held| held.extend())).await {
        deadline?;
    }
    sleep_until(lapsed).await;
    all.extend(fresh);
    all.shuffle(&mut ctx.rng());
    let names: Vec<_> = all.iter().map(|held| held.id().to_owned()).collect();
    let answers = join_all(all.into_iter().map(|held| held.ack())).await;
    for (id, answer) in names.iter().zip(answers) {
        if late_ids.contains(id) {
            failed("a late ack among many", &answer, ErrorKind::LeaseLost)?;
        } else {
            answer?;
        }
    }
    let got = member.ack_all(late_ids.len()).await?;
    same("what was too late", got, late_ids)?;
    member.nothing().await
}

async fn an_ack_without_a_handle_counts(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = ctx.subscription(&topic, "billing");
    let member = agent.join(&subscription).await?;
    let count = ctx.pick(1, 60);
    agent.publish_all(ctx.messages(&topic, count)).await?;
    let mut deadline = Instant::now();
    for _ in 0..count {
        let held = member.next().await?;
        deadline = deadline.max(held.deadline());
        drop(held.ack());
    }
    // Not here, and not anywhere else.
    outlast(&ctx, deadline).await;
    member.nothing().await?;
    agent.close().await?;
    let other = ctx.agent().await?;
    let member = other.join(&subscription).await?;
    member.nothing().await
}

async fn every_settlement_without_a_handle_counts(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = ctx
        .subscription(&topic, "billing")
        .lease(Duration::from_secs(3600));
    let member = agent.join(&subscription).await?;
    agent.publish_all(ctx.messages(&topic, 3)).await?;
    let delay = Duration::from_secs(1);
    let mut held = member.take(3).await?.into_iter();
    let (Some(one), Some(two), Some(three)) = (held.next(), held.next(), held.next()) else {
        return Err("three were taken".into());
    };
    let nacked = one.id().to_owned();
    let delayed = two.id().to_owned();
    let rejected = three.id().to_owned();
    let start = Instant::now();
    drop(one.nack());
    drop(two.nack_after(delay));
    drop(three.reject("nobody waits for this"));
    let can = ctx.capabilities();
    let again = member.next().await?;
    equal("what came back at once", again.id(), &nacked)?;
    in_time(
        &ctx,
        "the nacked one",
        Instant::now(),
        start,
        start + can.nack_latency,
    )?;
    again.ack().await?;
    let again = member.next().await?;
    equal("what came back later", again.id(), &delayed)?;
    let due = start + delay;
    in_time(
        &ctx,
        "the delayed one",
        Instant::now(),
        due,
        due + can.delay_slack,
    )?;
    again.ack().await?;
    let letters = Topic::dead_letters(&topic, &ctx.group("billing")?);
    let clerk = agent.join(&ctx.subscription(&letters, "clerk")).await?;
    same("the dead letter", clerk.ack_all(1).await?, [rejected])?;
    member.nothing().await
}

/// A settlement that the connection did not answer: its handle is gone, the event is there.
async fn a_failure_without_a_handle_is_told(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let gate = Gate::open();
    let transport = ctx.connect_with(vec![gate.clone()]).await?;
    let agent = ctx.agent_on(transport, Default::default());
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    agent.publish(ctx.message(&topic)).await?;
    let held = member.next().await?;
    let position = held.position();
    let deadline = held.deadline();
    ctx.fault(Trouble::Plan, true);
    gate.settlements(false);
    drop(held.ack());
    lapse(&ctx, deadline + ctx.lease()).await;
    let failure = |event| match event {
        ConsumerEvent::SettlementFailed {
            position, error, ..
        } => Some((position, error)),
        _ => None,
    };
    let (at, error) = member.event_like("the failed settlement", failure).await?;
    equal("the position of the failed settlement", at, position)?;
    // It may have reached the broker, for all that anybody knows.
    equal("what the failure says", error.stored(), Stored::Unknown)?;
    gate.settlements(true);
    ctx.fault(Trouble::Plan, false);
    member.ack_all(1).await?;
    member.nothing().await
}
