//! The publish timeout (P4) and the bounds of the queue (P5).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use mas_transport_core::{ErrorKind, PublishOptions, Receipt, Result, Stored, Topic};
use tokio::time::Instant;

use super::tools::{Gate, equal, failed, ids, same, without};
use crate::agent::Agent;
use crate::ctx::Ctx;
use crate::harness::{Ability, Failure, Verdict};
use crate::history::Trouble;
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(P4, what_was_never_sent_is_refused_and_what_was_is_unknown),
    trial!(P4, waiting_for_room_counts),
    trial!(P4, a_publish_in_time_is_not_hurried),
    trial!(P4, a_deadline_in_the_past_sends_nothing),
    trial!(P4, a_frozen_broker_holds_nobody_up)
        .needs(&[Ability::Freeze])
        .own_server(),
    trial!(P5, a_full_queue_pushes_back),
    trial!(P5, bytes_are_bounded_too),
    trial!(P5, a_failed_publish_gives_its_room_back),
    trial!(P5, a_batch_larger_than_the_queue_goes_in_parts),
];

/// Longer than any trial: nothing times out.
const LONG: Duration = Duration::from_secs(24 * 3600);

fn limit(ctx: &Ctx) -> Duration {
    match ctx.timing().paused {
        true => Duration::from_secs(30),
        false => Duration::from_secs(1),
    }
}

/// An agent whose publishes come as far as the gate.
async fn gated(ctx: &Ctx, options: PublishOptions) -> Result<(Agent, Arc<Gate>)> {
    let gate = Gate::open();
    let transport = ctx.connect_with(vec![gate.clone()]).await?;
    Ok((ctx.agent_on(transport, options), gate))
}

/// A publish that has to fail by the timeout: the pump lets batches share the time of their first
/// entry, so an entry may lose a tenth of it.
async fn timed_out(
    ctx: &Ctx,
    limit: Duration,
    asked: Instant,
    outcome: impl Future<Output = Result<Receipt>>,
) -> Result<Stored, Failure> {
    let outcome = ctx.soon("the outcome of a publish", outcome).await?;
    let took = asked.elapsed();
    failed(
        "a publish that could not be confirmed",
        &outcome,
        ErrorKind::Timeout,
    )?;
    if took < limit * 9 / 10 || took > limit + ctx.timing().slack {
        return Err(format!("it timed out after {took:?}, the limit is {limit:?}").into());
    }
    Ok(outcome.err().map_or(Stored::No, |e| e.stored()))
}

async fn what_was_never_sent_is_refused_and_what_was_is_unknown(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let limit = limit(&ctx);
    let options = PublishOptions {
        publish_timeout: limit,
        ..PublishOptions::default()
    };
    let (agent, gate) = gated(&ctx, options).await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    gate.publishes(false);
    let mut pending = Vec::new();
    let mut all = Vec::new();
    // One batch each as long as there is a slot for another one in flight …
    for n in 1..=agent.transport().info().tuning.publish_in_flight {
        let message = ctx.message(&topic);
        all.push(message.id().to_owned());
        pending.push((Instant::now(), agent.enqueue(message).await?));
        ctx.soon("a batch at the gate", gate.reached(n)).await?;
    }
    // … and more that finds none.
    for message in ctx.messages(&topic, ctx.pick(1, 20)) {
        all.push(message.id().to_owned());
        pending.push((Instant::now(), agent.enqueue(message).await?));
    }
    let judged = pending
        .into_iter()
        .map(|(asked, outcome)| timed_out(&ctx, limit, asked, outcome));
    let judged = join_all(judged).await;
    let sent = gate.published();
    for (id, stored) in all.iter().zip(judged) {
        let wanted = match sent.contains(id) {
            true => Stored::Unknown,
            false => Stored::No,
        };
        equal("what a timed out publish says", stored?, wanted)?;
    }
    // On a real clock the rest is younger than what holds the slots, if only by a moment, and may be
    // sent in that moment: then it says so too.
    if ctx.timing().paused && without(&all, &sent).is_empty() {
        return Err("everything was sent: more batches were in flight than declared".into());
    }
    // Nobody is left waiting in the line: it moves as soon as the broker does.
    gate.publishes(true);
    agent.publish(ctx.message(&topic)).await?;
    member.ack_all(1).await?;
    member.nothing().await
}

