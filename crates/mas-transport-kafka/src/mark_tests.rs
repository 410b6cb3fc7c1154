//! The text beside a position: what it looks like, how long it gets, and that no text does harm.
#![expect(clippy::single_range_in_vec_init, reason = "there is one run")]

use std::ops::Range;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::mark::{LATEST, LIMIT, Mark, NOTES_ROOM, Past, SPAN, SURE, notes_len, write};

fn mark(settled: Vec<Range<u64>>, notes: Vec<(u64, Past)>) -> Mark {
    Mark {
        lease: Duration::from_secs(30),
        reach: 500,
        settled,
        notes,
    }
}

fn past(made: u32, reclaimed: bool, due: Option<u64>) -> Past {
    Past {
        made,
        reclaimed,
        due,
    }
}

fn text_of(bytes: &[u8]) -> String {
    format!("mas1.{}", BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

fn decode_bytes(bytes: &[u8]) -> Result<Option<Mark>, String> {
    Mark::decode(&text_of(bytes))
}

#[test]
fn the_format_is_as_documented() {
    let now = 1_800_000_000_000;
    let notes = vec![
        (0, past(1, true, None)),
        (3, past(2, false, Some(now + 300))),
        (4, past(u32::MAX, true, Some(now))),
    ];
    let runs = mark(vec![1..3, 7..1_000], notes);
    let mut bytes = vec![0xb0, 0xea, 1, 0xf4, 3]; // 30,000 ms, reach 500
    bytes.extend([0, 2, 0, 2, 4, 0xe1, 7]); // no bitmap; two runs
    bytes.extend([3, 0x80, 0xa0, 0xf1, 0xc2, 0xb1, 0x34]); // three notes from `now` on
    bytes.extend([0, 5]); // 1 attempt, reclaimed
    bytes.extend([2, 10, 0xac, 2]); // 2 attempts, due 300 ms later
    bytes.extend([0, 0xff, 0xff, 0xff, 0xff, 0x3f, 0]);
    assert_eq!(runs.encode(), Some(text_of(&bytes)));
    assert_eq!(decode_bytes(&bytes), Ok(Some(runs)));

    let settled = vec![1..2, 3..4, 5..6, 8..10, 12..13, 14..15];
    let bits = mark(settled, vec![]);
    let bytes = [0xb0, 0xea, 1, 0xf4, 3, 2, 0b1001_0101, 0b0010_1001, 0, 0];
    assert_eq!(bits.encode(), Some(text_of(&bytes)));
    assert_eq!(decode_bytes(&bytes), Ok(Some(bits)));

    // A run that begins in the bitmap and ends beyond.
    let joined = decode_bytes(&[0, 0, 1, 0x81, 2, 0, 3, 4, 1, 0]).unwrap();
    assert_eq!(joined.unwrap().settled, [1..2, 8..12, 16..17]);
}

#[test]
fn what_is_usual_is_short() {
    let nothing = mark(vec![], vec![]).encode().unwrap();
    assert_eq!(nothing, "mas1.sOoB9AMAAAA");
    let one_open = mark(vec![1..400], vec![]).encode().unwrap();
    assert!(one_open.len() < 22, "{one_open}");
    // 1,000 in flight, each second settled.
    let half = (0..500).map(|i| 2 * i + 1..2 * i + 2).collect();
    assert!(mark(half, vec![]).encode().unwrap().len() < 185);
    // 150 nacked within five minutes take less than the room of the notes.
    let nacked = |i: u64| (3 * i, past(1, false, Some(1_800_000_000_000 + 2_000 * i)));
    assert!(notes_len((0..150).map(nacked)) < NOTES_ROOM);
}

#[test]
fn the_longest_bitmap_and_the_longest_notes_fit() {
    // All numbers at their longest: each second offset open, the last one far away behind a gap or
    // settled, the notes as far apart as they can be, with due times at both ends.
    let far = u64::MAX - 1;
    for offset in [0, 1] {
        let mut settled: Vec<_> = (0..SPAN / 2)
            .map(|i| 2 * i + 1 + offset..2 * i + 2 + offset)
            .collect();
        settled.push(SPAN + 2..far);
        let worst = past(u32::MAX, true, Some(LATEST));
        let apart = SPAN / (SURE as u64 - 1);
        let mut notes: Vec<_> = (0..SURE as u64 - 1).map(|i| (i * apart, worst)).collect();
        notes[0].1.due = Some(0);
        notes.push((far, worst));
        let mark = Mark {
            lease: Duration::from_millis(u64::MAX),
            reach: u64::MAX,
            settled,
            notes,
        };
        let text = mark.encode().unwrap();
        assert!(text.len() <= LIMIT);
        assert_eq!(Mark::decode(&text), Ok(Some(mark)));
    }

    // The same by the bounds that were used: a gap of two bytes, a head of five, a due time of
    // seven for each note; once each the count, the earliest due time, and the longest gap.
    const { assert!(SURE * (2 + 5 + 7) + 1 + 7 + 8 <= NOTES_ROOM) };
    let worst = |i| {
        (
            i,
            past(u32::MAX, true, Some(if i == 0 { LATEST } else { 0 })),
        )
    };
    assert!(notes_len((0..SURE as u64).map(worst)) <= NOTES_ROOM);
}

#[test]
fn what_does_not_fit_is_left_out_at_the_far_end() {
    let settled = (0..4_000).map(|i| i * 1_000 + 1..i * 1_000 + 2);
    let (text, left_out) = write(Duration::ZERO, 0, settled.clone(), [].into_iter());
    assert!(text.len() <= LIMIT);
    let left_out = left_out.unwrap();
    let expected: Vec<_> = settled.clone().filter(|run| run.end <= left_out).collect();
    assert!(expected.len() > 200, "{}", expected.len());
    assert_eq!(Mark::decode(&text).unwrap().unwrap().settled, expected);
    assert_eq!(mark(settled.collect(), vec![]).encode(), None);

    let notes = (0..4_000).map(|i| (i, Past::default())).collect();
    assert_eq!(mark(vec![], notes).encode(), None);
}

#[test]
fn what_others_wrote_says_nothing() {
    let others = [
        "", "mas", "mas.AAAA", "masA.AA", "mas1", "MAS1.AA", " mas1.", "{}", "é",
    ];
    for text in others {
        assert_eq!(Mark::decode(text), Ok(None), "{text}");
    }
}

#[test]
fn what_cannot_be_read_is_an_error() {
    let version = format!("mas{}.", "2".repeat(1_000));
    let long = format!("mas1.{}", "A".repeat(LIMIT - 4));
    let texts = [
        "mas2.sOoB9AMAAAA",
        "mas01.AA",
        "mas1.",
        "mas1.A",
        "mas1.sOoB9AMAAA",
        "mas1.sOoB9AMAAAA=",
        "mas1.sOoB9AMAAAB",
        "mas1.sOoB9AMAAAAA",
        "mas1.+/+/",
        "mas1.é",
        &version,
        &long,
    ];
    for text in texts {
        let why = Mark::decode(text).unwrap_err();
        assert!(!why.is_empty() && why.len() < 100, "{text}: {why}");
    }
    let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    let too_large = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 2];
    let with = |before: &[u8], number: &[u8], after: &[u8]| [before, number, after].concat();
    for bytes in [
        with(&[], &too_large, &[0, 0, 0, 0]),
        with(&[], &[0x80; 11], &[0, 0, 0, 0]),
        with(&[0, 0], &huge, &[0, 0]),                // a bitmap
        with(&[0, 0, 0], &huge, &[0, 0]),             // a count of runs
        with(&[0, 0, 0, 1], &huge, &[1, 0]),          // the start of a run
        with(&[0, 0, 0, 1, 0], &huge, &[0]),          // the end of a run
        with(&[0, 0, 0, 1, 0, 0, 0], &[], &[]),       // an empty run
        with(&[0, 0, 0, 0], &huge, &[0, 0, 0]),       // a count of notes
        with(&[0, 0, 0, 0, 2, 0], &huge, &[0, 0, 0]), // a note after the last offset
        with(&[0, 0, 0, 0, 1, 0, 0], &huge, &[0]),    // attempts
        with(&[0, 0, 0, 0, 1, 9, 0, 2], &huge, &[]),  // a due time
        with(&[0, 0, 0, 0, 0], &[0], &[]),            // more than there should be
    ] {
        assert!(decode_bytes(&bytes).is_err(), "{bytes:?}");
    }
    assert!(decode_bytes(&with(&huge, &huge, &[0, 0, 0])).is_ok());
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => 0..4u64,
        4 => 0..300u64,
        1 => 0..100_000u64,
        1 => any::<u64>().prop_map(|number| number >> (number % 48)),
    ]
}

