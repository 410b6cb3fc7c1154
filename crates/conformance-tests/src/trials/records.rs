//! Dead letters: what is in them.

use std::time::Duration;

use mas_transport_core::clock::now_utc;
use mas_transport_core::{
    ErrorKind, MAX_HISTORY, MAX_REASON, Message, ReasonCode, Record, Stored, unix_ms,
};

use super::support::{
    dead_letters, ensure, letters_of, loaded, long_leased, read_all, same, size_limit, sized,
};
use crate::ctx::Ctx;
use crate::harness::{Failure, Verdict};
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(A4, a_letter_is_the_original),
    trial!(A4, a_record_tells_where_when_and_why),
    trial!(A4, a_record_keeps_the_newest_failures),
    trial!(A4, a_long_reason_is_cut_at_a_character),
    trial!(A4, the_largest_message_fits_with_its_record),
    trial!(A4, large_headers_fit_with_the_record_or_are_refused),
    trial!(A4, letters_are_consumed_like_any_message),
    trial!(A4, letters_of_topics_and_groups_are_apart),
];

fn record_of(letter: &Message) -> Result<&Record, Failure> {
    letter
        .record()
        .ok_or_else(|| "a dead letter has no record".into())
}

/// Everything on the message, whichever way it went there.
async fn a_letter_is_the_original(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = ctx.subscription(&topic, "billing").max_attempts(2);
    let member = agent.join(&subscription).await?;
    for rejected in [true, false] {
        let mut messages = vec![
            loaded(&ctx, &topic),
            ctx.message(&topic).with_payload(Default::default()),
            ctx.message(&topic)
                .with_payload((&b"\0\r\n\xff\xfe data \0"[..]).into()),
        ];
        messages[1] = messages[1].clone().header("empty", "");
        agent.publish_all(messages.clone()).await?;
        for held in member.take(messages.len()).await? {
            match rejected {
                true => held.reject("no").await?,
                false => held.nack().await?,
            }
        }
        if !rejected {
            for held in member.take(messages.len()).await? {
                held.nack().await?;
            }
        }
        let from = letters_of(&topic, &ctx.group("billing")?);
        let letters = read_all(&ctx, &agent, &from, 3).await?;
        for message in &messages {
            let Some(letter) = letters.iter().find(|l| l.id() == message.id()) else {
                return Err(format!("{} has no dead letter", message.id()).into());
            };
            same(message, letter)?;
            ensure!(
                *letter.topic() == from,
                "a letter read from {from} says it is of {}",
                letter.topic()
            );
            let code = match rejected {
                true => ReasonCode::Rejected,
                false => ReasonCode::MaxAttempts,
            };
            let record = record_of(letter)?;
            ensure!(
                record.reason.code == code,
                "{code:?} was expected: {record:?}"
            );
        }
    }
    member.nothing().await
}

