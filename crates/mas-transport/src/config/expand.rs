//! What URLs, and a host and a port apart, stand for.

use super::nearest::nearest;
use super::resolve::{Given, Layer, Resolver, is_foreign};
use super::settings::{Origin, Problem};
use super::table::{self, COMMON};
use super::url::TransportUrl;
use super::variable::{Kind, Value, Variable, printable};
use crate::registry::Backend;
use crate::secret::Secret;

impl Resolver {
    /// Turns the URLs and host and port of one source into the variables that they stand for.
    pub(super) fn expand(&mut self, backend: &Backend, layer: &mut Layer) {
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

    /// A protocol may ask for encryption by its name, as the scheme of a URL does. It counts where
    /// it is in effect: in the first source that names one.
    pub(super) fn encrypt(&mut self, backend: &Backend, layers: &mut [Layer]) {
        let protocol = table::PROTOCOL_TYPE;
        let Some((switch, _)) = backend.parts.tls else {
            return;
        };
        let mut named = layers.iter_mut();
        let Some(layer) = named.find(|layer| layer.contains_key(protocol)) else {
            return;
        };
        let Some(given) = layer.get(protocol) else {
            return;
        };
        let name = given.raw.expose().trim().to_lowercase();
        if backend.parts.is_encrypted(&name) {
            let from = Box::new(given.origin.clone());
            let origin = Origin::Protocol { from, name };
            self.put(layer, switch, "true".into(), origin, Kind::Switch);
        }
    }

    fn host_and_port(
        &mut self,
        layer: &mut Layer,
        host: &'static str,
        port: &'static str,
        address: &'static str,
    ) {
        if layer.get(port).is_some_and(is_foreign) {
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
        if let Some((switch, _)) = parts.tls
            && parts.is_encrypted(&url.scheme)
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
}

fn is_of(backend: &Backend, url: &TransportUrl) -> bool {
    backend.names().any(|name| name == url.scheme)
}

fn is_same(kind: Kind, one: &Secret, other: &Secret) -> bool {
    match kind {
        Kind::Secret => one.expose() == other.expose(),
        Kind::Switch => {
            let read = |text: &Secret| match kind.read(text.expose()) {
                Some(Value::Switch(on)) => Some(on),
                _ => None,
            };
            read(one) == read(other)
        }
        _ => one.expose().trim() == other.expose().trim(),
    }
}
