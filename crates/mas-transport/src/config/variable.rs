//! What a setting is: its name, what it may be, what it means.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv6Addr;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::secret::{HIDDEN, Secret, is_secret_name, without_credentials};

/// A setting, by the name of its environment variable.
///
/// In a file it is the name in lower case, of which the first word is the table: `REDIS_POOL_SIZE`
/// is `pool_size` in `[redis]`. In a URL it is an option, in lower case, without the prefix of the
/// backend: `?pool_size=4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variable {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) default: Option<&'static str>,
    pub(crate) about: &'static str,
}

impl Variable {
    /// A setting without a default. `name` is that of its environment variable, upper case with
    /// underscores; `about` says what it means, in a sentence or two.
    pub const fn new(name: &'static str, kind: Kind, about: &'static str) -> Self {
        Self {
            name,
            kind,
            default: None,
            about,
        }
    }

    /// Sets the default, written as the variable would be.
    #[must_use]
    pub const fn default(mut self, value: &'static str) -> Self {
        self.default = Some(value);
        self
    }

    /// The name of its environment variable.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its name in a file, such as `redis.pool_size`.
    pub fn key(&self) -> String {
        self.name.to_ascii_lowercase().replacen('_', ".", 1)
    }

    /// What it may be.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What it is when nobody sets it.
    pub fn default_value(&self) -> Option<&'static str> {
        self.default
    }

    /// What it means.
    pub fn about(&self) -> &'static str {
        self.about
    }
}

/// Settings without a list: those of a client underneath, which are passed through to it. Each is a
/// setting like any other once somebody has set it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Family {
    /// What the names of their variables begin with.
    pub(crate) prefix: &'static str,
    pub(crate) about: &'static str,
}

impl Family {
    /// The setting of this name, if it is one of them.
    pub(crate) fn member(&self, name: &str) -> Option<Variable> {
        let named = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
        let own = name.strip_prefix(self.prefix)?;
        let is_named = !own.is_empty() && own.bytes().all(named);
        is_named.then(|| {
            let kind = match is_secret_name(own) {
                true => Kind::Secret,
                false => Kind::Text,
            };
            Variable::new(lasting(name), kind, self.about)
        })
    }
}

/// A name that is not known before somebody uses it, kept for as long as the process lives, once.
fn lasting(name: &str) -> &'static str {
    static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.get(name) {
        return known;
    }
    let name: &'static str = Box::leak(name.into());
    names.insert(name);
    name
}

/// What a setting may be. Its `Display` tells people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Any text.
    Text,
    /// Any text; never printed. White space is kept.
    Secret,
    /// A URL; printed without its credentials.
    Url,
    /// `host:port`, or a host alone.
    Address,
    /// Addresses, by comma.
    Addresses,
    /// `true` or `false`.
    Switch,
    /// A whole number in a range, its ends included.
    Whole(u64, u64),
    /// A duration in a range, such as `500ms`, `5s`, `24h`.
    Duration(Duration, Duration),
    /// A number of bytes in a range: plain, or with a unit of 1,024s (`64KB`, `1MB`, `1MiB`).
    Bytes(u64, u64),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Up to so many letters, digits, `_` and `-`.
    Name(usize),
    /// Texts, by comma.
    List,
    /// A path.
    Path,
    /// The path of a file that is there.
    File,
}

/// A checked value.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Text(String),
    Secret(Secret),
    Switch(bool),
    Whole(u64),
    Duration(Duration),
    List(Vec<String>),
}