async fn waiting_for_room_counts(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let limit = limit(&ctx);
    let options = PublishOptions {
        publish_timeout: limit,
        queue_messages: 1,
        ..PublishOptions::default()
    };
    let (agent, gate) = gated(&ctx, options).await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    gate.publishes(false);
    let first = agent.enqueue(ctx.message(&topic)).await?;
    ctx.soon("a batch at the gate", gate.reached(1)).await?;
    // The room comes free when the first one has timed out, and half of this one's time is gone.
    tokio::time::sleep(limit / 2).await;
    let asked = Instant::now();
    timed_out(&ctx, limit, asked, agent.publish(ctx.message(&topic))).await?;
    // Without any room the time is up just so.
    let calls = (0..ctx.pick(2, 6)).map(|_| agent.publish(ctx.message(&topic)));
    let asked = Instant::now();
    let calls = calls.map(|call| timed_out(&ctx, limit, asked, call));
    for outcome in join_all(calls).await {
        outcome?;
    }
    drop(first);
    gate.publishes(true);
    agent.publish(ctx.message(&topic)).await?;
    member.ack_all(1).await?;
    member.nothing().await
}

/// A broker that is slow, but not too slow, is waited for.
async fn a_publish_in_time_is_not_hurried(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let limit = limit(&ctx) * 4;
    let options = PublishOptions {
        publish_timeout: limit,
        ..PublishOptions::default()
    };
    let (agent, gate) = gated(&ctx, options).await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    gate.publishes(false);
    let count = ctx.pick(1, 20);
    let calls = ctx.messages(&topic, count).into_iter();
    let calls = join_all(calls.map(|m| agent.publish(m)));
    let open = async {
        gate.reached(1).await;
        tokio::time::sleep(limit / 4).await;
        gate.publishes(true);
    };
    let (outcomes, ()) = tokio::join!(calls, open);
    for outcome in outcomes {
        outcome?;
    }
    member.ack_all(count).await?;
    member.nothing().await
}

/// Of the transport itself: what comes too late to be sent is not sent.
async fn a_deadline_in_the_past_sends_nothing(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let transport = ctx.connect().await?;
    let mut member = ctx
        .join_raw(&transport, &ctx.subscription(&topic, "billing"))
        .await?;
    let batch = ctx.messages(&topic, ctx.pick(1, 10));
    let count = batch.len();
    let past = Instant::now();
    let outcomes = transport.publish(batch, past).await.await;
    equal("outcomes", outcomes.len(), count)?;
    for outcome in &outcomes {
        failed("a publish after its deadline", outcome, ErrorKind::Timeout)?;
        if outcome.as_ref().is_err_and(|e| e.stored() != Stored::No) {
            return Err(format!("nothing was sent, and yet {outcome:?}").into());
        }
    }
    member.nothing().await
}

/// The transport's own bound, below the pump's: both have to hold.
async fn a_frozen_broker_holds_nobody_up(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let limit = limit(&ctx);
    let transport = ctx.connect().await?;
    let options = PublishOptions {
        publish_timeout: limit,
        ..PublishOptions::default()
    };
    let agent = ctx.agent_on(Arc::clone(&transport), options);
    let receiver = ctx.agent().await?;
    let member = receiver
        .join(&ctx.subscription(&topic, "billing").max_attempts(100))
        .await?;
    agent.publish(ctx.message(&topic)).await?;
    member.ack_all(1).await?;
    ctx.fault(Trouble::Freeze, true);
    ctx.broker().freeze(true).await?;
    let frozen = async {
        let started = Instant::now();
        let pumped = join_all((0..3).map(|_| agent.publish(ctx.message(&topic))));
        let outcomes = ctx.soon("publishes to a frozen broker", pumped).await?;
        let took = started.elapsed();
        if took > limit + ctx.timing().slack {
            return Err(format!("a timeout of {limit:?} took {took:?}").into());
        }
        let started = Instant::now();
        let batch = ctx.messages(&topic, 3);
        for message in &batch {
            ctx.history().publishing(0, message);
        }
        let names = ids(&batch);
        let raw = transport.publish(batch, started + limit);
        let raw = ctx.soon("a batch to a frozen broker", async { raw.await.await });
        let raw = raw.await?;
        for (id, outcome) in names.into_iter().zip(&raw) {
            ctx.history().published(id, outcome);
        }
        let took = started.elapsed();
        if took > limit + ctx.timing().slack {
            return Err(format!("a deadline in {limit:?} was answered after {took:?}").into());
        }
        equal("outcomes", (outcomes.len(), raw.len()), (3, 3))?;
        if outcomes.iter().chain(&raw).any(Result::is_ok) {
            return Err("a frozen broker confirmed a message".into());
        }
        Ok::<_, Failure>(raw)
    };
    let outcome = frozen.await;
    ctx.broker().freeze(false).await?;
    ctx.fault(Trouble::Freeze, false);
    outcome?;
    // It goes on; what was unknown may come, at most once, before the last one.
    let last = ctx.message(&topic);
    let id = last.id().to_owned();
    let until = ctx.deadline();
    loop {
        match agent.publish(last.clone()).await {
            Ok(_) => break,
            Err(e) if e.stored() == Stored::No && e.is_retryable() && Instant::now() < until => {}
            Err(e) => return Err(format!("it does not go on after the freeze: {e}").into()),
        }
    }
    loop {
        let held = member.next().await?;
        let found = held.id() == id;
        drop(held.ack().await);
        if found {
            return Ok(());
        }
    }
}

