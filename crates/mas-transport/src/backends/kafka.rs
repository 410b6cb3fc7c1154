//! Kafka: its settings, and what they come to.

#[cfg(feature = "kafka")]
use mas_transport_core::Result;

use super::{TlsNames, check_tls};
#[cfg(feature = "kafka")]
use super::{max_message_bytes, namespace, tls};
use crate::config::{Settings, table};
use crate::registry::Backend;

const TLS: TlsNames = TlsNames {
    switch: "KAFKA_TLS",
    authority: "KAFKA_TLS_CA",
    certificate: "KAFKA_TLS_CERT",
    key: "KAFKA_TLS_KEY",
};

pub(super) fn backend() -> Backend {
    #[cfg(feature = "kafka")]
    let mut backend = Backend::new("kafka", |settings: Settings| async move {
        let transport = mas_transport_kafka::KafkaTransport::connect(config(&settings)?);
        Ok(std::sync::Arc::new(transport.await?))
    });
    #[cfg(not(feature = "kafka"))]
    let mut backend = Backend::lacking("kafka");
    backend.variables = table::KAFKA.to_vec();
    backend.family = Some(table::KAFKA_CONFIG);
    backend.parts.tls = Some(("KAFKA_TLS", &["kafkas"]));
    let backend = backend
        .alias("kafkas")
        .host("KAFKA_BROKERS")
        .username("KAFKA_USERNAME")
        .password("KAFKA_PASSWORD")
        .check_with(check);
    #[cfg(feature = "kafka")]
    let backend = backend.check_with(check_client);
    backend
}

fn check(settings: &mut Settings) {
    const LARGEST: u64 = 10 << 20;
    let set = |name: &str| settings.get(name).is_some_and(|setting| setting.is_set());
    let (user, password) = (set("KAFKA_USERNAME"), set("KAFKA_PASSWORD"));
    let mechanism = settings.text("KAFKA_SASL_MECHANISM");
    let scram = mechanism.is_some_and(|mechanism| mechanism != "PLAIN");
    let timeout = set("KAFKA_SESSION_TIMEOUT");
    let in_sync = settings.whole("KAFKA_MIN_INSYNC_REPLICAS");
    let replicas = settings.whole("KAFKA_REPLICATION_FACTOR");
    let by_brokers = settings.text("KAFKA_GROUP_PROTOCOL") == Some("consumer");
    if user != password {
        let (there, lacking) = match user {
            true => ("KAFKA_USERNAME", "KAFKA_PASSWORD"),
            false => ("KAFKA_PASSWORD", "KAFKA_USERNAME"),
        };
        settings.refuse(
            there,
            "a user and a password go together",
            format!("set {lacking} too"),
        );
    } else if scram && !user {
        settings.refuse(
            "KAFKA_SASL_MECHANISM",
            "nobody is named who signs in",
            "set KAFKA_USERNAME and KAFKA_PASSWORD too",
        );
    }
    check_tls(settings, TLS);
    if settings
        .whole(table::MESSAGE_MAX_SIZE)
        .is_some_and(|size| size > LARGEST)
    {
        settings.refuse(
            table::MESSAGE_MAX_SIZE,
            "larger than Kafka takes",
            "allowed is 64KB to 10MB",
        );
    }
    if let (Some(in_sync), Some(replicas)) = (in_sync, replicas)
        && in_sync > replicas
    {
        settings.refuse(
            "KAFKA_MIN_INSYNC_REPLICAS",
            "more than there are replicas, so no topic would take a message",
            format!("allowed is 1 to KAFKA_REPLICATION_FACTOR, {replicas}"),
        );
    }
    if settings.text("KAFKA_ACKS") == Some("1") {
        settings.caution(
            "KAFKA_ACKS",
            "a receipt survives the broker's process only: a leader that dies loses what its \
             replicas have not copied",
        );
    }
    if timeout && by_brokers {
        settings.caution(
            "KAFKA_SESSION_TIMEOUT",
            "it has no effect with KAFKA_GROUP_PROTOCOL=consumer: the brokers' own counts",
        );
    }
}

