//! rdkafka: one producer, and one consumer that is alone in its group.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::future::try_join_all;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders, OwnedMessage};
use rdkafka::producer::future_producer::DeliveryFuture;
use rdkafka::producer::{FutureProducer, FutureRecord};

use super::Raw;
use crate::meter::{Meter, Sample};
use crate::ours::Way;
use crate::{PAYLOAD, Result};

/// Publishes that may wait for their confirmation where ours has no such number.
const WINDOW: usize = 1_000;
/// Messages read between two commits.
const BATCH: usize = 500;
/// As a topic of ours has.
const PARTITIONS: i32 = 3;
const TOPIC: &str = "benches-raw";
const GROUP: &str = "bench";
/// Longer than anything takes here.
const PATIENCE: Duration = Duration::from_secs(30);

/// rdkafka as its documentation shows it.
pub(crate) struct RawKafka {
    brokers: String,
    producer: FutureProducer,
    admin: AdminClient<DefaultClientContext>,
    payload: Vec<u8>,
    topics: usize,
}

impl RawKafka {
    /// Connects.
    pub(crate) fn connect(brokers: &str) -> Result<Self> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers);
        Ok(Self {
            brokers: brokers.to_owned(),
            admin: config.create()?,
            // What ours has by default: the same records and the same confirmation, in requests that are
            // filled alike.
            producer: config
                .set("acks", "all")
                .set("enable.idempotence", "true")
                .set("compression.type", "snappy")
                .set("linger.ms", "0")
                .set("sticky.partitioning.linger.ms", "0")
                .set("batch.size", "1000000")
                .set("partitioner", "murmur2_random")
                .create()?,
            payload: vec![b'x'; PAYLOAD],
            topics: 0,
        })
    }

    /// A topic that no round had before, which the producer knows.
    async fn topic(&mut self) -> Result<String> {
        self.topics += 1;
        let topic = format!("{TOPIC}.{}.{}", std::process::id(), self.topics);
        let new = NewTopic::new(&topic, PARTITIONS, TopicReplication::Fixed(1));
        for made in self.admin.create_topics([&new], &options()).await? {
            made.map_err(|(topic, code)| format!("{topic} was not made: {code}"))?;
        }
        confirmed(self.send(&topic)?).await?;
        Ok(topic)
    }

    async fn clear(&self, topic: &str) -> Result<()> {
        for removed in self.admin.delete_topics(&[topic], &options()).await? {
            removed.map_err(|(topic, code)| format!("{topic} was not removed: {code}"))?;
        }
        Ok(())
    }

    fn send(&self, topic: &str) -> Result<DeliveryFuture> {
        let sent = self.producer.send_result(record(topic, &self.payload));
        Ok(sent.map_err(|(told, _)| told)?)
    }

    /// At most so many that are not confirmed.
    async fn window(&self, topic: &str, window: usize, messages: usize) -> Result<()> {
        let mut open = VecDeque::with_capacity(window);
        for _ in 0..messages {
            if open.len() == window
                && let Some(oldest) = open.pop_front()
            {
                confirmed(oldest).await?;
            }
            open.push_back(self.send(topic)?);
        }
        for sent in open {
            confirmed(sent).await?;
        }
        Ok(())
    }

    /// So many tasks, each of which awaits what it publishes.
    async fn tasks(&self, topic: &str, tasks: usize, messages: usize) -> Result<()> {
        let left = Arc::new(AtomicUsize::new(messages));
        let running = (0..tasks).map(|_| {
            let (left, topic) = (left.clone(), topic.to_owned());
            let (producer, payload) = (self.producer.clone(), self.payload.clone());
            tokio::spawn(async move {
                while left
                    .fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1))
                    .is_ok()
                {
                    let record = record(&topic, &payload);
                    producer
                        .send(record, PATIENCE)
                        .await
                        .map_err(|(told, _)| told)?;
                }
                Ok::<_, KafkaError>(())
            })
        });
        for outcome in try_join_all(running).await? {
            outcome?;
        }
        Ok(())
    }

    /// So many, then all of their confirmations.
    async fn batches(&self, topic: &str, size: usize, messages: usize) -> Result<()> {
        let mut left = messages;
        while left > 0 {
            let batch = left.min(size);
            self.window(topic, batch, batch).await?;
            left -= batch;
        }
        Ok(())
    }
}

