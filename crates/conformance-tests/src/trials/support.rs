//! What several trials share.

use std::future::Future;
use std::time::{Duration, SystemTime};

use mas_transport_core::{
    Attribute, Exactness, Group, HeaderValue, Lag, Message, Priority, RECORD_RESERVE, Subscription,
    Topic,
};
use rand::Rng as _;

use crate::agent::{Agent, Member};
use crate::ctx::Ctx;
use crate::harness::{Failure, Verdict};
use crate::registry::Condition;

/// Ends the trial with a finding unless something holds.
macro_rules! ensure {
    ($holds:expr, $($words:tt)+) => {
        if !$holds {
            return Err(format!($($words)+).into());
        }
    };
}
pub(super) use ensure;

/// Any idle member gets what another one gave back: not so in a partitioned log.
pub(super) const ANY_MEMBER: Condition = ("a message goes to the owner of its partition", |c| {
    c.any_member
});

/// How long something that happens at once may take: what the backend declares for a nack, and
/// what the machine adds.
pub(super) fn at_once(ctx: &Ctx) -> Duration {
    ctx.capabilities().nack_latency + ctx.timing().slack
}

/// After this a lease that nobody extended has certainly been given to somebody else.
pub(super) fn past_a_lease(ctx: &Ctx) -> Duration {
    ctx.lease() + ctx.capabilities().reclaim_slack + ctx.timing().slack
}

/// A subscription whose lease does not end within the trial: what comes back was given back.
pub(super) fn long_leased(ctx: &Ctx, topic: &Topic, group: &str) -> Subscription {
    let lease = if ctx.timing().paused {
        Duration::from_secs(3600)
    } else {
        Duration::from_secs(120)
    };
    ctx.subscription(topic, group).lease(lease)
}

/// Watches for a while of the trial's choice that nothing is handed out.
pub(super) async fn quiet(member: &Member, long: Duration) -> Verdict {
    match member.next_within(long).await? {
        Some(held) => Err(format!("within {long:?} there came {held:?}").into()),
        None => Ok(()),
    }
}

