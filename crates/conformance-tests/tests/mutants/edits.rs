//! The tools that mutants are made of: closures around the calls of a transport.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use conformance_tests::layers::{Hooks, Joined};
use futures::FutureExt as _;
use mas_transport_core::codec::fields;
use mas_transport_core::mutation::Mutation;
use mas_transport_core::{
    Admin, Confirm, Error, Event, Fetch, Group, Lag, Message, Outcome, Position, RawDelivery,
    Reason, Receipt, Result, Settle, Settled, Source, Subscription, Token, Topic, Transport,
    TransportInfo, Want,
};
use tokio::time::Instant;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The outcomes of a batch.
pub(crate) type Outcomes = Vec<Result<Receipt>>;
/// What is done to the outcomes of a batch once they come.
pub(crate) type After = Box<dyn FnOnce(Outcomes) -> Outcomes + Send>;
/// The fields of an entry.
pub(crate) type Fields = Vec<(Bytes, Bytes)>;

/// A delivery that a member has, as it was before any edit.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) message: Message,
    pub(crate) attempt: u32,
}

/// What becomes of a settlement.
pub(crate) enum Does {
    /// It goes to the broker, as this.
    Pass(Outcome),
    /// It is answered without the broker.
    Answer(Result<Settled>),
}

type On<T> = Option<Box<T>>;
type OutcomeEdit = dyn Fn(&Joined, Option<&Known>, Outcome) -> Does + Send + Sync;
type AnswerEdit =
    dyn Fn(&Joined, Option<&Known>, &Outcome, Result<Settled>) -> Result<Settled> + Send + Sync;

/// Hooks made of closures; what is not set passes.
#[derive(Default)]
#[expect(clippy::type_complexity, reason = "each closure is named by its field")]
pub(crate) struct Edits {
    info: On<dyn Fn(&mut TransportInfo) + Send + Sync>,
    publish: On<dyn Fn(&mut Vec<Message>) -> After + Send + Sync>,
    deadline: On<dyn Fn(Instant) -> Instant + Send + Sync>,
    want: On<dyn Fn(Want) -> Want + Send + Sync>,
    subscribe: On<dyn Fn(Subscription) -> Subscription + Send + Sync>,
    delivery: On<dyn Fn(&Joined, &mut RawDelivery) -> bool + Send + Sync>,
    event: On<dyn Fn(&Joined, Event) -> Option<Event> + Send + Sync>,
    fields: On<dyn Fn(&RawDelivery, &mut Fields) + Send + Sync>,
    outcome: On<OutcomeEdit>,
    answer: On<AnswerEdit>,
    lag: On<dyn Fn(&mut Lag) + Send + Sync>,
    groups: On<dyn Fn(&mut Vec<Group>) + Send + Sync>,
    purged: On<dyn Fn(u64) -> u64 + Send + Sync>,
    known: Mutex<HashMap<(u32, Token), Known>>,
}

impl fmt::Debug for Edits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edits").finish_non_exhaustive()
    }
}

/// A mutant of a pump.
pub(crate) fn pump(mutation: Mutation) -> Arc<dyn Hooks> {
    Edits::info(move |info| info.mutation = Some(mutation))
}

/// Each of these makes hooks of one edit.
impl Edits {
    /// What the transport says of itself.
    pub(crate) fn info(
        edit: impl Fn(&mut TransportInfo) + Send + Sync + 'static,
    ) -> Arc<dyn Hooks> {
        Arc::new(Self {
            info: Some(Box::new(edit)),
            ..Self::default()
        })
    }

    /// A batch on its way, and its outcomes on the way back.
    pub(crate) fn publish(
        edit: impl Fn(&mut Vec<Message>) -> After + Send + Sync + 'static,
    ) -> Arc<dyn Hooks> {
        Arc::new(Self {
            publish: Some(Box::new(edit)),
            ..Self::default()
        })
    }

    /// Each outcome of a publish.
    pub(crate) fn receipt(
        edit: impl Fn(Result<Receipt>) -> Result<Receipt> + Send + Sync + Clone + 'static,
    ) -> Arc<dyn Hooks> {
        Self::publish(move |_| {
            let edit = edit.clone();
            Box::new(move |outcomes| outcomes.into_iter().map(edit).collect())
        })
    }

    /// Messages that get a receipt and never reach the broker.
    pub(crate) fn lost(lose: impl Fn(&Message) -> bool + Send + Sync + 'static) -> Arc<dyn Hooks> {
        Self::publish(move |batch| {
            let whole = std::mem::take(batch);
            let mut lost = Vec::new();
            for (at, message) in whole.into_iter().enumerate() {
                match lose(&message) {
                    true => lost.push(at),
                    false => batch.push(message),
                }
            }
            Box::new(move |mut outcomes| {
                for at in lost {
                    let like = outcomes.iter().find_map(|o| o.as_ref().ok().copied());
                    let receipt = like.unwrap_or(Receipt {
                        position: Position::default(),
                        durability: mas_transport_core::Durability::Volatile,
                        duplicate: false,
                    });
                    outcomes.insert(at, Ok(receipt));
                }
                outcomes
            })
        })
    }

