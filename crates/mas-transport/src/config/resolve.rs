//! From the sources to settings.

use std::collections::BTreeMap;
use std::path::Path;

use super::Config;
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
struct Given {
    raw: Secret,
    origin: Origin,
}

/// What one source says, by variable.
type Layer = BTreeMap<&'static str, Given>;

struct Resolver {
    backends: Vec<Backend>,
    problems: Vec<Problem>,
    /// Names that do not exist; told after the rest.
    unknown: Vec<Problem>,
}

pub(super) fn resolve(config: &Config) -> Settings {
    let mut resolver = Resolver {
        backends: config.backends().snapshot(),
        problems: Vec::new(),
        unknown: Vec::new(),
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
    let (name, backend) = resolver.choose(&layers);
    if let Some(backend) = &backend {
        for layer in &mut layers {
            resolver.expand(backend, layer);
        }
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
        cautions: Vec::new(),
        lacking: backend.as_ref().and_then(Backend::lacks),
    };
    for check in backend.iter().flat_map(|backend| &backend.checks) {
        check(&mut settings);
    }
    settings
}

impl Resolver {
    /// Every variable of every backend.
    fn known(&self) -> impl Iterator<Item = &Variable> {
        let own = self.backends.iter().flat_map(|backend| &backend.variables);
        COMMON.iter().chain(own)
    }

    fn find(&self, name: &str) -> Option<&'static str> {
        let found = self.known().find(|variable| variable.name == name);
        found.map(|variable| variable.name)
    }

    fn problem(
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
    fn unknown(&mut self, name: impl Into<String>, origin: Origin, near: Option<&str>) {
        self.unknown.push(Problem {
            name: name.into(),
            // What has an unknown name may be a secret.
            value: None,
            origin,
            what: "there is no such setting".to_owned(),
            allowed: near.map(|near| format!("did you mean {near}?")),
        });
    }

    fn code(&mut self, config: &Config) -> Layer {
        let mut layer = Layer::new();
        for (name, raw) in &config.code {
            match self.find(name) {
                Some(name) => {
                    let (raw, origin) = (raw.clone(), Origin::Code);
                    layer.insert(name, Given { raw, origin });
                }
                None => {
                    let near = nearest(name, self.known().map(|variable| variable.name));
                    let near = near.map(str::to_owned);
                    self.unknown(printable(name), Origin::Code, near.as_deref());
                }
            }
        }
        layer
    }

    /// What is unknown in the environment is reported only when it is near a known name: others may
    /// have variables that begin like ours.
    fn environment(&mut self, config: &Config) -> Layer {
        let mut layer = Layer::new();
        for (name, raw) in &config.environment {
            let origin = Origin::Environment(name.clone());
            match (self.find(name), raw) {
                (Some(name), Ok(raw)) => {
                    let raw = raw.clone();
                    layer.insert(name, Given { raw, origin });
                }
                (Some(name), Err(_)) => self.problem(name, origin, "it is not UTF-8", None),
                (None, _) => {
                    let Some((prefix, rest)) = name.split_once('_') else {
                        continue;
                    };
                    let known = self.known().filter_map(|variable| {
                        let (own, rest) = variable.name.split_once('_')?;
                        (own == prefix).then_some(rest)
                    });
                    if let Some(near) = nearest(rest, known) {
                        let near = format!("{prefix}_{near}");
                        self.unknown(name.clone(), origin, Some(&near));
                    }
                }
            }
        }
        layer
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
            match (found.map(|variable| variable.name), value) {
                (Some(table::MAS_CONFIG), _) => {
                    self.problem(key, origin, "a file cannot name another file", None);
                }
                (Some(name), Ok(raw)) if raw.is_empty() => {
                    let _unset = name;
                }
                (Some(name), Ok(raw)) => {
                    let raw = Secret::from(raw);
                    layer.insert(name, Given { raw, origin });
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

    /// The backend, from the first source that names one; `None` when there is no such.
    fn choose(&mut self, layers: &[Layer]) -> (String, Option<Backend>) {
        for layer in layers {
            let protocol = layer.get(table::PROTOCOL_TYPE).cloned();
            let url = layer.get(table::TRANSPORT_URL).cloned();
            // What is no URL is told with the setting itself.
            let scheme = url.as_ref().and_then(|url| {
                let parsed = TransportUrl::parse(url.raw.expose()).ok()?;
                Some((parsed.scheme, url.origin.clone()))
            });
            let named = protocol.map(|given| {
                let name = given.raw.expose().trim().to_lowercase();
                (name, given.origin)
            });
            let chosen = match (&named, &scheme) {
                (Some((name, from)), Some((scheme, _))) => {
                    let same = match (self.backend(name), self.backend(scheme)) {
                        (Some(one), Some(other)) => one.scheme == other.scheme,
                        _ => name == scheme,
                    };
                    if !same {
                        let what = format!(
                            "it contradicts the scheme of TRANSPORT_URL, {}://",
                            printable(scheme)
                        );
                        self.problems.push(Problem {
                            name: table::PROTOCOL_TYPE.to_owned(),
                            value: Some(printable(name)),
                            origin: from.clone(),
                            what,
                            allowed: Some("set one of the two, or make them agree".to_owned()),
                        });
                    }
                    (name, table::PROTOCOL_TYPE)
                }
                (Some((name, _)), None) => (name, table::PROTOCOL_TYPE),
                (None, Some((scheme, _))) => (scheme, table::TRANSPORT_URL),
                (None, None) if url.is_some() => return (String::new(), None),
                (None, None) => continue,
            };
            let origin = match chosen.1 {
                table::PROTOCOL_TYPE => named.as_ref().map(|(_, origin)| origin),
                _ => scheme.as_ref().map(|(_, origin)| origin),
            };
            let origin = origin.cloned().unwrap_or(Origin::Default);
            return self.take(chosen.0, chosen.1, origin);
        }
        self.take("memory", table::PROTOCOL_TYPE, Origin::Default)
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
        let part = |there: bool| {
            let backends = self.backends.iter();
            let names = backends.filter(|backend| backend.link.is_ok() == there);
            names
                .map(|backend| backend.scheme)
                .collect::<Vec<_>>()
                .join(", ")
        };
        let (there, lacking) = (part(true), part(false));
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
            value: Some(printable(name)),
            origin,
            what: "there is no such backend".to_owned(),
            allowed: Some(allowed),
        });
        (name.to_owned(), None)
    }

    fn backend(&self, name: &str) -> Option<&Backend> {
        let mut backends = self.backends.iter();
        backends.find(|backend| backend.names().any(|n| n == name))
    }

    /// Turns the URLs and host and port of one source into the variables that they stand for.
    fn expand(&mut self, backend: &Backend, layer: &mut Layer) {
        for name in [Some(table::TRANSPORT_URL), backend.parts.url]
            .into_iter()
            .flatten()
        {
            let Some(given) = layer.get(name).cloned() else {
                continue;
            };
            match TransportUrl::parse(given.raw.expose()) {
                // Another backend's: a source before this one has chosen otherwise.
                Ok(url) if name == table::TRANSPORT_URL && !is_of(backend, &url) => {}
                Ok(url) if is_of(backend, &url) => self.url(backend, layer, name, &given, url),
                Ok(_) => {
                    let allowed = format!("a URL that begins with {}://", backend.scheme);
                    self.problem(name, given.origin, "its scheme is another", Some(allowed));
                }
                Err(what) => {
                    let allowed = format!(
                        "{}://user:password@host:port/path?option=value",
                        backend.scheme
                    );
                    self.problem(name, given.origin, what, Some(allowed));
                }
            }
        }
        if let Some((host, port)) = backend.parts.host_and_port
            && let Some(address) = backend.parts.hosts
        {
            self.host_and_port(layer, host, port, address);
        }
    }

    fn host_and_port(
        &mut self,
        layer: &mut Layer,
        host: &'static str,
        port: &'static str,
        address: &'static str,
    ) {
        // A container platform's idea of a service that is called like the backend.
        let foreign = |given: &Given| given.raw.expose().starts_with("tcp://");
        if layer.get(port).is_some_and(foreign) {
            layer.remove(port);
        }
        let (host, port) = (layer.get(host).cloned(), layer.get(port).cloned());
        let Some(origin) = host
            .as_ref()
            .or(port.as_ref())
            .map(|given| given.origin.clone())
        else {
            return;
        };
        let text = |given: &Given| given.raw.expose().trim().to_owned();
        let name = host.as_ref().map_or_else(|| "localhost".to_owned(), text);
        let name = match name.contains(':') && !name.starts_with('[') {
            true => format!("[{name}]"),
            false => name,
        };
        let whole = match port.as_ref().map(text) {
            Some(port) if port.parse::<u16>().is_ok() => format!("{name}:{port}"),
            // What is wrong with the port is told with its own setting.
            _ => name,
        };
        self.put(layer, address, whole.into(), origin, Kind::Address);
    }

    fn url(
        &mut self,
        backend: &Backend,
        layer: &mut Layer,
        name: &'static str,
        given: &Given,
        url: TransportUrl,
    ) {
        let part = |part: &str| Origin::Url {
            from: Box::new(given.origin.clone()),
            part: part.to_owned(),
        };
        let parts = backend.parts;
        let kind = |name: &str| {
            let own = COMMON.iter().chain(&backend.variables);
            own.clone()
                .find(|v| v.name == name)
                .map_or(Kind::Text, |v| v.kind)
        };
        if let Some(whole) = parts.whole {
            let text = given.raw.expose();
            let text = text.split_once('?').map_or(text, |(text, _)| text);
            self.put(layer, whole, text.into(), given.origin.clone(), Kind::Url);
        } else {
            let path = match parts.path.map(kind) {
                Some(Kind::Path | Kind::File) => url.path.as_str(),
                _ => url.path.strip_prefix('/').unwrap_or(&url.path),
            };
            let found = [
                ("host", parts.hosts, Secret::from(url.hosts.as_str())),
                (
                    "user",
                    parts.username,
                    url.username.unwrap_or_default().into(),
                ),
                (
                    "password",
                    parts.password,
                    url.password.unwrap_or_else(|| "".into()),
                ),
                ("path", parts.path, path.into()),
            ];
            for (what, variable, raw) in found {
                match variable {
                    _ if raw.expose().is_empty() => {}
                    Some(variable) => self.put(layer, variable, raw, part(what), kind(variable)),
                    None => {
                        let what = format!("it has a {what}, which this backend does not take");
                        self.problem(name, given.origin.clone(), what, None);
                    }
                }
            }
        }
        if let Some((switch, schemes)) = parts.tls
            && schemes.contains(&url.scheme.as_str())
        {
            self.put(layer, switch, "true".into(), part("scheme"), Kind::Switch);
        }
        for (option, raw) in url.options {
            let prefix = backend.prefix();
            let own = backend.variables.iter();
            let short = |variable: &Variable| {
                let own = variable.name.strip_prefix(&prefix);
                own.or_else(|| variable.name.strip_prefix("MAS_"))
                    .unwrap_or(variable.name)
                    .to_ascii_lowercase()
            };
            let not_here = |name: &str| {
                let outer = [
                    table::PROTOCOL_TYPE,
                    table::TRANSPORT_URL,
                    table::MAS_CONFIG,
                ];
                outer.contains(&name) || Some(name) == parts.url
            };
            let mut taken = COMMON.iter().chain(own).filter(|v| !not_here(v.name));
            let all: Vec<_> = taken.clone().map(short).collect();
            match taken.find(|variable| short(variable) == option) {
                Some(variable) if !raw.is_empty() => {
                    let origin = part(&option);
                    self.put(layer, variable.name, raw.into(), origin, variable.kind);
                }
                Some(_) => {}
                None => {
                    let near = nearest(&option, all.iter().map(String::as_str));
                    let name = format!("{name}?{}", printable(&option));
                    self.unknown(name, given.origin.clone(), near);
                }
            }
        }
    }

    /// Adds what a source says in another way; saying two things is an error.
    fn put(
        &mut self,
        layer: &mut Layer,
        name: &'static str,
        raw: Secret,
        origin: Origin,
        kind: Kind,
    ) {
        match layer.get(name) {
            None => {
                layer.insert(name, Given { raw, origin });
            }
            Some(other) if is_same(kind, &other.raw, &raw) => {}
            Some(other) => {
                let what = format!(
                    "it is {} by {} too",
                    kind.show(other.raw.expose()),
                    other.origin
                );
                self.problems.push(Problem {
                    name: name.to_owned(),
                    value: Some(kind.show(raw.expose())),
                    origin,
                    what,
                    allowed: Some("set it in one of the two places".to_owned()),
                });
            }
        }
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
            self.problems.push(Problem {
                name: variable.name.to_owned(),
                value: Some(shown.clone()),
                origin: origin.clone(),
                what: "not allowed".to_owned(),
                allowed: Some(format!("allowed is {}", variable.kind)),
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

fn is_of(backend: &Backend, url: &TransportUrl) -> bool {
    backend.names().any(|name| name == url.scheme)
}

fn is_same(kind: Kind, one: &Secret, other: &Secret) -> bool {
    match kind {
        Kind::Secret => one.expose() == other.expose(),
        Kind::Switch => {
            let read = |text: &Secret| match kind.read(text.expose()) {
                Some(super::variable::Value::Switch(on)) => Some(on),
                _ => None,
            };
            read(one) == read(other)
        }
        _ => one.expose().trim() == other.expose().trim(),
    }
}
