//! One connection.

use std::any::Any;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use mas_transport_core::{
    Admin, Confirm, Connections, Durability, Error, ErrorKind, Fetch, Group, Health, Lag, Message,
    Namespace, Position, ReadSpec, Receipt, Result, Source, Subscription, Topic, TopicSpec,
    Transport, TransportInfo,
};
use tokio::time::Instant;

use crate::broker::{Broker, FilesBroker, Key, not_found};
use crate::journal::Now;
use crate::member::{FilesFetch, FilesSettle, Member, encode};
use crate::{BACKEND, failed, group};

/// One connection to a [`FilesBroker`], which makes it. Its `native` is that broker.
#[derive(Debug)]
pub struct FilesTransport {
    broker: FilesBroker,
    namespace: Namespace,
    closed: AtomicBool,
    members: Mutex<Vec<Weak<Member>>>,
}

impl FilesTransport {
    pub(crate) fn new(broker: FilesBroker, namespace: Namespace) -> Arc<Self> {
        Arc::new(Self {
            broker,
            namespace,
            closed: AtomicBool::new(false),
            members: Mutex::default(),
        })
    }

    fn open(&self, operation: &'static str) -> Result<&Broker> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(Error::closed(operation).on(BACKEND));
        }
        Ok(&self.broker.0)
    }

    fn key(&self, topic: &Topic) -> Key {
        (self.namespace.clone(), topic.clone())
    }

    fn members(&self) -> MutexGuard<'_, Vec<Weak<Member>>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish_one(&self, message: &Message) -> Result<Receipt> {
        let broker = self.open("publish")?;
        broker.info.check_message(message)?;
        let (key, fields) = (self.key(message.topic()), encode(message));
        let mut state = broker.running("publish")?;
        let number = broker.append(&mut state, &key, &fields, message.size(), "publish")?;
        Ok(Receipt {
            position: Position {
                major: 0,
                minor: number,
            },
            durability: Durability::Process,
            duplicate: false,
        })
    }
}

#[async_trait]
impl Transport for FilesTransport {
    fn info(&self) -> Arc<TransportInfo> {
        Arc::clone(&self.broker.0.info)
    }

    async fn publish(&self, batch: Vec<Message>, deadline: Instant) -> Confirm {
        tokio::task::coop::consume_budget().await;
        let late = || {
            let why = "the deadline had passed before anything was sent";
            Error::new(ErrorKind::Timeout, "publish", why).on(BACKEND)
        };
        let publish = |message: &Message| match Instant::now() < deadline {
            true => self.publish_one(message),
            false => Err(late()),
        };
        let outcomes: Vec<_> = batch.iter().map(publish).collect();
        Box::pin(std::future::ready(outcomes))
    }

    async fn subscribe(&self, subscription: &Subscription) -> Result<Source> {
        let broker = self.open("subscribe")?;
        broker.info.check_subscription(subscription)?;
        let (topic, name) = (subscription.get_topic()?, subscription.get_group()?);
        let (key, lease) = (self.key(&topic), subscription.get_lease());
        let bell = broker.bell(&key);
        let now = Now::read();
        let mut state = broker.running("subscribe")?;
        let found = broker.topic(&mut state, &key, "subscribe")?;
        if !found.groups.contains_key(&name) {
            let path = found.store.dir().join(format!("g-{name}"));
            let start = subscription.get_start();
            let made = group::Group::create(&path, now, lease, start, &mut found.store);
            let made = made.map_err(|e| failed("subscribe", e))?;
            found.groups.insert(name.clone(), made);
        }
        let stored = found.groups.get(&name).map(|group| group.lease);
        if stored != Some(lease) {
            let why = "the group exists with another lease; ask for that one";
            return Err(Error::new(ErrorKind::Conflict, "subscribe", why)
                .on(BACKEND)
                .with("topic", &topic)
                .with("group", &name)
                .with("lease_ms", stored.unwrap_or_default().as_millis())
                .with("asked_ms", lease.as_millis()));
        }
        let member = Arc::new(Member {
            broker: Arc::clone(&self.broker.0),
            key,
            group: name,
            id: broker.next_member(),
            bell: bell.clone(),
            stopped: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        });
        let mut members = self.members();
        // Under the lock of `close`, which forgets nobody.
        self.open("subscribe")?;
        members.retain(|known| known.strong_count() > 0);
        members.push(Arc::downgrade(&member));
        Ok(Source {
            fetch: Box::new(FilesFetch {
                member: Arc::clone(&member),
                bell,
                failed: false,
            }),
            settle: Arc::new(FilesSettle(member)),
        })
    }

