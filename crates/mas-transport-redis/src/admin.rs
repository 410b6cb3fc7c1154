//! Topics, groups and figures.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use mas_transport_core::{Admin, Error, ErrorKind, Group, Health, Lag, Result, Topic, TopicSpec};
use redis::{Cmd, Value};

use crate::BACKEND;
use crate::decode;
use crate::health;
use crate::keys::{self, MARKER};
use crate::scripts;
use crate::transport::Shared;

/// Entries that are counted one by one where the server does not know their number.
const COUNTED: u64 = 100_000;

/// Topics and groups of one server.
#[derive(Debug)]
pub(crate) struct RedisAdmin(pub(crate) Arc<Shared>);

impl RedisAdmin {
    fn open(&self, operation: &'static str) -> Result<()> {
        if self.0.is_closed() {
            return Err(Error::closed(operation).on(BACKEND));
        }
        Ok(())
    }

    fn stream(&self, topic: &Topic) -> String {
        keys::stream(&self.0.link.config.namespace, topic)
    }

    async fn members(&self, operation: &'static str, key: &str) -> Result<Vec<String>> {
        let mut ask = Cmd::new();
        ask.arg("SMEMBERS").arg(key);
        let names = decode::list(self.0.link.command(operation, ask).await?);
        let text = |name: &Value| decode::text(name).map(str::to_owned);
        Ok(names.iter().filter_map(text).collect())
    }

    fn missing(operation: &'static str, topic: &Topic, what: &'static str) -> Error {
        Error::new(ErrorKind::NotFound, operation, what)
            .on(BACKEND)
            .with("topic", topic)
    }
}

#[async_trait]
impl Admin for RedisAdmin {
    async fn declare(&self, spec: &TopicSpec) -> Result<()> {
        self.open("declare")?;
        if spec.partitions != 1 {
            let why = "topics have one partition";
            return Err(Error::unsupported(BACKEND, "declare", why)
                .with("topic", &spec.topic)
                .with("partitions", spec.partitions));
        }
        let stream = self.stream(&spec.topic);
        let fresh = uuid::Uuid::now_v7().simple().to_string();
        let mut call = scripts::DECLARE.call(&[&stream]);
        call.arg(MARKER).arg(fresh);
        // A task of its own, so that a dropped call is not half done.
        let (shared, topic) = (self.0.clone(), spec.topic.clone());
        let declaring = self.0.tasks.spawn(async move {
            shared.register(&topic).await?;
            let declared = shared.link.run("declare", &scripts::DECLARE, call);
            declared.await.map(|_| ())
        });
        declaring
            .await
            .unwrap_or_else(|_| Err(Error::closed("declare").on(BACKEND)))
    }

    async fn topics(&self) -> Result<Vec<Topic>> {
        self.open("topics")?;
        let key = keys::topics(&self.0.link.config.namespace);
        let names = self.members("topics", &key).await?;
        let topics: BTreeSet<Topic> = names.iter().filter_map(|n| Topic::stored(n).ok()).collect();
        Ok(topics.into_iter().collect())
    }

    async fn groups(&self, topic: &Topic) -> Result<Vec<Group>> {
        self.open("groups")?;
        let stream = self.stream(topic);
        let names = self.members("groups", &keys::groups(&stream)).await?;
        let groups: BTreeSet<Group> = names.iter().filter_map(|n| Group::new(n).ok()).collect();
        Ok(groups.into_iter().collect())
    }

    async fn lag(&self, topic: &Topic, group: &Group) -> Result<Lag> {
        self.open("lag")?;
        let stream = self.stream(topic);
        let mut call = scripts::LAG.call(&[&stream]);
        call.arg(group.as_str()).arg(COUNTED);
        let answer = self.0.link.run("lag", &scripts::LAG, call).await?;
        let figures = decode::list(answer);
        let mut figures = figures.iter().map(|f| decode::number(f).unwrap_or(0));
        match (figures.next(), figures.next()) {
            (Some(waiting), Some(pending)) => Ok(Lag {
                waiting: waiting.unsigned_abs(),
                pending: pending.unsigned_abs(),
            }),
            _ => Err(
                Self::missing("lag", topic, "there is no such topic or group").with("group", group),
            ),
        }
    }

    async fn purge(&self, topic: &Topic) -> Result<u64> {
        self.open("purge")?;
        let stream = self.stream(topic);
        let mut call = scripts::PURGE.call(&[&stream]);
        call.arg(MARKER).arg(keys::retries(&stream));
        let answer = self.0.link.run("purge", &scripts::PURGE, call).await?;
        match decode::number(&answer) {
            Some(count) if count >= 0 => Ok(count.unsigned_abs()),
            _ => Err(Self::missing("purge", topic, "there is no such topic")),
        }
    }

    async fn health(&self) -> Result<Health> {
        self.open("health")?;
        health::ask(&self.0.link).await
    }

    async fn pause(&self, topic: &Topic, group: &Group, _paused: bool) -> Result<()> {
        self.open("pause")?;
        let why = "pausing a whole group is not supported";
        Err(Error::unsupported(BACKEND, "pause", why)
            .with("server", &self.0.info.server)
            .with("topic", topic)
            .with("group", group))
    }
}
