//! A topic that is given more partitions while it is used.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mas_transport_core::{
    Consumer, Group, Lag, Message, PublishOptions, Publisher, Subscription, Topic, Transport as _,
};
use mas_transport_kafka::{KafkaConfig, KafkaTransport};
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::support::{SOON, config, native, soon};

/// How many partitions the topic has, and how many it is given.
const FEW: i32 = 2;
const MORE: i32 = 5;
/// How many records another program writes to each new partition at once.
const WRITTEN: usize = 100;
/// Until what is in a new partition is delivered: the client asks for the partitions of its topic every
/// 5 s, and a rebalance takes a step or two of a second each; as much again for a busy machine.
const NOTICED: Duration = Duration::from_secs(15);
/// How long nothing has to come.
const QUIET: Duration = Duration::from_secs(1);

fn subscription() -> Subscription {
    Subscription::new("t").group("g")
}

/// What a member was handed: the partition, the payload, and which attempt it was.
type Came = (u64, String, u32);

/// Acks whatever comes, and passes it on.
fn read(consumer: Arc<Consumer>, tell: mpsc::UnboundedSender<Came>) {
    tokio::spawn(async move {
        while let Some(delivery) = consumer.recv().await.unwrap() {
            let payload = String::from_utf8_lossy(delivery.payload()).into_owned();
            let came = (delivery.position().major, payload, delivery.attempt());
            tokio::spawn(async { delivery.ack().await.unwrap() });
            let _ = tell.send(came);
        }
    });
}

/// Publishes until it is to stop: the payloads.
async fn publish(config: KafkaConfig, name: &'static str, stop: CancellationToken) -> Vec<String> {
    let transport = Arc::new(KafkaTransport::connect(config).await.unwrap());
    let publisher = Publisher::new(transport, PublishOptions::default());
    let mut tick = interval(Duration::from_millis(10));
    let mut published = Vec::new();
    while !stop.is_cancelled() {
        tick.tick().await;
        let payload = format!("{name}-{}", published.len());
        let message = Message::new("t", payload.clone()).unwrap();
        publisher.publish(message).await.unwrap();
        published.push(payload);
    }
    let by = Instant::now() + SOON;
    publisher.close(by).await.unwrap();
    published
}

async fn grow(transport: &KafkaTransport) {
    let native = native(transport);
    let name = native.topic(&Topic::new("t").unwrap());
    let admin: AdminClient<DefaultClientContext> = native.client().create().unwrap();
    let more = NewPartitions::new(&name, usize::try_from(MORE).unwrap());
    let grown = admin.create_partitions([&more], &AdminOptions::new());
    grown.await.unwrap().remove(0).unwrap();
}

/// Another program writes to the new partitions, as soon as it can: the payloads of each.
fn write(transport: &KafkaTransport, name: &str) -> Vec<String> {
    let native = native(transport);
    let topic = native.topic(&Topic::new("t").unwrap());
    let producer: ThreadedProducer<DefaultProducerContext> = native.client().create().unwrap();
    let mut written = Vec::new();
    for partition in FEW..MORE {
        for number in 0..WRITTEN {
            let payload = format!("{name}-{partition}-{number}");
            let record: BaseRecord<'_, (), str> = BaseRecord::to(&topic)
                .partition(partition)
                .payload(&payload);
            producer.send(record).map_err(|(error, _)| error).unwrap();
            written.push(payload);
        }
    }
    producer.flush(SOON).unwrap();
    assert_eq!(producer.in_flight_count(), 0);
    written
}

