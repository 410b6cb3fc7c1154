//! The line in front of a broker, shared by both pumps: goes at once when it is idle, gathers
//! while batches are in flight, and tells every entry its own outcome.

mod carried;
mod cell;

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use carried::{Answer, Busy, Carrier, Stage, Turns};
use cell::Cell;
pub(crate) use cell::{Part, Ticket};

/// Locks; what a panicking thread left behind is still whole, because no code panics while it holds one of
/// these locks, and no backend is called under one.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An idle line waits a turn for more entries, unless it has so many.
const GATHERED: usize = 32;

/// How long a few entries wait for others while batches are in flight, on a line that gathers.
const GATHER: Duration = Duration::from_millis(2);

/// Where batches go.
#[async_trait]
pub(crate) trait Sink<I, R>: Send + Sync + 'static {
    /// Sends a batch; returns once its place in line is fixed. The future gives one result an
    /// entry, in order.
    async fn send(&self, batch: Vec<I>, deadline: Instant) -> BoxFuture<'static, Vec<R>>;

    /// The result of an entry that was never sent, because its time had run out.
    fn unsent(&self, entry: I) -> R;

    /// The result of an entry that was sent and not answered in time.
    fn unanswered(&self) -> R;

    /// Called once for every batch, just before its results are told: one for each of its entries,
    /// whatever became of them; its bytes; and since when it was under way.
    fn done(&self, results: &[R], bytes: usize, since: Instant);
}

/// The bounds of a line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Most entries in a batch.
    pub(crate) entries: usize,
    /// Most bytes in a batch; the first entry always fits.
    pub(crate) bytes: usize,
    /// Most batches in flight.
    pub(crate) in_flight: usize,
    /// How long an entry may wait to be sent and answered.
    pub(crate) timeout: Duration,
    /// While batches are in flight a few entries wait for others: until all are answered, or a moment. For
    /// what is rarely waited for.
    pub(crate) gathers: bool,
}

impl Bounds {
    /// So many entries are worth a batch of their own.
    fn worth(&self) -> usize {
        GATHERED.min(self.entries)
    }
}

struct Batch<I, R> {
    entries: Vec<I>,
    bytes: usize,
    opened: Instant,
    cell: Arc<Cell<R>>,
}

struct Queue<I, R> {
    batches: VecDeque<Batch<I, R>>,
    closed: bool,
}

struct Shared<I, R> {
    queue: Mutex<Queue<I, R>>,
    bounds: Bounds,
    turns: Arc<Turns>,
    /// The driver owns it: what a sink holds may hold the line.
    sink: Weak<dyn Sink<I, R>>,
}

/// A line. Entries go out in the order in which they were pushed.
pub(crate) struct Line<I, R> {
    shared: Arc<Shared<I, R>>,
    ended: watch::Receiver<bool>,
}

impl<I, R> fmt::Debug for Line<I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line")
            .field("bounds", &self.shared.bounds)
            .finish_non_exhaustive()
    }
}

impl<I, R> Drop for Line<I, R> {
    // What was pushed still goes out; then the driver ends.
    fn drop(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.turns.wake.notify_one();
    }
}

