//! The publish pump: many callers, few round trips.

use std::future::Future;
use std::iter::Peekable;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio::task::{consume_budget, unconstrained};
use tokio::time::{Instant, timeout_at};

use crate::capabilities::TransportInfo;
use crate::coalesce::{Bounds, Line, Sink, Ticket};
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::metrics::{Counters, Metrics};
use crate::transport::{Receipt, Transport};

/// Most bytes in one call of [`Transport::publish`], so that a batch of large messages does not
/// stand in memory twice.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Longer publish timeouts are as good as this one.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// The bounds of a [`Publisher`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishOptions {
    /// How long a publish may wait for room, to be sent, and for its confirmation, together.
    /// Default 30 s.
    pub publish_timeout: Duration,
    /// Most messages that are queued or in flight. Default 10,000.
    pub queue_messages: usize,
    /// Most bytes of messages that are queued or in flight; one larger message may go alone.
    /// Default 64 MiB.
    pub queue_bytes: usize,
}

impl Default for PublishOptions {
    fn default() -> Self {
        Self {
            publish_timeout: Duration::from_secs(30),
            queue_messages: 10_000,
            queue_bytes: 64 * 1024 * 1024,
        }
    }
}

/// The publish pump of one transport. A call goes at once when the line is idle; while batches are
/// in flight, what arrives becomes the next batch. Messages leave in the order in which `enqueue`
/// or `publish` accepted them.
///
/// Cheap to clone; the clones share one line and its bounds. When the last one is dropped, what
/// was accepted is still sent, as long as the runtime lives; [`close`](Self::close) waits for it.
#[derive(Clone, Debug)]
pub struct Publisher(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    line: Line<Message, Result<Receipt>>,
    room: Arc<Room>,
    counters: Arc<Counters>,
    options: PublishOptions,
    info: Arc<TransportInfo>,
}

/// The room in the queue. Permits are taken when a message is accepted and given back when it has
/// its outcome.
#[derive(Debug)]
struct Room {
    messages: Semaphore,
    bytes: Semaphore,
}

impl Publisher {
    /// A pump over `transport`, with its driver on the current tokio runtime.
    pub fn new(transport: Arc<dyn Transport>, options: PublishOptions) -> Self {
        let info = transport.info();
        let options = PublishOptions {
            queue_messages: options.queue_messages.clamp(1, Semaphore::MAX_PERMITS),
            queue_bytes: options.queue_bytes.clamp(1, u32::MAX as usize),
            // What clocks can add.
            publish_timeout: options.publish_timeout.min(LONGEST_TIMEOUT),
        };
        let options = PublishOptions {
            publish_timeout: match mutated!(info, NoPublishTimeout) {
                true => options.publish_timeout.saturating_mul(100),
                false => options.publish_timeout,
            },
            queue_messages: match mutated!(info, QueueUnbounded) {
                true => Semaphore::MAX_PERMITS,
                false => options.queue_messages,
            },
            queue_bytes: match mutated!(info, QueueBytesUnbounded) {
                true => u32::MAX as usize,
                false => options.queue_bytes,
            },
        };
        let room = Arc::new(Room {
            messages: Semaphore::new(options.queue_messages),
            bytes: Semaphore::new(options.queue_bytes),
        });
        let counters = Arc::new(Counters::new());
        let sink = Outgoing {
            backend: info.backend,
            transport,
            room: room.clone(),
            counters: counters.clone(),
            info: info.clone(),
        };
        let bounds = Bounds {
            entries: info.tuning.publish_batch.clamp(1, options.queue_messages),
            bytes: BATCH_BYTES,
            in_flight: info.tuning.publish_in_flight,
            timeout: options.publish_timeout,
            gathers: false,
        };
        Self(Arc::new(Inner {
            line: Line::start(Arc::new(sink), bounds),
            room,
            counters,
            options,
            info,
        }))
    }

    /// Publishes a message and waits for its receipt.
    ///
    /// # Errors
    /// `InvalidArgument`, `TooLarge`, `Unsupported`, `Full`, `Unavailable`, `Timeout` after
    /// `publish_timeout`, `Closed`, …; [`Error::stored`] says whether the message may be there all
    /// the same.
    ///
    /// # Cancel safety
    /// Dropping the future before the message was accepted publishes nothing; afterwards the
    /// message is published or not, as if the process had lost its network. Nothing else is
    /// disturbed.
    pub async fn publish(&self, message: Message) -> Result<Receipt> {
        self.enqueue(message).await?.await
    }

