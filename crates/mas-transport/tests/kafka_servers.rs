//! Each variable of the Kafka backend that reaches the brokers does there what the reference page says.
#![cfg(feature = "kafka")]

#[cfg(feature = "kafka-ssl")]
#[path = "../../mas-transport-redis/tests/redis/certificates.rs"]
mod certificates;

use std::time::Duration;

use conformance_tests::fixtures::{KafkaOptions, KafkaServer};
use mas_transport::kafka::KafkaNative;
use mas_transport::{Bus, Config, ErrorKind, Message, Subscription, Topic};
use tokio::time::Instant;

/// Longer than any of this takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// A server of our own; `None` where there is none and none is required. Always a process: a
/// container would not see our certificates.
fn server(options: &KafkaOptions) -> Option<KafkaServer> {
    let program = KafkaServer::program();
    match program.and_then(|program| KafkaServer::start_program(&program, options)) {
        Ok(server) => Some(server),
        Err(why) if std::env::var_os("REQUIRE_KAFKA").is_none_or(|v| v != "1") => {
            println!("SKIPPED backend=kafka reason={why}");
            None
        }
        Err(why) => panic!("{why}"),
    }
}

fn config(address: &str, variables: &[(&str, &str)]) -> Config {
    let first = [("PROTOCOL_TYPE", "kafka"), ("KAFKA_BROKERS", address)];
    Config::from_vars(first.into_iter().chain(variables.iter().copied()))
}

/// With these variables a message goes out and comes in.
async fn works(address: &str, variables: &[(&str, &str)]) -> Bus {
    let bus = Bus::connect(config(address, variables)).await.unwrap();
    let consumer = bus
        .subscribe(Subscription::new("orders").group("billing"))
        .await
        .unwrap();
    let message = Message::new("orders", "x").unwrap();
    bus.publish(message).await.unwrap();
    let received = tokio::time::timeout(LIMIT, consumer.recv()).await.unwrap();
    received.unwrap().unwrap().ack().await.unwrap();
    consumer.close(Instant::now() + LIMIT).await.unwrap();
    bus
}

/// Connecting fails as refused, not as if nobody were there, before it has tried for the whole of the
/// connect timeout, and no secret is told.
async fn refused(address: &str, variables: &[(&str, &str)]) {
    let patient = config(address, variables).set("KAFKA_CONNECT_TIMEOUT", "1h");
    let connecting = tokio::time::timeout(LIMIT, Bus::connect(patient));
    let error = connecting.await.unwrap().unwrap_err();
    let told = format!("{error} {error:?}");
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{told}");
    assert!(!told.contains("sesame"), "{told}");
}

/// A server whose second listener asks for a user.
fn asking(protocol: &str) -> KafkaOptions {
    let listener = format!("listener.name.{}", protocol.to_lowercase());
    KafkaOptions::new()
        .listener(protocol, protocol)
        .property(
            "sasl.enabled.mechanisms",
            "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        )
        .property(
            &format!("{listener}.plain.sasl.jaas.config"),
            "org.apache.kafka.common.security.plain.PlainLoginModule required user_app=\"sesame\";",
        )
        .property(
            &format!("{listener}.scram-sha-256.sasl.jaas.config"),
            "org.apache.kafka.common.security.scram.ScramLoginModule required;",
        )
        .property(
            &format!("{listener}.scram-sha-512.sasl.jaas.config"),
            "org.apache.kafka.common.security.scram.ScramLoginModule required;",
        )
        .scram_user("app", "sesame")
}

#[tokio::test(flavor = "multi_thread")]
async fn who_somebody_is() {
    let Some(there) = server(&asking("SASL_PLAINTEXT")) else {
        return;
    };
    let address = there.address_of("SASL_PLAINTEXT").unwrap();
    let user = [("KAFKA_USERNAME", "app"), ("KAFKA_PASSWORD", "sesame")];
    works(&address, &user).await;
    let wrong = [("KAFKA_USERNAME", "app"), ("KAFKA_PASSWORD", "open-sesame")];
    refused(&address, &wrong).await;
    #[cfg(feature = "kafka-ssl")]
    for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let named = ("KAFKA_SASL_MECHANISM", mechanism);
        works(&address, &[user[0], user[1], named]).await;
        let wrong = [wrong[0], wrong[1], named];
        refused(&address, &wrong).await;
    }
    let url = format!("kafka://app:sesame@{address}");
    Bus::from_url(&url).await.unwrap();
}

#[cfg(feature = "kafka-ssl")]
mod encrypted {
    use super::certificates::Authority;
    use super::*;

    /// A file for the time of a test.
    struct File(std::path::PathBuf);

