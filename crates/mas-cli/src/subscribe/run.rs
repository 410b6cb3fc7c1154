//! Receives, prints, acknowledges.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use mas_transport::{Bus, Consumer, Delivery, Settlement};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep};
use tokio_util::sync::CancellationToken;

use super::line::Line;
use super::writer::Writer;
use super::{Ack, Args, events};
use crate::failure::Failure;
use crate::output::tell;
use crate::text::{count, grouped};

/// Most messages that are written together.
const BATCH: usize = 512;
/// Most messages, and bytes of them, that are held with `--ack never`.
pub(super) const HELD: usize = 10_000;
pub(super) const HELD_BYTES: usize = 64 * 1024 * 1024;
/// How long acks may take at the end, and then closing the connection.
const CLOSING: Duration = Duration::from_secs(10);

/// One run.
#[derive(Debug)]
pub(super) struct Run {
    bus: Bus,
    consumer: Arc<Consumer>,
    writer: Writer,
    json: bool,
    ack: Ack,
    lease: Duration,
    most: Option<u64>,
    patience: Option<Duration>,
    stop: CancellationToken,
    /// Messages that were printed.
    printed: u64,
    /// Acks that are not confirmed yet.
    acks: VecDeque<Settlement>,
    /// Printed, and to be returned at the end.
    held: Vec<Delivery>,
    held_bytes: usize,
}

/// Why no more is received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Stopped,
    Counted,
    NothingCame,
    /// As much is held as can be.
    Full,
    NobodyReads,
}

impl Run {
    pub(super) fn new(
        bus: Bus,
        consumer: Consumer,
        args: &Args,
        stop: CancellationToken,
    ) -> Result<Self, Failure> {
        Ok(Self {
            bus,
            consumer: Arc::new(consumer),
            writer: Writer::open()?,
            json: args.json,
            ack: args.ack,
            lease: args.lease,
            most: args.count.map(|count| count.get()),
            patience: args.timeout,
            stop,
            printed: 0,
            acks: VecDeque::new(),
            held: Vec::new(),
            held_bytes: 0,
        })
    }

    /// Prints messages until it is time to end, then settles.
    pub(super) async fn execute(mut self) -> Result<ExitCode, Failure> {
        let watching = tokio::spawn(events::watch(self.consumer.clone()));
        let ended = self.receive().await;
        // These go out together, before anything is waited for.
        let returned: Vec<_> = self.held.drain(..).map(Delivery::nack).collect();
        let deadline = Instant::now() + CLOSING;
        let closed = self.consumer.close(deadline).await;
        for settlement in self.acks.drain(..).chain(returned) {
            // A failure is an event, which is told and counted.
            let _ = settlement.await;
        }
        let failed = watching.await.unwrap_or_default();
        if let Err(error) = closed.and(self.bus.close(CLOSING).await) {
            tell!("mas sub: warning: {error}");
        }
        let end = ended?;
        let short = end != End::NobodyReads && self.most.is_some_and(|most| self.printed < most);
        if end == End::Full {
            tell!(
                "mas sub: ended, since --ack never holds no more than {} messages or {} MiB",
                grouped(HELD as u64),
                HELD_BYTES >> 20
            );
        }
        if let Some(most) = self.most.filter(|_| short) {
            let messages = count(most, "message");
            tell!("mas sub: {} of {messages} came", grouped(self.printed));
        }
        if failed > 0 {
            tell!(
                "mas sub: {} not confirmed: what they settled may come again",
                count(failed, "settlement")
            );
        }
        Ok(match short || failed > 0 {
            true => ExitCode::FAILURE,
            false => ExitCode::SUCCESS,
        })
    }

    async fn receive(&mut self) -> Result<End, Failure> {
        let mut keep = self.keep();
        let mut since = Instant::now();
        loop {
            let most = self.most.map_or(u64::MAX, |most| most - self.printed);
            let room = HELD - self.held.len();
            let want = usize::try_from(most).unwrap_or(usize::MAX);
            let want = want.min(BATCH).min(room);
            if most == 0 {
                return Ok(End::Counted);
            }
            if room == 0 || self.held_bytes >= HELD_BYTES {
                return Ok(End::Full);
            }
            let left = self
                .patience
                .map(|patience| patience.saturating_sub(since.elapsed()));
            let batch = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(End::Stopped),
                _ = keep.tick(), if !self.held.is_empty() => {
                    // One that fails is told by the consumer's events.
                    join_all(self.held.iter().map(Delivery::extend)).await;
                    continue;
                }
                batch = self.consumer.recv_batch(want) => batch?,
                () = sleep(left.unwrap_or_default()), if left.is_some() => {
                    return Ok(End::NothingCame);
                }
            };
            if batch.is_empty() {
                return Ok(End::Stopped);
            }
            if let Some(end) = self.print(batch).await? {
                return Ok(end);
            }
            since = Instant::now();
        }
    }

    /// When the leases of what is held have to be renewed.
    fn keep(&self) -> Interval {
        let every = self.lease / 3;
        let mut keep = interval_at(Instant::now() + every, every);
        keep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        keep
    }

    /// Prints deliveries and settles them.
    async fn print(&mut self, batch: Vec<Delivery>) -> Result<Option<End>, Failure> {
        let mut text = Vec::new();
        let mut ends = Vec::with_capacity(batch.len());
        for delivery in &batch {
            self.render(delivery, &mut text)?;
            ends.push(text.len());
        }
        // An ack makes room for one more, which nobody would be handed.
        if self.most == Some(self.printed + batch.len() as u64) {
            self.consumer.pause();
        }
        let written = self.writer.write(text).await;
        for (delivery, end) in batch.into_iter().zip(ends) {
            if end > written.bytes {
                // Nobody has seen it.
                self.acks.push_back(delivery.nack());
                continue;
            }
            self.printed += 1;
            match self.ack {
                Ack::After => self.acks.push_back(delivery.ack()),
                Ack::Never => {
                    self.held_bytes += delivery.size();
                    self.held.push(delivery);
                }
            }
        }
        while let Some(first) = self.acks.front_mut() {
            // A failure is an event, which is told and counted.
            if first.now_or_never().is_none() {
                break;
            }
            self.acks.pop_front();
        }
        match written.error {
            None => Ok(None),
            Some(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Some(End::NobodyReads)),
            Some(error) => Err(Failure::new(format!(
                "cannot write to the standard output: {error}"
            ))),
        }
    }

    fn render(&self, delivery: &Delivery, text: &mut Vec<u8>) -> Result<(), Failure> {
        if self.json {
            let line = Line {
                message: delivery.message(),
                attempt: delivery.attempt(),
                position: delivery.position(),
            };
            serde_json::to_writer(&mut *text, &line).map_err(|error| {
                Failure::new(format!("cannot write a message as JSON: {error}"))
            })?;
        } else {
            text.extend_from_slice(delivery.payload());
        }
        text.push(b'\n');
        Ok(())
    }
}
