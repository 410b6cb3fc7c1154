//! The broker: the topics in a directory, behind one lock.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mas_transport_core as core;
use mas_transport_core::{
    Capabilities, Durability, Error, ErrorKind, Exactness, Namespace, RECORD_RESERVE, Result,
    Topic, TransportInfo, clock,
};
use tokio::sync::watch;

use crate::group::Group;
use crate::journal::Now;
use crate::store::{Fields, Store};
use crate::transport::FilesTransport;
use crate::{BACKEND, failed, stopped};

const SLACK: Duration = Duration::from_millis(5);

/// The bounds of a [`FilesBroker`].
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The largest message.
    pub max_message_bytes: usize,
    /// How many messages a topic keeps.
    pub max_topic_messages: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_message_bytes: (1024 * 1024) + RECORD_RESERVE,
            max_topic_messages: 100_000,
        }
    }
}

/// A directory with messages in it. Cheap to clone; the directory is free for another process when
/// the last clone and connection are gone.
#[derive(Clone, Debug)]
pub struct FilesBroker(pub(crate) Arc<Broker>);

pub(crate) type Key = (Namespace, Topic);

#[derive(Debug)]
pub(crate) struct Broker {
    root: PathBuf,
    options: Options,
    pub(crate) info: Arc<TransportInfo>,
    quota: AtomicU64,
    members: AtomicU64,
    state: Mutex<State>,
    /// Locked as long as it is open.
    _lock: File,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    down: bool,
    /// The index of the topics that somebody has asked for.
    topics: HashMap<Key, TopicState>,
    /// Rung when something changed in a topic. They outlive the index.
    bells: HashMap<Key, watch::Sender<()>>,
}

#[derive(Debug)]
pub(crate) struct TopicState {
    pub(crate) store: Store,
    pub(crate) groups: BTreeMap<core::Group, Group>,
}

impl FilesBroker {
    /// Opens a directory, which is made if it is missing.
    ///
    /// # Errors
    /// `Conflict` when another broker has it open; `Unavailable` when the file system refuses.
    pub fn open(root: impl AsRef<Path>, options: Options) -> Result<Self> {
        let root = root.as_ref().to_owned();
        let lock = fs::create_dir_all(&root).and_then(|()| File::create(root.join("lock")));
        let lock = lock.map_err(|e| failed("connect", e).with("directory", root.display()))?;
        lock.try_lock().map_err(|e| {
            let why = "another broker has this directory open; close it, or take another one";
            Error::new(ErrorKind::Conflict, "connect", why)
                .on(BACKEND)
                .with("directory", root.display())
                .because(e)
        })?;
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
            any_member: true,
            // Written, and not flushed: a machine that loses its power may lose it.
            durability: Durability::Process,
            ack_durability: Durability::Process,
            attempts: Exactness::Exact,
            reclaim_counts_prefetch: true,
            cut_costs_lease: false,
            leaving_costs_ack: false,
            lag: Exactness::Exact,
            nack_latency: SLACK,
            delay_slack: SLACK,
            reclaim_slack: SLACK,
            clock_error: Duration::from_millis(1),
            max_message_bytes: options.max_message_bytes,
            max_topic_messages: Some(options.max_topic_messages),
        };
        let server = format!("files {}", env!("CARGO_PKG_VERSION"));
        // Members of earlier processes may still stand in the journals.
        let first = clock::now_utc().duration_since(std::time::UNIX_EPOCH);
        let first = u64::try_from(first.unwrap_or_default().as_micros()).unwrap_or(0);
        Ok(Self(Arc::new(Broker {
            root,
            options,
            info: Arc::new(TransportInfo::new(BACKEND, server, capabilities)),
            quota: AtomicU64::new(u64::MAX),
            members: AtomicU64::new(first),
            state: Mutex::default(),
            _lock: lock,
        })))
    }

    /// A connection that sees the topics of a namespace.
    ///
    /// # Errors
    /// `Unavailable` while the broker is stopped.
    pub fn connect(&self, namespace: Namespace) -> Result<Arc<FilesTransport>> {
        drop(self.0.running("connect")?);
        Ok(FilesTransport::new(self.clone(), namespace))
    }

    /// Crashes: everything in memory is forgotten, nothing is written any more, and every call
    /// fails with `Unavailable` until [`FilesBroker::start`].
    pub fn stop(&self) {
        let mut state = self.0.lock();
        state.down = true;
        state.topics.clear();
        state.ring_all();
    }

    /// Goes on with what the files say.
    pub fn start(&self) {
        let mut state = self.0.lock();
        state.down = false;
        state.ring_all();
    }

    /// How many bytes each topic may have from now on; publishing beyond it fails with `Full`.
    pub fn set_quota(&self, bytes: u64) {
        self.0.quota.store(bytes, Ordering::Relaxed);
    }

    /// Appends an entry as another program would write it.
    ///
    /// # Errors
    /// As of publishing.
    pub fn inject(&self, namespace: &Namespace, topic: &Topic, fields: &Fields) -> Result<()> {
        let size = fields.iter().map(|(n, v)| n.len() + v.len()).sum();
        let key = (namespace.clone(), topic.clone());
        let append = |state: &mut State| self.0.append(state, &key, fields, size, "publish");
        self.0.running("publish").and_then(|mut s| append(&mut s))?;
        Ok(())
    }

    /// Removes the oldest messages of a topic, settled or not; groups that lose some are told. How
    /// many there were.
    ///
    /// # Errors
    /// `Unavailable`, `NotFound`.
    pub fn trim(&self, namespace: &Namespace, topic: &Topic, messages: u64) -> Result<u64> {
        let mut state = self.0.running("trim")?;
        let key = (namespace.clone(), topic.clone());
        self.0.trim(&mut state, &key, messages, "trim")
    }

    /// Forgets who holds what in a group: leases end, attempts are forgotten, and everything that
    /// is not settled is delivered again.
    ///
    /// # Errors
    /// `Unavailable`, `NotFound`.
    pub fn forget(&self, namespace: &Namespace, topic: &Topic, group: &core::Group) -> Result<()> {
        let mut state = self.0.running("forget")?;
        let key = (namespace.clone(), topic.clone());
        let now = Now::read();
        let found = self.0.existing(&mut state, &key, "forget")?;
        let Some(members) = found.groups.get_mut(group) else {
            return Err(not_found("forget", "there is no such group", topic));
        };
        members.forget(now, &found.store);
        members.flush(now).map_err(|e| failed("forget", e))?;
        state.ring(&key);
        Ok(())
    }
}

