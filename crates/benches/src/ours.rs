//! The workloads on a broker, through the bus.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join_all;
use mas_transport::{Bus, Message, Subscription, Topic};

use crate::meter::{Meter, Sample};
use crate::target::Reading;
use crate::{PAYLOAD, Result};

const GROUP: &str = "bench";
/// Deliveries taken at once.
const TAKE: usize = 500;
/// Deliveries that one member may hold.
const PREFETCH: usize = 4_000;
/// Acks that may wait for their confirmation.
const UNCONFIRMED: usize = 2_000;

/// Reading and acknowledging, each ack confirmed.
pub(crate) const CONSUME: &str = "consume, every ack confirmed";

/// A way to publish.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// So many tasks, each of which awaits what it publishes.
    Tasks(usize),
    /// Batches of so many, one at a time.
    Batches(usize),
    /// At most so many that are not confirmed.
    Window(usize),
}

/// Every way to publish.
pub(crate) const PUBLISH: &[(&str, Way)] = &[
    ("publish, 64 awaiting tasks", Way::Tasks(64)),
    ("publish_batch(100), one at a time", Way::Batches(100)),
    ("enqueue, window of 1,000", Way::Window(1_000)),
];

/// A bus on the broker.
pub(crate) struct Ours {
    bus: Bus,
    payload: Bytes,
    reading: Reading,
    topics: AtomicUsize,
}

impl Ours {
    /// Ours on this bus.
    pub(crate) fn new(bus: Bus, reading: Reading) -> Self {
        Self {
            bus,
            payload: Bytes::from(vec![b'x'; PAYLOAD]),
            reading,
            topics: AtomicUsize::new(0),
        }
    }

    /// The server and its version.
    pub(crate) fn server(&self) -> String {
        self.bus.info().server.clone()
    }

    /// Publishes.
    pub(crate) async fn publish(&self, way: Way, messages: usize) -> Result<Sample> {
        let topic = self.topic()?;
        // Making the topic is not what is measured.
        self.bus.publish(self.message(&topic)?).await?;
        let meter = Meter::start();
        self.fill(&topic, way, messages).await?;
        let sample = meter.stop(messages);
        self.bus.admin().purge(&topic).await?;
        Ok(sample)
    }

    /// Reads what is there and awaits the confirmation of every ack.
    pub(crate) async fn consume(&self, messages: usize) -> Result<Sample> {
        let topic = self.topic()?;
        self.fill(&topic, Way::Window(1_000), messages).await?;
        let mut meter = Meter::start();
        let subscription = Subscription::new(topic.as_str())
            .group(GROUP)
            .prefetch(PREFETCH);
        let consumer = self.bus.subscribe(subscription).await?;
        let mut unconfirmed = VecDeque::with_capacity(UNCONFIRMED + TAKE);
        let (mut taken, mut before) = (0, 0);
        while taken < messages {
            let batch = consumer.recv_batch(TAKE).await?;
            if taken == 0 && matches!(self.reading, Reading::Joined(_)) {
                meter = Meter::start();
                before = batch.len();
            }
            if batch.is_empty() {
                return Err(format!("the consumer ended after {taken} deliveries").into());
            }
            taken += batch.len();
            unconfirmed.extend(batch.into_iter().map(|delivery| delivery.ack()));
            while unconfirmed.len() > UNCONFIRMED {
                if let Some(oldest) = unconfirmed.pop_front() {
                    oldest.await?;
                }
            }
        }
        for settlement in unconfirmed {
            settlement.await?;
        }
        let sample = meter.stop(messages - before);
        consumer
            .close(tokio::time::Instant::now() + Duration::from_secs(5))
            .await?;
        self.bus.admin().purge(&topic).await?;
        Ok(sample)
    }

    /// Closes the bus.
    pub(crate) async fn close(self) -> Result<()> {
        Ok(self.bus.close(Duration::from_secs(5)).await?)
    }

    /// A topic that no round had before.
    fn topic(&self) -> Result<Topic> {
        let n = self.topics.fetch_add(1, Relaxed);
        Ok(Topic::new(format!("bench.{}.{n}", std::process::id()))?)
    }

    async fn fill(&self, topic: &Topic, way: Way, messages: usize) -> Result<()> {
        match way {
            Way::Tasks(tasks) => {
                let left = Arc::new(AtomicUsize::new(messages));
                let running = (0..tasks).map(|_| {
                    let (left, topic) = (left.clone(), topic.clone());
                    let (bus, payload) = (self.bus.clone(), self.payload.clone());
                    tokio::spawn(async move {
                        while left
                            .fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1))
                            .is_ok()
                        {
                            bus.publish(Message::new(topic.clone(), payload.clone())?)
                                .await?;
                        }
                        Ok::<_, mas_transport::Error>(())
                    })
                });
                for outcome in try_join_all(running).await? {
                    outcome?;
                }
            }
            Way::Batches(size) => {
                let mut left = messages;
                while left > 0 {
                    let batch = (0..left.min(size))
                        .map(|_| self.message(topic))
                        .collect::<Result<Vec<_>>>()?;
                    left -= batch.len();
                    for outcome in self.bus.publish_batch(batch).await {
                        outcome?;
                    }
                }
            }
            Way::Window(window) => {
                let mut open = VecDeque::with_capacity(window);
                for _ in 0..messages {
                    if open.len() == window
                        && let Some(oldest) = open.pop_front()
                    {
                        oldest.await?;
                    }
                    open.push_back(self.bus.enqueue(self.message(topic)?).await?);
                }
                for pending in open {
                    pending.await?;
                }
            }
        }
        Ok(())
    }

    fn message(&self, topic: &Topic) -> Result<Message> {
        Ok(Message::new(topic.clone(), self.payload.clone())?)
    }
}
