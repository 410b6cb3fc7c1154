//! One member of one group: what its reader, its sweeper, its `fetch` and its settlements share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy};
use mas_transport_core::backend::{Inbox, Leases};
use mas_transport_core::{
    Error, ErrorKind, Event, Gap, Group, Result, StartFrom, Subscription, Token, Topic,
};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::BACKEND;
use crate::config::Storage;
use crate::connection::{Link, lock};
use crate::lease::{Lease, Origin};
use crate::notes::Progress;
use crate::ranges::Ranges;
use crate::reader;
use crate::streams::{Incarnation, incarnation, made_at};
use crate::sweep;
use crate::transport::Shared;

/// How long the last steps of closing may take after the deadline: a few round trips.
const GRACE: Duration = Duration::from_secs(1);

/// One member of one group.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) shared: Arc<Shared>,
    pub(crate) link: Arc<Link>,
    pub(crate) topic: Topic,
    pub(crate) group: Group,
    pub(crate) lease: Duration,
    pub(crate) inbox: Inbox,
    pub(crate) leases: Mutex<Leases<Lease>>,
    pub(crate) place: Mutex<Place>,
    /// Taken out of the inbox when it was closed, to be returned.
    unfetched: Mutex<Vec<Token>>,
    /// Something was settled since the topic was last trimmed.
    settled: AtomicBool,
    joined: AtomicU64,
    joining: tokio::sync::Mutex<()>,
    pub(crate) looking: tokio::sync::Mutex<()>,
    known: tokio::sync::Mutex<Known>,
    /// The connection since which that was looked at.
    checked: AtomicU64,
    /// No more is read.
    pub(crate) closing: CancellationToken,
    /// The reader has ended: what is given back does not come to it again.
    pub(crate) left: CancellationToken,
    /// The deadline of `close` has passed.
    force: CancellationToken,
    closed: CancellationToken,
    /// Ends every task of this member.
    abandon: CancellationToken,
    released: Notify,
}

/// Where the group stands, as far as this member knows.
#[derive(Debug, Default)]
pub(crate) struct Place {
    /// Which stream it is, and which consumer of it.
    pub(crate) incarnation: Incarnation,
    pub(crate) made: Incarnation,
    /// All up to here is settled, or was told as lost.
    pub(crate) floor: u64,
    /// The newest note of that, and what it says, if there is one of this stream.
    pub(crate) note: u64,
    pub(crate) noted: Option<u64>,
    /// All up to here is gone from the stream.
    pub(crate) before: u64,
    /// Since when there is something to be removed.
    pub(crate) waiting: Option<Instant>,
    /// The topic was near a bound when it was last looked at.
    pub(crate) crowded: bool,
    /// How far members are known to have trimmed.
    pub(crate) trimmed: u64,
    /// When the newest entry was stored that came to this member, by the server's clock, in nanoseconds.
    pub(crate) newest: u64,
    /// What this member settled above the floor.
    pub(crate) settled: Ranges,
    /// The same, not sorted in yet.
    pub(crate) fresh: Vec<u64>,
    /// Deliveries to all members when the group was last looked at, and to this one since.
    pub(crate) delivered: u64,
    pub(crate) received: u64,
}

/// What the group's server knows of.
///
/// A server writes behind what it sent and what was settled (2.9 to 2.15). One that was killed confirms
/// the settlement of an entry that it does not know to have sent, and sends it all the same; and what it
/// knows to be unsettled it sends again at once, whoever holds it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// Over which connection it was asked.
    epoch: u64,
    /// The server's process, where it is the only one: in a cluster another one may lead the group.
    process: Option<Arc<str>>,
    /// The last entry that it knew to have sent when it was asked.
    last: u64,
}

impl Known {
    /// Whether the server no longer knows of a lease, or has sent its entry again.
    pub(crate) fn forgot(&self, origin: &Origin, sequence: u64) -> bool {
        let restarted = self.process.as_ref().is_some_and(|p| *p != origin.process);
        restarted || origin.epoch != self.epoch && sequence > self.last
    }
}

