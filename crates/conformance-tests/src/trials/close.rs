//! Closing: what is drained, and what is returned.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::support::{ANY_MEMBER, all_settled, at_once, ensure, long_leased, quiet};
use crate::agent::Member;
use crate::ctx::Ctx;
use crate::harness::Verdict;
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(E1, a_close_waits_for_the_handlers),
    trial!(E1, what_was_not_handed_out_goes_to_others_at_once).when(ANY_MEMBER.0, ANY_MEMBER.1),
    trial!(E1, a_dropped_consumer_returns_what_it_had),
    trial!(E1, what_is_held_can_be_settled_after_a_drop),
    trial!(E1, a_handler_that_hangs_is_not_waited_for_longer),
    trial!(E1, a_receiver_that_waits_is_told),
    trial!(E1, a_handler_may_close_its_own_consumer),
    trial!(E1, nothing_is_handed_out_while_closing),
    trial!(E1, nothing_is_fetched_between_a_pause_and_a_close),
    trial!(E1, queued_settlements_go_out),
    trial!(E1, a_closing_member_under_traffic_loses_nothing),
    trial!(E1, a_closed_publisher_has_sent_everything),
    trial!(E1, closing_the_transport_drains_its_consumers).when(ANY_MEMBER.0, ANY_MEMBER.1),
];

/// `close` resolves when what was handed out is settled: not before, and not at the deadline.
async fn a_close_waits_for_the_handlers(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = Arc::new(agent.join(&long_leased(&ctx, &topic, "billing")).await?);
    agent.publish_all(ctx.messages(&topic, 3)).await?;
    let mut held = member.take(3).await?;
    let closing = {
        let member = Arc::clone(&member);
        tokio::spawn(async move { member.close().await })
    };
    let pause = ctx.lease() / 8;
    while let Some(next) = held.pop() {
        tokio::time::sleep(pause).await;
        ensure!(
            !closing.is_finished(),
            "a close was done while {} deliveries were in hand",
            held.len() + 1
        );
        // Its confirmation comes too: the consumer has not gone.
        next.ack().await?;
    }
    ctx.within(
        at_once(&ctx),
        "the end of a close with everything settled",
        closing,
    )
    .await???;
    let next = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    next.nothing().await?;
    all_settled(&ctx, &agent, &topic, "billing").await
}

/// Returned, not left to the lease; and no attempt was used.
async fn others_get(ctx: &Ctx, other: &Member, mut wanted: BTreeSet<String>) -> Verdict {
    while !wanted.is_empty() {
        let Some(held) = other.next_within(at_once(ctx)).await? else {
            return Err(format!("{} messages were not given back at once", wanted.len()).into());
        };
        ensure!(
            wanted.remove(held.id()),
            "{held:?} was delivered, and was not given back"
        );
        ensure!(
            held.attempt() == 1,
            "a message that was only fetched came back as attempt {}",
            held.attempt()
        );
        held.ack().await?;
    }
    Ok(())
}

async fn what_was_not_handed_out_goes_to_others_at_once(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = long_leased(&ctx, &topic, "billing");
    let count = ctx.pick(10, 100);
    let messages = ctx.messages(&topic, count);
    let mut left: BTreeSet<_> = messages.iter().map(|m| m.id().to_owned()).collect();
    let member = Arc::new(agent.join(&subscription).await?);
    agent.publish_all(messages).await?;
    let in_hand = member.take(ctx.pick(1, 5)).await?;
    for held in &in_hand {
        left.remove(held.id());
    }
    let other = ctx.agent().await?.join(&subscription).await?;
    let closing = {
        let member = Arc::clone(&member);
        tokio::spawn(async move { member.close().await })
    };
    // While the handlers are still at work.
    others_get(&ctx, &other, left).await?;
    for held in in_hand {
        held.ack().await?;
    }
    closing.await??;
    quiet(&other, ctx.lease() / 4).await?;
    all_settled(&ctx, &agent, &topic, "billing").await
}

async fn a_dropped_consumer_returns_what_it_had(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = long_leased(&ctx, &topic, "billing");
    let messages = ctx.messages(&topic, ctx.pick(10, 100));
    let mut left: BTreeSet<_> = messages.iter().map(|m| m.id().to_owned()).collect();
    agent.publish_all(messages).await?;
    let member = agent.join(&subscription).await?;
    let held = member.next().await?;
    left.remove(held.id());
    held.ack().await?;
    drop(member);
    let other = ctx.agent().await?.join(&subscription).await?;
    others_get(&ctx, &other, left).await?;
    other.nothing().await
}

