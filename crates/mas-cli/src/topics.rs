//! `mas topics`: what there is.

use std::process::ExitCode;

use serde::Serialize;

use crate::connect::Connection;
use crate::failure::Failure;
use crate::groups::{self, GroupLag};
use crate::output;
use crate::text::{Table, grouped};

const LONG: &str = "\
Lists the topics of the namespace: those of applications, and the dead letters (_dlq.GROUP.TOPIC)
and quarantined entries (_bad.GROUP.TOPIC) that the library keeps. LAG is that of the group which
is furthest behind, waiting and pending messages together. --json prints one object per topic:
topic, internal, groups (each with topic, group, waiting, pending).

Exit codes: 0; 2 when the broker cannot be asked.";

const EXAMPLES: &str = "\
Examples:
  mas topics
  mas topics --json | jq -r 'select(.groups == []).topic'";

/// List topics and their groups.
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, before_long_help = "List topics and their groups.", after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// Print one JSON object per topic.
    #[arg(long)]
    json: bool,
}

/// A topic and its groups.
#[derive(Debug, Serialize)]
struct Listed {
    topic: String,
    /// The library made it for itself.
    internal: bool,
    groups: Vec<GroupLag>,
}

/// Runs the command.
pub(crate) async fn run(args: Args, connection: &Connection) -> Result<ExitCode, Failure> {
    let bus = connection.bus().await?;
    groups::caution("topics", &bus.info());
    let mut all = Vec::new();
    for topic in bus.admin().topics().await? {
        all.push(Listed {
            groups: groups::of(bus.admin(), &topic).await?,
            internal: topic.is_internal(),
            topic: topic.to_string(),
        });
    }
    if args.json {
        all.iter().try_for_each(output::json_line)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["TOPIC", "#LAG", "GROUPS"]);
    for listed in &all {
        let names: Vec<_> = listed.groups.iter().map(|g| g.group.as_str()).collect();
        let lag = listed.groups.iter().map(|g| g.waiting + g.pending).max();
        let lag = lag.map_or_else(|| "-".to_owned(), grouped);
        table.row([listed.topic.clone(), lag, names.join(", ")]);
    }
    output::print(&table.to_string())?;
    Ok(ExitCode::SUCCESS)
}
