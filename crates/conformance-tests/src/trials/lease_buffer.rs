//! What waits in the buffer is kept or given back (L6).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use mas_transport_core::{
    ConsumerEvent, Event, Exactness, Fetch, Outcome, Result, Settle, Settled, Token, Want,
};
use tokio::time::{Instant, sleep_until};

use super::tools::{equal, ids, same};
use crate::checker::Flaw;
use crate::ctx::Ctx;
use crate::harness::Verdict;
use crate::layers::{Hooks, Joined};
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(L6, the_buffer_of_a_working_member_does_not_age),
    trial!(L6, what_joins_the_buffer_later_does_not_age_either),
    trial!(L6, a_member_whose_handlers_hang_gives_its_buffer_up),
    trial!(L6, a_member_whose_handlers_hang_takes_no_more),
    trial!(L6, the_window_is_never_exceeded),
    trial!(L6, the_window_in_bytes_is_never_exceeded),
    trial!(L6, a_paused_member_gives_its_buffer_up),
];

/// One message after the other, each within its lease, all together far longer than one.
async fn the_buffer_of_a_working_member_does_not_age(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    let count = match ctx.timing().paused {
        true => ctx.pick(5, 40),
        false => 8,
    };
    let messages = ctx.messages(&topic, count);
    let wanted = ids(&messages);
    agent.publish_all(messages).await?;
    let mut got = Vec::new();
    for _ in 0..count {
        let held = member.next().await?;
        equal("the attempt of a message that waited", held.attempt(), 1)?;
        let left = held.deadline().saturating_duration_since(Instant::now());
        if left + ctx.timing().slack < ctx.lease() / 2 {
            return Err(format!("a message was handed out with {left:?} of its lease left").into());
        }
        tokio::time::sleep(ctx.lease() * 4 / 10).await;
        got.push(held.id().to_owned());
        held.ack().await?;
    }
    same("messages of a slow handler", got, wanted)?;
    member.nothing().await
}

/// What came first is extended first, and stands before what ends sooner from then on.
async fn what_joins_the_buffer_later_does_not_age_either(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    let start = Instant::now();
    let messages = ctx.messages(&topic, ctx.pick(5, 10));
    let wanted = ids(&messages);
    for message in messages {
        agent.publish(message).await?;
        tokio::time::sleep(ctx.lease() / 20).await;
    }
    sleep_until(start + ctx.lease() * 9 / 10).await;
    let mut got = Vec::new();
    for _ in 0..wanted.len() {
        let held = member.next().await?;
        equal("the attempt of a message that waited", held.attempt(), 1)?;
        // Only a paused clock is exact enough to tell; on a real one it shows as a second attempt.
        let left = held.deadline().saturating_duration_since(Instant::now());
        if left + ctx.timing().slack < ctx.lease() / 2 {
            return Err(format!("a message was handed out with {left:?} of its lease left").into());
        }
        got.push(held.id().to_owned());
        held.ack().await?;
    }
    same("messages that came one after the other", got, wanted)?;
    member.nothing().await
}

/// The first handler never ends. When its lease has, another member gets everything else, as if
/// it had never been fetched, and the hung one as its second attempt.
async fn a_member_whose_handlers_hang_gives_its_buffer_up(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx.subscription(&topic, "billing");
    let (stuck, other) = (ctx.agent().await?, ctx.agent().await?);
    let hanging = stuck.join(&subscription).await?;
    let count = ctx.pick(5, 60);
    let messages = ctx.messages(&topic, count);
    let mut wanted: BTreeSet<_> = ids(&messages).into_iter().collect();
    stuck.publish_all(messages).await?;
    let hung = hanging.next().await?;
    let deadline = hung.deadline();
    // The other one comes when all of it has long been fetched, and finds it after the lease.
    sleep_until(deadline - ctx.lease() / 4).await;
    let member = other.join(&subscription).await?;
    let can = ctx.capabilities();
    let most = deadline + can.reclaim_slack + can.nack_latency + ctx.timing().slack;
    while !wanted.is_empty() {
        let held = member.next().await?;
        if Instant::now() > most {
            return Err(format!("{held:?} came {:?} late", Instant::now() - most).into());
        }
        let attempts = if held.id() == hung.id() { 2 } else { 1 };
        equal("the attempt", held.attempt(), attempts)?;
        if !wanted.remove(held.id()) {
            return Err(format!("{held:?} came twice").into());
        }
        held.ack().await?;
    }
    drop(hung);
    hanging.nothing().await?;
    member.nothing().await
}

/// As long as they hang, new messages go to others; when they have ended, it works again.
async fn a_member_whose_handlers_hang_takes_no_more(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx.subscription(&topic, "billing");
    let agent = ctx.agent().await?;
    let member = agent.join(&subscription).await?;
    agent.publish(ctx.message(&topic)).await?;
    let hung = member.next().await?;
    let lost = |event| matches!(event, ConsumerEvent::LeaseLost { .. }).then_some(());
    ctx.soon(
        "the loss of the lease",
        member.event_like("the loss of the lease", lost),
    )
    .await??;
    agent
        .publish_all(ctx.messages(&topic, ctx.pick(1, 5)))
        .await?;
    member.nothing().await?;
    let other = ctx.agent().await?;
    let second = other.join(&subscription).await?;
    second.ack_all(1).await?;
    drop(hung);
    second.close().await?;
    // All but the one that the second member acked: the first can work again.
    let lag = agent.admin().lag(&topic, &ctx.group("billing")?).await?;
    let left = (lag.waiting + lag.pending) as usize;
    member.ack_all(left).await?;
    member.nothing().await
}

