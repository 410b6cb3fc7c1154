use super::*;
use crate::SSL;
use mas_transport_core::ErrorKind;

const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nhush\n-----END PRIVATE KEY-----\n";

#[test]
fn urls_are_read() {
    let config = KafkaConfig::from_url("kafka://app:p%40s%3As@one:9093,two").unwrap();
    assert_eq!(config.address(), "one:9093,two:9092");
    let user = ("app".to_owned(), "p@s:s".to_owned());
    assert_eq!(config.security.user, Some(user));
    assert!(config.security.tls.is_none());
    let config = KafkaConfig::from_url("kafkas://[::1]/").unwrap();
    assert_eq!(config.address(), "[::1]:9092");
    assert!(config.security.tls.is_some() && config.security.user.is_none());
    for wrong in [
        "redis://a",
        "a:9092",
        "kafka://",
        "kafka://a/b",
        "kafka://u:p@",
        "kafka://u@a",
        "kafka://u:p@a b",
        "kafka://u:p@a?x=1",
        "kafka://u:p@a:x",
        "kafka://u:p%ff@a",
        "kafka://a,kafka://b",
    ] {
        let error = KafkaConfig::from_url(wrong).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{wrong}");
        let told = format!("{error} {error:?}");
        assert!(!told.contains("u:p"), "{told}");
    }
}

#[test]
fn ranges_are_checked() {
    let ok = KafkaConfig::new("a");
    ok.check().unwrap();
    let second = Duration::from_secs(1);
    for (wrong, allowed) in [
        (KafkaConfig::new(" , "), "host:port"),
        (KafkaConfig::new("kafka://a:9092"), "host:port"),
        (KafkaConfig::new("::1"), "host:port"),
        (ok.clone().topic_prefix("a.b"), "1 to 18 letters"),
        (ok.clone().topic_prefix("x".repeat(19)), "1 to 18 letters"),
        (ok.clone().client_id(""), "1 to 64 letters"),
        (ok.clone().client_id("a b"), "1 to 64 letters"),
        (ok.clone().partitions(0), "1 to 10,000"),
        (ok.clone().replication_factor(101), "1 to 100"),
        (ok.clone().min_insync_replicas(2), "replication factor"),
        (ok.clone().retention(Duration::ZERO), "at least 1 s"),
        (ok.clone().retention(Duration::MAX), "at least 1 s"),
        (ok.clone().session_timeout(second / 2), "1 s to 30 min"),
        (ok.clone().session_timeout(1801 * second), "1 s to 30 min"),
        (ok.clone().revocation_notice(61 * second), "1 min"),
        (ok.clone().max_message_bytes(1), "64 KiB to 10 MiB"),
        (ok.clone().max_message_bytes(11 << 20), "64 KiB to 10 MiB"),
        (ok.clone().connect_timeout(Duration::ZERO), "1 ms to 1 h"),
        (ok.clone().response_timeout(Duration::MAX), "1 ms to 1 h"),
        (ok.clone().max_in_flight(0), "1 to 32,768"),
        (ok.clone().sasl(Mechanism::Plain, "", "x"), "user"),
        (ok.clone().sasl(Mechanism::Plain, "a", "\0"), "zero"),
        (ok.clone().sasl_mechanism(Mechanism::ScramSha256), "a user"),
    ] {
        let error = wrong.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.to_string().contains(allowed), "{allowed}? {error}");
    }
    let kept = ok.clone().retention(None);
    kept.replication_factor(3)
        .min_insync_replicas(2)
        .check()
        .unwrap();
}

#[test]
fn what_is_passed_through_never_goes_before_what_has_its_own_setting() {
    let config = KafkaConfig::new("a").native("linger.ms", "2");
    config.check().unwrap();
    assert_eq!(config.client().get("linger.ms"), Some("2"));
    let config = config.native("acks", "hush");
    let error = config.check().unwrap_err();
    let told = error.to_string();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(
        told.contains("acks") && told.contains("KAFKA_ACKS") && !told.contains("hush"),
        "{told}"
    );
    let config = KafkaConfig::new("a").native("bootstrap.servers", "elsewhere");
    assert_eq!(config.client().get("bootstrap.servers"), Some("a:9092"));
}

