//! The transport: what its parts share, and the traits.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use mas_transport_core::{
    Admin, Confirm, Connections, Error, ErrorKind, Event, Fetch, Message, ReadSpec, Receipt,
    Result, Source, Subscription, Topic, Transport, TransportInfo, Want,
};
use redis::Cmd;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::BACKEND;
use crate::admin::RedisAdmin;
use crate::config::RedisConfig;
use crate::connection::{Link, lock};
use crate::info;
use crate::keys;
use crate::lanes::Lanes;
use crate::member::Member;
use crate::native::RedisNative;
use crate::publish;
use crate::settle::RedisSettle;

/// After how long a topic in use is registered again: a flushed server has forgotten it.
const REGISTER_AGAIN: Duration = Duration::from_secs(60);

/// What the parts of a transport share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) link: Arc<Link>,
    pub(crate) info: Arc<TransportInfo>,
    /// The connections of consumers, beside the first.
    pub(crate) lanes: Arc<Lanes>,
    /// Every task of this transport.
    pub(crate) tasks: TaskTracker,
    /// The line in which publishes stand.
    pub(crate) line: tokio::sync::Mutex<()>,
    /// Room for batches in flight.
    pub(crate) room: Arc<Semaphore>,
    /// When topics were last registered, and over which connection.
    registered: Mutex<HashMap<Topic, (u64, Instant)>>,
    members: Mutex<Vec<Weak<Member>>>,
    closed: CancellationToken,
    /// Ends the keeper of the link with the last user of this.
    _keeper: DropGuard,
    keeper: CancellationToken,
}

impl Shared {
    /// Whether another batch may be sent now.
    pub(crate) fn has_room(&self) -> bool {
        self.room.available_permits() > 0
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    fn open(&self, operation: &'static str) -> Result<()> {
        if self.is_closed() {
            return Err(Error::closed(operation).on(BACKEND));
        }
        Ok(())
    }

    /// The topics of a batch that are not known to be registered; from now on they are taken to be.
    pub(crate) fn unregistered(
        &self,
        messages: &[Message],
        outcomes: &[Option<Result<Receipt>>],
    ) -> Vec<Topic> {
        let mut fresh = Vec::new();
        let mut last: Option<&Topic> = None;
        for (message, outcome) in messages.iter().zip(outcomes) {
            let topic = message.topic();
            if outcome.is_none() && last != Some(topic) {
                last = Some(topic);
                if self.claim(topic) {
                    fresh.push(topic.clone());
                }
            }
        }
        fresh
    }

    /// Whether the topic has to be registered; the caller does it then.
    fn claim(&self, topic: &Topic) -> bool {
        let (epoch, now) = (self.link.epoch(), Instant::now());
        let mut registered = lock(&self.registered);
        if let Some((over, at)) = registered.get(topic)
            && *over == epoch
            && now < *at + REGISTER_AGAIN
        {
            return false;
        }
        if registered.len() >= 4096 {
            registered.retain(|_, (_, at)| now < *at + REGISTER_AGAIN);
        }
        registered.insert(topic.clone(), (epoch, now));
        true
    }

    /// The topic is not registered after all.
    pub(crate) fn forget(&self, topic: &Topic) {
        lock(&self.registered).remove(topic);
    }

    /// The command that registers a topic.
    pub(crate) fn registration(&self, topic: &Topic) -> Cmd {
        let mut command = Cmd::new();
        command
            .arg("SADD")
            .arg(keys::topics(&self.link.config.namespace))
            .arg(topic.as_str());
        command
    }

    /// Registers a topic unless that was done lately. A full server need not list it: that must
    /// not keep anybody from emptying it.
    pub(crate) async fn register(&self, topic: &Topic) -> Result<()> {
        if !self.claim(topic) {
            return Ok(());
        }
        // Whoever gives up waiting has not registered it.
        let claimed = Claimed(Some((self, topic)));
        let answer = self
            .link
            .command("subscribe", self.registration(topic))
            .await;
        claimed.keep();
        if let Err(error) = answer {
            self.forget(topic);
            if error.kind() != ErrorKind::Full {
                return Err(error.with("topic", topic));
            }
        }
        Ok(())
    }
}

/// A registration that is under way: forgotten when it is given up.
struct Claimed<'a>(Option<(&'a Shared, &'a Topic)>);

impl Claimed<'_> {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        if let Some((shared, topic)) = self.0 {
            shared.forget(topic);
        }
    }
}