async fn what_is_held_can_be_settled_after_a_drop(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = long_leased(&ctx, &topic, "billing");
    let member = agent.join(&subscription).await?;
    agent.publish_all(ctx.messages(&topic, 3)).await?;
    let mut held = member.take(3).await?;
    drop(member);
    tokio::time::sleep(ctx.lease() / 10).await;
    let nacked = held.remove(0);
    let id = nacked.id().to_owned();
    for held in held {
        held.ack().await?;
    }
    nacked.nack().await?;
    let other = agent.join(&subscription).await?;
    let held = other.next().await?;
    ensure!(
        held.id() == id && held.attempt() == 2,
        "{id} was nacked after its consumer was dropped, {held:?} came"
    );
    held.ack().await?;
    other.nothing().await
}

/// At the deadline what is still in hand is given back, and `close` returns.
async fn a_handler_that_hangs_is_not_waited_for_longer(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = long_leased(&ctx, &topic, "billing");
    let member = agent.join(&subscription).await?;
    agent.publish_all(ctx.messages(&topic, 2)).await?;
    let mut held = member.take(2).await?;
    let (hung, settled) = (held.remove(0), held.remove(0));
    let called = Instant::now();
    let deadline = called + ctx.lease() / 4;
    let closing = member.close_by(deadline);
    let acking = async {
        tokio::time::sleep(ctx.lease() / 8).await;
        settled.ack().await
    };
    let (closed, acked) = tokio::join!(ctx.soon("the end of a close", closing), acking);
    acked?;
    closed??;
    ensure!(
        Instant::now() >= deadline,
        "a close gave up on its handlers {:?} before its deadline",
        deadline - Instant::now()
    );
    let late = Instant::now() - deadline;
    ensure!(
        late <= ctx.timing().slack + Duration::from_secs(2),
        "a close returned {late:?} after its deadline"
    );
    let other = ctx.agent().await?.join(&subscription).await?;
    let Some(back) = other.next_within(at_once(&ctx)).await? else {
        return Err("what was in hand at the deadline was not given back".into());
    };
    ensure!(
        back.id() == hung.id(),
        "{back:?} was given back, not {}",
        hung.id()
    );
    back.ack().await?;
    match hung.ack().await {
        Err(_) => quiet(&other, ctx.lease() / 4).await,
        Ok(()) => Err("an ack after the close was confirmed".into()),
    }
}

/// Whoever waits in `recv` while the consumer is closed gets its end.
async fn a_receiver_that_waits_is_told(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = Arc::new(agent.join(&ctx.subscription(&topic, "billing")).await?);
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let member = Arc::clone(&member);
            tokio::spawn(async move { member.recv().await.map(|d| d.map(drop)) })
        })
        .collect();
    tokio::time::sleep(ctx.timing().slack.min(Duration::from_millis(20))).await;
    member.close().await?;
    let mut ends = 0;
    for waiting in waiting {
        match ctx
            .soon("the end of a receiver that waits", waiting)
            .await??
        {
            Ok(None) => ends += 1,
            Err(e) if e.kind() == mas_transport_core::ErrorKind::Closed => {}
            other => return Err(format!("a receiver that waits was told {other:?}").into()),
        }
    }
    ensure!(ends >= 1, "nobody was told that the consumer has ended");
    Ok(())
}

/// No deadlock: the handler holds what the close waits for.
async fn a_handler_may_close_its_own_consumer(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    agent.publish_all(ctx.messages(&topic, 2)).await?;
    let held = member.next().await?;
    let closing = member.close();
    tokio::pin!(closing);
    // Begun, and not done while the delivery is in hand.
    if futures::poll!(closing.as_mut()).is_ready() {
        return Err("a close did not wait for the handler that called it".into());
    }
    held.ack().await?;
    ctx.within(at_once(&ctx), "the end of a close", closing)
        .await??;
    let next = agent.join(&long_leased(&ctx, &topic, "billing")).await?;
    let Some(held) = next.next_within(at_once(&ctx)).await? else {
        return Err("the other message was not given back at once".into());
    };
    held.ack().await?;
    Ok(())
}

/// The last ack makes room for one more while the close begins: nobody would be handed it.
async fn nothing_is_fetched_between_a_pause_and_a_close(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let group = ctx.group("billing")?;
    let agent = ctx.agent().await?;
    for round in 0..12 {
        agent.publish_all(ctx.messages(&topic, 2)).await?;
        let member = agent
            .join(&long_leased(&ctx, &topic, "billing").prefetch(1))
            .await?;
        let held = member.next().await?;
        member.consumer().pause();
        let (acked, closed) = tokio::join!(held.ack(), member.close());
        acked?;
        closed?;
        let lag = agent.admin().lag(&topic, &group).await?;
        ensure!(
            lag.pending == 0,
            "round {round}: one more was fetched: {lag:?}"
        );
    }
    Ok(())
}