#[test]
fn the_client_gets_what_signs_it_in() {
    let told = |config: &KafkaConfig, key| config.client().get(key).map(str::to_owned);
    let plain = KafkaConfig::new("a");
    assert_eq!(
        told(&plain, "security.protocol").as_deref(),
        Some("plaintext")
    );
    let user = plain
        .clone()
        .sasl(Mechanism::ScramSha512, "app", "hush-hush");
    assert_eq!(
        told(&user, "security.protocol").as_deref(),
        Some("sasl_plaintext")
    );
    assert_eq!(
        told(&user, "sasl.mechanisms").as_deref(),
        Some("SCRAM-SHA-512")
    );
    assert_eq!(told(&user, "sasl.username").as_deref(), Some("app"));
    assert_eq!(told(&user, "sasl.password").as_deref(), Some("hush-hush"));
    let tls = Tls::new()
        .ca_certificate(CERTIFICATE)
        .client_certificate(CERTIFICATE, KEY);
    let secure = user.tls(tls);
    for (key, value) in [
        ("security.protocol", "sasl_ssl"),
        ("enable.ssl.certificate.verification", "true"),
        ("ssl.endpoint.identification.algorithm", "https"),
        ("ssl.ca.pem", CERTIFICATE),
        ("ssl.certificate.pem", CERTIFICATE),
        ("ssl.key.pem", KEY),
    ] {
        assert_eq!(told(&secure, key).as_deref(), Some(value), "{key}");
    }
    let only = plain.tls(Tls::new());
    assert_eq!(told(&only, "security.protocol").as_deref(), Some("ssl"));
    assert_eq!(told(&only, "ssl.ca.pem"), None);
}

#[test]
fn tls_and_scram_come_with_their_feature() {
    let plain = KafkaConfig::new("a").sasl(Mechanism::Plain, "app", "hush-hush");
    plain.check().unwrap();
    // The client takes it, too.
    plain.client().create_native_config().unwrap();
    let scram = plain.clone().sasl_mechanism(Mechanism::ScramSha256);
    for config in [scram, plain.tls(Tls::new())] {
        let checked = config.check();
        if SSL {
            checked.unwrap();
            config.client().create_native_config().unwrap();
            continue;
        }
        let error = checked.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("kafka-ssl"), "{error}");
    }
}

#[cfg(feature = "ssl")]
#[test]
fn certificates_that_are_none_are_refused() {
    let config = |tls| KafkaConfig::new("a").tls(tls);
    for (tls, what) in [
        (Tls::new().ca_certificate("hush"), "the CA certificate"),
        (Tls::new().ca_certificate(vec![0xff]), "the CA certificate"),
        (
            Tls::new().client_certificate("hush", KEY),
            "the client certificate",
        ),
        (
            Tls::new().client_certificate(CERTIFICATE, "hush"),
            "the key",
        ),
    ] {
        let error = config(tls).check().unwrap_err();
        let told = error.to_string();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(told.contains(what) && !told.contains("hush"), "{told}");
    }
}

#[test]
fn no_secret_is_in_any_debug_output() {
    let tls = Tls::new()
        .ca_certificate(CERTIFICATE)
        .client_certificate(CERTIFICATE, KEY);
    let config = KafkaConfig::from_url("kafka://app:hush-hush@a")
        .unwrap()
        .native("ssl.key.password", "hush-hush")
        .tls(tls);
    let told = format!("{config:?} {config:#?} {:?}", config.check());
    assert!(!told.contains("hush"), "{told}");
    // What it is like is seen.
    for shown in ["a:9092", "Plain", "ssl.key.password"] {
        assert!(told.contains(shown), "{shown}? {told}");
    }
}
