//! Topics in the broker: found, made, and what they promise.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mas_transport_core::backend::lock;
use mas_transport_core::{Durability, Error, ErrorKind, Result, Topic};
use rdkafka::admin::{NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::types::{RDKafkaErrorCode as Code, RDKafkaRespErr};
use tokio::time::{Instant, sleep};

use crate::BACKEND;
use crate::client::Asker;
use crate::config::Acks;
use crate::error;
use crate::keys::Keys;

/// How long to wait before a topic that was just made is looked at: a broker knows of it at once, or in
/// a moment.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LAST_LOOK: Duration = Duration::from_millis(200);
/// The largest dead letter, and the largest record in quarantine: other programs write records beyond
/// our limit where a topic takes them, and these have to go somewhere as well. As large as a request to
/// a broker may be by default (`socket.request.max.bytes`).
pub(crate) const LARGEST_LETTER: usize = 100 << 20;

/// What is known of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) partitions: i32,
    /// What a receipt of it survives.
    pub(crate) durability: Durability,
}

/// What the brokers tell of a topic.
#[derive(Clone, Copy, Debug)]
struct Described {
    partitions: i32,
    /// Of the partition that has fewest.
    replicas: usize,
    /// Every partition has a leader.
    led: bool,
}

/// The topics of one prefix and namespace.
#[derive(Debug)]
pub(crate) struct Topics {
    pub(crate) asker: Arc<Asker>,
    pub(crate) keys: Keys,
    known: Mutex<HashMap<Topic, Known>>,
}

impl Topics {
    pub(crate) fn new(asker: Arc<Asker>, keys: Keys) -> Self {
        Self {
            asker,
            keys,
            known: Mutex::default(),
        }
    }

    /// A topic that is known to be there.
    pub(crate) fn known(&self, topic: &Topic) -> Option<Known> {
        lock(&self.known).get(topic).copied()
    }

    /// A topic may be gone.
    pub(crate) fn forget(&self, topic: &Topic) {
        lock(&self.known).remove(topic);
    }

    /// Sees to it that a topic is there, as it is or newly made.
    pub(crate) async fn reach(&self, operation: &'static str, topic: &Topic) -> Result<Known> {
        if let Some(known) = self.known(topic) {
            return Ok(known);
        }
        let config = &self.asker.config;
        let partitions = config.partitions;
        match self.find(operation, topic).await? {
            Some(known) => Ok(known),
            None if config.auto_create => self.make(operation, topic, partitions).await,
            None => {
                let why = "there is no such topic, and topics are not made by themselves here \
                           (KAFKA_AUTO_CREATE): declare it first";
                Err(self.error(ErrorKind::NotFound, operation, topic, why))
            }
        }
    }

    /// A topic, if it is there.
    pub(crate) async fn find(
        &self,
        operation: &'static str,
        topic: &Topic,
    ) -> Result<Option<Known>> {
        self.keys.check(operation, topic)?;
        match self.describe(operation, topic).await? {
            Some(found) if found.led => self.learn(operation, topic, found).await.map(Some),
            Some(_) => self.settle(operation, topic).await.map(Some),
            None => Ok(None),
        }
    }

    /// Makes a topic; that somebody else was quicker is as good.
    pub(crate) async fn make(
        &self,
        operation: &'static str,
        topic: &Topic,
        partitions: i32,
    ) -> Result<Known> {
        self.keys.check(operation, topic)?;
        let config = &self.asker.config;
        let name = self.keys.topic(topic);
        // A record with its dead letter's, and what batches and headers add.
        let ordinary = config.max_message_bytes + (128 << 10);
        let mut largest = match topic.is_internal() {
            true => ordinary.max(LARGEST_LETTER),
            false => ordinary,
        };
        let retention = match (config.retention, topic.is_internal()) {
            (Some(retention), false) => retention.as_millis().to_string(),
            // Nobody settles dead letters in time.
            _ => "-1".to_owned(),
        };
        let replicas = config.min_insync.map(|least| least.to_string());
        let options = self.asker.options();
        loop {
            let bytes = largest.to_string();
            let mut new = NewTopic::new(
                &name,
                partitions,
                TopicReplication::Fixed(config.replication),
            )
            .set("max.message.bytes", &bytes)
            .set("retention.ms", &retention);
            if let Some(least) = &replicas {
                new = new.set("min.insync.replicas", least);
            }
            let turn = self.asker.turn().await;
            let since = Instant::now();
            let made = self
                .asker
                .admin(operation)?
                .create_topics([&new], &options)
                .await;
            drop(turn);
            let made = made.map_err(|e| self.asker.explain(operation, since, e))?;
            match made.into_iter().find_map(std::result::Result::err) {
                None | Some((_, Code::TopicAlreadyExists)) => break,
                // Some clusters allow no topic of such records: then without room for large ones.
                Some((_, Code::PolicyViolation | Code::InvalidConfig)) if largest > ordinary => {
                    largest = ordinary;
                }
                Some((_, code)) => {
                    let (kind, why) = error::meaning(code);
                    return Err(self
                        .error(kind, operation, topic, why)
                        .because(rdkafka::error::KafkaError::AdminOp(code)));
                }
            }
        }
        self.settle(operation, topic).await
    }

