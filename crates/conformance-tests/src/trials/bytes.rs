//! Payloads: every byte, every size, every time.

use mas_transport_core::{ErrorKind, Message, Stored, Topic};

use super::support::{
    ANY_MEMBER, dead_letters, ensure, eventually, loaded, long_leased, past_a_lease, quiet,
    random_bytes, same, size_limit, sized,
};
use crate::agent::{Agent, Member};
use crate::ctx::Ctx;
use crate::harness::{Ability, Verdict};
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(B1, payloads_of_every_kind),
    trial!(B1, payloads_of_many_sizes),
    trial!(B1, every_byte_of_the_largest_message),
    trial!(B1, payloads_that_look_like_a_protocol),
    trial!(B3, a_nacked_message_comes_back_as_it_was),
    trial!(B3, a_lapsed_or_returned_message_comes_back_as_it_was).when(ANY_MEMBER.0, ANY_MEMBER.1),
    trial!(B3, a_dead_process_changes_nothing).needs(&[Ability::Crash]),
    trial!(B3, what_a_handler_does_to_its_copy_stays_there),
    trial!(B4, the_limit_is_exact),
    trial!(B4, everything_on_a_message_counts).once(),
    trial!(B4, far_too_large_is_refused_too).once(),
    trial!(B4, a_refused_message_leaves_nothing_behind),
];

/// Publishes the messages one after the other, and checks each as it comes out.
async fn round_trip(member: &Member, agent: &Agent, messages: Vec<Message>) -> Verdict {
    for outcome in agent.publish_batch(messages.clone()).await {
        outcome?;
    }
    let mut left = messages;
    while !left.is_empty() {
        let held = member.next().await?;
        let Some(at) = left.iter().position(|m| m.id() == held.id()) else {
            return Err(format!("{held:?} came, and was not expected").into());
        };
        same(&left.swap_remove(at), held.message())?;
        held.ack().await?;
    }
    Ok(())
}

fn with_payloads(ctx: &Ctx, topic: &Topic, payloads: Vec<Vec<u8>>) -> Vec<Message> {
    let payloads = payloads.into_iter();
    payloads
        .map(|p| ctx.message(topic).with_payload(p.into()))
        .collect()
}

async fn payloads_of_every_kind(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    let all: Vec<u8> = (0..=255).collect();
    let mut payloads = vec![
        vec![],
        vec![0],
        vec![0; 100],
        b"ends with nul\0".to_vec(),
        b"\0begins with nul".to_vec(),
        b"in\0between".to_vec(),
        b" spaces \t\r\n".to_vec(),
        b"\xef\xbb\xbfwith a mark".to_vec(),
        b"\xff\xfe\xfd not UTF-8 \xc3\x28 \xed\xa0\x80".to_vec(),
        "größer 漢字 🦀 e\u{301}".as_bytes().to_vec(),
        b"{ \"b\" : 1.0,\"a\":[ 1e2 ,null] }\n".to_vec(),
        all.iter().rev().copied().collect(),
        all,
    ];
    // Each byte alone, and at both ends.
    payloads.extend((0..=255).map(|b| vec![b]));
    payloads.push([&[ctx.pick(0, 255) as u8], random_bytes(&ctx, 50).as_slice()].concat());
    round_trip(&member, &agent, with_payloads(&ctx, &topic, payloads)).await
}

async fn payloads_of_many_sizes(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    let mut sizes = vec![];
    for power in 0..=17 {
        let size: usize = 1 << power;
        sizes.extend([size - 1, size, size + 1]);
    }
    sizes.push(ctx.pick(1, 200_000));
    let payloads = sizes.into_iter().map(|n| random_bytes(&ctx, n)).collect();
    round_trip(&member, &agent, with_payloads(&ctx, &topic, payloads)).await
}

/// The largest message there may be, delivered, delivered again, and as a dead letter.
async fn every_byte_of_the_largest_message(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = long_leased(&ctx, &topic, "billing").max_attempts(2);
    let member = agent.join(&subscription).await?;
    let message = sized(&ctx, &topic, size_limit(&ctx));
    ensure!(
        message.size() == size_limit(&ctx),
        "the trial made a message of another size"
    );
    agent.publish(message.clone()).await?;
    for attempt in 1..=2 {
        let held = member.next().await?;
        same(&message, held.message()).map_err(|e| format!("attempt {attempt}: {e}"))?;
        held.nack().await?;
    }
    let letters = dead_letters(&ctx, &agent, &topic, "billing", 1).await?;
    same(&message, &letters[0]).map_err(|e| format!("the dead letter: {e}").into())
}