/// Never more are accepted and undecided than the queue holds.
async fn a_full_queue_pushes_back(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let room = ctx.pick(1, 20);
    let options = PublishOptions {
        queue_messages: room,
        publish_timeout: LONG,
        ..PublishOptions::default()
    };
    let (agent, gate) = gated(&ctx, options).await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    gate.publishes(false);
    let mut wanted = Vec::new();
    let mut pending = Vec::new();
    for message in ctx.messages(&topic, room) {
        wanted.push(message.id().to_owned());
        let accepted = ctx.soon("room in the queue", agent.enqueue(message));
        pending.push(accepted.await??);
    }
    // One more waits, and is accepted once there is room.
    let more = ctx.message(&topic);
    wanted.push(more.id().to_owned());
    let mut more = Box::pin(agent.enqueue(more));
    ctx.never("a message accepted beyond the bound", &mut more)
        .await?;
    gate.publishes(true);
    pending.push(ctx.soon("room in the queue", more).await??);
    for pending in pending {
        ctx.soon("a receipt", pending).await??;
    }
    let got = member.ack_all(wanted.len()).await?;
    same("messages of a full queue", got, wanted)?;
    member.nothing().await
}

async fn bytes_are_bounded_too(ctx: Ctx) -> Verdict {
    const ROOM: usize = 10_000;
    let topic = ctx.topic("orders")?;
    let options = PublishOptions {
        queue_bytes: ROOM,
        publish_timeout: LONG,
        ..PublishOptions::default()
    };
    let (agent, gate) = gated(&ctx, options).await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    let sized = |bytes: usize| ctx.message(&topic).with_payload(vec![b'x'; bytes].into());
    gate.publishes(false);
    let half = ctx.soon("room in the queue", agent.enqueue(sized(6_000)));
    let half = half.await??;
    let mut more = Box::pin(agent.enqueue(sized(6_000)));
    ctx.never("a message accepted beyond the bytes", &mut more)
        .await?;
    gate.publishes(true);
    let more = ctx.soon("room in the queue", more).await??;
    // One that is larger than the whole queue goes alone.
    let large = ctx.soon("a large message", agent.publish(sized(3 * ROOM)));
    let (half, more, large) = tokio::join!(half, more, large);
    half?;
    more?;
    large??;
    member.ack_all(3).await?;
    member.nothing().await
}

async fn a_failed_publish_gives_its_room_back(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let room = ctx.pick(1, 5);
    let options = PublishOptions {
        queue_messages: room,
        queue_bytes: 5_000,
        ..PublishOptions::default()
    };
    let agent = ctx.agent_on(ctx.connect().await?, options);
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    for _ in 0..room * 4 {
        let bad = agent.publish(ctx.message(&topic).with_id(""));
        let outcome = ctx.soon("the outcome of a bad message", bad).await?;
        failed("a bad message", &outcome, ErrorKind::InvalidArgument)?;
    }
    let good = agent.publish(ctx.message(&topic));
    ctx.soon("room for a good message", good).await??;
    member.ack_all(1).await?;
    member.nothing().await
}

async fn a_batch_larger_than_the_queue_goes_in_parts(ctx: Ctx) -> Verdict {
    let topic: Topic = ctx.topic("orders")?;
    let room = ctx.pick(1, 20);
    let options = PublishOptions {
        queue_messages: room,
        publish_timeout: LONG,
        ..PublishOptions::default()
    };
    let (agent, gate) = gated(&ctx, options).await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    let batch = ctx.messages(&topic, room * 3 + ctx.pick(1, 10));
    let wanted = ids(&batch);
    gate.publishes(false);
    let most = AtomicUsize::new(0);
    let publish = async {
        let outcomes = ctx
            .soon("a large batch", agent.publish_batch(batch))
            .await?;
        outcomes.into_iter().collect::<Result<Vec<_>>>()?;
        Ok::<_, Failure>(())
    };
    let watch = async {
        gate.reached(1).await;
        // While nothing is confirmed, no more than the room can have gone out.
        tokio::time::sleep(ctx.timing().quiet.min(Duration::from_secs(5))).await;
        most.store(gate.published().len(), Ordering::Relaxed);
        gate.publishes(true);
    };
    let (published, ()) = tokio::join!(publish, watch);
    published?;
    if most.load(Ordering::Relaxed) > room {
        return Err(format!(
            "{} messages went out through a queue of {room}",
            most.load(Ordering::Relaxed)
        )
        .into());
    }
    let got = member.ack_all(wanted.len()).await?;
    same("the parts of a large batch", got, wanted)?;
    member.nothing().await
}
