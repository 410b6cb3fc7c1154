//! A process that is killed with many messages in its hands.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mas_transport_core::{
    Group, Lag, Message, Outcome, PublishOptions, Publisher, Topic, Transport as _,
};
use mas_transport_kafka::{GroupProtocol, KafkaTransport};
use tokio::time::Instant;

use crate::child::{Child, Job, Line, Order, subscription};
use crate::support::{Member, SOON, config, soon};

/// How many the process holds when it dies.
const MANY: usize = 5000;
/// How long nothing has to come.
const QUIET: Duration = Duration::from_secs(1);
/// Until the brokers have missed a dead member (6 s), and its partitions have changed hands.
const MISSED: Duration = Duration::from_secs(30);

struct Killed {
    transport: Arc<KafkaTransport>,
    order: Order,
    /// What it had not acked.
    open: BTreeSet<String>,
    since: Instant,
}

/// A process has taken [`MANY`] messages at once, acked every second one, and was killed.
async fn killed(name: &str, partitions: i32) -> Option<Killed> {
    let config = config(name).await?.partitions(partitions);
    let address = config.address();
    let transport = Arc::new(KafkaTransport::connect(config).await.unwrap());
    let publisher = Publisher::new(transport.clone(), PublishOptions::default());
    let messages: Vec<_> = (0..MANY)
        .map(|n| Message::new("t", n.to_string()).unwrap())
        .collect();
    let published: BTreeSet<_> = messages.iter().map(|m| m.id().to_owned()).collect();
    for receipt in publisher.publish_batch(messages).await {
        receipt.unwrap();
    }
    let order = Order {
        address,
        namespace: format!("t{}-{name}", std::process::id()),
        protocol: GroupProtocol::Classic,
        prefetch: MANY,
        job: Job::AckHalf(MANY),
    };
    let mut child = Child::start(&order);
    let (mut delivered, mut acked) = (BTreeSet::new(), BTreeSet::new());
    loop {
        match child.line(SOON).await {
            Line::Delivered(id, attempt) => {
                assert_eq!(attempt, 1, "{id}");
                assert!(delivered.insert(id));
            }
            Line::Acked(id) => {
                assert!(acked.insert(id));
            }
            Line::Done => break,
        }
    }
    assert_eq!(child.kill().await, []);
    let since = Instant::now();
    assert_eq!(delivered, published);
    assert_eq!(acked.len(), MANY / 2);
    let open = published.difference(&acked).cloned().collect();
    Some(Killed {
        transport,
        order,
        open,
        since,
    })
}

impl Killed {
    async fn all_settled(&self) {
        let (topic, group) = (Topic::new("t").unwrap(), Group::new("g").unwrap());
        soon("the lag", async || {
            let lag = self.transport.admin().lag(&topic, &group).await.unwrap();
            match lag == Lag::default() {
                true => Ok(()),
                false => Err(format!("{lag:?}")),
            }
        })
        .await;
    }
}

/// As a service is: the process that takes its place is handed what the dead one had not acked, and
/// nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_only_what_was_not_acked_comes_back() {
    let Some(mut killed) = killed("restart", 3).await else {
        return;
    };
    killed.order.job = Job::Ack;
    let mut child = Child::start(&killed.order);
    let mut first = None;
    let (mut delivered, mut acked) = (BTreeSet::new(), 0);
    while acked < killed.open.len() {
        match child.line(MISSED).await {
            Line::Delivered(id, attempt) => {
                first.get_or_insert(killed.since.elapsed());
                assert_eq!(attempt, 2, "{id}");
                assert!(killed.open.contains(&id), "{id} was acked");
                assert!(delivered.insert(id));
            }
            Line::Acked(_) => acked += 1,
            Line::Done => unreachable!(),
        }
    }
    println!(
        "{MANY} held, {} acked; {} came back as second attempts, the first {:.1?} and the last {:.1?} \
         after the kill",
        MANY - killed.open.len(),
        delivered.len(),
        first.unwrap(),
        killed.since.elapsed(),
    );
    assert_eq!(delivered, killed.open);
    child.quiet(QUIET).await;
    killed.all_settled().await;
}

/// With one partition all of that stands beside one offset. Each that comes back says why.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_back_of_one_partition_is_reclaimed() {
    let Some(killed) = killed("one", 1).await else {
        return;
    };
    let source = killed.transport.subscribe(&subscription(MANY)).await;
    let mut member = Member::of(source.unwrap());
    let mut delivered = BTreeSet::new();
    let mut tokens = Vec::new();
    while delivered.len() < killed.open.len() {
        let delivery = member.delivery().await;
        let id = delivery.message.id();
        assert!(killed.open.contains(id), "{id} was acked");
        assert_eq!((delivery.attempt, delivery.reclaimed), (2, true), "{id}");
        assert!(delivered.insert(id.to_owned()));
        tokens.push((delivery.token, Outcome::Ack));
    }
    println!(
        "{} came back as second attempts, the last {:.1?} after the kill",
        delivered.len(),
        killed.since.elapsed(),
    );
    assert_eq!(delivered, killed.open);
    member.settle_all(tokens).await;
    member.quiet(QUIET).await;
    member.close().await;
    killed.all_settled().await;
}
