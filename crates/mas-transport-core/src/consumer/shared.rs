//! What the consumer, its deliveries and its pump share.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::delivery::Delivery;
use super::events::{ConsumerEvent, EventQueue};
use super::meter::{self, Meter, Tally};
use super::window::{Settling, Taken, Window};
use crate::capabilities::TransportInfo;
use crate::clock::now_utc;
use crate::coalesce::{Bounds, Line, Sink, Ticket, lock};
use crate::error::{Error, ErrorKind, Result};
use crate::name::{Group, Topic};
use crate::record::{Failure, MAX_HISTORY, Reason, Record, unix_ms};
use crate::subscription::Subscription;
use crate::transport::{Outcome, Position, Settle, Settled, Source, Token};

/// Messages whose failures are remembered for their dead letter; the oldest are forgotten first.
const FAILURES_KEPT: usize = 4096;

/// How far the consumer has come.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    Running,
    Paused,
    /// Nothing more is handed out; settlements still go out.
    Closing,
    Closed,
    /// The backend failed for good.
    Failed(Error),
}

pub(super) struct State {
    pub(super) window: Window,
    pub(super) phase: Phase,
    /// Somebody was told that there is nothing more.
    end_told: bool,
    events: EventQueue,
    failures: Failures,
    /// Only to be written under the lock of this.
    pub(super) tally: Arc<Tally>,
}

/// The failures that this member saw, by position, bounded.
#[derive(Default)]
struct Failures {
    by_position: HashMap<Position, Vec<Failure>>,
    order: VecDeque<Position>,
}

impl Failures {
    fn note(&mut self, position: Position, attempt: u32, what: String) {
        let failure = Failure {
            attempt,
            at_ms: unix_ms(now_utc()),
            what,
        };
        let history = self.by_position.entry(position).or_insert_with(|| {
            self.order.push_back(position);
            Vec::new()
        });
        if history.len() == MAX_HISTORY {
            history.remove(0);
        }
        history.push(failure);
        while self.order.len() > FAILURES_KEPT {
            if let Some(oldest) = self.order.pop_front() {
                self.by_position.remove(&oldest);
            }
        }
    }

    fn take(&mut self, position: Position) -> Vec<Failure> {
        match self.by_position.remove(&position) {
            Some(history) => {
                self.order.retain(|p| *p != position);
                history
            }
            None => Vec::new(),
        }
    }
}

pub(super) struct Shared {
    pub(super) info: Arc<TransportInfo>,
    pub(super) subscription: Subscription,
    pub(super) topic: Topic,
    pub(super) group: Group,
    pub(super) member: String,
    pub(super) settle: Arc<dyn Settle>,
    pub(super) line: Line<Item, Result<Settled>>,
    state: Arc<Guarded>,
    pub(super) closed: watch::Sender<bool>,
}

/// The part that the settlement line reports to.
pub(super) struct Guarded {
    state: Mutex<State>,
    /// Wakes the pump.
    pump: Notify,
    /// Wakes receivers.
    app: Notify,
    /// Wakes readers of events.
    events: Notify,
    /// Wakes those who watch for revocations.
    revoked: Notify,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("backend", &self.info.backend)
            .field("topic", &self.topic)
            .field("group", &self.group)
            .field("member", &self.member)
            .finish_non_exhaustive()
    }
}

/// A settlement in line.
pub(super) struct Item {
    pub(super) token: Token,
    pub(super) outcome: Outcome,
    /// Past it, the broker is not to be asked.
    pub(super) deadline: Instant,
    pub(super) position: Position,
}