fn any_past() -> impl Strategy<Value = Past> {
    let due = prop_oneof![
        Just(None),
        (0..400_000u64).prop_map(|ms| Some(1_800_000_000_000 + ms)),
        any::<u64>().prop_map(Some),
    ];
    let made = prop_oneof![0..4u32, any::<u32>()];
    (made, any::<bool>(), due).prop_map(|(made, reclaimed, due)| past(made, reclaimed, due))
}

fn any_mark() -> impl Strategy<Value = Mark> {
    let many = || prop_oneof![0..5usize, 0..60usize, 0..600usize];
    let runs = many().prop_flat_map(|n| vec((number(), number()), n));
    let notes = many().prop_flat_map(|n| vec((number(), any_past()), n));
    (any::<u64>(), number(), runs, notes).prop_map(|(lease, reach, runs, notes)| {
        let (mut settled, mut at) = (Vec::new(), 0u64);
        for (open, length) in runs {
            let start = at.saturating_add(open).saturating_add(1);
            at = start.saturating_add(length).saturating_add(1);
            if at < u64::MAX {
                settled.push(start..at);
            }
        }
        let (mut noted, mut at) = (Vec::new(), Some(0u64));
        for (gap, past) in notes {
            let Some(offset) = at.and_then(|at| at.checked_add(gap)) else {
                break;
            };
            noted.push((offset, past));
            at = offset.checked_add(1);
        }
        Mark {
            lease: Duration::from_millis(lease),
            reach,
            settled,
            notes: noted,
        }
    })
}