impl Kind {
    /// Checks a value.
    pub(crate) fn read(self, text: &str) -> Option<Value> {
        if self == Self::Secret {
            return Some(Value::Secret(text.into()));
        }
        let text = text.trim();
        let list = || text.split(',').map(|item| item.trim().to_owned());
        match self {
            Self::Secret => None,
            Self::Text | Self::Path => Some(Value::Text(text.to_owned())),
            Self::Url => Some(Value::Secret(text.into())),
            Self::Address => is_address(text).then(|| Value::Text(text.to_owned())),
            Self::Addresses => list()
                .all(|item| is_address(&item))
                .then(|| Value::List(list().collect())),
            Self::Switch => match text.to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Some(Value::Switch(true)),
                "false" | "0" | "no" | "off" => Some(Value::Switch(false)),
                _ => None,
            },
            Self::Whole(least, most) => {
                let number = text.parse().ok()?;
                (least..=most)
                    .contains(&number)
                    .then_some(Value::Whole(number))
            }
            Self::Duration(least, most) => {
                let duration = humantime::parse_duration(text).ok()?;
                let within = (least..=most).contains(&duration);
                within.then_some(Value::Duration(duration))
            }
            Self::Bytes(least, most) => {
                let bytes = bytes(text)?;
                (least..=most)
                    .contains(&bytes)
                    .then_some(Value::Whole(bytes))
            }
            Self::Choice(words) => {
                let word = words.iter().find(|word| word.eq_ignore_ascii_case(text))?;
                Some(Value::Text((*word).to_owned()))
            }
            Self::Name(longest) => {
                let named = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
                let good = text.len() <= longest && text.bytes().all(named);
                good.then(|| Value::Text(text.to_owned()))
            }
            Self::List => Some(Value::List(
                list().filter(|item| !item.is_empty()).collect(),
            )),
            Self::File => Path::new(text)
                .is_file()
                .then(|| Value::Text(text.to_owned())),
        }
    }

    /// A value as it may be printed.
    pub(crate) fn show(self, text: &str) -> String {
        match self {
            Self::Secret => HIDDEN.to_owned(),
            Self::Url => printable(&without_credentials(text.trim())),
            // Where no credentials belong, somebody may have written some.
            _ if text.contains('@') || text.contains("://") => {
                printable(&without_credentials(text.trim()))
            }
            _ => printable(text.trim()),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text | Self::Secret => f.write_str("text"),
            Self::Url => f.write_str("a URL"),
            Self::Address => f.write_str("host:port"),
            Self::Addresses => f.write_str("host:port, several by comma"),
            Self::Switch => f.write_str("true or false"),
            Self::Whole(least, u64::MAX) => write!(f, "a whole number, {least} or more"),
            Self::Whole(least, most) => write!(f, "a whole number, {least} to {most}"),
            Self::Duration(least, most) => write!(
                f,
                "a duration such as 500ms, 5s or 24h, {} to {}",
                Time(*least),
                Time(*most),
            ),
            Self::Bytes(least, most) => write!(
                f,
                "a size such as 65536, 64KB or 1MB, {} to {}",
                Size(*least),
                Size(*most)
            ),
            Self::Choice(words) => match words.split_last() {
                Some((last, [])) => f.write_str(last),
                Some((last, others)) => write!(f, "{} or {last}", others.join(", ")),
                None => f.write_str("nothing"),
            },
            Self::Name(longest) => {
                write!(f, "at most {longest} letters, digits, _ and -")
            }
            Self::List => f.write_str("a list by comma"),
            Self::Path => f.write_str("a path"),
            Self::File => f.write_str("the path of a file that is there"),
        }
    }
}

/// A duration with the largest unit, up to hours, that divides it.
struct Time(Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let units = [(3_600_000, "h"), (60_000, "m"), (1000, "s")];
        match units
            .into_iter()
            .find(|(unit, _)| millis >= *unit && millis.is_multiple_of(*unit))
        {
            Some((unit, name)) => write!(f, "{}{name}", millis / unit),
            None => write!(f, "{millis}ms"),
        }
    }
}

