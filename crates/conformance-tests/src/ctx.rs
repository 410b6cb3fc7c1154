//! What a trial works with.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mas_transport_core::{
    Capabilities, Group, Message, Namespace, Result, Subscription, Topic, Transport, TransportInfo,
};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::Instant;

use crate::checker::{Flaw, Rules, check};
use crate::harness::{Broker, Failure, Timing, Variant, Verdict};
use crate::history::{Happened, History, Trouble};
use crate::layers::{Crash, Hooks, Intercept, PassThrough, Shake};
use crate::member::RawMember;

/// What a trial works with: connections, names, messages, its seed, its clock and its history.
/// Cheap to clone.
#[derive(Clone)]
pub struct Ctx(Arc<Inner>);

struct Inner {
    harness: String,
    broker: Arc<dyn Broker>,
    namespace: Namespace,
    timing: Timing,
    variant: Variant,
    shaken: bool,
    seed: u64,
    drawn: AtomicU64,
    numbers: AtomicU64,
    history: Arc<History>,
    info: Arc<TransportInfo>,
    excused: Mutex<Vec<Flaw>>,
}

impl fmt::Debug for Ctx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ctx")
            .field("namespace", &self.0.namespace)
            .field("seed", &self.0.seed)
            .finish_non_exhaustive()
    }
}

pub(crate) struct Parts {
    pub(crate) harness: String,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) namespace: Namespace,
    pub(crate) timing: Timing,
    pub(crate) variant: Variant,
    pub(crate) shaken: bool,
    pub(crate) seed: u64,
    pub(crate) history: Arc<History>,
    pub(crate) info: Arc<TransportInfo>,
}

impl Ctx {
    pub(crate) fn new(parts: Parts) -> Self {
        Self(Arc::new(Inner {
            harness: parts.harness,
            broker: parts.broker,
            namespace: parts.namespace,
            timing: parts.timing,
            variant: parts.variant,
            shaken: parts.shaken,
            seed: parts.seed,
            drawn: AtomicU64::new(0),
            numbers: AtomicU64::new(1),
            history: parts.history,
            info: parts.info,
            excused: Mutex::default(),
        }))
    }

    /// The name of the harness.
    pub fn harness(&self) -> &str {
        &self.0.harness
    }

    /// The trial's broker, for faults.
    pub fn broker(&self) -> &Arc<dyn Broker> {
        &self.0.broker
    }

    /// Where the trial keeps everything.
    pub fn namespace(&self) -> &Namespace {
        &self.0.namespace
    }

    /// The clock and the allowances.
    pub fn timing(&self) -> Timing {
        self.0.timing
    }

    /// The lease of trials that wait for one to end.
    pub fn lease(&self) -> Duration {
        self.0.timing.lease
    }

    /// What the backend declares.
    pub fn capabilities(&self) -> Capabilities {
        self.0.info.capabilities
    }

    /// The backend and its server.
    pub fn info(&self) -> &TransportInfo {
        &self.0.info
    }

    /// The history.
    pub fn history(&self) -> &Arc<History> {
        &self.0.history
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.0.seed
    }

    /// A generator of random numbers, another one at each call, the same under the same seed.
    pub fn rng(&self) -> StdRng {
        let drawn = self.0.drawn.fetch_add(1, Ordering::Relaxed);
        StdRng::seed_from_u64(self.0.seed.rotate_left(17) ^ drawn)
    }

    /// A number from `least` to `most`, both included.
    pub fn pick(&self, least: usize, most: usize) -> usize {
        self.rng().random_range(least..=most)
    }

    /// Another connection, as another process would have it.
    ///
    /// # Errors
    /// As the backend's connect.
    pub async fn connect(&self) -> Result<Arc<dyn Transport>> {
        self.connect_with(Vec::new()).await
    }

