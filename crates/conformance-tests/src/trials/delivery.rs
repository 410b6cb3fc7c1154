//! At least once (D1), and where a group starts (D2).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::future::try_join_all;
use mas_transport_core::{Backoff, StartFrom, Transport};
use rand::Rng as _;
use rand::seq::SliceRandom as _;

use super::tools::{equal, ids, lapse, same, share};
use crate::ctx::Ctx;
use crate::harness::{Failure, Verdict};
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(D1, what_is_not_settled_comes_until_it_is),
    trial!(D1, a_group_without_members_misses_nothing),
    trial!(D1, whatever_handlers_do_everything_is_acked_in_the_end),
    trial!(D1, two_hundred_topics_at_once).once(),
    trial!(D1, a_small_window_starves_nothing),
    trial!(D2, a_new_group_starts_with_the_oldest),
    trial!(D2, a_group_from_latest_sees_only_what_comes_after),
    trial!(D2, an_existing_group_goes_on_where_it_was),
    trial!(D2, a_group_from_latest_stays_where_it_began),
    trial!(D2, nothing_after_subscribe_is_missed_under_load),
    trial!(D2, two_members_make_one_group_at_once),
];

/// Lease after lease, until one ack is confirmed.
async fn what_is_not_settled_comes_until_it_is(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let transport = ctx.connect().await?;
    let mut member = ctx
        .join_raw(
            &transport,
            &ctx.subscription(&topic, "billing").max_attempts(100),
        )
        .await?;
    ctx.publish_raw(&transport, ctx.messages(&topic, 1)).await?;
    let rounds = match ctx.timing().paused {
        true => ctx.pick(2, 6),
        false => 2,
    };
    for _ in 0..rounds {
        let delivery = member.next().await?;
        lapse(&ctx, delivery.deadline).await;
    }
    let delivery = member.next().await?;
    member.ack(&delivery).await?;
    lapse(&ctx, delivery.deadline).await;
    member.nothing().await
}

async fn a_group_without_members_misses_nothing(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx.subscription(&topic, "billing");
    let sender = ctx.agent().await?;
    let mut wanted = Vec::new();
    let mut got = Vec::new();
    // The group begins with its first member, and goes on without any.
    ctx.agent()
        .await?
        .join(&subscription)
        .await?
        .close()
        .await?;
    for _ in 0..3 {
        let messages = ctx.messages(&topic, ctx.pick(1, 40));
        wanted.extend(ids(&messages));
        sender.publish_all(messages).await?;
        let receiver = ctx.agent().await?;
        let member = receiver.join(&subscription).await?;
        // It may leave before it has everything.
        let some = ctx.pick(1, wanted.len() - got.len());
        got.extend(member.ack_all(some).await?);
        member.close().await?;
        receiver.close().await?;
    }
    let receiver = ctx.agent().await?;
    let member = receiver.join(&subscription).await?;
    got.extend(member.ack_all(wanted.len() - got.len()).await?);
    same("messages of a group that was away", got, wanted)?;
    member.nothing().await
}

/// Several members ack, nack, delay, drop and hang at random; nothing is lost on the way.
async fn whatever_handlers_do_everything_is_acked_in_the_end(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let count = match ctx.timing().paused {
        true => ctx.pick(50, 200),
        false => 60,
    };
    let unit = ctx.lease() / 20;
    let subscription = ctx
        .subscription(&topic, "billing")
        .max_attempts(1000)
        .prefetch(ctx.pick(1, 50))
        .backoff(Backoff {
            first: unit,
            most: unit * 4,
        });
    let sender = ctx.agent().await?;
    let acked = Arc::new(AtomicU64::new(0));
    let done = Arc::new(tokio::sync::Notify::new());
    let mut tasks = Vec::new();
    for _ in 0..3 {
        let agent = ctx.agent().await?;
        let member = agent.join(&subscription).await?;
        let mut rng = ctx.rng();
        let (acked, done) = (Arc::clone(&acked), Arc::clone(&done));
        tasks.push(tokio::spawn(async move {
            // The connection lives as long as its member.
            let _agent = agent;
            while let Some(held) = member.recv().await? {
                match rng.random_range(0..10) {
                    0 => held.nack().await?,
                    1 => held.nack_after(unit).await?,
                    2 => drop(held),
                    3 => {
                        let _ = held.extend().await?;
                        drop(held.nack());
                    }
                    _ => {
                        held.ack().await?;
                        if acked.fetch_add(1, Ordering::Relaxed) + 1 == count as u64 {
                            done.notify_one();
                        }
                    }
                }
            }
            Ok::<_, Failure>(())
        }));
    }
    let messages = ctx.messages(&topic, count);
    for some in messages.chunks(ctx.pick(1, 50)) {
        sender.publish_all(some.to_vec()).await?;
    }
    let ended = ctx.soon("the last ack", done.notified()).await;
    for task in tasks {
        if task.is_finished() {
            task.await??;
        } else {
            task.abort();
        }
    }
    ended
}

