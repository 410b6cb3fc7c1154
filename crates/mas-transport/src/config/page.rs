//! The table of settings for people: the reference page and the commented file.

use std::fmt::Write;

use mas_transport_core::{Error, Result};

use super::table::{self, COMMON};
use super::variable::{Kind, Variable};
use crate::registry::{Backend, Registry};

/// A heading, and the settings under it.
type Section<'a> = (String, &'a [Variable]);

fn sections(backends: &[Backend]) -> Vec<Section<'_>> {
    let mut sections = vec![("Every backend".to_owned(), COMMON)];
    // As people look for them; what is registered besides comes last, by name.
    let known = ["memory", "redis", "nats", "kafka"];
    let place = |backend: &&Backend| {
        let at = known.iter().position(|known| *known == backend.scheme);
        at.unwrap_or(known.len())
    };
    let mut backends: Vec<_> = backends.iter().collect();
    backends.sort_by_key(place);
    for backend in backends
        .iter()
        .filter(|backend| !backend.variables.is_empty())
    {
        let title = match backend.scheme {
            "redis" => "Redis and Valkey".to_owned(),
            "kafka" => "Kafka".to_owned(),
            "nats" => "NATS JetStream".to_owned(),
            other => other.to_owned(),
        };
        sections.push((title, &backend.variables));
    }
    sections
}

pub(super) fn markdown(registry: &Registry) -> String {
    let backends = registry.snapshot();
    let mut page = INTRODUCTION.to_owned();
    for (title, variables) in sections(&backends) {
        let _ = write!(page, "\n## {title}\n");
        match title.as_str() {
            "Kafka" | "NATS JetStream" => page.push_str(AHEAD),
            _ => {}
        }
        page.push_str("\n| variable | default | allowed | meaning |\n|---|---|---|---|\n");
        for variable in variables {
            let default = match variable.default {
                Some(default) => format!("`{default}`"),
                None => "none".to_owned(),
            };
            let secret = match variable.kind {
                Kind::Secret => "; never printed",
                Kind::Url => "; printed without credentials",
                _ => "",
            };
            let _ = writeln!(
                page,
                "| `{}` | {default} | {}{secret} | {} |",
                variable.name,
                cell(&variable.kind.to_string()),
                cell(variable.about)
            );
        }
    }
    page
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('_', "\\_")
}

const INTRODUCTION: &str = "\
<!-- Made from the table in crates/mas-transport/src/config/table.rs. To make it anew:
UPDATE_DOCS=1 cargo test -p mas-transport --test variables -->

# Variables

Every setting has one name, that of its environment variable. The same setting can be given

- in code, by that name: `Config::from_env().set(\"REDIS_POOL_SIZE\", 4)`;
- in the environment: `REDIS_POOL_SIZE=4`;
- in a URL, as an option, in lower case and without the prefix of the backend: `redis://host/?pool_size=4`
  (without `MAS_`, too: `?namespace=team-a`);
- in the file that `MAS_CONFIG` names, in lower case, with the first word as the table: `pool_size = 4`
  under `[redis]` in TOML, `redis: { pool_size: 4 }` in YAML.

Code goes before the environment, the environment before the file, the file before the default. A URL
counts as set where it stands. Saying two different things in one place (`REDIS_ADDR` and a URL with
another host) is an error. So is a `PROTOCOL_TYPE` and a `TRANSPORT_URL` with another scheme, wherever the
two stand. An empty value counts as unset.

Everything that is wrong is told at once, when connecting or by `mas doctor`. Only the settings of the
backend that was chosen can be wrong. A name that does not exist is an error in code, in a file and in a
URL. In the environment, where others may have variables that begin like ours, it is one only if it is
near an existing name behind the same first word: two letters apart at most, and no more than a third.

Durations are numbers with units: `500ms`, `5s`, `1m 30s`, `24h`. Sizes are plain bytes or have a unit, and
the units are binary: `KB`, `MB` and `GB` are the same as `KiB`, `MiB` and `GiB`, so `1MB` is 1,048,576 bytes.
Lists go by comma. `true` may be `1`, `yes` or `on`, and `false` likewise.
";

const AHEAD: &str = "
The names are fixed and checked; the backend itself comes with the cargo feature of its name, in the
versions that have it.
";

pub(super) fn toml(registry: &Registry, only: Option<&str>) -> Result<String> {
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
    let mut file = String::from(
        "# Settings of mas-transport. MAS_CONFIG names this file; the environment goes before it.\n\
         # Each line shows a default, or an example where there is none.\n",
    );
    let mut tables: Vec<(&str, String)> = Vec::new();
    let all = sections(&backends);
    for variable in all.iter().flat_map(|(_, variables)| variables.iter()) {
        if variable.name == table::MAS_CONFIG {
            continue;
        }
        let key = variable.key();
        let Some((table, name)) = key.split_once('.') else {
            continue;
        };
        let mut entry = String::from("\n");
        for line in wrap(variable.about, 96) {
            let _ = writeln!(entry, "# {line}");
        }
        let _ = writeln!(entry, "# Allowed: {}.", variable.kind);
        let example = match (variable.default, variable.kind) {
            (Some(default), _) => default,
            (None, kind) => example(kind),
        };
        let value = match variable.kind {
            Kind::Whole(..) | Kind::Switch => example.to_owned(),
            _ => format!("\"{example}\""),
        };
        let _ = writeln!(entry, "# {name} = {value}");
        let first = variable.name.split_once('_').map_or("", |(first, _)| first);
        match tables.iter_mut().find(|(known, _)| *known == first) {
            Some((_, entries)) => entries.push_str(&entry),
            None => tables.push((first, format!("\n[{table}]\n{}", entry.trim_start()))),
        }
    }
    for (_, entries) in tables {
        file.push_str(&entries);
    }
    Ok(file)
}

/// What a setting without a default could be.
fn example(kind: Kind) -> &'static str {
    match kind {
        Kind::Url => "redis://user:password@host:6379/0",
        Kind::Switch => "true",
        Kind::Whole(..) => "1000000",
        Kind::File => "/etc/mas/file.pem",
        Kind::Path => "/var/lib/mas",
        Kind::Name(_) => "team-a",
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