impl Place {
    /// Sorts in what was settled since.
    pub(crate) fn sort_in(&mut self) {
        let fresh = std::mem::take(&mut self.fresh);
        self.settled.add(fresh);
    }
}

impl Member {
    /// Joins the group and begins to read.
    pub(crate) async fn start(
        shared: Arc<Shared>,
        subscription: &Subscription,
    ) -> Result<Arc<Self>> {
        let (topic, group) = (subscription.get_topic()?, subscription.get_group()?);
        if !topic.is_internal() {
            let letters = Topic::dead_letters(&topic, &group);
            shared.streams.keys.check("subscribe", &letters)?;
        }
        let member = Arc::new(Self {
            link: shared.link.clone(),
            lease: subscription.get_lease(),
            inbox: Inbox::new(BACKEND),
            leases: Mutex::default(),
            place: Mutex::default(),
            unfetched: Mutex::default(),
            settled: AtomicBool::new(true),
            joined: AtomicU64::new(0),
            joining: tokio::sync::Mutex::default(),
            looking: tokio::sync::Mutex::default(),
            known: tokio::sync::Mutex::default(),
            checked: AtomicU64::new(0),
            closing: CancellationToken::new(),
            left: CancellationToken::new(),
            force: CancellationToken::new(),
            closed: CancellationToken::new(),
            abandon: CancellationToken::new(),
            released: Notify::new(),
            shared,
            topic,
            group,
        });
        // A task of its own, so that a dropped call is not half done.
        let joining = {
            let member = member.clone();
            let start = subscription.get_start();
            member.shared.tasks.clone().spawn(async move {
                member.join(start).await?;
                let epoch = member.link.epoch();
                member.known("subscribe", epoch).await?;
                member.checked.store(epoch, Ordering::Release);
                member.look().await
            })
        };
        joining
            .await
            .unwrap_or_else(|_| Err(Error::closed("subscribe").on(BACKEND)))?;
        let reading = TaskTracker::new();
        member.spawn(reading.track_future(reader::run(member.clone())));
        member.spawn(reading.track_future(sweep::run(member.clone())));
        reading.close();
        member.spawn(member.clone().finish(reading));
        Ok(member)
    }