/// Counts what a member has in its hands: fetched, and not settled.
#[derive(Debug, Default)]
struct Counter {
    held: Mutex<Vec<(Token, usize)>>,
    most: Mutex<(usize, usize)>,
}

impl Counter {
    fn now(&self) -> usize {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    fn most(&self) -> (usize, usize) {
        *self.most.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Hooks for Counter {
    async fn fetch(
        &self,
        next: &mut dyn Fetch,
        _member: &Joined,
        want: Want,
        out: &mut Vec<Event>,
    ) -> Result<()> {
        let before = out.len();
        let fetched = next.fetch(want, out).await;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        for event in out.iter().skip(before) {
            if let Event::Delivery(raw) = event {
                held.push((raw.token, raw.message.size()));
            }
        }
        let bytes = held.iter().map(|(_, bytes)| bytes).sum();
        let mut most = self.most.lock().unwrap_or_else(PoisonError::into_inner);
        most.0 = most.0.max(held.len());
        most.1 = most.1.max(bytes);
        fetched
    }

    async fn settle(
        &self,
        next: &Arc<dyn Settle>,
        _member: &Joined,
        batch: Vec<(Token, Outcome)>,
    ) -> Vec<Result<Settled>> {
        let ended: Vec<_> = batch
            .iter()
            .filter(|(_, outcome)| !matches!(outcome, Outcome::Begin | Outcome::Extend))
            .map(|(token, _)| *token)
            .collect();
        let answers = next.settle(batch).await;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|(token, _)| !ended.contains(token));
        answers
    }
}

async fn the_window_is_never_exceeded(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let counter = Arc::new(Counter::default());
    let transport = ctx.connect_with(vec![counter.clone()]).await?;
    let agent = ctx.agent_on(transport, Default::default());
    let window = ctx.pick(1, 30);
    let subscription = ctx
        .subscription(&topic, "billing")
        .lease(Duration::from_secs(3600))
        .prefetch(window);
    let member = agent.join(&subscription).await?;
    let messages = ctx.messages(&topic, window * 3 + ctx.pick(1, 20));
    let count = messages.len();
    agent.publish_all(messages).await?;
    let held = member.take(window).await?;
    // The window is full: nothing more comes.
    member.nothing().await?;
    for held in held {
        held.ack().await?;
    }
    member.ack_all(count - window).await?;
    equal(
        "the most that were in its hands",
        counter.most().0 <= window,
        true,
    )?;
    member.nothing().await
}

async fn the_window_in_bytes_is_never_exceeded(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let counter = Arc::new(Counter::default());
    let transport = ctx.connect_with(vec![counter.clone()]).await?;
    let agent = ctx.agent_on(transport, Default::default());
    let window = ctx.pick(10_000, 100_000);
    let subscription = ctx
        .subscription(&topic, "billing")
        .lease(Duration::from_secs(3600))
        .prefetch_bytes(window);
    let member = agent.join(&subscription).await?;
    let messages: Vec<_> = (0..ctx.pick(30, 80))
        .map(|_| {
            let payload = vec![0; ctx.pick(1, 8_000)];
            ctx.message(&topic).with_payload(payload.into())
        })
        .collect();
    let count = messages.len();
    agent.publish_all(messages).await?;
    let mut in_hand = Vec::new();
    while let Some(held) = member.next_within(ctx.timing().quiet).await? {
        in_hand.push(held);
    }
    let first = in_hand.len();
    for held in in_hand {
        held.ack().await?;
    }
    member.ack_all(count - first).await?;
    // A window that has any room takes one more message, whatever its size.
    let (_, bytes) = counter.most();
    if bytes > window + 10_000 {
        return Err(format!("{bytes} bytes were in its hands, the window has {window}").into());
    }
    member.nothing().await
}

async fn a_paused_member_gives_its_buffer_up(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let subscription = ctx
        .subscription(&topic, "billing")
        .lease(Duration::from_secs(3600));
    let counter = Arc::new(Counter::default());
    let transport = ctx.connect_with(vec![counter.clone()]).await?;
    let agent = ctx.agent_on(transport, Default::default());
    let member = agent.join(&subscription).await?;
    let count = ctx.pick(5, 50);
    let messages = ctx.messages(&topic, count);
    let all = ids(&messages);
    agent.publish_all(messages).await?;
    let held = member.next().await?;
    // What was given back may come in any order.
    ctx.excuse(Flaw::Order);
    member.consumer().pause();
    // Nothing is handed out while it pauses; what it holds is its own.
    member.nothing().await?;
    equal("what a paused member has in its hands", counter.now(), 1)?;
    let mut got = vec![held.id().to_owned()];
    held.ack().await?;
    // What was published meanwhile waits with the rest.
    let more = ctx.messages(&topic, ctx.pick(1, 10));
    let mut wanted = all;
    wanted.extend(ids(&more));
    agent.publish_all(more).await?;
    let lag = agent.admin().lag(&topic, &ctx.group("billing")?).await?;
    if ctx.capabilities().lag == Exactness::Exact {
        equal(
            "what is there for others",
            (lag.waiting + lag.pending) as usize,
            wanted.len() - 1,
        )?;
    }
    member.consumer().resume();
    while got.len() < wanted.len() {
        let held = member.next().await?;
        equal("the attempt of what was given back", held.attempt(), 1)?;
        got.push(held.id().to_owned());
        held.ack().await?;
    }
    same("what came in all", got, wanted)?;
    member.nothing().await
}