/// A number of bytes with the largest unit that divides it.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(30, "GB"), (20, "MB"), (10, "KB")];
        let fits = |shift: u32| self.0 >= 1 << shift && self.0.trailing_zeros() >= shift;
        match units.into_iter().find(|(shift, _)| fits(*shift)) {
            Some((shift, unit)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

/// A number of bytes: digits, then a unit or none. The units are binary.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let shift = match unit.trim_start().to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// `host`, `host:port`, `[v6]`, `[v6]:port` or a bare v6 address.
fn is_address(text: &str) -> bool {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        match rest.split_once(']') {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').unwrap_or("none"))),
            None => return false,
        }
    } else if text.parse::<Ipv6Addr>().is_ok() {
        (text, None)
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let odd = |c: char| c.is_whitespace() || c.is_control() || "/@?#,".contains(c);
    !host.is_empty()
        && !host.contains(odd)
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Without control characters, which could rewrite a terminal or a log.
pub(crate) fn printable(text: &str) -> String {
    text.escape_debug()
        .to_string()
        .replace("\\'", "'")
        .replace("\\\"", "\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_and_have_units() {
        for (text, expected) in [
            ("0", 0),
            ("65536", 65536),
            ("1B", 1),
            ("64KB", 65536),
            ("64 kib", 65536),
            ("1MB", 1 << 20),
            ("1M", 1 << 20),
            ("2GiB", 2 << 30),
        ] {
            assert_eq!(bytes(text), Some(expected), "{text}");
        }
        for bad in [
            "",
            "MB",
            "-1",
            "1.5MB",
            "1TB",
            "1 MB 2",
            "99999999999GB",
            "1e3",
        ] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
        assert_eq!(Size(1 << 20).to_string(), "1MB");
        assert_eq!(Size(65536).to_string(), "64KB");
        assert_eq!(Size(1000).to_string(), "1000");
        assert_eq!(Size(0).to_string(), "0");
    }

    #[test]
    fn addresses_are_told_from_other_things() {
        for good in [
            "localhost",
            "h:1",
            "10.0.0.1:7000",
            "[::1]",
            "[::1]:7000",
            "::1",
        ] {
            assert!(is_address(good), "{good}");
        }
        for bad in [
            "",
            ":1",
            "h:x",
            "h:0",
            "h:70000",
            "redis://h:1",
            "[::1",
            "[::1]7",
            "a b",
            "u@h",
        ] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn each_kind_says_what_it_takes() {
        let second = Duration::from_secs(1);
        let day = Duration::from_secs(24 * 3600);
        for (kind, good, bad) in [
            (Kind::Switch, "on", "maybe"),
            (Kind::Whole(1, 9), " 9 ", "10"),
            (Kind::Whole(0, 15), "0", "-1"),
            (Kind::Duration(second, day), "24h", "5"),
            (Kind::Duration(second, day), "1m 30s", "999ms"),
            (Kind::Bytes(1, 1 << 20), "1MB", "2MB"),
            (Kind::Choice(&["all", "1"]), "ALL", "2"),
            (Kind::Name(3), "a-b", "a.b"),
            (Kind::Name(3), "abc", "abcd"),
            (Kind::Addresses, "a:1, b:2", "a:1,,b:2"),
            (Kind::File, "Cargo.toml", "no/such/file"),
        ] {
            assert!(kind.read(good).is_some(), "{kind}: {good}");
            assert!(kind.read(bad).is_none(), "{kind}: {bad}");
        }
        assert_eq!(Kind::Choice(&["all", "1", "0"]).to_string(), "all, 1 or 0");
        let told = Kind::Duration(Duration::from_millis(1500), day).to_string();
        assert!(told.ends_with("1500ms to 24h"), "{told}");
    }

    #[test]
    fn what_is_printed_is_free_of_secrets_and_control_characters() {
        assert_eq!(Kind::Secret.show("hush"), "***");
        assert_eq!(Kind::Address.show(":hush@h:1"), ":***@h:1");
        assert_eq!(Kind::Text.show("a\u{1b}[2J\n"), "a\\u{1b}[2J");
    }
}
