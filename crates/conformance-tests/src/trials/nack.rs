//! What comes back: soon (N1), later (N2), with backoff (N3).

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::try_join_all;
use mas_transport_core::{Backoff, ErrorKind};
use rand::Rng as _;
use rand::seq::SliceRandom as _;
use tokio::time::Instant;

use super::lease::pair;
use super::tools::{either, equal, ids, in_time, same};
use crate::ctx::Ctx;
use crate::harness::{Failure, Verdict};
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(N1, a_nacked_message_comes_at_once_to_an_idle_member),
    trial!(N1, only_what_was_nacked_comes_back),
    trial!(N1, a_nack_is_seen_behind_new_messages),
    trial!(N1, a_nack_does_not_wait_for_the_backlog),
    trial!(N1, a_nack_is_seen_by_whoever_comes_next),
    trial!(N2, each_delay_is_kept),
    trial!(N2, a_delay_outlives_its_member_and_its_lease),
    trial!(N2, others_flow_while_one_waits),
    trial!(N2, a_delay_beyond_reckoning_is_taken_or_refused),
    trial!(N3, dropped_messages_wait_longer_and_longer),
    trial!(N3, an_aborted_handler_is_a_drop),
    trial!(N3, a_failing_handler_does_not_spin),
];

/// Far beyond what a nack may take: a message that comes back only when its lease ends is late.
const LONG: Duration = Duration::from_secs(600);

async fn a_nacked_message_comes_at_once_to_an_idle_member(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx
        .subscription(&topic, "billing")
        .lease(LONG)
        .max_attempts(100);
    let (mut a, mut b) = pair(&ctx, &subscription).await?;
    let sender = ctx.connect().await?;
    ctx.publish_raw(&sender, ctx.messages(&topic, 1)).await?;
    let (mut who, mut delivery) = either(&ctx, &mut a, &mut b).await?;
    for attempt in 1..ctx.pick(3, 8) as u32 {
        equal("the attempt", delivery.attempt, attempt)?;
        let start = Instant::now();
        let holder = if who == 0 { &mut a } else { &mut b };
        holder.nack(&delivery, Duration::ZERO).await?;
        let again = either(&ctx, &mut a, &mut b).await?;
        let latest = start + ctx.capabilities().nack_latency;
        in_time(&ctx, "a nacked message", Instant::now(), start, latest)?;
        equal("the message", again.1.message.id(), delivery.message.id())?;
        (who, delivery) = again;
    }
    let holder = if who == 0 { &mut a } else { &mut b };
    holder.ack(&delivery).await?;
    holder.nothing().await
}

/// The neighbours of a nacked message, held or settled, stay as they are.
async fn only_what_was_nacked_comes_back(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = ctx.subscription(&topic, "billing").lease(LONG);
    let member = agent.join(&subscription).await?;
    let messages = ctx.messages(&topic, ctx.pick(5, 60));
    let count = messages.len();
    agent.publish_all(messages).await?;
    let mut held = member.take(count).await?;
    held.shuffle(&mut ctx.rng());
    let nacked = ctx.pick(1, count - 1);
    let mut wanted = Vec::new();
    let mut answers = Vec::new();
    for held in held.drain(..nacked) {
        wanted.push(held.id().to_owned());
        answers.push(held.nack());
    }
    let start = Instant::now();
    for answer in answers {
        answer.await?;
    }
    let again = member.take(nacked).await?;
    let latest = start + ctx.capabilities().nack_latency;
    in_time(
        &ctx,
        "the last nacked message",
        Instant::now(),
        start,
        latest,
    )?;
    same(
        "nacked messages",
        again.iter().map(|held| held.id().to_owned()),
        wanted,
    )?;
    member.nothing().await?;
    for held in held.into_iter().chain(again) {
        held.ack().await?;
    }
    member.nothing().await
}

