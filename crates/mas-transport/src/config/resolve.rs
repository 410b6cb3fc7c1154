//! From the sources to settings.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use super::Config;
use super::environment::Slip;
use super::file;
use super::nearest::nearest;
use super::settings::{Origin, Problem, Setting, Settings};
use super::table::{self, COMMON};
use super::url::TransportUrl;
use super::variable::{Kind, Variable, printable};
use crate::registry::Backend;
use crate::secret::{HIDDEN, Secret};

/// A value as it was given.
#[derive(Clone)]
pub(super) struct Given {
    pub(super) raw: Secret,
    pub(super) origin: Origin,
}

/// What one source says, by variable.
pub(super) type Layer = BTreeMap<&'static str, Given>;

/// Who names a backend: `PROTOCOL_TYPE`, or `TRANSPORT_URL` by its scheme.
struct Choice {
    /// That of the source, the first one being 0.
    rank: usize,
    /// `None` for a URL that is none.
    name: Option<String>,
    given: Given,
}

/// A source, as part of a sentence.
struct Place<'a>(&'a Origin);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Origin::Environment(_) => f.write_str("in the environment"),
            Origin::File { path, .. } => write!(f, "in the file {}", path.display()),
            Origin::CommandLine => f.write_str("on the command line"),
            other => write!(f, "in {other}"),
        }
    }
}

pub(super) struct Resolver {
    backends: Vec<Backend>,
    pub(super) problems: Vec<Problem>,
    /// Names that do not exist; told after the rest.
    unknown: Vec<Problem>,
    /// Whether they are wrong is known once the backend is.
    pub(super) slips: Vec<Slip>,
}

pub(super) fn resolve(config: &Config) -> Settings {
    let mut resolver = Resolver {
        backends: config.backends().snapshot(),
        problems: Vec::new(),
        unknown: Vec::new(),
        slips: Vec::new(),
    };
    let code = resolver.code(config);
    let environment = resolver.environment(config);
    let path = [&code, &environment]
        .into_iter()
        .find_map(|layer| layer.get(table::MAS_CONFIG));
    let file = match path {
        Some(path) => resolver.file(&path.raw, &path.origin),
        None => Layer::new(),
    };
    let mut layers = [code, environment, file];
    for layer in &layers {
        resolver.adopt_options(layer);
    }
    let (name, backend) = resolver.choose(&layers);
    let cautions = resolver.slips(backend.as_ref());
    let forgotten = resolver.forgotten(&layers);
    if let Some(backend) = &backend {
        for layer in &mut layers {
            resolver.expand(backend, layer);
        }
        resolver.encrypt(backend, &mut layers);
    }
    let own = backend.iter().flat_map(|backend| &backend.variables);
    let mut settings = Vec::new();
    for variable in COMMON.iter().chain(own) {
        let given = layers.iter().find_map(|layer| layer.get(variable.name));
        settings.push(resolver.setting(*variable, given));
    }
    let mut problems = resolver.problems;
    problems.append(&mut resolver.unknown);
    let mut settings = Settings {
        backend: name,
        settings,
        problems,
        cautions,
        lacking: backend.as_ref().and_then(Backend::lacks),
    };
    if let Some((variable, backend)) = forgotten {
        let what = format!(
            "nobody chose a backend, so messages stay in this process, though {variable} is set; \
             set PROTOCOL_TYPE={backend} to use it"
        );
        settings.caution(table::PROTOCOL_TYPE, what);
    }
    for check in backend.iter().flat_map(|backend| &backend.checks) {
        check(&mut settings);
    }
    settings
}

impl Resolver {
    /// Every variable of every backend.
    pub(super) fn known(&self) -> impl Iterator<Item = &Variable> {
        let own = self.backends.iter().flat_map(|backend| &backend.variables);
        COMMON.iter().chain(own)
    }

