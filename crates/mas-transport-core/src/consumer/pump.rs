//! The consumer's task: keeps a fetch pending, buffers what comes, watches the leases, and drains
//! on close.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use super::events::ConsumerEvent;
use super::shared::{Phase, Shared};
use super::window::Settling;
use crate::error::{Error, ErrorKind};
use crate::record::{Reason, ReasonCode};
use crate::transport::{Event, Fetch, Outcome, RawDelivery, Token, Want};

/// The first wait after a failed fetch, and the longest.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(1);

pub(super) struct Pump {
    pub(super) shared: Arc<Shared>,
    /// The last moment of the drain, once a close has begun.
    pub(super) drain_by: tokio::sync::watch::Receiver<Option<Instant>>,
}

enum Next {
    Fetched(Result<(), Error>),
    Woken,
}

impl Pump {
    pub(super) async fn run(self, mut fetch: Box<dyn Fetch>) {
        let mut events = Vec::new();
        let mut retry = RETRY_FIRST;
        let mut not_before: Option<Instant> = None;
        while self.shared.lock().phase.is_open() {
            let now = Instant::now();
            self.watch_leases(now);
            let (want, due, paused) = {
                let state = self.shared.lock();
                // Or closing, since the last look: nothing more is wanted then either.
                let paused = !matches!(state.phase, Phase::Running);
                (state.window.want(), state.window.next_due(), paused)
            };
            if paused && !mutated!(self.shared.info, PauseKeeps) {
                self.return_buffer();
            }
            let want = match (paused, mutated!(self.shared.info, WindowIgnored)) {
                (true, _) => Want {
                    messages: 0,
                    give_back: true,
                    ..want
                },
                (_, true) => Want::new(usize::MAX, usize::MAX),
                _ => want,
            };
            let next = match not_before {
                Some(at) if at > now => {
                    let due = due.map_or(at, |due| due.min(at));
                    Self::wait(&self.shared, &self.drain_by, want, Some(due)).await;
                    Next::Woken
                }
                _ => {
                    let (shared, drain_by) = (&self.shared, &self.drain_by);
                    tokio::select! {
                        biased;
                        fetched = fetch.fetch(want, &mut events) => Next::Fetched(fetched),
                        () = Self::wait(shared, drain_by, want, due) => Next::Woken,
                    }
                }
            };
            match next {
                Next::Woken => {}
                Next::Fetched(result) => {
                    // What was pushed counts, whatever the call answered.
                    let closed = self.take_in(&mut events);
                    match result {
                        Ok(()) if closed => break,
                        Ok(()) => {
                            retry = RETRY_FIRST;
                            not_before = None;
                        }
                        Err(e) if e.kind() == ErrorKind::Closed => break,
                        Err(e) if e.is_retryable() && !mutated!(self.shared.info, NoRetry) => {
                            self.shared.tell(ConsumerEvent::Retrying { error: e });
                            not_before = Some(Instant::now() + retry);
                            retry = (retry * 2).min(RETRY_MOST);
                        }
                        Err(e) => {
                            self.shared.lock().phase = Phase::Failed(e);
                            self.shared.app().notify_waiters();
                            break;
                        }
                    }
                }
            }
        }
        self.drain(fetch).await;
    }

