//! The error texts of docs/guide/troubleshooting.md are those that programs get: each is produced
//! here, and none stands there that is not.

use std::error::Error as _;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use conformance_tests::Failure;
#[cfg(feature = "kafka")]
use conformance_tests::fixtures::{KafkaOptions, KafkaServer};
use conformance_tests::fixtures::{NatsOptions, NatsServer, RedisServer};
use mas_transport::memory::{MemoryBroker, MemoryConfig};
use mas_transport::{Bus, Config, Error, Message, Subscription};

const PAGE: &str = include_str!("../../../docs/guide/troubleshooting.md");

/// How many texts of the page are those of a broker.
const OF_REDIS: usize = 3;
const OF_NATS: usize = 6;
const OF_KAFKA: usize = 2;

/// An error as programs print it: with its causes. Addresses and versions differ from run to run; the
/// server's address and what the page has in its place are `address`.
fn text(error: &Error, address: Option<(&str, &str)>) -> String {
    let mut text = format!("{error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        let told = error.to_string();
        if !text.contains(&told) {
            text = format!("{text}: {told}");
        }
        cause = error.source();
    }
    let text = match address {
        Some((real, written)) => text.replace(real, written),
        None => text,
    };
    let text = text.replace(env!("CARGO_PKG_VERSION"), "0.1.0");
    // The page is that of a build without Kafka.
    let text = text.replace(
        "there is kafka, memory, nats, redis",
        "there is memory, nats, redis; this build lacks kafka",
    );
    // How long the client of Kafka tried, and how often it said so.
    let text = match text.split_once(" (after ") {
        Some((front, rest)) => {
            let (_, rest) = rest.split_once("ms in state ").unwrap();
            let (state, rest) = rest.split_once(')').unwrap();
            let state = state.split(',').next().unwrap();
            let rest = rest.strip_prefix(" suppressed)").unwrap_or(rest);
            format!("{front} (after 1ms in state {state}){rest}")
        }
        None => text,
    };
    // The version of the server.
    match text.split_once("server=nats-server ") {
        Some((front, rest)) => {
            let end = rest.find([',', ')']).unwrap_or(rest.len());
            format!("{front}server=nats-server 2.15.1{}", &rest[end..])
        }
        None => text,
    }
}

fn wrong_settings(variables: &[(&str, &str)]) -> String {
    let config = Config::from_vars(variables.iter().copied());
    text(&config.validate().unwrap_err(), None)
}

/// What a configuration is refused for, without a broker.
fn configuration() -> Vec<String> {
    let mut texts = vec![
        wrong_settings(&[("PROTOCOL_TYPE", "rabbit")]),
        wrong_settings(&[
            ("PROTOCOL_TYPE", "redis"),
            ("REDIS_DB", "x"),
            ("REDIS_POOL_SIZE", "-1"),
            ("REDIS_STREAM_MAXLEN", "5"),
        ]),
        wrong_settings(&[
            ("PROTOCOL_TYPE", "memory"),
            ("TRANSPORT_URL", "redis://localhost"),
        ]),
    ];
    if !cfg!(feature = "kafka") {
        texts.push(wrong_settings(&[("PROTOCOL_TYPE", "kafka")]));
    }
    texts
}

/// What a program that runs is told.
async fn at_work() -> Vec<String> {
    let config = MemoryConfig::new().max_topic_messages(1);
    let broker = MemoryBroker::new(config);
    let bus = Bus::new(broker.connect().await.unwrap());
    let subscription = || Subscription::new("orders").group("billing");
    let mut texts = Vec::new();
    let mut tell = |error: Error| texts.push(text(&error, None));

    tell(
        bus.subscribe(Subscription::new("orders"))
            .await
            .unwrap_err(),
    );
    let orders = bus.subscribe(subscription()).await.unwrap();
    let other = subscription().lease(Duration::from_secs(60));
    tell(bus.subscribe(other).await.unwrap_err());

    let short = Message::new("orders", "1").unwrap().with_id("order-1");
    let ttl = short.clone().ttl(Duration::from_secs(60));
    tell(bus.publish(ttl).await.unwrap_err());
    let large = Message::new("orders", vec![0; 2 << 20]).unwrap();
    tell(bus.publish(large).await.unwrap_err());
    bus.publish(short.clone()).await.unwrap();
    let again = Message::new("orders", "2").unwrap();
    tell(bus.publish(again).await.unwrap_err());

    let order = orders.recv().await.unwrap().unwrap();
    tell(order.json::<Vec<u8>>().unwrap_err());
    tokio::time::sleep(Duration::from_secs(31)).await;
    tell(order.ack().await.unwrap_err());
    let order = orders.recv().await.unwrap().unwrap();
    order.reject("no").await.unwrap();
    let letters = Subscription::new("_dlq.billing.orders").group("support");
    let letters = bus.subscribe(letters).await.unwrap();
    let letter = letters.recv().await.unwrap().unwrap();
    tell(letter.reject("no").await.unwrap_err());

    bus.close(Duration::from_secs(5)).await.unwrap();
    tell(bus.publish(short).await.unwrap_err());
    texts
}

/// An address at which nobody listens.
fn nobody() -> String {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    nobody.local_addr().unwrap().to_string()
}

/// Connecting to this address fails, which the page has at `written`.
async fn refused(url: &str, address: &str, written: &str) -> String {
    let refused = Bus::from_url(url).await.unwrap_err();
    let told = text(&refused, Some((address, written)));
    assert!(!told.contains("wrong@"), "{told}");
    told
}

