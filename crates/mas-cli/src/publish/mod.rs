//! `mas pub`: publishes what is given, and answers for each message.

mod input;
mod pace;
mod report;
mod run;
mod template;

use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

use self::input::Input;
use self::run::Run;
use self::template::{Attributes, Template};
use crate::connect::Connection;
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::output::tell;

const LONG: &str = "\
Each argument is one message; without arguments, or with the single argument -, each line of the
standard input is one, without its line feed, and an empty line is an empty message. Lines are read
as fast as the broker takes them, in bounded memory, so the input may be endless. Ctrl-C stops
reading and waits for what is under way; a second one ends at once.

Every message is confirmed by the broker. A message that is refused for what it is (too large, not
the JSON that its content type says) fails alone. When the broker itself fails, reading stops there,
and the line to go on with is told.

Exit codes: 0 when every message that was read has its receipt, 1 when one has none, 2 when it could
not begin, 130 when ended at once.";

const EXAMPLES: &str = "\
Examples:
  mas pub orders.created '{\"id\": 7}' --content-type application/json --key customer-7
  seq 1 100000 | mas pub numbers
  tail -F app.log | mas pub logs --header host=web-1
  mas pub reports --file report.pdf --content-type application/pdf --type report.finished
  mas pub alerts 'disk is full' --attribute recipient=on-call --tag urgent --json";

/// Publish messages: arguments, lines of the standard input, or a file.
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, before_long_help = "Publish messages.", after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The topic, such as orders.created.
    topic: String,
    /// The payloads, one message each; none, or -, for the lines of the standard input.
    #[arg(conflicts_with = "file")]
    payload: Vec<String>,
    /// Publish this file as one message; - for the whole of the standard input.
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    #[command(flatten)]
    attributes: Attributes,
    /// Publish so many messages together, and the next so many when these are confirmed; without
    /// it, messages follow each other without waiting.
    #[arg(long, value_name = "N")]
    batch: Option<NonZero<u32>>,
    /// Publish at most so many messages a second.
    #[arg(long, value_name = "N")]
    rate: Option<NonZero<u32>>,
    /// Print the outcome as one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) async fn run(args: Args, connection: &Connection) -> Result<ExitCode, Failure> {
    let template = Template::new(&args.topic, args.attributes)?;
    let input = Input::choose(args.payload, args.file)?;
    if template.has_id() && input.is_many() {
        return Err(Failure::new(
            "--id names one message: give one payload, or --file",
        ));
    }
    let mut interrupts = Interrupts::listen()?;
    let bus = tokio::select! {
        bus = connection.bus() => bus?,
        () = interrupts.next() => return Ok(Interrupts::exit()),
    };
    let info = bus.info();
    // What is wrong with every message is told once, before anything is read.
    info.check_message(&template.message(bytes::Bytes::new()))?;
    if info.backend == "memory" {
        tell!(
            "mas pub: warning: the memory backend ends with this process, and so does what is \
             published to it; PROTOCOL_TYPE names another"
        );
    }
    let stop = CancellationToken::new();
    let run = Run::new(bus, template, args.batch, args.rate, stop.clone());
    let Some(report) = interrupts.drain("pub", &stop, run.execute(input)).await else {
        return Ok(Interrupts::exit());
    };
    report?.tell(args.json)
}
