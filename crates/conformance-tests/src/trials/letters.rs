//! Dead letters: when they are written, and that nothing is lost on the way.

use std::collections::{BTreeMap, BTreeSet};

use futures::FutureExt as _;
use futures::future::select_ok;
use mas_transport_core::{Backoff, ConsumerEvent, ErrorKind, ReasonCode, Record, Stored, Topic};

use super::support::{
    ANY_MEMBER, all_settled, at_once, dead_letters, ensure, letters_of, long_leased, past_a_lease,
    quiet, same,
};
use crate::agent::Member;
use crate::ctx::Ctx;
use crate::harness::{Ability, Failure, Verdict};
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(A2, beyond_the_last_attempt_comes_the_dead_letter),
    trial!(A2, the_last_attempt_may_succeed),
    trial!(A2, lapsed_leases_use_attempts_up).when(ANY_MEMBER.0, ANY_MEMBER.1),
    trial!(A2, one_group_gives_up_alone),
    trial!(A2, a_dead_letter_that_cannot_be_written_keeps_its_original)
        .needs(&[Ability::Block])
        .when(ANY_MEMBER.0, ANY_MEMBER.1),
    trial!(A3, a_reject_is_final_and_its_letter_is_there),
    trial!(A3, rejects_stand_beside_other_settlements),
    trial!(A3, a_reject_whose_handle_is_dropped_is_one),
    trial!(A3, a_reject_on_a_later_attempt_says_so),
    trial!(A3, a_reject_that_cannot_be_written_keeps_its_original).needs(&[Ability::Block]),
];

pub(super) async fn letter_event(member: &Member) -> Result<Box<Record>, Failure> {
    let pick = |event| match event {
        ConsumerEvent::DeadLettered(record) => Some(record),
        _ => None,
    };
    member.event_like("the event of a dead letter", pick).await
}

/// A message that is nacked, put off or dropped is handed out exactly `max_attempts` times.
async fn beyond_the_last_attempt_comes_the_dead_letter(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let most = u32::try_from(ctx.pick(1, 4))?;
    let pause = ctx.lease() / 10;
    let backoff = Backoff {
        first: pause,
        most: pause,
    };
    let subscription = ctx.subscription(&topic, "billing").max_attempts(most);
    let agent = ctx.agent().await?;
    let member = agent.join(&subscription.backoff(backoff)).await?;
    let messages = ctx.messages(&topic, 6);
    let poison = messages[ctx.pick(0, 5)].clone();
    agent.publish_all(messages).await?;
    let (mut attempts, mut good) = (0, 0);
    while attempts < most || good < 5 {
        let held = member.next().await?;
        if held.id() != poison.id() {
            ensure!(
                held.attempt() == 1,
                "a good message is at attempt {}",
                held.attempt()
            );
            held.ack().await?;
            good += 1;
            continue;
        }
        attempts += 1;
        ensure!(
            held.attempt() == attempts,
            "hand-out {attempts} of {most} says that it is attempt {}",
            held.attempt()
        );
        match ctx.pick(0, 2) {
            0 => held.nack().await?,
            1 => held.nack_after(pause).await?,
            _ => drop(held),
        }
    }
    let record = letter_event(&member).await?;
    ensure!(
        record.reason.code == ReasonCode::MaxAttempts && record.attempts == most,
        "after {most} attempts the event tells of {record:?}"
    );
    let letters = dead_letters(&ctx, &agent, &topic, "billing", 1).await?;
    same(&poison, &letters[0])?;
    ensure!(
        letters[0].record() == Some(&*record),
        "the dead letter's record is {:?}, the event's is {record:?}",
        letters[0].record()
    );
    member.nothing().await?;
    all_settled(&ctx, &agent, &topic, "billing").await
}

async fn the_last_attempt_may_succeed(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let most = u32::try_from(ctx.pick(1, 4))?;
    let agent = ctx.agent().await?;
    let subscription = ctx.subscription(&topic, "billing").max_attempts(most);
    let member = agent.join(&subscription).await?;
    agent.publish(ctx.message(&topic)).await?;
    for attempt in 1..=most {
        let held = member.next().await?;
        ensure!(
            held.attempt() == attempt,
            "hand-out {attempt} of {most} says that it is attempt {}",
            held.attempt()
        );
        if attempt < most {
            held.nack().await?;
        } else {
            held.ack().await?;
        }
    }
    member.nothing().await?;
    dead_letters(&ctx, &agent, &topic, "billing", 0).await?;
    all_settled(&ctx, &agent, &topic, "billing").await
}

