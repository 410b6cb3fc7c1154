//! Garbage that another program wrote.

use std::collections::BTreeSet;

use bytes::Bytes;
use mas_transport_core::codec::fields::QUARANTINE_KIND;
use mas_transport_core::codec::raw;
use mas_transport_core::{ConsumerEvent, Message, ReasonCode, Record, Subscription, Topic};
use rand::Rng as _;
use rand::rngs::StdRng;

use super::support::{all_settled, ensure, letters_of, long_leased, quiet, random_bytes, read_all};
use crate::ctx::Ctx;
use crate::harness::{Ability, Failure, Verdict};
use crate::history::Happened;
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(H1, garbage_of_every_kind_is_quarantined).needs(&[Ability::Inject]),
    trial!(H1, a_megabyte_of_random_bytes).needs(&[Ability::Inject]),
    trial!(H1, random_entries_are_read_or_quarantined).needs(&[Ability::Inject]),
    trial!(H1, a_record_says_where_and_why).needs(&[Ability::Inject]),
    trial!(H1, a_flood_of_garbage_does_not_stop_the_good).needs(&[Ability::Inject]),
    trial!(H1, a_window_of_one_is_not_stuck).needs(&[Ability::Inject]),
    trial!(H1, each_group_quarantines_for_itself).needs(&[Ability::Inject]),
    trial!(H1, garbage_left_by_a_dead_process_is_quarantined)
        .needs(&[Ability::Inject, Ability::Crash]),
    trial!(H1, garbage_among_the_dead_letters).needs(&[Ability::Inject]),
    trial!(H1, garbage_that_cannot_be_quarantined_is_kept)
        .needs(&[Ability::Inject, Ability::Block]),
];

type Fields = Vec<(Bytes, Bytes)>;

fn entry<N: AsRef<[u8]>, V: AsRef<[u8]>>(list: &[(N, V)]) -> Fields {
    let copy = |b: &[u8]| Bytes::copy_from_slice(b);
    list.iter()
        .map(|(n, v)| (copy(n.as_ref()), copy(v.as_ref())))
        .collect()
}

/// An entry that is no message, and says which one it is: an event without an id.
fn nameless(which: impl ToString) -> Fields {
    entry(&[
        ("ce_specversion", "1.0".to_owned()),
        ("no", which.to_string()),
    ])
}

/// One entry of each kind that is neither a message nor a plain entry.
fn garbage(ctx: &Ctx, topic: &Topic) -> Vec<(&'static str, Fields)> {
    let event: [(&str, &str); 5] = [
        ("ce_specversion", "1.0"),
        ("ce_id", "1"),
        ("ce_source", "s"),
        ("ce_type", "t"),
        ("data", "d"),
    ];
    let with = |more: &[(&[u8], &[u8])]| {
        let mut all = entry(&event);
        all.extend(entry(more));
        all
    };
    let without = |name: &str| {
        let rest: Vec<_> = event.into_iter().filter(|(n, _)| *n != name).collect();
        entry(&rest)
    };
    let instead = |name: &str, value: &[u8]| {
        let mut all = without(name);
        all.extend(entry(&[(name, value)]));
        all
    };
    let mut all = vec![
        ("wrong fields", entry(&[("a", "1"), ("b", "2")])),
        ("one field without a name and a value", entry(&[("", "")])),
        ("empty values", entry(&[("a", ""), ("b", "")])),
        (
            "almost data",
            entry(&[("Data", "x"), ("data ", "y"), ("DATA", "z")]),
        ),
        ("data twice", entry(&[("data", "1"), ("data", "2")])),
        (
            "a name that is not UTF-8",
            entry(&[(&b"\xff\xfe"[..], &b"v"[..]), (b"data", b"d")]),
        ),
        (
            "another version of events",
            instead("ce_specversion", b"9.9"),
        ),
        ("an event without an id", without("ce_id")),
        ("an event without a source", without("ce_source")),
        ("an event without a type", without("ce_type")),
        ("an event with an empty id", instead("ce_id", b"")),
        ("an event whose id is not UTF-8", instead("ce_id", b"\xff")),
        ("an event with two ids", with(&[(b"ce_id", b"2")])),
        ("an event with data twice", with(&[(b"data", b"2")])),
        ("a priority that is none", with(&[(b"ce_priority", b"17")])),
        ("a time that is none", with(&[(b"ce_time", b"yesterday")])),
        ("an expiry that is none", with(&[(b"ce_expirytime", b"\0")])),
        (
            "attempts that are no number",
            with(&[(b"ce_maxattempts", b"-1")]),
        ),
        (
            "a timeout that is none",
            with(&[(b"ce_processingtimeout", b"99999999999999999999")]),
        ),
        (
            "a key that is not UTF-8",
            with(&[(b"ce_partitionkey", b"\xc3\x28")]),
        ),
        ("a format of the future", with(&[(b"mas-format", b"2")])),
        (
            "an unknown attribute twice",
            with(&[(b"ce_x", b"1"), (b"ce_x", b"2")]),
        ),
        (
            "random names and values",
            entry(&[(random_bytes(ctx, 40), random_bytes(ctx, 400))]),
        ),
        (
            "a thousand fields",
            entry(
                &(0..1000)
                    .map(|n| (format!("f{n}"), "v"))
                    .collect::<Vec<_>>(),
            ),
        ),
    ];
    // Not every backend needs a field of data.
    all.retain(|(_, fields)| !ctx.broker().is_read(topic, fields));
    all.extend(ctx.broker().garbage());
    all
}

