//! Mutants of leases (L).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use conformance_tests::layers::{Hooks, Joined};
use mas_transport_core::mutation::Mutation;
use mas_transport_core::{
    ErrorKind, Event, Fetch, Outcome, Result, Settle, Settled, Source, Subscription, Token,
    Transport, Want,
};
use tokio::time::Instant;

use crate::edits::{Does, Edits, lock, pump};
use crate::mutants;

mutants! {
    L1 lease_is_half_as_long
        "the broker gives a message to others at half of the lease that the member was told"
        = |_| Arc::new(Lease { factor: 0.5, only_again: false, stamped: true });
    L1 second_lease_is_half_as_long
        "a redelivered message has half of the lease that the member is told"
        = |_| Arc::new(Lease { factor: 0.5, only_again: true, stamped: true });
    L1 lease_is_shorter_than_asked
        "a group has four fifths of the lease that was asked for, and says so"
        = |_| Arc::new(Lease { factor: 0.8, only_again: false, stamped: false });
    L1 lease_is_longer_than_asked
        "a group has half a lease more than was asked for, and says so"
        = |_| Arc::new(Lease { factor: 1.5, only_again: false, stamped: false });
    L1 deadline_is_told_late
        "the deadline of a delivery is told a tenth of a lease too late"
        = |_| Edits::delivery(|member, raw| {
            raw.deadline += member.subscription.get_lease() / 10;
            true
        });
    L1 nearly_expired_is_handed_out
        "the clock of a lease starts when the member joins, so that a delivery may come nearly expired"
        = |_| Edits::delivery(|member, raw| {
            let lease = member.subscription.get_lease();
            raw.deadline = raw.deadline.min(Instant::now() + lease / 20);
            true
        });
    L2 pump_settles_past_the_deadline
        "the consumer pump sends settlements past the deadline and believes the answer"
        = |_| pump(Mutation::SettlesPastDeadline);
    L2 late_ack_is_said_done
        "an ack after the deadline is answered as done"
        = |_| late_is_done(|outcome| matches!(outcome, Outcome::Ack));
    L2 late_nack_is_said_done
        "a nack after the deadline is answered as done"
        = |_| late_is_done(|outcome| matches!(outcome, Outcome::Nack(_)));
    L2 late_extension_is_granted
        "an extension after the deadline is answered with a new lease"
        = |_| Edits::answer(|member, _, outcome, answer| match (outcome, answer) {
            (Outcome::Extend, Err(e)) if e.kind() == ErrorKind::LeaseLost => {
                Ok(Settled::Lease(Instant::now() + member.subscription.get_lease()))
            }
            (_, answer) => answer,
        });
    L2 late_ack_touches_the_broker
        "an ack after the deadline is answered with LeaseLost, and settles the message all the same"
        = |_| Arc::new(LateAckActs::default());
    L3 the_dead_are_kept_alive
        "leases are renewed by the broker itself, so that a dead member keeps its messages"
        = |_| Arc::new(KeepsAlive);
    L3 reclaim_is_late
        "what a dead member held comes back one lease too late"
        = |_| Arc::new(Lease { factor: 2.0, only_again: false, stamped: true });
    L4 extension_is_only_said
        "an extension is answered with a new deadline, and the broker is not asked"
        = |_| Edits::outcome(|member, _, outcome| match outcome {
            Outcome::Extend => Does::Answer(Ok(Settled::Lease(
                Instant::now() + member.subscription.get_lease(),
            ))),
            other => Does::Pass(other),
        });
    L4 extends_once
        "the second extension of a delivery does not reach the broker"
        = |_| {
            let extended = Mutex::new(HashSet::new());
            Edits::outcome(move |member, known, outcome| match (&outcome, known) {
                (Outcome::Extend, Some(known)) => {
                    let id = known.message.id().to_owned();
                    match lock(&extended).insert((member.number, id)) {
                        true => Does::Pass(outcome),
                        false => Does::Answer(Ok(Settled::Lease(
                            Instant::now() + member.subscription.get_lease(),
                        ))),
                    }
                }
                _ => Does::Pass(outcome),
            })
        };
    L5 any_lease_is_taken
        "a member that asks for another lease than its group has is let in"
        = |_| Arc::new(AnyLease::default());
    L6 buffer_ages
        "the consumer pump does not extend what waits in its buffer"
        = |_| pump(Mutation::BufferNotExtended);
    L6 window_in_bytes_is_ignored
        "a fetch brings as many messages as were asked for, however large they are"
        = |_| Edits::want(|want| Want { bytes: usize::MAX, ..want });
    L6 paused_member_hoards
        "a paused consumer keeps what waits in its buffer"
        = |_| pump(Mutation::PauseKeeps);
    L6 hanging_member_hoards
        "the consumer pump extends its buffer for ever while its handlers hang"
        = |_| pump(Mutation::BufferHoarded);
}

/// Answers of `LeaseLost` to these outcomes become `Done`.
fn late_is_done(which: fn(&Outcome) -> bool) -> Arc<dyn Hooks> {
    Edits::answer(move |_, _, outcome, answer| match answer {
        Err(e) if e.kind() == ErrorKind::LeaseLost && which(outcome) => Ok(Settled::Done),
        answer => answer,
    })
}

/// The broker's lease is another than the one that was asked for.
#[derive(Debug)]
struct Lease {
    factor: f64,
    /// Only of what is redelivered; the rest is as it should be.
    only_again: bool,
    /// Deadlines are those of the lease that was asked for.
    stamped: bool,
}

