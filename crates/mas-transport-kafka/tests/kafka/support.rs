//! A real broker, and what works on it.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use conformance_tests::fixtures::{KafkaOptions, KafkaServer};
use mas_transport_core::{
    Event, Fetch, Group, Lag, Namespace, Outcome, RawDelivery, Reason, Record, Settle, Settled,
    Source, StartFrom, Subscription, Token, Topic, Transport as _, Want,
};
use mas_transport_kafka::{KafkaConfig, KafkaNative, KafkaTransport};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use tokio::time::{Instant, timeout};

/// Within this a broker on the same machine answers, also when the machine is busy.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// One broker for all tests, which use namespaces of their own. It ends with this process.
static BROKER: LazyLock<Option<String>> = LazyLock::new(|| {
    if let Some(given) = KafkaServer::given() {
        return Some(given);
    }
    // So that what is compacted, is so soon.
    let options = KafkaOptions::new()
        .property("log.cleaner.backoff.ms", "100")
        .property("log.initial.task.delay.ms", "100")
        .property("group.min.session.timeout.ms", "1000")
        // Groups of KIP-848 notice a dead member as the broker says: after 45 s by default.
        .property("group.consumer.min.session.timeout.ms", "1000")
        .property("group.consumer.session.timeout.ms", "6000");
    match KafkaServer::start(&options) {
        Ok(server) => {
            let address = server.address();
            std::mem::forget(server);
            Some(address)
        }
        Err(why) => {
            let required = std::env::var_os("REQUIRE_KAFKA").is_some_and(|v| v == "1");
            assert!(!required, "REQUIRE_KAFKA=1 and {why}");
            println!("SKIPPED backend=kafka reason={why}");
            None
        }
    }
});

/// What a test connects with, in a namespace of its own, with the defaults of the product; `None` where
/// there is no broker and none is required.
pub(crate) async fn config(name: &str) -> Option<KafkaConfig> {
    let address = tokio::task::spawn_blocking(|| BROKER.clone());
    let address = address.await.unwrap()?;
    let namespace = format!("t{}-{name}", std::process::id());
    Some(KafkaConfig::new(address).namespace(Namespace::new(namespace).unwrap()))
}

/// What other programs of the same brokers use.
pub(crate) fn native(transport: &KafkaTransport) -> &KafkaNative {
    let native = transport.native();
    native
        .and_then(|n| n.downcast_ref::<KafkaNative>())
        .unwrap()
}

/// One test's part of the broker.
pub(crate) struct Bench {
    pub(crate) transport: KafkaTransport,
    pub(crate) topic: Topic,
    pub(crate) group: Group,
    /// What they are called in the broker.
    pub(crate) topic_name: String,
    pub(crate) group_name: String,
    pub(crate) client: ClientConfig,
}

impl Bench {
    /// With a topic of one partition; `None` where there is no broker and none is required.
    pub(crate) async fn new(name: &str, settings: &[(&str, &str)]) -> Option<Self> {
        let config = config(name).await?.session_timeout(Duration::from_secs(2));
        let transport = KafkaTransport::connect(config).await.unwrap();
        let (topic, group) = (Topic::new("t").unwrap(), Group::new("g").unwrap());
        let native = native(&transport);
        let (topic_name, group_name) = (native.topic(&topic), native.group(&topic, &group));
        let client = native.client();
        let admin: AdminClient<DefaultClientContext> = client.create().unwrap();
        let mut new = NewTopic::new(&topic_name, 1, TopicReplication::Fixed(1));
        for (key, value) in settings {
            new = new.set(key, value);
        }
        let made = admin.create_topics([&new], &AdminOptions::new());
        made.await.unwrap().remove(0).unwrap();
        Some(Self {
            topic_name,
            group_name,
            client,
            topic,
            group,
            transport,
        })
    }

