//! The table of settings for people: the reference page.

use std::fmt::Write;

use super::table::COMMON;
use super::variable::{Family, Kind, Variable};
use crate::registry::{Backend, Registry};

/// A heading, the settings under it, and what is passed on besides.
pub(super) type Section<'a> = (String, &'a [Variable], Option<Family>);

pub(super) fn sections(backends: &[Backend]) -> Vec<Section<'_>> {
    let mut sections = vec![("Every backend".to_owned(), COMMON, None)];
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
        sections.push((title, &backend.variables, backend.family));
    }
    sections
}

pub(super) fn markdown(registry: &Registry) -> String {
    let backends = registry.snapshot();
    let mut page = INTRODUCTION.to_owned();
    for (title, variables, family) in sections(&backends) {
        let _ = write!(page, "\n## {title}\n");
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
        if let Some(Family { prefix, about }) = family {
            let _ = writeln!(page, "| `{prefix}…` | none | text | {} |", cell(about));
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
If that is a setting of a backend that was not chosen, `mas doctor` warns of it, and nothing is wrong.

Durations are numbers with units: `500ms`, `5s`, `1m 30s`, `24h`. Sizes are plain bytes or have a unit, and
the units are binary: `KB`, `MB` and `GB` are the same as `KiB`, `MiB` and `GiB`, so `1MB` is 1,048,576 bytes.
Lists go by comma. `true` may be `1`, `yes` or `on`, and `false` likewise.
";
