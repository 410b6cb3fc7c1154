//! The rules of the tracker one by one.
#![expect(clippy::single_range_in_vec_init, reason = "there is one run")]

use std::time::{Duration, Instant};

use crate::mark::{LATEST, LIMIT, Mark, Past, SPAN};
use crate::tracker::{Arrival, Snapshot, Tracker};

pub(crate) const LEASE: Duration = Duration::from_secs(30);
pub(crate) const DUE: u64 = 1_800_000_000_000;

const FRESH: Past = Past {
    made: 0,
    reclaimed: false,
    due: None,
};
/// Of what a former owner may have handed out.
const DOUBTFUL: Past = Past {
    made: 1,
    reclaimed: true,
    due: None,
};

pub(crate) fn nacked(made: u32) -> Past {
    Past {
        made,
        reclaimed: false,
        due: Some(DUE + u64::from(made)),
    }
}

pub(crate) fn begun(made: u32) -> Past {
    Past {
        made,
        reclaimed: false,
        due: None,
    }
}

pub(crate) fn mark_of(snapshot: &Snapshot) -> Mark {
    assert!(snapshot.metadata.len() <= LIMIT);
    Mark::decode(&snapshot.metadata).unwrap().unwrap()
}

/// From 100 on, so many fetched.
pub(crate) fn fetched(entries: u64) -> Tracker<u64> {
    let mut tracker = Tracker::restored(100, None, 100);
    for offset in 100..100 + entries {
        assert_eq!(tracker.fetched(offset, offset), Arrival::New(FRESH));
    }
    tracker
}

pub(crate) fn restored(mark: &Mark, end: u64) -> Tracker<u64> {
    Tracker::restored(100, Some(mark), end)
}

pub(crate) fn mark() -> Mark {
    Mark {
        lease: LEASE,
        reach: 0,
        settled: vec![],
        notes: vec![],
    }
}

#[test]
fn the_position_is_the_lowest_unsettled_offset() {
    let mut tracker = fetched(4);
    assert_eq!(
        (tracker.position(), tracker.next(), tracker.open()),
        (100, 104, 4)
    );
    assert_eq!(tracker.settle(102), Some(102));
    assert_eq!(tracker.settle(101), Some(101));
    assert_eq!((tracker.position(), tracker.open()), (100, 2));
    let snapshot = tracker.snapshot(LEASE, Some(10));
    assert_eq!((snapshot.position, snapshot.change), (100, 2));
    let expected = Mark {
        reach: 14,
        settled: vec![1..3],
        ..mark()
    };
    assert_eq!(mark_of(&snapshot), expected);
    assert_eq!(tracker.settle(100), Some(100));
    assert_eq!((tracker.position(), tracker.next()), (103, 104));
    assert_eq!(tracker.settle(103), Some(103));
    assert_eq!(
        (tracker.position(), tracker.next(), tracker.open()),
        (104, 104, 0)
    );
    assert_eq!(mark_of(&tracker.snapshot(LEASE, None)), mark());
}

#[test]
fn what_is_not_open_is_neither_settled_nor_noted() {
    let mut tracker = fetched(3);
    assert_eq!(tracker.settle(101), Some(101));
    let change = tracker.change();
    for offset in [0, 99, 101, 103, u64::MAX] {
        assert_eq!(tracker.settle(offset), None);
        assert!(!tracker.note(offset, begun(1)));
        assert_eq!((tracker.get(offset), tracker.past(offset)), (None, None));
    }
    assert_eq!(tracker.change(), change);
    assert_eq!(tracker.get(102), Some(&102));
}

#[test]
fn gaps_count_as_settled() {
    let mut tracker = Tracker::restored(100, None, 100);
    for offset in [103, 104, 110, 1_000_000_000_000] {
        assert_eq!(tracker.fetched(offset, offset), Arrival::New(FRESH));
    }
    assert_eq!(
        (tracker.position(), tracker.next()),
        (103, 1_000_000_000_001)
    );
    assert_eq!(tracker.room(), 0);
    assert_eq!(tracker.get(110), Some(&110));
    assert_eq!(tracker.get(109), None);
    let snapshot = tracker.snapshot(LEASE, Some(0));
    assert_eq!(mark_of(&snapshot).settled, [2..7, 8..999_999_999_897]);
    for offset in [103, 104, 110] {
        assert_eq!(tracker.settle(offset), Some(offset));
    }
    assert_eq!(tracker.position(), 1_000_000_000_000);
    assert!((tracker.room() > 0));
}