async fn a_record_tells_where_when_and_why(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders.eu")?;
    let agent = ctx.agent().await?;
    let subscription = ctx
        .subscription(&topic, "billing")
        .max_attempts(3)
        .member("worker-7");
    let member = agent.join(&subscription).await?;
    let receipt = agent.publish(ctx.message(&topic)).await?;
    let began = unix_ms(now_utc());
    let held = member.next().await?;
    ensure!(
        held.position() == receipt.position,
        "it was stored at {} and delivered from {}",
        receipt.position,
        held.position()
    );
    held.nack().await?;
    let first = unix_ms(now_utc());
    tokio::time::sleep(ctx.lease() / 4).await;
    let held = member.next().await?;
    let second = unix_ms(now_utc());
    held.reject("unknown article 17: größer ✗").await?;
    let done = unix_ms(now_utc());
    let letters = dead_letters(&ctx, &agent, &topic, "billing", 1).await?;
    let record = record_of(&letters[0])?;
    ensure!(record.version == Record::VERSION, "version: {record:?}");
    ensure!(
        record.reason.code == ReasonCode::Rejected
            && record.reason.text == "unknown article 17: größer ✗",
        "reason: {record:?}"
    );
    ensure!(record.topic == topic.as_str(), "topic: {record:?}");
    ensure!(record.group == "billing", "group: {record:?}");
    ensure!(
        record.position == receipt.position.to_string(),
        "position, {} is right: {record:?}",
        receipt.position
    );
    ensure!(record.attempts == 2, "attempts: {record:?}");
    ensure!(record.member.starts_with("worker-7"), "member: {record:?}");
    ensure!(
        (began..=first).contains(&record.first_failure_ms)
            && (second..=done).contains(&record.last_failure_ms),
        "times, {began} to {first} and {second} to {done} are right: {record:?}"
    );
    let history: Vec<_> = record
        .history
        .iter()
        .map(|f| (f.attempt, f.what.as_str()))
        .collect();
    ensure!(
        history == [(1, "nack"), (2, "rejected: unknown article 17: größer ✗")],
        "history: {record:?}"
    );
    ensure!(
        record.history[0].at_ms == record.first_failure_ms
            && (second..=done).contains(&record.history[1].at_ms),
        "times of the history: {record:?}"
    );
    Ok(())
}

async fn a_record_keeps_the_newest_failures(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let attempts = u32::try_from(MAX_HISTORY + ctx.pick(1, 5))?;
    let subscription = long_leased(&ctx, &topic, "billing").max_attempts(attempts);
    let member = agent.join(&subscription).await?;
    agent.publish(ctx.message(&topic)).await?;
    for _ in 0..attempts {
        member.next().await?.nack().await?;
    }
    let letters = dead_letters(&ctx, &agent, &topic, "billing", 1).await?;
    let record = record_of(&letters[0])?;
    let told: Vec<_> = record.history.iter().map(|f| f.attempt).collect();
    let oldest = attempts + 1 - u32::try_from(MAX_HISTORY)?;
    let newest: Vec<_> = (oldest..=attempts).collect();
    ensure!(
        told == newest,
        "of {attempts} failures the record tells of {told:?}, not of the newest {MAX_HISTORY}"
    );
    Ok(())
}

async fn a_long_reason_is_cut_at_a_character(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    agent.publish(ctx.message(&topic)).await?;
    let reason = format!("x{}", "é\u{1}".repeat(MAX_REASON));
    member.next().await?.reject(&reason).await?;
    let letters = dead_letters(&ctx, &agent, &topic, "billing", 1).await?;
    let text = &record_of(&letters[0])?.reason.text;
    ensure!(
        reason.starts_with(text.as_str()) && (MAX_REASON - 3..=MAX_REASON).contains(&text.len()),
        "a reason of {} bytes became one of {}",
        reason.len(),
        text.len()
    );
    Ok(())
}

/// The limit leaves room for a record: the largest message, with the longest one, is dead-lettered.
async fn the_largest_message_fits_with_its_record(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let attempts = u32::try_from(MAX_HISTORY + 1)?;
    let subscription = long_leased(&ctx, &topic, "billing").max_attempts(attempts);
    let member = agent.join(&subscription).await?;
    let message = sized(&ctx, &topic, size_limit(&ctx));
    agent.publish(message.clone()).await?;
    for _ in 1..attempts {
        member.next().await?.nack().await?;
    }
    // Each of these takes six bytes in JSON.
    member
        .next()
        .await?
        .reject("\u{1}".repeat(MAX_REASON))
        .await?;
    let letters = dead_letters(&ctx, &agent, &topic, "billing", 1).await?;
    same(&message, &letters[0])?;
    let record = record_of(&letters[0])?;
    ensure!(
        record.attempts == attempts && record.reason.text.len() == MAX_REASON,
        "its record: {record:?}"
    );
    member.nothing().await
}

