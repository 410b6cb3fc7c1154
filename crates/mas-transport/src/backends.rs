//! The backends of this library, registered as anybody's.

#[cfg(any(feature = "kafka", feature = "nats", feature = "redis"))]
use mas_transport_core::Tls;
#[cfg(any(
    feature = "kafka",
    feature = "memory",
    feature = "nats",
    feature = "redis"
))]
use mas_transport_core::{Namespace, Result};
#[cfg(feature = "redis")]
use mas_transport_redis::Overflow;

use crate::config::{Settings, table};
use crate::registry::Backend;

mod kafka;

/// All of them: those that this build lacks are known by name and by their settings.
pub(crate) fn all() -> Vec<Backend> {
    vec![memory(), redis(), kafka::backend(), nats()]
}

#[cfg(any(
    feature = "kafka",
    feature = "memory",
    feature = "nats",
    feature = "redis"
))]
fn namespace(settings: &Settings) -> Result<Namespace> {
    Namespace::new(settings.text(table::MAS_NAMESPACE).unwrap_or_default())
}

/// The largest message, in bytes.
#[cfg(any(
    feature = "kafka",
    feature = "memory",
    feature = "nats",
    feature = "redis"
))]
fn max_message_bytes(settings: &Settings) -> usize {
    let bytes = settings.whole(table::MESSAGE_MAX_SIZE);
    bytes
        .and_then(|bytes| usize::try_from(bytes).ok())
        .unwrap_or(mas_transport_core::MAX_MESSAGE)
}

fn memory() -> Backend {
    #[cfg(feature = "memory")]
    let backend = Backend::new("memory", |settings: Settings| async move {
        let broker = mas_transport_memory::MemoryBroker::shared();
        broker
            .connect_limited(namespace(&settings)?, max_message_bytes(&settings))
            .await
    });
    #[cfg(not(feature = "memory"))]
    let backend = Backend::lacking("memory");
    backend.alias("inmemory")
}

fn redis() -> Backend {
    #[cfg(feature = "redis")]
    let mut backend = Backend::new("redis", |settings: Settings| async move {
        let transport = mas_transport_redis::RedisTransport::connect(redis_config(&settings)?);
        Ok(std::sync::Arc::new(transport.await?))
    });
    #[cfg(not(feature = "redis"))]
    let mut backend = Backend::lacking("redis");
    backend.variables = table::REDIS.to_vec();
    backend.parts.url = Some("REDIS_URL");
    backend.parts.host_and_port = Some(("REDIS_HOST", "REDIS_PORT"));
    backend.parts.tls = Some(("REDIS_TLS", &["rediss", "valkeys"]));
    backend
        .alias("rediss")
        .alias("valkey")
        .alias("valkeys")
        .host("REDIS_ADDR")
        .username("REDIS_USERNAME")
        .password("REDIS_PASSWORD")
        .path("REDIS_DB")
        .check_with(check_redis)
}

fn check_redis(settings: &mut Settings) {
    let set = |name: &str| settings.get(name).is_some_and(|setting| setting.is_set());
    let overflow = set("REDIS_STREAM_OVERFLOW");
    let expires = set("REDIS_MESSAGE_TTL");
    let capped = settings.whole("REDIS_STREAM_MAX_LEN").is_some();
    let gap = settings.text("REDIS_STREAM_OVERFLOW") == Some("gap");
    check_tls(settings, REDIS_TLS);
    if capped && gap {
        settings.caution(
            "REDIS_STREAM_OVERFLOW",
            "a topic that has reached REDIS_STREAM_MAX_LEN loses its oldest messages, settled or \
             not; groups are told by a gap event",
        );
    } else if overflow && !capped {
        settings.caution(
            "REDIS_STREAM_OVERFLOW",
            "it has no effect without REDIS_STREAM_MAX_LEN",
        );
    }
    if expires {
        settings.caution("REDIS_MESSAGE_TTL", NO_EXPIRY);
    }
}

const NO_EXPIRY: &str = "it has no effect: messages do not expire yet in this version";