#[test]
fn what_comes_twice_is_skipped() {
    let mut tracker = fetched(3);
    tracker.settle(101);
    for offset in [99, 100, 101, 102] {
        assert_eq!(tracker.fetched(offset, 0), Arrival::Settled);
    }
    assert_eq!(tracker.get(100), Some(&100));
    assert_eq!(tracker.fetched(u64::MAX, 0), Arrival::Settled);
    assert_eq!((tracker.next(), tracker.open()), (103, 2));
}

#[test]
fn skipping_takes_only_what_was_not_fetched() {
    let noted = Mark {
        settled: vec![5..8],
        notes: vec![(4, nacked(1)), (9, nacked(2))],
        ..mark()
    };
    let mut tracker = restored(&noted, 200);
    tracker.fetched(100, 100);
    assert_eq!(tracker.skip_to(101), 0);
    assert_eq!(tracker.change(), 0);
    // Of 101 to 105, one was settled.
    assert_eq!(tracker.skip_to(106), 4);
    assert_eq!(tracker.change(), 1);
    assert_eq!(
        (tracker.position(), tracker.next(), tracker.open()),
        (100, 108, 1)
    );
    let expected = Mark {
        reach: 8,
        settled: vec![1..8],
        notes: vec![(9, nacked(2))],
        ..mark()
    };
    assert_eq!(mark_of(&tracker.snapshot(LEASE, Some(0))), expected);
    assert_eq!(tracker.skip_to(50), 0);
    assert_eq!(tracker.skip_to(1_000), 892);
    assert_eq!(tracker.settle(100), Some(100));
    assert_eq!((tracker.position(), tracker.next()), (1_000, 1_000));
    assert_eq!(mark_of(&tracker.snapshot(LEASE, Some(0))), mark());
}

#[test]
fn what_was_within_reach_may_have_been_handed_out() {
    let past = |reach, end, offset| {
        let noted = Mark {
            reach,
            settled: vec![2..3],
            notes: vec![(3, begun(2)), (4, nacked(2)), (20, begun(1))],
            ..mark()
        };
        let mut tracker = restored(&noted, end);
        let Arrival::New(past) = tracker.fetched(offset, 0) else {
            panic!("{offset} is settled");
        };
        assert_eq!(tracker.past(offset), Some(past));
        past
    };
    let reclaimed = |made| Past {
        reclaimed: true,
        ..begun(made)
    };
    for (offset, expected) in [
        (100, DOUBTFUL),
        (101, DOUBTFUL),
        (103, reclaimed(2)),
        (104, nacked(2)),
        (109, DOUBTFUL),
        (110, FRESH),
        (120, begun(1)),
    ] {
        assert_eq!(past(10, 200, offset), expected, "{offset}");
    }
    // The log ended within reach.
    assert_eq!(past(10, 108, 107), DOUBTFUL);
    assert_eq!(past(10, 108, 108), FRESH);
    assert_eq!(past(u64::MAX, 108, 108), FRESH);
    // Given up cleanly.
    assert_eq!(past(0, 200, 100), FRESH);
    assert_eq!(past(0, 200, 103), begun(2));
    assert_eq!(past(0, 200, 104), nacked(2));
}

#[test]
fn what_was_settled_above_is_passed_over() {
    let above = Mark {
        settled: vec![1..3, 5..6],
        ..mark()
    };
    let mut tracker = restored(&above, 200);
    assert_eq!((tracker.position(), tracker.next()), (100, 100));
    assert_eq!(mark_of(&tracker.snapshot(LEASE, None)), above);
    assert_eq!(tracker.fetched(100, 0), Arrival::New(FRESH));
    assert_eq!(tracker.next(), 103);
    assert_eq!(tracker.fetched(101, 0), Arrival::Settled);
    assert_eq!(tracker.fetched(102, 0), Arrival::Settled);
    // A gap up to a settled one.
    assert_eq!(tracker.fetched(105, 0), Arrival::Settled);
    assert_eq!(
        (tracker.position(), tracker.next(), tracker.open()),
        (100, 106, 1)
    );
    tracker.settle(100);
    assert_eq!((tracker.position(), tracker.next()), (106, 106));
}

#[test]
fn records_in_the_place_of_lost_ones_are_new() {
    let lost = Mark {
        reach: 10,
        settled: vec![1..2, 3..7],
        notes: vec![(2, nacked(1)), (7, nacked(2))],
        ..mark()
    };
    let mut tracker = restored(&lost, 104);
    let pasts: Vec<_> = (100..109)
        .map(|offset| tracker.fetched(offset, 0))
        .collect();
    let new = |past| Arrival::New(past);
    assert_eq!(
        pasts[..4],
        [
            new(DOUBTFUL),
            Arrival::Settled,
            new(nacked(1)),
            Arrival::Settled
        ]
    );
    assert!(pasts[4..].iter().all(|arrival| *arrival == new(FRESH)));
    let tracker = restored(&lost, 50);
    assert_eq!((tracker.position(), tracker.next()), (100, 100));
    assert_eq!(mark_of(&tracker.snapshot(LEASE, Some(0))), mark());
}

