//! Groups: each gets everything (G1), members share (G2), come and go (G3).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use mas_transport_core::{Backoff, Message, Subscription, Topic};
use rand::Rng as _;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::tools::{equal, ids, same, share};
use crate::agent::{Agent, Held, Member};
use crate::ctx::Ctx;
use crate::harness::{Failure, Verdict};
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(G1, each_group_gets_each_message_once),
    trial!(G1, settling_in_one_group_is_nothing_to_another),
    trial!(G1, groups_of_like_names_are_apart),
    trial!(G2, members_share_without_overlap),
    trial!(G2, members_of_one_connection_share),
    trial!(G2, a_busy_member_leaves_the_rest_to_the_others),
    trial!(G2, a_message_wakes_one_idle_member),
    trial!(G3, a_closing_member_hands_its_buffer_on),
    trial!(G3, a_dropped_member_hands_its_buffer_on),
    trial!(G3, members_come_and_go_under_load),
    trial!(G3, the_last_one_out_leaves_the_group_as_it_is),
];

/// Messages without a key: where keys choose a partition, these are spread over all of them.
fn keyless(ctx: &Ctx, topic: &Topic, count: usize) -> Vec<Message> {
    let mut rng = ctx.rng();
    let make = |_| {
        let id = format!("k-{:016x}", rng.random::<u64>());
        Message::assemble(topic.clone(), id, vec![1; rng.random_range(0..50)].into())
    };
    (0..count).map(make).collect()
}

async fn each_group_gets_each_message_once(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let sender = ctx.connect().await?;
    let mut groups = Vec::new();
    for n in 0..ctx.pick(2, 4) {
        let subscription = ctx.subscription(&topic, &format!("group-{n}"));
        let mut members = Vec::new();
        for _ in 0..ctx.pick(1, 3) {
            let transport = ctx.connect().await?;
            members.push(ctx.join_raw(&transport, &subscription).await?);
        }
        groups.push(members);
    }
    let messages = ctx.messages(&topic, ctx.pick(10, 100));
    let wanted = ids(&messages);
    ctx.publish_raw(&sender, messages).await?;
    let shares = groups.into_iter().map(|m| share(&ctx, m, wanted.len()));
    for (n, shares) in try_join_all(shares).await?.into_iter().enumerate() {
        same(&format!("group {n}"), shares.concat(), wanted.clone())?;
    }
    Ok(())
}

/// One acks, one nacks, one rejects, one hangs, and a last one still gets everything.
async fn settling_in_one_group_is_nothing_to_another(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let join = |group: &str| {
        let subscription = ctx.subscription(&topic, group);
        let agent = agent.clone();
        async move { agent.join(&subscription).await }
    };
    let acks = join("acks").await?;
    let nacks = join("nacks").await?;
    let rejects = join("rejects").await?;
    let hangs = join("hangs").await?;
    let last = join("last").await?;
    let messages = ctx.messages(&topic, ctx.pick(1, 20));
    let wanted = ids(&messages);
    agent.publish_all(messages).await?;
    acks.ack_all(wanted.len()).await?;
    for held in nacks.take(wanted.len()).await? {
        held.nack().await?;
    }
    for held in rejects.take(wanted.len()).await? {
        held.reject("not for us").await?;
    }
    let hung = hangs.take(wanted.len()).await?;
    // The nacked ones come again to those who nacked them, and to nobody else.
    let again = nacks.take(wanted.len()).await?;
    if let Some(held) = again.iter().find(|h| h.attempt() != 2) {
        return Err(format!("{held:?} was nacked once").into());
    }
    same(
        "nacked messages",
        again.iter().map(|h| h.id().to_owned()),
        wanted.clone(),
    )?;
    for held in again {
        held.ack().await?;
    }
    for held in hung {
        equal("the attempt of a first delivery", held.attempt(), 1)?;
        held.ack().await?;
    }
    same("the last group", last.ack_all(wanted.len()).await?, wanted)?;
    try_join_all([&acks, &nacks, &rejects, &hangs, &last].map(|m| m.nothing())).await?;
    Ok(())
}

