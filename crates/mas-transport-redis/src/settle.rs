//! Settlements.
//!
//! A batch becomes up to three commands side by side: one `XACK` of many ids, and two calls of the
//! fencing script. A stale ack is harmless (its handler did succeed), so acks only pass the local
//! deadline check; everything else could take an entry away from another member and goes through
//! the script. Acks and renewals may be repeated without harm: when the connection breaks they are
//! sent again until the first of their leases ends. What moves an entry is sent once.

use async_trait::async_trait;
use futures::future::join4;
use mas_transport_core::backend::persist_each;
use mas_transport_core::{Error, ErrorKind, Outcome, Position, Result, Settle, Settled, Token};
use redis::{Cmd, Pipeline, Value};
use std::sync::Arc;
use tokio::time::Instant;

use crate::BACKEND;
use crate::bury::bury_all;
use crate::connection::lock;
use crate::decode;
use crate::lease::Lease;
use crate::member::Member;
use crate::scripts;

/// The settling half of a member.
#[derive(Debug)]
pub(crate) struct RedisSettle(pub(crate) Arc<Member>);

/// One settlement that passed the local check: its place in the batch, its token, its lease.
pub(crate) type Item = (usize, Token, Lease);
/// What became of one.
pub(crate) type Answer = (usize, Result<Settled>);

#[async_trait]
impl Settle for RedisSettle {
    async fn settle(&self, batch: Vec<(Token, Outcome)>) -> Vec<Result<Settled>> {
        // A task of its own, so that whoever gives up waiting does not give up the settlements.
        let count = batch.len();
        let member = Arc::clone(&self.0);
        let task = self.0.shared.tasks.spawn(settle(member, batch));
        task.await.unwrap_or_else(|_| {
            let error = self.0.error(
                ErrorKind::Closed,
                "settle",
                "the runtime was shut down meanwhile",
            );
            vec![Err(error.maybe_stored()); count]
        })
    }

    async fn close(&self, deadline: Instant) -> Result<()> {
        self.0.close(deadline).await;
        Ok(())
    }
}

async fn settle(member: Arc<Member>, batch: Vec<(Token, Outcome)>) -> Vec<Result<Settled>> {
    let member = &*member;
    let mut results: Vec<Result<Settled>> = Vec::with_capacity(batch.len());
    let mut acks = Vec::with_capacity(batch.len());
    let (mut renewals, mut moves, mut burials) = (Vec::new(), Vec::new(), Vec::new());
    {
        let lost = lost(member);
        let now = Instant::now();
        let mut leases = lock(&member.leases);
        for (at, (token, outcome)) in batch.into_iter().enumerate() {
            results.push(Err(lost.clone()));
            let lease = match outcome {
                Outcome::Begin | Outcome::Extend => leases.held_until(token, now),
                _ => leases.settle(token, now),
            };
            let Some(lease) = lease else {
                continue;
            };
            let item = (at, token, lease);
            match outcome {
                Outcome::Ack => acks.push(item),
                Outcome::Begin => renewals.push((item, true)),
                Outcome::Extend => renewals.push((item, false)),
                Outcome::Nack(delay) => {
                    let ms = u64::try_from(delay.as_nanos().div_ceil(1_000_000));
                    moves.push((item, Some(ms.unwrap_or(u64::MAX).min(MOST_DELAY_MS))));
                }
                Outcome::Return => moves.push((item, None)),
                Outcome::DeadLetter(record) => burials.push((item, record, false)),
                Outcome::Quarantine(record) => burials.push((item, record, true)),
            }
        }
    }
    let (acked, renewed, moved, buried) = join4(
        ack(member, acks),
        renew(member, renewals),
        move_back(member, moves),
        bury_all(member, burials),
    )
    .await;
    for (at, answer) in acked.into_iter().chain(renewed).chain(moved).chain(buried) {
        if let Some(result) = results.get_mut(at) {
            *result = answer;
        }
    }
    member.released();
    results
}

/// The longest delay: ten years, far within what a score holds exactly.
const MOST_DELAY_MS: u64 = 10 * 365 * 24 * 3600 * 1000;

pub(crate) fn lost(member: &Member) -> Error {
    member.error(
        ErrorKind::LeaseLost,
        "settle",
        "the lease had ended: another member may hold the message",
    )
}

async fn ack(member: &Member, items: Vec<Item>) -> Vec<Answer> {
    let mut answers = Vec::with_capacity(items.len());
    let link = &member.link;
    let attempt = |items: Vec<Item>| async move {
        let commands = acks(member, &items);
        let mut answers = link.send("ack", &commands).await?.into_iter();
        let acked = link.check("ack", answers.next().unwrap_or_default())?;
        // `XACK` says nothing of a group that is gone; the record does. Whether it was written only
        // matters then.
        if answers.next().as_ref().and_then(decode::number) == Some(0) {
            let why = "the group is gone from the server, and its leases with it";
            return Err(member.error(ErrorKind::LeaseLost, "ack", why));
        }
        Ok(acked)
    };
    let done = |items, outcome: Result<Value>| {
        answers.extend(finish(member, items, outcome.map(|_| Settled::Done)));
    };
    persist_each(
        BACKEND,
        member.lease / 16,
        items,
        |(_, _, lease)| lease.deadline,
        attempt,
        done,
    )
    .await;
    answers
}

