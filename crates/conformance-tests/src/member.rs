//! A member at the level of the transport, recorded.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use mas_transport_core::{
    Event, Fetch, Outcome, RawDelivery, Result, Settle, Settled, Source, StartFrom, Subscription,
    Token, Want,
};
use tokio::task::JoinHandle;

use crate::agent::waiting;
use crate::ctx::Ctx;
use crate::harness::Failure;
use crate::history::{Ended, Happened, History, How, MemberId, digest};

/// One member, driven by hand: no pump, no extension, nothing dead-lettered by itself.
#[derive(Debug)]
pub struct RawMember {
    /// What comes in.
    pub fetch: Box<dyn Fetch>,
    /// What goes back.
    pub settle: Arc<dyn Settle>,
    /// Events beside deliveries that came while deliveries were waited for.
    pub events: Vec<Event>,
    ctx: Ctx,
    id: MemberId,
    held: HashMap<Token, (String, u32)>,
    ready: VecDeque<RawDelivery>,
    /// The first of `ready` is being begun.
    begin: Option<JoinHandle<Option<Result<Settled>>>>,
}

impl RawMember {
    pub(crate) fn new(ctx: &Ctx, source: Source, subscription: &Subscription) -> Self {
        let id = ctx.next_number();
        ctx.history().joined(id, subscription);
        Self {
            fetch: source.fetch,
            settle: source.settle,
            events: Vec::new(),
            ctx: ctx.clone(),
            id,
            held: HashMap::new(),
            ready: VecDeque::new(),
            begin: None,
        }
    }

    /// Its number in the history.
    pub fn id(&self) -> MemberId {
        self.id
    }

    /// The next delivery, within the trial's patience. What has to be begun is begun first.
    ///
    /// # Errors
    /// When none comes, or the fetch fails.
    pub async fn next(&mut self) -> Result<RawDelivery, Failure> {
        let ctx = self.ctx.clone();
        ctx.soon("a delivery", self.wait()).await?
    }

    /// The next `count` deliveries.
    ///
    /// # Errors
    /// As [`RawMember::next`].
    pub async fn take(&mut self, count: usize) -> Result<Vec<RawDelivery>, Failure> {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            taken.push(self.next().await?);
        }
        Ok(taken)
    }

    /// Watches that no delivery comes.
    ///
    /// # Errors
    /// When one does.
    pub async fn nothing(&mut self) -> Result<(), Failure> {
        let ctx = self.ctx.clone();
        ctx.never("a delivery", self.wait()).await
    }

    /// The next delivery, however long it takes.
    ///
    /// # Errors
    /// When the fetch fails.
    pub async fn wait(&mut self) -> Result<RawDelivery, Failure> {
        loop {
            let begin = self.ready.front().filter(|d| d.begin).map(|d| d.token);
            if let Some(token) = begin {
                let settle = Arc::clone(&self.settle);
                // In a task of its own: whoever drops this future neither loses the delivery nor
                // begins it twice.
                let task = self.begin.get_or_insert_with(|| {
                    tokio::spawn(
                        async move { settle.settle(vec![(token, Outcome::Begin)]).await.pop() },
                    )
                });
                let answer = task.await;
                self.begin = None;
                match (answer?, self.ready.front_mut()) {
                    (Some(Ok(Settled::Lease(until))), Some(delivery)) => {
                        (delivery.begin, delivery.deadline) = (false, until);
                    }
                    (Some(Err(_)), _) => {
                        // Somebody else has it by now.
                        self.ready.pop_front();
                        continue;
                    }
                    (other, _) => return Err(format!("Begin was answered with {other:?}").into()),
                }
            }
            if let Some(delivery) = self.ready.pop_front() {
                let history = self.ctx.history();
                history.delivered(
                    self.id,
                    &delivery.message,
                    delivery.position,
                    delivery.attempt,
                    delivery.deadline,
                );
                let id = delivery.message.id().to_owned();
                self.held.insert(delivery.token, (id, delivery.attempt));
                return Ok(delivery);
            }
            let mut out = Vec::new();
            let want = Want::new(1, 1 << 20);
            let fetch = self.fetch.fetch(want, &mut out);
            waiting(self.ctx.history(), self.id, fetch).await?;
            for event in out {
                match event {
                    Event::Delivery(delivery) => self.ready.push_back(delivery),
                    Event::Gap(gap) => {
                        self.ctx.history().push(Happened::Gap {
                            member: self.id,
                            lost: gap.lost,
                        });
                        self.events.push(Event::Gap(gap));
                    }
                    other => self.events.push(other),
                }
            }
        }
    }

    /// Settles one delivery and records it.
    ///
    /// # Errors
    /// As the backend answers.
    pub async fn answer(&mut self, token: Token, outcome: Outcome) -> Result<Settled> {
        let mut answers = self.answer_all(vec![(token, outcome)]).await;
        match answers.pop() {
            Some(answer) if answers.is_empty() => answer,
            _ => Err(mas_transport_core::Error::new(
                mas_transport_core::ErrorKind::Internal,
                "settle",
                "one entry was not answered by one outcome",
            )),
        }
    }

    /// Settles a batch and records it.
    pub async fn answer_all(&mut self, batch: Vec<(Token, Outcome)>) -> Vec<Result<Settled>> {
        let known: Vec<_> = batch
            .iter()
            .map(|(token, outcome)| (self.held.get(token).cloned(), how(outcome), outcome.clone()))
            .collect();
        let history = Arc::clone(self.ctx.history());
        for (id, how, _) in &known {
            if let (Some((id, attempt)), Some(how)) = (id, how) {
                history.settling(self.id, id, *attempt, *how);
            }
        }
        let answers = self.settle.settle(batch).await;
        for ((id, how, outcome), answer) in known.into_iter().zip(&answers) {
            let Some((id, attempt)) = id else {
                continue;
            };
            match (how, outcome, answer) {
                (Some(how), ..) => history.settled(self.id, id, attempt, how, Ended::of(answer)),
                (None, Outcome::Extend, Ok(Settled::Lease(until))) => {
                    let deadline = history.at(*until);
                    history.push(Happened::Extended {
                        member: self.id,
                        id,
                        attempt,
                        deadline,
                    });
                }
                _ => {}
            }
        }
        answers
    }

    /// Acks one delivery.
    ///
    /// # Errors
    /// As the backend answers.
    pub async fn ack(&mut self, delivery: &RawDelivery) -> Result<()> {
        self.answer(delivery.token, Outcome::Ack).await.map(|_| ())
    }

    /// Nacks one delivery.
    ///
    /// # Errors
    /// As the backend answers.
    pub async fn nack(&mut self, delivery: &RawDelivery, delay: Duration) -> Result<()> {
        let outcome = Outcome::Nack(delay);
        self.answer(delivery.token, outcome).await.map(|_| ())
    }
}

