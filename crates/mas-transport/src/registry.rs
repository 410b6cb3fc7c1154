//! The backends there are.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use futures::future::{BoxFuture, FutureExt};
use mas_transport_core::{Error, ErrorKind, Result, Transport};

use crate::backends;
use crate::config::table::COMMON;
use crate::config::{Family, Settings, Variable};

type Connect =
    Arc<dyn Fn(Settings) -> BoxFuture<'static, Result<Arc<dyn Transport>>> + Send + Sync>;

/// The backends by scheme. A clone is a handle of the same registry.
///
/// [`Registry::global`] is the one that [`Bus::from_env`](crate::Bus::from_env) looks in. A backend
/// of your own joins it with a scheme, the settings it takes, and how to connect; from then on
/// `PROTOCOL_TYPE`, URLs, files, `validate` and `mas config` know it like any other:
///
/// ```
/// use std::sync::Arc;
/// use mas_transport::memory::MemoryBroker;
/// use mas_transport::{Backend, Bus, Config, Kind, Registry, Settings, Variable};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> mas_transport::Result<()> {
/// async fn open(settings: Settings) -> mas_transport::Result<Arc<impl mas_transport::Transport>> {
///     // Checked already: what is wrong was refused together with everything else.
///     assert_eq!(settings.text("FILES_DIR"), Some("/var/lib/queue"));
///     assert_eq!(settings.whole("FILES_SEGMENT"), Some(4 << 20));
/// #   let broker = MemoryBroker::shared();
/// #   broker.connect().await
/// }
///
/// let files = Backend::new("files", open)
///     .variable(Variable::new("FILES_DIR", Kind::Path, "The directory of the queue."))
///     .variable(
///         Variable::new("FILES_SEGMENT", Kind::Bytes(4096, 1 << 30), "The size of one file.")
///             .default("1MB"),
///     )
///     .path("FILES_DIR");
/// Registry::global().register(files)?;
///
/// // Or PROTOCOL_TYPE=files FILES_DIR=/var/lib/queue FILES_SEGMENT=4MB in the environment.
/// let bus = Bus::connect(Config::new().url("files:///var/lib/queue?segment=4MB")).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Registry(Arc<RwLock<BTreeMap<&'static str, Backend>>>);

static GLOBAL: LazyLock<Registry> = LazyLock::new(Registry::new);

impl Registry {
    /// A registry of its own, with the backends of this library.
    pub fn new() -> Self {
        let backends = backends::all();
        let named = backends
            .into_iter()
            .map(|backend| (backend.scheme, backend));
        Self(Arc::new(RwLock::new(named.collect())))
    }

    /// The one of the process.
    pub fn global() -> &'static Self {
        &GLOBAL
    }

    /// Adds a backend. One that this build only knows by name, since its cargo feature is off, gives
    /// the name up, and its variables with it when it is the scheme.
    ///
    /// # Errors
    /// `Conflict` when its scheme or another name of it is that of a backend that can be connected
    /// to; `InvalidArgument` when a scheme or a variable is not named as the rules of
    /// [`Backend::new`] and [`Variable::new`] say, or a default is not allowed by its own kind.
    pub fn register(&self, backend: Backend) -> Result<()> {
        backend.check()?;
        let mut backends = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut there = backends.values().filter(|other| other.link.is_ok());
        let taken = there.find_map(|other| backend.names().find(|name| other.has(name)));
        if let Some(name) = taken {
            let why = "there is a backend of this name already";
            return Err(Error::new(ErrorKind::Conflict, "register", why).with("scheme", name));
        }
        // What is left of these names belongs to backends that are not there.
        backends.retain(|scheme, _| !backend.has(scheme));
        for other in backends.values_mut().filter(|other| other.link.is_err()) {
            other.aliases.retain(|alias| !backend.has(alias));
        }
        backends.insert(backend.scheme, backend);
        Ok(())
    }

    /// The names of the backends that can be connected to, sorted.
    pub fn backends(&self) -> Vec<&'static str> {
        let all = self.snapshot();
        let there = all.iter().filter(|backend| backend.link.is_ok());
        there.map(|backend| backend.scheme).collect()
    }

    pub(crate) fn snapshot(&self) -> Vec<Backend> {
        let backends = self.0.read().unwrap_or_else(PoisonError::into_inner);
        backends.values().cloned().collect()
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.snapshot();
        f.debug_list()
            .entries(all.iter().map(|b| b.scheme))
            .finish()
    }
}

/// A backend as a [`Registry`] knows it: its scheme, its settings, and how to connect.
#[derive(Clone)]
pub struct Backend {
    pub(crate) scheme: &'static str,
    pub(crate) aliases: Vec<&'static str>,
    pub(crate) variables: Vec<Variable>,
    /// Settings besides that it passes on.
    pub(crate) family: Option<Family>,
    pub(crate) parts: Parts,
    pub(crate) checks: Vec<fn(&mut Settings)>,
    /// How to connect; or the name of one that this build lacks.
    pub(crate) link: Result<Connect, &'static str>,
}