/// What stands in quarantine: the original entry and the record.
fn quarantined(message: &Message) -> Result<(Fields, Record), Failure> {
    let record = message
        .record()
        .ok_or("a quarantined entry has no record")?;
    ensure!(
        record.reason.code == ReasonCode::Malformed && !record.reason.text.is_empty(),
        "the reason of a quarantined entry is {:?}",
        record.reason
    );
    ensure!(
        message.get_kind() == QUARANTINE_KIND
            && message.get_content_type() == Some(raw::CONTENT_TYPE),
        "a quarantined entry says it is {} of {:?}",
        message.get_kind(),
        message.get_content_type()
    );
    let original = raw::decode(message.payload());
    let original = original.ok_or("the payload of a quarantined entry cannot be read")?;
    Ok((original, record.clone()))
}

/// Checks that exactly these entries are in quarantine.
async fn in_quarantine(
    ctx: &Ctx,
    agent: &crate::Agent,
    topic: &Topic,
    group: &str,
    wanted: Vec<Fields>,
) -> Verdict {
    let wanted = wanted.into_iter().map(|f| ctx.broker().quarantined(f));
    let mut wanted: Vec<_> = wanted.collect();
    let from = Topic::quarantine(topic, &ctx.group(group)?);
    for message in read_all(ctx, agent, &from, wanted.len()).await? {
        let (original, record) = quarantined(&message)?;
        let Some(at) = wanted.iter().position(|w| *w == original) else {
            return Err(format!("in quarantine, and not as it was written: {record:?}").into());
        };
        wanted.swap_remove(at);
    }
    Ok(())
}

/// With a lease that does not end, unless what cannot be read breaks the connection and takes what is on
/// its way along until the lease ends.
fn undisturbed(ctx: &Ctx, topic: &Topic) -> Subscription {
    match ctx.capabilities().cut_costs_lease {
        // However often it breaks, that costs one attempt in all.
        true => ctx.subscription(topic, "billing").max_attempts(2),
        false => long_leased(ctx, topic, "billing"),
    }
}

/// A good message before, between and after: all of them are delivered, and nothing else is.
async fn garbage_of_every_kind_is_quarantined(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = undisturbed(&ctx, &topic);
    let member = agent.join(&subscription).await?;
    let mut wanted = Vec::new();
    for (what, fields) in garbage(&ctx, &topic) {
        agent.publish(ctx.message(&topic)).await?;
        ctx.inject(&topic, fields.clone()).await?;
        wanted.push(fields);
        let held = member
            .next()
            .await
            .map_err(|e| format!("before {what}: {e}"))?;
        held.ack().await?;
    }
    agent.publish(ctx.message(&topic)).await?;
    member.next().await?.ack().await?;
    let mut told = 0;
    while told < wanted.len() {
        let pick = |event| match event {
            ConsumerEvent::Quarantined(record) => Some(record),
            _ => None,
        };
        member
            .event_like("the event of a quarantined entry", pick)
            .await?;
        told += 1;
    }
    in_quarantine(&ctx, &agent, &topic, "billing", wanted).await?;
    quiet(&member, ctx.lease() / 4).await?;
    all_settled(&ctx, &agent, &topic, "billing").await
}

