//! The two halves of a member of a group.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use mas_transport_core as core;
use mas_transport_core::codec::fields;
use mas_transport_core::{
    Error, ErrorKind, Event, Fetch, Gap, Message, Outcome, Position, RawDelivery, Result, Settle,
    Settled, Token, Topic, Want,
};
use tokio::sync::watch;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, sleep_until};

use crate::broker::{Broker, Key, State};
use crate::group::{Group, Taken};
use crate::journal::Now;
use crate::store::{Fields, Store};
use crate::{BACKEND, failed};

/// What both halves share. Dropping it leaves the leases to their time: a handler may be at it.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) broker: Arc<Broker>,
    pub(crate) key: Key,
    pub(crate) group: core::Group,
    pub(crate) id: u64,
    pub(crate) bell: watch::Receiver<()>,
    pub(crate) stopped: AtomicBool,
    pub(crate) closed: AtomicBool,
}

impl Member {
    /// Does something with the group as it is now. Write down what became of it:
    /// [`Member::flush`].
    fn with<T>(
        &self,
        state: &mut State,
        operation: &'static str,
        f: impl FnOnce(&mut Group, &mut Store, Now) -> T,
    ) -> Result<T> {
        let now = Now::read();
        let topic = self.broker.existing(state, &self.key, operation)?;
        let Some(group) = topic.groups.get_mut(&self.group) else {
            let why = "the group is gone; subscribe again";
            return Err(Error::new(ErrorKind::NotFound, operation, why).on(BACKEND));
        };
        group.advance(now, &topic.store);
        Ok(f(group, &mut topic.store, now))
    }

    /// Writes what became of the group.
    fn flush(&self, state: &mut State, operation: &'static str) -> Result<()> {
        let flushed = self.with(state, operation, |group, _, now| group.flush(now))?;
        flushed.map_err(|e| failed(operation, e).maybe_stored())
    }

    pub(crate) fn stop(&self, state: &State) {
        self.stopped.store(true, Ordering::SeqCst);
        state.ring(&self.key);
    }

    fn lost(&self) -> Error {
        let why = "the lease of this delivery has ended; another member may hold the message";
        Error::new(ErrorKind::LeaseLost, "settle", why)
            .on(BACKEND)
            .with("topic", &self.key.1)
            .with("group", &self.group)
    }

    fn settle_one(
        &self,
        state: &mut State,
        (token, outcome): (Token, Outcome),
        done: &mut Vec<u64>,
    ) -> Result<Settled> {
        if let Outcome::DeadLetter(_) | Outcome::Quarantine(_) = outcome {
            self.give_up(state, token, &outcome)?;
        }
        let settled = self.with(state, "settle", |group, store, now| {
            group.settle(now, self.id, token, &outcome, store, done)
        })?;
        settled.ok_or_else(|| self.lost())
    }

    fn settle(
        &self,
        state: &mut State,
        batch: Vec<(Token, Outcome)>,
    ) -> Result<Vec<Result<Settled>>> {
        let mut done = Vec::new();
        let settle = |entry| self.settle_one(state, entry, &mut done);
        let results = batch.into_iter().map(settle).collect();
        self.flush(state, "settle")?;
        // Only now that the journal says so.
        let topic = self.broker.existing(state, &self.key, "settle")?;
        topic.store.settle(&done);
        Ok(results)
    }

    /// Appends a message to the topic of those that the group has given up: the entry as it was
    /// read, and the record.
    fn give_up(&self, state: &mut State, token: Token, outcome: &Outcome) -> Result<()> {
        let (namespace, topic) = &self.key;
        let held = self.with(state, "settle", |group, store, _| {
            let (number, _) = group.held(self.id, token)?;
            Some(store.read(number))
        })?;
        let original = held.ok_or_else(|| self.lost())?;
        if topic.is_internal() {
            let why = "what is in a dead-letter or quarantine topic has nowhere further to go";
            return Err(Error::unsupported(BACKEND, "settle", why).with("topic", topic));
        }
        let original = original.map_err(|e| failed("settle", e))?;
        let (into, entry) = match outcome {
            Outcome::DeadLetter(record) => {
                let field = fields::RECORD_FIELD.as_bytes();
                let mut entry = original;
                entry.retain(|(name, _)| name != field);
                entry.push((field.into(), fields::encode_record(record).into()));
                (Topic::dead_letters(topic, &self.group), entry)
            }
            Outcome::Quarantine(record) => {
                let into = Topic::quarantine(topic, &self.group);
                let message = fields::quarantine(into.clone(), &original, (**record).clone());
                (into, encode(&message))
            }
            _ => return Ok(()),
        };
        let size = entry.iter().map(|(n, v)| n.len() + v.len()).sum();
        let key = (namespace.clone(), into);
        self.broker.append(state, &key, &entry, size, "settle")?;
        Ok(())
    }

    /// What a fetch brings of a leased message.
    fn event(&self, taken: &Taken, entry: Fields) -> Event {
        let position = Position {
            major: 0,
            minor: taken.number,
        };
        let attempt = taken.past.made + 1;
        match fields::decode(&self.key.1, position, entry) {
            Ok(message) => Event::Delivery(RawDelivery {
                token: taken.token,
                message,
                position,
                attempt,
                deadline: taken.deadline,
                begin: attempt > 1,
                reclaimed: taken.past.reclaimed,
            }),
            Err(reason) => Event::Malformed {
                token: taken.token,
                reason,
                position,
                attempt,
            },
        }
    }
}

