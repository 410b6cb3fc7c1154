//! Traffic beside which something happens.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mas_transport_core::{Error, ErrorKind, PublishOptions, Stored, Subscription, Topic};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::support::eventually;
use crate::agent::{Agent, Member};
use crate::ctx::Ctx;
use crate::harness::{Failure, Verdict};

/// Publishers and consumers at work beside each other, until told to stop.
pub(super) struct Load {
    stop: watch::Sender<bool>,
    publishers: JoinSet<Result<Vec<String>, Failure>>,
    consumers: JoinSet<Verdict>,
    members: Vec<(Agent, Arc<Member>)>,
    seen: Arc<Mutex<BTreeSet<String>>>,
}

impl Load {
    pub(super) async fn start(ctx: &Ctx, topic: &Topic) -> Result<Self, Failure> {
        let subscription = ctx.subscription(topic, "billing").max_attempts(1000);
        let mut load = Self {
            stop: watch::Sender::new(false),
            publishers: JoinSet::new(),
            consumers: JoinSet::new(),
            members: Vec::new(),
            seen: Arc::default(),
        };
        for _ in 0..2 {
            load.consume(ctx, &subscription).await?;
        }
        for _ in 0..3 {
            let options = PublishOptions {
                publish_timeout: ctx.lease() * 2,
                ..PublishOptions::default()
            };
            let agent = ctx.agent_on(ctx.connect().await?, options);
            let (ctx, topic, stop) = (ctx.clone(), topic.clone(), load.stop.subscribe());
            load.publishers
                .spawn(publish_until(ctx, agent, topic, stop));
        }
        Ok(load)
    }

    async fn consume(&mut self, ctx: &Ctx, subscription: &Subscription) -> Verdict {
        let agent = ctx.agent().await?;
        let member = Arc::new(agent.join(subscription).await?);
        self.members.push((agent, Arc::clone(&member)));
        let seen = Arc::clone(&self.seen);
        self.consumers.spawn(async move {
            while let Some(held) = member.recv().await? {
                let id = held.id().to_owned();
                match held.ack().await {
                    Ok(()) => {}
                    // Perhaps it is settled, and never comes again.
                    Err(e) if is_passing(&e) && e.stored() == Stored::Unknown => {}
                    // It comes again.
                    Err(e) if is_passing(&e) => continue,
                    Err(e) => return Err(format!("an ack under load: {e}").into()),
                }
                seen.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(id);
            }
            Ok(())
        });
        Ok(())
    }

    fn count(&self) -> usize {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Waits until so many more have been published, delivered and acked.
    pub(super) async fn flows(&self, ctx: &Ctx, more: usize) -> Verdict {
        let before = self.count();
        eventually(ctx, &format!("{more} more messages"), || async {
            Ok((self.count() >= before + more).then_some(()))
        })
        .await
    }

    /// Stops publishing and waits until every message has been acked that had a receipt, where
    /// receipts have survived what happened.
    pub(super) async fn finish(mut self, ctx: &Ctx, survived: bool) -> Verdict {
        self.stop.send_replace(true);
        let mut owed = BTreeSet::new();
        while let Some(done) = ctx
            .soon("the end of the publishers", self.publishers.join_next())
            .await?
        {
            owed.extend(done??);
        }
        ctx.note(format!("{} messages had receipts", owed.len()));
        if !survived {
            owed.clear();
        }
        let all = eventually(ctx, "every message with a receipt", || async {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(owed.is_subset(&seen).then_some(()))
        });
        if let Err(why) = all.await {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let lost: Vec<_> = owed.difference(&seen).take(5).collect();
            let count = owed.difference(&seen).count();
            return Err(format!("{why}: {count} of {} are missing: {lost:?}", owed.len()).into());
        }
        ctx.drained();
        for (_, member) in &self.members {
            member.close().await?;
        }
        while let Some(done) = ctx
            .soon("the end of the consumers", self.consumers.join_next())
            .await?
        {
            done??;
        }
        Ok(())
    }
}

/// What a broken connection or a slow broker explains.
fn is_passing(error: &Error) -> bool {
    error.is_retryable() || error.kind() == ErrorKind::LeaseLost
}

async fn publish_until(
    ctx: Ctx,
    agent: Agent,
    topic: Topic,
    stop: watch::Receiver<bool>,
) -> Result<Vec<String>, Failure> {
    let mut receipted = Vec::new();
    while !*stop.borrow() {
        let batch = ctx.messages(&topic, ctx.pick(1, 5));
        let ids: Vec<_> = batch.iter().map(|m| m.id().to_owned()).collect();
        for (id, outcome) in ids.into_iter().zip(agent.publish_batch(batch).await) {
            match outcome {
                Ok(_) => receipted.push(id),
                Err(e) if e.is_retryable() => {}
                Err(e) => return Err(format!("a publish under load: {e}").into()),
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    agent.close().await?;
    Ok(receipted)
}