    /// A connection with hooks around it, the first one innermost.
    ///
    /// # Errors
    /// As the backend's connect.
    pub async fn connect_with(&self, hooks: Vec<Arc<dyn Hooks>>) -> Result<Arc<dyn Transport>> {
        let mut transport = self.0.broker.connect().await?;
        for hooks in hooks {
            transport = Intercept::layer(transport, hooks);
        }
        if self.0.variant == Variant::Layered {
            transport = Intercept::layer(transport, Arc::new(PassThrough));
        }
        if self.0.shaken {
            transport = Intercept::layer(transport, Shake::new(self.rng().random()));
        }
        Ok(transport)
    }

    /// A connection of a process that dies on [`Crash::now`].
    ///
    /// # Errors
    /// As the backend's connect.
    pub async fn connect_mortal(&self) -> Result<(Arc<dyn Transport>, Arc<Crash>)> {
        let crash = Crash::new();
        let transport = self.connect_with(vec![Arc::clone(&crash) as _]).await?;
        Ok((transport, crash))
    }

    /// A topic of this trial.
    ///
    /// # Errors
    /// When the name breaks a rule.
    pub fn topic(&self, name: &str) -> Result<Topic> {
        Topic::new(name)
    }

    /// A group of this trial.
    ///
    /// # Errors
    /// When the name breaks a rule.
    pub fn group(&self, name: &str) -> Result<Group> {
        Group::new(name)
    }

    /// A subscription with the trial's lease.
    pub fn subscription(&self, topic: &Topic, group: &str) -> Subscription {
        Subscription::new(topic.as_str())
            .group(group)
            .lease(self.lease())
    }

    /// A message with a payload, a key, headers and attributes drawn from the seed.
    pub fn message(&self, topic: &Topic) -> Message {
        let mut rng = self.rng();
        let size = match rng.random_range(0..10) {
            0 => 0,
            1 => rng.random_range(1000..20_000),
            _ => rng.random_range(1..200),
        };
        let mut payload = vec![0; size];
        rng.fill(payload.as_mut_slice());
        let id = format!("m-{:016x}", rng.random::<u64>());
        let mut message = Message::assemble(topic.clone(), id, payload.into());
        if rng.random_ratio(1, 2) {
            message = message.key(format!("key-{}", rng.random_range(0..4)));
        }
        if rng.random_ratio(1, 2) {
            message = message.header("x-number", rng.random::<u32>().to_string());
        }
        if rng.random_ratio(1, 4) {
            message = message.header("x-text", "größer als 漢字 🦀");
        }
        if rng.random_ratio(1, 4) {
            message = message
                .kind("trial.made")
                .correlation_id(format!("c-{}", rng.random::<u32>()));
        }
        message
    }

    /// Several of them.
    pub fn messages(&self, topic: &Topic, count: usize) -> Vec<Message> {
        (0..count).map(|_| self.message(topic)).collect()
    }

