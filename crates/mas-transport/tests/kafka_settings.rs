//! The variables of the Kafka backend: what can be said of them without a broker. That each comes to
//! what it is called is a test of the factory's own.
#![cfg(feature = "kafka")]

use std::path::PathBuf;
use std::time::Duration;

use mas_transport::{Bus, Config, ErrorKind, Settings, kafka};
use tokio::time::Instant;

/// Longer than any of this takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

const SECRET: &str = "hush-hush";
const USER: [(&str, &str); 2] = [("KAFKA_USERNAME", "app"), ("KAFKA_PASSWORD", SECRET)];

fn config(variables: &[(&str, &str)]) -> Config {
    let first = [("PROTOCOL_TYPE", "kafka")];
    Config::from_vars(first.into_iter().chain(variables.iter().copied()))
}

fn resolve(variables: &[(&str, &str)]) -> Settings {
    config(variables).resolve()
}

fn problems(settings: &Settings) -> Vec<String> {
    let problems = settings.problems().iter();
    problems.map(ToString::to_string).collect()
}

/// A file for the time of a test.
struct File(PathBuf);

impl File {
    fn new(name: &str, contents: &str) -> Self {
        let name = format!("kafka-settings-{}-{name}", std::process::id());
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

/// An address at which nobody listens.
fn nobody() -> String {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    nobody.local_addr().unwrap().to_string()
}

#[test]
fn a_url_names_brokers_and_a_user() {
    let url = "kafka://app:hush%2Dhush@one:9093,two/?acks=1&namespace=prod&message_max_size=2MB";
    let settings = Config::from_vars([("TRANSPORT_URL", url)]).resolve();
    assert_eq!(problems(&settings), [""; 0]);
    assert_eq!(settings.backend(), "kafka");
    assert_eq!(settings.list("KAFKA_BROKERS").unwrap(), ["one:9093", "two"]);
    assert_eq!(settings.text("KAFKA_USERNAME"), Some("app"));
    assert_eq!(settings.secret("KAFKA_PASSWORD").unwrap().expose(), SECRET);
    assert_eq!(settings.text("KAFKA_ACKS"), Some("1"));
    assert_eq!(settings.text("MAS_NAMESPACE"), Some("prod"));
    assert!(!format!("{settings:?}").contains("hush"));
    for secure in ["TRANSPORT_URL=kafkas://h", "PROTOCOL_TYPE=kafkas"] {
        let variable = secure.split_once('=').unwrap();
        let settings = Config::from_vars([variable]).resolve();
        assert_eq!(problems(&settings), [""; 0], "{secure}");
        assert_eq!(settings.switch("KAFKA_TLS"), Some(true), "{secure}");
    }
    let path = Config::from_vars([("TRANSPORT_URL", "kafka://h/topic")]).resolve();
    assert!(problems(&path)[0].contains("it has a path"), "{path:?}");
}

#[test]
fn a_file_has_a_table() {
    let toml = "[protocol]\ntype = \"kafka\"\n[kafka]\nbrokers = [\"one:1\", \"two:2\"]\n\
                message_ttl = \"48h\"\nauto_create = false\n[kafka.config]\nlinger.ms = 2\n";
    let yaml = "protocol: { type: kafka }\nkafka:\n  brokers: [one:1, two:2]\n  message_ttl: 48h\n  \
                auto_create: false\n  config: { linger.ms: 2 }\n";
    for (name, text) in [("a.toml", toml), ("a.yaml", yaml)] {
        let file = File::new(name, text);
        let settings = Config::new().file(file.path()).resolve();
        assert_eq!(problems(&settings), [""; 0], "{name}");
        assert_eq!(settings.list("KAFKA_BROKERS").unwrap(), ["one:1", "two:2"]);
        let kept = settings.duration("KAFKA_MESSAGE_TTL");
        assert_eq!(kept, Some(Duration::from_secs(48 * 3600)));
        assert_eq!(settings.switch("KAFKA_AUTO_CREATE"), Some(false));
        assert_eq!(settings.text("KAFKA_CONFIG_LINGER_MS"), Some("2"));
    }
    let file = File::new("wrong.toml", "[kafka]\nbroker = \"hush-hush\"\n");
    let told = problems(&config(&[]).file(file.path()).resolve());
    assert!(
        told[0].ends_with("did you mean kafka.brokers?") && !told[0].contains("hush"),
        "{told:?}"
    );
}

#[test]
fn everything_wrong_is_told_at_once() {
    let settings = resolve(&[
        ("KAFKA_BROKERS", "kafka://one"),
        ("KAFKA_ACKS", "0"),
        ("KAFKA_NUM_PARTITIONS", "0"),
        ("KAFKA_COMPRESION", "lz4"),
        ("KAFKA_PASSWORD", SECRET),
        ("MESSAGE_MAX_SIZE", "11MB"),
        ("KAFKA_MIN_INSYNC_REPLICAS", "2"),
        ("KAFKA_CONFIG_ENABLE_AUTO_COMMIT", "true"),
        ("KAFKA_CONFIG_LINGER_SM", "2"),
        ("KAFKA_CONFIG_SSL_KEYSTORE_PASSWORD", SECRET),
    ]);
    let told = problems(&settings);
    for part in [
        "KAFKA_BROKERS=kafka://one: not allowed; allowed is host:port, several by comma; a URL goes \
         into TRANSPORT_URL",
        "KAFKA_ACKS=0: not allowed; allowed is all or 1",
        "KAFKA_NUM_PARTITIONS=0: not allowed; allowed is a whole number, 1 to 10000",
        "KAFKA_COMPRESION: there is no such setting; did you mean KAFKA_COMPRESSION?",
        "KAFKA_PASSWORD=***: a user and a password go together; set KAFKA_USERNAME too",
        "MESSAGE_MAX_SIZE=11MB: larger than Kafka takes; allowed is 64KB to 10MB",
        "KAFKA_MIN_INSYNC_REPLICAS=2: more than there are replicas, so no topic would take a \
         message; allowed is 1 to KAFKA_REPLICATION_FACTOR, 1",
        "KAFKA_CONFIG_ENABLE_AUTO_COMMIT=true: enable.auto.commit: it settles what no handler has \
         finished, which loses messages; leave it out: an ack is a commit of the library's own",
        "KAFKA_CONFIG_LINGER_SM=2: linger.sm: librdkafka has no such setting; did you mean \
         linger.ms?",
        "KAFKA_CONFIG_SSL_KEYSTORE_PASSWORD=***: ssl.keystore.password: the client certificate has \
         settings of its own; use Tls::client_certificate (KAFKA_TLS_CERT, KAFKA_TLS_KEY)",
    ] {
        assert!(told.iter().any(|told| told == part), "{part}? {told:#?}");
    }
    assert_eq!(told.len(), 10, "{told:#?}");
    let whole = settings.check().unwrap_err().to_string();
    assert!(!whole.contains("hush"), "{whole}");
}

#[test]
fn who_signs_in_is_named_whole() {
    let mechanism = ("KAFKA_SASL_MECHANISM", "SCRAM-SHA-256");
    let told = problems(&resolve(&[mechanism]));
    assert!(told[0].contains("set KAFKA_USERNAME and"), "{told:?}");
    let told = problems(&resolve(&[USER[0]]));
    assert!(told[0].contains("set KAFKA_PASSWORD too"), "{told:?}");
    let told = problems(&resolve(&[("KAFKA_SASL_MECHANISM", "GSSAPI")]));
    assert!(
        told[0].contains("PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"),
        "{told:?}"
    );
    let file = File::new("ca.pem", "");
    let told = problems(&resolve(&[
        ("KAFKA_TLS", "no"),
        ("KAFKA_TLS_CA", file.path()),
    ]));
    assert!(told[0].contains("not encrypted"), "{told:?}");
    let told = problems(&resolve(&[("KAFKA_TLS_CERT", file.path())]));
    assert!(told[0].contains("set KAFKA_TLS_KEY too"), "{told:?}");
}

#[test]
fn tls_and_scram_name_the_feature_where_it_is_off() {
    let scram = [USER[0], USER[1], ("KAFKA_SASL_MECHANISM", "SCRAM-SHA-512")];
    let file = File::new("authority.pem", "");
    for variables in [
        &scram[..],
        &[("KAFKA_TLS", "true")],
        &[("KAFKA_TLS_CA", file.path())],
    ] {
        let checked = config(variables).validate();
        if kafka::SSL {
            checked.unwrap();
            continue;
        }
        let error = checked.unwrap_err();
        let told = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{told}");
        assert!(told.contains("features = [\"kafka-ssl\"]"), "{told}");
    }
    config(&USER).validate().unwrap();
}

#[test]
fn what_loses_messages_or_has_no_effect_is_said() {
    let told = |variables: &[(&str, &str)]| {
        let settings = resolve(variables);
        let cautions = settings.cautions().iter();
        cautions.map(ToString::to_string).collect::<Vec<_>>()
    };
    assert!(told(&[("KAFKA_ACKS", "1")])[0].contains("a leader that dies loses"));
    let consumer = ("KAFKA_GROUP_PROTOCOL", "consumer");
    assert_eq!(told(&[consumer]), [""; 0]);
    assert!(told(&[consumer, ("KAFKA_SESSION_TIMEOUT", "9s")])[0].contains("no effect"));
    assert_eq!(told(&[("KAFKA_MESSAGE_TTL", "1h")]), [""; 0]);
}

#[cfg(feature = "kafka-ssl")]
#[tokio::test]
async fn certificates_that_are_none_are_refused() {
    let file = File::new("none.pem", SECRET);
    let address = nobody();
    let variables = [("KAFKA_BROKERS", &*address), ("KAFKA_TLS_CA", file.path())];
    let error = Bus::connect(config(&variables)).await.unwrap_err();
    let told = error.to_string();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{told}");
    assert!(
        told.contains("CA certificate") && !told.contains("hush"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_connecting_goes_on() {
    let address = nobody();
    let asked = Instant::now();
    let variables = [
        ("KAFKA_BROKERS", &*address),
        ("KAFKA_CONNECT_TIMEOUT", "300ms"),
    ];
    let connecting = tokio::time::timeout(LIMIT, Bus::connect(config(&variables)));
    let error = connecting.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}: {error}");
}
