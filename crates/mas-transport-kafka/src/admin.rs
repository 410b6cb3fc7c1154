//! Topics, groups and figures.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use mas_transport_core::{Admin, Error, ErrorKind, Group, Health, Lag, Result, Topic, TopicSpec};
use rdkafka::consumer::Consumer as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::BACKEND;
use crate::client::{self, Trouble};
use crate::consumer::{self, Standing};
use crate::error;
use crate::health;
use crate::mark::Mark;
use crate::share::AHEAD;
use crate::transport::Shared;

/// Topics and groups of one cluster.
#[derive(Debug)]
pub(crate) struct KafkaAdmin(pub(crate) Arc<Shared>);

impl KafkaAdmin {
    fn missing(operation: &'static str, topic: &Topic, what: &'static str) -> Error {
        Error::new(ErrorKind::NotFound, operation, what)
            .on(BACKEND)
            .with("topic", topic)
    }

    /// Where a group stands, asked by a client of that group which does not join it.
    async fn standings(
        &self,
        topic: &Topic,
        group: &Group,
        partitions: i32,
    ) -> Result<Vec<Standing>> {
        let shared = self.0.clone();
        let (topic_name, group_name) = (
            shared.topics.keys.topic(topic),
            shared.topics.keys.group(topic, group),
        );
        let (topic, group) = (topic.clone(), group.clone());
        let asked = tokio::task::spawn_blocking(move || {
            let since = Instant::now();
            let config = &shared.asker.config;
            let trouble = Arc::<Trouble>::default();
            let consumer = consumer::make(
                config,
                &group_name,
                trouble.clone(),
                Arc::<Notify>::default(),
            )
            .map_err(|e| error::told("lag", e))?;
            consumer.context().close();
            let partitions: Vec<i32> = (0..partitions).collect();
            let within = config.response_timeout;
            consumer::standings(&consumer, &topic_name, &partitions, within).map_err(|e| {
                // By what this client has told: the one that publishes may have troubles of its own.
                client::explain(config, &trouble, "lag", since, e)
                    .with("topic", topic)
                    .with("group", group)
            })
        });
        asked
            .await
            .unwrap_or_else(|_| Err(Error::closed("lag").on(BACKEND)))
    }
}

/// What is waiting and pending in a partition.
fn lag_of(standing: &Standing) -> Option<Lag> {
    let (position, metadata) = standing.committed.as_ref()?;
    let position = (*position).max(standing.low).min(standing.high);
    let behind = standing.high - position;
    let Some(mark) = Mark::decode(metadata).ok().flatten() else {
        return Some(Lag {
            waiting: behind,
            pending: 0,
        });
    };
    let settled: u64 = mark
        .settled
        .iter()
        .map(|range| range.end.min(behind).saturating_sub(range.start))
        .sum();
    // What was read, of what is not settled: up to the last that is known of.
    let known = mark.settled.last().map_or(0, |range| range.end);
    let noted = mark.notes.last().map_or(0, |(at, _)| at + 1);
    let fetched = known
        .max(noted)
        .max(mark.reach.saturating_sub(AHEAD))
        .min(behind);
    Some(Lag {
        waiting: behind - fetched,
        pending: fetched.saturating_sub(settled),
    })
}

#[async_trait]
impl Admin for KafkaAdmin {
    async fn declare(&self, spec: &TopicSpec) -> Result<()> {
        self.0.open("declare")?;
        let wanted = i32::try_from(spec.partitions).unwrap_or(i32::MAX);
        let topics = &self.0.topics;
        let found = match topics.find("declare", &spec.topic).await? {
            Some(found) => found,
            None => topics.make("declare", &spec.topic, wanted).await?,
        };
        if found.partitions != wanted {
            let why = "the topic exists with another number of partitions";
            return Err(topics
                .error(ErrorKind::Conflict, "declare", &spec.topic, why)
                .with("partitions", found.partitions)
                .with("wanted", wanted));
        }
        Ok(())
    }

    async fn topics(&self) -> Result<Vec<Topic>> {
        self.0.open("topics")?;
        let keys = self.0.topics.keys.clone();
        let asked = self.0.asker.ask("topics", move |client, within| {
            let metadata = client.fetch_metadata(None, within)?;
            let topics = metadata.topics().iter();
            let found: BTreeSet<Topic> = topics.filter_map(|t| keys.topic_of(t.name())).collect();
            Ok(found)
        });
        Ok(asked.await?.into_iter().collect())
    }

    async fn groups(&self, topic: &Topic) -> Result<Vec<Group>> {
        self.0.open("groups")?;
        let (keys, of) = (self.0.topics.keys.clone(), topic.clone());
        let asked = self.0.asker.ask("groups", move |client, within| {
            let list = client.fetch_group_list(None, within)?;
            let groups = list.groups().iter();
            let found: BTreeSet<Group> = groups
                .filter_map(|g| keys.group_of(&of, g.name()))
                .collect();
            Ok(found)
        });
        Ok(asked.await?.into_iter().collect())
    }

    async fn lag(&self, topic: &Topic, group: &Group) -> Result<Lag> {
        self.0.open("lag")?;
        let Some(known) = self.0.topics.find("lag", topic).await? else {
            return Err(Self::missing("lag", topic, "there is no such topic"));
        };
        let standings = self.standings(topic, group, known.partitions).await?;
        let found: Vec<Lag> = standings.iter().filter_map(lag_of).collect();
        if found.is_empty() {
            let missing = Self::missing("lag", topic, "there is no such group");
            return Err(missing.with("group", group));
        }
        Ok(found.iter().fold(Lag::default(), |sum, lag| Lag {
            waiting: sum.waiting + lag.waiting,
            pending: sum.pending + lag.pending,
        }))
    }

    async fn purge(&self, topic: &Topic) -> Result<u64> {
        self.0.open("purge")?;
        let Some(known) = self.0.topics.find("purge", topic).await? else {
            return Err(Self::missing("purge", topic, "there is no such topic"));
        };
        let name = self.0.topics.keys.topic(topic);
        let asked = self.0.asker.ask("purge", {
            let name = name.clone();
            move |client, within| {
                let partitions = 0..known.partitions;
                partitions
                    .map(|p| {
                        client
                            .fetch_watermarks(&name, p, within)
                            .map(|(l, h)| (p, l, h))
                    })
                    .collect::<Result<Vec<_>, _>>()
            }
        });
        let mut list = TopicPartitionList::new();
        let mut removed = 0;
        for (partition, low, high) in asked.await? {
            if high > low {
                removed += u64::try_from(high - low).unwrap_or_default();
                let mut element = list.add_partition(&name, partition);
                element
                    .set_offset(Offset::Offset(high))
                    .map_err(|e| error::told("purge", e))?;
            }
        }
        if removed > 0 {
            let since = Instant::now();
            let options = self.0.asker.options();
            let done = self
                .0
                .asker
                .admin("purge")?
                .delete_records(&list, &options)
                .await;
            let done = done.map_err(|e| self.0.asker.explain("purge", since, e))?;
            // Each partition has an answer of its own.
            for element in done.elements() {
                element.error().map_err(|e| error::told("purge", e))?;
            }
        }
        Ok(removed)
    }

    async fn health(&self) -> Result<Health> {
        self.0.open("health")?;
        health::ask(&self.0.asker).await
    }

    async fn pause(&self, topic: &Topic, group: &Group, _paused: bool) -> Result<()> {
        self.0.open("pause")?;
        let why = "pausing a whole group is not supported";
        Err(Error::unsupported(BACKEND, "pause", why)
            .with("server", &self.0.info.server)
            .with("topic", topic)
            .with("group", group))
    }
}
