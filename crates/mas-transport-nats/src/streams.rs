//! Streams and consumers: made where they are missing, compared where they are there.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::datetime::DateTime;
use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy};
use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, ErrorCode};
use mas_transport_core::backend::Wait;
use mas_transport_core::{Error, ErrorKind, Group, Result, Topic};
use serde::Serialize;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::BACKEND;
use crate::config::{NatsConfig, Storage};
use crate::connection::{Link, lock};
use crate::error::{answered, error, is_unstored};
use crate::keys::Keys;

/// After how long a topic is looked at again before publishing: somebody may have changed it.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// How often it is looked for a stream that somebody else may be making, and how long lies between.
pub(crate) const LOOKS: u32 = 5;
pub(crate) const LOOK_ONCE_MORE: Duration = Duration::from_millis(20);
/// Most topics that are remembered.
const REMEMBERED: usize = 4096;

/// The streams of a transport.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) link: Arc<Link>,
    pub(crate) keys: Keys,
    /// The server is older than 2.10.
    old: bool,
    seen: Mutex<HashMap<Topic, Instant>>,
    notes: Mutex<bool>,
    /// The stream of notes is there, and answers `DIRECT.GET`.
    direct: AtomicBool,
}

/// Which stream it is, of all that ever had its name: when it was made, in nanoseconds.
pub(crate) type Incarnation = u64;

pub(crate) fn incarnation(info: &stream::Info) -> Incarnation {
    nanos(info.created)
}

/// Whether its server has finished to make it.
fn is_made(info: &stream::Info) -> bool {
    incarnation(info) != 0
}

/// Which consumer it is, of all that ever had its name.
pub(crate) fn made_at(info: &consumer::Info) -> Incarnation {
    nanos(info.created)
}

/// The client's type is another one where any crate of the build asks for its feature `chrono`; either
/// becomes a time of the system.
fn nanos(created: DateTime) -> Incarnation {
    let since = SystemTime::from(created).duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or_default()
}

impl Streams {
    pub(crate) fn new(link: Arc<Link>, keys: Keys) -> Self {
        Self {
            old: !link.client().is_server_compatible(2, 10, 0),
            link,
            keys,
            seen: Mutex::default(),
            notes: Mutex::default(),
            direct: AtomicBool::new(false),
        }
    }

    /// Metadata can be kept with streams and consumers, and who makes a consumer says which way it is meant.
    fn has_metadata(&self) -> bool {
        !self.old
    }

    /// Asking for an entry of a stream that is just being made does no harm, see [`entries`](crate::entries).
    pub(crate) fn survives(&self) -> bool {
        !self.old
    }

    /// Groups remember what they wait for when a part of the stream is purged.
    pub(crate) fn purges(&self) -> bool {
        !self.old
    }

    /// What was sent may be sent again as if for the first time.
    pub(crate) fn takes_back(&self) -> bool {
        self.old
    }

    fn config(&self) -> &NatsConfig {
        &self.link.config
    }

    fn labels(&self) -> HashMap<String, String> {
        match self.has_metadata() {
            true => HashMap::from([("mas-format".to_owned(), "1".to_owned())]),
            false => HashMap::new(),
        }
    }

    fn base(&self, name: String, subjects: Vec<String>) -> stream::Config {
        let config = self.config();
        stream::Config {
            name,
            subjects,
            // Members remove what every group has settled; nothing else does.
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::New,
            max_messages: -1,
            max_messages_per_subject: -1,
            max_bytes: -1,
            max_message_size: -1,
            max_consumers: -1,
            storage: match config.storage {
                Storage::File => StorageType::File,
                Storage::Memory => StorageType::Memory,
            },
            num_replicas: config.replicas,
            duplicate_window: config.duplicate_window,
            metadata: self.labels(),
            ..stream::Config::default()
        }
    }