    pub(crate) async fn join(&self) -> Member {
        let subscription = Subscription::new(self.topic.as_str())
            .group(self.group.as_str())
            .lease(Duration::from_secs(60))
            .start_from(StartFrom::Earliest);
        Member::of(self.transport.subscribe(&subscription).await.unwrap())
    }

    /// The only record of a topic beside the main one.
    pub(crate) async fn one_of(&self, topic: &Topic) -> RawDelivery {
        let subscription = Subscription::new(topic.as_str()).group("reader");
        let mut member = Member::of(self.transport.subscribe(&subscription).await.unwrap());
        let delivery = member.delivery().await;
        member.settle(delivery.token, Outcome::Ack).await;
        member.close().await;
        delivery
    }

    pub(crate) async fn lag(&self) -> Lag {
        let admin = self.transport.admin();
        admin.lag(&self.topic, &self.group).await.unwrap()
    }
}

/// Waits for something that shows soon.
pub(crate) async fn soon<T, F>(what: &str, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let until = Instant::now() + SOON;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(found) => assert!(Instant::now() < until, "{what}: {found}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn record(reason: Reason) -> Box<Record> {
    Box::new(Record {
        version: Record::VERSION,
        reason,
        topic: "t".into(),
        group: "g".into(),
        position: "0-0".into(),
        attempts: 1,
        member: "m".into(),
        first_failure_ms: 1,
        last_failure_ms: 1,
        history: vec![],
    })
}

/// The receiving side of a member as a pump drives it, one event at a time.
pub(crate) struct Member {
    fetch: Box<dyn Fetch>,
    settle: Arc<dyn Settle>,
    waiting: VecDeque<Event>,
}

impl Member {
    pub(crate) fn of(source: Source) -> Self {
        let Source { fetch, settle } = source;
        Self {
            fetch,
            settle,
            waiting: VecDeque::new(),
        }
    }

    /// The next event; errors that pass are waited out.
    pub(crate) async fn event(&mut self) -> Event {
        let coming = timeout(SOON, async {
            loop {
                match self.waiting.pop_front() {
                    Some(Event::Reconnected) => continue,
                    Some(event) => return event,
                    None => {}
                }
                let mut out = Vec::new();
                match self.fetch.fetch(Want::new(1000, 64 << 20), &mut out).await {
                    Ok(()) => self.waiting.extend(out),
                    Err(error) if error.is_retryable() => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        coming.await.expect("an event in time")
    }

    pub(crate) async fn delivery(&mut self) -> RawDelivery {
        match self.event().await {
            Event::Delivery(delivery) => delivery,
            other => panic!("a delivery was expected: {other:?}"),
        }
    }

    /// The payloads of what comes next, which is settled.
    pub(crate) async fn payloads(&mut self, count: usize) -> Vec<String> {
        let mut payloads = Vec::with_capacity(count);
        for _ in 0..count {
            let delivery = self.delivery().await;
            payloads.push(String::from_utf8_lossy(delivery.message.payload()).into_owned());
            self.settle(delivery.token, Outcome::Ack).await;
        }
        payloads
    }

    /// Nothing comes for this long.
    pub(crate) async fn quiet(&mut self, time: Duration) {
        let mut out = Vec::new();
        assert!(self.waiting.is_empty(), "{:?}", self.waiting);
        let fetched = timeout(time, self.fetch.fetch(Want::new(1000, 64 << 20), &mut out)).await;
        assert!(fetched.is_err(), "{fetched:?} {out:?}");
    }

    pub(crate) async fn settle(&self, token: Token, outcome: Outcome) {
        self.settle_all(vec![(token, outcome)]).await;
    }

    pub(crate) async fn settle_all(&self, batch: Vec<(Token, Outcome)>) {
        for settled in self.settle.settle(batch).await {
            assert_eq!(settled.unwrap(), Settled::Done);
        }
    }

    pub(crate) async fn close(self) {
        self.settle.close(Instant::now() + SOON).await.unwrap();
    }
}
