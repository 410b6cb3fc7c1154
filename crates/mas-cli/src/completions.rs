//! `mas completions`: for a shell.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::Mas;
use crate::failure::Failure;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  mas completions bash > ~/.local/share/bash-completion/completions/mas
  mas completions zsh > ~/.zfunc/_mas
  mas completions fish > ~/.config/fish/completions/mas.fish";

/// Print completions for a shell.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    // Into memory first: it would panic at a reader that goes away.
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Mas::command(), "mas", &mut text);
    output::print(&String::from_utf8_lossy(&text))?;
    Ok(ExitCode::SUCCESS)
}