    /// How the stream of a topic is made.
    fn wanted(&self, topic: &Topic) -> stream::Config {
        // Dead letters are kept whatever the bounds of a topic.
        let bound = |most: Option<u64>| {
            let most = most.filter(|_| !topic.is_internal());
            most.map_or(-1, |most| i64::try_from(most).unwrap_or(i64::MAX))
        };
        let age = self.config().max_topic_age;
        let age = age.filter(|_| !topic.is_internal()).unwrap_or_default();
        let base = self.base(self.keys.stream(topic), self.keys.takes(topic));
        stream::Config {
            max_messages: bound(self.config().max_topic_messages),
            max_bytes: bound(self.config().max_topic_bytes),
            max_age: age,
            // Servers remember nobody for longer than they keep a message.
            duplicate_window: match age.is_zero() {
                true => base.duplicate_window,
                false => base.duplicate_window.min(age),
            },
            description: Some(format!("mas-transport topic {topic}")),
            ..base
        }
    }

    /// What the server says of the stream of a topic, if there is one.
    pub(crate) async fn find(
        &self,
        operation: &'static str,
        topic: &Topic,
    ) -> Result<Option<stream::Info>> {
        self.stream(operation, &self.keys.stream(topic)).await
    }

    /// What the server says of a stream, if it is there. Of one that somebody is just making, once it is made.
    ///
    /// Before 2.10 a server registers a stream before it has a store, and then says that it was made in the
    /// year 1. When it was made is entered under the lock under which its store is (`setupStore` of 2.9.10).
    pub(crate) async fn stream(
        &self,
        operation: &'static str,
        name: &str,
    ) -> Result<Option<stream::Info>> {
        let deadline = Instant::now() + self.config().response_timeout;
        let mut wait = Wait::new();
        loop {
            let asked = self.link.ask(operation, format!("STREAM.INFO.{name}"), &());
            match asked.await? {
                Ok(info) if is_made(&info) => return Ok(Some(info)),
                Ok(_) if Instant::now() >= deadline => {
                    let why = "the server has not finished to make the stream";
                    return Err(error(ErrorKind::Unavailable, operation, why).with("stream", name));
                }
                Ok(_) => sleep(wait.next()).await,
                Err(told) if told.error_code() == ErrorCode::STREAM_NOT_FOUND => return Ok(None),
                Err(told) => return Err(answered(operation, &told).with("stream", name)),
            }
        }
    }

    /// Finds or makes the stream of a topic.
    ///
    /// # Errors
    /// `Conflict` with what differs, when it exists otherwise.
    pub(crate) async fn ensure(
        &self,
        operation: &'static str,
        topic: &Topic,
    ) -> Result<stream::Info> {
        self.keys.check(operation, topic)?;
        let wanted = self.wanted(topic);
        let info = self.provide(operation, wanted).await;
        let info = info.map_err(|e| e.with("topic", topic))?;
        self.remember(topic);
        Ok(info)
    }

    /// Makes sure that publishes to a topic have somewhere to go; asks the server now and then only.
    pub(crate) async fn reach(&self, operation: &'static str, topic: &Topic) -> Result<()> {
        let seen = lock(&self.seen).get(topic).copied();
        if seen.is_some_and(|at| at.elapsed() < LOOK_AGAIN) {
            return Ok(());
        }
        self.ensure(operation, topic).await.map(drop)
    }

    fn remember(&self, topic: &Topic) {
        let mut seen = lock(&self.seen);
        if seen.len() >= REMEMBERED {
            seen.retain(|_, at| at.elapsed() < LOOK_AGAIN);
        }
        if seen.len() < REMEMBERED {
            seen.insert(topic.clone(), Instant::now());
        }
    }

    /// The stream of a topic was found gone.
    pub(crate) fn forget(&self, topic: &Topic) {
        lock(&self.seen).remove(topic);
    }

    /// Whether the stream of notes is known to answer `DIRECT.GET`.
    pub(crate) fn is_direct(&self) -> bool {
        self.direct.load(Ordering::Acquire)
    }

    pub(crate) fn set_direct(&self, direct: bool) {
        self.direct.store(direct, Ordering::Release);
    }

    /// Finds or makes the stream that notes are kept in.
    pub(crate) async fn reach_notes(&self, operation: &'static str) -> Result<()> {
        if *lock(&self.notes) {
            return Ok(());
        }
        let name = self.keys.notes_stream();
        let wanted = stream::Config {
            max_messages_per_subject: 1,
            discard: DiscardPolicy::Old,
            // See [`entries`](crate::entries).
            allow_direct: self.old && self.config().replicas == 1,
            description: Some("mas-transport: how far groups have come".to_owned()),
            ..self.base(name, vec![self.keys.notes()])
        };
        self.provide(operation, wanted).await?;
        *lock(&self.notes) = true;
        Ok(())
    }

