//! Connections that break: everything goes on by itself.

use std::collections::BTreeSet;
use std::time::Duration;

use mas_transport_core::{ConsumerEvent, ErrorKind, Topic};

use super::load::Load;
use super::support::{all_settled, ensure, eventually, long_leased, past_a_lease};
use crate::agent::{Agent, Member};
use crate::ctx::Ctx;
use crate::harness::{Ability, Failure, Verdict};
use crate::history::Trouble;
use crate::registry::TrialDef;
use crate::trial;

pub(super) const TRIALS: &[TrialDef] = &[
    trial!(R1, an_idle_consumer_goes_on_after_a_cut).needs(&[Ability::Cut]),
    trial!(R1, a_publisher_goes_on_after_a_cut).needs(&[Ability::Cut]),
    trial!(R1, what_is_in_hand_survives_a_cut).needs(&[Ability::Cut]),
    trial!(R1, settlements_on_the_way_are_confirmed_or_unknown).needs(&[Ability::Cut]),
    trial!(R1, joining_and_asking_work_after_a_cut).needs(&[Ability::Cut]),
    trial!(R1, cuts_under_load_lose_nothing).needs(&[Ability::Cut]),
    trial!(R1, cuts_leave_no_connections).needs(&[Ability::Cut, Ability::Connections]),
];

async fn cut(ctx: &Ctx) -> Verdict {
    ctx.fault(Trouble::Cut, true);
    ctx.broker().cut().await?;
    ctx.fault(Trouble::Cut, false);
    Ok(())
}

/// Publishes a message of the topic, again and again while the connection is not back: the
/// attempts that failed are uncertain or refused, and recorded so.
pub(super) async fn publish_at_last(
    ctx: &Ctx,
    agent: &Agent,
    topic: &Topic,
) -> Result<String, Failure> {
    let publishing = async {
        loop {
            let message = ctx.message(topic);
            let id = message.id().to_owned();
            match agent.publish(message).await {
                Ok(_) => return Ok(id),
                Err(e) if e.is_retryable() => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(e) => return Err(Failure::from(e)),
            }
        }
    };
    ctx.soon("a publish that succeeds", publishing).await?
}

pub(super) async fn received_at_last(ctx: &Ctx, member: &Member, id: &str) -> Verdict {
    let receiving = async {
        loop {
            let held = member.next().await?;
            let found = held.id() == id;
            // Lost with its connection, it comes again.
            let acked = held.ack().await.is_ok();
            if found && acked {
                return Ok(());
            }
        }
    };
    ctx.soon(&format!("the delivery of {id}"), receiving)
        .await?
}

async fn an_idle_consumer_goes_on_after_a_cut(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    for _ in 0..3 {
        // Idle: its fetch waits, and nobody publishes.
        tokio::time::sleep(Duration::from_millis(20)).await;
        cut(&ctx).await?;
        let pick = |event| matches!(event, ConsumerEvent::Reconnected).then_some(());
        member
            .event_like("the event of a new connection", pick)
            .await?;
        let other = ctx.agent().await?;
        let id = publish_at_last(&ctx, &other, &topic).await?;
        received_at_last(&ctx, &member, &id).await?;
        other.close().await?;
    }
    ctx.drained();
    Ok(())
}

async fn a_publisher_goes_on_after_a_cut(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = ctx.subscription(&topic, "billing");
    for _ in 0..3 {
        publish_at_last(&ctx, &agent, &topic).await?;
        cut(&ctx).await?;
        publish_at_last(&ctx, &agent, &topic).await?;
    }
    let member = ctx.agent().await?.join(&subscription).await?;
    let last = publish_at_last(&ctx, &agent, &topic).await?;
    received_at_last(&ctx, &member, &last).await?;
    while let Some(held) = member.next_within(ctx.timing().quiet).await? {
        held.ack().await?;
    }
    ctx.drained();
    Ok(())
}

