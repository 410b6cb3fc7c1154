//! What has to be done for a member beside reading and committing: partitions that come and go, logs
//! that are not where they were, topics that are gone, and the end.

use std::sync::Arc;
use std::time::Duration;

use mas_transport_core::backend::{Wait, lock};
use mas_transport_core::{ErrorKind, Event, StartFrom};
use rdkafka::consumer::Consumer as _;
use rdkafka::message::Message as _;
use tokio::time::{Instant, sleep, sleep_until};

use crate::commit::{AGAIN, Done, commit};
use crate::consumer::{self, Change, Consumer, Standing, list};
use crate::fetch;
use crate::mark::Mark;
use crate::member::{Member, State, now};
use crate::record::Raw;
use crate::tracker::Tracker;

/// How long the keeper waits at most before it asks the client whether there is anything: a wake-up of
/// the client may be lost (rdkafka issue 665).
const AT_LEAST: Duration = Duration::from_millis(500);

/// How often it is looked whether partitions stand still.
const STALL: Duration = Duration::from_secs(5);

/// Partitions that are to be given up, and by when.
#[derive(Debug)]
struct Leaving {
    partitions: Vec<i32>,
    until: Instant,
    /// The client waits to hear that they are given up.
    asked: bool,
}

/// Looks after a member until it is closed.
pub(crate) async fn run(member: Arc<Member>) {
    let mut keeper = Keeper {
        member,
        leaving: Vec::new(),
        subscribed: true,
        quits: false,
        fresh: Vec::new(),
        places: Vec::new(),
        looked: Instant::now(),
        passed: None,
        astray: false,
    };
    while !keeper.member.closing.is_cancelled() {
        keeper.serve().await;
        let until = keeper.leaving.iter().map(|l| l.until).min();
        let until = until
            .unwrap_or_else(|| Instant::now() + AT_LEAST)
            .min(Instant::now() + AT_LEAST);
        tokio::select! {
            () = keeper.member.events.notified() => {}
            () = sleep_until(until) => {}
        }
    }
    keeper.end().await;
}

struct Keeper {
    member: Arc<Member>,
    leaving: Vec<Leaving>,
    /// It takes part in its group.
    subscribed: bool,
    /// It is about to leave it by itself.
    quits: bool,
    /// Partitions of which the client has said, since they were taken over, that it had come to nothing
    /// yet: what it says from then on is of this time, and not of an earlier one.
    fresh: Vec<i32>,
    /// What was to be read next when that was last looked at.
    places: Vec<(i32, u64)>,
    looked: Instant,
    /// When it was last asked how far the client has come; none if partitions came since.
    passed: Option<Instant>,
    /// The client has a commit under way that nobody waits for any more.
    astray: bool,
}

impl Keeper {
    fn consumer(&self) -> Option<Arc<Consumer>> {
        lock(&self.member.state).consumer.clone()
    }

    /// Does what is to be done now.
    async fn serve(&mut self) {
        let Some(consumer) = self.consumer() else {
            return;
        };
        self.listen(&consumer);
        if std::mem::take(&mut lock(&self.member.state).fenced) {
            self.lose(&consumer);
        }
        while let Some(change) = consumer.context().next_change() {
            match change {
                Change::Assigned(partitions) => self.take_over(&consumer, partitions).await,
                Change::Revoked(partitions) => self.revoke(&consumer, partitions),
            }
        }
        self.give_up(&consumer).await;
        self.take_part(&consumer).await;
        let (lost, gone, down) = {
            let mut state = lock(&self.member.state);
            (
                std::mem::take(&mut state.lost_place),
                std::mem::take(&mut state.topic_gone),
                state.down,
            )
        };
        if down {
            self.reconnect(&consumer).await;
        }
        let mut elsewhere = false;
        if !lost.is_empty() {
            elsewhere = self.find_place(&consumer, lost).await;
        }
        self.pass(&consumer).await;
        self.look_for_stalls(&consumer).await;
        // The client leaves its group when nobody has it any more.
        drop(consumer);
        if gone && self.is_gone().await {
            self.begin_anew(Some(DELETED)).await;
        } else if elsewhere || std::mem::take(&mut self.astray) {
            // What happened is told when it is known where the group stands.
            self.begin_anew(None).await;
        }
    }

