//! Applications as they would be: a connection, a publish pump, consumers; recorded.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use mas_transport_core::{
    Admin, Backoff, Consumer, ConsumerEvent, Delivery, Message, Pending, PublishOptions, Publisher,
    Receipt, Result, Subscription, Transport,
};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::ctx::Ctx;
use crate::harness::{Failure, Verdict};
pub use crate::held::{Answer, Held};
use crate::history::{Happened, History, MemberId};
use crate::layers::Crash;

/// One application: a connection of its own with a publish pump on it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Agent {
    ctx: Ctx,
    transport: Arc<dyn Transport>,
    publisher: Publisher,
    number: u32,
    crash: Option<Arc<Crash>>,
    members: Arc<Mutex<Vec<MemberId>>>,
}

impl Ctx {
    /// An application with a connection of its own.
    ///
    /// # Errors
    /// As the backend's connect.
    pub async fn agent(&self) -> Result<Agent> {
        Ok(self.agent_on(self.connect().await?, PublishOptions::default()))
    }

    /// An application that dies on [`Agent::crash`].
    ///
    /// # Errors
    /// As the backend's connect.
    pub async fn mortal_agent(&self) -> Result<Agent> {
        let (transport, crash) = self.connect_mortal().await?;
        let mut agent = self.agent_on(transport, PublishOptions::default());
        agent.crash = Some(crash);
        Ok(agent)
    }

    /// An application on a connection, with these bounds of its publish pump.
    pub fn agent_on(&self, transport: Arc<dyn Transport>, options: PublishOptions) -> Agent {
        Agent {
            ctx: self.clone(),
            publisher: Publisher::new(Arc::clone(&transport), options),
            transport,
            number: self.next_number(),
            crash: None,
            members: Arc::default(),
        }
    }
}

impl Agent {
    /// The connection.
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    /// The publish pump, unrecorded.
    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    /// Topics, groups, lag.
    pub fn admin(&self) -> &dyn Admin {
        self.transport.admin()
    }

    /// Publishes and waits for the receipt.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    pub async fn publish(&self, message: Message) -> Result<Receipt> {
        let asked = Asked::new(&self.ctx, self.number, &message);
        let outcome = self.publisher.publish(message).await;
        asked.answered(&outcome);
        outcome
    }

    /// Publishes together; an outcome a message.
    pub async fn publish_batch(&self, messages: Vec<Message>) -> Vec<Result<Receipt>> {
        let asked: Vec<_> = messages
            .iter()
            .map(|m| Asked::new(&self.ctx, self.number, m))
            .collect();
        let outcomes = self.publisher.publish_batch(messages).await;
        for (asked, outcome) in asked.into_iter().zip(&outcomes) {
            asked.answered(outcome);
        }
        outcomes
    }

    /// Publishes together, all of which has to succeed.
    ///
    /// # Errors
    /// The first failure.
    pub async fn publish_all(&self, messages: Vec<Message>) -> Result<Vec<Receipt>> {
        self.publish_batch(messages).await.into_iter().collect()
    }

    /// Accepts a message; the handle gives the receipt.
    ///
    /// # Errors
    /// As [`Publisher::enqueue`].
    pub async fn enqueue(&self, message: Message) -> Result<Awaited> {
        let asked = Asked::new(&self.ctx, self.number, &message);
        match self.publisher.enqueue(message).await {
            Ok(pending) => Ok(Awaited {
                pending,
                asked: Some(asked),
            }),
            Err(e) => {
                asked.answered(&Err::<(), _>(e.clone()));
                Err(e)
            }
        }
    }

    /// Joins a group.
    ///
    /// # Errors
    /// As [`Consumer::start`].
    pub async fn join(&self, subscription: &Subscription) -> Result<Member> {
        let consumer = Consumer::start(Arc::clone(&self.transport), subscription.clone()).await?;
        let id = self.ctx.next_number();
        self.ctx.history().joined(id, subscription);
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.push(id);
        Ok(Member::new(&self.ctx, consumer, id, subscription))
    }

    /// The process dies: nothing of it reaches the broker any more. Its members and what they hold
    /// may be dropped afterwards, and should not be waited for.
    ///
    /// # Errors
    /// When it was not made by [`Ctx::mortal_agent`].
    pub fn crash(&self) -> Verdict {
        let Some(crash) = &self.crash else {
            return Err("this agent is not mortal: make it with mortal_agent()".into());
        };
        crash.now();
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        for &member in members.iter() {
            self.ctx.history().push(Happened::Crashed { member });
        }
        Ok(())
    }

    /// Closes the publish pump, then the connection.
    ///
    /// # Errors
    /// As their `close`.
    pub async fn close(&self) -> Result<()> {
        self.publisher.close(self.ctx.deadline()).await?;
        self.transport.close(self.ctx.deadline()).await
    }
}

