//! Counts and lists.

use mas_transport_core::{ErrorKind, Exactness, Lag, Outcome, StartFrom, Topic, TopicSpec};

use super::support::{
    dead_letters, ensure, lag_becomes, letters_of, long_leased, past_a_lease, quiet,
};
use crate::ctx::Ctx;
use crate::harness::{Ability, Verdict};
use crate::history::{Happened, Trouble};
use crate::registry::{Condition, TrialDef};
use crate::trial;

const COUNTS: Condition = ("its lag is approximate", |c| {
    c.lag != Exactness::Approximate
});

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(M1, lag_follows_every_step).when(COUNTS.0, COUNTS.1),
    trial!(M1, lag_of_each_group_is_its_own).when(COUNTS.0, COUNTS.1),
    trial!(M1, lag_counts_what_waits_to_come_back).when(COUNTS.0, COUNTS.1),
    trial!(M1, lag_counts_the_dead)
        .needs(&[Ability::Crash])
        .when(COUNTS.0, COUNTS.1),
    trial!(M1, lag_of_a_late_group).when(COUNTS.0, COUNTS.1),
    trial!(M1, lag_of_what_is_not_there_is_not_found),
    trial!(M1, topics_are_listed_as_they_are),
    trial!(M1, groups_are_listed_as_they_are),
    trial!(M1, declaring_is_idempotent),
    trial!(M1, a_purge_says_how_many),
    trial!(M1, a_purge_leaves_groups_where_they_are),
];

fn lag(waiting: usize, pending: usize) -> Lag {
    Lag {
        waiting: waiting as u64,
        pending: pending as u64,
    }
}

/// Published, fetched, settled in each way: what waits and what is pending, after each step.
async fn lag_follows_every_step(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = long_leased(&ctx, &topic, "billing").prefetch(4);
    // At the level of the transport: no pump fetches on its own.
    let mut member = ctx.join_raw(agent.transport(), &subscription).await?;
    let step =
        |waiting, pending| lag_becomes(&ctx, &agent, &topic, "billing", lag(waiting, pending));
    step(0, 0).await?;
    let count = ctx.pick(6, 30);
    for n in 1..=count {
        agent.publish(ctx.message(&topic)).await?;
        if n % 5 == 0 {
            step(n, 0).await?;
        }
    }
    step(count, 0).await?;
    let mut held = Vec::new();
    for n in 1..=4 {
        held.push(member.next().await?);
        // A backend may fetch ahead of what is asked for, up to the window.
        let seen = agent.admin().lag(&topic, &ctx.group("billing")?).await?;
        ensure!(
            seen.waiting + seen.pending == count as u64 && seen.pending >= n && seen.pending <= 4,
            "{n} of {count} are in hand, of a window of 4: {seen:?}"
        );
    }
    step(count - 4, 4).await?;
    member.answer(held[0].token, Outcome::Ack).await?;
    step(count - 4, 3).await?;
    // Put off: it stays pending.
    let later = ctx.lease() * 20;
    member.answer(held[1].token, Outcome::Nack(later)).await?;
    step(count - 4, 3).await?;
    member.answer(held[2].token, Outcome::Extend).await?;
    step(count - 4, 3).await?;
    member.answer(held[2].token, Outcome::Ack).await?;
    step(count - 4, 2).await?;
    member.answer(held[3].token, Outcome::Ack).await?;
    step(count - 4, 1).await
}

async fn lag_of_each_group_is_its_own(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let billing = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    let shipping = agent.join(&long_leased(&ctx, &topic, "shipping")).await?;
    shipping.consumer().pause();
    let count = ctx.pick(3, 20);
    agent.publish_all(ctx.messages(&topic, count)).await?;
    billing.ack_all(count).await?;
    lag_becomes(&ctx, &agent, &topic, "billing", lag(0, 0)).await?;
    let group = ctx.group("shipping")?;
    let seen = agent.admin().lag(&topic, &group).await?;
    ensure!(
        seen.waiting + seen.pending == count as u64,
        "another group has settled {count} messages, this one none, and its lag is {seen:?}"
    );
    shipping.consumer().resume();
    shipping.ack_all(count).await?;
    lag_becomes(&ctx, &agent, &topic, "shipping", lag(0, 0)).await
}

