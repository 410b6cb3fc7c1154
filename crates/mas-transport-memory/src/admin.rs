//! Topics, groups and figures.

use std::time::Duration;

use async_trait::async_trait;
use mas_transport_core::{
    Admin, Error, ErrorKind, Group, Health, Lag, Result, Topic, TopicSpec, Transport as _,
};
use tokio::time::Instant;

use crate::config::MAX_PARTITIONS;
use crate::topic::After;
use crate::transport::MemoryTransport;
use crate::{BACKEND, topic};

impl MemoryTransport {
    fn find(&self, name: &Topic, operation: &'static str) -> Result<std::sync::Arc<topic::Topic>> {
        self.connection.check(operation)?;
        let topic = self.connection.space.get(name);
        topic.filter(|t| t.lock().exists).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, operation, "there is no such topic")
                .on(BACKEND)
                .with("topic", name)
        })
    }
}

#[async_trait]
impl Admin for MemoryTransport {
    async fn declare(&self, spec: &TopicSpec) -> Result<()> {
        self.connection.check("declare")?;
        if !(1..=MAX_PARTITIONS).contains(&spec.partitions) {
            let why = "a topic has 1 to 1,024 partitions";
            return Err(Error::invalid("declare", why)
                .on(BACKEND)
                .with("topic", &spec.topic)
                .with("partitions", spec.partitions));
        }
        let broker = &self.connection.broker;
        let topic = broker.topic(&self.connection.space, &spec.topic, "declare")?;
        let mut state = topic.lock();
        if !state.exists {
            state.create(spec.partitions);
        }
        if state.partitions != spec.partitions {
            let why = "the topic exists with another number of partitions";
            return Err(Error::new(ErrorKind::Conflict, "declare", why)
                .on(BACKEND)
                .with("topic", &spec.topic)
                .with("partitions", state.partitions)
                .with("asked", spec.partitions));
        }
        Ok(())
    }

    async fn topics(&self) -> Result<Vec<Topic>> {
        self.connection.check("topics")?;
        let all = self.connection.space.all();
        let existing = all.iter().filter(|topic| topic.lock().exists);
        Ok(existing.map(|topic| topic.name.clone()).collect())
    }

    async fn groups(&self, topic: &Topic) -> Result<Vec<Group>> {
        self.connection.check("groups")?;
        let found = self.connection.space.get(topic);
        Ok(found.map_or_else(Vec::new, |topic| topic.lock().names()))
    }

    async fn lag(&self, topic: &Topic, group: &Group) -> Result<Lag> {
        let found = self.find(topic, "lag")?;
        let mut state = found.lock();
        let Some((members, store)) = state.find(group).and_then(|at| state.group(at)) else {
            return Err(
                Error::new(ErrorKind::NotFound, "lag", "there is no such group")
                    .on(BACKEND)
                    .with("topic", topic)
                    .with("group", group),
            );
        };
        members.group.advance(Instant::now(), store);
        Ok(members.group.lag())
    }

    async fn purge(&self, topic: &Topic) -> Result<u64> {
        let found = self.find(topic, "purge")?;
        let mut after = After::default();
        let mut state = found.lock();
        let removed = state.trim(u64::MAX, "the topic was purged", &mut after);
        drop(state);
        after.run();
        Ok(removed)
    }

    async fn health(&self) -> Result<Health> {
        self.connection.check("health")?;
        let server = &self.info().server;
        Ok(Health::new(server, Duration::ZERO).fact("persistence", "none"))
    }

    async fn pause(&self, _topic: &Topic, _group: &Group, _paused: bool) -> Result<()> {
        self.connection.check("pause")?;
        let why = "pausing a whole group is not supported";
        Err(Error::unsupported(BACKEND, "pause", why))
    }
}