    impl File {
        fn new(name: &str, contents: &str) -> Self {
            let name = format!("kafka-servers-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::write(&path, contents).unwrap();
            Self(path)
        }

        fn path(&self) -> &str {
            self.0.to_str().unwrap()
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    /// Encrypts a listener, with a certificate of this name.
    fn encrypting(
        options: KafkaOptions,
        protocol: &str,
        authority: &Authority,
        name: &str,
    ) -> KafkaOptions {
        let own = authority.sign(name);
        let listener = format!("listener.name.{}", protocol.to_lowercase());
        options
            .property(&format!("{listener}.ssl.keystore.type"), "PEM")
            .property(
                &format!("{listener}.ssl.keystore.certificate.chain"),
                &own.certificate,
            )
            .property(&format!("{listener}.ssl.keystore.key"), &own.key)
            .property(&format!("{listener}.ssl.truststore.type"), "PEM")
            .property(
                &format!("{listener}.ssl.truststore.certificates"),
                &authority.pem(),
            )
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whom_to_trust_and_what_to_show() {
        let (authority, stranger) = (Authority::new(), Authority::new());
        let options = KafkaOptions::new()
            .listener("SSL", "SSL")
            .property("listener.name.ssl.ssl.client.auth", "required");
        let options = encrypting(options, "SSL", &authority, "127.0.0.1");
        let Some(there) = server(&options) else {
            return;
        };
        let address = there.address_of("SSL").unwrap();
        let theirs = authority.sign("client");
        let ca = File::new("ca.pem", &authority.pem());
        let other = File::new("other.pem", &stranger.pem());
        let certificate = File::new("client.pem", &theirs.certificate);
        let key = File::new("client.key", &theirs.key);
        let trust = ("KAFKA_TLS_CA", ca.path());
        let certificate = ("KAFKA_TLS_CERT", certificate.path());
        let key = ("KAFKA_TLS_KEY", key.path());
        works(&address, &[trust, certificate, key]).await;
        refused(&address, &[trust]).await;
        let distrust = [("KAFKA_TLS_CA", other.path()), certificate, key];
        refused(&address, &distrust).await;
        let system = [("KAFKA_TLS", "true"), certificate, key];
        refused(&address, &system).await;
        // It does not fall back to plain text where the server has no TLS, which ends the connection as one
        // does that is about to go: that is worth another attempt.
        let plain = Bus::connect(config(&there.address(), &[trust]));
        let error = plain.await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        let told = format!("{error}: {:?}", std::error::Error::source(&error));
        assert!(told.contains("PLAINTEXT broker listener?"), "{told}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_certificate_of_another_name_is_refused() {
        let authority = Authority::new();
        let options = KafkaOptions::new().listener("SSL", "SSL");
        let options = encrypting(options, "SSL", &authority, "127.0.0.2");
        let Some(there) = server(&options) else {
            return;
        };
        let ca = File::new("name-ca.pem", &authority.pem());
        let address = there.address_of("SSL").unwrap();
        let trust = [("KAFKA_TLS_CA", ca.path())];
        refused(&address, &trust).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_user_signs_in_behind_tls() {
        let authority = Authority::new();
        let options = encrypting(asking("SASL_SSL"), "SASL_SSL", &authority, "127.0.0.1");
        let Some(there) = server(&options) else {
            return;
        };
        let ca = File::new("user-ca.pem", &authority.pem());
        let address = there.address_of("SASL_SSL").unwrap();
        let variables = [
            ("KAFKA_USERNAME", "app"),
            ("KAFKA_PASSWORD", "sesame"),
            ("KAFKA_SASL_MECHANISM", "SCRAM-SHA-512"),
            ("KAFKA_TLS_CA", ca.path()),
        ];
        works(&address, &variables).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn how_topics_and_groups_are_kept() {
    let Some(there) = server(&KafkaOptions::new()) else {
        return;
    };
    let address = there.address();
    let variables = [
        ("KAFKA_TOPIC_PREFIX", "shop"),
        ("MAS_NAMESPACE", "prod"),
        ("KAFKA_NUM_PARTITIONS", "2"),
        ("KAFKA_REPLICATION_FACTOR", "1"),
        ("KAFKA_MIN_INSYNC_REPLICAS", "1"),
        ("KAFKA_MESSAGE_TTL", "48h"),
        ("KAFKA_COMPRESSION", "zstd"),
        ("KAFKA_CLIENT_ID", "till"),
        ("KAFKA_CONFIG_LINGER_MS", "1"),
        ("MESSAGE_MAX_SIZE", "2MB"),
    ];
    let bus = works(&address, &variables).await;
    let native = bus.native::<KafkaNative>().unwrap();
    let orders = Topic::new("orders").unwrap();
    assert_eq!(native.topic(&orders), "shop..prod.orders");
    let client = native.client();
    assert_eq!(client.get("client.id"), Some("till"));
    assert_eq!(client.get("linger.ms"), Some("1"));
    assert_eq!(bus.info().capabilities.max_message_bytes, 2 << 20);
    let large = Message::new("orders", vec![7; 3 << 19]).unwrap();
    bus.publish(large).await.unwrap();
    let groups = bus.admin().groups(&orders).await.unwrap();
    assert_eq!(groups[0].as_str(), "billing");
    bus.close(LIMIT).await.unwrap();

    // A topic that is not there is not made.
    let bus = Bus::connect(config(&address, &[("KAFKA_AUTO_CREATE", "no")]));
    let bus = bus.await.unwrap();
    let message = Message::new("nowhere", "x").unwrap();
    let error = bus.publish(message).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    bus.close(LIMIT).await.unwrap();
}
