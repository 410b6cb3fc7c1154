//! The tracker against a naive model, over owners that come and go: whatever the order of calls,
//! the next owner knows what was confirmed, and is handed all else.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::mark::{LATEST, LIMIT, Mark, Past, SURE};
use crate::tracker::{Arrival, Snapshot, Tracker};

const LEASE: Duration = Duration::from_millis(45_678);

#[derive(Clone, Debug)]
enum Op {
    /// Records after a gap.
    Append {
        gap: u64,
        records: u64,
    },
    /// Of which the broker delivers some twice.
    Fetch {
        records: usize,
        again: u64,
    },
    Settle {
        which: Index,
        more: u8,
    },
    Note {
        which: Index,
        more: u8,
        past: Past,
    },
    /// Nothing up to the next record, or up to the end of the log.
    SkipGap,
    /// The log loses its first records.
    Trim {
        records: usize,
    },
    Commit {
        reach: u64,
    },
    /// It may have reached the broker, but nobody was told.
    Lost {
        reach: u64,
        stored: bool,
    },
    Crash,
    HandOver,
}

fn past() -> impl Strategy<Value = Past> {
    let now = 1_800_000_000_000;
    let due = prop_oneof![
        3 => Just(None),
        4 => (0..300_000u64).prop_map(move |ms| Some(now + ms)),
        1 => any::<u64>().prop_map(Some),
        1 => Just(Some(LATEST)),
    ];
    let made = prop_oneof![4 => 1..4u32, 1 => any::<u32>()];
    (made, any::<bool>(), due).prop_map(|(made, reclaimed, due)| Past {
        made,
        reclaimed,
        due,
    })
}

fn op() -> impl Strategy<Value = Op> {
    let which = any::<Index>;
    let gap = || prop_oneof![6 => Just(0u64), 3 => 1..4u64, 1 => 0..100_000u64];
    let records = || prop_oneof![4 => 1..8u64, 1 => 1..150u64];
    let more = || prop_oneof![6 => Just(0u8), 2 => 0..6u8, 1 => any::<u8>()];
    prop_oneof![
        8 => (gap(), records()).prop_map(|(gap, records)| Op::Append { gap, records }),
        10 => (records(), 0..3u64)
            .prop_map(|(records, again)| Op::Fetch { records: records as usize, again }),
        12 => (which(), more()).prop_map(|(which, more)| Op::Settle { which, more }),
        10 => (which(), more(), past())
            .prop_map(|(which, more, past)| Op::Note { which, more, past }),
        1 => Just(Op::SkipGap),
        1 => (1..5usize).prop_map(|records| Op::Trim { records }),
        8 => (0..20u64).prop_map(|reach| Op::Commit { reach }),
        2 => (0..20u64, any::<bool>()).prop_map(|(reach, stored)| Op::Lost { reach, stored }),
        2 => Just(Op::Crash),
        1 => Just(Op::HandOver),
    ]
}

/// What one commit says, by the model.
#[derive(Clone, Debug, Default)]
struct Commit {
    position: u64,
    metadata: Option<String>,
    settled: BTreeSet<u64>,
    gaps: Vec<Range<u64>>,
    notes: BTreeMap<u64, Past>,
    doubt: u64,
}

/// A change that somebody waits for.
#[derive(Clone, Copy, Debug)]
struct Wait {
    offset: u64,
    change: u64,
    note: bool,
}

struct World {
    tracker: Tracker<u64>,
    log: BTreeSet<u64>,
    end: u64,
    broker: Commit,
    // Of the owner.
    start: u64,
    next: u64,
    open: BTreeSet<u64>,
    settled: BTreeSet<u64>,
    /// Where it found no records (or not any more).
    gaps: Vec<Range<u64>>,
    notes: BTreeMap<u64, Past>,
    /// In which order the entries were first noted.
    order: Vec<u64>,
    /// All notes of an entry.
    history: BTreeMap<u64, Vec<Past>>,
    /// Those whose note has stood in a snapshot, and which.
    held: BTreeMap<u64, Past>,
    doubt: u64,
    waits: Vec<Wait>,
    // What was promised, by any owner.
    acked: BTreeSet<u64>,
    nacked: BTreeMap<u64, Past>,
    /// The most attempts that were ever noted, or 1.
    most: BTreeMap<u64, u32>,
}

