//! The transport: what its parts share, and the traits.

use std::any::Any;
use std::sync::{Arc, Mutex, Weak};

use async_trait::async_trait;
use futures::future::join_all;
use mas_transport_core::{
    Admin, Confirm, Connections, Error, Event, Fetch, Message, ReadSpec, Result, Source,
    Subscription, Transport, TransportInfo, Want,
};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::BACKEND;
use crate::admin::NatsAdmin;
use crate::append::Appender;
use crate::config::NatsConfig;
use crate::connection::{Link, lock};
use crate::info;
use crate::keys::Keys;
use crate::member::Member;
use crate::native::NatsNative;
use crate::notes::Notes;
use crate::publish;
use crate::settle::NatsSettle;
use crate::streams::Streams;

/// What the parts of a transport share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) link: Arc<Link>,
    pub(crate) info: Arc<TransportInfo>,
    pub(crate) streams: Arc<Streams>,
    pub(crate) appender: Arc<Appender>,
    pub(crate) notes: Notes,
    /// Every task of this transport.
    pub(crate) tasks: TaskTracker,
    /// The line in which publishes stand.
    pub(crate) line: Arc<tokio::sync::Mutex<()>>,
    /// Room for messages in flight.
    pub(crate) room: Arc<Semaphore>,
    members: Mutex<Vec<Weak<Member>>>,
    closed: CancellationToken,
    sorting: CancellationToken,
    /// Ends the task that sorts answers with the last user of this.
    _sorting: DropGuard,
}

impl Shared {
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    pub(crate) fn open(&self, operation: &'static str) -> Result<()> {
        if self.is_closed() {
            return Err(Error::closed(operation).on(BACKEND));
        }
        Ok(())
    }
}

/// A connection to NATS servers (2.9 or later) with JetStream.
///
/// It uses one connection for all that is published and settled, and one for the pulls of each
/// subscription; each heals by itself.
#[derive(Debug)]
pub struct NatsTransport {
    shared: Arc<Shared>,
    admin: NatsAdmin,
    native: NatsNative,
}

impl NatsTransport {
    /// Connects. While no server can be reached, it is tried again until `connect_timeout`.
    ///
    /// Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// `InvalidArgument` for a value of the configuration, `Unavailable` with address and reason,
    /// `Unauthorized`, `Unsupported` for a server older than 2.9 or without JetStream.
    pub async fn connect(config: NatsConfig) -> Result<Self> {
        let config = Arc::new(config);
        let link = Arc::new(Link::connect(config.clone()).await?);
        let info = Arc::new(info::probe(&link).await?);
        let keys = Keys::new(&config.prefix, &config.namespace);
        let streams = Arc::new(Streams::new(link.clone(), keys));
        let sorting = CancellationToken::new();
        let (appender, task) = Appender::new(link.clone(), sorting.clone()).await?;
        let tasks = TaskTracker::new();
        tasks.spawn(task);
        tasks.spawn(link.clone().keep(sorting.clone()));
        let appender = Arc::new(appender);
        let shared = Arc::new(Shared {
            notes: Notes {
                streams: streams.clone(),
                appender: appender.clone(),
            },
            line: Arc::default(),
            room: Arc::new(Semaphore::new(config.max_in_flight)),
            members: Mutex::default(),
            closed: CancellationToken::new(),
            _sorting: sorting.clone().drop_guard(),
            sorting,
            tasks,
            info,
            streams,
            appender,
            link,
        });
        Ok(Self {
            admin: NatsAdmin(shared.clone()),
            native: NatsNative(shared.clone()),
            shared,
        })
    }
}

#[async_trait]
impl Transport for NatsTransport {
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
            fetch: Box::new(NatsFetch(member.clone())),
            settle: Arc::new(NatsSettle(member)),
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
        // One for everything; the first time counts as none that came back.
        let epoch = self.shared.link.epoch();
        Some(Connections::new(1, epoch.saturating_sub(1)))
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
        let shared = self.shared.clone();
        self.shared.tasks.close();
        let published = async {
            // Whoever stands in line is before this.
            let line = shared.line.clone().lock_owned().await;
            drop(line);
            let most = u32::try_from(shared.link.config.max_in_flight).unwrap_or(u32::MAX);
            let _all = shared.room.acquire_many(most).await;
        };
        if tokio::time::timeout_at(deadline, published).await.is_err() {
            tracing::debug!("publishes were still in flight at the deadline");
        }
        self.shared.sorting.cancel();
        self.shared.link.close(deadline).await;
        if tokio::time::timeout_at(deadline, self.shared.tasks.wait())
            .await
            .is_err()
        {
            tracing::debug!("tasks were still under way at the deadline");
        }
        Ok(())
    }
}

/// The receiving half of a member.
#[derive(Debug)]
struct NatsFetch(Arc<Member>);

#[async_trait]
impl Fetch for NatsFetch {
    async fn fetch(&mut self, want: Want, out: &mut Vec<Event>) -> Result<()> {
        self.0.inbox.fetch(want, out).await
    }
}

impl Drop for NatsFetch {
    fn drop(&mut self) {
        self.0.stop();
    }
}
