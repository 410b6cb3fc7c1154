//! Entries that another program wrote and that can be read.

use bytes::Bytes;
use mas_transport_core::codec::fields::{FOREIGN_SOURCE, decode, encode};
use mas_transport_core::{Attribute, Message, Position, Priority, ReasonCode, Topic};

use super::support::{ANY_MEMBER, dead_letters, ensure, loaded, long_leased, quiet, same};
use crate::agent::{Held, Member};
use crate::ctx::Ctx;
use crate::harness::{Ability, Failure, Verdict};
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(B5, a_plain_entry_is_a_message).needs(&[Ability::Inject]),
    trial!(B5, what_may_only_be_read_is_read).needs(&[Ability::Inject]),
    trial!(B5, events_of_other_programs_are_read).needs(&[Ability::Inject]),
    trial!(B5, a_plain_entry_comes_back_and_is_dead_lettered_as_it_is).needs(&[Ability::Inject]),
    trial!(B5, plain_entries_and_messages_in_turns)
        .needs(&[Ability::Inject])
        .when(ANY_MEMBER.0, ANY_MEMBER.1),
];

type Fields = Vec<(Bytes, Bytes)>;

fn fields<N: AsRef<[u8]>, V: AsRef<[u8]>>(list: &[(N, V)]) -> Fields {
    let copy = |b: &[u8]| Bytes::copy_from_slice(b);
    list.iter()
        .map(|(n, v)| (copy(n.as_ref()), copy(v.as_ref())))
        .collect()
}

async fn consumer(ctx: &Ctx, topic: &Topic) -> Result<(crate::Agent, Member), Failure> {
    let agent = ctx.agent().await?;
    let member = agent.join(&long_leased(ctx, topic, "billing")).await?;
    Ok((agent, member))
}

fn headers_of(held: &Held) -> Vec<(String, Vec<u8>)> {
    let all = held.headers().iter();
    all.map(|(n, v)| (n.to_owned(), v.as_bytes().unwrap_or_default().to_vec()))
        .collect()
}

async fn a_plain_entry_is_a_message(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let (_agent, member) = consumer(&ctx, &topic).await?;
    for payload in [&b""[..], b"{}", b"\0\xff\r\n", &[0; 70_000]] {
        ctx.inject(&topic, fields(&[("data", payload)])).await?;
        let held = member.next().await?;
        ensure!(
            held.payload().as_ref() == payload
                && held.source() == FOREIGN_SOURCE
                && held.get_kind() == Message::DEFAULT_KIND
                && held.id() == held.position().to_string()
                && held.headers().is_empty()
                && held.get_content_type().is_none()
                && *held.topic() == topic
                && held.attempt() == 1,
            "a plain entry of {} bytes came as {:?}",
            payload.len(),
            held.message()
        );
        held.ack().await?;
    }
    quiet(&member, ctx.lease() / 4).await
}

/// Duplicate names, binary and empty values, upper case, reserved names, names of any form.
async fn what_may_only_be_read_is_read(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let (_agent, member) = consumer(&ctx, &topic).await?;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let entry: [(&str, &[u8]); 12] = [
        ("Upper Case", b"1"),
        ("twice", b"a"),
        ("data", b"payload"),
        ("twice", b"b"),
        ("binary", b"\xff\0\r\n"),
        ("empty", b""),
        ("", b"no name"),
        ("content-type", b"text/plain"),
        ("traceparent", parent.as_bytes()),
        ("ce_id", b"no event, so this is a header"),
        ("gr\u{f6}\u{df}e", b"v"),
        ("nats-msg-id", b"v"),
    ];
    let entry = ctx.broker().carried(fields(&entry));
    ctx.inject(&topic, entry.clone()).await?;
    let held = member.next().await?;
    let wanted: Vec<_> = entry
        .iter()
        .map(|(n, v)| (String::from_utf8_lossy(n).into_owned(), v.to_vec()))
        .filter(|(n, _)| !["data", "content-type", "traceparent"].contains(&n.as_str()))
        .collect();
    let got = headers_of(&held);
    ensure!(
        got == wanted,
        "the fields beside data came as {got:?}, {wanted:?} were written"
    );
    ensure!(
        held.payload().as_ref() == b"payload"
            && held.get_content_type() == Some("text/plain")
            && held.attribute(Attribute::TraceParent) == Some(parent),
        "a plain entry came as {:?}",
        held.message()
    );
    held.ack().await?;
    Ok(())
}

