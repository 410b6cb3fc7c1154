//! Mutants of settlements (S), nacks (N) and attempts (A).

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use conformance_tests::layers::{Hooks, Joined};
use mas_transport_core::mutation::Mutation;
use mas_transport_core::{
    Error, ErrorKind, Event, Fetch, Message, Outcome, Position, Reason, ReasonCode, Record, Result,
    Settle, Settled, Source, Subscription, Token, Transport, Want,
};
use tokio::time::Instant;

use crate::edits::{Does, Edits, lock, pump};
use crate::mutants;

mutants! {
    S1 acks_stay_here
        "acks are answered as done and never reach the broker"
        = |_| Edits::outcome(|_, _, outcome| match outcome {
            Outcome::Ack => Does::Answer(Ok(Settled::Done)),
            other => Does::Pass(other),
        });
    S1 some_acks_stay_here
        "each sixty-fourth ack is answered as done and never reaches the broker"
        = |_| {
            let count = AtomicU64::new(0);
            Edits::outcome(move |_, _, outcome| match outcome {
                Outcome::Ack if count.fetch_add(1, Ordering::Relaxed) % 64 == 63 => {
                    Does::Answer(Ok(Settled::Done))
                }
                other => Does::Pass(other),
            })
        };
    S1 ack_is_forgotten_on_close
        "acks are sent when the next one comes; the last one of a member is lost"
        = |_| Arc::new(OneBehind::default());
    S1 acks_are_forgotten_in_time
        "an acked message is there again when a member joins minutes later"
        = |_| Arc::new(ComesAgain::default());
    S2 one_stale_fails_all
        "where one settlement of a batch has lost its lease, the others are answered so too"
        = |_| Arc::new(FailsTogether);
    S2 ack_takes_earlier_ones_along
        "an ack settles every earlier delivery of its member"
        = |_| Arc::new(Cumulative::default());
    S2 batch_stops_at_a_stale_one
        "what follows a settlement that lost its lease is answered as done and not sent"
        = |_| Arc::new(StopsAtStale);
    S3 dropping_the_handle_withdraws
        "a settlement whose handle is dropped is not sent"
        = |_| pump(Mutation::HandleWithdraws);
    S3 failures_are_swallowed
        "a settlement that failed and was not awaited shows nowhere"
        = |_| pump(Mutation::FailuresSwallowed);
    N1 nack_waits_for_the_lease
        "a nack is answered as done and not sent: the message comes back when its lease ends"
        = |_| Edits::outcome(|_, _, outcome| match outcome {
            Outcome::Nack(delay) if delay.is_zero() => Does::Answer(Ok(Settled::Done)),
            other => Does::Pass(other),
        });
    N1 nack_is_slow
        "a nacked message comes back a second later than declared"
        = |_| nack_map(|delay, _| match delay.is_zero() {
            true => Duration::from_secs(1),
            false => delay,
        });
    N1 nack_is_an_ack_at_last
        "the second nack of a message settles it"
        = |_| Edits::outcome(|_, known, outcome| match outcome {
            Outcome::Nack(_) if known.is_some_and(|k| k.attempt == 2) => Does::Pass(Outcome::Ack),
            other => Does::Pass(other),
        });
    N2 long_delay_is_cut_at_the_lease
        "a nack with a delay beyond the lease comes back after one lease"
        = |_| nack_map(|delay, lease| delay.min(lease));
    N2 delay_is_early
        "a delayed nack comes back after nine tenths of its delay"
        = |_| nack_map(|delay, _| delay * 9 / 10);
    N2 delay_is_late
        "a delayed nack comes back after twice its delay"
        = |_| nack_map(|delay, _| delay * 2);
    N1 nacks_wait_for_the_backlog
        "what was nacked is handed out when nothing new is left in the buffer"
        = |_| pump(Mutation::AgainWaits);
    N3 drop_is_an_ack
        "a dropped delivery is acked"
        = |_| pump(Mutation::DropAcks);
    N3 drop_has_no_backoff
        "a dropped delivery comes back at once"
        = |_| pump(Mutation::DropWithoutBackoff);
    N3 backoff_does_not_grow
        "a dropped delivery always waits for the first step of the backoff"
        = |_| pump(Mutation::BackoffDoesNotGrow);
    N3 backoff_has_no_limit
        "a dropped delivery waits twice as long each time, without end"
        = |_| pump(Mutation::BackoffUncapped);
    A1 return_counts
        "what was fetched and returned without a hand-out counts as an attempt"
        = |_| Arc::new(ReturnCounts { which: |o| matches!(o, Outcome::Return), ..Default::default() });
    A1 extension_counts
        "an extension counts as an attempt"
        = |_| Arc::new(ReturnCounts { which: |o| matches!(o, Outcome::Extend), ..Default::default() });
    A1 groups_count_together
        "redeliveries in one group count in the others too"
        = |_| {
            let seen: Mutex<HashMap<_, HashMap<String, u32>>> = Mutex::default();
            Edits::delivery(move |member, raw| {
                let group = member.subscription.get_group();
                let group = group.map(|g| g.to_string()).unwrap_or_default();
                let mut seen = lock(&seen);
                let key = (member.subscription.pattern().to_owned(), raw.position);
                let groups = seen.entry(key).or_default();
                groups.insert(group, raw.attempt);
                raw.attempt = groups.values().copied().max().unwrap_or(1);
                true
            })
        };
    A1 attempts_stop_at_two
        "the count of attempts does not go beyond two"
        = |_| Edits::delivery(|_, raw| {
            raw.attempt = raw.attempt.min(2);
            true
        });
    A1 another_member_counts_anew
        "a message that goes to another member than before is on its first attempt"
        = |_| {
            let last = Mutex::new(HashMap::new());
            Edits::delivery(move |member, raw| {
                let key = (member.subscription.pattern().to_owned(), raw.position);
                let before = lock(&last).insert(key, member.number);
                if before.is_some_and(|b| b != member.number) {
                    raw.attempt = 1;
                }
                true
            })
        };
    A2 poison_is_handed_out
        "a message above its attempts is handed out"
        = |_| pump(Mutation::NoPoisonStop);
    A2 used_up_is_forgotten
        "a message above its attempts is acked without a dead letter"
        = |_| dead_letter_as(ReasonCode::MaxAttempts, Outcome::Ack);
    A3 reject_is_an_ack
        "a rejected message is acked without a dead letter"
        = |_| pump(Mutation::RejectAcks);
    A3 reject_is_a_nack
        "a rejected message comes back instead"
        = |_| dead_letter_as(ReasonCode::Rejected, Outcome::Nack(Duration::from_secs(1)));
    A3 later_reject_says_used_up
        "a reject on a later attempt says that the attempts were used up"
        = |_| record_map(|record| if record.attempts > 2 {
            record.reason.code = ReasonCode::MaxAttempts;
        });
    A2 first_group_gives_up_for_all
        "a message whose attempts are used up in one group counts as used up in all"
        = |_| {
            let given_up = Mutex::new(HashSet::new());
            Edits::delivery(move |member, raw| {
                let key = (member.subscription.pattern().to_owned(), raw.position);
                if raw.attempt > member.subscription.get_max_attempts() {
                    lock(&given_up).insert(key);
                } else if lock(&given_up).contains(&key) {
                    raw.attempt = member.subscription.get_max_attempts() + 1;
                }
                true
            })
        };
    A4 history_is_short
        "the record of a dead letter keeps eight failures"
        = |_| record_map(|record| {
            let more = record.history.len().saturating_sub(8);
            record.history.drain(..more);
        });
    A4 reason_is_short
        "the reason of a dead letter is cut at 256 bytes"
        = |_| record_map(|record| {
            let text: String = record.reason.text.chars().take(256).collect();
            record.reason = Reason::new(record.reason.code, text);
        });
    A4 record_has_no_member
        "the record of a dead letter does not say who gave the message up"
        = |_| record_map(|record| record.member.clear());
    A4 first_failure_is_the_last
        "the record of a dead letter has one time for the first failure and for the last"
        = |_| record_map(|record| record.first_failure_ms = record.last_failure_ms);
    A4 record_is_empty
        "the record of a dead letter says nothing"
        = |_| pump(Mutation::EmptyRecord);
    A4 dead_letter_has_no_headers
        "a dead letter has lost its headers"
        = |_| Edits::incoming(
            |raw| raw.message.topic().as_str().starts_with("_dlq"),
            |m| m.with_headers(mas_transport_core::Headers::default()),
        );
    A4 record_forgets_its_history
        "the record of a dead letter counts one attempt, whatever was"
        = |_| record_map(|record| record.attempts = 1);
    A5 nothing_is_begun
        "the attempt is not recorded before the hand-out, so that poison never runs out of attempts"
        = |_| pump(Mutation::NoBegin);
    A5 last_attempt_beside_others
        "poison on its last attempt runs beside healthy messages and takes them along"
        = |_| pump(Mutation::LastAttemptNotAlone);
    A5 receivers_sleep_beside_a_suspect
        "who waits while a suspect runs alone is not woken when it has been settled"
        = |_| pump(Mutation::ReceiverSleepsOn);
}

