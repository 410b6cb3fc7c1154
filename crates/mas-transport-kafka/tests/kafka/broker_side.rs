//! Groups whose brokers share out the partitions (KIP-848).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mas_transport_core::{
    Consumer, Group, Lag, Message, PublishOptions, Publisher, Topic, Transport as _,
};
use mas_transport_kafka::{GroupProtocol, KafkaConfig, KafkaTransport};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::child::{Child, Job, Line, Order, subscription};
use crate::support::{SOON, config, soon};

/// Until both members have partitions, or one has all of them: members hear of it every 5 s, and one
/// gives up what another one waits for in between.
const SHARED: Duration = Duration::from_secs(30);
/// Until a dead member is missed, also by brokers that nobody told to be quicker than the 45 s that are
/// the default; and its partitions have changed hands.
const MISSED: Duration = Duration::from_secs(75);
/// How long nothing has to come.
const QUIET: Duration = Duration::from_secs(1);

async fn connect(name: &str) -> Option<(KafkaConfig, Arc<KafkaTransport>)> {
    let config = config(name).await?.group_protocol(GroupProtocol::Consumer);
    let transport = KafkaTransport::connect(config.clone()).await.unwrap();
    Some((config, Arc::new(transport)))
}

/// What was handed out: to whom, the id, and which attempt it was.
type Came = (usize, String, u32);

async fn join(
    transport: &Arc<KafkaTransport>,
    number: usize,
    tell: mpsc::UnboundedSender<Came>,
) -> Arc<Consumer> {
    let consumer = Consumer::start(transport.clone(), subscription(1000)).await;
    let consumer = Arc::new(consumer.unwrap());
    let reader = consumer.clone();
    tokio::spawn(async move {
        while let Some(delivery) = reader.recv().await.unwrap() {
            let came = (number, delivery.id().to_owned(), delivery.attempt());
            let tell = tell.clone();
            tokio::spawn(async move {
                delivery.ack().await.unwrap();
                let _ = tell.send(came);
            });
        }
    });
    consumer
}

async fn publish(publisher: &Publisher, count: usize) -> BTreeSet<String> {
    let messages: Vec<_> = (0..count)
        .map(|n| Message::new("t", n.to_string()).unwrap())
        .collect();
    let ids = messages.iter().map(|m| m.id().to_owned()).collect();
    for receipt in publisher.publish_batch(messages).await {
        receipt.unwrap();
    }
    ids
}

async fn all_settled(transport: &KafkaTransport) {
    let (topic, group) = (Topic::new("t").unwrap(), Group::new("g").unwrap());
    soon("the lag", async || {
        let lag = transport.admin().lag(&topic, &group).await.unwrap();
        match lag == Lag::default() {
            true => Ok(()),
            false => Err(format!("{lag:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_members_share_and_one_leaves() {
    let Some((config, transport)) = connect("share").await else {
        return;
    };
    let publisher = Publisher::new(transport.clone(), PublishOptions::default());
    let (tell, mut coming) = mpsc::unbounded_channel();
    let first = join(&transport, 1, tell.clone()).await;
    let other = Arc::new(KafkaTransport::connect(config).await.unwrap());
    let second = join(&other, 2, tell).await;
    let mut missing = BTreeSet::new();
    let mut came: Vec<Came> = Vec::new();
    let mut published = 0;
    let began = Instant::now();
    // Until both have something to do.
    let of = |came: &[Came], who| came.iter().filter(|(n, ..)| *n == who).count();
    while of(&came, 1) == 0 || of(&came, 2) == 0 {
        assert!(
            began.elapsed() < SHARED,
            "{} {}",
            of(&came, 1),
            of(&came, 2)
        );
        missing.extend(publish(&publisher, 30).await);
        published += 30;
        while !missing.is_empty() {
            let next = timeout(SHARED, coming.recv()).await.unwrap().unwrap();
            assert!(missing.remove(&next.1), "{next:?} came once more");
            came.push(next);
        }
    }
    let shared = began.elapsed();
    missing.extend(publish(&publisher, 600).await);
    published += 600;
    let began = Instant::now();
    second.close(began + SOON).await.unwrap();
    let closed = began.elapsed();
    missing.extend(publish(&publisher, 600).await);
    published += 600;
    while !missing.is_empty() {
        let next = timeout(SHARED, coming.recv()).await;
        let next = next.unwrap_or_else(|_| panic!("{} are missing", missing.len()));
        let next = next.unwrap();
        assert!(missing.remove(&next.1), "{next:?} came once more");
        came.push(next);
    }
    let taken_over = began.elapsed();
    let more = timeout(QUIET, coming.recv()).await;
    assert!(more.is_err(), "{more:?}");
    let mut attempts = BTreeMap::new();
    for (_, _, attempt) in &came {
        *attempts.entry(*attempt).or_insert(0) += 1;
    }
    println!(
        "{published} published, {} delivered and acked: {} by the one, {} by the other; attempts {attempts:?}; \
         shared after {shared:.1?}, closed within {closed:.1?}, all there {taken_over:.1?} after the other left",
        came.len(),
        of(&came, 1),
        of(&came, 2),
    );
    assert_eq!(attempts, BTreeMap::from([(1, published)]));
    all_settled(&transport).await;
    first.close(Instant::now() + SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_member_held_comes_back() {
    let Some((config, transport)) = connect("dies").await else {
        return;
    };
    let publisher = Publisher::new(transport.clone(), PublishOptions::default());
    let published = publish(&publisher, 300).await;
    let order = Order {
        address: config.address(),
        namespace: format!("t{}-dies", std::process::id()),
        protocol: GroupProtocol::Consumer,
        prefetch: 1000,
        job: Job::AckHalf(300),
    };
    let mut child = Child::start(&order);
    let mut missing = published.clone();
    loop {
        match child.line(SHARED).await {
            Line::Delivered(id, attempt) => {
                assert_eq!((published.contains(&id), attempt), (true, 1), "{id}");
            }
            Line::Acked(id) => assert!(missing.remove(&id)),
            Line::Done => break,
        }
    }
    assert_eq!(missing.len(), 150);
    assert_eq!(child.kill().await, []);
    let began = Instant::now();
    let (tell, mut coming) = mpsc::unbounded_channel();
    let member = join(&transport, 1, tell).await;
    while !missing.is_empty() {
        let left = MISSED.saturating_sub(began.elapsed());
        let next = timeout(left, coming.recv()).await;
        let next = next.unwrap_or_else(|_| panic!("{} did not come back", missing.len()));
        let (_, id, attempt) = next.unwrap();
        assert!(missing.remove(&id), "{id} was acked");
        assert_eq!(attempt, 2, "{id}");
    }
    println!("150 of 300 came back within {:.1?}", began.elapsed());
    let more = timeout(QUIET, coming.recv()).await;
    assert!(more.is_err(), "{more:?}");
    all_settled(&transport).await;
    member.close(Instant::now() + SOON).await.unwrap();
}
