//! The memory backend: a broker of its own for every trial, under a paused clock.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use mas_transport_core::{Group, Namespace, Result, Topic, Transport};
use mas_transport_memory::{MemoryBroker, MemoryConfig, Profile};

use super::net::Net;
use crate::harness::{Ability, Broker, Failure, Harness, Setup, Timing, Variant, Verdict};
use crate::layers::Intercept;

/// The memory backend in one of its profiles.
#[derive(Clone, Debug)]
pub struct MemoryHarness {
    name: &'static str,
    config: MemoryConfig,
}

/// Topics with a bound that trials can reach.
fn bounded() -> MemoryConfig {
    MemoryConfig::new().max_topic_messages(10_000)
}

impl MemoryHarness {
    /// `memory`: a queue with leases. Entries are kept in the wire format, so that the codec is
    /// under test too.
    pub fn queue() -> Self {
        Self {
            name: "memory",
            config: bounded().wire(true),
        }
    }

    /// `memory-log`: a partitioned log.
    pub fn log() -> Self {
        Self {
            name: "memory-log",
            config: bounded().profile(Profile::PartitionedLog { partitions: 4 }),
        }
    }
}

#[async_trait]
impl Harness for MemoryHarness {
    fn name(&self) -> &str {
        self.name
    }

    fn timing(&self) -> Timing {
        Timing::paused()
    }

    fn abilities(&self) -> &[Ability] {
        &[
            Ability::Inject,
            Ability::DropGroup,
            Ability::Wipe,
            Ability::Trim,
            Ability::Fill,
            Ability::Block,
            Ability::Cut,
            Ability::LoseConfirms,
            Ability::Crash,
        ]
    }

    fn variants(&self) -> &[Variant] {
        &[Variant::Bare, Variant::Layered]
    }

    async fn broker(&self, setup: &Setup) -> std::result::Result<Arc<dyn Broker>, Failure> {
        let faulty = [Ability::Cut, Ability::LoseConfirms];
        let net = setup.needs.iter().any(|n| faulty.contains(n));
        Ok(Arc::new(InMemory {
            broker: MemoryBroker::new(self.config.clone()),
            namespace: setup.namespace.clone(),
            net: net.then(Net::new),
        }))
    }
}

#[derive(Debug)]
struct InMemory {
    broker: MemoryBroker,
    namespace: Namespace,
    net: Option<Arc<Net>>,
}

#[async_trait]
impl Broker for InMemory {
    async fn connect(&self) -> Result<Arc<dyn Transport>> {
        let transport = self.broker.connect_in(self.namespace.clone()).await?;
        Ok(match &self.net {
            Some(net) => Intercept::layer(transport, Arc::clone(net) as _),
            None => transport,
        })
    }

    async fn inject(&self, topic: &Topic, fields: Vec<(Bytes, Bytes)>) -> Verdict {
        Ok(self.broker.inject_raw(&self.namespace, topic, fields)?)
    }

    async fn drop_group(&self, topic: &Topic, group: &Group) -> Verdict {
        if self.broker.drop_group(&self.namespace, topic, group) {
            return Ok(());
        }
        Err(format!("there is no group {group} on {topic}").into())
    }

    async fn wipe(&self, _topic: &Topic) -> Verdict {
        self.broker.wipe();
        Ok(())
    }

    async fn trim(&self, topic: &Topic, remove: u64) -> Verdict {
        let removed = self.broker.trim(&self.namespace, topic, remove);
        if removed == remove {
            return Ok(());
        }
        Err(format!("{removed} of {remove} entries could be removed").into())
    }

    async fn fill(&self, full: bool) -> Verdict {
        self.broker.set_full(full);
        Ok(())
    }

    async fn block(&self, _topic: &Topic, blocked: bool) -> Verdict {
        self.broker.set_full(blocked);
        Ok(())
    }

    async fn cut(&self) -> Verdict {
        self.net()?.cut();
        Ok(())
    }

    async fn lose_confirms(&self, count: u64) -> Verdict {
        self.net()?.lose_confirms(count);
        Ok(())
    }
}

impl InMemory {
    fn net(&self) -> std::result::Result<&Arc<Net>, Failure> {
        let missing = "the trial does not name the ability among its needs";
        self.net.as_ref().ok_or_else(|| missing.into())
    }
}