/// A handler that hangs past its lease has had an attempt.
async fn lapsed_leases_use_attempts_up(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx.subscription(&topic, "billing").max_attempts(2);
    let agent = ctx.agent().await?;
    let message = ctx.message(&topic);
    agent.publish(message.clone()).await?;
    let mut hung = Vec::new();
    for attempt in 1..=2 {
        let member = agent.join(&subscription).await?;
        let held = member.next().await?;
        ensure!(
            held.attempt() == attempt,
            "hand-out {attempt}, after leases that lapsed, says that it is attempt {}",
            held.attempt()
        );
        held.hang();
        hung.push(member);
    }
    let last = agent.join(&subscription).await?;
    // Also a member that hangs buries what a request brings that was under way when its lease ended.
    let any = hung.iter().chain([&last]).map(|m| letter_event(m).boxed());
    let (record, _) = select_ok(any).await?;
    ensure!(
        record.reason.code == ReasonCode::MaxAttempts && record.attempts == 2,
        "after two lapsed leases the event tells of {record:?}"
    );
    let letters = dead_letters(&ctx, &agent, &topic, "billing", 1).await?;
    same(&message, &letters[0])?;
    last.nothing().await
}

async fn one_group_gives_up_alone(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let strict = agent
        .join(&ctx.subscription(&topic, "strict").max_attempts(1))
        .await?;
    let patient = agent
        .join(&ctx.subscription(&topic, "patient").max_attempts(3))
        .await?;
    let message = ctx.message(&topic);
    agent.publish(message.clone()).await?;
    strict.next().await?.nack().await?;
    letter_event(&strict).await?;
    for attempt in 1..=2 {
        let held = patient.next().await?;
        ensure!(
            held.attempt() == attempt,
            "attempt {attempt} is {}",
            held.attempt()
        );
        same(&message, held.message())?;
        match attempt {
            1 => held.nack().await?,
            _ => held.ack().await?,
        }
    }
    strict.nothing().await?;
    dead_letters(&ctx, &agent, &topic, "patient", 0).await?;
    dead_letters(&ctx, &agent, &topic, "strict", 1).await?;
    Ok(())
}

/// The dead letter is confirmed first, the original settled second: a broker that has no room for
/// the one keeps the other, and nothing more is handed out meanwhile.
async fn a_dead_letter_that_cannot_be_written_keeps_its_original(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx.subscription(&topic, "billing").max_attempts(1);
    let agent = ctx.agent().await?;
    let message = ctx.message(&topic);
    agent.publish(message.clone()).await?;
    let hung = agent.join(&subscription).await?;
    hung.next().await?.hang();
    let letters = Topic::dead_letters(&topic, &ctx.group("billing")?);
    ctx.broker().block(&letters, true).await?;
    let member = ctx.agent().await?.join(&subscription).await?;
    let failed = member.event_like("the failure of the dead letter", |event| match event {
        ConsumerEvent::SettlementFailed { error, .. } => Some(Ok(error)),
        ConsumerEvent::DeadLettered(record) => Some(Err(record)),
        _ => None,
    });
    if let Err(record) = failed.await? {
        return Err(format!("a blocked topic is said to have taken {record:?}").into());
    }
    quiet(&member, ctx.lease()).await?;
    ctx.broker().block(&letters, false).await?;
    letter_event(&member).await?;
    let letters = dead_letters(&ctx, &agent, &topic, "billing", 1).await?;
    same(&message, &letters[0])?;
    member.nothing().await
}

/// Once a reject is confirmed the dead letter can be read, and the message never comes back.
async fn a_reject_is_final_and_its_letter_is_there(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let group = ctx.group("billing")?;
    let agent = ctx.agent().await?;
    let letters = letters_of(&topic, &group);
    let undertaker = agent
        .join(&long_leased(&ctx, &letters, "undertaker"))
        .await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    let message = ctx.message(&topic);
    agent.publish(message.clone()).await?;
    member.next().await?.reject("no such customer").await?;
    let Some(letter) = undertaker.next_within(at_once(&ctx)).await? else {
        return Err("a confirmed reject has no dead letter".into());
    };
    same(&message, letter.message())?;
    let record = letter.record().ok_or("a dead letter has no record")?;
    ensure!(
        record.reason.code == ReasonCode::Rejected
            && record.reason.text == "no such customer"
            && record.attempts == 1,
        "a reject on the first attempt left {record:?}"
    );
    letter.ack().await?;
    quiet(&member, past_a_lease(&ctx)).await?;
    quiet(&undertaker, ctx.lease() / 8).await?;
    all_settled(&ctx, &agent, &topic, "billing").await
}

