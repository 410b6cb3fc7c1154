//! `mas purge`: removes everything from a topic.

use std::process::ExitCode;

use mas_transport::Purge;
use serde::Serialize;

use crate::connect::Connection;
use crate::failure::Failure;
use crate::groups::{self, GroupLag};
use crate::output::{self, tell};
use crate::text::count;

const LONG: &str = "\
Removes every message of a topic, for every group, settled or not. The groups stay, and go on with
what is published afterwards. There is no way back. Without --yes nothing is removed: what would go
is shown, and the exit code is 2.

--json prints one object: topic, purged, removed, groups (as they were before).

Exit codes: 0 when the topic was emptied, 2 when not.";

const EXAMPLES: &str = "\
Examples:
  mas purge orders.created
  mas purge orders.created --yes";

/// Remove every message of a topic.
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, before_long_help = "Remove every message of a topic.", after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The topic.
    topic: String,
    /// Do it.
    #[arg(long)]
    yes: bool,
    /// Print the outcome as one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Outcome {
    topic: String,
    purged: bool,
    /// How many messages there were.
    removed: Option<u64>,
    groups: Vec<GroupLag>,
}

/// Runs the command.
pub(crate) async fn run(args: Args, connection: &Connection) -> Result<ExitCode, Failure> {
    let bus = connection.bus().await?;
    groups::caution("purge", &bus.info());
    let admin = bus.admin();
    let topic = groups::existing(admin, &args.topic).await?;
    let groups = groups::of(admin, &topic).await?;
    let removed = match args.yes {
        true => Some(
            bus.purge(topic.as_str(), Purge::everything_in(topic.as_str()))
                .await?,
        ),
        false => None,
    };
    let outcome = Outcome {
        topic: topic.to_string(),
        purged: args.yes,
        removed,
        groups,
    };
    if args.json {
        output::json_line(&outcome)?;
    } else if let Some(removed) = removed {
        let messages = count(removed, "message");
        output::print(&format!("removed {messages} from {topic}\n"))?;
    } else {
        output::print(&outcome.preview())?;
    }
    if removed.is_none() {
        tell!("mas purge: nothing was removed; --yes does it");
        return Ok(ExitCode::from(Failure::EXIT));
    }
    Ok(ExitCode::SUCCESS)
}

impl Outcome {
    fn preview(&self) -> String {
        let mut text = format!(
            "would remove every message of {}, for every group, settled or not\n",
            self.topic
        );
        for lag in &self.groups {
            text.push_str(&format!(
                "  group {}: {} waiting, {} pending\n",
                lag.group,
                count(lag.waiting, "message"),
                count(lag.pending, "message")
            ));
        }
        if self.groups.is_empty() {
            text.push_str("  no group reads it: what is there, nobody has seen\n");
        }
        text
    }
}
