//! After a close: what calls answer, and that nothing is left.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::StreamExt as _;
use mas_transport_core::{
    Consumer, ErrorKind, Event, Message, Outcome, PublishOptions, Publisher, Result, Stored, Token,
    TopicSpec, Transport, Want,
};

use super::support::{at_once, ensure, eventually, long_leased};
use crate::ctx::Ctx;
use crate::harness::{Ability, Failure, Verdict};
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(E2, a_closed_publisher_says_so),
    trial!(E2, a_closed_consumer_says_so),
    trial!(E2, settlements_after_a_close_say_so),
    trial!(E2, a_closed_transport_says_so),
    trial!(E2, sources_of_a_closed_transport_say_so),
    trial!(E2, closing_twice_is_no_error),
    trial!(E2, many_close_at_the_same_time),
    trial!(E2, callers_that_wait_for_room_are_told),
    trial!(E3, no_task_survives).once(),
    trial!(E3, dropping_everything_leaves_no_task).once(),
    trial!(E3, no_connection_survives).needs(&[Ability::Connections]),
    trial!(E3, coming_and_going_leaves_nothing).once(),
    trial!(E3, the_transport_itself_is_let_go).once(),
];

fn says_closed<T: std::fmt::Debug>(what: &str, answer: Result<T>) -> Verdict {
    match answer {
        Err(e) if e.kind() == ErrorKind::Closed && e.stored() == Stored::No => Ok(()),
        other => Err(format!("after a close {what} was answered with {other:?}").into()),
    }
}

/// Every way to publish, on the publisher and on its clones; nothing is stored.
async fn a_closed_publisher_says_so(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let (agent, other) = (ctx.agent().await?, ctx.agent().await?);
    let member = other.join(&long_leased(&ctx, &topic, "billing")).await?;
    agent.publish(ctx.message(&topic)).await?;
    let clone = agent.clone();
    agent.publisher().close(ctx.deadline()).await?;
    for agent in [agent, clone] {
        let publish = ctx.within(at_once(&ctx), "publish", agent.publish(ctx.message(&topic)));
        says_closed("publish", publish.await?)?;
        let enqueue = ctx.within(at_once(&ctx), "enqueue", agent.enqueue(ctx.message(&topic)));
        says_closed("enqueue", enqueue.await?)?;
        let batch = agent.publish_batch(ctx.messages(&topic, 3));
        let batch = ctx.within(at_once(&ctx), "publish_batch", batch).await?;
        ensure!(
            batch.len() == 3,
            "a batch of 3 has {} outcomes",
            batch.len()
        );
        for outcome in batch {
            says_closed("publish_batch", outcome)?;
        }
    }
    member.ack_all(1).await?;
    member.nothing().await
}

/// Loops end with `None`; a call after that is a mistake, and is told so.
async fn a_closed_consumer_says_so(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let start = || {
        let subscription = long_leased(&ctx, &topic, "billing");
        Consumer::start(Arc::clone(agent.transport()), subscription)
    };
    agent.publish_all(ctx.messages(&topic, 5)).await?;
    let consumer = start().await?;
    consumer.close(ctx.deadline()).await?;
    match consumer.recv().await {
        Ok(None) => {}
        other => return Err(format!("the end of a closed consumer is {other:?}").into()),
    }
    says_closed("recv", consumer.recv().await)?;
    says_closed("recv_batch", consumer.recv_batch(10).await)?;
    while let Some(event) = consumer.next_event().await {
        ctx.note(format!("{event:?}"));
    }
    ensure!(
        consumer.try_next_event().is_none(),
        "there is an event after the last one"
    );

    let consumer = start().await?;
    consumer.close(ctx.deadline()).await?;
    let batch = consumer.recv_batch(10).await?;
    ensure!(batch.is_empty(), "a closed consumer handed out {batch:?}");
    says_closed("recv_batch", consumer.recv_batch(10).await)?;

    let consumer = start().await?;
    consumer.close(ctx.deadline()).await?;
    let told: Vec<_> = consumer.stream().collect().await;
    ensure!(
        told.is_empty(),
        "the stream of a closed consumer gave {told:?}"
    );
    // Pausing and resuming bring nothing back to life.
    consumer.pause();
    consumer.resume();
    says_closed("recv after resume", consumer.recv().await)
}

