//! Encrypted connections and users of limited rights, on real servers.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mas_transport_core::{Error, ErrorKind, Message, Outcome, Transport as _};
use mas_transport_redis::{Overflow, RedisConfig, RedisTransport, Tls};
use redis::aio::MultiplexedConnection;
use tokio::time::Instant;

use crate::certificates::{Authority, Pair};
use crate::support::{Member, SOON, Server, encrypts, outcomes, publish, subscription};

/// What waiting cannot help is refused long before the five seconds of `connect_timeout`.
const QUICK: Duration = Duration::from_millis(2500);

/// A server that speaks only TLS and asks for client certificates, and what it takes to reach it.
struct Encrypted {
    server: Server,
    authority: Authority,
    client: Pair,
}

impl Encrypted {
    async fn start() -> Option<Self> {
        Self::start_as("127.0.0.1").await
    }

    async fn start_as(name: &str) -> Option<Self> {
        if !encrypts().await {
            return None;
        }
        let authority = Authority::new();
        let pair = authority.sign(name);
        let files = [
            ("ca.pem", authority.pem()),
            ("server.pem", pair.certificate),
            ("server.key", pair.key),
        ];
        #[rustfmt::skip]
        let options = [
            "--port", "0", "--tls-port", "{port}", "--tls-auth-clients", "yes",
            "--tls-ca-cert-file", "{dir}/ca.pem", "--tls-cert-file", "{dir}/server.pem",
            "--tls-key-file", "{dir}/server.key", "--requirepass", "open-sesame",
        ];
        Some(Self {
            server: Server::start_with(&options, &files).await?,
            client: authority.sign("client"),
            authority,
        })
    }

    fn tls(&self) -> Tls {
        Tls::new()
            .ca_certificate(self.authority.pem())
            .client_certificate(self.client.certificate.clone(), self.client.key.clone())
    }

    fn config(&self) -> RedisConfig {
        let url = format!("rediss://:open-sesame@127.0.0.1:{}", self.server.port);
        RedisConfig::from_url(&url).unwrap().tls(self.tls())
    }
}

/// Connecting fails, soon, with this kind, in words that say what to do.
async fn refused(config: RedisConfig, kind: ErrorKind, words: &[&str]) -> Error {
    let asked = Instant::now();
    let error = RedisTransport::connect(config).await.unwrap_err();
    assert!(asked.elapsed() < QUICK, "{:?}: {error}", asked.elapsed());
    says(&error, kind, words);
    error
}

fn says(error: &Error, kind: ErrorKind, words: &[&str]) {
    let text = format!("{error} {error:?}");
    assert_eq!(error.kind(), kind, "{text}");
    for word in words {
        assert!(text.contains(word), "{word}? {text}");
    }
    for secret in ["sesame", "BEGIN", "hush"] {
        assert!(!text.contains(secret), "{text}");
    }
}

