//! What several trials need.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use mas_transport_core::{
    Confirm, ErrorKind, Message, Outcome, RawDelivery, Result, Settle, Settled, Token, Transport,
};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::ctx::Ctx;
use crate::harness::{Failure, Verdict};
use crate::layers::{Hooks, Joined};
use crate::member::RawMember;

/// The ids of messages.
pub(super) fn ids(messages: &[Message]) -> Vec<String> {
    messages.iter().map(|m| m.id().to_owned()).collect()
}

/// Whether exactly these came, each as often as expected, in whatever order.
pub(super) fn same<G, W>(what: &str, got: G, wanted: W) -> Verdict
where
    G: IntoIterator<Item = String>,
    W: IntoIterator<Item = String>,
{
    let mut balance: BTreeMap<String, i64> = BTreeMap::new();
    for id in wanted {
        *balance.entry(id).or_default() -= 1;
    }
    for id in got {
        *balance.entry(id).or_default() += 1;
    }
    balance.retain(|_, n| *n != 0);
    if balance.is_empty() {
        return Ok(());
    }
    let count = balance.len();
    let few: Vec<_> = balance.into_iter().take(5).collect();
    Err(
        format!("{what}: {count} messages came too often (+) or not often enough (-): {few:?}")
            .into(),
    )
}

/// Whether two values are equal; says both where they are not.
pub(super) fn equal<T: PartialEq + std::fmt::Debug>(what: &str, got: T, wanted: T) -> Verdict {
    if got == wanted {
        return Ok(());
    }
    Err(format!("{what}: expected {wanted:?}, got {got:?}").into())
}

/// Whether something happened no earlier than `from` (but for the declared clock error) and no
/// later than `until` and the harness's slack.
pub(super) fn in_time(
    ctx: &Ctx,
    what: &str,
    at: Instant,
    from: Instant,
    until: Instant,
) -> Verdict {
    let error = ctx.capabilities().clock_error;
    if at + error < from {
        let early = from - at;
        return Err(format!("{what} was {early:?} too early").into());
    }
    let latest = until + ctx.timing().slack;
    if at > latest {
        let late = at - until;
        return Err(format!("{what} was {late:?} later than declared").into());
    }
    Ok(())
}

/// Whether a call failed with this kind.
pub(super) fn failed<T: std::fmt::Debug>(
    what: &str,
    answer: &Result<T>,
    kind: ErrorKind,
) -> Verdict {
    match answer {
        Err(e) if e.kind() == kind => Ok(()),
        other => Err(format!("{what}: expected {kind:?}, got {other:?}").into()),
    }
}

/// Waits until a lease that ends then has ended, for its holder and for the broker.
pub(super) async fn lapse(ctx: &Ctx, deadline: Instant) {
    let margin = ctx.timing().slack.min(Duration::from_millis(200));
    tokio::time::sleep_until(deadline + ctx.capabilities().clock_error + margin).await;
}

/// Waits until what had a lease with this end would have come back, if it were to.
pub(super) async fn outlast(ctx: &Ctx, deadline: Instant) {
    let late = ctx.capabilities().reclaim_slack + ctx.timing().slack;
    tokio::time::sleep_until(deadline + late).await;
}

/// The next delivery to either of two members: which, and the delivery. The other one goes on
/// waiting with nothing lost.
pub(super) async fn either(
    ctx: &Ctx,
    a: &mut RawMember,
    b: &mut RawMember,
) -> Result<(usize, RawDelivery), Failure> {
    let race = async {
        tokio::select! {
            d = a.wait() => d.map(|d| (0, d)),
            d = b.wait() => d.map(|d| (1, d)),
        }
    };
    ctx.soon("a delivery to one of two members", race).await?
}

/// Members that fetch and ack side by side, each in a task, until so many were acked in all: the
/// ids by member. Afterwards they go on for a while, and nothing more may come.
pub(super) async fn share(
    ctx: &Ctx,
    members: Vec<RawMember>,
    count: usize,
) -> Result<Vec<Vec<String>>, Failure> {
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut tasks = Vec::new();
    let mut shares = vec![Vec::new(); members.len()];
    for (number, mut member) in members.into_iter().enumerate() {
        let tell = tell.clone();
        tasks.push(tokio::spawn(async move {
            loop {
                let acked = async {
                    let delivery = member.wait().await?;
                    member.ack(&delivery).await?;
                    Ok::<_, Failure>(delivery.message.id().to_owned())
                };
                let acked = acked.await.map_err(|e| e.to_string());
                let failed = acked.is_err();
                if tell.send((number, acked)).is_err() || failed {
                    return;
                }
            }
        }));
    }
    drop(tell);
    let mut seen = 0;
    while seen < count {
        let next = ctx.soon("a delivery to one of the members", told.recv());
        let Some((number, acked)) = next.await? else {
            return Err(format!("every member had ended after {seen} of {count}").into());
        };
        if let Some(share) = shares.get_mut(number) {
            share.push(acked?);
        }
        seen += 1;
    }
    let over = ctx.never("one more delivery", told.recv()).await;
    for task in tasks {
        task.abort();
    }
    over.map(|()| shares)
}