    /// The stream of notes was found gone.
    pub(crate) fn forget_notes(&self) {
        self.set_direct(false);
        *lock(&self.notes) = false;
    }

    async fn provide(
        &self,
        operation: &'static str,
        wanted: stream::Config,
    ) -> Result<stream::Info> {
        let name = wanted.name.clone();
        let mut looks = 0..LOOKS;
        let deadline = Instant::now() + self.config().response_timeout;
        let mut wait = Wait::new();
        let found = loop {
            if let Some(info) = self.stream(operation, &name).await? {
                break info;
            }
            let asked = self
                .link
                .ask(operation, format!("STREAM.CREATE.{name}"), &wanted);
            let told = match asked.await? {
                Ok(info) if is_made(&info) => break info,
                // Before 2.10 who asks for a stream that somebody is just making gets it as it is.
                Ok(_) => continue,
                Err(told) => told,
            };
            let code = told.error_code();
            // Somebody else was faster. Before 2.10 that is no matter of names while they are still at it.
            let raced = matches!(
                code,
                ErrorCode::STREAM_NAME_EXIST | ErrorCode::STREAM_SUBJECT_OVERLAP
            );
            if raced && looks.next().is_some() {
                sleep(LOOK_ONCE_MORE).await;
            } else if is_unstored(&told) && Instant::now() < deadline {
                tracing::debug!(stream = name, error = %told, "making the stream again");
                sleep(wait.next()).await;
            } else {
                return Err(answered(operation, &told).with("stream", name));
            }
        };
        let differs = differences(&wanted, &found.config);
        if differs.is_empty() {
            return Ok(found);
        }
        let why = "the stream exists with another configuration: change it there (nats stream edit), or the settings here";
        Err(Error::new(ErrorKind::Conflict, operation, why)
            .on(BACKEND)
            .with("stream", name)
            .with("differs", differs.join("; ")))
    }

    /// The group's consumer as it is made.
    fn group(
        &self,
        group: &Group,
        lease: Duration,
        start: DeliverPolicy,
    ) -> consumer::pull::Config {
        consumer::pull::Config {
            durable_name: Some(group.as_str().to_owned()),
            name: Some(group.as_str().to_owned()),
            description: Some("mas-transport group".to_owned()),
            deliver_policy: start,
            ack_policy: AckPolicy::Explicit,
            ack_wait: lease,
            // Dead letters are ours: the server would forget a message that nobody was handed.
            max_deliver: -1,
            max_ack_pending: self.config().max_ack_pending,
            metadata: self.labels(),
            ..consumer::pull::Config::default()
        }
    }

    /// What the server says of a group, if it is there.
    pub(crate) async fn find_group(
        &self,
        operation: &'static str,
        topic: &Topic,
        group: &Group,
    ) -> Result<Option<consumer::Info>> {
        let stream = self.keys.stream(topic);
        let subject = format!("CONSUMER.INFO.{stream}.{group}");
        match self.link.ask(operation, subject, &()).await? {
            Ok(info) => Ok(Some(info)),
            Err(told) if is_gone(&told) => Ok(None),
            Err(told) => Err(answered(operation, &told)
                .with("topic", topic)
                .with("group", group)),
        }
    }