    /// Accepts a message, waiting only for room in the queue, and returns a handle for its receipt.
    ///
    /// # Errors
    /// `Timeout` when there was no room within `publish_timeout`, `Closed`. Nothing was stored.
    ///
    /// # Cancel safety
    /// Dropping this future accepts nothing.
    pub async fn enqueue(&self, message: Message) -> Result<Pending> {
        let bytes = self.charge(&message);
        let since = Instant::now();
        let room = self.make_room(1, bytes, since).await;
        if room.is_err() && mutated!(self.0.info, PublishAfterClose) {
            return Ok(Pending(Ticket::ready(Ok(Receipt {
                position: crate::Position::default(),
                durability: self.0.info.capabilities.durability,
                duplicate: false,
            }))));
        }
        room.inspect_err(|_| self.0.counters.failed(1))?;
        if mutated!(self.0.info, PublishLosesOnCancel) {
            tokio::task::yield_now().await;
        }
        match self.0.line.push(message, bytes, since) {
            Ok(ticket) => Ok(Pending(ticket)),
            Err(_) => {
                self.0.counters.failed(1);
                Err(self.closed())
            }
        }
    }

    /// Publishes messages together and waits for all of them: one outcome a message, in order. One
    /// that is refused fails alone. They go in one round trip where they fit one.
    ///
    /// # Cancel safety
    /// Dropping the future leaves each message published or not; a prefix of them was accepted.
    pub async fn publish_batch(&self, messages: Vec<Message>) -> Vec<Result<Receipt>> {
        let mut outcomes = Vec::new();
        let mut results = Vec::with_capacity(messages.len());
        let mut parts = Vec::new();
        let mut messages = messages.into_iter().peekable();
        let mut failed: Option<Error> = None;
        let since = Instant::now();
        // What is carried may be answered at once, with no turn of the scheduler at all.
        consume_budget().await;
        loop {
            // A part at a time, as large as one batch on the wire, so that any number fits.
            let (part, bytes) = self.part(&mut messages);
            let count = part.len();
            if count == 0 {
                break;
            }
            if failed.is_none() {
                match self.make_room(count, bytes, since).await {
                    Ok(()) => match self.0.line.push_all(part, since) {
                        Ok(more) => parts.extend(more),
                        Err(_) => failed = Some(self.closed()),
                    },
                    Err(error) => failed = Some(error),
                }
            }
            if let Some(error) = &failed {
                self.0.counters.failed(count as u64);
                // Later parts are not sent either: a gap in the middle would break the order.
                outcomes.extend(std::iter::repeat_n(error.clone(), count).map(Err));
            }
        }
        for part in parts {
            results.extend(part.await);
        }
        results.extend(outcomes);
        results
    }

    /// What this pump has done so far, its clones included.
    pub fn metrics(&self) -> Metrics {
        let taken = self.0.options.queue_messages;
        let taken = taken.saturating_sub(self.0.room.messages.available_permits());
        self.0.counters.read(taken as u64)
    }