    /// Asks how far the client has come in partitions in which nothing is open. Marks of transactions, and
    /// records that were taken back, stand at the end of a log like records that wait, and are gone one
    /// day like records that were lost.
    ///
    /// Whatever the client has handed out by now has been kept here, or is with the fetch that took it,
    /// which keeps it before it takes note of this.
    async fn pass(&mut self, consumer: &Arc<Consumer>) {
        if self.passed.is_some_and(|at| at.elapsed() < AT_LEAST) {
            return;
        }
        let idle = lock(&self.member.state).share.idle();
        if idle.is_empty() {
            return;
        }
        self.passed = Some(Instant::now());
        let asked = self.member.blocking(consumer, consumer::positions).await;
        let Some(Ok(positions)) = asked else {
            return;
        };
        let mut state = lock(&self.member.state);
        for (partition, position) in positions {
            match position {
                None if !self.fresh.contains(&partition) => self.fresh.push(partition),
                Some(position)
                    if self.fresh.contains(&partition)
                        && idle
                            .iter()
                            .any(|(p, next)| *p == partition && *next < position) =>
                {
                    state.passed.push((partition, position));
                    self.member.arrived.notify_one();
                }
                _ => {}
            }
        }
    }

    /// Hears what the client has to tell.
    fn listen(&self, consumer: &Consumer) {
        loop {
            let heard = consumer.context().heard();
            match consumer.poll(Duration::ZERO) {
                None if consumer.context().heard() == heard => return,
                None => {}
                // It was on its way when its partition got a queue of its own.
                Some(Ok(record)) => {
                    let (partition, offset) = (record.partition(), record.offset());
                    let raw = Raw::of(&record);
                    let mut state = lock(&self.member.state);
                    let offset = u64::try_from(offset).unwrap_or_default();
                    state.share.arrived(now(), partition, offset, raw);
                    self.member.arrived.notify_one();
                }
                Some(Err(told)) => fetch::trouble(&self.member, None, told),
            }
        }
    }

    /// The group went on without this member: nothing is its own any more, also while the client waits for
    /// partitions to be given up and does not say so.
    fn lose(&mut self, consumer: &Consumer) {
        let owned = lock(&self.member.state).share.partitions();
        forget(&self.member, &owned);
        for leaving in std::mem::take(&mut self.leaving) {
            match leaving.asked {
                true => self.release(consumer, &leaving.partitions),
                false => forget(&self.member, &leaving.partitions),
            }
        }
    }

