//! Commented files with every setting: what to begin with.

use std::fmt::{self, Write};

use mas_transport_core::{Error, Result};

use super::page::sections;
use super::table;
use super::variable::{Kind, Variable};
use crate::registry::Registry;

/// How wide comments are.
const WIDTH: usize = 96;

/// The settings of one backend, or of all, as TOML.
pub(super) fn toml(registry: &Registry, only: Option<&str>) -> Result<String> {
    let mut file = String::from(OF_A_FILE);
    for (table, variables) in tables(&variables(registry, only)?) {
        let _ = write!(file, "\n[{table}]");
        for (at, (name, variable)) in variables.iter().enumerate() {
            file.push_str(if at == 0 { "\n" } else { "\n\n" });
            about(&mut file, "", variable);
            let _ = write!(file, "# {name} = {}", Quoted(variable));
        }
        file.push('\n');
    }
    Ok(file)
}

/// As YAML. A table of which nothing is set is empty, and reads as if it were not there.
pub(super) fn yaml(registry: &Registry, only: Option<&str>) -> Result<String> {
    let mut file = String::from(OF_A_FILE);
    for (table, variables) in tables(&variables(registry, only)?) {
        let _ = write!(file, "\n{table}:");
        for (at, (name, variable)) in variables.iter().enumerate() {
            file.push_str(if at == 0 { "\n" } else { "\n\n" });
            about(&mut file, "  ", variable);
            let _ = write!(file, "  # {name}: {}", Quoted(variable));
        }
        file.push('\n');
    }
    Ok(file)
}

/// As variables of the environment.
pub(super) fn env(registry: &Registry, only: Option<&str>) -> Result<String> {
    let mut file = String::from(OF_THE_ENVIRONMENT);
    for variable in variables(registry, only)? {
        file.push('\n');
        about(&mut file, "", &variable);
        let _ = writeln!(file, "# {}={}", variable.name, example(&variable));
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

/// Those of every backend, then those of the backends that are asked for.
fn variables(registry: &Registry, only: Option<&str>) -> Result<Vec<Variable>> {
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
    let all = sections.iter().flat_map(|(_, variables)| variables.iter());
    Ok(all.copied().collect())
}

/// A table of a file: its name, and its settings by their names in it.
type Table = (String, Vec<(String, Variable)>);

/// By the first word of their names, which makes the table of a file.
fn tables(variables: &[Variable]) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    // A file cannot name another.
    for variable in variables.iter().filter(|v| v.name != table::MAS_CONFIG) {
        let key = variable.key();
        let Some((table, name)) = key.split_once('.') else {
            continue;
        };
        let entry = (name.to_owned(), *variable);
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
struct Quoted<'a>(&'a Variable);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.kind {
            Kind::Whole(..) | Kind::Switch => f.write_str(example(self.0)),
            // Of the characters that settings have, both escape quotes and backslashes as this does.
            _ => write!(f, "{:?}", example(self.0)),
        }
    }
}

/// The default, or what a setting without one could be.
fn example(variable: &Variable) -> &'static str {
    match (variable.default, variable.kind) {
        (Some(default), _) => default,
        _ if variable.name == table::MAS_CONFIG => "/etc/mas/mas.toml",
        (None, Kind::Url) => "redis://user:password@host:6379/0",
        (None, Kind::Switch) => "true",
        (None, Kind::Whole(..)) => "1000000",
        (None, Kind::File) => "/etc/mas/file.pem",
        (None, Kind::Path) => "/var/lib/mas",
        (None, Kind::Name(_)) => "team-a",
        _ => "",
    }
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
