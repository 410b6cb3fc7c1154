//! The transport: what its parts share, and the traits.

use std::any::Any;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use mas_transport_core::backend::lock;
use mas_transport_core::{
    Admin, Confirm, Connections, Error, Fetch, Message, ReadSpec, Result, Source, Subscription,
    Transport, TransportInfo,
};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::BACKEND;
use crate::admin::KafkaAdmin;
use crate::client::Asker;
use crate::config::KafkaConfig;
use crate::fetch::KafkaFetch;
use crate::info;
use crate::keys::Keys;
use crate::member::Member;
use crate::native::KafkaNative;
use crate::publish;
use crate::settle::KafkaSettle;
use crate::topics::Topics;

/// How long the clients may take to close after the deadline.
const GRACE: Duration = Duration::from_secs(2);

/// What the parts of a transport share.
pub(crate) struct Shared {
    pub(crate) asker: Arc<Asker>,
    pub(crate) info: Arc<TransportInfo>,
    pub(crate) topics: Topics,
    /// Every task of this transport.
    pub(crate) tasks: TaskTracker,
    /// The line in which publishes stand.
    pub(crate) line: Arc<tokio::sync::Mutex<()>>,
    /// Room for messages in flight.
    pub(crate) room: Arc<Semaphore>,
    members: Mutex<Vec<Weak<Member>>>,
    closed: CancellationToken,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("asker", &self.asker)
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
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

/// A connection to Kafka brokers (2.1 or later, 4.3 tested).
///
/// It uses one client to publish, one to ask, and one for each subscription; each has connections of
/// its own, and heals by itself.
#[derive(Debug)]
pub struct KafkaTransport {
    shared: Arc<Shared>,
    admin: KafkaAdmin,
    native: KafkaNative,
}

impl KafkaTransport {
    /// Connects. While no broker can be reached, it is tried again until `connect_timeout`.
    ///
    /// Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// `InvalidArgument` for a value of the configuration, `Unavailable` with address and reason,
    /// `Unauthorized`.
    pub async fn connect(config: KafkaConfig) -> Result<Self> {
        config.check()?;
        let config = Arc::new(config);
        let asker = Arc::new(Asker::new(config.clone())?);
        let info = Arc::new(info::probe(&asker).await?);
        let keys = Keys::new(&config.prefix, &config.namespace);
        let shared = Arc::new(Shared {
            topics: Topics::new(asker.clone(), keys),
            asker,
            info,
            tasks: TaskTracker::new(),
            line: Arc::default(),
            room: Arc::new(Semaphore::new(config.max_in_flight)),
            members: Mutex::default(),
            closed: CancellationToken::new(),
        });
        Ok(Self {
            admin: KafkaAdmin(shared.clone()),
            native: KafkaNative(shared.clone()),
            shared,
        })
    }
}

#[async_trait]
impl Transport for KafkaTransport {
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
            fetch: Box::new(KafkaFetch(member.clone())),
            settle: Arc::new(KafkaSettle(member)),
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
        // The client keeps them to itself.
        None
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
            let most = u32::try_from(shared.asker.config.max_in_flight).unwrap_or(u32::MAX);
            let _all = shared.room.acquire_many(most).await;
        };
        if tokio::time::timeout_at(deadline, published).await.is_err() {
            tracing::debug!("publishes were still in flight at the deadline");
        }
        if tokio::time::timeout_at(deadline, self.shared.tasks.wait())
            .await
            .is_err()
        {
            tracing::debug!("tasks were still under way at the deadline");
        }
        let clients = self.shared.asker.dismiss();
        let gone = tokio::task::spawn_blocking(move || drop(clients));
        if tokio::time::timeout(GRACE, gone).await.is_err() {
            tracing::debug!("the clients are still closing");
        }
        Ok(())
    }
}