impl World {
    fn new() -> Self {
        Self {
            tracker: Tracker::restored(0, None, 0),
            log: BTreeSet::new(),
            end: 0,
            broker: Commit::default(),
            start: 0,
            next: 0,
            open: BTreeSet::new(),
            settled: BTreeSet::new(),
            gaps: Vec::new(),
            notes: BTreeMap::new(),
            order: Vec::new(),
            history: BTreeMap::new(),
            held: BTreeMap::new(),
            doubt: 0,
            waits: Vec::new(),
            acked: BTreeSet::new(),
            nacked: BTreeMap::new(),
            most: BTreeMap::new(),
        }
    }

    /// The first offset that was not passed, and is not known to be settled.
    fn first_unknown(&self) -> u64 {
        let mut next = self.next;
        loop {
            if self.settled.contains(&next) {
                next += 1;
            } else if let Some(gap) = self.gaps.iter().find(|gap| gap.contains(&next)) {
                next = gap.end;
            } else {
                return next;
            }
        }
    }

    fn is_settled(&self, offset: u64) -> bool {
        self.settled.contains(&offset) || self.gaps.iter().any(|gap| gap.contains(&offset))
    }

    fn position(&self) -> u64 {
        let open = self.open.first().copied();
        open.unwrap_or_else(|| self.first_unknown())
    }

    fn expected(&self, offset: u64) -> Past {
        let doubtful = offset < self.doubt;
        self.notes.get(&offset).copied().unwrap_or(Past {
            made: u32::from(doubtful),
            reclaimed: doubtful,
            due: None,
        })
    }

    /// Nothing below `to` will be fetched any more.
    fn pass(&mut self, to: u64) {
        let passed = self.first_unknown();
        if passed < to {
            self.gaps.push(passed..to);
        }
        self.next = self.next.max(to);
        let (next, open) = (self.next, &self.open);
        let stays = |at: &u64| *at >= next || open.contains(at);
        self.notes.retain(|at, _| stays(at));
        self.held.retain(|at, _| stays(at));
        self.order.retain(|at| stays(at));
    }

    fn fetch(&mut self, offset: u64) {
        let passed = self.first_unknown();
        let arrival = self.tracker.fetched(offset, offset);
        self.pass(offset);
        self.next = self.next.max(offset + 1);
        if offset < passed || self.settled.contains(&offset) {
            assert_eq!(arrival, Arrival::Settled, "{offset}");
            return;
        }
        let Arrival::New(past) = arrival else {
            panic!("{offset} is lost");
        };
        assert!(!self.acked.contains(&offset), "{offset} was confirmed");
        assert_eq!(past, self.expected(offset), "{offset}");
        let most = self.most.get(&offset).copied().unwrap_or(1);
        assert!(past.made <= most, "{offset}");
        if let Some(promised) = self.nacked.get(&offset) {
            let same = (past.made, past.due) == (promised.made, promised.due);
            assert!(same, "{offset}");
        }
        self.open.insert(offset);
    }

    fn choose(&self, which: Index, more: u8) -> Vec<u64> {
        let open: Vec<u64> = self.open.iter().copied().collect();
        if open.is_empty() {
            return open;
        }
        let first = which.index(open.len());
        let chosen = open.iter().skip(first).take(usize::from(more) + 1);
        chosen.copied().collect()
    }

    fn settle(&mut self, offset: u64) {
        assert_eq!(self.tracker.settle(offset), Some(offset));
        assert_eq!(self.tracker.settle(offset), None);
        self.open.remove(&offset);
        self.settled.insert(offset);
        self.notes.remove(&offset);
        self.held.remove(&offset);
        self.order.retain(|at| *at != offset);
        self.wait(offset, false);
    }

    fn note(&mut self, offset: u64, mut past: Past) {
        assert!(self.tracker.note(offset, past));
        past.due = past.due.map(|due| due.min(LATEST));
        if self.notes.insert(offset, past).is_none() {
            self.order.push(offset);
        }
        assert_eq!(self.tracker.past(offset), Some(past));
        self.history.entry(offset).or_default().push(past);
        let most = self.most.entry(offset).or_insert(1);
        *most = past.made.max(*most);
        self.wait(offset, true);
    }

    fn wait(&mut self, offset: u64, note: bool) {
        let change = self.tracker.change();
        self.waits.push(Wait {
            offset,
            change,
            note,
        });
    }

