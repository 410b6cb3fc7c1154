//! Mutants of delivery (D).

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use conformance_tests::layers::{Hooks, Joined};
use mas_transport_core::mutation::Mutation;
use mas_transport_core::{
    Confirm, Durability, Error, ErrorKind, Event, Fetch, Message, Outcome, Position, Receipt,
    Result, Settle, Settled, Source, StartFrom, Subscription, Token, Topic, Transport, Want,
};
use tokio::time::Instant;

use crate::edits::{Edits, lock, pump, settle_quietly};
use crate::mutants;

mutants! {
    D1 every_hundredth_is_lost
        "each hundredth message gets a receipt and is never sent"
        = |_| {
            let count = AtomicU64::new(0);
            Edits::lost(move |_| count.fetch_add(1, Ordering::Relaxed) % 100 == 99)
        };
    D1 too_many_topics
        "messages beyond the hundredth topic get a receipt and are never sent"
        = |_| {
            let topics = Mutex::new(HashSet::new());
            Edits::lost(move |message| {
                let mut topics = lock(&topics);
                if topics.len() < 100 {
                    topics.insert(message.topic().clone());
                }
                !topics.contains(message.topic())
            })
        };
    D1 fetched_and_forgotten
        "the last delivery of a fetch of more than 16 is dropped on the floor"
        = |_| Arc::new(FetchForgets);
    D2 latest_is_earliest
        "a group that asks for the latest begins with the oldest entry"
        = |_| Edits::subscribe(|s| s.start_from(StartFrom::Earliest));
    D2 earliest_is_latest
        "a group that asks for the earliest begins with what comes next"
        = |_| Edits::subscribe(|s| s.start_from(StartFrom::Latest));
    D2 starts_at_the_first_fetch
        "a group that asks for the latest misses what is published before its first fetch"
        = |_| Arc::new(StartsLate::default());
    D2 rejoining_starts_anew
        "a member that asks for the latest moves its group, which exists, to the end"
        = |_| Arc::new(Rewinds::default());
    D3 gaps_stop_in_the_pump
        "the consumer pump swallows gap events"
        = |_| pump(Mutation::GapsSwallowed);
    D3 gaps_are_not_raised
        "the backend passes over what was lost without a word"
        = |_| Edits::event(|_, event| match event {
            Event::Gap(_) => None,
            other => Some(other),
        });
    D3 gaps_count_nothing
        "a gap says that nothing was lost"
        = |_| Edits::event(|_, event| match event {
            Event::Gap(mut gap) => {
                gap.lost = Some(0);
                Some(Event::Gap(gap))
            }
            other => Some(other),
        });
    D4 prefixes_share
        "what is published on `a.b` is published on `a` as well"
        = |_| Edits::publish(|batch| {
            let mut more = Vec::new();
            for message in batch.iter() {
                let parent = message.topic().as_str().rsplit_once('.');
                if let Some(Ok(parent)) = parent.map(|(p, _)| Topic::new(p)) {
                    more.push(message.clone().on_topic(parent));
                }
            }
            let asked = batch.len();
            batch.extend(more);
            Box::new(move |mut outcomes| {
                outcomes.truncate(asked);
                outcomes
            })
        });
    D4 case_is_folded
        "topics that differ only in case are one"
        = |_| Arc::new(FoldsCase);
    D4 long_names_are_cut
        "topics that have their first 100 bytes in common are one"
        = |_| Arc::new(CutsNames);
    D5 one_group_settles_for_all
        "what one group acked is gone for a group that has not fetched it yet"
        = |_| Arc::new(SettlesForAll::default());
    D5 full_is_answered_with_a_receipt
        "a broker without room answers with a receipt and keeps nothing"
        = |_| Edits::receipt(|outcome| match outcome {
            Err(e) if e.kind() == ErrorKind::Full => Ok(Receipt {
                position: Position::default(),
                durability: Durability::Volatile,
                duplicate: false,
            }),
            other => other,
        });
    D5 full_is_told_as_unavailable
        "a broker without room is told as one that is away"
        = |_| Edits::receipt(|outcome| match outcome {
            Err(e) if e.kind() == ErrorKind::Full => {
                Err(Error::new(ErrorKind::Unavailable, "publish", "said by a mutant"))
            }
            other => other,
        });
}

/// Loses the last delivery of a large fetch.
#[derive(Debug)]
struct FetchForgets;

#[async_trait]
impl Hooks for FetchForgets {
    async fn fetch(
        &self,
        next: &mut dyn Fetch,
        member: &Joined,
        want: Want,
        out: &mut Vec<Event>,
    ) -> Result<()> {
        let before = out.len();
        let result = next.fetch(want, out).await;
        if out.len() > before + 16
            && let Some(Event::Delivery(raw)) = out.pop()
        {
            settle_quietly(member, raw.token, Outcome::Ack);
        }
        result
    }
}

