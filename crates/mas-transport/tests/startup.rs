//! Connecting to a real Redis server: at once, later, or not at all.
#![cfg(feature = "redis")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use conformance_tests::fixtures::RedisServer;
use mas_transport::{Bus, Config, ErrorKind, Message, Subscription};
use tracing_subscriber::fmt::MakeWriter;

/// Longer than any of this takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// A server of our own; `None` where there is none and none is required.
fn server() -> Option<RedisServer> {
    match RedisServer::start(&[]) {
        Ok(server) => Some(server),
        Err(why) if std::env::var_os("REQUIRE_REDIS").is_none_or(|v| v != "1") => {
            println!("SKIPPED backend=redis reason={why}");
            None
        }
        Err(why) => panic!("{why}"),
    }
}

/// The server asks for the password `hush-hush` from now on.
fn require_password(server: &RedisServer) {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream
        .write_all(b"CONFIG SET requirepass hush-hush\r\n")
        .unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+OK\r\n");
}

fn config(server: &RedisServer) -> Config {
    Config::from_vars([
        ("PROTOCOL_TYPE", "redis"),
        ("REDIS_ADDR", server.address().as_str()),
        ("REDIS_CONNECT_TIMEOUT", "300ms"),
    ])
}

/// What is logged, line by line.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Takes all that this thread logs as long as the guard lives.
    fn start() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(log.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn a_broker_that_is_away_fails_the_start_after_the_timeout() {
    let Some(server) = server() else { return };
    server.kill().unwrap();
    let connecting = tokio::time::timeout(LIMIT, Bus::connect(config(&server)));
    let error = connecting.await.unwrap().unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert!(error.to_string().contains(&server.address()), "{error}");
}

#[tokio::test]
async fn a_broker_that_is_away_is_awaited_when_asked_for() {
    let Some(server) = server() else { return };
    let (log, _guard) = Log::start();
    server.kill().unwrap();
    let config = config(&server).set("TRANSPORT_STARTUP", "wait");
    let connecting = Bus::connect(config);
    tokio::pin!(connecting);
    // Two attempts have failed when the log says so twice.
    let twice = async {
        while log.text().matches("cannot be reached yet").count() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        early = &mut connecting => panic!("connected to a dead server: {early:?}"),
        in_time = tokio::time::timeout(LIMIT, twice) => in_time.unwrap(),
    }
    server.restart().unwrap();
    let bus = tokio::time::timeout(LIMIT, connecting)
        .await
        .unwrap()
        .unwrap();
    bus.publish(Message::new("a", "x").unwrap()).await.unwrap();
    let log = log.text();
    assert!(
        log.contains("attempt=2") && log.contains("connected"),
        "{log}"
    );
    bus.close(LIMIT).await.unwrap();
}

#[tokio::test]
async fn a_wrong_password_is_not_waited_for_and_none_is_printed() {
    let Some(server) = server() else { return };
    require_password(&server);
    let (log, _guard) = Log::start();
    let wrong = config(&server)
        .set("TRANSPORT_STARTUP", "wait")
        .set("REDIS_PASSWORD", "wrong-hush");
    let connecting = tokio::time::timeout(LIMIT, Bus::connect(wrong));
    let error = connecting.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);

    let url = format!("redis://:hush-hush@{}/0?message_ttl=1h", server.address());
    let bus = Bus::from_url(&url).await.unwrap();
    let consumer = bus.subscribe(Subscription::new("a")).await.unwrap();
    bus.publish(Message::new("a", "x").unwrap()).await.unwrap();
    consumer.recv().await.unwrap().unwrap().ack().await.unwrap();
    let health = bus.health().await.unwrap();
    let debug = format!("{bus:?} {health:?} {error:?} {error}");
    bus.close(LIMIT).await.unwrap();
    let log = log.text();
    // The caution shows that the log was on.
    assert!(log.contains("REDIS_MESSAGE_TTL=1h"), "{log}");
    assert!(!log.contains("hush"), "{log}");
    assert!(!debug.contains("hush"), "{debug}");
}

#[tokio::test]
async fn the_settings_reach_the_server() {
    let Some(server) = server() else { return };
    let config = config(&server)
        .set("REDIS_DB", 3)
        .set("MAS_NAMESPACE", "team")
        .set("REDIS_CONSUMER_GROUP", "workers")
        .set("MESSAGE_MAX_SIZE", "128KB");
    let bus = Bus::connect(config.clone()).await.unwrap();
    assert_eq!(bus.info().capabilities.max_message_bytes, 128 << 10);
    let consumer = bus.subscribe(Subscription::new("a")).await.unwrap();
    bus.publish(Message::new("a", "x").unwrap()).await.unwrap();
    consumer.recv().await.unwrap().unwrap().ack().await.unwrap();
    assert_eq!(bus.lag("a", "workers").await.unwrap().pending, 0);
    // Another namespace, another database: nothing of it is there.
    for other in [
        config.clone().set("MAS_NAMESPACE", "else"),
        config.set("REDIS_DB", 0),
    ] {
        let other = Bus::connect(other).await.unwrap();
        let lag = other.lag("a", "workers").await.unwrap_err();
        assert_eq!(lag.kind(), ErrorKind::NotFound);
        other.close(LIMIT).await.unwrap();
    }
    bus.close(LIMIT).await.unwrap();
}
