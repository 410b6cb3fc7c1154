//! Commented files with every setting: what to begin with.

use std::fmt::{self, Write};
use std::time::Duration;

use mas_transport_core::{Error, Result};

use super::page::sections;
use super::table;
use super::variable::{Kind, Variable};
use crate::registry::{Backend, Registry};

/// How wide comments are.
const WIDTH: usize = 96;

/// The settings of one backend, or of all, as TOML.
pub(super) fn toml(registry: &Registry, only: Option<&str>) -> Result<String> {
    let mut file = String::from(OF_A_FILE);
    for (table, lines) in tables(lines(registry, only)?) {
        let _ = write!(file, "\n[{table}]");
        for (at, (name, line)) in lines.iter().enumerate() {
            file.push_str(if at == 0 { "\n" } else { "\n\n" });
            about(&mut file, "", &line.variable);
            let _ = write!(file, "{}{name} = {}", line.mark(), Quoted(line));
        }
        file.push('\n');
    }
    Ok(file)
}

/// As YAML. A table of which nothing is set is empty, and reads as if it were not there.
pub(super) fn yaml(registry: &Registry, only: Option<&str>) -> Result<String> {
    let mut file = String::from(OF_A_FILE);
    for (table, lines) in tables(lines(registry, only)?) {
        let _ = write!(file, "\n{table}:");
        for (at, (name, line)) in lines.iter().enumerate() {
            file.push_str(if at == 0 { "\n" } else { "\n\n" });
            about(&mut file, "  ", &line.variable);
            let _ = write!(file, "  {}{name}: {}", line.mark(), Quoted(line));
        }
        file.push('\n');
    }
    Ok(file)
}

/// As variables of the environment.
pub(super) fn env(registry: &Registry, only: Option<&str>) -> Result<String> {
    let mut file = String::from(OF_THE_ENVIRONMENT);
    for line in lines(registry, only)? {
        file.push('\n');
        about(&mut file, "", &line.variable);
        let _ = writeln!(file, "{}{}={}", line.mark(), line.variable.name, line.value);
    }
    Ok(file)
}

const OF_A_FILE: &str = "\
# Settings of mas-transport. MAS_CONFIG names this file; the environment goes before it.
# Each line shows a default, or an example where there is none.
";

const OF_THE_ENVIRONMENT: &str = "\
# Settings of mas-transport, as variables of the environment: for `set -a; . ./FILE` in a shell,
# the EnvironmentFile of a service, or --env-file of a container. A shell wants quotes around a value
# with spaces or one of & ; $ # ( ) and a container wants none.
# Each line shows a default, or an example where there is none.
";

/// A setting with its default, or an example.
struct Line {
    variable: Variable,
    value: String,
    /// Whether it is in effect. The others are commented out.
    live: bool,
}

impl Line {
    fn mark(&self) -> &'static str {
        match self.live {
            true => "",
            false => "# ",
        }
    }
}

/// Those of every backend, then those of the backends that are asked for. Where one is asked for, it
/// is chosen: what is filled in has no effect on another.
fn lines(registry: &Registry, only: Option<&str>) -> Result<Vec<Line>> {
    let mut backends = registry.snapshot();
    if let Some(only) = only {
        let names: Vec<_> = backends.iter().map(|backend| backend.scheme).collect();
        backends.retain(|backend| backend.names().any(|name| name == only));
        if backends.is_empty() {
            return Err(Error::invalid("config", "there is no such backend")
                .with("backend", only.escape_debug())
                .with("available", names.join(" or ")));
        }
    }
    let sections = sections(&backends);
    let all = sections
        .iter()
        .flat_map(|(_, variables, _)| variables.iter());
    let line = |variable: &Variable| {
        let (value, live) = match (variable.name, only, backends.as_slice()) {
            (table::PROTOCOL_TYPE, Some(only), _) => (only.to_owned(), true),
            (table::TRANSPORT_URL, Some(only), [backend]) => (url(backend, only), false),
            _ => (example(variable), false),
        };
        Line {
            variable: *variable,
            value,
            live,
        }
    };
    Ok(all.map(line).collect())
}