/// Acks, nacks and rejects that go out together: each message has its own fate.
async fn rejects_stand_beside_other_settlements(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    let count = ctx.pick(30, 90);
    let messages = ctx.messages(&topic, count);
    agent.publish_all(messages).await?;
    let mut rejected = BTreeMap::new();
    let mut nacked = BTreeSet::new();
    let mut answers = Vec::new();
    for (n, held) in member.take(count).await?.into_iter().enumerate() {
        let message = held.message().clone();
        answers.push(match n % 3 {
            0 => held.ack(),
            1 => {
                nacked.insert(message.id().to_owned());
                held.nack()
            }
            _ => {
                let reason = format!("reason of {}", message.id());
                rejected.insert(message.id().to_owned(), message);
                held.reject(reason)
            }
        });
    }
    for answer in answers {
        answer.await?;
    }
    for held in member.take(nacked.len()).await? {
        ensure!(
            nacked.remove(held.id()),
            "{} came back, and was not nacked",
            held.id()
        );
        held.ack().await?;
    }
    let letters = dead_letters(&ctx, &agent, &topic, "billing", rejected.len()).await?;
    for letter in letters {
        let Some(message) = rejected.remove(letter.id()) else {
            return Err(format!("{} was dead-lettered, and was not rejected", letter.id()).into());
        };
        same(&message, &letter)?;
        let reason = letter.record().map(|r| r.reason.text.clone());
        ensure!(
            reason == Some(format!("reason of {}", letter.id())),
            "the reason of {} is {reason:?}",
            letter.id()
        );
    }
    member.nothing().await?;
    all_settled(&ctx, &agent, &topic, "billing").await
}

async fn a_reject_whose_handle_is_dropped_is_one(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    agent.publish(ctx.message(&topic)).await?;
    let held = member.next().await?;
    drop(held.reject("not mine"));
    letter_event(&member).await?;
    let letters = dead_letters(&ctx, &agent, &topic, "billing", 1).await?;
    let reason = letters[0].record().map(|r| r.reason.text.as_str());
    ensure!(reason == Some("not mine"), "the reason is {reason:?}");
    member.nothing().await
}

async fn a_reject_on_a_later_attempt_says_so(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = ctx.subscription(&topic, "billing").max_attempts(5);
    let member = agent.join(&subscription).await?;
    agent.publish(ctx.message(&topic)).await?;
    let attempts = u32::try_from(ctx.pick(2, 5))?;
    for _ in 1..attempts {
        member.next().await?.nack().await?;
    }
    member.next().await?.reject("x").await?;
    let letters = dead_letters(&ctx, &agent, &topic, "billing", 1).await?;
    let record = letters[0].record().ok_or("a dead letter has no record")?;
    ensure!(
        record.attempts == attempts && record.reason.code == ReasonCode::Rejected,
        "a reject on attempt {attempts} left {record:?}"
    );
    member.nothing().await
}

async fn a_reject_that_cannot_be_written_keeps_its_original(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    let message = ctx.message(&topic);
    agent.publish(message.clone()).await?;
    let held = member.next().await?;
    let letters = Topic::dead_letters(&topic, &ctx.group("billing")?);
    ctx.broker().block(&letters, true).await?;
    let answer = ctx
        .soon("the answer of a blocked topic", held.reject("x"))
        .await?;
    match &answer {
        Err(e) if e.kind() != ErrorKind::LeaseLost && e.stored() == Stored::No => {}
        other => return Err(format!("a blocked topic answers a reject with {other:?}").into()),
    }
    ctx.broker().block(&letters, false).await?;
    let held = member.next().await?;
    same(&message, held.message())?;
    held.reject("y").await?;
    let letters = dead_letters(&ctx, &agent, &topic, "billing", 1).await?;
    let reason = letters[0].record().map(|r| r.reason.text.as_str());
    ensure!(reason == Some("y"), "the reason is {reason:?}");
    member.nothing().await
}
