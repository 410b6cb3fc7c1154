//! `mas doctor`: whether the configuration and the broker will do.

mod capabilities;
mod report;

use std::process::ExitCode;

use mas_transport::Config;

use self::report::{Connected, Report};
use crate::connect::Connection;
use crate::failure::Failure;
use crate::output;

const LONG: &str = "\
Shows the configuration as it was resolved, with the origin of each value and without secrets;
connects; shows the server, how fast it answers, and what the backend can do; and says what is
wrong and what to do about it. Everything that is wrong with the configuration is told at once.

What is found has one of three levels. wrong: it does not work. warning: it works, and loses
confirmed messages when the broker's process ends or its memory does, or a setting has no effect.
note: a loss of power or a slow disk may cost the last second, as with Redis's appendfsync everysec,
or the last minutes, as with the files of one NATS server; or something cannot be seen on this
server; weigh it.

Exit codes: 0 when nothing is wrong, notes or not; 1 when there is a warning; 2 when it does not
work: the configuration is wrong, the broker cannot be reached, or it takes no messages.

--json prints one object: verdict (ok, warnings or broken), backend, settings (name, value, origin,
set), problems (name, value, origin, problem, advice), connection (server, latency_ms, facts,
capabilities; null when there is none), warnings and notes (name, problem, advice).";

const EXAMPLES: &str = "\
Examples:
  mas doctor
  PROTOCOL_TYPE=redis REDIS_ADDR=broker:6379 mas doctor
  mas --url rediss://ann@broker:6380/0 doctor
  mas doctor --json | jq -r '.warnings[].advice'";

/// Check the configuration and the broker, and say what to do.
#[derive(Debug, clap::Args)]
#[command(
    long_about = LONG,
    before_long_help = "Check the configuration and the broker, and say what to do.",
    after_long_help = EXAMPLES
)]
pub(crate) struct Args {
    /// Print the outcome as one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) async fn run(args: Args, connection: &Connection) -> Result<ExitCode, Failure> {
    let config = connection.config();
    let settings = config.resolve();
    let report = match settings.check() {
        Err(error) => Report::refused(&settings, &error),
        Ok(()) => match connect(config, connection).await {
            Ok(connected) => Report::connected(&settings, connected),
            Err(failure) => Report::unreachable(&settings, &failure),
        },
    };
    match args.json {
        true => output::json_line(&report)?,
        false => output::print(&report.to_string())?,
    }
    Ok(report.exit())
}

async fn connect(config: Config, connection: &Connection) -> Result<Connected, Failure> {
    // Whether the broker is there is what is asked.
    let config = config.set("TRANSPORT_STARTUP", "fail");
    let bus = connection.reach(config).await?;
    let health = bus.health().await?;
    Ok(Connected {
        info: bus.info(),
        health,
    })
}