async fn settlements_after_a_close_say_so(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = long_leased(&ctx, &topic, "billing");
    let member = agent.join(&subscription).await?;
    agent.publish_all(ctx.messages(&topic, 5)).await?;
    let mut held = member.take(5).await?;
    // Nothing is waited for: what is in hand is given back now.
    member.close_by(tokio::time::Instant::now()).await?;
    let pulled = || "a delivery is missing";
    says_closed("ack", held.pop().ok_or_else(pulled)?.ack().await)?;
    says_closed("nack", held.pop().ok_or_else(pulled)?.nack().await)?;
    let later = Duration::from_secs(1);
    says_closed(
        "nack_after",
        held.pop().ok_or_else(pulled)?.nack_after(later).await,
    )?;
    says_closed("reject", held.pop().ok_or_else(pulled)?.reject("x").await)?;
    let last = held.pop().ok_or_else(pulled)?;
    match last.extend().await {
        Err(e) if matches!(e.kind(), ErrorKind::Closed | ErrorKind::LeaseLost) => {}
        other => return Err(format!("extend was answered with {other:?}").into()),
    }
    ctx.within(at_once(&ctx), "the end of revoked()", last.revoked())
        .await?;
    let other = agent.join(&subscription).await?;
    for _ in 0..5 {
        let Some(held) = other.next_within(at_once(&ctx)).await? else {
            return Err("what was in hand at a close was not given back at once".into());
        };
        held.ack().await?;
    }
    other.nothing().await
}

async fn a_closed_transport_says_so(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let group = ctx.group("billing")?;
    let agent = ctx.agent().await?;
    let other = ctx.agent().await?;
    let member = other.join(&long_leased(&ctx, &topic, "billing")).await?;
    let transport = agent.transport();
    transport.close(ctx.deadline()).await?;
    for outcome in ctx
        .try_publish_raw(transport, ctx.messages(&topic, 2))
        .await
    {
        says_closed("Transport::publish", outcome)?;
    }
    says_closed("publish", agent.publish(ctx.message(&topic)).await)?;
    let subscription = ctx.subscription(&topic, "late");
    says_closed("subscribe", transport.subscribe(&subscription).await)?;
    let late = Consumer::start(Arc::clone(transport), subscription).await;
    says_closed("Consumer::start", late)?;
    let admin = transport.admin();
    says_closed(
        "declare",
        admin.declare(&TopicSpec::new(ctx.topic("new")?)).await,
    )?;
    says_closed("topics", admin.topics().await)?;
    says_closed("groups", admin.groups(&topic).await)?;
    says_closed("lag", admin.lag(&topic, &group).await)?;
    says_closed("purge", admin.purge(&topic).await)?;
    says_closed("health", admin.health().await)?;
    // It still knows what it was.
    ensure!(
        transport.info().backend == ctx.info().backend,
        "a closed transport forgot its name"
    );
    let groups = other.admin().groups(&topic).await?;
    ensure!(groups == [group], "the groups are {groups:?}");
    let topics = other.admin().topics().await?;
    ensure!(topics == [topic], "the topics are {topics:?}");
    member.nothing().await
}

/// At the level of the transport: a fetch that waits, a fetch and settlements after it.
async fn sources_of_a_closed_transport_say_so(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let transport = ctx.connect().await?;
    let mut source = transport
        .subscribe(&long_leased(&ctx, &topic, "billing"))
        .await?;
    let want = Want::new(10, 1 << 20);
    let mut out: Vec<Event> = Vec::new();
    let waiting = source.fetch.fetch(want, &mut out);
    let closing = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        transport.close(ctx.deadline()).await
    };
    let both = async { tokio::join!(waiting, closing) };
    let (fetched, closed) = ctx.soon("the end of a fetch that waits", both).await?;
    closed?;
    says_closed("a fetch that waits", fetched)?;
    ensure!(out.is_empty(), "a closed source gave {out:?}");
    for _ in 0..2 {
        let again = ctx.within(at_once(&ctx), "fetch", source.fetch.fetch(want, &mut out));
        says_closed("fetch", again.await?)?;
    }
    let token = Token {
        slot: 0,
        generation: 0,
    };
    for outcome in [
        Outcome::Ack,
        Outcome::Return,
        Outcome::Extend,
        Outcome::Begin,
    ] {
        let answers = source.settle.settle(vec![(token, outcome.clone())]);
        let answers = ctx.within(at_once(&ctx), "settle", answers).await?;
        match answers.as_slice() {
            [Err(e)] if matches!(e.kind(), ErrorKind::Closed | ErrorKind::LeaseLost) => {}
            other => return Err(format!("{outcome:?} was answered with {other:?}").into()),
        }
    }
    source.settle.close(ctx.deadline()).await?;
    Ok(())
}

