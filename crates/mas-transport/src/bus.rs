//! The bus: what an application publishes and subscribes with.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use mas_transport_core::{
    Admin, Consumer, Error, Group, Health, Lag, Message, Meter, Metrics, Pending, PublishOptions,
    Publisher, Receipt, Result, Subscription, Topic, Transport, TransportInfo,
};
use tokio::time::Instant;

use crate::config::Config;
use crate::connect;

/// A connection to a broker: publishes messages and starts consumers, the same on every backend.
///
/// Cheap to clone. The clones share one connection and one publish queue, in which messages keep
/// their order. When the last clone is dropped, what was accepted is still sent as long as the
/// runtime lives; [`close`](Self::close) waits for it.
#[derive(Clone, Debug)]
pub struct Bus {
    transport: Arc<dyn Transport>,
    publisher: Publisher,
    meter: Meter,
    options: Arc<BusOptions>,
}

/// What a [`Bus`] can be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BusOptions {
    /// Who sends, such as `/agents/planner`: the source of messages that name none. By default it
    /// is [`Message::DEFAULT_SOURCE`].
    pub source: Option<String>,
    /// The bounds of the publish queue.
    pub publish: PublishOptions,
    /// The group of subscriptions that name none. By default there is none, and they are refused.
    pub group: Option<String>,
    /// The attempts of subscriptions that do not say it, the first included. By default 3.
    pub max_attempts: Option<u32>,
}

impl BusOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the source of messages that name none.
    #[must_use]
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Sets the bounds of the publish queue.
    #[must_use]
    pub fn publish(mut self, publish: PublishOptions) -> Self {
        self.publish = publish;
        self
    }

    /// Sets the group of subscriptions that name none.
    #[must_use]
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Sets the attempts of subscriptions that do not say it.
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = Some(attempts);
        self
    }
}

/// The guard of [`Bus::purge`]: repeats the name of the topic that loses everything, so that a
/// purge is never a slip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purge {
    topic: String,
}

impl Purge {
    /// Every message of this topic, for every group, for good.
    pub fn everything_in(topic: impl Into<String>) -> Self {
        Self {
            topic: topic.into(),
        }
    }
}

impl Bus {
    /// A bus over a transport, with the default options. Needs a running tokio runtime.
    pub fn new(transport: Arc<dyn Transport>) -> Self {
        Self::with_options(transport, BusOptions::default())
    }

    /// A bus over a transport. Needs a running tokio runtime.
    pub fn with_options(transport: Arc<dyn Transport>, options: BusOptions) -> Self {
        Self {
            publisher: Publisher::new(transport.clone(), options.publish),
            meter: Meter::new(),
            transport,
            options: Arc::new(options),
        }
    }

