//! The checker is tested on edited histories: a clean one has no flaw, and each edit has exactly
//! the flaw that it puts in.

use std::time::Duration;

use conformance_tests::checker::{Flaw, Rules, check};
use conformance_tests::history::{Ended, Entry, Happened, How, Trouble};
use mas_transport_core::{Exactness, Position};

const LEASE: Duration = Duration::from_secs(30);

fn rules() -> Rules {
    Rules {
        slack: Duration::from_millis(10),
        nack_latency: Duration::from_millis(5),
        delay_slack: Duration::from_millis(5),
        reclaim_slack: Duration::from_millis(5),
        clock_error: Duration::ZERO,
        attempts: Exactness::Exact,
        cut_costs_lease: false,
        leaving_costs_ack: false,
        any_member: true,
        receipts_survive: Some(Duration::ZERO),
        acks_survive: Some(Duration::ZERO),
    }
}

/// A history under construction, with a clock that is set by hand.
#[derive(Clone, Default)]
struct Tape {
    now: Duration,
    entries: Vec<Entry>,
}

impl Tape {
    fn add(&mut self, what: Happened) {
        self.now += Duration::from_millis(1);
        let at = self.now;
        self.entries.push(Entry { at, what });
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    fn publish(&mut self, id: &str, key: Option<&str>) {
        self.add(Happened::Publishing {
            sender: 1,
            topic: "t".into(),
            id: id.into(),
            key: key.map(Into::into),
            digest: 7,
        });
        self.add(Happened::Accepted { id: id.into() });
    }

    fn join(&mut self, member: u32) {
        self.add(Happened::Joined {
            member,
            topic: "t".into(),
            group: "g".into(),
            earliest: true,
            lease: LEASE,
            prefetch: 3,
            max_attempts: 3,
        });
    }

    fn deliver(&mut self, member: u32, id: &str, attempt: u32, key: Option<&str>) {
        let deadline = self.now + LEASE;
        self.add(Happened::Delivered {
            member,
            id: id.into(),
            topic: "t".into(),
            digest: 7,
            key: key.map(Into::into),
            position: Position {
                major: 0,
                minor: id.bytes().map(u64::from).sum(),
            },
            attempt,
            deadline,
        });
    }

    fn settle(&mut self, member: u32, id: &str, attempt: u32, how: How, ended: Ended) {
        self.settling(member, id, attempt, how);
        self.add(Happened::Settled {
            member,
            id: id.into(),
            attempt,
            how,
            ended,
        });
    }

    fn settling(&mut self, member: u32, id: &str, attempt: u32, how: How) {
        self.add(Happened::Settling {
            member,
            id: id.into(),
            attempt,
            how,
            called: None,
        });
    }

    fn ack(&mut self, member: u32, id: &str, attempt: u32) {
        self.settle(member, id, attempt, How::Ack, Ended::Done);
    }

    fn idle(&mut self, member: u32, on: bool) {
        self.add(Happened::Waiting { member, on });
    }

    fn flaws(&self) -> Vec<Flaw> {
        let findings = check(&self.entries, &rules());
        let mut flaws: Vec<_> = findings.iter().map(|f| f.flaw).collect();
        flaws.dedup();
        flaws
    }

    fn position(&self, is: impl Fn(&Happened) -> bool) -> usize {
        self.entries.iter().position(|e| is(&e.what)).unwrap()
    }

    fn delivered(&self, wanted: &str) -> usize {
        self.position(|h| matches!(h, Happened::Delivered { id, .. } if id == wanted))
    }
}

/// Two members; a plain message, a nacked one, one whose holder died; then the end.
fn clean() -> Tape {
    let mut tape = Tape::default();
    tape.join(1);
    tape.join(2);
    for id in ["a", "b", "c", "d", "e"] {
        tape.publish(id, Some("k"));
    }
    tape.deliver(1, "a", 1, Some("k"));
    tape.ack(1, "a", 1);
    tape.deliver(1, "b", 1, Some("k"));
    tape.deliver(1, "c", 1, Some("k"));
    tape.ack(1, "c", 1);
    tape.settle(1, "b", 1, How::Nack(Duration::ZERO), Ended::Done);
    tape.deliver(1, "b", 2, Some("k"));
    tape.ack(1, "b", 2);
    tape.deliver(2, "d", 1, Some("k"));
    tape.add(Happened::Crashed { member: 2 });
    tape.idle(1, true);
    tape.wait(LEASE);
    tape.idle(1, false);
    tape.deliver(1, "d", 2, Some("k"));
    tape.ack(1, "d", 2);
    tape.deliver(1, "e", 1, Some("k"));
    tape.ack(1, "e", 1);
    tape.add(Happened::Drained);
    tape
}

/// Changes the first delivery of `id`.
fn altered(id: &str, change: impl Fn(&mut Happened)) -> Tape {
    let mut tape = clean();
    let at = tape.delivered(id);
    change(&mut tape.entries[at].what);
    tape
}

/// Removes every trace of the deliveries of `id`.
fn dropped(gone: &str) -> Tape {
    let mut tape = clean();
    tape.entries.retain(|e| {
        !matches!(&e.what,
            Happened::Delivered { id, .. }
            | Happened::Settling { id, .. }
            | Happened::Settled { id, .. } if id == gone)
    });
    tape
}

#[test]
fn a_clean_history_has_no_flaw() {
    assert_eq!(check(&clean().entries, &rules()), []);
}

#[test]
fn dropping_a_delivery_loses_it_where_it_stood() {
    assert_eq!(dropped("a").flaws(), [Flaw::LostPrefix]);
    assert_eq!(dropped("c").flaws(), [Flaw::LostMiddle]);
    assert_eq!(dropped("e").flaws(), [Flaw::LostPostfix]);
}

#[test]
fn a_gap_explains_a_loss_and_silence_does_not() {
    let mut told = dropped("c");
    let end = told.entries.len() - 1;
    let gap = Happened::Gap {
        member: 1,
        lost: Some(1),
    };
    let at = told.entries[end].at;
    told.entries.insert(end, Entry { at, what: gap });
    let taken = Happened::Taken { topic: "t".into() };
    told.entries.insert(end, Entry { at, what: taken });
    assert_eq!(told.flaws(), []);
    let mut silent = clean();
    let taken = Happened::Taken { topic: "t".into() };
    silent.entries.insert(end, Entry { at, what: taken });
    assert_eq!(silent.flaws(), [Flaw::SilentGap]);
}

#[test]
fn an_unpublished_one_is_a_phantom_and_a_refused_one_aborted() {
    let mut tape = clean();
    tape.deliver(1, "x", 1, None);
    assert_eq!(tape.flaws(), [Flaw::Phantom]);
    let mut tape = clean();
    let at = tape.position(|h| matches!(h, Happened::Accepted { id } if id == "e"));
    tape.entries[at].what = Happened::Refused { id: "e".into() };
    assert_eq!(tape.flaws(), [Flaw::Aborted]);
}

#[test]
fn a_changed_delivery_is_corrupted_or_of_another_topic() {
    let corrupt = altered("a", |h| match h {
        Happened::Delivered { digest, .. } => *digest += 1,
        _ => unreachable!(),
    });
    assert_eq!(corrupt.flaws(), [Flaw::Corrupted]);
    let lost_key = altered("a", |h| match h {
        Happened::Delivered { key, .. } => *key = None,
        _ => unreachable!(),
    });
    assert_eq!(lost_key.flaws(), [Flaw::Corrupted]);
    let elsewhere = altered("a", |h| match h {
        Happened::Delivered { topic, .. } => *topic = "t.u".into(),
        _ => unreachable!(),
    });
    assert_eq!(elsewhere.flaws(), [Flaw::WrongTopic]);
}

#[test]
fn a_delivery_after_a_confirmed_ack_is_resurrected() {
    let mut tape = clean();
    tape.wait(2 * LEASE);
    tape.deliver(1, "a", 2, Some("k"));
    assert_eq!(tape.flaws(), [Flaw::Resurrected]);
}

/// One entry comes once more, as if for the first time, for each member that went away, and no more.
#[test]
fn a_member_that_leaves_costs_one_ack_where_that_is_declared() {
    let declared = Rules {
        leaving_costs_ack: true,
        ..rules()
    };
    // One member dies in it.
    let again = |died: bool, attempt: u32, ids: &[&str]| {
        let mut tape = clean();
        tape.wait(LEASE / 2);
        if !died {
            let survives = |e: &Entry| !matches!(e.what, Happened::Crashed { .. });
            tape.entries.retain(survives);
        }
        for id in ids {
            tape.deliver(1, id, attempt, Some("k"));
        }
        tape
    };
    let resurrected = |tape: Tape, rules: &Rules| {
        let findings = check(&tape.entries, rules);
        let each = findings.iter();
        each.filter(|f| f.flaw == Flaw::Resurrected).count()
    };
    assert_eq!(resurrected(again(true, 1, &["a"]), &declared), 0);
    assert_eq!(resurrected(again(true, 1, &["a", "e"]), &declared), 1);
    assert_eq!(
        resurrected(again(true, 2, &["a"]), &declared),
        1,
        "it counts"
    );
    assert_eq!(
        resurrected(again(false, 1, &["a"]), &declared),
        1,
        "all live"
    );
    assert_eq!(
        resurrected(again(true, 1, &["a"]), &rules()),
        1,
        "undeclared"
    );
    let mut late = clean();
    late.wait(LEASE + LEASE);
    late.deliver(1, "a", 1, Some("k"));
    assert_eq!(resurrected(late, &declared), 1, "long after");
}

/// A broker that writes behind may forget what it confirmed just before it died, and nothing else.
#[test]
fn a_broker_that_writes_behind_forgets_only_the_last_acks() {
    let kept_after = |after: Option<u64>| Rules {
        acks_survive: after.map(Duration::from_secs),
        ..rules()
    };
    for (age, rules, forgiven) in [
        (1, kept_after(Some(3)), true),
        (4, kept_after(Some(3)), false),
        (4, kept_after(None), true),
        (1, kept_after(Some(0)), false),
    ] {
        let mut tape = clean();
        tape.wait(Duration::from_secs(age));
        for on in [true, false] {
            let what = Trouble::Kill;
            tape.add(Happened::Fault { what, on });
        }
        tape.deliver(2, "e", 1, Some("k"));
        let findings = check(&tape.entries, &rules);
        let resurrected = findings.iter().any(|f| f.flaw == Flaw::Resurrected);
        assert_eq!(resurrected, !forgiven, "{age} s, {:?}", rules.acks_survive);
    }
}

#[test]
fn a_second_copy_and_an_ack_that_was_not_sent_are_duplicates() {
    let mut tape = clean();
    let Happened::Delivered { .. } = tape.entries[tape.delivered("e")].what else {
        unreachable!()
    };
    tape.deliver(1, "e", 1, Some("k"));
    let last = tape.entries.len() - 1;
    if let Happened::Delivered { position, .. } = &mut tape.entries[last].what {
        position.major += 1;
    }
    assert_eq!(tape.flaws(), [Flaw::Duplicate]);
    let mut tape = clean();
    tape.publish("f", None);
    tape.deliver(1, "f", 1, None);
    tape.settle(1, "f", 1, How::Ack, Ended::Unknown);
    tape.wait(LEASE);
    tape.deliver(1, "f", 2, None);
    assert_eq!(tape.flaws(), [Flaw::Duplicate]);
    // A fault may have taken the answer along with the ack.
    let at = tape.position(|h| matches!(h, Happened::Settled { id, .. } if id == "f"));
    let what = Happened::Fault {
        what: Trouble::Cut,
        on: true,
    };
    let time = tape.entries[at].at;
    tape.entries.insert(at, Entry { at: time, what });
    assert_eq!(tape.flaws(), []);
}

#[test]
fn a_live_lease_is_exclusive_and_a_dead_one_lasts() {
    let mut tape = clean();
    tape.join(3);
    tape.publish("f", None);
    tape.deliver(1, "f", 1, None);
    let mut both = tape.clone();
    both.deliver(3, "f", 2, None);
    assert_eq!(both.flaws(), [Flaw::DoubleLease]);
    let mut revoked = both.clone();
    let Happened::Delivered { position, .. } = revoked.entries[revoked.entries.len() - 1].what
    else {
        unreachable!()
    };
    revoked.add(Happened::Revoked {
        member: 1,
        position,
    });
    assert_eq!(revoked.flaws(), []);
    tape.add(Happened::Crashed { member: 1 });
    let mut early = tape.clone();
    early.deliver(3, "f", 2, None);
    assert_eq!(early.flaws(), [Flaw::Early]);
    tape.wait(LEASE);
    tape.deliver(3, "f", 2, None);
    assert_eq!(tape.flaws(), []);
}

#[test]
fn lease_lost_is_told_when_it_is_lost_and_only_then() {
    let mut tape = clean();
    tape.publish("f", None);
    tape.deliver(1, "f", 1, None);
    let mut falsely = tape.clone();
    falsely.settle(1, "f", 1, How::Ack, Ended::Lost);
    assert_eq!(falsely.flaws(), [Flaw::FalseLoss]);
    tape.wait(LEASE);
    let mut rightly = tape.clone();
    rightly.settle(1, "f", 1, How::Ack, Ended::Lost);
    assert_eq!(rightly.flaws(), []);
    tape.settle(1, "f", 1, How::Ack, Ended::Done);
    assert_eq!(tape.flaws(), [Flaw::LateSettled]);
}

#[test]
fn a_delay_is_neither_shortened_nor_stretched() {
    let delay = Duration::from_secs(5);
    let mut tape = clean();
    tape.publish("f", None);
    tape.deliver(1, "f", 1, None);
    tape.settle(1, "f", 1, How::Nack(delay), Ended::Done);
    tape.idle(1, true);
    let again = |wait| {
        let mut tape = tape.clone();
        tape.wait(wait);
        tape.idle(1, false);
        tape.deliver(1, "f", 2, None);
        tape.flaws()
    };
    assert_eq!(again(delay / 2), [Flaw::Early]);
    assert_eq!(again(delay), []);
    assert_eq!(again(delay + Duration::from_secs(1)), [Flaw::Late]);
}

#[test]
fn a_drop_waits_for_its_backoff_and_comes_back() {
    let backoff = Duration::from_secs(1);
    let mut tape = clean();
    tape.publish("f", None);
    tape.deliver(1, "f", 1, None);
    tape.settling(1, "f", 1, How::Dropped(backoff));
    let mut early = tape.clone();
    early.deliver(1, "f", 2, None);
    assert_eq!(early.flaws(), [Flaw::Early]);
    tape.wait(backoff * 2);
    tape.add(Happened::Drained);
    assert_eq!(tape.flaws(), [Flaw::Stuck]);
}

/// What a broker that was away had sent last may have been taken back, once.
#[test]
fn an_outage_explains_one_attempt() {
    for what in [Trouble::Kill, Trouble::Freeze] {
        for (first, flaws) in [(2, vec![]), (3, vec![Flaw::Count])] {
            let mut tape = altered("a", |h| match h {
                Happened::Delivered { attempt, .. } => *attempt = first,
                _ => unreachable!(),
            });
            let at = tape.position(|h| matches!(h, Happened::Delivered { id, .. } if id == "a"));
            let time = tape.entries[at].at;
            for on in [false, true] {
                let what = Happened::Fault { what, on };
                tape.entries.insert(at, Entry { at: time, what });
            }
            assert_eq!(tape.flaws(), flaws, "{what:?}, attempt {first}");
        }
    }
}

#[test]
fn attempts_add_up() {
    let wrong = altered("a", |h| match h {
        Happened::Delivered { attempt, .. } => *attempt = 2,
        _ => unreachable!(),
    });
    assert_eq!(wrong.flaws(), [Flaw::Count]);
    for second in [1, 3] {
        let mut tape = clean();
        tape.publish("f", None);
        tape.deliver(1, "f", 1, None);
        tape.settle(1, "f", 1, How::Nack(Duration::ZERO), Ended::Done);
        tape.deliver(1, "f", second, None);
        // One crash was before its first delivery: it explains nothing here.
        assert_eq!(tape.flaws(), [Flaw::Count], "{second}");
    }
    let mut tape = clean();
    tape.publish("f", None);
    tape.deliver(1, "f", 1, None);
    for attempt in 1..=3 {
        tape.settle(1, "f", attempt, How::Nack(Duration::ZERO), Ended::Done);
        tape.deliver(1, "f", attempt + 1, None);
    }
    assert_eq!(tape.flaws(), [Flaw::OverAttempts]);
}

#[test]
fn swapped_first_deliveries_of_a_key_are_out_of_order() {
    let swap = |key: Option<&str>| {
        let mut tape = Tape::default();
        tape.join(1);
        tape.publish("a", key);
        tape.publish("b", key);
        tape.deliver(1, "b", 1, key);
        tape.deliver(1, "a", 1, key);
        tape.flaws()
    };
    assert_eq!(swap(Some("k")), [Flaw::Order]);
    assert_eq!(swap(None), []);
}

#[test]
fn a_window_is_kept() {
    let mut tape = clean();
    for id in ["f", "g", "h", "i"] {
        tape.publish(id, None);
        tape.deliver(1, id, 1, None);
    }
    assert_eq!(tape.flaws(), [Flaw::OverPrefetch]);
}

#[test]
fn a_million_events_take_seconds() {
    let mut tape = Tape::default();
    tape.join(1);
    for n in 0..200_000 {
        let id = format!("m{n}");
        tape.add(Happened::Publishing {
            sender: 1,
            topic: "t".into(),
            id: id.clone(),
            key: Some(format!("k{}", n % 10)),
            digest: 7,
        });
        tape.add(Happened::Accepted { id: id.clone() });
        tape.add(Happened::Delivered {
            member: 1,
            id: id.clone(),
            topic: "t".into(),
            digest: 7,
            key: Some(format!("k{}", n % 10)),
            position: Position { major: 0, minor: n },
            attempt: 1,
            deadline: tape.now + LEASE,
        });
        tape.settle(1, &id, 1, How::Ack, Ended::Done);
    }
    tape.add(Happened::Drained);
    let start = std::time::Instant::now();
    assert_eq!(check(&tape.entries, &rules()), []);
    // It takes well under a second; the bound is for a machine that builds meanwhile.
    assert!(start.elapsed() < Duration::from_secs(10));
}
