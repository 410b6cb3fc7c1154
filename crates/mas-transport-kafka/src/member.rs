//! One member of one group: what its keeper, its committer, its `fetch` and its settlements share.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mas_transport_core::backend::{Wait, lock};
use mas_transport_core::clock::now_utc;
use mas_transport_core::{
    Error, ErrorKind, Event, Gap, Group, Result, StartFrom, Subscription, Topic, unix_ms,
};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::BACKEND;
use crate::client::{Trouble, dispose, explain};
use crate::consumer::{self, Consumer, Entry, Queue, Standing};
use crate::mark::Mark;
use crate::settle::Place;
use crate::share::{Now, Share};
use crate::transport::Shared;
use crate::{commit, error, keeper};

/// How long the last steps of closing may take after the deadline: a few round trips, and the client's
/// own closing.
const GRACE: Duration = Duration::from_secs(2);

/// One member of one group.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) shared: Arc<Shared>,
    pub(crate) topic: Topic,
    pub(crate) group: Group,
    /// How topic and group are called in the broker.
    pub(crate) topic_name: String,
    pub(crate) group_name: String,
    pub(crate) state: Mutex<State>,
    pub(crate) trouble: Arc<Trouble>,
    /// Something is there to fetch.
    pub(crate) arrived: Arc<Notify>,
    /// Something is there to commit.
    pub(crate) dirty: Notify,
    /// What was read waits for a commit.
    pub(crate) hurry: Notify,
    /// One commit at a time, always of the latest state.
    pub(crate) committing: tokio::sync::Mutex<()>,
    /// The client has something to tell, or the keeper something to do.
    pub(crate) events: Arc<Notify>,
    /// Nothing more is read.
    pub(crate) closing: CancellationToken,
    /// The deadline of `close` has passed.
    pub(crate) force: CancellationToken,
    pub(crate) closed: CancellationToken,
}

/// What is behind the lock of a member.
pub(crate) struct State {
    pub(crate) share: Share<Place>,
    pub(crate) consumer: Option<Arc<Consumer>>,
    /// What was read of each partition, and is not ours to keep yet.
    pub(crate) queues: Vec<(i32, Arc<Queue>)>,
    /// What `fetch` brings whatever it wants.
    pub(crate) control: VecDeque<Event>,
    pub(crate) error: Option<Error>,
    /// The last fetch wanted nothing.
    pub(crate) wants: bool,
    /// It read nothing of some partition, for want of room.
    pub(crate) full: bool,
    /// Offsets below which the client has handed out of a partition all there is, for `fetch` to take
    /// note of when it has kept that.
    pub(crate) passed: Vec<(i32, u64)>,
    /// Partitions whose log is not where it was thought to be.
    pub(crate) lost_place: Vec<i32>,
    /// The topic may be gone.
    pub(crate) topic_gone: bool,
    /// The group went on without this member, whatever the client says.
    pub(crate) fenced: bool,
    /// No broker could be reached.
    pub(crate) down: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("share", &self.share)
            .finish_non_exhaustive()
    }
}

pub(crate) fn now() -> Now {
    Now {
        instant: Instant::now(),
        utc: unix_ms(now_utc()),
    }
}

impl Member {
    /// Joins the group and begins to read.
    pub(crate) async fn start(
        shared: Arc<Shared>,
        subscription: &Subscription,
    ) -> Result<Arc<Self>> {
        let (topic, group) = (subscription.get_topic()?, subscription.get_group()?);
        let keys = &shared.topics.keys;
        if !topic.is_internal() {
            keys.check("subscribe", &Topic::dead_letters(&topic, &group))?;
        }
        let member = Arc::new(Self {
            topic_name: keys.topic(&topic),
            group_name: keys.group(&topic, &group),
            state: Mutex::new(State {
                share: Share::new(subscription.get_lease()),
                consumer: None,
                queues: Vec::new(),
                control: VecDeque::new(),
                error: None,
                wants: true,
                full: false,
                passed: Vec::new(),
                lost_place: Vec::new(),
                topic_gone: false,
                fenced: false,
                down: false,
            }),
            trouble: Arc::default(),
            arrived: Arc::default(),
            dirty: Notify::new(),
            hurry: Notify::new(),
            committing: tokio::sync::Mutex::default(),
            events: Arc::default(),
            closing: CancellationToken::new(),
            force: CancellationToken::new(),
            closed: CancellationToken::new(),
            shared,
            topic,
            group,
        });
        // A task of its own, so that a dropped call is not half done; only a group that nobody waits to join
        // is not joined.
        let unwanted = CancellationToken::new();
        let _guard = unwanted.clone().drop_guard();
        let joining = {
            let member = member.clone();
            let start = subscription.get_start();
            member
                .shared
                .tasks
                .clone()
                .spawn(async move { member.join("subscribe", start, &unwanted).await })
        };
        let joined = joining
            .await
            .unwrap_or_else(|_| Err(Error::closed("subscribe").on(BACKEND)));
        if let Err(error) = joined {
            member.dismiss().await;
            return Err(error);
        }
        let tasks = &member.shared.tasks;
        tasks.spawn(keeper::run(member.clone()));
        tasks.spawn(commit::run(member.clone()));
        Ok(member)
    }