    fn snapshot(&mut self, reach: Option<u64>) -> (Snapshot, Commit) {
        let snapshot = self.tracker.snapshot(LEASE, reach);
        assert_eq!(snapshot.change, self.tracker.change());
        assert!(snapshot.metadata.len() <= LIMIT);
        let mark = Mark::decode(&snapshot.metadata).unwrap().unwrap();
        let position = self.position();
        assert_eq!((snapshot.position, mark.lease), (position, LEASE));

        // All that is settled, be it by a gap.
        let next = self.first_unknown();
        for at in position + 1..next.max(position + 1) {
            let settled = mark
                .settled
                .iter()
                .any(|run| run.contains(&(at - position)));
            assert_eq!(settled, !self.open.contains(&at), "{at}");
            // One of them is enough for a long gap.
            if !self.log.contains(&at) && at > position + 500 {
                break;
            }
        }
        let above = |at: &u64| *at > position;
        for at in self.settled.iter().copied().filter(above) {
            assert!(
                mark.settled
                    .iter()
                    .any(|run| run.contains(&(at - position)))
            );
        }
        for at in self.open.iter().chain(self.notes.keys()) {
            assert!(
                !mark
                    .settled
                    .iter()
                    .any(|run| run.contains(&(at - position)))
            );
        }

        // Notes: of open entries, the last one or that which stood before; what has stood stays,
        // and so many in any case; the first ones first.
        let mut notes = BTreeMap::new();
        for (at, past) in &mark.notes {
            notes.insert(at + position, *past);
        }
        for (at, past) in &notes {
            assert!(self.notes.contains_key(at), "{at}");
            // What stood before, or came after that.
            let history = &self.history[at];
            let place = |past: &Past| history.iter().rposition(|p| p == past);
            let held = self.held.get(at).and_then(place);
            assert!(place(past).unwrap() >= held.unwrap_or(0), "{at}");
        }
        assert!(self.held.keys().all(|at| notes.contains_key(at)));
        assert!(notes.len() >= self.notes.len().min(SURE));
        if self.notes.len() <= SURE {
            assert_eq!(notes, self.notes);
        }
        let mut order = self.order.iter().skip_while(|at| notes.contains_key(at));
        assert!(order.all(|at| !notes.contains_key(at)));
        self.held.clone_from(&notes);

        for wait in &self.waits {
            let holds = snapshot.holds(wait.offset, wait.change);
            match self.notes.get(&wait.offset) {
                Some(past) if wait.note => {
                    let last = notes.get(&wait.offset) == Some(past);
                    assert!(holds || !last, "{wait:?}");
                    let later = |w: &Wait| w.offset == wait.offset && w.change > wait.change;
                    assert!(last || !holds || self.waits.iter().any(later), "{wait:?}");
                }
                _ => assert!(holds, "{wait:?}"),
            }
        }
        assert!(!snapshot.holds(position, snapshot.change + 1));

        let doubt = match reach {
            None => self.doubt,
            Some(more) => (next + more).max(self.doubt),
        };
        assert_eq!(mark.reach, doubt.saturating_sub(position));
        let commit = Commit {
            position,
            metadata: Some(snapshot.metadata.clone()),
            settled: self.settled.iter().copied().filter(above).collect(),
            gaps: self.gaps.clone(),
            notes,
            doubt,
        };
        (snapshot, commit)
    }

    fn commit(&mut self, reach: Option<u64>) {
        let (snapshot, commit) = self.snapshot(reach);
        self.broker = commit;
        for wait in std::mem::take(&mut self.waits) {
            if !snapshot.holds(wait.offset, wait.change) {
                self.waits.push(wait);
            } else if !wait.note {
                self.acked.insert(wait.offset);
                self.nacked.remove(&wait.offset);
            } else if let Some(past) = self.broker.notes.get(&wait.offset) {
                self.nacked.insert(wait.offset, *past);
            }
        }
    }