/// A group that begins at the end does so at its first fetch.
#[derive(Debug, Default)]
struct StartsLate {
    /// Topics whose group has not fetched yet.
    waiting: Mutex<HashSet<String>>,
    missed: Mutex<HashSet<(String, String)>>,
}

#[async_trait]
impl Hooks for StartsLate {
    async fn publish(
        &self,
        next: &Arc<dyn Transport>,
        batch: Vec<Message>,
        deadline: Instant,
    ) -> Confirm {
        for message in &batch {
            let topic = message.topic().to_string();
            if lock(&self.waiting).contains(&topic) {
                lock(&self.missed).insert((topic, message.id().to_owned()));
            }
        }
        next.publish(batch, deadline).await
    }

    async fn subscribe(
        &self,
        next: &Arc<dyn Transport>,
        subscription: &Subscription,
    ) -> Result<Source> {
        let source = next.subscribe(subscription).await?;
        if subscription.get_start() == StartFrom::Latest {
            lock(&self.waiting).insert(subscription.pattern().to_owned());
        }
        Ok(source)
    }

    async fn fetch(
        &self,
        next: &mut dyn Fetch,
        member: &Joined,
        want: Want,
        out: &mut Vec<Event>,
    ) -> Result<()> {
        lock(&self.waiting).remove(member.subscription.pattern());
        let before = out.len();
        let result = next.fetch(want, out).await;
        for event in out.split_off(before) {
            match event {
                Event::Delivery(raw) => {
                    let topic = raw.message.topic().to_string();
                    let latest = member.subscription.get_start() == StartFrom::Latest;
                    let id = raw.message.id().to_owned();
                    match latest && lock(&self.missed).contains(&(topic, id)) {
                        true => settle_quietly(member, raw.token, Outcome::Ack),
                        false => out.push(Event::Delivery(raw)),
                    }
                }
                other => out.push(other),
            }
        }
        result
    }
}

/// A member that asks for the latest skips what waits, although its group exists.
#[derive(Debug, Default)]
struct Rewinds {
    known: Mutex<HashSet<Name>>,
    /// What was published when a member joined a group that existed.
    before: Mutex<HashMap<Name, HashSet<String>>>,
    published: Mutex<HashMap<String, HashSet<String>>>,
}

/// A topic and a group on it.
pub(crate) type Name = (String, Option<String>);

pub(crate) fn name(subscription: &Subscription) -> Name {
    let group = subscription.get_group().ok().map(|g| g.to_string());
    (subscription.pattern().to_owned(), group)
}

#[async_trait]
impl Hooks for Rewinds {
    async fn publish(
        &self,
        next: &Arc<dyn Transport>,
        batch: Vec<Message>,
        deadline: Instant,
    ) -> Confirm {
        for message in &batch {
            let mut published = lock(&self.published);
            let ids = published.entry(message.topic().to_string()).or_default();
            ids.insert(message.id().to_owned());
        }
        next.publish(batch, deadline).await
    }

    async fn subscribe(
        &self,
        next: &Arc<dyn Transport>,
        subscription: &Subscription,
    ) -> Result<Source> {
        let source = next.subscribe(subscription).await?;
        let is_new = lock(&self.known).insert(name(subscription));
        if !is_new && subscription.get_start() == StartFrom::Latest {
            let published = lock(&self.published);
            let ids = published.get(subscription.pattern()).cloned();
            lock(&self.before).insert(name(subscription), ids.unwrap_or_default());
        }
        Ok(source)
    }

    async fn fetch(
        &self,
        next: &mut dyn Fetch,
        member: &Joined,
        want: Want,
        out: &mut Vec<Event>,
    ) -> Result<()> {
        let before = out.len();
        let result = next.fetch(want, out).await;
        let skipped = lock(&self.before).get(&name(&member.subscription)).cloned();
        let skipped = skipped.unwrap_or_default();
        for event in out.split_off(before) {
            match event {
                Event::Delivery(raw) if skipped.contains(raw.message.id()) => {
                    settle_quietly(member, raw.token, Outcome::Ack);
                }
                other => out.push(other),
            }
        }
        result
    }
}

/// Topics are lower case below, and as they were asked for above.
#[derive(Debug)]
struct FoldsCase;

#[async_trait]
impl Hooks for FoldsCase {
    async fn publish(
        &self,
        next: &Arc<dyn Transport>,
        batch: Vec<Message>,
        deadline: Instant,
    ) -> Confirm {
        let lower = |m: Message| match Topic::stored(m.topic().as_str().to_lowercase()) {
            Ok(topic) => m.on_topic(topic),
            Err(_) => m,
        };
        next.publish(batch.into_iter().map(lower).collect(), deadline)
            .await
    }

