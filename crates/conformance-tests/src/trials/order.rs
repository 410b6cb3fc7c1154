//! Order among the messages of a key.

use std::collections::BTreeMap;
use std::sync::Arc;

use mas_transport_core::{ErrorKind, Message, PublishOptions, Topic};

use super::support::{ensure, long_leased};
use crate::agent::Held;
use crate::ctx::Ctx;
use crate::harness::{Failure, Verdict};
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(O1, a_window_of_enqueued_messages),
    trial!(O1, at_a_distance).once(),
    trial!(O1, batches_and_single_messages_in_turns),
    trial!(O1, many_publishers_on_one_line),
    trial!(O1, a_backlog_from_before_the_member_came),
    trial!(O1, beside_nacked_messages),
    trial!(O1, each_member_sees_its_share_in_order),
    trial!(O1, a_refused_message_does_not_disturb_the_others),
    trial!(O1, with_a_queue_of_one),
];

/// Message `n` of a key, told by its id.
fn numbered(topic: &Topic, key: &str, n: usize, size: usize) -> Message {
    let payload = vec![b'x'; size];
    Message::assemble(topic.clone(), format!("{key}:{n}"), payload.into()).key(key)
}

/// Checks that numbers of a key only grow.
#[derive(Debug, Default)]
struct Sequence(BTreeMap<String, usize>);

impl Sequence {
    fn next(&mut self, held: &Held) -> Verdict {
        let key = held.get_key().unwrap_or_default().to_owned();
        let number = held.id().rsplit(':').next().unwrap_or_default();
        let number: usize = number.parse()?;
        if let Some(before) = self.0.insert(key.clone(), number) {
            ensure!(
                number > before,
                "of key {key}, message {number} was delivered after message {before}"
            );
        }
        Ok(())
    }

    /// As [`Sequence::next`], without a gap.
    fn exactly_next(&mut self, held: &Held) -> Verdict {
        let key = held.get_key().unwrap_or_default().to_owned();
        let before = self.0.get(&key).copied();
        self.next(held)?;
        let (now, due) = (self.0.get(&key).copied(), before.map_or(0, |n| n + 1));
        ensure!(
            now == Some(due),
            "of key {key}, {now:?} was delivered where {due} was due"
        );
        Ok(())
    }
}

/// Publishes `count` messages over `keys` keys without waiting for receipts.
async fn enqueue(
    ctx: &Ctx,
    agent: &crate::Agent,
    topic: &Topic,
    keys: usize,
    count: usize,
) -> Verdict {
    let mut numbers = vec![0; keys];
    let mut pending = Vec::new();
    for _ in 0..count {
        let key = ctx.pick(0, keys - 1);
        let size = ctx.pick(0, 300);
        let message = numbered(topic, &format!("k{key}"), numbers[key], size);
        numbers[key] += 1;
        pending.push(agent.enqueue(message).await?);
    }
    for receipt in pending {
        receipt.await?;
    }
    Ok(())
}

async fn in_order(member: &crate::Member, count: usize) -> Verdict {
    let mut sequence = Sequence::default();
    for _ in 0..count {
        let held = member.next().await?;
        sequence.exactly_next(&held)?;
        held.ack().await?;
    }
    member.nothing().await
}

async fn a_window_of_enqueued_messages(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    let count = ctx.pick(200, 400);
    enqueue(&ctx, &agent, &topic, ctx.pick(1, 5), count).await?;
    in_order(&member, count).await
}

/// Far more than fit one batch, one window and one prefetch: also the ends are in order.
async fn at_a_distance(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = long_leased(&ctx, &topic, "billing").prefetch(300);
    let member = agent.join(&subscription).await?;
    let count = 6000;
    let sending = enqueue(&ctx, &agent, &topic, 3, count);
    let receiving = async {
        let mut sequence = Sequence::default();
        let mut got = 0;
        while got < count {
            let batch = ctx.soon("a batch", member.recv_batch(64)).await??;
            got += batch.len();
            let mut answers = Vec::new();
            for held in batch {
                sequence.exactly_next(&held)?;
                answers.push(held.ack());
            }
            for answer in answers {
                answer.await?;
            }
        }
        Ok::<_, Failure>(())
    };
    tokio::try_join!(sending, receiving)?;
    Ok(())
}

/// The order of calls is the order of messages, whichever call it is.
async fn batches_and_single_messages_in_turns(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    let mut count = 0;
    let mut pending = Vec::new();
    for _ in 0..12 {
        match ctx.pick(0, 2) {
            0 => {
                let size = ctx.pick(2, 40);
                let batch = (0..size).map(|n| numbered(&topic, "k", count + n, 20));
                agent.publish_all(batch.collect()).await?;
                count += size;
            }
            1 => {
                agent.publish(numbered(&topic, "k", count, 2000)).await?;
                count += 1;
            }
            _ => {
                for _ in 0..ctx.pick(1, 20) {
                    pending.push(agent.enqueue(numbered(&topic, "k", count, 0)).await?);
                    count += 1;
                }
            }
        }
    }
    for receipt in pending {
        receipt.await?;
    }
    in_order(&member, count).await
}