    /// A point in time by which something that has to happen must have happened.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.0.timing.patience
    }

    /// Waits for something that has to happen within the trial's patience.
    ///
    /// # Errors
    /// When it does not, saying what was waited for.
    pub async fn soon<T>(&self, what: &str, future: impl Future<Output = T>) -> Result<T, Failure> {
        self.within(self.0.timing.patience, what, future).await
    }

    /// Waits for something that has to happen within `limit`.
    ///
    /// # Errors
    /// When it does not, saying what was waited for.
    pub async fn within<T>(
        &self,
        limit: Duration,
        what: &str,
        future: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        tokio::time::timeout(limit, future)
            .await
            .map_err(|_| format!("{what} did not happen within {limit:?}").into())
    }

    /// Watches that something does not happen, for as long as the harness says.
    ///
    /// # Errors
    /// When it does.
    pub async fn never<T: fmt::Debug>(
        &self,
        what: &str,
        future: impl Future<Output = T>,
    ) -> Verdict {
        match tokio::time::timeout(self.0.timing.quiet, future).await {
            Ok(happened) => Err(format!("{what} happened: {happened:?}").into()),
            Err(_) => Ok(()),
        }
    }

    /// Publishes through the transport itself and waits for the receipts; recorded.
    ///
    /// # Errors
    /// The first failure among the messages.
    pub async fn publish_raw(
        &self,
        transport: &Arc<dyn Transport>,
        batch: Vec<Message>,
    ) -> Result<Vec<mas_transport_core::Receipt>, Failure> {
        let outcomes = self.try_publish_raw(transport, batch).await;
        Ok(outcomes.into_iter().collect::<Result<_>>()?)
    }

    /// As [`Ctx::publish_raw`], with the outcome of each message.
    pub async fn try_publish_raw(
        &self,
        transport: &Arc<dyn Transport>,
        batch: Vec<Message>,
    ) -> Vec<Result<mas_transport_core::Receipt>> {
        let history = &self.0.history;
        for message in &batch {
            history.publishing(0, message);
        }
        let ids: Vec<_> = batch.iter().map(|m| m.id().to_owned()).collect();
        let outcomes = transport.publish(batch, self.deadline()).await.await;
        for (id, outcome) in ids.into_iter().zip(&outcomes) {
            history.published(id, outcome);
        }
        outcomes
    }

    /// Joins a group at the level of the transport; recorded.
    ///
    /// # Errors
    /// As [`Transport::subscribe`].
    pub async fn join_raw(
        &self,
        transport: &Arc<dyn Transport>,
        subscription: &Subscription,
    ) -> Result<RawMember> {
        let source = transport.subscribe(subscription).await?;
        Ok(RawMember::new(self, source, subscription))
    }

    pub(crate) fn next_number(&self) -> u32 {
        let number = self.0.numbers.fetch_add(1, Ordering::Relaxed);
        u32::try_from(number).unwrap_or(u32::MAX)
    }

    /// Judges the history so far; the runner does it after every trial that ended well.
    ///
    /// # Errors
    /// What the checker found.
    pub fn judge(&self) -> Verdict {
        let rules = Rules::of(&self.0.info.capabilities, self.0.timing.slack);
        let excused = self
            .0
            .excused
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let findings: Vec<_> = check(&self.0.history.entries(), &rules)
            .into_iter()
            .filter(|f| !excused.contains(&f.flaw))
            .map(|f| format!("\n    {f}"))
            .take(10)
            .collect();
        if findings.is_empty() {
            return Ok(());
        }
        Err(format!("the history has flaws:{}", findings.concat()).into())
    }

    /// Leaves a flaw to the trial, which provokes it on purpose or judges it itself; say why
    /// where it is called.
    pub fn excuse(&self, flaw: Flaw) {
        let mut excused = self
            .0
            .excused
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        excused.push(flaw);
    }

    /// Records a fault, from just before it begins and from just after it has ended.
    pub fn fault(&self, what: Trouble, on: bool) {
        self.0.history.push(Happened::Fault { what, on });
    }

    /// Records that entries of a topic were taken away behind the library's back.
    pub fn taken(&self, topic: &Topic) {
        self.0.history.push(Happened::Taken {
            topic: topic.to_string(),
        });
    }

    /// Records that whatever has not come by now will not come: the checker judges what is lost
    /// and what is stuck, for every group that still has a member.
    pub fn drained(&self) {
        self.0.history.push(Happened::Drained);
    }

    /// Writes an entry as a foreign program would ([`Ability::Inject`](crate::Ability)).
    ///
    /// # Errors
    /// As the harness.
    pub async fn inject(&self, topic: &Topic, fields: Vec<(Bytes, Bytes)>) -> Verdict {
        self.0.history.push(Happened::Injected {
            topic: topic.to_string(),
        });
        if self.0.broker.breaks_clients(&fields) {
            self.fault(Trouble::Cut, true);
            self.fault(Trouble::Cut, false);
        }
        self.0.broker.inject(topic, fields).await
    }

    /// Writes a line for people into the history.
    pub fn note(&self, text: impl Into<String>) {
        self.0.history.push(Happened::Note(text.into()));
    }
}