impl<I, R> Line<I, R>
where
    I: Send + 'static,
    R: Clone + Send + 'static,
{
    /// A line with its driver, spawned on the current runtime.
    pub(crate) fn start(sink: Arc<dyn Sink<I, R>>, bounds: Bounds) -> Self {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                batches: VecDeque::new(),
                closed: false,
            }),
            bounds,
            turns: Turns::new(Handle::current().id()),
            sink: Arc::downgrade(&sink),
        });
        let (told, ended) = watch::channel(false);
        let driver = Driver {
            shared: shared.clone(),
            sink,
        };
        tokio::spawn(async move {
            driver.run().await;
            told.send_replace(true);
        });
        Self { shared, ended }
    }

    /// Puts an entry at the end of the line. `Err` gives it back when the line is closed.
    /// Its time runs since then: the caller knows when that was, and asking the clock is a good part
    /// of what a push costs.
    pub(crate) fn push(&self, entry: I, bytes: usize, since: Instant) -> Result<Ticket<R>, I> {
        let mut queue = lock(&self.shared.queue);
        if queue.closed {
            return Err(entry);
        }
        let ticket = self.place(&mut queue, entry, bytes, since);
        drop(queue);
        self.nudge();
        Ok(ticket)
    }

    /// Puts entries at the end of the line, together; their time runs since then. `Err` gives them
    /// back when it is closed. The caller is about to wait for all of them: on an idle line it sends them
    /// itself, as it polls the part.
    pub(crate) fn push_all(
        &self,
        entries: Vec<(I, usize)>,
        since: Instant,
    ) -> Result<Vec<Part<R>>, Vec<I>> {
        let mut queue = lock(&self.shared.queue);
        if queue.closed {
            return Err(entries.into_iter().map(|(entry, _)| entry).collect());
        }
        let mut parts: Vec<Part<R>> = Vec::with_capacity(1);
        for (entry, bytes) in entries {
            let Ticket { cell, index } = self.place(&mut queue, entry, bytes, since);
            match parts.last_mut() {
                Some(part) if Arc::ptr_eq(&part.cell, &cell) => part.entries.end = index + 1,
                _ => parts.push(Part {
                    cell,
                    entries: index..index + 1,
                    carrier: None,
                }),
            }
        }
        if let [part] = parts.as_mut_slice() {
            part.carrier = self.carry(&mut queue);
            if part.carrier.is_some() {
                return Ok(parts);
            }
        }
        drop(queue);
        self.nudge();
        Ok(parts)
    }

    /// Makes the only batch in the queue its caller's to see through, if the line is idle and the batch
    /// need not wait for more entries.
    fn carry(&self, queue: &mut Queue<I, R>) -> Option<Carrier> {
        let alone = queue.batches.len() == 1;
        let sink = self.shared.sink.upgrade().filter(|_| alone)?;
        let first = queue.batches.front()?;
        if first.entries.len() < self.shared.bounds.worth() {
            return None;
        }
        let timeout = self.shared.bounds.timeout;
        self.shared.turns.carry(|| {
            let batch = queue.batches.pop_front()?;
            Some(Stage::Placing(Box::pin(send(sink, batch, timeout))))
        })
    }

    /// Makes the driver see to what callers carry. For who waits for what a caller may be holding up.
    pub(crate) fn nudge(&self) {
        self.shared.turns.wake.notify_one();
    }

    fn place(&self, queue: &mut Queue<I, R>, entry: I, bytes: usize, since: Instant) -> Ticket<R> {
        let bounds = &self.shared.bounds;
        // A batch shares the deadline of its first entry, so it takes none whose time began earlier,
        // and no more once it is a tenth of the timeout old: every entry has at least nine tenths of
        // its time, and never more than all of it.
        let open = queue.batches.back().is_some_and(|batch| {
            batch.entries.len() < bounds.entries
                && batch.bytes.saturating_add(bytes) <= bounds.bytes
                && (batch.opened..batch.opened + bounds.timeout / 10).contains(&since)
        });
        if !open {
            queue.batches.push_back(Batch {
                entries: Vec::new(),
                bytes: 0,
                opened: since,
                cell: Cell::new(),
            });
        }
        match queue.batches.back_mut() {
            Some(batch) => {
                batch.entries.push(entry);
                batch.bytes += bytes;
                Ticket {
                    cell: batch.cell.clone(),
                    index: batch.entries.len() - 1,
                }
            }
            // Not reached: a batch was just pushed.
            None => Ticket {
                cell: Cell::new(),
                index: 0,
            },
        }
    }

    /// Takes no more entries.
    pub(crate) fn shut(&self) {
        lock(&self.shared.queue).closed = true;
        self.nudge();
    }

    /// Takes no more entries and waits until every one has its result, or the deadline. The driver
    /// goes on after it. Says whether everything had its result. Cancel-safe.
    pub(crate) async fn close(&self, deadline: Instant) -> bool {
        self.shut();
        let mut ended = self.ended.clone();
        timeout_at(deadline, ended.wait_for(|ended| *ended))
            .await
            .is_ok()
    }
}

struct Driver<I, R> {
    shared: Arc<Shared<I, R>>,
    sink: Arc<dyn Sink<I, R>>,
}

enum Next {
    /// There is something to send, to be sent before the time given.
    Work(Instant),
    Idle,
    Closed,
}

/// The batches that were sent and have no results yet. They are polled by the driver itself: a task
/// for each would cost a batch two more turns of the scheduler.
type InFlight = FuturesUnordered<Answer>;

/// Waits for something while the answers to what was sent come in.
async fn meanwhile<T>(in_flight: &mut InFlight, other: impl Future<Output = T>) -> T {
    tokio::pin!(other);
    while !in_flight.is_empty() {
        tokio::select! {
            biased;
            _ = in_flight.next() => {}
            value = &mut other => return value,
        }
    }
    other.await
}

/// A batch that was sent and has no results yet.
struct Sent<I: 'static, R: 'static> {
    sink: Arc<dyn Sink<I, R>>,
    count: usize,
    bytes: usize,
    opened: Instant,
    cell: Option<Arc<Cell<R>>>,
}

impl<I: 'static, R: 'static> Sent<I, R> {
    fn tell(&mut self, results: Option<Vec<R>>) {
        let Some(cell) = self.cell.take() else {
            return;
        };
        let mut results = results.unwrap_or_default();
        // A backend that answers too little leaves the rest unknown.
        results.truncate(self.count);
        while results.len() < self.count {
            results.push(self.sink.unanswered());
        }
        self.sink.done(&results, self.bytes, self.opened);
        cell.complete(results);
    }
}

impl<I: 'static, R: 'static> Drop for Sent<I, R> {
    // The backend panicked, or the runtime ends.
    fn drop(&mut self) {
        self.tell(None);
    }
}

