//! Headers and attributes.

use std::time::{Duration, SystemTime};

use mas_transport_core::{
    Attribute, ErrorKind, HeaderValue, MAX_ATTRIBUTE, MAX_HEADER_NAME, MAX_HEADER_VALUE,
    MAX_HEADERS, MAX_HEADERS_TOTAL, Message, Stored, Topic,
};

use super::support::{ensure, loaded, long_leased, same};
use crate::ctx::Ctx;
use crate::harness::{Failure, Verdict};
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(B2, everything_at_once),
    trial!(B2, each_attribute_alone),
    trial!(B2, what_is_not_set_is_not_there),
    trial!(B2, header_values_of_every_kind),
    trial!(B2, header_names_of_every_kind),
    trial!(B2, the_most_headers_and_the_longest),
    trial!(B2, headers_keep_their_order),
    trial!(B2, what_may_not_be_written_is_refused),
];

/// Publishes the messages and gives them as they came out, in the same order.
async fn there_and_back(ctx: &Ctx, messages: &[Message]) -> Result<Vec<Message>, Failure> {
    let topic = messages[0].topic().clone();
    let agent = ctx.agent().await?;
    let member = ctx
        .agent()
        .await?
        .join(&long_leased(ctx, &topic, "billing"))
        .await?;
    agent.publish_all(messages.to_vec()).await?;
    let mut came = vec![None; messages.len()];
    for held in member.take(messages.len()).await? {
        let at = messages.iter().position(|m| m.id() == held.id());
        let at = at.ok_or_else(|| format!("{held:?} came, and was not expected"))?;
        came[at] = Some(held.message().clone());
        held.ack().await?;
    }
    let came: Option<Vec<_>> = came.into_iter().collect();
    came.ok_or_else(|| "a message came twice".into())
}

async fn unchanged(ctx: &Ctx, messages: Vec<Message>) -> Verdict {
    for (sent, came) in messages.iter().zip(there_and_back(ctx, &messages).await?) {
        same(sent, &came)?;
        ensure!(
            came.topic() == sent.topic(),
            "the topic of {} is {}",
            sent.id(),
            came.topic()
        );
        ensure!(came.record().is_none(), "{} came with a record", sent.id());
    }
    Ok(())
}

fn plain(topic: &Topic, id: impl Into<String>) -> Message {
    Message::assemble(topic.clone(), id.into(), "payload".into())
}

async fn everything_at_once(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let messages = (0..5).map(|_| loaded(&ctx, &topic)).collect();
    unchanged(&ctx, messages).await
}

/// So that one which is written into the place of another, or only beside another, is found.
async fn each_attribute_alone(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let mut messages = Vec::new();
    for &attribute in Attribute::ALL {
        if attribute == Attribute::IdempotencyKey && !ctx.capabilities().dedup {
            continue;
        }
        let name = attribute.wire_name();
        for value in [
            format!("only {name}"),
            "x".repeat(MAX_ATTRIBUTE),
            " ".into(),
            "ß🦀".into(),
        ] {
            let id = format!("{name} {}", messages.len());
            messages.push(plain(&topic, id).set_attribute(attribute, value));
        }
    }
    let moment = SystemTime::UNIX_EPOCH + Duration::new(1_795_243_200, 123_456_789);
    messages.extend([
        plain(&topic, "a key").key("only a key"),
        plain(&topic, "a long key").key("k".repeat(MAX_ATTRIBUTE)),
        plain(&topic, "a content type").content_type("application/cloudevents+json"),
        plain(&topic, "a type").kind("only a type"),
        plain(&topic, "a source").from_source("only a source"),
        plain(&topic, "a tag").tag("only a tag"),
        plain(&topic, "tags").tag("b").tag("a").tag("b"),
        plain(&topic, "a time").time(moment),
        plain(&topic, "a time long ago").time(SystemTime::UNIX_EPOCH - Duration::from_millis(1)),
        plain(&topic, "attempts").max_attempts(0),
        plain(&topic, "many attempts").max_attempts(u32::MAX),
        plain(&topic, "a timeout").processing_timeout(Duration::from_millis(1)),
        plain(&topic, "no timeout").processing_timeout(Duration::ZERO),
        plain(&topic, "i".repeat(MAX_ATTRIBUTE)),
        plain(&topic, "an id of ß 漢字 🦀 and \"quotes\""),
    ]);
    unchanged(&ctx, messages).await
}

async fn what_is_not_set_is_not_there(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let came = there_and_back(&ctx, &[plain(&topic, "bare")])
        .await?
        .remove(0);
    ensure!(
        came.get_key().is_none()
            && came.get_content_type().is_none()
            && came.headers().is_empty()
            && came.attributes().next().is_none()
            && came.tags().is_empty()
            && came.get_time().is_none()
            && came.expires_at().is_none()
            && came.get_delay().is_none()
            && came.get_max_attempts().is_none()
            && came.get_processing_timeout().is_none()
            && came.record().is_none()
            && came.source() == Message::DEFAULT_SOURCE
            && came.get_kind() == Message::DEFAULT_KIND,
        "a bare message came as {came:?}"
    );
    Ok(())
}

async fn header_values_of_every_kind(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let values = [
        "",
        " ",
        "  both ends  ",
        "UPPER lower",
        "größer 漢字 🦀 \u{10ffff}",
        "e\u{301} and é are two",
        "\u{feff}mark",
        "\"double\" 'single' `back`",
        "a=b; c=\"d\", e",
        "%00 %0d%0a &amp; \\n \\0 \\u0000",
        "null",
        "true",
        "0012",
        "1e5",
        "{\"json\": [1]}",
        "/path?x=1#y",
        "!#$%&'*+-.^_`|~(),/:;<=>?@[\\]{}",
    ];
    let mut all = plain(&topic, "all");
    let mut messages = Vec::new();
    for (n, value) in values.into_iter().enumerate() {
        all = all.header(format!("h{n}"), value);
        messages.push(plain(&topic, format!("value {n}")).header("only", value));
    }
    messages.push(all);
    unchanged(&ctx, messages).await
}