/// Looks again and again until there is something to see, within the trial's patience.
pub(super) async fn eventually<T, F>(
    ctx: &Ctx,
    what: &str,
    mut look: impl FnMut() -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<Option<T>, Failure>>,
{
    let looking = async {
        loop {
            if let Some(seen) = look().await? {
                return Ok(seen);
            }
            // Nothing tells when the broker's figures change.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    ctx.soon(what, looking).await?
}

/// Waits until the group has settled everything, as far as the backend can count.
pub(super) async fn all_settled(ctx: &Ctx, agent: &Agent, topic: &Topic, group: &str) -> Verdict {
    if ctx.capabilities().lag == Exactness::Approximate {
        return Ok(());
    }
    lag_becomes(ctx, agent, topic, group, Lag::default()).await
}

/// Waits until the lag is this one.
pub(super) async fn lag_becomes(
    ctx: &Ctx,
    agent: &Agent,
    topic: &Topic,
    group: &str,
    wanted: Lag,
) -> Verdict {
    let group = ctx.group(group)?;
    let last = std::sync::Mutex::new(None);
    let seen = eventually(ctx, "the lag", || async {
        let lag = agent.admin().lag(topic, &group).await?;
        if let Ok(mut last) = last.lock() {
            *last = Some(lag);
        }
        Ok((lag == wanted).then_some(()))
    });
    seen.await
        .map_err(|e| format!("{e}: {wanted:?} was expected, {last:?} came").into())
}

/// Exactly the dead letters that a group has written, read from their topic by a group of their
/// own, in the order of delivery.
pub(super) async fn dead_letters(
    ctx: &Ctx,
    agent: &Agent,
    topic: &Topic,
    group: &str,
    count: usize,
) -> Result<Vec<Message>, Failure> {
    let from = Topic::dead_letters(topic, &ctx.group(group)?);
    read_all(ctx, agent, &from, count).await
}

/// Exactly the messages of a topic that were not read before, by a group of their own.
pub(super) async fn read_all(
    ctx: &Ctx,
    agent: &Agent,
    topic: &Topic,
    count: usize,
) -> Result<Vec<Message>, Failure> {
    let member = agent.join(&ctx.subscription(topic, "reader")).await?;
    let mut messages = Vec::with_capacity(count);
    for n in 0..count {
        let held = member.next().await;
        let held = held.map_err(|e| format!("{e}: {n} of {count} on {topic}"))?;
        messages.push(held.message().clone());
        held.ack().await?;
    }
    let more = member.nothing().await;
    more.map_err(|e| format!("{count} messages were expected on {topic}: {e}"))?;
    member.close().await?;
    Ok(messages)
}

/// The dead-letter topic of a topic and a group.
pub(super) fn letters_of(topic: &Topic, group: &Group) -> Topic {
    Topic::dead_letters(topic, group)
}

/// The largest message that may be published, as [`Message::size`] counts it.
pub(super) fn size_limit(ctx: &Ctx) -> usize {
    ctx.capabilities().max_message_bytes - RECORD_RESERVE
}

/// A message of exactly `size`, its payload random.
pub(super) fn sized(ctx: &Ctx, topic: &Topic, size: usize) -> Message {
    let message = ctx.message(topic).with_payload(Default::default());
    let payload = random_bytes(ctx, size.saturating_sub(message.size()));
    message.with_payload(payload.into())
}

/// So many random bytes.
pub(super) fn random_bytes(ctx: &Ctx, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    ctx.rng().fill(bytes.as_mut_slice());
    bytes
}

/// A message with everything on it that the backend takes.
pub(super) fn loaded(ctx: &Ctx, topic: &Topic) -> Message {
    let can = ctx.capabilities();
    let mut rng = ctx.rng();
    let moment = Duration::new(
        rng.random_range(0..4_000_000_000),
        rng.random_range(0..1_000_000_000),
    );
    let mut message = ctx
        .message(topic)
        .with_payload(random_bytes(ctx, ctx.pick(1, 3000)).into())
        .with_id(format!("id/ {}?*\"é漢🦀", rng.random::<u64>()))
        .from_source("/agents/plännër?x=1&y=%20")
        .kind("order.Created v2 ✓")
        .content_type("text/plain; charset=\"utf-8\"")
        .key(format!("Kunde {} ß", rng.random_range(0..9)))
        .tag("a b")
        .tag("Größe")
        .tag("x=1")
        .time(SystemTime::UNIX_EPOCH + moment)
        .max_attempts(rng.random_range(1..99))
        .processing_timeout(Duration::from_millis(rng.random_range(1..10_000_000)));
    for &attribute in Attribute::ALL {
        if attribute == Attribute::IdempotencyKey && !can.dedup {
            continue;
        }
        let value = format!("{} = {:x} ŷ", attribute.wire_name(), rng.random::<u32>());
        message = message.set_attribute(attribute, value);
    }
    if can.ttl {
        message = message.ttl(Duration::from_secs(24 * 3600));
    }
    if can.priority {
        message = message.priority(Priority::High);
    }
    for (name, value) in [
        ("z-last-comes-first", "1"),
        ("a", "  spaces around  "),
        ("a.b", ""),
        ("a_b", "\"quotes\" 'and' \\ back\\slash"),
        ("a-b", "%41 percent, comma; semicolon: colon = equals"),
        ("b0", "größer als 漢字 🦀 \u{feff}\u{200d}"),
    ] {
        message = message.header(name, value);
    }
    message
}

/// Checks that a message came out as it went in, and says what did not.
pub(super) fn same(want: &Message, got: &Message) -> Verdict {
    let id = want.id();
    let (sent, came) = (want.payload(), got.payload());
    if sent != came {
        let at = sent.iter().zip(came.iter()).position(|(a, b)| a != b);
        return Err(format!(
            "the payload of {id} had {} bytes and has {}, first different at {at:?}",
            sent.len(),
            came.len(),
        )
        .into());
    }
    let headers = |m: &Message| -> Vec<(String, HeaderValue)> {
        let all = m.headers().iter();
        all.map(|(n, v)| (n.to_owned(), v.clone())).collect()
    };
    let attributes = |m: &Message| -> Vec<(Attribute, String)> {
        m.attributes().map(|(a, v)| (a, v.to_owned())).collect()
    };
    differ("id", want.id(), got.id())?;
    differ("source", want.source(), got.source())?;
    differ("type", want.get_kind(), got.get_kind())?;
    differ(
        "content type",
        want.get_content_type(),
        got.get_content_type(),
    )?;
    differ("key", want.get_key(), got.get_key())?;
    differ("priority", want.get_priority(), got.get_priority())?;
    differ("headers", headers(want), headers(got))?;
    differ("attributes", attributes(want), attributes(got))?;
    differ("tags", want.tags(), got.tags())?;
    differ("time", want.get_time(), got.get_time())?;
    differ("expiry", want.expires_at(), got.expires_at())?;
    differ(
        "attempts asked for",
        want.get_max_attempts(),
        got.get_max_attempts(),
    )?;
    differ(
        "processing timeout",
        want.get_processing_timeout(),
        got.get_processing_timeout(),
    )
}

fn differ<T: PartialEq + std::fmt::Debug>(what: &str, want: T, got: T) -> Verdict {
    ensure!(want == got, "{what}: {want:?} went in, {got:?} came out");
    Ok(())
}