    /// Each message that is published.
    pub(crate) fn outgoing(
        edit: impl Fn(Message) -> Message + Send + Sync + 'static,
    ) -> Arc<dyn Hooks> {
        Self::publish(move |batch| {
            *batch = std::mem::take(batch).into_iter().map(&edit).collect();
            Box::new(|outcomes| outcomes)
        })
    }

    /// By when a publish has to be confirmed.
    pub(crate) fn deadline(
        edit: impl Fn(Instant) -> Instant + Send + Sync + 'static,
    ) -> Arc<dyn Hooks> {
        Arc::new(Self {
            deadline: Some(Box::new(edit)),
            ..Self::default()
        })
    }

    /// What is asked of `subscribe`.
    pub(crate) fn subscribe(
        edit: impl Fn(Subscription) -> Subscription + Send + Sync + 'static,
    ) -> Arc<dyn Hooks> {
        Arc::new(Self {
            subscribe: Some(Box::new(edit)),
            ..Self::default()
        })
    }

    /// How much is asked of a fetch.
    pub(crate) fn want(edit: impl Fn(Want) -> Want + Send + Sync + 'static) -> Arc<dyn Hooks> {
        Arc::new(Self {
            want: Some(Box::new(edit)),
            ..Self::default()
        })
    }

    /// Each delivery; it vanishes where `edit` answers false: acked, and never seen.
    pub(crate) fn delivery(
        edit: impl Fn(&Joined, &mut RawDelivery) -> bool + Send + Sync + 'static,
    ) -> Arc<dyn Hooks> {
        Arc::new(Self {
            delivery: Some(Box::new(edit)),
            ..Self::default()
        })
    }

    /// The message of each delivery that `which` picks.
    pub(crate) fn incoming(
        which: impl Fn(&RawDelivery) -> bool + Send + Sync + 'static,
        edit: impl Fn(Message) -> Message + Send + Sync + 'static,
    ) -> Arc<dyn Hooks> {
        Self::delivery(move |_, raw| {
            if which(raw) {
                raw.message = edit(raw.message.clone());
            }
            true
        })
    }

    /// Each event that is no delivery.
    pub(crate) fn event(
        edit: impl Fn(&Joined, Event) -> Option<Event> + Send + Sync + 'static,
    ) -> Arc<dyn Hooks> {
        Arc::new(Self {
            event: Some(Box::new(edit)),
            ..Self::default()
        })
    }

    /// The codec: the fields of each delivery, after encoding and before decoding. What cannot be
    /// decoded any more is malformed.
    pub(crate) fn fields(
        edit: impl Fn(&RawDelivery, &mut Fields) + Send + Sync + 'static,
    ) -> Arc<dyn Hooks> {
        Arc::new(Self {
            fields: Some(Box::new(edit)),
            ..Self::default()
        })
    }

    /// Each settlement on its way.
    pub(crate) fn outcome(
        edit: impl Fn(&Joined, Option<&Known>, Outcome) -> Does + Send + Sync + 'static,
    ) -> Arc<dyn Hooks> {
        Arc::new(Self {
            outcome: Some(Box::new(edit)),
            ..Self::default()
        })
    }

    /// Each answer to a settlement.
    pub(crate) fn answer(
        edit: impl Fn(&Joined, Option<&Known>, &Outcome, Result<Settled>) -> Result<Settled>
        + Send
        + Sync
        + 'static,
    ) -> Arc<dyn Hooks> {
        Arc::new(Self {
            answer: Some(Box::new(edit)),
            ..Self::default()
        })
    }

    /// The figures of a group.
    pub(crate) fn lag(edit: impl Fn(&mut Lag) + Send + Sync + 'static) -> Arc<dyn Hooks> {
        Arc::new(Self {
            lag: Some(Box::new(edit)),
            ..Self::default()
        })
    }

    /// The groups of a topic.
    pub(crate) fn groups(edit: impl Fn(&mut Vec<Group>) + Send + Sync + 'static) -> Arc<dyn Hooks> {
        Arc::new(Self {
            groups: Some(Box::new(edit)),
            ..Self::default()
        })
    }

    /// How many entries a purge says it removed.
    pub(crate) fn purged(edit: impl Fn(u64) -> u64 + Send + Sync + 'static) -> Arc<dyn Hooks> {
        Arc::new(Self {
            purged: Some(Box::new(edit)),
            ..Self::default()
        })
    }

    fn take_in(&self, member: &Joined, event: Event) -> Option<Event> {
        let mut raw = match event {
            Event::Delivery(raw) => raw,
            other => {
                return match &self.event {
                    Some(edit) => edit(member, other),
                    None => Some(other),
                };
            }
        };
        let known = Known {
            message: raw.message.clone(),
            attempt: raw.attempt,
        };
        lock(&self.known).insert((member.number, raw.token), known);
        if let Some(edit) = &self.delivery
            && !edit(member, &mut raw)
        {
            settle_quietly(member, raw.token, Outcome::Ack);
            return None;
        }
        // What another program wrote is no event of this codec: writing it anew would change it.
        let ours = raw.message.source() != fields::FOREIGN_SOURCE;
        if let Some(edit) = self.fields.as_ref().filter(|_| ours) {
            match recoded(&raw, edit) {
                Ok(message) => raw.message = message,
                Err(reason) => {
                    return Some(Event::Malformed {
                        token: raw.token,
                        reason,
                        position: raw.position,
                        attempt: raw.attempt,
                    });
                }
            }
        }
        Some(Event::Delivery(raw))
    }
}