impl Lease {
    fn below(&self, lease: Duration) -> Duration {
        lease.mul_f64(self.factor)
    }
}

#[async_trait]
impl Hooks for Lease {
    async fn subscribe(
        &self,
        next: &Arc<dyn Transport>,
        subscription: &Subscription,
    ) -> Result<Source> {
        if self.only_again {
            return next.subscribe(subscription).await;
        }
        let lease = self.below(subscription.get_lease());
        next.subscribe(&subscription.clone().lease(lease)).await
    }

    async fn fetch(
        &self,
        next: &mut dyn Fetch,
        member: &Joined,
        want: Want,
        out: &mut Vec<Event>,
    ) -> Result<()> {
        let before = out.len();
        let result = next.fetch(want, out).await;
        let lease = member.subscription.get_lease();
        for event in out.iter_mut().skip(before) {
            if let Event::Delivery(raw) = event
                && self.stamped
            {
                if self.only_again && raw.attempt > 1 {
                    raw.deadline += lease;
                } else if !self.only_again {
                    raw.deadline = raw.deadline - self.below(lease) + lease;
                }
            }
        }
        result
    }

    async fn settle(
        &self,
        next: &Arc<dyn Settle>,
        member: &Joined,
        batch: Vec<(Token, Outcome)>,
    ) -> Vec<Result<Settled>> {
        let lease = member.subscription.get_lease();
        let mut answers = next.settle(batch).await;
        for answer in &mut answers {
            if let Ok(Settled::Lease(until)) = answer
                && self.stamped
            {
                *until = match self.only_again {
                    true => *until + lease,
                    false => *until - self.below(lease) + lease,
                };
            }
        }
        answers
    }
}

/// Keeps every lease alive behind the member's back for a while, so that a late ack still finds it;
/// the member is told that it is lost.
#[derive(Debug, Default)]
struct LateAckActs {
    deadlines: Mutex<HashMap<(u32, Token), Instant>>,
}

#[async_trait]
impl Hooks for LateAckActs {
    async fn subscribe(
        &self,
        next: &Arc<dyn Transport>,
        subscription: &Subscription,
    ) -> Result<Source> {
        let lease = subscription.get_lease() + subscription.get_lease() / 8;
        next.subscribe(&subscription.clone().lease(lease)).await
    }

    async fn fetch(
        &self,
        next: &mut dyn Fetch,
        member: &Joined,
        want: Want,
        out: &mut Vec<Event>,
    ) -> Result<()> {
        let before = out.len();
        let result = next.fetch(want, out).await;
        for event in out.iter_mut().skip(before) {
            if let Event::Delivery(raw) = event {
                raw.deadline -= member.subscription.get_lease() / 8;
                lock(&self.deadlines).insert((member.number, raw.token), raw.deadline);
            }
        }
        result
    }

    async fn settle(
        &self,
        next: &Arc<dyn Settle>,
        member: &Joined,
        batch: Vec<(Token, Outcome)>,
    ) -> Vec<Result<Settled>> {
        let late: Vec<_> = batch
            .iter()
            .map(|(token, _)| {
                let deadlines = lock(&self.deadlines);
                let deadline = deadlines.get(&(member.number, *token));
                deadline.is_some_and(|at| *at <= Instant::now())
            })
            .collect();
        let tokens: Vec<_> = batch.iter().map(|(token, _)| *token).collect();
        let mut answers = next.settle(batch).await;
        for ((answer, late), token) in answers.iter_mut().zip(late).zip(tokens) {
            if late {
                let lost = mas_transport_core::Error::new(
                    ErrorKind::LeaseLost,
                    "settle",
                    "said by a mutant",
                );
                *answer = Err(lost);
            } else if let Ok(Settled::Lease(until)) = answer {
                *until -= member.subscription.get_lease() / 8;
                lock(&self.deadlines).insert((member.number, token), *until);
            }
        }
        answers
    }
}

/// Renews the lease of everything that was fetched, until it is settled.
#[derive(Debug)]
struct KeepsAlive;

#[async_trait]
impl Hooks for KeepsAlive {
    async fn fetch(
        &self,
        next: &mut dyn Fetch,
        member: &Joined,
        want: Want,
        out: &mut Vec<Event>,
    ) -> Result<()> {
        let before = out.len();
        let result = next.fetch(want, out).await;
        for event in out.iter().skip(before) {
            if let Event::Delivery(raw) = event {
                let (settle, token) = (Arc::clone(&member.settle), raw.token);
                let pause = member.subscription.get_lease() / 3;
                tokio::spawn(async move {
                    loop {
                        tokio::time::sleep(pause).await;
                        let answers = settle.settle(vec![(token, Outcome::Extend)]).await;
                        if !matches!(answers.first(), Some(Ok(_))) {
                            return;
                        }
                    }
                });
            }
        }
        result
    }
}

/// A group takes members with any lease.
#[derive(Debug, Default)]
struct AnyLease(Mutex<HashMap<(String, String), Duration>>);

#[async_trait]
impl Hooks for AnyLease {
    async fn subscribe(
        &self,
        next: &Arc<dyn Transport>,
        subscription: &Subscription,
    ) -> Result<Source> {
        let Ok(group) = subscription.get_group() else {
            return next.subscribe(subscription).await;
        };
        let name = (subscription.pattern().to_owned(), group.to_string());
        let stored = lock(&self.0).get(&name).copied();
        let lease = stored.unwrap_or(subscription.get_lease());
        let source = next.subscribe(&subscription.clone().lease(lease)).await?;
        lock(&self.0).insert(name, lease);
        Ok(source)
    }
}