/// Hooks that hold publishes and settlements back until they are let through.
#[derive(Debug)]
pub(super) struct Gate {
    /// For the places in line, which outlive the call that gives them.
    this: Weak<Self>,
    publishes: watch::Sender<Queue>,
    settlements: watch::Sender<bool>,
    published: Mutex<Vec<String>>,
    settled: Mutex<Vec<(Token, Outcome)>>,
    moved: watch::Sender<u64>,
}

/// Who waits at the gate. Batches go through in the order in which they came: a place in line that
/// was given is kept, whichever of them is polled first.
#[derive(Debug)]
struct Queue {
    open: bool,
    next: u64,
    waiting: VecDeque<u64>,
}

/// A place at the gate, given up when dropped.
struct Place {
    gate: Arc<Gate>,
    number: u64,
}

impl Place {
    /// Waits until the gate is open and everybody before has gone through or away.
    async fn through(&self) {
        let mut queue = self.gate.publishes.subscribe();
        let first = |q: &Queue| q.open && q.waiting.front() == Some(&self.number);
        // The sender lives in the gate.
        let _ = queue.wait_for(first).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let number = self.number;
        let leave = |q: &mut Queue| q.waiting.retain(|n| *n != number);
        self.gate.publishes.send_modify(leave);
    }
}

impl Gate {
    /// A gate that is open.
    pub(super) fn open() -> Arc<Self> {
        let queue = Queue {
            open: true,
            next: 0,
            waiting: VecDeque::new(),
        };
        Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            publishes: watch::Sender::new(queue),
            settlements: watch::Sender::new(true),
            published: Mutex::default(),
            settled: Mutex::default(),
            moved: watch::Sender::new(0),
        })
    }

    /// Lets publishes through, or holds them.
    pub(super) fn publishes(&self, open: bool) {
        self.publishes.send_modify(|q| q.open = open);
    }

    /// Lets settlements through, or holds them.
    pub(super) fn settlements(&self, open: bool) {
        self.settlements.send_replace(open);
    }

    /// A place in line, unless the way is free.
    fn place(&self) -> Option<Place> {
        let gate = self.this.upgrade()?;
        let mut number = None;
        self.publishes.send_if_modified(|q| {
            if !q.open || !q.waiting.is_empty() {
                q.next += 1;
                q.waiting.push_back(q.next);
                number = Some(q.next);
            }
            false
        });
        number.map(|number| Place { gate, number })
    }

    /// What has come as far as the gate, whether or not it was let through.
    pub(super) fn published(&self) -> Vec<String> {
        let published = self.published.lock();
        published.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// As [`Gate::published`], of settlements.
    pub(super) fn settled(&self) -> Vec<(Token, Outcome)> {
        let settled = self.settled.lock();
        settled.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until so many messages and settlements have come as far as the gate.
    pub(super) async fn reached(&self, count: usize) {
        let mut moved = self.moved.subscribe();
        let count = count as u64;
        // The sender lives in self.
        let _ = moved.wait_for(|n| *n >= count).await;
    }
}

#[async_trait]
impl Hooks for Gate {
    async fn publish(
        &self,
        next: &Arc<dyn Transport>,
        batch: Vec<Message>,
        deadline: Instant,
    ) -> Confirm {
        {
            let published = self.published.lock();
            let mut published = published.unwrap_or_else(PoisonError::into_inner);
            published.extend(ids(&batch));
        }
        self.moved.send_modify(|n| *n += batch.len() as u64);
        let Some(place) = self.place() else {
            return next.publish(batch, deadline).await;
        };
        let next = Arc::clone(next);
        async move {
            place.through().await;
            let confirm = next.publish(batch, deadline).await;
            drop(place);
            confirm.await
        }
        .boxed()
    }

    async fn settle(
        &self,
        next: &Arc<dyn Settle>,
        _member: &Joined,
        batch: Vec<(Token, Outcome)>,
    ) -> Vec<Result<Settled>> {
        {
            let settled = self.settled.lock();
            let mut settled = settled.unwrap_or_else(PoisonError::into_inner);
            settled.extend(batch.iter().cloned());
        }
        self.moved.send_modify(|n| *n += batch.len() as u64);
        let mut open = self.settlements.subscribe();
        let _ = open.wait_for(|open| *open).await;
        next.settle(batch).await
    }
}

/// What is in the first and not in the second.
pub(super) fn without(all: &[String], some: &[String]) -> Vec<String> {
    let some: BTreeSet<_> = some.iter().collect();
    let left = all.iter().filter(|id| !some.contains(id));
    left.cloned().collect()
}