/// Nacked, dropped, rejected: pending until it is done.
async fn lag_counts_what_waits_to_come_back(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent
        .join(&long_leased(&ctx, &topic, "billing").prefetch(3))
        .await?;
    agent.publish_all(ctx.messages(&topic, 3)).await?;
    let mut held = member.take(3).await?;
    lag_becomes(&ctx, &agent, &topic, "billing", lag(0, 3)).await?;
    held.remove(0).nack_after(ctx.lease() * 20).await?;
    lag_becomes(&ctx, &agent, &topic, "billing", lag(0, 3)).await?;
    held.remove(0).reject("x").await?;
    lag_becomes(&ctx, &agent, &topic, "billing", lag(0, 2)).await?;
    let from = letters_of(&topic, &ctx.group("billing")?);
    let reader = agent.join(&long_leased(&ctx, &from, "reader")).await?;
    reader.consumer().pause();
    let seen = agent.admin().lag(&from, &ctx.group("reader")?).await?;
    ensure!(
        seen.waiting + seen.pending == 1,
        "the lag of one dead letter is {seen:?}"
    );
    reader.consumer().resume();
    reader.ack_all(1).await?;
    lag_becomes(&ctx, &agent, &from, "reader", lag(0, 0)).await?;
    held.remove(0).ack().await?;
    lag_becomes(&ctx, &agent, &topic, "billing", lag(0, 1)).await
}

/// What a dead member holds is pending, before and after its lease.
async fn lag_counts_the_dead(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let sender = ctx.agent().await?;
    let (transport, crash) = ctx.connect_mortal().await?;
    let subscription = ctx.subscription(&topic, "billing");
    let mut doomed = ctx.join_raw(&transport, &subscription).await?;
    sender.publish_all(ctx.messages(&topic, 1)).await?;
    doomed.next().await?;
    crash.now();
    let member = doomed.id();
    ctx.history().push(Happened::Crashed { member });
    lag_becomes(&ctx, &sender, &topic, "billing", lag(0, 1)).await?;
    tokio::time::sleep(past_a_lease(&ctx)).await;
    lag_becomes(&ctx, &sender, &topic, "billing", lag(0, 1)).await?;
    let member = sender.join(&subscription).await?;
    member.ack_all(1).await?;
    lag_becomes(&ctx, &sender, &topic, "billing", lag(0, 0)).await
}

/// A group that begins with the oldest entry waits for all of them, one that begins now for none.
async fn lag_of_a_late_group(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let count = ctx.pick(1, 20);
    agent.publish_all(ctx.messages(&topic, count)).await?;
    let early = long_leased(&ctx, &topic, "early");
    let late = long_leased(&ctx, &topic, "late").start_from(StartFrom::Latest);
    let _early = ctx.join_raw(agent.transport(), &early).await?;
    let _late = ctx.join_raw(agent.transport(), &late).await?;
    lag_becomes(&ctx, &agent, &topic, "early", lag(count, 0)).await?;
    lag_becomes(&ctx, &agent, &topic, "late", lag(0, 0)).await?;
    agent.publish(ctx.message(&topic)).await?;
    lag_becomes(&ctx, &agent, &topic, "early", lag(count + 1, 0)).await?;
    lag_becomes(&ctx, &agent, &topic, "late", lag(1, 0)).await
}

async fn lag_of_what_is_not_there_is_not_found(ctx: Ctx) -> Verdict {
    let (topic, group) = (ctx.topic("orders")?, ctx.group("billing")?);
    let agent = ctx.agent().await?;
    let asks = |what: &'static str| {
        let (agent, topic, group) = (agent.clone(), topic.clone(), group.clone());
        async move {
            match agent.admin().lag(&topic, &group).await {
                Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
                other => Err(crate::Failure::from(format!("the lag {what} is {other:?}"))),
            }
        }
    };
    asks("of a topic that is not there").await?;
    match agent.admin().purge(&topic).await {
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        other => return Err(format!("a purge of no topic was answered with {other:?}").into()),
    }
    agent.publish(ctx.message(&topic)).await?;
    asks("of a group that is not there").await?;
    let topics = agent.admin().topics().await?;
    let groups = agent.admin().groups(&topic).await?;
    ensure!(
        topics == [topic.clone()] && groups.is_empty(),
        "asking for the lag made something: {topics:?}, {groups:?}"
    );
    Ok(())
}