    /// Partitions are this member's: takes them over as their last owner left them.
    async fn take_over(&mut self, consumer: &Arc<Consumer>, partitions: Vec<i32>) {
        let member = self.member.clone();
        let mut wait = Wait::new();
        let standings = loop {
            let asked = member
                .standings("fetch", consumer, partitions.clone())
                .await;
            let error = match asked {
                Ok(standings) => {
                    let mut marks = standings.iter().map(|s| member.mark("fetch", s));
                    match marks.find_map(Result::err) {
                        None => break standings,
                        Some(error) => error,
                    }
                }
                Err(error) => error,
            };
            tracing::debug!(%error, "where the group stands is asked again");
            // The client goes on meanwhile, and may have lost what it was given.
            self.listen(consumer);
            let missing = error.kind() == ErrorKind::NotFound;
            let lasting =
                missing || matches!(error.kind(), ErrorKind::Unauthorized | ErrorKind::Conflict);
            if lasting || consumer.assignment_lost() || member.closing.is_cancelled() {
                {
                    let mut state = lock(&member.state);
                    state.topic_gone |= missing;
                    if lasting && !missing {
                        state.error = Some(error);
                        member.arrived.notify_one();
                    }
                }
                consumer::answer(consumer, &member.topic_name);
                return;
            }
            tokio::select! {
                () = sleep(wait.next()) => {}
                () = member.closing.cancelled() => {}
            }
        };
        let mut from = Vec::with_capacity(standings.len());
        {
            let mut state = lock(&member.state);
            for standing in &standings {
                self.fresh.retain(|p| *p != standing.partition);
                let tracker = self.restore(&mut state, standing);
                from.push((standing.partition, Some(tracker.next())));
                state.share.own(standing.partition, tracker);
            }
        }
        for (partition, _) in &from {
            if let Some(mut queue) = consumer.split_partition_queue(&member.topic_name, *partition)
            {
                let arrived = member.arrived.clone();
                queue.set_nonempty_callback(move || arrived.notify_one());
                lock(&member.state)
                    .queues
                    .push((*partition, Arc::new(queue)));
            }
        }
        let assigned =
            list(&member.topic_name, &from).and_then(|l| consumer.incremental_assign(&l));
        self.passed = None;
        consumer.context().answered();
        if let Err(told) = assigned {
            // It was taken away meanwhile, which the client tells next.
            tracing::debug!(error = %told, "partitions could not be taken over");
        }
        member.dirty.notify_one();
        member.arrived.notify_one();
    }

    /// What is known of a partition that is taken over.
    fn restore<T>(&self, state: &mut State, standing: &Standing) -> Tracker<T> {
        let (low, high) = (standing.low, standing.high);
        let Some((position, metadata)) = &standing.committed else {
            return Tracker::restored(low, None, high);
        };
        if *position > high {
            self.member.gap(state, BEFORE, None);
            return Tracker::restored(low, None, high);
        }
        // What nobody can read was refused before.
        let mark = Mark::decode(metadata).ok().flatten();
        let mut tracker = Tracker::restored(*position, mark.as_ref(), high);
        if *position < low {
            let lost = tracker.skip_to(low);
            if lost > 0 {
                self.member.gap(state, TRIMMED, Some(lost));
            }
        }
        tracker
    }

    /// Partitions are to be somebody else's.
    fn revoke(&mut self, consumer: &Consumer, partitions: Vec<i32>) {
        let member = &self.member;
        if consumer.assignment_lost() {
            tracing::debug!(topic = %member.topic, "the group went on without this member");
            return self.release(consumer, &partitions);
        }
        let config = &member.shared.asker.config;
        let notice = match self.subscribed {
            true => config.revocation_notice,
            // The client keeps its session no longer.
            false => config.revocation_notice.min(config.session_timeout / 4),
        };
        self.leave(partitions, Instant::now() + notice, true);
    }

    /// Nothing more is handed out of partitions, and what is held of them has until then.
    fn leave(&mut self, partitions: Vec<i32>, until: Instant, asked: bool) {
        let mut tokens = Vec::new();
        {
            let mut state = lock(&self.member.state);
            for partition in &partitions {
                tokens.extend(state.share.leave(*partition, until));
            }
            if !tokens.is_empty() {
                state.control.push_back(Event::Revoking { tokens, until });
                self.member.arrived.notify_one();
            }
        }
        self.leaving.push(Leaving {
            partitions,
            until,
            asked,
        });
    }

