//! `mas lag`: how far behind groups are.

use std::process::ExitCode;
use std::time::Duration;

use mas_transport::{Bus, Group};

use crate::connect::Connection;
use crate::failure::Failure;
use crate::groups::{self, GroupLag};
use crate::interrupt::Interrupts;
use crate::output;
use crate::text::{Table, duration, grouped};

const LONG: &str = "\
WAITING counts messages that no member of the group has fetched, PENDING those that a member holds
or held and that are not settled. --json prints one object per group: topic, group, waiting,
pending.

Exit codes: 0; 2 when there is no such topic or group, or the broker cannot be asked.";

const EXAMPLES: &str = "\
Examples:
  mas lag
  mas lag orders.created
  mas lag orders.created billing --watch 2s
  mas lag --json | jq 'select(.waiting > 1000)'";

/// Show how far behind groups are.
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, before_long_help = "Show how far behind groups are.", after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The topic; every one when left out.
    topic: Option<String>,
    /// The group; every one of the topic when left out.
    group: Option<String>,
    /// Ask again and again, such as every 2s, until Ctrl-C.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    watch: Option<Duration>,
    /// Print one JSON object per group.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) async fn run(args: Args, connection: &Connection) -> Result<ExitCode, Failure> {
    let mut interrupts = Interrupts::listen()?;
    let asking = async {
        let bus = connection.bus().await?;
        groups::caution("lag", &bus.info());
        loop {
            print(&ask(&bus, &args).await?, args.json)?;
            match args.watch {
                Some(every) => tokio::time::sleep(every).await,
                None => return Ok(ExitCode::SUCCESS),
            }
        }
    };
    tokio::select! {
        outcome = asking => outcome,
        () = interrupts.next() => Ok(ExitCode::SUCCESS),
    }
}

async fn ask(bus: &Bus, args: &Args) -> Result<Vec<GroupLag>, Failure> {
    let admin = bus.admin();
    let Some(name) = &args.topic else {
        let mut all = Vec::new();
        for topic in admin.topics().await? {
            all.extend(groups::of(admin, &topic).await?);
        }
        return Ok(all);
    };
    let topic = groups::existing(admin, name).await?;
    match &args.group {
        None => groups::of(admin, &topic).await,
        Some(group) => Ok(vec![groups::one(admin, &topic, &Group::new(group)?).await?]),
    }
}

fn print(groups: &[GroupLag], json: bool) -> Result<(), Failure> {
    if json {
        return groups.iter().try_for_each(output::json_line);
    }
    let mut table = Table::new(["TOPIC", "GROUP", "#WAITING", "#PENDING"]);
    for group in groups {
        table.row([
            group.topic.clone(),
            group.group.clone(),
            grouped(group.waiting),
            grouped(group.pending),
        ]);
    }
    output::print(&table.to_string())
}