/// What a Redis that cannot be reached, or will not have us, comes to.
async fn on_redis() -> Vec<String> {
    const WRITTEN: &str = "localhost:6379";
    let address = nobody();
    let mut texts = vec![refused(&format!("redis://{address}"), &address, WRITTEN).await];

    let server = RedisServer::start(&[]).unwrap();
    let address = server.address();
    // Not an option at start: the fixture asks the server whether it is there.
    let mut admin = TcpStream::connect(&address).unwrap();
    admin
        .write_all(b"CONFIG SET requirepass right\r\n")
        .unwrap();
    let mut answer = [0; 5];
    admin.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+OK\r\n");
    for user in ["", ":wrong@"] {
        texts.push(refused(&format!("redis://{user}{address}"), &address, WRITTEN).await);
    }
    texts
}

/// Likewise of NATS, and what it refuses.
async fn on_nats() -> Vec<String> {
    const WRITTEN: &str = "localhost:4222";
    let address = nobody();
    let url = format!("nats://{address}?connect_timeout=300ms");
    let mut texts = vec![refused(&url, &address, WRITTEN).await];

    let without = NatsServer::start(&NatsOptions::new().without_jetstream()).unwrap();
    texts.push(refused(&without.url(), &without.address(), WRITTEN).await);

    // By itself it may have the account alone.
    let rights = r#"authorization { users: [ { user: ann, password: right, permissions: {
        publish: [ "mas.>", "$JS.API.INFO" ], subscribe: [ "_INBOX.>" ] } } ] }"#;
    let strict = NatsServer::start(&NatsOptions::new().config(rights)).unwrap();
    let address = strict.address();
    texts.push(refused(&format!("nats://ann:wrong@{address}"), &address, WRITTEN).await);
    let order = || Message::new("orders", "1").unwrap();
    let bus = Bus::from_url(&format!("nats://ann:right@{address}")).await;
    let error = bus.unwrap().publish(order()).await.unwrap_err();
    texts.push(text(&error, Some((&address, WRITTEN))));

    let server = NatsServer::start(&NatsOptions::new()).unwrap();
    let capped = format!("{}?stream_max_msgs=1", server.url());
    let capped = Bus::from_url(&capped).await.unwrap();
    capped.publish(order()).await.unwrap();
    let full = capped.publish(order()).await.unwrap_err();
    let bus = Bus::from_url(&server.url()).await.unwrap();
    let conflict = bus.publish(order()).await.unwrap_err();
    for error in [full, conflict] {
        texts.push(text(&error, Some((&server.address(), WRITTEN))));
    }
    texts
}

/// Likewise of Kafka.
#[cfg(feature = "kafka")]
async fn on_kafka() -> Vec<String> {
    const WRITTEN: &str = "127.0.0.1:9092";
    let address = nobody();
    let url = format!("kafka://{address}?connect_timeout=300ms");
    let mut texts = vec![refused(&url, &address, WRITTEN).await];

    let users = KafkaOptions::new()
        .listener("SASL_PLAINTEXT", "SASL_PLAINTEXT")
        .property("sasl.enabled.mechanisms", "PLAIN")
        .property(
            "listener.name.sasl_plaintext.plain.sasl.jaas.config",
            "org.apache.kafka.common.security.plain.PlainLoginModule required user_ann=\"right\";",
        );
    let server = KafkaServer::start(&users).unwrap();
    let address = server.address_of("SASL_PLAINTEXT").unwrap();
    texts.push(refused(&format!("kafka://ann:wrong@{address}"), &address, WRITTEN).await);
    texts
}

/// The texts of the page: what stands between ```text and ```.
fn written() -> Vec<String> {
    let blocks = PAGE.split("```text\n").skip(1);
    let blocks = blocks.map(|rest| rest.split("\n```").next().unwrap());
    blocks.map(str::to_owned).collect()
}

fn compare(produced: &[String], page: &[String]) {
    let lacking = produced.iter().filter(|text| !page.contains(text));
    let lacking: Vec<&str> = lacking.map(String::as_str).collect();
    assert!(
        lacking.is_empty(),
        "docs/guide/troubleshooting.md lacks these texts:\n{}",
        lacking.join("\n")
    );
}

#[tokio::test(start_paused = true)]
async fn the_page_tells_what_programs_are_told() {
    let page = written();
    let mut produced = configuration();
    produced.extend(at_work().await);
    compare(&produced, &page);
    // The other tests have the rest.
    let of_builds_without = usize::from(cfg!(feature = "kafka"));
    let all = produced.len() + of_builds_without + OF_REDIS + OF_NATS + OF_KAFKA;
    assert_eq!(page.len(), all, "{page:#?}");
}

/// Whether there is a server; where one is required, there has to be.
fn there_is(backend: &str, program: Result<std::path::PathBuf, Failure>) -> bool {
    let Err(why) = program else { return true };
    let variable = format!("REQUIRE_{backend}");
    let required = std::env::var(&variable).is_ok_and(|v| v == "1");
    assert!(!required, "{variable}=1 and there is no server: {why}");
    println!("SKIPPED the texts of {backend}: {why}");
    false
}

#[tokio::test]
async fn the_page_tells_what_redis_comes_to() {
    if there_is("REDIS", RedisServer::program()) {
        let produced = on_redis().await;
        assert_eq!(produced.len(), OF_REDIS);
        compare(&produced, &written());
    }
}

#[tokio::test]
async fn the_page_tells_what_nats_comes_to() {
    if there_is("NATS", NatsServer::program()) {
        let produced = on_nats().await;
        assert_eq!(produced.len(), OF_NATS);
        compare(&produced, &written());
    }
}

#[cfg(feature = "kafka")]
#[tokio::test(flavor = "multi_thread")]
async fn the_page_tells_what_kafka_comes_to() {
    if there_is("KAFKA", KafkaServer::program()) {
        let produced = on_kafka().await;
        assert_eq!(produced.len(), OF_KAFKA);
        compare(&produced, &written());
    }
}