/// What the client says without connecting.
#[cfg(feature = "kafka")]
fn check_client(settings: &mut Settings) {
    for (name, key, value) in passed_on(settings) {
        if let Err(refused) = mas_transport_kafka::KafkaConfig::check_native(&key, &value) {
            settings.refuse(name, format!("{key}: {}", refused.why()), refused.instead());
        }
    }
    let encrypted = settings.switch("KAFKA_TLS") == Some(true)
        || [TLS.authority, TLS.certificate]
            .iter()
            .any(|name| settings.text(name).is_some());
    let mechanism = settings.text("KAFKA_SASL_MECHANISM");
    let scram = mechanism.is_some_and(|mechanism| mechanism != "PLAIN");
    if !mas_transport_kafka::SSL && (encrypted || scram) {
        let what = "this build lacks TLS and SCRAM on Kafka: add features = [\"kafka-ssl\"] to \
                    mas-transport in Cargo.toml, which needs OpenSSL";
        settings.lacking = Some(("kafka", what.to_owned()));
    }
}

/// The settings of the client underneath: the variable, the client's own name, and the value.
#[cfg(feature = "kafka")]
fn passed_on(settings: &Settings) -> Vec<(&'static str, String, String)> {
    let prefix = table::KAFKA_CONFIG.prefix;
    let named = settings.iter().filter_map(|setting| {
        let name = setting.name();
        let key = name.strip_prefix(prefix)?.to_ascii_lowercase();
        let value = match settings.secret(name) {
            Some(secret) => secret.expose(),
            None => settings.text(name)?,
        };
        Some((name, key.replace('_', "."), value.to_owned()))
    });
    named.collect()
}

#[cfg(feature = "kafka")]
fn config(settings: &Settings) -> Result<mas_transport_kafka::KafkaConfig> {
    use mas_transport_kafka::{Acks, Compression, GroupProtocol, KafkaConfig, Mechanism};

    let brokers = settings.list("KAFKA_BROKERS").unwrap_or_default();
    let number = |name| {
        let number = settings.whole(name);
        number.map(|number| i32::try_from(number).unwrap_or(i32::MAX))
    };
    let mut config = KafkaConfig::new(brokers.join(","))
        .namespace(namespace(settings)?)
        .max_message_bytes(max_message_bytes(settings));
    if let (Some(user), Some(password)) = (
        settings.text("KAFKA_USERNAME"),
        settings.secret("KAFKA_PASSWORD"),
    ) {
        let mechanism = match settings.text("KAFKA_SASL_MECHANISM") {
            Some("SCRAM-SHA-256") => Mechanism::ScramSha256,
            Some("SCRAM-SHA-512") => Mechanism::ScramSha512,
            _ => Mechanism::Plain,
        };
        config = config.sasl(mechanism, user, password.expose());
    }
    if let Some(prefix) = settings.text("KAFKA_TOPIC_PREFIX") {
        config = config.topic_prefix(prefix);
    }
    if let Some(partitions) = number("KAFKA_NUM_PARTITIONS") {
        config = config.partitions(partitions);
    }
    if let Some(brokers) = number("KAFKA_REPLICATION_FACTOR") {
        config = config.replication_factor(brokers);
    }
    if let Some(replicas) = number("KAFKA_MIN_INSYNC_REPLICAS") {
        config = config.min_insync_replicas(replicas);
    }
    if let Some(kept) = settings.duration("KAFKA_MESSAGE_TTL") {
        config = config.retention(kept);
    }
    if let Some(on) = settings.switch("KAFKA_AUTO_CREATE") {
        config = config.auto_create(on);
    }
    config = config.compression(match settings.text("KAFKA_COMPRESSION") {
        Some("none") => Compression::None,
        Some("gzip") => Compression::Gzip,
        Some("lz4") => Compression::Lz4,
        Some("zstd") => Compression::Zstd,
        _ => Compression::Snappy,
    });
    if settings.text("KAFKA_ACKS") == Some("1") {
        config = config.acks(Acks::Leader);
    }
    if let Some(id) = settings.text("KAFKA_CLIENT_ID") {
        config = config.client_id(id);
    }
    if settings.text("KAFKA_GROUP_PROTOCOL") == Some("consumer") {
        config = config.group_protocol(GroupProtocol::Consumer);
    }
    if let Some(timeout) = settings.duration("KAFKA_SESSION_TIMEOUT") {
        config = config.session_timeout(timeout);
    }
    if let Some(timeout) = settings.duration("KAFKA_CONNECT_TIMEOUT") {
        config = config.connect_timeout(timeout);
    }
    if let Some(timeout) = settings.duration("KAFKA_RESPONSE_TIMEOUT") {
        config = config.response_timeout(timeout);
    }
    for (_, key, value) in passed_on(settings) {
        config = config.native(key, value);
    }
    match tls(settings, "kafka", TLS)? {
        Some(tls) => Ok(config.tls(tls)),
        None => Ok(config),
    }
}