    async fn subscribe(
        &self,
        next: &Arc<dyn Transport>,
        subscription: &Subscription,
    ) -> Result<Source> {
        let lower = renamed(subscription, subscription.pattern().to_lowercase());
        next.subscribe(&lower).await
    }

    async fn fetch(
        &self,
        next: &mut dyn Fetch,
        member: &Joined,
        want: Want,
        out: &mut Vec<Event>,
    ) -> Result<()> {
        fetch_as_asked(next, member, want, out).await
    }
}

/// Topics are cut at 100 bytes below.
#[derive(Debug)]
struct CutsNames;

fn short(name: &str) -> String {
    let name: String = name.chars().take(100).collect();
    name.trim_end_matches('.').to_owned()
}

#[async_trait]
impl Hooks for CutsNames {
    async fn publish(
        &self,
        next: &Arc<dyn Transport>,
        batch: Vec<Message>,
        deadline: Instant,
    ) -> Confirm {
        let cut = |m: Message| match Topic::stored(short(m.topic().as_str())) {
            Ok(topic) => m.on_topic(topic),
            Err(_) => m,
        };
        next.publish(batch.into_iter().map(cut).collect(), deadline)
            .await
    }

    async fn subscribe(
        &self,
        next: &Arc<dyn Transport>,
        subscription: &Subscription,
    ) -> Result<Source> {
        let cut = renamed(subscription, short(subscription.pattern()));
        next.subscribe(&cut).await
    }

    async fn fetch(
        &self,
        next: &mut dyn Fetch,
        member: &Joined,
        want: Want,
        out: &mut Vec<Event>,
    ) -> Result<()> {
        fetch_as_asked(next, member, want, out).await
    }
}

/// Deliveries say the topic that was subscribed to.
async fn fetch_as_asked(
    next: &mut dyn Fetch,
    member: &Joined,
    want: Want,
    out: &mut Vec<Event>,
) -> Result<()> {
    let before = out.len();
    let result = next.fetch(want, out).await;
    for event in out.iter_mut().skip(before) {
        if let (Event::Delivery(raw), Ok(topic)) = (event, member.subscription.get_topic()) {
            raw.message = raw.message.clone().on_topic(topic);
        }
    }
    result
}

/// The same subscription to another topic.
fn renamed(subscription: &Subscription, topic: String) -> Subscription {
    let s = subscription;
    let mut other = Subscription::new(topic)
        .lease(s.get_lease())
        .max_attempts(s.get_max_attempts())
        .start_from(s.get_start())
        .order(s.get_order())
        .prefetch(s.get_prefetch())
        .prefetch_bytes(s.get_prefetch_bytes())
        .backoff(s.get_backoff());
    if let Ok(group) = s.get_group() {
        other = other.group(group.as_str());
    }
    if let Some(member) = s.get_member() {
        other = other.member(member);
    }
    match s.get_filter() {
        Some(filter) => other.filter(filter.clone()),
        None => other,
    }
}

/// One low-water mark for all groups of a topic.
#[derive(Debug, Default)]
struct SettlesForAll {
    /// Who acked what first.
    acked: Mutex<HashMap<(String, Position), Option<String>>>,
    held: Mutex<HashMap<(u32, Token), Position>>,
}

#[async_trait]
impl Hooks for SettlesForAll {
    async fn fetch(
        &self,
        next: &mut dyn Fetch,
        member: &Joined,
        want: Want,
        out: &mut Vec<Event>,
    ) -> Result<()> {
        let before = out.len();
        let result = next.fetch(want, out).await;
        let (topic, group) = name(&member.subscription);
        for event in out.split_off(before) {
            match event {
                Event::Delivery(raw) => {
                    let by = lock(&self.acked)
                        .get(&(topic.clone(), raw.position))
                        .cloned();
                    if by.is_some_and(|by| by != group) {
                        settle_quietly(member, raw.token, Outcome::Ack);
                        continue;
                    }
                    lock(&self.held).insert((member.number, raw.token), raw.position);
                    out.push(Event::Delivery(raw));
                }
                other => out.push(other),
            }
        }
        result
    }

    async fn settle(
        &self,
        next: &Arc<dyn Settle>,
        member: &Joined,
        batch: Vec<(Token, Outcome)>,
    ) -> Vec<Result<Settled>> {
        let (topic, group) = name(&member.subscription);
        for (token, outcome) in &batch {
            let position = lock(&self.held).get(&(member.number, *token)).copied();
            if let (Outcome::Ack, Some(position)) = (outcome, position) {
                let mut acked = lock(&self.acked);
                acked
                    .entry((topic.clone(), position))
                    .or_insert_with(|| group.clone());
            }
        }
        next.settle(batch).await
    }
}