    /// Runs a task that ends when the member is abandoned, if not before.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let abandon = self.abandon.clone();
        self.shared.tasks.spawn(async move {
            abandon.run_until_cancelled(task).await;
        });
    }

    /// How often the group had been joined: to be read before a request that may find it gone.
    pub(crate) fn joined(&self) -> u64 {
        self.joined.load(Ordering::Acquire)
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        lock(&self.place).incarnation
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

    /// Creates or finds topic and group.
    async fn join(&self, start: StartFrom) -> Result<()> {
        let shared = &self.shared;
        let named = |e: Error| e.with("topic", &self.topic).with("group", &self.group);
        let stream = shared.streams.ensure("subscribe", &self.topic).await?;
        let current = incarnation(&stream);
        let note = shared.notes.progress(&self.topic, &self.group).await;
        let note = note.map_err(named)?;
        let known = Some(self.incarnation()).filter(|known| *known != 0);
        let before = known.or(note.map(|(_, progress)| progress.incarnation));
        let lost = before.is_some_and(|before| before != current);
        // Where the group stood, if it did in this stream.
        let mut floor = note.and_then(|(_, p)| (p.incarnation == current).then_some(p.floor));
        if let Some(floor) = floor.as_mut().filter(|_| known == Some(current)) {
            let mut place = lock(&self.place);
            place.sort_in();
            *floor = place.settled.reach(place.floor.max(*floor));
        }
        let found = shared
            .streams
            .find_group("subscribe", &self.topic, &self.group)
            .await?;
        let made = found.is_none();
        let info = match found {
            Some(info) => info,
            None => {
                let from = match (floor, start) {
                    (Some(0), _) => DeliverPolicy::All,
                    (Some(floor), _) => DeliverPolicy::ByStartSequence {
                        start_sequence: floor + 1,
                    },
                    (None, StartFrom::Latest) if !lost => DeliverPolicy::New,
                    (None, _) => DeliverPolicy::All,
                };
                let making = shared
                    .streams
                    .make_group(&self.topic, &self.group, self.lease, from);
                making.await?
            }
        };
        self.agree(&info)?;
        if lost {
            self.inbox.control(Event::Gap(Gap {
                topic: self.topic.clone(),
                reason: "the stream was deleted, or the server lost its data; this group begins \
                         with what is there now"
                    .to_owned(),
                lost: None,
            }));
        } else if made && let Some(floor) = floor {
            tracing::warn!(topic = %self.topic, group = %self.group, "made the group again");
            // Nobody kept for it what it had not settled.
            if stream.state.first_sequence > floor + 1 {
                self.gap(None);
            }
        }
        let floor = floor.unwrap_or(info.ack_floor.stream_sequence);
        {
            let mut place = lock(&self.place);
            *place = Place {
                incarnation: current,
                made: made_at(&info),
                floor,
                note: note.map_or(0, |(at, _)| at),
                delivered: info.delivered.consumer_sequence,
                ..Place::default()
            };
        }
        match self.note().await {
            // A full store stays full unless somebody settles what is in it.
            Err(error) if error.kind() == ErrorKind::Full => {
                tracing::debug!(%error, "how far the group has come is noted when there is room");
            }
            noted => noted.map_err(named)?,
        }
        self.joined.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Whether a group is one that this library can use, with the lease that is asked for.
    fn agree(&self, info: &consumer::Info) -> Result<()> {
        let config = &info.config;
        if config.ack_wait != self.lease {
            let why = "the group has another lease: all members of a group ask for the same one";
            return Err(self
                .error(ErrorKind::Conflict, "subscribe", why)
                .with("lease_ms", self.lease.as_millis())
                .with("group_lease_ms", config.ack_wait.as_millis()));
        }
        let mut differs = Vec::new();
        if config.ack_policy != AckPolicy::Explicit {
            differs.push(format!(
                "ack policy is {:?}, wanted Explicit",
                config.ack_policy
            ));
        }
        if config.deliver_subject.is_some() {
            differs.push("it is a push consumer, wanted a pull consumer".to_owned());
        }
        if config.max_deliver > 0 {
            differs.push(format!("max deliver is {}, wanted -1", config.max_deliver));
        }
        if !config.filter_subject.is_empty() || !config.filter_subjects.is_empty() {
            differs.push("it filters subjects, wanted none".to_owned());
        }
        if config.headers_only {
            differs.push("it leaves payloads out".to_owned());
        }
        if !config.backoff.is_empty() {
            differs.push("it has a backoff, which makes leases shorter".to_owned());
        }
        if config.max_batch > 0 && config.max_batch < reader::COUNT as i64 {
            differs.push(format!("max batch is {}, wanted none", config.max_batch));
        }
        if config.memory_storage && self.link.config.storage == Storage::File {
            differs.push("it keeps what is settled in memory".to_owned());
        }
        if !config.inactive_threshold.is_zero() {
            differs.push("it is removed when nobody reads for a while".to_owned());
        }
        if !config.max_expires.is_zero() && config.max_expires < reader::LONG {
            differs.push(format!(
                "max expires is {:?}, wanted none",
                config.max_expires
            ));
        }
        if differs.is_empty() {
            return Ok(());
        }
        let why = "a consumer of the group's name exists with another configuration: choose another \
                   group, or delete it (nats consumer rm)";
        Err(self
            .error(ErrorKind::Conflict, "subscribe", why)
            .with("differs", differs.join("; ")))
    }

    /// Joins again because the group was found gone by a request sent when [`joined`](Self::joined)
    /// said `seen`. All leases are lost with the group.
    pub(crate) async fn rejoin(self: &Arc<Self>, seen: u64) -> Result<()> {
        // A task of its own, so that a member that closes does not leave it half done.
        let member = self.clone();
        let joining = self
            .shared
            .tasks
            .spawn(async move { member.join_again(seen).await });
        joining
            .await
            .unwrap_or_else(|_| Err(Error::closed("fetch").on(BACKEND)))
    }

    async fn join_again(&self, seen: u64) -> Result<()> {
        let _one = self.joining.lock().await;
        if self.joined() != seen {
            return Ok(());
        }
        let streams = &self.shared.streams;
        streams.forget(&self.topic);
        // Only when it is: a server that is starting answers nothing either.
        let (known, made) = {
            let place = lock(&self.place);
            (place.incarnation, place.made)
        };
        let stream = streams.find("fetch", &self.topic).await?;
        if stream.is_some_and(|info| incarnation(&info) == known) {
            let group = streams.find_group("fetch", &self.topic, &self.group);
            if group.await?.is_some_and(|info| made_at(&info) == made) {
                return Ok(());
            }
        }
        let joined = self.join(StartFrom::Earliest).await;
        // Of what came before nothing is leased any more, whether or not there is a new group.
        let buffered = self.inbox.revoke();
        let mut tokens = lock(&self.leases).revoke_all();
        self.released.notify_waiters();
        tokens.retain(|token| !buffered.contains(token));
        if !tokens.is_empty() {
            self.inbox.control(Event::Revoked(tokens));
        }
        joined
    }

    /// Which leases the group's server knows of, asked once for each connection.
    pub(crate) async fn known(&self, operation: &'static str, epoch: u64) -> Result<Known> {
        let mut known = self.known.lock().await;
        if known.epoch != epoch {
            let streams = &self.shared.streams;
            let found = streams.find_group(operation, &self.topic, &self.group);
            let found = found.await?;
            // After the answer, which came over the connection that this tells of.
            let process = self.link.process();
            if self.link.epoch() != epoch {
                return Err(self.link.broken(operation));
            }
            let alone = found.as_ref().is_none_or(|info| info.cluster.is_none());
            *known = Known {
                epoch,
                process: alone.then_some(process),
                last: found.map_or(0, |info| info.delivered.stream_sequence),
            };
        }
        Ok(known.clone())
    }

    /// Gives up what the server has forgotten to have sent, if it may have forgotten anything since.
    pub(crate) async fn recheck(self: &Arc<Self>) -> Result<()> {
        let epoch = self.link.epoch();
        if self.checked.load(Ordering::Acquire) == epoch {
            return Ok(());
        }
        let known = self.known("settle", epoch).await?;
        let forgotten = |lease: &Lease| known.forgot(&lease.origin, lease.sequence);
        let mut tokens = lock(&self.leases).revoke(forgotten);
        self.checked.store(epoch, Ordering::Release);
        if tokens.is_empty() {
            return Ok(());
        }
        tracing::debug!(count = tokens.len(), topic = %self.topic, "the server forgot what it had sent");
        self.released.notify_waiters();
        let (gone, kept) = self
            .inbox
            .revoke()
            .into_iter()
            .partition::<Vec<_>, _>(|token| tokens.contains(token));
        tokens.retain(|token| !gone.contains(token));
        if !tokens.is_empty() {
            self.inbox.control(Event::Revoked(tokens));
        }
        // A task of its own, so that a member that closes does not leave them half returned.
        let member = self.clone();
        self.spawn(async move { member.give_back(kept).await });
        Ok(())
    }

    /// How long one wait of the reader and of the sweeper may be: short against the lease.
    pub(crate) fn patience(&self) -> Duration {
        (self.lease / 8).min(Duration::from_secs(1))
    }

    /// Notes how far the group has come, if that is news. What somebody else noted meanwhile counts too.
    pub(crate) async fn note(&self) -> Result<()> {
        let (progress, last) = {
            let place = lock(&self.place);
            if place.noted == Some(place.floor) {
                return Ok(());
            }
            (Progress::new(place.incarnation, place.floor), place.note)
        };
        let notes = &self.shared.notes;
        if let Some(at) = notes
            .advance(&self.topic, &self.group, progress, last)
            .await?
        {
            let mut place = lock(&self.place);
            place.note = at;
            place.noted = Some(progress.floor);
            return Ok(());
        }
        self.learn().await
    }

    /// Takes over what somebody noted of the group.
    pub(crate) async fn learn(&self) -> Result<()> {
        let notes = &self.shared.notes;
        let found = notes.progress(&self.topic, &self.group).await?;
        let mut place = lock(&self.place);
        // One of an earlier stream is replaced by the next attempt, and so is one that was removed.
        place.note = found.map_or(0, |(at, _)| at);
        place.noted = None;
        if let Some((_, theirs)) = found
            && theirs.incarnation == place.incarnation
        {
            place.noted = Some(theirs.floor);
            place.floor = place.floor.max(theirs.floor);
        }
        Ok(())
    }

    /// Says that entries are gone that this group had not settled.
    pub(crate) fn gap(&self, lost: Option<u64>) {
        self.inbox.control(Event::Gap(Gap {
            topic: self.topic.clone(),
            reason: "entries were deleted or trimmed before this group had settled them".to_owned(),
            lost,
        }));
    }

    /// Notes that entries were settled, for trimming and for gaps.
    pub(crate) fn settled(&self, sequences: impl IntoIterator<Item = u64>) {
        lock(&self.place).fresh.extend(sequences);
        self.settled.store(true, Ordering::Relaxed);
    }

    /// Whether something was settled since this was last asked.
    pub(crate) fn take_settled(&self) -> bool {
        self.settled.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn trim_later(&self) {
        self.settled.store(true, Ordering::Relaxed);
    }

    /// Wakes those who wait for the last settlement.
    pub(crate) fn released(&self) {
        if lock(&self.leases).out() == 0 {
            self.released.notify_waiters();
        }
    }

    /// Keeps deliveries for [`finish`](Self::finish) to return.
    pub(crate) fn keep_back(&self, tokens: Vec<Token>) {
        lock(&self.unfetched).extend(tokens);
    }

    /// Ends reading at once: `fetch` answers `Closed` from now on. What was buffered is returned by
    /// [`finish`](Self::finish), because whoever closes may give up waiting.
    pub(crate) fn stop(&self) {
        let buffered = self.inbox.close();
        lock(&self.unfetched).extend(buffered);
        self.closing.cancel();
    }

    /// Stops, and waits until no token is out or `deadline`, after which the rest is made available
    /// to others, if the server answers. Idempotent.
    pub(crate) async fn close(&self, deadline: Instant) {
        self.stop();
        if timeout_at(deadline, self.closed.cancelled()).await.is_err() {
            self.force.cancel();
            let _ = timeout(GRACE, self.closed.cancelled()).await;
        }
        self.abandon.cancel();
        self.closed.cancel();
    }

    /// What remains to be done when reading has ended.
    async fn finish(self: Arc<Self>, reading: TaskTracker) {
        self.closing.cancelled().await;
        // The reader first: what is returned must not come back to it.
        reading.wait().await;
        let buffered = std::mem::take(&mut *lock(&self.unfetched));
        self.give_back(buffered).await;
        loop {
            let released = self.released.notified();
            let last = {
                let mut leases = lock(&self.leases);
                leases.expire(Instant::now());
                if leases.out() == 0 {
                    break;
                }
                leases.last_deadline()
            };
            let last = last.unwrap_or_else(Instant::now);
            tokio::select! {
                () = released => {}
                () = sleep_until(last) => {}
                () = self.force.cancelled() => {
                    self.release_rest().await;
                    break;
                }
            }
        }
        let house = async {
            self.look().await?;
            self.trim().await?;
            self.tidy().await
        };
        if let Err(error) = house.await {
            tracing::debug!(%error, "how far the group has come is noted by the next member");
        }
        self.closed.cancel();
    }

    /// Whether the member has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }
}
