//! From the environment to a transport.

use std::env::{self, VarError};
use std::sync::Arc;

#[cfg(any(feature = "memory", feature = "redis"))]
use mas_transport_core::Namespace;
use mas_transport_core::{Error, Result, Transport};

/// The backends of this library, and whether each is part of this build.
const BACKENDS: &[(&str, bool)] = &[
    ("memory", cfg!(feature = "memory")),
    ("redis", cfg!(feature = "redis")),
];

/// Connects to the backend that the environment names.
///
/// | variable | meaning |
/// |---|---|
/// | `PROTOCOL_TYPE` | `memory` or `inmemory` (the default), or `redis` |
/// | `REDIS_ADDR` | `host:port`; `localhost:6379` by default |
/// | `REDIS_USERNAME`, `REDIS_PASSWORD` | credentials; none by default |
/// | `REDIS_DB` | the number of the database; 0 by default |
/// | `MAS_NAMESPACE` | goes in front of every name in the broker; empty by default |
///
/// An empty variable counts as unset. In memory, all of a process share one broker.
///
/// # Errors
/// `InvalidArgument` names the variable, its value and what is allowed; `Unsupported` names the
/// cargo feature that this build lacks; `Unavailable` and `Unauthorized` come from the broker. The
/// password is in none of them.
///
/// # Cancel safety
/// Dropping the future leaves nothing behind.
pub async fn connect_from_env() -> Result<Arc<dyn Transport>> {
    match Settings::read(&|name| env::var(name))? {
        #[cfg(feature = "memory")]
        Settings::Memory { namespace } => memory(namespace).await,
        #[cfg(feature = "redis")]
        Settings::Redis(config) => {
            let transport = mas_transport_redis::RedisTransport::connect(config).await?;
            Ok(Arc::new(transport))
        }
    }
}

/// Looks a variable up.
type Lookup<'a> = &'a dyn Fn(&str) -> Result<String, VarError>;

/// What the environment says, checked.
enum Settings {
    #[cfg(feature = "memory")]
    Memory { namespace: Namespace },
    #[cfg(feature = "redis")]
    Redis(mas_transport_redis::RedisConfig),
}

impl Settings {
    fn read(variable: Lookup<'_>) -> Result<Self> {
        let protocol = get(variable, "PROTOCOL_TYPE")?;
        let protocol = protocol
            .as_deref()
            .unwrap_or("memory")
            .trim()
            .to_lowercase();
        match protocol.as_str() {
            #[cfg(feature = "memory")]
            "memory" | "inmemory" => Ok(Self::Memory {
                namespace: namespace(variable)?,
            }),
            #[cfg(feature = "redis")]
            "redis" => Ok(Self::Redis(redis(variable)?)),
            _ => Err(unknown(&protocol)),
        }
    }
}

fn unknown(protocol: &str) -> Error {
    let name = match protocol {
        "inmemory" => "memory",
        other => other,
    };
    match BACKENDS.iter().find(|(backend, _)| *backend == name) {
        Some((backend, _)) => Error::unsupported(
            backend,
            "connect",
            format!(
                "this build lacks the backend: enable the cargo feature \"{backend}\" of \
                 mas-transport"
            ),
        ),
        None => {
            let compiled = BACKENDS.iter().filter(|(_, compiled)| *compiled);
            let names: Vec<_> = compiled.map(|(name, _)| *name).collect();
            Error::invalid("connect", "there is no such backend")
                .with("PROTOCOL_TYPE", protocol.escape_debug())
                .with("available", names.join(" or "))
        }
    }
}

/// A variable; `None` when it is unset or empty.
fn get(variable: Lookup<'_>, name: &'static str) -> Result<Option<String>> {
    match variable(name) {
        Ok(value) if value.is_empty() => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => {
            Err(Error::invalid("connect", "the variable is not UTF-8").with("variable", name))
        }
    }
}

#[cfg(any(feature = "memory", feature = "redis"))]
fn namespace(variable: Lookup<'_>) -> Result<Namespace> {
    let name = get(variable, "MAS_NAMESPACE")?.unwrap_or_default();
    Namespace::new(name).map_err(|error| error.with("variable", "MAS_NAMESPACE"))
}

#[cfg(feature = "memory")]
async fn memory(namespace: Namespace) -> Result<Arc<dyn Transport>> {
    let broker = mas_transport_memory::MemoryBroker::shared();
    Ok(broker.connect_in(namespace).await?)
}