    /// Gives up what is free to be given up, or has to be.
    async fn give_up(&mut self, consumer: &Arc<Consumer>) {
        for leaving in std::mem::take(&mut self.leaving) {
            let over = Instant::now() >= leaving.until || consumer.assignment_lost();
            {
                let mut state = lock(&self.member.state);
                let free = leaving.partitions.iter().all(|p| state.share.is_free(*p));
                if !free && !over {
                    self.leaving.push(leaving);
                    continue;
                }
                let mut tokens = Vec::new();
                for partition in &leaving.partitions {
                    tokens.extend(state.share.take_back(*partition, now()));
                }
                if !tokens.is_empty() {
                    state.share.lapsed = true;
                    state.control.push_back(Event::Revoked(tokens));
                    self.member.arrived.notify_one();
                }
            }
            // Whoever has them next begins where this ends.
            let limit = Instant::now() + self.member.shared.asker.config.response_timeout;
            loop {
                let member = self.member.clone();
                let committed = commit(&member, Some(&leaving.partitions));
                tokio::pin!(committed);
                let done = loop {
                    tokio::select! {
                        done = &mut committed => break done,
                        // A broker that does not answer is not to keep a lost group from being noticed.
                        () = sleep(2 * AGAIN) => {
                            self.listen(consumer);
                            if consumer.assignment_lost() || Instant::now() >= limit {
                                // It may still arrive, of a time when the partition was this member's:
                                // not by a client that has joined again meanwhile.
                                self.astray = true;
                                break Done::Fenced;
                            }
                        }
                    }
                };
                if done != Done::Later || Instant::now() >= limit {
                    break;
                }
                sleep(AGAIN).await;
            }
            match leaving.asked {
                true => self.release(consumer, &leaving.partitions),
                false => forget(&self.member, &leaving.partitions),
            }
        }
    }

    /// Partitions are gone.
    fn release(&mut self, consumer: &Consumer, partitions: &[i32]) {
        forget(&self.member, partitions);
        self.leaving
            .retain(|l| !l.partitions.iter().any(|p| partitions.contains(p)));
        let given = consumer::unassign(consumer, &self.member.topic_name, partitions);
        consumer.context().answered();
        if let Err(told) = given {
            tracing::debug!(error = %told, "partitions could not be given up");
        }
    }

    /// A member whose handlers hang past their leases, and which takes nothing more, gives up its share
    /// until it does. Only then does it tell the client: that keeps the session of a group that it is about
    /// to leave no longer, and what is committed after its end is refused.
    async fn take_part(&mut self, consumer: &Arc<Consumer>) {
        let hangs = {
            let state = lock(&self.member.state);
            state.share.lapsed && !state.wants
        };
        if hangs && self.subscribed && !self.quits {
            tracing::debug!(topic = %self.member.topic, "the handlers hang: this member leaves its group");
            self.quits = true;
            let notice = self.member.shared.asker.config.revocation_notice;
            let owned = lock(&self.member.state).share.partitions();
            self.leave(owned, Instant::now() + notice, false);
            self.give_up(consumer).await;
        }
        if self.quits && self.leaving.iter().all(|l| l.asked) {
            self.quits = false;
            self.subscribed = false;
            let left = self
                .member
                .blocking(consumer, |consumer| consumer.unsubscribe());
            left.await;
        } else if !hangs && !self.subscribed {
            let topic = self.member.topic_name.clone();
            let joined = self
                .member
                .blocking(consumer, move |consumer| consumer.subscribe(&[&topic]));
            match joined.await {
                Some(Ok(())) => self.subscribed = true,
                other => tracing::debug!(?other, "joining again is tried later"),
            }
        }
    }

