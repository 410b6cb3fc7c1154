//! The entries of one topic, shared by its groups. A plain structure: no locks, no clock.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use mas_transport_core::Message;

/// Names and values, as another program or the wire mode wrote them.
pub(crate) type Fields = Arc<[(Bytes, Bytes)]>;

/// What an entry holds. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    Message(Message),
    Fields(Fields),
}

#[derive(Debug)]
struct Slot {
    /// None once every group has settled it, while an older one is still there.
    body: Option<Body>,
    bytes: u32,
    /// How many groups have not settled it.
    unsettled: u32,
}

/// One partition: entries by offset.
#[derive(Debug, Default)]
struct Log {
    base: u64,
    slots: VecDeque<Slot>,
}

impl Log {
    fn index(&self, offset: u64) -> Option<usize> {
        usize::try_from(offset.checked_sub(self.base)?).ok()
    }

    fn next(&self) -> u64 {
        self.base + self.slots.len() as u64
    }

    fn pop_settled(&mut self) {
        while self.slots.front().is_some_and(|s| s.body.is_none()) {
            self.slots.pop_front();
            self.base += 1;
        }
    }
}

/// The partitions of a topic. A lease queue has one.
#[derive(Debug)]
pub(crate) struct Store {
    logs: Vec<Log>,
    messages: u64,
    bytes: u64,
}

impl Store {
    pub(crate) fn new(partitions: usize) -> Self {
        Self {
            logs: (0..partitions.max(1)).map(|_| Log::default()).collect(),
            messages: 0,
            bytes: 0,
        }
    }

    pub(crate) fn partitions(&self) -> usize {
        self.logs.len()
    }

    /// How many entries are kept.
    pub(crate) fn messages(&self) -> u64 {
        self.messages
    }

    /// How many bytes they have.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The oldest offset that may still be kept.
    pub(crate) fn base(&self, partition: usize) -> u64 {
        self.logs.get(partition).map_or(0, |log| log.base)
    }

    /// The offset of the next entry.
    pub(crate) fn next(&self, partition: usize) -> u64 {
        self.logs.get(partition).map_or(0, Log::next)
    }

    /// Appends an entry that so many groups have to settle; answers its offset.
    pub(crate) fn append(
        &mut self,
        partition: usize,
        body: Body,
        bytes: u32,
        groups: u32,
    ) -> Option<u64> {
        let log = self.logs.get_mut(partition)?;
        let offset = log.next();
        log.slots.push_back(Slot {
            body: Some(body),
            bytes,
            unsettled: groups,
        });
        self.messages += 1;
        self.bytes += u64::from(bytes);
        Some(offset)
    }

    /// The entry and its size, while it is kept.
    pub(crate) fn get(&self, partition: usize, offset: u64) -> Option<(&Body, u32)> {
        let log = self.logs.get(partition)?;
        let slot = log.slots.get(log.index(offset)?)?;
        Some((slot.body.as_ref()?, slot.bytes))
    }

    pub(crate) fn keeps(&self, partition: usize, offset: u64) -> bool {
        self.get(partition, offset).is_some()
    }

    /// One group has settled the entry. What no group needs any more goes to `dropped`, to be
    /// freed outside the lock.
    pub(crate) fn settle(&mut self, partition: usize, offset: u64, dropped: &mut Vec<Body>) {
        let Some(log) = self.logs.get_mut(partition) else {
            return;
        };
        let Some(index) = log.index(offset) else {
            return;
        };
        let Some(slot) = log.slots.get_mut(index) else {
            return;
        };
        slot.unsettled = slot.unsettled.saturating_sub(1);
        if slot.unsettled > 0 {
            return;
        }
        if let Some(body) = slot.body.take() {
            self.messages -= 1;
            self.bytes -= u64::from(slot.bytes);
            dropped.push(body);
        }
        log.pop_settled();
    }

    /// A new group will have to settle what is kept. How many entries that are.
    pub(crate) fn join(&mut self) -> u64 {
        for slot in self.logs.iter_mut().flat_map(|log| &mut log.slots) {
            if slot.body.is_some() {
                slot.unsettled += 1;
            }
        }
        self.messages
    }

    /// Removes the `count` oldest entries, settled or not, from each partition in turn. How many
    /// there were.
    pub(crate) fn trim(&mut self, count: u64, dropped: &mut Vec<Body>) -> u64 {
        let mut removed = 0;
        while removed < count && self.messages > 0 {
            for log in &mut self.logs {
                while removed < count
                    && let Some(slot) = log.slots.pop_front()
                {
                    log.base += 1;
                    if let Some(body) = slot.body {
                        self.messages -= 1;
                        self.bytes -= u64::from(slot.bytes);
                        dropped.push(body);
                        removed += 1;
                        break;
                    }
                }
                log.pop_settled();
            }
        }
        removed
    }

    /// How many entries of a partition are kept from an offset on.
    pub(crate) fn kept_from(&self, partition: usize, offset: u64) -> u64 {
        let Some(log) = self.logs.get(partition) else {
            return 0;
        };
        let skip = log.index(offset.max(log.base)).unwrap_or(0);
        let kept = log.slots.iter().skip(skip).filter(|s| s.body.is_some());
        kept.count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body() -> Body {
        Body::Fields(Vec::new().into())
    }

    #[test]
    fn what_every_group_has_settled_is_dropped_whatever_the_order() {
        let mut store = Store::new(1);
        let mut dropped = Vec::new();
        for offset in 0..3 {
            assert_eq!(store.append(0, body(), 10, 2), Some(offset));
        }
        store.settle(0, 1, &mut dropped);
        assert_eq!((store.messages(), dropped.len()), (3, 0));
        store.settle(0, 1, &mut dropped);
        assert_eq!((store.messages(), store.bytes(), dropped.len()), (2, 20, 1));
        assert_eq!(store.base(0), 0);
        for _ in 0..2 {
            store.settle(0, 0, &mut dropped);
        }
        assert_eq!((store.base(0), store.next(0)), (2, 3));
        assert!(!store.keeps(0, 1) && store.keeps(0, 2));
    }

    #[test]
    fn a_trim_takes_the_oldest_of_each_partition_and_ends() {
        let mut store = Store::new(2);
        let mut dropped = Vec::new();
        for _ in 0..3 {
            store.append(0, body(), 1, 0);
        }
        store.append(1, body(), 1, 0);
        assert_eq!(store.trim(3, &mut dropped), 3);
        assert_eq!((store.base(0), store.base(1)), (2, 1));
        assert_eq!(store.trim(9, &mut dropped), 1);
        assert_eq!((store.messages(), store.bytes()), (0, 0));
    }
}