/// A lease is with the broker, not with the connection.
async fn what_is_in_hand_survives_a_cut(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let subscription = long_leased(&ctx, &topic, "billing");
    let member = agent.join(&subscription).await?;
    agent.publish_all(ctx.messages(&topic, 3)).await?;
    let in_hand = member.take(3).await?;
    cut(&ctx).await?;
    for held in in_hand {
        let settling = async {
            // The first call may be the one that finds the connection broken.
            match held.extend().await {
                Ok(_) => {}
                Err(e) if e.is_retryable() => {}
                Err(e) => return Err(format!("after a cut a live delivery: {e}").into()),
            }
            match held.ack().await {
                Ok(()) => Ok::<_, Failure>(()),
                Err(e) if e.is_retryable() => Ok(()),
                Err(e) => Err(format!("after a cut the ack of a live delivery: {e}").into()),
            }
        };
        ctx.soon("the end of a settlement", settling).await??;
    }
    // One that failed comes again when its lease ends; here that is not waited for.
    publish_at_last(&ctx, &agent, &topic).await?;
    member.next().await?.ack().await?;
    Ok(())
}

async fn settlements_on_the_way_are_confirmed_or_unknown(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent
        .join(&ctx.subscription(&topic, "billing").max_attempts(20))
        .await?;
    let count = ctx.pick(20, 60);
    agent.publish_all(ctx.messages(&topic, count)).await?;
    let mut done = BTreeSet::new();
    let mut answers = Vec::new();
    for held in member.take(count).await? {
        answers.push((held.id().to_owned(), held.ack()));
    }
    cut(&ctx).await?;
    for (id, answer) in answers {
        match ctx.soon("the answer to an ack", answer).await? {
            Ok(()) => drop(done.insert(id)),
            Err(e) if e.is_retryable() || e.kind() == ErrorKind::LeaseLost => {}
            Err(e) => return Err(format!("an ack when the connection broke: {e}").into()),
        }
    }
    // What is not confirmed may come again, what is may not.
    while let Some(held) = member.next_within(past_a_lease(&ctx) * 2).await? {
        ensure!(
            !done.contains(held.id()),
            "{held:?} came after its confirmed ack"
        );
        held.ack().await?;
    }
    all_settled(&ctx, &agent, &topic, "billing").await
}

async fn joining_and_asking_work_after_a_cut(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    agent.publish(ctx.message(&topic)).await?;
    for round in 0..3 {
        cut(&ctx).await?;
        let asked = eventually(&ctx, "an answer to a question", || async {
            match agent.admin().topics().await {
                Ok(topics) => Ok(Some(topics)),
                Err(e) if e.is_retryable() => Ok(None),
                Err(e) => Err(e.into()),
            }
        });
        let topics = asked.await?;
        ensure!(
            topics == [topic.clone()],
            "round {round}: the topics are {topics:?}"
        );
        cut(&ctx).await?;
        let subscription = ctx.subscription(&topic, &format!("group-{round}"));
        let member = eventually(&ctx, "a member that joins", || async {
            match agent.join(&subscription).await {
                Ok(member) => Ok(Some(member)),
                Err(e) if e.is_retryable() => Ok(None),
                Err(e) => Err(e.into()),
            }
        });
        let member = member.await?;
        let id = publish_at_last(&ctx, &agent, &topic).await?;
        received_at_last(&ctx, &member, &id).await?;
        member.close().await?;
    }
    Ok(())
}

async fn cuts_under_load_lose_nothing(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let load = Load::start(&ctx, &topic).await?;
    for _ in 0..4 {
        load.flows(&ctx, ctx.pick(5, 40)).await?;
        cut(&ctx).await?;
    }
    load.flows(&ctx, 20).await?;
    load.finish(&ctx, true).await
}

async fn cuts_leave_no_connections(ctx: Ctx) -> Verdict {
    let topic = ctx.topic("orders")?;
    let agent = ctx.agent().await?;
    let member = agent.join(&ctx.subscription(&topic, "billing")).await?;
    let id = publish_at_last(&ctx, &agent, &topic).await?;
    received_at_last(&ctx, &member, &id).await?;
    let before = ctx.broker().connections().await?;
    for _ in 0..5 {
        cut(&ctx).await?;
        let id = publish_at_last(&ctx, &agent, &topic).await?;
        received_at_last(&ctx, &member, &id).await?;
    }
    let settled = eventually(&ctx, "the end of the old connections", || async {
        let now = ctx.broker().connections().await?;
        Ok((now <= before).then_some(()))
    });
    settled
        .await
        .map_err(|e| format!("{before} connections before five cuts: {e}").into())
}