/// Tasks that publish side by side through one line, each with a key of its own.
async fn many_publishers_on_one_line(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    let (tasks, each) = (ctx.pick(5, 20), 20);
    let mut work = tokio::task::JoinSet::new();
    for task in 0..tasks {
        let (agent, topic) = (agent.clone(), topic.clone());
        work.spawn(async move {
            for n in 0..each {
                agent
                    .publish(numbered(&topic, &format!("k{task}"), n, 10))
                    .await?;
            }
            Ok::<_, mas_transport_core::Error>(())
        });
    }
    while let Some(done) = work.join_next().await {
        done??;
    }
    in_order(&member, tasks * each).await
}

async fn a_backlog_from_before_the_member_came(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let count = ctx.pick(100, 300);
    enqueue(&ctx, &agent, &topic, 2, count).await?;
    let subscription = long_leased(&ctx, &topic, "billing").prefetch(ctx.pick(1, 50));
    let member = ctx.agent().await?.join(&subscription).await?;
    in_order(&member, count).await
}

/// Redeliveries come when they come; what is delivered for the first time stays in order.
async fn beside_nacked_messages(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    let count = ctx.pick(50, 150);
    enqueue(&ctx, &agent, &topic, 2, count).await?;
    let mut sequence = Sequence::default();
    let mut acked = 0;
    while acked < count {
        let held = member.next().await?;
        if held.attempt() == 1 {
            sequence.exactly_next(&held)?;
            if ctx.pick(0, 4) == 0 {
                held.nack().await?;
                continue;
            }
        }
        held.ack().await?;
        acked += 1;
    }
    member.nothing().await
}

/// Across members nothing is promised; what one member gets of a key is in order.
async fn each_member_sees_its_share_in_order(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let count = ctx.pick(100, 300);
    let subscription = long_leased(&ctx, &topic, "billing").prefetch(10);
    let mut members = tokio::task::JoinSet::new();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let mut agents = Vec::new();
    for _ in 0..3 {
        let agent = ctx.agent().await?;
        let member = Arc::new(agent.join(&subscription).await?);
        let tell = tell.clone();
        agents.push((agent, Arc::clone(&member)));
        members.spawn(async move {
            let mut sequence = Sequence::default();
            while let Some(held) = member.recv().await? {
                sequence.next(&held)?;
                held.ack().await?;
                let _ = tell.send(());
            }
            Ok::<_, Failure>(())
        });
    }
    drop(tell);
    let agent = ctx.agent().await?;
    enqueue(&ctx, &agent, &topic, 3, count).await?;
    for n in 0..count {
        let more = ctx.soon("another message", told.recv()).await?;
        ensure!(more.is_some(), "the members ended after {n} of {count}");
    }
    for (_, member) in &agents {
        member.close().await?;
    }
    while let Some(done) = members.join_next().await {
        done??;
    }
    Ok(())
}

/// A message that breaks a rule fails alone, wherever it stands.
async fn a_refused_message_does_not_disturb_the_others(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    let count = ctx.pick(40, 80);
    let mut batch: Vec<_> = (0..count).map(|n| numbered(&topic, "k", n, 30)).collect();
    let mut bad = Vec::new();
    for _ in 0..3 {
        let at = ctx.pick(0, batch.len());
        let message = Message::assemble(topic.clone(), format!("bad {at}"), Default::default());
        bad.push(message.id().to_owned());
        batch.insert(at, message.key("other").header("Not Allowed", "v"));
    }
    let ids: Vec<_> = batch.iter().map(|m| m.id().to_owned()).collect();
    for (id, outcome) in ids.iter().zip(agent.publish_batch(batch).await) {
        match outcome {
            Ok(_) if !bad.contains(id) => {}
            Err(e) if bad.contains(id) && e.kind() == ErrorKind::InvalidArgument => {}
            other => return Err(format!("{id} was answered with {other:?}").into()),
        }
    }
    in_order(&member, count).await
}

/// The tightest queue there is: calls wait for room, in turn.
async fn with_a_queue_of_one(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let options = PublishOptions {
        queue_messages: 1,
        queue_bytes: 1,
        ..PublishOptions::default()
    };
    let agent = ctx.agent_on(ctx.connect().await?, options);
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    let count = ctx.pick(30, 60);
    for n in 0..count {
        drop(agent.enqueue(numbered(&topic, "k", n, 10)).await?);
    }
    in_order(&member, count).await
}