#[test]
fn a_doubt_outlives_the_next_owner() {
    let doubtful = Mark {
        reach: 10,
        ..mark()
    };
    let mut tracker = restored(&doubtful, 200);
    tracker.fetched(100, 0);
    assert_eq!(mark_of(&tracker.snapshot(LEASE, Some(2))).reach, 10);
    assert_eq!(mark_of(&tracker.snapshot(LEASE, Some(12))).reach, 13);
    // Also when it is given up cleanly: what nobody has begun since counts as it did.
    assert_eq!(mark_of(&tracker.snapshot(LEASE, None)).reach, 10);
}

#[test]
fn a_note_replaces_the_one_before_and_goes_with_its_entry() {
    let mut tracker = fetched(3);
    assert!(tracker.note(101, nacked(1)));
    assert!(tracker.note(101, begun(2)));
    assert_eq!(tracker.past(101), Some(begun(2)));
    assert_eq!(tracker.change(), 2);
    let snapshot = tracker.snapshot(LEASE, None);
    assert_eq!(mark_of(&snapshot).notes, [(1, begun(2))]);
    assert!(snapshot.holds(101, 1) && snapshot.holds(101, 2) && !snapshot.holds(101, 3));
    tracker.settle(101);
    assert!(mark_of(&tracker.snapshot(LEASE, None)).notes.is_empty());

    let mut due = nacked(1);
    due.due = Some(u64::MAX);
    tracker.note(100, due);
    assert_eq!(tracker.past(100).unwrap().due, Some(LATEST));
}

#[test]
fn notes_of_a_former_owner_stay_until_their_entries_come() {
    let noted = Mark {
        notes: vec![(2, nacked(1)), (5, nacked(2)), (7, nacked(3))],
        ..mark()
    };
    let mut tracker = restored(&noted, 200);
    tracker.fetched(100, 0);
    assert_eq!(mark_of(&tracker.snapshot(LEASE, None)), noted);
    tracker.settle(100);
    // 102 is gone; 105 is fetched.
    assert_eq!(tracker.fetched(105, 0), Arrival::New(nacked(2)));
    let snapshot = tracker.snapshot(LEASE, None);
    assert_eq!(snapshot.position, 105);
    assert_eq!(mark_of(&snapshot).notes, [(0, nacked(2)), (2, nacked(3))]);
}

/// `cargo test --release -- --ignored --nocapture what_a_snapshot_costs`
#[test]
#[ignore = "a measurement"]
fn what_a_snapshot_costs() {
    let full = |keep: fn(u64) -> bool| {
        let mut tracker = Tracker::restored(0, None, 0);
        for offset in 0..SPAN {
            tracker.fetched(offset, [0u64; 20]);
        }
        for offset in 1..SPAN {
            if !keep(offset) {
                tracker.settle(offset);
            }
        }
        tracker
    };
    let time = |name: &str, tracker: &Tracker<[u64; 20]>| {
        let mut best = Duration::MAX;
        for _ in 0..200 {
            let start = Instant::now();
            std::hint::black_box(tracker.snapshot(LEASE, Some(500)));
            best = best.min(start.elapsed());
        }
        let length = tracker.snapshot(LEASE, Some(500)).metadata.len();
        println!("{name}: {best:?}, {length} bytes");
    };
    time("all open", &full(|_| true));
    time("all settled but the first", &full(|_| false));
    time("each second open", &full(|offset| offset % 2 == 0));
    time("each tenth open", &full(|offset| offset % 10 == 0));
    let mut noted = full(|offset| offset % 2 == 0);
    for offset in (0..SPAN).step_by(2) {
        noted.note(offset, nacked(offset as u32 % 1_000));
    }
    time("each second open, all nacked", &noted);
    let start = Instant::now();
    let mut tracker = Tracker::restored(0, None, 0);
    for offset in 0..1_000_000 {
        tracker.fetched(offset, [0u64; 20]);
        if offset >= 10_000 {
            tracker.settle(offset - 10_000 + offset % 2);
            tracker.settle(offset - 10_000);
        }
    }
    println!("fetch and settle: {:?} each", start.elapsed() / 1_000_000);
}