/// Brokers bound headers apart from the rest: what was taken in can be buried.
async fn large_headers_fit_with_the_record_or_are_refused(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    let mut taken = Vec::new();
    // Some have to be encoded, and are three times as large then.
    for (what, parts) in [("x", 4), ("é", 4), ("x", 7), ("é", 7)] {
        let mut message = ctx.message(&topic);
        for part in 0..parts {
            let value = what.repeat((2 << 10) / what.len());
            message = message.header(format!("part-{part}"), value);
        }
        match agent.publish(message.clone()).await {
            Ok(_) => {
                let reason = "\u{1}".repeat(MAX_REASON);
                member.next().await?.reject(reason).await?;
                taken.push(message);
            }
            Err(e) if e.kind() == ErrorKind::TooLarge && e.stored() == Stored::No => {}
            Err(e) => return Err(format!("{parts} headers of {what:?}: {e}").into()),
        }
    }
    ensure!(!taken.is_empty(), "8 KiB of headers are too many");
    let letters = dead_letters(&ctx, &agent, &topic, "billing", taken.len()).await?;
    for message in &taken {
        let letter = letters.iter().find(|l| l.id() == message.id());
        let letter = letter.ok_or_else(|| format!("no letter of {}", message.id()))?;
        same(message, letter)?;
        record_of(letter)?;
    }
    member.nothing().await
}

/// Nacked, redelivered with its record, acked, by several groups.
async fn letters_are_consumed_like_any_message(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    let message = loaded(&ctx, &topic);
    agent.publish(message.clone()).await?;
    member.next().await?.reject("why not").await?;
    let from = letters_of(&topic, &ctx.group("billing")?);
    let undertaker = agent.join(&ctx.subscription(&from, "undertaker")).await?;
    let archive = agent.join(&ctx.subscription(&from, "archive")).await?;
    for reader in [undertaker, archive] {
        for attempt in 1..=2 {
            let held = reader.next().await?;
            same(&message, held.message())?;
            ensure!(
                held.attempt() == attempt,
                "attempt {attempt} is {}",
                held.attempt()
            );
            let reason = record_of(held.message())?.reason.text.clone();
            ensure!(
                reason == "why not",
                "attempt {attempt}: the reason is {reason:?}"
            );
            match attempt {
                1 => held.nack().await?,
                _ => held.ack().await?,
            }
        }
        reader.nothing().await?;
    }
    Ok(())
}

/// Names that differ by a dot, or look like one another's dead letters, share nothing.
async fn letters_of_topics_and_groups_are_apart(ctx: Ctx) -> Verdict {
    let agent = ctx.agent().await?;
    let pairs = [
        ("a.b", "c"),
        ("b", "c-a"),
        ("a", "c"),
        ("a.b", "c2"),
        ("c.a.b", "c"),
    ];
    let mut members = Vec::new();
    for (topic, group) in pairs {
        let topic = ctx.topic(topic)?;
        let reading = long_leased(&ctx, &topic, group);
        members.push((agent.join(&reading).await?, topic.clone(), group));
    }
    let mut topics: Vec<_> = members.iter().map(|(_, topic, _)| topic.clone()).collect();
    topics.sort();
    topics.dedup();
    for topic in topics {
        agent.publish(ctx.message(&topic)).await?;
    }
    for (member, topic, group) in &members {
        let held = member.next().await?;
        ensure!(held.topic() == topic, "{topic}/{group} was handed {held:?}");
        held.reject(format!("by {group} on {topic}")).await?;
    }
    for (member, topic, group) in &members {
        let letters = dead_letters(&ctx, &agent, topic, group, 1).await?;
        let reason = &record_of(&letters[0])?.reason.text;
        ensure!(
            *reason == format!("by {group} on {topic}"),
            "the dead letter of {group} on {topic} says {reason:?}"
        );
        drop(member.next_within(Duration::from_millis(1)).await?);
    }
    Ok(())
}