async fn a_megabyte_of_random_bytes(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&undisturbed(&ctx, &topic)).await?;
    let payload = random_bytes(&ctx, (1 << 20) - 4096);
    let long = random_bytes(&ctx, ctx.broker().largest_field());
    let wanted = vec![
        entry(&[(&b"blob"[..], long.as_slice())]),
        entry(&[(long.as_slice(), &b"v"[..])]),
        entry(&[(&b"data"[..], &payload[..1 << 19]), (b"data", &long)]),
        entry(&[(&b"ce_specversion"[..], &b"1.0"[..]), (b"data", &payload)]),
    ];
    // Not every backend needs a field of data.
    let is_read = |fields: &Fields| ctx.broker().is_read(&topic, fields);
    for fields in &wanted {
        ctx.inject(&topic, fields.clone()).await?;
        agent.publish(ctx.message(&topic)).await?;
        member.ack_all(1 + usize::from(is_read(fields))).await?;
    }
    let bad = wanted.into_iter().filter(|f| !is_read(f)).collect();
    in_quarantine(&ctx, &agent, &topic, "billing", bad).await?;
    all_settled(&ctx, &agent, &topic, "billing").await
}

fn random_entry(rng: &mut StdRng) -> Fields {
    const NAMES: [&[u8]; 16] = [
        b"data",
        b"data",
        b"ce_specversion",
        b"ce_specversion",
        b"ce_id",
        b"ce_source",
        b"ce_type",
        b"ce_time",
        b"ce_priority",
        b"mas-record",
        b"mas-format",
        b"content-type",
        b"traceparent",
        b"",
        b"\xff",
        b"x",
    ];
    const VALUES: [&[u8]; 8] = [
        b"1.0",
        b"1.0",
        b"",
        b"1",
        b"\xff\0",
        b"x",
        b"{}",
        b"2026-11-21T06:40:00Z",
    ];
    let count = rng.random_range(1..8);
    let mut all = Vec::new();
    for _ in 0..count {
        let name = NAMES[rng.random_range(0..NAMES.len())];
        let value = VALUES[rng.random_range(0..VALUES.len())];
        all.push((name, value));
    }
    entry(&all)
}

/// Each random entry is delivered or quarantined, as the wire format says: none is lost, none is
/// both.
async fn random_entries_are_read_or_quarantined(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&undisturbed(&ctx, &topic)).await?;
    let mut rng = ctx.rng();
    let (mut good, mut bad) = (0, Vec::new());
    for _ in 0..100 {
        let fields = random_entry(&mut rng);
        ctx.inject(&topic, fields.clone()).await?;
        match ctx.broker().is_read(&topic, &fields) {
            true => good += 1,
            false => bad.push(fields),
        }
    }
    // Each as it comes: one that was on its way when a connection broke comes a lease later than the rest, and
    // a member whose other leases have ended meanwhile fetches nothing.
    member.ack_all(good).await?;
    quiet(&member, ctx.lease() / 4).await?;
    in_quarantine(&ctx, &agent, &topic, "billing", bad).await?;
    all_settled(&ctx, &agent, &topic, "billing").await
}

async fn a_record_says_where_and_why(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders.eu")?;
    let agent = ctx.agent().await?;
    let before = agent.publish(ctx.message(&topic)).await?.position;
    let fields = entry(&[
        ("ce_specversion", "1.0"),
        ("ce_id", "1"),
        ("secret", "hunter2"),
    ]);
    ctx.inject(&topic, fields).await?;
    let after = agent.publish(ctx.message(&topic)).await?.position;
    let subscription = long_leased(&ctx, &topic, "billing").member("worker-7");
    let member = agent.join(&subscription).await?;
    let record = member
        .event_like("the event of a quarantined entry", |event| match event {
            ConsumerEvent::Quarantined(record) => Some(record),
            _ => None,
        })
        .await?;
    for held in member.take(2).await? {
        held.ack().await?;
    }
    let from = Topic::quarantine(&topic, &ctx.group("billing")?);
    let message = read_all(&ctx, &agent, &from, 1).await?.remove(0);
    let (_, kept) = quarantined(&message)?;
    ensure!(
        kept == *record,
        "the event told of {record:?}, in quarantine is {kept:?}"
    );
    ensure!(
        kept.version == Record::VERSION
            && kept.topic == topic.as_str()
            && kept.group == "billing"
            && kept.member.starts_with("worker-7")
            && kept.attempts == 1
            && kept.last_failure_ms >= kept.first_failure_ms,
        "the record of a quarantined entry: {kept:?}"
    );
    ensure!(
        kept.reason.text.contains("ce_source") && !kept.reason.text.contains("hunter2"),
        "a reason names the field and no value: {:?}",
        kept.reason
    );
    ensure!(
        kept.position != before.to_string()
            && kept.position != after.to_string()
            && !kept.position.is_empty(),
        "the record's position is {}",
        kept.position
    );
    Ok(())
}

