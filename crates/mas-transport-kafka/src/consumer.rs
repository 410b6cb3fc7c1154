//! The client of one member, and what it is told of its partitions.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mas_transport_core::backend::lock;
use rdkafka::ClientContext;
use rdkafka::config::{FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{
    BaseConsumer, CommitMode, Consumer as _, ConsumerContext, RebalanceProtocol,
};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::{RDKafkaErrorCode as Code, RDKafkaRespErr};
use tokio::sync::Notify;

use crate::client::{self, Trouble};
use crate::config::{GroupProtocol, KafkaConfig, prefer};
use crate::error;
use crate::topics::LARGEST_LETTER;

/// The client of a member.
pub(crate) type Consumer = BaseConsumer<Watch>;
/// What was read of one partition.
pub(crate) type Queue = PartitionQueue<Watch>;

/// Partitions that come or go.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Assigned(Vec<i32>),
    Revoked(Vec<i32>),
}

/// Hears of partitions that come and go. Nothing is done about it here: the client waits until it is
/// told that they are taken or given up, and goes on meanwhile.
#[derive(Debug)]
pub(crate) struct Watch {
    trouble: Arc<Trouble>,
    changes: Mutex<VecDeque<Change>>,
    closing: AtomicBool,
    /// How many things were told.
    heard: AtomicU64,
    /// It was given partitions, or asked for them: what it reads and tells is the keeper's to hear.
    takes_part: AtomicBool,
    /// The change that the client waits for an answer to; it does not close before it has one.
    owed: Mutex<Option<Change>>,
}

impl Watch {
    pub(crate) fn new(trouble: Arc<Trouble>) -> Self {
        Self {
            trouble,
            changes: Mutex::default(),
            closing: AtomicBool::new(false),
            heard: AtomicU64::new(0),
            takes_part: AtomicBool::new(false),
            owed: Mutex::default(),
        }
    }

    pub(crate) fn next_change(&self) -> Option<Change> {
        lock(&self.changes).pop_front()
    }

    /// How many things were told so far. A poll without waiting hears one of them at most, and its answer
    /// is the same as when there was none.
    pub(crate) fn heard(&self) -> u64 {
        self.heard.load(Ordering::Acquire)
    }

    fn hears(&self) {
        self.heard.fetch_add(1, Ordering::AcqRel);
    }

    /// The client has its answer to a change.
    pub(crate) fn answered(&self) {
        lock(&self.owed).take();
    }

    /// From now on partitions are given up as soon as that is asked.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }
}

impl ClientContext for Watch {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.hears();
        client::log(level, facility, message);
    }

    fn stats_raw(&self, _statistics: &[u8]) {
        self.hears();
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.trouble.told(&error, reason);
    }
}

impl ConsumerContext for Watch {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        told: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        self.hears();
        self.takes_part.store(true, Ordering::Release);
        let assigned = told == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        let numbers = || {
            partitions
                .elements()
                .iter()
                .map(|e| e.partition())
                .collect()
        };
        tracing::debug!(
            assigned,
            partitions = partitions.count(),
            "partitions change hands"
        );
        if !self.closing.load(Ordering::Acquire) {
            let change = match assigned {
                true => Change::Assigned(numbers()),
                false => Change::Revoked(numbers()),
            };
            *lock(&self.owed) = Some(change.clone());
            lock(&self.changes).push_back(change);
            return;
        }
        let cooperative = matches!(
            consumer.rebalance_protocol(),
            RebalanceProtocol::Cooperative
        );
        let done = match (assigned, cooperative) {
            // Nothing is taken any more.
            (true, true) => consumer.incremental_assign(&TopicPartitionList::new()),
            (false, true) => consumer.incremental_unassign(partitions),
            (_, false) => consumer.unassign(),
        };
        if let Err(error) = done {
            tracing::debug!(%error, "partitions could not be given up");
        }
    }
}

