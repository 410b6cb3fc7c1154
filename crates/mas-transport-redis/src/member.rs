//! One member of one group: what its reader, its sweeper, its `fetch` and its settlements share.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mas_transport_core::backend::{Inbox, Leases};
use mas_transport_core::{
    Error, ErrorKind, Event, Gap, Group, Position, Result, StartFrom, Subscription, Token, Topic,
};
use redis::Value;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::BACKEND;
use crate::bells::Bell;
use crate::connection::{Link, lock};
use crate::decode;
use crate::keys::{GroupKeys, MARKER};
use crate::lanes::Seat;
use crate::lease::{Lease, Owner};
use crate::reader;
use crate::scripts;
use crate::sweep;
use crate::transport::Shared;

/// How long the last steps of closing may take after the deadline: a few round trips.
const GRACE: Duration = Duration::from_secs(1);

/// One member of one group.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) shared: Arc<Shared>,
    /// The connection of this member's commands.
    pub(crate) link: Arc<Link>,
    pub(crate) topic: Topic,
    pub(crate) group: Group,
    pub(crate) keys: GroupKeys,
    pub(crate) lease: Duration,
    /// What the names of this member's consumers begin with: unique, so that nobody else's entries
    /// are ever taken for its own.
    name: String,
    pub(crate) inbox: Inbox,
    pub(crate) bell: Arc<Bell>,
    pub(crate) leases: Mutex<Leases<Lease>>,
    /// Consumers of this member under which something may stand that never arrived here.
    orphans: Mutex<Vec<Owner>>,
    /// Every consumer that was used, to be removed at the end.
    used: Mutex<Vec<Owner>>,
    /// What was buffered when reading ended.
    unfetched: Mutex<Vec<Token>>,
    /// Something was settled that trimming has not seen.
    settled: AtomicBool,
    incarnation: Mutex<String>,
    /// Counts the times when the group was joined.
    joined: AtomicU64,
    joining: tokio::sync::Mutex<()>,
    /// The first look for what is to be redelivered has been made: what others have returned comes
    /// before what nobody has had yet.
    pub(crate) swept: CancellationToken,
    /// Reading is to end.
    pub(crate) closing: CancellationToken,
    /// What is still out is to be returned.
    force: CancellationToken,
    closed: CancellationToken,
    /// There is no time left for anything.
    abandon: CancellationToken,
    /// A lease has ended.
    released: Notify,
}

impl Member {
    /// Joins the group and begins to read.
    pub(crate) async fn start(
        shared: Arc<Shared>,
        subscription: &Subscription,
    ) -> Result<Arc<Self>> {
        let (topic, group) = (subscription.get_topic()?, subscription.get_group()?);
        let name = subscription.get_member().unwrap_or("member");
        let seat = shared.lanes.seat(&shared.link, &shared.tasks);
        let member = Arc::new(Self {
            link: seat.link(),
            keys: GroupKeys::new(&shared.link.config.namespace, &topic, &group),
            lease: subscription.get_lease(),
            name: format!("{name}:{}", uuid::Uuid::now_v7().simple()),
            inbox: Inbox::new(BACKEND),
            bell: Arc::default(),
            leases: Mutex::default(),
            orphans: Mutex::default(),
            used: Mutex::default(),
            unfetched: Mutex::default(),
            settled: AtomicBool::new(true),
            incarnation: Mutex::default(),
            joined: AtomicU64::new(0),
            joining: tokio::sync::Mutex::default(),
            swept: CancellationToken::new(),
            closing: CancellationToken::new(),
            force: CancellationToken::new(),
            closed: CancellationToken::new(),
            abandon: CancellationToken::new(),
            released: Notify::new(),
            shared,
            topic,
            group,
        });
        let start = match subscription.get_start() {
            StartFrom::Latest => "$",
            _ => "0",
        };
        // Before the group is joined, so that no wake-up after that is missed.
        let bells = &member.shared.link;
        bells.listen(&member.keys.channel, &member.bell).await?;
        let link = &member.link;
        let joined = async {
            member.permitted().await?;
            member.join(start).await?;
            let check = link.run("subscribe", &scripts::CHECK, member.check());
            member.checked(&check.await?);
            Ok(())
        };
        if let Err(error) = joined.await {
            bells.unlisten(&member.keys.channel, &member.bell).await;
            return Err(error);
        }
        let reading = TaskTracker::new();
        member.spawn(reading.track_future(reader::run(member.clone())));
        member.spawn(reading.track_future(sweep::run(member.clone())));
        reading.close();
        member.spawn(member.clone().finish(reading, seat));
        Ok(member)
    }

