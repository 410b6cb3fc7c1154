//! One member of one group: what its fetching and its settling half share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mas_transport_core as core;
use mas_transport_core::{Error, ErrorKind, Event, Gap, Outcome, Result, Settled, Token, Want};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::connection::{Connection, Standing, refused, unanswered, unavailable};
use crate::fault::{FaultEffect, FaultOperation};
use crate::group::{Group, Taken, earliest};
use crate::leases::MemberId;
use crate::store::Store;
use crate::topic::{After, Topic};
use crate::{BACKEND, wire};

#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) connection: Arc<Connection>,
    pub(crate) topic: Arc<Topic>,
    pub(crate) name: core::Group,
    /// The number of the group within its topic.
    pub(crate) group: usize,
    pub(crate) id: MemberId,
    /// Rung when a waiting fetch has to look again.
    pub(crate) bell: Arc<Notify>,
    /// Rung when a closing member holds nothing any more.
    drained: Notify,
    finished: AtomicBool,
}

/// What a look into the group came to.
#[derive(Debug)]
pub(crate) enum Look {
    /// Something was taken.
    Something,
    /// Nothing was there; look again when the bell rings, or at this time.
    Nothing(Option<Instant>),
    Closed,
}

impl Member {
    pub(crate) fn new(
        connection: Arc<Connection>,
        topic: Arc<Topic>,
        name: core::Group,
        group: usize,
        id: MemberId,
        bell: Arc<Notify>,
    ) -> Self {
        Self {
            connection,
            topic,
            name,
            group,
            id,
            bell,
            drained: Notify::new(),
            finished: AtomicBool::new(false),
        }
    }

    /// Does something with the group under the lock, then what is left to do outside of it.
    fn with<T>(&self, f: impl FnOnce(&mut Group, &mut Store, Instant) -> T) -> Option<T> {
        let mut after = After::default();
        let mut state = self.topic.lock();
        let now = Instant::now();
        let (members, store) = state.group(self.group)?;
        let result = f(&mut members.group, store, now);
        members.wake(store, &mut after);
        drop(state);
        after.run();
        Some(result)
    }

    /// Takes what is there, or puts the member in the waiting line.
    pub(crate) fn look(&self, want: Want, taken: &mut Vec<Taken>, out: &mut Vec<Event>) -> Look {
        let look = |group: &mut Group, store: &mut Store, now: Instant| {
            group.unwait(self.id);
            if !group.call(now, self.id, want.messages > 0) {
                return Look::Closed;
            }
            group.advance(now, store);
            let before = out.len();
            group.notices(self.id, out);
            if let Some((why, lost)) = group.take_gap() {
                out.push(Event::Gap(Gap {
                    topic: self.topic.name.clone(),
                    reason: why.to_owned(),
                    lost: Some(lost),
                }));
            }
            if want.messages > 0 {
                group.take(now, self.id, want, store, taken);
                // The last of what was there may have been removed by retention meanwhile.
                if out.len() == before && taken.is_empty() {
                    return Look::Nothing(earliest(group.wait(self.id), group.next_call(now)));
                }
            } else if out.len() == before {
                return Look::Nothing(group.next_call(now));
            }
            Look::Something
        };
        self.with(look).unwrap_or(Look::Closed)
    }

    /// Gives up the place in the waiting line, and lets others look.
    pub(crate) fn unwait(&self) {
        self.with(|group, _, _| group.unwait(self.id));
    }

    /// Fetches no more; what is out can still be settled.
    pub(crate) fn stop(&self) {
        self.with(|group, _, now| group.stop(now, self.id));
        self.bell.notify_one();
    }