async fn payloads_that_look_like_a_protocol(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    let payloads = [
        "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n",
        "-ERR no\r\n",
        "$-1\r\n",
        "NATS/1.0 503\r\n\r\n",
        "PUB a 1\r\nx\r\n",
        "+OK\r\n",
        "data",
        "ce_specversion",
        "mas-record",
        "\u{1}\0\0\0\0\0\0\0\u{1}n",
        "%00%0d%0a",
        "\\x00\\n",
        "null",
        "\"\"",
    ];
    let payloads = payloads.map(|p| p.as_bytes().to_vec()).to_vec();
    round_trip(&member, &agent, with_payloads(&ctx, &topic, payloads)).await
}

async fn a_nacked_message_comes_back_as_it_was(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = ctx.subscription(&topic, "billing").max_attempts(9);
    let member = agent.join(&subscription).await?;
    let message = loaded(&ctx, &topic);
    let receipt = agent.publish(message.clone()).await?;
    for attempt in 1..=4 {
        let held = member.next().await?;
        same(&message, held.message()).map_err(|e| format!("attempt {attempt}: {e}"))?;
        ensure!(
            held.position() == receipt.position && *held.topic() == topic,
            "attempt {attempt} is from {} of {}, the receipt says {}",
            held.position(),
            held.topic(),
            receipt.position
        );
        match attempt {
            1 => held.nack().await?,
            2 => held.nack_after(ctx.lease() / 10).await?,
            3 => drop(held),
            _ => held.ack().await?,
        }
    }
    Ok(())
}

async fn a_lapsed_or_returned_message_comes_back_as_it_was(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = ctx.subscription(&topic, "billing").prefetch(2);
    let message = loaded(&ctx, &topic);
    // Returned: it waits in the buffer behind another one when its consumer is closed.
    agent
        .publish_all(vec![ctx.message(&topic), message.clone()])
        .await?;
    let one = agent.join(&subscription).await?;
    let held = one.next().await?;
    let first = held.message().clone();
    held.ack().await?;
    one.close().await?;
    // Lapsed.
    let second = if first.id() == message.id() {
        None
    } else {
        Some(message)
    };
    let two = agent.join(&subscription).await?;
    let held = two.next().await?;
    if let Some(second) = &second {
        same(second, held.message()).map_err(|e| format!("returned: {e}"))?;
    }
    let want = held.message().clone();
    held.hang();
    let three = agent.join(&subscription).await?;
    let held = three.next().await?;
    same(&want, held.message()).map_err(|e| format!("lapsed: {e}"))?;
    held.ack().await?;
    Ok(())
}

async fn a_dead_process_changes_nothing(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let sender = ctx.agent().await?;
    let subscription = ctx.subscription(&topic, "billing").max_attempts(9);
    let message = loaded(&ctx, &topic);
    sender.publish(message.clone()).await?;
    let mut dead = Vec::new();
    for attempt in 1..=2 {
        let mortal = ctx.mortal_agent().await?;
        let member = mortal.join(&subscription).await?;
        let held = member.next().await?;
        same(&message, held.message()).map_err(|e| format!("attempt {attempt}: {e}"))?;
        held.hang();
        mortal.crash()?;
        dead.push((mortal, member));
    }
    let member = sender.join(&subscription).await?;
    let held = member.next().await?;
    same(&message, held.message()).map_err(|e| format!("after two deaths: {e}"))?;
    held.ack().await?;
    Ok(())
}

/// A message is the handler's to change; the next attempt and the dead letter are the original.
async fn what_a_handler_does_to_its_copy_stays_there(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    let message = loaded(&ctx, &topic);
    agent.publish(message.clone()).await?;
    for attempt in 1..=2 {
        let held = member.next().await?;
        same(&message, held.message()).map_err(|e| format!("attempt {attempt}: {e}"))?;
        let changed = held.message().clone().header("x-seen-by", "billing");
        let changed = changed
            .with_payload("changed".into())
            .key("other")
            .kind("other");
        drop(changed);
        match attempt {
            1 => held.nack().await?,
            _ => held.reject("x").await?,
        }
    }
    let letters = dead_letters(&ctx, &agent, &topic, "billing", 1).await?;
    same(&message, &letters[0])
}

fn is_too_large<T: std::fmt::Debug>(
    what: &str,
    limit: usize,
    answer: mas_transport_core::Result<T>,
) -> Verdict {
    match answer {
        Err(e) if e.kind() == ErrorKind::TooLarge && e.stored() == Stored::No => {
            let says = e.to_string();
            ensure!(
                says.contains(&limit.to_string()),
                "{what} was refused without the limit, {limit}: {says}"
            );
            Ok(())
        }
        other => Err(format!("{what} was answered with {other:?}").into()),
    }
}