#[tokio::test]
async fn everything_works_encrypted_also_after_a_kill() {
    let Some(mut there) = Encrypted::start().await else {
        return;
    };
    let transport = RedisTransport::connect(there.config()).await.unwrap();
    let mut member = Member::join(&transport, &subscription("orders", 30_000)).await;
    // Larger than a record of TLS.
    let large = "x".repeat(300_000);
    let batch = vec![Message::new("orders", large.clone()).unwrap()];
    outcomes(&transport, batch).await.pop().unwrap().unwrap();
    publish(&transport, "orders", 500).await;
    let got = member.deliveries(501).await;
    assert_eq!(got[0].message.payload(), large.as_bytes());
    member.ack(&got).await;
    // While the reader waits at the server.
    there.server.kill().await;
    there.server.restart().await;
    let until = Instant::now() + SOON;
    loop {
        let batch = vec![Message::new("orders", "again").unwrap()];
        match outcomes(&transport, batch).await.pop().unwrap() {
            Ok(_) => break,
            Err(error) => assert!(error.is_retryable() && Instant::now() < until, "{error}"),
        }
    }
    let mut event = member.event().await;
    let again = loop {
        match event {
            mas_transport_core::Event::Delivery(delivery) => break delivery,
            _ => event = member.event().await,
        }
    };
    assert_eq!(again.message.payload(), b"again".as_slice());
    member.one(again.token, Outcome::Ack).await.unwrap();
    // The client underneath is encrypted too.
    let mut raw = crate::support::raw(&transport).await;
    let pong: String = redis::cmd("PING").query_async(&mut raw).await.unwrap();
    assert_eq!(pong, "PONG");
    let asked = Instant::now();
    transport.close(asked + SOON).await.unwrap();
    assert!(
        asked.elapsed() < Duration::from_secs(5),
        "{:?}",
        asked.elapsed()
    );
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_said() {
    use ErrorKind::{InvalidArgument, Unauthorized};
    let Some(there) = Encrypted::start().await else {
        return;
    };
    let (authority, other) = (there.authority.pem(), Authority::new());
    let (config, client) = (there.config(), &there.client);
    let with = |tls| config.clone().tls(tls);
    let tls = Tls::new().client_certificate(client.certificate.clone(), client.key.clone());
    let wrong = tls.clone().ca_certificate(other.pem());
    refused(
        with(wrong),
        Unauthorized,
        &["not trusted", "REDIS_TLS_CA", "Tls::ca_certificate"],
    )
    .await;

    let none = Tls::new().ca_certificate(authority.clone());
    let words = [
        "client certificate",
        "REDIS_TLS_CERT and REDIS_TLS_KEY",
        "Tls::client_certificate",
    ];
    refused(with(none), Unauthorized, &words).await;

    let theirs = other.sign("client");
    let foreign = Tls::new()
        .ca_certificate(authority.clone())
        .client_certificate(theirs.certificate.clone(), theirs.key.clone());
    refused(
        with(foreign),
        Unauthorized,
        &["client certificate", "tls-ca-cert-file"],
    )
    .await;

    let ours = Tls::new().ca_certificate(authority);
    let shown = |certificate: &str, key: &str| ours.clone().client_certificate(certificate, key);
    for (bad, words) in [
        (tls.ca_certificate("nonsense"), "the CA certificate"),
        (shown("nonsense", &client.key), "the client certificate"),
        (shown(&client.certificate, "nonsense"), "the key"),
        (
            shown(&client.certificate, &theirs.key),
            "do not belong together",
        ),
    ] {
        refused(with(bad), InvalidArgument, &[words]).await;
    }

    let Some(elsewhere) = Encrypted::start_as("redis.example.org").await else {
        return;
    };
    refused(elsewhere.config(), Unauthorized, &["another name"]).await;
}

#[tokio::test]
async fn a_port_that_speaks_otherwise_is_told() {
    let Some(there) = Encrypted::start().await else {
        return;
    };
    let Some(plain) = Server::start(&[]).await else {
        return;
    };
    refused(
        there.server.config(),
        ErrorKind::Unsupported,
        &["rediss://"],
    )
    .await;
    // Its greeting holds random bytes: now and then a line ends in them.
    for _ in 0..10 {
        let config = plain.config().tls(there.tls());
        refused(
            config,
            ErrorKind::Unsupported,
            &["does not speak TLS", "redis://"],
        )
        .await;
    }
    // Nobody is there at all: that may pass, so it is tried for as long as it is told.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let config = RedisConfig::new(format!("127.0.0.1:{port}"))
        .tls(there.tls())
        .connect_timeout(Duration::from_millis(300));
    refused(config, ErrorKind::Unavailable, &["cannot be reached"]).await;
}

/// The words of the rule that the documentation gives, from the files that give it.
fn rule() -> Vec<String> {
    let words = |text: &str, begin: &str, end: &str| -> Vec<String> {
        let text = text.split(begin).nth(1).unwrap();
        let text = text.split(end).next().unwrap();
        let words = text.split_whitespace();
        let words = words.filter(|word| !["//!", ">", "\\"].contains(word));
        words.map(str::to_owned).collect()
    };
    let reference = include_str!("../../src/lib.rs");
    let guide = include_str!("../../../../docs/guide/securing-redis.md");
    let rule = words(reference, "ACL SETUSER mas on >password", "```");
    assert_eq!(words(guide, "user mas on >$REDIS_PASSWORD", "> END"), rule);
    rule
}

/// What the documentation says may be left out.
const OPTIONAL: [&str; 6] = [
    RESET,
    "+client|id",
    "+client|unblock",
    "+config|get",
    "+unsubscribe",
    "+publish",
];

/// What 7.0 begins with. Redis 6.2 begins with all channels, and takes no rule that adds some to those.
const RESET: &str = "resetchannels";

/// What the client says of itself at each connection, which may be refused: servers before 7.2 do not know
/// it at all.
const TOLD: &str = "+client|setinfo";

/// A server, and the way to its users.
struct Doorman {
    server: Server,
    raw: MultiplexedConnection,
}

impl Doorman {
    async fn start() -> Option<Self> {
        let server = Server::start(&[]).await?;
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", server.port)).unwrap();
        let raw = client.get_multiplexed_async_connection().await.unwrap();
        Some(Self { server, raw })
    }

    /// Makes a user with these rules and says how to connect as that.
    async fn user<'a>(
        &mut self,
        name: &str,
        rules: impl IntoIterator<Item = &'a String>,
    ) -> RedisConfig {
        self.try_user(name, rules).await.unwrap()
    }

    /// As [`user`](Self::user), where the server may refuse the rules.
    async fn try_user<'a>(
        &mut self,
        name: &str,
        rules: impl IntoIterator<Item = &'a String>,
    ) -> redis::RedisResult<RedisConfig> {
        let mut set = redis::cmd("ACL");
        set.arg("SETUSER")
            .arg(name)
            .arg("reset")
            .arg("on")
            .arg(">hush-hush");
        for rule in rules {
            set.arg(rule);
        }
        let _: String = set.query_async(&mut self.raw).await?;
        Ok(self.server.config().username(name).password("hush-hush"))
    }

    async fn forget_scripts(&mut self) {
        let mut flush = redis::cmd("SCRIPT");
        let _: String = flush.arg("FLUSH").query_async(&mut self.raw).await.unwrap();
    }

    /// Whether it is Redis 6.2. Its log of what was denied names commands without their subcommands: `client`
    /// for every refused one of CLIENT. For channels see [`RESET`].
    async fn is_6_2(&mut self) -> bool {
        let mut info = redis::cmd("INFO");
        let info: String = info.arg("server").query_async(&mut self.raw).await.unwrap();
        info.contains("redis_version:6.2.")
    }

    async fn forget_log(&mut self) {
        let mut reset = redis::cmd("ACL");
        reset.arg("LOG").arg("RESET");
        let _: String = reset.query_async(&mut self.raw).await.unwrap();
    }

    /// What was denied, but for what the client says of itself.
    async fn denied(&mut self) -> BTreeSet<String> {
        let mut log = redis::cmd("ACL");
        let log: Vec<redis::Value> = log.arg("LOG").query_async(&mut self.raw).await.unwrap();
        let lines = log.iter().map(|line| format!("{line:?}").to_lowercase());
        lines.filter(|line| !line.contains("setinfo")).collect()
    }
}

