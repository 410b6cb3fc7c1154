//! Files with settings.

use std::path::Path;

use saphyr_parser::{Event, Parser};

/// Each key of a file with its value as text, or what is wrong with it. Keys of tables in tables
/// are joined by dots.
type Entries = Vec<(String, Result<String, String>)>;

/// Reads a file; its name says which format it has. What is said of a file that cannot be read
/// repeats nothing of it: it may hold passwords.
pub(super) fn read(path: &Path) -> Result<Entries, String> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
    let parse = match extension.to_ascii_lowercase().as_str() {
        "toml" => toml,
        "yaml" | "yml" => yaml,
        _ => return Err("its name ends in none of .toml, .yaml and .yml".to_owned()),
    };
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("it cannot be read: {error}"))?;
    parse(&text)
}

fn toml(text: &str) -> Result<Entries, String> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map_or(1, |before| before.matches('\n').count() + 1);
        // The error's own words stay away: they may quote the line.
        format!("it is not TOML: line {line} cannot be understood")
    })?;
    let mut entries = Entries::new();
    flatten(String::new(), toml::Value::Table(table), &mut entries);
    Ok(entries)
}

fn flatten(key: String, value: toml::Value, entries: &mut Entries) {
    use toml::Value;
    let value = match value {
        Value::Table(table) => {
            for (name, value) in table {
                flatten(join(&key, &name), value, entries);
            }
            return;
        }
        Value::String(text) => Ok(text),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        Value::Boolean(on) => Ok(on.to_string()),
        Value::Array(items) => {
            let items = items.into_iter().map(|item| match item {
                Value::String(text) => Some(text),
                Value::Integer(number) => Some(number.to_string()),
                _ => None,
            });
            let items: Option<Vec<_>> = items.collect();
            items
                .map(|items| items.join(","))
                .ok_or_else(|| "a list holds texts and whole numbers only".to_owned())
        }
        Value::Datetime(_) => Err("it is a date, which no setting is".to_owned()),
    };
    entries.push((key, value));
}

fn join(key: &str, name: &str) -> String {
    match key {
        "" => name.to_owned(),
        key => format!("{key}.{name}"),
    }
}

/// Where in a YAML file we are.
enum Level {
    /// In a mapping, under this key, waiting for the name of an entry, or for its value.
    Mapping { key: String, name: Option<String> },
    /// In a list: what it holds so far, or nothing when it holds what a list may not.
    List {
        key: String,
        items: Option<Vec<String>>,
    },
    /// In a key that is no text.
    Odd,
}