    async fn read(&self, _spec: &ReadSpec) -> Result<Box<dyn Fetch>> {
        self.open("read")?;
        let why = "reading without a group is not supported";
        Err(Error::unsupported(BACKEND, "read", why))
    }

    fn admin(&self) -> &dyn Admin {
        self
    }

    // Files are opened, not connected to.
    fn connections(&self) -> Option<Connections> {
        None
    }

    fn native(&self) -> Option<&(dyn Any + Send + Sync)> {
        Some(&self.broker)
    }

    async fn close(&self, deadline: Instant) -> Result<()> {
        let members: Vec<_> = {
            let members = self.members();
            self.closed.store(true, Ordering::SeqCst);
            members.iter().filter_map(Weak::upgrade).collect()
        };
        // All stop before the first one is waited for.
        if let Ok(state) = self.broker.0.running("close") {
            members.iter().for_each(|member| member.stop(&state));
        }
        let mut result = Ok(());
        for member in members {
            result = result.and(member.close(deadline).await);
        }
        result
    }
}

#[async_trait]
impl Admin for FilesTransport {
    async fn declare(&self, spec: &TopicSpec) -> Result<()> {
        let broker = self.open("declare")?;
        if spec.partitions != 1 {
            let why = "a topic has one partition here";
            return Err(Error::unsupported(BACKEND, "declare", why).with("topic", &spec.topic));
        }
        let mut state = broker.running("declare")?;
        broker.topic(&mut state, &self.key(&spec.topic), "declare")?;
        Ok(())
    }

    async fn topics(&self) -> Result<Vec<Topic>> {
        let broker = self.open("topics")?;
        let _state = broker.running("topics")?;
        let listing = match fs::read_dir(broker.space(&self.namespace)) {
            Ok(listing) => listing,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed("topics", e)),
        };
        let mut topics = Vec::new();
        for entry in listing {
            let name = entry.map_err(|e| failed("topics", e))?.file_name();
            // What somebody else put there is no topic.
            topics.extend(name.to_str().and_then(|n| Topic::stored(n).ok()));
        }
        topics.sort();
        Ok(topics)
    }

    async fn groups(&self, topic: &Topic) -> Result<Vec<Group>> {
        let broker = self.open("groups")?;
        let mut state = broker.running("groups")?;
        match broker.existing(&mut state, &self.key(topic), "groups") {
            Ok(found) => Ok(found.groups.keys().cloned().collect()),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }

    async fn lag(&self, topic: &Topic, group: &Group) -> Result<Lag> {
        let broker = self.open("lag")?;
        let mut state = broker.running("lag")?;
        let found = broker.existing(&mut state, &self.key(topic), "lag")?;
        let Some(group) = found.groups.get_mut(group) else {
            return Err(not_found("lag", "there is no such group", topic).with("group", group));
        };
        group.advance(Now::read(), &found.store);
        Ok(group.lag(&found.store))
    }

    async fn purge(&self, topic: &Topic) -> Result<u64> {
        let broker = self.open("purge")?;
        let mut state = broker.running("purge")?;
        broker.trim(&mut state, &self.key(topic), u64::MAX, "purge")
    }

    async fn health(&self) -> Result<Health> {
        let broker = self.open("health")?;
        drop(broker.running("health")?);
        let asked = std::time::Instant::now();
        fs::metadata(broker.root()).map_err(|e| failed("health", e))?;
        Ok(Health::new(&broker.info.server, asked.elapsed())
            .fact("directory", broker.root().display().to_string())
            .fact("persistence", "written, not flushed to the disk"))
    }

    async fn pause(&self, _topic: &Topic, _group: &Group, _paused: bool) -> Result<()> {
        self.open("pause")?;
        let why = "pausing a whole group is not supported";
        Err(Error::unsupported(BACKEND, "pause", why))
    }
}