    /// Takes no more messages and waits until every accepted one has its outcome, or the deadline.
    /// Idempotent.
    ///
    /// # Errors
    /// `Timeout` when some had none by the deadline; their outcomes still come.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the pump closing.
    pub async fn close(&self, deadline: Instant) -> Result<()> {
        if mutated!(self.0.info, CloseDoesNotFlush) {
            self.0.line.shut();
            return Ok(());
        }
        self.0.room.messages.close();
        self.0.room.bytes.close();
        if self.0.line.close(deadline).await {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Timeout,
            "close",
            "some accepted messages had no outcome by the deadline; their handles still tell it",
        )
        .on(self.0.info.backend))
    }

    /// The next messages that fit one batch, with what each is charged, and the sum of that.
    fn part(
        &self,
        messages: &mut Peekable<std::vec::IntoIter<Message>>,
    ) -> (Vec<(Message, usize)>, usize) {
        let Inner { info, options, .. } = &*self.0;
        let most = info.tuning.publish_batch.clamp(1, options.queue_messages);
        let mut part = Vec::with_capacity(most.min(messages.len()));
        let mut total = 0;
        while part.len() < most {
            let bytes = messages.peek().map_or(0, |next| self.charge(next));
            if total + bytes > options.queue_bytes {
                break;
            }
            let Some(message) = messages.next() else {
                break;
            };
            total += bytes;
            part.push((message, bytes));
        }
        (part, total)
    }

    /// What a message counts against the room in bytes: never more than there is.
    fn charge(&self, message: &Message) -> usize {
        message.size().min(self.0.options.queue_bytes)
    }

    /// Waits for room, as long as the publish timeout lasts, which runs from `since`.
    async fn make_room(&self, messages: usize, bytes: usize, since: Instant) -> Result<()> {
        let Inner { room, options, .. } = &*self.0;
        let messages = u32::try_from(messages).unwrap_or(u32::MAX);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        // The common case, without a timer.
        if let Ok(some) = room.messages.try_acquire_many(messages)
            && let Ok(more) = room.bytes.try_acquire_many(bytes)
        {
            some.forget();
            more.forget();
            return Ok(());
        }
        let both = async {
            let some = self.nudging(room.messages.acquire_many(messages)).await;
            let some = some.map_err(|_| self.closed())?;
            let more = self.nudging(room.bytes.acquire_many(bytes)).await;
            more.map_err(|_| self.closed())?.forget();
            some.forget();
            Ok(())
        };
        match timeout_at(since + options.publish_timeout, both).await {
            Ok(done) => done,
            Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                "publish",
                "there was no room in the publish queue within the timeout: the broker is slower \
                 than the publishers, or away",
            )
            .on(self.0.info.backend)
            .with("queue_messages", options.queue_messages)),
        }
    }

    /// Waits for what a caller that carries its batch may be holding. It stands in the queue before the
    /// driver is told: whoever comes later finds no room to carry anything.
    async fn nudging<T>(&self, wait: impl Future<Output = T>) -> T {
        tokio::pin!(wait);
        // However much the task has done: it has to stand in the queue.
        if let Poll::Ready(value) = futures::poll!(unconstrained(wait.as_mut())) {
            return value;
        }
        self.0.line.nudge();
        wait.await
    }

    fn closed(&self) -> Error {
        Error::closed("publish").on(self.0.info.backend)
    }
}

/// The handle of an accepted message: resolves to its receipt. Dropping it gives up the receipt,
/// not the message.
#[derive(Debug)]
#[must_use = "the receipt, or the error, comes through this handle"]
pub struct Pending(Ticket<Result<Receipt>>);

impl Future for Pending {
    type Output = Result<Receipt>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

#[derive(Debug)]
struct Outgoing {
    transport: Arc<dyn Transport>,
    backend: &'static str,
    room: Arc<Room>,
    counters: Arc<Counters>,
    info: Arc<TransportInfo>,
}

#[async_trait]
impl Sink<Message, Result<Receipt>> for Outgoing {
    async fn send(
        &self,
        batch: Vec<Message>,
        deadline: Instant,
    ) -> BoxFuture<'static, Vec<Result<Receipt>>> {
        if mutated!(self.info, BatchReversed) {
            return self
                .transport
                .publish(batch.into_iter().rev().collect(), deadline)
                .await;
        }
        let confirm = self.transport.publish(batch, deadline).await;
        if mutated!(self.info, BatchFailsTogether) {
            return Box::pin(async move {
                let results = confirm.await;
                match results.iter().find_map(|r| r.as_ref().err().cloned()) {
                    Some(error) => vec![Err(error); results.len()],
                    None => results,
                }
            });
        }
        confirm
    }

    fn unsent(&self, _message: Message) -> Result<Receipt> {
        let error = Error::new(
            ErrorKind::Timeout,
            "publish",
            "the message was not sent within publish_timeout: the broker is slow or away",
        )
        .on(self.backend);
        if mutated!(self.info, UnsentMayBeStored) {
            return Err(error.maybe_stored());
        }
        Err(error)
    }

    fn unanswered(&self) -> Result<Receipt> {
        Err(Error::new(
            ErrorKind::Timeout,
            "publish",
            "the broker did not confirm the message within publish_timeout",
        )
        .on(self.backend)
        .maybe_stored())
    }

    fn done(&self, results: &[Result<Receipt>], bytes: usize, since: Instant) {
        let published = results.iter().filter(|result| result.is_ok()).count();
        let failed = results.len() - published;
        self.counters.batch(published as u64, failed as u64, since);
        self.room.messages.add_permits(results.len());
        self.room.bytes.add_permits(bytes);
    }
}