async fn confirmed(sent: DeliveryFuture) -> Result<()> {
    sent.await?.map_err(|(told, _)| told)?;
    Ok(())
}

fn record<'a>(topic: &'a str, payload: &'a [u8]) -> FutureRecord<'a, (), [u8]> {
    FutureRecord::to(topic).headers(headers()).payload(payload)
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(PATIENCE))
}

#[async_trait]
impl Raw for RawKafka {
    async fn publish(&mut self, way: Way, messages: usize) -> Result<Sample> {
        let topic = self.topic().await?;
        let meter = Meter::start();
        match way {
            Way::Tasks(tasks) => self.tasks(&topic, tasks, messages).await?,
            Way::Window(window) => self.window(&topic, window, messages).await?,
            Way::Batches(size) => self.batches(&topic, size, messages).await?,
        }
        let sample = meter.stop(messages);
        self.clear(&topic).await?;
        Ok(sample)
    }

    async fn consume(&mut self, messages: usize) -> Result<Sample> {
        let topic = self.topic().await?;
        self.window(&topic, WINDOW, messages).await?;
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", GROUP)
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            // As ours has it: by default a client that has read ahead enough waits for a second, and is
            // half as fast.
            .set("fetch.queue.backoff.ms", "5")
            .set("queued.min.messages", "10000")
            .set("queued.max.messages.kbytes", "16384");
        let consumer: BaseConsumer = config.create()?;
        let read = {
            let topic = topic.clone();
            tokio::task::spawn_blocking(move || read(&consumer, &topic, messages))
        };
        let sample = read.await??;
        self.clear(&topic).await?;
        Ok(sample)
    }
}

/// Reads so many behind the first one, and commits where they end, batch by batch. Nothing confirms a
/// commit but the last one.
fn read(consumer: &BaseConsumer, topic: &str, messages: usize) -> Result<Sample> {
    consumer.subscribe(&[topic])?;
    next(consumer)?;
    let meter = Meter::start();
    let mut batch = Vec::with_capacity(BATCH);
    let mut left = messages;
    while left > 0 {
        for _ in 0..left.min(BATCH) {
            batch.push(next(consumer)?);
        }
        left -= batch.len();
        batch.clear();
        consumer.commit_consumer_state(match left {
            0 => CommitMode::Sync,
            _ => CommitMode::Async,
        })?;
    }
    Ok(meter.stop(messages))
}

/// The next record, with its payload and headers.
fn next(consumer: &BaseConsumer) -> Result<OwnedMessage> {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        // It also returns when something else came than a record.
        if let Some(record) = consumer.poll(PATIENCE) {
            return Ok(record?.detach());
        }
    }
    Err("the topic ended too early".into())
}

/// Those of one message, with an id of its own as CloudEvents asks for.
fn headers() -> OwnedHeaders {
    let mut buffer = [0; uuid::fmt::Hyphenated::LENGTH];
    let id = uuid::Uuid::now_v7().hyphenated().encode_lower(&mut buffer);
    let header = |key, value| Header {
        key,
        value: Some(value),
    };
    OwnedHeaders::new_with_capacity(4)
        .insert(header("ce_specversion", "1.0"))
        .insert(header("ce_id", &*id))
        .insert(header("ce_source", "mas-transport"))
        .insert(header("ce_type", "message"))
}

#[cfg(test)]
mod tests {
    use mas_transport::{Message, codec};
    use rdkafka::message::Headers as _;

    use super::*;

    /// The comparison is fair only while both write the same.
    #[test]
    fn the_yardstick_writes_the_headers_that_we_write() {
        let message = Message::new("a", vec![b'x'; PAYLOAD]).unwrap();
        let mut ours = Vec::new();
        codec::fields::encode(&message, &mut |name, value| {
            if name != b"data" {
                ours.push((String::from_utf8_lossy(name).into_owned(), value.len()));
            }
        });
        let headers = headers();
        let theirs: Vec<_> = headers
            .iter()
            .map(|header| (header.key.to_owned(), header.value.map_or(0, <[u8]>::len)))
            .collect();
        assert_eq!(theirs, ours);
    }
}