    /// Makes a group; one that somebody else made meanwhile is returned as it is.
    pub(crate) async fn make_group(
        &self,
        topic: &Topic,
        group: &Group,
        lease: Duration,
        start: DeliverPolicy,
    ) -> Result<consumer::Info> {
        #[derive(Serialize)]
        struct Request<'a> {
            stream_name: &'a str,
            config: serde_json::Value,
            #[serde(skip_serializing_if = "Option::is_none")]
            action: Option<&'a str>,
        }
        let stream = self.keys.stream(topic);
        let config =
            consumer::IntoConsumerConfig::into_consumer_config(self.group(group, lease, start));
        let config = serde_json::to_value(&config).unwrap_or_else(|_| json!({}));
        let request = Request {
            stream_name: &stream,
            config,
            // Before 2.10 a server updates what is there; it is found first, which leaves a moment.
            action: self.has_metadata().then_some("create"),
        };
        let operation = "subscribe";
        // By the name of durable consumers, which every server knows.
        let subject = match self.has_metadata() {
            true => format!("CONSUMER.CREATE.{stream}.{group}"),
            false => format!("CONSUMER.DURABLE.CREATE.{stream}.{group}"),
        };
        match self.link.ask(operation, subject, &request).await? {
            Ok(info) => Ok(info),
            Err(told)
                if matches!(
                    told.error_code(),
                    ErrorCode::CONSUMER_ALREADY_EXISTS | ErrorCode::CONSUMER_NAME_EXIST
                ) =>
            {
                let found = self.find_group(operation, topic, group).await?;
                found.ok_or_else(|| answered(operation, &told))
            }
            Err(told) => Err(answered(operation, &told)
                .with("topic", topic)
                .with("group", group)),
        }
    }

    /// Every group of a topic.
    pub(crate) async fn groups(
        &self,
        operation: &'static str,
        topic: &Topic,
    ) -> Result<Vec<consumer::Info>> {
        let stream = self.keys.stream(topic);
        let mut groups: Vec<consumer::Info> = Vec::new();
        loop {
            #[derive(serde::Deserialize)]
            struct Page {
                total: usize,
                consumers: Option<Vec<consumer::Info>>,
            }
            let subject = format!("CONSUMER.LIST.{stream}");
            let offset = json!({ "offset": groups.len() });
            let page: Page = match self.link.ask(operation, subject, &offset).await? {
                Ok(page) => page,
                Err(told) if is_gone(&told) => return Ok(Vec::new()),
                Err(told) => return Err(answered(operation, &told).with("topic", topic)),
            };
            let found = page.consumers.unwrap_or_default();
            let done = found.is_empty() || groups.len() + found.len() >= page.total;
            groups.extend(found);
            if done {
                return Ok(groups);
            }
        }
    }
}

/// Whether the server says that stream or consumer is gone.
pub(crate) fn is_gone(told: &jetstream::Error) -> bool {
    matches!(
        told.error_code(),
        ErrorCode::STREAM_NOT_FOUND | ErrorCode::CONSUMER_NOT_FOUND
    )
}

/// What differs between two configurations, as `name: is a, wanted b`.
fn differences(wanted: &stream::Config, is: &stream::Config) -> Vec<String> {
    let subjects = |config: &stream::Config| {
        let mut subjects = config.subjects.clone();
        subjects.sort();
        subjects.join(",")
    };
    let seconds = |age: Duration| format!("{} s", age.as_secs_f64());
    let bound = |most: i64| {
        if most <= 0 {
            "none".to_owned()
        } else {
            most.to_string()
        }
    };
    let all = |config: &stream::Config| {
        [
            ("subjects", subjects(config)),
            ("retention", format!("{:?}", config.retention)),
            ("storage", format!("{:?}", config.storage)),
            ("replicas", config.num_replicas.max(1).to_string()),
            ("discard", format!("{:?}", config.discard)),
            ("max_msgs", bound(config.max_messages)),
            ("max_bytes", bound(config.max_bytes)),
            (
                "max_msgs_per_subject",
                bound(config.max_messages_per_subject),
            ),
            ("max_age", seconds(config.max_age)),
            ("duplicate_window", seconds(config.duplicate_window)),
            ("sealed", config.sealed.to_string()),
            ("deny_purge", config.deny_purge.to_string()),
            ("deny_delete", config.deny_delete.to_string()),
            ("no_ack", config.no_ack.to_string()),
        ]
    };
    let pairs = all(is).into_iter().zip(all(wanted));
    pairs
        .filter(|((_, is), (_, wanted))| is != wanted)
        .map(|((name, is), (_, wanted))| format!("{name} is {is}, wanted {wanted}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named() {
        let wanted = stream::Config {
            max_messages: -1,
            num_replicas: 3,
            ..stream::Config::default()
        };
        let is = stream::Config {
            max_messages: 0,
            num_replicas: 1,
            storage: StorageType::Memory,
            ..stream::Config::default()
        };
        assert_eq!(
            differences(&wanted, &is),
            ["storage is Memory, wanted File", "replicas is 1, wanted 3"]
        );
        assert!(differences(&wanted, &wanted).is_empty());
    }
}