async fn closing_twice_is_no_error(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    agent.publish(ctx.message(&topic)).await?;
    member.next().await?.ack().await?;
    for _ in 0..3 {
        ctx.soon("the close of a consumer", member.close())
            .await??;
    }
    for _ in 0..3 {
        ctx.soon(
            "the close of a publisher",
            agent.publisher().close(ctx.deadline()),
        )
        .await??;
    }
    for _ in 0..3 {
        ctx.soon(
            "the close of a transport",
            agent.transport().close(ctx.deadline()),
        )
        .await??;
    }
    // In the other order too.
    ctx.soon("the close of a consumer", member.close())
        .await??;
    ctx.soon(
        "the close of a publisher",
        agent.publisher().close(ctx.deadline()),
    )
    .await??;
    Ok(())
}

async fn many_close_at_the_same_time(ctx: Ctx) -> Verdict {
    let agent = ctx.agent().await?;
    let mut members = Vec::new();
    for n in 0..ctx.pick(10, 20) {
        let topic = ctx.topic(&format!("orders.{n}"))?;
        agent.publish_all(ctx.messages(&topic, 3)).await?;
        members.push(Arc::new(
            agent.join(&ctx.subscription(&topic, "billing")).await?,
        ));
    }
    let mut closing = tokio::task::JoinSet::new();
    for member in &members {
        // Each twice, and the transport beside them.
        for _ in 0..2 {
            let member = Arc::clone(member);
            closing.spawn(async move { member.close().await });
        }
    }
    for _ in 0..2 {
        let (transport, deadline) = (Arc::clone(agent.transport()), ctx.deadline());
        closing.spawn(async move { transport.close(deadline).await });
    }
    while let Some(closed) = ctx
        .soon("the end of every close", closing.join_next())
        .await?
    {
        closed??;
    }
    Ok(())
}

