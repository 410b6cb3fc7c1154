//! The state of one partition in the hands of its owner: what was fetched, what of it is settled,
//! and what has to be remembered of the rest; and what to commit of that. A plain structure: no
//! locks, no clock.
//!
//! # What is in a commit
//!
//! Everything settled is in the next snapshot. Notes have a room of their own in it
//! ([`NOTES_ROOM`]), which what is settled cannot take away: a note that has got into it stays until
//! its entry is settled, in every snapshot from then on, committed or not. One that finds no room
//! waits, and those behind it too: they get in in the order in which their entries were first noted,
//! as others are settled. A later note of an entry replaces the earlier one; if only the earlier one
//! has room, that stays in until the later has. The length of the notes never grows by itself: one
//! that is settled leaves at least as much room as it took, as two gaps are never shorter than the
//! one they become.

use std::collections::{BTreeMap, VecDeque};
use std::iter;
use std::ops::Range;
use std::time::Duration;

use crate::mark::{self, LATEST, Mark, NOTES_ROOM, Past, SPAN, SURE};

/// Room kept for notes that grow, where there are more than are [`SURE`] to fit: without it many
/// entries whose next attempt takes a byte more could wait for each other.
const SPARE: usize = 32;

/// What a fetched record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It is open now.
    New(Past),
    /// It was settled earlier, or fetched before: to be skipped.
    Settled,
}

/// What a snapshot goes through for every entry, apart from the values for the cache's sake.
#[derive(Clone, Copy, Debug)]
struct Head {
    offset: u64,
    open: bool,
}

/// A note that has room.
#[derive(Clone, Copy, Debug)]
struct Kept {
    past: Past,
    /// Numbers the entries in the order in which they were first noted.
    first: u64,
}

/// A note that has none yet.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    past: Past,
    first: u64,
    /// The changes of this entry from this one on are not in a commit.
    since: u64,
}

/// The state of one owned partition. `T` is what is kept of a fetched record.
#[derive(Debug)]
pub(crate) struct Tracker<T> {
    /// What was fetched, by offset, from the lowest open one on. What is missing in between is
    /// settled: it came as such, or there is no record.
    heads: VecDeque<Head>,
    /// One for each head; none if it is settled.
    values: VecDeque<Option<T>>,
    open: usize,
    next: u64,
    /// Settled beyond `next`, by a former owner; not touching it nor each other.
    ahead: VecDeque<Range<u64>>,
    /// What lies below it and has no note may have been handed out by the former owner.
    doubt: u64,
    kept: BTreeMap<u64, Kept>,
    waiting: BTreeMap<u64, Waiting>,
    /// Of those waiting, `first` and the offset.
    queue: BTreeMap<u64, u64>,
    /// How many entries were ever noted.
    noted: u64,
    change: u64,
}

/// What to commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) position: u64,
    /// Never longer than [`LIMIT`](mark::LIMIT).
    pub(crate) metadata: String,
    /// The last change in it.
    pub(crate) change: u64,
    /// The offsets whose changes from this number on are not in it, sorted.
    left_out: Vec<(u64, u64)>,
    /// What is settled from here on is not in it. Only if the mark that was taken over was not
    /// written by us, or more was fetched than there was room for.
    end: Option<u64>,
}

impl Snapshot {
    /// Whether a change of an entry is in it. Once it was, it is in all that are made later.
    pub(crate) fn holds(&self, offset: u64, change: u64) -> bool {
        if change > self.change || self.end.is_some_and(|end| offset >= end) {
            return false;
        }
        match self.left_out.binary_search_by_key(&offset, |(at, _)| *at) {
            Ok(at) => self.left_out.get(at).is_none_or(|out| change < out.1),
            Err(_) => true,
        }
    }
}

impl<T> Tracker<T> {
    /// A partition as it was committed, and where its log ended after that was read: nobody can
    /// have fetched or settled what lies at `end` or beyond, so that a mark which says so is of
    /// records that a broker has lost, and not of those that took their place.
    ///
    /// The position is taken as it is, also when the log ends before it.
    pub(crate) fn restored(position: u64, mark: Option<&Mark>, end: u64) -> Self {
        let mut tracker = Self {
            heads: VecDeque::new(),
            values: VecDeque::new(),
            open: 0,
            next: position,
            ahead: VecDeque::new(),
            doubt: position,
            kept: BTreeMap::new(),
            waiting: BTreeMap::new(),
            queue: BTreeMap::new(),
            noted: 0,
            change: 0,
        };
        let Some(mark) = mark else {
            return tracker;
        };
        tracker.doubt = position.saturating_add(mark.reach).min(end);
        let absolute = |offset: u64| position.saturating_add(offset).min(end);
        for run in &mark.settled {
            let run = absolute(run.start)..absolute(run.end);
            if !run.is_empty() {
                tracker.ahead.push_back(run);
            }
        }
        let mut settled = tracker.ahead.iter().peekable();
        let mut noted = Vec::with_capacity(mark.notes.len());
        for (offset, past) in &mark.notes {
            let (offset, mut past) = (absolute(*offset), *past);
            while settled.next_if(|run| run.end <= offset).is_some() {}
            if offset >= end || settled.peek().is_some_and(|run| run.contains(&offset)) {
                continue;
            }
            // One that waits for its time is in nobody's hands.
            past.reclaimed |= offset < tracker.doubt && past.due.is_none();
            noted.push((offset, past));
        }
        tracker.join();
        for (offset, past) in noted {
            tracker.put_note(offset, past);
        }
        while let Some((_, offset)) = tracker.queue.first_key_value()
            && tracker.admit(*offset, NOTES_ROOM)
        {}
        tracker
    }