/// A URL of this backend by one of its names, with each part that it takes.
fn url(backend: &Backend, name: &str) -> String {
    let parts = backend.parts;
    let value = |name: Option<&str>| {
        let own = backend.variables.iter();
        let found = own.clone().find(|variable| Some(variable.name) == name);
        found.map(|variable| (variable.kind, example(variable)))
    };
    if let Some((_, whole)) = value(parts.whole) {
        return whole.replacen("://", "://user:password@", 1);
    }
    let credentials = match (parts.username, parts.password) {
        (Some(_), Some(_)) => "user:password@",
        _ => "",
    };
    let hosts = value(parts.hosts).map_or_else(String::new, |(_, hosts)| hosts);
    let path = match value(parts.path) {
        Some((Kind::Path | Kind::File, path)) => path,
        Some((_, path)) => format!("/{path}"),
        None => String::new(),
    };
    format!("{name}://{credentials}{hosts}{path}")
}

/// A table of a file: its name, and its settings by their names in it.
type Table = (String, Vec<(String, Line)>);

/// By the first word of their names, which makes the table of a file.
fn tables(lines: Vec<Line>) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    // A file cannot name another.
    let lines = lines.into_iter();
    for line in lines.filter(|line| line.variable.name != table::MAS_CONFIG) {
        let key = line.variable.key();
        let Some((table, name)) = key.split_once('.') else {
            continue;
        };
        let entry = (name.to_owned(), line);
        match tables.iter_mut().find(|(known, _)| known == table) {
            Some((_, entries)) => entries.push(entry),
            None => tables.push((table.to_owned(), vec![entry])),
        }
    }
    tables
}

/// What a setting means, and what it may be.
fn about(file: &mut String, indent: &str, variable: &Variable) {
    let allowed = format!("Allowed: {}.", variable.kind);
    for line in wrap(variable.about, WIDTH - indent.len()) {
        let _ = writeln!(file, "{indent}# {line}");
    }
    let _ = writeln!(file, "{indent}# {allowed}");
}

/// A value as TOML and YAML both write it.
struct Quoted<'a>(&'a Line);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.variable.kind {
            Kind::Whole(..) | Kind::Switch => f.write_str(&self.0.value),
            // Of the characters that settings have, both escape quotes and backslashes as this does.
            _ => write!(f, "{:?}", self.0.value),
        }
    }
}

/// The default, or what a setting without one could be.
fn example(variable: &Variable) -> String {
    let example = match (variable.default, variable.kind) {
        (Some(default), _) => default,
        _ if variable.name == table::MAS_CONFIG => "/etc/mas/mas.toml",
        _ if variable.name == "REDIS_HOST" => "localhost",
        _ if variable.name == "REDIS_PORT" => "6379",
        // No more than there are replicas by default.
        _ if variable.name == "KAFKA_MIN_INSYNC_REPLICAS" => "1",
        (None, Kind::Url) => "redis://user:password@host:6379/0",
        (None, Kind::Switch) => "true",
        (None, Kind::Whole(least, most)) => return 1_000_000.clamp(least, most).to_string(),
        (None, Kind::Duration(least, most)) => {
            let day = Duration::from_secs(24 * 3600).clamp(least, most);
            return humantime::format_duration(day).to_string();
        }
        (None, Kind::Bytes(least, most)) => return (1 << 30).clamp(least, most).to_string(),
        (None, Kind::Choice([first, ..])) => first,
        (None, Kind::Address | Kind::Addresses) => "host:1234",
        (None, Kind::File) => "/etc/mas/file.pem",
        (None, Kind::Path) => "/var/lib/mas",
        (None, Kind::Name(_)) => "team-a",
        _ => "",
    };
    example.to_owned()
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