    pub(super) fn find(&self, name: &str) -> Option<&'static str> {
        let found = self.known().find(|variable| variable.name == name);
        found.map(|variable| variable.name)
    }

    pub(super) fn problem(
        &mut self,
        name: impl Into<String>,
        origin: Origin,
        what: impl Into<String>,
        allowed: Option<String>,
    ) {
        self.problems.push(Problem {
            name: name.into(),
            // Without the value: what has an unknown name may be a secret.
            value: None,
            origin,
            what: what.into(),
            allowed,
        });
    }

    /// A name that does not exist, and one that may have been meant.
    pub(super) fn unknown(&mut self, name: impl Into<String>, origin: Origin, near: Option<&str>) {
        self.unknown.push(Problem {
            name: name.into(),
            // What has an unknown name may be a secret.
            value: None,
            origin,
            what: "there is no such setting".to_owned(),
            allowed: near.map(|near| format!("did you mean {near}?")),
        });
    }

    /// Makes a setting of a name that a backend passes on, and of nothing else.
    pub(super) fn adopt(&mut self, name: &str) -> Option<&'static str> {
        if let Some(name) = self.find(name) {
            return Some(name);
        }
        let mut backends = self.backends.iter_mut();
        let (backend, member) = backends.find_map(|backend| {
            let member = backend.family?.member(name)?;
            Some((backend, member))
        })?;
        backend.variables.push(member);
        Some(member.name)
    }

    fn adopt_key(&mut self, key: &str) -> Option<&'static str> {
        let name = key.to_ascii_uppercase().replace('.', "_");
        let mut families = self.backends.iter().filter_map(|backend| backend.family);
        match families.any(|family| family.member(&name).is_some()) {
            true => self.adopt(&name),
            false => None,
        }
    }

    /// Likewise of the options of a URL.
    fn adopt_options(&mut self, layer: &Layer) {
        let url = layer.get(table::TRANSPORT_URL);
        let url = url.and_then(|given| TransportUrl::parse(given.raw.expose()).ok());
        let Some(url) = url else { return };
        let prefix = self.backend(&url.scheme).map(Backend::prefix);
        for (option, _) in url.options {
            if let Some(prefix) = &prefix {
                self.adopt(&format!("{prefix}{}", option.to_ascii_uppercase()));
            }
        }
    }

    fn code(&mut self, config: &Config) -> Layer {
        let origin = match config.on_command_line {
            true => Origin::CommandLine,
            false => Origin::Code,
        };
        let mut layer = Layer::new();
        for (name, raw) in &config.code {
            match self.adopt(name) {
                Some(name) => {
                    let (raw, origin) = (raw.clone(), origin.clone());
                    layer.insert(name, Given { raw, origin });
                }
                None => {
                    let near = nearest(name, self.known().map(|variable| variable.name));
                    let near = near.map(str::to_owned);
                    self.unknown(printable(name), origin.clone(), near.as_deref());
                }
            }
        }
        layer
    }

    /// The backend that has this variable.
    pub(super) fn owner(&self, name: &str) -> Option<&Backend> {
        let mut backends = self.backends.iter();
        backends.find(|backend| backend.variables.iter().any(|v| v.name == name))
    }

    fn file(&mut self, path: &Secret, from: &Origin) -> Layer {
        let mut layer = Layer::new();
        let path = Path::new(path.expose().trim());
        let entries = match file::read(path) {
            Ok(entries) => entries,
            Err(what) => {
                // That it is not there is told with the setting itself.
                if path.is_file() {
                    let shown = printable(&path.display().to_string());
                    self.problems.push(Problem {
                        name: table::MAS_CONFIG.to_owned(),
                        value: Some(shown),
                        origin: from.clone(),
                        what,
                        allowed: None,
                    });
                }
                return layer;
            }
        };
        for (key, value) in entries {
            let origin = Origin::File {
                path: path.to_owned(),
                key: key.clone(),
            };
            let found = self.known().find(|variable| variable.key() == key);
            let found = match found.map(|variable| variable.name) {
                Some(name) => Some(name),
                // What is passed on may be written as its own names are: kafka.config.linger.ms.
                None => self.adopt_key(&key),
            };
            match (found, value) {
                (Some(table::MAS_CONFIG), _) => {
                    self.problem(key, origin, "a file cannot name another file", None);
                }
                (Some(name), Ok(raw)) if raw.is_empty() => {
                    let _unset = name;
                }
                (Some(name), Ok(raw)) => {
                    let raw = Secret::from(raw);
                    match layer.get(name) {
                        // By two of its spellings.
                        Some(other) if other.raw.expose() != raw.expose() => {
                            let what = format!("it is something else by {} too", other.origin);
                            let allowed = "set it in one of the two places".to_owned();
                            self.problem(key, origin, what, Some(allowed));
                        }
                        _ => {
                            layer.insert(name, Given { raw, origin });
                        }
                    }
                }
                (Some(_), Err(what)) => self.problem(key, origin, what, None),
                (None, _) => {
                    let keys: Vec<_> = self.known().map(Variable::key).collect();
                    let near = nearest(&key, keys.iter().map(String::as_str));
                    self.unknown(printable(&key), origin, near);
                }
            }
        }
        layer
    }

    /// The backend, from the first source that names one; `None` when there is no such. A protocol
    /// and a URL that say two things are a mistake wherever each stands: whoever set the one did not
    /// know of the other.
    fn choose(&mut self, layers: &[Layer]) -> (String, Option<Backend>) {
        let in_effect = |name| {
            let mut sources = layers.iter().enumerate();
            sources.find_map(|(rank, layer)| Some((rank, layer.get(name)?.clone())))
        };
        let protocol = in_effect(table::PROTOCOL_TYPE).map(|(rank, given)| Choice {
            rank,
            name: Some(given.raw.expose().trim().to_lowercase()),
            given,
        });
        let url = in_effect(table::TRANSPORT_URL).map(|(rank, given)| {
            // What is no URL is told with the setting itself.
            let parsed = TransportUrl::parse(given.raw.expose());
            let name = parsed.ok().map(|parsed| parsed.scheme);
            Choice { rank, name, given }
        });
        if let (Some(protocol), Some(url)) = (&protocol, &url) {
            self.agree(protocol, url);
        }
        let (chosen, variable) = match (protocol, url) {
            (Some(protocol), Some(url)) if url.rank < protocol.rank => (url, table::TRANSPORT_URL),
            (Some(protocol), _) => (protocol, table::PROTOCOL_TYPE),
            (None, Some(url)) => (url, table::TRANSPORT_URL),
            (None, None) => return self.take("memory", table::PROTOCOL_TYPE, Origin::Default),
        };
        match chosen.name {
            Some(name) => self.take(&name, variable, chosen.given.origin),
            None => (String::new(), None),
        }
    }

    fn agree(&mut self, protocol: &Choice, url: &Choice) {
        let (Some(name), Some(scheme)) = (&protocol.name, &url.name) else {
            return;
        };
        let own = self.backend(name);
        let same = match (own, self.backend(scheme)) {
            (Some(one), Some(other)) => one.scheme == other.scheme,
            _ => name == scheme,
        };
        let is_encrypted = |name| own.is_some_and(|backend| backend.parts.is_encrypted(name));
        let contradicts = match same {
            // Such a URL is not encrypted, and whoever set the protocol wanted it to be.
            true if is_encrypted(name) && !is_encrypted(scheme) => "asks for TLS and contradicts",
            true => return,
            false => "contradicts",
        };
        let (here, there) = (&protocol.given.origin, &url.given.origin);
        let what = format!(
            "set {}, it {contradicts} TRANSPORT_URL={}, set {}",
            Place(here),
            Kind::Url.show(url.given.raw.expose()),
            Place(there),
        );
        let shown = Kind::Text.show(name);
        let addressed = own.is_none_or(|backend| backend.parts.is_addressed());
        let agree = match url.rank < protocol.rank {
            true => format!("PROTOCOL_TYPE={} {}", printable(scheme), Place(there)),
            false if addressed => format!("TRANSPORT_URL={shown}://… {}", Place(here)),
            false => format!("TRANSPORT_URL={shown}:// {}", Place(here)),
        };
        self.problems.push(Problem {
            name: table::PROTOCOL_TYPE.to_owned(),
            value: Some(shown),
            origin: here.clone(),
            what,
            allowed: Some(format!("remove one of the two, or set {agree}")),
        });
    }

    /// A setting of another backend, and which, when nobody chose any: as good as certainly the
    /// choice was forgotten.
    fn forgotten(&self, layers: &[Layer]) -> Option<(&'static str, &'static str)> {
        let chosen = |layer: &Layer| {
            let names = [table::PROTOCOL_TYPE, table::TRANSPORT_URL];
            names.iter().any(|name| layer.contains_key(name))
        };
        // A file describes several backends as a matter of course.
        let [code, environment, _] = layers else {
            return None;
        };
        if layers.iter().any(chosen) {
            return None;
        }
        let mut given = code.iter().chain(environment);
        given.find_map(|(name, given)| {
            let backend = self.owner(name)?;
            (!is_foreign(given)).then_some((*name, backend.scheme))
        })
    }

    fn take(
        &mut self,
        name: &str,
        variable: &'static str,
        origin: Origin,
    ) -> (String, Option<Backend>) {
        if let Some(backend) = self.backend(name) {
            return (backend.scheme.to_owned(), Some(backend.clone()));
        }
        let part = |is_in: fn(&Backend) -> bool| {
            let backends = self.backends.iter().filter(|backend| is_in(backend));
            let names: Vec<_> = backends.map(|backend| backend.scheme).collect();
            names.join(", ")
        };
        let there = part(|backend| backend.link.is_ok());
        let lacking = part(|backend| backend.link.is_err());
        let names: Vec<_> = self.backends.iter().flat_map(Backend::names).collect();
        let near = match nearest(name, names.into_iter()) {
            Some(near) => format!("did you mean {near}? "),
            None => String::new(),
        };
        let allowed = match lacking.as_str() {
            "" => format!("{near}there is {there}"),
            lacking => format!("{near}there is {there}; this build lacks {lacking}"),
        };
        self.problems.push(Problem {
            name: variable.to_owned(),
            value: Some(Kind::Text.show(name)),
            origin,
            what: "there is no such backend".to_owned(),
            allowed: Some(allowed),
        });
        (Kind::Text.show(name), None)
    }

    fn backend(&self, name: &str) -> Option<&Backend> {
        let mut backends = self.backends.iter();
        backends.find(|backend| backend.names().any(|n| n == name))
    }

    fn setting(&mut self, variable: Variable, given: Option<&Given>) -> Setting {
        let Some(Given { raw, origin }) = given else {
            return Setting {
                value: variable.default.and_then(|value| variable.kind.read(value)),
                shown: variable.default.map(str::to_owned),
                variable,
                origin: Origin::Default,
            };
        };
        let shown = variable.kind.show(raw.expose());
        let value = variable.kind.read(raw.expose());
        let value = match variable.kind {
            // The one URL that is taken apart here, for the backend that was chosen or any other.
            Kind::Url if variable.name == table::TRANSPORT_URL => {
                match TransportUrl::parse(raw.expose()) {
                    Ok(_) => value,
                    Err(what) => {
                        // Of what is no URL nobody can tell where the password stands.
                        if !self.problems.iter().any(|p| p.name == variable.name) {
                            let allowed = "scheme://user:password@host:port/path?option=value";
                            let allowed = Some(allowed.to_owned());
                            self.problem(variable.name, origin.clone(), what, allowed);
                        }
                        return Setting {
                            variable,
                            value: None,
                            shown: Some(HIDDEN.to_owned()),
                            origin: origin.clone(),
                        };
                    }
                }
            }
            _ => value,
        };
        if value.is_none() {
            let mut allowed = format!("allowed is {}", variable.kind);
            if matches!(variable.kind, Kind::Address | Kind::Addresses)
                && raw.expose().contains("://")
            {
                let owner = self.owner(variable.name);
                let url = owner.and_then(|backend| backend.parts.url);
                let url = url.unwrap_or(table::TRANSPORT_URL);
                allowed.push_str(&format!("; a URL goes into {url}"));
            }
            self.problems.push(Problem {
                name: variable.name.to_owned(),
                value: Some(shown.clone()),
                origin: origin.clone(),
                what: "not allowed".to_owned(),
                allowed: Some(allowed),
            });
        }
        Setting {
            variable,
            value,
            shown: Some(shown),
            origin: origin.clone(),
        }
    }
}

/// A container platform's idea of a service that is called like a backend.
pub(super) fn is_foreign(given: &Given) -> bool {
    given.raw.expose().starts_with("tcp://")
}
