//! The error texts of docs/guide/troubleshooting.md are those that programs get: each is produced
//! here, and none stands there that is not.

use std::error::Error as _;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use conformance_tests::fixtures::RedisServer;
use mas_transport::memory::{MemoryBroker, MemoryConfig};
use mas_transport::{Bus, Config, Error, Message, Subscription};

const PAGE: &str = include_str!("../../../docs/guide/troubleshooting.md");

/// An error as programs print it: with its causes. Addresses and versions differ from run to run.
fn text(error: &Error, address: Option<&str>) -> String {
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
        Some(address) => text.replace(address, "localhost:6379"),
        None => text,
    };
    text.replace(env!("CARGO_PKG_VERSION"), "0.1.0")
}

fn wrong_settings(variables: &[(&str, &str)]) -> String {
    let config = Config::from_vars(variables.iter().copied());
    text(&config.validate().unwrap_err(), None)
}

/// What a configuration is refused for, without a broker.
fn configuration() -> Vec<String> {
    vec![
        wrong_settings(&[("PROTOCOL_TYPE", "rabbit")]),
        wrong_settings(&[("PROTOCOL_TYPE", "kafka")]),
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
    ]
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

/// What a broker that cannot be reached, or will not have us, comes to.
async fn on_redis() -> Vec<String> {
    let mut texts = Vec::new();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let refused = Bus::from_url(&format!("redis://{address}")).await;
    texts.push(text(&refused.unwrap_err(), Some(&address)));

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
        let refused = Bus::from_url(&format!("redis://{user}{address}")).await;
        let told = text(&refused.unwrap_err(), Some(&address));
        assert!(!told.contains("wrong@"), "{told}");
        texts.push(told);
    }
    texts
}

/// The texts of the page: what stands between ```text and ```.
fn written() -> Vec<String> {
    let blocks = PAGE.split("```text\n").skip(1);
    let blocks = blocks.map(|rest| rest.split("\n```").next().unwrap());
    blocks.map(str::to_owned).collect()
}

fn compare(produced: &[String], page: &[String]) {
    for text in produced {
        assert!(
            page.contains(text),
            "docs/guide/troubleshooting.md lacks this text:\n{text}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_page_tells_what_programs_are_told() {
    let page = written();
    let mut produced = configuration();
    produced.extend(at_work().await);
    compare(&produced, &page);
    // The other test has the rest.
    assert_eq!(page.len(), produced.len() + 3, "{page:#?}");
}

#[tokio::test]
async fn the_page_tells_what_a_broker_comes_to() {
    if let Err(why) = RedisServer::program() {
        let required = std::env::var("REQUIRE_REDIS").is_ok_and(|v| v == "1");
        assert!(!required, "REQUIRE_REDIS=1 and there is no server: {why}");
        eprintln!("SKIPPED the texts of Redis: {why}");
        return;
    }
    let produced = on_redis().await;
    compare(&produced, &written());
}