/// Later messages may overtake it, but not for long.
async fn a_nack_is_seen_behind_new_messages(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx.subscription(&topic, "billing").lease(LONG).prefetch(5);
    let agent = ctx.agent().await?;
    let member = agent.join(&subscription).await?;
    let first = ctx.message(&topic);
    let id = first.id().to_owned();
    agent.publish(first).await?;
    let held = member.next().await?;
    let load = {
        let (ctx, topic) = (ctx.clone(), topic.clone());
        async move {
            let sender = ctx.agent().await?;
            // For ever, as far as the nacked message is concerned.
            loop {
                sender.publish_all(ctx.messages(&topic, 5)).await?;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            #[expect(unreachable_code, reason = "it names the error")]
            Ok::<(), Failure>(())
        }
    };
    let start = Instant::now();
    held.nack().await?;
    let work = async {
        loop {
            let held = member.next().await?;
            let found = held.id() == id;
            held.ack().await?;
            if found {
                return Ok::<_, Failure>(Instant::now());
            }
        }
    };
    let came = tokio::select! {
        came = work => came?,
        ended = load => return ended,
    };
    let latest = start + ctx.capabilities().nack_latency;
    in_time(&ctx, "a nacked message under load", came, start, latest)
}

/// A member that always finds new messages in its buffer sees the nacked one in time all the same.
async fn a_nack_does_not_wait_for_the_backlog(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let pace = Duration::from_millis(5);
    let bound = ctx.capabilities().nack_latency + ctx.timing().slack;
    let count = usize::try_from(bound.as_millis() / pace.as_millis())? + 200;
    let agent = ctx.agent().await?;
    agent.publish_all(ctx.messages(&topic, count)).await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    let first = member.next().await?;
    let id = first.id().to_owned();
    first.nack().await?;
    let nacked = Instant::now();
    let mut before = 0;
    loop {
        let held = member.next().await?;
        if held.id() == id {
            held.ack().await?;
            break;
        }
        held.ack().await?;
        before += 1;
        if nacked.elapsed() > bound {
            let waits = format!("after {bound:?} a nack still waits behind {before} new messages");
            return Err(waits.into());
        }
        tokio::time::sleep(pace).await;
    }
    member.ack_all(count - 1 - before).await?;
    Ok(())
}

async fn a_nack_is_seen_by_whoever_comes_next(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx.subscription(&topic, "billing").lease(LONG);
    let agent = ctx.agent().await?;
    let member = agent.join(&subscription).await?;
    let messages = ctx.messages(&topic, ctx.pick(1, 20));
    let wanted = ids(&messages);
    agent.publish_all(messages).await?;
    for held in member.take(wanted.len()).await? {
        held.nack().await?;
    }
    agent.close().await?;
    let other = ctx.agent().await?;
    let start = Instant::now();
    let member = other.join(&subscription).await?;
    let mut got = Vec::new();
    for _ in 0..wanted.len() {
        let held = member.next().await?;
        equal("the attempt of a nacked message", held.attempt(), 2)?;
        got.push(held.id().to_owned());
        held.ack().await?;
    }
    let latest = start + ctx.capabilities().nack_latency;
    in_time(
        &ctx,
        "the last nacked message",
        Instant::now(),
        start,
        latest,
    )?;
    same("nacked messages", got, wanted)?;
    member.nothing().await
}

/// Many delays at once, below and above the lease: none early, none late.
async fn each_delay_is_kept(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx.subscription(&topic, "billing");
    let (mut a, mut b) = pair(&ctx, &subscription).await?;
    let sender = ctx.connect().await?;
    let count = ctx.pick(1, 30);
    ctx.publish_raw(&sender, ctx.messages(&topic, count))
        .await?;
    let mut rng = ctx.rng();
    let most = ctx.lease().as_millis() as u64 * 3;
    let mut due = BTreeMap::new();
    for _ in 0..count {
        let (who, delivery) = either(&ctx, &mut a, &mut b).await?;
        let delay = Duration::from_millis(rng.random_range(1..=most));
        let holder = if who == 0 { &mut a } else { &mut b };
        // From the call on: the broker counts from when it has it.
        let from = Instant::now() + delay;
        holder.nack(&delivery, delay).await?;
        let until = Instant::now() + delay + ctx.capabilities().delay_slack;
        due.insert(delivery.message.id().to_owned(), (from, until, delay));
        // Those that are due already come in between.
        let next = due.values().map(|(from, ..)| *from).min();
        if next.is_some_and(|next| next < Instant::now() + Duration::from_millis(20)) {
            break;
        }
    }
    // What was not nacked yet comes too: held apart from what comes back by its attempt.
    let mut fresh = Vec::new();
    while !due.is_empty() {
        let (who, delivery) = either(&ctx, &mut a, &mut b).await?;
        let now = Instant::now();
        let holder = if who == 0 { &mut a } else { &mut b };
        match due.remove(delivery.message.id()) {
            Some((from, until, delay)) => {
                let what = format!("a message nacked for {delay:?}");
                in_time(&ctx, &what, now, from, until)?;
                equal("the attempt after a delay", delivery.attempt, 2)?;
            }
            None => fresh.push(delivery.message.id().to_owned()),
        }
        holder.ack(&delivery).await?;
    }
    Ok(())
}

/// Its member leaves, its connection too; the delay is several leases long.
async fn a_delay_outlives_its_member_and_its_lease(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx.subscription(&topic, "billing");
    let agent = ctx.agent().await?;
    let member = agent.join(&subscription).await?;
    agent.publish(ctx.message(&topic)).await?;
    let delay = ctx.lease() * 2 + ctx.lease() / 2;
    let held = member.next().await?;
    let from = Instant::now() + delay;
    held.nack_after(delay).await?;
    let until = Instant::now() + delay + ctx.capabilities().delay_slack;
    member.close().await?;
    agent.close().await?;
    let other = ctx.agent().await?;
    let member = other.join(&subscription).await?;
    let again = member.next().await?;
    in_time(
        &ctx,
        "a message nacked for long",
        Instant::now(),
        from,
        until,
    )?;
    equal("the attempt after a delay", again.attempt(), 2)?;
    again.ack().await?;
    member.nothing().await
}

async fn others_flow_while_one_waits(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = ctx.subscription(&topic, "billing").prefetch(1);
    let member = agent.join(&subscription).await?;
    let first = ctx.message(&topic);
    let id = first.id().to_owned();
    agent.publish(first).await?;
    let delay = ctx.lease() * 3;
    let held = member.next().await?;
    let due = Instant::now() + delay;
    held.nack_after(delay).await?;
    let messages = ctx.messages(&topic, ctx.pick(10, 60));
    let wanted = ids(&messages);
    agent.publish_all(messages).await?;
    let got = member.ack_all(wanted.len()).await?;
    same("what came while one waited", got, wanted)?;
    if Instant::now() > due {
        return Err("the others waited for the one that was delayed".into());
    }
    same("the one that waited", member.ack_all(1).await?, [id])?;
    member.nothing().await
}

/// No wait is so long that it ends at once, or takes the consumer along.
async fn a_delay_beyond_reckoning_is_taken_or_refused(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    let delays = [
        Duration::from_secs(100 * 365 * 24 * 3600),
        Duration::from_secs(u64::from(u32::MAX) * 1000),
        Duration::from_secs(u64::MAX),
        Duration::MAX,
    ];
    agent
        .publish_all(ctx.messages(&topic, delays.len()))
        .await?;
    let held = member.take(delays.len()).await?;
    for (held, delay) in held.into_iter().zip(delays) {
        match held.nack_after(delay).await {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::InvalidArgument => {}
            Err(e) => return Err(format!("a nack for {delay:?}: {e}").into()),
        }
    }
    member.nothing().await?;
    // It still works.
    agent.publish(ctx.message(&topic)).await?;
    member.ack_all(1).await?;
    Ok(())
}

fn backoff(ctx: &Ctx) -> Backoff {
    match ctx.timing().paused {
        true => Backoff::default(),
        false => Backoff {
            first: Duration::from_millis(300),
            most: Duration::from_millis(900),
        },
    }
}

/// As the subscription's backoff says, attempt after attempt, up to its limit.
async fn dropped_messages_wait_longer_and_longer(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let backoff = backoff(&ctx);
    let subscription = ctx
        .subscription(&topic, "billing")
        .lease(LONG)
        .max_attempts(100)
        .backoff(backoff);
    let member = agent.join(&subscription).await?;
    agent.publish(ctx.message(&topic)).await?;
    let rounds = match ctx.timing().paused {
        // Far enough for the limit of 5 min.
        true => 12,
        false => 4,
    };
    let mut held = member.next().await?;
    for attempt in 1..rounds {
        equal("the attempt", held.attempt(), attempt)?;
        let wait = backoff.after(attempt);
        let from = Instant::now() + wait;
        drop(held);
        held = member.next().await?;
        let until = from + ctx.capabilities().delay_slack;
        let what = format!("the message dropped in attempt {attempt}");
        in_time(&ctx, &what, Instant::now(), from, until)?;
    }
    held.ack().await?;
    member.nothing().await
}

/// A handler that is cancelled drops what it has, batch and all.
async fn an_aborted_handler_is_a_drop(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let backoff = backoff(&ctx);
    let subscription = ctx
        .subscription(&topic, "billing")
        .lease(LONG)
        .backoff(backoff);
    let member = agent.join(&subscription).await?;
    let messages = ctx.messages(&topic, ctx.pick(1, 20));
    let wanted = ids(&messages);
    agent.publish_all(messages).await?;
    let batch = member.take(wanted.len()).await?;
    let handler = tokio::spawn(async move {
        std::future::pending::<()>().await;
        drop(batch);
    });
    tokio::task::yield_now().await;
    let from = Instant::now() + backoff.after(1);
    handler.abort();
    let mut got = Vec::new();
    for _ in 0..wanted.len() {
        let held = member.next().await?;
        let until = from + ctx.capabilities().delay_slack;
        in_time(
            &ctx,
            "what an aborted handler had",
            Instant::now(),
            from,
            until,
        )?;
        equal("the attempt after a drop", held.attempt(), 2)?;
        got.push(held.id().to_owned());
        held.ack().await?;
    }
    same("what an aborted handler had", got, wanted)?;
    member.nothing().await
}

/// Every delivery is dropped at once; in so much time only so many hand-outs fit.
async fn a_failing_handler_does_not_spin(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let backoff = backoff(&ctx);
    let subscription = ctx
        .subscription(&topic, "billing")
        .lease(LONG)
        .max_attempts(1000)
        .backoff(backoff);
    let agents = try_join_all((0..2).map(|_| ctx.agent())).await?;
    let members = try_join_all(agents.iter().map(|a| a.join(&subscription))).await?;
    let count = ctx.pick(1, 10);
    agents[0].publish_all(ctx.messages(&topic, count)).await?;
    let watched = backoff.first * 8;
    let mut most = 0;
    let mut passed = Duration::ZERO;
    for attempt in 1.. {
        // This attempt begins within the time that is watched.
        most += count;
        passed += backoff.after(attempt);
        if passed > watched {
            break;
        }
    }
    let fail = members.iter().map(|member| async move {
        let mut seen = 0;
        while member.recv().await?.is_some() {
            seen += 1;
            if seen > 10_000 {
                break;
            }
        }
        Ok::<_, Failure>(())
    });
    let before = deliveries(&ctx);
    let _ = tokio::time::timeout(watched, try_join_all(fail)).await;
    let seen = deliveries(&ctx) - before;
    if seen < count || seen > most {
        return Err(format!("{count} failing messages were handed out {seen} times in {watched:?}, at most {most} are right").into());
    }
    Ok(())
}

fn deliveries(ctx: &Ctx) -> usize {
    let entries = ctx.history().entries();
    let delivered =
        |e: &&crate::history::Entry| matches!(e.what, crate::history::Happened::Delivered { .. });
    entries.iter().filter(delivered).count()
}
