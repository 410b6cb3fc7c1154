//! What a configuration comes to.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use mas_transport_core::{Error, Result};

use super::table::DEFAULT_GROUP;
use super::variable::{Value, Variable};
use crate::secret::Secret;

/// Where a value comes from. The order of precedence is that of the variants.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// The program's own code.
    Code,
    /// The command line of a program that [passes it on](super::Config::on_command_line).
    CommandLine,
    /// This variable of the environment.
    Environment(String),
    /// This key of a file.
    File {
        /// The file.
        path: PathBuf,
        /// The key, such as `redis.db`.
        key: String,
    },
    /// This part or option of a URL.
    Url {
        /// Where the URL itself comes from.
        from: Box<Origin>,
        /// `user`, `password`, `host`, `path`, `scheme`, or the name of an option.
        part: String,
    },
    /// A protocol that asks for it by its name: `rediss` for `REDIS_TLS`.
    Protocol {
        /// Where `PROTOCOL_TYPE` comes from.
        from: Box<Origin>,
        /// Its value.
        name: String,
    },
    /// Nobody set it.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code => f.write_str("code"),
            Self::CommandLine => f.write_str("command line"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::File { path, key } => write!(f, "file {}: {key}", path.display()),
            Self::Url { from, part } => write!(f, "{from}, {part} of the URL"),
            Self::Protocol { from, name } => write!(f, "{from}, {name} as the protocol"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// One setting as it was found.
#[derive(Clone)]
pub struct Setting {
    pub(crate) variable: Variable,
    pub(crate) value: Option<Value>,
    pub(crate) shown: Option<String>,
    pub(crate) origin: Origin,
}

impl Setting {
    /// The name of its environment variable.
    pub fn name(&self) -> &'static str {
        self.variable.name
    }

    /// The value as it may be printed: as it was written, a secret as `***`. `None` when nobody set
    /// it and it has no default.
    pub fn shown(&self) -> Option<&str> {
        self.shown.as_deref()
    }

    /// Where the value comes from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Whether somebody set it, be it to its default.
    pub fn is_set(&self) -> bool {
        self.origin != Origin::Default
    }

    /// What it is, and what it may be.
    pub fn variable(&self) -> &Variable {
        &self.variable
    }
}

impl fmt::Debug for Setting {
    // As it is shown: a value may hold credentials that do not belong there.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setting")
            .field("name", &self.name())
            .field("shown", &self.shown)
            .field("origin", &self.origin)
            .finish()
    }
}

/// Something wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// The variable, the key of a file, or the option of a URL.
    pub name: String,
    /// Its value as it may be printed. Left out where it is not known whether it is a secret.
    pub value: Option<String>,
    /// Where it was found.
    pub origin: Origin,
    /// What is wrong with it.
    pub what: String,
    /// What is allowed instead, or what to do.
    pub allowed: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(value) = &self.value {
            write!(f, "={value}")?;
        }
        match &self.origin {
            // The name says it.
            Origin::Environment(name) if *name == self.name => {}
            Origin::Default => {}
            origin => write!(f, " ({origin})")?,
        }
        write!(f, ": {}", self.what)?;
        match &self.allowed {
            Some(allowed) => write!(f, "; {allowed}"),
            None => Ok(()),
        }
    }
}

/// Something about a configuration that is allowed, and that an operator should know: it may lose
/// messages, or has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Caution {
    /// The variable, which may be a misspelt one.
    pub name: String,
    /// Its value as it may be printed. Left out where it is not known whether it is a secret.
    pub value: Option<String>,
    /// What comes of it.
    pub what: String,
}