/// Each with a member and a sender of its own, side by side on a few connections.
async fn two_hundred_topics_at_once(ctx: Ctx) -> Verdict {
    const TOPICS: usize = 200;
    const EACH: usize = 5;
    let mut agents = Vec::new();
    for _ in 0..4 {
        agents.push(ctx.agent().await?);
    }
    let mut work = Vec::new();
    for n in 0..TOPICS {
        let agent = agents[n % agents.len()].clone();
        let sender = agents[(n + 1) % agents.len()].clone();
        let ctx = ctx.clone();
        work.push(async move {
            let topic = ctx.topic(&format!("area-{}.sensor-{n}", n % 10))?;
            let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
            let messages = ctx.messages(&topic, EACH);
            let wanted = ids(&messages);
            sender.publish_all(messages).await?;
            let got = member.ack_all(EACH).await?;
            same(topic.as_str(), got, wanted)?;
            Ok::<_, Failure>(member)
        });
    }
    let members = try_join_all(work).await?;
    try_join_all(members.iter().map(|m| m.nothing())).await?;
    Ok(())
}

/// A window of one message, and one of fewer bytes than any message has, still moves.
async fn a_small_window_starves_nothing(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = ctx
        .subscription(&topic, "billing")
        .prefetch(ctx.pick(1, 2))
        .prefetch_bytes(ctx.pick(1, 100));
    let member = agent.join(&subscription).await?;
    let messages = ctx.messages(&topic, ctx.pick(10, 50));
    let wanted = ids(&messages);
    agent.publish_all(messages).await?;
    let got = member.ack_all(wanted.len()).await?;
    same("messages through a small window", got, wanted)?;
    member.nothing().await
}

async fn a_new_group_starts_with_the_oldest(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let before = ctx.messages(&topic, ctx.pick(1, 50));
    let mut wanted = ids(&before);
    agent.publish_all(before).await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    let after = ctx.messages(&topic, ctx.pick(1, 20));
    wanted.extend(ids(&after));
    agent.publish_all(after).await?;
    let got = member.ack_all(wanted.len()).await?;
    same("messages from the oldest on", got, wanted)?;
    member.nothing().await
}

async fn a_group_from_latest_sees_only_what_comes_after(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let sender = ctx.agent().await?;
    sender
        .publish_all(ctx.messages(&topic, ctx.pick(1, 50)))
        .await?;
    let subscription = ctx
        .subscription(&topic, "billing")
        .start_from(StartFrom::Latest);
    let transport = ctx.connect().await?;
    let mut member = ctx.join_raw(&transport, &subscription).await?;
    // On another connection, before the member has fetched for the first time.
    let after = ctx.messages(&topic, ctx.pick(1, 50));
    let wanted = ids(&after);
    sender.publish_all(after).await?;
    let mut got = Vec::new();
    for delivery in member.take(wanted.len()).await? {
        got.push(delivery.message.id().to_owned());
        member.ack(&delivery).await?;
    }
    same("messages from the latest on", got, wanted)?;
    member.nothing().await
}

