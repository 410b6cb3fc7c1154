//! Mutants of groups (G).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use conformance_tests::Broker;
use conformance_tests::layers::{Hooks, Joined};
use mas_transport_core::mutation::Mutation;
use mas_transport_core::{
    Event, Fetch, Outcome, Result, Settle, Source, Subscription, Transport, Want,
};
use tokio::time::Instant;

use crate::delivering::{Name, name};
use crate::edits::{Does, Edits, lock, pump};
use crate::mutants;

mutants! {
    G1 groups_share
        "the second group of a topic is the first one"
        = |_| Arc::new(GroupsShare { from: 1, ..GroupsShare::default() });
    G1 case_of_groups_is_folded
        "groups that differ only in case are one"
        = |_| Edits::subscribe(|s| match s.get_group() {
            Ok(group) => s.group(group.as_str().to_lowercase()),
            Err(_) => s,
        });
    G1 numbered_groups_are_one
        "groups whose names are numbers are one"
        = |_| Edits::subscribe(|s| match s.get_group() {
            Ok(group) if group.as_str().parse::<u64>().is_ok() => s.group("0"),
            _ => s,
        });
    G2 members_get_everything
        "each member of a group gets every message"
        = |_| Arc::new(EachGetsAll { from: 1, ..EachGetsAll::default() });
    G2 namesakes_get_everything
        "members of one name each get every message of their group"
        = |_| Arc::new(Namesakes::default());
    G2 window_is_ignored
        "the consumer pump takes everything there is, and leaves nothing to other members"
        = |_| pump(Mutation::WindowIgnored);
    G2 second_member_starves
        "only the first member of a group gets anything"
        = |_| Arc::new(Starves::default());
    G3 leaver_takes_along
        "what a leaving member had fetched and not handed out is settled"
        = |_| Edits::outcome(|_, _, outcome| Does::Pass(match outcome {
            Outcome::Return => Outcome::Ack,
            other => other,
        }));
    G3 third_joiner_gets_its_own
        "a third member that joins a group reads it from the beginning"
        = |_| Arc::new(EachGetsAll { from: 2, ..EachGetsAll::default() });
    G3 last_one_out_takes_the_group_along
        "a group is deleted when its last member leaves"
        = |broker| Arc::new(LastOneOut {
            broker: Arc::clone(broker),
            members: Mutex::default(),
        });
}

/// From the given one on, groups of a topic are the one before.
#[derive(Debug, Default)]
struct GroupsShare {
    from: usize,
    groups: Mutex<HashMap<String, Vec<String>>>,
}

#[async_trait]
impl Hooks for GroupsShare {
    async fn subscribe(
        &self,
        next: &Arc<dyn Transport>,
        subscription: &Subscription,
    ) -> Result<Source> {
        let (topic, Some(group)) = name(subscription) else {
            return next.subscribe(subscription).await;
        };
        let instead = {
            let mut groups = lock(&self.groups);
            let groups = groups.entry(topic).or_default();
            if !groups.contains(&group) {
                groups.push(group.clone());
            }
            let at = groups.iter().position(|g| *g == group).unwrap_or(0);
            match at < self.from {
                true => group,
                false => groups[self.from - 1].clone(),
            }
        };
        next.subscribe(&subscription.clone().group(instead)).await
    }
}

/// From the given one on, the members of a group are groups of their own.
#[derive(Debug, Default)]
struct EachGetsAll {
    from: usize,
    members: Mutex<HashMap<Name, usize>>,
}

#[async_trait]
impl Hooks for EachGetsAll {
    async fn subscribe(
        &self,
        next: &Arc<dyn Transport>,
        subscription: &Subscription,
    ) -> Result<Source> {
        let at = {
            let mut members = lock(&self.members);
            let count = members.entry(name(subscription)).or_default();
            *count += 1;
            *count - 1
        };
        match (name(subscription).1, at >= self.from) {
            (Some(group), true) => {
                let own = format!("{group}-{at}");
                next.subscribe(&subscription.clone().group(own)).await
            }
            _ => next.subscribe(subscription).await,
        }
    }
}

/// The second member of a name in a group is a group of its own.
#[derive(Debug, Default)]
struct Namesakes(Mutex<HashSet<(Name, Option<String>)>>);

#[async_trait]
impl Hooks for Namesakes {
    async fn subscribe(
        &self,
        next: &Arc<dyn Transport>,
        subscription: &Subscription,
    ) -> Result<Source> {
        let member = subscription.get_member().map(str::to_owned);
        let named = member.is_some();
        let is_new = lock(&self.0).insert((name(subscription), member));
        match named && !is_new {
            true => next.subscribe(&subscription.clone().group("another")).await,
            false => next.subscribe(subscription).await,
        }
    }
}

/// Deletes a group when nobody is in it any more.
#[derive(Debug)]
struct LastOneOut {
    broker: Arc<dyn Broker>,
    members: Mutex<HashMap<Name, HashSet<u32>>>,
}

#[async_trait]
impl Hooks for LastOneOut {
    async fn fetch(
        &self,
        next: &mut dyn Fetch,
        member: &Joined,
        want: Want,
        out: &mut Vec<Event>,
    ) -> Result<()> {
        let name = name(&member.subscription);
        lock(&self.members)
            .entry(name)
            .or_default()
            .insert(member.number);
        next.fetch(want, out).await
    }

    async fn settle_close(
        &self,
        next: &Arc<dyn Settle>,
        member: &Joined,
        deadline: Instant,
    ) -> Result<()> {
        let result = next.close(deadline).await;
        let name = name(&member.subscription);
        let last = {
            let mut members = lock(&self.members);
            let left = members.entry(name).or_default();
            left.remove(&member.number) && left.is_empty()
        };
        let topic = member.subscription.get_topic();
        if let (true, Ok(topic), Ok(group)) = (last, topic, member.subscription.get_group()) {
            // It may be gone already.
            let _gone = self.broker.drop_group(&topic, &group).await;
        }
        result
    }
}

/// Only the first member of a group fetches, until it goes.
#[derive(Debug, Default)]
struct Starves(Mutex<HashMap<Name, u32>>);

#[async_trait]
impl Hooks for Starves {
    async fn fetch(
        &self,
        next: &mut dyn Fetch,
        member: &Joined,
        want: Want,
        out: &mut Vec<Event>,
    ) -> Result<()> {
        let first = {
            let mut members = lock(&self.0);
            let entry = members.entry(name(&member.subscription));
            *entry.or_insert(member.number)
        };
        let want = match first == member.number {
            true => want,
            false => Want {
                messages: 0,
                ..want
            },
        };
        next.fetch(want, out).await
    }

    fn fetch_dropped(&self, fetch: Box<dyn Fetch>, member: &Joined) {
        let mut members = lock(&self.0);
        let name = name(&member.subscription);
        if members
            .get(&name)
            .is_some_and(|first| *first == member.number)
        {
            members.remove(&name);
        }
        drop(members);
        drop(fetch);
    }
}