impl Shared {
    pub(super) fn new(
        info: Arc<TransportInfo>,
        subscription: Subscription,
        source: &Source,
        meter: &Meter,
    ) -> Result<Self> {
        let alone = !mutated!(info, LastAttemptNotAlone);
        let window = Window::new(
            subscription.get_prefetch(),
            subscription.get_prefetch_bytes(),
            subscription.get_lease(),
            subscription.get_max_attempts(),
            alone,
        );
        let tally = Arc::<Tally>::default();
        let state = Arc::new(Guarded {
            state: Mutex::new(State {
                window,
                phase: Phase::Running,
                end_told: false,
                events: EventQueue::default(),
                failures: Failures::default(),
                tally: tally.clone(),
            }),
            pump: Notify::new(),
            app: Notify::new(),
            events: Notify::new(),
            revoked: Notify::new(),
        });
        let sink = Settlements {
            settle: source.settle.clone(),
            state: state.clone(),
            info: info.clone(),
        };
        let bounds = Bounds {
            entries: info.tuning.settle_batch,
            bytes: usize::MAX,
            in_flight: info.tuning.settle_in_flight,
            // A settlement is worth nothing once the lease has ended.
            timeout: subscription.get_lease(),
            gathers: true,
        };
        let topic = if subscription.has_wildcard() {
            Topic::wildcard(subscription.pattern())
        } else {
            subscription.get_topic()?
        };
        let group = subscription.get_group()?;
        meter.add(tally, Arc::downgrade(&state));
        Ok(Self {
            topic,
            group,
            member: match subscription.get_member() {
                Some(member) => member.to_owned(),
                None => format!("m-{}", uuid::Uuid::now_v7().simple()),
            },
            settle: source.settle.clone(),
            line: Line::start(Arc::new(sink), bounds),
            state,
            closed: watch::Sender::new(false),
            info,
            subscription,
        })
    }

    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state.state)
    }

    /// From now on nothing is handed out; the pump drains.
    pub(super) fn begin_closing(&self) {
        let mut state = self.lock();
        if state.phase.is_open() {
            state.phase = Phase::Closing;
        }
    }

    pub(super) fn pump(&self) -> &Notify {
        &self.state.pump
    }

    pub(super) fn app(&self) -> &Notify {
        &self.state.app
    }

    pub(super) fn events(&self) -> &Notify {
        &self.state.events
    }

    pub(super) fn revoked(&self) -> &Notify {
        &self.state.revoked
    }

    pub(super) fn tell(&self, event: ConsumerEvent) {
        self.state.tell(event);
    }

    pub(super) fn next_event(&self) -> Option<ConsumerEvent> {
        self.lock().events.pop()
    }

    /// Takes what can be handed out now, up to `most`. `Err` when there is nothing more to come.
    pub(super) fn take(self: &Arc<Self>, most: usize) -> Result<Vec<Delivery>, Option<Error>> {
        let now = Instant::now();
        let mut taken = Vec::new();
        let mut begin = Vec::new();
        let mut state = self.lock();
        match &state.phase {
            Phase::Running => {}
            Phase::Paused => return Ok(taken),
            Phase::Failed(error) => return Err(Some(error.clone())),
            Phase::Closed if state.end_told && !mutated!(self.info, EndToldForEver) => {
                return Err(Some(Error::closed("recv").on(self.info.backend)));
            }
            // Loops end with `None`; a call after that is a mistake, and is told so.
            Phase::Closing | Phase::Closed => {
                state.end_told = true;
                return Err(None);
            }
        }
        while taken.len() < most {
            match state.window.take(now) {
                Taken::Delivery(raw) => taken.push(Delivery::new(raw, self.clone())),
                Taken::Begin(token) => begin.push(token),
                Taken::Nothing => break,
            }
        }
        state.tally.delivered(taken.len());
        drop(state);
        for token in begin {
            if mutated!(self.info, NoBegin) {
                let lease = self.subscription.get_lease();
                self.lock().window.begun(token, Some(now + lease));
                self.app().notify_waiters();
                continue;
            }
            self.send(token, Outcome::Begin, now + self.subscription.get_lease());
        }
        Ok(taken)
    }

    /// Puts a settlement of the pump's own in line; its result is reported to the window.
    pub(super) fn send(&self, token: Token, outcome: Outcome, deadline: Instant) {
        let position = Position::default();
        self.send_at(token, outcome, deadline, position);
    }

    pub(super) fn send_at(
        &self,
        token: Token,
        outcome: Outcome,
        deadline: Instant,
        position: Position,
    ) {
        let item = Item {
            token,
            outcome,
            deadline,
            position,
        };
        if self.line.push(item, 0, Instant::now()).is_err() {
            self.lock().window.release(token);
        }
    }

    /// Settles a held delivery on behalf of the application.
    pub(super) fn settle(&self, token: Token, wanted: Wanted) -> Ticket<Result<Settled>> {
        let now = Instant::now();
        let mut state = self.lock();
        if matches!(state.phase, Phase::Closed | Phase::Failed(_)) {
            return Ticket::ready(Err(Error::closed(wanted.name()).on(self.info.backend)));
        }
        let late = mutated!(self.info, SettlesPastDeadline);
        // What came back may have waited for this delivery to be settled, and a receiver for it.
        let sleeps = mutated!(self.info, ReceiverSleepsOn);
        let kept_back = state.window.has_again() && !sleeps;
        let settling = match state.window.settle(token, now) {
            Ok(settling) => settling,
            Err(Some(lost)) if late => Settling {
                deadline: now + self.subscription.get_lease(),
                position: lost.position,
                attempt: 1,
            },
            Err(lost) => {
                let error = self.lease_lost(wanted.name());
                if lost.is_some_and(|lost| !lost.noticed) {
                    state.tally.lease_lost(1);
                }
                drop(state);
                if kept_back {
                    self.app().notify_waiters();
                }
                if let Some(lost) = lost {
                    self.tell(ConsumerEvent::SettlementFailed {
                        position: lost.position,
                        settlement: wanted.name(),
                        error: error.clone(),
                    });
                    self.pump().notify_one();
                }
                return Ticket::ready(Err(error));
            }
        };
        let outcome = self.outcome(&mut state, settling, wanted);
        drop(state);
        if kept_back {
            self.app().notify_waiters();
        }
        let item = Item {
            token,
            outcome,
            deadline: settling.deadline,
            position: settling.position,
        };
        match self.line.push(item, 0, now) {
            Ok(ticket) => ticket,
            Err(_) => Ticket::ready(Err(Error::closed("settle").on(self.info.backend))),
        }
    }

    fn outcome(&self, state: &mut State, at: Settling, wanted: Wanted) -> Outcome {
        let Settling {
            position, attempt, ..
        } = at;
        match wanted {
            Wanted::Ack => {
                // Only messages that failed before are in there: mostly it is empty.
                if !state.failures.by_position.is_empty() {
                    state.failures.take(position);
                }
                Outcome::Ack
            }
            Wanted::Nack(delay) => {
                state.failures.note(position, attempt, "nack".into());
                Outcome::Nack(delay)
            }
            Wanted::Drop => {
                if mutated!(self.info, DropAcks) {
                    return Outcome::Ack;
                }
                if mutated!(self.info, DropWithoutBackoff) {
                    return Outcome::Nack(std::time::Duration::ZERO);
                }
                state.failures.note(position, attempt, "dropped".into());
                let step = match mutated!(self.info, BackoffDoesNotGrow) {
                    true => 1,
                    false => attempt,
                };
                let mut backoff = self.subscription.get_backoff();
                if mutated!(self.info, BackoffUncapped) {
                    backoff.most = std::time::Duration::MAX;
                }
                Outcome::Nack(backoff.after(step))
            }
            Wanted::Reject(reason) => {
                if mutated!(self.info, RejectAcks) {
                    return Outcome::Ack;
                }
                let what = format!("rejected: {}", reason.text);
                state.failures.note(position, attempt, what);
                let record = self.record(state, position, attempt, reason);
                Outcome::DeadLetter(Box::new(record))
            }
        }
    }

    /// The record of a message that is given up.
    pub(super) fn record(
        &self,
        state: &mut State,
        position: Position,
        attempts: u32,
        reason: Reason,
    ) -> Record {
        let now = unix_ms(now_utc());
        let history = state.failures.take(position);
        if mutated!(self.info, EmptyRecord) {
            return Record {
                version: Record::VERSION,
                reason: Reason::new(reason.code, ""),
                topic: String::new(),
                group: String::new(),
                position: String::new(),
                attempts: 0,
                member: String::new(),
                first_failure_ms: 0,
                last_failure_ms: 0,
                history: Vec::new(),
            };
        }
        Record {
            version: Record::VERSION,
            reason,
            topic: self.topic.to_string(),
            group: self.group.to_string(),
            position: position.to_string(),
            attempts,
            member: self.member.clone(),
            first_failure_ms: history.first().map_or(now, |f| f.at_ms),
            last_failure_ms: now,
            history,
        }
    }

    /// Extends the lease of a held delivery.
    pub(super) fn extend(&self, token: Token) -> Ticket<Result<Settled>> {
        let now = Instant::now();
        let deadline = self.lock().window.deadline(token);
        match deadline {
            Some(deadline) if deadline > now => {
                let item = Item {
                    token,
                    outcome: Outcome::Extend,
                    deadline,
                    position: Position::default(),
                };
                match self.line.push(item, 0, now) {
                    Ok(ticket) => ticket,
                    Err(_) => Ticket::ready(Err(Error::closed("extend").on(self.info.backend))),
                }
            }
            _ => Ticket::ready(Err(self.lease_lost("extend"))),
        }
    }

    pub(super) fn lease_lost(&self, operation: &'static str) -> Error {
        lease_lost(&self.info, operation)
    }
}

