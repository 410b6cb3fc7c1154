//! The broker: topics by namespace, and what only a test would do to it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use mas_transport_core as core;
use mas_transport_core::{
    Capabilities, Durability, Error, ErrorKind, Exactness, Namespace, Result, TransportInfo,
};
use tokio::time::Instant;

use crate::config::{MemoryConfig, Profile};
use crate::fault::Faults;
use crate::store::Body;
use crate::topic::{After, Limits, State, Topic};
use crate::transport::MemoryTransport;
use crate::{BACKEND, LATENCY};

/// A broker in memory. Cheap to clone: clones are handles of one broker, which lives as long as
/// one of them or a connection does.
///
/// Besides [`MemoryBroker::connect`] it offers what a test does to a broker: lose its state, fill
/// up, forget a group, write what no publisher would. These act on the broker, behind the back of
/// every connection.
#[derive(Clone, Debug)]
pub struct MemoryBroker(pub(crate) Arc<Broker>);

#[derive(Debug)]
pub(crate) struct Broker {
    pub(crate) config: MemoryConfig,
    pub(crate) info: Arc<TransportInfo>,
    pub(crate) faults: Option<Mutex<Faults>>,
    spaces: Mutex<HashMap<Namespace, Arc<Space>>>,
    full: AtomicBool,
}

/// The topics of one namespace.
#[derive(Debug, Default)]
pub(crate) struct Space {
    // Topics are never removed, so that nobody appends to one that nobody reads.
    topics: RwLock<BTreeMap<core::Topic, Arc<Topic>>>,
}

impl Space {
    pub(crate) fn get(&self, name: &core::Topic) -> Option<Arc<Topic>> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics.get(name).cloned()
    }

    /// The topics, sorted by name.
    pub(crate) fn all(&self) -> Vec<Arc<Topic>> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics.values().cloned().collect()
    }
}

impl Broker {
    /// The topic of a name, made if there is none.
    pub(crate) fn topic(
        &self,
        space: &Space,
        name: &core::Topic,
        operation: &'static str,
    ) -> Result<Arc<Topic>> {
        if let Some(topic) = space.get(name) {
            return Ok(topic);
        }
        let mut topics = space.topics.write().unwrap_or_else(PoisonError::into_inner);
        if topics.len() >= self.config.max_topics && !topics.contains_key(name) {
            let why = "the broker holds as many topics as it may; raise max_topics";
            return Err(Error::new(ErrorKind::Full, operation, why)
                .on(BACKEND)
                .with("topic", name)
                .with("limit", self.config.max_topics));
        }
        let topic = topics.entry(name.clone()).or_insert_with(|| {
            let limits = Limits {
                messages: self.config.max_topic_messages,
                bytes: self.config.max_topic_bytes,
            };
            let partitioned = self.config.partitioned();
            let topic = Topic::new(name.clone(), self.config.partitions(), partitioned, limits);
            Arc::new(topic)
        });
        Ok(Arc::clone(topic))
    }

    fn space(&self, namespace: &Namespace) -> Arc<Space> {
        let mut spaces = self.spaces.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(spaces.entry(namespace.clone()).or_default())
    }

    fn spaces(&self) -> MutexGuard<'_, HashMap<Namespace, Arc<Space>>> {
        self.spaces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a topic takes an entry of this size now.
    pub(crate) fn room(&self, state: &State, name: &core::Topic, bytes: u32) -> Result<()> {
        let why = if self.full.load(Ordering::Relaxed) {
            "the broker has no room"
        } else if !state.has_room(bytes) {
            "the topic is full of entries that are not settled; let its groups catch up, or raise \
             max_topic_messages or max_topic_bytes"
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::Full, "publish", why)
            .on(BACKEND)
            .with("topic", name)
            .with("entries", state.store.messages())
            .with("bytes", state.store.bytes()))
    }
}

impl MemoryBroker {
    /// A broker of its own.
    pub fn new(config: MemoryConfig) -> Self {
        let server = match config.profile {
            Profile::LeaseQueue => "lease queue",
            Profile::PartitionedLog { .. } => "partitioned log",
        };
        let server = format!("memory {} ({server})", env!("CARGO_PKG_VERSION"));
        let capabilities = Capabilities {
            ttl: false,
            delay: false,
            priority: false,
            dedup: false,
            wildcard: false,
            filter: false,
            order_per_key: false,
            read: false,
            pause_group: false,
            any_member: config.partitioned().is_none(),
            durability: Durability::Volatile,
            ack_durability: Durability::Volatile,
            attempts: Exactness::Exact,
            reclaim_counts_prefetch: true,
            cut_costs_lease: false,
            leaving_costs_ack: false,
            lag: Exactness::Exact,
            nack_latency: LATENCY,
            delay_slack: LATENCY,
            reclaim_slack: LATENCY,
            clock_error: std::time::Duration::ZERO,
            max_message_bytes: config.max_message_bytes,
            max_topic_messages: Some(config.max_topic_messages),
        };
        Self(Arc::new(Broker {
            info: Arc::new(TransportInfo::new(BACKEND, server, capabilities)),
            faults: config
                .faults
                .clone()
                .map(|plan| Mutex::new(Faults::new(plan))),
            config,
            spaces: Mutex::default(),
            full: AtomicBool::new(false),
        }))
    }