/// Changes the delay of each nack; `edit` is told the lease too.
fn nack_map(edit: fn(Duration, Duration) -> Duration) -> Arc<dyn Hooks> {
    Edits::outcome(move |member, _, outcome| match outcome {
        Outcome::Nack(delay) => {
            Does::Pass(Outcome::Nack(edit(delay, member.subscription.get_lease())))
        }
        other => Does::Pass(other),
    })
}

/// Does something else with what is to be dead-lettered for this reason.
fn dead_letter_as(code: ReasonCode, instead: Outcome) -> Arc<dyn Hooks> {
    Edits::outcome(move |_, _, outcome| match outcome {
        Outcome::DeadLetter(record) if record.reason.code == code => Does::Pass(instead.clone()),
        other => Does::Pass(other),
    })
}

/// Changes the record of each dead letter.
fn record_map(edit: fn(&mut Record)) -> Arc<dyn Hooks> {
    Edits::outcome(move |_, _, outcome| match outcome {
        Outcome::DeadLetter(mut record) => {
            edit(&mut record);
            Does::Pass(Outcome::DeadLetter(record))
        }
        other => Does::Pass(other),
    })
}

/// Publishes what was acked first once more when a member joins minutes later.
#[derive(Debug, Default)]
struct ComesAgain {
    acked: Mutex<HashMap<String, (Instant, Message)>>,
    held: Mutex<HashMap<(u32, Token), Message>>,
}