async fn nothing_is_handed_out_while_closing(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = long_leased(&ctx, &topic, "billing");
    let member = agent.join(&subscription).await?;
    agent.publish_all(ctx.messages(&topic, 20)).await?;
    let held = member.next().await?;
    let closing = member.close();
    tokio::pin!(closing);
    ensure!(
        futures::poll!(closing.as_mut()).is_pending(),
        "a close did not wait for what was in hand"
    );
    agent.publish_all(ctx.messages(&topic, 5)).await?;
    for _ in 0..3 {
        let after = ctx
            .within(at_once(&ctx), "an answer to recv", member.recv())
            .await?;
        ensure!(
            !matches!(after, Ok(Some(_))),
            "a closing consumer handed out {after:?}"
        );
    }
    held.ack().await?;
    closing.await?;
    let other = agent.join(&subscription).await?;
    other.ack_all(24).await?;
    other.nothing().await
}

/// Settlements that nobody awaits are sent before a close is done.
async fn queued_settlements_go_out(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = long_leased(&ctx, &topic, "billing");
    let member = agent.join(&subscription).await?;
    let count = ctx.pick(50, 300);
    agent.publish_all(ctx.messages(&topic, count)).await?;
    for held in member.take(count).await? {
        drop(held.ack());
    }
    member.close().await?;
    let other = agent.join(&subscription).await?;
    quiet(&other, ctx.lease() / 4).await?;
    all_settled(&ctx, &agent, &topic, "billing").await
}

/// Members that come and go while messages are published: all are handled, none by chance twice.
async fn a_closing_member_under_traffic_loses_nothing(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let sender = ctx.agent().await?;
    let subscription = long_leased(&ctx, &topic, "billing");
    // The group begins before the traffic.
    sender.join(&subscription).await?.close().await?;
    let count = ctx.pick(100, 200);
    let messages = ctx.messages(&topic, count);
    let publishing = async {
        for message in messages {
            sender.publish(message).await?;
        }
        Ok::<_, mas_transport_core::Error>(())
    };
    let mut seen = BTreeSet::new();
    let mut left = count;
    let mut handled = 0;
    let consuming = async {
        let agent = ctx.agent().await?;
        while left > 0 {
            let member = agent.join(&subscription).await?;
            let mut share = ctx.pick(1, 40).min(left);
            while share > 0 {
                let held = member.next().await?;
                ensure!(held.attempt() == 1, "{held:?} was only fetched before");
                seen.insert(held.id().to_owned());
                handled += 1;
                // Not awaited: the close sends it.
                drop(held.ack());
                share -= 1;
                left -= 1;
            }
            if ctx.pick(0, 1) == 0 {
                member.close().await?;
            }
        }
        Ok::<_, crate::Failure>(())
    };
    let (published, consumed) = tokio::join!(publishing, consuming);
    published?;
    consumed?;
    ensure!(
        seen.len() == count && handled == count,
        "{count} were published, {handled} handled, {} different ones",
        seen.len()
    );
    let member = sender.join(&subscription).await?;
    member.nothing().await?;
    all_settled(&ctx, &sender, &topic, "billing").await
}

async fn a_closed_publisher_has_sent_everything(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let (agent, other) = (ctx.agent().await?, ctx.agent().await?);
    let member = other.join(&long_leased(&ctx, &topic, "billing")).await?;
    let count = ctx.pick(100, 1000);
    let mut pending = Vec::new();
    for message in ctx.messages(&topic, count) {
        pending.push(agent.enqueue(message).await?);
    }
    agent.publisher().close(ctx.deadline()).await?;
    for receipt in pending {
        // Everything has its outcome by now.
        match futures::FutureExt::now_or_never(receipt) {
            Some(Ok(_)) => {}
            other => return Err(format!("after the close a receipt is {other:?}").into()),
        }
    }
    member.ack_all(count).await?;
    member.nothing().await
}

/// The transport closes its consumers with it: handlers may settle until the deadline.
async fn closing_the_transport_drains_its_consumers(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = long_leased(&ctx, &topic, "billing");
    let member = agent.join(&subscription).await?;
    agent.publish_all(ctx.messages(&topic, 20)).await?;
    let held = member.next().await?;
    let other = ctx.agent().await?.join(&subscription).await?;
    let transport = Arc::clone(agent.transport());
    let deadline = ctx.deadline();
    let closing = tokio::spawn(async move { transport.close(deadline).await });
    let mut rest = 0;
    while let Some(held) = other.next_within(at_once(&ctx)).await? {
        held.ack().await?;
        rest += 1;
    }
    ensure!(rest == 19, "{rest} of 19 messages were given back at once");
    ensure!(
        !closing.is_finished(),
        "a transport closed while a delivery was in hand"
    );
    held.ack().await?;
    ctx.within(
        at_once(&ctx),
        "the end of a close with everything settled",
        closing,
    )
    .await???;
    quiet(&other, ctx.lease() / 4).await
}