/// A message as an entry of named fields.
pub(crate) fn encode(message: &Message) -> Fields {
    let mut entry = Fields::new();
    fields::encode(message, &mut |name, value| {
        entry.push((name.to_vec().into(), value.to_vec().into()));
    });
    entry
}

/// The fetching half.
#[derive(Debug)]
pub(crate) struct FilesFetch {
    pub(crate) member: Arc<Member>,
    pub(crate) bell: watch::Receiver<()>,
    /// A call failed because the broker was stopped; that it is back has not been told.
    pub(crate) failed: bool,
}

impl FilesFetch {
    /// Takes what is there, or says when to look again at the latest.
    fn look(&mut self, want: Want, out: &mut Vec<Event>) -> Result<Option<Instant>> {
        let member = &self.member;
        if member.stopped.load(Ordering::SeqCst) {
            return Err(Error::closed("fetch").on(BACKEND));
        }
        let running = member.broker.running("fetch");
        let mut state = running.inspect_err(|_| self.failed = true)?;
        if std::mem::take(&mut self.failed) {
            out.push(Event::Reconnected);
        }
        let mut failure = None;
        let next = member.with(&mut state, "fetch", |group, store, now| {
            if want.messages > 0 {
                for taken in group.take(now, member.id, want, store) {
                    match store.read(taken.number) {
                        Ok(entry) if failure.is_none() => out.push(member.event(&taken, entry)),
                        // What cannot be read now is not handed out, nor what stands behind it.
                        read => {
                            failure = failure.take().or(read.err());
                            let back = Outcome::Return;
                            group.settle(now, member.id, taken.token, &back, store, &mut vec![]);
                        }
                    }
                }
            }
            if let Some(lost) = group.take_lost(now) {
                out.push(Event::Gap(Gap {
                    topic: member.key.1.clone(),
                    reason: "messages were removed before they were settled".to_owned(),
                    lost: Some(lost),
                }));
            }
            group.next_timer()
        })?;
        member.flush(&mut state, "fetch")?;
        match failure {
            Some(e) if out.is_empty() => Err(failed("fetch", e)),
            _ => Ok(next),
        }
    }
}

#[async_trait]
impl Fetch for FilesFetch {
    async fn fetch(&mut self, want: Want, out: &mut Vec<Event>) -> Result<()> {
        // A loop over what never waits must not keep other tasks from running.
        consume_budget().await;
        let before = out.len();
        loop {
            self.bell.mark_unchanged();
            let until = self.look(want, out)?;
            if out.len() > before {
                return Ok(());
            }
            let timer = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                // The other end lives in the broker, as long as the member does.
                _ = self.bell.changed() => {}
                () = timer => {}
            }
        }
    }
}

impl Drop for FilesFetch {
    fn drop(&mut self) {
        self.member.stopped.store(true, Ordering::SeqCst);
    }
}

/// The settling half.
#[derive(Debug)]
pub(crate) struct FilesSettle(pub(crate) Arc<Member>);

#[async_trait]
impl Settle for FilesSettle {
    async fn settle(&self, batch: Vec<(Token, Outcome)>) -> Vec<Result<Settled>> {
        consume_budget().await;
        let member = &self.0;
        let state = match member.closed.load(Ordering::SeqCst) {
            true => Err(Error::closed("settle").on(BACKEND)),
            false => member.broker.running("settle"),
        };
        let mut state = match state {
            Ok(state) => state,
            Err(e) => return batch.iter().map(|_| Err(e.clone())).collect(),
        };
        let count = batch.len();
        let results = member.settle(&mut state, batch);
        state.ring(&member.key);
        results.unwrap_or_else(|e| vec![Err(e); count])
    }

    async fn close(&self, deadline: Instant) -> Result<()> {
        self.0.close(deadline).await
    }
}

impl Member {
    /// Stops, waits until nothing is out or until the deadline, and returns the rest.
    pub(crate) async fn close(&self, deadline: Instant) -> Result<()> {
        let mut bell = self.bell.clone();
        let result = loop {
            bell.mark_unchanged();
            let mut look = || {
                let mut state = self.broker.running("close")?;
                if !self.stopped.load(Ordering::SeqCst) {
                    self.stop(&state);
                    bell.mark_unchanged();
                }
                let done = self.with(&mut state, "close", |group, store, now| {
                    if now.instant < deadline && group.holds(self.id) {
                        return Err(group.next_timer());
                    }
                    group.return_all(now, self.id, store);
                    Ok(())
                })?;
                if done.is_ok() {
                    self.flush(&mut state, "close")?;
                    state.ring(&self.key);
                }
                Ok(done)
            };
            match look() {
                Ok(Ok(())) => break Ok(()),
                Ok(Err(until)) => {
                    let until = until.map_or(deadline, |until| until.min(deadline));
                    tokio::select! {
                        _ = bell.changed() => {}
                        () = sleep_until(until) => {}
                    }
                }
                // What the broker does not know of needs no return: leases end by themselves.
                Err(e) => break Err(e),
            }
        };
        self.stopped.store(true, Ordering::SeqCst);
        self.closed.store(true, Ordering::SeqCst);
        result
    }
}
