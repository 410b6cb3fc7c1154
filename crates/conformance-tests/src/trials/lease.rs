//! Leases: exclusive while they live (L1), extended by the living (L4), of the group (L5).

use std::collections::BTreeMap;
use std::time::Duration;

use mas_transport_core::{ErrorKind, Outcome, RawDelivery, Settled, Subscription};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::tools::{either, equal, failed, ids, in_time, outlast, same};
use crate::ctx::Ctx;
use crate::harness::{Failure, Verdict};
use crate::member::RawMember;
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(L1, nobody_else_gets_it_before_the_deadline),
    trial!(L1, a_lease_is_never_longer_than_asked),
    trial!(L1, a_delivery_is_handed_out_fresh),
    trial!(L4, extending_keeps_a_message_for_many_leases),
    trial!(L4, a_handler_that_extends_keeps_its_message),
    trial!(L4, an_extended_lease_ends_at_its_new_deadline),
    trial!(L4, many_leases_are_extended_together),
    trial!(L5, a_member_with_another_lease_is_refused),
    trial!(L5, the_lease_outlives_the_members),
    trial!(L5, groups_have_leases_of_their_own),
    trial!(L5, a_lease_out_of_range_makes_no_group),
];

/// Two members, each on a connection of its own.
pub(super) async fn pair(
    ctx: &Ctx,
    subscription: &Subscription,
) -> Result<(RawMember, RawMember), Failure> {
    let (one, two) = (ctx.connect().await?, ctx.connect().await?);
    let pair = (
        ctx.join_raw(&one, subscription).await?,
        ctx.join_raw(&two, subscription).await?,
    );
    tokio::time::sleep(ctx.timing().sharing).await;
    Ok(pair)
}

/// Takes so many deliveries to either member, and holds them.
pub(super) async fn hold(
    ctx: &Ctx,
    a: &mut RawMember,
    b: &mut RawMember,
    count: usize,
) -> Result<Vec<(usize, RawDelivery)>, Failure> {
    let mut held = Vec::with_capacity(count);
    while held.len() < count {
        held.push(either(ctx, a, b).await?);
    }
    Ok(held)
}

/// Watches until then that neither member gets anything.
async fn quiet_until(a: &mut RawMember, b: &mut RawMember, until: Instant) -> Verdict {
    let race = async {
        tokio::select! {
            d = a.wait() => d,
            d = b.wait() => d,
        }
    };
    match timeout_at(until, race).await {
        Err(_) => Ok(()),
        Ok(Ok(d)) => Err(format!("{:?} came while it was leased", d.message.id()).into()),
        Ok(Err(e)) => Err(e),
    }
}

async fn nobody_else_gets_it_before_the_deadline(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let (mut a, mut b) = pair(&ctx, &ctx.subscription(&topic, "billing")).await?;
    let sender = ctx.connect().await?;
    let count = ctx.pick(1, 20);
    ctx.publish_raw(&sender, ctx.messages(&topic, count))
        .await?;
    let held = hold(&ctx, &mut a, &mut b, count).await?;
    let first = held.iter().map(|(_, d)| d.deadline).min();
    let last = held.iter().map(|(_, d)| d.deadline).max();
    let (Some(first), Some(last)) = (first, last) else {
        return Err("nothing is held".into());
    };
    // Nearly to the end; then each settles what it has, which it may until the deadline.
    let margin = match ctx.timing().paused {
        true => Duration::from_millis(1),
        false => ctx.lease() / 2,
    };
    quiet_until(&mut a, &mut b, first - margin).await?;
    for (who, delivery) in &held {
        let member = if *who == 0 { &mut a } else { &mut b };
        member.ack(delivery).await?;
    }
    outlast(&ctx, last).await;
    quiet_until(&mut a, &mut b, Instant::now() + ctx.timing().quiet).await
}

async fn a_lease_is_never_longer_than_asked(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let lease = Duration::from_millis(ctx.pick(5_000, 60_000) as u64);
    let subscription = ctx.subscription(&topic, "billing").lease(lease);
    let transport = ctx.connect().await?;
    let mut member = ctx.join_raw(&transport, &subscription).await?;
    for _ in 0..3 {
        ctx.publish_raw(&transport, ctx.messages(&topic, 1)).await?;
        let delivery = member.next().await?;
        let now = Instant::now();
        if delivery.deadline > now + lease {
            return Err(format!(
                "a lease of {lease:?} has {:?} left",
                delivery.deadline - now
            )
            .into());
        }
        member.nack(&delivery, Duration::ZERO).await?;
        let again = member.next().await?;
        if again.deadline > Instant::now() + lease {
            return Err("a lease that was begun again is longer than asked".into());
        }
        member.ack(&again).await?;
    }
    Ok(())
}