    /// The lowest unsettled offset; [`next`](Self::next) if all is settled.
    pub(crate) fn position(&self) -> u64 {
        self.heads.front().map_or(self.next, |head| head.offset)
    }

    /// The lowest offset that was neither fetched nor settled, never below the position.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Fetched and unsettled.
    pub(crate) fn open(&self) -> usize {
        self.open
    }

    /// How many more may be fetched.
    pub(crate) fn room(&self) -> usize {
        let left = SPAN.saturating_sub(self.next - self.position());
        usize::try_from(left).unwrap_or(usize::MAX)
    }

    /// Takes a record. The offsets between the last one and this have none, and count as settled.
    ///
    /// One below [`next`](Self::next) is always to be skipped: if it is open, the first copy is
    /// still here; and a record never appears later at an offset that was passed over.
    pub(crate) fn fetched(&mut self, offset: u64, value: T) -> Arrival {
        // There is no offset after the last number (the broker's end at half of it).
        if offset < self.next || offset == u64::MAX {
            return Arrival::Settled;
        }
        self.pass(offset);
        if offset < self.next {
            return Arrival::Settled;
        }
        self.heads.push_back(Head { offset, open: true });
        self.values.push_back(Some(value));
        self.open += 1;
        self.next = offset + 1;
        self.join();
        Arrival::New(self.known(offset))
    }

    /// There is no record any more from [`next`](Self::next) to this offset: the log begins later,
    /// or nothing but marks of transactions is in between. How many offsets that are, less those
    /// that were known to be settled. What was fetched before stays.
    pub(crate) fn skip_to(&mut self, next: u64) -> u64 {
        let gone = self.pass(next);
        self.change += u64::from(gone > 0);
        gone
    }

    fn pass(&mut self, to: u64) -> u64 {
        if to <= self.next {
            return 0;
        }
        let mut gone = to - self.next;
        while let Some(run) = self.ahead.front_mut()
            && run.start < to
        {
            gone -= run.end.min(to) - run.start;
            if run.end > to {
                run.start = to;
            } else {
                self.ahead.pop_front();
            }
        }
        let passed = self.next..to;
        self.next = to;
        self.join();
        // Of former owners, as only these leave notes of what was not fetched.
        let kept = self.kept.range(passed.clone()).map(|(at, _)| *at);
        let waiting = self.waiting.range(passed).map(|(at, _)| *at);
        let noted: Vec<u64> = kept.chain(waiting).collect();
        let freed = noted.iter().filter(|at| self.forget(**at)).count();
        self.reuse(freed > 0);
        gone
    }

    fn join(&mut self) {
        while let Some(run) = self.ahead.front()
            && run.start <= self.next
        {
            self.next = self.next.max(run.end);
            self.ahead.pop_front();
        }
    }

    /// An open entry.
    pub(crate) fn get(&self, offset: u64) -> Option<&T> {
        self.values.get(self.find(offset)?)?.as_ref()
    }

    /// What happened before to an open entry.
    pub(crate) fn past(&self, offset: u64) -> Option<Past> {
        self.get(offset).map(|_| self.known(offset))
    }

    fn known(&self, offset: u64) -> Past {
        let waiting = self.waiting.get(&offset).map(|note| note.past);
        let noted = waiting.or_else(|| self.kept.get(&offset).map(|note| note.past));
        let doubtful = offset < self.doubt;
        noted.unwrap_or(Past {
            made: u32::from(doubtful),
            reclaimed: doubtful,
            due: None,
        })
    }

    /// Where an offset is. Without gaps that is its distance from the first, else it is before.
    fn find(&self, offset: u64) -> Option<usize> {
        let distance = offset.checked_sub(self.heads.front()?.offset)?;
        let most = usize::try_from(distance)
            .unwrap_or(usize::MAX)
            .min(self.heads.len() - 1);
        if self.heads.get(most)?.offset == offset {
            return Some(most);
        }
        self.heads
            .binary_search_by_key(&offset, |head| head.offset)
            .ok()
    }