#[cfg(feature = "redis")]
fn redis_config(settings: &Settings) -> Result<mas_transport_redis::RedisConfig> {
    let address = settings.text("REDIS_ADDR").unwrap_or("localhost:6379");
    let mut config = mas_transport_redis::RedisConfig::new(address)
        .namespace(namespace(settings)?)
        .max_message_bytes(max_message_bytes(settings));
    if let Some(username) = settings.text("REDIS_USERNAME") {
        config = config.username(username);
    }
    if let Some(password) = settings.secret("REDIS_PASSWORD") {
        config = config.password(password.expose());
    }
    if let Some(number) = settings.whole("REDIS_DB") {
        config = config.database(i64::try_from(number).unwrap_or(i64::MAX));
    }
    if let Some(timeout) = settings.duration("REDIS_CONNECT_TIMEOUT") {
        config = config.connect_timeout(timeout);
    }
    if let Some(timeout) = settings.duration("REDIS_BLOCK_TIMEOUT") {
        config = config.block_timeout(timeout);
    }
    if let Some(number) = settings.whole("REDIS_POOL_SIZE") {
        config = config.connections(usize::try_from(number).unwrap_or(usize::MAX));
    }
    if let Some(entries) = settings.whole("REDIS_STREAM_MAX_LEN") {
        let overflow = match settings.text("REDIS_STREAM_OVERFLOW") {
            Some("gap") => Overflow::Gap,
            _ => Overflow::Refuse,
        };
        config = config.stream_max_len(entries, overflow);
    }
    match tls(settings, "redis", REDIS_TLS)? {
        Some(tls) => Ok(config.tls(tls)),
        None => Ok(config),
    }
}

/// The variables of an encrypted connection.
#[derive(Clone, Copy)]
struct TlsNames {
    switch: &'static str,
    authority: &'static str,
    certificate: &'static str,
    key: &'static str,
}

const REDIS_TLS: TlsNames = TlsNames {
    switch: "REDIS_TLS",
    authority: "REDIS_TLS_CA",
    certificate: "REDIS_TLS_CERT",
    key: "REDIS_TLS_KEY",
};

const NATS_TLS: TlsNames = TlsNames {
    switch: "NATS_TLS",
    authority: "NATS_TLS_CA",
    certificate: "NATS_TLS_CERT",
    key: "NATS_TLS_KEY",
};

fn check_tls(settings: &mut Settings, names: TlsNames) {
    let set = |name: &str| settings.get(name).is_some_and(|setting| setting.is_set());
    let (authority, certificate, key) =
        (set(names.authority), set(names.certificate), set(names.key));
    if certificate != key {
        let (there, lacking) = match certificate {
            true => (names.certificate, names.key),
            false => (names.key, names.certificate),
        };
        settings.refuse(
            there,
            "a certificate and its key go together",
            format!("set {lacking} too"),
        );
    }
    if settings.switch(names.switch) == Some(false) && (authority || certificate || key) {
        settings.refuse(
            names.switch,
            "certificates are set for a connection that is not encrypted",
            format!(
                "set it to true, or leave out the {}_… variables",
                names.switch
            ),
        );
    }
}

/// Certificates that are set ask for an encrypted connection as much as the switch does.
#[cfg(any(feature = "kafka", feature = "nats", feature = "redis"))]
fn tls(settings: &Settings, backend: &'static str, names: TlsNames) -> Result<Option<Tls>> {
    let authority = settings.text(names.authority);
    let certificate = settings.text(names.certificate);
    let key = settings.text(names.key);
    let asked = settings.switch(names.switch) == Some(true);
    if !asked && authority.is_none() && certificate.is_none() && key.is_none() {
        return Ok(None);
    }
    let read = |variable, path| file(backend, variable, path);
    let mut tls = Tls::new();
    if let Some(path) = authority {
        tls = tls.ca_certificate(read(names.authority, path)?);
    }
    if let (Some(certificate), Some(key)) = (certificate, key) {
        let certificate = read(names.certificate, certificate)?;
        tls = tls.client_certificate(certificate, read(names.key, key)?);
    }
    Ok(Some(tls))
}

#[cfg(any(feature = "kafka", feature = "nats", feature = "redis"))]
fn file(backend: &'static str, variable: &'static str, path: &str) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| {
        mas_transport_core::Error::invalid("connect", "the file cannot be read")
            .on(backend)
            .with(variable, path.escape_debug())
            .because(error)
    })
}