/// Which variables the parts of an address set.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Parts {
    pub(crate) hosts: Option<&'static str>,
    pub(crate) username: Option<&'static str>,
    pub(crate) password: Option<&'static str>,
    pub(crate) path: Option<&'static str>,
    /// The whole URL without its options.
    pub(crate) whole: Option<&'static str>,
    /// A switch, and the names of the backend that turn it on, as schemes and as protocols.
    pub(crate) tls: Option<(&'static str, &'static [&'static str])>,
    /// A variable of the backend's own that holds such a URL.
    pub(crate) url: Option<&'static str>,
    /// Variables that hold the host and the port apart.
    pub(crate) host_and_port: Option<(&'static str, &'static str)>,
}

impl Parts {
    /// Whether a URL of it says more than its scheme.
    pub(crate) fn is_addressed(&self) -> bool {
        let parts = [self.hosts, self.path, self.whole];
        parts.iter().any(Option::is_some)
    }

    /// Whether this name of the backend asks for encryption.
    pub(crate) fn is_encrypted(&self, name: &str) -> bool {
        self.tls.is_some_and(|(_, names)| names.contains(&name))
    }
}

impl Backend {
    /// A backend with a scheme in lower-case letters and digits, and how to connect to it. The
    /// prefix of its variables is the scheme in upper case: `files` has `FILES_…`. So it is none of
    /// the words that the variables of every backend begin with: `mas`, `message`, `protocol`,
    /// `publish`, `transport`.
    ///
    /// `connect` gets settings without problems, and fails with `Unavailable` or `Timeout` when
    /// waiting could help. It may be dropped and called again.
    pub fn new<T, F>(
        scheme: &'static str,
        connect: impl Fn(Settings) -> F + Send + Sync + 'static,
    ) -> Self
    where
        T: Transport,
        F: Future<Output = Result<Arc<T>>> + Send + 'static,
    {
        let connect: Connect = Arc::new(move |settings| {
            let connecting = connect(settings);
            async move { Ok(connecting.await? as Arc<dyn Transport>) }.boxed()
        });
        Self::described(scheme, Ok(connect))
    }

    /// One that this build lacks.
    #[cfg_attr(
        all(
            feature = "kafka",
            feature = "memory",
            feature = "nats",
            feature = "redis"
        ),
        allow(dead_code, reason = "this build lacks none")
    )]
    pub(crate) fn lacking(scheme: &'static str) -> Self {
        Self::described(scheme, Err(scheme))
    }

    fn described(scheme: &'static str, link: Result<Connect, &'static str>) -> Self {
        Self {
            scheme,
            aliases: Vec::new(),
            variables: Vec::new(),
            family: None,
            parts: Parts::default(),
            checks: Vec::new(),
            link,
        }
    }

    /// Another name that `PROTOCOL_TYPE` and URLs may use.
    #[must_use]
    pub fn alias(mut self, name: &'static str) -> Self {
        self.aliases.push(name);
        self
    }

    /// Adds a setting. Only declared ones reach the backend; others are reported as unknown.
    ///
    /// One that is called `…_CONSUMER_GROUP` is the group of subscriptions that name none.
    #[must_use]
    pub fn variable(mut self, variable: Variable) -> Self {
        self.variables.push(variable);
        self
    }

    /// Adds a check over several settings, which adds what it finds by
    /// [`Settings::refuse`] and [`Settings::caution`]. It does not connect to anything.
    #[must_use]
    pub fn check_with(mut self, check: fn(&mut Settings)) -> Self {
        self.checks.push(check);
        self
    }

    /// The variable that the host of a URL sets (`host:port`, several by comma).
    #[must_use]
    pub fn host(mut self, variable: &'static str) -> Self {
        self.parts.hosts = Some(variable);
        self
    }

    /// The variable that the user name of a URL sets.
    #[must_use]
    pub fn username(mut self, variable: &'static str) -> Self {
        self.parts.username = Some(variable);
        self
    }

    /// The variable that the password of a URL sets; make it a [`Kind::Secret`](crate::Kind).
    #[must_use]
    pub fn password(mut self, variable: &'static str) -> Self {
        self.parts.password = Some(variable);
        self
    }

    /// The variable that the path of a URL sets; without its first slash, unless it is a
    /// [`Kind::Path`](crate::Kind) or `Kind::File`.
    #[must_use]
    pub fn path(mut self, variable: &'static str) -> Self {
        self.parts.path = Some(variable);
        self
    }

    /// The prefix of its variables.
    pub(crate) fn prefix(&self) -> String {
        format!("{}_", self.scheme.to_ascii_uppercase())
    }

    /// The scheme and its aliases.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.scheme).chain(self.aliases.iter().copied())
    }

    fn has(&self, name: &str) -> bool {
        self.names().any(|own| own == name)
    }

    /// Connects, with settings that have been checked.
    pub(crate) async fn connect(&self, settings: Settings) -> Result<Arc<dyn Transport>> {
        match &self.link {
            Ok(connect) => connect(settings).await,
            Err(name) => Err(Error::unsupported(self.scheme, "connect", lacks(name))),
        }
    }

    /// Its scheme, and what to do, when this build lacks it.
    pub(crate) fn lacks(&self) -> Option<(&'static str, String)> {
        let name = self.link.as_ref().err()?;
        Some((self.scheme, lacks(name)))
    }

    fn check(&self) -> Result<()> {
        let wrong = |why: &'static str, name: &str| {
            Err(Error::invalid("register", why).with("name", name.escape_debug()))
        };
        for name in self.names() {
            let named = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            let starts = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
            if !starts || !name.bytes().all(named) {
                return wrong(
                    "a scheme is lower-case letters and digits, a letter first",
                    name,
                );
            }
        }
        let prefix = self.prefix();
        if COMMON
            .iter()
            .any(|variable| variable.name.starts_with(&prefix))
        {
            return wrong(
                "variables of every backend begin with this word, so its own could not be told \
                 from them; take another scheme",
                self.scheme,
            );
        }
        for variable in &self.variables {
            let named = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
            let own = variable.name.strip_prefix(&prefix);
            if own.is_none_or(str::is_empty) || !variable.name.bytes().all(named) {
                let why = "a variable is the scheme in upper case, an underscore, and upper-case \
                           letters, digits and underscores";
                return wrong(why, variable.name);
            }
            if variable
                .default
                .is_some_and(|value| variable.kind.read(value).is_none())
            {
                return wrong(
                    "the default of a variable is not of its kind",
                    variable.name,
                );
            }
        }
        let Parts {
            hosts,
            username,
            password,
            path,
            ..
        } = self.parts;
        let declared = |name: &str| self.variables.iter().any(|v| v.name == name);
        let parts = [hosts, username, password, path].into_iter().flatten();
        match parts.into_iter().find(|name| !declared(name)) {
            Some(name) => wrong(
                "a part of the URL sets a variable that is not declared",
                name,
            ),
            None => Ok(()),
        }
    }
}