    /// The one broker that everything in this process shares which asks for memory without naming
    /// a broker. It has the default settings and keeps what it holds until the process ends.
    pub fn shared() -> Self {
        static SHARED: LazyLock<MemoryBroker> =
            LazyLock::new(|| MemoryBroker::new(MemoryConfig::default()));
        SHARED.clone()
    }

    /// A new connection, without a namespace. Connections are independent of each other, as those
    /// of several processes are.
    ///
    /// # Errors
    /// None so far.
    pub async fn connect(&self) -> Result<Arc<MemoryTransport>> {
        self.connect_in(Namespace::default()).await
    }

    /// A new connection that sees only the topics of a namespace.
    ///
    /// # Errors
    /// None so far.
    pub async fn connect_in(&self, namespace: Namespace) -> Result<Arc<MemoryTransport>> {
        let limit = self.0.config.max_message_bytes;
        self.connect_limited(namespace, limit).await
    }

    /// A new connection that sees only the topics of a namespace and takes messages of up to so
    /// many bytes, in place of what the broker is set to.
    ///
    /// # Errors
    /// None so far.
    pub async fn connect_limited(
        &self,
        namespace: Namespace,
        max_message_bytes: usize,
    ) -> Result<Arc<MemoryTransport>> {
        let mut info = Arc::clone(&self.0.info);
        if info.capabilities.max_message_bytes != max_message_bytes {
            Arc::make_mut(&mut info).capabilities.max_message_bytes = max_message_bytes;
        }
        let space = self.0.space(&namespace);
        Ok(MemoryTransport::new(Arc::clone(&self.0), space, info))
    }

    /// Appends an entry as another program would write it: any names, any values, no checks but
    /// for room.
    ///
    /// # Errors
    /// `Full`.
    pub fn inject_raw(
        &self,
        namespace: &Namespace,
        topic: &core::Topic,
        fields: Vec<(Bytes, Bytes)>,
    ) -> Result<()> {
        let bytes: usize = fields.iter().map(|(n, v)| n.len() + v.len()).sum();
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let cell = self.0.topic(&self.0.space(namespace), topic, "publish")?;
        let mut after = After::default();
        let mut state = cell.lock();
        self.0.room(&state, topic, bytes)?;
        state.append(Body::Fields(fields.into()), bytes, None);
        state.published(1, &mut after);
        drop(state);
        after.run();
        Ok(())
    }

    /// Makes the broker full, or gives it room again: while it is full every publish and every
    /// dead letter fails with `Full`.
    pub fn set_full(&self, full: bool) {
        self.0.full.store(full, Ordering::Relaxed);
    }

    /// Loses everything: topics, groups, leases. Members that are there make their groups anew at
    /// once, read from the beginning of the new topic, and hear of a gap.
    pub fn wipe(&self) {
        let spaces: Vec<_> = self.0.spaces().values().cloned().collect();
        for topic in spaces.iter().flat_map(|space| space.all()) {
            let mut after = After::default();
            let mut state = topic.lock();
            state.wipe(Instant::now(), &mut after);
            drop(state);
            after.run();
        }
    }

    /// Loses what the broker knew of a group: every lease ends, attempts are forgotten, and
    /// everything that was not settled is delivered again. False when there is no such group.
    pub fn drop_group(
        &self,
        namespace: &Namespace,
        topic: &core::Topic,
        group: &core::Group,
    ) -> bool {
        let Some(topic) = self.0.space(namespace).get(topic) else {
            return false;
        };
        let mut after = After::default();
        let mut state = topic.lock();
        let Some((members, store)) = state.find(group).and_then(|at| state.group(at)) else {
            return false;
        };
        members.group.forget(Instant::now(), store);
        members.wake(store, &mut after);
        drop(state);
        after.run();
        true
    }

    /// Removes the oldest entries of a topic, settled or not, as retention does; every group that
    /// loses some hears of a gap. How many there were.
    pub fn trim(&self, namespace: &Namespace, topic: &core::Topic, entries: u64) -> u64 {
        let Some(topic) = self.0.space(namespace).get(topic) else {
            return 0;
        };
        let mut after = After::default();
        let mut state = topic.lock();
        let removed = state.trim(entries, "retention removed entries", &mut after);
        drop(state);
        after.run();
        removed
    }
}