/// Whatever start a later member asks for: it is for groups that are new.
async fn an_existing_group_goes_on_where_it_was(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let sender = ctx.agent().await?;
    let messages = ctx.messages(&topic, ctx.pick(4, 60));
    let all = ids(&messages);
    sender.publish_all(messages).await?;
    let subscription = ctx.subscription(&topic, "billing");
    let first = ctx.agent().await?;
    let member = first.join(&subscription).await?;
    let mut got = member.ack_all(ctx.pick(1, all.len() - 1)).await?;
    member.close().await?;
    first.close().await?;
    let second = ctx.agent().await?;
    let later = subscription.clone().start_from(StartFrom::Latest);
    let member = second.join(&later).await?;
    got.extend(member.ack_all(all.len() - got.len()).await?);
    same("messages of a group that goes on", got, all)?;
    member.nothing().await
}

async fn a_group_from_latest_stays_where_it_began(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    agent
        .publish_all(ctx.messages(&topic, ctx.pick(1, 30)))
        .await?;
    let subscription = ctx
        .subscription(&topic, "billing")
        .start_from(StartFrom::Latest);
    let member = agent.join(&subscription).await?;
    member.close().await?;
    // Published while nobody is there.
    let messages = ctx.messages(&topic, ctx.pick(1, 30));
    let wanted = ids(&messages);
    agent.publish_all(messages).await?;
    // Neither start moves the group: not to the oldest entry, not to the latest.
    let start = [StartFrom::Earliest, StartFrom::Latest][ctx.pick(0, 1)];
    let member = agent.join(&subscription.start_from(start)).await?;
    let got = member.ack_all(wanted.len()).await?;
    same("messages since the group began", got, wanted)?;
    member.nothing().await
}

/// Somebody publishes all the time. The first publish that begins after `subscribe` has returned,
/// and every later one, is delivered.
async fn nothing_after_subscribe_is_missed_under_load(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let transport = ctx.connect().await?;
    let subscribed = Arc::new(AtomicBool::new(false));
    let load = {
        let (ctx, topic, subscribed) = (ctx.clone(), topic.clone(), Arc::clone(&subscribed));
        async move {
            let sender: Arc<dyn Transport> = ctx.connect().await?;
            let mut must = Vec::new();
            while must.len() < 20 {
                let message = ctx.message(&topic);
                if subscribed.load(Ordering::SeqCst) {
                    must.push(message.id().to_owned());
                }
                ctx.publish_raw(&sender, vec![message]).await?;
                tokio::task::yield_now().await;
            }
            Ok::<_, Failure>(must)
        }
    };
    let load = tokio::spawn(load);
    for _ in 0..ctx.pick(0, 20) {
        tokio::task::yield_now().await;
    }
    let subscription = ctx
        .subscription(&topic, "billing")
        .start_from(StartFrom::Latest);
    let mut member = ctx.join_raw(&transport, &subscription).await?;
    subscribed.store(true, Ordering::SeqCst);
    let must = load.await??;
    let mut seen = BTreeSet::new();
    while !must.iter().all(|id| seen.contains(id)) {
        let delivery = member.next().await?;
        seen.insert(delivery.message.id().to_owned());
        member.ack(&delivery).await?;
    }
    Ok(())
}

async fn two_members_make_one_group_at_once(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let sender = ctx.connect().await?;
    let messages = ctx.messages(&topic, ctx.pick(10, 60));
    let wanted = ids(&messages);
    ctx.publish_raw(&sender, messages).await?;
    let subscription = ctx.subscription(&topic, "billing");
    let mut transports = Vec::new();
    for _ in 0..ctx.pick(2, 5) {
        transports.push(ctx.connect().await?);
    }
    transports.shuffle(&mut ctx.rng());
    let joins = transports.iter().map(|t| ctx.join_raw(t, &subscription));
    let members = try_join_all(joins).await?;
    let shares = ctx
        .within(
            Duration::from_secs(1000),
            "sharing",
            share(&ctx, members, wanted.len()),
        )
        .await??;
    same("messages of one group", shares.concat(), wanted)?;
    let groups = sender.admin().groups(&topic).await?;
    equal("groups of the topic", groups.len(), 1)
}