async fn a_flood_of_garbage_does_not_stop_the_good(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let count = ctx.pick(200, 400);
    let mut wanted = Vec::new();
    for n in 0..count {
        let fields = nameless(n);
        ctx.inject(&topic, fields.clone()).await?;
        wanted.push(fields);
    }
    agent.publish(ctx.message(&topic)).await?;
    let subscription = long_leased(&ctx, &topic, "billing").prefetch(ctx.pick(1, 50));
    let member = agent.join(&subscription).await?;
    member.next().await?.ack().await?;
    in_quarantine(&ctx, &agent, &topic, "billing", wanted).await?;
    all_settled(&ctx, &agent, &topic, "billing").await
}

/// A malformed entry takes a place in the window only until it is quarantined.
async fn a_window_of_one_is_not_stuck(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = long_leased(&ctx, &topic, "billing").prefetch(1);
    let member = agent.join(&subscription).await?;
    for n in 0..10 {
        ctx.inject(&topic, nameless(n)).await?;
        agent.publish(ctx.message(&topic)).await?;
    }
    for _ in 0..10 {
        member.next().await?.ack().await?;
    }
    all_settled(&ctx, &agent, &topic, "billing").await
}

async fn each_group_quarantines_for_itself(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let billing = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    let shipping = agent.join(&long_leased(&ctx, &topic, "shipping")).await?;
    let fields = nameless("message");
    ctx.inject(&topic, fields.clone()).await?;
    agent.publish(ctx.message(&topic)).await?;
    for (member, group) in [(billing, "billing"), (shipping, "shipping")] {
        member.next().await?.ack().await?;
        in_quarantine(&ctx, &agent, &topic, group, vec![fields.clone()]).await?;
    }
    Ok(())
}

/// Fetched by a process that died before it could quarantine it: whoever comes next does.
async fn garbage_left_by_a_dead_process_is_quarantined(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx.subscription(&topic, "billing");
    let fields = nameless("message");
    let (transport, crash) = ctx.connect_mortal().await?;
    // At the level of the transport: nothing quarantines it.
    let mut doomed = ctx.join_raw(&transport, &subscription).await?;
    ctx.inject(&topic, fields.clone()).await?;
    let sender = ctx.agent().await?;
    sender.publish(ctx.message(&topic)).await?;
    doomed.next().await?;
    crash.now();
    let member = doomed.id();
    ctx.history().push(Happened::Crashed { member });
    let member = sender.join(&subscription).await?;
    member.next().await?.ack().await?;
    in_quarantine(&ctx, &sender, &topic, "billing", vec![fields]).await?;
    all_settled(&ctx, &sender, &topic, "billing").await
}

/// There is nothing behind a dead-letter topic, but its consumer goes on all the same.
async fn garbage_among_the_dead_letters(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    let letters = letters_of(&topic, &ctx.group("billing")?);
    let messages = ctx.messages(&topic, 2);
    let mut wanted: BTreeSet<_> = messages.iter().map(|m| m.id().to_owned()).collect();
    for message in messages {
        agent.publish(message).await?;
        member.next().await?.reject("x").await?;
        ctx.inject(&letters, nameless("message")).await?;
    }
    let reader = agent
        .join(&long_leased(&ctx, &letters, "undertaker"))
        .await?;
    while !wanted.is_empty() {
        let held = reader.next().await?;
        ensure!(
            wanted.remove(held.id()),
            "{held:?} came among the dead letters"
        );
        held.ack().await?;
    }
    quiet(&reader, ctx.lease() / 4).await
}

async fn garbage_that_cannot_be_quarantined_is_kept(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let fields = nameless("message");
    let subscription = ctx.subscription(&topic, "billing");
    agent.join(&subscription).await?.close().await?;
    ctx.inject(&topic, fields.clone()).await?;
    agent.publish(ctx.message(&topic)).await?;
    // Blocked before anybody reads.
    let quarantine = Topic::quarantine(&topic, &ctx.group("billing")?);
    ctx.broker().block(&quarantine, true).await?;
    let member = agent.join(&subscription).await?;
    let failed = member.event_like("the failure of the quarantine", |event| match event {
        ConsumerEvent::SettlementFailed { error, .. } => Some(Ok(error)),
        ConsumerEvent::Quarantined(record) => Some(Err(record)),
        _ => None,
    });
    if let Err(record) = failed.await? {
        return Err(format!("a blocked topic is said to have taken {record:?}").into());
    }
    // The next one is delivered meanwhile.
    member.next().await?.ack().await?;
    ctx.broker().block(&quarantine, false).await?;
    in_quarantine(&ctx, &agent, &topic, "billing", vec![fields]).await?;
    all_settled(&ctx, &agent, &topic, "billing").await
}