#[cfg(feature = "kafka")]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    fn shown(variables: &[(&str, &str)]) -> String {
        let first = [("PROTOCOL_TYPE", "kafka")];
        let variables = first.into_iter().chain(variables.iter().copied());
        let settings = Config::from_vars(variables).resolve();
        settings.check().unwrap();
        let config = config(&settings).unwrap();
        config.check().unwrap();
        format!("{config:?}")
    }

    #[test]
    fn each_variable_comes_to_what_it_is_called() {
        for (variable, value, expected) in [
            (
                "KAFKA_BROKERS",
                "one:9093,two",
                r#"["one:9093", "two:9092"]"#,
            ),
            ("KAFKA_TOPIC_PREFIX", "shop", r#"topic_prefix: "shop""#),
            ("KAFKA_NUM_PARTITIONS", "7", "partitions: 7"),
            ("KAFKA_REPLICATION_FACTOR", "3", "replication_factor: 3"),
            (
                "KAFKA_MIN_INSYNC_REPLICAS",
                "1",
                "min_insync_replicas: Some(1)",
            ),
            ("KAFKA_MESSAGE_TTL", "1h", "retention: Some(3600s)"),
            ("KAFKA_AUTO_CREATE", "no", "auto_create: false"),
            ("KAFKA_COMPRESSION", "zstd", "compression: Zstd"),
            ("KAFKA_COMPRESSION", "none", "compression: None"),
            ("KAFKA_COMPRESSION", "gzip", "compression: Gzip"),
            ("KAFKA_COMPRESSION", "lz4", "compression: Lz4"),
            ("KAFKA_ACKS", "1", "acks: Leader"),
            ("KAFKA_CLIENT_ID", "till", r#"client_id: "till""#),
            ("KAFKA_GROUP_PROTOCOL", "consumer", "protocol: Consumer"),
            ("KAFKA_SESSION_TIMEOUT", "9s", "session_timeout: 9s"),
            ("KAFKA_CONNECT_TIMEOUT", "8s", "connect_timeout: 8s"),
            ("KAFKA_RESPONSE_TIMEOUT", "7s", "response_timeout: 7s"),
            ("KAFKA_CONFIG_LINGER_MS", "2", r#"native: ["linger.ms"]"#),
            ("MAS_NAMESPACE", "prod", r#"namespace: "prod""#),
            ("MESSAGE_MAX_SIZE", "10MB", "max_message_bytes: 10485760"),
        ] {
            let told = shown(&[(variable, value)]);
            assert!(told.contains(expected), "{variable}={value}: {told}");
            assert!(!shown(&[]).contains(expected), "{variable}");
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_reference_page() {
        let told = shown(&[]);
        for expected in [
            r#"["localhost:9092"]"#,
            "sasl: None, tls: None",
            r#"topic_prefix: "multiagent""#,
            "partitions: 3",
            "replication_factor: 1",
            "min_insync_replicas: None",
            "retention: Some(604800s)",
            "acks: All",
            "compression: Snappy",
            r#"client_id: "mas-transport""#,
            "protocol: Classic",
            "session_timeout: 6s",
            "max_message_bytes: 1048576",
            "auto_create: true",
            "native: []",
        ] {
            assert!(told.contains(expected), "{expected}? {told}");
        }
    }

    #[test]
    fn users_sign_in_by_the_mechanism_that_is_named() {
        let user = [("KAFKA_USERNAME", "app"), ("KAFKA_PASSWORD", "hush-hush")];
        let told = shown(&user);
        assert!(told.contains("sasl: Some(Plain)"), "{told}");
        assert!(!told.contains("hush"), "{told}");
        if mas_transport_kafka::SSL {
            for (name, mechanism) in [
                ("SCRAM-SHA-256", "ScramSha256"),
                ("scram-sha-512", "ScramSha512"),
            ] {
                let named = [user[0], user[1], ("KAFKA_SASL_MECHANISM", name)];
                let told = shown(&named);
                assert!(told.contains(&format!("Some({mechanism})")), "{told}");
            }
            let told = shown(&[("KAFKA_TLS", "true")]);
            assert!(told.contains("tls: Some"), "{told}");
        }
    }
}