/// Scalars are taken as they are written, so that what they mean is decided in one place, by the
/// kind of the setting.
fn yaml(text: &str) -> Result<Entries, String> {
    let refuse = |line: usize, what: &str| Err(format!("line {line}: {what}"));
    let mut entries = Entries::new();
    let mut levels: Vec<Level> = Vec::new();
    let mut documents = 0;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            format!(
                "it is not YAML: line {} cannot be understood",
                error.marker().line()
            )
        })?;
        let line = span.start.line();
        match event {
            Event::DocumentStart(_) if documents > 0 => {
                return refuse(line, "a second document begins, and only one is read");
            }
            Event::DocumentStart(_) => documents += 1,
            Event::Alias(_) => return refuse(line, "an alias (*) is not taken here"),
            Event::MappingStart(..) => match levels.last_mut() {
                None => levels.push(Level::Mapping {
                    key: String::new(),
                    name: None,
                }),
                Some(Level::Mapping {
                    key,
                    name: Some(name),
                }) => {
                    let key = join(key, name);
                    levels.push(Level::Mapping { key, name: None });
                }
                Some(_) => return refuse(line, "a mapping is out of place"),
            },
            Event::SequenceStart(..) => match levels.last_mut() {
                Some(Level::Mapping {
                    key,
                    name: Some(name),
                }) => {
                    let key = join(key, name);
                    let items = Some(Vec::new());
                    levels.push(Level::List { key, items });
                }
                Some(Level::List { items, .. }) => {
                    *items = None;
                    levels.push(Level::Odd);
                }
                Some(Level::Odd) => levels.push(Level::Odd),
                _ => return refuse(line, "a list is out of place"),
            },
            Event::MappingEnd | Event::SequenceEnd => {
                if let Some(Level::List { key, items }) = levels.pop() {
                    let items = items.map(|items| items.join(","));
                    let wrong = || "a list holds texts and numbers only".to_owned();
                    entries.push((key, items.ok_or_else(wrong)));
                }
                if let Some(Level::Mapping { name, .. }) = levels.last_mut() {
                    *name = None;
                }
            }
            Event::Scalar(value, style, ..) => {
                let plain = style == saphyr_parser::ScalarStyle::Plain;
                let null = plain && ["", "~", "null", "Null", "NULL"].contains(&&*value);
                match levels.last_mut() {
                    Some(Level::Mapping { key, name }) => match name.take() {
                        None => *name = Some(value.into_owned()),
                        Some(_) if null => {}
                        Some(name) => entries.push((join(key, &name), Ok(value.into_owned()))),
                    },
                    Some(Level::List {
                        items: Some(items), ..
                    }) => items.push(value.into_owned()),
                    Some(_) => {}
                    // An empty document is one null.
                    None if null => {}
                    None => return refuse(line, "it is not a mapping of names to values"),
                }
            }
            _ => {}
        }
    }
    let mut keys: Vec<_> = entries.iter().map(|(key, _)| key.as_str()).collect();
    keys.sort_unstable();
    if let Some(pair) = keys.windows(2).find(|pair| pair.first() == pair.last()) {
        let twice = pair.first().copied().unwrap_or_default();
        return Err(format!("{} stands in it twice", twice.escape_debug()));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good(entries: Entries) -> Vec<(String, String)> {
        entries
            .into_iter()
            .map(|(key, value)| (key, value.unwrap()))
            .collect()
    }

    #[test]
    fn toml_and_yaml_say_the_same() {
        let from_toml = toml(
            "protocol.type = \"redis\"\n[redis]\ndb = 3\npassword = \"hush\"\n\
             tls = true\n[kafka]\nbrokers = [\"a:1\", \"b:2\"]\n",
        );
        let from_yaml = yaml(
            "# a comment\nprotocol:\n  type: redis\nredis:\n  db: 3\n  password: 'hush'\n  \
             tls: true\n  addr:\nkafka:\n  brokers:\n    - a:1\n    - b:2\n",
        );
        let mut expected = [
            ("protocol.type", "redis"),
            ("redis.db", "3"),
            ("redis.password", "hush"),
            ("redis.tls", "true"),
            ("kafka.brokers", "a:1,b:2"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
        expected.sort();
        for entries in [from_toml, from_yaml] {
            let mut entries = good(entries.unwrap());
            entries.sort();
            assert_eq!(entries, expected);
        }
        assert!(yaml("").unwrap().is_empty());
        assert!(
            yaml("{ redis: { db: 0x1 } }")
                .unwrap()
                .contains(&("redis.db".to_owned(), Ok("0x1".to_owned())))
        );
    }

    #[test]
    fn what_cannot_be_understood_is_told_by_line_and_not_repeated() {
        let wrong = toml("[redis]\npassword = \"hush\ndb = 1\n").unwrap_err();
        assert!(
            wrong.contains("line 2") && !wrong.contains("hush"),
            "{wrong}"
        );
        for (bad, line) in [
            ("redis:\n  password: \"hush\n", ""),
            ("redis:\n\tpassword: hush\n", ""),
            ("a: 1\na: 2\n", "twice"),
            ("- hush\n", "line 1"),
            ("hush\n", "line 1"),
            ("a: 1\n---\nb: 2\n", "line 2"),
            ("a: &x hush\nb: *x\n", "line 2"),
        ] {
            let wrong = yaml(bad).unwrap_err();
            assert!(
                wrong.contains(line) && !wrong.contains("hush"),
                "{bad:?}: {wrong}"
            );
        }
        let entries = yaml("a: [[1], 2]\n").unwrap();
        assert!(
            matches!(entries.as_slice(), [(key, Err(_))] if key == "a"),
            "{entries:?}"
        );
        let entries = toml("a = [{}]\nb = 2026-01-01\n").unwrap();
        assert!(
            entries.iter().all(|(_, value)| value.is_err()),
            "{entries:?}"
        );
    }
}