    /// Settles an open entry.
    pub(crate) fn settle(&mut self, offset: u64) -> Option<T> {
        let at = self.find(offset)?;
        let value = self.values.get_mut(at)?.take()?;
        if let Some(head) = self.heads.get_mut(at) {
            head.open = false;
        }
        self.open -= 1;
        self.change += 1;
        while self.heads.front().is_some_and(|head| !head.open) {
            self.heads.pop_front();
            self.values.pop_front();
        }
        let freed = self.forget(offset);
        self.reuse(freed);
        Some(value)
    }

    /// Remembers what happened to an open entry: a nack, a begun hand-out, a lapse. Due times are
    /// cut to [`LATEST`].
    pub(crate) fn note(&mut self, offset: u64, past: Past) -> bool {
        if self.get(offset).is_none() {
            return false;
        }
        self.change += 1;
        let due = past.due.map(|due| due.min(LATEST));
        self.put_note(offset, Past { due, ..past });
        if self.kept.contains_key(&offset) {
            self.admit(offset, NOTES_ROOM);
        }
        self.admit_all();
        true
    }

    fn put_note(&mut self, offset: u64, past: Past) {
        let before = self.waiting.get(&offset);
        let since = before.map_or(self.change, |note| note.since);
        let kept = self.kept.get(&offset).map(|note| note.first);
        let first = before.map(|note| note.first).or(kept).unwrap_or_else(|| {
            self.noted += 1;
            self.noted
        });
        self.queue.insert(first, offset);
        let note = Waiting { past, first, since };
        self.waiting.insert(offset, note);
    }

    /// Drops what is known of an entry that is not open any more; whether that made room.
    fn forget(&mut self, offset: u64) -> bool {
        if let Some(note) = self.waiting.remove(&offset) {
            self.queue.remove(&note.first);
        }
        self.kept.remove(&offset).is_some()
    }

    /// Lets those in that wait for room. It is a change, so that they are committed.
    fn reuse(&mut self, freed: bool) {
        if freed && !self.queue.is_empty() {
            self.change += 1;
            self.admit_all();
        }
    }

    fn admit_all(&mut self) {
        while let Some((_, offset)) = self.queue.first_key_value() {
            let offset = *offset;
            let sure = self.kept.len() < SURE || self.kept.contains_key(&offset);
            let spare = if sure { 0 } else { SPARE };
            if !self.admit(offset, NOTES_ROOM - spare) {
                break;
            }
        }
    }

    /// Gives a waiting note its place, if all then take no more than this.
    fn admit(&mut self, offset: u64, room: usize) -> bool {
        let Some(&Waiting { past, first, .. }) = self.waiting.get(&offset) else {
            return false;
        };
        let before = self.kept.insert(offset, Kept { past, first });
        if mark::notes_len(self.notes()) <= room {
            self.waiting.remove(&offset);
            self.queue.remove(&first);
            return true;
        }
        match before {
            Some(note) => self.kept.insert(offset, note),
            None => self.kept.remove(&offset),
        };
        false
    }

    fn notes(&self) -> impl Iterator<Item = (u64, Past)> + Clone {
        let position = self.position();
        let kept = self.kept.iter();
        kept.map(move |(at, note)| (at - position, note.past))
    }

    /// What is settled above the position, relative to it.
    fn runs(&self) -> impl Iterator<Item = Range<u64>> + Clone {
        let position = self.position();
        let open = self.heads.iter().filter(|head| head.open);
        let mut from = position;
        open.map(|head| head.offset)
            .chain(iter::once(self.next))
            .filter_map(move |open| {
                let run = from..open;
                from = open.saturating_add(1);
                (!run.is_empty()).then_some(run)
            })
            .chain(self.ahead.iter().cloned())
            .map(move |run| run.start - position..run.end - position)
    }

    /// The number of the last change; a commit is due if the last one had a lower one.
    pub(crate) fn change(&self) -> u64 {
        self.change
    }

    /// What to commit now. `reach`: how many offsets beyond [`next`](Self::next) the owner may
    /// fetch before the next commit; none if it gives the partition up and holds nothing any more.
    ///
    /// What a former owner may have handed out, and nobody has begun since, stays within reach.
    pub(crate) fn snapshot(&self, lease: Duration, reach: Option<u64>) -> Snapshot {
        let position = self.position();
        let read = reach.map_or(0, |more| self.next.saturating_add(more));
        let reach = read.max(self.doubt).saturating_sub(position);
        let (metadata, end) = mark::write(lease, reach, self.runs(), self.notes());
        let left_out = self.waiting.iter().map(|(at, note)| (*at, note.since));
        Snapshot {
            position,
            metadata,
            change: self.change,
            left_out: left_out.collect(),
            end: end.map(|end| position + end),
        }
    }
}
