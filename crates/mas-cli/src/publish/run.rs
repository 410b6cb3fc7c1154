//! Publishes what comes in and waits for every receipt.

use std::collections::VecDeque;
use std::num::NonZero;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use mas_transport::{Bus, Error, ErrorKind, Message, Pending, Receipt, Result};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::input::{Entries, Entry, Input, Payload};
use super::pace::Pace;
use super::report::{Progress, Report};
use super::template::Template;
use crate::failure::Failure;
use crate::output::tell;

/// Most messages without a receipt.
const WINDOW: usize = 10_000;
/// How long closing the connection may take; every message has its outcome before.
const CLOSING: Duration = Duration::from_secs(5);

/// One run.
#[derive(Debug)]
pub(super) struct Run {
    bus: Bus,
    template: Template,
    /// How many messages are published together.
    batch: Option<usize>,
    pace: Option<Pace>,
    stop: CancellationToken,
    /// Without a receipt, in the order in which they were sent.
    window: VecDeque<Sent>,
    /// Not published before it is full.
    filling: Vec<(u64, Message)>,
    report: Report,
    progress: Progress,
}

#[derive(Debug)]
struct Sent {
    number: u64,
    bytes: usize,
    pending: Pending,
}

impl Run {
    pub(super) fn new(
        bus: Bus,
        template: Template,
        batch: Option<NonZero<u32>>,
        rate: Option<NonZero<u32>>,
        stop: CancellationToken,
    ) -> Self {
        let report = Report::new(template.topic(), &bus.info());
        Self {
            bus,
            template,
            batch: batch.map(|batch| batch.get() as usize),
            pace: rate.map(|rate| Pace::new(rate, Instant::now())),
            stop,
            window: VecDeque::new(),
            filling: Vec::new(),
            report,
            progress: Progress::new(),
        }
    }

    /// Publishes the input; what came of it.
    pub(super) async fn execute(mut self, input: Input) -> Result<Report, Failure> {
        let started = Instant::now();
        self.report.noun = input.noun();
        // What is longer is refused whatever else it carries.
        let limit = self.bus.info().capabilities.max_message_bytes;
        let mut entries = input.read(limit);
        let read = self.feed(&mut entries).await;
        self.publish_batch().await;
        while let Some(sent) = self.window.pop_front() {
            let outcome = sent.pending.await;
            self.settle(sent.number, sent.bytes, outcome);
        }
        self.progress.end();
        self.report.seconds = started.elapsed().as_secs_f64();
        // Nothing is under way any more.
        if let Err(error) = self.bus.close(CLOSING).await {
            tell!("mas pub: warning: {error}");
        }
        if let Err(error) = read {
            // What was read before is answered for.
            self.report.input_failed(&error);
        }
        Ok(self.report)
    }

    /// Publishes what is read until the input ends, the command is stopped, or the broker fails.
    async fn feed(&mut self, entries: &mut Entries) -> std::io::Result<()> {
        while let Some(chunk) = self.next(entries).await {
            for Entry { number, payload } in chunk? {
                if !self.pace().await || self.report.resume.is_some() {
                    self.report.stopped_before(number, self.stop.is_cancelled());
                    return Ok(());
                }
                self.report.read = number;
                match payload {
                    Payload::Bytes(payload) => self.publish(number, payload).await,
                    Payload::TooLong => self.report.failed(number, &too_long(&self.bus)),
                }
                self.settle_what_is_ready();
            }
        }
        if self.stop.is_cancelled() {
            self.report.interrupted = true;
        }
        Ok(())
    }

    /// The next entries; `None` at the end of the input, or when the command is stopped. Meanwhile
    /// receipts are taken.
    async fn next(&mut self, entries: &mut Entries) -> Option<std::io::Result<Vec<Entry>>> {
        loop {
            if self.report.resume.is_some() {
                return None;
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                chunk = entries.recv() => return chunk,
                Some(outcome) = first(&mut self.window) => {
                    self.settle_first(outcome);
                    self.settle_what_is_ready();
                }
            }
        }
    }

    /// Waits until the next message may go. False when the command is stopped.
    async fn pace(&mut self) -> bool {
        let Some(pace) = &mut self.pace else {
            return !self.stop.is_cancelled();
        };
        let due = pace.take(Instant::now());
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return false,
                () = sleep_until(due) => return true,
                Some(outcome) = first(&mut self.window) => self.settle_first(outcome),
            }
        }
    }

    async fn publish(&mut self, number: u64, payload: Bytes) {
        if let Err(why) = self.template.check(&payload) {
            self.report.failed(number, &Error::invalid("publish", why));
            return;
        }
        let message = self.template.message(payload);
        if let Some(batch) = self.batch {
            self.filling.push((number, message));
            if self.filling.len() >= batch {
                self.publish_batch().await;
            }
            return;
        }
        while self.window.len() >= WINDOW {
            if let Some(outcome) = first(&mut self.window).await {
                self.settle_first(outcome);
            }
        }
        let bytes = message.payload().len();
        match self.bus.enqueue(message).await {
            Ok(pending) => self.window.push_back(Sent {
                number,
                bytes,
                pending,
            }),
            Err(error) => self.settle(number, bytes, Err(error)),
        }
    }

    /// Publishes what was gathered for a batch.
    async fn publish_batch(&mut self) {
        let batch = std::mem::take(&mut self.filling);
        if batch.is_empty() {
            return;
        }
        let sent: Vec<_> = batch.iter().map(|(n, m)| (*n, m.payload().len())).collect();
        let messages = batch.into_iter().map(|(_, message)| message).collect();
        let outcomes = self.bus.publish_batch(messages).await;
        for ((number, bytes), outcome) in sent.into_iter().zip(outcomes) {
            self.settle(number, bytes, outcome);
        }
    }

    fn settle_what_is_ready(&mut self) {
        while let Some(Some(outcome)) = first(&mut self.window).now_or_never() {
            self.settle_first(outcome);
        }
    }

    fn settle_first(&mut self, outcome: Result<Receipt>) {
        if let Some(sent) = self.window.pop_front() {
            self.settle(sent.number, sent.bytes, outcome);
        }
    }

    fn settle(&mut self, number: u64, bytes: usize, outcome: Result<Receipt>) {
        match outcome {
            Ok(receipt) => self.report.published(bytes, receipt),
            Err(error) => {
                self.report.failed(number, &error);
                if !is_about_the_message(&error) {
                    self.report.give_up_at(number);
                }
            }
        }
        self.progress.show(&self.report);
    }
}

/// The outcome of the message that was sent first; `None` when there is none without one.
async fn first(window: &mut VecDeque<Sent>) -> Option<Result<Receipt>> {
    Some((&mut window.front_mut()?.pending).await)
}

fn too_long(bus: &Bus) -> Error {
    let info = bus.info();
    Error::new(
        ErrorKind::TooLarge,
        "publish",
        "the message is larger than this backend takes; send a reference to the data instead",
    )
    .on(info.backend)
    .with("limit", info.capabilities.max_message_bytes)
}

/// Whether the next message may fare better although nothing else has changed.
fn is_about_the_message(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::InvalidArgument | ErrorKind::TooLarge | ErrorKind::Unsupported
    )
}