/// However long a fetch has waited: at most an eighth of the lease is gone when a message comes.
async fn a_delivery_is_handed_out_fresh(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let (lease, idle) = match ctx.timing().paused {
        true => (ctx.lease(), ctx.lease() * 3 + Duration::from_millis(777)),
        // Long against the slack that the machine adds.
        false => (Duration::from_secs(40), Duration::from_millis(700)),
    };
    let subscription = ctx.subscription(&topic, "billing").lease(lease);
    let receiver = ctx.connect().await?;
    let sender = ctx.connect().await?;
    let mut member = ctx.join_raw(&receiver, &subscription).await?;
    for _ in 0..3 {
        let publish = async {
            tokio::time::sleep(idle).await;
            ctx.publish_raw(&sender, ctx.messages(&topic, 1)).await
        };
        let (delivery, receipts) = tokio::join!(member.next(), publish);
        receipts?;
        let delivery = delivery?;
        let left = delivery.deadline.saturating_duration_since(Instant::now());
        if left + ctx.timing().slack < lease * 7 / 8 {
            return Err(format!("of a lease of {lease:?} only {left:?} were left").into());
        }
        member.ack(&delivery).await?;
    }
    Ok(())
}

async fn extending_keeps_a_message_for_many_leases(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let (mut a, mut b) = pair(&ctx, &ctx.subscription(&topic, "billing")).await?;
    let sender = ctx.connect().await?;
    ctx.publish_raw(&sender, ctx.messages(&topic, 1)).await?;
    let (who, delivery) = either(&ctx, &mut a, &mut b).await?;
    let (holder, other) = match who {
        0 => (&mut a, &mut b),
        _ => (&mut b, &mut a),
    };
    let mut deadline = delivery.deadline;
    for _ in 0..ctx.pick(5, 9) {
        let before = Instant::now();
        quiet_until(holder, other, before + ctx.lease() / 2).await?;
        let asked = Instant::now();
        let answer = holder.answer(delivery.token, Outcome::Extend).await?;
        let Settled::Lease(until) = answer else {
            return Err(format!("Extend was answered with {answer:?}").into());
        };
        if until <= deadline || until > Instant::now() + ctx.lease() {
            return Err(format!("an extension moved {deadline:?} to {until:?}").into());
        }
        in_time(
            &ctx,
            "an extended deadline",
            until,
            asked + ctx.lease() * 7 / 8,
            until,
        )?;
        deadline = until;
    }
    holder.ack(&delivery).await?;
    outlast(&ctx, deadline).await;
    quiet_until(&mut a, &mut b, Instant::now() + ctx.timing().quiet).await
}

async fn a_handler_that_extends_keeps_its_message(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx.subscription(&topic, "billing");
    let (a, b) = (ctx.agent().await?, ctx.agent().await?);
    let (one, two) = (a.join(&subscription).await?, b.join(&subscription).await?);
    tokio::time::sleep(ctx.timing().sharing).await;
    a.publish(ctx.message(&topic)).await?;
    let next = async {
        tokio::select! {
            held = one.next() => held,
            held = two.next() => held,
        }
    };
    let held = next.await?;
    let work = async {
        for _ in 0..5 {
            tokio::time::sleep(ctx.lease() / 2).await;
            let before = held.deadline();
            let told = held.extend().await?;
            equal(
                "the deadline of an extended delivery",
                held.deadline(),
                told,
            )?;
            if told <= before {
                return Err("an extension moved no deadline".into());
            }
        }
        Ok::<_, Failure>(())
    };
    tokio::select! {
        worked = work => worked?,
        got = one.recv() => return Err(format!("{got:?} came while its handler worked").into()),
        got = two.recv() => return Err(format!("{got:?} came while its handler worked").into()),
        () = held.revoked() => return Err("an extended delivery was revoked".into()),
    }
    let deadline = held.deadline();
    held.ack().await?;
    outlast(&ctx, deadline).await;
    one.nothing().await?;
    two.nothing().await
}

/// Not earlier, and not much later: an extension is for one lease, not for ever.
async fn an_extended_lease_ends_at_its_new_deadline(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let (mut a, mut b) = pair(&ctx, &ctx.subscription(&topic, "billing")).await?;
    let sender = ctx.connect().await?;
    ctx.publish_raw(&sender, ctx.messages(&topic, 1)).await?;
    let (who, delivery) = either(&ctx, &mut a, &mut b).await?;
    let holder = if who == 0 { &mut a } else { &mut b };
    sleep_until(delivery.deadline - ctx.lease() / 2).await;
    let answer = holder.answer(delivery.token, Outcome::Extend).await?;
    let Settled::Lease(until) = answer else {
        return Err(format!("Extend was answered with {answer:?}").into());
    };
    let (who, again) = either(&ctx, &mut a, &mut b).await?;
    let latest = until + ctx.capabilities().reclaim_slack;
    in_time(
        &ctx,
        "a redelivery after an extension",
        Instant::now(),
        until,
        latest,
    )?;
    equal("the message", again.message.id(), delivery.message.id())?;
    let holder = if who == 0 { &mut a } else { &mut b };
    holder.ack(&again).await?;
    holder.nothing().await
}

