//! One topic: its entries, its groups and who has to be woken. Everything of a topic is under one
//! lock, which is taken once per batch and never across an await.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mas_transport_core as core;
use mas_transport_core::{Position, StartFrom};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::group::Group;
use crate::leases::MemberId;
use crate::store::{Body, Store};

/// What a topic may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

/// What is left to do once the lock has been released: ring, and free.
#[derive(Debug, Default)]
pub(crate) struct After {
    pub(crate) bells: Vec<Arc<Notify>>,
    pub(crate) dropped: Vec<Body>,
}

impl After {
    pub(crate) fn run(self) {
        for bell in self.bells {
            bell.notify_one();
        }
    }
}

/// A group and the bells of its members.
#[derive(Debug)]
pub(crate) struct Members {
    pub(crate) group: Group,
    pub(crate) bells: BTreeMap<MemberId, Arc<Notify>>,
    woken: Vec<MemberId>,
}

impl Members {
    /// Wakes whoever has to look now.
    pub(crate) fn wake(&mut self, store: &Store, after: &mut After) {
        if self.bells.len() > self.group.members.len() {
            let members = &self.group.members;
            self.bells.retain(|id, _| members.contains_key(id));
        }
        self.group.wake(store, &mut self.woken);
        for member in self.woken.drain(..) {
            after.bells.extend(self.bells.get(&member).cloned());
        }
    }

    /// Wakes everybody: something happened that is not a message.
    pub(crate) fn wake_all(&self, after: &mut After) {
        after.bells.extend(self.bells.values().cloned());
    }
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) store: Store,
    /// By the number that members hold; never used twice.
    groups: Vec<Option<Members>>,
    names: BTreeMap<core::Group, usize>,
    /// As declared or made; a lease queue only remembers it.
    pub(crate) partitions: u32,
    /// False before the topic is first used, and after the broker's state was wiped.
    pub(crate) exists: bool,
    /// In a partitioned log: the notice before a partition is taken away.
    partitioned: Option<Duration>,
    next_partition: usize,
    limits: Limits,
}

/// A topic's name and state.
#[derive(Debug)]
pub(crate) struct Topic {
    pub(crate) name: core::Topic,
    state: Mutex<State>,
}

impl Topic {
    pub(crate) fn new(
        name: core::Topic,
        partitions: u32,
        partitioned: Option<Duration>,
        limits: Limits,
    ) -> Self {
        let state = State {
            store: new_store(partitions, partitioned),
            groups: Vec::new(),
            names: BTreeMap::new(),
            partitions,
            exists: false,
            partitioned,
            next_partition: 0,
            limits,
        };
        Self {
            name,
            state: Mutex::new(state),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn new_store(partitions: u32, partitioned: Option<Duration>) -> Store {
    Store::new(if partitioned.is_some() {
        partitions as usize
    } else {
        1
    })
}

impl State {
    /// Sets the partitions of a topic that nobody has used yet.
    pub(crate) fn create(&mut self, partitions: u32) {
        self.exists = true;
        if self.partitions != partitions {
            self.partitions = partitions;
            self.store = new_store(partitions, self.partitioned);
        }
    }

    /// Whether there is room for an entry of this size.
    pub(crate) fn has_room(&self, bytes: u32) -> bool {
        self.store.messages() < self.limits.messages
            && self.store.bytes() + u64::from(bytes) <= self.limits.bytes
    }

    /// Appends an entry; call [`State::published`] when the batch is done.
    pub(crate) fn append(&mut self, body: Body, bytes: u32, key: Option<&str>) -> Position {
        self.exists = true;
        let partitions = self.store.partitions();
        let partition = match key {
            _ if partitions == 1 => 0,
            Some(key) => {
                let mut hasher = DefaultHasher::new();
                key.hash(&mut hasher);
                (hasher.finish() % partitions as u64) as usize
            }
            None => {
                self.next_partition = (self.next_partition + 1) % partitions;
                self.next_partition
            }
        };
        let groups = self.names.len() as u32;
        let offset = self.store.append(partition, body, bytes, groups);
        Position {
            major: partition as u64,
            minor: offset.unwrap_or_default(),
        }
    }

    /// So many entries have been appended: tells the groups.
    pub(crate) fn published(&mut self, entries: u64, after: &mut After) {
        if entries == 0 {
            return;
        }
        for members in self.groups.iter_mut().flatten() {
            members.group.published(entries);
            members.wake(&self.store, after);
        }
    }

    /// The names of the groups, sorted.
    pub(crate) fn names(&self) -> Vec<core::Group> {
        self.names.keys().cloned().collect()
    }

    pub(crate) fn find(&self, name: &core::Group) -> Option<usize> {
        self.names.get(name).copied()
    }

    /// A group and the entries it reads.
    pub(crate) fn group(&mut self, number: usize) -> Option<(&mut Members, &mut Store)> {
        let members = self.groups.get_mut(number)?.as_mut()?;
        Some((members, &mut self.store))
    }

    /// A group, made if there is none of that name.
    pub(crate) fn find_or_create(
        &mut self,
        name: &core::Group,
        lease: Duration,
        start: StartFrom,
    ) -> usize {
        self.exists = true;
        if let Some(number) = self.find(name) {
            return number;
        }
        let number = self.groups.len();
        self.groups.push(Some(Members {
            group: Group::new(lease, start, self.partitioned, &mut self.store),
            bells: BTreeMap::new(),
            woken: Vec::new(),
        }));
        self.names.insert(name.clone(), number);
        number
    }

    /// Removes the oldest entries whatever groups say; each group that loses some hears of it.
    pub(crate) fn trim(&mut self, entries: u64, why: &'static str, after: &mut After) -> u64 {
        let removed = self.store.trim(entries, &mut after.dropped);
        for members in self.groups.iter_mut().flatten() {
            if members.group.trimmed(why, &self.store) {
                members.wake_all(after);
            }
        }
        removed
    }

    /// The broker lost everything of this topic. Groups with members are there again at once, as
    /// the members make them anew; those without are gone.
    pub(crate) fn wipe(&mut self, now: Instant, after: &mut After) {
        self.store.trim(u64::MAX, &mut after.dropped);
        for members in &mut self.groups {
            if let Some(alive) = members
                && !alive.group.members.is_empty()
            {
                alive.group.wiped(now, &self.store);
                alive.wake_all(after);
            } else {
                *members = None;
            }
        }
        let groups = &self.groups;
        self.names
            .retain(|_, number| groups.get(*number).is_some_and(Option::is_some));
        self.exists = !self.names.is_empty();
    }
}