/// All that a bus and its consumers do; the first error.
async fn everything(config: RedisConfig, door: &mut Doorman, topic: &str) -> Result<(), Error> {
    let record = || crate::smoke::record();
    let transport = RedisTransport::connect(config).await?;
    let transport = &transport;
    let work = async {
        let message = || vec![Message::new(topic, "x").unwrap()];
        let source = transport.subscribe(&subscription(topic, 30_000)).await?;
        let mut member = Member::of(source);
        for end in ["ack", "nack", "dead", "extend", "return"] {
            outcomes(transport, message()).await.pop().unwrap()?;
            let delivery = member.delivery().await;
            let token = delivery.token;
            let outcome = match end {
                "ack" => Outcome::Ack,
                "dead" => Outcome::DeadLetter(record()),
                "extend" => Outcome::Extend,
                "return" => Outcome::Return,
                _ => Outcome::Nack(Duration::ZERO),
            };
            member.one(token, outcome).await?;
            let token = match end {
                "ack" | "dead" => continue,
                "extend" => token,
                _ => {
                    let again = member.delivery().await.token;
                    member.one(again, Outcome::Begin).await?;
                    again
                }
            };
            member.one(token, Outcome::Ack).await?;
        }
        door.forget_scripts().await;
        let admin = transport.admin();
        let topic = mas_transport_core::Topic::new(topic)?;
        let group = mas_transport_core::Group::new("g")?;
        admin
            .declare(&mas_transport_core::TopicSpec::new(topic.clone()))
            .await?;
        assert!(admin.topics().await?.contains(&topic));
        assert_eq!(admin.groups(&topic).await?, std::slice::from_ref(&group));
        admin.lag(&topic, &group).await?;
        admin.purge(&topic).await?;
        admin.health().await?;
        member.settle.close(Instant::now() + SOON).await
    };
    let worked = work.await;
    transport.close(Instant::now() + SOON).await.unwrap();
    worked
}