async fn many_leases_are_extended_together(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let transport = ctx.connect().await?;
    let mut member = ctx
        .join_raw(&transport, &ctx.subscription(&topic, "billing"))
        .await?;
    let count = ctx.pick(2, 60);
    ctx.publish_raw(&transport, ctx.messages(&topic, count))
        .await?;
    let held = member.take(count).await?;
    let mut deadlines: BTreeMap<_, _> = held.iter().map(|d| (d.token, d.deadline)).collect();
    for _ in 0..3 {
        tokio::time::sleep(ctx.lease() / 2).await;
        let batch: Vec<_> = held.iter().map(|d| (d.token, Outcome::Extend)).collect();
        let answers = member.answer_all(batch).await;
        equal("answers", answers.len(), count)?;
        for (delivery, answer) in held.iter().zip(answers) {
            let Settled::Lease(until) = answer? else {
                return Err("Extend was answered with Done".into());
            };
            deadlines.insert(delivery.token, until);
        }
    }
    for delivery in &held {
        member.ack(delivery).await?;
    }
    if let Some(last) = deadlines.values().max() {
        outlast(&ctx, *last).await;
    }
    member.nothing().await
}

async fn a_member_with_another_lease_is_refused(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let other = ctx.agent().await?;
    let subscription = ctx.subscription(&topic, "billing");
    let member = agent.join(&subscription).await?;
    for factor in [2, 10] {
        let longer = subscription.clone().lease(ctx.lease() * factor);
        failed(
            "a member with a longer lease",
            &other.join(&longer).await,
            ErrorKind::Conflict,
        )?;
    }
    let shorter = subscription.clone().lease(ctx.lease() / 2);
    failed(
        "a member with a shorter lease",
        &agent.join(&shorter).await,
        ErrorKind::Conflict,
    )?;
    // The others go on, and the refused ones hold nothing back.
    let same_lease = other.join(&subscription).await?;
    same_lease.close().await?;
    let messages = ctx.messages(&topic, ctx.pick(5, 30));
    let wanted = ids(&messages);
    agent.publish_all(messages).await?;
    let got = member.ack_all(wanted.len()).await?;
    same("messages of the member with the right lease", got, wanted)?;
    member.nothing().await
}

async fn the_lease_outlives_the_members(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx.subscription(&topic, "billing");
    let agent = ctx.agent().await?;
    agent.join(&subscription).await?.close().await?;
    agent.close().await?;
    let agent = ctx.agent().await?;
    let other = subscription.clone().lease(ctx.lease() * 3);
    failed(
        "another lease for a group without members",
        &agent.join(&other).await,
        ErrorKind::Conflict,
    )?;
    agent.publish(ctx.message(&topic)).await?;
    let member = agent.join(&subscription).await?;
    member.ack_all(1).await?;
    member.nothing().await
}

/// One topic, groups with different leases: what each lets lapse comes back after its own lease.
async fn groups_have_leases_of_their_own(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let transport = ctx.connect().await?;
    let base = ctx.lease();
    let mut work = Vec::new();
    for (n, tenths) in [5, 10, 13, 22].into_iter().enumerate() {
        let lease = base * tenths / 10;
        let group = format!("group-{n}");
        let subscription = ctx.subscription(&topic, &group).lease(lease);
        let mut member = ctx.join_raw(&transport, &subscription).await?;
        let ctx = ctx.clone();
        work.push(async move {
            let delivery = member.next().await?;
            let left = delivery.deadline.saturating_duration_since(Instant::now());
            if left > lease || left + ctx.timing().slack < lease * 7 / 8 {
                return Err(format!("a lease of {lease:?} has {left:?} left").into());
            }
            let again = member.next().await?;
            let from = delivery.deadline;
            let until = from + ctx.capabilities().reclaim_slack;
            let what = format!("the redelivery in {group}, lease {lease:?},");
            in_time(&ctx, &what, Instant::now(), from, until)?;
            member.ack(&again).await?;
            Ok::<_, Failure>(())
        });
    }
    let publish = async {
        ctx.publish_raw(&transport, ctx.messages(&topic, 1)).await?;
        Ok(())
    };
    tokio::try_join!(futures::future::try_join_all(work), publish)?;
    Ok(())
}

async fn a_lease_out_of_range_makes_no_group(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    for lease in [
        Duration::ZERO,
        Duration::from_millis(99),
        Duration::from_secs(24 * 3600 + 1),
        Duration::MAX,
    ] {
        let subscription = ctx.subscription(&topic, "billing").lease(lease);
        failed(
            "a lease out of range",
            &agent.join(&subscription).await,
            ErrorKind::InvalidArgument,
        )?;
    }
    let groups = agent.admin().groups(&topic).await?;
    equal("groups after refused members", groups.len(), 0)
}