/// Takes until all of these have come, and when the last of them did.
async fn all_of(
    coming: &mut mpsc::UnboundedReceiver<Came>,
    came: &mut Vec<Came>,
    wanted: &[String],
    within: Duration,
) -> Duration {
    let mut missing: BTreeSet<&str> = wanted.iter().map(String::as_str).collect();
    for (_, payload, _) in &*came {
        missing.remove(payload.as_str());
    }
    let began = Instant::now();
    while !missing.is_empty() {
        let left = within.saturating_sub(began.elapsed());
        let Ok(next) = timeout(left, coming.recv()).await else {
            let some: Vec<_> = missing.iter().take(5).collect();
            panic!("{} did not come within {within:?}: {some:?}", missing.len());
        };
        let next = next.unwrap();
        missing.remove(next.1.as_str());
        came.push(next);
    }
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_new_partitions_is_delivered() {
    let Some(config) = config("growth").await else {
        return;
    };
    let config = config.partitions(FEW);
    let transport = Arc::new(KafkaTransport::connect(config.clone()).await.unwrap());
    let consumer = Consumer::start(transport.clone(), subscription()).await;
    let consumer = Arc::new(consumer.unwrap());
    let (tell, mut coming) = mpsc::unbounded_channel();
    read(consumer.clone(), tell);
    let stop = CancellationToken::new();
    let publishing = tokio::spawn(publish(config.clone(), "old", stop.clone()));
    // It flows.
    let mut came = Vec::new();
    while came.len() < 100 {
        came.push(timeout(SOON, coming.recv()).await.unwrap().unwrap());
    }
    assert!(came.iter().all(|(partition, ..)| *partition < 2));
    grow(&transport).await;
    let early = write(&transport, "early");
    // Nobody had them: the member had not noticed yet.
    while let Ok(next) = coming.try_recv() {
        assert!(!next.1.starts_with("early"), "{next:?}");
        came.push(next);
    }
    let noticed = all_of(&mut coming, &mut came, &early, NOTICED).await;
    let late = write(&transport, "late");
    let delivered = all_of(&mut coming, &mut came, &late, NOTICED).await;
    // One that comes now publishes to all of them.
    let young = tokio::spawn(publish(config.clone(), "young", stop.clone()));
    let until = Instant::now() + NOTICED;
    let mut filled = BTreeSet::new();
    while filled.len() < 5 {
        let next = timeout(until - Instant::now(), coming.recv()).await;
        let next = next.unwrap().unwrap();
        if next.1.starts_with("young") {
            filled.insert(next.0);
        }
        came.push(next);
    }
    stop.cancel();
    let old = publishing.await.unwrap();
    let young = young.await.unwrap();
    let all = [early, late, old, young].concat();
    all_of(&mut coming, &mut came, &all, NOTICED).await;
    let more = timeout(QUIET, coming.recv()).await;
    assert!(more.is_err(), "{more:?}");
    // Each once: no partition changed hands.
    let later: Vec<_> = came
        .iter()
        .filter(|(_, _, attempt)| *attempt != 1)
        .collect();
    assert!(later.is_empty(), "{later:?}");
    assert_eq!(came.len(), all.len());
    let mut each = BTreeMap::new();
    for (partition, ..) in &came {
        *each.entry(partition).or_insert(0) += 1;
    }
    println!(
        "{} published, {} delivered, of each partition {each:?}; what was written before the member noticed \
         was all there {noticed:.1?} later, what came afterwards {delivered:.1?} later",
        all.len(),
        came.len(),
    );
    let (topic, group) = (Topic::new("t").unwrap(), Group::new("g").unwrap());
    soon("the lag", async || {
        let lag = transport.admin().lag(&topic, &group).await.unwrap();
        match lag == Lag::default() {
            true => Ok(()),
            false => Err(format!("{lag:?}")),
        }
    })
    .await;
    consumer.close(Instant::now() + SOON).await.unwrap();
}

/// One that joins just then knows of partitions of which the group does not know yet. The others may take
/// as long to notice them as an answer may take by default: it is not to wait for them.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_may_join_while_nobody_has_the_new_partitions() {
    let Some(config) = config("joins").await else {
        return;
    };
    let config = config.partitions(FEW);
    let transport = Arc::new(KafkaTransport::connect(config.clone()).await.unwrap());
    let first = Consumer::start(transport.clone(), subscription()).await;
    let first = Arc::new(first.unwrap());
    let (tell, mut coming) = mpsc::unbounded_channel();
    read(first.clone(), tell.clone());
    // It has its partitions.
    let publisher = Publisher::new(transport.clone(), PublishOptions::default());
    publisher
        .publish(Message::new("t", "first").unwrap())
        .await
        .unwrap();
    let mut came = Vec::new();
    all_of(&mut coming, &mut came, &["first".to_owned()], SOON).await;
    grow(&transport).await;
    let early = write(&transport, "early");
    let config = config.response_timeout(Duration::from_secs(1));
    let other = Arc::new(KafkaTransport::connect(config).await.unwrap());
    let began = Instant::now();
    let second = Consumer::start(other, subscription()).await;
    let joined = began.elapsed();
    let second = Arc::new(second.unwrap());
    read(second.clone(), tell);
    let noticed = all_of(&mut coming, &mut came, &early, NOTICED).await;
    println!("joined after {joined:.1?}, all there {noticed:.1?} later");
    let more = timeout(QUIET, coming.recv()).await;
    assert!(more.is_err(), "{more:?}");
    assert_eq!(came.len(), 1 + early.len());
    for consumer in [first, second] {
        consumer.close(Instant::now() + SOON).await.unwrap();
    }
}