impl Broker {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, while the broker runs.
    pub(crate) fn running(&self, operation: &'static str) -> Result<MutexGuard<'_, State>> {
        let state = self.lock();
        if state.down {
            return Err(stopped(operation));
        }
        Ok(state)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn next_member(&self) -> u64 {
        self.members.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn space(&self, namespace: &Namespace) -> PathBuf {
        self.root.join(format!("@{namespace}"))
    }

    /// Tells of changes of a topic.
    pub(crate) fn bell(&self, key: &Key) -> watch::Receiver<()> {
        let mut state = self.lock();
        let bell = state.bells.entry(key.clone());
        bell.or_insert_with(|| watch::Sender::new(())).subscribe()
    }

    /// A topic that is there.
    pub(crate) fn existing<'a>(
        &self,
        state: &'a mut State,
        key: &Key,
        operation: &'static str,
    ) -> Result<&'a mut TopicState> {
        if !state.topics.contains_key(key) {
            let dir = self.space(&key.0).join(key.1.as_str());
            if !dir.is_dir() {
                return Err(not_found(operation, "there is no such topic", &key.1));
            }
            let topic = TopicState::load(&dir).map_err(|e| failed(operation, e))?;
            state.topics.insert(key.clone(), topic);
        }
        let topic = state.topics.get_mut(key);
        topic.ok_or_else(|| not_found(operation, "there is no such topic", &key.1))
    }

    /// A topic, made if it is missing.
    pub(crate) fn topic<'a>(
        &self,
        state: &'a mut State,
        key: &Key,
        operation: &'static str,
    ) -> Result<&'a mut TopicState> {
        if !state.topics.contains_key(key) {
            let dir = self.space(&key.0).join(key.1.as_str());
            fs::create_dir_all(dir).map_err(|e| failed(operation, e))?;
        }
        self.existing(state, key, operation)
    }

    /// Appends an entry where there is room for it.
    pub(crate) fn append(
        &self,
        state: &mut State,
        key: &Key,
        fields: &Fields,
        size: usize,
        operation: &'static str,
    ) -> Result<u64> {
        let topic = self.topic(state, key, operation)?;
        let store = &mut topic.store;
        let most = self.options.max_topic_messages;
        let bytes = (store.bytes + size) as u64;
        if store.kept.len() as u64 >= most || bytes > self.quota.load(Ordering::Relaxed) {
            let why = "the topic is full of messages that are not settled";
            return Err(Error::new(ErrorKind::Full, operation, why)
                .on(BACKEND)
                .with("topic", &key.1)
                .with("messages", store.kept.len())
                .with("bytes", store.bytes));
        }
        let number = store.append(fields, size, topic.groups.len());
        let number = number.map_err(|e| failed(operation, e))?;
        state.ring(key);
        Ok(number)
    }

    pub(crate) fn trim(
        &self,
        state: &mut State,
        key: &Key,
        messages: u64,
        operation: &'static str,
    ) -> Result<u64> {
        let now = Now::read();
        let topic = self.existing(state, key, operation)?;
        let removed = topic.store.trim(messages);
        for group in topic.groups.values_mut() {
            group.trimmed(now, &removed);
            group.flush(now).map_err(|e| failed(operation, e))?;
        }
        state.ring(key);
        Ok(removed.len() as u64)
    }
}

impl State {
    /// Everybody who waits for something in a topic looks again.
    pub(crate) fn ring(&self, key: &Key) {
        if let Some(bell) = self.bells.get(key) {
            bell.send_replace(());
        }
    }

    fn ring_all(&self) {
        for bell in self.bells.values() {
            bell.send_replace(());
        }
    }
}

impl TopicState {
    fn load(dir: &Path) -> io::Result<Self> {
        let now = Now::read();
        let mut store = Store::open(dir)?;
        let mut groups = BTreeMap::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_str().and_then(|n| n.strip_prefix("g-"));
            if let Some(Ok(name)) = name.map(core::Group::new) {
                groups.insert(name, Group::load(&entry.path(), now, &mut store)?);
            }
        }
        Ok(Self { store, groups })
    }
}

pub(crate) fn not_found(operation: &'static str, why: &'static str, topic: &Topic) -> Error {
    Error::new(ErrorKind::NotFound, operation, why)
        .on(BACKEND)
        .with("topic", topic)
}
