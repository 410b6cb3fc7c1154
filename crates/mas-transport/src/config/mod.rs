//! Configuration: from code, the environment, a file and a URL to one set of checked settings.

mod environment;
mod example;
mod expand;
mod file;
mod nearest;
mod page;
mod resolve;
mod settings;
pub(crate) mod table;
mod url;
mod variable;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::Path;

use mas_transport_core::Result;

pub use self::settings::{Caution, Origin, Problem, Setting, Settings};
pub(crate) use self::variable::Family;
pub use self::variable::{Kind, Variable};
use crate::registry::Registry;
use crate::requirements::Requirements;
use crate::secret::Secret;

/// How to reach a broker, and what is needed of it.
///
/// Settings come from the program's code, the environment, a file (`MAS_CONFIG`), and the defaults,
/// in this order of precedence. Each has one name, that of its environment variable; the reference
/// page lists them all. A URL counts as set where it stands: its parts and options are as good as
/// the variables beside it, and contradicting them is an error. A `PROTOCOL_TYPE` that contradicts
/// the scheme of the `TRANSPORT_URL` in effect is one wherever the two stand. An empty variable
/// counts as unset.
///
/// ```
/// # use mas_transport::{Config, Requirements};
/// let config = Config::new()
///     .url("redis://ann:hush@example.org:6379/0?pool_size=4")
///     .set("REDIS_BLOCK_TIMEOUT", "500ms")
///     .set("MAS_NAMESPACE", "team-a")
///     .require(Requirements::new().any_member());
/// let settings = config.resolve();
/// assert_eq!(settings.backend(), "redis");
/// assert_eq!(settings.whole("REDIS_POOL_SIZE"), Some(4));
/// let password = settings.get("REDIS_PASSWORD").unwrap();
/// assert_eq!(password.shown(), Some("***"));
/// assert_eq!(password.origin().to_string(), "code, password of the URL");
/// # if cfg!(feature = "redis") {
/// settings.check()?;
/// # }
/// # Ok::<(), mas_transport::Error>(())
/// ```
///
/// All that is wrong is told at once:
///
/// ```
/// # use mas_transport::Config;
/// let config = Config::from_vars([
///     ("PROTOCOL_TYPE", "redis"),
///     ("REDIS_DB", "x"),
///     ("REDIS_POOL_SIZE", "-1"),
///     ("REDIS_STREAM_MAXLEN", "5"),
/// ]);
/// let told: Vec<_> = config.resolve().problems().iter().map(|p| p.to_string()).collect();
/// assert_eq!(told, [
///     "REDIS_DB=x: not allowed; allowed is a whole number, 0 to 2147483647",
///     "REDIS_POOL_SIZE=-1: not allowed; allowed is a whole number, 1 to 1000",
///     "REDIS_STREAM_MAXLEN: there is no such setting; did you mean REDIS_STREAM_MAX_LEN?",
/// ]);
/// ```
#[derive(Clone, Default)]
pub struct Config {
    code: BTreeMap<String, Secret>,
    on_command_line: bool,
    environment: BTreeMap<String, Result<Secret, OsString>>,
    pub(crate) requirements: Requirements,
    pub(crate) source: Option<String>,
    registry: Option<Registry>,
}

impl Config {
    /// Nothing but the defaults, and what is set on it: the environment is not read.
    pub fn new() -> Self {
        Self::default()
    }

    /// The environment of this process, as it is now, and the file that `MAS_CONFIG` names.
    pub fn from_env() -> Self {
        Self::new().environment(std::env::vars_os())
    }

    /// These variables in place of the environment of the process.
    pub fn from_vars<N, V>(variables: impl IntoIterator<Item = (N, V)>) -> Self
    where
        N: Into<OsString>,
        V: Into<OsString>,
    {
        let variables = variables.into_iter();
        Self::new().environment(variables.map(|(name, value)| (name.into(), value.into())))
    }

