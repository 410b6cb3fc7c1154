//! `mas sub`: a member of a group that prints what it gets.

mod events;
mod line;
mod run;
mod writer;

use std::num::NonZero;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use mas_transport::{StartFrom, Subscription};
use tokio_util::sync::CancellationToken;

use self::run::{HELD, HELD_BYTES, Run};
use crate::connect::Connection;
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::text::duration;

const LONG: &str = "\
Joins a group of the topic and prints each message on a line of its own: its payload as it is, or
with --json an object with everything that is known of it. What is lost, quarantined or
dead-lettered meanwhile, and reconnections, are told on stderr.

A message is acknowledged after its line was written and handed to the system, never before; the
command ends when these acks are confirmed. When it dies, what was not acknowledged comes again.
With --ack never the messages go back to the group at the end, and have been attempted once more;
as many as 10,000 of them, or 64 MiB, are held.

Ctrl-C stops and waits for acks; a second one ends at once. A reader that goes away
(mas sub … | head -1) ends the command quietly; what it did not take goes back to the group.

The object of --json: topic, id, source, type, position, attempt, priority, key, content_type,
time, expires, tags, headers, max_attempts, processing_timeout_ms, every other attribute by its
name in CloudEvents (subject, correlationid, …), record (of a dead letter), and payload as text or,
where it is not UTF-8, payload_base64. What a message does not have is left out. A header is a text,
{\"base64\": …} where it is not UTF-8, or null; an array of these when its name stands there more than
once.

Exit codes: 0; 1 when fewer messages than --count came, or an ack was not confirmed; 2 when the
messages could not be had or printed; 130 when ended at once.";

const EXAMPLES: &str = "\
Examples:
  mas sub orders.created --group billing
  mas sub orders.created --group billing --json | jq .payload
  mas sub numbers --group g --count 100000 --json > numbers.jsonl
  mas sub orders.created --group look --ack never --count 5 --timeout 2s
  mas sub _dlq.billing.orders.created --group ops --json
  mas sub logs --from latest";

/// Receive messages as a member of a group, and print them.
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, before_long_help = "Receive messages.", after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The topic, or a pattern where the backend knows wildcards.
    topic: String,
    /// The group to join; made when it does not exist. When left out, the one of the
    /// configuration: REDIS_CONSUMER_GROUP or NATS_CONSUMER_GROUP, multiagent by default, or
    /// KAFKA_GROUP_ID, multiagent-group by default.
    #[arg(long, short = 'g')]
    group: Option<String>,
    /// End after so many messages.
    #[arg(long, short = 'n', value_name = "N")]
    count: Option<NonZero<u64>>,
    /// End when no message came for so long, such as 5s.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    /// Print one JSON object per message, with all attributes.
    #[arg(long)]
    json: bool,
    /// When a message is acknowledged.
    #[arg(long, value_enum, default_value_t = Ack::After)]
    ack: Ack,
    /// Where a group begins that does not exist yet.
    #[arg(long, value_enum, default_value_t = From::Earliest)]
    from: From,
    /// How long a message is ours. A group that exists has its own, and this has to be the same.
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = duration)]
    lease: Duration,
    /// How many messages may be fetched ahead.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    prefetch: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Ack {
    /// After its line was written and flushed.
    After,
    /// Not at all: it returns to the group at the end.
    Never,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum From {
    /// With the oldest message that is kept.
    Earliest,
    /// With what is published from now on.
    Latest,
}

impl Args {
    fn subscription(&self) -> Subscription {
        // What is never handed out need not be fetched.
        let most = self.count.map_or(u64::MAX, NonZero::get);
        let within = |messages: usize| messages.min(usize::try_from(most).unwrap_or(usize::MAX));
        let subscription = Subscription::new(&self.topic)
            .lease(self.lease)
            .start_from(match self.from {
                From::Earliest => StartFrom::Earliest,
                From::Latest => StartFrom::Latest,
            });
        let subscription = match &self.group {
            Some(group) => subscription.group(group),
            None => subscription,
        };
        match self.ack {
            Ack::After => subscription.prefetch(within(self.prefetch as usize)),
            // Looking at a message is no reason to give it up.
            Ack::Never => subscription
                .prefetch(within(HELD))
                .prefetch_bytes(HELD_BYTES)
                .max_attempts(u32::MAX),
        }
    }
}

/// Runs the command.
pub(crate) async fn run(args: Args, connection: &Connection) -> Result<ExitCode, Failure> {
    let mut interrupts = Interrupts::listen()?;
    let prepared = async {
        let bus = connection.bus().await?;
        if bus.info().backend == "memory" {
            return Err(Failure::new(
                "the memory backend lives within one process: nobody can publish to this one",
            )
            .hint(
                "Name a broker with PROTOCOL_TYPE and its variables, such as PROTOCOL_TYPE=redis, nats or kafka.",
            ));
        }
        let consumer = bus.subscribe(args.subscription()).await?;
        Ok((bus, consumer))
    };
    let (bus, consumer) = tokio::select! {
        prepared = prepared => prepared?,
        () = interrupts.next() => return Ok(Interrupts::exit()),
    };
    let stop = CancellationToken::new();
    let run = Run::new(bus, consumer, &args, stop.clone())?;
    match interrupts.drain("sub", &stop, run.execute()).await {
        Some(outcome) => outcome,
        None => Ok(Interrupts::exit()),
    }
}