/// Settles behind the member's back.
pub(crate) fn settle_quietly(member: &Joined, token: Token, outcome: Outcome) {
    let settle = Arc::clone(&member.settle);
    tokio::spawn(async move { settle.settle(vec![(token, outcome)]).await });
}

/// The message of a delivery after its fields were edited.
fn recoded(
    raw: &RawDelivery,
    edit: impl Fn(&RawDelivery, &mut Fields),
) -> std::result::Result<Message, Reason> {
    let mut entry = Fields::new();
    fields::encode(&raw.message, &mut |name, value| {
        entry.push((Bytes::copy_from_slice(name), Bytes::copy_from_slice(value)));
    });
    edit(raw, &mut entry);
    fields::decode(raw.message.topic(), raw.position, entry)
}

/// The same error, with another word on whether the message is stored.
pub(crate) fn restored(error: &Error, maybe: bool) -> Error {
    let error = Error::new(error.kind(), error.operation(), "said by a mutant").on(error.backend());
    match maybe {
        true => error.maybe_stored(),
        false => error,
    }
}

#[async_trait]
impl Hooks for Edits {
    fn info(&self, mut info: Arc<TransportInfo>) -> Arc<TransportInfo> {
        if let Some(edit) = &self.info {
            edit(Arc::make_mut(&mut info));
        }
        info
    }

    async fn publish(
        &self,
        next: &Arc<dyn Transport>,
        mut batch: Vec<Message>,
        deadline: Instant,
    ) -> Confirm {
        let deadline = self.deadline.as_ref().map_or(deadline, |e| e(deadline));
        match &self.publish {
            Some(edit) => {
                let after = edit(&mut batch);
                let confirm = next.publish(batch, deadline).await;
                confirm.map(after).boxed()
            }
            None => next.publish(batch, deadline).await,
        }
    }

    async fn subscribe(
        &self,
        next: &Arc<dyn Transport>,
        subscription: &Subscription,
    ) -> Result<Source> {
        match &self.subscribe {
            Some(edit) => next.subscribe(&edit(subscription.clone())).await,
            None => next.subscribe(subscription).await,
        }
    }

    async fn fetch(
        &self,
        next: &mut dyn Fetch,
        member: &Joined,
        want: Want,
        out: &mut Vec<Event>,
    ) -> Result<()> {
        let before = out.len();
        let want = self.want.as_ref().map_or(want, |edit| edit(want));
        let result = next.fetch(want, out).await;
        let fresh = out.split_off(before);
        out.extend(fresh.into_iter().filter_map(|e| self.take_in(member, e)));
        result
    }

    async fn settle(
        &self,
        next: &Arc<dyn Settle>,
        member: &Joined,
        batch: Vec<(Token, Outcome)>,
    ) -> Vec<Result<Settled>> {
        let asked = batch.clone();
        let know = |token: &Token| lock(&self.known).get(&(member.number, *token)).cloned();
        let mut sent = Vec::new();
        // What is answered here, by its place in the batch.
        let mut answered = Vec::new();
        for (token, outcome) in batch {
            let does = match &self.outcome {
                Some(edit) => edit(member, know(&token).as_ref(), outcome),
                None => Does::Pass(outcome),
            };
            match does {
                Does::Pass(outcome) => {
                    sent.push((token, outcome));
                    answered.push(None);
                }
                Does::Answer(answer) => answered.push(Some(answer)),
            }
        }
        let mut answers = match sent.is_empty() {
            true => Vec::new(),
            false => next.settle(sent).await,
        }
        .into_iter();
        let whole = answered
            .into_iter()
            .filter_map(|a| a.or_else(|| answers.next()));
        let edited = asked
            .iter()
            .zip(whole)
            .map(|((token, outcome), answer)| match &self.answer {
                Some(edit) => edit(member, know(token).as_ref(), outcome, answer),
                None => answer,
            });
        edited.collect()
    }

    async fn lag(&self, next: &dyn Admin, topic: &Topic, group: &Group) -> Result<Lag> {
        let mut lag = next.lag(topic, group).await?;
        if let Some(edit) = &self.lag {
            edit(&mut lag);
        }
        Ok(lag)
    }

    async fn groups(&self, next: &dyn Admin, topic: &Topic) -> Result<Vec<Group>> {
        let mut groups = next.groups(topic).await?;
        if let Some(edit) = &self.groups {
            edit(&mut groups);
        }
        Ok(groups)
    }

    async fn purge(&self, next: &dyn Admin, topic: &Topic) -> Result<u64> {
        let removed = next.purge(topic).await?;
        Ok(self.purged.as_ref().map_or(removed, |edit| edit(removed)))
    }
}