    fn environment(mut self, variables: impl Iterator<Item = (OsString, OsString)>) -> Self {
        let named = variables.filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        self.environment = named
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| (name, value.into_string().map(Secret::from)))
            .collect();
        self
    }

    /// Sets a setting, by the name of its environment variable and in its notation:
    /// `.set("REDIS_BLOCK_TIMEOUT", "500ms")`. Before everything else. What is wrong with it is
    /// told with the rest.
    #[must_use]
    pub fn set(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        let value = Secret::from(value.to_string());
        self.code.insert(name.into(), value);
        self
    }

    /// Sets the backend: `PROTOCOL_TYPE`. A `TRANSPORT_URL` of another backend, in the environment
    /// or a file, is an error then; [`url`](Self::url) replaces it.
    #[must_use]
    pub fn backend(self, name: &str) -> Self {
        self.set(table::PROTOCOL_TYPE, name)
    }

    /// Sets backend and address: `TRANSPORT_URL`. A `PROTOCOL_TYPE` of another backend, in the
    /// environment or a file, is an error then; [`backend`](Self::backend) replaces it.
    #[must_use]
    pub fn url(self, url: &str) -> Self {
        self.set(table::TRANSPORT_URL, url)
    }

    /// Sets the file with settings, in place of the one that `MAS_CONFIG` names. It is read when
    /// the configuration is resolved.
    #[must_use]
    pub fn file(self, path: impl AsRef<Path>) -> Self {
        self.set(table::MAS_CONFIG, path.as_ref().display())
    }

    /// Tells of what is set on it as of the command line's, for programs whose users set it there.
    #[must_use]
    pub fn on_command_line(mut self) -> Self {
        self.on_command_line = true;
        self
    }

    /// Who sends, such as `/agents/planner`: the source of messages that name none.
    #[must_use]
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What is needed of the backend: connecting to one that lacks some of it fails.
    #[must_use]
    pub fn require(mut self, requirements: Requirements) -> Self {
        self.requirements = requirements;
        self
    }

    /// Looks for backends in this registry, in place of [`Registry::global`].
    #[must_use]
    pub fn registry(mut self, registry: Registry) -> Self {
        self.registry = Some(registry);
        self
    }

    pub(crate) fn backends(&self) -> &Registry {
        self.registry.as_ref().unwrap_or_else(|| Registry::global())
    }

    /// What it all comes to: never fails, since what is wrong is part of it. Reads the file, and
    /// looks whether the files that settings name are there; connects to nothing.
    pub fn resolve(&self) -> Settings {
        resolve::resolve(self)
    }

    /// Checks everything that can be checked without connecting.
    ///
    /// # Errors
    /// One error with every problem: `InvalidArgument`, or `Unsupported` when this build lacks the
    /// backend. [`resolve`](Self::resolve) has the problems one by one.
    pub fn validate(&self) -> Result<()> {
        self.resolve().check()
    }

    /// A commented file with every setting and its default, in TOML: of one backend, or of all.
    /// Each setting is commented out, so the file as it is changes nothing; that of one backend
    /// chooses it.
    ///
    /// # Errors
    /// `InvalidArgument` when there is no such backend.
    pub fn example_toml(&self, backend: Option<&str>) -> Result<String> {
        example::toml(self.backends(), backend)
    }

    /// The same in YAML.
    ///
    /// # Errors
    /// As [`example_toml`](Self::example_toml).
    pub fn example_yaml(&self, backend: Option<&str>) -> Result<String> {
        example::yaml(self.backends(), backend)
    }

    /// The same as variables of the environment, `NAME=value`: for a shell, a service manager or a
    /// container, not for [`file`](Self::file).
    ///
    /// # Errors
    /// As [`example_toml`](Self::example_toml).
    pub fn example_env(&self, backend: Option<&str>) -> Result<String> {
        example::env(self.backends(), backend)
    }

    /// The reference page of all settings, in Markdown.
    pub fn reference_markdown() -> String {
        page::markdown(&Registry::new())
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("code", &self.code)
            .field("requirements", &self.requirements)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}
