//! Settlements.
//!
//! Kafka knows of no single messages: a settlement changes the state of this member's share, and counts
//! when a commit that holds it was taken. What comes back comes back here, without the broker.
//!
//! A commit may take longer than a lease: a broker answers the requests of a connection one by one, and
//! that to join a group again only when all members have (seen with Kafka 4.3: a second for each step of a
//! rebalance). As long as the partition is this member's, nobody else has what was settled, so that a
//! settlement may wait longer for its confirmation than its lease lasted.

use std::sync::Arc;

use async_trait::async_trait;
use mas_transport_core::backend::lock;
use mas_transport_core::{Error, ErrorKind, Outcome, Result, Settle, Settled, Token};
use tokio::time::{Instant, sleep};

use crate::bury::{Burial, bury_all};
use crate::gather::Gather;
use crate::member::{Member, now};
use crate::share::Step;

/// The settling half of a member.
#[derive(Debug)]
pub(crate) struct KafkaSettle(pub(crate) Arc<Member>);

/// One settlement of a call of `settle` that waits for commits.
#[derive(Debug)]
pub(crate) struct Place {
    call: Arc<Gather<Result<()>>>,
    at: usize,
}

impl Place {
    /// What became of it.
    pub(crate) fn done(self, outcome: Result<()>) {
        self.call.put(self.at, outcome);
    }
}

impl Member {
    /// The lease of a token is lost.
    pub(crate) fn lost(&self) -> Error {
        self.error(
            ErrorKind::LeaseLost,
            "settle",
            "the lease had ended: another member may hold the message",
        )
    }

    /// The partition of a settlement went to somebody else before a commit told of it.
    pub(crate) fn moved(&self) -> Error {
        self.error(
            ErrorKind::Unavailable,
            "settle",
            "the partition was taken away before the settlement was committed",
        )
        .maybe_stored()
    }
}

#[async_trait]
impl Settle for KafkaSettle {
    async fn settle(&self, batch: Vec<(Token, Outcome)>) -> Vec<Result<Settled>> {
        let member = &self.0;
        if member.is_closed() {
            return vec![Err(Error::closed("settle").on(crate::BACKEND)); batch.len()];
        }
        // A task of its own, so that whoever gives up waiting does not give up the dead letters.
        let count = batch.len();
        if batch
            .iter()
            .any(|(_, outcome)| matches!(outcome, Outcome::DeadLetter(_) | Outcome::Quarantine(_)))
        {
            let task = member.shared.tasks.spawn(settle(member.clone(), batch));
            return task.await.unwrap_or_else(|_| {
                let why = "the runtime was shut down meanwhile";
                let error = member.error(ErrorKind::Closed, "settle", why);
                vec![Err(error.maybe_stored()); count]
            });
        }
        settle(member.clone(), batch).await
    }

    async fn close(&self, deadline: Instant) -> Result<()> {
        self.0.close(deadline).await;
        Ok(())
    }
}

async fn settle(member: Arc<Member>, batch: Vec<(Token, Outcome)>) -> Vec<Result<Settled>> {
    let member = &member;
    let mut results: Vec<Result<Settled>> = vec![Err(member.lost()); batch.len()];
    let mut burials = Vec::new();
    let mut outcomes = Vec::with_capacity(batch.len());
    for (at, (token, outcome)) in batch.into_iter().enumerate() {
        match outcome {
            Outcome::DeadLetter(record) => burials.push(Burial {
                at,
                token,
                record,
                malformed: false,
            }),
            Outcome::Quarantine(record) => burials.push(Burial {
                at,
                token,
                record,
                malformed: true,
            }),
            outcome => outcomes.push((at, token, outcome)),
        }
    }
    let settled = settle_here(member, outcomes);
    let buried = async {
        match burials.is_empty() {
            true => Vec::new(),
            false => bury_all(member, burials).await,
        }
    };
    let (settled, buried) = tokio::join!(settled, buried);
    for (at, answer) in settled.into_iter().chain(buried) {
        if let Some(result) = results.get_mut(at) {
            *result = answer;
        }
    }
    results
}

/// What became of one settlement of a batch.
pub(crate) type Answer = (usize, Result<Settled>);

/// Settles in this member's share, and waits until that is committed.
pub(crate) async fn settle_here(
    member: &Arc<Member>,
    outcomes: Vec<(usize, Token, Outcome)>,
) -> Vec<Answer> {
    if outcomes.is_empty() {
        return Vec::new();
    }
    let mut answers = Vec::with_capacity(outcomes.len());
    let mut waits = Vec::with_capacity(outcomes.len());
    let call = Arc::new(Gather::new(outcomes.len()));
    let (limit, fetches, leaves) = {
        let mut state = lock(&member.state);
        let now = now();
        state.share.advance(now);
        let mut fetches = false;
        for (at, token, outcome) in outcomes {
            match state.share.settle(now, token, &outcome) {
                None => answers.push((at, Err(member.lost()))),
                Some(Step::Lease(until)) => answers.push((at, Ok(Settled::Lease(until)))),
                Some(Step::Done) => {
                    fetches = true;
                    answers.push((at, Ok(Settled::Done)));
                }
                Some(Step::Wait {
                    partition,
                    offset,
                    change,
                    noted,
                }) => {
                    call.expect(1);
                    let place = Place {
                        call: call.clone(),
                        at: waits.len(),
                    };
                    let begun = matches!(outcome, Outcome::Begin).then_some(token);
                    fetches |= matches!(outcome, Outcome::Nack(_) | Outcome::Return);
                    waits.push((at, begun));
                    let refused = state
                        .share
                        .wait_for(partition, offset, change, noted, place);
                    if let Some(place) = refused {
                        place.done(Err(member.moved()));
                    }
                }
            }
        }
        let wait = member.shared.asker.config.response_timeout;
        let limit = now.instant + state.share.lease().max(wait);
        (limit, fetches, state.share.leaves())
    };
    if fetches {
        member.arrived.notify_one();
    }
    if leaves || member.closing.is_cancelled() {
        // What waits for the last settlement may go: a partition, or the member.
        member.events.notify_one();
    }
    if waits.is_empty() {
        return answers;
    }
    member.dirty.notify_one();
    let begins: Vec<Token> = waits.iter().filter_map(|(_, begun)| *begun).collect();
    // What nobody has been handed yet does not lapse meanwhile.
    let committed = keeping(member, &begins, call.answers(limit)).await;
    for ((at, begun), outcome) in waits.into_iter().zip(committed) {
        let outcome = outcome.unwrap_or_else(|| {
            let why = "the broker did not confirm the commit in time";
            Err(member
                .error(ErrorKind::Timeout, "settle", why)
                .maybe_stored())
        });
        let answer = outcome.and_then(|()| match begun {
            None => Ok(Settled::Done),
            Some(token) => {
                let until = lock(&member.state).share.renew(now(), token);
                until.map(Settled::Lease).ok_or_else(|| member.lost())
            }
        });
        answers.push((at, answer));
    }
    answers
}

/// Renews leases for as long as something takes that is done for them.
pub(crate) async fn keeping<T>(
    member: &Member,
    tokens: &[Token],
    what: impl Future<Output = T>,
) -> T {
    tokio::pin!(what);
    loop {
        let half = lock(&member.state).share.lease() / 2;
        tokio::select! {
            done = &mut what => return done,
            () = sleep(half), if !tokens.is_empty() => {
                let mut state = lock(&member.state);
                let now = now();
                for token in tokens {
                    state.share.renew(now, *token);
                }
            }
        }
    }
}