/// Makes the client of a member. `events` is rung when it has something to tell.
pub(crate) fn make(
    config: &KafkaConfig,
    group: &str,
    trouble: Arc<Trouble>,
    events: Arc<Notify>,
) -> KafkaResult<Arc<Consumer>> {
    let mut settings = config.client();
    // The largest record comes in one piece, or the client asks for it again for ever.
    let fetched = settings.get("fetch.max.bytes");
    let fetched = fetched.and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
    let answer = LARGEST_LETTER.max(fetched) + (1 << 20);
    let answer = answer.min(i32::MAX as usize);
    let heartbeat =
        (config.session_timeout / 12).clamp(Duration::from_millis(100), Duration::from_secs(1));
    settings
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // Where a group stands is ours to know; what it cannot find is told as a gap.
        .set("auto.offset.reset", "error")
        .set("allow.auto.create.topics", "false")
        .set("isolation.level", "read_committed")
        .set("receive.message.max.bytes", answer.to_string());
    for (key, value) in [
        // A consumer that reads slowly would wait a second for more, by default.
        ("fetch.queue.backoff.ms", "5"),
        ("fetch.wait.max.ms", "500"),
        ("queued.min.messages", "10000"),
        ("queued.max.messages.kbytes", "16384"),
        // A request that gets no answer, a commit above all, holds up what comes behind it; 60 s by default.
        ("socket.timeout.ms", "10000"),
        // How soon it is noticed that a topic was deleted or has more partitions; 5 min by default.
        ("topic.metadata.refresh.interval.ms", "5000"),
    ] {
        prefer(&mut settings, key, value);
    }
    match config.group_protocol {
        GroupProtocol::Classic => settings
            .set("group.protocol", "classic")
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set(
                "session.timeout.ms",
                config.session_timeout.as_millis().to_string(),
            )
            .set("heartbeat.interval.ms", heartbeat.as_millis().to_string()),
        GroupProtocol::Consumer => settings.set("group.protocol", "consumer"),
    };
    let mut consumer = Consumer::from_config_and_context(&settings, Watch::new(trouble))?;
    consumer.set_nonempty_callback(move || events.notify_one());
    Ok(Arc::new(consumer))
}

/// Where a group stands in a partition.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) partition: i32,
    /// The committed offset, and what was committed with it.
    pub(crate) committed: Option<(u64, String)>,
    /// The first offset that is kept, and the one after the last.
    pub(crate) low: u64,
    pub(crate) high: u64,
}

/// How long a client that takes no part waits at first, before it hears whether it was refused.
const FIRST_LOOK: Duration = Duration::from_millis(500);

/// Asks what a group has committed. A client that is refused its group goes on looking for who keeps it, and
/// says that it was only to who polls it; until it takes part in the group that is nobody.
fn committed(
    consumer: &Consumer,
    asked: TopicPartitionList,
    within: Duration,
) -> KafkaResult<TopicPartitionList> {
    let takes_part = consumer.context().takes_part.load(Ordering::Acquire)
        || consumer.subscription().map_or(true, |of| of.count() > 0);
    if takes_part {
        return consumer.committed_offsets(asked, within);
    }
    let first = FIRST_LOOK.min(within);
    let again = asked.clone();
    let answer = match consumer.committed_offsets(asked, first) {
        Err(told) if error::code(&told) == Some(Code::OperationTimedOut) && first < within => {
            match refusal(consumer) {
                Some(refused) => return Err(refused),
                None => consumer.committed_offsets(again, within - first),
            }
        }
        answer => answer,
    };
    answer.map_err(|told| match (refusal(consumer), error::code(&told)) {
        (Some(refused), _) => refused,
        // It is the broker which keeps the group that was waited for.
        (None, Some(Code::OperationTimedOut)) => {
            KafkaError::OffsetFetch(Code::WaitingForCoordinator)
        }
        (None, _) => told,
    })
}

/// What the client was refused, of what it has to tell; the rest goes to its context.
fn refusal(consumer: &Consumer) -> Option<KafkaError> {
    loop {
        let heard = consumer.context().heard();
        match consumer.poll(Duration::ZERO) {
            None if consumer.context().heard() == heard => return None,
            Some(Err(told)) if error::code(&told).is_some_and(error::is_refusal) => {
                return Some(told);
            }
            _ => {}
        }
    }
}