/// A publish whose outcome is not known yet; given up, it is uncertain.
#[derive(Debug)]
struct Asked {
    history: Arc<History>,
    id: Option<String>,
}

impl Asked {
    fn new(ctx: &Ctx, sender: u32, message: &Message) -> Self {
        ctx.history().publishing(sender, message);
        Self {
            history: Arc::clone(ctx.history()),
            id: Some(message.id().to_owned()),
        }
    }

    fn answered<T>(mut self, outcome: &Result<T>) {
        if let Some(id) = self.id.take() {
            self.history.published(id, outcome);
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.history.push(Happened::Uncertain { id });
        }
    }
}

/// The handle of an accepted message.
#[derive(Debug)]
pub struct Awaited {
    pending: Pending,
    asked: Option<Asked>,
}

impl Future for Awaited {
    type Output = Result<Receipt>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = futures::ready!(Pin::new(&mut self.pending).poll(cx));
        if let Some(asked) = self.asked.take() {
            asked.answered(&outcome);
        }
        Poll::Ready(outcome)
    }
}

/// A member of a group: a consumer with its pump.
#[derive(Debug)]
pub struct Member {
    ctx: Ctx,
    consumer: Arc<Consumer>,
    id: MemberId,
    backoff: Backoff,
    events: tokio::sync::Mutex<mpsc::UnboundedReceiver<ConsumerEvent>>,
    listener: AbortHandle,
}

impl Member {
    fn new(ctx: &Ctx, consumer: Consumer, id: MemberId, subscription: &Subscription) -> Self {
        let consumer = Arc::new(consumer);
        let (tell, events) = mpsc::unbounded_channel();
        let listener = tokio::spawn(listen(
            Arc::clone(&consumer),
            Arc::clone(ctx.history()),
            id,
            tell,
        ));
        Self {
            ctx: ctx.clone(),
            consumer,
            id,
            backoff: subscription.get_backoff(),
            events: tokio::sync::Mutex::new(events),
            listener: listener.abort_handle(),
        }
    }

    /// Its number in the history.
    pub fn id(&self) -> MemberId {
        self.id
    }

    /// The consumer itself; what is received from it directly is not recorded.
    pub fn consumer(&self) -> &Consumer {
        &self.consumer
    }

    fn hold(&self, delivery: Delivery) -> Held {
        self.ctx.history().delivered(
            self.id,
            delivery.message(),
            delivery.position(),
            delivery.attempt(),
            delivery.deadline(),
        );
        Held::new(self.ctx.history(), self.id, self.backoff, delivery)
    }

    /// As [`Consumer::recv`].
    ///
    /// # Errors
    /// As [`Consumer::recv`].
    pub async fn recv(&self) -> Result<Option<Held>> {
        let waiting = Waiting::new(self.ctx.history(), self.id, self.consumer.recv());
        Ok(waiting.await?.map(|d| self.hold(d)))
    }

    /// As [`Consumer::recv_batch`].
    ///
    /// # Errors
    /// As [`Consumer::recv_batch`].
    pub async fn recv_batch(&self, most: usize) -> Result<Vec<Held>> {
        let batch = self.consumer.recv_batch(most).await?;
        Ok(batch.into_iter().map(|d| self.hold(d)).collect())
    }

    /// The next delivery, within the trial's patience.
    ///
    /// # Errors
    /// When none comes.
    pub async fn next(&self) -> Result<Held, Failure> {
        let next = self.ctx.soon("a delivery", self.recv()).await??;
        next.ok_or_else(|| "the consumer has ended".into())
    }

    /// The next delivery if it comes within `limit`.
    ///
    /// # Errors
    /// As [`Consumer::recv`].
    pub async fn next_within(&self, limit: Duration) -> Result<Option<Held>> {
        match tokio::time::timeout(limit, self.recv()).await {
            Ok(next) => next,
            Err(_) => Ok(None),
        }
    }

