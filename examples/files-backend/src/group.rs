//! One group of one topic: who holds what, what comes back when. It is told the time.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::time::Duration;

use mas_transport_core::{Lag, Outcome, Settled, StartFrom, Token, Want};
use tokio::time::Instant;

use crate::journal::{Journal, Lease, Line, Now, Past, Place};
use crate::store::Store;

/// A message as it is handed to a member.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) number: u64,
    pub(crate) token: Token,
    pub(crate) past: Past,
    pub(crate) deadline: Instant,
}

#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) lease: Duration,
    journal: Journal,
    /// The next message that nobody has fetched yet.
    cursor: u64,
    generation: u32,
    /// What was fetched and is not settled.
    places: BTreeMap<u64, Place>,
    /// The live leases among them.
    held: BTreeMap<Token, u64>,
    /// When something happens by itself: a lease ends, a message comes back.
    timers: BTreeSet<(Instant, u64)>,
    /// What may be handed out again.
    ready: BTreeSet<u64>,
    /// Lost and not yet told.
    lost: u64,
}

impl Group {
    /// A group that is new.
    pub(crate) fn create(
        path: &Path,
        now: Now,
        lease: Duration,
        start: StartFrom,
        store: &mut Store,
    ) -> io::Result<Self> {
        let (journal, _) = Journal::open(path, now)?;
        let mut group = Self::empty(journal, lease);
        group.cursor = match start {
            StartFrom::Latest => store.next,
            _ => 0,
        };
        for line in group.state() {
            group.journal.note(now, line);
        }
        group.journal.flush()?;
        for kept in store.kept.range_mut(group.cursor..) {
            kept.1.owed += 1;
        }
        Ok(group)
    }

    /// A group as its file tells of it.
    pub(crate) fn load(path: &Path, now: Now, store: &mut Store) -> io::Result<Self> {
        let (journal, lines) = Journal::open(path, now)?;
        let mut group = Self::empty(journal, Duration::ZERO);
        let mut places = BTreeMap::new();
        for line in lines {
            match line {
                Line::Lease(lease) => group.lease = lease,
                Line::Lost(lost) => group.lost = lost,
                Line::Cursor(cursor, generation) => {
                    (group.cursor, group.generation) = (cursor, generation);
                }
                Line::At(number, place) => {
                    if let Place::Held(lease) = place {
                        group.cursor = group.cursor.max(number + 1);
                        group.generation = group.generation.max(lease.generation + 1);
                    }
                    places.insert(number, place);
                }
                Line::Settled(number) => {
                    places.remove(&number);
                }
            }
        }
        for (number, place) in places {
            if store.kept.contains_key(&number) {
                group.put(now, number, Some(place));
            } else {
                group.lost += 1;
            }
        }
        store.next = store.next.max(group.cursor);
        for (number, kept) in &mut store.kept {
            let owed = *number >= group.cursor || group.places.contains_key(number);
            kept.owed += usize::from(owed);
        }
        group.flush(now)?;
        Ok(group)
    }

    fn empty(journal: Journal, lease: Duration) -> Self {
        Self {
            lease,
            journal,
            cursor: 0,
            generation: 0,
            places: BTreeMap::new(),
            held: BTreeMap::new(),
            timers: BTreeSet::new(),
            ready: BTreeSet::new(),
            lost: 0,
        }
    }

    /// The whole state, as lines.
    fn state(&self) -> Vec<Line> {
        let head = [
            Line::Lease(self.lease),
            Line::Cursor(self.cursor, self.generation),
            Line::Lost(self.lost),
        ];
        let places = self.places.iter().map(|(n, place)| Line::At(*n, *place));
        head.into_iter().chain(places).collect()
    }

    /// Brings the file up to date. Every operation ends with it.
    pub(crate) fn flush(&mut self, now: Now) -> io::Result<()> {
        if self.journal.is_long(self.places.len()) {
            return self.journal.rewrite(now, &self.state());
        }
        self.journal.flush()
    }

    /// Moves a message to another place; None when it is settled.
    fn put(&mut self, now: Now, number: u64, place: Option<Place>) {
        match self.places.remove(&number) {
            Some(Place::Held(lease)) => {
                self.held.remove(&token(number, lease.generation));
                self.timers.remove(&(lease.deadline, number));
            }
            Some(Place::Back(_, due)) => {
                self.timers.remove(&(due, number));
                self.ready.remove(&number);
            }
            None => {}
        }
        let Some(place) = place else {
            return self.journal.note(now, Line::Settled(number));
        };
        match place {
            Place::Held(lease) => {
                self.held.insert(token(number, lease.generation), number);
                self.timers.insert((lease.deadline, number));
            }
            Place::Back(_, due) if due <= now.instant => {
                self.ready.insert(number);
            }
            Place::Back(_, due) => {
                self.timers.insert((due, number));
            }
        }
        self.places.insert(number, place);
        self.journal.note(now, Line::At(number, place));
    }

    /// A message comes back, unless it was removed meanwhile.
    fn come_back(&mut self, now: Now, number: u64, past: Past, due: Instant, store: &Store) {
        if store.kept.contains_key(&number) {
            self.put(now, number, Some(Place::Back(past, due)));
        } else {
            self.put(now, number, None);
            self.lose(now, 1);
        }
    }

    pub(crate) fn lose(&mut self, now: Now, messages: u64) {
        self.lost += messages;
        self.journal.note(now, Line::Lost(self.lost));
    }

    /// What was lost since this was asked last.
    pub(crate) fn take_lost(&mut self, now: Now) -> Option<u64> {
        let lost = std::mem::take(&mut self.lost);
        if lost > 0 {
            self.journal.note(now, Line::Lost(0));
        }
        (lost > 0).then_some(lost)
    }