async fn groups_of_like_names_are_apart(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let names = [
        "billing",
        "billing-2",
        "billing_2",
        "Billing",
        "b",
        "1",
        "0",
    ];
    let mut members = Vec::new();
    for name in names {
        members.push(agent.join(&ctx.subscription(&topic, name)).await?);
    }
    let messages = ctx.messages(&topic, ctx.pick(1, 10));
    let wanted = ids(&messages);
    agent.publish_all(messages).await?;
    for (name, member) in names.iter().zip(&members) {
        same(name, member.ack_all(wanted.len()).await?, wanted.clone())?;
    }
    let mut groups = agent.admin().groups(&topic).await?;
    groups.sort();
    let mut all = names.map(|n| n.to_owned());
    all.sort();
    let groups: Vec<_> = groups.iter().map(ToString::to_string).collect();
    equal("the groups of the topic", groups, all.to_vec())?;
    try_join_all(members.iter().map(|m| m.nothing())).await?;
    Ok(())
}

async fn members_share_without_overlap(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx.subscription(&topic, "billing");
    let sender = ctx.connect().await?;
    let mut members = Vec::new();
    for _ in 0..ctx.pick(2, 5) {
        let transport = ctx.connect().await?;
        members.push(ctx.join_raw(&transport, &subscription).await?);
    }
    let messages = ctx.messages(&topic, ctx.pick(50, 200));
    let wanted = ids(&messages);
    ctx.publish_raw(&sender, messages).await?;
    let shares = share(&ctx, members, wanted.len()).await?;
    same("the members' shares", shares.concat(), wanted)
}

async fn members_of_one_connection_share(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx.subscription(&topic, "billing").member("the-same-name");
    let transport = ctx.connect().await?;
    let mut members = Vec::new();
    for _ in 0..3 {
        members.push(ctx.join_raw(&transport, &subscription).await?);
    }
    let messages = ctx.messages(&topic, ctx.pick(20, 100));
    let wanted = ids(&messages);
    ctx.publish_raw(&transport, messages).await?;
    let shares = share(&ctx, members, wanted.len()).await?;
    same("the members' shares", shares.concat(), wanted)
}

/// A window full of messages whose handlers take their time holds nobody else up.
async fn a_busy_member_leaves_the_rest_to_the_others(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let lease = Duration::from_secs(30);
    let subscription = ctx.subscription(&topic, "billing").lease(lease).prefetch(1);
    let (a, b) = (ctx.agent().await?, ctx.agent().await?);
    let members = [a.join(&subscription).await?, b.join(&subscription).await?];
    // What a busy member holds of a partition that is to move holds that up.
    tokio::time::sleep(ctx.timing().sharing).await;
    let messages = keyless(&ctx, &topic, 40);
    let wanted = ids(&messages);
    a.publish_all(messages).await?;
    // Each gets one while the other one holds one.
    let held = try_join_all(members.iter().map(Member::next)).await?;
    let mut got: Vec<_> = held.iter().map(|h| h.id().to_owned()).collect();
    for held in held {
        held.ack().await?;
    }
    let left = wanted.len() - got.len();
    let (tell, mut told) = mpsc::unbounded_channel();
    let work = |member: Member| {
        let tell = tell.clone();
        tokio::spawn(async move {
            while let Some(held) = member.recv().await? {
                let id = held.id().to_owned();
                held.ack().await?;
                let _ = tell.send(id);
            }
            Ok::<_, Failure>(())
        })
    };
    let tasks = members.map(work);
    for _ in 0..left {
        got.extend(ctx.soon("the rest", told.recv()).await?);
    }
    for task in tasks {
        task.abort();
    }
    same("what two busy members got", got, wanted)
}