/// Sends a batch, unless its time has run out. What remains is to wait for its results and to tell them.
async fn send<I, R>(
    sink: Arc<dyn Sink<I, R>>,
    batch: Batch<I, R>,
    timeout: Duration,
) -> Option<Answer>
where
    I: Send + 'static,
    R: Send + 'static,
{
    let deadline = batch.opened + timeout;
    if deadline <= Instant::now() {
        give_up(&*sink, batch);
        return None;
    }
    let entries = batch.entries;
    let mut sent = Sent {
        sink,
        count: entries.len(),
        bytes: batch.bytes,
        opened: batch.opened,
        cell: Some(batch.cell),
    };
    match timeout_at(deadline, sent.sink.clone().send(entries, deadline)).await {
        Ok(confirm) => Some(Box::pin(async move {
            let results = timeout_at(deadline, confirm).await.ok();
            sent.tell(results);
        })),
        Err(_) => {
            sent.tell(None);
            None
        }
    }
}

/// Fails a batch that was never sent.
fn give_up<I: 'static, R: 'static>(sink: &dyn Sink<I, R>, batch: Batch<I, R>) {
    let entries = batch.entries.into_iter();
    let results: Vec<R> = entries.map(|entry| sink.unsent(entry)).collect();
    sink.done(&results, batch.bytes, batch.opened);
    batch.cell.complete(results);
}

impl<I, R> Driver<I, R>
where
    I: Send + 'static,
    R: Clone + Send + 'static,
{
    async fn run(&self) {
        let most = self.shared.bounds.in_flight.max(1);
        let mut in_flight = InFlight::new();
        loop {
            let carried = match self.shared.turns.take() {
                Ok(Some(Stage::Placing(placing))) => meanwhile(&mut in_flight, placing).await,
                Ok(Some(Stage::Placed(answer))) => Some(answer),
                Ok(None) => None,
                // Nothing else is in flight.
                Err(Busy) => {
                    self.shared.turns.wake.notified().await;
                    continue;
                }
            };
            in_flight.extend(carried);
            let by = match self.next(in_flight.is_empty()) {
                Next::Work(by) => by,
                Next::Idle => {
                    tokio::select! {
                        biased;
                        Some(()) = in_flight.next() => {}
                        () = self.shared.turns.wake.notified() => {}
                    }
                    continue;
                }
                Next::Closed => break,
            };
            while in_flight.len() >= most {
                if timeout_at(by, in_flight.next()).await.is_err() {
                    break;
                }
            }
            if in_flight.len() >= most {
                self.give_up_late();
                continue;
            }
            // Let the tasks that are about to push do so: one turn costs a lone caller nothing
            // measurable and fills the first batch of many. What came as a batch does not wait.
            if in_flight.is_empty() && !self.is_worth_it() {
                tokio::task::yield_now().await;
            }
            // Every batch costs a round trip, whatever it holds.
            if self.shared.bounds.gathers && !in_flight.is_empty() {
                let enough = async {
                    while !in_flight.is_empty() && !self.is_worth_it() {
                        tokio::select! {
                            _ = in_flight.next() => {}
                            () = self.shared.turns.wake.notified() => {}
                        }
                    }
                };
                let _ = timeout_at(by.min(Instant::now() + GATHER), enough).await;
            }
            let Some(batch) = lock(&self.shared.queue).batches.pop_front() else {
                continue;
            };
            let sending = send(self.sink.clone(), batch, self.shared.bounds.timeout);
            let sent = meanwhile(&mut in_flight, sending).await;
            in_flight.extend(sent);
        }
        // Everything has been sent; wait for the answers.
        while in_flight.next().await.is_some() {}
    }

    /// Whether the next batch need not wait for more entries.
    fn is_worth_it(&self) -> bool {
        let queue = lock(&self.shared.queue);
        let front = queue.batches.front().map_or(0, |batch| batch.entries.len());
        front >= self.shared.bounds.worth() || queue.batches.len() > 1
    }

    fn next(&self, all_answered: bool) -> Next {
        let queue = lock(&self.shared.queue);
        match queue.batches.front() {
            Some(front) => Next::Work(front.opened + self.shared.bounds.timeout),
            None if queue.closed => Next::Closed,
            None => {
                // Under the lock of the queue: nothing can have come since.
                if all_answered {
                    self.shared.turns.rest();
                }
                Next::Idle
            }
        }
    }

    fn is_late(&self, batch: &Batch<I, R>) -> bool {
        batch.opened + self.shared.bounds.timeout <= Instant::now()
    }

    /// Fails the batches whose time ran out before they could be sent.
    fn give_up_late(&self) {
        loop {
            let batch = {
                let mut queue = lock(&self.shared.queue);
                queue.batches.pop_front_if(|front| self.is_late(front))
            };
            match batch {
                Some(batch) => give_up(&*self.sink, batch),
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod carried_tests;
#[cfg(test)]
mod tests;
