//! What a user is told that lacks permissions.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use conformance_tests::fixtures::{KafkaOptions, KafkaServer};
use mas_transport_core::{
    Consumer, ErrorKind, Group, Message, Result, Stored, Subscription, Topic, Transport as _,
};
use mas_transport_kafka::{KafkaConfig, KafkaTransport, Mechanism};
use tokio::time::{Instant, timeout};

use crate::support::SOON;

// By the numbers that they have in the protocol.
const TOPIC: u8 = 2;
const GROUP: u8 = 3;
const CLUSTER: u8 = 4;
const READ: u8 = 3;
const WRITE: u8 = 4;
const CREATE: u8 = 5;
const DESCRIBE: u8 = 8;

/// Who is there; the password of each is the name.
const USERS: [&str; 7] = [
    "nobody", "maker", "writer", "reader", "knower", "member", "other",
];
/// Within this a refusal is told: it is no failure to wait out.
const TOLD: Duration = Duration::from_secs(10);

struct Guarded {
    server: KafkaServer,
}

impl Guarded {
    /// A broker that asks who they are, and refuses what is not allowed; without a name, everything is.
    async fn start() -> Option<Self> {
        if KafkaServer::given().is_some() || KafkaServer::available().is_err() {
            println!("SKIPPED backend=kafka reason=no brokers can be started");
            return None;
        }
        let users: String = USERS
            .iter()
            .map(|user| format!(" user_{user}=\"{user}\""))
            .collect();
        let module = "org.apache.kafka.common.security.plain.PlainLoginModule required";
        let options = KafkaOptions::new()
            .listener("SASL_PLAINTEXT", "SASL_PLAINTEXT")
            .property("sasl.enabled.mechanisms", "PLAIN")
            .property(
                "listener.name.sasl_plaintext.plain.sasl.jaas.config",
                &format!("{module}{users};"),
            )
            .property(
                "authorizer.class.name",
                "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            )
            .property("super.users", "User:ANONYMOUS");
        let started = tokio::task::spawn_blocking(move || KafkaServer::start(&options));
        let server = started.await.unwrap().unwrap();
        Some(Self { server })
    }

    /// Allows a user to do something with everything whose name begins so.
    fn allow(&self, user: &str, kind: u8, name: &str, operation: u8) {
        let string = |text: &str| {
            let length = i16::try_from(text.len()).unwrap().to_be_bytes();
            [&length[..], text.as_bytes()].concat()
        };
        let literal = 3;
        let prefixed = 4;
        let pattern = if kind == CLUSTER { literal } else { prefixed };
        let allow = 3;
        // CreateAcls (30) in version 1, of nobody in particular: one.
        let request = [
            &[0, 30, 0, 1, 0, 0, 0, 1, 0xff, 0xff, 0, 0, 0, 1, kind][..],
            &string(name),
            &[pattern],
            &string(&format!("User:{user}")),
            &string("*"),
            &[operation, allow],
        ]
        .concat();
        let mut stream = TcpStream::connect(self.server.address()).unwrap();
        let length = u32::try_from(request.len()).unwrap();
        stream.write_all(&length.to_be_bytes()).unwrap();
        stream.write_all(&request).unwrap();
        let mut length = [0; 4];
        stream.read_exact(&mut length).unwrap();
        let mut answer = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut answer).unwrap();
        // Its number, the time it was throttled, one answer, the code.
        assert_eq!(&answer[8..14], [0, 0, 0, 1, 0, 0], "{answer:?}");
    }

    async fn connect(&self, user: &str) -> Arc<KafkaTransport> {
        let address = self.server.address_of("SASL_PLAINTEXT").unwrap();
        let config = KafkaConfig::new(address).sasl(Mechanism::Plain, user, user);
        Arc::new(KafkaTransport::connect(config).await.unwrap())
    }

    /// One who may do anything.
    async fn connect_free(&self) -> Arc<KafkaTransport> {
        let config = KafkaConfig::new(self.server.address());
        Arc::new(KafkaTransport::connect(config).await.unwrap())
    }
}

async fn publish(transport: &KafkaTransport, topic: &str) -> Result<()> {
    let batch = vec![Message::new(topic, "x").unwrap()];
    let confirm = transport.publish(batch, Instant::now() + SOON).await;
    confirm.await.remove(0).map(drop)
}

