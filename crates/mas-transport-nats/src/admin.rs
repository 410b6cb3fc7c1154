//! Topics, groups and figures.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use mas_transport_core::{Admin, Error, ErrorKind, Group, Health, Lag, Result, Topic, TopicSpec};
use serde::Deserialize;
use serde_json::json;

use crate::BACKEND;
use crate::health;
use crate::streams::incarnation;
use crate::transport::Shared;

/// Topics and groups of one server.
#[derive(Debug)]
pub(crate) struct NatsAdmin(pub(crate) Arc<Shared>);

impl NatsAdmin {
    fn missing(operation: &'static str, topic: &Topic, what: &'static str) -> Error {
        Error::new(ErrorKind::NotFound, operation, what)
            .on(BACKEND)
            .with("topic", topic)
    }
}

#[async_trait]
impl Admin for NatsAdmin {
    async fn declare(&self, spec: &TopicSpec) -> Result<()> {
        self.0.open("declare")?;
        if spec.partitions != 1 {
            let why = "topics have one partition";
            return Err(Error::unsupported(BACKEND, "declare", why)
                .with("topic", &spec.topic)
                .with("partitions", spec.partitions));
        }
        self.0
            .streams
            .ensure("declare", &spec.topic)
            .await
            .map(drop)
    }

    async fn topics(&self) -> Result<Vec<Topic>> {
        #[derive(Deserialize)]
        struct Page {
            total: usize,
            streams: Option<Vec<String>>,
        }
        self.0.open("topics")?;
        let mut topics = BTreeSet::new();
        let mut offset = 0;
        loop {
            let request = json!({ "offset": offset });
            let asked = self
                .0
                .link
                .must("topics", "STREAM.NAMES".to_owned(), &request);
            let page: Page = asked.await?;
            let found = page.streams.unwrap_or_default();
            offset += found.len();
            let done = found.is_empty() || offset >= page.total;
            topics.extend(
                found
                    .iter()
                    .filter_map(|name| self.0.streams.keys.topic(name)),
            );
            if done {
                return Ok(topics.into_iter().collect());
            }
        }
    }

    async fn groups(&self, topic: &Topic) -> Result<Vec<Group>> {
        self.0.open("groups")?;
        let found = self.0.streams.groups("groups", topic).await?;
        let groups: BTreeSet<Group> = found
            .iter()
            .filter_map(|g| Group::new(&g.name).ok())
            .collect();
        Ok(groups.into_iter().collect())
    }

    async fn lag(&self, topic: &Topic, group: &Group) -> Result<Lag> {
        self.0.open("lag")?;
        let found = self.0.streams.find_group("lag", topic, group).await?;
        let Some(info) = found else {
            let missing = Self::missing("lag", topic, "there is no such topic or group");
            return Err(missing.with("group", group));
        };
        Ok(Lag {
            waiting: info.num_pending,
            pending: info.num_ack_pending as u64,
        })
    }

    async fn purge(&self, topic: &Topic) -> Result<u64> {
        self.0.open("purge")?;
        let Some(info) = self.0.streams.find("purge", topic).await? else {
            return Err(Self::missing("purge", topic, "there is no such topic"));
        };
        // A task of its own, so that a dropped call is not half done.
        let (shared, topic) = (self.0.clone(), topic.clone());
        let purging = self.0.tasks.spawn(async move {
            let last = info.state.last_sequence;
            // Members are not told of a loss that somebody asked for.
            let removing = shared
                .notes
                .remove("purge", &topic, incarnation(&info), last);
            removing.await
        });
        purging
            .await
            .unwrap_or_else(|_| Err(Error::closed("purge").on(BACKEND)))
    }

    async fn health(&self) -> Result<Health> {
        self.0.open("health")?;
        health::ask(&self.0.link).await
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