/// A connection to one Redis (6.2 or later) or Valkey server.
///
/// It uses one connection for all that is published, up to
/// [`RedisConfig::connections`] less one for what subscriptions do, and one for the blocking reads of
/// each subscription, and opens new ones when they break.
#[derive(Debug)]
pub struct RedisTransport {
    shared: Arc<Shared>,
    admin: RedisAdmin,
    native: RedisNative,
}

impl RedisTransport {
    /// Connects. While the server cannot be reached or is loading its data, it is tried again until
    /// `connect_timeout`.
    ///
    /// Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// `InvalidArgument` for a value of the configuration, `Unavailable` with address and reason,
    /// `Unauthorized`, `Unsupported` for a server older than 6.2 or in cluster mode.
    pub async fn connect(config: RedisConfig) -> Result<Self> {
        let link = Link::connect(config).await?;
        let info = Arc::new(info::probe(&link).await?);
        let keeper = CancellationToken::new();
        let tasks = TaskTracker::new();
        tasks.spawn(link.clone().keep(keeper.clone()));
        let shared = Arc::new(Shared {
            line: tokio::sync::Mutex::default(),
            room: Arc::new(Semaphore::new(
                link.config.max_in_flight.min(Semaphore::MAX_PERMITS),
            )),
            registered: Mutex::default(),
            members: Mutex::default(),
            closed: CancellationToken::new(),
            _keeper: keeper.clone().drop_guard(),
            lanes: Lanes::new(keeper.child_token()),
            keeper,
            tasks,
            info,
            link,
        });
        Ok(Self {
            admin: RedisAdmin(shared.clone()),
            native: RedisNative(shared.clone()),
            shared,
        })
    }
}

#[async_trait]
impl Transport for RedisTransport {
    fn info(&self) -> Arc<TransportInfo> {
        self.shared.info.clone()
    }

    async fn publish(&self, batch: Vec<Message>, deadline: Instant) -> Confirm {
        publish::publish(&self.shared, batch, deadline).await
    }

    async fn subscribe(&self, subscription: &Subscription) -> Result<Source> {
        self.shared.open("subscribe")?;
        self.shared.info.check_subscription(subscription)?;
        let member = Member::start(self.shared.clone(), subscription).await?;
        {
            let mut members = lock(&self.shared.members);
            members.retain(|m| m.upgrade().is_some_and(|m| !m.is_closed()));
            members.push(Arc::downgrade(&member));
        }
        if self.shared.is_closed() {
            member.close(Instant::now()).await;
        }
        Ok(Source {
            fetch: Box::new(RedisFetch(member.clone())),
            settle: Arc::new(RedisSettle(member)),
        })
    }

    async fn read(&self, spec: &ReadSpec) -> Result<Box<dyn Fetch>> {
        self.shared.open("read")?;
        let why = "reading without a group is not supported";
        Err(Error::unsupported(BACKEND, "read", why)
            .with("server", &self.shared.info.server)
            .with("topic", &spec.topic))
    }

    fn admin(&self) -> &dyn Admin {
        &self.admin
    }

    fn connections(&self) -> Option<Connections> {
        let link = &self.shared.link;
        let configured = link.config.connections as u64;
        Some(Connections::new(configured, link.reconnects()))
    }

    fn native(&self) -> Option<&(dyn Any + Send + Sync)> {
        Some(&self.native)
    }

    async fn close(&self, deadline: Instant) -> Result<()> {
        self.shared.closed.cancel();
        let members: Vec<_> = {
            let members = lock(&self.shared.members);
            members.iter().filter_map(Weak::upgrade).collect()
        };
        join_all(members.iter().map(|m| m.close(deadline))).await;
        // Publishes in flight are bounded by deadlines of their own, which may be later.
        self.shared.room.close();
        self.shared.tasks.close();
        self.shared.keeper.cancel();
        let ended = self.shared.tasks.wait();
        if tokio::time::timeout_at(deadline, ended).await.is_err() {
            tracing::debug!("publishes were still in flight at the deadline");
        }
        Ok(())
    }
}

/// The receiving half of a member.
#[derive(Debug)]
struct RedisFetch(Arc<Member>);

#[async_trait]
impl Fetch for RedisFetch {
    async fn fetch(&mut self, want: Want, out: &mut Vec<Event>) -> Result<()> {
        self.0.inbox.fetch(want, out).await
    }
}

impl Drop for RedisFetch {
    fn drop(&mut self) {
        self.0.stop();
    }
}