    /// The next owner, from what the broker has.
    fn take_over(&mut self) {
        let commit = self.broker.clone();
        let mark = commit
            .metadata
            .as_deref()
            .map(|text| Mark::decode(text).unwrap().unwrap());
        self.tracker = Tracker::restored(commit.position, mark.as_ref(), self.end);
        self.start = commit.position;
        self.next = commit.position;
        self.open.clear();
        self.settled = commit.settled;
        self.gaps = commit.gaps;
        self.gaps.retain(|gap| gap.end > commit.position);
        self.doubt = commit.doubt.min(self.end);
        self.waits.clear();
        self.held.clone_from(&commit.notes);
        self.notes = commit.notes;
        for (at, past) in &mut self.notes {
            if *at < self.doubt && past.due.is_none() {
                past.reclaimed = true;
            }
        }
        self.held.clone_from(&self.notes);
        self.order = self.notes.keys().copied().collect();
        let restored = self.notes.iter().map(|(at, past)| (*at, vec![*past]));
        self.history = restored.collect();
        // What was promised is known.
        for (at, past) in &self.nacked {
            if let Some(now) = self.notes.get(at) {
                assert!((now.made, now.due) == (past.made, past.due), "{at}");
            } else {
                assert!(self.settled.contains(at) || *at < self.start, "{at}");
            }
        }
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Append { gap, records } => {
                self.log.extend(self.end + gap..self.end + gap + records);
                self.end += gap + records;
            }
            Op::Fetch { records, again } => {
                let next = self.next;
                let from = next.saturating_sub(again).max(self.start);
                let fetched: Vec<u64> = self.log.range(from..).copied().take(records).collect();
                for offset in fetched {
                    if self.tracker.room() > 0 {
                        self.fetch(offset);
                    }
                }
            }
            Op::Settle { which, more } => {
                for offset in self.choose(which, more) {
                    self.settle(offset);
                }
            }
            Op::Note { which, more, past } => {
                for offset in self.choose(which, more) {
                    self.note(offset, past);
                }
            }
            Op::SkipGap => {
                let from = self.first_unknown();
                let to = self.log.range(from..).next().copied().unwrap_or(self.end);
                let gone = (from..to).filter(|at| !self.is_settled(*at)).count();
                assert_eq!(self.tracker.skip_to(to), gone as u64);
                self.pass(to);
            }
            Op::Trim { records } => {
                let first = self.log.iter().nth(records).copied().unwrap_or(self.end);
                self.log = self.log.split_off(&first);
                self.tracker.skip_to(first);
                self.pass(first);
                // Nobody is owed what is gone and was in nobody's hands.
                let open = &self.open;
                self.nacked
                    .retain(|at, _| *at >= first || open.contains(at));
            }
            Op::Commit { reach } => self.commit(Some(reach)),
            Op::Lost { reach, stored } => {
                let (_, commit) = self.snapshot(Some(reach));
                if stored {
                    self.broker = commit;
                    // The nacks that it replaces were promised by those that it has.
                    for (at, past) in &mut self.nacked {
                        *past = self.broker.notes.get(at).copied().unwrap_or(*past);
                    }
                }
            }
            Op::Crash => self.take_over(),
            Op::HandOver => {
                self.commit(None);
                self.take_over();
            }
        }
        let next = self.first_unknown();
        assert_eq!(self.tracker.position(), self.position());
        assert_eq!(self.tracker.next(), next);
        assert_eq!(self.tracker.open(), self.open.len());
        assert_eq!((self.tracker.room() > 0), next - self.position() < 16_384);
        if let Some(at) = self.open.last() {
            assert_eq!(self.tracker.get(*at), Some(at));
            assert_eq!(self.tracker.past(*at), Some(self.expected(*at)));
        }
    }

    /// In the end, an owner after a crash is handed all that is not settled.
    fn finish(&mut self) {
        self.take_over();
        let from = self.start;
        for offset in self.log.range(from..).copied().collect::<Vec<_>>() {
            while self.tracker.room() == 0 {
                let first = *self.open.first().unwrap();
                self.settle(first);
            }
            self.fetch(offset);
        }
        for offset in self.open.clone() {
            self.settle(offset);
        }
        self.tracker.skip_to(self.end);
        assert_eq!(self.tracker.position(), self.end);
        let snapshot = self.tracker.snapshot(LEASE, None);
        assert_eq!(snapshot.metadata, "mas1.7uQCAAAAAA");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_schedule_is_as_in_the_model(ops in vec(op(), 1..60)) {
        let mut world = World::new();
        for op in ops {
            world.step(op);
        }
        world.finish();
    }
}
