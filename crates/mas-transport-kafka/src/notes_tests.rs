//! What happens when there are more notes than there is room for.

use std::time::Duration;

use crate::mark::{LATEST, Mark, Past, SPAN, SURE};
use crate::tracker::{Snapshot, Tracker};
use crate::tracker_tests::{DUE, LEASE, begun, fetched, mark, mark_of, nacked, restored};

/// The longest one.
fn long(due: u64) -> Past {
    Past {
        made: u32::MAX,
        reclaimed: false,
        due: Some(due),
    }
}

#[test]
fn notes_without_room_wait_in_order() {
    let many = SURE as u64 + 60;
    let mut tracker = fetched(many);
    // From the back, so that the order is not that of the offsets.
    let order: Vec<u64> = (100..100 + many).rev().collect();
    let mut changes = Vec::new();
    for offset in &order {
        tracker.note(*offset, long(if offset % 10 == 0 { 1 } else { LATEST }));
        changes.push(tracker.change());
    }
    let held = |snapshot: &Snapshot| -> Vec<u64> {
        let zip = order.iter().zip(&changes);
        let held = zip.filter(|(offset, change)| snapshot.holds(**offset, **change));
        held.map(|(offset, _)| *offset).collect()
    };
    let snapshot = tracker.snapshot(LEASE, Some(0));
    let (first, rest) = (held(&snapshot), mark_of(&snapshot).notes.len());
    assert_eq!(first.len(), rest);
    assert!((SURE..SURE + 20).contains(&rest), "{rest}");
    assert_eq!(first, order[..rest]);

    // A later note of one that waits does not make it later, nor the earlier confirmed.
    let waits = order[rest];
    tracker.note(waits, long(LATEST - 1));
    let again = tracker.change();
    let snapshot = tracker.snapshot(LEASE, Some(0));
    assert!(!snapshot.holds(waits, changes[rest]) && !snapshot.holds(waits, again));
    assert_eq!(tracker.past(waits), Some(long(LATEST - 1)));

    // Two settled make room for the next ones; one that waits and is settled is confirmed.
    tracker.settle(order[3]);
    tracker.settle(order[5]);
    let last = *order.last().unwrap();
    tracker.settle(last);
    let settled = tracker.change();
    assert!(!snapshot.holds(last, settled));
    let snapshot = tracker.snapshot(LEASE, Some(0));
    assert!(snapshot.holds(last, settled) && snapshot.holds(waits, again));
    let noted: Vec<_> = mark_of(&snapshot)
        .notes
        .iter()
        .map(|note| note.0 + snapshot.position)
        .collect();
    assert!(noted.contains(&waits) && noted.contains(&order[rest + 1]));
    assert!(
        order[..rest]
            .iter()
            .all(|at| noted.contains(at) || [order[3], order[5]].contains(at))
    );
}

#[test]
fn a_note_that_grew_too_long_leaves_the_one_before() {
    let mut tracker = fetched(1_000);
    for offset in 100..1_100 {
        tracker.note(offset, begun(1));
    }
    let full = mark_of(&tracker.snapshot(LEASE, Some(0))).notes.len();
    assert!(full > 400, "{full}");
    let committed = tracker.change();
    // The next attempts of all begin, as they are not longer.
    for offset in 100..100 + full as u64 {
        tracker.note(offset, begun(2));
        assert!(
            tracker
                .snapshot(LEASE, Some(0))
                .holds(offset, tracker.change())
        );
    }
    // Some may grow, so that not all wait for each other.
    let mut grown = 0;
    for offset in 100..100 + full as u64 {
        tracker.note(offset, long(DUE));
        let snapshot = tracker.snapshot(LEASE, Some(0));
        assert!(snapshot.holds(offset, committed));
        grown += usize::from(snapshot.holds(offset, tracker.change()));
    }
    assert!(grown > 0 && grown < 20, "{grown}");
    let notes = mark_of(&tracker.snapshot(LEASE, Some(0))).notes;
    assert_eq!(notes.len(), full);
    let short = notes.iter().filter(|note| note.1 == begun(2)).count();
    assert_eq!(short, full - grown);
    // Room goes to them before it goes to those that never had any.
    for offset in full as u64..100 + full as u64 - 1 {
        tracker.settle(offset);
    }
    let notes = mark_of(&tracker.snapshot(LEASE, Some(0))).notes;
    assert_eq!(notes.len(), full - 99);
    assert!(notes.iter().filter(|note| note.1 == long(DUE)).count() > grown + 20);
    // The shorter one still has its place.
    tracker.note(99 + full as u64, begun(3));
    assert!(
        tracker
            .snapshot(LEASE, Some(0))
            .holds(99 + full as u64, tracker.change())
    );
}

#[test]
fn settling_never_drives_out_a_note() {
    let mut tracker = Tracker::restored(0, None, 0);
    let mut offset = 0;
    while tracker.room() > 0 {
        tracker.fetched(offset, ());
        offset += 1;
    }
    assert_eq!(offset, SPAN);
    for offset in 0..SPAN {
        tracker.note(offset, long(if offset == 0 { 1 } else { LATEST }));
    }
    let notes = mark_of(&tracker.snapshot(LEASE, Some(0))).notes;
    assert!(notes.len() >= SURE);
    for offset in (SURE as u64 * 2..SPAN).step_by(2) {
        tracker.settle(offset);
    }
    // One more after a long gap.
    tracker.settle(0);
    tracker.skip_to(SPAN * 3);
    tracker.fetched(1 << 60, ());
    let snapshot = tracker.snapshot(Duration::from_millis(u64::MAX), Some(u64::MAX));
    let mark = mark_of(&snapshot);
    assert!(mark.settled.len() > 8_000 && mark.notes.len() >= SURE);
    let stays = |note: &&(u64, Past)| note.0 > 0;
    assert!(
        notes
            .iter()
            .filter(stays)
            .all(|(at, past)| mark.notes.contains(&(at - 1, *past)))
    );
    assert!(snapshot.holds(SPAN - 2, snapshot.change));
}

#[test]
fn the_longest_notes_far_apart_have_room() {
    let mut tracker = Tracker::restored(0, None, 0);
    for offset in 0..SPAN - 1 {
        tracker.fetched(offset, ());
    }
    let far = (1 << 63) - 1;
    tracker.fetched(far, ());
    let apart = SPAN / (SURE as u64 - 1);
    let offsets = (0..SURE as u64 - 1).map(|i| i * apart + 3);
    for offset in offsets.chain([far]) {
        tracker.note(offset, long(if offset == 3 { 0 } else { LATEST }));
        assert!(
            tracker
                .snapshot(LEASE, Some(0))
                .holds(offset, tracker.change())
        );
    }
}

#[test]
fn a_mark_that_leaves_no_room_confirms_nothing_wrongly() {
    let foreign = Mark {
        settled: (1..1_400).map(|i| i << 14..(i << 14) + 1).collect(),
        notes: (0..1_000).map(|i| (i << 3, nacked(1))).collect(),
        ..mark()
    };
    let mut tracker = restored(&foreign, u64::MAX);
    for offset in 100..100 + SPAN {
        tracker.fetched(offset, offset);
    }
    for offset in (101..100 + SPAN).step_by(2) {
        tracker.settle(offset);
    }
    let snapshot = tracker.snapshot(LEASE, Some(0));
    let mark = mark_of(&snapshot);
    assert!(mark.settled.len() > 8_000 && mark.settled.len() < 9_400);
    assert!(snapshot.holds(101, tracker.change()));
    assert!(!snapshot.holds(100 + (1_399 << 14), 0));
}