    /// The next `count` deliveries, held.
    ///
    /// # Errors
    /// When they do not come.
    pub async fn take(&self, count: usize) -> Result<Vec<Held>, Failure> {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            let next = self.next().await;
            taken.push(next.map_err(|e| format!("{e}, after {} of {count}", taken.len()))?);
        }
        Ok(taken)
    }

    /// Receives and acks `count` deliveries; their ids, in order.
    ///
    /// # Errors
    /// When they do not come, or an ack fails.
    pub async fn ack_all(&self, count: usize) -> Result<Vec<String>, Failure> {
        let mut ids = Vec::with_capacity(count);
        while ids.len() < count {
            let held = self.next().await;
            let held = held.map_err(|e| format!("{e}, after {} of {count}", ids.len()))?;
            ids.push(held.id().to_owned());
            held.ack().await?;
        }
        Ok(ids)
    }

    /// Watches that no delivery comes.
    ///
    /// # Errors
    /// When one does.
    pub async fn nothing(&self) -> Verdict {
        self.ctx.never("a delivery", self.recv()).await
    }

    /// The next event that is not a delivery, within the trial's patience.
    ///
    /// # Errors
    /// When none comes.
    pub async fn event(&self) -> Result<ConsumerEvent, Failure> {
        let mut events = self.events.lock().await;
        let event = self.ctx.soon("a consumer event", events.recv()).await?;
        event.ok_or_else(|| "the consumer has ended".into())
    }

    /// The next event that `wanted` picks, others skipped, within the trial's patience.
    ///
    /// # Errors
    /// When none comes.
    pub async fn event_like<T>(
        &self,
        what: &str,
        mut wanted: impl FnMut(ConsumerEvent) -> Option<T>,
    ) -> Result<T, Failure> {
        let find = async {
            loop {
                match self.event().await {
                    Ok(event) => match wanted(event) {
                        Some(found) => return Ok(found),
                        None => continue,
                    },
                    Err(e) => return Err(e),
                }
            }
        };
        self.ctx.soon(what, find).await?
    }

    /// Drains and closes, within the trial's patience.
    ///
    /// # Errors
    /// As [`Consumer::close`].
    pub async fn close(&self) -> Result<()> {
        self.close_by(self.ctx.deadline()).await
    }

    /// Drains and closes.
    ///
    /// # Errors
    /// As [`Consumer::close`].
    pub async fn close_by(&self, deadline: Instant) -> Result<()> {
        let closed = self.consumer.close(deadline).await;
        self.ctx.history().push(Happened::Left { member: self.id });
        closed
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.listener.abort();
        self.ctx.history().push(Happened::Left { member: self.id });
    }
}

/// Writes down what the history needs of a consumer's events, and passes all of them on.
async fn listen(
    consumer: Arc<Consumer>,
    history: Arc<History>,
    member: MemberId,
    tell: mpsc::UnboundedSender<ConsumerEvent>,
) {
    while let Some(event) = consumer.next_event().await {
        match &event {
            ConsumerEvent::Gap(gap) => history.push(Happened::Gap {
                member,
                lost: gap.lost,
            }),
            ConsumerEvent::LeaseLost { position } => history.push(Happened::Revoked {
                member,
                position: *position,
            }),
            other => history.push(Happened::Note(format!("member {member}: {other:?}"))),
        }
        if tell.send(event).is_err() {
            return;
        }
    }
}

/// A receive whose waiting is recorded, so that the checker knows who was idle.
struct Waiting<'a, F> {
    history: &'a History,
    member: MemberId,
    waits: bool,
    future: Pin<Box<F>>,
}

impl<'a, F> Waiting<'a, F> {
    fn new(history: &'a History, member: MemberId, future: F) -> Self {
        Self {
            history,
            member,
            waits: false,
            future: Box::pin(future),
        }
    }
}

impl<F: Future> Future for Waiting<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let polled = self.future.as_mut().poll(cx);
        if polled.is_pending() && !self.waits {
            self.waits = true;
            self.history.waiting(self.member, true);
        }
        polled
    }
}

impl<F> Drop for Waiting<'_, F> {
    fn drop(&mut self) {
        if self.waits {
            self.history.waiting(self.member, false);
        }
    }
}

pub(crate) fn waiting<'a, F: Future + 'a>(
    history: &'a History,
    member: MemberId,
    future: F,
) -> impl Future<Output = F::Output> + 'a {
    Waiting::new(history, member, future)
}