fn lease_lost(info: &TransportInfo, operation: &'static str) -> Error {
    Error::new(
        ErrorKind::LeaseLost,
        operation,
        "the lease had ended: another member may hold the message; extend the lease of long work",
    )
    .on(info.backend)
}

/// What the application wants done with a delivery.
pub(super) enum Wanted {
    Ack,
    Nack(std::time::Duration),
    Drop,
    Reject(Reason),
}

impl Wanted {
    fn name(&self) -> &'static str {
        match self {
            Self::Ack => "ack",
            Self::Nack(_) | Self::Drop => "nack",
            Self::Reject(_) => "reject",
        }
    }
}

fn name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Ack => "ack",
        Outcome::Nack(_) => "nack",
        Outcome::Return => "return",
        Outcome::Begin => "begin",
        Outcome::Extend => "extend",
        Outcome::DeadLetter(_) => "dead-letter",
        Outcome::Quarantine(_) => "quarantine",
    }
}

impl Guarded {
    /// How many messages are with the application or being settled, and how many in the buffer.
    pub(super) fn standing(&self) -> (usize, usize) {
        lock(&self.state).window.standing()
    }

    fn tell(&self, event: ConsumerEvent) {
        lock(&self.state).events.push(event);
        self.events.notify_waiters();
    }