    /// The log of partitions may not hold what was to be read next; true when it is another log, in which
    /// what is held means nothing.
    async fn find_place(&mut self, consumer: &Arc<Consumer>, mut partitions: Vec<i32>) -> bool {
        let member = self.member.clone();
        partitions.sort_unstable();
        partitions.dedup();
        // Before it is asked how far the log reaches: it is read meanwhile.
        let places: Vec<(i32, u64)> = {
            let state = lock(&member.state);
            let place = |p: &i32| state.share.next(*p).map(|next| (*p, next));
            partitions.iter().filter_map(place).collect()
        };
        let partitions: Vec<i32> = places.iter().map(|(p, _)| *p).collect();
        if partitions.is_empty() {
            return false;
        }
        let asked = member
            .standings("fetch", consumer, partitions.clone())
            .await;
        let Ok(standings) = asked else {
            // Asked again with the next round.
            lock(&member.state).lost_place.extend(partitions);
            return false;
        };
        let place = |partition| places.iter().find(|(p, _)| *p == partition);
        if standings
            .iter()
            .any(|s| place(s.partition).is_some_and(|(_, next)| *next > s.high))
        {
            return true;
        }
        for standing in standings {
            let from = {
                let mut state = lock(&member.state);
                let Some(next) = state.share.next(standing.partition) else {
                    continue;
                };
                if next < standing.low {
                    let lost = state.share.skip_to(standing.partition, standing.low);
                    if lost > 0 {
                        member.gap(&mut state, TRIMMED, Some(lost));
                    }
                }
                next.max(standing.low)
            };
            let topic = member.topic_name.clone();
            let moved = member.blocking(consumer, move |consumer| {
                consumer.seek(
                    &topic,
                    standing.partition,
                    rdkafka::Offset::Offset(i64::try_from(from).unwrap_or(i64::MAX)),
                    Duration::from_secs(1),
                )
            });
            if let Some(Err(error)) = moved.await {
                tracing::debug!(%error, "reading on elsewhere is tried again");
                lock(&member.state).lost_place.push(standing.partition);
            }
        }
        member.dirty.notify_one();
        member.arrived.notify_one();
        false
    }

    /// Looks, now and then, whether partitions of which nothing comes have nothing: the client says only
    /// once that a log does not hold what it was to read next, and forgets it when partitions change hands.
    async fn look_for_stalls(&mut self, consumer: &Arc<Consumer>) {
        if self.looked.elapsed() < STALL {
            return;
        }
        self.looked = Instant::now();
        let places: Vec<(i32, u64)> = {
            let state = lock(&self.member.state);
            // Whoever wants nothing, or has not handed out what it read, reads nothing.
            if !state.wants || state.share.ready() > 0 {
                self.places.clear();
                return;
            }
            let share = &state.share;
            let owned = share.partitions().into_iter();
            owned
                .filter(|p| share.room(*p) > 0)
                .filter_map(|p| share.next(p).map(|next| (p, next)))
                .collect()
        };
        let before = std::mem::replace(&mut self.places, places);
        let still = |place: &&(i32, u64)| before.contains(place);
        let still: Vec<(i32, u64)> = self.places.iter().filter(still).copied().collect();
        if still.is_empty() {
            return;
        }
        let partitions = still.iter().map(|(p, _)| *p).collect();
        let asked = self.member.standings("fetch", consumer, partitions).await;
        let Ok(standings) = asked else {
            return;
        };
        let stalls = standings.iter().filter(|s| {
            let place = still.iter().find(|(p, _)| *p == s.partition);
            place.is_some_and(|(_, next)| *next < s.low || *next > s.high)
        });
        let mut state = lock(&self.member.state);
        state.lost_place.extend(stalls.map(|s| s.partition));
        if !state.lost_place.is_empty() {
            self.member.events.notify_one();
        }
    }

    /// Looks whether a broker can be reached again.
    async fn reconnect(&self, consumer: &Arc<Consumer>) {
        let topic = self.member.topic_name.clone();
        let asked = self.member.blocking(consumer, move |consumer| {
            consumer.fetch_metadata(Some(&topic), AT_LEAST).map(drop)
        });
        if let Some(Ok(())) = asked.await {
            let mut state = lock(&self.member.state);
            state.down = false;
            state.control.push_back(Event::Reconnected);
            self.member.arrived.notify_one();
        }
    }

    /// Whether the topic was deleted, and with it where the group stood.
    async fn is_gone(&self) -> bool {
        let member = &self.member;
        let topics = &member.shared.topics;
        topics.forget(&member.topic);
        let asked = match topics.find("fetch", &member.topic).await {
            Ok(None) => return true,
            // It was made again, and nobody knows where the group stood; or else it was there all the time.
            Ok(Some(known)) => match self.consumer() {
                Some(consumer) => {
                    let all = (0..known.partitions).collect();
                    member.standings("fetch", &consumer, all).await
                }
                None => Ok(Vec::new()),
            },
            Err(error) => Err(error),
        };
        match asked {
            Ok(standings) => standings.iter().all(|s| s.committed.is_none()),
            Err(_) => {
                // Asked again with the next round.
                lock(&member.state).topic_gone = true;
                false
            }
        }
    }

