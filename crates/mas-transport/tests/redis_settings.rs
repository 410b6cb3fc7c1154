//! Each variable of the Redis backend does at a real server what the reference page says.
#![cfg(feature = "redis")]

#[path = "../../mas-transport-redis/tests/redis/certificates.rs"]
mod certificates;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use conformance_tests::fixtures::RedisServer;
use mas_transport::redis::RedisNative;
use mas_transport::{
    Bus, Config, ConsumerEvent, Error, ErrorKind, Message, Result, Stored, Subscription, Topic,
};
use tokio::time::Instant;

use certificates::Authority;

/// Longer than any of this takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// A server of our own; `None` where there is none and none is required. Always a process: a
/// container would not see our certificates.
fn server(options: &[(&str, &str)]) -> Option<RedisServer> {
    let program = RedisServer::program();
    match program.and_then(|program| RedisServer::start_program(&program, options)) {
        Ok(server) => Some(server),
        Err(why) if std::env::var_os("REQUIRE_REDIS").is_none_or(|v| v != "1") => {
            println!("SKIPPED backend=redis reason={why}");
            None
        }
        Err(why) => panic!("{why}"),
    }
}

fn config(server: &RedisServer, variables: &[(&str, &str)]) -> Config {
    let address = server.address();
    let first = [("PROTOCOL_TYPE", "redis"), ("REDIS_ADDR", &*address)];
    Config::from_vars(first.into_iter().chain(variables.iter().copied()))
}

async fn connect(server: &RedisServer, variables: &[(&str, &str)]) -> Bus {
    Bus::connect(config(server, variables)).await.unwrap()
}

/// Connecting fails, in these words.
async fn refused(config: Config, kind: ErrorKind, words: &str) {
    let connecting = tokio::time::timeout(LIMIT, Bus::connect(config));
    let error = connecting.await.unwrap().unwrap_err();
    let told = format!("{error} {error:?}");
    assert!(error.kind() == kind && told.contains(words), "{told}");
}

fn message(payload: impl Into<Vec<u8>>) -> Message {
    Message::new("orders", payload.into()).unwrap()
}

fn subscription() -> Subscription {
    Subscription::new("orders").group("billing")
}

/// A connection behind the library's back.
struct Door(BufReader<TcpStream>);

impl Door {
    fn open(server: &RedisServer) -> Self {
        let stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Self(BufReader::new(stream))
    }

    fn ask(&mut self, command: &str) -> String {
        let stream = self.0.get_mut();
        stream
            .write_all(format!("{command}\r\n").as_bytes())
            .unwrap();
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let Some(length) = line.strip_prefix('$') else {
            assert!(!line.starts_with('-'), "{command}: {line}");
            return line.trim_end().to_owned();
        };
        let mut text = vec![0; length.trim().parse::<usize>().unwrap() + 2];
        self.0.read_exact(&mut text).unwrap();
        String::from_utf8(text).unwrap().trim_end().to_owned()
    }

    /// What `CLIENT LIST` says of everybody else.
    fn others(&mut self) -> Vec<String> {
        let id = format!("id={} ", self.ask("CLIENT ID").trim_start_matches(':'));
        let list = self.ask("CLIENT LIST");
        let others = list.lines().filter(|line| !line.starts_with(&id));
        others.map(str::to_owned).collect()
    }

    /// How often a command was called.
    fn calls(&mut self, command: &str) -> u64 {
        let stats = self.ask("INFO commandstats");
        let begins = format!("cmdstat_{command}:calls=");
        let line = stats.lines().find_map(|line| line.strip_prefix(&begins));
        let calls = line.and_then(|line| line.split(',').next());
        calls.map_or(0, |calls| calls.parse().unwrap())
    }
}