    /// Takes in the results of a batch.
    fn settled(&self, metas: &[Meta], results: &[Result<Settled>], info: &TransportInfo) {
        let mut state = lock(&self.state);
        let mut wake_app = false;
        let mut counted = meter::Settlements::default();
        for (meta, result) in metas.iter().zip(results) {
            let lease = match result {
                Ok(Settled::Lease(deadline)) => Some(*deadline),
                _ => None,
            };
            match meta.what {
                "begin" => {
                    state.window.begun(meta.token, lease);
                    wake_app = true;
                }
                "extend" => state.window.extended(meta.token, lease),
                _ => state.window.release(meta.token),
            }
            let reason = meta.record.as_ref().map(|record| record.reason.code);
            counted.count(meta.what, reason, result);
            match (result, &meta.record) {
                (Err(_), None) if mutated!(info, FailuresSwallowed) => {}
                (Err(error), _) => {
                    state.events.push(ConsumerEvent::SettlementFailed {
                        position: meta.position,
                        settlement: meta.what,
                        error: error.clone(),
                    });
                }
                (Ok(_), Some(record)) if meta.what == "dead-letter" => {
                    let event = ConsumerEvent::DeadLettered(record.clone());
                    state.events.push(event);
                }
                (Ok(_), Some(record)) => {
                    let event = ConsumerEvent::Quarantined(record.clone());
                    state.events.push(event);
                }
                _ => {}
            }
        }
        state.tally.settled(&counted);
        drop(state);
        if wake_app {
            self.app.notify_waiters();
        }
        self.events.notify_waiters();
        self.pump.notify_one();
    }
}