async fn header_names_of_every_kind(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let long = "n".repeat(MAX_HEADER_NAME);
    let names = [
        "a",
        "0",
        "-",
        ".",
        "_",
        "a.b",
        "a-b",
        "a_b",
        "id",
        "key",
        "topic",
        "payload",
        "type",
        "source",
        "specversion",
        "ce",
        "ce.id",
        "cex_id",
        "mas",
        "mas_record",
        "nats",
        "data2",
        "content-typed",
        "time",
        "attempt",
        "subject",
        "x-data",
        "trace",
        "traceparent2",
        &long,
    ];
    let mut all = plain(&topic, "all");
    let mut messages = Vec::new();
    for name in names {
        all = all.header(name, format!("value of {name}"));
        messages.push(plain(&topic, format!("name {name}")).header(name, "v"));
    }
    messages.push(all);
    unchanged(&ctx, messages).await
}

async fn the_most_headers_and_the_longest(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let many = (0..MAX_HEADERS).fold(plain(&topic, "many"), |m, n| {
        m.header(format!("h{n}"), format!("{n}"))
    });
    let long = plain(&topic, "long").header("long", "v".repeat(MAX_HEADER_VALUE));
    let mut much = plain(&topic, "much");
    let names = ["a", "b", "c", "d"];
    for name in names {
        much = much.header(name, "w".repeat(MAX_HEADERS_TOTAL / names.len() - 1));
    }
    unchanged(&ctx, vec![many, long, much]).await
}

async fn headers_keep_their_order(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let mut numbers: Vec<usize> = (0..20).collect();
    for n in (1..numbers.len()).rev() {
        numbers.swap(n, ctx.pick(0, n));
    }
    let message = numbers.iter().fold(plain(&topic, "order"), |m, n| {
        m.header(format!("h{n}"), "v")
    });
    let came = there_and_back(&ctx, &[message]).await?.remove(0);
    let names: Vec<_> = came
        .headers()
        .iter()
        .map(|(name, _)| name.to_owned())
        .collect();
    let wanted: Vec<_> = numbers.iter().map(|n| format!("h{n}")).collect();
    ensure!(
        names == wanted,
        "headers written as {wanted:?} came as {names:?}"
    );
    Ok(())
}

/// Byte for byte, or not at all: what some broker would change is refused, and nothing is stored.
async fn what_may_not_be_written_is_refused(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    let message = || plain(&topic, "refused");
    let too_many = (0..=MAX_HEADERS).fold(message(), |m, n| m.header(format!("h{n}"), ""));
    let too_much = (0..5).fold(message(), |m, n| {
        m.header(format!("h{n}"), "v".repeat(4000))
    });
    let mut refused = vec![
        ("no header name", message().header("", "v")),
        ("an upper-case header name", message().header("Name", "v")),
        (
            "a header name in another script",
            message().header("größe", "v"),
        ),
        ("a header name with a space", message().header("a b", "v")),
        ("a header name with a colon", message().header("a:b", "v")),
        (
            "a header name with a line break",
            message().header("a\r\nb", "v"),
        ),
        (
            "a long header name",
            message().header("n".repeat(MAX_HEADER_NAME + 1), "v"),
        ),
        (
            "a header value with CR LF",
            message().header("a", "v\r\nb: c"),
        ),
        ("a header value with NUL", message().header("a", "v\0")),
        ("a header value with a tab", message().header("a", "v\tw")),
        ("a header value with C1", message().header("a", "v\u{85}")),
        (
            "a long header value",
            message().header("a", "v".repeat(MAX_HEADER_VALUE + 1)),
        ),
        (
            "a binary header value",
            message().header("a", HeaderValue::from_bytes(vec![0xff])),
        ),
        (
            "a null header value",
            message().header("a", HeaderValue::null()),
        ),
        (
            "a header twice",
            message().header("a", "1").header("a", "2"),
        ),
        ("too many headers", too_many),
        ("too much in headers", too_much),
        ("no id", message().with_id("")),
        (
            "a long id",
            message().with_id("i".repeat(MAX_ATTRIBUTE + 1)),
        ),
        ("an id with a line break", message().with_id("a\nb")),
        ("no source", message().from_source("")),
        ("no type", message().kind("")),
        ("an empty key", message().key("")),
        ("a key with NUL", message().key("a\0")),
        ("an empty content type", message().content_type("")),
        ("an empty attribute", message().correlation_id("")),
        (
            "a long attribute",
            message().subject("s".repeat(MAX_ATTRIBUTE + 1)),
        ),
        ("a tag with a comma", message().tag("a,b")),
        ("an empty tag", message().tag("")),
        (
            "a time beyond 9999",
            message().time(SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40)),
        ),
    ];
    for name in [
        "data",
        "content-type",
        "traceparent",
        "tracestate",
        "ce_id",
        "ce_x",
        "ce-id",
        "nats-msg-id",
        "mas-record",
        "mas-x",
    ] {
        refused.push(("a reserved header name", message().header(name, "v")));
    }
    for (n, (what, message)) in refused.into_iter().enumerate() {
        let message = match what {
            "no id" | "a long id" | "an id with a line break" => message,
            _ => message.with_id(format!("refused {n}")),
        };
        match agent.publish(message).await {
            Err(e) if e.kind() == ErrorKind::InvalidArgument && e.stored() == Stored::No => {}
            other => return Err(format!("{what} was answered with {other:?}").into()),
        }
    }
    member.nothing().await
}