/// Waits for something that a server shows soon.
async fn soon<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let until = Instant::now() + LIMIT;
    loop {
        match look() {
            Ok(found) => return found,
            Err(found) => assert!(Instant::now() < until, "{what}: {found}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn redis_pool_size_is_the_number_of_connections_for_commands() {
    let Some(server) = server(&[]) else { return };
    let mut door = Door::open(&server);
    for (size, commands) in [("1", 1), ("2", 2), ("3", 3), ("10", 4)] {
        let bus = connect(&server, &[("REDIS_POOL_SIZE", size)]).await;
        let mut consumers = Vec::new();
        for _ in 0..3 {
            consumers.push(bus.subscribe(subscription()).await.unwrap());
        }
        // One more for each consumer, for its blocking read.
        let expected = commands + consumers.len();
        soon(size, || match door.others() {
            all if all.len() == expected => Ok(()),
            all => Err(format!("{expected} are expected: {all:#?}")),
        })
        .await;
        bus.close(LIMIT).await.unwrap();
        soon("closed", || match door.others() {
            all if all.is_empty() => Ok(()),
            all => Err(format!("{all:#?}")),
        })
        .await;
    }
}

#[tokio::test]
async fn redis_stream_max_len_refuses_or_tells_of_a_gap() {
    let Some(server) = server(&[]) else { return };
    let offer = async |bus: &Bus| {
        bus.publish_batch((0..5).map(|n| message(vec![n])).collect())
            .await
    };
    let mut door = Door::open(&server);
    let mut length = |bus: &Bus| {
        let native = bus.native::<RedisNative>().unwrap();
        let stream = native.stream(&Topic::new("orders").unwrap());
        door.ask(&format!("XLEN {stream}"))
    };
    // By default it refuses.
    for (namespace, overflow) in [("bydefault", None), ("refuses", Some("refuse"))] {
        let mut variables = vec![("MAS_NAMESPACE", namespace), ("REDIS_STREAM_MAX_LEN", "3")];
        variables.extend(overflow.map(|overflow| ("REDIS_STREAM_OVERFLOW", overflow)));
        let bus = connect(&server, &variables).await;
        let outcomes = offer(&bus).await;
        for (n, outcome) in outcomes.iter().enumerate() {
            match outcome {
                Ok(_) => assert!(n < 3, "{outcomes:?}"),
                Err(error) => {
                    let told = (error.kind(), error.stored());
                    assert_eq!(told, (ErrorKind::Full, Stored::No), "{outcomes:?}");
                    assert!(n >= 3, "{outcomes:?}");
                }
            }
        }
        assert_eq!(length(&bus), ":3");
        bus.close(LIMIT).await.unwrap();
    }

    // Without it, nothing is refused.
    let bus = connect(&server, &[("MAS_NAMESPACE", "uncapped")]).await;
    assert!(offer(&bus).await.iter().all(Result::is_ok));
    assert_eq!(length(&bus), ":5");
    bus.close(LIMIT).await.unwrap();

    let variables = [
        ("MAS_NAMESPACE", "gaps"),
        ("REDIS_STREAM_MAX_LEN", "3"),
        ("REDIS_STREAM_OVERFLOW", "gap"),
    ];
    let bus = match Bus::connect(config(&server, &variables)).await {
        Ok(bus) => bus,
        // An older server cannot tell a group what it has not seen.
        Err(error) => {
            let told = error.to_string();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{told}");
            assert!(told.contains("redis 6."), "{told}");
            return;
        }
    };
    // The group is there, and has had nothing.
    let paused = bus.subscribe(subscription()).await.unwrap();
    paused.close(Instant::now() + LIMIT).await.unwrap();
    for outcome in offer(&bus).await {
        outcome.unwrap();
    }
    assert_eq!(length(&bus), ":3");
    let consumer = bus.subscribe(subscription()).await.unwrap();
    for expected in 2..5 {
        let delivery = consumer.recv().await.unwrap().unwrap();
        assert_eq!(delivery.payload().as_ref(), [expected]);
        delivery.ack().await.unwrap();
    }
    let mut lost = 0;
    while lost < 2 {
        let event = tokio::time::timeout(LIMIT, consumer.next_event());
        if let Some(ConsumerEvent::Gap(gap)) = event.await.unwrap() {
            lost += gap.lost.unwrap();
        }
    }
    assert_eq!(lost, 2);
    bus.close(LIMIT).await.unwrap();
}

#[tokio::test]
async fn redis_block_timeout_bounds_a_read() {
    let Some(server) = server(&[]) else { return };
    let mut door = Door::open(&server);
    let bus = connect(&server, &[("REDIS_BLOCK_TIMEOUT", "20ms")]).await;
    let begun = Instant::now();
    let _idle = bus.subscribe(subscription()).await.unwrap();
    soon("reads", || match door.calls("xreadgroup") {
        calls if calls >= 20 => Ok(()),
        calls => Err(format!("{calls} calls")),
    })
    .await;
    // By default each of them waits a second.
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
    bus.close(LIMIT).await.unwrap();
}

#[tokio::test]
async fn redis_username_is_who_connects() {
    let Some(server) = server(&[]) else { return };
    let mut door = Door::open(&server);
    assert_eq!(door.ask("ACL SETUSER ann on >hush ~* &* +@all"), "+OK");
    let users = |door: &mut Door| {
        let user = |line: &str| {
            let user = line.split(' ').find_map(|word| word.strip_prefix("user="));
            user.unwrap().to_owned()
        };
        let others = door.others();
        others.iter().map(|line| user(line)).collect::<Vec<_>>()
    };
    let ann = [("REDIS_USERNAME", "ann"), ("REDIS_PASSWORD", "hush")];
    for (variables, name) in [(&ann[..], "ann"), (&[], "default")] {
        let bus = connect(&server, variables).await;
        let consumer = bus.subscribe(subscription()).await.unwrap();
        bus.publish(message("x")).await.unwrap();
        consumer.recv().await.unwrap().unwrap().ack().await.unwrap();
        let users = users(&mut door);
        assert!(
            users.len() == 3 && users.iter().all(|user| user == name),
            "{users:?}"
        );
        bus.close(LIMIT).await.unwrap();
        soon("closed", || match door.others() {
            all if all.is_empty() => Ok(()),
            all => Err(format!("{all:#?}")),
        })
        .await;
    }
    let wrong = [("REDIS_USERNAME", "bob"), ("REDIS_PASSWORD", "hush")];
    refused(config(&server, &wrong), ErrorKind::Unauthorized, "user").await;
}

#[tokio::test]
async fn the_address_is_found_in_each_of_its_forms() {
    let Some(server) = server(&[]) else { return };
    let address = server.address();
    let (host, port) = address.split_once(':').unwrap();
    let url = format!("redis://{address}/0");
    for variables in [
        &[("REDIS_ADDR", &*address)][..],
        &[("REDIS_HOST", host), ("REDIS_PORT", port)],
        &[("REDIS_URL", &url)],
        &[("TRANSPORT_URL", &url)],
    ] {
        let all = [("PROTOCOL_TYPE", "redis")]
            .iter()
            .chain(variables)
            .copied();
        let bus = Bus::connect(Config::from_vars(all)).await.unwrap();
        bus.publish(message("x")).await.unwrap();
        bus.close(LIMIT).await.unwrap();
    }
}

#[tokio::test]
async fn timeouts_end_what_a_frozen_or_dead_server_does_not() {
    let Some(server) = server(&[]) else { return };
    let bus = connect(&server, &[("PUBLISH_TIMEOUT", "200ms")]).await;
    server.freeze(true).unwrap();
    let begun = Instant::now();
    let error: Error = bus.publish(message("x")).await.unwrap_err();
    let took = begun.elapsed();
    server.freeze(false).unwrap();
    assert_eq!(
        (error.kind(), error.stored()),
        (ErrorKind::Timeout, Stored::Unknown)
    );
    // By default it is 30 s.
    let within = Duration::from_millis(200)..Duration::from_secs(15);
    assert!(within.contains(&took), "{took:?}");
    bus.close(LIMIT).await.unwrap();

    server.kill().unwrap();
    let begun = Instant::now();
    let away = config(&server, &[("REDIS_CONNECT_TIMEOUT", "1500ms")]);
    assert!(Bus::connect(away).await.unwrap_err().is_retryable());
    // By default it is 5 s. The last attempt is made a little earlier than the end.
    let within = Duration::from_millis(400)..Duration::from_millis(4500);
    assert!(within.contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

/// A server that speaks TLS beside, asks for client certificates there, and all that is needed.
struct Encrypted {
    server: RedisServer,
    address: String,
    directory: PathBuf,
}

impl Drop for Encrypted {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Encrypted {
    fn start() -> Option<Self> {
        let directory = std::env::temp_dir().join(format!("mas-tls-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let authority = Authority::new();
        let (ours, other) = (authority.sign("127.0.0.1"), Authority::new());
        let client = authority.sign("client");
        for (name, text) in [
            ("ca.pem", authority.pem()),
            ("other.pem", other.pem()),
            ("server.pem", ours.certificate),
            ("server.key", ours.key),
            ("client.pem", client.certificate),
            ("client.key", client.key),
            ("other.key", other.sign("client").key),
        ] {
            std::fs::write(directory.join(name), text).unwrap();
        }
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
        let port = free.unwrap().port().to_string();
        let path = |name: &str| directory.join(name).display().to_string();
        let server = server(&[
            ("tls-port", &port),
            ("tls-auth-clients", "yes"),
            ("tls-ca-cert-file", &path("ca.pem")),
            ("tls-cert-file", &path("server.pem")),
            ("tls-key-file", &path("server.key")),
        ])?;
        Some(Self {
            server,
            address: format!("127.0.0.1:{port}"),
            directory,
        })
    }

    /// The port that speaks TLS, with these variables; those that name files do so by their names.
    fn config(&self, variables: &[(&str, &str)]) -> Config {
        let base = [
            ("PROTOCOL_TYPE", "redis"),
            ("REDIS_ADDR", &self.address),
            ("REDIS_CONNECT_TIMEOUT", "5s"),
        ];
        let base = base.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let own = variables.iter().map(|(name, value)| {
            let value = match *name {
                "REDIS_TLS" => (*value).to_owned(),
                _ => self.directory.join(value).display().to_string(),
            };
            ((*name).to_owned(), value)
        });
        Config::from_vars(base.into_iter().chain(own))
    }
}

#[tokio::test]
async fn the_variables_of_tls_encrypt_authenticate_and_trust() {
    use ErrorKind::{InvalidArgument, Unauthorized, Unsupported};
    let Some(there) = Encrypted::start() else {
        return;
    };
    let (ca, certificate, key) = (
        ("REDIS_TLS_CA", "ca.pem"),
        ("REDIS_TLS_CERT", "client.pem"),
        ("REDIS_TLS_KEY", "client.key"),
    );
    let on = ("REDIS_TLS", "true");
    let mut door = Door::open(&there.server);
    // With and without the switch, which the certificates turn on.
    for variables in [&[on, ca, certificate, key][..], &[ca, certificate, key]] {
        let bus = Bus::connect(there.config(variables)).await.unwrap();
        let consumer = bus.subscribe(subscription()).await.unwrap();
        bus.publish(message("x")).await.unwrap();
        consumer.recv().await.unwrap().unwrap().ack().await.unwrap();
        // All of them came in at the port that speaks TLS.
        let others = door.others();
        let at = format!("laddr={} ", there.address);
        assert!(
            others.len() == 3 && others.iter().all(|line| line.contains(&at)),
            "{others:#?}"
        );
        bus.close(LIMIT).await.unwrap();
        soon("closed", || match door.others() {
            all if all.is_empty() => Ok(()),
            all => Err(format!("{all:#?}")),
        })
        .await;
    }
    // What each of them does shows when it is left out or another.
    let wrong_ca = ("REDIS_TLS_CA", "other.pem");
    let wrong_key = ("REDIS_TLS_KEY", "other.key");
    for (variables, kind, words) in [
        (&[][..], Unsupported, "rediss://"),
        (&[on], Unauthorized, "not trusted"),
        (&[on, certificate, key], Unauthorized, "not trusted"),
        (&[wrong_ca, certificate, key], Unauthorized, "not trusted"),
        (&[ca], Unauthorized, "client certificate"),
        (
            &[ca, certificate, wrong_key],
            InvalidArgument,
            "do not belong together",
        ),
    ] {
        refused(there.config(variables), kind, words).await;
    }
}