/// Calls that wait for room in a full queue, when it is closed.
async fn callers_that_wait_for_room_are_told(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let gate = super::tools::Gate::open();
    gate.publishes(false);
    let transport = ctx.connect_with(vec![Arc::clone(&gate) as _]).await?;
    let options = PublishOptions {
        queue_messages: 2,
        ..PublishOptions::default()
    };
    let agent = ctx.agent_on(transport, options);
    let mut accepted = Vec::new();
    for message in ctx.messages(&topic, 2) {
        accepted.push(agent.enqueue(message).await?);
    }
    let mut waiting = tokio::task::JoinSet::new();
    for message in ctx.messages(&topic, 3) {
        let agent = agent.clone();
        waiting.spawn(async move { agent.publish(message).await });
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    let closing = {
        let (publisher, deadline) = (agent.publisher().clone(), ctx.deadline());
        tokio::spawn(async move { publisher.close(deadline).await })
    };
    while let Some(told) = ctx
        .within(at_once(&ctx), "an answer", waiting.join_next())
        .await?
    {
        says_closed("a publish that waits for room", told?)?;
    }
    ensure!(
        !closing.is_finished(),
        "a publisher closed before it had sent what it had accepted"
    );
    gate.publishes(true);
    for receipt in accepted {
        receipt.await?;
    }
    closing.await??;
    let member = ctx
        .agent()
        .await?
        .join(&ctx.subscription(&topic, "billing"))
        .await?;
    member.ack_all(2).await?;
    member.nothing().await
}

fn tasks() -> usize {
    tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks()
}

/// Waits until there are no more tasks than there were: one that has been told to end may need
/// another turn.
async fn tasks_end(ctx: &Ctx, before: usize) -> Verdict {
    let gone = eventually(ctx, "the end of every task", || async {
        Ok((tasks() <= before).then_some(()))
    });
    let gone = gone.await;
    gone.map_err(|_| format!("{} tasks are left, there were {before}", tasks()).into())
}

/// A publisher and consumers at work on a connection of their own.
async fn at_work(
    ctx: &Ctx,
) -> std::result::Result<(Arc<dyn Transport>, Publisher, Vec<Consumer>), Failure> {
    let transport = ctx.connect().await?;
    let publisher = Publisher::new(Arc::clone(&transport), PublishOptions::default());
    let mut consumers = Vec::new();
    for n in 0..3 {
        let topic = ctx.topic(&format!("orders.{n}"))?;
        let subscription = long_leased(ctx, &topic, "billing");
        let consumer = Consumer::start(Arc::clone(&transport), subscription).await?;
        for m in 0..4 {
            let message = Message::assemble(topic.clone(), format!("{n}.{m}"), "x".into());
            publisher.publish(message).await?;
        }
        let delivery = ctx.soon("a delivery", consumer.recv()).await??;
        drop(delivery.ok_or("a consumer has ended")?.ack());
        consumers.push(consumer);
    }
    Ok((transport, publisher, consumers))
}

/// Everything is still referred to, and closed.
async fn no_task_survives(ctx: Ctx) -> Verdict {
    let before = tasks();
    let (transport, publisher, consumers) = at_work(&ctx).await?;
    for consumer in &consumers {
        consumer.close(ctx.deadline()).await?;
    }
    publisher.close(ctx.deadline()).await?;
    transport.close(ctx.deadline()).await?;
    tasks_end(&ctx, before).await?;
    drop((transport, publisher, consumers));
    Ok(())
}

/// Nothing is closed, everything is dropped.
async fn dropping_everything_leaves_no_task(ctx: Ctx) -> Verdict {
    let before = tasks();
    for turn in 0..3 {
        let (transport, publisher, consumers) = at_work(&ctx).await?;
        match turn {
            0 => drop((transport, publisher, consumers)),
            1 => drop((consumers, publisher, transport)),
            _ => {
                drop(transport);
                drop(consumers);
                drop(publisher);
            }
        }
        tasks_end(&ctx, before).await?;
    }
    Ok(())
}

async fn no_connection_survives(ctx: Ctx) -> Verdict {
    let before = ctx.broker().connections().await?;
    for closed in [true, false] {
        let (transport, publisher, consumers) = at_work(&ctx).await?;
        let during = ctx.broker().connections().await?;
        ensure!(
            during > before,
            "there are {during} connections at work, {before} before"
        );
        if closed {
            publisher.close(ctx.deadline()).await?;
            transport.close(ctx.deadline()).await?;
        } else {
            drop((transport, publisher, consumers));
        }
        let gone = eventually(&ctx, "the end of every connection", || async {
            let now = ctx.broker().connections().await?;
            Ok((now <= before).then_some(()))
        });
        gone.await
            .map_err(|e| format!("closed: {closed}, {during} at work: {e}"))?;
    }
    Ok(())
}

async fn coming_and_going_leaves_nothing(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let before = tasks();
    let transport = ctx.connect().await?;
    let with_transport = tasks();
    for _ in 0..20 {
        let publisher = Publisher::new(Arc::clone(&transport), PublishOptions::default());
        let subscription = long_leased(&ctx, &topic, "billing");
        let consumer = Consumer::start(Arc::clone(&transport), subscription).await?;
        publisher.publish(Message::new(&topic, "x")?).await?;
        let delivery = ctx.soon("a delivery", consumer.recv()).await??;
        delivery.ok_or("a consumer has ended")?.ack().await?;
        consumer.close(ctx.deadline()).await?;
        publisher.close(ctx.deadline()).await?;
        tasks_end(&ctx, with_transport).await?;
    }
    transport.close(ctx.deadline()).await?;
    tasks_end(&ctx, before).await
}

/// After a close nobody holds on to the transport behind the user's back.
async fn the_transport_itself_is_let_go(ctx: Ctx) -> Verdict {
    let (transport, publisher, consumers) = at_work(&ctx).await?;
    let weak: Weak<dyn Transport> = Arc::downgrade(&transport);
    for consumer in &consumers {
        consumer.close(ctx.deadline()).await?;
    }
    publisher.close(ctx.deadline()).await?;
    transport.close(ctx.deadline()).await?;
    drop((transport, publisher, consumers));
    eventually(&ctx, "the end of the transport", || async {
        Ok((weak.strong_count() == 0).then_some(()))
    })
    .await
}