    /// An error of `kind` about this group.
    pub(crate) fn error(
        &self,
        kind: ErrorKind,
        operation: &'static str,
        message: &'static str,
    ) -> Error {
        Error::new(kind, operation, message)
            .on(BACKEND)
            .with("topic", &self.topic)
            .with("group", &self.group)
    }

    /// An error of the client of this member.
    pub(crate) fn told(&self, operation: &'static str, since: Instant, told: KafkaError) -> Error {
        let config = &self.shared.asker.config;
        explain(config, &self.trouble, operation, since, told)
            .with("topic", &self.topic)
            .with("group", &self.group)
    }

    /// Does something that blocks with the client of this member.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        consumer: &Arc<Consumer>,
        what: impl FnOnce(&Consumer) -> T + Send + 'static,
    ) -> Option<T> {
        let consumer = consumer.clone();
        let done = tokio::task::spawn_blocking(move || {
            let done = what(&consumer);
            // Here, should it be the last one: closing a client blocks.
            drop(consumer);
            done
        });
        done.await.ok()
    }

    /// Where the group stands.
    pub(crate) async fn standings(
        &self,
        operation: &'static str,
        consumer: &Arc<Consumer>,
        partitions: Vec<i32>,
    ) -> Result<Vec<Standing>> {
        let since = Instant::now();
        let topic = self.topic_name.clone();
        let within = self.shared.asker.config.response_timeout;
        let asked = self.blocking(consumer, move |consumer| {
            consumer::standings(consumer, &topic, &partitions, within)
        });
        match asked.await {
            Some(Ok(standings)) => Ok(standings),
            Some(Err(told)) => Err(self.told(operation, since, told)),
            None => Err(Error::closed(operation).on(BACKEND)),
        }
    }

    /// Commits something that is not the state of a share.
    async fn commit(
        &self,
        consumer: &Arc<Consumer>,
        entries: Vec<Entry>,
    ) -> std::result::Result<(), Option<KafkaError>> {
        let topic = self.topic_name.clone();
        let done = self.blocking(consumer, move |consumer| {
            consumer::commit(consumer, &topic, &entries)
        });
        done.await.ok_or(None)?.map_err(Some)
    }

    /// Finds or makes topic and group, and begins to take part, unless that is not wanted any more by then.
    pub(crate) async fn join(
        &self,
        operation: &'static str,
        start: StartFrom,
        unwanted: &CancellationToken,
    ) -> Result<()> {
        let since = Instant::now();
        let known = self.shared.topics.reach(operation, &self.topic).await?;
        let config = &self.shared.asker.config;
        let consumer = consumer::make(
            config,
            &self.group_name,
            self.trouble.clone(),
            self.events.clone(),
        );
        let consumer = consumer.map_err(|e| self.told(operation, since, e))?;
        lock(&self.state).consumer = Some(consumer.clone());
        let partitions: Vec<i32> = (0..known.partitions).collect();
        let until = since + config.response_timeout;
        let mut wait = Wait::new();
        // How far the logs reached before it was asked where the group stands: whoever begins at their ends
        // begins no later than another one that has said so meanwhile.
        let mut ends: Option<Vec<u64>> = None;
        loop {
            let standings = self.standings(operation, &consumer, partitions.clone());
            let mut standings = match standings.await {
                Err(error) if error.is_retryable() && Instant::now() < until => {
                    sleep(wait.next()).await;
                    continue;
                }
                asked => asked?,
            };
            match &ends {
                None if standings.iter().all(|s| s.committed.is_none()) => {
                    ends = Some(standings.iter().map(|s| s.high).collect());
                    continue;
                }
                None => {}
                Some(ends) => {
                    for (standing, end) in standings.iter_mut().zip(ends) {
                        standing.high = standing.high.min(*end).max(standing.low);
                    }
                }
            }
            let missing = self.agree(operation, &standings, start)?;
            if missing.is_empty() {
                break;
            }
            // Nobody is in the group yet, or the broker refuses: then somebody else was quicker.
            match self.commit(&consumer, missing).await {
                Ok(()) => break,
                Err(told) => {
                    let Some(told) = told else {
                        return Err(Error::closed(operation).on(BACKEND));
                    };
                    let again = error::code(&told).is_some_and(|code| {
                        error::is_fenced(code)
                            || matches!(
                                code,
                                Code::RebalanceInProgress
                                    | Code::WaitingForCoordinator
                                    | Code::NotCoordinator
                                    | Code::CoordinatorNotAvailable
                                    | Code::CoordinatorLoadInProgress
                            )
                    });
                    if !again {
                        return Err(self.told(operation, since, told));
                    }
                    if Instant::now() >= until {
                        let why =
                            "the group has members, and none of them has said yet where it begins";
                        let error = self.error(ErrorKind::Unavailable, operation, why);
                        return Err(error.because(told));
                    }
                    sleep(wait.next()).await;
                }
            }
        }
        if unwanted.is_cancelled() {
            return Err(Error::closed(operation).on(BACKEND));
        }
        let topic = self.topic_name.clone();
        let subscribed = self.blocking(&consumer, move |consumer| consumer.subscribe(&[&topic]));
        match subscribed.await {
            Some(Ok(())) => Ok(()),
            Some(Err(told)) => Err(self.told(operation, since, told)),
            None => Err(Error::closed(operation).on(BACKEND)),
        }
    }

    /// What stands with the offset that the group has committed in a partition.
    ///
    /// # Errors
    /// `Conflict` when this version cannot read it.
    pub(crate) fn mark(
        &self,
        operation: &'static str,
        standing: &Standing,
    ) -> Result<Option<Mark>> {
        let Some((_, metadata)) = &standing.committed else {
            return Ok(None);
        };
        Mark::decode(metadata).map_err(|why| {
            let message =
                "what stands with the offsets of the group cannot be read by this version";
            self.error(ErrorKind::Conflict, operation, message)
                .with("partition", standing.partition)
                .with("why", why)
        })
    }

    /// Whether the group is one that this member can join: where it is to begin in partitions in which
    /// it stands nowhere.
    fn agree(
        &self,
        operation: &'static str,
        standings: &[Standing],
        start: StartFrom,
    ) -> Result<Vec<Entry>> {
        let lease = lock(&self.state).share.lease();
        let mut is_new = true;
        for standing in standings {
            is_new &= standing.committed.is_none();
            let mark = self.mark(operation, standing)?;
            if let Some(mark) = mark
                && mark.lease != lease
            {
                let why =
                    "the group has another lease: all members of a group ask for the same one";
                return Err(self
                    .error(ErrorKind::Conflict, operation, why)
                    .with("lease_ms", lease.as_millis())
                    .with("group_lease_ms", mark.lease.as_millis()));
            }
        }
        let mark = Mark {
            lease,
            reach: 0,
            settled: Vec::new(),
            notes: Vec::new(),
        };
        let metadata = mark.encode().unwrap_or_default();
        // A partition that was added to a topic is read from its beginning, whether or not that was
        // committed; and a group that has members refuses it of anybody else.
        let each = standings.iter().filter(|_| is_new);
        Ok(each
            .map(|standing| {
                let from = match start {
                    StartFrom::Latest => standing.high,
                    _ => standing.low,
                };
                (standing.partition, from, metadata.clone())
            })
            .collect())
    }

    /// Says that entries are gone that this group had not settled.
    pub(crate) fn gap(&self, state: &mut State, reason: &str, lost: Option<u64>) {
        state.control.push_back(Event::Gap(Gap {
            topic: self.topic.clone(),
            reason: reason.to_owned(),
            lost,
        }));
        self.arrived.notify_one();
    }

    /// Ends reading at once: `fetch` answers `Closed` from now on.
    pub(crate) fn stop(&self) {
        self.closing.cancel();
        self.arrived.notify_one();
        self.events.notify_one();
    }

    /// Stops, and waits until nothing is held or `deadline`, after which the rest is returned.
    /// Idempotent.
    pub(crate) async fn close(&self, deadline: Instant) {
        self.stop();
        if timeout_at(deadline, self.closed.cancelled()).await.is_err() {
            self.force.cancel();
            let _ = timeout(GRACE, self.closed.cancelled()).await;
        }
        self.closed.cancel();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Lets the client go, which takes a moment.
    pub(crate) async fn dismiss(&self) {
        let (consumer, queues) = {
            let mut state = lock(&self.state);
            (state.consumer.take(), std::mem::take(&mut state.queues))
        };
        if let Some(consumer) = consumer {
            consumer.context().close();
            let topic = self.topic_name.clone();
            let gone = tokio::task::spawn_blocking(move || {
                consumer::answer(&consumer, &topic);
                drop(queues);
                drop(consumer);
            });
            let _ = gone.await;
        }
    }
}

impl Drop for Member {
    /// The client of a member that was never closed, because nobody waited for it to join.
    fn drop(&mut self) {
        let state = self.state.get_mut();
        let state = state.unwrap_or_else(PoisonError::into_inner);
        let queues = std::mem::take(&mut state.queues);
        if let Some(consumer) = state.consumer.take() {
            consumer.context().close();
            let topic = std::mem::take(&mut self.topic_name);
            dispose(move || {
                consumer::answer(&consumer, &topic);
                drop(queues);
                drop(consumer);
            });
        }
    }
}