impl fmt::Display for Caution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(value) = &self.value {
            write!(f, "={value}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// What a [`Config`](super::Config) comes to: the backend, each of its settings with its origin,
/// and all that is wrong. A backend's factory gets it once nothing is.
#[derive(Clone, Debug)]
pub struct Settings {
    pub(crate) backend: String,
    pub(crate) settings: Vec<Setting>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) cautions: Vec<Caution>,
    /// The backend and what to do, when this build lacks it.
    pub(crate) lacking: Option<(&'static str, String)>,
}

impl Settings {
    /// The name of the backend, as in its scheme: `memory`, `redis`, …; what was asked for, when
    /// there is no such backend.
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// The settings of every backend, then those of this one, in the order of the reference page.
    pub fn iter(&self) -> impl Iterator<Item = &Setting> {
        self.settings.iter()
    }

    /// All that is wrong; empty when the configuration can be used.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// What is allowed, and should be known.
    pub fn cautions(&self) -> &[Caution] {
        &self.cautions
    }

    /// Whether the configuration can be used.
    ///
    /// # Errors
    /// `InvalidArgument` with every problem; `Unsupported` when this build lacks the backend.
    pub fn check(&self) -> Result<()> {
        let told: Vec<_> = self.problems.iter().map(Problem::to_string).collect();
        let told = match told.as_slice() {
            [] => None,
            [one] => Some(format!("the configuration has a problem: {one}")),
            all => {
                let numbered = all.iter().enumerate();
                let lines = numbered.map(|(i, problem)| format!("({}) {problem}", i + 1));
                let lines: Vec<_> = lines.collect();
                Some(format!(
                    "the configuration has {} problems: {}",
                    all.len(),
                    lines.join(" ")
                ))
            }
        };
        match (&self.lacking, told) {
            (None, None) => Ok(()),
            (None, Some(told)) => Err(Error::invalid("connect", told)),
            (Some((backend, lacking)), None) => {
                Err(Error::unsupported(backend, "connect", lacking.clone()))
            }
            (Some((backend, lacking)), Some(told)) => {
                let both = format!("{lacking}; besides, {told}");
                Err(Error::unsupported(backend, "connect", both))
            }
        }
    }

    /// One setting, by the name of its environment variable.
    pub fn get(&self, name: &str) -> Option<&Setting> {
        self.settings.iter().find(|setting| setting.name() == name)
    }

    /// The group of subscriptions that name none.
    pub(crate) fn group(&self) -> &str {
        let named = self.settings.iter().find(|setting| {
            let name = setting.name();
            name.ends_with("_CONSUMER_GROUP") || name == "KAFKA_GROUP_ID"
        });
        named
            .and_then(|setting| self.text(setting.name()))
            .unwrap_or(DEFAULT_GROUP)
    }

    fn value(&self, name: &str) -> Option<&Value> {
        self.get(name)?.value.as_ref()
    }

    /// The value of a [`Kind::Text`](super::Kind::Text), `Address`, `Choice`, `Name`, `Path` or
    /// `File`. As with every getter here: `None` when it is neither set nor has a default, when it
    /// is wrong, of another kind, or not a setting of this backend.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.value(name)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value of a `Kind::Secret` or `Kind::Url`.
    pub fn secret(&self, name: &str) -> Option<&Secret> {
        match self.value(name)? {
            Value::Secret(secret) => Some(secret),
            _ => None,
        }
    }

    /// The value of a `Kind::Switch`.
    pub fn switch(&self, name: &str) -> Option<bool> {
        match self.value(name)? {
            Value::Switch(on) => Some(*on),
            _ => None,
        }
    }

    /// The value of a `Kind::Whole`, and the number of bytes of a `Kind::Bytes`.
    pub fn whole(&self, name: &str) -> Option<u64> {
        match self.value(name)? {
            Value::Whole(number) => Some(*number),
            _ => None,
        }
    }

    /// The value of a `Kind::Duration`.
    pub fn duration(&self, name: &str) -> Option<Duration> {
        match self.value(name)? {
            Value::Duration(duration) => Some(*duration),
            _ => None,
        }
    }

    /// The value of a `Kind::List` or `Kind::Addresses`.
    pub fn list(&self, name: &str) -> Option<&[String]> {
        match self.value(name)? {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// Adds a problem with a setting, from a backend's own check.
    pub fn refuse(&mut self, name: &str, what: impl Into<String>, allowed: impl Into<String>) {
        let found = self.get(name);
        let problem = Problem {
            name: name.to_owned(),
            value: found.and_then(|setting| setting.shown.clone()),
            origin: found.map_or(Origin::Default, |setting| setting.origin.clone()),
            what: what.into(),
            allowed: Some(allowed.into()),
        };
        self.problems.push(problem);
    }

    /// Adds a caution about a setting, from a backend's own check.
    pub fn caution(&mut self, name: &str, what: impl Into<String>) {
        if let Some(setting) = self.get(name) {
            let caution = Caution {
                name: setting.name().to_owned(),
                value: setting.shown.clone(),
                what: what.into(),
            };
            self.cautions.push(caution);
        }
    }
}
