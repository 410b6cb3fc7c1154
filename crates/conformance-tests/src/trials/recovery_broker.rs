//! Brokers that go away and come back: everything goes on by itself.

use std::time::Duration;

use mas_transport_core::{Durability, Error, PublishOptions};
use tokio::time::Instant;

use super::load::Load;
use super::recovery::{publish_at_last, received_at_last};
use super::support::ensure;
use crate::ctx::Ctx;
use crate::harness::{Ability, Verdict};
use crate::history::Trouble;
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(R1, a_broker_killed_under_load_loses_nothing_receipted)
        .needs(&[Ability::Kill])
        .own_server(),
    trial!(R1, calls_end_in_time_while_the_broker_is_away)
        .needs(&[Ability::Kill])
        .own_server(),
    trial!(R1, a_broker_that_stops_answering_for_a_while)
        .needs(&[Ability::Freeze])
        .own_server(),
];

/// Killed as by SIGKILL and started again: what had a receipt is delivered, and everybody goes on
/// without a call of the application's.
async fn a_broker_killed_under_load_loses_nothing_receipted(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let load = Load::start(&ctx, &topic).await?;
    for _ in 0..2 {
        load.flows(&ctx, 50).await?;
        ctx.fault(Trouble::Kill, true);
        ctx.broker().kill().await?;
        tokio::time::sleep(ctx.lease() / 2).await;
        ctx.broker().start().await?;
        ctx.fault(Trouble::Kill, false);
    }
    load.flows(&ctx, 50).await?;
    let survived = ctx.capabilities().durability >= Durability::Process;
    load.finish(&ctx, survived).await
}

/// While there is no broker, calls fail with what helps, in the time that they have; consumers
/// wait. When it is back, everything works without a restart.
async fn calls_end_in_time_while_the_broker_is_away(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let timeout = Duration::from_millis(500);
    let options = PublishOptions {
        publish_timeout: timeout,
        ..PublishOptions::default()
    };
    let agent = ctx.agent_on(ctx.connect().await?, options);
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    agent.publish(ctx.message(&topic)).await?;
    member.next().await?.ack().await?;
    ctx.fault(Trouble::Kill, true);
    ctx.broker().kill().await?;
    for _ in 0..3 {
        let called = Instant::now();
        match ctx
            .soon("the end of a publish", agent.publish(ctx.message(&topic)))
            .await?
        {
            Err(e) if e.is_retryable() => {}
            other => {
                return Err(format!("without a broker a publish was answered {other:?}").into());
            }
        }
        let took = called.elapsed();
        ensure!(
            took <= timeout + ctx.timing().slack,
            "a publish with a timeout of {timeout:?} took {took:?}"
        );
    }
    // Side by side: each may wait as long as a call waits for an answer.
    let late = ctx.subscription(&topic, "late");
    let (connected, joined, topics, health) = futures::join!(
        ctx.soon("the end of a connect", ctx.connect()),
        ctx.soon("the end of a subscribe", agent.join(&late)),
        ctx.soon("the end of a question", agent.admin().topics()),
        ctx.soon("the end of a health check", agent.admin().health()),
    );
    for (call, failed) in [
        ("connect", connected?.map(drop)),
        ("subscribe", joined?.map(drop)),
        ("topics", topics?.map(drop)),
        ("health", health?.map(drop)),
    ] {
        ensure!(
            failed.as_ref().is_err_and(Error::is_retryable),
            "without a broker {call} was answered {failed:?}"
        );
    }
    let waiting = member.next_within(ctx.timing().quiet).await;
    ensure!(
        matches!(waiting, Ok(None)),
        "without a broker recv was answered {waiting:?}"
    );
    // A consumer that is closed now does not wait for what is not there.
    let doomed = ctx.soon(
        "the end of a close",
        member.close_by(Instant::now() + timeout),
    );
    drop(doomed.await?);
    ctx.broker().start().await?;
    ctx.fault(Trouble::Kill, false);
    let id = publish_at_last(&ctx, &agent, &topic).await?;
    let member = agent.join(&ctx.subscription(&topic, "after")).await?;
    received_at_last(&ctx, &member, &id).await
}

/// Connected and silent: publishes end in their time, and afterwards everything goes on.
async fn a_broker_that_stops_answering_for_a_while(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let timeout = Duration::from_millis(300);
    let options = PublishOptions {
        publish_timeout: timeout,
        ..PublishOptions::default()
    };
    let agent = ctx.agent_on(ctx.connect().await?, options);
    let member = ctx
        .agent()
        .await?
        .join(&ctx.subscription(&topic, "billing").max_attempts(50))
        .await?;
    for frozen in [ctx.lease() / 2, ctx.lease() * 2] {
        let id = publish_at_last(&ctx, &agent, &topic).await?;
        received_at_last(&ctx, &member, &id).await?;
        ctx.fault(Trouble::Freeze, true);
        ctx.broker().freeze(true).await?;
        let called = Instant::now();
        let outcome = ctx
            .soon("the end of a publish", agent.publish(ctx.message(&topic)))
            .await?;
        ensure!(
            outcome.as_ref().is_err_and(Error::is_retryable),
            "a broker that does not answer: {outcome:?}"
        );
        let took = called.elapsed();
        ensure!(
            took <= timeout + ctx.timing().slack,
            "a publish with a timeout of {timeout:?} took {took:?}"
        );
        tokio::time::sleep_until(called + frozen).await;
        ctx.broker().freeze(false).await?;
        ctx.fault(Trouble::Freeze, false);
    }
    let id = publish_at_last(&ctx, &agent, &topic).await?;
    received_at_last(&ctx, &member, &id).await?;
    ctx.drained();
    Ok(())
}