/// One `XACK` of all, and the record of how far the group has settled.
fn acks(member: &Member, items: &[Item]) -> Pipeline {
    let stream = member.keys.stream.as_str();
    let group = member.group.as_str();
    let room = stream.len() + group.len() + 24 * items.len() + 8;
    let mut command = Cmd::with_capacity(items.len() + 3, room);
    command.arg("XACK").arg(stream).arg(group);
    let mut highest = Position::default();
    for (_, _, lease) in items {
        highest = highest.max(lease.id);
        command.arg(lease.id.to_string());
    }
    highest.minor = highest.minor.saturating_add(1);
    let mut record = scripts::SETTLED.call(&[stream, &member.keys.hash]);
    record.arg(group).arg(highest.to_string());
    let mut commands = Pipeline::with_capacity(2);
    commands.add_command(command).add_command(record);
    commands
}

/// Gives all items of a command the same answer.
fn finish(member: &Member, items: Vec<Item>, outcome: Result<Settled>) -> Vec<Answer> {
    let mut leases = lock(&member.leases);
    let close = |(at, token, _)| {
        match outcome {
            Ok(_) => leases.done(token),
            Err(_) => leases.leave(token),
        }
        (at, outcome.clone())
    };
    items.into_iter().map(close).collect()
}

async fn renew(member: &Member, items: Vec<(Item, bool)>) -> Vec<Answer> {
    let mut answers = Vec::with_capacity(items.len());
    let attempt = |items: Vec<(Item, bool)>| async move {
        let mut call = member.fence();
        for ((_, _, lease), begin) in &items {
            member.operation(&mut call, if *begin { "B" } else { "E" }, lease);
            call.arg(0);
        }
        let asked = Instant::now();
        let answer = member.link.run("renew", &scripts::FENCE, call).await?;
        Ok((asked, decode::list(answer)))
    };
    let done = |items, outcome| answers.extend(renewed(member, items, outcome));
    persist_each(
        BACKEND,
        member.lease / 16,
        items,
        |((_, _, lease), _)| lease.deadline,
        attempt,
        done,
    )
    .await;
    answers
}

/// Enters what became of renewals, sent when the outcome says.
fn renewed(
    member: &Member,
    items: Vec<(Item, bool)>,
    outcome: Result<(Instant, Vec<Value>)>,
) -> Vec<Answer> {
    let mut leases = lock(&member.leases);
    let mut answers = match &outcome {
        Ok((_, answers)) => answers.iter(),
        Err(_) => [].iter(),
    };
    let mut missing = 0;
    let close = |((at, token, lease), begin): (Item, bool)| {
        let answer = match &outcome {
            Err(error) => {
                // A lease that could not be extended lasts as long as it did. One that could not be
                // begun is not handed out.
                if begin {
                    leases.leave(token);
                }
                Err(error.clone())
            }
            Ok((asked, _)) => {
                let done = fenced(member, answers.next(), &mut missing);
                let count = if begin { lease.attempt } else { lease.count };
                let deadline = *asked + member.lease;
                let renewed = done.and_then(|()| {
                    let renewed = leases.renewed(token, |lease| {
                        lease.count = lease.count.max(count);
                        lease.deadline = lease.deadline.max(deadline);
                    });
                    renewed.ok_or_else(|| lost(member))
                });
                if renewed.is_err() {
                    leases.done(token);
                }
                renewed.map(|_| Settled::Lease(deadline))
            }
        };
        (at, answer)
    };
    let answers = items.into_iter().map(close).collect();
    drop(leases);
    member.missed(missing);
    answers
}

/// What the fencing script said of one entry; one that is gone is counted in `missing`.
fn fenced(member: &Member, answer: Option<&Value>, missing: &mut u64) -> Result<()> {
    match answer.and_then(decode::number) {
        Some(1) => Ok(()),
        Some(2) => {
            *missing += 1;
            Err(gone(member))
        }
        _ => Err(lost(member)),
    }
}

/// Nacks (with a delay in ms) and returns.
async fn move_back(member: &Member, items: Vec<(Item, Option<u64>)>) -> Vec<Answer> {
    if items.is_empty() {
        return Vec::new();
    }
    let mut call = member.fence();
    for ((_, _, lease), delay) in &items {
        match delay {
            Some(ms) => {
                member.operation(&mut call, "N", lease);
                call.arg(*ms);
            }
            None => {
                member.operation(&mut call, "R", lease);
                call.arg(lease.attempt - 1);
            }
        }
    }
    let link = &member.link;
    let outcome = link.run("nack", &scripts::FENCE, call).await;
    let outcome = outcome.map(decode::list);
    let mut leases = lock(&member.leases);
    let mut answers = outcome.as_deref().unwrap_or_default().iter();
    let mut missing = 0;
    let close = |((at, token, _), _): (Item, Option<u64>)| {
        let answer = match &outcome {
            Err(error) => {
                leases.leave(token);
                Err(error.clone())
            }
            Ok(_) => {
                leases.done(token);
                fenced(member, answers.next(), &mut missing).map(|()| Settled::Done)
            }
        };
        (at, answer)
    };
    let answers = items.into_iter().map(close).collect();
    drop(leases);
    member.missed(missing);
    answers
}

pub(crate) fn gone(member: &Member) -> Error {
    member.error(
        ErrorKind::LeaseLost,
        "settle",
        "the entry was deleted from the topic",
    )
}