async fn a_message_wakes_one_idle_member(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx.subscription(&topic, "billing");
    let agent = ctx.agent().await?;
    let mut members = Vec::new();
    for _ in 0..ctx.pick(2, 5) {
        members.push(ctx.agent().await?.join(&subscription).await?);
    }
    for _ in 0..5 {
        // Everybody waits.
        let calls = members.iter().map(|m| Box::pin(m.recv()));
        let race = futures::future::select_all(calls);
        let publish = async {
            tokio::task::yield_now().await;
            agent.publish(ctx.message(&topic)).await
        };
        let both = async { tokio::join!(race, publish) };
        let ((first, _, others), receipt) = ctx.soon("a delivery", both).await?;
        receipt?;
        let held = first?.ok_or("the consumer has ended")?;
        held.ack().await?;
        drop(others);
    }
    join_all(members.iter().map(|m| m.nothing()))
        .await
        .into_iter()
        .collect()
}

/// Joins, takes the first message and has more in its buffer.
async fn with_a_full_buffer(
    ctx: &Ctx,
    subscription: &Subscription,
    count: usize,
) -> Result<(Agent, Member, Vec<String>), Failure> {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(subscription).await?;
    let messages = ctx.messages(&topic, count);
    let all = ids(&messages);
    agent.publish_all(messages).await?;
    Ok((agent, member, all))
}

/// What was handed out is settled, the rest goes to another member at once, long before the lease
/// ends, and as if it had never been fetched.
async fn a_closing_member_hands_its_buffer_on(ctx: Ctx) -> Verdict {
    hands_on(ctx, |member: Member, ctx: Ctx| async move {
        member.close_by(ctx.deadline()).await?;
        Ok(())
    })
    .await
}

async fn a_dropped_member_hands_its_buffer_on(ctx: Ctx) -> Verdict {
    hands_on(ctx, |member: Member, _| async move {
        drop(member);
        Ok(())
    })
    .await
}

async fn hands_on<F>(ctx: Ctx, leave: impl FnOnce(Member, Ctx) -> F) -> Verdict
where
    F: Future<Output = Verdict>,
{
    let topic = ctx.topic("orders")?;
    let subscription = ctx
        .subscription(&topic, "billing")
        .lease(Duration::from_secs(3600));
    let count = ctx.pick(5, 80);
    let (_agent, member, all) = with_a_full_buffer(&ctx, &subscription, count).await?;
    let some = ctx.pick(1, count - 1);
    let mut got = member.ack_all(some).await?;
    let left = Instant::now();
    leave(member, ctx.clone()).await?;
    let other = ctx.agent().await?;
    let member = other.join(&subscription).await?;
    for held in member.take(count - some).await? {
        equal(
            "the attempt of a message never handed out",
            held.attempt(),
            1,
        )?;
        got.push(held.id().to_owned());
        held.ack().await?;
    }
    let took = left.elapsed();
    let most = ctx.capabilities().nack_latency + ctx.timing().slack;
    if took > most {
        return Err(
            format!("the buffer was handed on after {took:?}, allowed are {most:?}").into(),
        );
    }
    same("what two members got", got, all)?;
    member.nothing().await
}