    /// Ends the leases whose time has come, and brings back what is due.
    pub(crate) fn advance(&mut self, now: Now, store: &Store) {
        while let Some(&(at, number)) = self.timers.first()
            && at <= now.instant
        {
            self.timers.pop_first();
            match self.places.get(&number) {
                Some(Place::Held(lease)) => {
                    let past = Past {
                        made: lease.past.made + u32::from(lease.counted),
                        reclaimed: true,
                    };
                    self.come_back(now, number, past, now.instant, store);
                }
                Some(Place::Back(..)) => {
                    self.ready.insert(number);
                }
                None => {}
            }
        }
    }

    /// When [`Group::advance`] has something to do.
    pub(crate) fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Leases to a member what it wants: first what came back, then what is new.
    pub(crate) fn take(&mut self, now: Now, member: u64, want: Want, store: &Store) -> Vec<Taken> {
        let mut taken: Vec<Taken> = Vec::new();
        let mut bytes = want.bytes;
        while taken.len() < want.messages {
            let back = self.ready.first().copied();
            let new = || store.kept.range(self.cursor..).next().map(|(n, _)| *n);
            let Some(number) = back.or_else(new) else {
                break;
            };
            let size = store.kept.get(&number).map_or(0, |kept| kept.bytes);
            if size > bytes && !taken.is_empty() {
                break;
            }
            bytes = bytes.saturating_sub(size);
            let past = match self.places.get(&number) {
                Some(Place::Back(past, _)) => *past,
                _ => Past::default(),
            };
            self.cursor = self.cursor.max(number + 1);
            let lease = Lease {
                generation: self.generation,
                member,
                past,
                // A first hand-out is not begun at the broker, so it counts from the fetch on.
                counted: past.made == 0,
                deadline: now.instant + self.lease,
            };
            self.generation = self.generation.wrapping_add(1);
            self.put(now, number, Some(Place::Held(lease)));
            taken.push(Taken {
                number,
                token: token(number, lease.generation),
                past,
                deadline: lease.deadline,
            });
        }
        taken
    }

    /// What a member's token names, while its lease is live.
    pub(crate) fn held(&self, member: u64, token: Token) -> Option<(u64, Lease)> {
        let number = *self.held.get(&token)?;
        match self.places.get(&number)? {
            Place::Held(lease) if lease.member == member => Some((number, *lease)),
            _ => None,
        }
    }

    /// Settles one token of a member; None when its lease is lost. The number of a message that is
    /// done goes to `done`, for the store, once the journal is written.
    pub(crate) fn settle(
        &mut self,
        now: Now,
        member: u64,
        token: Token,
        outcome: &Outcome,
        store: &Store,
        done: &mut Vec<u64>,
    ) -> Option<Settled> {
        let (number, mut lease) = self.held(member, token)?;
        match outcome {
            Outcome::Begin | Outcome::Extend => {
                lease.deadline = now.instant + self.lease;
                lease.counted |= matches!(outcome, Outcome::Begin);
                self.put(now, number, Some(Place::Held(lease)));
                return Some(Settled::Lease(lease.deadline));
            }
            Outcome::Nack(delay) => {
                let past = Past {
                    made: lease.past.made + 1,
                    reclaimed: false,
                };
                self.come_back(now, number, past, now.after(*delay), store);
            }
            Outcome::Return => self.come_back(now, number, lease.past, now.instant, store),
            // The copy of what is given up stands in its topic by now.
            Outcome::Ack | Outcome::DeadLetter(_) | Outcome::Quarantine(_) => {
                self.put(now, number, None);
                done.push(number);
            }
        }
        Some(Settled::Done)
    }

    /// Whether a member holds anything.
    pub(crate) fn holds(&self, member: u64) -> bool {
        self.places
            .values()
            .any(|p| matches!(p, Place::Held(l) if l.member == member))
    }

    /// Gives back what a member holds at the end of its close. It gave back by itself what it had not
    /// handed out, so these are attempts.
    pub(crate) fn return_all(&mut self, now: Now, member: u64, store: &Store) {
        for (number, place) in self.places.clone() {
            if let Place::Held(lease) = place
                && lease.member == member
            {
                let past = Past {
                    made: lease.past.made + u32::from(lease.counted),
                    ..lease.past
                };
                self.come_back(now, number, past, now.instant, store);
            }
        }
    }

    /// These messages were removed, settled or not. What a member holds of them is counted when it
    /// comes back.
    pub(crate) fn trimmed(&mut self, now: Now, removed: &[u64]) {
        let mut lost = 0;
        for number in removed {
            match self.places.get(number) {
                Some(Place::Held(_)) => {}
                Some(Place::Back(..)) => {
                    self.put(now, *number, None);
                    lost += 1;
                }
                None => lost += u64::from(*number >= self.cursor),
            }
        }
        if let Some(last) = removed.last() {
            self.cursor = self.cursor.max(last + 1);
            let line = Line::Cursor(self.cursor, self.generation);
            self.journal.note(now, line);
        }
        if lost > 0 {
            self.lose(now, lost);
        }
    }

    /// Forgets who holds what: everything that is not settled comes again, as for the first time.
    pub(crate) fn forget(&mut self, now: Now, store: &Store) {
        for number in self.places.keys().copied().collect::<Vec<_>>() {
            self.come_back(now, number, Past::default(), now.instant, store);
        }
    }

    pub(crate) fn lag(&self, store: &Store) -> Lag {
        Lag {
            waiting: store.kept.range(self.cursor..).count() as u64,
            pending: self.places.len() as u64,
        }
    }
}

fn token(number: u64, generation: u32) -> Token {
    Token {
        // For people: the generation alone names the lease.
        slot: (number & u64::from(u32::MAX)) as u32,
        generation,
    }
}