#[tokio::test]
async fn the_least_rule_is_enough_and_nothing_in_it_is_too_much() {
    let Some(mut door) = Doorman::start().await else {
        return;
    };
    let rule = rule();
    assert!(rule.len() > 30, "{rule:?}");
    let config = door.user("mas", &rule).await;
    everything(config, &mut door, "least").await.unwrap();
    let old = door.is_6_2().await;
    if old {
        // Which of CLIENT was refused is seen by what else there is once the client may say what it is.
        door.forget_log().await;
        let told = [TOLD.to_owned()];
        let config = door.user("mas", rule.iter().chain(&told)).await;
        everything(config, &mut door, "told").await.unwrap();
    }
    assert_eq!(door.denied().await, BTreeSet::new());
    let without = |left_out: &dyn Fn(&str) -> bool| -> Vec<String> {
        rule.iter()
            .filter(|word| !left_out(word))
            .cloned()
            .collect()
    };
    let optional = |word: &str| OPTIONAL.contains(&word) && !(old && word == RESET);
    let config = door.user("mas", &without(&optional)).await;
    everything(config, &mut door, "without").await.unwrap();
    for (i, left_out) in rule.iter().enumerate() {
        if optional(left_out) {
            continue;
        }
        if old && left_out == RESET {
            // There is no such user, and the server says why.
            let rest = without(&|word| word == RESET);
            let why = door.try_user("mas", &rest).await.unwrap_err().to_string();
            assert!(why.contains(RESET), "{why}");
            continue;
        }
        let config = door.user("mas", &without(&|word| word == left_out)).await;
        let asked = Instant::now();
        let done = everything(config, &mut door, &format!("t{i}")).await;
        let error = done.expect_err(left_out);
        says(&error, ErrorKind::Unauthorized, &[left_out, "ACL SETUSER"]);
        assert!(asked.elapsed() < QUICK, "{left_out}: {:?}", asked.elapsed());
    }
}

#[tokio::test]
async fn a_user_that_only_publishes_needs_little_and_cannot_consume() {
    let Some(mut door) = Doorman::start().await else {
        return;
    };
    let words = "~mas:* +info +script|load +xadd +sadd";
    let rules: Vec<String> = words.split(' ').map(str::to_owned).collect();
    let config = door.user("mas", &rules).await;
    let transport = RedisTransport::connect(config).await.unwrap();
    publish(&transport, "orders", 10).await;
    let subscribed = transport.subscribe(&subscription("orders", 1000)).await;
    says(
        &subscribed.unwrap_err(),
        ErrorKind::Unauthorized,
        &["ACL SETUSER"],
    );
    transport.close(Instant::now() + SOON).await.unwrap();
    // With a cap it needs what `RedisConfig::stream_max_len` says; somebody else consumes.
    let consumer = door.server.connect().await;
    let mut member = Member::join(&consumer, &subscription("capped", 30_000)).await;
    let text = include_str!("../../src/config.rs");
    let more = text
        .split("limited rights that only publishes also needs")
        .nth(1);
    let more = more.unwrap().split('`').nth(1).unwrap().to_owned();
    let rules: Vec<String> = format!("{words} {more}")
        .split(' ')
        .map(str::to_owned)
        .collect();
    let config = door.user("mas", &rules).await;
    let transport = RedisTransport::connect(config.stream_max_len(5, Overflow::Refuse)).await;
    let transport = transport.unwrap();
    for _ in 0..3 {
        publish(&transport, "capped", 5).await;
        let held = member.deliveries(5).await;
        member.ack(&held).await;
    }
    for transport in [transport, consumer] {
        transport.close(Instant::now() + SOON).await.unwrap();
    }
}

#[tokio::test]
async fn a_user_of_one_namespace_reaches_no_other() {
    let Some(mut door) = Doorman::start().await else {
        return;
    };
    let narrow = |word: &String| match word.as_str() {
        "~mas:*" => "~mas:{team:*".to_owned(),
        "&mas:*" => "&mas:{team:*".to_owned(),
        _ => word.clone(),
    };
    let rule: Vec<String> = rule().iter().map(narrow).collect();
    let config = door.user("mas", &rule).await;
    let ours = mas_transport_core::Namespace::new("team").unwrap();
    everything(config.clone().namespace(ours), &mut door, "orders")
        .await
        .unwrap();
    let theirs = mas_transport_core::Namespace::new("other").unwrap();
    let transport = RedisTransport::connect(config.namespace(theirs))
        .await
        .unwrap();
    let error = transport
        .subscribe(&subscription("orders", 1000))
        .await
        .unwrap_err();
    says(&error, ErrorKind::Unauthorized, &["mas:*"]);
    let batch = vec![Message::new("orders", "x").unwrap()];
    let error = outcomes(&transport, batch)
        .await
        .pop()
        .unwrap()
        .unwrap_err();
    says(&error, ErrorKind::Unauthorized, &["~mas:*"]);
    assert_eq!(error.stored(), mas_transport_core::Stored::No);
}