async fn the_limit_is_exact(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    let limit = size_limit(&ctx);
    let fits = vec![sized(&ctx, &topic, limit - 1), sized(&ctx, &topic, limit)];
    for over in [1, 2, 1000] {
        let answer = agent.publish(sized(&ctx, &topic, limit + over)).await;
        is_too_large(&format!("a message of the limit and {over}"), limit, answer)?;
    }
    // Below the pump the answer is the same: the backend checks.
    let over = ctx
        .try_publish_raw(agent.transport(), vec![sized(&ctx, &topic, limit + 1)])
        .await;
    for answer in over {
        is_too_large("a message of the limit and 1", limit, answer)?;
    }
    round_trip(&member, &agent, fits).await?;
    member.nothing().await
}

/// Payload, headers, key, tags and every other attribute: whichever takes it over the limit.
async fn everything_on_a_message_counts(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    let limit = size_limit(&ctx);
    let all = |n: usize| {
        let bare = ctx.message(&topic).with_payload(Default::default());
        let bare = bare
            .key("k")
            .tag("t")
            .subject("s")
            .kind("kind")
            .from_source("source");
        let room = limit - n - bare.size();
        bare.with_payload(random_bytes(&ctx, room).into())
    };
    type More = fn(Message) -> Message;
    let more: [(&str, More); 8] = [
        ("the payload", |m| {
            let longer = [m.payload().as_ref(), b"x"].concat();
            m.with_payload(longer.into())
        }),
        ("a header's name", |m| m.header("h", "")),
        ("a header's value", |m| m.header("h", "v")),
        ("the key", |m| m.key("kk")),
        ("a tag", |m| m.tag("t")),
        ("an attribute", |m| m.subject("ss")),
        ("the type", |m| m.kind("kinds")),
        ("the source", |m| m.from_source("sources")),
    ];
    for (what, more) in more {
        let over = more(all(0));
        ensure!(
            over.size() > limit,
            "{what} does not count: {} bytes",
            over.size()
        );
        is_too_large(what, limit, agent.publish(over).await)?;
        let fits = more(all(2));
        ensure!(
            fits.size() <= limit,
            "{what}: the trial's message has {} bytes",
            fits.size()
        );
        let there = round_trip(&member, &agent, vec![fits]).await;
        there.map_err(|e| format!("{what}: {e}"))?;
    }
    member.nothing().await
}

async fn far_too_large_is_refused_too(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    let huge = Message::assemble(topic.clone(), "huge".into(), vec![7; 20 << 20].into());
    let many = vec![ctx.message(&topic), huge.clone(), ctx.message(&topic)];
    is_too_large("20 MiB", size_limit(&ctx), agent.publish(huge).await)?;
    let mut outcomes = agent.publish_batch(many).await;
    is_too_large("20 MiB in a batch", size_limit(&ctx), outcomes.remove(1))?;
    for outcome in outcomes {
        outcome?;
    }
    for held in member.take(2).await? {
        held.ack().await?;
    }
    member.nothing().await
}

/// Refused before the wire: no topic is made, nothing waits for anybody, and no room is taken.
async fn a_refused_message_leaves_nothing_behind(ctx: Ctx) -> Verdict {
    let (topic, untouched) = (ctx.topic("orders")?, ctx.topic("untouched")?);
    let agent = ctx.agent_on(
        ctx.connect().await?,
        mas_transport_core::PublishOptions {
            queue_messages: 2,
            ..Default::default()
        },
    );
    for _ in 0..5 {
        let message = sized(&ctx, &untouched, size_limit(&ctx) + 1);
        is_too_large(
            "a message of the limit and 1",
            size_limit(&ctx),
            agent.publish(message).await,
        )?;
    }
    agent.publish(ctx.message(&topic)).await?;
    let topics = agent.admin().topics().await?;
    ensure!(
        !topics.contains(&untouched) && topics.contains(&topic),
        "after a refused message to {untouched} and another to {topic} there are {topics:?}"
    );
    let member = agent.join(&ctx.subscription(&untouched, "billing")).await?;
    quiet(&member, past_a_lease(&ctx) / 4).await?;
    let group = ctx.group("billing")?;
    eventually(&ctx, "a lag of nothing", || async {
        let lag = agent.admin().lag(&untouched, &group).await?;
        Ok((lag.waiting + lag.pending == 0).then_some(()))
    })
    .await
}