    /// Joins the group anew, with another client, in a topic that may have to be made again.
    async fn begin_anew(&mut self, why: Option<&str>) {
        let member = self.member.clone();
        let owned = lock(&member.state).share.partitions();
        if let Some(why) = why {
            member.gap(&mut lock(&member.state), why, None);
        }
        forget(&member, &owned);
        self.leaving.clear();
        member.dismiss().await;
        let mut wait = Wait::new();
        while let Err(error) = member.join("fetch", StartFrom::Earliest).await {
            member.dismiss().await;
            tracing::debug!(%error, "the topic is made again later");
            if !error.is_retryable() {
                lock(&member.state).error = Some(error);
                member.arrived.notify_one();
            }
            tokio::select! {
                () = sleep(wait.next()) => {}
                () = member.closing.cancelled() => return,
            }
        }
        self.subscribed = true;
        self.quits = false;
    }

    /// Waits until nothing is held, commits that everything is given up, and lets the client go.
    async fn end(mut self) {
        let member = self.member.clone();
        loop {
            {
                let mut state = lock(&member.state);
                state.share.advance(now());
                if state.share.live() == 0 {
                    break;
                }
            }
            if let Some(consumer) = self.consumer() {
                // The client is not to think that nobody is there any more.
                self.listen(&consumer);
                while let Some(change) = consumer.context().next_change() {
                    match change {
                        // Nothing is taken any more, and the group is not to wait for an answer.
                        Change::Assigned(_) => consumer::answer(&consumer, &member.topic_name),
                        Change::Revoked(partitions) => self.revoke(&consumer, partitions),
                    }
                }
                self.give_up(&consumer).await;
            }
            let soon = Instant::now() + AT_LEAST;
            let next = lock(&member.state)
                .share
                .next_due()
                .map_or(soon, |at| at.min(soon));
            tokio::select! {
                () = member.events.notified() => {}
                () = sleep_until(next) => {}
                () = member.force.cancelled() => {
                    lock(&member.state).share.return_all(now());
                    break;
                }
            }
        }
        let owned = lock(&member.state).share.partitions();
        let limit = Instant::now() + member.shared.asker.config.response_timeout;
        let leaving = async {
            while !owned.is_empty()
                && commit(&member, Some(&owned)).await == Done::Later
                && Instant::now() < limit
            {
                sleep(AGAIN).await;
            }
        };
        tokio::select! {
            () = leaving => {}
            () = async {
                member.force.cancelled().await;
                sleep(AT_LEAST).await;
            } => {}
        }
        forget(&member, &owned);
        member.dismiss().await;
        member.closed.cancel();
    }
}

const TRIMMED: &str = "entries were deleted or trimmed before this group had settled them";
const BEFORE: &str = "the log ends before the place where the group stood: the topic was made again, or the broker lost data";
const DELETED: &str = "the topic was deleted; this group begins with what is there now";

/// Forgets partitions: what is held of them is lost, and who waits for commits is told.
fn forget(member: &Arc<Member>, partitions: &[i32]) {
    let mut lost = Vec::new();
    {
        let mut state = lock(&member.state);
        state.queues.retain(|(p, _)| !partitions.contains(p));
        state.passed.retain(|(p, _)| !partitions.contains(p));
        let mut tokens = Vec::new();
        for partition in partitions {
            let (held, places) = state.share.release(*partition);
            tokens.extend(held);
            lost.extend(places);
        }
        if !tokens.is_empty() {
            state.control.push_back(Event::Revoked(tokens));
            member.arrived.notify_one();
        }
    }
    for place in lost {
        place.done(Err(member.moved()));
    }
}