#[tokio::test]
async fn wrong_credentials_are_refused_at_once() {
    use ErrorKind::Unauthorized;
    let Some(mut door) = Doorman::start().await else {
        return;
    };
    let config = door.user("mas", &rule()).await;
    let words = ["user", "password"];
    refused(config.clone().password("hush-other"), Unauthorized, &words).await;
    refused(config.username("nobody"), Unauthorized, &words).await;
    let none: [String; 0] = [];
    door.user("default", &none).await;
    refused(
        door.server.config(),
        Unauthorized,
        &["asks for a user and a password"],
    )
    .await;
}

#[tokio::test]
async fn a_permission_that_is_taken_away_is_told() {
    let Some(mut door) = Doorman::start().await else {
        return;
    };
    let config = door.user("mas", &rule()).await;
    let transport = RedisTransport::connect(config).await.unwrap();
    let mut member = Member::join(&transport, &subscription("orders", 30_000)).await;
    publish(&transport, "orders", 3).await;
    let held = member.deliveries(3).await;
    let mut revoke = redis::cmd("ACL");
    revoke
        .arg("SETUSER")
        .arg("mas")
        .arg("-xack")
        .arg("-xclaim")
        .arg("-xadd")
        .arg("-xreadgroup");
    let _: String = revoke.query_async(&mut door.raw).await.unwrap();
    let error = member.one(held[0].token, Outcome::Ack).await.unwrap_err();
    says(&error, ErrorKind::Unauthorized, &["XACK", "+xack"]);
    let error = member
        .one(held[1].token, Outcome::Nack(Duration::ZERO))
        .await
        .unwrap_err();
    says(
        &error,
        ErrorKind::Unauthorized,
        &["may not run", "ACL SETUSER"],
    );
    let batch = vec![Message::new("orders", "x").unwrap()];
    let error = outcomes(&transport, batch)
        .await
        .pop()
        .unwrap()
        .unwrap_err();
    says(&error, ErrorKind::Unauthorized, &["XADD", "+xadd"]);
    let error = member.failure().await;
    says(
        &error,
        ErrorKind::Unauthorized,
        &["XREADGROUP", "+xreadgroup"],
    );
    transport.close(Instant::now()).await.unwrap();
}

/// What is logged, whoever logs it.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_secret_is_logged_at_any_level() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    // For this thread, on which everything here runs.
    let _guard = tracing::subscriber::set_default(subscriber);
    let (Some(mut door), Some(there)) = (Doorman::start().await, Encrypted::start().await) else {
        return;
    };
    let config = door.user("mas", &rule()).await;
    tracing::trace!(?config, encrypted = ?there.config(), "as configured");
    everything(config.clone(), &mut door, "orders")
        .await
        .unwrap();
    let wrong = config.clone().password("hush-other");
    let error = RedisTransport::connect(wrong).await.unwrap_err();
    tracing::error!(%error, ?error, "as refused");
    let transport = RedisTransport::connect(there.config()).await.unwrap();
    tracing::trace!(?transport, "as connected");
    // It is refused while it tries to come back.
    let transport_of_user = RedisTransport::connect(config).await.unwrap();
    door.user("mas", &["resetpass".to_owned()]).await;
    let mut kill = redis::cmd("CLIENT");
    kill.arg("KILL").arg("USER").arg("mas");
    let _: usize = kill.query_async(&mut door.raw).await.unwrap();
    let batch = vec![Message::new("orders", "x").unwrap()];
    let refused = outcomes(&transport_of_user, batch).await.pop().unwrap();
    tracing::error!(error = ?refused.unwrap_err(), "as refused");
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(
        log.contains("as connected") && log.contains("address"),
        "{log}"
    );
    let key = there.client.key.lines().nth(1).unwrap().to_owned();
    for secret in ["hush", "sesame", "BEGIN", &key] {
        assert!(!log.contains(secret), "{secret}: {log}");
    }
}