/// Events in the wire format that this library did not write: fields in another order, without
/// data, with attributes that it does not know.
async fn events_of_other_programs_are_read(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let (_agent, member) = consumer(&ctx, &topic).await?;
    let message = loaded(&ctx, &topic);
    let mut written = Vec::new();
    encode(&message, &mut |name, value| {
        written.push((Bytes::copy_from_slice(name), Bytes::copy_from_slice(value)));
    });
    let written = ctx.broker().carried(written);
    let message = decode(&topic, Position::default(), written.clone()).map_err(|e| e.text)?;
    ctx.inject(&topic, written.clone()).await?;
    let held = member.next().await?;
    same(&message, held.message())?;
    held.ack().await?;
    // The order of attributes means nothing, that of headers stays.
    let (mut first, rest): (Vec<_>, Vec<_>) = written
        .into_iter()
        .partition(|(n, _)| n.starts_with(b"ce_") || n == "data");
    for n in (1..first.len()).rev() {
        first.swap(n, ctx.pick(0, n));
    }
    ctx.inject(&topic, rest.into_iter().chain(first).collect())
        .await?;
    let held = member.next().await?;
    same(&message, held.message()).map_err(|e| format!("in another order: {e}"))?;
    held.ack().await?;
    let bare = [
        ("ce_specversion", "1.0"),
        ("ce_id", "7"),
        ("ce_source", "s"),
        ("ce_type", "t"),
    ];
    ctx.inject(&topic, fields(&bare)).await?;
    let held = member.next().await?;
    ensure!(
        held.id() == "7"
            && held.source() == "s"
            && held.get_kind() == "t"
            && held.payload().is_empty(),
        "an event without data came as {:?}",
        held.message()
    );
    held.ack().await?;
    let unknown = [("ce_dataref", "x"), ("ce_priority", "high"), ("data", "d")];
    ctx.inject(&topic, fields(&[&bare[..], &unknown].concat()))
        .await?;
    let held = member.next().await?;
    ensure!(
        headers_of(&held) == [("ce_dataref".to_owned(), b"x".to_vec())]
            && held.get_priority() == Priority::High
            && held.payload().as_ref() == b"d",
        "an event with an unknown attribute came as {:?}",
        held.message()
    );
    held.ack().await?;
    Ok(())
}

async fn a_plain_entry_comes_back_and_is_dead_lettered_as_it_is(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let (agent, member) = consumer(&ctx, &topic).await?;
    let entry: [(&str, &[u8]); 5] = [
        ("twice", b"a"),
        ("data", b"\0payload\xff"),
        ("twice", b"b"),
        ("binary", b"\xff\xfe"),
        ("content-type", b"x/y"),
    ];
    let entry = ctx.broker().carried(fields(&entry));
    ctx.inject(&topic, entry).await?;
    let held = member.next().await?;
    let first = held.message().clone();
    held.nack().await?;
    let held = member.next().await?;
    ensure!(
        held.attempt() == 2,
        "after a nack it is attempt {}",
        held.attempt()
    );
    same(&first, held.message())?;
    held.reject("not ours").await?;
    let letters = dead_letters(&ctx, &agent, &topic, "billing", 1).await?;
    same(&first, &letters[0]).map_err(|e| format!("the dead letter: {e}"))?;
    let record = letters[0].record().ok_or("a dead letter has no record")?;
    ensure!(
        record.reason.code == ReasonCode::Rejected && record.position == first.id(),
        "its record: {record:?}"
    );
    Ok(())
}

async fn plain_entries_and_messages_in_turns(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let (agent, member) = consumer(&ctx, &topic).await?;
    let count = ctx.pick(10, 30);
    for n in 0..count {
        ctx.inject(&topic, fields(&[("data", format!("foreign {n}"))]))
            .await?;
        agent.publish(ctx.message(&topic)).await?;
    }
    let mut foreign = 0;
    for held in member.take(2 * count).await? {
        if held.source() == FOREIGN_SOURCE {
            let wanted = format!("foreign {foreign}");
            ensure!(
                held.payload() == wanted.as_bytes(),
                "{wanted} came as {:?}",
                held.payload()
            );
            foreign += 1;
        }
        held.ack().await?;
    }
    ensure!(
        foreign == count,
        "{foreign} of {count} foreign entries came"
    );
    quiet(&member, ctx.lease() / 4).await
}