    /// Runs a task that ends when the member is abandoned, if not before.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let abandon = self.abandon.clone();
        let tasks = &self.shared.tasks;
        tasks.spawn(async move {
            abandon.run_until_cancelled(task).await;
        });
    }

    /// The name of one of this member's consumers.
    pub(crate) fn consumer(&self, owner: Owner) -> String {
        format!("{}:{owner}", self.name)
    }

    /// Notes that a consumer is used from now on.
    pub(crate) fn uses(&self, owner: Owner) {
        lock(&self.used).push(owner);
    }

    /// Notes that an answer to `owner` may have been lost; the sweeper sees to it.
    pub(crate) fn lost_answer(&self, owner: Owner) {
        lock(&self.orphans).push(owner);
        self.bell.ring(Duration::ZERO);
    }

    /// The entries that stand under one of this member's consumers, as far as is known here.
    pub(crate) fn known(&self, owner: Owner) -> HashSet<Position> {
        let leases = lock(&self.leases);
        let owned = leases.iter().filter(|lease| lease.owner == owner);
        owned.map(|lease| lease.id).collect()
    }

    pub(crate) fn take_orphans(&self) -> Vec<Owner> {
        std::mem::take(&mut lock(&self.orphans))
    }

    /// How often the group had been joined: to be read before a command that may find it gone.
    pub(crate) fn joined(&self) -> u64 {
        self.joined.load(Ordering::Acquire)
    }

    pub(crate) fn incarnation(&self) -> String {
        lock(&self.incarnation).clone()
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

    /// Asks whether the user may do all that a member has to: what is not allowed would otherwise show
    /// late, and in a part only.
    async fn permitted(&self) -> Result<()> {
        let keys = &self.keys;
        let call = scripts::PERMITTED.call(&[&keys.stream, &keys.hash, &keys.groups, &keys.retry]);
        let answer = self.link.run("subscribe", &scripts::PERMITTED, call).await;
        let answer = decode::list(answer.map_err(|e| e.with("topic", &self.topic))?);
        let mut answer = answer.iter();
        let reach = answer.next().and_then(decode::number) == Some(1);
        let missing: Vec<String> = answer
            .filter_map(decode::text)
            .map(|name| format!("+{name}"))
            .collect();
        let why = match (missing.is_empty(), reach) {
            (true, false) => return Ok(()),
            (true, true) => {
                "the user may not use the keys of this topic: grant it ~mas:* (ACL SETUSER)"
                    .to_owned()
            }
            (false, _) => format!(
                "the user may not do what a consumer has to: grant it {} (ACL SETUSER)",
                missing.join(" ")
            ),
        };
        Err(Error::new(ErrorKind::Unauthorized, "subscribe", why)
            .on(BACKEND)
            .with("topic", &self.topic)
            .with("group", &self.group)
            .with("address", self.link.config.address()))
    }

    /// Creates or finds topic and group; what became of them since.
    async fn join(&self, start: &str) -> Result<String> {
        self.shared.register(&self.topic).await?;
        let keys = &self.keys;
        let known = self.incarnation();
        let fresh = uuid::Uuid::now_v7().simple().to_string();
        let mut call = scripts::JOIN.call(&[&keys.stream, &keys.hash, &keys.groups, &keys.retry]);
        call.arg(self.group.as_str())
            .arg(self.lease_ms())
            .arg(start)
            .arg(fresh)
            .arg(known)
            .arg(MARKER);
        let answer = self.link.run("subscribe", &scripts::JOIN, call).await;
        let answer = answer.map_err(|e| e.with("topic", &self.topic).with("group", &self.group))?;
        let parts = decode::list(answer);
        let [status, detail] = [0, 1].map(|i| {
            let text = parts.get(i).and_then(decode::text);
            text.unwrap_or_default().to_owned()
        });
        match status.as_str() {
            "lease" => Err(self
                .error(
                    ErrorKind::Conflict,
                    "subscribe",
                    "the group has another lease: all members of a group ask for the same one",
                )
                .with("lease_ms", self.lease_ms())
                .with("group_lease_ms", detail)),
            "version" => Err(self
                .error(
                    ErrorKind::Conflict,
                    "subscribe",
                    "the group was made by a version of this library that is too far from this one",
                )
                .with("format", detail)),
            _ => {
                *lock(&self.incarnation) = detail;
                self.joined.fetch_add(1, Ordering::AcqRel);
                if status == "lost" {
                    self.inbox.control(Event::Gap(Gap {
                        topic: self.topic.clone(),
                        reason: "the stream was deleted, or the server lost its data; \
                                 this group begins with what is there now"
                            .to_owned(),
                        lost: None,
                    }));
                }
                Ok(status)
            }
        }
    }

    /// Joins again because the group was found gone by a command sent when [`joined`](Self::joined)
    /// said `seen`. All leases are lost with the group.
    pub(crate) async fn rejoin(&self, seen: u64) -> Result<()> {
        let _one = self.joining.lock().await;
        if self.joined() != seen {
            return Ok(());
        }
        let status = self.join("0").await?;
        tracing::warn!(topic = %self.topic, group = %self.group, status, "joined the group again");
        let buffered = self.inbox.revoke();
        let mut tokens = lock(&self.leases).revoke_all();
        self.released.notify_waiters();
        tokens.retain(|token| !buffered.contains(token));
        if !tokens.is_empty() {
            self.inbox.control(Event::Revoked(tokens));
        }
        Ok(())
    }

    /// The lease in whole milliseconds, as the server counts it.
    pub(crate) fn lease_ms(&self) -> u64 {
        u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX)
    }

    /// How long one wait of the reader and of the sweeper may be: short against the lease.
    pub(crate) fn patience(&self) -> Duration {
        (self.lease / 8).min(Duration::from_secs(1))
    }

    /// How long one read may wait at the server.
    pub(crate) fn block(&self) -> Duration {
        self.patience().min(self.shared.link.config.block_timeout)
    }

    /// The call that looks for entries which were removed before the group was given them.
    pub(crate) fn check(&self) -> redis::Cmd {
        let mut call = scripts::CHECK.call(&[&self.keys.stream]);
        call.arg(self.group.as_str());
        call
    }

    /// Takes in the answer to [`check`](Self::check). One that failed is asked again before long.
    pub(crate) fn checked(&self, answer: &Value) {
        match decode::number(answer) {
            Some(lost) if lost != 0 => self.gap(u64::try_from(lost).ok()),
            _ => {}
        }
    }

    /// Says that entries are gone that this group had not settled.
    pub(crate) fn gap(&self, lost: Option<u64>) {
        self.inbox.control(Event::Gap(Gap {
            topic: self.topic.clone(),
            reason: "entries were deleted or trimmed before this group had settled them".to_owned(),
            lost,
        }));
    }

    /// Says that so many entries were found gone, if any were.
    pub(crate) fn missed(&self, count: u64) {
        if count > 0 {
            self.gap(Some(count));
        }
    }

    /// Notes a settlement for trimming, and for those who wait for the last one.
    pub(crate) fn released(&self) {
        self.settled.store(true, Ordering::Relaxed);
        if lock(&self.leases).out() == 0 {
            self.released.notify_waiters();
        }
    }

    /// Removes what all groups have settled, if anything was settled since.
    pub(crate) async fn trim(&self) {
        if !self.settled.swap(false, Ordering::Relaxed) {
            return;
        }
        let keys = &self.keys;
        let mut call = scripts::TRIM.call(&[&keys.stream, &keys.groups]);
        call.arg(MARKER).arg(keys.hashes.as_str());
        let link = &self.link;
        if let Err(error) = link.run("trim", &scripts::TRIM, call).await {
            self.settled.store(true, Ordering::Relaxed);
            tracing::debug!(%error, topic = %self.topic, "could not trim");
        }
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

    /// What remains to be done when reading has ended. The member's place on its connection is given
    /// back at the end.
    async fn finish(self: Arc<Self>, reading: TaskTracker, _seat: Seat) {
        self.closing.cancelled().await;
        let buffered = std::mem::take(&mut *lock(&self.unfetched));
        self.give_back(buffered).await;
        // What a read still brings finds the inbox closed and is returned there.
        reading.wait().await;
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
        for owner in self.take_orphans() {
            if let Err(error) = sweep::recover(&self, owner).await {
                tracing::debug!(%error, "entries of a lost answer come back when their lease ends");
            }
        }
        self.trim().await;
        self.leave().await;
        self.closed.cancel();
    }

    /// Makes what is still out available to others. It may have been handed out, so its attempts
    /// count.
    async fn release_rest(&self) {
        let now = Instant::now();
        let held = lock(&self.leases).held();
        let mut rest = Vec::with_capacity(held.len());
        for token in held {
            let lease = lock(&self.leases).settle(token, now);
            if let Some(lease) = lease {
                rest.push((lease, lease.count));
                lock(&self.leases).leave(token);
            }
        }
        if let Err(error) = self.return_entries(&rest).await {
            tracing::debug!(%error, "what was still out comes back when its lease ends");
        }
    }

    /// Removes this member's consumers, unless they still hold something.
    async fn leave(&self) {
        let bells = &self.shared.link;
        bells.unlisten(&self.keys.channel, &self.bell).await;
        let mut call = scripts::LEAVE.call(&[&self.keys.stream]);
        call.arg(self.group.as_str());
        for owner in lock(&self.used).iter() {
            call.arg(self.consumer(*owner));
        }
        if let Err(error) = self.link.run("close", &scripts::LEAVE, call).await {
            tracing::debug!(%error, "the consumers are left to be reaped");
        }
    }

    /// Whether the member has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }
}

/// Whether an answer says that stream or group is gone.
pub(crate) fn says_lost(answer: &Value) -> bool {
    match answer {
        Value::Array(items) => items.first().and_then(decode::text) == Some("lost"),
        _ => false,
    }
}