/// A mark is as its fields say.
fn check(mark: &Mark) {
    assert!(
        mark.settled
            .iter()
            .all(|run| 0 < run.start && run.start < run.end)
    );
    assert!(mark.settled.windows(2).all(|two| two[0].end < two[1].start));
    assert!(mark.notes.windows(2).all(|two| two[0].0 < two[1].0));
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(10_000))]

    #[test]
    fn a_mark_comes_back_as_it_was(mark in any_mark()) {
        check(&mark);
        if let Some(text) = mark.encode() {
            prop_assert!(text.len() <= LIMIT);
            prop_assert_eq!(Mark::decode(&text), Ok(Some(mark)));
        }
    }

    #[test]
    fn any_bytes_are_a_mark_or_an_error(
        bytes in vec(prop_oneof![4 => 0..4u8, 1 => any::<u8>()], 0..60),
    ) {
        if let Ok(mark) = decode_bytes(&bytes) {
            let mark = mark.unwrap();
            check(&mark);
            let text = mark.encode().unwrap();
            prop_assert_eq!(Mark::decode(&text), Ok(Some(mark)));
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in "(mas[0-9]?[.]?)?[A-Za-z0-9_.-]{0,40}|\\PC{0,40}") {
        if let Ok(Some(mark)) = Mark::decode(&text) {
            check(&mark);
        }
    }

    #[test]
    fn a_damaged_text_is_read_or_refused(
        mark in any_mark(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..4),
    ) {
        let mut text = mark.encode().unwrap_or_default().into_bytes();
        for (at, byte, how) in damage {
            let at = at.index(text.len() + 1);
            match how {
                0 => text.truncate(at),
                1 => text.insert(at, byte),
                _ => if let Some(old) = text.get_mut(at) { *old ^= byte % 64 },
            }
        }
        if let Ok(Some(mark)) = Mark::decode(&String::from_utf8_lossy(&text)) {
            check(&mark);
        }
    }
}