    /// Settles a batch; answers how long the answer is to be held back, too.
    pub(crate) fn settle(
        &self,
        batch: Vec<(Token, Outcome)>,
    ) -> (Vec<Result<Settled>>, Option<Duration>) {
        let standing = self.connection.standing();
        let down = match standing {
            Standing::Closed if self.finished.load(Ordering::Acquire) => {
                Some(Error::closed("settle").on(BACKEND))
            }
            Standing::Down(..) => Some(unavailable("settle")),
            _ => None,
        };
        if let Some(error) = down {
            return (batch.iter().map(|_| Err(error.clone())).collect(), None);
        }
        let faults: Vec<_> = match self.connection.broker.faults {
            Some(_) => {
                let draw = |_: &_| {
                    self.connection
                        .fault(FaultOperation::Settle, &self.topic.name)
                };
                batch.iter().map(draw).collect()
            }
            None => Vec::new(),
        };
        let mut faults = faults.into_iter();
        let mut results = Vec::with_capacity(batch.len());
        let mut held_back = None;
        let mut cut = false;

        let mut after = After::default();
        let mut state = self.topic.lock();
        let now = Instant::now();
        if let Some((members, store)) = state.group(self.group) {
            members.group.heard(now, self.id);
            members.group.advance(now, store);
            for (token, outcome) in batch {
                let fault = faults.next().flatten();
                match fault {
                    Some(FaultEffect::Disconnect(_)) => cut = true,
                    Some(FaultEffect::Refuse(kind)) => {
                        results.push(Err(refused("settle", kind)));
                        continue;
                    }
                    Some(FaultEffect::Delay(time)) => held_back = held_back.max(Some(time)),
                    _ => {}
                }
                if cut {
                    results.push(Err(unavailable("settle")));
                    continue;
                }
                let result =
                    self.settle_one(&mut members.group, store, now, token, &outcome, &mut after);
                results.push(match fault {
                    Some(FaultEffect::LoseAck) => Err(unanswered("settle")),
                    _ => result,
                });
            }
            members.group.settled(now, store);
            if members.group.is_drained(self.id) {
                self.drained.notify_waiters();
            }
            members.wake(store, &mut after);
        } else {
            results.extend(batch.iter().map(|_| Err(self.lost())));
        }
        drop(state);
        after.run();
        (results, held_back)
    }

    fn settle_one(
        &self,
        group: &mut Group,
        store: &mut Store,
        now: Instant,
        token: Token,
        outcome: &Outcome,
        after: &mut After,
    ) -> Result<Settled> {
        if let Outcome::DeadLetter(_) | Outcome::Quarantine(_) = outcome {
            self.give_up(group, store, token, outcome, after)?;
        }
        let settled = group.settle(now, self.id, token, outcome, store, &mut after.dropped);
        settled.ok_or_else(|| self.lost())
    }

    /// Appends a message to the topic of those that the group has given up.
    fn give_up(
        &self,
        group: &Group,
        store: &Store,
        token: Token,
        outcome: &Outcome,
        after: &mut After,
    ) -> Result<()> {
        let lease = group.held(self.id, token).ok_or_else(|| self.lost())?;
        let error = |kind, why| {
            Error::new(kind, "settle", why)
                .on(BACKEND)
                .with("topic", &self.topic.name)
                .with("group", &self.name)
        };
        if self.topic.name.is_internal() {
            let why = "what is in a dead-letter or quarantine topic has nowhere further to go";
            return Err(error(ErrorKind::Unsupported, why));
        }
        let Some((original, _)) = store.get(lease.lane as usize, lease.offset) else {
            let why = "retention removed the message before it was given up";
            return Err(error(ErrorKind::NotFound, why));
        };
        let into = match outcome {
            Outcome::Quarantine(_) => core::Topic::quarantine(&self.topic.name, &self.name),
            _ => core::Topic::dead_letters(&self.topic.name, &self.name),
        };
        let broker = &self.connection.broker;
        let target = broker.topic(&self.connection.space, &into, "settle")?;
        let Some((body, bytes)) = wire::given_up(original, outcome, broker.config.wire, into)
        else {
            return Ok(());
        };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        // The lock of an internal topic is only ever taken inside that of an ordinary one.
        let mut state = target.lock();
        broker.room(&state, &target.name, bytes)?;
        let key = match original {
            crate::store::Body::Message(message) => message.get_key(),
            crate::store::Body::Fields(_) => None,
        };
        state.append(body, bytes, key);
        state.published(1, after);
        Ok(())
    }

    fn lost(&self) -> Error {
        let why = "the lease of this delivery has ended; another member may hold the message";
        Error::new(ErrorKind::LeaseLost, "settle", why)
            .on(BACKEND)
            .with("topic", &self.topic.name)
            .with("group", &self.name)
    }

    /// Stops, waits until nothing is out or until the deadline, returns the rest and leaves.
    pub(crate) async fn close(&self, deadline: Instant) {
        self.stop();
        loop {
            let drained = self.drained.notified();
            tokio::pin!(drained);
            drained.as_mut().enable();
            let look = |group: &mut Group, store: &mut Store, now: Instant| {
                group.advance(now, store);
                if now < deadline && !group.is_drained(self.id) {
                    return earliest(group.next_due(), Some(deadline));
                }
                group.return_all(now, self.id, store);
                group.leave(now, self.id, store);
                None
            };
            let Some(until) = self.with(look).flatten() else {
                self.finished.store(true, Ordering::Release);
                self.drained.notify_waiters();
                return;
            };
            tokio::select! {
                () = drained => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.with(|group, store, now| group.leave(now, self.id, store));
    }
}