    /// Connects to the backend that a configuration names, once all of it is right.
    ///
    /// What is allowed but should be known (a setting that loses messages or has no effect) is
    /// logged as a warning. While the broker cannot be reached, this fails after the backend's
    /// connect timeout, or goes on trying, as `TRANSPORT_STARTUP` says.
    ///
    /// # Errors
    /// `InvalidArgument` with every problem of the configuration; `Unsupported` when this build
    /// lacks the backend, or the backend lacks something that is required; `Unavailable`,
    /// `Timeout`, `Unauthorized` from the broker. No secret is in any of them.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn connect(config: Config) -> Result<Self> {
        connect::connect(config).await
    }

    /// Connects as the environment says, and the file that `MAS_CONFIG` names:
    /// [`connect`](Self::connect) with [`Config::from_env`].
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn from_env() -> Result<Self> {
        Self::connect(Config::from_env()).await
    }

    /// Connects to what the URL alone says, `redis://user:password@host:6379/0?pool_size=4`. The
    /// environment is not read; `Config::from_env().url(…)` reads both.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn from_url(url: &str) -> Result<Self> {
        Self::connect(Config::new().url(url)).await
    }

    /// The same bus through a layer: what is published and subscribed here passes `layer` on its
    /// way. Clones made before stay as they are.
    #[must_use]
    pub fn layer(self, layer: impl FnOnce(Arc<dyn Transport>) -> Arc<dyn Transport>) -> Self {
        let options = (*self.options).clone();
        Self::with_options(layer(self.transport), options)
    }

    /// Publishes a message and waits for its receipt: the broker has it, at the durability that
    /// the receipt names. Goes at once when nothing is under way; meanwhile, what many tasks
    /// publish travels together.
    ///
    /// # Errors
    /// `InvalidArgument`, `TooLarge`, `Unsupported`, `Full`, `Unavailable`, `Closed`, `Timeout`
    /// after `publish_timeout` (30 s). [`Error::stored`](crate::Error::stored) tells whether the
    /// broker may have the message all the same.
    ///
    /// # Cancel safety
    /// Dropping the future before there was room publishes nothing; later, the message is
    /// published or not. Nothing else is disturbed.
    pub async fn publish(&self, message: Message) -> Result<Receipt> {
        self.publisher.publish(self.sign(message)).await
    }

    /// Publishes messages together and waits for all: one outcome each, in order. One that is
    /// refused fails alone.
    ///
    /// # Cancel safety
    /// Dropping the future leaves each message published or not.
    pub async fn publish_batch(&self, messages: Vec<Message>) -> Vec<Result<Receipt>> {
        if self.options.source.is_none() {
            return self.publisher.publish_batch(messages).await;
        }
        let signed = messages.into_iter().map(|message| self.sign(message));
        self.publisher.publish_batch(signed.collect()).await
    }

    /// Accepts a message, waiting only for room in the queue, and returns a handle for its
    /// receipt: the way to publish fast from one task.
    ///
    /// # Errors
    /// `Timeout` when there was no room within `publish_timeout`, `Closed`. Nothing was stored.
    ///
    /// # Cancel safety
    /// Dropping this future accepts nothing; dropping the handle gives up the receipt, not the
    /// message.
    pub async fn enqueue(&self, message: Message) -> Result<Pending> {
        self.publisher.enqueue(self.sign(message)).await
    }

    /// Joins a group as a new member and starts to fetch for it. A topic and a group that do not
    /// exist are made; nothing published after this returned is missed by the group. What the
    /// subscription leaves open, its group and its attempts, is as the bus was told.
    ///
    /// # Errors
    /// `InvalidArgument`, `Unsupported`, `Conflict` when the group has another lease,
    /// `Unavailable`, `Closed`.
    ///
    /// # Cancel safety
    /// Dropping the future leaves at most an empty group behind.
    pub async fn subscribe(&self, subscription: Subscription) -> Result<Consumer> {
        let subscription = match &self.options.group {
            Some(group) => subscription.or_group(group),
            None => subscription,
        };
        let subscription = match self.options.max_attempts {
            Some(attempts) => subscription.or_max_attempts(attempts),
            None => subscription,
        };
        Consumer::start_metered(self.transport.clone(), subscription, &self.meter).await
    }

    /// The backend, its server, and what they can do.
    pub fn info(&self) -> Arc<TransportInfo> {
        self.transport.info()
    }

    /// Asks the broker how it is: connected, how fast it answers, its version, and what of its own
    /// settings may lose messages.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout` when it does not answer, `Closed`.
    ///
    /// # Cancel safety
    /// Nothing is changed, so dropping the future is safe.
    pub async fn health(&self) -> Result<Health> {
        self.admin().health().await
    }

    /// How far a group is behind on a topic, at the declared exactness. Internal topics (dead
    /// letters, quarantine) go by their full name.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that breaks the rules, `NotFound` when topic or group does not
    /// exist, `Unavailable`, `Closed`.
    ///
    /// # Cancel safety
    /// Nothing is changed, so dropping the future is safe.
    pub async fn lag(&self, topic: &str, group: &str) -> Result<Lag> {
        let (topic, group) = (Topic::stored(topic)?, Group::new(group)?);
        self.admin().lag(&topic, &group).await
    }

    /// Removes every message of a topic for every group, settled or not, and says how many there
    /// were. There is no way back, so the guard repeats the name of the topic:
    ///
    /// ```
    /// # use mas_transport::{Bus, Config, Message, Purge};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> mas_transport::Result<()> {
    /// # let bus = Bus::connect(Config::new()).await?;
    /// bus.publish(Message::new("trial-run", "1")?).await?;
    /// assert!(bus.purge("trial-run", Purge::everything_in("orders")).await.is_err());
    /// assert_eq!(bus.purge("trial-run", Purge::everything_in("trial-run")).await?, 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `InvalidArgument` when the guard names another topic, `NotFound` when the topic does not
    /// exist, `Unavailable`, `Closed`.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the topic purged or not, never half.
    pub async fn purge(&self, topic: &str, guard: Purge) -> Result<u64> {
        if guard.topic != topic {
            let why =
                "the guard names another topic than the one to be purged; nothing was removed";
            return Err(Error::invalid("purge", why)
                .with("topic", topic.escape_debug())
                .with("guard", guard.topic.escape_debug()));
        }
        self.admin().purge(&Topic::stored(topic)?).await
    }

    /// What this bus has done so far, its clones and its consumers included: counted here, so the
    /// broker is not asked, and this works while it is away.
    pub fn metrics(&self) -> Metrics {
        let mut metrics = self.publisher.metrics();
        metrics.consumed = self.meter.read();
        metrics.connections = self.transport.connections();
        metrics
    }

    /// Topics, groups, lag.
    pub fn admin(&self) -> &dyn Admin {
        self.transport.admin()
    }

    /// The transport underneath.
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    /// The client of the broker, for what this library does not cover; `None` when it is of
    /// another type. Which type it is, each backend says.
    pub fn native<T: Any>(&self) -> Option<&T> {
        self.transport.native()?.downcast_ref()
    }

    /// Sends what was accepted, then closes the connection: consumers of this bus stop fetching,
    /// what they have not handed out returns to its group, and what they have handed out can be
    /// settled until `patience` is over. Afterwards every call fails with `Closed`, on every
    /// clone. Idempotent.
    ///
    /// Handlers that still publish need their consumers closed first
    /// ([`Consumer::close`]).
    ///
    /// # Errors
    /// `Timeout` when something had no outcome in time; the connection is closed all the same.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the bus closing or closed.
    pub async fn close(&self, patience: Duration) -> Result<()> {
        // A patience beyond what the clock can tell is a year's.
        let now = Instant::now();
        let year = Duration::from_secs(365 * 24 * 3600);
        let deadline = now + patience.min(year);
        let flushed = self.publisher.close(deadline).await;
        self.transport.close(deadline).await?;
        flushed
    }

    /// Names the sender, where the message does not.
    fn sign(&self, message: Message) -> Message {
        match &self.options.source {
            Some(source) if message.source() == Message::DEFAULT_SOURCE => {
                message.from_source(source.clone())
            }
            _ => message,
        }
    }
}