fn how(outcome: &Outcome) -> Option<How> {
    match outcome {
        Outcome::Ack => Some(How::Ack),
        Outcome::Nack(delay) => Some(How::Nack(*delay)),
        Outcome::Return => Some(How::Return),
        Outcome::DeadLetter(_) | Outcome::Quarantine(_) => Some(How::Reject),
        Outcome::Begin | Outcome::Extend => None,
    }
}

/// What is recorded the same way at both levels.
impl History {
    pub(crate) fn publishing(&self, sender: u32, message: &mas_transport_core::Message) {
        self.push(Happened::Publishing {
            sender,
            topic: message.topic().to_string(),
            id: message.id().to_owned(),
            key: message.get_key().map(str::to_owned),
            digest: digest(message),
        });
    }

    pub(crate) fn published<T>(&self, id: String, outcome: &Result<T>) {
        self.push(match outcome {
            Ok(_) => Happened::Accepted { id },
            Err(e) if e.stored() == mas_transport_core::Stored::Unknown => {
                Happened::Uncertain { id }
            }
            Err(_) => Happened::Refused { id },
        });
    }

    pub(crate) fn joined(&self, member: MemberId, subscription: &Subscription) {
        self.push(Happened::Joined {
            member,
            topic: subscription.pattern().to_owned(),
            group: subscription
                .get_group()
                .map(|g| g.to_string())
                .unwrap_or_default(),
            earliest: subscription.get_start() == StartFrom::Earliest,
            lease: subscription.get_lease(),
            prefetch: subscription.get_prefetch(),
            max_attempts: subscription.get_max_attempts(),
        });
    }

    pub(crate) fn delivered(
        &self,
        member: MemberId,
        message: &mas_transport_core::Message,
        position: mas_transport_core::Position,
        attempt: u32,
        deadline: tokio::time::Instant,
    ) {
        self.push(Happened::Delivered {
            member,
            id: message.id().to_owned(),
            topic: message.topic().to_string(),
            digest: digest(message),
            key: message.get_key().map(str::to_owned),
            position,
            attempt,
            deadline: self.at(deadline),
        });
    }

    pub(crate) fn waiting(&self, member: MemberId, on: bool) {
        self.push(Happened::Waiting { member, on });
    }

    pub(crate) fn settling(&self, member: MemberId, id: &str, attempt: u32, how: How) {
        self.push(Happened::Settling {
            member,
            id: id.to_owned(),
            attempt,
            how,
            called: None,
        });
    }

    pub(crate) fn settled(
        &self,
        member: MemberId,
        id: String,
        attempt: u32,
        how: How,
        ended: Ended,
    ) {
        self.push(Happened::Settled {
            member,
            id,
            attempt,
            how,
            ended,
        });
    }
}
