//! The `mas` command.

mod completions;
mod config;
mod connect;
mod doctor;
mod failure;
mod groups;
mod interrupt;
mod lag;
mod load;
mod logs;
mod output;
mod publish;
mod purge;
mod subscribe;
mod text;
mod topics;
mod usage;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::connect::Connection;

const LONG: &str = "\
Message buses for systems of agents, on memory, Redis, Valkey, NATS JetStream and Kafka.

Which broker it is comes from the options below, the environment (PROTOCOL_TYPE, TRANSPORT_URL,
REDIS_ADDR, NATS_URL, KAFKA_BROKERS, ...), and the file that MAS_CONFIG names, in this order. Without any of it,
everything stays in the memory of this process. `mas config` lists every setting, and `mas doctor`
shows what they come to.

What a command found out goes to the standard output, what people should know to stderr. RUST_LOG
(debug, or mas_transport_redis=trace) logs to stderr. Colours and progress go to a terminal only,
and colours not with NO_COLOR.";

const AFTER: &str = "\
Exit codes: 0 when all went well; 1 when the command did its work and something is not as it should
be: a message without a receipt, a warning of the doctor; 2 when it could not do its work: wrong
arguments or settings, no broker; 130 when ended at once.

Examples:
  export PROTOCOL_TYPE=redis REDIS_ADDR=localhost:6379
  mas doctor
  mas pub orders.created '{\"id\": 7}'
  mas sub orders.created --group billing --json
  mas lag";

/// Message buses for systems of agents.
#[derive(Debug, Parser)]
#[command(name = "mas", version, propagate_version = true, long_about = LONG, after_long_help = AFTER)]
struct Mas {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(name = "pub")]
    Publish(Box<publish::Args>),
    #[command(name = "sub")]
    Subscribe(subscribe::Args),
    Topics(topics::Args),
    Lag(lag::Args),
    Purge(purge::Args),
    Load(load::Args),
    Doctor(doctor::Args),
    Config(config::Args),
    Completions(completions::Args),
}

impl Command {
    /// Whether it is about what a broker has; the doctor tells by itself which one it looks at.
    fn connects(&self) -> bool {
        match self {
            Self::Publish(_)
            | Self::Subscribe(_)
            | Self::Topics(_)
            | Self::Lag(_)
            | Self::Purge(_)
            | Self::Load(_) => true,
            Self::Doctor(_) | Self::Config(_) | Self::Completions(_) => false,
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let Mas {
        connection,
        command,
    } = Mas::parse();
    logs::start();
    if command.connects() {
        connection.caution();
    }
    let outcome = match command {
        Command::Publish(args) => publish::run(*args, &connection).await,
        Command::Subscribe(args) => subscribe::run(args, &connection).await,
        Command::Topics(args) => topics::run(args, &connection).await,
        Command::Lag(args) => lag::run(args, &connection).await,
        Command::Purge(args) => purge::run(args, &connection).await,
        Command::Load(args) => load::run(args, &connection).await,
        Command::Doctor(args) => doctor::run(args, &connection).await,
        Command::Config(args) => config::run(&args, &connection),
        Command::Completions(args) => completions::run(&args),
    };
    outcome.unwrap_or_else(|failure| failure.report())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_commands_are_well_formed() {
        super::Mas::command().debug_assert();
    }
}
