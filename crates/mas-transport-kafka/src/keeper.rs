//! What has to be done for a member beside reading and committing: partitions that come and go, logs
//! that are not where they were, topics that are gone, and the end.

mod end;
mod places;

use std::sync::Arc;
use std::time::Duration;

use mas_transport_core::backend::{Wait, lock};
use mas_transport_core::{ErrorKind, Event, StartFrom};
use rdkafka::consumer::Consumer as _;
use rdkafka::message::Message as _;
use tokio::time::{Instant, sleep, sleep_until};

use crate::commit::{AGAIN, Done, commit};
use crate::consumer::{self, Change, Consumer, list};
use crate::fetch;
use crate::member::{Member, now};
use crate::record::Raw;

/// How long the keeper waits at most before it asks the client whether there is anything: a wake-up of
/// the client may be lost (rdkafka issue 665).
const AT_LEAST: Duration = Duration::from_millis(500);

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
        joined: false,
        lost: None,
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
    /// The group has let it in.
    joined: bool,
    /// Since when the group goes on without this member, while a broker can be reached.
    lost: Option<Instant>,
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
                Change::Assigned(partitions) => {
                    self.joined = true;
                    self.lost = None;
                    self.take_over(&consumer, partitions).await;
                }
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
        } else if elsewhere || std::mem::take(&mut self.astray) || self.is_left_out() {
            // What happened is told when it is known where the group stands.
            self.begin_anew(None).await;
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
        self.lost = Some(Instant::now());
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

    /// Partitions are to be somebody else's.
    fn revoke(&mut self, consumer: &Consumer, partitions: Vec<i32>) {
        let member = &self.member;
        if consumer.assignment_lost() {
            tracing::debug!(topic = %member.topic, "the group went on without this member");
            self.lost = Some(Instant::now());
            return self.release(consumer, &partitions);
        }
        let config = &member.shared.asker.config;
        let notice = match self.subscribed {
            // Nobody hears any more that leases are cut short: they are not.
            true if member.closing.is_cancelled() => lock(&member.state).share.lease(),
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
                Some(Ok(())) => {
                    self.subscribed = true;
                    self.joined = false;
                }
                other => tracing::debug!(?other, "joining again is tried later"),
            }
        }
    }

    /// Looks whether a broker can be reached again.
    async fn reconnect(&mut self, consumer: &Arc<Consumer>) {
        let topic = self.member.topic_name.clone();
        let asked = self.member.blocking(consumer, move |consumer| {
            consumer.fetch_metadata(Some(&topic), AT_LEAST).map(drop)
        });
        if let Some(Ok(())) = asked.await {
            let mut state = lock(&self.member.state);
            state.down = false;
            self.lost = self.lost.map(|_| Instant::now());
            state.control.push_back(Event::Reconnected);
            self.member.arrived.notify_one();
        }
    }

    /// Whether the client waits in vain to be let in again after its session had ended. A broker may take a
    /// request to join that came over a connection which is gone for the last one, and never answers the one
    /// that the client waits for, for five minutes.
    fn is_left_out(&self) -> bool {
        let config = &self.member.shared.asker.config;
        let session = 2 * config.session_timeout + Duration::from_secs(2);
        let lost = self.lost.is_some_and(|since| since.elapsed() > session);
        lost && self.subscribed && !lock(&self.member.state).down
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
        while let Err(error) = member
            .join("fetch", StartFrom::Earliest, &member.closing)
            .await
        {
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
        self.joined = false;
        self.lost = None;
    }
}

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