/// Members join, work for a while and leave in every way, while messages keep coming.
async fn members_come_and_go_under_load(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let count = match ctx.timing().paused {
        true => ctx.pick(100, 400),
        false => 200,
    };
    let subscription = ctx
        .subscription(&topic, "billing")
        .max_attempts(100)
        .prefetch(ctx.pick(1, 40))
        .backoff(Backoff {
            first: ctx.lease() / 20,
            most: ctx.lease() / 10,
        });
    let acked = Arc::new(AtomicUsize::new(0));
    // A group that is there before the first message.
    ctx.agent()
        .await?
        .join(&subscription)
        .await?
        .close()
        .await?;
    let load = {
        let (ctx, topic) = (ctx.clone(), topic.clone());
        tokio::spawn(async move {
            let sender = ctx.agent().await?;
            let messages = ctx.messages(&topic, count);
            for some in messages.chunks(count / 20) {
                sender.publish_all(some.to_vec()).await?;
                tokio::time::sleep(ctx.lease() / 20).await;
            }
            Ok::<_, Failure>(())
        })
    };
    let (tell, mut told) = mpsc::unbounded_channel();
    let visitor = |number: u64| {
        let (ctx, subscription, tell) = (ctx.clone(), subscription.clone(), tell.clone());
        let acked = Arc::clone(&acked);
        async move {
            let mut rng = ctx.rng();
            while acked.load(Ordering::Relaxed) < count {
                let agent = ctx.agent().await?;
                let member = agent.join(&subscription).await?;
                // Where visits are shorter than it takes to share, nobody ever gets anything: with the one
                // who comes and the one who leaves that is twice.
                let longest = ctx.lease() + 2 * ctx.timing().sharing;
                let visit = Duration::from_millis(rng.random_range(1..=longest.as_millis() as u64));
                let end = Instant::now() + visit;
                // Not for as long as handlers that hang.
                let hold = ctx.lease() / 2;
                let mut in_hand: Vec<(Instant, Held)> = Vec::new();
                loop {
                    let let_go = in_hand.first().map_or(end, |(since, _)| *since + hold);
                    let next = tokio::time::timeout_at(end.min(let_go), member.recv());
                    let Ok(next) = next.await else {
                        if Instant::now() >= end {
                            break;
                        }
                        in_hand.retain(|(since, _)| since.elapsed() < hold);
                        continue;
                    };
                    let held = next?.ok_or("the consumer has ended")?;
                    if rng.random_ratio(1, 6) {
                        in_hand.push((Instant::now(), held));
                        continue;
                    }
                    if held.ack().await.is_ok() {
                        acked.fetch_add(1, Ordering::Relaxed);
                        let _ = tell.send(());
                    }
                }
                // Some leave with a word, some with messages in their hands, some hang up.
                match rng.random_range(0..3) {
                    0 => {
                        drop(in_hand);
                        member.close().await?;
                    }
                    1 => {
                        drop(member);
                        drop(in_hand);
                    }
                    _ => {
                        drop(in_hand);
                        agent.transport().close(ctx.deadline()).await?;
                    }
                }
            }
            Ok::<_, Failure>(number)
        }
    };
    let visitors = try_join_all((0..3).map(visitor));
    let all = async {
        for _ in 0..count {
            told.recv().await;
        }
    };
    // The visitors end by themselves once everything is acked.
    let limit = ctx.timing().patience + ctx.timing().slower;
    let (visitors, ()) = ctx
        .within(limit, "the last ack", async { tokio::join!(visitors, all) })
        .await?;
    visitors?;
    load.await??;
    let member = ctx.agent().await?.join(&subscription).await?;
    member.nothing().await
}

async fn the_last_one_out_leaves_the_group_as_it_is(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx
        .subscription(&topic, "billing")
        .lease(Duration::from_secs(3600));
    let count = ctx.pick(3, 50);
    let (agent, member, all) = with_a_full_buffer(&ctx, &subscription, count).await?;
    let mut got = BTreeSet::new();
    got.extend(member.ack_all(1).await?);
    // One is nacked for later, the rest is in the buffer, and the whole connection goes.
    let delay = Duration::from_secs(2);
    let nacked = member.next().await?;
    let late = nacked.id().to_owned();
    nacked.nack_after(delay).await?;
    agent.close().await?;
    drop(member);
    let more = ctx.agent().await?;
    let messages = ctx.messages(&topic, ctx.pick(1, 10));
    let mut wanted = all;
    wanted.extend(ids(&messages));
    more.publish_all(messages).await?;
    let member = more.join(&subscription).await?;
    while got.len() < wanted.len() {
        let held = member.next().await?;
        let attempt = if held.id() == late { 2 } else { 1 };
        equal(
            "the attempt of a message that was left",
            held.attempt(),
            attempt,
        )?;
        if !got.insert(held.id().to_owned()) {
            return Err(format!("{held:?} came again").into());
        }
        held.ack().await?;
    }
    same("what was left", got, wanted)?;
    member.nothing().await
}
