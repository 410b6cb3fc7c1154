//! The backends of this library, registered as anybody's.

#[cfg(any(feature = "memory", feature = "redis"))]
use mas_transport_core::{Namespace, Result};
#[cfg(feature = "redis")]
use mas_transport_redis::{Overflow, Tls};

use crate::config::{Settings, table};
use crate::registry::Backend;

/// All of them: those that this build lacks are known by name and by their settings.
pub(crate) fn all() -> Vec<Backend> {
    vec![memory(), redis(), kafka(), nats()]
}

#[cfg(any(feature = "memory", feature = "redis"))]
fn namespace(settings: &Settings) -> Result<Namespace> {
    Namespace::new(settings.text(table::MAS_NAMESPACE).unwrap_or_default())
}

/// The largest message, in bytes.
#[cfg(any(feature = "memory", feature = "redis"))]
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
    let [tls_ca, certificate, key] = ["REDIS_TLS_CA", "REDIS_TLS_CERT", "REDIS_TLS_KEY"].map(set);
    let overflow = set("REDIS_STREAM_OVERFLOW");
    let expires = set("REDIS_MESSAGE_TTL");
    let capped = settings.whole("REDIS_STREAM_MAX_LEN").is_some();
    let gap = settings.text("REDIS_STREAM_OVERFLOW") == Some("gap");
    if certificate != key {
        let (there, lacking) = match certificate {
            true => ("REDIS_TLS_CERT", "REDIS_TLS_KEY"),
            false => ("REDIS_TLS_KEY", "REDIS_TLS_CERT"),
        };
        settings.refuse(
            there,
            "a certificate and its key go together",
            format!("set {lacking} too"),
        );
    }
    if settings.switch("REDIS_TLS") == Some(false) && (tls_ca || certificate || key) {
        settings.refuse(
            "REDIS_TLS",
            "certificates are set for a connection that is not encrypted",
            "set it to true, or leave out the REDIS_TLS_… variables",
        );
    }
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
    match redis_tls(settings)? {
        Some(tls) => Ok(config.tls(tls)),
        None => Ok(config),
    }
}

/// Certificates that are set ask for an encrypted connection as much as `REDIS_TLS` does.
#[cfg(feature = "redis")]
fn redis_tls(settings: &Settings) -> Result<Option<Tls>> {
    let authority = settings.text("REDIS_TLS_CA");
    let certificate = settings.text("REDIS_TLS_CERT");
    let key = settings.text("REDIS_TLS_KEY");
    let asked = settings.switch("REDIS_TLS") == Some(true);
    if !asked && authority.is_none() && certificate.is_none() && key.is_none() {
        return Ok(None);
    }
    let mut tls = Tls::new();
    if let Some(path) = authority {
        tls = tls.ca_certificate(pem("REDIS_TLS_CA", path)?);
    }
    if let (Some(certificate), Some(key)) = (certificate, key) {
        let certificate = pem("REDIS_TLS_CERT", certificate)?;
        tls = tls.client_certificate(certificate, pem("REDIS_TLS_KEY", key)?);
    }
    Ok(Some(tls))
}

#[cfg(feature = "redis")]
fn pem(variable: &'static str, path: &str) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| {
        mas_transport_core::Error::invalid("connect", "the file cannot be read")
            .on("redis")
            .with(variable, path.escape_debug())
            .because(error)
    })
}

fn kafka() -> Backend {
    let mut backend = Backend::lacking("kafka");
    backend.variables = table::KAFKA.to_vec();
    backend.host("KAFKA_BROKERS").check_with(|settings| {
        if settings
            .get("KAFKA_MESSAGE_TTL")
            .is_some_and(|s| s.is_set())
        {
            settings.caution("KAFKA_MESSAGE_TTL", NO_EXPIRY);
        }
        match settings.text("KAFKA_ACKS") {
            Some("1") => settings.caution(
                "KAFKA_ACKS",
                "a receipt survives the broker's process only: a leader that dies loses what \
                     its replicas have not copied",
            ),
            Some("0") => settings.caution(
                "KAFKA_ACKS",
                "a receipt says nothing: what the leader does not take is lost",
            ),
            _ => {}
        }
    })
}

fn nats() -> Backend {
    let mut backend = Backend::lacking("nats");
    backend.variables = table::NATS.to_vec();
    backend.parts.whole = Some("NATS_URL");
    backend.check_with(|settings| {
        if settings.get("NATS_MESSAGE_TTL").is_some_and(|s| s.is_set()) {
            settings.caution("NATS_MESSAGE_TTL", NO_EXPIRY);
        }
    })
}