/// Asks where a group stands. Blocks.
pub(crate) fn standings(
    consumer: &Consumer,
    topic: &str,
    partitions: &[i32],
    within: Duration,
) -> KafkaResult<Vec<Standing>> {
    let mut asked = TopicPartitionList::with_capacity(partitions.len());
    for partition in partitions {
        asked.add_partition(topic, *partition);
    }
    let committed = committed(consumer, asked, within)?;
    let mut standings = Vec::with_capacity(partitions.len());
    for element in committed.elements() {
        element.error()?;
        let offset = element.offset();
        let committed = match offset {
            Offset::Offset(offset) => {
                // The client unwraps it as UTF-8. What another program wrote there is none of ours.
                let metadata = catch_unwind(AssertUnwindSafe(|| element.metadata().to_owned()));
                let metadata = metadata.unwrap_or_default();
                Some((u64::try_from(offset).unwrap_or_default(), metadata))
            }
            _ => None,
        };
        let (low, high) = consumer.fetch_watermarks(topic, element.partition(), within)?;
        standings.push(Standing {
            partition: element.partition(),
            committed,
            low: u64::try_from(low).unwrap_or_default(),
            high: u64::try_from(high).unwrap_or_default(),
        });
    }
    Ok(standings)
}

/// Up to where the client has handed out what there is of each partition: also marks of transactions, and
/// what these took back, which it hands to nobody. `None` where it has come to nothing yet.
pub(crate) fn positions(consumer: &Consumer) -> KafkaResult<Vec<(i32, Option<u64>)>> {
    let list = consumer.position()?;
    let position = |offset| match offset {
        Offset::Offset(offset) => u64::try_from(offset).ok(),
        _ => None,
    };
    let each = list.elements();
    let each = each.iter().map(|e| (e.partition(), position(e.offset())));
    Ok(each.collect())
}

/// What to commit of a partition: its number, the offset, and what goes with it.
pub(crate) type Entry = (i32, u64, String);

/// Commits, and waits until the broker has it. Blocks.
pub(crate) fn commit(consumer: &Consumer, topic: &str, entries: &[Entry]) -> KafkaResult<()> {
    let mut list = TopicPartitionList::with_capacity(entries.len());
    for (partition, offset, metadata) in entries {
        let mut element = list.add_partition(topic, *partition);
        element.set_offset(Offset::Offset(i64::try_from(*offset).unwrap_or(i64::MAX)))?;
        element.set_metadata(metadata);
    }
    match consumer.commit(&list, CommitMode::Sync) {
        // There was nothing to do.
        Err(KafkaError::ConsumerCommit(Code::NoOffset)) => Ok(()),
        done => done,
    }
}

/// Gives the client the answer that it still waits for, so that it can close. Blocks.
pub(crate) fn answer(consumer: &Consumer, topic: &str) {
    let owed = lock(&consumer.context().owed).take();
    let answered = match owed {
        None => return,
        Some(Change::Assigned(_)) => consumer.incremental_assign(&TopicPartitionList::new()),
        Some(Change::Revoked(partitions)) => unassign(consumer, topic, &partitions),
    };
    if let Err(error) = answered {
        tracing::debug!(%error, "the client had no answer to wait for");
    }
}

/// Tells the client that partitions are given up.
pub(crate) fn unassign(consumer: &Consumer, topic: &str, partitions: &[i32]) -> KafkaResult<()> {
    let each: Vec<_> = partitions.iter().map(|p| (*p, None)).collect();
    consumer.incremental_unassign(&list(topic, &each)?)
}

/// The list of partitions to begin to read, and where.
pub(crate) fn list(
    topic: &str,
    partitions: &[(i32, Option<u64>)],
) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for (partition, offset) in partitions {
        let mut element = list.add_partition(topic, *partition);
        if let Some(offset) = offset {
            element.set_offset(Offset::Offset(i64::try_from(*offset).unwrap_or(i64::MAX)))?;
        }
    }
    Ok(list)
}