/// Joins, and takes one message.
async fn consume(transport: &Arc<KafkaTransport>) -> Result<()> {
    let subscription = Subscription::new("t").group("g");
    let consumer = Consumer::start(transport.clone(), subscription).await?;
    let delivery = consumer.recv().await?.unwrap();
    delivery.ack().await?;
    consumer.close(Instant::now() + SOON).await
}

/// What is wrong with how something was refused: it is to be told soon, as what it is, in words that say
/// what to allow.
fn look(
    what: &str,
    outcome: std::result::Result<Result<()>, impl Sized>,
    words: &[&str],
    wrong: &mut Vec<String>,
) {
    let error = match outcome {
        Err(_) => return wrong.push(format!("{what}: nothing was told within {TOLD:?}")),
        Ok(Ok(())) => return wrong.push(format!("{what}: it was allowed")),
        Ok(Err(error)) => error,
    };
    println!("{what}: {error}");
    let text = error.to_string();
    let missing: Vec<_> = words.iter().filter(|word| !text.contains(**word)).collect();
    if (error.kind(), error.stored()) != (ErrorKind::Unauthorized, Stored::No)
        || !missing.is_empty()
    {
        let (kind, stored) = (error.kind(), error.stored());
        wrong.push(format!(
            "{what}: {kind:?}, stored {stored:?}, without {missing:?}: {error}"
        ));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_names_what_is_missing() {
    let Some(guarded) = Guarded::start().await else {
        return;
    };
    // Who may make topics, and no more.
    guarded.allow("maker", CLUSTER, "kafka-cluster", CREATE);
    // Who may publish, also to topics that are not there.
    guarded.allow("writer", TOPIC, "mas.", WRITE);
    guarded.allow("writer", TOPIC, "mas.", CREATE);
    // Who may read topics, and is no member of any group.
    guarded.allow("reader", TOPIC, "mas.", READ);
    // Who knows of topics, and may not read them.
    guarded.allow("knower", TOPIC, "mas.", DESCRIBE);
    guarded.allow("knower", GROUP, "mas.", READ);
    // Whoever consumes.
    guarded.allow("member", TOPIC, "mas.", READ);
    guarded.allow("member", GROUP, "mas.", READ);
    // Who may publish elsewhere.
    guarded.allow("other", TOPIC, "mas.o", WRITE);
    guarded.allow("other", TOPIC, "mas.", DESCRIBE);

    let mut wrong = Vec::new();
    // A topic that is not there.
    for user in ["nobody", "knower", "member"] {
        let transport = guarded.connect(user).await;
        let told = timeout(TOLD, publish(&transport, "t")).await;
        let what = format!("{user} publishes to a new topic");
        look(&what, told, &["mas.t", "CREATE"], &mut wrong);
    }
    let writer = guarded.connect("writer").await;
    publish(&writer, "t").await.unwrap();
    // One that is there.
    for user in ["nobody", "maker", "reader", "knower", "member", "other"] {
        let transport = guarded.connect(user).await;
        let told = timeout(TOLD, publish(&transport, "t")).await;
        look(&format!("{user} publishes"), told, &["WRITE"], &mut wrong);
    }
    for (user, words) in [
        ("nobody", &["mas.t", "topic", "READ"][..]),
        ("writer", &["group", "READ"]),
        ("reader", &["group", "READ"]),
        ("knower", &["topic", "READ"]),
    ] {
        let transport = guarded.connect(user).await;
        let told = timeout(TOLD, consume(&transport)).await;
        look(&format!("{user} consumes"), told, words, &mut wrong);
    }
    let member = guarded.connect("member").await;
    timeout(SOON, consume(&member)).await.unwrap().unwrap();
    let (topic, group) = (Topic::new("t").unwrap(), Group::new("g").unwrap());
    for user in ["nobody", "writer", "reader"] {
        let transport = guarded.connect(user).await;
        let lag = async { transport.admin().lag(&topic, &group).await.map(drop) };
        let told = timeout(TOLD, lag).await;
        look(
            &format!("{user} asks for the lag"),
            told,
            &["DESCRIBE"],
            &mut wrong,
        );
    }
    let free = guarded.connect_free().await;
    assert_eq!(free.admin().lag(&topic, &group).await.unwrap().waiting, 0);
    assert!(wrong.is_empty(), "{wrong:#?}");
}