/// Sorted, each once, dead letters included, and nothing of another namespace.
async fn topics_are_listed_as_they_are(ctx: Ctx) -> Verdict {
    let agent = ctx.agent().await?;
    let none = agent.admin().topics().await?;
    ensure!(none.is_empty(), "in a new namespace there are {none:?}");
    let mut wanted: Vec<Topic> = Vec::new();
    for name in ["b", "a.b", "a", "A", "a-b", "a_b", "a.b.c", "Z9"] {
        let topic = ctx.topic(name)?;
        agent
            .publish_all(ctx.messages(&topic, ctx.pick(1, 3)))
            .await?;
        wanted.push(topic);
    }
    let declared = ctx.topic("declared")?;
    agent
        .admin()
        .declare(&TopicSpec::new(declared.clone()))
        .await?;
    wanted.push(declared);
    let subscribed = ctx.topic("subscribed")?;
    let member = agent
        .join(&long_leased(&ctx, &subscribed, "billing"))
        .await?;
    agent.publish(ctx.message(&subscribed)).await?;
    member.next().await?.reject("x").await?;
    wanted.push(letters_of(&subscribed, &ctx.group("billing")?));
    wanted.push(subscribed);
    wanted.sort();
    let other = ctx.agent().await?;
    for admin in [agent.admin(), other.admin()] {
        let topics = admin.topics().await?;
        ensure!(
            topics == wanted,
            "there are {wanted:?}, listed are {topics:?}"
        );
    }
    Ok(())
}

async fn groups_are_listed_as_they_are(ctx: Ctx) -> Verdict {
    let (topic, other) = (ctx.topic("orders")?, ctx.topic("orders.eu")?);
    let agent = ctx.agent().await?;
    let none = agent.admin().groups(&topic).await?;
    ensure!(
        none.is_empty(),
        "a topic that is not there has the groups {none:?}"
    );
    let mut wanted = Vec::new();
    let mut members = Vec::new();
    for name in ["b", "a", "Z", "a_b", "a-b", "9"] {
        for _ in 0..ctx.pick(1, 2) {
            members.push(agent.join(&long_leased(&ctx, &topic, name)).await?);
        }
        wanted.push(ctx.group(name)?);
    }
    wanted.sort();
    members.push(agent.join(&long_leased(&ctx, &other, "elsewhere")).await?);
    let groups = agent.admin().groups(&topic).await?;
    ensure!(
        groups == wanted,
        "there are {wanted:?}, listed are {groups:?}"
    );
    // A group outlives its members.
    for member in members {
        member.close().await?;
    }
    let groups = ctx.agent().await?.admin().groups(&topic).await?;
    ensure!(
        groups == wanted,
        "without members the groups are {groups:?}, {wanted:?} before"
    );
    Ok(())
}

async fn declaring_is_idempotent(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let spec = TopicSpec::new(topic.clone());
    agent.admin().declare(&spec).await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    for _ in 0..3 {
        agent.admin().declare(&spec).await?;
        agent.publish(ctx.message(&topic)).await?;
    }
    member.ack_all(3).await?;
    let topics = agent.admin().topics().await?;
    ensure!(
        topics == [topic],
        "declared three times, there are {topics:?}"
    );
    Ok(())
}

async fn a_purge_says_how_many(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let count = ctx.pick(1, 60);
    agent.publish_all(ctx.messages(&topic, count)).await?;
    ctx.taken(&topic);
    let purged = agent.admin().purge(&topic).await?;
    ensure!(
        purged == count as u64,
        "a purge of {count} entries says {purged}"
    );
    let purged = agent.admin().purge(&topic).await?;
    ensure!(purged == 0, "a purge of nothing says {purged}");
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    quiet(&member, ctx.lease() / 4).await?;
    agent.publish(ctx.message(&topic)).await?;
    member.ack_all(1).await?;
    Ok(())
}

/// Entries go, settled or not; groups stay and get what is published afterwards.
async fn a_purge_leaves_groups_where_they_are(ctx: Ctx) -> Verdict {
    let (topic, other) = (ctx.topic("orders")?, ctx.topic("orders.eu")?);
    let agent = ctx.agent().await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    let beside = agent.join(&long_leased(&ctx, &other, "billing")).await?;
    agent.publish_all(ctx.messages(&topic, 10)).await?;
    agent.publish(ctx.message(&other)).await?;
    member.ack_all(5).await?;
    member.close().await?;
    // What is purged is a loss that somebody asked for.
    ctx.fault(Trouble::Forget, true);
    ctx.taken(&topic);
    agent.admin().purge(&topic).await?;
    ctx.fault(Trouble::Forget, false);
    let groups = agent.admin().groups(&topic).await?;
    ensure!(
        groups == [ctx.group("billing")?],
        "after a purge the groups are {groups:?}"
    );
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    let after = ctx.messages(&topic, 3);
    agent.publish_all(after.clone()).await?;
    for held in member.take(after.len()).await? {
        ensure!(
            after.iter().any(|m| m.id() == held.id()),
            "{held:?} was purged, and came"
        );
        held.ack().await?;
    }
    quiet(&member, ctx.lease() / 4).await?;
    beside.ack_all(1).await?;
    dead_letters(&ctx, &agent, &topic, "billing", 0).await?;
    Ok(())
}