#[async_trait]
impl Hooks for ComesAgain {
    async fn subscribe(
        &self,
        next: &Arc<dyn Transport>,
        subscription: &Subscription,
    ) -> Result<Source> {
        let source = next.subscribe(subscription).await?;
        let again = {
            let mut acked = lock(&self.acked);
            let due = acked.get(subscription.pattern());
            match due.is_some_and(|(at, _)| at.elapsed() > Duration::from_secs(200)) {
                true => acked.remove(subscription.pattern()),
                false => None,
            }
        };
        if let Some((_, message)) = again {
            let deadline = Instant::now() + Duration::from_secs(30);
            next.publish(vec![message], deadline).await.await;
        }
        Ok(source)
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
        for event in out.iter().skip(before) {
            if let Event::Delivery(raw) = event {
                let held = (member.number, raw.token);
                lock(&self.held).insert(held, raw.message.clone());
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
        let acked = batch.iter().find(|(_, o)| matches!(o, Outcome::Ack));
        let acked = acked.map(|(token, _)| (member.number, *token));
        if let Some(message) = acked.and_then(|held| lock(&self.held).get(&held).cloned()) {
            let topic = member.subscription.pattern().to_owned();
            let mut acked = lock(&self.acked);
            acked.entry(topic).or_insert((Instant::now(), message));
        }
        next.settle(batch).await
    }
}

/// Sends each ack only when the next one comes.
#[derive(Debug, Default)]
struct OneBehind(Mutex<HashMap<u32, (Token, Outcome)>>);

#[async_trait]
impl Hooks for OneBehind {
    async fn settle(
        &self,
        next: &Arc<dyn Settle>,
        member: &Joined,
        batch: Vec<(Token, Outcome)>,
    ) -> Vec<Result<Settled>> {
        let mut answers = Vec::with_capacity(batch.len());
        for (token, outcome) in batch {
            if !matches!(outcome, Outcome::Ack) {
                answers.extend(next.settle(vec![(token, outcome)]).await);
                continue;
            }
            let before = lock(&self.0).insert(member.number, (token, outcome));
            if let Some(before) = before {
                next.settle(vec![before]).await;
            }
            answers.push(Ok(Settled::Done));
        }
        answers
    }
}

fn lease_lost() -> Error {
    Error::new(ErrorKind::LeaseLost, "settle", "said by a mutant")
}

fn is_lost<T>(answer: &Result<T>) -> bool {
    answer
        .as_ref()
        .is_err_and(|e| e.kind() == ErrorKind::LeaseLost)
}

/// One lost lease in a batch is told to all of it.
#[derive(Debug)]
struct FailsTogether;

#[async_trait]
impl Hooks for FailsTogether {
    async fn settle(
        &self,
        next: &Arc<dyn Settle>,
        _member: &Joined,
        batch: Vec<(Token, Outcome)>,
    ) -> Vec<Result<Settled>> {
        let answers = next.settle(batch).await;
        match answers.iter().any(is_lost) {
            true => answers.iter().map(|_| Err(lease_lost())).collect(),
            false => answers,
        }
    }
}

/// Nothing is sent behind a settlement that lost its lease.
#[derive(Debug)]
struct StopsAtStale;

#[async_trait]
impl Hooks for StopsAtStale {
    async fn settle(
        &self,
        next: &Arc<dyn Settle>,
        _member: &Joined,
        batch: Vec<(Token, Outcome)>,
    ) -> Vec<Result<Settled>> {
        let mut answers = Vec::with_capacity(batch.len());
        let mut stopped = false;
        for entry in batch {
            match stopped {
                true => answers.push(Ok(Settled::Done)),
                false => answers.extend(next.settle(vec![entry]).await),
            }
            stopped |= answers.last().is_some_and(is_lost);
        }
        answers
    }
}

/// An ack settles whatever the member got before it.
#[derive(Debug, Default)]
struct Cumulative(Mutex<HashMap<u32, Vec<Token>>>);

#[async_trait]
impl Hooks for Cumulative {
    async fn fetch(
        &self,
        next: &mut dyn Fetch,
        member: &Joined,
        want: Want,
        out: &mut Vec<Event>,
    ) -> Result<()> {
        let before = out.len();
        let result = next.fetch(want, out).await;
        let mut fetched = lock(&self.0);
        let fetched = fetched.entry(member.number).or_default();
        fetched.extend(out.iter().skip(before).filter_map(|event| match event {
            Event::Delivery(raw) => Some(raw.token),
            _ => None,
        }));
        result
    }

    async fn settle(
        &self,
        next: &Arc<dyn Settle>,
        member: &Joined,
        batch: Vec<(Token, Outcome)>,
    ) -> Vec<Result<Settled>> {
        let settled: HashSet<Token> = batch.iter().map(|(token, _)| *token).collect();
        let acked = batch.iter().rev().find(|(_, o)| matches!(o, Outcome::Ack));
        let earlier: Vec<_> = match acked {
            Some((last, _)) => {
                let fetched = lock(&self.0);
                let fetched = fetched.get(&member.number).cloned().unwrap_or_default();
                let until = fetched.iter().position(|t| t == last).unwrap_or(0);
                let earlier = fetched.into_iter().take(until);
                earlier.filter(|t| !settled.contains(t)).collect()
            }
            None => Vec::new(),
        };
        let answers = next.settle(batch).await;
        let more: Vec<_> = earlier.into_iter().map(|t| (t, Outcome::Ack)).collect();
        if !more.is_empty() {
            next.settle(more).await;
        }
        answers
    }
}

/// Attempts count more than hand-outs.
#[derive(Debug)]
struct ReturnCounts {
    /// The settlements that count.
    which: fn(&Outcome) -> bool,
    returned: Mutex<HashMap<(String, Position), u32>>,
    held: Mutex<HashMap<(u32, Token), Position>>,
}

impl Default for ReturnCounts {
    fn default() -> Self {
        Self {
            which: |_| false,
            returned: Mutex::default(),
            held: Mutex::default(),
        }
    }
}

#[async_trait]
impl Hooks for ReturnCounts {
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
                let key = (member.subscription.pattern().to_owned(), raw.position);
                raw.attempt += lock(&self.returned).get(&key).copied().unwrap_or(0);
                lock(&self.held).insert((member.number, raw.token), raw.position);
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
        for (token, outcome) in &batch {
            let position = lock(&self.held).get(&(member.number, *token)).copied();
            if let (true, Some(position)) = ((self.which)(outcome), position) {
                let key = (member.subscription.pattern().to_owned(), position);
                *lock(&self.returned).entry(key).or_default() += 1;
            }
        }
        next.settle(batch).await
    }
}
