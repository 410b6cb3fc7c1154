//! The `mas` command.

mod failure;
mod interrupt;
mod load;
mod usage;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Message buses for systems of agents, on memory, Redis and Valkey.
///
/// The backend comes from the environment: PROTOCOL_TYPE is memory (the default; everything stays
/// in this process) or redis. For redis, REDIS_ADDR is host:port (default localhost:6379), with
/// REDIS_USERNAME, REDIS_PASSWORD and REDIS_DB. MAS_NAMESPACE goes in front of every name.
#[derive(Debug, Parser)]
#[command(name = "mas", version, propagate_version = true)]
struct Mas {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Load(load::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Mas::parse().command {
        Command::Load(args) => load::run(args).await,
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