    /// Waits until the window has room that is worth another fetch, something is due, or the
    /// consumer is paused, resumed or closed.
    async fn wait(
        shared: &Shared,
        drain_by: &tokio::sync::watch::Receiver<Option<Instant>>,
        asked: Want,
        due: Option<Instant>,
    ) {
        let mut drain_by = drain_by.clone();
        let was_paused = matches!(shared.lock().phase, Phase::Paused);
        let woken = async {
            loop {
                shared.pump().notified().await;
                let state = shared.lock();
                let paused = matches!(state.phase, Phase::Paused);
                let sooner = match (state.window.next_due(), due) {
                    (Some(next), Some(due)) => next < due,
                    (next, None) => next.is_some(),
                    (None, _) => false,
                };
                if paused != was_paused
                    || !state.phase.is_open()
                    || sooner
                    || (!paused && state.window.outgrew(asked))
                {
                    return;
                }
            }
        };
        let due = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = woken => {}
            () = due => {}
            // The sender lives in the consumer; when it is gone, so is the consumer.
            _ = drain_by.wait_for(Option::is_some) => {}
        }
    }

    /// Buffers deliveries and answers everything else. Says whether the source has ended.
    fn take_in(&self, events: &mut Vec<Event>) -> bool {
        let mut fresh = false;
        let mut ended = false;
        let now = Instant::now();
        let mut poison = Vec::new();
        let mut state = self.shared.lock();
        for event in events.drain(..) {
            match event {
                Event::Delivery(raw) if self.is_poison(&raw) => poison.push(raw),
                Event::Delivery(raw) => {
                    state.window.buffer(raw);
                    fresh = true;
                }
                other => {
                    drop(state);
                    ended |= self.answer(other, now);
                    state = self.shared.lock();
                }
            }
        }
        drop(state);
        for raw in poison {
            self.dead_letter(raw);
        }
        if fresh {
            self.shared.app().notify_waiters();
        }
        ended
    }

    /// What stands in a dead-letter or quarantine topic has nowhere further to go: it is handed out
    /// for as long as somebody asks for it.
    fn is_poison(&self, raw: &RawDelivery) -> bool {
        raw.attempt > self.shared.subscription.get_max_attempts()
            && !self.shared.topic.is_internal()
            && !mutated!(self.shared.info, NoPoisonStop)
    }

    fn dead_letter(&self, raw: RawDelivery) {
        let max = self.shared.subscription.get_max_attempts();
        let reason = Reason::new(
            ReasonCode::MaxAttempts,
            format!("not settled after {max} attempts"),
        );
        let at = Settling {
            deadline: raw.deadline,
            position: raw.position,
            attempt: raw.attempt,
        };
        let mut state = self.shared.lock();
        state
            .window
            .insert_settling(raw.token, at, raw.message.size());
        let record = self
            .shared
            .record(&mut state, raw.position, raw.attempt - 1, reason);
        drop(state);
        let outcome = Outcome::DeadLetter(Box::new(record));
        self.shared
            .send_at(raw.token, outcome, raw.deadline, raw.position);
    }

    /// Answers what is not a delivery. Says whether the source has ended.
    fn answer(&self, event: Event, now: Instant) -> bool {
        let shared = &*self.shared;
        match event {
            Event::Malformed {
                token,
                reason,
                position,
                attempt,
            } => {
                if mutated!(shared.info, MalformedStalls) {
                    return true;
                }
                // Its lease began no earlier than the fetch; the backend checks the exact end.
                let deadline = now + shared.subscription.get_lease();
                let at = Settling {
                    deadline,
                    position,
                    attempt,
                };
                let mut state = shared.lock();
                state.window.insert_settling(token, at, 0);
                let record = shared.record(&mut state, position, attempt, reason);
                drop(state);
                let outcome = if mutated!(shared.info, MalformedDropped) {
                    Outcome::Ack
                } else if shared.topic.is_internal() {
                    // It cannot be quarantined once more; it must neither stand in the way nor spin.
                    Outcome::Nack(shared.subscription.get_backoff().most)
                } else {
                    Outcome::Quarantine(Box::new(record))
                };
                shared.send_at(token, outcome, deadline, position);
            }
            Event::Revoking { tokens, until } => {
                let back = shared.lock().window.revoking(&tokens, until);
                for token in back {
                    shared.send(token, Outcome::Return, until);
                }
                shared.revoked().notify_waiters();
            }
            Event::Revoked(tokens) => {
                let lost = {
                    let mut state = shared.lock();
                    let lost = state.window.revoke(&tokens, now);
                    state.tally.lease_lost(lost.len());
                    lost
                };
                for position in lost {
                    shared.tell(ConsumerEvent::LeaseLost { position });
                }
                shared.revoked().notify_waiters();
            }
            Event::Gap(_) if mutated!(shared.info, GapsSwallowed) => {}
            Event::Gap(gap) => shared.tell(ConsumerEvent::Gap(gap)),
            Event::Reconnected => shared.tell(ConsumerEvent::Reconnected),
            Event::End => return true,
            // Buffered by the caller.
            Event::Delivery(raw) => shared.lock().window.buffer(raw),
        }
        false
    }

    /// Notices leases that ended with the application, and keeps those of the buffer alive, or
    /// gives the buffer up while handlers hang.
    fn watch_leases(&self, now: Instant) {
        let (lost, hangs) = {
            let mut state = self.shared.lock();
            if state.window.next_due().is_none_or(|due| due > now) && !state.window.hangs() {
                return;
            }
            let lost = state.window.lapse(now);
            state.tally.lease_lost(lost.len());
            (lost, state.window.hangs())
        };
        for position in lost {
            self.shared.tell(ConsumerEvent::LeaseLost { position });
            // A lapsed suspect no longer stands in the way of the others.
            self.shared.app().notify_waiters();
        }
        if hangs && !mutated!(self.shared.info, BufferHoarded) {
            self.return_buffer();
            return;
        }
        let due = self.shared.lock().window.due_for_extension(now);
        if mutated!(self.shared.info, BufferNotExtended) {
            return;
        }
        for (token, deadline) in due {
            self.shared.send(token, Outcome::Extend, deadline);
        }
    }

    fn return_buffer(&self) {
        let back: Vec<(Token, Instant)> = self.shared.lock().window.empty();
        for (token, deadline) in back {
            if mutated!(self.shared.info, NothingReturned) {
                self.shared.lock().window.release(token);
                continue;
            }
            self.shared.send(token, Outcome::Return, deadline);
        }
    }

    /// Returns what was not handed out, waits for the handlers, settles, ends.
    async fn drain(mut self, fetch: Box<dyn Fetch>) {
        let shared = self.shared.clone();
        shared.begin_closing();
        shared.app().notify_waiters();
        self.return_buffer();
        let lease = shared.subscription.get_lease();
        // Without a deadline of the caller's (the consumer was dropped, the transport closed): no
        // delivery outlives its lease, but an extension may renew it.
        let by = self
            .drain_by
            .borrow_and_update()
            .unwrap_or_else(|| Instant::now() + lease * 2);
        // After a failure for good no settlement is taken any more: there is nothing to wait for.
        let failed = matches!(shared.lock().phase, Phase::Failed(_));
        let by = match failed || mutated!(shared.info, NoDrain) {
            true => Instant::now(),
            false if mutated!(shared.info, DrainIsShort) => {
                by.min(Instant::now() + Duration::from_secs(1))
            }
            false => by,
        };
        let settled = async {
            loop {
                if shared.lock().window.is_idle() {
                    return;
                }
                shared.pump().notified().await;
                // A delivery that was being begun when the close came has been answered.
                self.return_buffer();
            }
        };
        let handlers = async {
            let _in_time = timeout_at(by, settled).await;
            // Takes what is still queued to the backend before the backend closes.
            shared.line.close(by).await;
        };
        // Beside the handlers, because the backend too has fetched what others may have now.
        let ((), closed) = tokio::join!(handlers, shared.settle.close(by));
        if let Err(error) = closed {
            shared.tell(ConsumerEvent::SettlementFailed {
                position: crate::Position::default(),
                settlement: "close",
                error,
            });
        }
        let lost = {
            let mut state = shared.lock();
            if !matches!(state.phase, Phase::Failed(_)) {
                state.phase = Phase::Closed;
            }
            state.tally.lease_lost(state.window.held());
            state.window.forget_all()
        };
        for position in lost {
            shared.tell(ConsumerEvent::LeaseLost { position });
        }
        shared.revoked().notify_waiters();
        shared.events().notify_waiters();
        if mutated!(shared.info, TaskLeaks) {
            tokio::spawn(std::future::pending::<()>());
        }
        drop(fetch);
        shared.closed.send_replace(true);
    }
}