    /// Waits until a topic that was just made is led.
    async fn settle(&self, operation: &'static str, topic: &Topic) -> Result<Known> {
        let until = Instant::now() + self.asker.config.response_timeout;
        let mut wait = FIRST_LOOK;
        loop {
            if let Some(found) = self.describe(operation, topic).await?
                && found.led
                && self.answers(operation, topic, found.partitions).await?
            {
                return self.learn(operation, topic, found).await;
            }
            if Instant::now() >= until {
                let why = "the topic was made, and its partitions have no leader yet";
                return Err(self.error(ErrorKind::Unavailable, operation, topic, why));
            }
            sleep(wait).await;
            wait = (2 * wait).min(LAST_LOOK);
        }
    }

    /// Whether the leaders of all partitions answer for them. A broker is named as a leader a moment before
    /// it is one, and refuses what comes meanwhile.
    async fn answers(
        &self,
        operation: &'static str,
        topic: &Topic,
        partitions: i32,
    ) -> Result<bool> {
        let name = self.keys.topic(topic);
        let asked = self.asker.ask(operation, move |client, within| {
            for partition in 0..partitions {
                client.fetch_watermarks(&name, partition, within)?;
            }
            Ok(())
        });
        match asked.await {
            Ok(()) => Ok(true),
            Err(error) if error.is_retryable() => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn describe(&self, operation: &'static str, topic: &Topic) -> Result<Option<Described>> {
        let name = self.keys.topic(topic);
        let described = self.asker.ask(operation, move |client, within| {
            let metadata = client.fetch_metadata(Some(&name), within)?;
            let Some(topic) = metadata.topics().iter().find(|t| t.name() == name) else {
                return Ok(Ok(None));
            };
            if let Some(error) = topic.error() {
                return Ok(missing(error));
            }
            let partitions = topic.partitions();
            let led =
                |p: &rdkafka::metadata::MetadataPartition| p.leader() >= 0 && p.error().is_none();
            Ok(Ok(Some(Described {
                partitions: i32::try_from(partitions.len()).unwrap_or(i32::MAX),
                replicas: partitions
                    .iter()
                    .map(|p| p.replicas().len())
                    .min()
                    .unwrap_or(0),
                led: !partitions.is_empty() && partitions.iter().all(led),
            })))
        });
        described.await?.map_err(|code| {
            let (kind, why) = error::meaning(code);
            self.error(kind, operation, topic, why)
        })
    }

    /// Finds out what a receipt of a topic survives.
    async fn learn(
        &self,
        operation: &'static str,
        topic: &Topic,
        found: Described,
    ) -> Result<Known> {
        let replicated = self.asker.config.acks == Acks::All
            && found.replicas > 1
            && self.least_in_sync(operation, topic).await? > 1;
        let known = Known {
            partitions: found.partitions,
            durability: match replicated {
                true => Durability::Replicated,
                // Brokers do not flush before they confirm.
                false => Durability::Process,
            },
        };
        lock(&self.known).insert(topic.clone(), known);
        Ok(known)
    }

    /// On how many replicas a message is before it is confirmed; 1 where nobody may ask.
    async fn least_in_sync(&self, operation: &'static str, topic: &Topic) -> Result<i32> {
        let name = self.keys.topic(topic);
        let which = [ResourceSpecifier::Topic(&name)];
        let options = self.asker.options();
        let since = Instant::now();
        let asked = self
            .asker
            .admin(operation)?
            .describe_configs(&which, &options)
            .await;
        let asked = asked.map_err(|e| self.asker.explain(operation, since, e))?;
        let found = asked.iter().flatten().find_map(|resource| {
            let entry = resource.get("min.insync.replicas")?;
            entry.value.as_deref()?.parse().ok()
        });
        Ok(found.unwrap_or(1))
    }

    pub(crate) fn error(
        &self,
        kind: ErrorKind,
        operation: &'static str,
        topic: &Topic,
        why: &'static str,
    ) -> Error {
        Error::new(kind, operation, why)
            .on(BACKEND)
            .with("topic", topic)
            .with("kafka-topic", self.keys.topic(topic))
    }
}

/// Whether an error of a topic says that there is none.
fn missing<T>(error: RDKafkaRespErr) -> std::result::Result<Option<T>, Code> {
    match Code::from(error) {
        Code::UnknownTopicOrPartition | Code::UnknownTopic => Ok(None),
        // It has just been made.
        Code::LeaderNotAvailable => Ok(None),
        code => Err(code),
    }
}
