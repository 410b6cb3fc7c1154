//! Throughput of `mas-transport`, beside the raw client doing the same work in the same run.
//!
//! ```sh
//! cargo bench -p benches                    # the figures
//! cargo bench -p benches -- --quick         # whether it runs
//! cargo bench -p benches -- --only memory
//! cargo run -p benches --release --features kafka -- --only kafka
//! cargo run -p benches --release -- --out docs/benchmarks    # the page of the documentation
//! ```
//!
//! The table and a line of JSON are printed; JSON, Markdown and charts are written into a directory.
//!
//! On a broker, each workload alternates with its raw counterpart, with the same fields and payload,
//! in one run. A ratio is the median over the rounds of ours by theirs in the same round, so that a
//! busy machine slows both.
//!
//! - Redis: redis-rs on one multiplexed connection, pipelines of 100 `XADD`, and `XREADGROUP COUNT
//!   500` read as `StreamReadReply` with one `XACK` a reply.
//! - NATS: async-nats on one connection, `publish_with_headers` in batches of 100 and in a window of
//!   1,000, and a stream of pulls of 1,000 with an ack for each that nothing confirms.
//!
//! - Kafka, with the feature `kafka`: rdkafka with the settings of ours. A `FutureProducer` with
//!   `acks=all` and idempotence: 64 tasks that await `send`, `send_result` in batches of 100 and in a
//!   window of 1,000, each delivery awaited. A `BaseConsumer` that detaches what it reads and commits
//!   every 500 messages, of which nothing confirms but the last one. Reading is measured from the first
//!   delivery on: joining a group takes longer than the rest.
//!
//! The servers are those that `TEST_REDIS_URL` or `REDIS_ADDR`, `TEST_NATS_URL` or `NATS_URL` and
//! `TEST_KAFKA_BROKERS` or `KAFKA_BROKERS` name, or started for the run.

mod chart;
mod memory;
mod meter;
mod ours;
mod page;
mod raw;
mod report;
mod target;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use ours::{Ours, Way};
use report::{Figure, Report};
use target::{Reading, Target};

/// Bytes of every payload.
pub(crate) const PAYLOAD: usize = 256;

/// What goes wrong in a bench is told and ends it.
pub(crate) type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Throughput of mas-transport, beside the raw client doing the same work.
#[derive(Debug, Parser)]
#[command(name = "benches")]
struct Args {
    /// Only check that everything runs: one short round, figures without meaning.
    #[arg(long)]
    quick: bool,
    /// Only this backend.
    #[arg(long, value_enum)]
    only: Option<Only>,
    /// Only workloads whose name contains this.
    #[arg(long, default_value = "")]
    filter: String,
    /// Rounds, of which the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Fail when a ratio is below what is asked of it.
    #[arg(long)]
    check: bool,
    /// Where the figures are written: figures.json, README.md and charts. By default `benchmarks` in
    /// the target directory.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Only {
    Memory,
    Redis,
    Nats,
    Kafka,
}

/// What has a raw client to be measured by.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Broker {
    Redis,
    Nats,
    Kafka,
}

/// How much is done in one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Messages.
    pub(crate) messages: usize,
    /// Rounds.
    pub(crate) rounds: usize,
}

/// Parses the command line, runs, writes the files, and prints a table, then one line of JSON.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(run(&args)));
    match outcome {
        Ok(report) => {
            println!("{report}");
            println!("{}", report.json());
            if let Err(error) = write(&args, &report) {
                eprintln!("benches: the files could not be written: {error}");
                return ExitCode::FAILURE;
            }
            if args.check && !report.holds() {
                eprintln!("benches: a ratio is below what is asked of it");
                return ExitCode::FAILURE;
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("benches: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(args: &Args, report: &Report) -> Result<()> {
    let arguments: Vec<_> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let out = args.out.clone();
    let out = out.unwrap_or_else(|| conformance_tests::fixtures::target_dir().join("benchmarks"));
    let run = page::Run {
        arguments: &arguments.join(" "),
        quick: args.quick,
        rounds: args.rounds(),
    };
    page::write(report, run, &out)?;
    eprintln!("written: {}", out.display());
    Ok(())
}

impl Args {
    fn rounds(&self) -> usize {
        if self.quick { 1 } else { self.rounds.max(1) }
    }
}

async fn run(args: &Args) -> Result<Report> {
    let mut report = Report::default();
    let rounds = args.rounds();
    let wants = |backend| args.only.is_none_or(|only| only == backend);
    // First, so that what is not there is told before anything is measured.
    let mut targets = Vec::new();
    for (only, broker) in [
        (Only::Redis, Broker::Redis),
        (Only::Nats, Broker::Nats),
        (Only::Kafka, Broker::Kafka),
    ] {
        if !wants(only) {
            continue;
        }
        match Target::of(broker).await {
            Ok(target) => targets.push(target),
            Err(reason) if args.only.is_none() => {
                eprintln!("SKIPPED backend={only:?} reason={reason}");
            }
            Err(reason) => return Err(reason),
        }
    }
    if wants(Only::Memory) {
        let messages = if args.quick { 5_000 } else { 1_000_000 };
        memory::run(Size { messages, rounds }, &args.filter, &mut report).await?;
    }
    let messages = if args.quick { 5_000 } else { 100_000 };
    for target in targets {
        compare(target, Size { messages, rounds }, &args.filter, &mut report).await?;
    }
    Ok(report)
}

/// The workloads on a broker, each beside its raw counterpart.
async fn compare(mut target: Target, size: Size, filter: &str, report: &mut Report) -> Result<()> {
    let (name, asked, raw) = (target.name, target.asked, &mut target.raw);
    let reading = target.reading;
    let ours = Ours::new(target.bus.clone(), reading);
    report.server(ours.server());
    for &(workload, way) in ours::PUBLISH.iter().filter(|(w, _)| w.contains(filter)) {
        let least = match way {
            Way::Tasks(_) => asked.tasks,
            Way::Batches(_) | Way::Window(_) => Some(asked.pipelined),
        };
        let mut figure = Figure::new(name, workload, least);
        for _ in 0..size.rounds {
            let theirs = raw.publish(way, size.messages).await?;
            let mine = ours.publish(way, size.messages).await?;
            figure.round(mine, Some(theirs));
        }
        report.add(figure);
    }
    if ours::CONSUME.contains(filter) {
        let mut figure = Figure::new(name, ours::CONSUME, Some(asked.consume));
        let messages = match reading {
            Reading::All => size.messages,
            Reading::Joined(more) => size.messages * more,
        };
        for _ in 0..size.rounds {
            let theirs = raw.consume(messages).await?;
            let mine = ours.consume(messages).await?;
            figure.round(mine, Some(theirs));
        }
        report.add(figure);
    }
    ours.close().await
}