/// What is remembered of a settlement while it is on the way.
struct Meta {
    token: Token,
    what: &'static str,
    position: Position,
    record: Option<Box<Record>>,
}

/// Takes batches of settlements to the backend, and their results to the window.
struct Settlements {
    settle: Arc<dyn Settle>,
    state: Arc<Guarded>,
    info: Arc<TransportInfo>,
}

#[async_trait]
impl Sink<Item, Result<Settled>> for Settlements {
    async fn send(
        &self,
        batch: Vec<Item>,
        deadline: Instant,
    ) -> BoxFuture<'static, Vec<Result<Settled>>> {
        let now = Instant::now();
        let mut metas = Vec::with_capacity(batch.len());
        let mut late = Vec::new();
        let mut sent = Vec::with_capacity(batch.len());
        for (i, item) in batch.into_iter().enumerate() {
            let record = match &item.outcome {
                Outcome::DeadLetter(record) | Outcome::Quarantine(record) => Some(record.clone()),
                _ => None,
            };
            metas.push(Meta {
                token: item.token,
                what: name(&item.outcome),
                position: item.position,
                record,
            });
            if item.deadline <= now {
                late.push(i);
            } else {
                sent.push((item.token, item.outcome));
            }
        }
        let (settle, state, info) = (self.settle.clone(), self.state.clone(), self.info.clone());
        Box::pin(async move {
            let answer = if sent.is_empty() {
                Vec::new()
            } else {
                let unanswered = || vec![Err(unanswered(&info)); sent_len(&metas, &late)];
                tokio::time::timeout_at(deadline, settle.settle(sent))
                    .await
                    .unwrap_or_else(|_| unanswered())
            };
            let mut answer = answer.into_iter();
            let mut late = late.into_iter().peekable();
            let results: Vec<_> = (0..metas.len())
                .map(|i| match late.next_if_eq(&i) {
                    Some(_) => Err(lease_lost(&info, "settle")),
                    None => answer.next().unwrap_or_else(|| Err(unanswered(&info))),
                })
                .collect();
            state.settled(&metas, &results, &info);
            results
        })
    }

    fn unsent(&self, entry: Item) -> Result<Settled> {
        let error = Error::new(
            ErrorKind::Timeout,
            "settle",
            "the settlement was not sent within the lease: the broker is slow or away",
        )
        .on(self.info.backend);
        let meta = Meta {
            token: entry.token,
            what: name(&entry.outcome),
            position: entry.position,
            record: None,
        };
        let result = Err(error);
        self.state
            .settled(&[meta], std::slice::from_ref(&result), &self.info);
        result
    }

    fn unanswered(&self) -> Result<Settled> {
        Err(unanswered(&self.info))
    }

    // The window hears of its results before, one by one where some were never sent.
    fn done(&self, _results: &[Result<Settled>], _bytes: usize, _since: Instant) {}
}

fn sent_len(metas: &[Meta], late: &[usize]) -> usize {
    metas.len() - late.len()
}

fn unanswered(info: &TransportInfo) -> Error {
    Error::new(
        ErrorKind::Timeout,
        "settle",
        "the broker did not confirm the settlement within the lease",
    )
    .on(info.backend)
    .maybe_stored()
}
