//! Topics are apart (D4).

use std::collections::BTreeMap;

use futures::future::try_join_all;
use mas_transport_core::{MAX_TOPIC, Outcome, Topic};
use rand::seq::SliceRandom as _;

use super::tools::{equal, ids, same};
use crate::agent::Member;
use crate::ctx::Ctx;
use crate::harness::Verdict;
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(D4, names_that_begin_alike_share_nothing),
    trial!(D4, an_ack_settles_on_its_own_topic),
    trial!(D4, dead_letters_of_pairs_are_apart),
    trial!(D4, a_batch_over_many_topics_goes_to_each),
];

/// Prefixes, suffixes, upper and lower case, separators that look alike.
const NAMES: &[&str] = &[
    "orders",
    "orders.eu",
    "orders.eu.1",
    "orders-eu",
    "orders_eu",
    "orders-eu.1",
    "Orders",
    "ORDERS",
    "order",
    "orders1",
    "orders.e",
    "eu.orders",
    "1",
    "0",
    "a.b.c",
    "a-b.c",
    "a.b-c",
    "g.orders",
    "dlq.g.orders",
];

async fn names_that_begin_alike_share_nothing(ctx: Ctx) -> Verdict {
    let agent = ctx.agent().await?;
    // As long as a topic may be, and apart only in the last byte.
    let long = ["1", "2"].map(|last| "x".repeat(MAX_TOPIC - 1) + last);
    let mut names = NAMES.to_vec();
    names.extend(long.iter().map(String::as_str));
    names.shuffle(&mut ctx.rng());
    // Half of the groups are there before the messages, half come after them.
    let early = ctx.pick(0, names.len());
    let mut members: BTreeMap<&str, Vec<Member>> = BTreeMap::new();
    let mut wanted: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for late in [false, true] {
        for (n, name) in names.iter().enumerate() {
            if (n >= early) != late {
                continue;
            }
            for group in ["g", "G"] {
                let subscription = ctx.subscription(&ctx.topic(name)?, group);
                let member = agent.join(&subscription).await?;
                members.entry(name).or_default().push(member);
            }
        }
        if !late {
            for name in &names {
                let messages = ctx.messages(
                    &ctx.topic(name)?,
                    ctx.pick(usize::from(name.len() > 100), 4),
                );
                wanted.insert(name, ids(&messages));
                agent.publish_all(messages).await?;
            }
        }
    }
    let mut over = Vec::new();
    for name in &names {
        for member in &members[name] {
            let wanted = wanted[name].clone();
            let got = member.ack_all(wanted.len()).await?;
            same(&format!("messages of {name}"), got, wanted)?;
            over.push(member.nothing());
        }
    }
    try_join_all(over).await?;
    Ok(())
}

/// Two topics whose entries stand at the same positions, in groups of one name: what is settled
/// on one is not settled on the other, nor is what a token of one names taken for the other's.
async fn an_ack_settles_on_its_own_topic(ctx: Ctx) -> Verdict {
    let topics = [ctx.topic("orders")?, ctx.topic("invoices")?];
    let transport = ctx.connect().await?;
    let mut a = ctx
        .join_raw(&transport, &ctx.subscription(&topics[0], "billing"))
        .await?;
    let mut b = ctx
        .join_raw(&transport, &ctx.subscription(&topics[1], "billing"))
        .await?;
    let count = ctx.pick(1, 20);
    for _ in 0..count {
        ctx.publish_raw(&transport, ctx.messages(&topics[0], 1))
            .await?;
        ctx.publish_raw(&transport, ctx.messages(&topics[1], 1))
            .await?;
    }
    let mut held = Vec::new();
    for _ in 0..count {
        let delivery = a.next().await?;
        a.ack(&delivery).await?;
        held.push(b.next().await?);
    }
    // Everything of the second topic is still there for whoever comes next.
    let returned: Vec<_> = held.iter().map(|d| (d.token, Outcome::Return)).collect();
    for answer in b.answer_all(returned).await {
        answer?;
    }
    let mut again = b.take(count).await?;
    again.sort_by_key(|d| d.position);
    held.sort_by_key(|d| d.position);
    let id = |d: &mas_transport_core::RawDelivery| d.message.id().to_owned();
    same(
        "messages of the other topic",
        again.iter().map(id),
        held.iter().map(id),
    )?;
    for delivery in &again {
        b.ack(delivery).await?;
    }
    a.nothing().await?;
    b.nothing().await
}

async fn dead_letters_of_pairs_are_apart(ctx: Ctx) -> Verdict {
    let agent = ctx.agent().await?;
    let pairs = [
        ("orders", "a"),
        ("orders", "b"),
        ("a.orders", "a"),
        ("orders.a", "a"),
        ("b", "a"),
    ];
    let mut wanted = Vec::new();
    for (name, group) in pairs {
        let topic = ctx.topic(name)?;
        let member = agent.join(&ctx.subscription(&topic, group)).await?;
        let message = ctx.message(&topic);
        let id = message.id().to_owned();
        agent.publish(message).await?;
        // An earlier pair's topic may bring its message to this group too.
        loop {
            let held = member.next().await?;
            let found = held.id() == id;
            match found {
                true => held.reject(format!("{name} {group}")).await?,
                false => held.ack().await?,
            }
            if found {
                break;
            }
        }
        wanted.push((Topic::dead_letters(&topic, &ctx.group(group)?), id));
        member.close().await?;
    }
    for (letters, id) in wanted {
        let member = agent.join(&ctx.subscription(&letters, "clerk")).await?;
        let got = member.ack_all(1).await?;
        same(letters.as_str(), got, [id])?;
        member.nothing().await?;
    }
    Ok(())
}

async fn a_batch_over_many_topics_goes_to_each(ctx: Ctx) -> Verdict {
    let transport = ctx.connect().await?;
    let mut batch = Vec::new();
    for name in NAMES {
        batch.extend(ctx.messages(&ctx.topic(name)?, ctx.pick(1, 5)));
    }
    batch.shuffle(&mut ctx.rng());
    let sent = batch.clone();
    ctx.publish_raw(&transport, batch).await?;
    for name in NAMES {
        let topic = ctx.topic(name)?;
        let of: Vec<_> = sent.iter().filter(|m| m.topic() == &topic).collect();
        let mut member = ctx
            .join_raw(&transport, &ctx.subscription(&topic, "billing"))
            .await?;
        let mut got = Vec::new();
        for delivery in member.take(of.len()).await? {
            equal("the topic of a delivery", delivery.message.topic(), &topic)?;
            got.push(delivery.message.id().to_owned());
            member.ack(&delivery).await?;
        }
        same(name, got, of.iter().map(|m| m.id().to_owned()))?;
    }
    Ok(())
}
