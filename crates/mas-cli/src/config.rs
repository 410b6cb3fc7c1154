//! `mas config`: every setting there is.

use std::process::ExitCode;

use clap::ValueEnum;
use mas_transport::Config;

use crate::connect::Connection;
use crate::failure::Failure;
use crate::output;

const LONG: &str = "\
Prints a commented file with every setting, what it means, what is allowed, and its default. Each
setting is commented out, so that the file as it is changes nothing; with a backend, the line that
chooses it is not. --config, or MAS_CONFIG in the environment, names the file to be read; the
environment goes before it. --format env prints what a shell, a service manager or a container reads
into the environment.

Exit codes: 0; 2 when there is no such backend, or --format markdown is to be of one.";

const EXAMPLES: &str = "\
Examples:
  mas config > mas.toml
  mas config redis --format yaml > mas.yaml
  mas config redis --format env
  mas config --format markdown
  mas --config mas.toml doctor";

/// Print a commented configuration file.
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, before_long_help = "Print a commented configuration file.", after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// Only what concerns this backend, such as redis; all of them when left out.
    backend: Option<String>,
    /// What is printed.
    #[arg(long, value_enum, default_value_t = Format::Toml)]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// A file for --config and MAS_CONFIG.
    Toml,
    /// The same in YAML.
    Yaml,
    /// Variables of the environment.
    Env,
    /// The reference page, of all backends.
    Markdown,
}

/// Runs the command.
pub(crate) fn run(args: &Args, connection: &Connection) -> Result<ExitCode, Failure> {
    let (config, backend) = (connection.config(), args.backend.as_deref());
    let text = match args.format {
        Format::Toml => config.example_toml(backend)?,
        Format::Yaml => config.example_yaml(backend)?,
        Format::Env => config.example_env(backend)?,
        Format::Markdown if backend.is_some() => {
            let why = "the reference page is that of all backends";
            return Err(Failure::new(why).hint("Leave out the backend, or take another --format."));
        }
        Format::Markdown => Config::reference_markdown(),
    };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