fn nats() -> Backend {
    #[cfg(feature = "nats")]
    let mut backend = Backend::new("nats", |settings: Settings| async move {
        let transport = mas_transport_nats::NatsTransport::connect(nats_config(&settings)?);
        Ok(std::sync::Arc::new(transport.await?))
    });
    #[cfg(not(feature = "nats"))]
    let mut backend = Backend::lacking("nats");
    backend.variables = table::NATS.to_vec();
    backend.parts.whole = Some("NATS_URL");
    backend.check_with(check_nats)
}

fn check_nats(settings: &mut Settings) {
    let set = |name: &str| settings.get(name).is_some_and(|setting| setting.is_set());
    let (user, password) = (set("NATS_USER"), set("NATS_PASSWORD"));
    let identities = ["NATS_USER", "NATS_TOKEN", "NATS_NKEY", "NATS_CREDS"];
    let given: Vec<&str> = identities.into_iter().filter(|name| set(name)).collect();
    let expires = set("NATS_MESSAGE_TTL");
    if user != password {
        let (there, lacking) = match user {
            true => ("NATS_USER", "NATS_PASSWORD"),
            false => ("NATS_PASSWORD", "NATS_USER"),
        };
        settings.refuse(
            there,
            "a user and a password go together",
            format!("set {lacking} too"),
        );
    }
    if let [first, rest @ ..] = given.as_slice()
        && !rest.is_empty()
    {
        settings.refuse(
            first,
            "it is one of several identities",
            format!("leave out {}", rest.join(", ")),
        );
    }
    check_tls(settings, NATS_TLS);
    if expires {
        settings.caution("NATS_MESSAGE_TTL", NO_EXPIRY);
    }
}

#[cfg(feature = "nats")]
fn nats_config(settings: &Settings) -> Result<mas_transport_nats::NatsConfig> {
    use mas_transport_nats::{NatsConfig, Storage};

    let url = settings.secret("NATS_URL");
    let url = url.map_or("nats://localhost:4222", |url| url.expose());
    let mut config = NatsConfig::from_url(url)?
        .namespace(namespace(settings)?)
        .max_message_bytes(max_message_bytes(settings));
    if let (Some(user), Some(password)) =
        (settings.text("NATS_USER"), settings.secret("NATS_PASSWORD"))
    {
        config = config.user(user, password.expose());
    }
    if let Some(token) = settings.secret("NATS_TOKEN") {
        config = config.token(token.expose());
    }
    if let Some(seed) = settings.secret("NATS_NKEY") {
        config = config.nkey(seed.expose());
    }
    if let Some(path) = settings.text("NATS_CREDS") {
        let content = file("nats", "NATS_CREDS", path)?;
        config = config.credentials(String::from_utf8_lossy(&content));
    }
    if let Some(prefix) = settings.text("NATS_STREAM") {
        config = config.stream_prefix(prefix);
    }
    if let Some(replicas) = settings.whole("NATS_REPLICAS") {
        config = config.replicas(usize::try_from(replicas).unwrap_or(usize::MAX));
    }
    if settings.text("NATS_STORAGE") == Some("memory") {
        config = config.storage(Storage::Memory);
    }
    if let Some(most) = settings.whole("NATS_STREAM_MAX_MSGS") {
        config = config.max_topic_messages(most);
    }
    if let Some(most) = settings.whole("NATS_STREAM_MAX_BYTES") {
        config = config.max_topic_bytes(most);
    }
    if let Some(age) = settings.duration("NATS_STREAM_MAX_AGE") {
        config = config.max_topic_age(age);
    }
    if let Some(window) = settings.duration("NATS_DUPLICATE_WINDOW") {
        config = config.duplicate_window(window);
    }
    if let Some(most) = settings.whole("NATS_MAX_ACK_PENDING") {
        config = config.max_ack_pending(u32::try_from(most).unwrap_or(u32::MAX));
    }
    if let Some(timeout) = settings.duration("NATS_CONNECT_TIMEOUT") {
        config = config.connect_timeout(timeout);
    }
    match tls(settings, "nats", NATS_TLS)? {
        Some(tls) => Ok(config.tls(tls)),
        None => Ok(config),
    }
}