/// Each backend comes with the cargo feature of its name.
fn lacks(name: &str) -> String {
    format!(
        "this build lacks the backend: add features = [\"{name}\"] to mas-transport in Cargo.toml"
    )
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend")
            .field("scheme", &self.scheme)
            .field("aliases", &self.aliases)
            .field("variables", &self.variables)
            .finish_non_exhaustive()
    }
}

#[cfg(feature = "memory")]
#[cfg(test)]
mod tests {
    use mas_transport_memory::MemoryBroker;

    use super::*;
    use crate::config::Kind;
    use crate::{Bus, Config};

    /// A registry that knows a backend by its name and its settings only.
    fn registry() -> Registry {
        let mut tape = Backend::lacking("tape");
        let speed = Variable::new("TAPE_SPEED", Kind::Text, "How fast.");
        tape.variables.push(speed);
        Registry(Arc::new(RwLock::new(BTreeMap::from([("tape", tape)]))))
    }

    fn own(scheme: &'static str) -> Backend {
        Backend::new(scheme, |_: Settings| async {
            MemoryBroker::new(Default::default()).connect().await
        })
    }

    #[tokio::test]
    async fn a_backend_that_is_there_goes_before_a_mere_name() {
        let registry = registry();
        assert_eq!(registry.backends(), [""; 0]);
        let wrong = Config::new().backend("tape").registry(registry.clone());
        let refused = wrong.validate().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
        assert!(
            refused.to_string().contains("features = [\"tape\"]"),
            "{refused}"
        );

        let reel = Variable::new("TAPE_REEL", Kind::Text, "Which.").default("first");
        registry.register(own("tape").variable(reel)).unwrap();
        assert_eq!(registry.backends(), ["tape"]);
        let config = Config::from_vars([("TRANSPORT_URL", "tape://")]).registry(registry.clone());
        let settings = config.resolve();
        assert_eq!(settings.text("TAPE_REEL"), Some("first"));
        // The variables of the other one are gone with it.
        assert!(settings.get("TAPE_SPEED").is_none());
        Bus::connect(config).await.unwrap();
        // Now it is there, and another cannot take its name.
        let again = registry.register(own("tape")).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::Conflict);
    }

    #[tokio::test]
    async fn it_does_so_by_another_name_as_well() {
        let registry = registry();
        registry.register(own("panda").alias("tape")).unwrap();
        let config = Config::new().backend("tape").registry(registry);
        assert_eq!(config.resolve().backend(), "panda");
        Bus::connect(config).await.unwrap();
    }
}
