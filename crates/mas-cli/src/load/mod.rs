//! `mas load`: agents that write to each other at a steady rate, and an exact account of what
//! became of every message.

mod ledger;
mod progress;
mod receiver;
mod report;
mod run;
mod schedule;
mod sender;
mod stamp;
mod tally;

use std::process::ExitCode;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use self::report::Report;
use self::run::Run;
use self::stamp::MIN_PAYLOAD;
use crate::connect::Connection;
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::output::{self, tell};
use crate::text::duration;

/// Agents write to each other at a steady rate; every message is accounted for.
///
/// Each agent has a connection and an inbox topic of its own, and writes to the others in turn.
/// Latency counts from the scheduled time of a send, so a stalled broker cannot hide behind a
/// sender that waits for it. Publishes that fail are tried again, through a restart of the broker.
///
/// At the end the inboxes are emptied. They stay listed by `mas topics`, without a message, since
/// the library has no operation that deletes a topic: --namespace keeps them away from yours.
///
/// The exit code is 0 when every message with a receipt arrived, intact, and every scheduled
/// message got its receipt; 1 when not; 2 when the run could not be made. Ctrl-C stops sending,
/// drains and reports; a second one ends at once with 130.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many agents there are.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    agents: u16,
    /// Messages a second, of all agents together.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    rate: u64,
    /// How long messages are sent, such as 500ms, 10s, 2h.
    #[arg(long, default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// Bytes of each payload, at least 20.
    #[arg(long, default_value_t = 256, value_parser = payload)]
    payload: usize,
    /// Print one JSON object as the last line.
    #[arg(long)]
    json: bool,
    /// Inboxes are the topics `PREFIX.RUN.agent-N`; the name of the run is made up.
    #[arg(long, default_value = "load")]
    topic_prefix: String,
    /// Messages that an agent may hold without having settled them.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    prefetch: u32,
    /// Messages that an agent may have sent without a receipt; beyond it, sends run late.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    window: u32,
    /// How long a delivered message belongs to its agent.
    #[arg(long, default_value = "10s", value_parser = duration)]
    lease: Duration,
    /// How long to wait, after the last send, for what is under way.
    #[arg(long, default_value = "30s", value_parser = duration)]
    drain: Duration,
}

fn payload(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(bytes) if bytes >= MIN_PAYLOAD => Ok(bytes),
        Ok(_) => Err(format!(
            "a payload has at least {MIN_PAYLOAD} bytes: sender, number and time"
        )),
        Err(_) => Err("it is a number of bytes".into()),
    }
}

/// Runs the command.
pub(crate) async fn run(args: Args, connection: &Connection) -> Result<ExitCode, Failure> {
    let mut interrupts = Interrupts::listen()?;
    let run = tokio::select! {
        run = Run::prepare(&args, connection) => run?,
        () = interrupts.next() => return Ok(Interrupts::exit()),
    };
    let stop = CancellationToken::new();
    let executed = run.execute(&args, &stop);
    let Some(report) = interrupts.drain("load", &stop, executed).await else {
        return Ok(Interrupts::exit());
    };
    let report = report?;
    print(&report, args.json)?;
    for warning in report.warnings() {
        tell!("mas load: warning: {warning}");
    }
    let failures = report.failures();
    for failure in &failures {
        tell!("mas load: {failure}");
    }
    Ok(match failures.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn print(report: &Report, json: bool) -> Result<(), Failure> {
    output::print(&format!("{report}\n"))?;
    match json {
        true => output::json_line(report),
        false => Ok(()),
    }
}