#[cfg(feature = "redis")]
fn redis(variable: Lookup<'_>) -> Result<mas_transport_redis::RedisConfig> {
    let addr = get(variable, "REDIS_ADDR")?;
    let addr = addr.as_deref().unwrap_or("localhost:6379").trim();
    let mut config = mas_transport_redis::RedisConfig::new(addr).namespace(namespace(variable)?);
    if let Some(username) = get(variable, "REDIS_USERNAME")? {
        config = config.username(username);
    }
    if let Some(password) = get(variable, "REDIS_PASSWORD")? {
        config = config.password(password);
    }
    if let Some(db) = get(variable, "REDIS_DB")? {
        let number = db.trim().parse().ok().filter(|number| *number >= 0);
        config = config.database(number.ok_or_else(|| {
            Error::invalid(
                "connect",
                "the database of a Redis server is a whole number, from 0 to 15 unless the server \
                 is configured otherwise",
            )
            .with("REDIS_DB", db.escape_debug())
        })?);
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use mas_transport_core::ErrorKind;

    use super::*;

    fn read(set: &[(&str, &str)]) -> Result<Settings> {
        Settings::read(&|name| {
            let found = set.iter().find(|(n, _)| *n == name);
            found
                .map(|(_, v)| (*v).to_owned())
                .ok_or(VarError::NotPresent)
        })
    }

    fn refused(set: &[(&str, &str)]) -> Error {
        match read(set) {
            Ok(_) => panic!("accepted: {set:?}"),
            Err(error) => error,
        }
    }

    #[test]
    fn an_unknown_backend_is_answered_with_those_there_are() {
        let error = refused(&[("PROTOCOL_TYPE", "carrier-pigeon")]);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        let told = error.to_string();
        assert!(told.contains("PROTOCOL_TYPE=carrier-pigeon"), "{told}");
        for (backend, compiled) in BACKENDS {
            assert_eq!(told.contains(backend), *compiled, "{told}");
        }
    }

    #[test]
    fn a_backend_that_is_not_compiled_in_names_its_feature() {
        for (backend, compiled) in BACKENDS {
            if *compiled {
                assert!(read(&[("PROTOCOL_TYPE", backend)]).is_ok(), "{backend}");
            } else {
                let error = refused(&[("PROTOCOL_TYPE", backend)]);
                assert_eq!(error.kind(), ErrorKind::Unsupported);
                let feature = format!("cargo feature \"{backend}\"");
                assert!(error.to_string().contains(&feature), "{error}");
            }
        }
    }

    #[cfg(feature = "memory")]
    #[test]
    fn memory_is_the_default_and_has_two_names() {
        for set in [
            &[][..],
            &[("PROTOCOL_TYPE", "")],
            &[("PROTOCOL_TYPE", "memory")],
            &[("PROTOCOL_TYPE", " InMemory ")],
        ] {
            assert!(matches!(read(set), Ok(Settings::Memory { .. })), "{set:?}");
        }
    }

    #[cfg(feature = "memory")]
    #[test]
    fn a_namespace_keeps_its_rules() {
        let error = refused(&[("MAS_NAMESPACE", "a.b")]);
        assert!(error.to_string().contains("MAS_NAMESPACE"), "{error}");
    }

    #[cfg(feature = "memory")]
    #[test]
    fn a_variable_that_is_not_text_is_named() {
        let read = Settings::read(&|_| Err(VarError::NotUnicode("x".into())));
        let error = read.err().unwrap();
        assert!(error.to_string().contains("PROTOCOL_TYPE"), "{error}");
    }

    #[cfg(feature = "redis")]
    #[test]
    fn redis_takes_its_address_database_and_credentials() {
        const REDIS: (&str, &str) = ("PROTOCOL_TYPE", "redis");
        let Ok(Settings::Redis(config)) = read(&[REDIS]) else {
            panic!("the defaults are refused");
        };
        assert_eq!(config.address(), "localhost:6379");
        let Ok(Settings::Redis(config)) = read(&[
            REDIS,
            ("REDIS_ADDR", "10.0.0.1:7000"),
            ("REDIS_USERNAME", "ann"),
            ("REDIS_PASSWORD", " hush "),
            ("REDIS_DB", "3"),
        ]) else {
            panic!("good values are refused");
        };
        let expected = mas_transport_redis::RedisConfig::new("10.0.0.1:7000")
            .username("ann")
            .password(" hush ")
            .database(3);
        assert_eq!(format!("{config:?}"), format!("{expected:?}"));
        for bad in ["-1", "x", "1.5", "99999999999999999999"] {
            let error = refused(&[REDIS, ("REDIS_PASSWORD", "hush"), ("REDIS_DB", bad)]);
            let told = error.to_string();
            assert!(told.contains(&format!("REDIS_DB={bad}")), "{told}");
            assert!(told.contains("0 to 15") && !told.contains("hush"), "{told}");
        }
    }
}
